"""What nets lose with resolution: the result and its words.

Apart from measuring, so that a stored result and one just measured read alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis.result import ReadBack, Row
from surgeon.table import table

WORDS = {"accuracy": "accuracy", "ap": "AP"}


class Resolution(ReadBack):
    """Accuracy or average precision by net and resolution.

    Attributes:
        primary: "accuracy" of classifiers, "ap" of detectors.
        complete: False where Ctrl-C ended it; then the figures are of the images seen.
    """

    kind = "resolution"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        nets = list(dict.fromkeys(str(row["model"]) for row in rows))
        super().__init__(f"{' and '.join(nets)} by resolution of the images", rows, summary, settings)
        self.primary, self.complete = str(settings["primary"]), bool(settings["complete"])

    def figure(self) -> Figure:
        """Draw each net against the resolution, and the lead over the first."""
        from analysis.resolution_figure import draw

        return draw(self)

    def __str__(self) -> str:
        metrics = [name for name in ("accuracy", "ap", "ap_small") if self.rows and name in self.rows[0]]
        kinds = [kind for kind in ("", "_change", "_lead", "_lead_change") if f"{metrics[0]}{kind}" in self.rows[0]]
        columns = [f"{metric}{kind}" for metric in metrics for kind in kinds]
        lines = [[row["model"], row["resolution"], *(_cell(row, name) for name in columns)] for row in self.rows]
        head = ["model", "resolution", *(name.replace("_", " ") for name in columns)]
        return "\n".join([self.title, table(head, lines), self.summary])


def summary_of(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The figures that matter: each net over the resolutions, and who is ahead where.

    Args:
        rows: Of the result.
        notes: What is worth saying.
    """
    primary = next(name for name in WORDS if name in rows[0])
    words = [f"{max(row['images'] for row in rows)} images"]
    for net in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == net and row[primary] is not None]
        curve = ", ".join(f"{_number(row[primary], primary)} at {row['resolution']}" for row in mine)
        words.append(f"{net}: {WORDS[primary]} {curve or 'none (no object)'}")
        led = [row for row in mine if row.get(f"{primary}_lead") is not None]
        words += [_ahead(row, primary, str(rows[0]["model"])) for row in led]
    refused = [f"{row['model']} at {row['resolution']}" for row in rows if row["note"]]
    words += [f"not measured: {', '.join(refused)} (column note)"] * bool(refused)
    return "; ".join(words) + "." + "".join(f" Note: {note}." for note in notes)


def _ahead(row: Row, primary: str, first: str) -> str:
    lead, low, high = (row[f"{primary}_lead{end}"] for end in ("", "_low_95", "_high_95"))
    words = f"at {row['resolution']} {row['model']} less {first} is {_number(lead, primary, '+')}"
    if low is None:
        return words
    unsure = ", cannot be told apart" if low <= 0 <= high else ""
    return f"{words} ({_number(low, primary, '+')} to {_number(high, primary, '+')}{unsure})"


def _number(value: float, primary: str, sign: str = "") -> str:
    return f"{value:{sign}.1%}" if primary == "accuracy" else f"{value:{sign}.3f}"


def _cell(row: Row, name: str) -> str:
    value, primary = row[name], "accuracy" if name.startswith("accuracy") else "ap"
    if value is None:
        return "-"
    low, high = row[f"{name}_low_95"], row[f"{name}_high_95"]
    sign = "+" if name.endswith(("_change", "_lead")) else ""
    about = "" if low is None else f" ({_number(low, primary, sign)} to {_number(high, primary, sign)})"
    return f"{_number(value, primary, sign)}{about}"
