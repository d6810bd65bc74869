"""The model table: which models the contracts run on, and at which sizes.

``TINY`` takes every contract; ``FAMILIES``, one of each of the most used, takes the cheap ones; ``PlainNet`` and
its kin are modules that no library built.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A timm model at a small size.

    ``other`` is another size it takes, None where the size is fixed at building.
    """

    name: str
    size: int = 64
    other: tuple[int, int] | None = (77, 90)
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self, **more: Any) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(self.name, **{"num_classes": 10, **self.arguments, **more}).eval()

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(self.size, self.size), *([self.other] if self.other else [])]

    def __str__(self) -> str:
        return self.name


TINY = (
    Entry("test_resnet"),
    Entry("test_efficientnet"),
    Entry("test_convnext"),
    Entry("test_vit", 160, None),
)
FAMILIES = (
    Entry("resnet18"),
    Entry("resnet50"),
    Entry("mobilenetv3_small_050"),
    Entry("mobilenetv2_050"),
    Entry("tf_efficientnet_b0"),
    Entry("convnext_atto"),
    Entry("regnetx_002"),
    Entry("densenet121"),
    Entry("nf_regnet_b0"),
    Entry("inception_v3", 107, (112, 131)),
    Entry("swin_tiny_patch4_window7_224", 64, None, {"img_size": 64}),
    Entry("vit_tiny_patch16_224", 64, None, {"img_size": 64}),
    Entry("levit_128s", 224, None),
    Entry("repvgg_a0"),
    Entry("hrnet_w18_small", 64, (96, 128)),
    Entry("ghostnet_050"),
)


def entries(*tables: tuple[Entry, ...]) -> dict[str, Any]:
    """Arguments of ``pytest.mark.parametrize``: one run per entry, named after it."""
    found = [entry for table in tables for entry in table]
    return {"argnames": "entry", "argvalues": found, "ids": [entry.name for entry in found]}


class PlainNet(nn.Module):
    """A stem conv, a pool, a strided residual block, a classifier: nothing but torch's own layers."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=not norm), self._norm(8, norm), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = PlainBlock(8, 12, norm)
        self.head = nn.Linear(12, 10)

    @staticmethod
    def _norm(channels: int, norm: bool) -> nn.Module:
        return nn.BatchNorm2d(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.pool(self.stem(x))).mean((2, 3)))


class PlainBlock(nn.Module):
    """Two convs and a projected skip."""

    def __init__(self, before: int, after: int, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, 2, 1)
        self.norm1 = PlainNet._norm(after, norm)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.downsample = nn.Conv2d(before, after, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.norm1(self.conv1(x)))) + self.downsample(x))


class Wrap(nn.Module):
    """A function of the model's input in front of a classifier; ``parts`` are its modules."""

    def __init__(self, forward: Callable[["Wrap", Tensor], Tensor], channels: int, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.code = forward
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.code(self, x).mean((2, 3)))
