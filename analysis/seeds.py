"""Which results are the same analysis of several seeds.

Apart from the pages because it is a question about settings, not about drawing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from analysis.result import Result
from analysis.stored import StoredResult

SEEDED = re.compile(r"(?<![A-Za-z0-9])seed[_=-]?\d+")
FREE = {"seed", "command", "versions", "complete", "device", "date", "seconds", "images_loaded", "notes"}  # may differ


def by_seed(results: Sequence[Result]) -> list[list[Result]]:
    """Put results together that differ in nothing but their seed; the others stay alone, in order.

    The seed is that of the settings, or stands in a path as ``seed_3``: in the settings, or that of the file. Together
    are results of one kind, equal settings, and units of equal size, whose files lie in one folder or in folders that
    differ in a number standing for the seed. Results without settings stay alone: nothing tells that they belong
    together; so do two of the same seed.

    Example:
        >>> one, two = (StoredResult("robustness", "r", [], settings={"model": "a", "seed": seed}) for seed in (0, 1))
        >>> [len(group) for group in by_seed([one, two, StoredResult("robustness", "r", [])])]
        [2, 1]
    """
    groups: dict[str, list[Result]] = {}
    for place, result in enumerate(results):
        source = PurePosixPath(result.source if isinstance(result, StoredResult) else "")
        where = ["seed" if part.isdigit() else SEEDED.sub("seed", part) for part in source.parent.parts]
        sizes = sorted({f"{row.get('unit', row.get('group'))} {row.get('params')}" for row in result.rows})
        settings = json.dumps(_seedless(result.settings), sort_keys=True, default=str) if result.settings else place
        groups.setdefault(f"{result.kind} {where} {sizes} {settings}", []).append(result)
    found = []
    for several in groups.values():
        seeds = [seed_of(result) for result in several]
        found += [several] if len(set(seeds)) == len(seeds) else [[one] for one in several]
    return found


def seed_of(result: Result) -> str:
    """The seed of a result in words, as far as settings and path tell.

    Example:
        >>> seed_of(StoredResult("robustness", "r", [], settings={"seed": 0}, source="runs/seed_2/robustness.json"))
        'seed_2'
        >>> seed_of(StoredResult("robustness", "r", [], settings={"seed": 4}))
        'seed 4'
    """
    source = result.source if isinstance(result, StoredResult) else ""
    inside = SEEDED.findall(source) or sorted(set(SEEDED.findall(json.dumps(result.settings, default=str))))
    own = result.settings.get("seed")
    if not inside:
        return f"seed {own}" if own is not None else ""
    told = {re.sub(r"\D", "", words) for words in inside}
    return ", ".join(inside) + (f", seed {own}" if own and str(own) not in told else "")


def _seedless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _seedless(inner) for key, inner in value.items() if key not in FREE}
    if isinstance(value, (list, tuple)):
        return [_seedless(inner) for inner in value]
    return SEEDED.sub("seed", value) if isinstance(value, str) else value
