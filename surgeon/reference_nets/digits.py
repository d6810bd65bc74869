"""A small convnet for scikit-learn's digits, registered with timm as ``digits_convnet`` and ``digits_convnet_nobn``.

Kept in `surgeon` because demos, examples and tests need one real, quickly trained network whose downsampling is all
of the strided kind, and no published timm network is that small.
"""

from typing import Any, cast

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

__all__ = ["DigitsConvNet"]


def _conv(in_chans: int, out_chans: int, stride: int, norm: bool) -> nn.Sequential:
    conv = nn.Conv2d(in_chans, out_chans, 3, stride, padding=1, bias=not norm)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chans) if norm else nn.Identity(), nn.ReLU())


class DigitsConvNet(nn.Module):
    """Classify small images of digits with three strided layers: a stem conv, a max pool and a conv.

    Behaves as a timm classifier: ``forward_features``, ``forward_head``, ``reset_classifier``, ``feature_info``.

    Args:
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        global_pool: Pooling before the classifier, ``"avg"`` or ``"max"``; ``""`` keeps the feature map.
        drop_rate: Dropout before the classifier, 0 to 1.
        norm: BatchNorm after each conv; without it the convs have a bias.

    Shape:
        - Input: (N, in_chans, H, W), H and W >= 8
        - Output: (N, num_classes)

    Example:
        >>> DigitsConvNet()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.stem = _conv(in_chans, 16, 2, norm)  # (N, 16, H/2, W/2)
        self.stage1 = nn.Sequential(_conv(16, 32, 1, norm), nn.MaxPool2d(3, 2, padding=1))  # (N, 32, H/4, W/4)
        self.stage2 = nn.Sequential(_conv(32, 56, 1, norm), _conv(56, 72, 2, norm))  # (N, 72, H/8, W/8)
        self.num_features = self.head_hidden_size = 72
        self.feature_info = [
            {"num_chs": 16, "reduction": 2, "module": "stem"},
            {"num_chs": 32, "reduction": 4, "module": "stage1"},
            {"num_chs": 72, "reduction": 8, "module": "stage2"},
        ]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return cast(nn.Module, self.fc)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draw a new head for another number of classes, and change the pooling where one is named."""
        self.num_classes = num_classes
        pool = global_pool if global_pool is not None else self.global_pool.pool_type
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (N, 72, H/8, W/8)."""
        return cast(torch.Tensor, self.stage2(self.stage1(self.stem(x))))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool, drop out and classify; ``pre_logits`` leaves the classifier out."""
        x = nn.functional.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else cast(torch.Tensor, self.fc(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 10,
            "input_size": (1, 32, 32),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "mean": (0.0,),
            "std": (1.0,),
            "first_conv": "stem.0",
            "classifier": "fc",
        }
        for name in ("digits_convnet.untrained", "digits_convnet_nobn.untrained")
    }
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    features = {"out_indices": (0, 1, 2)}
    return cast(nn.Module, build_model_with_cfg(DigitsConvNet, name, pretrained, feature_cfg=features, **kwargs))


@register_model  # type: ignore[untyped-decorator]
def digits_convnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the digits net, 58 thousand parameters, with BatchNorm."""
    return _build("digits_convnet", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def digits_convnet_nobn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the digits net without BatchNorm, whose training does not depend on how a batch is split."""
    return _build("digits_convnet_nobn", pretrained, **{"norm": False, **kwargs})
