"""The figures of a comparison: both nets on every measure, and the images on which they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from analysis.disagreeing import Disagreement, Disputed
from analysis.drawing import BLUE, GREY, HUES, canvas, tidy
from analysis.grids import number
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

if TYPE_CHECKING:
    from analysis.comparing import Comparison

COSTS = ("parameters", "multiply-adds", "milliseconds at batch 1")
COUNTS = ("loss", "images only this net gets right")
COLOURS = (GREY, BLUE)
ALONE = (HUES[1], HUES[0])  # boxes of the first net and of the second


def draw(result: Result) -> Figure:
    """Shares in per cent at the left, a dot for each net and the interval of the difference; costs at the right.

    Raises:
        AnalysisError: When there is no row, or it lacks the columns.

    Example:
        >>> from analysis.stored import StoredResult
        >>> row = {"measure": "accuracy", "a": 0.5, "b": 0.6, "difference": 0.1}
        >>> len(draw(StoredResult("comparison", "two", [row], settings={"labels": ["a", "b"]})).axes)
        1
    """
    labels = tuple(result.settings.get("labels") or ())
    if not result.rows or len(labels) != 2 or any(key not in result.rows[0] for key in (*labels, "measure")):
        raise AnalysisError(f"'{result.title}' has no columns of two nets, so nothing can be drawn")
    known = [row for row in result.rows if all(number(row[label]) is not None for label in labels)]
    shares = [row for row in known if row["measure"] not in (*COSTS, *COUNTS)]
    costs = [row for row in known if row["measure"] in COSTS and row[labels[0]]]
    figure = canvas(result.title, 11.5, 1.8 + 0.42 * max(len(shares), len(costs)))
    if costs:
        left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
        _costs(right, costs, labels)
    else:
        left = figure.subplots()
    _shares(left, shares, labels)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _shares(axes: Any, rows: Sequence[Row], labels: Sequence[str]) -> None:
    for place, row in enumerate(rows):
        one, other = (100 * row[label] for label in labels)
        axes.plot([one, other], [place, place], color=GREY, linewidth=1, alpha=0.6, zorder=1)
        low, high = number(row.get("difference_low_95")), number(row.get("difference_high_95"))
        if low is not None and high is not None:
            axes.plot([one + 100 * low, one + 100 * high], [place + 0.22] * 2, color=BLUE, linewidth=3, alpha=0.5)
        for value, colour, mark in ((one, COLOURS[0], "s"), (other, COLOURS[1], "o")):
            axes.plot([value], [place], mark, color=colour, markersize=7, zorder=2)
    for label, colour, mark in zip(labels, COLOURS, "so", strict=True):
        axes.plot([], [], mark, color=colour, label=plain(label))
    axes.plot([], [], color=BLUE, linewidth=3, alpha=0.5, label="95% interval of the difference")
    axes.set_yticks(range(len(rows)), [plain(row["measure"]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.6)
    tidy(axes, "%", "")


def _costs(axes: Any, rows: Sequence[Row], labels: Sequence[str]) -> None:
    for place, row in enumerate(rows):
        ratio = row[labels[1]] / row[labels[0]]
        axes.barh([place], [ratio], color=BLUE, height=0.5)
        axes.text(ratio, place, f" {ratio:.2f} x", va="center", fontsize="small")
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [row["measure"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * max(1.0, *(row[labels[1]] / row[labels[0]] for row in rows)))
    tidy(axes, f"cost (1: {_short(labels[0])})", "")


def gallery(result: Comparison) -> Figure:
    """Draw the images on which the nets disagree; of detectors with the boxes that one of them lacks.

    Raises:
        AnalysisError: When there is none.
    """
    several: Sequence[Disagreement | Disputed] = result.disagreements
    if not several:
        raise AnalysisError("there is no image on which the nets disagree, or the result was read from a file")
    boxes = isinstance(several[0], Disputed)
    columns, wide, high = (4, 2.9, 3.3) if boxes else (6, 1.75, 2.3)
    columns = min(columns, len(several))
    lines = math.ceil(len(several) / columns)
    figure = canvas("Images on which the nets disagree", max(4.5, wide * columns), 0.8 + high * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, each in zip(axes, several, strict=False):
        axis.imshow(_picture(each.image), cmap="gray", interpolation="nearest")
        words = _of_boxes(axis, result.labels, each) if isinstance(each, Disputed) else _of_choices(result.labels, each)
        axis.set_title(plain("\n".join(words)), fontsize=8)
    if boxes:
        for label, colour in zip(result.labels, ALONE, strict=True):
            axes[0].plot([], [], color=colour, label=plain(f"only {label}"))
        axes[0].plot([], [], color=GREY, linewidth=0.8, label="both (white)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    else:
        figure.supxlabel("in brackets the probability of the right class", fontsize=8)
    return figure


def _picture(image: Tensor) -> Any:
    """An image as matplotlib shows it, from its lowest to its highest value."""
    picture = image.numpy()
    picture = picture[:3] if len(picture) >= 3 else picture[:1]
    low, high = float(np.nanmin(picture)), float(np.nanmax(picture))
    return np.clip((picture - low) / ((high - low) or 1.0), 0, 1).transpose(1, 2, 0).squeeze()


def _of_boxes(axis: Any, labels: Sequence[str], each: Disputed) -> list[str]:
    """Draw what both find thin and white, what one of them lacks in its colour; say how many there are."""
    drawn = [(each.both, "white", 0.8), *((boxes, c, 1.8) for boxes, c in zip(each.alone, ALONE, strict=True))]
    for boxes, colour, width in drawn:
        for x1, y1, x2, y2 in boxes:
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width))
    counts = [f"{len(boxes)} only {_short(label)}" for label, boxes in zip(labels, each.alone, strict=True)]
    flips = f", {each.flips} of another class" if each.flips else ""
    return [f"image {each.index}: {len(each.both)} both{flips}", ", ".join(counts)]


def _of_choices(labels: Sequence[str], each: Disagreement) -> list[str]:
    words = [f"{_short(label)}: {chosen} ({p:.0%})" for label, chosen, p in _each(labels, each)]
    return [f"image {each.index}, class {each.target}", *words]


def _each(labels: Sequence[str], one: Any) -> Any:
    return zip(labels, one.chosen, one.p_right, strict=True)


def _short(label: str) -> str:
    return label if len(label) <= 12 else f"{label[:11]}…"


__all__ = ["draw", "gallery"]
