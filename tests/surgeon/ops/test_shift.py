"""The op ``shift`` and the conv it builds: which tap is kept, that nothing else changed, and the fit to activations."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from timm.models._features_fx import create_feature_extractor
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import recipes
import surgeon
from surgeon.ops.offsets import offset_parameters
from surgeon.ops.shift import fit
from surgeon.ops.shift_conv import ShiftConv2d, ShiftStdConv2d, strongest_taps
from surgeon.ops.shift_layer import SparseShift2d
from tests.contracts import Snapshot, atomic, images, relative, rewritten, run, seen_at, stir, undone
from tests.zoo import PlainNet

CONVS = {
    "3x3": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "strided": lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
    "unpadded": lambda: nn.Conv2d(6, 8, 3),
    "much padding": lambda: nn.Conv2d(6, 8, 3, padding=3),
    "rectangular": lambda: nn.Conv2d(6, 8, (5, 1), stride=(1, 2), padding=(2, 0)),
    "dilated": lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2),
    "even": lambda: nn.Conv2d(6, 8, 4, stride=2, padding=1),
    "grouped": lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6),
    "multiplied": lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6),
    "reflected": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(6, 8, 3, padding="same"),
    "same, reflected": lambda: nn.Conv2d(6, 8, (4, 3), padding="same", padding_mode="reflect"),
    "same, strided": lambda: Conv2dSame(6, 8, 3, stride=2),
    "same, even": lambda: Conv2dSame(6, 8, 4, stride=3),
}
SIZES = ((9, 12), (10, 11), (8, 8))


def conv_of(name: str) -> nn.Conv2d:
    torch.manual_seed(0)
    return CONVS[name]().double().eval()


def features(size: tuple[int, int], channels: int = 6) -> Tensor:
    return images(size, channels=channels)


def one_tap_each(conv: nn.Conv2d, seed: int = 0) -> nn.Conv2d:
    """The same conv with, of each input channel of each group, one tap at random left."""
    g = torch.Generator().manual_seed(seed)
    groups, (outputs, inputs, rows, columns) = conv.groups, conv.weight.shape
    keep = F.one_hot(torch.randint(rows * columns, (groups, inputs), generator=g), rows * columns)
    mask = keep[:, None].expand(-1, outputs // groups, -1, -1).reshape(conv.weight.shape)
    conv.weight.data *= mask
    return conv


@pytest.mark.parametrize("mode", ["sparse", "active"])
@pytest.mark.parametrize("name", CONVS)
def test_a_conv_with_one_tap_per_channel_stays_the_same_function(name: str, mode: Any) -> None:
    conv = one_tap_each(conv_of(name))
    layer = ShiftConv2d.from_conv2d(conv, mode)
    for size in SIZES:
        assert relative(run(conv, features(size)), run(layer, features(size))) < 1e-12
    with torch.no_grad():
        layer.offset[0, 2] += 1
    assert relative(run(conv, features(SIZES[0])), run(layer, features(SIZES[0]))) > 1e-3


@pytest.mark.parametrize("name", CONVS)
def test_what_is_kept_is_the_conv_with_all_other_taps_zero(name: str) -> None:
    conv = conv_of(name)
    for mode in ("sparse", "grouped"):
        layer = ShiftConv2d.from_conv2d(conv, mode)
        whole = copy.deepcopy(conv)
        tap = (layer.offset.long() + torch.tensor([[w.origin] for w in layer.windows])) // torch.tensor(
            [[w.dilation] for w in layer.windows]
        )
        columns, group = conv.weight.shape[3], conv.in_channels // conv.groups
        mask = F.one_hot(tap[0] * columns + tap[1], conv.weight[0, 0].numel())
        mask = mask.view(conv.groups, 1, group, -1).expand(-1, conv.out_channels // conv.groups, -1, -1)
        whole.weight.data *= mask.reshape(conv.weight.shape)
        assert relative(run(whole, features(SIZES[0])), run(layer, features(SIZES[0]))) < 1e-12
        assert relative(run(conv, features(SIZES[0])), run(layer, features(SIZES[0]))) > 1e-3


def test_the_tap_with_the_largest_energy_is_kept() -> None:
    kernel = torch.tensor([[[[3.0, 0.0, -4.0]], [[1.0, 0.0, 0.0]]], [[[3.1, 0.0, 0.0]], [[0.0, 0.0, 1.1]]]])
    assert strongest_taps(kernel, 1)[1].tolist() == [0, 2]  # 9 + 9.61 > 16, 1.21 > 1
    assert strongest_taps(kernel, 2)[1].tolist() == [2, 0, 0, 2]  # each group alone


@pytest.mark.parametrize("name", CONVS)
def test_lowered_to_standard_convs(name: str) -> None:
    layer = ShiftConv2d.from_conv2d(conv_of(name), "active" if name == "3x3" else "sparse")
    with torch.no_grad():
        layer.offset += 0.6 * torch.randn(layer.offset.shape, generator=torch.Generator().manual_seed(0))
    lowered = layer.lower()
    if name in ("unpadded", "much padding", "even", "reflected", "same, reflected", "same, strided", "same, even"):
        assert lowered is None
        return
    assert not any(isinstance(m, ShiftConv2d) for m in lowered.modules())
    for size in SIZES:
        assert relative(run(layer, features(size)), run(lowered, features(size))) < 1e-12
    with torch.no_grad():
        layer.offset += 1
    assert relative(run(layer, features(SIZES[0])), run(lowered, features(SIZES[0]))) > 1e-3


@pytest.mark.parametrize("mode", ["sparse", "active", "grouped"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_shift_alone_is_lowered_to_a_depthwise_conv(mode: Any, stride: int) -> None:
    layer = SparseShift2d(6, mode, 5, stride, init="uniform", seed=0, dtype=torch.float64)
    lowered = layer.lower().double()
    for size in SIZES:
        assert relative(run(layer, features(size)), run(lowered, features(size))) < 1e-12
    assert isinstance(SparseShift2d(6, init="zeros").lower(), nn.Identity)


def test_unshifted_channels_leave_a_1x1_conv() -> None:
    layer = ShiftConv2d.from_conv2d(conv_of("3x3"))
    layer.offset.data.zero_()
    assert layer.sparsity == 1 and layer.lower().kernel_size == (1, 1)


def test_standardised_convs_keep_their_style() -> None:
    torch.manual_seed(0)
    for cls in (ScaledStdConv2d, StdConv2d):
        conv = cls(6, 8, 3, padding=1).double()
        layer = ShiftConv2d.from_conv2d(conv)
        assert isinstance(layer, ShiftStdConv2d)
        weight = layer.point_weight().flatten(1)
        assert torch.allclose(weight.mean(1), torch.zeros(8, dtype=torch.float64), atol=1e-12)
        if cls is ScaledStdConv2d:  # the spread of each output's taps is that of the standardised kernel
            kernel, flat = layer.weight.flatten(1), weight
            assert torch.allclose(flat.std(1), kernel.std(1), rtol=1e-3)
        assert relative(run(conv, features((9, 9))), run(layer, features((9, 9)))) < 2
    depthwise = StdConv2d(6, 6, 3, padding=1, groups=6)
    with pytest.raises(surgeon.RefusedError, match="single number"):
        ShiftConv2d.from_conv2d(depthwise)


def test_fresh_weights_are_drawn_from_the_seed() -> None:
    one, same, other = (ShiftConv2d.from_conv2d(conv_of("3x3"), init="fresh", seed=s) for s in (1, 1, 2))
    assert torch.equal(one.weight, same.weight) and not torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, same.bias) and one.weight.abs().max() <= 6**-0.5
    assert one.offset.unique(dim=1).shape[1] == 1  # six channels are no nine groups: all in the middle


@pytest.mark.parametrize(
    ("arguments", "words"), [({"mode": "spare"}, "mode='spare' is unknown"), ({"init": "big"}, "init='big'")]
)
def test_settings_that_do_not_exist(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(surgeon.RecipeError, match=words):
        ShiftConv2d.from_conv2d(conv_of("3x3"), **arguments)


def test_no_conv_is_refused_with_the_reason() -> None:
    with pytest.raises(surgeon.RefusedError, match="is a Linear"):
        ShiftConv2d.from_conv2d(nn.Linear(3, 3))

    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = nn.Sequential(Own(3, 3, 3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1, 2), nn.Conv2d(4, 4, 3))
    surgeon.apply(model, "shift", 16)
    found = {c.path: c.status for c in surgeon.record(model).changes}
    assert found == {"0": "refused", "2": "unchanged", "3": "rewritten"}


def test_other_surgery_at_a_conv_is_named() -> None:
    model = surgeon.apply(PlainNet(), "spatial_shuffle", 64)
    shuffled = {c.path for c in rewritten(model)}
    refused = {c.path: c.reason for c in surgeon.plan(model, "shift").changes if c.status == "refused"}
    assert set(refused) == {path for path in shuffled if ":" not in path} != set()
    assert all("has surgery at its input or output already; put this step before" in r for r in refused.values())
    model = surgeon.apply(surgeon.apply(PlainNet(), "shift", 64), {"aps": {}, "select": {"kind": "strided_pool"}})
    again = surgeon.plan(model, "shift").changes  # its own layers are no surgery in the way
    assert {c.status for c in again} == {"unchanged"} and len(again) == 4


# in models


def test_a_depthwise_network_keeps_an_offset_and_a_factor_per_channel() -> None:
    model = timm.create_model("mobilenetv2_050").eval()
    depthwise = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    surgeon.apply(model, {"shift": {}, "select": {"exclude": "conv_stem"}}, 64)
    assert [change.path for change in rewritten(model)] == depthwise
    assert all(change.reason.endswith("sparse shift + factor") for change in rewritten(model))
    for name in depthwise:
        layer = model.get_submodule(name)
        assert layer.weight.numel() == layer.in_channels and layer.offset.shape == (2, layer.in_channels)


@pytest.mark.parametrize("mode", ["sparse", "active", "grouped"])
def test_saved_loaded_lowered_undone(mode: str, tmp_path: Path) -> None:
    before = stir(timm.create_model("test_resnet", num_classes=10).eval())
    model = surgeon.apply(copy.deepcopy(before), {"shift": {"mode": mode}}, 64)
    x = images(64, dtype=torch.float32)
    y = run(model, x)
    surgeon.save(model, tmp_path / "saved")
    assert torch.equal(run(surgeon.load(tmp_path / "saved"), x), y)
    assert relative(y, run(surgeon.lower(model), x)) < 1e-5
    assert not torch.equal(run(before, x), y)
    undone(Snapshot.of(before, identity=False), surgeon.undo(model), identity=False)


@pytest.fixture
def operated() -> nn.Module:
    """Offsets as after training, between whole pixels."""
    model = surgeon.apply(timm.create_model("test_resnet", num_classes=10), "shift", 64)
    for parameter in offset_parameters(stir(model).eval()).values():
        parameter.data += torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return model


def test_an_interrupt_leaves_the_model_as_it_was() -> None:
    assert atomic(stir(PlainNet()), "shift", 64) == 3


def test_compiled_exported_and_extracted(operated: nn.Module) -> None:
    for size in ((64, 64), (77, 90)):
        x = images(size, dtype=torch.float32)
        y, middle = run(operated, x), seen_at(operated, ["layer2"], x)["layer2"][0][1]
        assert torch.equal(run(create_feature_extractor(operated, {"layer2": "middle"}), x)["middle"], middle)
    assert relative(y, run(torch.export.export(operated, (x,)).module(), x)) < 1e-5
    compiled = torch.compile(copy.deepcopy(operated), backend="aot_eager", fullgraph=True)
    assert relative(y, run(compiled, x)) < 1e-5
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(operated: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, file = images(64, dtype=torch.float32), tmp_path / "shift.onnx"
    torch.onnx.export(operated, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative(run(operated, x), torch.from_numpy(y)) < 1e-5


def test_functional_convs() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, padding=1).relu()

    model = nn.Sequential(Functional(), nn.Conv2d(6, 4, 3)).eval()
    one_tap_each(model[1])
    model[0].weight.data *= F.one_hot(torch.tensor([4, 0, 8]), 9).view(1, 3, 3, 3)
    x = images(12, dtype=torch.float32)
    y = run(model, x)
    surgeon.apply(model, "shift", 12)
    assert [c.status for c in surgeon.record(model).changes] == ["rewritten"] * 2
    assert relative(y, run(model, x)) < 1e-5


# least squares


def test_the_fit_finds_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False)
    )
    before = before.double().eval()
    model = surgeon.apply(copy.deepcopy(before), "shift", 12).train()
    data = [(images(12, seed=seed), torch.zeros(2)) for seed in range(3)]
    rows = fit(model, before, data)
    assert [row["path"] for row in rows] == ["0", "2"] and model.training
    assert all(0 < row["error_after"] < row["error_before"] for row in rows)
    layer, x = model[0], torch.cat([batch for batch, _ in data])
    z = layer.shifted(x).transpose(0, 1).flatten(1)
    z = torch.cat([z, torch.ones_like(z[:1])])
    y = before[0](x).transpose(0, 1).flatten(1)
    wanted = torch.linalg.lstsq(z.T, y.T).solution.T
    assert torch.allclose(wanted[:, :3], layer.weight[:, :, 0, 0], atol=1e-4)
    assert torch.allclose(wanted[:, 3], layer.bias, atol=1e-4)
    missed = (run(before, x) - run(model, x)).square().sum() / run(before, x).square().sum()
    assert rows[1]["error_after"] == pytest.approx(float(missed), rel=1e-6)
    with torch.no_grad():  # any other weight misses more
        layer.weight[0, 0] += 0.01
    worse = (y - layer(x).transpose(0, 1).flatten(1)).square().sum() / y.square().sum()
    assert worse.item() > rows[0]["error_after"] * (1 + 1e-6)


def test_the_fit_recovers_what_the_taps_can_say() -> None:
    before = nn.Sequential(one_tap_each(nn.Conv2d(3, 5, 3, padding=1))).double().eval()
    model = surgeon.apply(copy.deepcopy(before), "shift", 12)
    model[0].weight.data.zero_()
    (row,) = fit(model, before, [images(12)])
    assert row["error_before"] > 0.1 and row["error_after"] < 1e-9


def test_a_fit_with_nothing_to_do_says_so() -> None:
    model = PlainNet()
    with pytest.raises(surgeon.NoSiteError, match="no conv of 'before' is a ShiftConv2d"):
        fit(model, PlainNet(), [images(16)])
    surgeon.apply(model, "shift", 16)
    with pytest.raises(surgeon.NoSiteError, match="no data"):
        fit(model, PlainNet(), [])
    with pytest.raises(surgeon.NoSiteError, match="a dict for images"):
        fit(model, PlainNet(), [{"image": images(16)}])


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from images(16, batch=4, dtype=torch.float32)


def test_the_fit_reads_generators_and_loaders_without_a_length() -> None:
    before, weights = PlainNet().eval(), []
    batches = [*DataLoader(Stream(), batch_size=2)]
    for data in (batches, (batch for batch in batches), DataLoader(Stream(), batch_size=2)):
        model = surgeon.apply(copy.deepcopy(before), "shift", 16)
        fit(model, before, data)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert all(torch.equal(weights[0], other) for other in weights[1:])


def test_the_method_card_runs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "ops" / "shift.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    model, batches = timm.create_model("resnet18"), [torch.rand(2, 3, 32, 32)]
    exec(code, {"model": model, "batches": batches})
    assert isinstance(model.conv1, nn.Conv2d) and len(rewritten(model)) == 16
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    parsed = recipes.parse(
        {"name": "card", "model": {"timm": "resnet18"}, "data": {"dataset": "digits"}} | yaml.safe_load(recipe)
    )
    assert parsed.train.shift.weight == 4e-4
