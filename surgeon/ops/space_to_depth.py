"""Space-to-depth and its geometry: where the taps of a strided window fall among blocks of pixels.

Kept apart because convs and pools share it, and because it is integer arithmetic that can be checked by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from surgeon.errors import RecipeError, RefusedError

Kernel = Literal["same", "minimal"] | int


def space_to_depth(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Move each block of pixels into channels: nothing is computed, nothing is lost.

    The order is channel-major, index = c*bh*bw + dy*bw + dx, so the groups of a grouped conv stay together. The paper
    concatenates whole images (dx outer, dy inner, then c); timm's ``SpaceToDepth`` has yet another order.
    A channels-last input gives a channels-last output.

    Args:
        x: (N, C, H, W), H a multiple of bh and W of bw.
        block: (bh, bw), in pixels.

    Returns:
        (N, C*bh*bw, H/bh, W/bw).

    Raises:
        RefusedError: When H or W is no multiple of the block.

    Example:
        >>> import torch
        >>> space_to_depth(torch.arange(8).view(1, 1, 2, 4), (2, 2)).tolist()
        [[[[0, 2]], [[1, 3]], [[4, 6]], [[5, 7]]]]

    References:
        Sunkara and Luo, No More Strided Convolutions or Pooling, ECML PKDD 2022, arXiv:2208.03641.
        Deviation: the channel order, as above.
    """
    (n, c, h, w), (bh, bw) = x.shape, block
    if bh == bw == 1:
        return x
    if h % bh or w % bw:
        raise RefusedError(f"space_to_depth cannot cut {h}x{w} pixels in blocks of {bh}x{bw}: no multiple; pad first")
    x_is_channels_last = x.stride(1) == 1 and c > 1
    x = x.reshape(n, c, h // bh, bh, w // bw, bw)  # (N, C, H/b, b, W/b, b)
    if x_is_channels_last:
        x = x.permute(0, 2, 4, 3, 5, 1)  # (N, H/b, W/b, b, b, C)
        if x.device.type == "cpu":
            x = x.contiguous()  # in two steps: a CPU copies whole rows fast, single numbers slowly
        return x.permute(0, 1, 2, 5, 3, 4).reshape(n, h // bh, w // bw, c * bh * bw).permute(0, 3, 1, 2)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(n, c * bh * bw, h // bh, w // bw)


@dataclass(frozen=True)
class Window:
    """One axis of a strided conv or pool: tap i of output t reads pixel t*stride + i*dilation - padding.

    Args:
        kernel: Number of taps.
        stride: Pixels from one output to the next.
        padding: Pixels added on both sides; not read when ``same``.
        dilation: Pixels from one tap to the next.
        same: TensorFlow's "same": the padding depends on the input size, the odd pixel goes to the end.
        ceil: A pool's ``ceil_mode``.
    """

    kernel: int
    stride: int
    padding: int = 0
    dilation: int = 1
    same: bool = False
    ceil: bool = False

    @property
    def reach(self) -> int:
        """Pixels from the first tap to the last."""
        return self.dilation * (self.kernel - 1)

    @property
    def origin(self) -> int:
        """Front padding in pixels, the least over all input sizes."""
        return min(self.pads(size)[0] for size in range(self.stride))

    def pads(self, size: int) -> tuple[int, int]:
        """Front and back padding in pixels of an input of ``size`` pixels."""
        if not self.same:
            return self.padding, self.padding
        total = max((-(-size // self.stride) - 1) * self.stride + self.reach + 1 - size, 0)
        return total // 2, total - total // 2

    def outputs(self, size: int) -> int:
        """Output size for an input of ``size`` pixels, by torch's rules."""
        front, back = self.pads(size)
        free = size + front + back - self.reach - 1
        if not self.ceil:
            return free // self.stride + 1
        count = -(-free // self.stride) + 1
        end = size + front + (back if self.same else 0)  # torch: the last window starts inside the input or in front
        return count - 1 if (count - 1) * self.stride >= end else count


class Plan(NamedTuple):
    """What brings an axis in order for one remainder of its size: pixels in front and back, blocks by the conv."""

    front: int
    back: int  # negative: pixels that nothing reads, cut off
    border: int


@dataclass(frozen=True)
class Blocks:
    """One axis of the stride-1 conv over blocks: tap j of output t reads block t + j*dilation - lead.

    Args:
        window: The strided window it stands for; its stride is the block size in pixels.
        kernel: Number of taps, in blocks.
        lead: Blocks in front of output t that tap 0 reads.
        dilation: Blocks from one tap to the next; above 1 only where the window's dilation is a multiple of its stride.
    """

    window: Window
    kernel: int
    lead: int
    dilation: int = 1
    plans: tuple[Plan, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # every amount of padding depends on the input size only through its remainder
        object.__setattr__(self, "plans", tuple(self._plan(r) for r in range(self.window.stride)))

    @classmethod
    def of(cls, window: Window, kernel: Kernel = "minimal") -> Blocks:
        """Place the taps of ``window`` in the middle of a kernel over blocks.

        Args:
            window: The strided window.
            kernel: "minimal" is the smallest that holds every tap; "same" has as many taps as the window, more only
                where its dilation needs them; a number is taken as it is, also where it is too small to be exact.

        Raises:
            RecipeError: When ``kernel`` is none of these.

        Example:
            >>> blocks = Blocks.of(Window(kernel=3, stride=2, padding=1))  # pixels -1, 0, 1 lie in blocks -1 and 0
            >>> blocks.kernel, blocks.lead
            (2, 1)
        """
        first, step, least = _footprint(window)
        if kernel == "minimal":
            size = least
        elif kernel == "same":
            size = max(window.kernel, least)
        elif isinstance(kernel, int) and not isinstance(kernel, bool) and kernel > 0:
            size = kernel
        else:
            raise RecipeError(
                f"kernel={kernel!r} is no kernel size in blocks; use 'same', 'minimal' or a number above 0"
            )
        if size < least:
            return cls(window, size, size // 2 * step, step)
        return cls(window, size, step * min(max(size // 2 + first // step, 0), size - least) - first, step)

    @property
    def least(self) -> int:
        """Number of taps, in blocks, that the window needs."""
        return _footprint(self.window)[2]

    def _plan(self, size: int) -> Plan:
        window, s = self.window, self.window.stride
        shift = window.pads(size)[0] - window.origin  # "same": by how much this size pads more than the least
        stop = window.outputs(size) + (self.kernel - 1) * self.dilation - self.lead  # first block that nothing reads
        tail = stop - -(-(size + shift) // s)
        border = max(0, min(self.lead, tail))
        return Plan(shift + (self.lead - border) * s, (stop - border) * s - size - shift, border)


def _footprint(window: Window) -> tuple[int, int, int]:
    """First block read, blocks from one tap to the next, number of taps in blocks."""
    s, d = window.stride, window.dilation
    first, last = -window.origin // s, (window.reach - window.origin) // s
    step = d // s if d % s == 0 else 1
    return first, step, (last - first) // step + 1


def pad_or_crop(x: Tensor, rows: tuple[int, int], cols: tuple[int, int], value: float = 0.0) -> Tensor:
    """Pad H and W by (front, back) pixels; a negative back cuts off instead. Copies nothing when nothing is added."""
    (top, bottom), (left, right) = rows, cols
    if bottom < 0:
        x = x.narrow(2, 0, x.shape[2] + bottom)
    if right < 0:
        x = x.narrow(3, 0, x.shape[3] + right)
    pads = (left, max(right, 0), top, max(bottom, 0))
    return F.pad(x, pads, value=value) if any(pads) else x


def block_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Blocks, cols: Blocks, groups: int) -> Tensor:
    """Space-to-depth, then a stride-1 conv, with the output size of the strided window at every input size.

    Args:
        x: (N, C_in, H, W), any H and W the strided window takes.
        weight: (C_out, C_in/groups*sh*sw, Kh, Kw), channel-major.
        bias: (C_out,) or None.
        rows: Geometry of H.
        cols: Geometry of W.
        groups: Groups of the conv.

    Returns:
        (N, C_out, H', W').
    """
    sh, sw = rows.window.stride, cols.window.stride
    h, w = rows.plans[x.shape[2] % sh], cols.plans[x.shape[3] % sw]
    x = pad_or_crop(x, (h.front, h.back), (w.front, w.back))
    x = space_to_depth(x, (sh, sw))  # (N, C_in*sh*sw, H/sh, W/sw)
    dilation = (rows.dilation, cols.dilation)
    return F.conv2d(x, weight, bias, padding=(h.border, w.border), dilation=dilation, groups=groups)


def embed(weight: Tensor, rows: Blocks, cols: Blocks) -> Tensor:
    """Place the weight of a strided window in the kernel over blocks; every new tap is zero. Differentiable.

    Args:
        weight: (C_out, C_in, kh, kw), the strided window's.
        rows: Geometry of H, wide enough (``kernel >= least``).
        cols: Geometry of W, likewise.

    Returns:
        (C_out, C_in*sh*sw, Kh, Kw).

    Example:
        >>> import torch
        >>> blocks = Blocks.of(Window(kernel=1, stride=2))
        >>> embed(torch.full((1, 1, 1, 1), 7.0), blocks, blocks).flatten().tolist()
        [7.0, 0.0, 0.0, 0.0]
    """
    (o, c, kh, kw), (h, w) = weight.shape, (rows.window, cols.window)
    weight = F.pad(weight[:, :, :, None, :, None], (0, w.dilation - 1, 0, 0, 0, h.dilation - 1))
    weight = weight.reshape(o, c, kh * h.dilation, kw * w.dilation)  # one tap per pixel
    pads: list[int] = []
    for axis, width in ((cols, weight.shape[3]), (rows, weight.shape[2])):
        front = axis.lead * axis.window.stride - axis.window.origin
        total = ((axis.kernel - 1) * axis.dilation + 1) * axis.window.stride
        pads += [front, total - front - width]
    weight = F.pad(weight, pads)
    weight = weight.reshape(o, c, -1, h.stride, weight.shape[3] // w.stride, w.stride)
    weight = weight[:, :, :: rows.dilation, :, :: cols.dilation].permute(0, 1, 3, 5, 2, 4)
    return weight.reshape(o, c * h.stride * w.stride, rows.kernel, cols.kernel)
