"""Line plots of robustness: error against treatment, and error against the share of parameters re-set.

Apart from the heatmaps because they compare along an axis, not cell by cell. Everything black is drawn in plain black
and nothing lies behind, so that a page can turn it into the colour of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis.drawing import GREY, HUES, MARKERS, canvas
from analysis.gridding import primary, robustness_grid
from analysis.grids import DIFFERS, FULL, PERCENT, UNTOUCHED, Grid, number, short
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

NAMED = len(HUES)  # units with a colour and a name of their own; the others are grey
MARKS: dict[str, dict[str, Any]] = {  # of the verdicts
    "critical": {"marker": "^", "fillstyle": "full"},
    "undecided": {"marker": "o", "fillstyle": "none"},
    DIFFERS: {"marker": "D", "fillstyle": "none"},
    "robust": {"marker": "o", "fillstyle": "full"},
}


def lines(result: Result) -> Figure:
    """Draw the error against the treatment, one line per unit, as Fig. 17 of the paper.

    Of many units the eight that lose most are named, the others are grey. Re-randomising is no point of the training,
    so no line leads to it; where nothing but it was measured, the units are the axis.

    Raises:
        AnalysisError: When there is no row, or it lacks a column.

    Example:
        >>> from analysis.stored import StoredResult
        >>> rows = [{"unit": "fc1", "treatment": t, "error": e} for t, e in (("0", 0.9), ("10", 0.1), ("final", 0.02))]
        >>> len(lines(StoredResult("robustness", "a layer", rows)).axes[0].lines)
        1
    """
    grid = robustness_grid(result)
    along = [treatment for treatment in grid.treatments if treatment != "rerand"]
    figure = canvas(result.title)
    axes = figure.subplots()
    if len(along) < 3:
        _by_unit(axes, grid)
    else:
        _by_treatment(figure, axes, grid)
    axes.set_ylabel(grid.label)
    axes.grid(axis="y", color=GREY, alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curve(result: Result) -> Figure:
    """Draw the error against the share of parameters re-set together, with its 95% interval and the tolerance.

    The dashed line is the error of the untouched net plus the tolerance (of ``settings``, where it is there).

    Raises:
        AnalysisError: When there is no row, or it lacks a column.
    """
    measure = primary(result.rows)
    if missing := [key for key in ("share_of_params", "treatment") if any(key not in row for row in result.rows)]:
        raise AnalysisError(f"'{result.title}' has no column '{missing[0]}', so no curve can be drawn; measure again")
    figure = canvas(result.title)
    axes = figure.subplots()
    treatments = list(dict.fromkeys(row["treatment"] for row in result.rows))
    for place, treatment in enumerate([t for t in treatments if t != UNTOUCHED] or treatments):
        mine = [
            row for row in result.rows if row["treatment"] in (treatment, UNTOUCHED)
        ]  # every curve starts untouched
        rows = [row for row in mine if None not in (number(row.get(measure)), number(row["share_of_params"]))]
        _one_curve(axes, rows, measure, HUES[place % NAMED], treatment)
    _tolerated(axes, result, measure)
    axes.set_xlabel("parameters re-set together, %")
    axes.set_ylabel(f"{'error' if measure == 'error' else 'average precision'}, %")
    axes.grid(color=GREY, alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _by_treatment(figure: Figure, axes: Any, grid: Grid) -> None:
    units = [name for name in grid.names if name != FULL]
    named = _worst(grid, units) if len(units) > NAMED else units
    for name in [unit for unit in units if unit not in named]:
        _line(axes, grid, name, color=GREY, linewidth=0.8, alpha=0.6, markersize=2, marker="o")
    if FULL in grid.names:
        _line(axes, grid, FULL, label=FULL, color="black", linewidth=1.2, linestyle="--", markersize=4, marker="o")
    for place, name in enumerate(named):
        style: dict[str, Any] = {"color": HUES[place], "marker": MARKERS[place], "markersize": 5, "linewidth": 1.6}
        _line(axes, grid, name, label=plain(short(name)), **style)
    if len(units) > len(named):
        axes.plot([], [], color=GREY, linewidth=0.8, label=f"the other {len(units) - len(named)} units")
    axes.set_xticks(range(len(grid.treatments)), [plain(treatment) for treatment in grid.treatments])
    axes.set_xlabel("treatment: re-randomised (rerand), or re-initialised to a checkpoint")
    axes.set_xlim(-0.3, len(grid.treatments) - 0.7)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")


def _line(axes: Any, grid: Grid, name: str, **style: Any) -> None:
    """A line over the checkpoints, and a mark of its own for re-randomising; both known by the name of the unit."""
    points = [
        (place, grid.cells[name, treatment].value)
        for place, treatment in enumerate(grid.treatments)
        if (name, treatment) in grid.cells and grid.cells[name, treatment].value is not None
    ]
    alone = [point for point in points if grid.treatments[point[0]] == "rerand"]
    path = [point for point in points if point not in alone]
    drawn = axes.plot([x for x, _ in path], [y for _, y in path], gid=f"tip:{name}", **style)
    style.pop("label", None)
    if alone:
        drawn += axes.plot(*alone[0], gid=f"tip:{name}", **(style | {"linestyle": "none"}))


def _worst(grid: Grid, units: Sequence[str]) -> list[str]:
    """The units that lose most under any treatment, in order of call."""
    sign = 1 if grid.bright_is_high else -1
    found = {
        unit: [sign * cell.value for (name, _), cell in grid.cells.items() if name == unit and cell.value is not None]
        for unit in units
    }
    worst = sorted(units, key=lambda unit: -max(found[unit], default=-PERCENT))[:NAMED]
    return [unit for unit in units if unit in worst]


def _by_unit(axes: Any, grid: Grid) -> None:
    places = {name: place for place, name in enumerate(grid.names)}
    final = [cell.value for (_, treatment), cell in grid.cells.items() if treatment == UNTOUCHED]
    if final and final[0] is not None:
        axes.axhline(final[0], color="black", linestyle="--", linewidth=1, label=f"{UNTOUCHED} (untouched)")
    for i, treatment in enumerate(t for t in grid.treatments if t != UNTOUCHED):
        points = [(places[name], cell.value) for (name, t), cell in grid.cells.items() if t == treatment]
        style: dict[str, Any] = {"color": HUES[i % NAMED], "marker": MARKERS[i % NAMED], "markersize": 5}
        for x, y in points:
            axes.plot([x], [y], gid=f"tip:{grid.names[x]}", linestyle="none", **style)
        axes.plot([], [], linestyle="none", label=plain(treatment), **style)
    many = len(grid.names) > 8
    names = [plain(short(name)) for name in grid.names]
    axes.set_xticks(range(len(names)), names, rotation=90 if many else 0, fontsize="small" if many else None)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.legend(frameon=False, fontsize="small")


def _one_curve(axes: Any, rows: Sequence[Row], measure: str, colour: str, treatment: str) -> None:
    shares = [PERCENT * row["share_of_params"] for row in rows]
    values = [PERCENT * row[measure] for row in rows]
    axes.plot(shares, values, color=colour, linewidth=1.4, label=plain(f"treatment {treatment}"))
    for share, value, row in zip(shares, values, rows, strict=True):
        ends = [number(row.get(f"{measure}_{end}_95")) for end in ("low", "high")]
        if None not in ends:
            axes.plot([share, share], [PERCENT * (end or 0.0) for end in ends], color=colour, linewidth=1, alpha=0.7)
        mark: dict[str, Any] = {"markersize": 6, "color": colour, "linestyle": "none"}
        words = f"{row.get('units_treated', '?')} units, the last {row.get('added') or 'none'}: {value:.2f}%"
        words += f", {row['verdict']}" if row.get("verdict") in MARKS else ""
        if row.get("chosen") is True:
            style = {"markersize": 13, "fillstyle": "none", "color": "black", "linestyle": "none"}
            axes.plot([share], [value], marker="o", label="largest robust set", **style)
        axes.plot([share], [value], gid=f"tip:{words}", **mark, **_mark(row))
    for row in {row.get("verdict"): row for row in rows if row.get("verdict") in MARKS}.values():
        axes.plot([], [], label=row["verdict"], markersize=6, color=colour, linestyle="none", **_mark(row))


def _mark(row: Row) -> dict[str, Any]:
    return MARKS.get(str(row.get("verdict")), {"marker": "o"})


def _tolerated(axes: Any, result: Result, measure: str) -> None:
    """Draw the untouched net, and how much worse is still called robust."""
    sign = 1 if measure == "error" else -1
    for row in result.rows:
        value, difference = number(row.get(measure)), number(row.get("difference"))
        if value is None or difference is None:
            continue
        untouched = value - sign * difference
        axes.axhline(PERCENT * untouched, color=GREY, linewidth=1, label="untouched")
        if (tolerance := number(result.settings.get("tolerance"))) is not None:
            limit = PERCENT * (untouched + sign * tolerance)
            label = f"tolerance: {PERCENT * tolerance:g} points"
            axes.axhline(limit, color="black", linestyle="--", linewidth=1, label=label)
        return
