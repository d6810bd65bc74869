"""What a network sees of scored pairs, looked at once and kept: one number per channel and pair.

Apart from learning, which goes over these numbers again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from analysis.correlating import correlate
from analysis.perceptual_distance import PerceptualDistance
from analysis.perceptual_pairs import differences_beside, finite, measured, progress_of
from analysis.ratings import Ratings


class Seen:
    """What the weights act on, (channels,) per pair: kept where it fits, else computed when asked for.

    Args:
        distance: Whose network looks.
        data: Scored pairs.
        memory: Bytes to keep at most.
        size: Images at once.
        shown: Whether a bar is shown.
    """

    def __init__(self, distance: PerceptualDistance, data: Ratings, memory: int, size: int, shown: bool) -> None:
        self.distance, self.data, self.size = distance, data, size
        self.worse = torch.from_numpy(data.worse).to(distance.raw)
        self.order = sorted(range(len(data)), key=lambda place: data.items[place].reference)  # one look per reference
        fits = max(0, memory) // (distance.channels * distance.raw.element_size())
        self.known: dict[int, int] = {}
        self.kept = distance.raw.new_empty(min(fits, len(data)), distance.channels)
        with progress_of("features", data, shown) as tell, torch.no_grad():
            for place, row in self._look(self.order[: len(self.kept)]):
                self.known[place] = len(self.known)
                self.kept[self.known[place]] = row
                tell(len(self.known))

    @property
    def bytes(self) -> int:
        """What is kept, in bytes."""
        return self.kept.numel() * self.kept.element_size()

    def of(self, places: Sequence[int]) -> Tensor:
        """Rows of some pairs, (pairs, channels)."""
        fresh = [place for place in places if place not in self.known]
        with torch.no_grad():
            there = dict(self._look(sorted(fresh, key=lambda place: self.data.items[place].reference)))
        rows = [there[place] if place in there else self.kept[self.known[place]] for place in places]
        return torch.stack(rows)

    def _look(self, places: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        names = [(self.data.items[place].reference, self.data.items[place].distorted) for place in places]
        for begin, rows in measured(differences_beside(self.distance), self.data.image, names, self.size):
            yield from zip(places[begin : begin + len(rows)], finite(rows, names[begin:]), strict=True)

    def pearson(self) -> float | None:
        """The correlation of all pairs with the present weights."""
        with torch.no_grad():
            found = [self.distance.combine(self.of(part)) for part in parts(range(len(self.data)), 1024)]
        return correlate(torch.cat(found).double().cpu().numpy(), self.data.worse)["pearson"]


def parts(places: Sequence[int], size: int) -> list[list[int]]:
    """As few parts as possible of at most ``size``, of almost equal length: a batch of one has no correlation.

    Example:
        >>> parts(range(7), 3)
        [[0, 1, 2], [3, 4], [5, 6]]
    """
    count = -(-len(places) // size)
    return [part.tolist() for part in np.array_split(np.asarray(places), count)]
