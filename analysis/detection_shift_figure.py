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
    "AP, % (band: of the difference)": {"ap": "all objects", "ap_small": "small objects"},
    "jitter of paired boxes, px": {"jitter_px": "paired with each other", "truth_jitter_px": "paired by true object"},
    "detections, %": {"flip_share": "another class", "vanished_share": "vanished", "appeared_share": "new"},
}
MOST = 4  # lines
NEEDED = ("dx_px", "dy_px", "ap", "jitter_px", "flip_share")


def draw(result: Result) -> Figure:
    """Each measure over shifts with its 95% interval, of average precision that of its difference to no shift.

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
            _curves(panel, sorted(result.rows, key=lambda row: float(row[along])), along, columns)
            tidy(panel, f"shift {where}, px{_strides(panel, result, along)}", named)
            panel.grid(axis="x", visible=False)
    else:
        for panel, (named, columns) in zip(axes, PANELS.items(), strict=True):
            _map(figure, panel, result.rows, next(iter(columns)), named)
    return figure


def _curves(axes: Any, rows: Sequence[Row], along: str, columns: dict[str, str]) -> None:
    shifts = [row[along] for row in rows]
    for place, (column, label) in enumerate(columns.items()):
        scale = 1.0 if column.endswith("_px") else 100.0
        values, low, high = (_scaled(rows, f"{column}{end}", scale) for end in ("", "_low_95", "_high_95"))
        if np.isnan(values).all():
            continue
        style: dict[str, Any] = {"color": HUES[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.5}
        axes.plot(shifts, values, label=label, **style)
        if column == "ap":  # what matters is whether it differs from that of the unshifted images
            unshifted = values - _scaled(rows, "ap_difference", scale)
            low, high = (unshifted + _scaled(rows, f"ap_difference_{end}_95", scale) for end in ("low", "high"))
            axes.plot(shifts, unshifted, color=GREY, linewidth=1, linestyle="--", label="unshifted")
        axes.fill_between(shifts, low, high, color=HUES[place], alpha=0.2, linewidth=0)
    if "ap" not in columns:
        axes.set_ylim(bottom=0)
    if axes.lines:
        style = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3, "columnspacing": 1.0}
        axes.legend(frameon=False, fontsize="small", **style)


def _strides(axes: Any, result: Result, along: str) -> str:
    """Mark the multiples of the smallest stride of which there are few."""
    shifts = [float(row[along]) for row in result.rows]
    far = max(map(abs, shifts))
    stride = next((stride for stride in result.settings.get("strides") or [] if 1 < stride <= far <= MOST * stride), 0)
    for times in range(-MOST, MOST + 1) if stride else ():
        if times and min(shifts) <= times * stride <= max(shifts):
            axes.axvline(times * stride, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
    return f" (dotted: multiples of {stride})" if stride else ""


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
