"""The rows of a result as the table of a page: intervals in one cell, what never changes said once.

Apart from the pages because it deals with text only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.result import Row, as_text, is_numeric

FEW = 12  # rows; of more, columns that are the same in each are said once
MOST = 2000  # rows that are shown
LONG = 26  # letters of a cell; a longer one is broken into lines
ENDS = ("_low_95", "_high_95")


@dataclass(frozen=True)
class Listing:
    """Heads, what each column holds (number, text, long), cells in words, what is the same in each of how many rows."""

    heads: list[str]
    shapes: list[str]
    rows: list[list[str]]
    same: list[tuple[str, str]]
    count: int


def listed(rows: Sequence[Row]) -> Listing:
    """Lay rows out as a table.

    Example:
        >>> listed([{"unit": "fc1", "error": 0.5, "error_low_95": 0.4, "error_high_95": 0.6}]).rows
        [['fc1', '0.5 (0.4 to 0.6)']]
    """
    keys = list(dict.fromkeys(key for row in rows for key in row))
    inner = {key + end for key in keys for end in ENDS if all(key + other in keys for other in ENDS)}
    shown = [key for key in keys if key not in inner]
    same: list[tuple[str, str]] = []
    if len(rows) > FEW:
        constant = [key for key in shown if key + ENDS[0] not in inner and len({_text(row, key) for row in rows}) == 1]
        same = [(_head(key), _text(rows[0], key)) for key in constant if _text(rows[0], key) not in ("", "-")]
        shown = [key for key in shown if key not in constant]
    pairs = [key + ENDS[0] in inner for key in shown]
    cells = [[_text(row, key, pair) for key, pair in zip(shown, pairs, strict=True)] for row in rows]
    columns = [[line[place] for line in cells] for place in range(len(shown))]
    return Listing(
        [_head(key) + (" (95%)" if pair else "") for key, pair in zip(shown, pairs, strict=True)],
        [_shape(rows, key, column) for key, column in zip(shown, columns, strict=True)],
        cells[:MOST],
        same,
        len(rows),
    )


def _shape(rows: Sequence[Row], key: str, column: Sequence[str]) -> str:
    if all(is_numeric(row.get(key)) for row in rows):
        return "number"
    return "long" if max(map(len, column), default=0) > LONG else "text"


def _head(key: str) -> str:
    return str(key).replace("_", " ")


def _end(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else as_text(value)


def _text(row: Row, key: str, interval: bool = False) -> str:
    value: Any = row.get(key)
    if not interval or value is None or any(row.get(key + end) is None for end in ENDS):
        return as_text(value)
    low, high = (_end(row[key + end]) for end in ENDS)
    return f"{as_text(value)} ({low} to {high})"
