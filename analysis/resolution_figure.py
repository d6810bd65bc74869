"""The figure of nets by resolution: one line per net with the band of its interval, and the lead over the first."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from analysis.drawing import GREY, banded, canvas, tidy
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

PANELS = {"accuracy": "accuracy, %", "ap": "average precision, %", "ap_small": "AP of small objects, %"}


def draw(result: Result) -> Figure:
    """Accuracy or average precision against resolution, the full one first.

    Raises:
        AnalysisError: When there is no row, or a column is missing.

    Example:
        >>> from analysis.stored import StoredResult
        >>> rows = [{"model": "a", "factor": f, "resolution": "", "accuracy": f} for f in (1.0, 0.5)]
        >>> len(draw(StoredResult("resolution", "half", rows)).axes)
        1
    """
    rows = result.rows
    if not rows or not {"model", "factor", "resolution"} <= rows[0].keys():
        raise AnalysisError(
            f"'{result.title}' has no column of nets and factors, so nothing can be drawn; see its table"
        )
    metrics = [name for name in PANELS if any(row.get(name) is not None for row in rows)]
    if not metrics:
        raise AnalysisError(f"'{result.title}' has no accuracy or average precision, so nothing can be drawn")
    led = f"{metrics[0]}_lead" if any(row.get(f"{metrics[0]}_lead") is not None for row in rows) else ""
    count = len(metrics) + bool(led)
    figure = canvas(result.title, max(5.6, 4.6 * count), 4.0)
    panels = figure.subplots(1, count, squeeze=False)[0]
    factors = sorted({float(row["factor"]) for row in rows}, reverse=True)
    nets = list(dict.fromkeys(row["model"] for row in rows))
    for axes, metric in zip(panels, metrics, strict=False):
        _panel(axes, rows, nets, factors, metric)
        axes.legend(frameon=False, fontsize="small")
        tidy(axes, "resolution of the images, per side", PANELS[metric])
    if led:
        _panel(panels[-1], rows, nets, factors, led)
        panels[-1].axhline(0, color=GREY, linewidth=1, linestyle="--")
        tidy(panels[-1], "resolution of the images, per side", f"{plain(_who(nets))}, points")
    return figure


def _who(nets: list[str]) -> str:
    return f"{nets[1] if len(nets) == 2 else 'each'} less {nets[0]}"


def _panel(axes: Any, rows: list[Row], nets: list[str], factors: list[float], column: str) -> None:
    for place, net in enumerate(nets):
        mine = [row for row in rows if row["model"] == net]
        if any(row.get(column) is not None for row in mine):
            banded(axes, [factors.index(float(row["factor"])) for row in mine], mine, column, place, net)
    axes.set_xticks(range(len(factors)), [_tick(rows, factor) for factor in factors])


def _tick(rows: list[Row], factor: float) -> str:
    row = next(row for row in rows if row["factor"] == factor)
    height, width = row.get("height_px"), row.get("width_px")
    if height is None or width is None:
        return str(row["resolution"])
    return f"{row['resolution']}\n{height} px" if height == width else f"{row['resolution']}\n{height}x{width} px"
