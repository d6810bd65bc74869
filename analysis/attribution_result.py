"""What attributions of units come to: rows with intervals, the loss of drawing each unit anew, and how ranks agree.

Apart from `attributing`, which measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.explaining import Explained
from analysis.parts import Unit
from analysis.ranking import median_interval, rank_agreement
from analysis.result import ReadBack, Result, Row, as_text
from analysis.unit_flow import BRANCH
from analysis.unit_taps import Place
from surgeon.errors import AnalysisError
from surgeon.table import table

if TYPE_CHECKING:
    from analysis.attributing import Found

Values = NDArray[np.float64]
Beside = Mapping[str, Row]
RERAND = "rerand"
OFF = 0.05  # completeness error that is worth a note
SHOWN = ("method", "unit", "absolute_share", "signed_share", "integration_error_share", "rerand_difference", "verdict")


@dataclass(frozen=True)
class Column:
    """Of a method and a unit: absolute share, signed share and integration error of each image, (images, 3)."""

    method: str
    place: Place
    shares: Values | None


class Attribution(ReadBack):
    """How much of the answer flows through each unit; prints as a table, draws bars and a scatter plot.

    Rows have ``method``, ``unit``, ``path``, ``taken`` (whose output), ``params``, ``values`` (numbers in that output),
    ``images``; ``absolute_share``, ``signed_share`` (medians over the images, each with its 95% interval) and
    ``integration_error_share`` (median), all in f(x) - f(baseline); where robustness is there, the metric when the unit
    is drawn anew (``rerand_error`` or ``rerand_ap``), ``rerand_difference`` (what that loses, with its interval) and
    ``verdict``; ``note``.

    The integration error is, of conductance, how far the sum is from that of half the steps; of integrated gradients,
    how far it is from the change of the answer.

    Attributes:
        rank_correlation: By method, Spearman's correlation over units of absolute share and ``rerand_difference``:
            ``spearman``, ``low_95``, ``high_95``, ``p_value`` and ``units``.
        completeness_error: By method, the median over the images of how far the sum over the pixels is from
            f(x) - f(baseline), in shares of it; None of methods that need not add up.
        complete: False where Ctrl-C ended it.
    """

    kind = "attribution"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Attribution to units of {settings['model']}", rows, summary, settings)
        self.rank_correlation: dict[str, dict[str, Any]] = dict(settings["rank_correlation"])
        self.completeness_error: dict[str, float | None] = dict(settings["completeness_error"])
        self.complete = bool(settings["complete"])

    def figure(self) -> Figure:
        """Shares of the units as bars, and beside them the loss when drawn anew against the share."""
        from analysis.attribution_figure import draw

        return draw(self)

    def __str__(self) -> str:
        keys = [key for key in SHOWN if self.rows and key in self.rows[0]]
        numbers = frozenset(key for key in keys if key not in ("method", "unit", "verdict"))
        lines = [[as_text(row[key]) for key in keys] for row in self.rows]
        return "\n".join([self.title, table(keys, lines, right=numbers), self.summary])


def beside_of(result: Result, members: Sequence[Unit]) -> Beside:
    """The row of each unit when it is drawn anew.

    Raises:
        AnalysisError: When the result is of another analysis, or lacks a unit.

    Example:
        >>> from analysis.stored import StoredResult
        >>> row = {"unit": "fc1", "treatment": "rerand", "error": 0.9, "difference": 0.8}
        >>> beside_of(StoredResult("robustness", "one", [row]), [Unit("fc1", ("a",), (), (), 1, "")])["fc1"]["error"]
        0.9
    """
    if result.kind != "robustness":
        raise AnalysisError(
            f"attribution: robustness is a result of the analysis '{result.kind}'; give one of analysis.robustness, "
            "True to measure it, or False"
        )
    rows = {row["unit"]: row for row in result.rows if row["treatment"] == RERAND}
    if missing := [unit.name for unit in members if unit.name not in rows]:
        raise AnalysisError(
            f"attribution: the robustness given has no unit '{missing[0]}' drawn anew (it has {', '.join(rows)}); "
            "measure both with the same units="
        )
    return rows


def strangers(result: Result, about: Mapping[str, Any]) -> list[str]:
    """In what a result says that it is of another net or other images.

    Example:
        >>> from analysis.stored import StoredResult
        >>> strangers(StoredResult("robustness", "one", [], settings={"model": "a", "images": 5}), {"model": "b"})
        ["the robustness given is of the model 'a', not 'b'"]
    """
    words = {"model": "is of the model {!r}, not {!r}", "images": "was measured on {} images, not {}"}
    named = [(key, result.settings.get(key), about.get(key)) for key in words]
    return [
        f"the robustness given {words[key].format(theirs, ours)}"
        for key, theirs, ours in named
        if None not in (theirs, ours) and theirs != ours
    ]


def result_of(explained: Explained, found: Found, beside: Beside | None, origin: str) -> Attribution:
    """Put everything together."""
    columns, inputs, left_out = found.columns()
    images = len(np.concatenate(found.changes))
    if left_out:
        explained.notes.append(f"{left_out} of {images} images are left out: their answer is that of the baseline")
    rows = [_row(column, beside) for column in columns]
    ranks = {name: _agreement(rows, name, explained.asked.seed) for name in explained.asked.methods if beside}
    errors = {name: _completeness(name, shares) for name, shares in inputs.items()}
    off = {name: error for name, error in errors.items() if error is not None and error > OFF}
    explained.notes += [f"sums of {name} are {error:.0%} off, give more steps=" for name, error in off.items()]
    about = {"images_left_out": left_out, "robustness": origin, "rank_correlation": ranks, "completeness_error": errors}
    settings = explained.about(images, about)
    return Attribution(rows, _summary(rows, settings, explained), settings)


def _row(column: Column, beside: Beside | None) -> Row:
    place, shares = column.place, column.shares if column.shares is not None and len(column.shares) else None
    taken = place.taken + (", less its input" if place.skipped and column.method == BRANCH else "")
    head = {"method": column.method, "unit": place.unit.name, "path": place.unit.path, "taken": taken}
    row: Row = {
        **head,
        "params": place.unit.params,
        "values": place.values,
        "images": 0 if shares is None else len(shares),
    }
    for index, name in enumerate(("absolute_share", "signed_share")):
        middle, low, high = (None, None, None) if shares is None else median_interval(shares[:, index])
        row |= {name: middle, f"{name}_low_95": low, f"{name}_high_95": high}
    error = None if shares is None else float(np.median(shares[:, 2]))
    row["integration_error_share"] = None if error is None or np.isnan(error) else error
    notes = [place.trouble] if place.trouble else []
    if beside is not None:
        own = beside[place.unit.name]
        primary = "ap" if "ap" in own else "error"
        ends = ("difference", "difference_low_95", "difference_high_95")
        row |= {f"rerand_{key}": own.get(key) for key in (primary, *ends)}
        row["verdict"] = own.get("verdict", "-")
        notes += [own["note"]] if own.get("note") else []
    return {**row, "note": "; ".join(notes)}


def _agreement(rows: Sequence[Row], method: str, seed: int) -> dict[str, Any]:
    mine = [row for row in rows if row["method"] == method]
    both = [(row["absolute_share"], row["rerand_difference"]) for row in mine]
    known = [pair for pair in both if None not in pair]
    return rank_agreement([share for share, _ in known], [loss for _, loss in known], seed)


def _completeness(method: str, shares: Values) -> float | None:
    if method == "gradient_x_activation" or not len(shares):
        return None
    return float(np.median(np.abs(shares[:, 1] - 1)))


def _summary(rows: Sequence[Row], settings: Mapping[str, Any], explained: Explained) -> str:
    parts = []
    for method in settings["method"]:
        mine = [row for row in rows if row["method"] == method and row["absolute_share"] is not None]
        if not mine:
            parts.append(f"{method}: nothing to divide up, f(x) is f(baseline) (untrained? give another baseline=)")
            continue
        most = max(mine, key=lambda row: row["absolute_share"])
        words = f"{method}: most flows through {most['unit']} (absolute share {most['absolute_share']:.3g})"
        if (error := settings["completeness_error"][method]) is not None:
            words += f", sums are within {error:.2%} of f(x) - f(baseline)"
        parts.append(words + said_of(settings["rank_correlation"].get(method)))
    return f"{settings['images']} images; " + "; ".join(parts) + "." + explained.said()


def said_of(ranks: Mapping[str, Any] | None) -> str:
    """A rank correlation in words, to follow a sentence.

    Example:
        >>> said_of({"spearman": 0.8, "low_95": 0.1, "high_95": 1.0, "p_value": 0.03, "units": 6})
        ', rank correlation with the loss when drawn anew 0.80 (0.10 to 1.00, p 0.03, 6 units)'
    """
    if ranks is None:
        return ""
    if ranks["spearman"] is None:
        return f", no rank correlation with the loss when drawn anew ({ranks['units']} units: too few, or all alike)"
    low, high = ranks["low_95"], ranks["high_95"]
    bounds = "no interval" if low is None else f"{low:.2f} to {high:.2f}"
    chance = f"p {ranks['p_value']:.2g}" if ranks["p_value"] >= 0.001 else "p < 0.001"
    words = f"{ranks['spearman']:.2f} ({bounds}, {chance}, {ranks['units']} units)"
    return f", rank correlation with the loss when drawn anew {words}"


__all__ = ["Attribution", "Beside", "Column", "beside_of", "result_of", "said_of", "strangers"]
