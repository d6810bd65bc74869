"""ResNets for 32-pixel images, registered with timm: a 3x3 stem without max pool, timm's own blocks.

``resnet18_cifar``, ``resnet50_cifar`` and ``resnet152_cifar`` are those of Fan et al. (arXiv:2002.01827) and the
baselines of SPD-Conv; ``resnet20_cifar`` and ``resnet56_cifar`` the three-stage nets of He et al. with projected
shortcuts, to which Chen et al. (All You Need is a Few Shifts, CVPR 2019) compare: 272,474 and 855,770 parameters.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models.resnet import BasicBlock, Bottleneck, downsample_conv
from torch import nn

from surgeon.reference_nets.base import ReferenceNet, build, configs

__all__ = ["ResNetCifar"]

Block = type[BasicBlock] | type[Bottleneck]


class ResNetCifar(ReferenceNet):
    """A 3x3 conv at full resolution, then stages of residual blocks; every stage but the first halves the map.

    Args:
        block: Timm's ``BasicBlock`` or ``Bottleneck``.
        layers: Blocks of each stage.
        width: Channels of the first stage; each further one doubles them.
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier, 0 to 1.

    Shape:
        - Input: (N, in_chans, H, W)
        - Output: (N, num_classes)

    Example:
        >>> import torch
        >>> ResNetCifar(BasicBlock, (1, 1), 8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        block: Block,
        layers: tuple[int, ...],
        width: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.feature_info = [{"num_chs": width, "reduction": 1, "module": "stem"}]
        stages, before = [], width
        for stage, count in enumerate(layers):
            planes = width * 2**stage
            stages.append(_stage(block, before, planes, count, 1 if stage == 0 else 2))
            before = planes * block.expansion
            self.feature_info.append({"num_chs": before, "reduction": 2**stage, "module": f"blocks.{stage}"})
        self.blocks = nn.Sequential(*stages)
        self._finish(before, global_pool)


def _stage(block: Block, before: int, planes: int, count: int, stride: int) -> nn.Sequential:
    after = planes * block.expansion
    downsample = downsample_conv(before, after, 1, stride) if stride > 1 or before != after else None
    first = block(before, planes, stride, downsample)
    return nn.Sequential(first, *(block(after, planes) for _ in range(count - 1)))


NETS: dict[str, tuple[Block, tuple[int, ...], int]] = {
    "resnet18_cifar": (BasicBlock, (2, 2, 2, 2), 64),
    "resnet50_cifar": (Bottleneck, (3, 4, 6, 3), 64),
    "resnet152_cifar": (Bottleneck, (3, 8, 36, 3), 64),
    "resnet20_cifar": (BasicBlock, (3, 3, 3), 16),
    "resnet56_cifar": (BasicBlock, (9, 9, 9), 16),
}
default_cfgs = configs(list(NETS), 32, "stem.0")


def _resnet(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    block, layers, width = NETS[name]
    shape = {"block": block, "layers": layers, "width": width}
    return build(ResNetCifar, name, pretrained, len(layers) + 1, **{**shape, **kwargs})


@register_model  # type: ignore[untyped-decorator]
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build ResNet-18 with a 3x3 stem."""
    return _resnet("resnet18_cifar", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build ResNet-50 with a 3x3 stem."""
    return _resnet("resnet50_cifar", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet152_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build ResNet-152 with a 3x3 stem."""
    return _resnet("resnet152_cifar", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the ResNet-20 of CIFAR."""
    return _resnet("resnet20_cifar", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the ResNet-56 of CIFAR."""
    return _resnet("resnet56_cifar", pretrained, **kwargs)
