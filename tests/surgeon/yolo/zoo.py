"""Ultralytics' shipped yamls: their names, and networks built from them without fetching anything.

Tests that import this file are skipped whole where ultralytics is not installed.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from surgeon.yolo.joining import without_weights

ultralytics = pytest.importorskip("ultralytics")
tasks = pytest.importorskip("ultralytics.nn.tasks")
ultralytics.utils.LOGGER.setLevel(logging.ERROR)  # "no model scale passed", once per network
CLASSES = {
    "classify": tasks.ClassificationModel,
    "detect": tasks.DetectionModel,
    "segment": tasks.SegmentationModel,
    "pose": tasks.PoseModel,
    "obb": tasks.OBBModel,
    "depth": tasks.DepthModel,
    "semantic": tasks.SemanticSegmentationModel,
}
FAMILIES = (  # one small yaml of each, together of every task
    "yolov3-tiny.yaml",
    "yolov5.yaml",
    "yolov6.yaml",
    "yolov8-pose.yaml",
    "yolov9t.yaml",
    "yolov10n.yaml",
    "yolo11-obb.yaml",
    "yolo12-cls.yaml",
    "yolo26-seg.yaml",
    "yolo26-depth.yaml",
    "yolo26-sem.yaml",
    "yolov8-worldv2.yaml",
    "yoloe-11.yaml",
    "yolov8-rtdetr.yaml",
)


@cache
def yaml_names() -> tuple[str, ...]:
    """The file names of every yaml of a network that ultralytics ships, sorted."""
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    return tuple(sorted(path.name for path in folder.rglob("*.yaml")))


def size_of(name: str) -> int:
    """The side of a small image it takes: strides of 64, and as many positions as RT-DETR has queries, want more."""
    return 128 if "rtdetr" in name or "p6" in name else 64


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
