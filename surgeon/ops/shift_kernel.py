"""Moving every channel by an offset of its own, zero outside: the arithmetic under the shift layers.

Kept apart from the layers because it knows tensors only: no parameters, no modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

Size = tuple[int, int]


def round_half_away(offset: Tensor) -> Tensor:
    """Round to the nearest whole number, halves away from zero as C's ``round`` does in the authors' released code.

    ``torch.round`` takes halves to the even neighbour: it differs at exact halves only, where 0.5 would be no shift.

    Example:
        >>> round_half_away(torch.tensor([0.5, -1.5, 0.49999997, 2.0])).tolist()
        [1.0, -2.0, 0.0, 2.0]
    """
    whole = torch.where(offset < 0, offset.ceil(), offset.floor())  # ONNX has no trunc
    return whole + offset.sign() * ((offset - whole).abs() >= 0.5)


def integer_shift(x: Tensor, offset: Tensor, size: Size | None = None) -> Tensor:
    """Move channel c so that ``y[n, c, i, j] = x[n, c, i + offset[0, c], j + offset[1, c]]``, zero outside.

    Args:
        x: Features.
        offset: Whole numbers of any dtype, (2, C); row 0 vertical, row 1 horizontal. It gets no gradient.
        size: Height and width of the output; those of ``x`` by default.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, *size)

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 2, 2)
        >>> integer_shift(x, torch.tensor([[0], [1]]))
        tensor([[[[1., 0.],
                  [3., 0.]]]])
    """
    height, width = size or (x.shape[2], x.shape[3])
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _move(x, offset, (height, width))
    return cast(Tensor, _IntegerShift.apply(x, offset.detach(), height, width))  # type: ignore[no-untyped-call]


def sparse_shift(x: Tensor, offset: Tensor, size: Size | None = None) -> Tensor:
    """Move by the rounded offsets; the gradient to the offsets is that of bilinear interpolation at the real ones.

    Forward Eq. 5, gradient to ``x`` Eq. 7 (the inverse move), to ``offset`` Eq. 6. At a whole offset Eq. 6 is the
    one-sided difference towards the next larger one, as in the released code.

    Example:
        >>> offset = torch.zeros(2, 1, requires_grad=True)
        >>> sparse_shift(torch.arange(4.0).view(1, 1, 2, 2), offset)[0, 0, 0, 0].backward()
        >>> offset.grad.flatten().tolist()  # one row further down lies 2, one column further right 1
        [2.0, 1.0]

    References:
        Chen et al., All You Need is a Few Shifts, CVPR 2019, arXiv:1903.05285, Eq. 5 to 7.
        Deviation: the released CUDA code truncates where it should floor, which bends the gradient at the first rows
        and columns for negative offsets; here it is the derivative of the bilinear form everywhere.
    """
    height, width = size or (x.shape[2], x.shape[3])
    if not (torch.is_grad_enabled() and offset.requires_grad):
        return integer_shift(x, round_half_away(offset), (height, width))
    return cast(Tensor, _SparseShift.apply(x, offset, height, width))  # type: ignore[no-untyped-call]


def bilinear_shift(x: Tensor, offset: Tensor, size: Size | None = None) -> Tensor:
    """Move by real offsets, interpolating the four neighbours: active shift, Eq. 3.

    Example:
        >>> bilinear_shift(torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[0.0], [0.5]]))
        tensor([[[[0.5000, 0.5000],
                  [2.5000, 1.5000]]]])

    References:
        Jeon and Kim, Constructing Fast Network through Deconstruction of Convolution, NeurIPS 2018, arXiv:1806.07370.
    """
    height, width = size or (x.shape[2], x.shape[3])
    weights, whole = bilinear_weights(offset), offset.detach().floor()
    padding = int(_plain(x) and (height, width) == x.shape[2:] and bool((whole.clamp(-1, 0) == whole).all()))
    if padding:  # within a pixel: one 3x3 conv, which is fast where values may be looked at, and nothing to move
        weights = weights.new_zeros(len(weights), 9).scatter(1, _taps(whole), weights.flatten(1)).view(-1, 1, 3, 3)
        near = _exact(x)
    else:
        near = _exact(integer_shift(x, whole, (height + 1, width + 1)))
    with torch.autocast(x.device.type, enabled=False):
        y = torch.nn.functional.conv2d(near, weights.to(near.dtype), padding=padding, groups=x.shape[1])
    return y.to(x.dtype)


def _taps(whole: Tensor) -> Tensor:
    """Where the four neighbours of offsets -1 or 0 lie among the nine taps of a 3x3 kernel, (C, 4)."""
    row, column = whole.long()
    upper_left: Tensor = 3 * row + column + 4
    return upper_left[:, None] + torch.tensor([0, 1, 3, 4], device=whole.device)


def bilinear_weights(offset: Tensor) -> Tensor:
    """Shares of the four neighbours, beginning at the offset rounded down: (C, 1, 2, 2), a depthwise kernel.

    Example:
        >>> bilinear_weights(torch.tensor([[-0.5], [0.25]])).tolist()
        [[[[0.375, 0.125], [0.375, 0.125]]]]
    """
    down, right = offset - offset.detach().floor()
    rows, columns = torch.stack([1 - down, down], 1), torch.stack([1 - right, right], 1)  # (C, 2)
    return (rows[:, :, None] * columns[:, None, :])[:, None]


class _IntegerShift(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, offset: Tensor, height: int, width: int) -> Tensor:
        return _move(x, offset, (height, width))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, offset, _, _ = inputs
        ctx.save_for_backward(offset)
        ctx.size = (x.shape[2], x.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (offset,) = ctx.saved_tensors
        return integer_shift(grad, -offset, ctx.size), None, None, None


class _SparseShift(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, offset: Tensor, height: int, width: int) -> Tensor:
        return _move(x, round_half_away(offset), (height, width))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, offset = ctx.saved_tensors
        size, grad = (x.shape[2], x.shape[3]), grad.contiguous()
        moved = integer_shift(grad, -round_half_away(offset), size) if ctx.needs_input_grad[0] else None
        return moved, _offset_gradient(x, offset, grad), None, None


def _offset_gradient(x: Tensor, offset: Tensor, grad: Tensor) -> Tensor:
    """Eq. 6: what each of the four neighbours correlates with ``grad``, differenced along one axis at a time."""
    whole = offset.floor()
    x = _exact(x)
    found = _neighbours(x, whole, grad.to(x.dtype)).to(offset.dtype)
    (top_left, top_right), (low_left, low_right) = found.permute(1, 2, 0)
    down, right = offset - whole
    vertical = (1 - right) * (low_left - top_left) + right * (low_right - top_right)
    horizontal = (1 - down) * (top_right - top_left) + down * (low_right - low_left)
    return torch.stack([vertical, horizontal])


def _neighbours(x: Tensor, whole: Tensor, grad: Tensor) -> Tensor:
    """Sums over n, i, j of ``grad`` times each of the four neighbours, (C, 2, 2).

    They are weight gradients of depthwise convs. Those of a 3x3 conv hold all four for offsets within a pixel, so that
    nothing has to be moved; where values may be looked at, only channels further out are.
    """
    if not _plain(x) or grad.shape[2:] != x.shape[2:]:
        return _far_neighbours(x, whole, grad)
    inside = whole.clamp(-1, 0)
    far = (inside != whole).any(0).nonzero()[:, 0]
    if 2 * len(far) > x.shape[1]:
        return _far_neighbours(x, whole, grad)
    window = _kernel_gradient(x, grad, 3, 1).view(-1, 9)
    found = window.gather(1, _taps(inside)).view(-1, 2, 2)
    if len(far):
        found[far] = _far_neighbours(x.index_select(1, far), whole[:, far], grad.index_select(1, far))
    return found


def _far_neighbours(x: Tensor, whole: Tensor, grad: Tensor) -> Tensor:
    near = integer_shift(x, whole, (grad.shape[2] + 1, grad.shape[3] + 1))
    return _kernel_gradient(near, grad, 2, 0)


def _kernel_gradient(x: Tensor, grad: Tensor, size: int, padding: int) -> Tensor:
    shape, channels = (x.shape[1], 1, size, size), x.shape[1]
    gradient: Any = torch.nn.grad.conv2d_weight  # type: ignore[attr-defined]
    found: Tensor = gradient(x, shape, grad, padding=padding, groups=channels)
    return found[:, 0]


def _exact(x: Tensor) -> Tensor:
    """In float32 at least: offsets learn from differences of large sums, of which half precision leaves nothing."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _plain(x: Tensor) -> bool:
    """Whether values may be looked at without cost: an eager tensor on the CPU."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return not traced and x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)


def _move(x: Tensor, offset: Tensor, size: Size) -> Tensor:
    """Choose how to move: by whole rows where values may be looked at and copying is what costs, else by index."""
    if not _plain(x) or 0 in (x.numel(), *size) or size[1] > min(x.shape[3] + 1, x.numel()):
        return _by_index(x, offset.long(), size)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    y = _by_rows(x.detach().contiguous(), offset.detach().long().contiguous(), size)
    return y.contiguous(memory_format=torch.channels_last) if last else y


def _by_index(x: Tensor, offset: Tensor, size: Size) -> Tensor:
    """One gather; no value is looked at, so it is traced, compiled and exported as it stands, without a sync."""
    (height, width), (channels, high, wide) = size, x.shape[1:]
    row = torch.arange(height, device=x.device) + offset[0, :, None]  # (C, height)
    column = torch.arange(width, device=x.device) + offset[1, :, None]  # (C, width)
    inside = ((row >= 0) & (row < high))[:, :, None] & ((column >= 0) & (column < wide))[:, None, :]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    y = x[:, channel, row.clamp(0, high - 1)[:, :, None], column.clamp(0, wide - 1)[:, None, :]]
    return torch.where(inside, y, torch.zeros((), dtype=x.dtype, device=x.device))


def _by_rows(x: Tensor, offset: Tensor, size: Size) -> Tensor:
    """Copy whole rows; where few channels move, the others are copied as one block."""
    plan = _plan(offset.numpy().tobytes(), (x.shape[1], x.shape[2], x.shape[3]), size)
    if plan.moving is None:
        return plan.read(x)
    y = x.clone()
    return y.index_copy_(1, plan.moving, plan.read(x)) if len(plan.moving) else y


@dataclass(frozen=True)
class _Plan:
    """Which rows to copy: row i of channel c starts ``i + a`` rows and ``b`` values into its plane.

    Such a row may run over into its neighbours; what does not belong to it is set to zero afterwards. Either end of the
    memory may cut one short: those planes are moved by themselves.
    """

    size: Size
    start: Tensor  # of the rows read, in an image
    clear: list[tuple[int, slice, Tensor]]  # axis, where, which of it
    moving: Tensor | None  # the channels read; None reads all
    first: Tensor | None  # offset of the first plane, where its first row is cut short
    last: Tensor | None

    def read(self, x: Tensor) -> Tensor:
        """Copy (N, C, H, W) -> (N, channels read, height, width); ``x`` is contiguous."""
        images, (height, width), end = x.shape[0], self.size, x.numel() - self.size[1]
        image = torch.arange(0, x.numel(), x.numel() // images, device="cpu")
        start = (image[:, None] + self.start).clamp_(0, end).view(-1)
        y = x.as_strided((end + 1, width), (1, 1)).index_select(0, start).view(images, -1, height, width)
        for axis, part, outside in self.clear:
            (y[:, :, part] if axis == 2 else y[:, :, :, part]).masked_fill_(outside, 0)
        for at, offset in ((0, self.first), (-1, self.last)):
            if offset is not None:
                y[at, at] = _by_index(x[at, at][None, None], offset[:, None], self.size)[0, 0]
        return y


@lru_cache(maxsize=128)
def _plan(offsets: bytes, shape: tuple[int, int, int], size: Size) -> _Plan:
    """Kept for the next call: offsets change seldom once they are rounded."""
    (channels, high, wide), (height, width) = shape, size
    with torch.inference_mode(False):
        offset = torch.frombuffer(bytearray(offsets), dtype=torch.int64).view(2, channels)
        moving = offset.any(0).nonzero()[:, 0]
        whole = (high, wide) != size or 5 * len(moving) > channels
        chosen = torch.arange(channels, device="cpu") if whole else moving
        down, across = offset[:, chosen, None]  # (chosen, 1)
        row, column = torch.arange(height, device="cpu") + down, torch.arange(width, device="cpu") + across
        start = ((chosen[:, None] * high + row) * wide + across).view(-1)
        clear = [(2, part, bad[:, :, None]) for part, bad in _outside(row, high)]
        clear += [(3, part, bad[:, None, :]) for part, bad in _outside(column, wide)]
        ends = {int(c) for c in chosen}
        first = offset[:, 0] if 0 in ends and offset[1, 0] < 0 else None
        last = offset[:, -1] if channels - 1 in ends and offset[1, -1] + width > wide else None
        return _Plan(size, start, clear, None if whole else moving, first, last)


def _outside(position: Tensor, length: int) -> Iterator[tuple[slice, Tensor]]:
    """The positions at either end, (chosen, positions), that lie outside an input of so many."""
    bad, count = (position < 0) | (position >= length), position.shape[1]
    if len(bad):
        before = min(max(-int(position[:, 0].min()), 0), count)
        behind = min(max(int(position[:, -1].max()) - length + 1, 0), count)
        yield from ((p, bad[:, p].contiguous()) for p in (slice(0, before), slice(count - behind, count)) if _some(p))


def _some(part: slice) -> bool:
    return bool(part.stop > part.start)
