"""Images on which two nets disagree: classifiers choose different classes, detectors find different things."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.readings import FINAL, Readings

Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class Disagreement:
    """An image on which two nets disagree.

    Attributes:
        index: Its place in the data.
        image: (C, H, W).
        target: Its class.
        chosen: Classes the nets choose.
        p_right: Probability each gives to the right class.
    """

    index: int
    image: Tensor
    target: int
    chosen: tuple[int, int]
    p_right: tuple[float, float]


def disagreements(data: Iterable[Any], readings: Sequence[Readings], most: int) -> list[Disagreement]:
    """The images on which two nets disagree, those first where the probabilities of the right class are furthest apart.

    Args:
        data: The batches that were measured.
        readings: Of both nets, with their choices.
        most: Images.
    """
    chosen, right = ([r.values(FINAL, name) for r in readings] for name in ("class", "p_right"))
    images = min(map(len, chosen), default=0)
    places = np.flatnonzero(chosen[0][:images] != chosen[1][:images])
    gaps = np.nan_to_num(np.abs(right[0][places] - right[1][places]))
    wanted = places[np.argsort(-gaps, kind="stable")][:most].tolist()
    found, start = dict[int, Disagreement](), 0
    for batch in data if wanted else ():
        images_, targets = batch[0], batch[1]
        for index in wanted:
            if start <= index < start + len(targets):
                at = index - start
                found[index] = Disagreement(
                    index,
                    torch.as_tensor(images_[at]).detach().float().cpu().clone(),
                    int(targets[at]),
                    (int(chosen[0][index]), int(chosen[1][index])),
                    (float(right[0][index]), float(right[1][index])),
                )
        start += len(targets)
        if len(found) == len(wanted):
            break
    return [found[index] for index in wanted if index in found]


@dataclass(frozen=True)
class Contested:
    """What two detectors find in one image.

    Attributes:
        found: By each: corners, score, class, (n, 6), in pixels of the image on disk.
        alone: Which of them the other lacks.
        flips: Of those both find, how many are of another class.
        matched: How many both find.
    """

    found: tuple[Boxes, Boxes]
    alone: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    flips: int
    matched: int

    @property
    def disputed(self) -> int:
        """Detections that the nets do not agree on."""
        return int(self.alone[0].sum() + self.alone[1].sum()) + self.flips


@dataclass(frozen=True)
class Disputed:
    """An image on which two detectors disagree.

    Attributes:
        index: Its place in the data.
        image: As the nets see it, (C, H, W), 0 to 1.
        alone: Corners in its pixels of what only the first finds, and only the second, (n, 4).
        both: Corners of what both find.
        flips: How many of those are of another class.
    """

    index: int
    image: Tensor
    alone: tuple[Boxes, Boxes]
    both: Boxes
    flips: int


def contested(scan: Any, pairs: Sequence[Contested], most: int) -> list[Disputed]:
    """The images on which two detectors disagree, those with most disputed detections first.

    Args:
        scan: Whose batches were measured.
        pairs: What both found in each image.
        most: Images.
    """
    order = sorted((i for i, one in enumerate(pairs) if one.disputed), key=lambda i: -pairs[i].disputed)[:most]
    found, start = dict[int, Disputed](), 0
    for batch in scan.data if order else ():
        images = scan.task.count(batch)
        inside = [index for index in order if start <= index < start + images]
        if inside:
            batch = scan.task.prepare(batch, torch.device("cpu"))
        for index in inside:
            gain, pad = batch["ratio_pad"][index - start]
            scale, shift = np.array([gain[1], gain[0]] * 2), np.array([*pad, *pad])
            one, two = (boxes[:, :4] * scale + shift for boxes in pairs[index].found)
            alone = pairs[index].alone
            image = batch["img"][index - start].detach().float().cpu().clone()
            found[index] = Disputed(index, image, (one[alone[0]], two[alone[1]]), one[~alone[0]], pairs[index].flips)
        start += images
        if len(found) == len(order):
            break
    return [found[index] for index in order if index in found]
