"""A small VGG that flattens its last map, registered with timm as ``digits_vgg_flat``: its classifier knows places.

For experiments on translation: the classifier reads 8x8 positions of 32 channels, as VGG-16's reads 8x8 of 512 where
256-pixel images are classified without pooling, so that averaging the map first saves the same share of its weights.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from surgeon.reference_nets.digits import DigitsConvNet
from surgeon.reference_nets.digits_vgg import vgg_stages

__all__ = ["DigitsVGGFlat"]

STAGES = ((8, 2), (16, 2), (32, 3))  # channels, convs; a max pool behind each
FLAT = "flatten"


class DigitsVGGFlat(DigitsConvNet):
    """Seven 3x3 convs and three max pools with BatchNorm; the map is flattened, and one linear layer reads it.

    Args:
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        global_pool: ``"flatten"``, or a pooling of timm's, ``"avg"`` or ``"max"``.
        drop_rate: Dropout before the classifier, 0 to 1.
        img_size: Height and width of the image in pixels, which the flattened map depends on; multiples of 8.

    Shape:
        - Input: (N, in_chans, H, W), as img_size says
        - Output: (N, num_classes)

    Example:
        >>> net = DigitsVGGFlat()
        >>> net(torch.zeros(2, 1, 64, 64)).shape, net.fc.weight.numel()
        (torch.Size([2, 10]), 20480)

    Source:
        The classifier of the paper's baseline, arXiv:2604.27870: 8 x 8 x 512 -> 160, 5.2 million weights, 98% of which
        global average pooling saves.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = FLAT,
        drop_rate: float = 0.0,
        img_size: int | tuple[int, int] = 64,
    ) -> None:
        nn.Module.__init__(self)
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.features, self.feature_info = vgg_stages(STAGES, in_chans)
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.num_features, self.positions = STAGES[-1][0], math.prod(side // 2 ** len(STAGES) for side in sides)
        self.reset_classifier(num_classes, global_pool)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draw a new head for another number of classes, and change the pooling where one is named."""
        pool = global_pool if global_pool is not None else getattr(self.global_pool, "pool_type", FLAT)
        self.num_classes, flat = num_classes, pool == FLAT
        self.head_hidden_size = self.num_features * (self.positions if flat else 1)
        if flat:
            self.global_pool: nn.Module = nn.Flatten()
            self.fc: nn.Module = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        else:
            self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (N, 32, H/8, W/8)."""
        return cast(torch.Tensor, self.features(x))


default_cfgs = generate_default_cfgs(
    {
        "digits_vgg_flat.untrained": {
            "num_classes": 10,
            "input_size": (1, 64, 64),
            "fixed_input_size": True,
            "pool_size": (8, 8),
            "crop_pct": 1.0,
            "mean": (0.0,),
            "std": (1.0,),
            "first_conv": "features.0.0",
            "classifier": "fc",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]
def digits_vgg_flat(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the small VGG with a flattened map, 48 thousand parameters."""
    features = {"out_indices": (0, 1, 2), "feature_cls": "fx"}
    model = build_model_with_cfg(DigitsVGGFlat, "digits_vgg_flat", pretrained, feature_cfg=features, **kwargs)
    return cast(nn.Module, model)
