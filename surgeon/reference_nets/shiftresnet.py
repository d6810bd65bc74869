"""ShiftResNet-20 and -56 for 32-pixel images, registered with timm: no spatial conv but the stem.

Wu et al., Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions, CVPR 2018, as Chen et al. (All You
Need is a Few Shifts, CVPR 2019) use it: the 1x1 convs widen the input six times, maps are halved by average pooling,
the shortcut of a halved map is pooled and filled up with zeros. With grouped shift the counts are those printed (0.16M
and 0.55M); learnt offsets add two numbers per shifted channel. The papers leave the shortcut open: this reading alone
matches all four printed figures, multiply-adds without the stem.
"""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn

from surgeon.ops.shift_layer import Mode, SparseShift2d
from surgeon.reference_nets.base import ReferenceNet, build, configs

__all__ = ["ShiftResNet"]


class CSC(nn.Module):
    """1x1 conv, shift, 1x1 conv, and a shortcut without parameters.

    Args:
        before: Channels of the input; six times as many are shifted.
        after: Channels of the output.
        stride: 2 halves the map by average pooling behind the shift.
        mode: Of the shift.

    Shape:
        - Input: (N, before, H, W)
        - Output: (N, after, H/stride, W/stride)

    Example:
        >>> import torch
        >>> CSC(4, 8, 2, "grouped")(torch.rand(1, 4, 6, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(self, before: int, after: int, stride: int, mode: Mode, expansion: int = 6) -> None:
        super().__init__()
        middle = expansion * before
        self.conv1, self.norm1 = nn.Conv2d(before, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.act = nn.ReLU(inplace=True)
        self.shift = SparseShift2d(middle, mode)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.conv2, self.norm2 = nn.Conv2d(middle, after, 1, bias=False), nn.BatchNorm2d(after)
        self.fill = after - before

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut; nothing behind the addition."""
        y = self.norm2(self.conv2(self.pool(self.shift(self.act(self.norm1(self.conv1(x)))))))
        shortcut = self.pool(x)
        return cast(Tensor, y + (F.pad(shortcut, (0, 0, 0, 0, 0, self.fill)) if self.fill else shortcut))


class ShiftResNet(ReferenceNet):
    """A 3x3 stem of 16 channels, three stages of CSC modules with 16, 32 and 64 channels.

    Args:
        blocks: Of each stage.
        mode: Of the shifts: "grouped" (fixed), "active" or "sparse" (learnt).
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier, 0 to 1.

    Shape:
        - Input: (N, in_chans, H, W), H and W divisible by 4
        - Output: (N, num_classes)

    Example:
        >>> import torch
        >>> ShiftResNet(1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        blocks: int,
        mode: Mode = "grouped",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.feature_info, stages, before = [], [], 16
        for stage, width in enumerate((16, 32, 64)):
            first = CSC(before, width, 1 if stage == 0 else 2, mode)
            stages.append(nn.Sequential(first, *(CSC(width, width, 1, mode) for _ in range(blocks - 1))))
            before = width
            self.feature_info.append({"num_chs": width, "reduction": 2**stage, "module": f"blocks.{stage}"})
        self.blocks = nn.Sequential(*stages)
        self._finish(before, global_pool)


default_cfgs = configs(["shiftresnet20", "shiftresnet56"], 32, "stem.0")


@register_model  # type: ignore[untyped-decorator]
def shiftresnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build ShiftResNet-20: three CSC modules a stage."""
    return build(ShiftResNet, "shiftresnet20", pretrained, 3, **{"blocks": 3, **kwargs})


@register_model  # type: ignore[untyped-decorator]
def shiftresnet56(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build ShiftResNet-56: nine CSC modules a stage."""
    return build(ShiftResNet, "shiftresnet56", pretrained, 3, **{"blocks": 9, **kwargs})
