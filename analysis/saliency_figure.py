"""The figure of attribution equivariance: correlation and distance of maps against the shift, beside chance.

Apart from the analysis, which it does not need: rows and settings of a stored result are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.grids import number
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

LABELS = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "l2": "distance 2|a − b| / (|a| + |b|)",
}
LINES = (  # prefix of the column, what it is, style
    ("", "map of the shifted image against the shifted map", {"color": "#0072B2", "marker": "o", "linestyle": "-"}),
    ("stayed_", "… against the map left where it was", {"color": "#D55E00", "marker": "s", "linestyle": "--"}),
    ("chance_", "… against the map of another image", {"color": "#999999", "marker": "^", "linestyle": ":"}),
)


def draw(result: Result) -> Figure:
    """Draw a column of three panels per method: both correlations and the distance, with 95% intervals.

    Raises:
        AnalysisError: When there is no row with a correlation or distance.

    Example:
        >>> from analysis.stored import StoredResult
        >>> row = {"method": "saliency", "shift_right_px": 1, "shift_down_px": 1, "pearson": 0.9, "spearman": 0.8,
        ...        "l2": 0.4}
        >>> len(draw(StoredResult("attribution_equivariance", "a net", [row])).axes)
        3
    """
    rows = [row for row in result.rows if any(number(row.get(name)) is not None for name in LABELS)]
    if not rows:
        raise AnalysisError(f"'{result.title}' has no map to compare, so there is nothing to draw; see its table")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(max(6.5, 1.2 + 2.9 * len(methods)), 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(LABELS), len(methods), squeeze=False, sharex="col", sharey="row")
    for column, method in enumerate(methods):
        mine = [row for row in rows if row["method"] == method]
        panels[0][column].set_title(plain(method.replace("_", " ")), fontsize=10)
        for line, name in enumerate(LABELS):
            _panel(panels[line][column], mine, name)
            if column == 0:
                panels[line][0].set_ylabel(LABELS[name], fontsize=8)
        panels[-1][column].set_xlabel("shift (pixels)", fontsize=9)
    padding, images = result.settings.get("padding"), result.settings.get("images")
    about = f" ({images} images, {padding} shifts)" if padding else ""
    figure.suptitle(plain(f"{result.title}{about}"), fontsize=11)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _panel(axes: Any, rows: Sequence[Row], name: str) -> None:
    places = range(len(rows))
    for prefix, label, style in LINES:
        values = [number(row.get(prefix + name)) for row in rows]
        drawn = [float("nan") if value is None else value for value in values]
        axes.plot(places, drawn, label=label, markersize=4, linewidth=1.2, **style)
    for place, row in enumerate(rows):
        low, high = number(row.get(f"{name}_low_95")), number(row.get(f"{name}_high_95"))
        if low is not None and high is not None:
            axes.plot([place, place], [low, high], color=LINES[0][2]["color"], linewidth=2.5, alpha=0.5)
    axes.set_xticks(list(places), [_shift(row) for row in rows], fontsize=8)
    axes.set_xlim(-0.4, len(rows) - 0.6)
    if name == "l2":
        axes.set_ylim(-0.05, 2.05)  # all there is
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#888888", alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _shift(row: Row) -> str:
    right, down = row["shift_right_px"], row["shift_down_px"]
    return f"{right}" if right == down else f"({right}, {down})"
