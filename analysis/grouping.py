"""Which units are treated together: the paper's schemes, patterns and names.

Zhang, Bengio and Singer (JMLR 2022, arXiv:1902.01996), section 5.1: all residual blocks but the first of each stage,
the same on stages 1 and 4, every second block; of fully connected nets all layers but the first, two of every three,
every other.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from analysis.unit_names import Unit
from surgeon.errors import AnalysisError

SCHEMES = ("all-but-first", "every-second", "two-of-three")
Wanted = str | Sequence[str]
HINT = f"name units, patterns such as 'stage2.*', or a scheme: {', '.join(SCHEMES)}, '{SCHEMES[0]}@1,4' on stages 1, 4"


def groups_of(units: Sequence[Unit], wanted: Wanted | Mapping[str, Wanted]) -> dict[str, list[Unit]]:
    """The groups a user asks for, by name, each in order of call.

    Schemes count the residual blocks of each stage, from its first block, which no scheme takes; in a network without
    such blocks they count all units.

    Args:
        units: From :func:`analysis.units`.
        wanted: A scheme, pattern or name, several (a group each), or a mapping from names of groups to these.

    Raises:
        AnalysisError: When a group is empty, or nothing is wanted.

    Example:
        >>> import timm
        >>> from analysis.parts import units
        >>> found = units(timm.create_model("resnet18"))
        >>> [unit.name for unit in groups_of(found, "every-second@1,4")["every-second@1,4"]]
        ['stage1.resblk2', 'stage4.resblk2']
    """
    if isinstance(wanted, str):
        wanted = [wanted]
    asked = wanted if isinstance(wanted, Mapping) else {one: one for one in wanted}
    if not asked:
        raise AnalysisError(f"groups: none was named; {HINT}")
    return {name: _group(name, units, patterns) for name, patterns in asked.items()}


def _group(name: str, units: Sequence[Unit], patterns: Wanted) -> list[Unit]:
    several = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: set[str] = set()
    for one in several:
        found = _chosen(units, str(one))
        if not found:
            known = ", ".join(unit.name for unit in units)
            raise AnalysisError(f"group '{name}': '{one}' takes no unit of this model ({known}); {HINT}")
        chosen |= found
    return [unit for unit in units if unit.name in chosen]


def _chosen(units: Sequence[Unit], one: str) -> set[str]:
    scheme, _, stages = one.partition("@")
    if scheme not in SCHEMES:
        return {unit.name for unit in units if fnmatch.fnmatchcase(unit.name, one)}
    rows = _rows(units)
    if stages:
        rows = {stage: row for stage, row in rows.items() if stage in {part.strip() for part in stages.split(",")}}
    places = {
        "all-but-first": lambda i: i > 0,
        "every-second": lambda i: i % 2 == 1,
        "two-of-three": lambda i: i % 3 > 0,
    }
    return {unit.name for row in rows.values() for i, unit in enumerate(row) if places[scheme](i)}


def _rows(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """The blocks of each stage; all units in one row where there are no residual blocks."""
    if not any(unit.residual for unit in units):
        return {"": list(units)}
    rows: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.stage and (unit.residual or ".block" in unit.name):
            rows.setdefault(str(unit.stage), []).append(unit)
    return rows
