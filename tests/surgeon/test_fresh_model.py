"""Fresh values of a whole model: from its library's builder, its surgery repeated, or its own code; never a trace."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import surgeon
from surgeon.fresh import tensors
from surgeon.host import unwrap
from surgeon.redrawing import FreshValues, fresh_model_values
from surgeon.resetting import is_unset, own_code, seed_generators, unset_copy
from tests.contracts import Snapshot, stir
from tests.surgeon.yolo.small import network
from tests.zoo import TINY, PlainNet, entries


def whole(model: nn.Module, seed: int = 0) -> FreshValues:
    """Values for everything of ``model``, by name and shape; it and the generators are as before."""
    torch.rand(3)
    module = unwrap(model)
    before = Snapshot.of(module)
    fresh = fresh_model_values(model, seed)
    assert before.differences(Snapshot.of(module)) == []
    held = tensors(module)
    assert fresh.missing == {} and fresh.values.keys() == held.keys()
    assert [n for n in held if (fresh.values[n].shape, fresh.values[n].dtype) != (held[n].shape, held[n].dtype)] == []
    return fresh


def built(seed: int, make: Any) -> dict[str, Tensor]:
    """The tensors of a model made after torch was seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tensors(make())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(**entries(TINY))
def test_timms_builder_draws(entry: Any) -> None:
    model = stir(entry.build(in_chans=1))
    fresh = whole(model, seed=4)
    assert f"a fresh build of timm's {entry.name}" in fresh.source and "except" not in fresh.source
    assert same(fresh.values, built(4, lambda: timm.create_model(entry.name, num_classes=10, in_chans=1)))


def test_seeds() -> None:
    model = timm.create_model("test_resnet")
    first, again, other = (whole(model, seed).values for seed in (1, 1, 2))
    assert same(first, again)
    drawn = [name for name, tensor in model.named_parameters() if tensor.ndim > 1]
    assert [name for name in drawn if torch.equal(first[name], other[name])] == []


def test_the_generators_of_numpy_and_python_do_not_matter() -> None:
    values = []
    for _ in range(2):
        seed_generators(int(torch.randint(99, ())))  # the snapshot in whole() tells that these too are as before
        values.append(whole(PlainNet(), seed=1).values)
    assert same(*values)


def test_arguments_are_those_the_model_was_built_with() -> None:
    net = surgeon.create_model("fcn", depth=2, width=24, in_chans=1, img_size=8, num_classes=3)
    assert same(whole(net).values, built(0, lambda: timm.create_model("fcn", **arguments_of(net))))
    plain = timm.create_model("fcn", depth=2, width=24, in_chans=1, img_size=8)  # nobody remembers depth and width
    assert whole(plain).source.startswith("reset_parameters of its own layers; a fresh build of timm's fcn")
    last = surgeon.create_model("resnet18", zero_init_last=False, num_classes=2)
    assert (whole(last).values["layer1.0.bn2.weight"] == 1).all()
    assert (whole(timm.create_model("resnet18", num_classes=2)).values["layer1.0.bn2.weight"] == 0).all()


def arguments_of(model: nn.Module) -> dict[str, Any]:
    return model.__dict__["_surgeon_builder"]["arguments"]


def test_the_distribution_is_the_models_own() -> None:
    model = timm.create_model("resnet18", num_classes=7)
    weight = whole(stir(model)).values["layer3.0.conv1.weight"]
    assert float(weight.std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)  # timm: Kaiming normal, fan out
    own = whole(PlainNet()).values["block.conv2.weight"]
    default = (1 / (12 * 9) / 3) ** 0.5  # torch: uniform, fan in
    assert float(own.std()) == pytest.approx(default, rel=0.05)
    assert float(weight.std()) != pytest.approx((1 / (128 * 9) / 3) ** 0.5, rel=0.2)  # the check can tell them apart


def test_a_layer_of_another_shape_draws_by_itself() -> None:
    model = timm.create_model("resnet18", num_classes=7)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    fresh = whole(model)
    assert "except for 'conv1'; reset_parameters of the other layers" in fresh.source
    stock = built(0, lambda: timm.create_model("resnet18", num_classes=7))
    assert torch.equal(fresh.values["layer4.1.conv2.weight"], stock["layer4.1.conv2.weight"])
    assert 0.9 / 27**0.5 < float(fresh.values["conv1.weight"].abs().max()) <= 1 / 27**0.5


def test_a_model_of_timms_inside_another() -> None:
    model = nn.ModuleDict({"a": timm.create_model("test_resnet"), "b": timm.create_model("test_resnet")})
    fresh = whole(model)
    assert fresh.source.startswith("'a': a fresh build of timm's test_resnet")
    weights = [fresh.values[f"{name}.conv1.0.weight"] for name in "ab"]
    assert not torch.equal(*weights)
    assert (fresh.values["a.layer1.0.bn2.weight"] == 0).all()  # as timm starts it


def test_operated_models() -> None:
    model = stir(surgeon.create_model("test_resnet", "spd", num_classes=4))
    fresh = whole(model, seed=5)
    assert fresh.source.endswith("operated by the same recipe")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = surgeon.apply(timm.create_model("test_resnet", num_classes=4), "spd")
    assert same(fresh.values, tensors(expected))
    stock = surgeon.create_model("test_resnet", num_classes=4)
    assert not same(fresh.values, whole(stock, seed=5).values)


def test_an_operated_model_that_nobody_built() -> None:
    model = surgeon.apply(stir(PlainNet()), "spd", 32)
    fresh = whole(model, seed=2)
    assert fresh.source == "reset_parameters of its own layers, operated by the same recipe"
    expected = PlainNet()
    start = fresh_model_values(PlainNet(), 2).values
    expected.load_state_dict(start)
    assert same(fresh.values, tensors(surgeon.apply(expected, "spd", 32)))


def test_an_operated_model_whose_originals_are_gone() -> None:
    model = surgeon.apply(PlainNet(), {"surgery": ["spd"], "keep_originals": False}, 32)
    fresh = fresh_model_values(model, 0)
    assert "its surgery cannot be repeated on fresh values: cannot undo" in fresh.source
    assert [name for name in fresh.missing if "reset_parameters" not in fresh.missing[name]] == []
    assert fresh.values.keys() | fresh.missing.keys() == tensors(model).keys()


class Scaled(nn.Module):
    """A conv and a factor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("mask", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale * self.mask[:, None, None]


def test_a_parameter_of_which_nothing_says_how_it_starts() -> None:
    model = nn.Sequential(Scaled())
    fresh = fresh_model_values(model, 0)
    assert fresh.values.keys() == {"0.conv.weight", "0.conv.bias", "0.mask"}
    assert torch.equal(fresh.values["0.mask"], model[0].mask)
    assert fresh.missing == {
        "0.scale": "'0.scale' belongs to '0', a Scaled without reset_parameters or init_weights: nothing says how it "
        "starts; give the class a reset_parameters that sets it"
    }
    alone = fresh_model_values(nn.Sequential(nn.ParameterList([torch.ones(2)])), 0)
    assert "a ParameterList without" in alone.missing["0.0"] and alone.source == "nowhere: it has no values"


def test_a_parameter_that_its_own_code_leaves_alone() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))  # reset_parameters sets what is computed
    fresh = fresh_model_values(conv, 0)
    assert fresh.missing.keys() == {f"parametrizations.weight.original{i}" for i in (0, 1)}

    class Part(Scaled):
        def reset_parameters(self) -> None:
            """Forget the factor."""

    assert "whose reset_parameters did not set it" in fresh_model_values(Part(), 0).missing["scale"]


def test_code_that_fails_is_told() -> None:
    class Broken(Scaled):
        def init_weights(self) -> None:
            raise ValueError("no luck")

    fresh = fresh_model_values(Broken(), 0)
    assert "and its init_weights fails (ValueError: no luck)" in fresh.missing["scale"]
    assert "its init_weights fails (ValueError: no luck)" in fresh.source
    assert "conv.weight" in fresh.values


class Sevens(Scaled):
    """Sets the factor itself, and every bias in the way of many libraries."""

    def init_weights(self) -> None:
        nn.init.constant_(self.scale, 7)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            module.bias.data.fill_(3)


class ByModule(Scaled):
    """Has nothing but a function for each module."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.bias, 5)
        elif module is self:
            nn.init.constant_(self.scale, 2)


def test_init_weights() -> None:
    fresh = whole(nn.Sequential(Sevens(), ByModule()))
    assert fresh.source == "reset_parameters and init_weights and _init_weights of its own layers"
    assert (fresh.values["0.scale"] == 7).all() and (fresh.values["0.conv.bias"] == 3).all()
    assert (fresh.values["1.scale"] == 2).all() and (fresh.values["1.conv.bias"] == 5).all()
    assert float(fresh.values["0.conv.weight"].std()) > 0.05  # drawn by the conv itself
    assert own_code(Sevens()) == ["init_weights", "_init_weights"]
    assert own_code(nn.MultiheadAttention(4, 2)) == ["_reset_parameters"]
    assert whole(nn.TransformerEncoderLayer(8, 2)).values["self_attn.in_proj_weight"].std() > 0


def test_shared_parameters_and_modules() -> None:
    conv = nn.Conv2d(4, 4, 3)
    tied = nn.Linear(4, 4)
    tied.weight = nn.Linear(4, 4).weight
    model = nn.Sequential(conv, nn.Sequential(conv), nn.Linear(4, 4), tied)
    model[2].weight = tied.weight
    assert [name for name in whole(model).values if name.endswith("weight")] == ["0.weight", "2.weight"]


def test_precision_and_leftovers_of_a_forward() -> None:
    model = PlainNet().double()
    model.head.seen = model.head.weight * 2  # has a gradient: deepcopy alone would refuse it
    assert whole(model).values["stem.0.weight"].dtype == torch.float64


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(surgeon.RefusedError, match=r"wrapped in DataParallel: operate on its \.module"):
        fresh_model_values(nn.DataParallel(nn.Linear(2, 2)), 0)
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    with pytest.raises(surgeon.RefusedError, match=r"'weight' of Linear is on the meta device"):
        fresh_model_values(empty, 0)


def test_the_copy_shares_nothing() -> None:
    model = Scaled()
    model.cache = torch.zeros(2)
    twin = unset_copy(model)
    assert all(is_unset(p) for p in twin.parameters())
    twin.cache.add_(1), twin.mask.add_(1)
    assert float(model.cache.sum()) == 0 and torch.equal(model.mask, torch.arange(4.0))


def test_detectors(tmp_path: Any) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    yolo = ultralytics.YOLO(network(tmp_path, classes=5))
    stir(yolo.model).eval()
    fresh = whole(yolo, seed=3)
    assert fresh.source == "a fresh build of ultralytics' DetectionModel from its yaml"
    kind, yaml = type(yolo.model), copy.deepcopy(yolo.model.yaml)
    expected = built(3, lambda: kind(yaml, ch=3, nc=5, verbose=False))
    assert same(fresh.values, expected) and same(whole(yolo.model, 3).values, expected)
    bias = fresh.values["model.8.cv3.0.2.bias"]
    assert float(bias.max()) < -4  # the head starts with rare objects, which no reset_parameters knows
    surgeon.apply(yolo, "spd")
    operated = whole(yolo, seed=3)
    assert operated.source.endswith("operated by the same recipe") and operated.values.keys() == expected.keys()
    assert operated.values["model.0.conv.weight"].shape != expected["model.0.conv.weight"].shape
    yolo.model.fuse(verbose=False)
    fused = whole(yolo.model, seed=3)
    assert fused.source == operated.source
    assert fused.values["model.8.dfl.conv.weight"].flatten().tolist() == list(range(16))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolo26n.yaml", "yolo11n-cls.yaml", "yolov8-rtdetr.yaml"])
def test_detectors_of_ultralytics(name: str) -> None:
    from tests.surgeon.yolo.zoo import build

    network = build(name)
    assert same(whole(network, seed=3).values, tensors(build(name, seed=3)))
