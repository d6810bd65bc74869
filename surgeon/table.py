"""Plain-text tables: the one way this library prints rows.

Kept apart so that sites, records and verifications look alike in a terminal, a log and a notebook.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]], right: frozenset[str] = frozenset()) -> str:
    """Align ``rows`` under ``head``; columns named in ``right`` are flushed right.

    Example:
        >>> print(table(("path", "n"), [("conv1", 7), ("layer1.0", 12)], right=frozenset({"n"})))
        path       n
        conv1      7
        layer1.0  12
    """
    cells = [[str(c) for c in head], *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    flush = [str.rjust if name in right else str.ljust for name in head]
    return "\n".join("  ".join(f(c, w) for f, c, w in zip(flush, row, widths, strict=True)).rstrip() for row in cells)


def by(values: Sequence[int] | None) -> str:
    """``(3, 3)`` as ``3``, ``(64, 8, 9)`` as ``64x8x9``, None as a dash."""
    if values is None:
        return "-"
    if len(values) == 2 and values[0] == values[1]:
        return str(values[0])
    return "x".join(map(str, values))


def si(n: float) -> str:
    """A count with a unit a person reads: ``25557032`` as ``25.56M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.2f}{unit}"
    return f"{n:.0f}"
