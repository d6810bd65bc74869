"""What the tests of detectors' recipes share: a recipe that trains in a second, and weights compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from recipes.detectors import open_detector

TRAIN = {"epochs": 2, "batch": 8, "imgsz": 64, "device": "cpu", "workers": 0, "plots": False, "amp": False}
STILL = {"optimizer": "SGD", "lr0": 0.0, "warmup_epochs": 0, "weight_decay": 0.0, "momentum": 0.0}  # nothing is learnt


def content(place: Path, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": "tiny",
        "model": {"yolo": str(place / "small.yaml")},
        "data": {"dataset": str(place / "squares" / "data.yaml")},
        "surgery": ["spd"],
        "train": {**TRAIN, "optimizer": "SGD"},
    }
    return {**plain, **changes}


def both(place: Path, **changes: Any) -> dict[str, Any]:
    return content(place, compare={"original": {"surgery": []}, "spd": {}}, **changes)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in open_detector(str(path)).model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
