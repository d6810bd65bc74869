"""Detectors under shift: what an image moved by pixels does to average precision, and to boxes that should only move.

How pictures are moved lies in `shift_views`, what is compared in `detection_jitter`; here they come together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis.detection_frames import Framed, seen_by
from analysis.detection_jitter import COUNTED, Drawn, Rules, columns_of, tally
from analysis.detection_shift_result import DetectionShift as DetectionShift
from analysis.detection_shift_result import summary_of
from analysis.judging import Judged, Measures
from analysis.moves import Axis
from analysis.moving import Padding
from analysis.opening import detects
from analysis.readings import FINAL, Readings
from analysis.result import Row
from analysis.scanning import Scan
from analysis.shift_views import Shift, Shifting, shifts_of
from analysis.spectra import find_periods, holm
from analysis.study_settings import Settings
from analysis.variants import Variant
from surgeon.errors import AnalysisError, SurgeonError
from surgeon.host import unwrap
from surgeon.locating import locate

STILL = (0.0, 0.0)
SURE = 0.01  # chance of noise that looks as periodic, over all periods tried


def detection_shift(
    model: Any,
    data: Any,
    *,
    shifts: Sequence[float] | float | None = None,
    axis: Axis = "diagonal",
    padding: Padding = "mirror",
    fill: float = 0.0,
    match_iou: float = 0.5,
    conf: float = 0.25,
    detector: Mapping[str, Any] | None = None,
    seed: int = 0,
    limit: int | None = None,
    amp: str | None = None,
    memory: int | str = "1GiB",
    ledger: str | Path | None = None,
    progress: bool = True,
    command: str = "",
) -> DetectionShift:
    """Measure what shifts of its images do to a detector: average precision, box jitter, class flips.

    The picture is moved inside what the net sees (the bars of a letterbox stay), the objects of the truth with it:
    clipped at the border, and left out where less than half of one stays. Detections of a moved image are moved back
    and paired with those of the unmoved one; whatever a shift changes beside the place is instability. All shifts are
    measured in one pass over the data; the model is put back bit for bit.

    Args:
        model: A ``YOLO`` or ``RTDETR`` object for detection or its inner model, stock or operated.
        data: A data yaml, or batches of (images from 0 to 1, [{"boxes": corners in pixels, "labels"}]).
        shifts: Pixels of what the net sees; fractions are Fourier shifts. Every pixel up to the largest stride by
            default, of a grid every eighth of it.
        axis: "diagonal" (right and down alike), "horizontal", "vertical", or "grid" (every pair of shifts).
        padding: What comes in: "mirror" the picture reflected (its objects are none of the truth, which costs average
            precision), "black", "circular" what has left; with "crop" what the picture holds there: all views are
            windows of it, smaller by the largest shift on each side.
        fill: Of "black", 0 to 1; the bars of ultralytics' letterbox are 114 / 255.
        match_iou: Smallest overlap (intersection over union) of two boxes of the same thing.
        conf: Lowest score of detections that are paired; average precision counts those from ``detector["conf"]`` on.
        detector: Settings of the measurement: imgsz, batch, split, conf, iou, max_det, resamples.
        seed: Of the resampled images.
        limit: Most images.
        amp: "float16" for autocast.
        memory: Bytes that batches may keep.
        ledger: File that keeps what was measured, so that an interrupted analysis goes on.
        progress: Show it in a terminal.
        command: What made the result, for its report.

    Returns:
        Rows per shift, each figure with its 95% interval over images drawn anew: ``dx_px``, ``dy_px``; ``ap``,
        ``ap50``, ``ap_small``; ``ap_difference`` to the unshifted images; of paired detections ``jitter_px`` (mean
        distance of the centres, pixels the net sees), ``jitter_share`` (in sides of the box), ``overlap_lost`` (mean
        1 - IoU), ``size_change_share`` (of the side), ``score_change`` and ``flip_share`` (another class);
        ``vanished_share`` and ``appeared_share`` of the detections of either image that have no partner; ``truth_...``
        the same of detections paired by the object of the truth they are on; ``objects`` and ``objects_left_out``.

    Raises:
        AnalysisError: When settings, data or model do not fit.

    Example:
        >>> from torch import nn
        >>> detection_shift(nn.Linear(2, 2), [])
        Traceback (most recent call last):
        ...
        surgeon.errors.AnalysisError: detection_shift is of ultralytics' detectors, found Linear; of a classifier ...
    """
    settings = Settings(
        seed=seed, limit=limit, amp=amp, memory=memory, ledger=ledger, progress=progress, command=command,
        detector=detector,
    )  # fmt: skip
    if not detects(model):
        raise AnalysisError(
            f"detection_shift is of ultralytics' detectors, found {type(unwrap(model)).__name__}; of a classifier call "
            "analysis.translation"
        )
    scan = Scan(model, data, settings)
    scan.task = Framed(scan.module, scan.detector.validator)
    scan.notes = [note for note in scan.notes if not note.startswith("there is no loss")]
    strides = strides_of(model)
    every = shifts_of(shifts, axis, strides[-1])
    shifting = Shifting.of(padding, fill, every, scan.task.grid)
    rules = _rules(match_iou, conf, scan.detector.options, padding)
    variants = {each: Variant("", _name(each), view=partial(shifting.view, shift=each)) for each in every}
    about = {"padding": padding, "fill": shifting.fill, "margin": shifting.margin}
    view = shifting.view if padding == "crop" else None
    readings = scan.run("detection_shift", [*variants.values()], view=view, about=about)
    measures = scan.measures(readings, [("", _name(each), 1) for each in every])
    rows = _rows({STILL: FINAL} | {each: one.key for each, one in variants.items()}, readings, measures, rules, seed)
    repeats = _periodic(rows, axis, strides, seed)
    own = {
        **{"input_size": scan.detector.options.imgsz, "axis": axis, "shifts": len(every), **about},
        **{"match_iou": match_iou, "conf": conf, "resamples": scan.detector.options.resamples},
        **{"strides": strides, "jitter_repeats": repeats},
    }
    return DetectionShift(rows, summary_of(rows, repeats) + scan.said(), scan.about(readings.images(FINAL), own))


def strides_of(model: Any) -> list[int]:
    """The total strides that features of a detector have, in pixels, the smallest first; those of its heads among them.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, stride=2))
        >>> net.stride, net.img_size = torch.tensor([4.0]), 32
        >>> strides_of(net)
        [2, 4]
    """
    found = {int(stride) for stride in unwrap(model).stride.tolist()}  # type: ignore[operator,union-attr]
    try:
        sites = locate(model)
    except SurgeonError:  # a net that cannot be traced; its heads say enough
        return sorted(found)
    convs = (site for site in sites if site.kind == "spatial_conv")
    strided = (site.reduction * max(site.stride or (1, 1)) for site in sites if site.kind == "strided_conv")
    return sorted({1, *found, *strided, *(site.reduction for site in convs)} - {1}) or [1]


def _rules(match_iou: float, conf: float, options: Any, padding: Padding) -> Rules:
    for name, value in (("match_iou", match_iou), ("conf", conf)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise AnalysisError(f"{name} is {value!r}; give a number over 0, at most 1")
    if conf < options.conf:
        raise AnalysisError(
            f"conf is {conf:g}, but detections below {options.conf:g} are not kept; give a larger one, or "
            f"detector={{'conf': {conf:g}}}"
        )
    return Rules(conf, options.iou, match_iou, padding == "circular")


def _name(shift: Shift) -> str:
    return f"shift {shift[0]:g},{shift[1]:g}"


def _rows(keys: Mapping[Shift, str], readings: Readings, measures: Measures, rules: Rules, seed: int) -> list[Row]:
    images = min(map(readings.images, keys.values()))
    still, drawn = seen_by(readings, FINAL, images), Drawn(images, seed)
    rows = []
    for shift, key in keys.items():
        seen = seen_by(readings, key, images)
        each = [tally(one, other, shift, rules) for one, other in zip(still, seen, strict=True)]
        sums = np.array(each).reshape(images, 2, len(COUNTED))
        judged = measures.of("", FINAL if key == FINAL else _name(shift))
        objects = sum(len(one.truth) for one in seen)
        jitter = columns_of(sums[:, 0], drawn) | columns_of(sums[:, 1], drawn, "truth_")
        if key == FINAL:  # the same detections: nothing is left to chance
            jitter = {name: value if value is None or "_95" not in name else 0.0 for name, value in jitter.items()}
        rows.append(
            {
                **{"dx_px": shift[0], "dy_px": shift[1], "images": images, **_precision(judged)},
                **{"detections": int(sums[:, 0, 0].sum()), "paired": int(sums[:, 0, 2].sum()), **jitter},
                **{"objects": objects, "objects_left_out": sum(len(one.truth) for one in still) - objects},
            }
        )
    return rows


def _precision(judged: Judged) -> Row:
    """Average precision, and its difference to that of the unshifted images: less is worse."""
    low, high = judged.interval or (None, None)
    below, above = judged.difference_interval or (None, None)
    small = {name: judged.means.get(name) for name in ("ap50", "ap_small")}
    change = {"": judged.difference, "_low_95": above, "_high_95": below}
    turned = {f"ap_difference{end}": None if value is None else 0.0 - value for end, value in change.items()}
    return {"ap": judged.value, "ap_low_95": low, "ap_high_95": high, **small, **turned}


def _periodic(rows: Sequence[Row], axis: Axis, strides: Sequence[int], seed: int) -> dict[str, Any] | None:
    """The longest period that jitter surely has along a line of shifts, else the likeliest; None of other shifts."""
    along = "dy_px" if axis == "vertical" else "dx_px"
    every = sorted((row[along], row["jitter_px"]) for row in rows[1:] if row["jitter_px"] is not None)
    curve = max(([point for point in every if side * point[0] > 0] for side in (1, -1)), key=len)
    if axis == "grid" or not curve:
        return None
    at, jitter = (np.array(values) for values in zip(*curve, strict=True))
    try:
        found = find_periods(at, jitter, strides, seed=seed).periods
    except AnalysisError:  # too few shifts, or not evenly apart
        return None
    chances = holm([period.p for period in found])
    sure = [i for i, chance in enumerate(chances) if chance < SURE]
    best = sure[-1] if sure else int(np.argmin(chances))
    told = {"period_px": found[best].period, "explained_share": found[best].share, "p_value": chances[best]}
    return {**told, "sure": bool(sure)}
