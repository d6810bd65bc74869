"""From the rows of a result to the grid a heatmap shows; the mean of several grids.

Apart from the grids because it knows the columns of each analysis. Rows are plain, so that a result just measured and
one read back from a file are drawn alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from analysis.grids import DIFFERS, FULL, LEAST_SPAN, PERCENT, UNTOUCHED, Cell, Grid, number
from analysis.result import Result, Row
from surgeon.errors import AnalysisError


def primary(rows: Sequence[Row]) -> str:
    """The measure verdicts are about: ``error``, or ``ap`` of detectors.

    Raises:
        AnalysisError: When the rows have neither.

    Example:
        >>> primary([{"unit": "fc1", "ap": 0.4}])
        'ap'
    """
    for key in ("error", "ap"):
        if rows and key in rows[0]:
            return key
    have = ", ".join(rows[0]) if rows else "no row at all"
    raise AnalysisError(f"no column 'error' or 'ap' to draw, found {have}; measure again, with at least one unit")


def robustness_grid(result: Result) -> Grid:
    """Units by treatments with the primary measure in percent, as Figs. 1, 4 and 5 of the paper.

    Raises:
        AnalysisError: When there is no row, or it lacks a column.

    Example:
        >>> from analysis.stored import StoredResult
        >>> rows = [{"unit": "fc1", "treatment": "rerand", "error": 0.9, "verdict": "critical"}]
        >>> robustness_grid(StoredResult("robustness", "three layers", rows)).cells["fc1", "rerand"].value
        90.0
    """
    return _percents(result, "unit", {})


def joint_grid(result: Result) -> Grid:
    """Groups of units by treatments, as :func:`robustness_grid`; a label says how many units a group has.

    Raises:
        AnalysisError: When there is no row, or it lacks a column.
    """
    _need(result, "group", "treatment")
    labels = {str(row["group"]): _group(row) for row in result.rows}
    return _percents(result, "group", labels)


def distance_grids(result: Result) -> list[Grid]:
    """Normalised L2 and L-infinity distance of each unit: to its initial weights, else to the trained ones.

    A column without any value is left out, and so is a grid.
    """
    grids = []
    for key, name in (("rms", "normalised L2 distance"), ("linf", "L∞ distance")):
        ends = ((f"{key}_from_initial", "to the initial weights"), (f"{key}_distance", "to the trained weights"))
        for column, end in ends:
            rows = [row for row in result.rows if number(row.get(column)) is not None and row["unit"] != FULL]
            if rows:
                grids.append(_distances(rows, column, f"{name} {end}"))
                break
    return grids


def mean_grid(grids: Sequence[Grid]) -> Grid:
    """The mean over several seeds, the standard deviation beside it; the verdict where all agree.

    Raises:
        AnalysisError: When there are fewer than two, or they are of other units or another measure.
    """
    first = grids[0] if grids else None
    if first is None or len(grids) < 2:
        raise AnalysisError(f"a mean over {len(grids)} results was asked for; give at least two, of different seeds")
    for grid in grids[1:]:
        if (grid.names, grid.label) != (first.names, first.label):
            apart = sorted({*grid.names} ^ {*first.names}) or [first.label, grid.label]
            raise AnalysisError(f"the results differ in {', '.join(apart[:3])}; a mean needs the same units in each")
    treatments = tuple(t for t in first.treatments if all(t in grid.treatments for grid in grids))
    found = {(n, t): [g.cells[n, t] for g in grids if (n, t) in g.cells] for n in first.names for t in treatments}
    cells = {place: _mean(several) for place, several in found.items() if several}
    label = f"{first.label}, mean and standard deviation over {len(grids)} seeds"
    return replace(first, treatments=treatments, cells=cells, label=label)


def _mean(cells: Sequence[Cell]) -> Cell:
    values = [cell.value for cell in cells if cell.value is not None]
    verdicts = {cell.verdict for cell in cells}
    verdict = verdicts.pop() if len(verdicts) == 1 else DIFFERS
    if not values:
        return Cell(None, verdict)
    spread = statistics.stdev(values) if len(values) > 1 else None
    words = f"mean of {len(values)}: {statistics.fmean(values):.2f}% ({', '.join(f'{v:.2f}' for v in values)})"
    if spread is not None:
        words += f", standard deviation {spread:.2f}"
    counts = {v: sum(cell.verdict == v for cell in cells) for v in ("critical", "undecided", "robust")}
    words += "".join(f", {verdict} in {count}" for verdict, count in counts.items() if count)
    return Cell(statistics.fmean(values), verdict, words, spread)


def _percents(result: Result, key: str, labels: Mapping[str, str]) -> Grid:
    _need(result, key, "treatment")
    measure = primary(result.rows)
    cells = {(str(row[key]), str(row["treatment"])): _percent(row, measure) for row in result.rows}
    notes: dict[str, list[str]] = {}
    for row in result.rows:
        if row.get("note") and str(row[key]) not in notes.setdefault(str(row["note"]), []):
            notes[str(row["note"])].append(str(row[key]))
    names, treatments = _ordered(result.rows, key)
    label = "error, %" if measure == "error" else "average precision, %"
    return Grid(names, treatments, cells, label, measure == "error", LEAST_SPAN, labels, notes)


def _percent(row: Row, measure: str) -> Cell:
    value, low, high = (number(row.get(key)) for key in (measure, f"{measure}_low_95", f"{measure}_high_95"))
    words = "not measured" if value is None else f"{measure} {value:.2%}"
    words += "" if low is None or high is None else f" ({low:.2%} to {high:.2%})"
    if (difference := number(row.get("difference"))) is not None and row["treatment"] != UNTOUCHED:
        words += f", {PERCENT * (difference if measure == 'error' else -difference):+.2f} points"
    verdict = str(row.get("verdict", "-"))
    words += "" if verdict == "-" else f", {verdict}"
    words += f"; {row['note']}" if row.get("note") else ""
    return Cell(None if value is None else PERCENT * value, verdict, words)


def _distances(rows: Sequence[Row], column: str, name: str) -> Grid:
    """Values times a power of ten, so that the largest has two digits before the point."""
    largest = max(row[column] for row in rows)
    power = 1 - math.floor(math.log10(largest)) if largest > 0 else 0
    names, treatments = _ordered(rows, "unit")
    places = ((row["unit"], row["treatment"], row[column]) for row in rows)
    cells = {(unit, treatment): Cell(value * 10.0**power, words=f"{value:.4g}") for unit, treatment, value in places}
    scale = f", in units of {10.0**-power:g}" if power else ""
    return Grid(names, treatments, cells, name + scale)


def _ordered(rows: Sequence[Row], key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and treatments in their order, the full model and the untouched net last; some may lack a treatment."""
    names = list(dict.fromkeys(str(row[key]) for row in rows))
    each = [[str(row["treatment"]) for row in rows if str(row[key]) == name] for name in names]
    treatments = list(dict.fromkeys(treatment for several in sorted(each, key=len)[::-1] for treatment in several))
    for several, last in ((names, FULL), (treatments, UNTOUCHED)):
        if last in several:
            several.append(several.pop(several.index(last)))
    return tuple(names), tuple(treatments)


def _need(result: Result, *keys: str) -> None:
    missing = [key for key in keys if any(key not in row for row in result.rows)]
    if missing or not result.rows:
        what = f"no column '{missing[0]}'" if missing else "no row"
        raise AnalysisError(f"'{result.title}' has {what}, so there is nothing to draw; measure again")


def _group(row: Row) -> str:
    units, share = row.get("units_treated"), number(row.get("share_of_params"))
    words = "" if units is None else f"{units} unit{'' if units == 1 else 's'}"
    words += "" if share is None else f"{', ' if words else ''}{share:.0%}"
    return f"{row['group']} · {words}" if words else str(row["group"])
