"""Curves and maps out of the rows of a scan over shifts.

Apart from what is asked of a curve, because here only rows are read: which of them lie on a line, and in which order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from analysis.result import Row
from surgeon.errors import AnalysisError

Axis = Literal["auto", "diagonal", "horizontal", "vertical", "grid"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cut:
    """A curve over shifts.

    Attributes:
        axis: "diagonal" (right and down alike), "horizontal", "vertical"; "" where nobody said.
        shifts: In pixels, rising; of a diagonal those along one of its axes.
        values: The measure at each.
        averaged: Over how many lines of a grid each value is the mean.
    """

    axis: str
    shifts: Array
    values: Array
    averaged: int = 1


def read_scan(source: Any, column: str, axis: Axis = "auto") -> tuple[list[Cut], tuple[Array, Array, Array] | None]:
    """Read curves from rows, from a result with rows, or from two arrays.

    Args:
        source: Rows with ``dx_px``, ``dy_px`` and the column; a result that has such rows; or (shifts, values).
        column: The measure.
        axis: "diagonal", "horizontal" and "vertical" take that line through no shift; of a grid the last two take the
            mean over all lines. "grid" takes all three and the grid itself, "auto" what the rows hold.

    Returns:
        The curves, and for "grid" shifts right, shifts down and the values (down, right).

    Raises:
        AnalysisError: When the rows lack a column, or do not lie on such a line or grid.

    Example:
        >>> rows = [{"dx_px": float(d), "dy_px": float(d), "accuracy": 0.5} for d in (1, 0, 2)]
        >>> [(cut.axis, cut.shifts.tolist()) for cut in read_scan(rows, "accuracy")[0]]
        [('diagonal', [0.0, 1.0, 2.0])]
    """
    if axis not in get_args(Axis):
        raise AnalysisError(f"axis is {axis!r}; it is one of {', '.join(get_args(Axis))}")
    rows = getattr(source, "rows", source)
    if not isinstance(rows, (list, tuple)) or not rows:
        raise AnalysisError(
            f"a curve is a {type(rows).__name__}{' of nothing' if isinstance(rows, (list, tuple)) else ''}; give a "
            "result of analysis.translation, its rows, or a pair (shifts in pixels, values)"
        )
    if not isinstance(rows[0], Mapping):
        return [_pair(rows, axis)], None
    values = _table(rows, column)
    kind = _kind(values) if axis == "auto" else axis
    if kind != "grid":
        return [_line(values, kind)], None
    right, down, full = _grid(values)
    cuts = [Cut("horizontal", right, full.mean(0), len(down)), Cut("vertical", down, full.mean(1), len(right))]
    both = {pair: value for pair, value in values.items() if pair[0] == pair[1]}
    cuts += [_line(both, "diagonal")] if len(both) > 1 else []
    return cuts, (right, down, full)


def _pair(source: Sequence[Any], axis: Axis) -> Cut:
    """Two arrays."""
    if len(source) != 2:
        raise AnalysisError(
            f"a curve of {len(source)} parts; give rows (dicts), or a pair: shifts in pixels, values at these"
        )
    try:
        shifts, values = (np.asarray(part, np.float64) for part in source)
    except (TypeError, ValueError) as error:
        raise AnalysisError(f"a curve holds what is no number ({error}); give shifts in pixels and values") from error
    if axis == "grid":
        raise AnalysisError("axis='grid' needs rows with dx_px and dy_px; two arrays are one curve")
    return Cut("" if axis == "auto" else axis, shifts, values)


def _table(rows: Sequence[Row], column: str) -> dict[tuple[float, float], float]:
    """The measure at each (right, down)."""
    for key in ("dx_px", "dy_px", column):
        if missing := [row for row in rows if key not in row]:
            known = ", ".join(map(str, missing[0]))
            raise AnalysisError(f"a row has no '{key}'; it has {known}. Name the measure with column=")
    found: dict[tuple[float, float], float] = {}
    for row in rows:
        value, place = row[column], (row["dx_px"], row["dy_px"])
        if isinstance(value, bool) or not all(isinstance(each, (int, float)) for each in (*place, value)):
            raise AnalysisError(f"'{column}' at shift {place} is {value!r}; every row needs a number there")
        if place in found:
            raise AnalysisError(f"two rows are of the shift {place}; give one row per shift")
        found[float(place[0]), float(place[1])] = float(value)
    return found


def _kind(values: Mapping[tuple[float, float], float]) -> str:
    """What the rows hold."""
    if len({dy for _, dy in values}) == 1:
        return "horizontal"
    if len({dx for dx, _ in values}) == 1:
        return "vertical"
    return "diagonal" if all(dx == dy for dx, dy in values) else "grid"


def _line(values: Mapping[tuple[float, float], float], axis: str) -> Cut:
    """One line of the rows; the mean over all lines where they are a grid."""
    place = 1 if axis == "vertical" else 0
    if axis == "diagonal":
        mine = {dx: value for (dx, dy), value in values.items() if dx == dy}
    elif len({pair[1 - place] for pair in values}) > 1 and _is_grid(values):
        right, down, full = _grid(values)
        across = (down, full.mean(1), len(right)) if place else (right, full.mean(0), len(down))
        return Cut(axis, *across)
    else:
        fixed = {pair[1 - place] for pair in values}
        at = 0.0 if 0.0 in fixed else next(iter(fixed))
        mine = {pair[place]: value for pair, value in values.items() if pair[1 - place] == at}
    if len(mine) < 2:
        raise AnalysisError(f"the rows hold {len(mine)} shifts on the {axis}; choose another axis")
    shifts = sorted(mine)
    return Cut(axis, np.array(shifts), np.array([mine[shift] for shift in shifts]))


def _is_grid(values: Mapping[tuple[float, float], float]) -> bool:
    return len(values) == len({dx for dx, _ in values}) * len({dy for _, dy in values})


def _grid(values: Mapping[tuple[float, float], float]) -> tuple[Array, Array, Array]:
    right, down = sorted({dx for dx, _ in values}), sorted({dy for _, dy in values})
    if not _is_grid(values) or min(len(right), len(down)) < 2:
        raise AnalysisError(
            f"{len(values)} rows are no grid of {len(right)} shifts to the right and {len(down)} down; choose the axis "
            "diagonal, horizontal or vertical, or measure the missing ones"
        )
    return np.array(right), np.array(down), np.array([[values[dx, dy] for dx in right] for dy in down])


__all__ = ["Axis", "Cut", "read_scan"]
