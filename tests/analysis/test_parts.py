"""Units: every value a forward pass uses is in exactly one, with the papers' names, whatever built the model."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from timm.models.densenet import DenseNet
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import surgeon
from analysis.parts import Unit, units
from surgeon.errors import AnalysisError, SurgeonError
from surgeon.host import input_sizes, unwrap
from surgeon.tracing import record_forward
from tests.analysis.odd_nets import Odd, odd, reads_a_weight_itself, shares_a_weight
from tests.contracts import Snapshot
from tests.matrix.measure import families, smallest
from tests.zoo import FAMILIES, TINY, Entry, PlainNet


def used(model: nn.Module, size: tuple[int, int, int], device: str = "cpu") -> set[str]:
    """Names of the parameters that a pass in evaluation mode depends on: those that get a gradient."""
    model = copy.deepcopy(model).to(device).float().eval().requires_grad_(True)
    answer = model(torch.rand(2, *size, device=device))
    total = sum(leaf.sum() for leaf in tree_flatten(answer)[0] if isinstance(leaf, Tensor) and leaf.requires_grad)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def complete(found: Sequence[Unit], model: nn.Module, needed: set[str]) -> None:
    """Each value in one unit at most, no needed one in none; sizes, paths and names are right."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    counts = Counter(name for unit in found for name in unit.tensors)
    assert [name for name, count in counts.items() if count > 1] == []
    assert needed - counts.keys() == set()
    assert counts.keys() <= tensors.keys()
    for unit in found:
        assert unit.params == sum(tensors[name].numel() for name in unit.parameters) > 0
        assert all(model.get_submodule(path) is not None for path in unit.paths) and unit.paths
    assert len({unit.name for unit in found}) == len(found)
    owner = {name: unit.name for unit in found for name in unit.tensors}
    for path, module in model.named_modules():
        own = [f"{path}.{name}" for name, _ in [*module._parameters.items(), *module._buffers.items()]]
        assert len({owner[name] for name in own if name in owner}) <= 1, f"the values of {path} stay together"


def names(model: Any, level: Any = "block", size: Any = None) -> list[str]:
    return [unit.name for unit in units(model, level, size)]


@pytest.mark.parametrize("entry", TINY, ids=str)
def test_every_used_value_is_in_one_unit(entry: Entry) -> None:
    model = entry.build()
    needed = used(model, input_sizes(model, entry.size)[0])
    before = Snapshot.of(model)
    for level in ("layer", "block", "stage") if entry is TINY[0] else ("layer", "block"):
        complete(units(model, level, entry.size), model, needed)  # type: ignore[arg-type]
    assert Snapshot.of(model).differences(before) == []


def test_the_oracle_sees_what_is_left_out() -> None:
    model = PlainNet()
    model.unused = nn.Linear(3, 3)
    needed = used(model, (3, 32, 32))
    assert "head.weight" in needed and "unused.weight" not in needed
    found = units(model, input_size=32)
    complete(found, model, needed)
    with pytest.raises(AssertionError):
        complete(found[:-1], model, needed)
    with pytest.raises(AssertionError):
        complete([*found, found[0]], model, needed)


@pytest.mark.slow
@pytest.mark.parametrize("entry", FAMILIES, ids=str)
def test_families(entry: Entry) -> None:
    model = entry.build()
    needed = used(model, input_sizes(model, entry.size)[0])
    for level in ("layer", "block", "stage"):
        complete(units(model, level, entry.size), model, needed)  # type: ignore[arg-type]


@pytest.mark.matrix
@pytest.mark.parametrize("family", families())
def test_every_family(family: str) -> None:
    model = timm.create_model(smallest(families()[family]), num_classes=10)
    size = record_forward(model, input_sizes(model)).input_size
    try:
        needed = used(model, size, "meta")
    except (RuntimeError, NotImplementedError, ValueError):  # code that reads values
        needed = used(model, size)
    for level in ("layer", "block", "stage"):
        complete(units(model, level), model, needed)  # type: ignore[arg-type]


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["yolo11n", "yolov8n", "yolov5n", "yolov10n", "yolo12n", "yolov9t", "yolov8n-cls"])
def test_ultralytics(name: str) -> None:
    from ultralytics import YOLO

    model = YOLO(f"{name}.yaml").model
    for level in ("layer", "block", "stage"):
        complete(units(model, level), model, used(model, (3, 64, 64)))  # type: ignore[arg-type]


# names of the papers


RESNET18 = ["stage0", *(f"stage{s}.resblk{b}" for s in (1, 2, 3, 4) for b in (1, 2)), "final_linear"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", RESNET18),
        ("preact_resnet18_plain", RESNET18),
        ("preact_resnet18", [*RESNET18[:-1], "blocks.4", "final_linear"]),
        ("fcn", ["layer1", "layer2", "layer3", "final_linear"]),
        (
            "blocknet_42",
            [
                "stage0",
                *(f"stage1.resblk{b}" for b in (1, 2, 3, 4)),
                "stage2.downsample",
                *(f"stage2.resblk{b}" for b in (1, 2, 3, 4)),
                "final_linear",
            ],
        ),
        (
            "convnext_atto",
            [
                *("stage0", "stage1.resblk1", "stage1.resblk2", "stage2.downsample", "stage2.resblk1"),
                *("stage2.resblk2", "stage3.downsample", *(f"stage3.resblk{b}" for b in range(1, 7))),
                *("stage4.downsample", "stage4.resblk1", "stage4.resblk2", "final_linear"),
            ],
        ),
        ("vit_tiny_patch16_224", ["stage0", *(f"blocks.{i}" for i in range(12)), "norm", "final_linear"]),
    ],
)
def test_names(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert names(model) == expected


VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


DEEP = [pytest.param(f"vgg{depth}_plain", marks=pytest.mark.slow) for depth in (13, 16, 19)]
DEEP.append(pytest.param("vgg16_cifar", marks=pytest.mark.slow))


@pytest.mark.parametrize(
    "name", ["vgg11_plain", *DEEP, "vgg16_bn", pytest.param("vgg16_cifar", marks=pytest.mark.slow)]
)
def test_names_of_vgg_nets(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    convs = VGG[int(name[3:5])]
    blocks = [f"stage{stage}.block{i}" for stage, count in enumerate(convs, 1) for i in range(1, count + 1)]
    assert names(model) == [*blocks, "fc1", "fc2", "final_linear"]
    assert names(model, "stage") == [*(f"stage{i}" for i in range(1, 6)), "fc1", "fc2", "final_linear"]


def test_stages_of_resnets() -> None:
    model = timm.create_model("resnet18")
    found = units(model, "stage")
    assert [unit.name for unit in found] == [*(f"stage{i}" for i in range(5)), "final_linear"]
    blocks = units(model)
    assert [unit.stage for unit in blocks] == [0, 1, 1, 2, 2, 3, 3, 4, 4, None]
    assert found[2].parameters == blocks[3].parameters + blocks[4].parameters
    assert found[2].params == blocks[3].params + blocks[4].params and not found[2].residual


def test_a_residual_block_is_one_unit_with_its_skip() -> None:
    model = timm.create_model("resnet18")
    unit = next(unit for unit in units(model) if unit.name == "stage2.resblk1")
    assert unit.residual and unit.path == "layer2.0" and unit.type_name == "BasicBlock"
    assert set(unit.parameters) == {f"layer2.0.{name}" for name, _ in model.layer2[0].named_parameters()}
    assert set(unit.buffers) == {f"layer2.0.{name}" for name, _ in model.layer2[0].named_buffers()}
    stem = units(model)[0]
    assert stem.paths == ("conv1", "bn1") and "bn1.running_mean" in stem.buffers and not stem.residual


def test_layers_with_their_norms() -> None:
    found = {unit.name: unit for unit in units(timm.create_model("resnet18"), "layer")}
    assert len(found) == 21 and all("bn" not in name for name in found)
    assert found["layer2.0.downsample.0"].paths == ("layer2.0.downsample.0", "layer2.0.downsample.1")
    assert "layer2.0.bn1.running_var" in found["layer2.0.conv1"].buffers
    first = {unit.name: unit for unit in units(DenseNet(4, (2, 2), num_classes=10), "layer", 32)}
    layer = "features.denseblock1.denselayer2"
    assert first[f"{layer}.conv1"].paths == (f"{layer}.norm1", f"{layer}.conv1", f"{layer}.norm2")


def test_detectors_have_their_top_level_layers() -> None:
    from ultralytics import YOLO

    yolo = YOLO("yolo11n.yaml")
    found = units(yolo)
    assert [unit.name for unit in found][:3] == ["layer0.Conv", "layer1.Conv", "layer2.C3k2"]
    assert found[-1].name == "layer23.Detect" and len(found) == 18
    assert [unit.stage for unit in found][:4] == [0, 1, 2, 2] and found[-1].stage is None
    complete(found, unwrap(yolo), used(unwrap(yolo), (3, 64, 64)))


# operated, odd and other models


SLOW = [pytest.param(op, marks=pytest.mark.slow) for op in ("stochastic", "spatial_shuffle", "blurpool", "aps")]


@pytest.mark.parametrize("op", ["spd", "remove", "freeze", *SLOW])
def test_operated_models(op: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", stem_width=8, channels=(8, 8, 16, 16), num_classes=10)
    before = names(model, size=64)
    surgeon.apply(model, op, 64)
    found = units(model, input_size=64)
    complete(found, model, used(model, (3, 64, 64)))
    left = [name for name in before if name in {unit.name for unit in found}]
    assert len(left) >= 6 and left[0] == "stage0" and left[-1] == "final_linear"


def test_a_removed_block_is_no_unit() -> None:
    model = timm.create_model("resnet18", stem_width=8, channels=(8, 8, 16, 16))
    surgeon.apply(model, surgeon.Step(surgeon.get_op("remove")(), surgeon.Select(path="layer3.1")), 64)
    assert "layer3.1" not in {unit.path for unit in units(model, input_size=64)}


def test_shared_weights_are_in_the_first_unit_that_uses_them() -> None:
    model = odd(shares_a_weight)
    found = {unit.path.split(".")[0]: unit for unit in units(model, "layer", (3, 8, 8))}
    assert found["a"].parameters == ("a.weight", "a.bias") and found["b"].parameters == ("b.bias",)


def test_weights_that_a_parents_code_reads() -> None:
    model = odd(reads_a_weight_itself)
    complete(units(model, "layer", (3, 8, 8)), model, used(model, (3, 8, 8)))
    attention = Odd(lambda m, x: m.c(m.attention(*[x.flatten(2).mT] * 3)[0].mT.reshape(x.shape)))
    attention.attention = nn.MultiheadAttention(6, 2, batch_first=True)
    found = units(attention, "layer", (3, 8, 8))
    complete(found, attention, used(attention, (3, 8, 8)))
    assert len([unit for unit in found if unit.path.startswith("attention")]) == 1


class Late(PlainNet):
    """Has a value of its own that is used behind a block."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.block(self.pool(self.stem(x))) * self.gain).mean((2, 3)))


def test_values_of_the_model_itself() -> None:
    """Its path is empty, and it has a name all the same: at the start they belong to the stem, later they do not."""
    vit = timm.create_model("test_vit")
    assert units(vit)[0].paths[1:] == ("",) and {"cls_token", "pos_embed"} < set(units(vit)[0].parameters)
    assert next(u for u in units(vit, "layer") if u.paths == ("",)).name == "own values"
    late = Late()
    found = units(late, input_size=32)
    complete(found, late, used(late, (3, 32, 32)))
    assert [unit.name for unit in found][2:] == ["own values", "final_linear"]


def test_plain_modules() -> None:
    model = PlainNet()
    found = units(model, input_size=32)
    complete(found, model, used(model, (3, 32, 32)))
    assert [unit.path for unit in found] == ["stem.0, stem.1", "block", "head"] and found[1].residual
    alone = units(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), input_size=(3, 2, 2))
    assert [unit.parameters for unit in alone] == [("1.weight", "1.bias")]


def test_what_is_no_model_and_no_level() -> None:
    with pytest.raises(AnalysisError, match="level is 'blocks'; it is one of layer, block, stage"):
        units(timm.create_model("test_resnet"), "blocks")  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="the forward pass of Sequential uses no parameter"):
        units(nn.Sequential(nn.Flatten()), input_size=(3, 4, 4))
    with pytest.raises(SurgeonError, match="pass input_size"):
        units(PlainNet())
    with pytest.raises(SurgeonError, match=r"no nn\.Module"):
        units(3)
