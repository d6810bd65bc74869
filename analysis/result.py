"""What every analysis answers: rows of plain values, printed as a table, drawn, and written to files.

Apart from the analyses so that all of them print, draw and report alike.
"""

from __future__ import annotations

import abc
import base64
import csv
import html
import io
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from surgeon.errors import AnalysisError
from surgeon.storage import replace_file
from surgeon.table import table

Row = dict[str, Any]
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }} th, td {{ padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums }} img {{ max-width: 100% }} small {{ color: #666 }}
</style></head><body><h1>{title}</h1><p>{summary}</p>
<img alt="{title}" src="data:image/png;base64,{image}">
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p><small>{versions}</small></p></body></html>
"""


class Result(abc.ABC):
    """Rows of an analysis; a subclass says how they are drawn.

    Args:
        title: What was analysed, in a few words.
        rows: Plain dicts with the same keys; keys end in their unit where there is one.
        summary: One sentence with the figures that matter.
    """

    def __init__(self, title: str, rows: Sequence[Row], summary: str) -> None:
        self.title, self.rows, self.summary = title, list(rows), summary

    @abc.abstractmethod
    def figure(self) -> Figure:
        """Draw the rows; no window is opened."""

    def to_json(self, path: str | Path | None = None) -> str:
        """Return title, summary and rows as JSON text, and write it to ``path`` where one is given."""
        text = json.dumps({"title": self.title, "summary": self.summary, "rows": self.rows}, indent=1)
        if path is not None:
            replace_file(Path(path), f"{text}\n".encode())
        return text

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the rows as CSV text, and write it to ``path`` where one is given."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [*self._keys()], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        if path is not None:
            replace_file(Path(path), buffer.getvalue().encode())
        return buffer.getvalue()

    def report(self, path: str | Path) -> Path:
        """Write one HTML file that needs no other: summary, figure, table, versions."""
        image = io.BytesIO()
        self.figure().savefig(image, format="png", dpi=120)
        text = PAGE.format(
            title=html.escape(self.title),
            summary=html.escape(self.summary),
            image=base64.b64encode(image.getvalue()).decode(),
            head="".join(f"<th>{html.escape(key).replace('_', '_<wbr>')}</th>" for key in self._keys()),
            body="".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in self.rows),
            versions=html.escape(_versions()),
        )
        replace_file(Path(path), text.encode())
        return Path(path)

    def _keys(self) -> tuple[str, ...]:
        return tuple(self.rows[0]) if self.rows else ()

    def __str__(self) -> str:
        numbers = frozenset(k for k in self._keys() if all(map(_numeric, (row[k] for row in self.rows))))
        cells = [[_text(value) for value in row.values()] for row in self.rows]
        return "\n".join([self.title, table(self._keys(), cells, right=numbers), self.summary])

    __repr__ = __str__


def two_names(labels: Sequence[str], taken: Sequence[str] = ()) -> tuple[str, str]:
    """Return the names of two nets, which become columns of a table.

    Raises:
        AnalysisError: When they are not two different texts, or one is the name of another column.

    Example:
        >>> two_names(["original", "operated"])
        ('original', 'operated')
    """
    names = () if isinstance(labels, str) else tuple(labels)
    if len(names) != 2 or not all(isinstance(name, str) and name.strip() for name in names) or names[0] == names[1]:
        raise AnalysisError(f"labels={labels!r}: the nets need two different names; write ('original', 'operated')")
    if both := set(names) & set(taken):
        raise AnalysisError(f"labels={labels!r}: '{both.pop()}' is another column of the table; choose another name")
    return names[0], names[1]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numeric(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def _cell(value: Any) -> str:
    number = ' class="number"' if _numeric(value) else ""
    return f"<td{number}>{html.escape(_text(value))}</td>"


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "timm", "ultralytics", "faster-coco-eval", "cnn-surgeon"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
