"""FE-Net, registered with timm: 1x1 convs, sparse shifts and average pooling, channels reused in growing slices.

Chen, Xie, Zhang and Pu, All You Need is a Few Shifts, CVPR 2019, arXiv:1903.05285, section 4 and Table 4. The text
widens the *input* of a unit six times (``expand="in"``), and so do the printed costs; the released code widens by the
output (``expand="out"``, last conv 1932 channels at any width), which costs a third more than its README says. Table
4's last conv (1380 channels) gives 3.5M parameters and 300M multiply-adds; the printed 3.7M and 301M need about 1536.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from timm.models import register_model
from torch import Tensor, nn

from surgeon.errors import RecipeError
from surgeon.ops.shift_layer import Mode, SparseShift2d
from surgeon.reference_nets.base import ReferenceNet, build, configs

__all__ = ["FENet"]

Spatial = Mode | Literal["depthwise"]
BLOCKS = ((3, 4, 2), (4, 8, 2), (4, 8, 1), (4, 16, 2), (3, 16, 1))  # units, channels over 16 * width, stride


class SE(nn.Module):
    """Squeeze and excitation without biases.

    Example:
        >>> SE(16)(torch.rand(1, 16, 4, 4)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.conv1, self.conv2 = nn.Conv2d(channels, narrow, 1, bias=False), nn.Conv2d(narrow, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel by a gate that reads the means of all."""
        gate = torch.sigmoid(self.conv2(torch.relu(self.conv1(x.mean((2, 3), keepdim=True)))))
        return x * gate


class Unit(nn.Module):
    """1x1 conv, shift (or average pooling, or a depthwise conv), 1x1 conv.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        middle: Channels in between.
        stride: 2 pools in the place of the shift (IB-Pool).
        residual: Whether the input is added (Res-IB-SSL).
        spatial: Mode of the shift, or "depthwise" for a 3x3 conv in its place.
        se: Squeeze and excitation: "v1" on the output, "v2" on the channels in between, None for none.

    Shape:
        - Input: (N, before, H, W)
        - Output: (N, after, H/stride, W/stride)

    Example:
        >>> Unit(4, 8, 24, 2)(torch.rand(1, 4, 6, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self,
        before: int,
        after: int,
        middle: int,
        stride: int = 1,
        residual: bool = False,
        spatial: Spatial = "sparse",
        se: Literal["v1", "v2"] | None = None,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.conv1, self.norm1 = nn.Conv2d(before, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.act = nn.ReLU(inplace=True)
        self.spatial = nn.AvgPool2d(2) if stride == 2 else _spatial(middle, spatial)
        self.se2 = SE(middle) if se == "v2" else nn.Identity()
        self.conv2, self.norm2 = nn.Conv2d(middle, after, 1, bias=False), nn.BatchNorm2d(after)
        self.se1 = SE(after) if se == "v1" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Nothing behind the addition."""
        y = self.spatial(self.act(self.norm1(self.conv1(x))))
        y = self.se1(self.norm2(self.conv2(self.se2(y))))
        return cast(Tensor, x + y if self.residual else y)


def _spatial(channels: int, spatial: Spatial) -> nn.Module:
    if spatial == "depthwise":
        return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return SparseShift2d(channels, spatial)


class FEBlock(nn.Module):
    """Units on the last 1, 2, 4 ... parts of the channels, each result written back, the last unit on all of them.

    Shape:
        - Input: (N, C, H, W), C divisible by two to the number of units less one
        - Output: (N, after, H/stride, W/stride)

    Example:
        >>> FEBlock([Unit(2, 2, 12, residual=True), Unit(4, 4, 24, residual=True), Unit(8, 8, 48)])(
        ...     torch.rand(1, 8, 6, 6)
        ... ).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(self, units: list[Unit]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, x: Tensor) -> Tensor:
        """Section 4.1, Fig. 4."""
        width = x.shape[1] >> (len(self.units) - 1)
        for unit in list(self.units)[:-1]:
            x = torch.cat([x[:, :-width], unit(x[:, -width:])], 1)
            width *= 2
        return cast(Tensor, self.units[-1](x))


class FENet(ReferenceNet):
    """A strided 3x3 stem, two units, five FE-blocks, a 1x1 conv.

    Args:
        width: Multiplies all channels but those of the last conv; 16 times it, rounded down, must be even.
        last: Channels of the last conv.
        expand: Whether units widen their "in"put or by their "out"put, as the released code does.
        spatial: Mode of the shifts; "depthwise" puts 3x3 depthwise convs in their place.
        se: Squeeze and excitation, "v1" or "v2", reduction 8.
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier, 0 to 1.

    Shape:
        - Input: (N, in_chans, H, W), H and W divisible by 32
        - Output: (N, num_classes)

    Raises:
        RecipeError: For a setting with no such value, or a width whose channels cannot be split.

    Example:
        >>> FENet(last=64, num_classes=10)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        width: float = 1.0,
        last: int = 1380,
        expand: Literal["in", "out"] = "in",
        spatial: Spatial = "sparse",
        se: Literal["v1", "v2"] | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        base = int(16 * width)
        _check(width, expand, se)

        def unit(before: int, after: int, t: int, stride: int = 1, residual: bool = False) -> Unit:
            middle = t * (before if expand == "in" else after)
            return Unit(before, after, middle, stride, residual, spatial, se)

        self.stem = nn.Sequential(nn.Conv2d(in_chans, base, 3, 2, 1, bias=False), nn.BatchNorm2d(base))
        blocks: list[nn.Module] = [unit(base, base, 4), unit(base, 2 * base, 5, 2)]
        before = 2 * base
        for units, times, stride in BLOCKS:
            blocks.append(_fe_block(unit, units, before, times * base, stride))
            before = times * base
        blocks.append(nn.Sequential(nn.Conv2d(before, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU()))
        self.blocks = nn.Sequential(*blocks)
        stages = ((base, 2, 0), (2 * base, 4, 1), (4 * base, 8, 2), (8 * base, 16, 4), (16 * base, 32, 6))
        self.feature_info = [{"num_chs": c, "reduction": r, "module": f"blocks.{i}"} for c, r, i in stages]
        self._finish(last, global_pool)


def _check(width: float, expand: str, se: str | None) -> None:
    base = int(16 * width)
    if base < 2 or base % 2:
        raise RecipeError(
            f"FENet: width={width} makes {base} channels, of which FE-blocks split twice as many in four: they must be "
            f"even and positive; use {max(base + base % 2, 2) / 16}"
        )
    for name, value, allowed in (("expand", expand, ("in", "out")), ("se", se, ("v1", "v2", None))):
        if value not in allowed:
            raise RecipeError(f"FENet: {name}={value!r} is unknown; use {', '.join(map(repr, allowed))}")


def _fe_block(unit: Callable[..., Unit], units: int, before: int, after: int, stride: int) -> FEBlock:
    parts = [before >> (units - 1 - i) for i in range(units - 1)]
    return FEBlock([*(unit(part, part, 6, residual=True) for part in parts), unit(before, after, 6, stride)])


NETS: dict[str, dict[str, Any]] = {
    "fenet_100": {},
    "fenet_138": {"width": 1.375, "last": 1932},
    "fenet_138_se_v1": {"width": 1.375, "last": 1932, "se": "v1"},
    "fenet_138_se_v2": {"width": 1.375, "last": 1932, "se": "v2"},
    "fenet_100_dw": {"spatial": "depthwise"},
    "fenet_138_dw": {"width": 1.375, "last": 1932, "spatial": "depthwise"},
}
default_cfgs = configs(list(NETS), 224, "stem.0", num_classes=1000)


def _fenet(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build(FENet, name, pretrained, 5, **{**NETS[name], **kwargs})


@register_model  # type: ignore[untyped-decorator]
def fenet_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build FE-Net 1.0x as Table 4 has it."""
    return _fenet("fenet_100", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def fenet_138(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build FE-Net 1.375x."""
    return _fenet("fenet_138", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def fenet_138_se_v1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build FE-Net 1.375x with squeeze and excitation behind each unit."""
    return _fenet("fenet_138_se_v1", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def fenet_138_se_v2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build FE-Net 1.375x with squeeze and excitation inside each unit."""
    return _fenet("fenet_138_se_v2", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def fenet_100_dw(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build FE-Net 1.0x with depthwise convs in the place of shifts."""
    return _fenet("fenet_100_dw", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def fenet_138_dw(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build FE-Net 1.375x with depthwise convs in the place of shifts."""
    return _fenet("fenet_138_dw", pretrained, **kwargs)
