"""VGG-16 in small, registered with timm as ``digits_vgg16``: thirteen convs that digits train in seconds.

For experiments whose selections count the layers of VGG-16 ("the last 31%" is four of thirteen).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from surgeon.reference_nets.digits import DigitsConvNet, _conv

__all__ = ["DigitsVGG16"]

STAGES = ((8, 2), (16, 2), (24, 3), (32, 3), (32, 3))  # channels, convs; a max pool behind each


class DigitsVGG16(DigitsConvNet):
    """VGG-16's thirteen 3x3 convs and five max pools with 8 to 32 channels, BatchNorm, and one linear layer.

    Args:
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier, ``"avg"`` or ``"max"``; ``""`` keeps the feature map.
        drop_rate: Dropout before the classifier, 0 to 1.

    Shape:
        - Input: (N, in_chans, H, W), H and W >= 32
        - Output: (N, num_classes)

    Example:
        >>> DigitsVGG16()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 1, global_pool: str = "avg", drop_rate: float = 0.0
    ) -> None:
        nn.Module.__init__(self)
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.features, self.feature_info = vgg_stages(STAGES, in_chans)
        self.num_features = self.head_hidden_size = STAGES[-1][0]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (N, 32, H/32, W/32)."""
        return cast(torch.Tensor, self.features(x))


def vgg_stages(stages: Sequence[tuple[int, int]], in_chans: int) -> tuple[nn.Sequential, list[dict[str, Any]]]:
    """Convs of 3x3 with BatchNorm, a max pool behind each stage; and what timm's ``feature_info`` says of them.

    Args:
        stages: Channels and number of convs of each.
        in_chans: Channels of the image.
    """
    layers: list[nn.Module] = []
    info: list[dict[str, Any]] = []
    before = in_chans
    for stage, (channels, convs) in enumerate(stages):
        for _ in range(convs):
            layers.append(_conv(before, channels, 1, norm=True))
            before = channels
        layers.append(nn.MaxPool2d(2))
        info.append({"num_chs": channels, "reduction": 2 ** (stage + 1), "module": f"features.{len(layers) - 1}"})
    return nn.Sequential(*layers), info


default_cfgs = generate_default_cfgs(
    {
        "digits_vgg16.untrained": {
            "num_classes": 10,
            "input_size": (1, 32, 32),
            "pool_size": (1, 1),
            "crop_pct": 1.0,
            "mean": (0.0,),
            "std": (1.0,),
            "first_conv": "features.0.0",
            "classifier": "fc",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]
def digits_vgg16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VGG-16 in small, 72 thousand parameters."""
    features = {"out_indices": (0, 1, 2, 3, 4), "feature_cls": "fx"}
    model = build_model_with_cfg(DigitsVGG16, "digits_vgg16", pretrained, feature_cfg=features, **kwargs)
    return cast(nn.Module, model)
