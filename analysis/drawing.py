"""What the figures of analyses share: a canvas with a title, axes without clutter, lines with bands.

Black is plain black and nothing lies behind, so that a page can turn it into the colour of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.result import plain

BLUE, GREY = "#3b8fc4", "#888888"  # seen on white and on black
HUES = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#9a8cd8", "#a6761d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def canvas(title: str, width: float = 9.6, height: float = 4.2) -> Figure:
    """An empty figure with a title; no window is opened.

    Args:
        title: Drawn as it is, dollars and all.
        width: In inches.
        height: Likewise.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(plain(title), fontsize=11)
    return figure


def tidy(axes: Any, x: str, y: str) -> None:
    """Name both axes, and leave the frame open."""
    axes.set(xlabel=plain(x), ylabel=plain(y))
    axes.grid(color=GREY, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def banded(axes: Any, x: Sequence[float], rows: Sequence[dict[str, Any]], column: str, place: int, label: str) -> None:
    """Draw a column of rows in per cent over ``x`` as a line with the band of its 95% interval.

    Args:
        axes: To draw on.
        x: One number per row.
        rows: With ``column``, and ``column_low_95`` and ``column_high_95`` where there is an interval.
        column: A share.
        place: Of the line among all, for its colour and mark.
        label: Its name in the legend.
    """
    points = [(at, row) for at, row in sorted(zip(x, rows, strict=True), key=lambda p: p[0]) if row[column] is not None]
    along = [at for at, _ in points]
    colour, mark = HUES[place % len(HUES)], MARKERS[place % len(MARKERS)]
    axes.plot(
        along, [100 * row[column] for _, row in points], color=colour, marker=mark, markersize=4, linewidth=1.5,
        label=plain(label),
    )  # fmt: skip
    ends = [[row.get(f"{column}_{end}_95") for _, row in points] for end in ("low", "high")]
    low, high = (100 * np.array([np.nan if v is None else v for v in end], float) for end in ends)
    axes.fill_between(along, low, high, color=colour, alpha=0.2, linewidth=0)
