"""What a detector's surest detections are: correct, badly placed, a similar or another class, or background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.detection_kinds import KINDS, Boxed, Image, Judged, Rules, flat, kinds_of
from analysis.detection_samples import Net, Picture, write_samples
from analysis.detection_similar import Sets, class_names, similarity
from analysis.result import Result, Row, plain, two_names
from surgeon.errors import AnalysisError

COLOURS = dict(zip(KINDS, ("#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00"), strict=True))  # Okabe and Ito
MEAN = "mean over classes"


class DetectionErrors(Result):
    """Shares of the kinds of detections, class by class and in the mean over classes.

    ``shares`` maps kind to its mean percentage over the classes that have any detection; ``kinds`` has one array per
    image with the place in ``KINDS`` of each detection, -1 where it is not among the counted ones; ``duplicates`` is
    how many detections are localisation errors only because their object was found already.
    """

    def __init__(
        self, found: Boxed, there: Boxed, names: Mapping[int, str], images: int, rules: Rules, judged: Judged
    ) -> None:
        self.found, self.there, self.names, self.images, self.rules = found, there, dict(names), images, rules
        counted, kinds, duplicate = judged
        self._kinds = np.full(len(found.labels), -1)
        self._kinds[counted] = kinds
        self.kinds = np.split(self._kinds, np.searchsorted(found.image, range(1, images)))
        self.duplicates = int(duplicate.sum())
        labels = found.labels[counted]
        rows = [self._row(place, name, kinds[labels == place]) for place, name in enumerate(names.values())]
        rows = [row for row in rows if row["objects"]]
        percents = {f"{kind}_percent": _mean([row[f"{kind}_percent"] for row in rows]) for kind in KINDS}
        self.shares = {kind: percents[f"{kind}_percent"] for kind in KINDS}
        totals = {key: sum(row[key] for row in rows) for key in ("objects", "detections")}
        super().__init__("Detection errors", [*rows, {"class": MEAN} | totals | percents], self._summary(rows))

    def _row(self, place: int, name: str, kinds: NDArray[np.int64]) -> Row:
        counts = np.bincount(kinds, minlength=len(KINDS))
        percents = {f"{kind}_percent": _percent(counts[i], len(kinds)) for i, kind in enumerate(KINDS)}
        return {"class": name, "objects": int((self.there.labels == place).sum()), "detections": len(kinds)} | percents

    def _summary(self, rows: Sequence[Row]) -> str:
        silent = sum(row["detections"] == 0 for row in rows)
        without = f"; {silent} of {len(rows)} classes have no detection" if silent else ""
        if silent == len(rows):
            return f"no detection in {self.images} images of any of the {len(rows)} classes that have objects"
        shares = ", ".join(f"{kind} {self.shares[kind]:.1f}%" for kind in _told_apart(self.rules))
        both = (self.shares["correct"] or 0) + (self.shares["localisation"] or 0)
        duplicates = f"{self.duplicates} {'duplicate' if self.duplicates == 1 else 'duplicates'}"
        text = f"{shares}; correct and localisation together {both:.1f}%; {duplicates}{without}"
        return text + _about_similar(self.rules)

    def figure(self) -> Figure:
        """Draw the shares of each class as one bar, the mean first."""
        rows = [self.rows[-1], *self.rows[:-1]]
        figure = Figure(figsize=(8.0, 1.4 + 0.28 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes, ends = figure.subplots(), np.zeros(len(rows))
        for kind in KINDS:
            widths = np.array([row[f"{kind}_percent"] or 0 for row in rows])
            axes.barh(range(len(rows)), widths, left=ends, color=COLOURS[kind], label=kind, height=0.75)
            ends += widths
        labels = [f"{plain(row['class'])} ({row['detections']} of {row['objects']})" for row in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize="small")
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xlabel("% of the surest detections, as many as there are objects (counts beside the class)")
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(KINDS), frameon=False)
        return figure

    def samples(self, path: str | Path, images: Sequence[Picture], count: int = 12, seed: int = 0) -> Path:
        """Write a page of sample images with what is there and what was found, coloured by kind of error.

        Args:
            path: Of the HTML file, which needs no other.
            images: Of the data set, in the order of the predictions: paths, or arrays (height, width, 3) of bytes.
            count: How many, drawn at random among the images with an object or a counted detection.
            seed: Of the draw.
        """
        return write_samples(path, images, [self.net("detections")], self.there, COLOURS, count, seed)

    def net(self, label: str) -> Net:
        """What a page of samples needs to know of this net."""
        return Net(label, self.found, self._kinds, list(self.names.values()))

    def beside(self, other: DetectionErrors, labels: tuple[str, str] = ("original", "operated")) -> ErrorsBeside:
        """Put the errors of another net on the same images beside these.

        Raises:
            AnalysisError: When the images or the classes are others.
        """
        return ErrorsBeside(self, other, labels)


class ErrorsBeside(Result):
    """Errors of two nets on the same images: the mean share of each kind, and the difference in points."""

    def __init__(self, first: DetectionErrors, second: DetectionErrors, labels: tuple[str, str]) -> None:
        self.first, self.second, self.labels = first, second, two_names(labels)
        same = [np.array_equal(getattr(first.there, k), getattr(second.there, k)) for k in ("image", "boxes", "labels")]
        if not first.rules.same(second.rules):
            raise AnalysisError(
                "errors by other similar classes or overlaps; diagnose both nets with the same settings"
            )
        if not all(same) or first.images != second.images or first.names != second.names:
            raise AnalysisError(
                f"errors of other objects or classes ({len(first.there.labels)} objects in {first.images} images, "
                f"{len(second.there.labels)} in {second.images}); diagnose both nets with the same targets and names"
            )
        pairs = list(zip(first.rows[:-1], second.rows[:-1], strict=True))
        both = [pair for pair in pairs if all(row["detections"] for row in pair)]  # a mean over the same classes
        means = [[_mean([row[f"{kind}_percent"] for row in net]) for kind in KINDS] for net in zip(*both, strict=True)]
        rows = [self._row(*shares) for shares in zip(KINDS, *(means or [[None] * len(KINDS)] * 2), strict=True)]
        apart = _told_apart(first.rules)
        words = ", ".join(f"{row['kind']} {_points(row['difference_points'])}" for row in rows if row["kind"] in apart)
        silent = [str(one["class"]) for one, two in pairs if not (one["detections"] and two["detections"])]
        without = f"; without {', '.join(silent)}, of which a net has no detection" if silent else ""
        summary = f"{labels[1]}: {words}{without}{_about_similar(first.rules)}"
        super().__init__(f"Detection errors: {labels[0]} against {labels[1]}", rows, summary)

    def _row(self, kind: str, one: float | None, two: float | None) -> Row:
        difference = None if one is None or two is None else two - one
        shares = {f"{label}_percent": value for label, value in zip(self.labels, (one, two), strict=True)}
        return {"kind": kind} | shares | {"difference_points": difference}

    def figure(self) -> Figure:
        """Draw the two nets side by side, one pair of bars for each kind."""
        figure = Figure(figsize=(8.0, 3.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for shift, label, hatch in ((-0.2, self.labels[0], ""), (0.2, self.labels[1], "///")):
            values = [row[f"{label}_percent"] or 0 for row in self.rows]
            colours = [COLOURS[kind] for kind in KINDS]
            places = np.arange(len(KINDS)) + shift
            bars = axes.bar(places, values, 0.38, color=colours, hatch=hatch, edgecolor="white")
            axes.bar_label(bars, [f"{value:.1f}" for value in values], fontsize="small", padding=2)
            axes.bar(0, 0, color="0.6", hatch=hatch, edgecolor="white", label=label)
        apart = _told_apart(self.first.rules)
        axes.set_xticks(range(len(KINDS)), [kind if kind in apart else f"{kind}\n(none given)" for kind in KINDS])
        axes.set_ylabel("% of the surest detections, mean over classes")
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper right")
        figure.suptitle(self.title, fontsize=11)
        return figure

    def samples(self, path: str | Path, images: Sequence[Picture], count: int = 12, seed: int = 0) -> Path:
        """Write a page of sample images with both nets' boxes; arguments as :meth:`DetectionErrors.samples`."""
        nets = [errors.net(label) for errors, label in zip((self.first, self.second), self.labels, strict=True)]
        return write_samples(path, images, nets, self.first.there, COLOURS, count, seed)


def detection_errors(
    predictions: Sequence[Image],
    targets: Sequence[Image],
    *,
    similar: str | Sets | None = None,
    names: Mapping[int, str] | Sequence[str] | None = None,
    correct_iou: float = 0.5,
    object_iou: float = 0.1,
) -> DetectionErrors:
    """Tell what kinds of errors a detector makes.

    Of each class the surest detections are looked at, as many as it has objects in all images, so a perfect detector
    has only correct ones. Each is, the first that holds: *correct*: overlaps an object of its class by 0.5 or more;
    *localisation*: by 0.1 or more; *similar*: overlaps an object of a similar class by 0.1 or more; *other*: one of any
    class; *background*: none. Overlap is intersection over union.

    A detection belongs to the object of its class it overlaps most. An object can be found once, by the surest of its
    correct detections; the others are duplicates and count as localisation errors, as in Hoiem et al.

    Args:
        predictions: One dict per image: ``boxes`` (n, 4) as x1, y1, x2, y2, ``labels`` (n,), ``scores`` (n,).
        targets: One dict per image: ``boxes`` and ``labels``.
        similar: "voc" (the sets of Hoiem et al.), "coco" (supercategories), sets of your own such as
            ``{"pets": ["cat", "dog"]}`` by name or index, or None: then any confusion is *other*.
        names: Of the classes; VOC's or COCO's own order where `similar` says so, else the labels themselves.
        correct_iou: Least overlap of a correct detection.
        object_iou: Least overlap of a detection that is about an object.

    Returns:
        Rows with ``class``, ``objects``, ``detections`` (counted) and the percentage of each kind; the last is the mean
        over classes. Percentages are of the detections counted; classes without any have none and are left out of the
        mean, classes without objects are not listed.

    Raises:
        AnalysisError: When boxes, labels, names, sets or thresholds make no sense, or there is no object.

    Example:
        >>> there = [{"boxes": [[0, 0, 10, 10], [20, 0, 30, 10]], "labels": [11, 7]}]
        >>> found = [{"boxes": [[0, 0, 10, 6], [0, 0, 10, 9]], "labels": [11, 7], "scores": [0.9, 0.8]}]
        >>> detection_errors(found, there, similar="voc").shares["similar"]
        50.0

    References:
        Hoiem, Chodpathumwan and Dai, Diagnosing Error in Object Detectors, ECCV 2012: sets, duplicates, and borders
        (an overlap of exactly 0.1 or 0.5 counts). Redmon et al., You Only Look Once, CVPR 2016, arXiv:1506.02640: the
        five classes. Deviation: boxes are continuous, without VOC's extra pixel.
    """
    if len(predictions) != len(targets):
        raise AnalysisError(
            f"detection_errors: {len(predictions)} predictions, {len(targets)} targets; give one of each per image"
        )
    if not 0 < object_iou <= correct_iou <= 1:
        raise AnalysisError(
            f"detection_errors: object_iou={object_iou}, correct_iou={correct_iou}; choose 0 < object <= correct <= 1"
        )
    found, there = flat(predictions, "predictions", scored=True), flat(targets, "targets", scored=False)
    if len(there.labels) == 0:
        raise AnalysisError(f"detection_errors: there is no object in {len(targets)} images; check the targets")
    known = class_names(names, similar, np.concatenate([found.labels, there.labels]))
    found, there = (replace(boxed, labels=_places(boxed.labels, known)) for boxed in (found, there))
    rules = Rules(similarity(known, similar), correct_iou, object_iou)
    return DetectionErrors(found, there, known, len(targets), rules, kinds_of(found, there, rules))


def _places(labels: NDArray[np.int64], names: Mapping[int, str]) -> NDArray[np.int64]:
    """Turn class indices into their places in ``names``."""
    indices = np.array(list(names), dtype=np.int64)
    order = np.argsort(indices)
    return np.asarray(order[np.searchsorted(indices[order], labels)], dtype=np.int64)


def _told_apart(rules: Rules) -> list[str]:
    return [kind for kind in KINDS if kind != "similar" or rules.similar.any()]


def _about_similar(rules: Rules) -> str:
    return "" if rules.similar.any() else "; no similar classes were given, so any confusion is other"


def _percent(count: int, of: int) -> float | None:
    return 100.0 * int(count) / of if of else None


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f} points"
