"""How far features of shifted images are from shifted features: sums per image, and their ratios with intervals.

Apart from running the model: features come in, a few numbers per image are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.moving import Padding, shift_images
from analysis.tapping import Tap

Array = NDArray[np.float64]
Shift = tuple[float, float]  # pixels right, pixels down
Crop = tuple[int, int]  # positions left out at each border, down and right
RESAMPLES = 1000
AT_ONCE = 2**24  # numbers drawn at once


@dataclass
class Norms:
    """Of one tap, for each image: how far apart features are.

    Attributes:
        error: By shift: of the shifted image from the shifted features.
        spread: By crop: of the features from their mean over all positions, channel by channel.
        other: By crop: of the features from those of the image before; of the first from those of the last.
    """

    error: dict[Shift, list[float]] = field(default_factory=dict)
    spread: dict[Crop, list[float]] = field(default_factory=dict)
    other: dict[Crop, list[float]] = field(default_factory=dict)


class ShiftErrors:
    """Compares the features of shifted images with those of the images themselves, piece by piece.

    Args:
        taps: Whose features they are.
        shifts: Of the images.
        padding: With which images, and features, are shifted.
        border: "crop" leaves out what the shift has brought in, and one position more; "keep" nothing.
    """

    def __init__(self, taps: Sequence[Tap], shifts: Sequence[Shift], padding: Padding, border: str) -> None:
        self.taps = {tap.path: tap for tap in taps}
        self.shifts, self.padding, self.border = shifts, padding, border
        self.norms = {path: Norms() for path in self.taps}
        self.images = 0
        self.clean: dict[str, Tensor] = {}  # features of the images of this piece
        self.first: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.pending = {path: Norms() for path in self.taps}

    def keep(self, path: str, output: Tensor) -> None:
        """Remember the features of unshifted images."""
        self.clean[path] = self.taps[path].layout.open(output.detach()).clone()

    def compare(self, shift: Shift, path: str, output: Tensor) -> None:
        """Measure the features of shifted images."""
        layout = self.taps[path].layout
        moved, known = layout.open(output.detach()), self.clean[path]
        if layout.spatial:
            known = shift_images(known, *self.step(path, shift), padding=self.padding)
        self.pending[path].error[shift] = self._norms(moved - known, self.crop(path, shift))

    def step(self, path: str, shift: Shift) -> Shift:
        """A shift of the image in positions of the features; rounding does not make it a fraction."""
        down, right = self.taps[path].layout.reduction
        return (shift[0] / right, shift[1] / down)

    def crop(self, path: str, shift: Shift) -> Crop | None:
        """What to leave out at the borders; None where nothing would be left."""
        layout = self.taps[path].layout
        if self.border == "keep" or not layout.spatial:
            return (0, 0)
        right, down = (math.ceil(abs(step)) + 1 if step else 0 for step in self.step(path, shift))
        return (down, right) if layout.height > 2 * down and layout.width > 2 * right else None

    def finish(self, count: int) -> None:
        """End a piece of ``count`` images: measure the images themselves, and count what was found."""
        for path, clean in self.clean.items():
            before = torch.cat([self.before.get(path, clean[:1]), clean[:-1]])
            for crop in {self.crop(path, shift) for shift in self.shifts} - {None}:
                self._themselves(path, clean, before, crop)
            found, pending = self.norms[path], self.pending[path]
            for kind in ("error", "spread", "other"):
                for key, values in getattr(pending, kind).items():
                    getattr(found, kind).setdefault(key, []).extend(values)
            self.pending[path] = Norms()
            self.first.setdefault(path, clean[:1].clone())
            self.before[path] = clean[-1:].clone()
        self.images += count
        self.clean = {}

    def close(self) -> None:
        """Compare the first image with the last, now that this is known."""
        for path, first in self.first.items():
            for crop, values in self.norms[path].other.items():
                values[0] = self._norms(first - self.before[path], crop)[0] if self.images > 1 else math.nan

    def _themselves(self, path: str, clean: Tensor, before: Tensor, crop: Crop | None) -> None:
        if crop is None:
            return
        if self.taps[path].layout.spatial:
            inside = _inside(clean, crop)
            mean = inside.mean((2, 3), keepdim=True)
            self.pending[path].spread[crop] = self._norms(inside - mean, (0, 0))
        self.pending[path].other[crop] = self._norms(clean - before, crop)

    @staticmethod
    def _norms(difference: Tensor, crop: Crop | None) -> list[float]:
        if crop is None:
            return [math.nan] * len(difference)
        kind = torch.float64 if difference.device.type != "mps" else torch.float32
        flat = _inside(difference, crop).flatten(1)
        found: list[float] = torch.linalg.vector_norm(flat, dim=1, dtype=kind).tolist()
        return found


def _inside(features: Tensor, crop: Crop) -> Tensor:
    down, right = crop
    return features[:, :, down : features.shape[2] - down, right : features.shape[3] - right]


def ratios(above: Mapping[int, Array], below: Mapping[int, Array], seed: int) -> dict[int, tuple[float, float, float]]:
    """Ratios of means over images, each with the percentile interval from drawing the images anew.

    Args:
        above: Numbers of each image, by any key.
        below: Likewise, of the same images.
        seed: Of the draws, which are the same for all keys.

    Returns:
        By key: the ratio, and the ends of its 95% interval; not numbers where all below are 0 or one is missing.

    Example:
        >>> ratios({0: np.array([1.0, 1.0])}, {0: np.array([2.0, 2.0])}, 0)
        {0: (0.5, 0.5, 0.5)}
    """
    keys = [key for key in above if np.isfinite(above[key]).all() and np.isfinite(below[key]).all()]
    keys = [key for key in keys if below[key].sum() > 0]
    found = dict.fromkeys(above, (math.nan, math.nan, math.nan))
    if not keys:
        return found
    tops, bottoms = (np.stack([part[key] for key in keys], 1) for part in (above, below))
    count, generator, draws = len(tops), np.random.default_rng(seed), []
    chunk = max(1, AT_ONCE // count)
    for start in range(0, RESAMPLES, chunk):
        drawn = generator.multinomial(count, [1 / count] * count, size=min(chunk, RESAMPLES - start))
        under = drawn @ bottoms
        draws.append((drawn @ tops) / np.where(under > 0, under, np.nan))
    ends = np.nanquantile(np.concatenate(draws), (0.025, 0.975), axis=0)
    for i, key in enumerate(keys):
        found[key] = (float(tops[:, i].sum() / bottoms[:, i].sum()), float(ends[0, i]), float(ends[1, i]))
    return found


__all__ = ["Norms", "Shift", "ShiftErrors", "ratios"]
