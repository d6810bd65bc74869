"""What every analysis answers: rows of plain values, printed as a table, drawn, and written to files.

Apart from the analyses so that all of them print, draw and report alike.
"""

from __future__ import annotations

import abc
import csv
import io
import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from matplotlib.figure import Figure

from surgeon.errors import AnalysisError
from surgeon.storage import replace_file
from surgeon.table import table

Row = dict[str, Any]


class Result(abc.ABC):
    """Rows of an analysis; a subclass says how they are drawn.

    Args:
        title: What was analysed, in a few words.
        rows: Plain dicts with the same keys; keys end in their unit where there is one.
        summary: One sentence with the figures that matter.
        settings: What made it, as plain values; ``command`` and ``versions`` (a dict) stand at the end of a report.

    ``kind`` names the analysis in files: the class's name in small letters, where the class does not set its own.
    ``by_image`` holds values of each image, in the order of the data, for paired comparisons; files do not have them.
    """

    kind: str = "result"

    def __init__(
        self, title: str, rows: Sequence[Row], summary: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.title, self.rows, self.summary, self.settings = title, list(rows), summary, dict(settings or {})
        self.by_image: dict[str, Any] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kind" not in vars(cls):
            cls.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()

    @abc.abstractmethod
    def figure(self) -> Figure:
        """Draw the rows; no window is opened."""

    def to_json(self, path: str | Path | None = None) -> str:
        """Return kind, title, summary, settings and rows as JSON text, and write it to ``path`` where one is given."""
        about = {"kind": self.kind, "title": self.title, "summary": self.summary, "settings": self.settings}
        text = json.dumps({**about, "rows": self.rows}, indent=1)
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
        """Write one HTML file that needs no other: summary, figures, table, settings, versions."""
        from analysis.pages import write_report  # late: it draws, and knows the results

        return write_report([self], path)

    def _keys(self) -> tuple[str, ...]:
        return tuple(self.rows[0]) if self.rows else ()

    def __str__(self) -> str:
        numbers = frozenset(k for k in self._keys() if all(map(is_numeric, (row[k] for row in self.rows))))
        cells = [[as_text(value) for value in row.values()] for row in self.rows]
        return "\n".join([self.title, table(self._keys(), cells, right=numbers), self.summary])

    __repr__ = __str__


class ReadBack(Result):
    """A result made of rows, summary and settings alone, so that its file makes it again, but for ``by_image``."""

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read back what :meth:`to_json` wrote.

        Raises:
            AnalysisError: When the file is none of this analysis.
        """
        from analysis.stored import read_result  # late: it knows how the results are drawn

        found = read_result(path)
        if found.kind != cls.kind:
            raise AnalysisError(f"{path} is of the analysis '{found.kind}', not '{cls.kind}'; use analysis.read_result")
        return cls(found.rows, found.summary, found.settings)  # type: ignore[arg-type]  # subclasses know their title


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


def as_text(value: Any) -> str:
    """A value as tables show it.

    Example:
        >>> as_text(0.123456), as_text(None), as_text(12)
        ('0.1235', '-', '12')
    """
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plain(text: str) -> str:
    r"""A text as matplotlib draws it, whatever is in it: dollars begin no formula.

    Example:
        >>> print(plain("a$b"))
        a\$b
    """
    return text.replace("$", r"\$")


def is_numeric(value: Any) -> bool:
    """Whether a value is written flush right: a number, or none.

    Example:
        >>> is_numeric(1.5), is_numeric(None), is_numeric("1.5")
        (True, True, False)
    """
    return value is None or isinstance(value, (int, float))


def versions() -> str:
    """The packages a result depends on, and their versions.

    Example:
        >>> versions().startswith("Python 3")
        True
    """
    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "timm", "ultralytics", "faster-coco-eval", "cnn-surgeon"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
