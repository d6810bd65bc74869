"""Figures of perceptual distances: agreement per distortion, response curves, shifts; and of learning their weights.

Apart from the results, so that stored rows are drawn as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from analysis.grids import number
from analysis.result import Result, Row, plain
from surgeon.errors import AnalysisError

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
MOST_CURVES, PER_LINE = 8, 5  # curves in one figure, and in one line
SMALL: dict[str, Any] = {"fontsize": 9}


def draw(result: Result) -> Figure:
    """Draw agreement per distortion, small shifts, and curves where there are few distortions; or choices.

    Raises:
        AnalysisError: When there is no row of these.
    """
    parts = {part: [row for row in result.rows if row.get("part") == part] for part in PARTS}
    if parts["choice"]:
        figure = _figure(2.2 + 0.42 * len({row["distortion"] for row in parts["choice"]}), result.title)
        _choices(figure.subplots(), parts["choice"])
        return figure
    agreed = [row for row in parts["correlation"] if row["measure"] == "spearman"]
    if not agreed:
        raise AnalysisError(f"'{result.title}' has no correlation and no choice, so there is nothing to draw")
    kinds = list(dict.fromkeys(row["distortion"] for row in parts["curve"]))
    lines = -(-len(kinds) // PER_LINE) if len(kinds) <= MOST_CURVES else 0
    columns = -(-len(kinds) // lines) if lines else 0
    above = max(3.2, 1.3 + 0.26 * len(agreed))
    figure = _figure(above + 2.5 * lines, result.title)
    grid = figure.add_gridspec(1 + bool(lines), 1, height_ratios=[above, 2.5 * lines][: 1 + bool(lines)])
    top = grid[0].subgridspec(1, 1 + bool(parts["shift"]))
    _forest(figure.add_subplot(top[0]), agreed)
    if parts["shift"]:
        _shifts(figure.add_subplot(top[1]), parts["shift"], result)
    if lines:
        _curves(figure, grid[1].subgridspec(lines, columns), kinds, parts["curve"], result)
    return figure


def draw_fit(result: Result) -> Figure:
    """Draw the correlation of the training and the validation pairs against the epoch.

    Raises:
        AnalysisError: When there is no epoch.
    """
    rows = [row for row in result.rows if number(row.get("pearson")) is not None]
    if not rows:
        raise AnalysisError(f"'{result.title}' has no epoch, so there is nothing to draw")
    figure = _figure(3.4, result.title)
    axes = figure.subplots()
    columns = {"pearson": ("training pairs", BLUE, "-"), "validation_pearson": ("validation pairs", VERMILION, "--")}
    for key, (label, colour, style) in columns.items():
        there = [(row["epoch"], row[key]) for row in rows if number(row.get(key)) is not None]
        if there:
            axes.plot(*zip(*there, strict=True), style, color=colour, label=label, linewidth=1.6)
    for row in rows:
        if row.get("best"):
            axes.axvline(row["epoch"], color=GREY, linewidth=1, label=f"weights kept: epoch {row['epoch']}")
    axes.set(xlabel="epoch (0: all weights 1)", ylabel="Pearson correlation with the scores")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    _plain_spines(axes)
    return figure


PARTS = ("correlation", "curve", "shift", "choice")


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(9.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(plain(title), fontsize=11)
    return figure


def _plain_spines(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _forest(axes: Any, rows: Sequence[Row]) -> None:
    """One dot per distortion with its interval, all of them on top."""
    for place, row in enumerate(rows):
        _dot(axes, place, row, VERMILION if row["distortion"] == "all" else BLUE)
    axes.set_yticks(range(len(rows)), [plain(row["distortion"]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("Spearman correlation (95% interval)", **SMALL)
    lowest = min([0.0, *(value for row in rows for value in map(number, _ends(row)) if value is not None)])
    axes.set_xlim(min(lowest - 0.05, -0.02), 1.03)
    axes.grid(axis="x", color=GREY, alpha=0.3)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_title("agreement with the scores, by distortion", **SMALL)
    _plain_spines(axes)


def _ends(row: Row) -> list[Any]:
    return [row.get(key) for key in ("value", "value_low_95", "value_high_95")]


def _dot(axes: Any, place: int, row: Row, colour: str, marker: str = "o") -> None:
    value, low, high = map(number, _ends(row))
    if value is None:
        return
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=colour, linewidth=1.6, alpha=0.7)
    axes.plot([value], [place], marker, color=colour, markersize=6)


def _shifts(axes: Any, rows: Sequence[Row], result: Result) -> None:
    """The distance of shifted images, relative to the mean distortion, and how many distortions are nearer."""
    lines = {
        "relative_distance": ("shifted image: distance\n(100%: the mean distortion)", BLUE, "o-"),
        "share_below": ("distorted images that\nare nearer than it", VERMILION, "s--"),
    }
    for measure, (label, colour, style) in lines.items():
        _band(axes, [row for row in rows if row["measure"] == measure], "shift_px", colour, style, label, lambda v: v)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"shift of the reference, pixels ({result.settings.get('padding', '')} border)", **SMALL)
    axes.set_title("small shifts of the image", **SMALL)
    axes.grid(color=GREY, alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    _plain_spines(axes)


def _band(
    axes: Any, rows: Sequence[Row], key: str, colour: str, style: str, label: str, scale: Callable[[float], float]
) -> None:
    there = [row for row in rows if number(row.get("value")) is not None]
    if not there:
        return
    places = [row[key] for row in there]
    axes.plot(places, [scale(row["value"]) for row in there], style, color=colour, label=label, markersize=4)
    if all(number(row.get(end)) is not None for row in there for end in ("value_low_95", "value_high_95")):
        ends = [[scale(row[end]) for row in there] for end in ("value_low_95", "value_high_95")]
        axes.fill_between(places, *ends, color=colour, alpha=0.15, linewidth=0)


def _curves(figure: Figure, grid: Any, kinds: Sequence[str], rows: Sequence[Row], result: Result) -> None:
    """Mean distance and mean score of each level; both in shares of their largest, over all distortions."""
    scales = {
        measure: _scale([r for r in rows if r["measure"] == measure], result) for measure in ("distance", "score")
    }
    scored = plain(str(result.settings.get("scored", "score")))
    named = {"distance": ("distance", BLUE, "o-"), "score": (scored, VERMILION, "s--")}
    first: Any = None
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(grid[place // grid.ncols, place % grid.ncols], sharex=first, sharey=first)
        for measure, (label, colour, style) in named.items():
            mine = [row for row in rows if row["distortion"] == kind and row["measure"] == measure]
            _band(axes, mine, "level", colour, style, label, scales[measure])
        axes.set_title(plain(kind), **SMALL)
        axes.set_xlabel("level", **SMALL)
        if place % grid.ncols == 0:
            axes.set_ylabel("share of the largest mean", **SMALL)
        if first is None:
            axes.legend(frameon=False, fontsize=8)
            first = axes
        axes.grid(color=GREY, alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        _plain_spines(axes)


def _scale(rows: Sequence[Row], result: Result) -> Callable[[float], float]:
    """To shares of the largest mean; scores that are higher for better images are turned."""
    values = [row["value"] for row in rows if number(row.get("value")) is not None] or [0.0]
    turned = bool(rows) and rows[0]["measure"] == "score" and result.settings.get("higher") == "better"
    best, worst = (max(values), min(values)) if turned else (min(0.0, *values), max(values))
    return lambda value: (value - best) / ((worst - best) or 1.0)


def _choices(axes: Any, rows: Sequence[Row]) -> None:
    kinds = list(dict.fromkeys(row["distortion"] for row in rows))
    for row in rows:
        if row["measure"] == "agreement":
            _dot(axes, kinds.index(row["distortion"]), row, BLUE)
        elif number(row.get("value")) is not None:
            axes.plot([row["value"]], [kinds.index(row["distortion"])], "|", color="black", markersize=14)
    axes.plot([], [], "o-", color=BLUE, label="the distance, with its 95% interval")
    axes.plot([], [], "|", color="black", markersize=12, linestyle="none", label="one more judge")
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1, label="chance")
    axes.set_yticks(range(len(kinds)), [plain(kind) for kind in kinds])
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("judges who chose alike", **SMALL)
    axes.grid(axis="x", color=GREY, alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain_spines(axes)
