"""What two detectors are compared by beyond what any two nets are: precision, what only one of them finds, shifts.

Apart from the measures of classifiers, whose answers are one class per image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.beside import (
    Kit,
    Pair,
    Part,
    attributions,
    costs,
    equivariances,
    mean,
    resolutions,
    robustnesses,
    takes_of,
)
from analysis.detection_frames import Framed, Seen, seen_by
from analysis.detection_matching import CLASS, match, things
from analysis.detection_shifting import detection_shift
from analysis.differing_images import same_images
from analysis.disagreeing import Contested, Disputed, contested
from analysis.features_shifted import equivariance
from analysis.intervals import difference_of_ratios
from analysis.layerwise import robustness
from analysis.readings import FINAL, Readings
from analysis.resolution_scores import Cell, Precisions
from analysis.resolving import resolution
from analysis.result import Row
from analysis.saliency_shifts import attribution_equivariance
from analysis.scanning import Scan
from analysis.study_settings import Settings
from analysis.timing import milliseconds
from surgeon.errors import AnalysisError
from surgeon.host import input_sizes, unwrap

CONF, MATCH_IOU = 0.25, 0.5  # lowest score of a detection that counts, smallest overlap of two on one thing
NAMES = {"ap": "average precision", "ap_small": "average precision, small objects"}
SHIFTS = (1, 2, 4, 8)


def precisions(pair: Pair) -> tuple[Part, Callable[[int], list[Disputed]]]:
    """Average precision, and the detections that only one of the nets makes."""
    scans, readings = _scans(pair)
    cells: list[Cell] = [(label, 1.0) for label in pair.labels]
    options = scans[0].detector.options  # type: ignore[union-attr]
    names, resamples = scans[0].detector.classes(), options.resamples  # type: ignore[union-attr]
    scores = Precisions(
        dict(zip(pair.labels, readings, strict=True)), dict.fromkeys(cells, FINAL), pair.seed, names, resamples
    )
    rows = []
    for metric, name in NAMES.items():
        values = [scores.signed(metric, {cell: 1})[0] for cell in cells]
        if any(value is not None for value in values):
            interval = scores.signed(metric, {cells[1]: 1, cells[0]: -1})[1:]
            rows.append(pair.row(name, values, interval, scores.images))
    seen = [seen_by(each, FINAL, scores.images) for each in readings]
    conf = max(CONF, options.conf)
    pairs = [_contested(one, other, conf, options.iou) for one, other in zip(*seen, strict=True)]
    row, own = _only_one(pair, pairs)
    rows.append(row)
    notes = list(dict.fromkeys(note for scan in scans for note in scan.notes))
    if len({tuple(unwrap(model).names.values()) for model in pair.models}) > 1:  # type: ignore[operator,union-attr]
        notes.append("the nets name their classes differently")
    part = Part(rows, own={**own, "conf": conf}, said=_said(pair.labels, rows, own), notes=notes)
    return part, partial(contested, scans[0], pairs)


def detector_options(models: Sequence[Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of two detectors: both see images of one size, by default the first one's, rounded up to whole strides.

    Example:
        >>> import torch
        >>> net = torch.nn.Conv2d(3, 4, 1)
        >>> net.stride, net.img_size = torch.tensor([8.0, 16.0]), 100
        >>> detector_options([net, net], {"conf": 0.1})
        {'conf': 0.1, 'imgsz': 128}
    """
    modules, options = [unwrap(model) for model in models], dict(given or {})
    asked = options.get("imgsz") or max(input_sizes(modules[0])[0][1:])
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0:
        grid = max(32, *(int(module.stride.max()) for module in modules))  # type: ignore[operator,union-attr]
        asked = -(-asked // grid) * grid
    return {**options, "imgsz": asked}


def _scans(pair: Pair) -> tuple[list[Scan], list[Readings]]:
    """Both nets on the same images."""
    classes = [len(unwrap(model).names) for model in pair.models]  # type: ignore[arg-type]
    if classes[0] != classes[1]:
        raise AnalysisError(f"the nets know {classes[0]} and {classes[1]} classes; compare detectors of the same ones")
    scans, readings = [Scan(model, pair.data, Settings(**pair.opened)) for model in pair.models], list[Readings]()
    _same_shapes(scans)
    for scan in scans:
        scan.task = Framed(scan.module, scan.detector.validator)  # type: ignore[union-attr]
        scan.notes = [note for note in scan.notes if not note.startswith("there is no loss")]
        readings.append(scan.run("compare", []))
        if not scan.complete:
            raise KeyboardInterrupt
    same_images(readings)
    return scans, readings


def _same_shapes(scans: Sequence[Scan]) -> None:
    """Refuse nets that are shown the first images in different shapes, before anything is measured."""
    firsts = [next(iter(scan.data), None) for scan in scans]
    shapes = [None if first is None else tuple(first["img"].shape[1:]) for first in firsts]
    if shapes[0] != shapes[1]:
        kinds = " and ".join(
            f"{type(scan.module).__name__} of stride {int(scan.module.stride.max())}"  # type: ignore[operator,union-attr]
            for scan in scans
        )
        raise AnalysisError(
            f"{kinds} are shown the first images as {shapes[0]} and {shapes[1]}, since ultralytics prepares images for "
            "each in its own way, so that nothing can be compared image by image; give batches of (images, targets)"
        )


def _contested(one: Seen, other: Seen, conf: float, overlap: float) -> Contested:
    """What both nets find in an image, and which of it the other lacks or calls otherwise."""
    found = [things(view.found, conf, overlap) for view in (one, other)]
    pairs = match(found[0], found[1], MATCH_IOU)
    alone = [np.ones(len(boxes), bool) for boxes in found]
    alone[0][pairs.first], alone[1][pairs.second] = False, False
    flips = found[0][pairs.first, CLASS] != found[1][pairs.second, CLASS]
    return Contested((found[0], found[1]), (alone[0], alone[1]), int(flips.sum()), len(pairs.first))


def _only_one(pair: Pair, pairs: Sequence[Contested]) -> tuple[Row, dict[str, Any]]:
    """The share of each net's detections that the other lacks, and how often they call one thing differently."""

    def counts(net: int) -> tuple[NDArray[Any], NDArray[Any]]:
        lacking = [each.alone[net].sum() for each in pairs]
        return np.array(lacking, float), np.array([len(each.found[net]) for each in pairs], float)

    both = [counts(net) for net in (0, 1)]
    shares = [float(part.sum() / whole.sum()) if whole.sum() else None for part, whole in both]
    interval = difference_of_ratios(both[0], both[1], pair.seed) if None not in shares else None
    matched = sum(each.matched for each in pairs)
    own = {
        "disagree_images": sum(each.disputed > 0 for each in pairs),
        "matched_detections": matched,
        "another_class_share": sum(each.flips for each in pairs) / matched if matched else None,
        "match_iou": MATCH_IOU,
    }
    return pair.row("detections the other net lacks", shares, interval, len(pairs)), own


def _said(labels: tuple[str, str], rows: Sequence[Row], own: Mapping[str, Any]) -> list[str]:
    """Precision and disagreements in words."""
    precision, lacking = rows[0], rows[-1]
    words = []
    if precision["measure"] == NAMES["ap"] and precision["difference"] is not None:
        values = [f"{precision[label]:.2%} of {label}" for label in labels]
        ends = [precision["difference_low_95"], precision["difference_high_95"]]
        told = "" if None in ends else f", {100 * ends[0]:+.2f} to {100 * ends[1]:+.2f}"
        words.append(
            f"{precision['images']} images: average precision {', '.join(values)} "
            f"({100 * precision['difference']:+.2f} points{told})"
        )
    shares = [
        f"of the detections of {label} the other lacks {lacking[label]:.1%}"
        for label in labels
        if lacking[label] is not None
    ]
    flips = own["another_class_share"]
    shares += [] if flips is None else [f"{flips:.1%} of those both make are of another class"]
    words.append(f"they disagree on {own['disagree_images']} images" + "".join(f", {share}" for share in shares))
    return words


def shifts(pair: Pair, **own: Any) -> Part:
    """What shifts do to each: average precision at the worst one; of the detections jitter, flips, what is lost."""
    conf = max(CONF, float((pair.detector or {}).get("conf", 0.0)))
    taken = {**pair.opened, "shifts": SHIFTS, "conf": conf, **own}
    found = [detection_shift(model, pair.data, **taken) for model in pair.models]
    lowest = [min((row["ap"] for row in result.rows if row["ap"] is not None), default=None) for result in found]
    rows = [pair.row("average precision at the worst shift", lowest)]
    for column, name in (
        ("jitter_share", "box jitter under shifts, in sides"),
        ("flip_share", "detections of another class under shifts"),
        ("vanished_share", "detections lost under shifts"),
    ):
        rows.append(pair.row(name, [mean(row[column] for row in result.rows[1:]) for result in found]))
    return Part(rows, list(found))


DETECTORS = Kit(
    precisions,
    {
        **{"detection_shift": shifts, "resolution": resolutions, "equivariance": equivariances},
        **{"robustness": robustnesses, "attribution": attributions, "cost": costs},
    },
    takes_of(
        {
            **{"detection_shift": detection_shift, "resolution": resolution, "equivariance": equivariance},
            **{"robustness": robustness, "attribution": attribution_equivariance, "cost": milliseconds},
        }
    ),
)
