"""Two detectors on the same images: what changed by size of object, and whether the images can tell.

Apart from the scores of one net, which it is made of twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.detection_coco import METRICS, interval
from analysis.detection_latency import latencies
from analysis.detection_running import detect
from analysis.detection_scores import BLUE, DetectionScores, about_intervals, bars, check_scorable, dress, nothing
from analysis.result import Result, Row, two_names
from surgeon.errors import AnalysisError

ORANGE, GREY = "#D55E00", "#999999"  # of Okabe and Ito
APART, TIED = ("higher", "lower"), "cannot be told apart"
COLUMNS = ("metric", "difference", "low_95", "high_95", "objects", "verdict")


class DetectionComparison(Result):
    """Two detectors on the same images: each metric, the difference, and whether the images can tell them apart.

    ``first`` and ``second`` are their :class:`DetectionScores`, ``labels`` their names.
    """

    def __init__(self, first: DetectionScores, second: DetectionScores, labels: tuple[str, str]) -> None:
        self.first, self.second, self.labels = first, second, two_names(labels, COLUMNS)
        self._check()
        self._draws = second.draws - first.draws
        rows = [self._row(key, self._draws[:, i]) for i, key in enumerate(METRICS)]
        if first.latency_ms is not None and second.latency_ms is not None:
            rows.append(self._latency(first.latency_ms, second.latency_ms))
        super().__init__(f"Detection: {labels[0]} against {labels[1]}", rows, self._summary(rows))

    def _check(self) -> None:
        one, two = self.first.found, self.second.found
        same = (one.images, one.names) == (two.images, two.names) and all(
            np.array_equal(a[key], b[key])
            for a, b in zip(one.targets, two.targets, strict=True)
            for key in ("boxes", "labels")
        )
        draws = [(len(scores.draws), scores.seed) for scores in (self.first, self.second)]
        if not same or draws[0] != draws[1]:
            raise AnalysisError(
                f"the nets were run on different images or objects ({len(one.images)} and {len(two.images)} images) or "
                f"resampled differently ({draws[0][0]} draws from seed {draws[0][1]}, {draws[1][0]} from "
                f"{draws[1][1]}); run both on one data set with the same settings"
            )

    def _row(self, key: str, draws: NDArray[np.float64]) -> Row:
        one, two = self.first.values[key], self.second.values[key]
        difference = None if one is None or two is None else two - one
        low, high = (interval(draws) if difference is not None else None) or (None, None)
        row = {"metric": key, self.labels[0]: one, self.labels[1]: two, "difference": difference}
        row |= {"low_95": low, "high_95": high, "objects": self.first.objects[key]}
        if difference is None:
            return row | {"verdict": nothing(key)}
        if low is None or high is None or one == two == 0:
            return row | {"verdict": "not tested" if one or two else "neither net finds any"}
        return row | {"verdict": TIED if low <= 0 <= high else APART[difference < 0]}

    def _latency(self, one: float, two: float) -> Row:
        row = {"metric": "latency_ms", self.labels[0]: one, self.labels[1]: two, "difference": two - one}
        row |= {"low_95": None, "high_95": None, "objects": None}
        return row | {"verdict": f"{two / one:.2f} times"}

    def _summary(self, rows: Sequence[Row]) -> str:
        small, every = rows[METRICS.index("AP_S")], rows[METRICS.index("AP")]
        text = f"{len(self.first.found.images)} images, {self.first.objects['AP']} objects"
        for row, words in ((every, "AP"), (small, "AP of small objects")):
            text += f"; {words}: {self.labels[1]} {_verdict(row)}"
        return text + about_intervals(self._draws, len(self.first.found.images)) + self.first.found.without()

    def figure(self) -> Figure:
        """Draw both nets side by side, and the differences with their intervals; grey cannot be told from none."""
        figure = Figure(figsize=(10.4, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        bars(left, self.first, -0.2, 0.38, BLUE, self.labels[0])
        bars(left, self.second, 0.2, 0.38, ORANGE, self.labels[1])
        dress(left, self.first.objects)
        left.legend(frameon=False, loc="best")
        self._differences(right)
        times = [scores.latency_ms for scores in (self.first, self.second)]
        timed = "".join(f"  ·  {label} {time:.1f} ms" for label, time in zip(self.labels, times, strict=True) if time)
        figure.suptitle(self.title + timed, fontsize=11)
        return figure

    def _differences(self, axes: Any) -> None:
        axes.axvline(0, color="0.4", linewidth=0.8)
        for place, row in enumerate(self.rows[: len(METRICS)]):
            if row["difference"] is None:
                axes.text(0.02, place, row["verdict"], transform=axes.get_yaxis_transform(), va="center", color=GREY)
                continue
            colour = "black" if row["verdict"] in APART else GREY
            if row["low_95"] is not None:
                axes.plot([row["low_95"], row["high_95"]], [place, place], color=colour, linewidth=2)
            axes.plot(row["difference"], place, "o", color=colour, markersize=6)
        axes.set(yticks=range(len(METRICS)), yticklabels=METRICS, ylim=(len(METRICS) - 0.5, -0.5))
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"{self.labels[1]} - {self.labels[0]}, 95% interval over images\ngrey: {TIED}")
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)


def compare_detection(
    a: Any,
    b: Any,
    data: str | Path,
    *,
    imgsz: int = 640,
    batch: int = 16,
    conf: float = 0.001,
    max_det: int = 300,
    device: str = "cpu",
    split: str = "val",
    latency: bool = True,
    resamples: int = 200,
    seed: int = 0,
    labels: tuple[str, str] = ("original", "operated"),
) -> DetectionComparison:
    """Two detectors on the same images: average precision by size, differences with their interval, latency.

    The interval is over images, drawn anew for both nets alike: it says whether other images of this kind could turn
    the difference, not whether another training could. Each metric has its own 95%; they are not corrected for being
    seven.

    Args:
        a: The original, a ``YOLO`` or ``RTDETR`` object.
        b: The other, operated for instance.
        data: A data yaml as ultralytics reads it.
        imgsz: Pixels of the longer side the nets see.
        batch: Images per forward pass.
        conf: Lowest score of a detection.
        max_det: Most detections per image.
        device: As ultralytics names devices: cpu, 0, cuda:0.
        split: train, val or test.
        latency: Also measure the median time of a forward pass at batch 1, the nets taking turns.
        resamples: Draws of images with replacement for the 95% interval; 0 for none, and none below 10 images.
        seed: Of the draws.
        labels: Names of the two in tables and figures.

    Returns:
        Rows with ``metric``, one column per net, ``difference`` (second minus first), ``low_95``, ``high_95``,
        ``objects`` and ``verdict``: higher, lower, or cannot be told apart.

    Raises:
        AnalysisError: As :func:`analysis.detection`, and when the labels are not two different names.

    Example:
        >>> compare_detection("a.pt", "b.pt", "coco8.yaml")
        Traceback (most recent call last):
        ...
        surgeon.errors.AnalysisError: detection needs a YOLO or RTDETR object, found str; ...
    """
    two_names(labels, COLUMNS)
    for model in (a, b):
        check_scorable(model)
    settings = {"imgsz": imgsz, "batch": batch, "conf": conf, "max_det": max_det, "device": device, "split": split}
    found = [detect(model, data, **settings) for model in (a, b)]  # type: ignore[arg-type]
    times = latencies([a, b], imgsz, device) if latency else [None, None]
    one, two = (DetectionScores(each, resamples, seed, time) for each, time in zip(found, times, strict=True))
    return DetectionComparison(one, two, labels)


def _verdict(row: Row) -> str:
    if row["difference"] is None:
        return f"{row['verdict']}s"
    if row["low_95"] is None:
        return f"{row['difference']:+.3f}, {row['verdict']}"
    return f"{row['difference']:+.3f} ({row['low_95']:+.3f} to {row['high_95']:+.3f}), {row['verdict']}"
