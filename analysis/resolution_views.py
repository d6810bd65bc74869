"""Images at a lower resolution: what is left of them, shown at their own size or as small as they have become.

Apart from the analysis, which measures; and of detectors with what tells where their boxes lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.detection_batches import PER_OBJECT, Batch
from surgeon.errors import AnalysisError

Down = Literal["bicubic", "area"]
BARS = 114 / 255  # grey of ultralytics' letterbox


def factors_of(factors: Iterable[float] | float) -> list[float]:
    """The resolutions a user asked for, the highest first, full resolution among them.

    Raises:
        AnalysisError: For factors that are none.

    Example:
        >>> factors_of((1 / 4, 1 / 2))
        [1.0, 0.5, 0.25]
    """
    values = [*factors] if isinstance(factors, Iterable) and not isinstance(factors, str) else [factors]
    for value in values:
        fine = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
        if not fine:
            raise AnalysisError(
                f"factors holds {value!r}; give shares of the resolution, over 0 and at most 1, as (1, 1 / 2, 1 / 4)"
            )
    return sorted({1.0, *map(float, values)}, reverse=True)


def shrink_images(images: Tensor, factor: float, down: Down = "bicubic", back: bool = True) -> Tensor:
    """Images at a lower resolution.

    Args:
        images: (N, C, H, W).
        factor: Of both sides, which are rounded to whole pixels; at most 1.
        down: "bicubic" with antialiasing (as Pillow's), kept within the smallest and largest value of each image's
            channel; "area" the mean of what a pixel covers.
        back: Answer them at their own size, enlarged bicubically; else as small as they are.

    Raises:
        AnalysisError: For an unknown ``down``.

    Example:
        >>> shrink_images(torch.arange(16.0).view(1, 1, 4, 4), 0.5, "area", back=False).flatten().tolist()
        [2.5, 4.5, 10.5, 12.5]
        >>> shrink_images(torch.ones(1, 3, 30, 20), 0.5).shape
        torch.Size([1, 3, 30, 20])
    """
    if down not in get_args(Down):
        raise AnalysisError(f"down is {down!r}; it is one of {', '.join(get_args(Down))}")
    if factor == 1:
        return images
    height, width = images.shape[-2:]
    size = (max(round(height * factor), 1), max(round(width * factor), 1))
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    low, high = (function(exact, dim=(2, 3), keepdim=True) for function in (torch.amin, torch.amax))
    if down == "area":
        small = F.interpolate(exact, size, mode="area")
    else:
        small = F.interpolate(exact, size, mode="bicubic", antialias=True, align_corners=False)
    shown = F.interpolate(small, (height, width), mode="bicubic", align_corners=False) if back else small
    return shown.clamp(low, high).to(images.dtype)


@dataclass(frozen=True)
class Lower:
    """A batch at a lower resolution.

    Attributes:
        factor: Of both sides.
        down: As of :func:`shrink_images`.
        back: Likewise.
        grid: Of detectors: pixels that divide the sides of what they see; 0 for classifiers.
    """

    factor: float
    down: Down
    back: bool
    grid: int = 0

    @property
    def name(self) -> str:
        """What it is called among the readings."""
        return f"resolution {self.factor:.6g}"

    def view(self, batch: Any, _number: int, _start: int) -> Any:
        """What the model is shown of a batch."""
        if self.grid:
            return self._detectors(batch)
        images, targets = batch
        return shrink_images(images, self.factor, self.down, self.back), targets

    def _detectors(self, batch: Batch) -> Batch:
        """Boxes stay in pixels of the image on disk; small images get bars to the next multiple of the grid."""
        images, nothing = batch["img"], {key: batch[key][:0] for key in PER_OBJECT}  # objects of the loss
        small = shrink_images(images, self.factor, self.down, self.back)
        down, across = (small.shape[axis] / images.shape[axis] for axis in (2, 3))
        right, below = (-small.shape[axis] % self.grid for axis in (3, 2))
        scaled = tuple(
            ((gain[0] * down, gain[1] * across), (pad[0] * across, pad[1] * down)) for gain, pad in batch["ratio_pad"]
        )
        return {**batch, **nothing, "img": F.pad(small, (0, right, 0, below), value=BARS), "ratio_pad": scaled}


def sides(factor: float, height: int, width: int) -> tuple[int, int]:
    """How many pixels an image of this size holds at a lower resolution, (height, width).

    Example:
        >>> sides(0.25, 224, 225)
        (56, 56)
    """
    return tuple(max(round(side * factor), 1) for side in (height, width))  # type: ignore[return-value]


def named(factor: float) -> str:
    """A factor as one reads it.

    Example:
        >>> named(0.25), named(1.0), named(0.3)
        ('1/4', '1', '0.3')
    """
    turned = 1 / factor
    return f"1/{round(turned)}" if factor < 1 and math.isclose(turned, round(turned)) else f"{factor:g}"


__all__ = ["Down", "Lower", "factors_of", "named", "shrink_images", "sides"]
