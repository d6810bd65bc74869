"""The figure of attributions to units: shares as bars, and the loss of drawing a unit anew against its share.

Apart from the analysis, which it does not need: rows and settings of a stored result are enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.grids import number, short
from analysis.labelling import label_points
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#999999"
VERDICTS = {  # colour and mark of a unit drawn anew
    "critical": (VERMILION, "^"),
    "undecided": (GREY, "D"),
    "robust": (BLUE, "o"),
}
NAMED = 8  # units that have their names in the scatter plot; more have numbers
WIDE = 40.0  # largest share by the smallest, from which on the axis is logarithmic


def draw(result: Result) -> Figure:
    """Draw a row of panels per method.

    Left the absolute share of each unit, in order of call, with its interval, and the signed share as a mark; right,
    where robustness was given, the loss when drawn anew against the absolute share, coloured by the verdict.

    Raises:
        AnalysisError: When there is no row with a share.

    Example:
        >>> from analysis.stored import StoredResult
        >>> row = {"method": "conductance", "unit": "fc1", "absolute_share": 2.0, "signed_share": 1.0}
        >>> len(draw(StoredResult("attribution", "one unit", [row])).axes)
        1
    """
    rows = [row for row in result.rows if number(row.get("absolute_share")) is not None]
    if not rows:
        raise AnalysisError(f"'{result.title}' has no unit with a share, so there is nothing to draw; see its table")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    most = max(sum(row["method"] == method for row in rows) for method in methods)
    beside = any(number(row.get("rerand_difference")) is not None for row in rows)
    size = (11.0 if beside else 6.5, 0.5 + len(methods) * max(3.4, 1.0 + 0.21 * most))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(methods), 2 if beside else 1, squeeze=False)
    ranks = result.settings.get("rank_correlation", {})
    figure.suptitle(plain(_title(result)), fontsize=11)
    for line, method in zip(panels, methods, strict=True):
        mine = [row for row in rows if row["method"] == method]
        _bars(line[0], mine, method)
        if beside:
            _scatter(line[1], mine, ranks.get(method))
    _legend(figure, panels)
    for line, method in zip(panels, methods, strict=True):  # once everything else is in its place
        if beside:
            _name_points(figure, line[1], [row for row in rows if row["method"] == method])
    return figure


def _title(result: Result) -> str:
    images = result.settings.get("images")
    return result.title + (f" ({images} images)" if images else "")


def _bars(axes: Any, rows: Sequence[Row], method: str) -> None:
    shares = [row["absolute_share"] for row in rows]
    axes.barh(range(len(rows)), shares, color=BLUE, height=0.7, label="absolute share (median)")
    for place, row in enumerate(rows):
        low, high = number(row.get("absolute_share_low_95")), number(row.get("absolute_share_high_95"))
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color="black", linewidth=1)
    signed = [row["signed_share"] for row in rows]
    axes.plot(signed, range(len(rows)), "D", color="#E69F00", markersize=4, markeredgecolor="black",
              markeredgewidth=0.5, label="signed share", linestyle="none")  # fmt: skip
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    axes.set_yticks(range(len(rows)), [plain(name) for name in _names(rows, both=True)], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("share of f(image) − f(baseline)", fontsize=9)
    axes.set_title(plain(method.replace("_", " ")), fontsize=10)
    _along(axes, shares, min(signed) > 0 < min(shares))
    _tidy(axes)


def _scatter(axes: Any, rows: Sequence[Row], ranks: Mapping[str, Any] | None) -> None:
    known = [row for row in rows if number(row.get("rerand_difference")) is not None]
    factor, unit = (1.0, "AP") if "rerand_ap" in rows[0] else (100.0, "error, points")
    for verdict in (*VERDICTS, "-"):
        mine = [row for row in known if row.get("verdict", "-") == verdict]
        if not mine:
            continue
        x, y = [row["absolute_share"] for row in mine], [factor * row["rerand_difference"] for row in mine]
        far = [[factor * _far(row, end) for row in mine] for end in ("low", "high")]
        colour, mark = VERDICTS.get(verdict, (GREY, "o"))
        label = f"{verdict} when drawn anew" if verdict in VERDICTS else None
        axes.errorbar(x, y, yerr=far, fmt=mark, color=colour, elinewidth=0.8, markersize=5, label=label)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlabel("absolute share (median over images)", fontsize=9)
    axes.set_ylabel(f"loss when drawn anew ({unit})", fontsize=9)
    axes.set_title(plain(_correlation(ranks)), fontsize=10)
    axes.margins(0.12, 0.14)
    _along(axes, [row["absolute_share"] for row in known], all(row["absolute_share"] > 0 for row in known))
    _tidy(axes)


def _legend(figure: Figure, panels: Any) -> None:
    """One for all panels, below them."""
    found: dict[str, Any] = {}
    for axes in panels.ravel():
        handles, labels = axes.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _far(row: Row, end: str) -> float:
    """From the loss to an end of its interval; 0 where there is none."""
    bound = number(row.get(f"rerand_difference_{end}_95"))
    return 0.0 if bound is None else abs(bound - float(row["rerand_difference"]))


def _name_points(figure: Figure, axes: Any, rows: Sequence[Row]) -> None:
    factor = 1.0 if "rerand_ap" in rows[0] else 100.0
    names = _names(rows, both=False)
    known = [
        ((row["absolute_share"], factor * row["rerand_difference"]), name)
        for row, name in zip(rows, names, strict=True)
        if number(row.get("rerand_difference")) is not None
    ]
    label_points(figure, axes, [place for place, _ in known], [name for _, name in known])


def _names(rows: Sequence[Row], both: bool) -> list[str]:
    """Names of units; numbers where they are many, and both where they stand beside the bars."""
    names = [short(row["unit"]) for row in rows]
    if len(rows) <= NAMED:
        return names
    return [f"{name}  {place}" if both else str(place) for place, name in enumerate(names, 1)]


def _correlation(ranks: Mapping[str, Any] | None) -> str:
    if not ranks or ranks.get("spearman") is None:
        return f"no rank correlation ({(ranks or {}).get('units', 0)} units)"
    low, high = ranks["low_95"], ranks["high_95"]
    bounds = "" if low is None else f" ({low:.2f} to {high:.2f})"
    return f"Spearman {ranks['spearman']:.2f}{bounds}, p {ranks['p_value']:.2g}, {ranks['units']} units"


def _along(axes: Any, values: Sequence[float], positive: bool) -> None:
    """A logarithmic axis where shares differ much, and all are above zero."""
    if positive and values and max(values) > WIDE * min(values):
        axes.set_xscale("log")


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(color="#888888", alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
