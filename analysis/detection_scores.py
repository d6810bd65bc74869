"""Average precision of a detector by size of object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.detection_coco import METRICS, CocoScores, coco_eval, interval, objects_of_size
from analysis.detection_latency import latencies
from analysis.detection_running import Detections, check_detector, detect
from analysis.result import Result, Row

FEWEST = 10  # images; with fewer, drawing images anew says nothing
SIZES = {"AP_S": "small", "AP_M": "medium", "AP_L": "large"}
BLUE = "#0072B2"  # of Okabe and Ito


class DetectionScores(Result):
    """Average precision of one detector, over all objects and by size.

    ``found`` are the boxes it is computed of, ``values`` maps metric to value (None without an object of that size),
    ``draws`` holds the metrics of resampled images, ``latency_ms`` the median of a forward pass or None.
    """

    def __init__(self, found: Detections, resamples: int, seed: int, latency_ms: float | None = None) -> None:
        scores = CocoScores(found)
        self.found, self.seed, self.latency_ms = found, seed, latency_ms
        self.draws = scores.resampled(resamples if len(found.images) >= FEWEST else 0, seed)
        self.values = {
            key: None if np.isnan(value) else float(value) for key, value in zip(METRICS, scores.all(), strict=True)
        }
        self.objects = objects_of_size(found.targets)
        rows = [self._row(key, self.draws[:, i]) for i, key in enumerate(METRICS)]
        if latency_ms is not None:
            rows.append(_latency_row(latency_ms))
        super().__init__("Detection", rows, self._summary())

    def _row(self, key: str, draws: NDArray[np.float64]) -> Row:
        low, high = interval(draws) or (None, None)
        value, note = self.values[key], ""
        if value is None:
            low, high, note = None, None, nothing(key)
        row = {"metric": key, "value": value, "low_95": low, "high_95": high}
        return row | {"objects": self.objects[key], "note": note}

    def _summary(self) -> str:
        text = f"{len(self.found.images)} images, {self.objects['AP']} objects; AP {_number(self.values['AP'])}"
        text += f", of small objects {_number(self.values['AP_S'])}"
        if self.latency_ms is not None:
            text += f"; {self.latency_ms:.1f} ms per image"
        return text + about_intervals(self.draws, len(self.found.images)) + self.found.without()

    def figure(self) -> Figure:
        """Draw the metrics with their intervals; the number of objects under each."""
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        bars(axes, self, 0.0, 0.6, BLUE)
        dress(axes, self.objects)
        figure.suptitle(self.title, fontsize=11)
        return figure


def detection(
    model: Any,
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
) -> DetectionScores:
    """Average precision of a detector, over all objects and by their size.

    AP is COCO's: the mean over classes and over IoU thresholds 0.50 to 0.95, of the 100 best detections per image and
    class. Sizes are areas in pixels of the image as it is on disk: small up to 32 x 32, large from 96 x 96.

    Args:
        model: ``YOLO`` or ``RTDETR`` object for detection, stock or operated.
        data: A data yaml as ultralytics reads it.
        imgsz: Pixels of the longer side the net sees.
        batch: Images per forward pass.
        conf: Lowest score of a detection.
        max_det: Most detections per image.
        device: As ultralytics names devices: cpu, 0, cuda:0.
        split: train, val or test.
        latency: Also measure the median time of a forward pass at batch 1.
        resamples: Draws of images with replacement for the 95% interval; 0 for none, and none below 10 images. A draw
            costs a fifth of a second on 2,000 images of 20 classes, two seconds on 5,000 of 80.
        seed: Of the draws.

    Returns:
        Rows with ``metric``, ``value`` (0 to 1; None where there is no object of that size), ``low_95``, ``high_95``,
        ``objects`` (how many the metric is over), ``note``; a row ``latency_ms`` where measured.

    Raises:
        AnalysisError: When a package is missing, the model is no detector, or data and model do not fit.

    Example:
        >>> detection("yolo11n.pt", "coco8.yaml")
        Traceback (most recent call last):
        ...
        surgeon.errors.AnalysisError: detection needs a YOLO or RTDETR object, found str; ...

    References:
        Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, arXiv:1405.0312. Deviation: the area of an
        object is that of its box, not of its outline, as YOLO data has boxes; ultralytics does the same.
    """
    check_scorable(model)
    settings = {"imgsz": imgsz, "batch": batch, "conf": conf, "max_det": max_det, "device": device, "split": split}
    found = detect(model, data, **settings)  # type: ignore[arg-type]
    time = latencies([model], imgsz, device)[0] if latency else None
    return DetectionScores(found, resamples, seed, time)


def check_scorable(model: Any) -> None:
    """Say what is missing before a net is run, which takes long: a package, or the detector.

    Raises:
        AnalysisError: As :func:`analysis.detection`.
    """
    check_detector(model)
    coco_eval()


def _latency_row(latency_ms: float) -> Row:
    row = {"metric": "latency_ms", "value": latency_ms, "low_95": None, "high_95": None}
    return row | {"objects": None, "note": "forward pass, batch 1"}


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def nothing(key: str) -> str:
    """What to say where a metric is over no object.

    Example:
        >>> nothing("AP_S"), nothing("AP")
        ('no small object', 'no object')
    """
    return " ".join(["no", *filter(None, [SIZES.get(key)]), "object"])


def about_intervals(draws: NDArray[np.float64], images: int) -> str:
    """End a summary by saying what the intervals are, or why there are none."""
    if len(draws):
        return f". Intervals: 95% over {len(draws)} draws of the images"
    return f". No intervals: {images} images are too few" if images < FEWEST else ". No intervals were asked for"


def bars(axes: Any, scores: DetectionScores, shift: float, width: float, colour: str, label: str = "") -> None:
    """Draw one net's metrics beside each other's place, each with its interval."""
    rows = scores.rows[: len(METRICS)]
    places = [place + shift for place in range(len(rows))]
    axes.bar(places, [row["value"] or 0 for row in rows], width, color=colour, label=label or None)
    for place, row in zip(places, rows, strict=True):
        if row["value"] is None:
            axes.text(place, 0.005, "none", ha="center", fontsize="x-small", color="0.4")
        elif row["low_95"] is not None:
            axes.plot([place, place], [row["low_95"], row["high_95"]], color="black", linewidth=1)


def dress(axes: Any, objects: dict[str, int]) -> None:
    """Name the metrics and the number of objects each is over."""
    axes.set_xticks(range(len(METRICS)), [f"{key}\n{objects[key]:,}" for key in METRICS])
    axes.set_xlabel("metric, and the objects it is over")
    axes.set_ylabel("average precision, or recall")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
