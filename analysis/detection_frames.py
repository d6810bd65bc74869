"""What a detector found in each image, with the frame the boxes lie in: measured, and read back after a sweep.

Apart from the plain task of a detector, which need not know how large its images are, and from comparing two views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection_batches import Batch
from analysis.detection_measures import tables_of
from analysis.detection_measuring import Detection
from analysis.readings import Readings
from analysis.tasks import Measured

Boxes = NDArray[np.float64]
FRAME = ("frame_width", "frame_height", "gain_x", "gain_y")


class Framed(Detection):
    """Detections of a detector without its loss, and of each image its size and how it was scaled."""

    def __init__(self, module: Any, validator: Any) -> None:
        super().__init__(module, validator)
        self.has_loss = False  # it says nothing about where boxes lie, and costs as much as the network

    def measure(self, answer: Any, batch: Batch, reference: None) -> Measured:
        """As of any detector, and ``frame_width``, ``frame_height``, ``gain_x``, ``gain_y`` of each image."""
        sides = np.array([shape[:2] for shape in batch["ori_shape"]], np.float64)
        gains = np.array([gain for gain, _ in batch["ratio_pad"]], np.float64)
        about = (sides[:, 1], sides[:, 0], gains[:, 1], gains[:, 0])
        return {**super().measure(answer, batch, reference), **dict(zip(FRAME, about, strict=True))}


@dataclass(frozen=True)
class Seen:
    """One image as a variant saw it.

    Attributes:
        found: Corners, score and class of its detections, (n, 6).
        truth: Corners and class of its objects, (n, 5).
        side: Width and height, in the pixels that boxes are in.
        gain: Pixels the net saw per such pixel, across and down.
    """

    found: Boxes
    truth: Boxes
    side: Boxes
    gain: Boxes


def seen_by(readings: Readings, variant: str, images: int) -> list[Seen]:
    """The first images as a variant saw them, in the order of the data."""
    found = tables_of(readings, variant, "found", "boxes", images)
    truth = tables_of(readings, variant, "objects", "truth", images)
    frames = np.stack([readings.values(variant, name)[:images] for name in FRAME], 1)
    return [Seen(f, t, one[:2], one[2:]) for f, t, one in zip(found, truth, frames, strict=True)]
