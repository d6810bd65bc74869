"""What the reference networks share: the behaviour of a timm classifier."""

from __future__ import annotations

from typing import Any, cast

from timm.layers import create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs
from torch import Tensor, nn


class ReferenceNet(nn.Module):
    """A classifier with timm's protocol; a subclass builds ``stem`` and ``blocks`` and calls :meth:`_finish`.

    The blocks run one after another; with gradient checkpointing each is computed again in the backward pass.
    """

    feature_info: list[dict[str, Any]]
    num_features: int
    stem: nn.Module
    blocks: nn.Sequential

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grad_checkpointing = False

    def _finish(self, features: int, global_pool: str = "avg", hidden: int = 0) -> None:
        """The head, and initial weights: Kaiming's normal for convs, torch's own for linear layers."""
        self.num_features, self.head_hidden_size = features, hidden or features
        self.global_pool, self.fc = create_classifier(self.head_hidden_size, self.num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks again in the backward pass instead of keeping what is inside them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return cast(nn.Module, self.fc)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Draw a new classifier for another number of classes, and change the pooling where one is named."""
        self.num_classes = num_classes
        pool = global_pool if global_pool is not None else self.global_pool.pool_type
        self.global_pool, self.fc = create_classifier(self.head_hidden_size, num_classes, pool_type=pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, (N, num_features, H', W')."""
        x = self.stem(x)
        if self.grad_checkpointing and self.training:
            return cast(Tensor, checkpoint_seq(self.blocks, x))
        return cast(Tensor, self.blocks(x))

    def hidden(self, x: Tensor) -> Tensor:
        """What lies between the pooled features and the classifier: nothing, unless a subclass says so."""
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, drop out and classify; ``pre_logits`` leaves the classifier out."""
        x = self.hidden(self.global_pool(x))
        x = nn.functional.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else cast(Tensor, self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def configs(names: list[str], size: int, first_conv: str, num_classes: int = 10) -> Any:
    """Timm's configurations of untrained networks of one input size."""
    shared = {
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "crop_pct": 1.0,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": "fc",
    }
    return generate_default_cfgs({f"{name}.untrained": {**shared} for name in names})


def build(cls: type[nn.Module], name: str, pretrained: bool, depths: int, **kwargs: Any) -> nn.Module:
    """Build through timm, which answers feature extractors too; ``depths`` counts the entries of ``feature_info``.

    Raises:
        RuntimeError: When pretrained weights are asked for: there are none.
    """
    features = {"out_indices": tuple(range(depths)), "feature_cls": "fx"}
    return cast(nn.Module, build_model_with_cfg(cls, name, pretrained, feature_cfg=features, **kwargs))


def batch_norm(channels: int, norm: bool) -> nn.Module:
    """BatchNorm, or nothing."""
    return nn.BatchNorm2d(channels) if norm else nn.Identity()


__all__ = ["ReferenceNet", "batch_norm", "build", "configs"]
