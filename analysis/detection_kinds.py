"""Tell right detections from each kind of wrong one: the definition, on plain arrays.

Apart from the result that counts and draws them, so that it reads as the papers say it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from surgeon.errors import AnalysisError

KINDS = ("correct", "localisation", "similar", "other", "background")
CORRECT, LOCALISATION, SIMILAR, OTHER, BACKGROUND = range(5)
Image = Mapping[str, Any]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Judged = tuple[Integers, Integers, Flags]  # which detections count, their kinds, which are duplicates


@dataclass(frozen=True)
class Boxed:
    """Boxes of all images one after another: ``image`` (n,) tells whose, ``scores`` (n,) how sure."""

    image: Integers
    boxes: Floats  # (n, 4)
    labels: Integers
    scores: Floats


@dataclass(frozen=True)
class Rules:
    """What counts as what: which pairs of places are similar, and the overlaps from which a box is correct, or about.

    ``similar`` is (n, n), its diagonal False; ``correct_iou`` is the least overlap of a correct detection with its
    object, ``object_iou`` of a detection that is about an object at all.
    """

    similar: Flags
    correct_iou: float
    object_iou: float

    def same(self, other: Rules) -> bool:
        """Whether two nets were judged alike."""
        one, two = ((rules.correct_iou, rules.object_iou) for rules in (self, other))
        return one == two and np.array_equal(self.similar, other.similar)


def flat(images: Sequence[Image], what: str, scored: bool) -> Boxed:
    """Put the boxes of all images one after another, checked.

    Raises:
        AnalysisError: When a key is missing, or lengths, coordinates or labels make no sense.

    Example:
        >>> flat([{"boxes": [[0, 0, 4, 4]], "labels": [7]}], "targets", scored=False).labels
        array([7])
    """
    parts = [_checked(one, f"{what}[{number}]", scored) for number, one in enumerate(images)]
    image = np.repeat(np.arange(len(parts)), [len(boxes) for boxes, _, _ in parts])
    empty: tuple[Any, ...] = (np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))
    boxes, labels, scores = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    return Boxed(image, boxes, labels, scores)


def _checked(one: Image, where: str, scored: bool) -> tuple[Floats, Integers, Floats]:
    keys = ("boxes", "labels", "scores") if scored else ("boxes", "labels")
    if not isinstance(one, Mapping):
        raise AnalysisError(f"{where} is a {type(one).__name__}; give a dict with {', '.join(keys)}")
    if missing := [key for key in keys if key not in one]:
        raise AnalysisError(f"{where} has no '{missing[0]}'; give a dict with {', '.join(keys)}")
    boxes, labels, *rest = (_array(one[key], f"{where}['{key}']") for key in keys)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    lengths = [len(boxes), labels.size, *(scores.size for scores in rest)]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(set(lengths)) > 1:
        found = f"boxes {boxes.shape}, labels {labels.shape}" + "".join(f", scores {s.shape}" for s in rest)
        raise AnalysisError(f"{where}: found {found}; give boxes (n, 4), and n labels{' and scores' * scored}")
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise AnalysisError(f"{where}: a box is no x1, y1, x2, y2 with x1 <= x2, y1 <= y2; convert it from x, y, w, h")
    if (labels != np.round(labels)).any() or any(np.isnan(scores).any() for scores in rest):
        raise AnalysisError(f"{where}: labels must be whole numbers and scores numbers; round or drop the others")
    return boxes, labels.reshape(-1).astype(np.int64), rest[0].reshape(-1) if rest else np.zeros(len(boxes))


def _array(values: Any, where: str) -> Floats:
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise AnalysisError(f"{where} is no array of numbers ({error}); give a tensor, an array or lists") from None


def top_n(found: Boxed, there: Boxed, classes: int) -> Integers:
    """Detections that count, the surest of each class first: as many of a class as it has objects in all images.

    Labels are places 0 to ``classes`` - 1. Equal scores keep the order of images, then of detections.
    """
    order = np.lexsort((-found.scores, found.labels))  # stable
    sizes = np.bincount(found.labels, minlength=classes)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank < np.bincount(there.labels, minlength=classes)[found.labels[order]]]


def kinds_of(found: Boxed, there: Boxed, rules: Rules) -> Judged:
    """The kind of each detection that counts.

    Args:
        found: Detections; labels are places 0 to n - 1.
        there: Objects, likewise.
        rules: For n classes.

    Returns:
        Which detections count, as indices; for each the place of its kind in ``KINDS``; and whether it is a duplicate.
    """
    counted = top_n(found, there, len(rules.similar))
    own, target, alike, unlike = _overlaps(found, there, rules.similar, counted)
    hit = own >= rules.correct_iou
    first = np.zeros(len(counted), dtype=bool)  # of the hits of an object, the surest
    places = np.flatnonzero(hit)
    first[places[np.unique(target[places], return_index=True)[1]]] = True
    conditions = [hit & first, *(overlap >= rules.object_iou for overlap in (own, alike, unlike))]
    return counted, np.select(conditions, range(4), BACKGROUND), hit & ~first


def _overlaps(found: Boxed, there: Boxed, similar: Flags, counted: Integers) -> tuple[Floats, Integers, Floats, Floats]:
    """Largest overlap of each counted detection with its own class (and which object), a similar one, any other."""
    own, alike, unlike = np.zeros((3, len(counted)))
    target = np.full(len(counted), -1)
    for image in np.unique(found.image[counted]):
        rows = np.flatnonzero(found.image[counted] == image)
        columns = np.flatnonzero(there.image == image)
        if len(columns) == 0:
            continue
        overlap = _iou(found.boxes[counted[rows]], there.boxes[columns])
        mine, theirs = found.labels[counted[rows], None], there.labels[None, columns]
        same, near = mine == theirs, similar[mine, theirs]
        own[rows] = np.where(same, overlap, 0).max(1)
        target[rows] = columns[np.where(same, overlap, -1).argmax(1)]
        alike[rows] = np.where(near, overlap, 0).max(1)
        unlike[rows] = np.where(~same & ~near, overlap, 0).max(1)
    return own, target, alike, unlike


def _iou(one: Floats, two: Floats) -> Floats:
    """Intersection over union (rows, columns); 0 between boxes without area."""
    overlap = box_iou(torch.from_numpy(one), torch.from_numpy(two)).nan_to_num(0)
    return np.asarray(overlap)
