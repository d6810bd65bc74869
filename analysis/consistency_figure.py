"""The figure of shift consistency: each pass with its interval, or accuracy and consistency along the diagonal."""

from __future__ import annotations

from matplotlib.figure import Figure

from analysis.drawing import BLUE, GREY, banded, canvas, tidy
from analysis.result import Result
from surgeon.errors import AnalysisError


def draw(result: Result) -> Figure:
    """Consistency and accuracy, in per cent, with 95% intervals.

    Raises:
        AnalysisError: When there is no row, or it lacks the columns.

    Example:
        >>> from analysis.stored import StoredResult
        >>> row = {"pass": "1", "consistency": 0.9, "consistency_low_95": 0.8, "consistency_high_95": 0.95}
        >>> len(draw(StoredResult("consistency", "one pass", [row])).axes)
        1
    """
    if not result.rows or "consistency" not in result.rows[0]:
        raise AnalysisError(f"'{result.title}' has no column 'consistency', so nothing can be drawn")
    if "shift_px" in result.rows[0]:
        figure = canvas(result.title)
        both = figure.subplots(1, 2)
        for place, (axes, column) in enumerate(zip(both, ("accuracy", "consistency"), strict=True)):
            rows = [row for row in result.rows if row[column] is not None]
            banded(axes, [row["shift_px"] for row in rows], rows, column, place, "")
            named = "accuracy, %" if column == "accuracy" else "same class as one pixel before, %"
            tidy(axes, "window right and down, pixels", named)
        return figure
    figure = canvas(result.title, 7.0, 1.4 + 0.35 * len(result.rows))
    axes = figure.subplots()
    for place, row in enumerate(result.rows):
        colour = BLUE if row["pass"] == "all" else GREY
        low, high = row["consistency_low_95"], row["consistency_high_95"]
        axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=2)
        axes.plot([100 * row["consistency"]], [place], "o", color=colour)
    names = [f"pass {row['pass']}" if row["pass"] != "all" else "all passes" for row in result.rows]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    tidy(axes, "same class for both shifts, % (95% interval)", "")
    return figure
