"""How much of timm the op ``spd`` covers, and how exactly: the first half of docs/coverage.md.

Run: python -m tests.matrix.coverage        (measures what ``exact.json`` does not hold yet, and writes the page)
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import surgeon
from tests.contracts import alone, images, operate, relative, run, seen_at, stir
from tests.matrix.measure import TORCHVISION, Book, Row
from tests.matrix.yolo_coverage import EXPECTED, TRIALS, markdown, section

HERE = Path(__file__).parent
OF_TIMM = ("surgeon", "timm", "torch")
PAGE = HERE.parents[1] / "docs" / "coverage.md"
HEAD = """# Coverage of timm

## `locate`

All {names:,} names of timm are located; none fails. What is listed is proved: a second witness records, below the
model's code, every operation from a map to a smaller one and every spatial convolution, and for each name nothing is
missing and nothing invented (`tests/surgeon/completeness.py`; `pytest -m matrix`, and 98 families on every push). The
counts of each name stand in `tests/matrix/expected_all.json`; any change fails until somebody has looked at it.

## `spd`

What `surgeon.plan(model, "spd")` decides for every strided conv and strided pool of one small model of each of timm's
{n} families, with {versions}.
Written by `python -m tests.matrix.coverage` from `tests/matrix/expected.json`, which every push compares with the code,
and from `tests/matrix/exact.json` (`pytest -m matrix -k exact`).

- **Sites**: {sites} strided convs and pools. **Rewritten** {rewritten}, **unchanged** {unchanged} (space-to-depth
  already: patchify convs, or slices that keep every position), **refused** {refused}.
- **Share rewritten** of those that are not space-to-depth already: **{share:.1%}**.
- **Largest relative error** of any rewritten site in float64, weights stirred, old and new given the features the old
  one sees in its model, and by themselves at another, odd size: **{error:.1e}** over {count} sites. Whole models:
  **{model:.1e}** ({worst}); there rounding is amplified by what lies behind, as any other rounding is.

### Refused, by reason

{reasons}

### By family

{families}
"""


def exactness(name: str) -> Row:
    """Largest relative errors in float64 of what ``spd`` makes of a model, at the size it was built for.

    Returns:
        Number of rewritten sites; ``error`` of any site, the old and the new module given what the old one saw, and
        features of an odd size more; ``model``, of the outputs, into which the model's own conditioning enters.
    """
    torch.manual_seed(0)
    before = stir(timm.create_model(name).double()).eval()
    try:
        after = operate(copy.deepcopy(before), "spd")
    except surgeon.NoSiteError:
        return {"sites": 0, "error": 0.0, "model": 0.0}
    record = surgeon.record(after)
    paths = [change.path for change in record.changes if change.status == "rewritten"]
    if not paths:
        return {"sites": 0, "error": 0.0, "model": 0.0}
    x = images(record.input_size[1:], channels=record.input_size[0])
    errors = [error for path in paths for error in site_errors(before, after, path, x)]
    whole = relative(run(before, x), run(after, x))
    return {"sites": len(paths), "error": float(f"{max(errors):.1e}"), "model": float(f"{whole:.1e}")}


def site_errors(before: nn.Module, after: nn.Module, path: str, x: Tensor) -> list[float]:
    """Of one site, call by call, and by itself at another size."""
    owner = path.split(":")[0]
    calls = seen_at(before, [owner], x)[owner]
    found = [relative(old, run(after.get_submodule(owner), features)) for features, old in calls]
    if ":" not in path:
        found += alone(before.get_submodule(path), after.get_submodule(path), calls[0][0].shape)
    return found


def page(book: Book, exact: dict[str, Row]) -> str:
    """The page as it stands in docs."""
    return timm_page(book, exact) + section(Book.read(EXPECTED), Book.read(TRIALS))


def timm_page(book: Book, exact: dict[str, Row]) -> str:
    """Its first half."""
    rows = {name: row for name, row in book.rows.items() if not name.startswith(TORCHVISION)}
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in rows.values():
        refused = row["spd"]["refused"]
        totals.update(
            rewritten=row["spd"]["rewritten"], unchanged=row["spd"]["unchanged"], refused=sum(refused.values())
        )
        reasons.update(refused)
    worst = max(exact, key=lambda name: exact[name]["model"])
    lines = [[name, *counts(row), *errors(exact[name])] for name, row in rows.items()]
    return HEAD.format(
        names=len(Book.read(HERE / "expected_all.json").rows),
        n=len(rows),
        versions=", ".join(f"{k} {v}" for k, v in book.versions.items() if k in OF_TIMM),
        sites=totals.total(),
        **totals,
        share=totals["rewritten"] / (totals["rewritten"] + totals["refused"]),
        error=max(row["error"] for row in exact.values()),
        model=exact[worst]["model"],
        worst=worst,
        count=sum(row["sites"] for row in exact.values()),
        reasons=markdown(["sites", "reason"], [[n, r] for r, n in reasons.most_common()]) if reasons else "None.",
        families=markdown(["model", "rewritten", "unchanged", "refused", "error of a site", "of the model"], lines),
    )


def counts(row: Row) -> list[int]:
    """Rewritten, unchanged, refused."""
    return [row["spd"]["rewritten"], row["spd"]["unchanged"], sum(row["spd"]["refused"].values())]


def errors(row: Row) -> list[str]:
    """In words; none where nothing was rewritten."""
    return [f"{row['error']:.0e}", f"{row['model']:.0e}"] if row["sites"] else ["", ""]


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
