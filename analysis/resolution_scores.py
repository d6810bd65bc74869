"""What nets are worth at each resolution, with intervals: accuracy of classifiers, average precision of detectors.

Apart from the analysis because accuracy is a mean over images and average precision is not; both answer the same
questions: a value, the difference of two, and the difference of differences, on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from analysis.detection_coco import METRICS, CocoScores
from analysis.detection_measures import detections_of
from analysis.detection_scores import FEWEST
from analysis.intervals import normal_interval, paired_bootstrap
from analysis.readings import Readings
from analysis.result import Row
from analysis.scanning import accuracy

Cell = tuple[str, float]  # name of a net, and factor of the resolution
Values = NDArray[np.float64]
PLACES = {"ap": METRICS.index("AP"), "ap_small": METRICS.index("AP_S"), "ap50": METRICS.index("AP50")}


class Scores(Protocol):
    """Figures of nets at resolutions.

    Attributes:
        metrics: Columns that are compared, the most telling first.
        cells: What was measured.
        images: On which all were measured.
    """

    metrics: tuple[str, ...]
    cells: set[Cell]
    images: int

    def plain(self, cell: Cell) -> Row:
        """Further columns, which are not compared."""

    def signed(self, metric: str, cells: Mapping[Cell, int]) -> tuple[float | None, float | None, float | None]:
        """A sum of values, each times 1 or -1, and its 95% interval over images, the same for all nets."""


class Accuracies:
    """Figures of classifiers.

    Args:
        readings: Of each net.
        keys: Of each cell that was measured: what its variant is called.
        seed: Of the resampled images.
    """

    metrics: tuple[str, ...] = ("accuracy",)

    def __init__(self, readings: Mapping[str, Readings], keys: Mapping[Cell, str], seed: int) -> None:
        self.readings, self.keys, self.cells, self.seed = readings, keys, set(keys), seed
        self.images = min(readings[net].images(key) for (net, _), key in keys.items())

    def plain(self, cell: Cell) -> Row:
        """Cross-entropy, the share of images with the same class as at full resolution, and the user's metrics."""
        names = [name for name in self.readings[cell[0]].metrics() if name != "error"]
        means = {name: float(self._values(cell, name).mean()) for name in names}
        return {name: value if math.isfinite(value) else None for name, value in means.items()}

    def signed(self, metric: str, cells: Mapping[Cell, int]) -> tuple[float | None, float | None, float | None]:
        """Of one cell Wilson's interval, of several from drawing the images anew."""
        if len(cells) == 1:
            row = accuracy(self._values(next(iter(cells)), "error"))
            return row["accuracy"], row["accuracy_low_95"], row["accuracy_high_95"]
        values: Values = -sum(sign * self._values(cell, "error").astype(float) for cell, sign in cells.items())  # type: ignore[assignment]
        width = len(cells) / 2  # how far values can go; the bootstrap is of values up to 1
        low, high = paired_bootstrap([values / width], self.seed)[0]
        return float(values.mean()), width * low, width * high

    def _values(self, cell: Cell, name: str) -> Any:
        return self.readings[cell[0]].values(self.keys[cell], name)[: self.images]


class Precisions:
    """Figures of detectors.

    Args:
        readings: Of each net.
        keys: Of each cell that was measured: what its variant is called.
        seed: Of the resampled images.
        names: Of the classes.
        resamples: Draws of the images; none below 10 images.
    """

    metrics: tuple[str, ...] = ("ap", "ap_small")

    def __init__(
        self, readings: Mapping[str, Readings], keys: Mapping[Cell, str], seed: int, names: Mapping[int, str],
        resamples: int,
    ) -> None:  # fmt: skip
        self.images = min(readings[net].images(key) for (net, _), key in keys.items())
        self.cells, self.values = set(keys), dict[Cell, Values]()
        self.draws: dict[Cell, Values] = {}
        for cell, key in keys.items():
            scores = CocoScores(detections_of(readings[cell[0]], key, self.images, names))
            self.values[cell] = scores.all()
            self.draws[cell] = scores.resampled(resamples if self.images >= FEWEST else 0, seed)

    def plain(self, cell: Cell) -> Row:
        """Average precision at an overlap of one half."""
        value = float(self.values[cell][PLACES["ap50"]])
        return {"ap50": value if math.isfinite(value) else None}

    def signed(self, metric: str, cells: Mapping[Cell, int]) -> tuple[float | None, float | None, float | None]:
        """From drawing the images anew, of all nets the same, and computing the average precision again."""
        place = PLACES[metric]
        value = float(sum(sign * self.values[cell][place] for cell, sign in cells.items()))
        if not math.isfinite(value):
            return None, None, None
        draws = np.sum([sign * self.draws[cell][:, place] for cell, sign in cells.items()], 0)
        numbers = draws[np.isfinite(draws)]
        if len(numbers) < 2 or 2 * len(numbers) < len(draws):
            return value, None, None
        low, high = normal_interval(value, numbers)
        return (value, max(low, 0.0), min(high, 1.0)) if len(cells) == 1 else (value, low, high)


def columns_of(scores: Scores, cell: Cell, first: str | None) -> Row:
    """The columns of a net at a resolution.

    Args:
        scores: Of all.
        cell: The net and the resolution.
        first: The net that others are compared with; None where there is one only.

    Returns:
        For each metric its value; ``_change``: less that of the same net at full resolution; ``_lead``: less that of
        the first net at the same resolution; ``_lead_change``: the lead less that at full resolution.
    """
    net, factor = cell
    row: Row = {}
    for metric in scores.metrics:
        rivals: dict[str, dict[Cell, int] | None] = {"": {}, "_change": {(net, 1.0): -1}}
        if first is not None:
            lead: dict[Cell, int] | None = {(first, factor): -1} if net != first else None
            rivals["_lead"] = lead
            rivals["_lead_change"] = None if lead is None else {**lead, (net, 1.0): -1, (first, 1.0): 1}
        for name, others in rivals.items():
            found: tuple[float | None, ...] = (None, None, None)
            if name.endswith("_change") and factor == 1 and others is not None:
                found = (0.0, 0.0, 0.0)
            elif others is not None and others.keys() <= scores.cells:
                found = scores.signed(metric, {cell: 1, **others})
            row |= {
                f"{metric}{name}{end}": value for end, value in zip(("", "_low_95", "_high_95"), found, strict=True)
            }
    return row | scores.plain(cell)
