"""A figure for rows of any kind: one bar per row, for the column that matters most.

Apart from the figures of the analyses, which know their rows; this one serves results read back from a file.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.grids import number
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

FIRST = ("error", "ap", "value", "difference", "difference_points", "sparsity", "correct_percent", "accuracy")
MOST = 80  # bars; more cannot be read
BLUE = "#3b8fc4"


def bars(result: Result) -> Figure:
    """Draw one bar per row: its texts as the label, its most telling number as the length, its interval if any.

    Raises:
        AnalysisError: When there is no row, or none with a number.

    Example:
        >>> from analysis.stored import StoredResult
        >>> rows = [{"layer": "a", "sparsity": 0.5}, {"layer": "b", "sparsity": 1.0}]
        >>> [float(bar.get_width()) for bar in bars(StoredResult("x", "Shifts", rows)).axes[0].patches]
        [0.5, 1.0]
    """
    key = telling(result.rows)
    if key is None:
        raise AnalysisError(f"'{result.title}' has no column of numbers, so there is nothing to draw; see its table")
    rows = [row for row in result.rows if number(row.get(key)) is not None][:MOST]
    figure = Figure(figsize=(8.0, 1.2 + 0.24 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh(range(len(rows)), [row[key] for row in rows], color=BLUE, height=0.7)
    for place, row in enumerate(rows):
        low, high = _interval(row, key)
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [plain(label) for label in _named(rows)], fontsize="small")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    more = f" (the first {MOST} of {len(result.rows)} rows)" if len(result.rows) > len(rows) == MOST else ""
    axes.set_xlabel(plain(key.replace("_", " ") + more))
    axes.grid(axis="x", color="#888888", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(plain(result.title), fontsize=11)
    return figure


def telling(rows: Sequence[Row]) -> str | None:
    """The column to draw: one of those that usually say most, else the last whose values are all numbers or none.

    Example:
        >>> telling([{"layer": "a", "channels": 8, "sparsity": 0.5, "offset_px": 1}])
        'sparsity'
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    numeric = [
        key
        for key in keys
        if all(number(row.get(key)) is not None or row.get(key) is None for row in rows)
        and any(number(row.get(key)) is not None for row in rows)
    ]
    return next((key for key in FIRST if key in numeric), numeric[-1] if numeric else None)


def _named(rows: Sequence[Row]) -> list[str]:
    """The texts of each row that tell the rows apart."""
    keys = [key for key, value in rows[0].items() if isinstance(value, str)]
    keys = [key for key in keys if len({str(row.get(key)) for row in rows}) > 1] or keys
    chosen: list[str] = []
    for key in keys:
        chosen.append(key)
        if len({tuple(str(row.get(k)) for k in chosen) for row in rows}) == len(rows):
            break
    return [" · ".join(str(row.get(key)) for key in chosen) or f"row {i + 1}" for i, row in enumerate(rows)]


def _interval(row: Row, key: str) -> tuple[float | None, float | None]:
    pairs = ((f"{key}_low_95", f"{key}_high_95"), ("low_95", "high_95"))
    low, high = next((pair for pair in pairs if all(end in row for end in pair)), pairs[0])
    return number(row.get(low)), number(row.get(high))
