"""From readings to figures: mean values, intervals, paired differences to the untouched model, verdicts.

Apart from the analyses, which decide what is treated, and share how it is judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from analysis.intervals import Verdict, paired_bootstrap, verdict, wilson
from analysis.readings import FINAL, Readings
from analysis.result import Row
from surgeon.table import si, table

Interval = tuple[float, float]


@dataclass(frozen=True)
class Judged:
    """A treated part, judged.

    Attributes:
        primary: Name of the primary metric.
        images: On which it was measured; 0 where it was not.
        draws: Averaged.
        value: Of the primary metric, with its 95% interval.
        means: Of all other metrics.
        difference: Loss to the untouched model on the same images, with its 95% interval; more is worse.
        spread: Standard deviation over the draws.
        decided: Verdict.
        unmoved: Whether the loss of every image is to the last bit that of the untouched model.
    """

    primary: str
    images: int
    draws: int
    value: float | None = None
    interval: Interval | None = None
    means: dict[str, float | None] = field(default_factory=dict)
    difference: float | None = None
    difference_interval: Interval | None = None
    spread: float | None = None
    decided: Verdict | None = None
    unmoved: bool = False

    def row(self, verdict: bool = True) -> Row:
        """The columns of a table."""
        low, high = self.interval or (None, None)
        below, above = self.difference_interval or (None, None)
        name = self.primary
        return {
            **{"draws": self.draws, "images": self.images, name: self.value},
            **{f"{name}_low_95": low, f"{name}_high_95": high, **self.means},
            **{"difference": self.difference, "difference_low_95": below, "difference_high_95": above},
            "verdict": (self.decided or "-") if verdict else "-",
            "sd_over_draws": self.spread,
        }


def pivot(rows: Sequence[Row], key: str, primary: str) -> str:
    """A table with a line per unit or group and a column per treatment: the metric, and the verdict beside it.

    Example:
        >>> row = {"unit": "stem", "params": 1200, "treatment": "rerand", "error": 0.5, "verdict": "critical"}
        >>> print(pivot([row], "unit", "error"))
        unit  params  rerand
        stem   1.20k  50.00% critical
    """
    columns = list(dict.fromkeys(row["treatment"] for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        words = "-" if row[primary] is None else f"{row[primary]:.2%}" if primary == "error" else f"{row[primary]:.4f}"
        line = lines.setdefault(row[key], {key: row[key], "params": si(row["params"])})
        line[row["treatment"]] = words if row["verdict"] == "-" else f"{words} {row['verdict']}"
    head = [key, "params", *columns]
    return table(head, [[line.get(column, "-") for column in head] for line in lines.values()], frozenset({"params"}))


class Measures(Protocol):
    """The figures of a study."""

    loaded: int

    def of(self, part: str, treatment: str) -> Judged:
        """A part with a treatment; of "final" the untouched model."""

    def headline(self) -> str:
        """The untouched model in a few words."""


class ErrorMeasures:
    """Figures of classifiers.

    Args:
        readings: Of a sweep.
        cells: Parts and treatments to judge, and their number of draws.
        tolerance: Of the verdicts.
        seed: Of the bootstrap.
        loaded: Images that were loaded.
    """

    def __init__(
        self, readings: Readings, cells: Sequence[tuple[str, str, int]], tolerance: float, seed: int, loaded: int
    ) -> None:
        self.readings, self.tolerance, self.loaded = readings, tolerance, loaded
        self.others = [name for name in readings.metrics() if name != "error"]
        self.draws = {(part, treatment): count for part, treatment, count in cells}
        paired = [self._differences(*cell) for cell in self.draws]
        intervals = paired_bootstrap(paired, seed)
        self.judged = {
            cell: self._judge(cell, values, interval)
            for cell, values, interval in zip(self.draws, paired, intervals, strict=True)
        }
        self.final = self._final()

    def of(self, part: str, treatment: str) -> Judged:
        """A part with a treatment; of "final" the untouched model; nothing of what was not measured."""
        return self.final if treatment == FINAL else self.judged.get((part, treatment), Judged("error", 0, 0))

    def headline(self) -> str:
        """Images, and the untouched error."""
        low, high = self.final.interval or (math.nan, math.nan)
        return f"{self.final.images} images, untouched error {self.final.value or 0:.2%} ({low:.1%} to {high:.1%})"

    def _keys(self, part: str, treatment: str) -> list[str]:
        return [f"{part}|{treatment}|{draw}" for draw in range(self.draws[part, treatment])]

    def _differences(self, part: str, treatment: str) -> NDArray[Any]:
        """Image by image, the mean over draws; of the images all draws have."""
        draws = [self.readings.paired(key, "error") for key in self._keys(part, treatment)]
        images = min(map(len, draws), default=0)
        return np.mean([values[:images] for values in draws], 0) if images else np.zeros(0)

    def _judge(self, cell: tuple[str, str], differences: NDArray[Any], interval: Interval) -> Judged:
        images, keys = len(differences), self._keys(*cell)
        if not images:
            return Judged("error", 0, len(keys))
        errors = [float(self.readings.values(key, "error")[:images].mean()) for key in keys]
        mean = sum(errors) / len(errors)
        return Judged(
            primary="error",
            images=images,
            draws=len(keys),
            value=mean,
            interval=wilson(round(mean * images), images),
            means={name: self._mean(keys, name, images) for name in self.others},
            difference=float(differences.mean()),
            difference_interval=interval,
            spread=float(np.std(errors, ddof=1)) if len(errors) > 1 else None,
            unmoved=not any(np.any(self.readings.paired(key, "loss")) for key in keys),
            decided=self.readings.decided.get("|".join(cell)) or verdict(*interval, self.tolerance),  # type: ignore[arg-type]
        )

    def _mean(self, keys: Sequence[str], metric: str, images: int) -> float | None:
        values = [float(self.readings.values(key, metric)[:images].mean()) for key in keys]
        mean = sum(values) / len(values)
        return mean if math.isfinite(mean) else None

    def _final(self) -> Judged:
        wrong = self.readings.values(FINAL, "error")
        if not len(wrong):
            return Judged("error", 0, 1)
        means = {name: self._mean([FINAL], name, len(wrong)) for name in self.others}
        value, interval = float(wrong.mean()), wilson(int(wrong.sum()), len(wrong))
        return Judged("error", len(wrong), 1, value, interval, means, 0.0, (0.0, 0.0))
