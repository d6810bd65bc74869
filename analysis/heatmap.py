"""Heatmaps of units by treatments, as matplotlib figures; no window is opened.

Apart from the grids they show, which the HTML pages draw on their own, and from the line plots in ``curves``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.curves import MARKS
from analysis.curves import curve as curve
from analysis.curves import lines as lines
from analysis.gridding import distance_grids, joint_grid, mean_grid, robustness_grid
from analysis.grids import COLOURS, DIFFERS, FULL, Grid, cell_text, ink, short
from analysis.result import Result, plain
from surgeon.errors import AnalysisError

MEANINGS = {DIFFERS: "differs between seeds"}
WIDE, LEAST = 0.62, 0.3  # inches of a cell


def heatmap(result: Result) -> Figure:
    """Draw the error of every unit under every treatment, units as columns where there are more than twelve.

    Bright is bad. Marks say which units are critical, undecided or robust under a treatment; a star beside a name, that
    there is a note below.

    Raises:
        AnalysisError: When there is no row, or it lacks a column.

    Example:
        >>> from analysis.stored import StoredResult
        >>> rows = [{"unit": "fc1", "treatment": "rerand", "error": 0.9, "verdict": "critical"}]
        >>> heatmap(StoredResult("robustness", "three layers", rows)).axes[0].get_yticklabels()[0].get_text()
        'fc1'

    References:
        Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 23 (2022), arXiv:1902.01996, Figs. 1, 4, 5.
    """
    return draw([robustness_grid(result)], result.title)


def joint(result: Result) -> Figure:
    """Draw the error of every group of units treated together, under every treatment.

    Raises:
        AnalysisError: When there is no row, or it lacks a column.
    """
    return draw([joint_grid(result)], result.title)


def distances(result: Result) -> Figure:
    """Draw how far each unit is from its initial weights (else from the trained ones): L2 and L-infinity.

    Raises:
        AnalysisError: When the rows hold no distance.
    """
    grids = distance_grids(result)
    if not grids:
        raise AnalysisError(
            f"'{result.title}' holds no distance of a unit; measure again, with a unit that has weights"
        )
    return draw(grids, result.title)


def heatmap_mean(results: Sequence[Result]) -> Figure:
    """Draw the mean over the same analysis of several seeds, the standard deviation below it in each cell.

    Args:
        results: Robustness, or joint robustness, of the same units.

    Raises:
        AnalysisError: When there are fewer than two, or of other units or another measure.
    """
    grids = [joint_grid(one) if "group" in one.rows[0] else robustness_grid(one) for one in results if one.rows]
    return draw([mean_grid(grids)], results[0].title)


def draw(grids: Sequence[Grid], title: str) -> Figure:
    """Draw grids below each other, each with its own colours.

    Args:
        grids: At least one.
        title: Of the figure.
    """
    panels = [(grid, names) for grid in grids for names in grid.bands()]
    sizes = [_size(grid, names) for grid, names in panels]
    height = sum(high for _, high in sizes) + 0.9
    figure = Figure(figsize=(max(5.0, *(wide for wide, _ in sizes)), height), layout="constrained")
    FigureCanvasAgg(figure)
    subplots = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[high for _, high in sizes]).ravel()
    for axes, (grid, names) in zip(subplots, panels, strict=True):
        bar = _panel(figure, axes, grid, names)
        if len(grids) == 1:
            bar.set_label(grid.label.partition(", mean")[0], fontsize="small")
        elif names == grid.bands()[0]:
            axes.set_title(grid.label, fontsize="small")
    _explain(figure, grids[0])
    figure.suptitle(plain(title), fontsize=11)
    return figure


def _cell_width(grid: Grid, names: Sequence[str]) -> float:
    return min(WIDE, max(LEAST, 16.5 / len(names))) if grid.deep else WIDE + 0.25


def _size(grid: Grid, names: Sequence[str]) -> tuple[float, float]:
    """Width and height of a panel in inches, labels included."""
    longest = 0.075 * max(len(short(grid.beside(name))) for name in names)
    if grid.deep:
        return 2.0 + _cell_width(grid, names) * len(names), 0.7 + 0.32 * len(grid.treatments) + longest
    return 1.6 + longest + _cell_width(grid, names) * len(grid.treatments), 0.7 + 0.36 * len(names)


def _panel(figure: Figure, axes: Any, grid: Grid, names: Sequence[str]) -> Any:
    """Draw one band of a grid; returns its scale of colours."""
    drawn = np.full((len(names), len(grid.treatments)), np.nan)
    for i, name in enumerate(names):
        for j, treatment in enumerate(grid.treatments):
            cell = grid.cells.get((name, treatment))
            drawn[i, j] = np.nan if cell is None or cell.value is None else cell.value
    values = drawn.T if grid.deep else drawn
    low, high = grid.limits
    colours = COLOURS if grid.bright_is_high else COLOURS.reversed()
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=high, edgecolors="w", linewidth=1)
    axes.set_facecolor("0.92")
    axes.invert_yaxis()
    _labels(axes, grid, names)
    for i, name in enumerate(names):
        for j, treatment in enumerate(grid.treatments):
            x, y = (i, j) if grid.deep else (j, i)
            _cell(axes, grid, name, treatment, x + 0.5, y + 0.5, _cell_width(grid, names))
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=14)
    bar.ax.tick_params(labelsize="small")
    return bar


def _labels(axes: Any, grid: Grid, names: Sequence[str]) -> None:
    beside = [plain(short(grid.beside(name))) for name in names]
    places = np.arange(len(names)) + 0.5, np.arange(len(grid.treatments)) + 0.5
    treatments = [plain(treatment) for treatment in grid.treatments]
    if grid.deep:
        axes.set_xticks(places[0], beside, rotation=90, fontsize="small")
        axes.set_yticks(places[1], treatments, fontsize="small")
    else:
        axes.set_yticks(places[0], beside)
        axes.set_xticks(places[1], treatments)
    if names[-1] == FULL and len(names) > 1:
        (axes.axvline if grid.deep else axes.axhline)(len(names) - 1, color="white", linewidth=5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _cell(axes: Any, grid: Grid, name: str, treatment: str, x: float, y: float, width: float) -> None:
    """Write the number, the standard deviation below it, and the mark of the verdict into a cell."""
    cell = grid.cells.get((name, treatment))
    if cell is None or cell.value is None:
        axes.text(x, y, "–", ha="center", va="center", color="0.4", fontsize="small")
        return
    colour, narrow = ink(grid.colour(cell.value)), width < 0.42
    style: dict[str, Any] = {"ha": "center", "color": colour}
    size = 7.0 if narrow else 9.0
    if cell.spread is None:
        axes.text(x, y + 0.04, cell_text(cell.value, narrow), va="center", fontsize=size, **style)
    else:
        axes.text(x, y - 0.02, cell_text(cell.value, narrow), va="center", fontsize=size, **style)
        axes.text(x, y + 0.3, f"±{cell_text(cell.spread, narrow)}", va="center", fontsize=size * 0.72, **style)
    if cell.verdict in MARKS:
        inset = 0.06 / width
        mark = {"color": colour, "markersize": 2.6 if narrow else 3.4, "markeredgewidth": 0.7, "linestyle": "none"}
        axes.plot(x + 0.5 - inset - 0.02, y - 0.33, **mark, **MARKS[cell.verdict])


def _explain(figure: Figure, grid: Grid) -> None:
    """Say below the panels what marks and stars mean."""
    marks = [
        Line2D([], [], color="black", linestyle="none", markersize=5, label=MEANINGS.get(name, name), **MARKS[name])
        for name in grid.verdicts()
    ]
    notes = [textwrap.shorten(f"* {plain(note)}", 80, placeholder=" …") for note in grid.notes]
    marks += [Line2D([], [], linestyle="none", label=note) for note in notes]
    if marks:
        columns = 1 if any(len(note) > 30 for note in notes) else len(marks)
        figure.legend(handles=marks, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
