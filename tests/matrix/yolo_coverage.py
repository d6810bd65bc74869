"""How much of ultralytics the ops cover, and how exactly: the second half of docs/coverage.md, from the books alone.

Run: python -m tests.matrix.yolo_coverage        (measures what ``yolo_trials.json`` does not hold yet, writes the page)
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from tests.contracts import TOLERANCE
from tests.matrix.measure import Book, Row

HERE = Path(__file__).parent
EXPECTED, TRIALS = HERE / "yolo_expected.json", HERE / "yolo_trials.json"
PARTICULAR = re.compile(r"'[\w.]*\d[\w.]*'|\d+(x\d+)+|\(\d+(, \d+)+\)")  # a path or a shape in a reason
LEAST = 1e-9  # how far, relatively, an op that changes the function moves an output
HEAD = """
# Coverage of ultralytics

All {n} yamls of ultralytics {version}, the smallest scale of each; what fetches weights is built without them. Of their
{spatial:,} spatial convs, strided convs and strided pools the second witness finds none missing and none invented;
{others:,} blocks and skips are listed beside them. Each op is then tried on each yaml. `pytest -m matrix
tests/surgeon/yolo` repeats all of it, every push one yaml of each family. The counts stand in
`tests/matrix/yolo_expected.json`; any change fails until somebody has looked at it. Written by
`python -m tests.matrix.yolo_coverage` from this file and `tests/matrix/yolo_trials.json`.

## What each op decides

A yaml passes where the operated network computes the same (`spd`: site by site and whole), or answers finite tensors
of the same shapes (the others); where ultralytics' own `fuse()` keeps that function; where `.i .f .type .np`, `stride`,
`names`, `yaml` and `task` stay true; where each new tensor gets a gradient in a training step; and where `undo` is
bit-identical. Undoing after `fuse()` is refused: folded norms do not come back.

{ops}

Largest relative errors in float64, weights stirred:

{errors}

### Refused, by reason

{reasons}

### By yaml: rewritten / unchanged / refused

{yamls}
"""


def section(book: Book, tried: Book) -> str:
    """The section as it stands in docs."""
    ops = list(next(iter(book.rows.values()))["ops"])
    yamls = [[name.removesuffix(".yaml"), *(three(row["ops"][op]) for op in ops)] for name, row in book.rows.items()]
    kinds = [pair for row in book.rows.values() for pair in row["kinds"].items()]
    return HEAD.format(
        n=len(book.rows),
        version=book.versions["ultralytics"],
        spatial=sum(n for kind, n in kinds if not kind.startswith(("block", "skip"))),
        others=sum(n for kind, n in kinds if kind.startswith(("block", "skip"))),
        ops=markdown(
            ["op", "yamls passed", "with nothing to rewrite", "rewritten", "unchanged", "refused"], by_op(book, tried)
        ),
        errors=markdown(["op", "sites", "of a site", "of an output", "after `fuse()`"], errors(tried)),
        reasons=markdown(["op", "sites", "reason"], reasons(book, ops)),
        yamls=markdown(["yaml", *ops], yamls),
    )


def passes(found: Row) -> bool:
    """Whether a trial went as it should."""
    small = all(found[name] < TOLERANCE for name in ("error", "model", "fused") if name in found)
    return small and not found["wrong"] and found.get("moved", LEAST) >= LEAST


def by_op(book: Book, tried: Book) -> list[list[Any]]:
    """Of each op, how many yamls passed, and how many sites were decided how."""
    lines: list[list[Any]] = []
    for op in next(iter(book.rows.values()))["ops"]:
        done = [row[op] for row in tried.rows.values() if row[op] is not None]
        total = [sum(counts(row["ops"][op])[i] for row in book.rows.values()) for i in range(3)]
        lines.append([op, f"{sum(map(passes, done))} of {len(done)}", len(tried.rows) - len(done), *total])
    return lines


def errors(tried: Book) -> list[list[Any]]:
    """Of each op, the largest errors of any yaml; of one that changes the function, only what ``fuse()`` adds."""
    lines: list[list[Any]] = []
    for op in next(iter(tried.rows.values())):
        done = [row[op] for row in tried.rows.values() if row[op] is not None]
        largest = [
            max((found[key] for found in done if key in found), default=None) for key in ("error", "model", "fused")
        ]
        lines.append([op, sum(f["sites"] for f in done), *("" if e is None else f"{e:.1e}" for e in largest)])
    return lines


def reasons(book: Book, ops: list[str]) -> list[list[Any]]:
    """Of each op, why it refused how many sites."""
    lines: list[list[Any]] = []
    for op in ops:
        found: Counter[str] = Counter()
        for row in book.rows.values():
            for reason, n in row["ops"][op]["refused"].items():
                found[PARTICULAR.sub("...", reason)] += n
        lines += [[op, n, reason] for reason, n in found.most_common()]
    return lines


def counts(decided: Row) -> list[int]:
    """Rewritten, unchanged, refused."""
    return [decided["rewritten"], decided["unchanged"], sum(decided["refused"].values())]


def three(decided: Row) -> str:
    """The counts in one cell; nothing where there is no site."""
    return " / ".join(map(str, counts(decided))) if any(counts(decided)) else ""


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in [head, ["---"] * len(head), *rows])


def main() -> None:
    """Try what was not tried yet, and write the page."""
    from tests.matrix import coverage
    from tests.surgeon.yolo.measuring import trials

    names, tried = list(Book.read(EXPECTED).rows), Book.read(TRIALS)
    for name in names:
        if name not in tried.rows:
            tried.fresh[name] = trials(name)
            print(name, tried.fresh[name], flush=True)
            tried.write(set(names))
    coverage.main()


if __name__ == "__main__":
    main()
