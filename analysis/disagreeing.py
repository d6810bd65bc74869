"""Images on which two nets choose different classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.readings import FINAL, Readings


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
