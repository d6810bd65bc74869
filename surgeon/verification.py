"""What a comparison of two models found, in numbers and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from surgeon.table import table

OUTPUT = "output"


@dataclass(frozen=True)
class Verification:
    """Differences between two models on the same images; prints in words and as a table.

    Args:
        rows: One per site and one for the output: ``path``, ``max_abs`` (largest absolute difference), ``relative``
            (the same over the largest absolute value there; infinite where a value is not finite in one of them only,
            None where nothing can be compared), ``limit`` (largest relative difference that counts as rounding) and
            ``note``.
        images: How many images were seen.
        agreement: Share of images with the same top-1 class; None where the outputs are no tables of logits.
    """

    rows: list[dict[str, Any]]
    images: int
    agreement: float | None

    @property
    def same(self) -> bool:
        """Whether every site that can be compared, and the output, agree to rounding."""
        return self.rows[-1]["relative"] is not None and not self._different()

    def _different(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["relative"] is not None and not row["relative"] <= row["limit"]]

    @property
    def verdict(self) -> str:
        """One sentence: the same function, or where not and by how much."""
        agree = "" if self.agreement is None else f", top-1 agreement {self.agreement:.2%}"
        over = f"over {self.images} image{'s' * (self.images != 1)}"
        if different := self._different():
            first = different[0]
            how = f"by {first['max_abs']:.3g} absolute and {first['relative']:.1e} relative"
            if not math.isfinite(first["relative"]):
                how = first["note"]
            return f"not the same function: {over} it first differs at '{first['path']}', {how}{agree}"
        if self.rows[-1]["relative"] is None:
            return f"cannot tell whether it is the same function: {self.rows[-1]['note']}"
        worst = max((row for row in self.rows if row["relative"] is not None), key=lambda row: row["relative"])
        return (
            f"same function: {over} the largest relative difference is {worst['relative']:.1e} ({worst['path']}), "
            f"as rounding makes it{agree}"
        )

    def __str__(self) -> str:
        columns = ("path", "max abs", "relative", "limit", "note")
        rows = [(r["path"], *(_show(r[key]) for key in ("max_abs", "relative", "limit")), r["note"]) for r in self.rows]
        return f"{self.verdict}\n{table(columns, rows, right=frozenset(columns[1:4]))}"

    __repr__ = __str__


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"
