"""From detections to figures: average precision of each variant, its interval, and what a treatment costs of it.

Apart from those of classifiers because average precision is no mean over images: its intervals come from drawing the
images anew, the same for the untouched model and its variants, and computing it again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.detection_coco import METRICS, CocoScores
from analysis.detection_running import Boxes, Detections
from analysis.detection_scores import FEWEST
from analysis.intervals import normal_interval, verdict
from analysis.judging import Interval, Judged
from analysis.readings import FINAL, Readings

AP, OTHERS = METRICS.index("AP"), {"ap50": METRICS.index("AP50"), "ap_small": METRICS.index("AP_S")}
Values = NDArray[np.float64]


class Scores(NamedTuple):
    """COCO's averages of the images as they are, and their AP in draws of the images."""

    values: Values
    draws: Values


class APMeasures:
    """Figures of detectors.

    Args:
        readings: Of a sweep with the task of a detector.
        cells: Parts and treatments to judge, and their number of draws.
        tolerance: Of the verdicts.
        seed: Of the resampled images.
        loaded: Images that were loaded.
        names: Of the classes.
        resamples: Draws of the images for the intervals; below 10 images there are none.
    """

    def __init__(
        self,
        readings: Readings,
        cells: Sequence[tuple[str, str, int]],
        tolerance: float,
        seed: int,
        loaded: int,
        names: Mapping[int, str],
        resamples: int,
    ) -> None:
        self.readings, self.tolerance, self.seed, self.loaded = readings, tolerance, seed, loaded
        self.names, self.resamples = dict(names), resamples
        self._untouched: dict[int, Scores] = {}
        self.final = self._final()
        self.judged = {(part, treatment): self._judge(part, treatment, count) for part, treatment, count in cells}

    def of(self, part: str, treatment: str) -> Judged:
        """A part with a treatment; of "final" the untouched model; nothing of what was not measured."""
        return self.final if treatment == FINAL else self.judged.get((part, treatment), Judged("ap", 0, 0))

    def headline(self) -> str:
        """Images, and the untouched average precision."""
        words = f"{self.final.images} images, untouched AP {_number(self.final.value)}"
        if self.final.interval is not None:
            words += " ({:.3f} to {:.3f})".format(*self.final.interval)
        if self._hopeless():
            words += f", at most the tolerance of {self.tolerance:g}: too little to be lost, so nothing is decided"
        if self.final.images < FEWEST and self.resamples:
            words += f", too few images for intervals (at least {FEWEST})"
        return words

    def _judge(self, part: str, treatment: str, count: int) -> Judged:
        keys = [f"{part}|{treatment}|{draw}" for draw in range(count)]
        images = min(map(self.readings.images, keys), default=0)
        if not images:
            return Judged("ap", 0, count)
        scores, before = [self._scores(key, images) for key in keys], self._before(images)
        values = np.mean([one.values for one in scores], 0)
        lost, drawn = before.values[AP] - values[AP], np.mean([one.draws for one in scores], 0)
        interval = _interval(lost, before.draws - drawn)
        return Judged(
            primary="ap",
            images=images,
            draws=count,
            value=_plain(values[AP]),
            interval=_share(_interval(values[AP], drawn)),
            means=self._means(keys, images, values),
            difference=_plain(lost),
            difference_interval=interval,
            spread=_plain(np.std([one.values[AP] for one in scores], ddof=1)) if count > 1 else None,
            decided="undecided" if interval is None or self._hopeless() else verdict(*interval, self.tolerance),
        )

    def _hopeless(self) -> bool:
        """Whether the untouched model has so little that losing all of it would pass for robust."""
        return self.final.value is None or self.final.value <= self.tolerance

    def _final(self) -> Judged:
        images = self.readings.images(FINAL)
        if not images:
            return Judged("ap", 0, 1)
        values, draws = self._before(images)
        interval = _share(_interval(values[AP], draws))
        nothing = None if interval is None else (0.0, 0.0)
        lost = None if math.isnan(values[AP]) else 0.0
        return Judged(
            "ap", images, 1, _plain(values[AP]), interval, self._means([FINAL], images, values), lost, nothing
        )

    def _means(self, keys: Sequence[str], images: int, values: Values) -> dict[str, float | None]:
        with np.errstate(invalid="ignore"):  # of a treated model that overflows
            loss = np.mean([self.readings.values(key, "loss")[:images].mean() for key in keys])
        return {"loss": _plain(loss), **{name: _plain(values[place]) for name, place in OTHERS.items()}}

    def _before(self, images: int) -> Scores:
        """Of the untouched model on the first images."""
        if images not in self._untouched:
            self._untouched[images] = self._scores(FINAL, images)
        return self._untouched[images]

    def _scores(self, key: str, images: int) -> Scores:
        coco = CocoScores(detections_of(self.readings, key, images, self.names))
        return Scores(coco.all(), coco.resampled_ap(self.resamples if images >= FEWEST else 0, self.seed))


def detections_of(readings: Readings, key: str, images: int, names: Mapping[int, str]) -> Detections:
    """What a variant found in the first images, in the order of their paths, and what is there.

    Args:
        readings: Of a sweep with the task of a detector.
        key: Of the variant.
        images: How many.
        names: Of the classes.
    """
    found, there = (_boxes(readings, key, *columns, images) for columns in (("found", "boxes"), ("objects", "truth")))
    return Detections([str(number) for number in range(images)], found, there, dict(names), {})


def _boxes(readings: Readings, key: str, counts: str, rows: str, images: int) -> list[Boxes]:
    """Of each image what its rows say: corners, then score and class, or class alone."""
    tables = tables_of(readings, key, counts, rows, images)
    order = np.argsort(readings.values(key, "place")[:images], kind="stable")  # ties of scores go by it
    return [
        {"boxes": one[:, :4], "scores": one[:, 4], "labels": one[:, -1].astype(np.int64)}
        for one in (tables[image] for image in order)
    ]


def tables_of(readings: Readings, key: str, counts: str, rows: str, images: int) -> list[Values]:
    """The rows of each of the first images, in the order of the data.

    Args:
        readings: Of a sweep with the task of a detector.
        key: Of the variant.
        counts: Name of what says how many rows are whose.
        rows: Name of the rows.
        images: How many.
    """
    ends = np.cumsum(readings.values(key, counts)[:images], dtype=np.int64)
    return np.split(readings.values(key, rows).astype(np.float64), ends)[:images]


def _interval(center: float, draws: Values) -> Interval | None:
    """Around a figure; none where it is none, or fewer than half of the draws are."""
    numbers = draws[~np.isnan(draws)]
    if math.isnan(center) or len(numbers) < 2 or 2 * len(numbers) < len(draws):
        return None
    return normal_interval(float(center), numbers)


def _share(interval: Interval | None) -> Interval | None:
    return None if interval is None else (max(interval[0], 0.0), min(interval[1], 1.0))


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "none (no object)" if value is None else f"{value:.3f}"
