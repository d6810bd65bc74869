"""A detector whose answers are known in closed form: it finds bright rectangles, and says of each what a rule says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from scipy import ndimage
from torch import Tensor

from tests.analysis.detecting import Found
from tests.surgeon.yolo.small import network

Box = tuple[float, float, float, float]
Rule = Callable[[Box], Found]


def exactly(box: Box) -> Found:
    """What there is, where it is."""
    return [([*box], 0, 0.9)]


def on_a_grid(box: Box, step: int = 8) -> Found:
    """The box moved up and left to the next point of a grid, as a net of that stride would have it."""
    x, y = (step * (value // step) for value in box[:2])
    return [([x, y, x + box[2] - box[0], y + box[3] - box[1]], 0, 0.9)]


def planted(folder: Path, rule: Rule, classes: int = 3) -> Any:
    """A YOLO object that answers what ``rule`` says of each bright rectangle, in pixels it is shown."""
    import ultralytics

    model = ultralytics.YOLO(network(folder, classes))

    def answer_instead(images: Tensor, *_: Any, **__: Any) -> Any:
        found = [_table([one for box in rectangles(image) for one in rule(box)], classes) for image in images]
        longest = max(one.shape[1] for one in found)
        return torch.stack([torch.nn.functional.pad(one, (0, longest - one.shape[1])) for one in found]), None

    model.model.predict = answer_instead  # in place of going through the layers
    return model


def rectangles(image: Tensor) -> list[Box]:
    """Bright parts of an image (C, H, W): corners in pixels."""
    labels, _ = ndimage.label(image[0].numpy() > 0.6)
    return [(float(x.start), float(y.start), float(x.stop), float(y.stop)) for y, x in ndimage.find_objects(labels)]


def scenes(boxes: Sequence[Sequence[Box]], size: tuple[int, int], batch: int = 5) -> list[Any]:
    """Batches of black images with bright rectangles, which are the objects, all of class 0."""
    images, targets = torch.zeros(len(boxes), 3, *size), []
    for image, there in zip(images, boxes, strict=True):
        for x1, y1, x2, y2 in there:
            image[:, int(y1) : int(y2), int(x1) : int(x2)] = 1.0
        corners = torch.tensor(np.array(there, float).reshape(-1, 4))
        targets.append({"boxes": corners, "labels": torch.zeros(len(corners), dtype=torch.long)})
    return [(images[i : i + batch], targets[i : i + batch]) for i in range(0, len(boxes), batch)]


def squares(count: int, side: int, low: int, high: int, seed: int = 0) -> list[list[Box]]:
    """One square per image, its corner anywhere from ``low`` to ``high``."""
    corners = np.random.default_rng(seed).integers(low, high + 1, (count, 2)).tolist()
    return [[(float(x), float(y), float(x + side), float(y + side))] for x, y in corners]


def pictures(folder: Path) -> tuple[Path, list[Box]]:
    """A data yaml of ten pictures of three shapes with one bright square each, and where they are, in pixels."""
    boxes = [box for [box] in squares(10, 16, 8, 20)]
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        height, width = ((48, 96), (60, 96), (96, 96))[i % 3]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[int(y1) : int(y2), int(x1) : int(x2)] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        place = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, 16 / width, 16 / height)
        (folder / "labels" / f"{i}.txt").write_text(" ".join(["0", *(f"{number:.6f}" for number in place)]))
    names = {0: "a", 1: "b", 2: "c"}
    data = {"path": str(folder), "train": "images", "val": "images", "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder / "data.yaml", boxes


def _table(answer: Found, classes: int) -> Tensor:
    """Boxes as a Detect head gives them: middle, size and class scores, one column each."""
    columns = torch.zeros(4 + classes, max(len(answer), 1))
    for place, ((x1, y1, x2, y2), label, score) in enumerate(answer):
        columns[:4, place] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        columns[4 + label, place] = score
    return columns
