"""A fully connected net, registered with timm as ``fcn``: depth and width as arguments.

Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996, section 3: "FCN 3 x 256" is
``timm.create_model("fcn", depth=3, width=256)``.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

from timm.models import build_model_with_cfg, checkpoint_seq, register_model
from torch import Tensor, nn

from surgeon.errors import RecipeError
from surgeon.reference_nets.base import configs

__all__ = ["FCN"]


class FCN(nn.Module):
    """Hidden linear layers with ReLU, then the classifier; the image is flattened.

    Args:
        depth: Hidden layers.
        width: Of each.
        num_classes: Classes of the head; 0 for none.
        in_chans: Channels of the image.
        img_size: Height and width of the image; they are fixed.
        drop_rate: Dropout before the classifier, 0 to 1.

    Shape:
        - Input: (N, in_chans, img_size, img_size)
        - Output: (N, num_classes)

    Example:
        >>> import torch
        >>> FCN(2, 16, in_chans=1, img_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 3,
        width: int = 256,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int = 32,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.img_size, self.drop_rate = num_classes, in_chans, img_size, drop_rate
        self.grad_checkpointing = False
        widths = [in_chans * img_size * img_size, *[width] * depth]
        pairs = itertools.pairwise(widths)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairs))
        self.num_features = self.head_hidden_size = widths[-1]
        self.feature_info = [{"num_chs": width, "reduction": img_size, "module": f"layers.{i}"} for i in range(depth)]
        self.reset_classifier(num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the layers again in the backward pass."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draw a new classifier; there is nothing to pool."""
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return what the last hidden layer answers, (N, width)."""
        x = x.flatten(1)
        if self.grad_checkpointing and self.training:
            return cast(Tensor, checkpoint_seq(self.layers, x))
        return cast(Tensor, self.layers(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Drop out and classify; ``pre_logits`` leaves the classifier out."""
        x = nn.functional.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else cast(Tensor, self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


default_cfgs = configs(["fcn"], 32, "layers.0.0")


@register_model  # type: ignore[untyped-decorator]
def fcn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a fully connected net.

    Raises:
        RecipeError: With ``features_only``: there are no maps.
    """
    if kwargs.get("features_only"):
        raise RecipeError("fcn flattens the image: it has no feature maps to extract; build it without features_only")
    return cast(nn.Module, build_model_with_cfg(FCN, "fcn", pretrained, **kwargs))
