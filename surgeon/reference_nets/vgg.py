"""VGG nets without strided convs, registered with timm: ``vgg16_cifar``, and plain VGG-11, 13, 16 and 19.

``vgg16_cifar`` is the net of Fan et al. (GCPR 2020, arXiv:2002.01827): thirteen convs with BatchNorm, pooled to one
position, 512-4096-4096-classes; 37.70M parameters with 1,000 classes (Table 2). The plain ones are those of Zhang et
al. (Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996): no norm by default, stage by stage.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models import register_model
from torch import Tensor, nn

from surgeon.errors import RecipeError
from surgeon.reference_nets.base import ReferenceNet, batch_norm, build, configs

__all__ = ["VGG"]

CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(ReferenceNet):
    """Five stages of 3x3 convs, a 2x2 max pool behind each, and fully connected layers.

    Args:
        convs: Of each stage.
        widths: Channels of each stage.
        fully_connected: Width of the two hidden fully connected layers; 0 for none.
        norm: BatchNorm after each conv.
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        global_pool: Pooling before the fully connected layers.
        drop_rate: Dropout behind each hidden layer, 0 to 1.

    Shape:
        - Input: (N, in_chans, H, W), H and W at least 32
        - Output: (N, num_classes)

    Raises:
        RecipeError: For a pooling that doubles the channels, which the hidden layers are not built for.

    Example:
        >>> import torch
        >>> VGG(widths=(8, 8, 8, 8, 8), fully_connected=16)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        convs: tuple[int, ...] = CONVS[16],
        widths: tuple[int, ...] = WIDTHS,
        fully_connected: int = 4096,
        norm: bool = True,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        _check_pool(global_pool, fully_connected)
        stages, before = [], in_chans
        self.feature_info = []
        for stage, (count, width) in enumerate(zip(convs, widths, strict=True)):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers.append(conv_block(before, width, norm))
                before = width
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
            self.feature_info.append({"num_chs": width, "reduction": 2 ** (stage + 1), "module": f"blocks.{stage}"})
        self.stem, self.blocks = nn.Identity(), nn.Sequential(*stages)
        self.fc1 = nn.Linear(before, fully_connected) if fully_connected else nn.Identity()
        self.fc2 = nn.Linear(fully_connected, fully_connected) if fully_connected else nn.Identity()
        self.act = nn.ReLU() if fully_connected else nn.Identity()
        self._finish(before, global_pool, fully_connected)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draw a new classifier for another number of classes, and change the pooling where one is named."""
        _check_pool(global_pool, self.head_hidden_size if isinstance(self.fc1, nn.Linear) else 0)
        super().reset_classifier(num_classes, global_pool)

    def hidden(self, x: Tensor) -> Tensor:
        """The two hidden fully connected layers; a map that is not pooled stays as it is."""
        if not self.global_pool.pool_type:
            return x
        x = nn.functional.dropout(self.act(self.fc1(x)), self.drop_rate, self.training)
        return cast(Tensor, self.act(self.fc2(x)))


def _check_pool(global_pool: str | None, fully_connected: int) -> None:
    if fully_connected and "cat" in (global_pool or ""):
        raise RecipeError(
            f"global_pool={global_pool!r} doubles the channels, which the hidden layers of {fully_connected} are not "
            "built for; use 'avg', 'max' or 'avgmax', or fully_connected=0"
        )


def conv_block(before: int, after: int, norm: bool) -> nn.Sequential:
    """A 3x3 conv with bias, as the original VGG has them also with BatchNorm."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), batch_norm(after, norm), nn.ReLU())


default_cfgs = configs(["vgg16_cifar", *(f"vgg{depth}_plain" for depth in CONVS)], 32, "blocks.0.0.0")


def _vgg(name: str, depth: int, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build(VGG, name, pretrained, 5, **{"convs": CONVS[depth], **kwargs})


@register_model  # type: ignore[untyped-decorator]
def vgg16_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VGG-16 with BatchNorm, 512-4096-4096-classes, for small images."""
    return _vgg("vgg16_cifar", 16, pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def vgg11_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VGG-11 without norm."""
    return _vgg("vgg11_plain", 11, pretrained, **{"norm": False, **kwargs})


@register_model  # type: ignore[untyped-decorator]
def vgg13_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VGG-13 without norm."""
    return _vgg("vgg13_plain", 13, pretrained, **{"norm": False, **kwargs})


@register_model  # type: ignore[untyped-decorator]
def vgg16_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VGG-16 without norm."""
    return _vgg("vgg16_plain", 16, pretrained, **{"norm": False, **kwargs})


@register_model  # type: ignore[untyped-decorator]
def vgg19_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VGG-19 without norm."""
    return _vgg("vgg19_plain", 19, pretrained, **{"norm": False, **kwargs})
