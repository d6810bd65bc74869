"""Pre-activation ResNets with and without norm, and nets whose every block has a true identity skip; with timm.

Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996: the nets are ResNets V2 (He et al.
2016b) on 32-pixel images, by default without norm. ``blocknet_42`` and ``blocknet_44`` are Table 2's "42" and "44": two
and four stages of four blocks, a conv that halves the map between stages, so that every block can be replaced.
Without norm the last conv of each block starts smaller, by the root of the number of blocks, which the paper does not
say; deep nets would not train else. No layer starts at zero.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models import register_model
from torch import Tensor, nn

from surgeon.reference_nets.base import ReferenceNet, batch_norm, build, configs

__all__ = ["BlockNet", "PreActResNet"]


class PreActBlock(nn.Module):
    """Norm, activation, conv, two or three times, added to the input or to its projection.

    Args:
        before: Channels of the input.
        width: Channels of the 3x3 convs.
        stride: Of the first 3x3 conv.
        bottleneck: 1x1, 3x3, 1x1 convs with four times the channels at the end, instead of two 3x3.
        norm: BatchNorm; without it convs have biases.

    Shape:
        - Input: (N, before, H, W)
        - Output: (N, width or 4 * width, H/stride, W/stride)

    Example:
        >>> import torch
        >>> PreActBlock(4, 8, 2)(torch.rand(1, 4, 6, 6)).shape
        torch.Size([1, 8, 3, 3])
    """

    def __init__(self, before: int, width: int, stride: int = 1, bottleneck: bool = False, norm: bool = True) -> None:
        super().__init__()
        after = 4 * width if bottleneck else width
        kernels = ((before, width, 1, 1), (width, width, 3, stride), (width, after, 1, 1))
        plain = ((before, width, 3, stride), (width, after, 3, 1))
        self.norms, self.convs = nn.ModuleList(), nn.ModuleList()
        for source, target, kernel, step in kernels if bottleneck else plain:
            self.norms.append(batch_norm(source, norm))
            self.convs.append(nn.Conv2d(source, target, kernel, step, kernel // 2, bias=not norm))
        self.act = nn.ReLU()
        same = before == after and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The projection reads what the first conv reads, as in Fig. 7."""
        y = self.act(self.norms[0](x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.convs[0](y)
        for norm, conv in list(zip(self.norms, self.convs, strict=True))[1:]:
            y = conv(self.act(norm(y)))
        return cast(Tensor, y + shortcut)


class _Finished(ReferenceNet):
    """What both kinds of nets end with."""

    def _end(self, features: int, norm: bool, global_pool: str) -> None:
        self.blocks.append(nn.Sequential(batch_norm(features, norm), nn.ReLU()))
        self._finish(features, global_pool)
        found = [module for module in self.modules() if isinstance(module, PreActBlock)]
        if not norm:
            for block in found:
                cast(nn.Conv2d, block.convs[-1]).weight.data.mul_(len(found) ** -0.5)


class PreActResNet(_Finished):
    """A 3x3 stem and stages of pre-activation blocks.

    Args:
        layers: Blocks of each stage.
        bottleneck: Bottleneck blocks.
        norm: BatchNorm; without it convs have biases.
        width: Channels of the first stage.
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier.
        drop_rate: Dropout before the classifier, 0 to 1.

    Shape:
        - Input: (N, in_chans, H, W)
        - Output: (N, num_classes)

    Example:
        >>> import torch
        >>> PreActResNet((1, 1), False, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        bottleneck: bool,
        norm: bool = True,
        width: int = 64,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        self.stem = nn.Conv2d(in_chans, width, 3, padding=1, bias=not norm)
        self.blocks, before = nn.Sequential(), width
        self.feature_info = []
        for stage, count in enumerate(layers):
            planes, parts = width * 2**stage, []
            for i in range(count):
                stride = 2 if stage and not i else 1
                parts.append(PreActBlock(before, planes, stride, bottleneck, norm))
                before = 4 * planes if bottleneck else planes
            self.blocks.append(nn.Sequential(*parts))
            self.feature_info.append({"num_chs": before, "reduction": 2**stage, "module": f"blocks.{stage}"})
        self._end(before, norm, global_pool)


class BlockNet(_Finished):
    """Stages of identity-skip blocks, a strided conv between them.

    Args:
        stages: How many.
        blocks: Of each stage.
        norm: BatchNorm; without it convs have biases.
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
        >>> BlockNet(2, 1, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        stages: int,
        blocks: int = 4,
        norm: bool = False,
        width: int = 64,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        self.stem = nn.Conv2d(in_chans, width, 3, padding=1)
        self.blocks, self.feature_info = nn.Sequential(), []
        for stage in range(stages):
            channels = width * 2**stage
            down = [nn.Conv2d(channels // 2, channels, 3, 2, 1)] if stage else []
            parts = [PreActBlock(channels, channels, norm=norm) for _ in range(blocks)]
            self.blocks.append(nn.Sequential(*down, *parts))
            self.feature_info.append({"num_chs": channels, "reduction": 2**stage, "module": f"blocks.{stage}"})
        self._end(channels, norm, global_pool)


LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
NAMES = [f"preact_resnet{depth}{kind}" for depth in LAYERS for kind in ("", "_plain")]
default_cfgs = configs([*NAMES, "blocknet_42", "blocknet_44"], 32, "stem")


def _register(depth: int, norm: bool) -> None:
    name = f"preact_resnet{depth}{'' if norm else '_plain'}"

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        shape = {"layers": LAYERS[depth], "bottleneck": depth >= 50, "norm": norm}
        return build(PreActResNet, name, pretrained, 4, **{**shape, **kwargs})

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"Build the pre-activation ResNet-{depth} {'with' if norm else 'without'} norm."
    globals()[name] = register_model(entry)


for _depth in LAYERS:
    _register(_depth, norm=True)
    _register(_depth, norm=False)


@register_model  # type: ignore[untyped-decorator]
def blocknet_42(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the net "42": two stages of four identity-skip blocks."""
    return build(BlockNet, "blocknet_42", pretrained, 2, **{"stages": 2, **kwargs})


@register_model  # type: ignore[untyped-decorator]
def blocknet_44(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the net "44": four stages of four identity-skip blocks."""
    return build(BlockNet, "blocknet_44", pretrained, 4, **{"stages": 4, **kwargs})
