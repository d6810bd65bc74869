"""What comes of judging or fitting a perceptual distance.

Apart from the measuring, so that figures and reports need neither nets nor images.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from analysis.perceptual_figure import draw, draw_fit
from analysis.result import Result, Row, as_text
from surgeon.errors import AnalysisError
from surgeon.table import table

PARTS = {  # how the parts of the rows are printed: which columns stand on the left, which become columns
    "correlation": ("distortion",),
    "choice": ("distortion",),
    "shift": ("shift_px",),
    "curve": ("distortion", "level"),
}


class Perceptual(Result):
    """How a distance agrees with people; one row per measure, distortion, level and shift.

    ``part`` is "correlation", "curve", "shift" or "choice"; ``measure`` what :func:`analysis.perceptual` says of it;
    ``value`` with its 95% interval over references, None where there is none; ``pairs`` and ``references`` how many it
    is of. Prints as a table per part; curves where the data are response curves.
    """

    def figure(self) -> Figure:
        """Draw correlations, curves and shifts, or choices, with their intervals."""
        return draw(self)

    def value(self, measure: str, *, distortion: str = "all", **more: Any) -> Any:
        """The value of one row.

        Args:
            measure: As in the rows.
            distortion: Likewise.
            more: Other columns, ``level`` or ``shift_px``.

        Raises:
            AnalysisError: When there is no such row.
        """
        wanted = {"measure": measure, "distortion": distortion, **more}
        found = [row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())]
        if not found:
            raise AnalysisError(f"{self.title}: no row of {wanted}; look at .rows")
        return found[0]["value"]

    def __str__(self) -> str:
        hidden = set() if self.settings.get("curves") else {"curve"}  # of other data they are many, and say less
        parts = [part for part in PARTS if part not in hidden and any(row["part"] == part for row in self.rows)]
        tables = [_pivot([row for row in self.rows if row["part"] == part], PARTS[part]) for part in parts]
        return "\n".join([self.title, *("\n".join(["", text]) for text in tables), "", self.summary])

    __repr__ = __str__


class PerceptualFit(Result):
    """How the weights of a distance were learned; one row per epoch.

    ``loss`` is minus the mean Pearson correlation of the batches, ``pearson`` that of all pairs with the weights the
    epoch ended with, ``validation_pearson`` that of the validation pairs; ``best`` marks the epoch whose weights stay.
    """

    def figure(self) -> Figure:
        """Draw both correlations against the epoch."""
        return draw_fit(self)


def _pivot(rows: list[Row], keys: tuple[str, ...]) -> str:
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(row[key] for key in keys), dict.fromkeys(measures, "-"))
        low, high = row["value_low_95"], row["value_high_95"]
        between = "" if low is None or row["value"] is None else f" [{as_text(low)}, {as_text(high)}]"
        line[row["measure"]] = as_text(row["value"]) + between
    cells = [[*map(as_text, key), *line.values()] for key, line in lines.items()]
    return table((*keys, *measures), cells)
