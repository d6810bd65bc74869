"""Folds space-to-depth + conv into the cheapest standard layers: one plain strided conv, padded where it must be.

Kept apart from the layers because it is the way back, for inference only, and convs and average pools share it.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.following import memory_format
from surgeon.ops.space_to_depth import Blocks, Window
from surgeon.ops.spd_windows import pair

PADS: dict[str, type[nn.Module]] = {
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


class Span(NamedTuple):
    """The taps of one axis that count: first and last in pixels from the output's corner, and the step between."""

    first: int
    last: int
    step: int


def fold(
    weight: Tensor,
    bias: Tensor | None,
    rows: Blocks,
    cols: Blocks,
    groups: int,
    *,
    mode: str = "zeros",
    padding: tuple[int, int] = (0, 0),
) -> nn.Module | None:
    """Build the strided conv that equals space-to-depth + conv at every input size.

    Taps that are all zero are left out where the rest allows it, so an untrained exact kernel folds back to the
    original one.

    Args:
        weight: (C_out, C_in/groups*sh*sw, Kh, Kw), channel-major.
        bias: (C_out,) or None.
        rows: Geometry of H.
        cols: Geometry of W.
        groups: Groups of the conv.
        mode: Padding mode of the original conv.
        padding: Pixels padded in that mode, when it is not "zeros".

    Returns:
        Conv2d, Sequential of paddings and Conv2d, timm's Conv2dSame, or None where no such layer exists.

    Example:
        >>> import torch
        >>> blocks = Blocks.of(Window(kernel=3, stride=2, padding=1))
        >>> fold(torch.ones(1, 4, 2, 2), None, blocks, blocks, groups=1)  # all taps count
        Sequential(
          (0): ZeroPad2d((2, 1, 2, 1))
          (1): Conv2d(1, 1, kernel_size=(4, 4), stride=(2, 2), bias=False)
        )
    """
    taps = unfold(weight.detach(), rows, cols)
    spans = (_span(taps, 2, rows), _span(taps, 3, cols))
    if spans[0] is None or spans[1] is None:
        return None
    h, w = spans[0], spans[1]
    kernel = _cut(taps, h, w, rows, cols)
    stride, steps = (rows.window.stride, cols.window.stride), (h.step, w.step)
    if rows.window.same:
        from timm.layers import Conv2dSame

        return _conv(Conv2dSame, kernel, weight, bias, stride, (0, 0), steps, groups)
    top, bottom = -h.first, _back(h, rows.window)
    left, right = -w.first, _back(w, cols.window)
    symmetric = top == bottom and left == right
    if mode == "zeros":
        conv = _conv(nn.Conv2d, kernel, weight, bias, stride, (top, left) if symmetric else (0, 0), steps, groups)
        return conv if symmetric else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)
    conv = _conv(nn.Conv2d, kernel, weight, bias, stride, (0, 0), steps, groups)
    layers: list[nn.Module] = [PADS[mode]((padding[1], padding[1], padding[0], padding[0]))]
    if any((left, right, top, bottom)):
        layers.append(nn.ZeroPad2d((left, right, top, bottom)))
    return nn.Sequential(*layers, conv)


def unfold(weight: Tensor, rows: Blocks, cols: Blocks) -> Tensor:
    """Spread a kernel over blocks to one tap per pixel, (C_out, C_in/groups, H, W): the inverse of ``embed``."""
    (o, _, kh, kw), sh, sw = weight.shape, rows.window.stride, cols.window.stride
    high, wide = (kh - 1) * rows.dilation + 1, (kw - 1) * cols.dilation + 1
    taps = weight.new_zeros(o, weight.shape[1] // (sh * sw), high, sh, wide, sw)
    blocks = weight.reshape(o, -1, sh, sw, kh, kw).permute(0, 1, 4, 2, 5, 3)  # (O, C, Kh, sh, Kw, sw)
    taps[:, :, :: rows.dilation, :, :: cols.dilation] = blocks
    return taps.reshape(o, -1, high * sh, wide * sw)


def _span(taps: Tensor, dim: int, blocks: Blocks) -> Span | None:
    window, start = blocks.window, blocks.lead * blocks.window.stride
    used = _used(taps, dim, start)
    if window.same:  # the padding of Conv2dSame grows by the same amount on both sides
        head, tail = -window.origin, window.reach - window.origin
        more = max(head - used[0], used[-1] - tail, 0)
        if more and window.reach + 1 < window.stride:
            return None
        used = [head - more, *used, tail + more]
    else:  # no padding may be negative: pixels cut off are an error on the smallest inputs
        used = [min(used[0], 0), *used, max(used[-1], window.reach - 2 * window.padding)]
    step = math.gcd(*(tap - used[0] for tap in used)) or 1
    return Span(used[0], used[-1], step)


def _used(taps: Tensor, dim: int, start: int) -> list[int]:
    """Positions, in pixels from the output's corner, of the taps along ``dim`` that are not all zero."""
    if taps.is_meta:
        return [i - start for i in range(taps.shape[dim])]
    alive = (taps != 0).sum(dim=[d for d in range(4) if d != dim])
    return [int(i) - start for i in alive.nonzero().flatten()] or [0]


def _back(span: Span, window: Window) -> int:
    """Back padding that gives the window's output size: kernel and padding grow together."""
    return 2 * window.padding - window.reach + span.last


def _cut(taps: Tensor, h: Span, w: Span, rows: Blocks, cols: Blocks) -> Tensor:
    pads: list[int] = []
    for span, blocks, size in ((w, cols, taps.shape[3]), (h, rows, taps.shape[2])):
        start = blocks.lead * blocks.window.stride
        pads += [-(span.first + start), span.last + start + 1 - size]
    return F.pad(taps, pads)[:, :, :: h.step, :: w.step]


def _conv(
    cls: type[nn.Conv2d],
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> nn.Conv2d:
    o, c, kh, kw = kernel.shape
    conv = cls(c * groups, o, (kh, kw), stride, padding, dilation, groups, bias=bias is not None, device="meta")
    conv.weight = nn.Parameter(kernel.clone(memory_format=memory_format(weight)), weight.requires_grad)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return conv


def one_conv(layer: nn.Module) -> nn.Module:
    """A zero-padded conv as one conv that pads alike on both sides, its kernel completed with zeros.

    For code that knows plain convs only, such as one that folds norms into them; it costs the taps that are added.

    Args:
        layer: As :func:`fold` builds it; anything but a ``ZeroPad2d`` and a conv without dilation is returned as it is.

    Example:
        >>> one_conv(nn.Sequential(nn.ZeroPad2d((2, 1, 2, 1)), nn.Conv2d(1, 1, 4, stride=2, bias=False)))
        Conv2d(1, 1, kernel_size=(5, 5), stride=(2, 2), padding=(2, 2), bias=False)
    """
    parts = list(layer.children()) if type(layer) is nn.Sequential else []
    if [type(part) for part in parts] != [nn.ZeroPad2d, nn.Conv2d]:
        return layer
    pad, conv = cast(nn.ZeroPad2d, parts[0]), cast(nn.Conv2d, parts[1])
    if conv.dilation != (1, 1) or conv.padding != (0, 0):
        return layer
    left, right, top, bottom = pad.padding
    h, w = max(top, bottom), max(left, right)
    weight = F.pad(conv.weight.detach(), (w - left, w - right, h - top, h - bottom))
    new = _conv(nn.Conv2d, weight, conv.weight, conv.bias, pair(conv.stride), (h, w), (1, 1), conv.groups)
    return new.train(layer.training)
