"""What ``blurpool`` puts where: against timm's layer, against code written by hand, and where it declines."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d, Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

import surgeon
from surgeon.ops.blur_layers import Blur2d, MaxBlurPool2d, blur_for
from surgeon.ops.dense import DensePool2d, extend
from tests.contracts import images, relative, rewritten, run, stir
from tests.zoo import PlainNet, Wrap

SIZES = [(16, 16), (17, 12), (9, 15)]
MODES = {"reflect": "reflect", "circular": "circular", "zeros": "constant"}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [3, 5, 7])
def test_at_stride_2_it_is_timms_layer(side: int, mode: str, size: tuple[int, int]) -> None:
    x = images(size)
    theirs = BlurPool2d(3, side, 2, MODES[mode]).double()
    ours = Blur2d.by((2, 2), side, mode).double()
    assert relative(theirs(x), ours(x)) < 1e-14
    assert relative(theirs(x), Blur2d.by((2, 2), side, next(m for m in MODES if m != mode)).double()(x)) > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_maps_smaller_than_the_filter(mode: str) -> None:
    for size in ((1, 1), (2, 1), (3, 2)):
        y = Blur2d.by((2, 2), 7, mode).double()(images(size))
        assert y.shape[2:] == tuple(-(-n // 2) for n in size) and y.isfinite().all()
    if mode != "zeros":
        assert relative(Blur2d.by((2, 2), 7, mode).double()(images(1)), images(1)) < 1e-14


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_small_maps_are_padded_by_the_same_rule(mode: str) -> None:
    x = images((4, 5))
    whole = extend(x, [(3, 3), (3, 3)], mode)
    assert torch.equal(whole, F.pad(x, (3, 3, 3, 3), mode=mode))
    if mode == "circular":
        assert torch.equal(extend(x, [(9, 0), (0, 7)], mode), x.repeat(1, 1, 4, 3)[:, :, 3:, :12])


MAXIMA = [(3, 2, 1, 1), (2, 2, 0, 1), (3, 2, 0, 1), (3, 3, 1, 2)]
MEANS = [(2, 2, 0), (3, 2, 1), (3, 2, 0), (4, 3, 2)]
POOLS = [
    *(nn.MaxPool2d(*geometry, ceil_mode=ceil) for geometry in MAXIMA for ceil in (False, True)),
    *(nn.AvgPool2d(*geometry, ceil_mode=ceil) for geometry in MEANS for ceil in (False, True)),
    nn.MaxPool2d(1, 2),
    MaxPool2dSame(3, 2),
]


@pytest.mark.parametrize("side", [3, 7])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_sizes_are_the_pools(pool: nn.Module, side: int) -> None:
    for height in range(8, 15):
        x = images((height, 23 - height))
        assert blur_for(pool, side, "reflect").double()(x).shape == pool(x).shape
        assert blur_for(pool, side, "circular").double()(x).shape == pool(x).shape


@pytest.mark.parametrize("pool", [p for p in POOLS if isinstance(p, nn.MaxPool2d)], ids=str)
def test_a_max_pool_at_stride_1_holds_the_strided_one(pool: nn.MaxPool2d) -> None:
    s = pool.stride if isinstance(pool.stride, int) else pool.stride[0]
    for height in range(8, 15):
        x = images((height, 23 - height))
        dense, out = DensePool2d(pool)(x), pool(x)
        assert torch.equal(dense[:, :, ::s, ::s], out)
        assert not torch.equal(dense[:, :, 1::s, 1::s], out) and dense.isfinite().all()


def test_a_max_pool_is_a_dense_maximum_and_timms_blur() -> None:
    x, pool = images((17, 20)), nn.MaxPool2d(3, 2, 1)
    by_hand = BlurPool2d(3, 3, 2).double()(F.max_pool2d(x, 3, 1, 1))
    assert relative(by_hand, MaxBlurPool2d(pool).double()(x)) < 1e-14
    assert relative(by_hand, pool(x)) > 1e-2


def test_an_average_pool_is_the_blur_in_the_middle_of_its_windows() -> None:
    x, pool = images((16, 16)), nn.AvgPool2d(3, 2)
    by_hand = F.conv2d(x, Blur2d.by((1, 1)).double().filt.repeat(3, 1, 1, 1), stride=2, groups=3)
    assert relative(by_hand, blur_for(pool, 3, "reflect").double()(x)) < 1e-14


@torch.no_grad()
def stride_block(model: nn.Module, x: Tensor, blur: nn.Module, late: bool) -> Tensor:
    """The strided block of :class:`PlainNet` written by hand; ``late``: blur behind the activation."""
    block = model.block
    y = block.norm1(F.conv2d(x, block.conv1.weight, block.conv1.bias, 1, 1))
    y = blur(F.relu(y)) if late else F.relu(blur(y))
    return F.relu(block.conv2(y) + F.conv2d(blur(x), block.downsample.weight, block.downsample.bias))


@pytest.mark.parametrize("size", [(16, 16), (17, 13)], ids=str)
def test_a_block_is_what_one_writes_by_hand(size: tuple[int, int]) -> None:
    before = stir(PlainNet().double().eval())
    after = surgeon.apply(copy.deepcopy(before), {"blurpool": {"filt_size": 5}}, 64)
    x = images(size, channels=8)
    blur = BlurPool2d(8, 5, 2).double(), BlurPool2d(None, 5, 2).double()
    assert relative(run(after.block, x), stride_block(before, x, blur[1], late=True)) < 1e-14
    assert relative(run(after.block, x), stride_block(before, x, blur[1], late=False)) > 1e-3  # the control


def test_modules_are_blurred_behind_norm_and_activation() -> None:
    before = stir(timm.create_model("test_resnet").double().eval())
    after = surgeon.apply(copy.deepcopy(before), {"blurpool": {"stem": "blur"}}, 64)
    places = {name for name, m in after.named_modules() if isinstance(m, Blur2d)}
    assert "layer2.0.act1.surgeon_after" in places
    x = images(64)
    block = before.layer2[0]
    seen: list[Tensor] = []
    after.layer2[0].act1.register_forward_hook(lambda _m, _i, out: seen.append(out))
    entering: list[Tensor] = []
    after.layer2[0].register_forward_hook(lambda _m, inputs, _o: entering.append(inputs[0]))
    run(after, x)
    with torch.no_grad():
        full = block.bn1(F.conv2d(entering[0], block.conv1.weight, None, 1, 1)).relu()
    assert relative(BlurPool2d(None, 3, 2).double()(full), seen[0]) < 1e-14
    assert relative(full[:, :, ::2, ::2], seen[0]) > 1e-2


def test_trained_weights_and_paths_stay() -> None:
    before = stir(timm.create_model("resnet18").eval())
    after = surgeon.apply(copy.deepcopy(before), "blurpool", 64)
    old, new = before.state_dict(), after.state_dict()
    assert list(old) == list(new) and all(torch.equal(old[name], new[name]) for name in old)
    assert type(after.layer2[0].conv1) is nn.Conv2d and after.layer2[0].conv1.stride == (1, 1)
    assert surgeon.undo(after).layer2[0].conv1.stride == (2, 2)


def jitter(model: nn.Module, x: Tensor) -> float:
    """How far the average features move when the image moves by one pixel around its border."""
    with torch.no_grad():
        a, b = (model(torch.roll(x, n, -1)).mean((2, 3)) for n in (0, 1))
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)], ids=str)
def test_shifts_matter_less_than_before(pool: nn.Module) -> None:
    x = images(64)
    assert jitter(blur_for(pool, 3, "circular").double(), x) < 0.2 * jitter(pool, x)


@pytest.mark.parametrize("settings", [{}, {"stem": "blur"}])
def test_the_stem_is_kept_unless_asked(settings: dict[str, str]) -> None:
    record = surgeon.plan(timm.create_model("resnet18"), {"blurpool": settings}, 64)
    status = {change.path: change.status for change in record.changes}
    assert status["conv1"] == ("rewritten" if settings else "unchanged")
    assert set(status.values()) - {status["conv1"]} <= {"rewritten"}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(self.stem(x))).mean((2, 3)))


def patches() -> nn.Module:
    return Wrap(lambda m, x: m.conv(x), 8, conv=nn.Conv2d(3, 8, 4, 4))


def same() -> nn.Module:
    return Wrap(lambda m, x: m.conv(x), 8, conv=Conv2dSame(3, 8, 3, 2))


def whole() -> nn.Module:
    return Wrap(lambda m, x: m.pool(m.conv(x)), 8, conv=nn.Conv2d(3, 8, 3), pool=nn.AvgPool2d(30))


def called() -> nn.Module:
    return Wrap(lambda m, x: F.conv2d(x, m.conv.weight, stride=2), 8, conv=nn.Conv2d(3, 8, 3))


REFUSALS = {
    "patches of 4 that do not overlap: at stride 1 it costs 16 times": patches,
    "pads by input size and stride": same,
    "averages the whole map of 30": whole,
    "runs as a function or several times": called,
    "several times, so what follows": Twice,
}


@pytest.mark.parametrize(("words", "build"), REFUSALS.items(), ids=REFUSALS)
def test_refusals_say_why(words: str, build: type[nn.Module]) -> None:
    with pytest.raises(surgeon.RefusedError, match=words):
        surgeon.apply(build(), "blurpool", 32)


def test_patches_are_blurred_when_asked() -> None:
    model = surgeon.apply(patches(), {"blurpool": {"patchify": "blur", "stem": "blur"}}, 32)
    assert model.conv.stride == (1, 1) and len(rewritten(model)) == 1


def test_functional_pools_and_slices() -> None:
    def code(m: Wrap, x: Tensor) -> Tensor:
        return F.max_pool2d(m.conv(x)[:, :, ::2, ::2], 3, 2, 1)

    before = Wrap(code, 8, conv=nn.Conv2d(3, 8, 3)).double().eval()
    after = surgeon.apply(copy.deepcopy(before), "blurpool", 32)
    blur, x = BlurPool2d(8, 3, 2).double(), images(33)
    by_hand = blur(F.max_pool2d(blur(before.conv(x)), 3, 1, 1)).mean((2, 3))
    assert len(rewritten(after)) == 2
    assert relative(run(before.head, by_hand), run(after, x)) < 1e-12
    assert relative(run(before, x), run(after, x)) > 1e-3


def test_what_another_op_rewrote_is_not_rewritten_again() -> None:
    model = surgeon.apply(PlainNet(), "spd", 64)
    with pytest.raises(surgeon.NoSiteError):
        surgeon.apply(model, {"blurpool": {"stem": "blur"}})
    model = surgeon.apply(PlainNet(), {"blurpool": {"stem": "blur"}}, 64)
    with pytest.raises(surgeon.NoSiteError):
        surgeon.apply(model, "spd")


def test_models_that_blur_already_are_left() -> None:
    record = surgeon.plan(timm.create_model("resnetblur18"), "blurpool", 64)
    reasons = {change.reason for change in record.changes if change.status == "unchanged"}
    assert "is a blur pool already" in reasons


def test_it_saves_loads_pickles_and_exports(tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", {"blurpool": {"stem": "blur"}}).double().eval()
    x = images(64)
    surgeon.save(model, tmp_path / "one")
    assert torch.equal(run(surgeon.load(tmp_path / "one"), x), run(model, x))
    torch.save(model, tmp_path / "two.pt")
    assert torch.equal(run(torch.load(tmp_path / "two.pt", weights_only=False), x), run(model, x))
    assert relative(run(torch.export.export(model, (x,)).module(), x), run(model, x)) < 1e-12


def place_of(code: Any, **parts: nn.Module) -> str:
    """Where the blur of the conv ``a`` goes."""
    model = Wrap(code, 8, a=nn.Conv2d(3, 8, 3, 2, 1), **parts)
    (change,) = surgeon.plan(model, {"blurpool": {"stem": "blur"}}, 32).changes
    return change.reason.partition("blur(2) ")[2]


PLACES = {
    "behind 'a'": lambda m, x: m.a(x).sigmoid() + m.a.bias[:, None, None],
    "behind 'norm'": lambda m, x: (lambda y: m.b(y) + y)(m.act(m.norm(m.a(x)))) + m.act(x).sum(),
    "behind 'act'": lambda m, x: (lambda y: m.b(y) + y)(m.act(m.norm(m.a(x)))),
    "before 'b'": lambda m, x: m.b(F.silu(m.norm(m.a(x)))),
}


@pytest.mark.parametrize(("place", "code"), PLACES.items(), ids=PLACES)
def test_where_the_blur_stands(place: str, code: Any) -> None:
    parts = {"norm": nn.BatchNorm2d(8), "act": nn.ReLU(), "b": nn.Conv2d(8, 8, 3, 1, 1)}
    assert place_of(code, **parts) == place


def test_code_that_reads_the_size_of_the_larger_map_is_refused() -> None:
    def code(m: Wrap, x: Tensor) -> Tensor:
        y = m.a(x)
        return F.interpolate(m.act(y), size=y.shape[2:])

    with pytest.raises(surgeon.RefusedError, match=r"reads a size that would change, for 'interpolate'"):
        place_of(code, act=nn.ReLU())


def test_an_output_that_is_taken_is_refused() -> None:
    model = Wrap(lambda m, x: m.a(x) * 2, 8, a=nn.Conv2d(3, 8, 3, 2, 1))
    model.a.surgeon_after = nn.Identity()
    with pytest.raises(surgeon.RefusedError, match="output of 'a' is already rearranged"):
        surgeon.apply(model, {"blurpool": {"stem": "blur"}}, 32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_filter_lies_where_the_weights_do(dtype: torch.dtype) -> None:
    model = surgeon.apply(PlainNet().to("meta", dtype), {"blurpool": {"stem": "blur"}}, 64)
    filters = [m.filt for m in model.modules() if isinstance(m, Blur2d)]
    assert {(f.device.type, f.dtype) for f in filters} == {("meta", dtype)} and len(filters) == 4
    model = surgeon.apply(PlainNet().to(dtype), {"blurpool": {"stem": "blur"}}, 64)
    assert float(model.pool.blur.filt.sum()) == 1
    assert "filt" not in "".join(model.state_dict())
