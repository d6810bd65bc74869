"""Nets whose attributions are known, and images for them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.layerwise import Robustness
from analysis.unit_names import Unit

Batches = list[tuple[Tensor, Tensor]]


def batches(images: int, size: tuple[int, int, int], classes: int, batch: int = 4, **kind: Any) -> Batches:
    drawn, targets = torch.randn(images, *size, **kind), torch.arange(images) % classes
    return list(zip(drawn.split(batch), targets.split(batch), strict=True))


def unit(name: str, path: str) -> Unit:
    return Unit(name, (path,), (f"{path}.weight",), (), 1, "Linear")


class Chain(nn.Module):
    """Everything passes through each of three layers."""

    def __init__(self, act: nn.Module | None = None, channels: int = 6) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, 2)
        self.act, self.fc = act or nn.Tanh(), nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.two(self.act(self.one(x))))
        found: Tensor = self.fc(x.mean((2, 3)))
        return found

    units = (unit("one", "one"), unit("two", "two"), unit("fc", "fc"))


class Branch(nn.Module):
    """A skip goes past the second layer, which then writes into what it is added to."""

    def __init__(self, dead: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(c, 6, 3, padding=1) for c in (3, 6, 6))
        self.fc = nn.Linear(6, 4)
        if dead:
            nn.init.zeros_(self.three.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu_()
        y = self.three(self.two(x).tanh_())
        y += x
        return self.fc(y.mean((2, 3)))  # type: ignore[no-any-return]

    units = (unit("one", "one"), unit("two", "two"), unit("three", "three"), unit("fc", "fc"))


class Circular(nn.Module):
    """Convs that wrap, pointwise nonlinearity, GAP: maps move with the image to the last bit, but for rounding."""

    def __init__(self, stride: int = 1, act: nn.Module | None = None) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, stride, padding=1, padding_mode="circular")
        self.two = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.act, self.fc = act or nn.Tanh(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.two(self.act(self.one(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def settled(model: nn.Module, side: int = 128) -> nn.Module:
    """With running statistics as after training, so that what goes in still shows at the end."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(16, 3, side, side))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def planted(losses: dict[str, float]) -> Robustness:
    """A result of robustness with these losses."""
    rows = [
        {
            **{"unit": name, "path": name, "params": 1, "treatment": "rerand", "error": loss, "difference": loss},
            **{"difference_low_95": loss - 0.01, "difference_high_95": loss + 0.01, "verdict": "critical", "note": ""},
        }
        for name, loss in losses.items()
    ]
    settings = {"model": "planted", "primary": "error", "tolerance": 0.01, "complete": True}
    return Robustness(rows, "", settings)


def columns(rows: list[dict[str, Any]], *keys: str) -> np.ndarray:
    return np.array([[row[key] for key in keys] for row in rows], dtype=np.float64)
