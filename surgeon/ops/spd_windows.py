"""Reads a strided conv or pool as windows, and says why one can't be read so.

Kept apart from the layers because it is the only part that knows torch's and timm's classes; timm is imported only for
classes that are not torch's own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from surgeon.ops.space_to_depth import Window

Style = Literal["plain", "same", "standardized"]


def pair(value: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    """One number for both axes, or one for each."""
    if isinstance(value, int):
        return value, value
    return value[0], value[-1]


def conv_style(conv: nn.Conv2d) -> Style | None:
    """What the conv's forward does to its weight and padding; None if unknown, so that nothing may be assumed."""
    if "forward" in vars(conv):
        return None
    forward = type(conv).forward
    if forward is nn.Conv2d.forward:
        return "plain" if type(conv)._conv_forward is nn.Conv2d._conv_forward else None
    from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame

    if forward is Conv2dSame.forward:
        return "same"
    known = (StdConv2d.forward, StdConv2dSame.forward, ScaledStdConv2d.forward, ScaledStdConv2dSame.forward)
    return "standardized" if forward in known else None


def conv_windows(conv: nn.Conv2d) -> tuple[Window, Window]:
    """The windows of H and W. A padding mode other than zeros pads beforehand, so the windows then have no padding."""
    same = conv_style(conv) == "same" or bool(getattr(conv, "same_pad", False))
    padding = pad_pixels(conv) if padding_mode(conv) == "zeros" and not same else (0, 0)
    sizes = zip(pair(conv.kernel_size), pair(conv.stride), padding, pair(conv.dilation), strict=True)
    rows, cols = (Window(k, s, p, d, same) for k, s, p, d in sizes)
    return rows, cols


def pad_pixels(conv: nn.Conv2d) -> tuple[int, int]:
    """The padding in pixels; a strided conv's only padding by name is "valid"."""
    return (0, 0) if isinstance(conv.padding, str) else pair(conv.padding)


def padding_mode(conv: nn.Conv2d) -> str:
    """The padding mode that the conv's forward really uses: timm's classes always pad zeros."""
    return conv.padding_mode if conv_style(conv) == "plain" and any(pad_pixels(conv)) else "zeros"


def why_unknown(conv: nn.Module) -> str | None:
    """Why the kernel and padding that ``conv`` computes with cannot be told, as a verb phrase; None if they can."""
    name = type(conv).__name__
    if not isinstance(conv, nn.Conv2d):
        mixed = " whose kernel is mixed anew for every image" if name == "CondConv2d" else ""
        return f"is a {name}{mixed}, not a Conv2d with one kernel"
    if is_parametrized(conv):
        return f"is a {name} whose tensors are parametrized; remove the parametrization first"
    if isinstance(conv.weight, UninitializedParameter):
        return f"is a {name} whose weight has no shape before its first forward"
    if not isinstance(conv.weight, nn.Parameter):
        return f"is a {name} whose weight is computed by a hook (weight_norm, spectral_norm); remove the hook first"
    if conv_style(conv) is None:
        return f"is a {name} whose forward is not that of nn.Conv2d, so what it does to weight and padding is unknown"
    return None


def why_not_conv(conv: nn.Module) -> str | None:
    """Why no space-to-depth conv computes the same function, as a verb phrase; None if one does."""
    reason = why_unknown(conv)
    if reason is not None or not isinstance(conv, nn.Conv2d):
        return reason
    if max(pair(conv.stride)) == 1:
        return "has stride (1, 1), so there is no block to move into channels"
    if not all(_finite(t) for t in conv.parameters(recurse=False)):
        return "holds a weight or bias that is not finite, for which equality means nothing"
    return None


def _finite(value: Tensor) -> bool:
    if value.is_meta or isinstance(value, FakeTensor):
        return True  # no values to look at
    return bool(torch.isfinite(value).all())


def is_same_pool(pool: nn.Module) -> bool:
    """Whether the pool pads as TensorFlow does (timm's ``AvgPool2dSame`` and ``MaxPool2dSame``)."""
    if type(pool).forward in (nn.AvgPool2d.forward, nn.MaxPool2d.forward):
        return False
    from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame

    return type(pool).forward in (AvgPool2dSame.forward, MaxPool2dSame.forward)


def pool_windows(pool: nn.AvgPool2d | nn.MaxPool2d) -> tuple[Window, Window]:
    """The windows of H and W."""
    same = is_same_pool(pool)
    padding = (0, 0) if same else pair(pool.padding)
    dilation = pair(getattr(pool, "dilation", 1))
    sizes = zip(pair(pool.kernel_size), pair(pool.stride), padding, dilation, strict=True)
    rows, cols = (Window(k, s, p, d, same, bool(pool.ceil_mode)) for k, s, p, d in sizes)
    return rows, cols


def why_not_pool(pool: nn.Module, base: type[nn.AvgPool2d] | type[nn.MaxPool2d]) -> str | None:
    """Why no space-to-depth layer computes the same function, as a verb phrase; None if one does."""
    name = type(pool).__name__
    if isinstance(pool, nn.LPPool2d):
        return f"is a {name}: it takes a root of sums of powers, which no conv and no maximum computes"
    if not isinstance(pool, base):
        return f"is a {name}, not an nn.{base.__name__}"
    if "forward" in vars(pool) or not (type(pool).forward is base.forward or is_same_pool(pool)):
        return f"is a {name} whose forward is not that of nn.{base.__name__}"
    if getattr(pool, "return_indices", False) and not is_same_pool(pool):  # MaxPool2dSame sets it by mistake, unused
        return "returns the indices of the maxima (return_indices=True), which a conv has not"
    if max(pair(pool.stride)) == 1:
        return "has stride (1, 1), so there is no block to move into channels"
    return None
