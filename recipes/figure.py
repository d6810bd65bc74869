"""The figure of a run: accuracy and loss of every variant, epoch by epoch.

Apart from the summary so that matplotlib is loaded only when a figure is drawn; it never opens a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from recipes.evaluating import Score

Row = dict[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
LABELS = {"val_accuracy": "validation accuracy", "map50_95": "mAP50-95 on the validation images"}
MARKS = ("o", "s", "^", "D", "v", "P", "X")


def curves(title: str, rows: Mapping[str, Sequence[Row]], scores: Mapping[str, Score]) -> Figure:
    """Draw validation accuracy (with Wilson's 95% interval at the end) and training loss.

    Args:
        title: Of the figure.
        rows: Variant to its rows, as `finetune` gives them.
        scores: Variant to the score of its final weights.

    Example:
        >>> drawn = curves("two epochs", {"a": [{"epoch": 0, "val_accuracy": 0.1}]}, {"a": Score(1, 10, 2.3)})
        >>> len(drawn.axes)
        2
    """
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, loss = figure.subplots(1, 2)
    last = max((row["epoch"] for lines in rows.values() for row in lines), default=1)
    for position, (name, lines) in enumerate(rows.items()):
        colour, mark = COLOURS[position % len(COLOURS)], MARKS[position % len(MARKS)]
        style: dict[str, Any] = {"color": colour, "marker": mark, "markersize": 4, "linewidth": 1.6, "alpha": 0.9}
        accuracy.plot([row["epoch"] for row in lines], [row["val_accuracy"] for row in lines], label=name, **style)
        low, high = scores[name].interval
        final, beside = scores[name].accuracy, last * (1.03 + 0.03 * position)
        bars = [[final - low], [high - final]]
        accuracy.errorbar([beside], [final], yerr=bars, color=colour, marker=mark, markersize=4, capsize=3)
        trained = [row for row in lines if "train_loss" in row]
        loss.plot([row["epoch"] for row in trained], [row["train_loss"] for row in trained], label=name, **style)
    _label(accuracy, "validation accuracy", "bars: 95% interval of the final weights")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    _label(loss, "training loss", "")
    losses = [row["train_loss"] for lines in rows.values() for row in lines if row.get("train_loss", 0) > 0]
    if losses and max(losses) > 10 * min(losses):
        loss.set_yscale("log")
    figure.suptitle(title, fontsize=11)
    return figure


def paired(title: str, rows: Mapping[str, Sequence[Sequence[Row]]], metric: str = "val_accuracy") -> Figure:
    """Draw a metric of every variant over several runs: each run thin, their mean bold.

    Args:
        title: Of the figure.
        rows: Variant to the rows of each of its runs.
        metric: ``val_accuracy``, or ``map50_95`` of detectors.

    Example:
        >>> line = [{"epoch": 0, "val_accuracy": 0.1}, {"epoch": 1, "val_accuracy": 0.5}]
        >>> len(paired("two runs", {"a": [line, line]}).axes)
        2
    """
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, loss = figure.subplots(1, 2)
    for position, (name, runs) in enumerate(rows.items()):
        style: dict[str, Any] = {"color": COLOURS[position % len(COLOURS)]}
        for axes, key in ((accuracy, metric), (loss, "train_loss")):
            lines = [[(row["epoch"], row[key]) for row in run if key in row] for run in runs]
            for line in filter(None, lines):
                axes.plot(*zip(*line, strict=True), linewidth=0.6, alpha=0.45, **style)
            together = [points for points in zip(*lines, strict=False) if points]
            mean = [sum(value for _, value in points) / len(points) for points in together]
            broken = ("-", "--", ":")[position % 3]  # lines that coincide stay visible
            axes.plot([points[0][0] for points in together], mean, linewidth=1.8, linestyle=broken, label=name, **style)
    seeds = max(map(len, rows.values()))
    _label(accuracy, LABELS[metric], f"thin: each of {seeds} seeds; bold: their mean" if seeds > 1 else "")
    if metric == "val_accuracy":
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    _label(loss, "training loss", "")
    for axes in (accuracy, loss):
        axes.get_legend().remove()
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def _label(axes: Any, what: str, note: str) -> None:
    axes.set_xlabel("epoch of fine-tuning" + (f"\n{note}" if note else ""))
    axes.set_ylabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a picture in one step."""
    beside = path.with_name(f".{path.name}.part")
    figure.savefig(beside, dpi=150, format="png")
    beside.replace(path)
