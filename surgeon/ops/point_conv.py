"""A conv seen from one position: the 1x1 conv that takes the place of a spatial one where maps have a single pixel."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from surgeon.ops.spd_conv import standardize
from surgeon.ops.spd_windows import conv_style

Init = Literal["sum", "center", "fresh"]


def why_not_point(conv: nn.Module) -> str | None:
    """Why no 1x1 conv can start from ``conv``; None where one can."""
    if not isinstance(conv, nn.Conv2d):
        return f"is a {type(conv).__name__}, no conv"
    if conv_style(conv) is None:
        return f"is a {type(conv).__name__}, whose forward computes its kernel in a way of its own"
    return None


def point_conv(conv: nn.Module, init: Init = "sum", seed: int = 0) -> nn.Conv2d:
    """A 1x1 conv of the same channels and groups, stride 1, started from the taps of ``conv``.

    Args:
        conv: A conv for which :func:`why_not_point` has no reason; a standardised kernel is taken as standardised.
        init: "sum" of all taps: what ``conv`` answers on a constant map, borders aside; the "center" tap (the upper
            left one of the four in the middle of an even kernel); or "fresh", as ``nn.Conv2d`` draws it.
        seed: For "fresh".

    Returns:
        On the device and in the precision of ``conv``.

    Example:
        >>> conv = nn.Conv2d(4, 6, 3, padding=1)
        >>> ones = torch.ones(1, 4, 9, 9)
        >>> torch.allclose(point_conv(conv)(ones)[..., 4, 4], conv(ones)[..., 4, 4], atol=1e-6)
        True
    """
    conv = cast(nn.Conv2d, conv)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        new = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            kernel_size=1,
            groups=conv.groups,
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        weight, bias = new.weight.detach(), None if new.bias is None else new.bias.detach()
        if init != "fresh":
            weight, bias = _taps(conv, init), None if conv.bias is None else conv.bias.detach().clone()
    new.weight = nn.Parameter(weight, conv.weight.requires_grad)
    new.bias = None if bias is None or conv.bias is None else nn.Parameter(bias, conv.bias.requires_grad)
    return new


def _taps(conv: nn.Conv2d, init: Init) -> Tensor:
    weight = conv.weight.detach()
    if conv_style(conv) == "standardized":
        weight = standardize(conv)
    if init == "sum":
        return weight.sum((2, 3), keepdim=True)
    row, column = ((n - 1) // 2 for n in weight.shape[2:])
    return weight[:, :, row : row + 1, column : column + 1].clone()
