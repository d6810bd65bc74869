"""What is shuffled together, and how: the cells of a spatial dependence, and the variants that measure them.

Cells that shuffle alike are measured once: the last unit alone and the last one unit; a patch as large as every map
and the whole maps, of which equal draws are equal permutations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from analysis.parts import Unit
from analysis.shuffling import How, Place, Switch
from analysis.variants import Variant

Which = Literal["alone", "last"]


@dataclass(frozen=True)
class Cell:
    """Units that are shuffled together, in one way.

    Attributes:
        units: Their names, in order of call.
        which: "alone" for a unit by itself, "last" for the last ones together.
        how: To shuffle.
        share: Of the units that can be shuffled.
        part: What is shuffled, by name.
        treatment: Name of the way in which the cell is measured: another one that shuffles alike, or its own.
    """

    units: tuple[str, ...]
    which: Which
    how: How
    share: float
    part: str
    treatment: str


def places_by_unit(units: Sequence[Unit], places: Sequence[Place]) -> dict[str, list[Place]]:
    """The places in each unit, by its name; units without one are left out.

    A skip goes with the convs it leads around; where these lie in several units, as the layers of a block do, with the
    last one.

    Args:
        units: In order of call.
        places: Likewise.
    """
    found: dict[str, list[Place]] = {unit.name: [] for unit in units}
    for place in [place for place in places if place.site.kind != "skip"]:
        if (home := _home(place.site.owner, units)) is not None:
            found[home].append(place)
    inside = {name: [place.site.owner for place in mine] for name, mine in found.items()}
    for place in [place for place in places if place.site.kind == "skip"]:
        around = f"{place.site.owner}."
        within = [name for name, paths in inside.items() if any(path.startswith(around) for path in paths)]
        home = within[-1] if within else _home(place.site.owner, units)
        if home is not None:
            found[home].append(place)
    return {name: mine for name, mine in found.items() if mine}


def _home(owner: str, units: Sequence[Unit]) -> str | None:
    """The unit that holds a module, the nearest around it."""
    around = [
        (len(path), unit.name) for unit in units for path in unit.paths if owner == path or owner.startswith(f"{path}.")
    ]
    return max(around)[1] if around else None


def cells_of(
    held: Mapping[str, Sequence[Place]], which: Sequence[Which], hows: Sequence[How], fixed: bool
) -> list[Cell]:
    """Every unit alone, and the last 1, 2, ... together, in every way.

    Args:
        held: Places by unit.
        which: "alone", "last" or both.
        hows: The ways.
        fixed: Whether all images are of the size of which ``held`` knows the maps.
    """
    names = list(held)
    groups: list[tuple[Which, tuple[str, ...]]] = []
    for name in names if "alone" in which else ():
        groups.append(("alone", (name,)))
    for count in range(1, len(names) + 1) if "last" in which else ():
        groups.append(("last", tuple(names[-count:])))
    found, known = [], dict[tuple[str, object], str]()
    for kind, members in groups:
        part = members[0] if len(members) == 1 else f"last {len(members)} units"
        sides = [place.side for name in members for place in held[name]]
        for how in hows:
            alike: object = how.name
            if fixed and how.kind != "channel":
                alike = tuple(None if how.covers(side) else how.patch for side in sides)
            treatment = known.setdefault((part, alike), how.name)
            found.append(Cell(members, kind, how, len(members) / len(names), part, treatment))
    return found


def variants_of(
    cells: Sequence[Cell], held: Mapping[str, Sequence[Place]], passes: int, seed: int, switch: Switch
) -> list[Variant]:
    """The variants that measure the cells, each once per pass; draws of a pass come together.

    Args:
        cells: Of which those with the same part and treatment share variants.
        held: Places by unit.
        passes: Draws of each.
        seed: Of the draws.
        switch: Of the copy.
    """
    measured = {(cell.part, cell.treatment): cell for cell in cells if cell.treatment == cell.how.name}
    found = []
    for draw in range(passes):
        for (part, treatment), cell in measured.items():
            sites = frozenset(place.number for name in cell.units for place in held[name])
            during = partial(_during, switch, sites, cell.how, f"{seed}:{draw}")
            found.append(Variant(part, treatment, draw, during=during))
    return found


def _during(
    switch: Switch, sites: frozenset[int], how: How, draw: str, number: int, start: int
) -> AbstractContextManager[None]:
    return switch.turned(sites, how, f"{draw}:{number}:{start}")


def parts_of(cells: Sequence[Cell], held: Mapping[str, Sequence[Place]]) -> dict[str, tuple[list[str], list[str]]]:
    """Of each part: the paths of its layers; they hold no tensors."""
    return {cell.part: ([place.path for name in cell.units for place in held[name]], []) for cell in cells}
