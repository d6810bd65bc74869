"""The figure of a translation scan: a map over (dx, dy) and the curve along its diagonal, or a curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.drawing import GREY, banded, canvas, tidy
from analysis.result import Result, Row
from surgeon.errors import AnalysisError

AXES = {"rotation_deg": "rotation, degrees anticlockwise", "scale": "scale of what images show"}


def draw(result: Result) -> Figure:
    """Accuracy over shifts, angles or scales, with 95% intervals.

    Raises:
        AnalysisError: When there is no row, or its columns are other ones.

    Example:
        >>> from analysis.stored import StoredResult
        >>> rows = [{"dx_px": d, "dy_px": d, "accuracy": 0.9, "accuracy_low_95": 0.8, "accuracy_high_95": 1.0,
        ...          "relative_loss": 0.0} for d in (-1.0, 0.0, 1.0)]
        >>> len(draw(StoredResult("translation", "three shifts", rows)).axes)
        2
    """
    rows = result.rows
    if not rows or "accuracy" not in rows[0] or not {"dx_px", *AXES} & rows[0].keys():
        raise AnalysisError(f"'{result.title}' has no column of moves and accuracy, so nothing can be drawn")
    figure = canvas(result.title)
    if "dx_px" not in rows[0]:
        key = next(key for key in AXES if key in rows[0])
        _curves(figure.subplots(1, 2), [row[key] for row in rows], rows, AXES[key])
        return figure
    slanted = [row for row in rows if row["dx_px"] == row["dy_px"]]
    if len(rows) > 2 * len(slanted) and len({row["dx_px"] for row in rows}) > 1 < len({row["dy_px"] for row in rows}):
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        _map(figure, left, rows)
        _curve(right, [row["dx_px"] for row in slanted], slanted, "accuracy", "shift right and down, pixels")
    else:
        vertical = all(row["dx_px"] == 0 for row in rows)
        named = "shift down, pixels" if vertical else "shift right, pixels"
        named = "shift right and down, pixels" if len(slanted) == len(rows) > 1 else named
        _curves(figure.subplots(1, 2), [row["dy_px" if vertical else "dx_px"] for row in rows], rows, named)
    return figure


def _map(figure: Figure, axes: Any, rows: Sequence[Row]) -> None:
    across, down = (sorted({row[key] for row in rows}) for key in ("dx_px", "dy_px"))
    grid = np.full((len(down), len(across)), np.nan)
    for row in rows:
        grid[down.index(row["dy_px"]), across.index(row["dx_px"])] = 100 * row["accuracy"]
    edges = [_edges(values) for values in (across, down)]
    drawn = axes.pcolormesh(*edges, grid, cmap="viridis", rasterized=True)
    axes.set(xlabel="shift right, pixels", ylabel="shift down, pixels", aspect="equal")
    axes.invert_yaxis()  # down is down
    figure.colorbar(drawn, ax=axes, label="accuracy, %", shrink=0.9)


def _edges(values: Sequence[float]) -> Any:
    """Borders of cells around values."""
    middle = (np.array(values[1:]) + np.array(values[:-1])) / 2
    return np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])


def _curves(both: Any, x: Sequence[float], rows: Sequence[Row], named: str) -> None:
    _curve(both[0], x, rows, "accuracy", named)
    _curve(both[1], x, rows, "relative_loss", named)


def _curve(axes: Any, x: Sequence[float], rows: Sequence[Row], column: str, named: str) -> None:
    banded(axes, x, rows, column, 0 if column == "accuracy" else 1, "")
    unmoved = 1.0 if "scale" in named else 0.0
    axes.axvline(unmoved, color=GREY, linewidth=0.8, linestyle=":")
    start = next((row[column] for at, row in zip(x, rows, strict=True) if at == unmoved), None)
    if start is not None:
        axes.axhline(100 * start, color=GREY, linewidth=1, linestyle="--")
    tidy(axes, named, f"{column.replace('_', ' ')}, %")
