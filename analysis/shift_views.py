"""A detector's batch after a shift: pictures moved inside their letterbox, and the boxes of the truth with them.

Apart from moving pixels, which knows nothing of boxes, and from measuring, which sees a batch like any other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from analysis.detection_batches import PER_OBJECT, Batch
from analysis.moves import Axis
from analysis.moving import Padding, shift_images
from surgeon.errors import AnalysisError

Shift = tuple[float, float]  # pixels right and down, of what the net sees
Boxes = NDArray[np.float64]
Pair = tuple[float, float]
Rectangle = tuple[int, int, int, int]
STAYS = 0.5  # of an object's area: with less of it in the image it is left out
MOST = 10_000  # shifts; more are a mistake
FEW = 8  # steps of a grid to the largest stride


def shifts_of(shifts: Sequence[float] | float | None, axis: Axis, stride: int) -> list[Shift]:
    """The shifts a user asked for, without the one that moves nothing.

    Args:
        shifts: Pixels; None for 1 to ``stride``, of a grid for every eighth of it.
        axis: "diagonal" both ways alike, "horizontal", "vertical", or "grid" every pair.
        stride: Largest of the network.

    Raises:
        AnalysisError: For values that are none.

    Example:
        >>> shifts_of((0, 1, 2), "horizontal", 32)
        [(1.0, 0.0), (2.0, 0.0)]
        >>> len(shifts_of(None, "diagonal", 32)), len(shifts_of((0, 4), "grid", 32))
        (32, 3)
    """
    if axis not in get_args(Axis):
        raise AnalysisError(f"axis is {axis!r}; it is one of {', '.join(get_args(Axis))}")
    if shifts is None:
        shifts = range(0, stride + 1, max(stride // FEW, 1)) if axis == "grid" else range(1, stride + 1)
    values = [*shifts] if isinstance(shifts, Iterable) and not isinstance(shifts, str) else [shifts]
    odd = [v for v in values if isinstance(v, bool) or not isinstance(v, Real) or not math.isfinite(v)]
    if odd or not values:
        found = repr(odd[0]) if odd else "nothing"
        raise AnalysisError(f"shifts holds {found}; give pixels as the net sees them, as (1, 2, 4), or leave it out")
    values = [float(v) for v in values]
    pairs: dict[str, Iterable[Shift]] = {
        "diagonal": ((v, v) for v in values),
        "horizontal": ((v, 0) for v in values),
        "vertical": ((0, v) for v in values),
        "grid": itertools.product(values, values),
    }
    found_shifts = dict.fromkeys((float(dx), float(dy)) for dx, dy in pairs[axis])
    moved = [shift for shift in found_shifts if shift != (0.0, 0.0)]
    if not 0 < len(moved) <= MOST:
        raise AnalysisError(f"{len(moved)} shifts that move anything are asked for; give 1 to {MOST}")
    return moved


@dataclass(frozen=True)
class Shifting:
    """How pictures are shifted.

    Attributes:
        padding: What comes in at the border of the picture: "mirror", "black", "circular"; with "crop" what the
            picture holds there, as its margin is kept out of every view.
        fill: Of "black", 0 to 1.
        margin: Pixels on each side that "crop" keeps out.
    """

    padding: Padding
    fill: float = 0.0
    margin: int = 0

    @classmethod
    def of(cls, padding: Padding, fill: float, shifts: Sequence[Shift], grid: int) -> Shifting:
        """What a user asked for; a crop leaves sides that ``grid`` divides.

        Raises:
            AnalysisError: For values that are none.

        Example:
            >>> Shifting.of("crop", 0.0, [(20.0, -40.0)], 32).margin
            48
        """
        if padding not in get_args(Padding):
            raise AnalysisError(f"padding is {padding!r}; it is one of {', '.join(get_args(Padding))}")
        if isinstance(fill, bool) or not isinstance(fill, (int, float)) or not 0 <= fill <= 1:
            raise AnalysisError(f"fill is {fill!r}; detectors see values from 0 to 1, of which 0 is black")
        farthest = max((abs(value) for shift in shifts for value in shift), default=0.0)
        margin = math.ceil(2 * farthest / grid) * grid // 2 if padding == "crop" else 0
        return cls(padding, float(fill), margin)

    def view(self, batch: Batch, _number: int, _start: int, *, shift: Shift = (0.0, 0.0)) -> Batch:
        """A batch after a shift; the objects of its loss, which is not measured, are left out.

        Raises:
            AnalysisError: When images are too small for a crop.
        """
        moved = self._cropped(batch, shift) if self.padding == "crop" else self._inside(batch, shift)
        return {**batch, **{key: batch[key][:0] for key in PER_OBJECT}, **moved}

    def _cropped(self, batch: Batch, shift: Shift) -> Batch:
        images, margin = batch["img"], self.margin
        height, width = (side - 2 * margin for side in images.shape[-2:])
        if min(height, width) < 1:
            raise AnalysisError(
                f"padding is 'crop': shifts of that size need {margin} pixels on each side, and images are "
                f"{images.shape[-2]}x{images.shape[-1]}; give larger images (detector={{'imgsz': ...}}), smaller "
                "shifts, or another padding"
            )
        shapes, truths = [], []
        for (gain, pad), truth in zip(batch["ratio_pad"], batch["truth"], strict=True):
            frame = (height / gain[0], width / gain[1])
            offset = tuple(pad[i] - margin + shift[i] for i in range(2))
            truths.append(moved_truth(truth, (offset[0] / gain[1], offset[1] / gain[0]), frame))
            shapes.append(frame)
        return {
            "img": shift_images(images, *shift, "crop", size=(height, width)),
            "ori_shape": tuple(shapes),
            "ratio_pad": tuple((gain, (0.0, 0.0)) for gain, _ in batch["ratio_pad"]),
            "truth": tuple(truths),
        }

    def _inside(self, batch: Batch, shift: Shift) -> Batch:
        images, truths = batch["img"].clone(), []
        places: dict[Rectangle, list[int]] = {}
        for i, (shape, (gain, pad)) in enumerate(zip(batch["ori_shape"], batch["ratio_pad"], strict=True)):
            places.setdefault(picture(shape, gain, pad), []).append(i)
            by = (shift[0] / gain[1], shift[1] / gain[0])
            truths.append(moved_truth(batch["truth"][i], by, shape, wrapped=self.padding == "circular"))
        for (top, bottom, left, right), which in places.items():
            there = images[which][:, :, top:bottom, left:right]
            images[which, :, top:bottom, left:right] = shift_images(there, *shift, self.padding, fill=self.fill)
        return {"img": images, "truth": tuple(truths)}


def picture(shape: Sequence[float], gain: Pair, pad: Pair) -> Rectangle:
    """Where the picture lies in what the net sees, without the bars of the letterbox: top, bottom, left, right.

    Args:
        shape: (height, width) of the image as it is on disk.
        gain: By how much it was scaled, (down, across).
        pad: Where it begins, (across, down), pixels.

    Example:
        >>> picture((100, 200), (0.5, 0.5), (0, 14))
        (14, 64, 0, 100)
    """
    left, top = (max(round(value), 0) for value in pad)
    return top, top + round(shape[0] * gain[0]), left, left + round(shape[1] * gain[1])


def moved_truth(truth: Boxes, by: Shift, frame: Sequence[float], wrapped: bool = False) -> Boxes:
    """Objects after a shift, clipped to the image; those of which less than half stays in it are left out.

    Args:
        truth: Corners and class, (n, 5).
        by: Pixels right and down.
        frame: (height, width) of the image.
        wrapped: What leaves the image comes in on the other side; of an object cut in two its larger part counts.

    Example:
        >>> moved_truth(np.array([[2.0, 2, 10, 6, 1], [16, 2, 20, 6, 0]]), (3.0, 0.0), (20, 20)).tolist()
        [[5.0, 2.0, 13.0, 6.0, 1.0]]
        >>> moved_truth(np.array([[16.0, 2, 20, 6, 0]]), (3.0, 0.0), (20, 20), wrapped=True).tolist()
        [[0.0, 2.0, 3.0, 6.0, 0.0]]
    """
    height, width = frame
    moved = moved_boxes(truth[:, :4], by, frame, wrapped)
    clipped = np.clip(moved, 0, [width, height, width, height])
    stays = np.prod(clipped[:, 2:] - clipped[:, :2], 1) >= STAYS * np.prod(moved[:, 2:] - moved[:, :2], 1)
    return np.concatenate([clipped[stays], truth[stays, 4:]], 1)


def moved_boxes(boxes: Boxes, by: Shift, frame: Sequence[float], wrapped: bool = False) -> Boxes:
    """Boxes after a shift, not clipped; where what leaves the image comes back, each lies where its middle does."""
    moved: Boxes = boxes + np.array([*by, *by])
    if not wrapped:
        return moved
    side = np.array([frame[1], frame[0]])
    rounds = np.floor((moved[:, :2] + moved[:, 2:]) / 2 / side) * side
    moved -= np.tile(rounds, 2)
    return moved
