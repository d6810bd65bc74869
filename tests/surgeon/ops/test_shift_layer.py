"""The shift layer against independent bilinear references, finite differences, and what trains, compiles and copies."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

import surgeon
from surgeon.ops import shift_kernel
from surgeon.ops.shift_conv import ShiftConv2d
from surgeon.ops.shift_kernel import bilinear_shift, integer_shift, round_half_away, sparse_shift
from surgeon.ops.shift_layer import SparseShift2d, grouped_offsets

MODES = ("sparse", "active", "grouped")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(x: Tensor, offset: Tensor, size: tuple[int, int]) -> Tensor:
    """Eq. 1, element by element."""
    y = x.new_zeros(*x.shape[:2], *size)
    for c, i, j in itertools.product(range(x.shape[1]), range(size[0]), range(size[1])):
        row, column = i + int(offset[0, c]), j + int(offset[1, c])
        if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
            y[:, c, i, j] = x[:, c, row, column]
    return y


def bilinear(x: Tensor, offset: Tensor) -> Tensor:
    """Eq. 3 by ``grid_sample``: channels as images, pixels as coordinates, zero outside."""
    _, _, h, w = x.shape
    rows = torch.arange(h, dtype=x.dtype)[None, :, None] + offset[0, :, None, None]
    columns = torch.arange(w, dtype=x.dtype)[None, None, :] + offset[1, :, None, None]
    grid = torch.stack(
        [(2 * columns + 1) / w - 1 + 0 * rows, (2 * rows + 1) / h - 1 + 0 * columns], -1
    )  # (C, H, W, 2): x, y
    sampled = F.grid_sample(x.transpose(0, 1), grid, padding_mode="zeros", align_corners=False)
    return sampled.transpose(0, 1)


def case(reach: float = 1.5, shape: tuple[int, ...] = (2, 7, 6, 5), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, offsets clear of whole and half numbers, and a gradient of the output."""
    g = generator(seed)
    x, grad = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    offset = (torch.rand(2, shape[1], generator=g, dtype=torch.float64) * 2 - 1) * reach
    close = (offset * 2 - (offset * 2).round()).abs() < 0.02
    return x.requires_grad_(), (offset + 0.05 * close).requires_grad_(), grad


# the integer move


@pytest.mark.parametrize("seed", range(40))
def test_both_ways_to_move_agree_with_the_definition(seed: int) -> None:
    g = generator(seed)
    n, c, h, w = (int(torch.randint(1, 7, (), generator=g)) for _ in range(4))
    x = torch.randn(n, c, h, w, generator=g)
    offset = torch.randint(-3, 4, (2, c), generator=g) * (torch.rand(c, generator=g) < (0.15, 1.1)[seed % 2])
    for size in ((h, w), (h + 1, w + 1), (max(h - 1, 1), w), (h, w + 2)):
        expected = moved(x, offset, size)
        assert torch.equal(integer_shift(x, offset, size), expected)
        assert torch.equal(shift_kernel._by_index(x, offset, size), expected)


def test_another_offset_moves_elsewhere() -> None:
    x, offset, _ = case()
    assert not torch.equal(integer_shift(x, offset.round() + 1), moved(x, offset.round(), (6, 5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_values_are_copied_bit_for_bit_and_infinities_stay_where_they_are(dtype: torch.dtype) -> None:
    x = torch.arange(24).view(1, 2, 3, 4).to(dtype)
    offset = torch.tensor([[1, 0], [-1, 2]])
    assert torch.equal(integer_shift(x, offset), moved(x, offset, (3, 4)))
    bad = torch.full((1, 1, 3, 3), float("nan"))
    assert integer_shift(bad, torch.tensor([[5], [0]])).eq(0).all()
    assert int(integer_shift(bad, torch.tensor([[1], [1]])).isnan().sum()) == 4


def test_channels_last_stays_channels_last() -> None:
    x, offset, _ = case()
    y = integer_shift(x.detach().to(memory_format=torch.channels_last), offset.round())
    assert y.is_contiguous(memory_format=torch.channels_last) and torch.equal(y, integer_shift(x, offset.round()))


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (2, 2, 1, 1), (1, 1, 1, 9)])
def test_small_and_empty_maps(shape: tuple[int, ...]) -> None:
    x, offset = torch.rand(shape), torch.tensor([[1.0, -1.0], [0.0, 1.0]])[:, : shape[1]].requires_grad_()
    y = sparse_shift(x, offset)
    y.sum().backward()
    assert y.shape == x.shape and offset.grad is not None and offset.grad.isfinite().all()


# Eq. 3, 5, 6, 7


@pytest.mark.parametrize("reach", [0.9, 1.5, 4.0])
def test_active_is_bilinear_with_all_gradients(reach: float) -> None:
    x, offset, grad = case(reach)
    found, wanted = bilinear_shift(x, offset), bilinear(x, offset)
    assert torch.allclose(found, wanted, atol=1e-12)
    pairs = zip(*(torch.autograd.grad(y, (x, offset), grad) for y in (found, wanted)), strict=True)
    for a, b in pairs:
        assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("reach", [0.9, 1.5, 4.0])
def test_sparse_moves_by_whole_pixels_and_learns_by_the_bilinear_gradient(reach: float) -> None:
    x, offset, grad = case(reach)
    y = sparse_shift(x, offset)
    assert torch.equal(y, moved(x, offset.round(), (6, 5)))  # Eq. 5
    to_x, to_offset = torch.autograd.grad(y, (x, offset), grad)
    (eq6,) = torch.autograd.grad(bilinear(x, offset), offset, grad)
    assert torch.allclose(to_offset, eq6, atol=1e-11)
    assert torch.equal(to_x, moved(grad, -offset.round(), (6, 5)))  # Eq. 7
    (other,) = torch.autograd.grad(bilinear(x, offset + 0.01), offset, grad)
    assert not torch.allclose(to_offset, other, atol=1e-6)  # at other offsets the gradient is another


def test_the_offset_gradient_by_finite_differences_of_the_bilinear_form() -> None:
    x, offset, grad = case()
    (found,) = torch.autograd.grad(sparse_shift(x, offset), offset, grad)
    step = 1e-5
    for row, c in itertools.product(range(2), range(offset.shape[1])):
        apart = torch.zeros_like(offset)
        apart[row, c] = step
        with torch.no_grad():
            up, down = ((bilinear(x, offset + sign * apart) * grad).sum() for sign in (1, -1))
        assert float((up - down) / (2 * step)) == pytest.approx(float(found[row, c]), abs=1e-7)
        assert float((up - down) / (2 * step)) != pytest.approx(float(found[1 - row, c]), abs=1e-7)


def test_gradcheck() -> None:
    x, offset, _ = case(shape=(1, 3, 4, 3))
    assert torch.autograd.gradcheck(bilinear_shift, (x, offset))
    whole = offset.detach().round()
    assert torch.autograd.gradcheck(lambda x: sparse_shift(x, whole), (x,))
    assert torch.autograd.gradgradcheck(lambda x: sparse_shift(x, whole), (x,))
    with pytest.raises(GradcheckError):  # the forward is a step function of the offset
        torch.autograd.gradcheck(sparse_shift, (x.detach(), offset))


def test_at_whole_offsets_the_gradient_looks_ahead() -> None:
    x, _, grad = case()
    offset = torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(sparse_shift(x, offset), offset, grad)
    ahead = torch.stack([F.pad(x, (0, 0, -1, 1)) - x, F.pad(x, (-1, 1)) - x])
    assert torch.allclose(found, (ahead * grad).sum((1, 3, 4)), atol=1e-12)


def test_halves_round_away_from_zero() -> None:
    halves = torch.tensor([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 0.0, -1.2])
    assert round_half_away(halves).tolist() == [1, -1, 2, 3, -3, 0, 0, -1]
    assert torch.round(halves).tolist() != round_half_away(halves).tolist()


# the layer


def test_grouped_offsets_are_the_taps_in_order() -> None:
    offset = grouped_offsets(96)
    assert offset.shape == (2, 96)
    for tap, (a, b) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
        assert offset[:, tap * 10 : tap * 10 + 10].eq(torch.tensor([[a], [b]])).all()
    assert offset[:, 90:].eq(0).all()
    assert SparseShift2d(90, "grouped").sparsity == pytest.approx(1 / 9)
    assert grouped_offsets(50, 5).unique(dim=1).shape == (2, 25)
    assert grouped_offsets(4).eq(0).all() and grouped_offsets(5, 1).eq(0).all()


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("mode", MODES)
def test_shapes_parameters_and_strides(mode: Any, kernel_size: int, stride: int) -> None:
    layer = SparseShift2d(25, mode, kernel_size, stride, init="uniform", seed=3)
    whole = SparseShift2d(25, mode, kernel_size, init="uniform", seed=3)
    x = torch.rand(2, 25, 7, 9)
    assert layer(x).shape == (2, 25, -(-7 // stride), -(-9 // stride))
    assert torch.equal(layer(x), whole(x)[:, :, ::stride, ::stride])
    assert [*dict(layer.named_parameters())] == ([] if mode == "grouped" else ["offset"])
    assert layer.offset.shape == (2, 25) and layer.offset.is_floating_point() == (mode != "grouped")
    assert layer.offset.abs().max() <= kernel_size // 2


def test_seeds_and_inits() -> None:
    first, same, other = (SparseShift2d(40, init="uniform", seed=s).offset for s in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert SparseShift2d(9, init="zeros").sparsity == 1
    x = torch.rand(1, 9, 4, 4)
    assert torch.equal(SparseShift2d(9, init="zeros")(x), x)
    assert torch.equal(SparseShift2d(9, kernel_size=1, mode="grouped")(x), x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "spare"}, "mode='spare' is unknown; use 'sparse', 'active', 'grouped'"),
        ({"init": "ones"}, "init='ones' is unknown"),
        ({"kernel_size": 0}, "kernel_size=0 is no whole number"),
        ({"kernel_size": (3, 3)}, r"kernel_size=\(3, 3\) is no whole number"),
        ({"stride": 0}, "stride=0"),
    ],
)
def test_settings_that_do_not_exist(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(surgeon.RecipeError, match=words):
        SparseShift2d(9, **arguments)


@pytest.mark.parametrize("mode", MODES)
def test_maps_of_other_channels_are_refused(mode: Any) -> None:
    for shape in ((2, 8, 4, 4), (2, 1, 4, 4), (9, 4, 4)):  # one channel would be spread over all by the gather
        with pytest.raises(surgeon.SurgeonError, match=r"9 channels reads maps \(N, 9, H, W\), not"):
            SparseShift2d(9, mode)(torch.rand(shape))
    with pytest.raises(surgeon.SurgeonError, match="6 channels reads"):
        ShiftConv2d.from_conv2d(nn.Conv2d(6, 8, 3), mode)(torch.rand(2, 5, 4, 4))


def outcome(net: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    net.zero_grad(set_to_none=True)
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("mode", MODES)
def test_compile_has_no_graph_break_and_the_same_gradients(mode: Any) -> None:
    layer = SparseShift2d(11, mode, stride=2, init="uniform", seed=0)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((2, 11, 6, 7), (3, 11, 9, 5)):
        x = torch.randn(shape, generator=generator())
        for a, b in zip(outcome(layer, x), outcome(compiled, x), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", MODES)
def test_export(mode: Any) -> None:
    layer = SparseShift2d(11, mode, init="uniform", seed=0).eval()
    x = torch.rand(2, 11, 6, 7)
    exported = torch.export.export(layer, (x,)).module()
    assert torch.equal(exported(x), layer(x))
    before = layer(x)
    with torch.no_grad():
        exported.offset.add_(1)  # what is exported reads the offsets, it does not bake them in
    assert not torch.equal(exported(x), before)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_and_half_precision(mode: Any) -> None:
    layer, x = SparseShift2d(11, mode, init="uniform", seed=0), torch.rand(2, 11, 6, 7)
    reference = outcome(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(layer, x.bfloat16())
    for a, b in zip(found, reference, strict=True):
        assert torch.allclose(a.float(), b, atol=0.03 * float(b.abs().max()))
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@pytest.mark.parametrize("mode", ["sparse", "active"])
def test_offsets_learn_from_small_differences_of_large_values(mode: Any) -> None:
    ramp = torch.arange(32.0).view(1, 1, 32, 1) / 64 + 8  # a 512th of the value from row to row
    x = (ramp + torch.zeros(4, 3, 32, 32)).bfloat16()
    grads = {}
    for autocast in (False, True):
        layer = SparseShift2d(3, mode, init="uniform", seed=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x if autocast else x.float())
        inner = torch.zeros_like(y)
        inner[:, :, 4:-4, 4:-4] = 1
        y.backward(inner)
        grads[autocast] = layer.offset.grad
    assert torch.allclose(grads[True], grads[False], rtol=1e-3, atol=1e-2)
    assert float(grads[False][0].mean()) == pytest.approx(4 * 24 * 24 / 64, rel=0.3)


def test_deepcopy_state_dict_and_averaging() -> None:
    layer, x = SparseShift2d(11, init="uniform", seed=0), torch.rand(2, 11, 6, 7)
    twin, other = copy.deepcopy(layer), SparseShift2d(11)
    assert torch.equal(twin(x), layer(x)) and twin.offset is not layer.offset
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    with torch.no_grad():
        layer.offset.add_(2)
    averaged.update_parameters(layer)
    assert torch.equal(averaged.module(x), layer(x)) and not torch.equal(averaged.module(x), twin(x))
    assert [*SparseShift2d(18, "grouped").state_dict()] == ["offset"]


def test_the_plan_follows_the_offsets() -> None:
    layer, x = SparseShift2d(9, init="zeros"), torch.rand(1, 9, 4, 4)
    with torch.inference_mode():
        assert torch.equal(layer(x), x)
        layer.offset[0, 3] = 0.7
        assert torch.equal(layer(x), moved(x, layer.rounded, (4, 4))) and not torch.equal(layer(x), x)
    assert outcome(layer, x)[2].isfinite().all()  # what inference kept serves training


def test_a_shift_learns_where_to_move() -> None:
    x = torch.randn(8, 1, 20, 20, generator=generator())
    for _ in range(2):
        x = F.avg_pool2d(x, 5, 1, 2)  # smooth enough for a neighbour to tell the way
    layer, target = SparseShift2d(1, init="zeros"), moved(x, torch.tensor([[2], [-1]]), (20, 20))
    optimizer = torch.optim.SGD(layer.parameters(), lr=20.0)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    assert layer.rounded.flatten().tolist() == [2, -1]
