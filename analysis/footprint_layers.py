"""What the layers of torch, timm and of surgery read, class by class; None for those that are not known.

The only part of the sampling map that knows classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd

from analysis.footprints import Enlarging, Reading, Transfer
from surgeon.derived import After, Before, hows
from surgeon.ops.blur_layers import Blur2d, MaxBlurPool2d
from surgeon.ops.conv_spd import SpaceToDepth
from surgeon.ops.dense import CircularPad2d, DensePool2d, OnChannelsLast, conv_windows_at, pads_by_size
from surgeon.ops.polyphase import APSPool2d, Polyphase2d
from surgeon.ops.shift_layer import SparseShift2d
from surgeon.ops.space_to_depth import Blocks, Window
from surgeon.ops.spd import ByWidth, ChannelsLast
from surgeon.ops.spd_conv import SPDConv2d
from surgeon.ops.spd_pool import SPDMaxPool2d, SPDPool2d
from surgeon.ops.spd_windows import conv_windows, pair, pool_windows

Weights = Literal["taps", "nonzero"]
Size = tuple[int, int]
PADS = (_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd, nn.CircularPad2d)


def transfers_of(module: nn.Module, size: Size, weights: Weights = "taps") -> list[Transfer] | None:
    """What a layer reads, in order of what it does; None where its class is not known.

    Args:
        module: Any.
        size: (height, width) of its input: padding may depend on it.
        weights: "taps" counts every tap of a kernel, "nonzero" those with a weight that is not zero.

    Example:
        >>> transfers_of(nn.Conv2d(3, 8, 3, stride=2, padding=1), (8, 8))
        [Reading(rows=(-1, 0, 1), columns=(-1, 0, 1), stride=(2, 2), taps=None, chosen=False)]
        >>> transfers_of(nn.ReLU(), (8, 8)) is None
        True
    """
    own = _own(module, size, weights)
    around = hows(module)
    if not any(isinstance(how, (Before, After)) for how in around):
        return own
    befores = [module.get_submodule(how.child) for how in reversed(around) if isinstance(how, Before)]
    afters = [module.get_submodule(how.child) for how in around if isinstance(how, After)]
    parts = [transfers_of(child, size, weights) for child in befores]
    return [
        *(each for part in parts for each in part or ()),
        *(own or ()),
        *(each for child in afters for each in transfers_of(child, size, weights) or ()),
    ]


def _own(module: nn.Module, size: Size, weights: Weights) -> list[Transfer] | None:
    """Of a layer without what surgery has put around it."""
    if isinstance(module, (ByWidth, ChannelsLast, OnChannelsLast)):
        inner = next(iter(module.layers.values())) if isinstance(module, ByWidth) else module.layer
        return transfers_of(inner, size, weights)  # type: ignore[arg-type]
    if isinstance(module, (SPDConv2d, SPDPool2d)):
        return _of_blocks(module, size, weights)
    if isinstance(module, nn.ConvTranspose2d):
        return [_transposed(module)]
    if isinstance(module, nn.Conv2d):
        windows = conv_windows(module) if pads_by_size(module) else conv_windows_at(module)
        used = _used(module.weight) if weights == "nonzero" else None
        return [_windowed(windows, size, used)]
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) and (found := getattr(module, "slice", None)) is not None:
        return [Reading((found.start[0],), (found.start[1],), found.stride)]
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        return [_windowed(pool_windows(module), size)]
    if isinstance(module, nn.LPPool2d):
        kernel, stride = pair(module.kernel_size), pair(module.stride or module.kernel_size)  # type: ignore[arg-type]
        return [_windowed((Window(kernel[0], stride[0]), Window(kernel[1], stride[1])), size)]
    return _of_pools(module, size) or _of_surgery(module, size) or _resized(module)


def _windowed(windows: tuple[Window, Window], size: Size, taps: NDArray[np.int64] | None = None) -> Reading:
    rows, columns = (_offsets(window, side) for window, side in zip(windows, size, strict=True))
    return Reading(rows, columns, (windows[0].stride, windows[1].stride), taps)


def _offsets(window: Window, size: int) -> tuple[int, ...]:
    front = window.pads(size)[0]
    return tuple(i * window.dilation - front for i in range(window.kernel))


def _used(weight: Tensor | None) -> NDArray[np.int64] | None:
    """Which taps have a weight that is not zero."""
    if weight is None or weight.is_meta:
        return None
    found: NDArray[np.int64] = (weight.detach() != 0).any(1).any(0).cpu().numpy().astype(np.int64)
    return found


def _transposed(conv: nn.ConvTranspose2d) -> Enlarging:
    kernel, stride, dilation = pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation)
    padding = pair(conv.padding)  # type: ignore[arg-type]
    rows, columns = (tuple(i * dilation[a] - padding[a] for i in range(kernel[a])) for a in (0, 1))
    return Enlarging(rows, columns, stride)


def _of_blocks(layer: Any, size: Size, weights: Weights) -> list[Transfer]:
    """Space-to-depth and a conv over blocks; of a max pool behind one of stride 1."""
    extra = pair(layer.padding) if getattr(layer, "padding_mode", "zeros") != "zeros" else (0, 0)
    rows, columns = (_over_blocks(b, n, e) for b, n, e in zip((layer.rows, layer.cols), size, extra, strict=True))
    stride = (layer.rows.window.stride, layer.cols.window.stride)
    taps = None
    if weights == "nonzero":
        with torch.no_grad():
            weight = layer.block_weight() if isinstance(layer, SPDConv2d) else layer.weight
        taps = _used_blocks(weight, stride)
    blocks = Reading(rows, columns, stride, taps)
    if not isinstance(layer, SPDMaxPool2d):
        return [blocks]
    dense = tuple(Window(w.kernel, 1, w.pads(n)[0], w.dilation) for w, n in zip(layer.windows, size, strict=True))
    return [_windowed((dense[0], dense[1]), size), blocks]


def _over_blocks(axis: Blocks, size: int, extra: int) -> tuple[int, ...]:
    """Pixels that the first output reads: of each tap, all of a block."""
    window = axis.window
    front = window.pads(size)[0] - window.origin + extra
    blocks = [j * axis.dilation - axis.lead for j in range(axis.kernel)]
    return tuple(block * window.stride + pixel - front for block in blocks for pixel in range(window.stride))


def _used_blocks(weight: Tensor, stride: Size) -> NDArray[np.int64]:
    """Which pixels of which taps have a weight that is not zero, (Kh * sh, Kw * sw)."""
    out, channels, height, width = weight.shape
    parts = (weight != 0).reshape(out, channels // (stride[0] * stride[1]), *stride, height, width).any(1).any(0)
    found: NDArray[np.int64] = parts.permute(2, 0, 3, 1).reshape(height * stride[0], -1).cpu().numpy().astype(np.int64)
    return found


def _of_pools(module: nn.Module, size: Size) -> list[Transfer] | None:
    """Pools of surgery, which run at stride 1 before they blur or choose."""
    if isinstance(module, DensePool2d):
        dense = [Window(w.kernel, 1, w.pads(n)[0], w.dilation) for w, n in zip(module.windows, size, strict=True)]
        return [_windowed((dense[0], dense[1]), size)]
    if isinstance(module, MaxBlurPool2d):
        return [*(_of_pools(module.pool, size) or ()), *(_of_surgery(module.blur, size) or ())]
    if isinstance(module, APSPool2d):
        return [*(_of_pools(module.pool, size) or ()), *(_of_surgery(module.select, size) or ())]
    return None


def _of_surgery(module: nn.Module, size: Size) -> list[Transfer] | None:
    """Other layers of surgery that move or skip positions."""
    if isinstance(module, Blur2d):
        fronts = [module._pads(window, side)[0] for window, side in zip(module.windows, size, strict=True)]
        rows, columns = (tuple(i - front for i in range(module.filt_size)) for front in fronts)
        return [Reading(rows, columns, module.stride, proportions(module.filt))]
    if isinstance(module, (Polyphase2d, SpaceToDepth)):
        down, right = module.stride if isinstance(module, Polyphase2d) else module.block
        return [Reading(tuple(range(down)), tuple(range(right)), (down, right), chosen=isinstance(module, Polyphase2d))]
    if isinstance(module, CircularPad2d):
        fronts = [window.pads(side)[0] for window, side in zip(module.windows, size, strict=True)]
        return [Reading((-fronts[0],), (-fronts[1],))]
    if isinstance(module, SparseShift2d):
        moved = module.rounded.tolist() if not module.offset.is_meta else [[0], [0]]
        rows, columns = (tuple(sorted(set(offsets))) for offsets in moved)
        there = set(zip(*moved, strict=True))
        taps = np.array([[int((row, column) in there) for column in columns] for row in rows])
        return [Reading(rows, columns, (module.stride, module.stride), taps)]
    return None


def _resized(module: nn.Module) -> list[Transfer] | None:
    """Layers that pad, enlarge or rearrange."""
    if isinstance(module, PADS) and len(module.padding) == 4:
        left, _, top, _ = (int(side) for side in module.padding)
        return [Reading((-top,), (-left,))]
    if isinstance(module, nn.PixelUnshuffle):
        block = module.downscale_factor
        return [Reading(tuple(range(block)), tuple(range(block)), (block, block))]
    if isinstance(module, nn.PixelShuffle):
        return [enlarged((module.upscale_factor, module.upscale_factor))]
    if isinstance(module, nn.Upsample) and module.scale_factor is not None:
        factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,) * 2
        return [enlarged((int(factors[0]), int(factors[1])))] if all(float(f).is_integer() for f in factors) else None
    return None


def proportions(weights: Tensor | None) -> NDArray[np.int64] | None:
    """A fixed filter in whole numbers: a blur of 1 2 1 reads its middle twice; None where it has no such numbers.

    Example:
        >>> proportions(torch.tensor([[[[1.0, 2.0], [2.0, 4.0]]]]) / 9).tolist()
        [[1, 2], [2, 4]]
    """
    if weights is None or weights.is_meta or weights.ndim != 4 or not bool((weights == weights[:1, :1]).all()):
        return None
    one = weights[0, 0].detach().double().cpu().numpy()
    least = np.abs(one[one != 0]).min(initial=np.inf)
    whole = np.round(one / least)
    fits = bool(np.isfinite(least)) and whole.min() >= 0 and np.abs(one / least - whole).max() < 1e-3
    return whole.astype(np.int64) if fits else None


def enlarged(factor: Size) -> Enlarging:
    """Upsampling by whole numbers: each output reads one input.

    Example:
        >>> enlarged((2, 3))
        Enlarging(rows=(0, 1), columns=(0, 1, 2), factor=(2, 3))
    """
    return Enlarging(tuple(range(factor[0])), tuple(range(factor[1])), factor)


def total_stride(transfers: Sequence[Transfer]) -> Size:
    """Inputs per output of all the readings, enlargements left out.

    Example:
        >>> total_stride([Reading(stride=(2, 2)), Reading(stride=(2, 1))])
        (4, 2)
    """
    down = right = 1
    for transfer in transfers:
        if isinstance(transfer, Reading):
            down, right = down * transfer.stride[0], right * transfer.stride[1]
    return down, right


__all__ = ["Weights", "enlarged", "proportions", "total_stride", "transfers_of"]
