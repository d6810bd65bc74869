"""The figure of detectors under shift: average precision, jitter, and flips against the shift; or maps of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.drawing import GREY, HUES, MARKERS, canvas, tidy
from analysis.grids import number
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

PANELS: dict[str, dict[str, str]] = {  # what stands in each, by column
    "average precision, %": {"ap": "all objects", "ap_small": "small objects"},
    "jitter of paired boxes, px": {"jitter_px": "paired with each other", "truth_jitter_px": "paired by true object"},
    "detections, %": {"flip_share": "another class", "vanished_share": "vanished", "appeared_share": "appeared"},
}
NEEDED = ("dx_px", "dy_px", "ap", "jitter_px", "flip_share")


def draw(result: Result) -> Figure:
    """Each measure over shifts with its 95% interval; dotted lines are multiples of the smallest stride.

    Raises:
        AnalysisError: When there is no row, or a column is missing.

    Example:
        >>> from analysis.stored import StoredResult
        >>> rows = [{"dx_px": s, "dy_px": s, "ap": 0.5, "jitter_px": 0.2 * s, "flip_share": 0.0} for s in (0.0, 1.0)]
        >>> len(draw(StoredResult("detection_shift", "one shift", rows)).axes)
        3
    """
    if missing := [key for key in NEEDED if not result.rows or key not in result.rows[0]]:
        raise AnalysisError(f"'{result.title}' has no column '{missing[0]}', so nothing can be drawn; measure again")
    figure = canvas(result.title, 12.0, 4.0)
    axes = figure.subplots(1, 3)
    lines = {name: {row[name] for row in result.rows} for name in ("dx_px", "dy_px")}
    straight = any(len(values) == 1 for values in lines.values())
    if straight or all(row["dx_px"] == row["dy_px"] for row in result.rows):
        along = "dy_px" if len(lines["dx_px"]) == 1 else "dx_px"
        where = {"dx_px": "right", "dy_px": "down"}[along] if straight else "right and down"
        for panel, (named, columns) in zip(axes, PANELS.items(), strict=True):
            _curves(panel, result, along, columns)
            tidy(panel, f"shift {where}, px", named)
    else:
        for panel, (named, columns) in zip(axes, PANELS.items(), strict=True):
            _map(figure, panel, result.rows, next(iter(columns)), named)
    return figure


def _curves(axes: Any, result: Result, along: str, columns: dict[str, str]) -> None:
    rows = sorted(result.rows, key=lambda row: float(row[along]))
    shifts, drawn = [row[along] for row in rows], 0
    for place, (column, label) in enumerate(columns.items()):
        scale = 1.0 if column.endswith("_px") else 100.0
        values, low, high = (_scaled(rows, f"{column}{end}", scale) for end in ("", "_low_95", "_high_95"))
        if np.isnan(values).all():
            continue
        style: dict[str, Any] = {"color": HUES[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.5}
        axes.plot(shifts, values, label=label, **style)
        axes.fill_between(shifts, low, high, color=HUES[place], alpha=0.2, linewidth=0)
        drawn += 1
    if drawn > 1:
        axes.legend(frameon=False, fontsize="small")
    if "ap" not in columns:
        axes.set_ylim(bottom=0)
    strides = [stride for stride in result.settings.get("strides") or [] if stride > 1]
    if strides and max(map(abs, shifts)) / min(strides) <= 16:
        for at in np.arange(min(strides), max(shifts) + 1, min(strides)):
            axes.axvline(at, color=GREY, linewidth=0.8, linestyle=":", zorder=0)


def _scaled(rows: Sequence[Row], column: str, scale: float) -> Any:
    found = [number(row.get(column)) for row in rows]
    return np.array([np.nan if value is None else scale * value for value in found], float)


def _map(figure: Figure, axes: Any, rows: Sequence[Row], column: str, named: str) -> None:
    across, down = (sorted({row[key] for row in rows}) for key in ("dx_px", "dy_px"))
    grid = np.full((len(down), len(across)), np.nan)
    scale = 1.0 if column.endswith("_px") else 100.0
    for row, value in zip(rows, _scaled(rows, column, scale), strict=True):
        grid[down.index(row["dy_px"]), across.index(row["dx_px"])] = value
    drawn = axes.imshow(grid, cmap="viridis", aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(across)), [f"{value:g}" for value in across], fontsize="small")
    axes.set_yticks(range(len(down)), [f"{value:g}" for value in down], fontsize="small")
    axes.set(xlabel="shift right, px", ylabel="shift down, px")
    what = {"flip_share": "class flips, %"}.get(column, named)
    axes.set_title(plain(what), fontsize="medium")
    figure.colorbar(drawn, ax=axes, shrink=0.9)
