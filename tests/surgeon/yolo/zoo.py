"""Ultralytics' shipped yamls: their names, and networks built from them without fetching anything."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch
from torch import nn

import ultralytics
from surgeon.yolo.joining import without_weights
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER

LOGGER.setLevel(logging.ERROR)  # "no model scale passed", once per network
CLASSES = {
    "classify": tasks.ClassificationModel,
    "detect": tasks.DetectionModel,
    "segment": tasks.SegmentationModel,
    "pose": tasks.PoseModel,
    "obb": tasks.OBBModel,
    "depth": tasks.DepthModel,
    "semantic": tasks.SemanticSegmentationModel,
}


@cache
def yaml_names() -> tuple[str, ...]:
    """The file names of every yaml of a network that ultralytics ships, sorted."""
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    return tuple(sorted(path.name for path in folder.rglob("*.yaml")))


def build(name: str, seed: int = 0) -> nn.Module:
    """The network of a yaml, in evaluation mode, with fresh weights."""
    torch.manual_seed(seed)
    yaml = without_weights(tasks.yaml_model_load(name))
    model: nn.Module = class_of(name, yaml)(yaml, verbose=False)
    return model.eval()


def class_of(name: str, yaml: dict) -> type[nn.Module]:
    """The class ultralytics builds from that yaml."""
    task = tasks.guess_model_task(yaml)
    if "rtdetr" in name:
        return tasks.RTDETRDetectionModel
    if "world" in name:
        return tasks.WorldModel
    if "yoloe" in name:
        return tasks.YOLOESegModel if task == "segment" else tasks.YOLOEModel
    return CLASSES[task]
