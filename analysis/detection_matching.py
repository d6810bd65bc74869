"""Which detections of one image are the same thing as which of another view of it, one to one.

Apart from what is measured of such pairs: here is what "the same" means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Boxes = NDArray[np.float64]
Indices = NDArray[np.intp]
CORNERS, SCORE, CLASS = slice(0, 4), 4, 5
PREFERRED = 1e-6  # what a common class adds to an overlap: it decides between equal ones


@dataclass(frozen=True)
class Pairs:
    """Detections of two views that are the same thing.

    Attributes:
        first: Which of the first view, (n,).
        second: Which of the second, (n,).
    """

    first: Indices
    second: Indices


def overlaps(one: Boxes, other: Boxes) -> Boxes:
    """Intersection over union of every box with every other, (n, m).

    Example:
        >>> overlaps(np.array([[0.0, 0, 4, 4]]), np.array([[2.0, 0, 6, 4], [9, 9, 9, 9]])).round(3).tolist()
        [[0.333, 0.0]]
    """
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), -1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], 1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - common
    found: Boxes = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return found


def things(found: Boxes, conf: float, overlap: float) -> Boxes:
    """What a user is shown: detections of ``conf`` or more, and of those on one thing, of whatever class, the surest.

    Args:
        found: Corners, score and class, (n, 6); a detector may answer one box once per class.
        conf: Lowest score.
        overlap: Above which two boxes are on one thing.

    Example:
        >>> cat_or_dog = np.array([[0.0, 0, 8, 8, 0.4, 1], [0, 0, 8, 8, 0.5, 0], [0, 0, 8, 8, 0.1, 2]])
        >>> things(cat_or_dog, 0.25, 0.7)[:, 4:].tolist()
        [[0.5, 0.0]]
    """
    sure = found[found[:, SCORE] >= conf]
    sure = sure[np.argsort(-sure[:, SCORE], kind="stable")]
    near = overlaps(sure[:, CORNERS], sure[:, CORNERS]) > overlap
    kept: list[int] = []
    for i in range(len(sure)):
        if not near[i, kept].any():
            kept.append(i)
    return sure[kept]


def match(one: Boxes, other: Boxes, least: float) -> Pairs:
    """Pair boxes one to one, so that the sum of their overlaps is the largest there is.

    Args:
        one: Corners, and more columns, of which the last is a class, (n, columns).
        other: Likewise, (m, columns).
        least: Smallest overlap of a pair, over 0.

    Example:
        >>> near, far = [[0.0, 0, 8, 8, 0]], [[1.0, 0, 9, 8, 1], [40, 40, 48, 48, 0]]
        >>> pairs = match(np.array(near), np.array(far), 0.5)
        >>> pairs.first.tolist(), pairs.second.tolist()
        ([0], [0])
    """
    worth = overlaps(one[:, CORNERS], other[:, CORNERS])
    near = worth >= least
    alike = one[:, -1][:, None] == other[:, -1][None]
    first, second = linear_sum_assignment(np.where(near, worth + PREFERRED * alike, 0.0), maximize=True)
    kept = near[first, second]
    return Pairs(first[kept], second[kept])


def match_by_truth(one: Boxes, other: Boxes, truth: tuple[Boxes, Boxes], least: float) -> tuple[Pairs, Pairs, Pairs]:
    """Pair detections that are matched with the same object of the truth, each in its own view.

    Args:
        one: Detections of the first view.
        other: Of the second.
        truth: The same objects, in the same order, where they are in each view.
        least: Smallest overlap of a detection with its object.

    Returns:
        Detections of both views of the same object; then objects and their detections in the first view, and in the
        second.
    """
    before, after = (match(there, found, least) for there, found in zip(truth, (one, other), strict=True))
    _, at, there = np.intersect1d(before.first, after.first, assume_unique=True, return_indices=True)
    return Pairs(before.second[at], after.second[there]), before, after
