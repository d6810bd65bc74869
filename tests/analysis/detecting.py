"""What the tests of the detection analyses share: boxes by hand, and a detector that finds what a test wants it to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from analysis.detection_running import Boxes, Detections
from tests.surgeon.yolo.small import network

Found = list[tuple[list[float], int, float]]  # box, label, score
NAMES = {0: "cat", 1: "dog"}


def boxes(*found: tuple[list[float], int, float]) -> Boxes:
    """Arrays as `analysis.detect` gives them."""
    return {
        "boxes": np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
        "labels": np.array([label for _, label, _ in found], dtype=np.int64),
        "scores": np.array([score for *_, score in found], dtype=np.float64),
    }


def detections(predictions: list[Found], targets: list[Found], names: Mapping[int, str] = NAMES) -> Detections:
    """What a detector is said to have found in images named 0, 1, ...; scores of targets are dropped."""
    there = [{key: value for key, value in boxes(*one).items() if key != "scores"} for one in targets]
    found = [boxes(*one) for one in predictions]
    return Detections([str(i) for i in range(len(there))], found, there, dict(names), {})


def oracle(folder: Path, answers: Mapping[Path, Found], classes: int) -> Any:
    """A YOLO object that answers for each image (told by the sum of its pixels) the boxes given for it, in its pixels.

    Images must be as large as the net sees them; ultralytics may put a border around them.
    """
    import ultralytics

    tables, size = {}, 0
    for path, answer in answers.items():
        image = np.asarray(Image.open(path).convert("RGB"), dtype=np.int64)
        tables[int(image.sum())], size = _table(answer, classes), len(image)
    model = ultralytics.YOLO(network(folder, classes))

    def answer_instead(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> Any:
        batch = inputs[0]
        top, left = ((side - size) // 2 for side in batch.shape[2:])
        found = []
        for image in batch[:, :, top : top + size, left : left + size]:
            table = tables.get(int((image.double() * 255).round().sum()), torch.zeros(4 + classes, 1)).clone()
            table[:2] += torch.tensor([[left], [top]])
            found.append(table)
        longest = max(one.shape[1] for one in found)
        padded = [torch.nn.functional.pad(one, (0, longest - one.shape[1])) for one in found]
        return torch.stack(padded), None

    model.model.register_forward_hook(answer_instead)
    return model


def _table(answer: Found, classes: int) -> torch.Tensor:
    """Boxes as a Detect head gives them: middle, size and class scores, one column each."""
    columns = torch.zeros(4 + classes, max(len(answer), 1))
    for place, ((x1, y1, x2, y2), label, score) in enumerate(answer):
        columns[:4, place] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        columns[4 + label, place] = score
    return columns
