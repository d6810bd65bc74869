"""Strided layers at stride 1: what ``blurpool`` and ``aps`` choose their outputs from.

At stride 1 a layer computes every output the strided one computes, and those between; nothing has been dropped yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from surgeon.derived import HOWS
from surgeon.edit import SetAttribute
from surgeon.ops.space_to_depth import Window
from surgeon.ops.spd_windows import is_same_pool, pad_pixels, pair, pool_windows, why_not_pool

Pads = tuple[int, int]


def extend(x: Tensor, pads: Sequence[Pads], mode: str, value: float = 0.0) -> Tensor:
    """Pad (N, C, H, W) in front and back of each axis; a negative number cuts. Maps smaller than the padding work too.

    Args:
        x: The features.
        pads: Pixels in front and back, of H and of W.
        mode: "reflect" (the border itself once), "circular", "replicate" or "constant".
        value: The constant.

    Example:
        >>> extend(torch.arange(3.0).view(1, 1, 1, 3), [(0, 0), (1, 4)], "circular").flatten().tolist()
        [2.0, 0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]
    """
    if any(p < 0 for ps in pads for p in ps):
        ends = [(max(-front, 0), size - max(-back, 0)) for (front, back), size in zip(pads, x.shape[2:], strict=True)]
        x = x[:, :, ends[0][0] : ends[0][1], ends[1][0] : ends[1][1]]
        pads = [(max(front, 0), max(back, 0)) for front, back in pads]
    flat = [*pads[1], *pads[0]]
    if not any(flat):
        return x
    if mode == "constant":
        return F.pad(x, flat, value=value)
    room = {"replicate": None, "circular": 0, "reflect": 1}[mode]
    if room is None or all(max(p) + room <= size for p, size in zip(pads, x.shape[2:], strict=True)):
        return F.pad(x, flat, mode=mode)
    for axis, (front, back) in zip((2, 3), pads, strict=True):
        size = x.shape[axis]
        at = torch.arange(-front, size + back, device=x.device)
        period = max(2 * (size - 1), 1)
        at = at % size if mode == "circular" else size - 1 - (size - 1 - at % period).abs()
        x = x.index_select(axis, at)
    return x


class CircularPad2d(nn.Module):
    """Pad features around: what leaves on one side comes in on the other, as much as a layer of stride 1 needs.

    The layer behind it pads nothing itself. At stride 1 it then has as many outputs as there are pixels; of a strided
    layer's window, its outputs times its stride.

    Args:
        windows: Of H and W, of the layer as it was.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, H', W')

    Example:
        >>> window = Window(kernel=3, stride=2, padding=1)
        >>> CircularPad2d((window, window))(torch.rand(1, 1, 8, 6)).shape
        torch.Size([1, 1, 10, 8])
    """

    def __init__(self, windows: tuple[Window, Window]) -> None:
        super().__init__()
        self.windows = windows

    def forward(self, x: Tensor) -> Tensor:
        """Pad both axes."""
        pads = [around(window, size) for window, size in zip(self.windows, x.shape[2:], strict=True)]
        return extend(x, pads, "circular")

    def extra_repr(self) -> str:
        """Show kernel and stride."""
        kernel, stride = (tuple(getattr(w, name) for w in self.windows) for name in ("kernel", "stride"))
        return f"kernel_size={kernel}, stride={stride}"


def around(window: Window, size: int) -> Pads:
    """Circular padding of ``size`` pixels, so that at stride 1 there are the strided outputs times the stride.

    Example:
        >>> around(Window(kernel=2, stride=2), 8), around(Window(kernel=2, stride=2), 9)
        ((0, 1), (0, 0))
    """
    front = window.pads(size)[0]
    return front, window.outputs(size) * window.stride + window.reach - size - front


class DensePool2d(nn.Module):
    """A strided max or average pool at stride 1: every s-th of its outputs is one of the strided pool's.

    Args:
        pool: The strided pool, of torch's class or of timm's "same" ones.
        circular: Pad around instead of with nothing (max) or zeros (average).

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, H1, W1), with at least (H' - 1)*s + 1 rows where the pool has H'; H'*s with ``circular``

    Ask :func:`why_not_dense_pool` first: other pools are not told apart here.

    Example:
        >>> pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        >>> x = torch.rand(1, 2, 9, 8)
        >>> bool((DensePool2d(pool)(x)[:, :, ::2, ::2] == pool(x)).all())
        True
    """

    def __init__(self, pool: nn.Module, circular: bool = False) -> None:
        super().__init__()
        self.maximum, self.circular, self.same = isinstance(pool, nn.MaxPool2d), circular, is_same_pool(pool)
        self.windows = pool_windows(pool)  # type: ignore[arg-type]
        self.kernel_size, self.dilation = pair(pool.kernel_size), pair(getattr(pool, "dilation", 1))  # type: ignore[arg-type]
        self.include_pad = bool(getattr(pool, "count_include_pad", True))
        self.divisor: int | None = getattr(pool, "divisor_override", None)

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then pool at stride 1."""
        sizes = list(zip(self.windows, x.shape[2:], strict=True))
        if self.circular:
            x = extend(x, [around(window, size) for window, size in sizes], "circular")
        elif self.maximum or self.same:
            outside = float("-inf") if self.maximum else 0.0
            x = extend(x, [_last_window(window, size) for window, size in sizes], "constant", outside)
        padding = (0, 0) if self.circular or self.same else (self.windows[0].padding, self.windows[1].padding)
        if self.maximum:
            return F.max_pool2d(x, self.kernel_size, 1, padding, self.dilation)
        return F.avg_pool2d(x, self.kernel_size, 1, padding, False, self.include_pad, self.divisor)

    def extra_repr(self) -> str:
        """Show what it computes."""
        kind = "max" if self.maximum else "average"
        return f"{kind}, kernel_size={self.kernel_size}{', circular' if self.circular else ''}"


def _last_window(window: Window, size: int) -> Pads:
    """Pixels in front and back, beside the padding the pool does itself, up to the last strided window."""
    front, back = window.pads(size)
    missing = (window.outputs(size) - 1) * window.stride + 1 - (size + front + back - window.reach)
    return front - window.padding, back - window.padding + max(missing, 0)


def why_not_dense_pool(pool: nn.Module) -> str | None:
    """Why ``pool`` cannot run at stride 1, as a verb phrase; None if it can."""
    found = getattr(pool, "slice", None)
    if found is not None and (found.start != (0, 0) or not found.whole):
        return f"starts at position {found.start} or cuts besides, as no pool does; slice twice in the code: cut, skip"
    return why_not_pool(pool, nn.AvgPool2d if isinstance(pool, nn.AvgPool2d) else nn.MaxPool2d)


def pads_by_size(conv: nn.Conv2d) -> bool:
    """Whether the conv pads as TensorFlow does (timm's ``Conv2dSame`` and ``StdConv2dSame``)."""
    same = any(cls.__name__.endswith("Same") for cls in type(conv).__mro__)
    return same or bool(getattr(conv, "same_pad", False))


def why_not_dense_conv(conv: nn.Module) -> str | None:
    """Why ``conv`` cannot run at stride 1 by its attribute ``stride``, as a verb phrase; None if it can."""
    if not isinstance(conv, nn.Conv2d):
        return f"is a {type(conv).__name__}, not a Conv2d with one kernel"
    from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame

    cls: Any = type(conv).__mro__[len(getattr(type(conv), HOWS, ()))]  # what is put before or behind it does not matter
    known = (nn.Conv2d, Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)
    plain = getattr(cls, "_conv_forward", None) is nn.Conv2d._conv_forward
    if "forward" in vars(conv) or not plain or cls.forward not in [other.forward for other in known]:
        return f"is a {type(conv).__name__} whose forward is not that of nn.Conv2d, so its use of the stride is unknown"
    return None


def conv_windows_at(conv: nn.Conv2d) -> tuple[Window, Window]:
    """The windows of H and W of a conv that does not pad by size, whatever its padding mode."""
    kernel, stride, dilation = pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation)
    padding = pad_pixels(conv)
    if conv.padding == "same":  # stride 1 only
        padding = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
    rows, cols = (Window(*part) for part in zip(kernel, stride, padding, dilation, strict=True))
    return rows, cols


def unstride(path: str) -> SetAttribute:
    """Let the conv at ``path`` run at stride 1; it keeps its class and its weights."""
    return SetAttribute(path, "stride", _one)


def _one(_stride: object) -> tuple[int, int]:
    return 1, 1


class OnChannelsLast(nn.Module):
    """Runs a layer on features the model holds as (N, H, W, C).

    Shape:
        - Input: (N, H, W, C)
        - Output: as the layer's, channels last
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Permute, run, permute back."""
        y: Tensor = self.layer(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


for layer in (CircularPad2d, DensePool2d, OnChannelsLast):
    register_notrace_module(layer)  # their padding depends on the size: leaves for timm's feature extraction
