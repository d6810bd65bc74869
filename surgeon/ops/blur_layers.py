"""The layers of ``blurpool``: a blur that subsamples, alone or behind a max pool of stride 1.

Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019, arXiv:1904.11486, section 3.3.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d, register_notrace_module
from torch import Tensor, nn

from surgeon.ops.dense import DensePool2d, Pads, extend
from surgeon.ops.space_to_depth import Window
from surgeon.ops.spd_windows import is_same_pool, pair, pool_windows
from surgeon.site import Pair

PadMode = Literal["reflect", "circular", "zeros"]


class Blur2d(BlurPool2d):  # type: ignore[misc]
    r"""Timm's ``BlurPool2d`` that has as many outputs as the layer it stands for, at every input size.

    Args:
        windows: Of H and W, of the layer it stands for: they tell stride, number of outputs and where the first lies.
        filt_size: Side of the binomial filter, odd.
        pad_mode: "reflect", "circular" or "zeros".

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, H', W'), as of the windows; ⌈H/s⌉ by default

    Example:
        >>> import torch
        >>> Blur2d.by((2, 2))(torch.ones(1, 1, 3, 2)).tolist()
        [[[[1.0], [1.0]]]]

    Source:
        Section 3.3. Deviation from timm's layer: padding is of the filter only, where timm's grows with the stride and
        gives another size than the strided layer's at strides above 2.
    """

    def __init__(self, windows: tuple[Window, Window], filt_size: int = 3, pad_mode: PadMode = "reflect") -> None:
        stride = (windows[0].stride, windows[1].stride)
        super().__init__(None, filt_size, max(stride), "constant" if pad_mode == "zeros" else pad_mode)
        self.stride, self.windows = stride, windows

    @classmethod
    def by(cls, stride: Pair, filt_size: int = 3, pad_mode: PadMode = "reflect") -> Blur2d:
        """The blur that takes every ``stride``-th position, from the first on."""
        return cls((Window(1, stride[0]), Window(1, stride[1])), filt_size, pad_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then one depthwise conv."""
        pads = [self._pads(window, size) for window, size in zip(self.windows, x.shape[2:], strict=True)]
        channels, side = x.shape[1], self.filt_size
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            channels = int(channels)  # the exporter to ONNX asks for a kernel of known shape
        x = extend(x, pads, self.pad_mode)
        weight = self.filt.to(x.dtype).expand(channels, 1, side, side)
        return F.conv2d(x, weight, stride=self.stride, groups=channels)

    def _pads(self, window: Window, size: int) -> Pads:
        """So that the filter lies in the middle of each window, rounded to the front."""
        front = self.filt_size // 2 + window.pads(size)[0] - window.reach // 2
        return front, (window.outputs(size) - 1) * window.stride + self.filt_size - size - front

    def extra_repr(self) -> str:
        """Show the filter."""
        return f"filt_size={self.filt_size}, stride={self.stride}, pad_mode='{self.pad_mode}'"


class MaxBlurPool2d(nn.Module):
    """A max pool of stride 1, then the blur.

    Args:
        pool: The strided max pool.
        filt_size: Of :class:`Blur2d`.
        pad_mode: Of :class:`Blur2d`; "circular" lets the max pool pad around too.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, H', W'), as the pool's

    Example:
        >>> import torch
        >>> pool = nn.MaxPool2d(3, stride=2, padding=1)
        >>> MaxBlurPool2d(pool)(torch.rand(1, 4, 9, 6)).shape == pool(torch.rand(1, 4, 9, 6)).shape
        True

    Source:
        Section 3.3, "MaxPool -> MaxBlurPool".
    """

    def __init__(self, pool: nn.Module, filt_size: int = 3, pad_mode: PadMode = "reflect") -> None:
        super().__init__()
        self.pool = DensePool2d(pool, circular=pad_mode == "circular")
        self.blur = Blur2d.by(pair(pool.stride), filt_size, pad_mode)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maximum, then blur."""
        y: Tensor = self.blur(self.pool(x))
        return y


def blur_for(pool: nn.Module, filt_size: int, pad_mode: PadMode) -> nn.Module:
    """The layer for a strided pool; a pool of one pixel, which only skips, becomes the blur alone."""
    stride = pair(pool.stride)  # type: ignore[arg-type]
    if isinstance(pool, nn.AvgPool2d) and not is_same_pool(pool):
        return Blur2d(pool_windows(pool), filt_size, pad_mode)
    if isinstance(pool, nn.AvgPool2d) or pair(pool.kernel_size) == (1, 1):  # type: ignore[arg-type]
        return Blur2d.by(stride, filt_size, pad_mode)
    return MaxBlurPool2d(pool, filt_size, pad_mode)


for layer in (Blur2d, MaxBlurPool2d):
    register_notrace_module(layer)  # their padding depends on the size: leaves for timm's feature extraction
