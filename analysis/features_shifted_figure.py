"""Equivariance error against depth: one line per shift, the total stride above, another image as the yardstick.

A function of rows only, so that stored results are drawn too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from analysis.drawing import GREY, MARKERS, canvas
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

SMALL = 8.5
NAMED = 30  # units whose names are all written
LONGEST = 22  # letters of a name


def draw(result: Result) -> Figure:
    """Draw the error, as a share of the distance to another image, from the first unit to the last.

    Where no unit has it, as of one image, the error is drawn as a share of the features' own spread.

    Raises:
        AnalysisError: When no row has an error.
    """
    keys = ("relative_error", "error")
    key = next((key for key in keys if any(row.get(key) is not None for row in result.rows)), None)
    if key is None:
        raise AnalysisError(f"'{result.title}' has no error to draw; measure on other images")
    units = list(dict.fromkeys(str(row["unit"]) for row in result.rows))
    padding = result.settings.get("padding")
    title = f"{result.title}, {padding} shifts" if padding else result.title
    figure = canvas(title, max(7.2, min(2.4 + 0.36 * len(units), 14.0)), 4.6)
    axes = figure.subplots()
    shifts = list(dict.fromkeys((row["dx_px"], row["dy_px"]) for row in result.rows))
    colours = colormaps["viridis"]
    highest = 0.0
    for i, shift in enumerate(shifts):
        mine = [row for row in result.rows if (row["dx_px"], row["dy_px"]) == shift and row.get(key) is not None]
        colour = colours(0.25 + 0.6 * i / max(len(shifts) - 1, 1))  # seen on white and on black
        highest = max(highest, _line(axes, mine, units, key, colour, MARKERS[i % len(MARKERS)], _words(shift)))
    if key == "relative_error":
        axes.axhline(1, color="black", linewidth=1, linestyle="--", label="another image")
    top = 1.25 * max(highest, 1.0 if key == "relative_error" and highest > 0.4 else highest, 1e-6)
    axes.set_ylim(-0.02 * top, top)
    _depth(axes, result.rows, units, top)
    share = "the distance to another image" if key == "relative_error" else "the spread of the features"
    axes.set_ylabel(f"‖f(Tx) − T f(x)‖,\nshare of {share}", fontsize=SMALL)
    axes.set_xlabel("unit, in order of call", fontsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=SMALL)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=SMALL)
    return figure


def _line(axes: Any, rows: Sequence[Row], units: Sequence[str], key: str, colour: Any, marker: str, words: str) -> Any:
    """One shift: a line over the units, with its intervals; answers the highest point."""
    places = [units.index(str(row["unit"])) for row in rows]
    values = [row[key] for row in rows]
    axes.plot(places, values, color=colour, linewidth=1.4, marker=marker, markersize=4, label=words)
    for place, row in zip(places, rows, strict=True):
        ends = (row.get(f"{key}_low_95"), row.get(f"{key}_high_95"))
        if None not in ends:
            axes.plot([place, place], ends, color=colour, linewidth=1, alpha=0.7)
    return max([*values, *(row.get(f"{key}_high_95") or 0.0 for row in rows)], default=0.0)


def _words(shift: tuple[float, float]) -> str:
    right, down = shift
    if right == down:
        return f"{right:g} px, diagonal"
    if not down:
        return f"{right:g} px to the right"
    return f"{down:g} px down" if not right else f"{right:g} px right, {down:g} down"


def _depth(axes: Any, rows: Sequence[Row], units: Sequence[str], top: float) -> None:
    """Names of the units, and a line where the total stride changes."""
    strides = {str(row["unit"]): row["reduction_px"] for row in rows}
    before: Any = 1.0
    for place, unit in enumerate(units):
        stride = strides[unit]
        if stride != before and (stride is None or before is not None):
            axes.axvline(place - 0.5, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
            words = "no positions" if stride is None else f"stride {stride:g}"
            axes.text(place - 0.42, 0.985 * top, words, fontsize=SMALL - 0.5, rotation=90, va="top")
        before = stride
    every = -(-len(units) // NAMED)
    shown = range(0, len(units), every)
    names = [units[i] if len(units[i]) <= LONGEST else "…" + units[i][1 - LONGEST :] for i in shown]
    axes.set_xticks(list(shown), [plain(name) for name in names], rotation=90 if len(units) > 5 else 0)
    axes.set_xlim(-0.6, len(units) - 0.4)


__all__ = ["draw"]
