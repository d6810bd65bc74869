"""How much of timm the op ``spd`` covers, and how exactly: the tables of docs/coverage.md.

Run: python -m tests.matrix.coverage        (measures what ``exact.json`` does not hold yet, and writes the page)
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch

import surgeon
from tests import contracts
from tests.contracts import operate, relative, run, site_errors, stir
from tests.matrix.measure import TORCHVISION, Book, Row

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "coverage.md"
HEAD = """# Coverage of `spd`

What `surgeon.plan(model, "spd")` decides for every strided conv and strided pool of one small model of each of timm's
{n} families, with {versions}. Written by `python -m tests.matrix.coverage` from `tests/matrix/expected.json`,
which every push compares with the code, and from `tests/matrix/exact.json` (`pytest -m matrix -k exact`).

- **Sites**: {sites} strided convs and pools. **Rewritten** {rewritten}, **unchanged** {unchanged} (space-to-depth
  already: patchify convs, or slices that keep every position), **refused** {refused}.
- **Share rewritten** of those that are not space-to-depth already: **{share:.1%}**.
- **Largest relative error** in float64, weights stirred, of any rewritten site, inside the model and by itself at
  another odd size, and of the whole models: **{error:.1e}** over {count} sites.

## Refused, by reason

{reasons}

## By family

{families}
"""


def exactness(name: str) -> Row:
    """The largest relative error, in float64, of any site ``spd`` rewrites and of the whole model, at its own size."""
    torch.manual_seed(0)
    before = stir(timm.create_model(name).double()).eval()
    try:
        after = operate(copy.deepcopy(before), "spd")
    except surgeon.NoSiteError:
        return {"sites": 0, "error": 0.0}
    rewritten = surgeon.record(after).count("rewritten")
    if not rewritten:
        return {"sites": 0, "error": 0.0}
    size = surgeon.record(after).input_size[1:]
    x = contracts.images(size, channels=surgeon.record(after).input_size[0])
    errors = [*site_errors(before, after, [size]).values(), relative(run(before, x), run(after, x))]
    return {"sites": rewritten, "error": float(f"{max(errors):.1e}")}


def page(book: Book, exact: dict[str, Row]) -> str:
    """The page as it stands in docs."""
    rows = {name: row for name, row in book.rows.items() if not name.startswith(TORCHVISION)}
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in rows.values():
        refused = row["spd"]["refused"]
        totals.update(
            rewritten=row["spd"]["rewritten"], unchanged=row["spd"]["unchanged"], refused=sum(refused.values())
        )
        reasons.update(refused)
    lines = [
        [name, *counts(row), f"{exact[name]['error']:.0e}" if exact[name]["sites"] else ""]
        for name, row in rows.items()
    ]
    return HEAD.format(
        n=len(rows),
        versions=", ".join(f"{k} {v}" for k, v in book.versions.items() if k != "torchvision"),
        sites=totals.total(),
        **totals,
        share=totals["rewritten"] / (totals["rewritten"] + totals["refused"]),
        error=max(row["error"] for row in exact.values()),
        count=sum(row["sites"] for row in exact.values()),
        reasons=markdown(["sites", "reason"], [[n, reason] for reason, n in reasons.most_common()]),
        families=markdown(["model", "rewritten", "unchanged", "refused", "largest error"], lines),
    )


def counts(row: Row) -> list[int]:
    """Rewritten, unchanged, refused."""
    return [row["spd"]["rewritten"], row["spd"]["unchanged"], sum(row["spd"]["refused"].values())]


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def exact_rows() -> dict[str, Row]:
    """What was measured."""
    path = HERE / "exact.json"
    return json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else {}


def main() -> None:
    """Measure what is missing and write the page."""
    book, exact = Book.read(HERE / "expected.json"), Book.read(HERE / "exact.json")
    names = [name for name in book.rows if not name.startswith(TORCHVISION)]
    for name in names:
        if name not in exact.rows:
            exact.fresh[name] = exactness(name)
            print(name, exact.fresh[name], flush=True)
            exact.write(set(names))
    PAGE.write_text(page(book, exact_rows()), encoding="utf-8")


if __name__ == "__main__":
    main()
