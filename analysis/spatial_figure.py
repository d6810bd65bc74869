"""The figure of a spatial dependence: accuracy against the unit shuffled, and against the share of last units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis.drawing import GREY, banded, canvas, tidy
from analysis.grids import short
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

ORDER = {"spatial": 0, "channel": 1, "patch": 2}  # of the colours: blue, vermilion, then green and on
MOST = 24  # names along an axis
WAYS = ("shuffle", "patch_px")
UNTOUCHED = "untouched"


def draw(result: Result) -> Figure:
    """Accuracy (AP) with 95% intervals, a line for each way to shuffle; dashed the untouched net.

    Raises:
        AnalysisError: When there is no row, or its columns are other ones.

    Example:
        >>> from analysis.stored import StoredResult
        >>> row = {"unit": "conv1", "which": "alone", "units_share": 1.0, "shuffle": "spatial", "patch_px": None}
        >>> row |= {"accuracy": 0.5, "accuracy_low_95": 0.4, "accuracy_high_95": 0.6}
        >>> len(draw(StoredResult("spatial_dependence", "one conv", [row])).axes)
        1
    """
    rows = result.rows
    if not rows or not {"which", "unit", *WAYS} <= rows[0].keys() or not {"accuracy", "ap"} & rows[0].keys():
        raise AnalysisError(f"'{result.title}' has no column of shuffles and accuracy, so nothing can be drawn")
    column = "accuracy" if "accuracy" in rows[0] else "ap"
    panels = [which for which in ("alone", "last") if any(row["which"] == which for row in rows)]
    figure = canvas(result.title, width=1.2 + 4.8 * len(panels), height=4.6)
    both = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, which in zip(both, panels, strict=True):
        _panel(axes, rows, which, column)
    _legend(figure, both[0])
    return figure


def _panel(axes: Any, rows: Sequence[Row], which: str, column: str) -> None:
    mine, start = [row for row in rows if row["which"] == which], [row for row in rows if row["which"] == "none"]
    units, ways = list(dict.fromkeys(row["unit"] for row in mine)), _ways(rows)
    patches = [way for way in ways if way[0] == "patch"]
    for way in reversed(ways):  # all positions on top: a patch as large as the map is the same
        place = ORDER[way[0]] + (patches.index(way) if way in patches else 0)
        line = [row for row in mine if tuple(row[key] for key in WAYS) == way]
        x = [units.index(row["unit"]) if which == "alone" else row["units_share"] for row in line]
        if which == "last":
            line, x = [*start, *line], [0.0] * len(start) + x
        banded(axes, x, line, column, place, _words(*way))
    if start and start[0][column] is not None:
        axes.axhline(100 * start[0][column], color=GREY, linewidth=1, linestyle="--", label=UNTOUCHED)
    named = f"{'accuracy' if column == 'accuracy' else 'average precision'}, %" if which == "alone" else ""
    tidy(axes, "unit shuffled alone" if which == "alone" else "last units shuffled together, share of all", named)
    axes.set_title("one unit" if which == "alone" else "all units from one on", fontsize="small")
    if which == "alone":
        step = -(-len(units) // MOST)
        shown = range(0, len(units), step)
        axes.set_xticks(list(shown), [plain(short(units[i])) for i in shown], rotation=90, fontsize=8)
    else:
        axes.xaxis.set_major_formatter(PercentFormatter(1))


def _ways(rows: Sequence[Row]) -> list[tuple[str, int | None]]:
    """In order: whole maps, channels, then patches, small ones first, so that each keeps its colour."""
    found = {tuple(row[key] for key in WAYS) for row in rows if row["which"] != "none"}
    return sorted(found, key=lambda way: (ORDER[way[0]], way[1] or 0))  # type: ignore[return-value]


def _words(shuffle: str, patch: int | None) -> str:
    return {"spatial": "all positions", "channel": "channels"}.get(shuffle, f"within {patch}x{patch} pixels")


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    last = [i for i, label in enumerate(labels) if label == UNTOUCHED]
    order = [i for i in reversed(range(len(labels))) if i not in last] + last
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside lower center",
        ncols=min(len(labels), 6), frameon=False, fontsize=9,
    )  # fmt: skip
