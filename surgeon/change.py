"""What was done to a model and what was declined, with reasons and costs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from surgeon.table import by, si, table

Status = Literal["rewritten", "refused", "unchanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one site.

    Args:
        path: Of the site.
        op: Name of the op.
        status: ``rewritten``, ``refused`` or ``unchanged`` (already operated by the same op, or the op would be the
            identical function).
        reason: Why it was refused or left; for a rewritten site what it became.
        params: Parameters of the modules touched, before and after.
        macs: Multiply-adds per image of the modules touched, before and after.
    """

    path: str
    op: str
    status: Status
    reason: str = ""
    params: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Every change of a model, in order; prints as a table.

    Args:
        changes: One per site and step.
        model: Class name of the model.
        input_size: (C, H, W) the costs refer to.
        params: Of the whole model, before and after.
        macs: Multiply-adds of the whole model per image, before and after.
        activations: Bytes of all intermediate outputs per image, before and after: what a training step would at
            most keep.
        recipe: The steps with every selection resolved to paths: what ``load`` replays.
        notes: What the reader should know.
    """

    changes: tuple[Change, ...] = ()
    model: str = ""
    input_size: tuple[int, ...] = ()
    params: tuple[int, int] = (0, 0)
    macs: tuple[int, int] = (0, 0)
    activations: tuple[int, int] = (0, 0)
    recipe: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        """How many changes have that status."""
        return sum(change.status == status for change in self.changes)

    def then(self, later: Record) -> Record:
        """This record followed by ``later``."""
        if not self.changes:
            return later
        return replace(
            later,
            changes=self.changes + later.changes,
            params=(self.params[0], later.params[1]),
            macs=(self.macs[0], later.macs[1]),
            activations=(self.activations[0], later.activations[1]),
            recipe=self.recipe + later.recipe,
            notes=tuple(dict.fromkeys(self.notes + later.notes)),
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        return asdict(self)

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """The record :meth:`to_dict` gave."""
        changes = [Change(**{**c, "params": tuple(c["params"]), "macs": tuple(c["macs"])}) for c in data["changes"]]
        pairs = {name: tuple(data[name]) for name in ("params", "macs", "activations", "input_size")}
        lists = {name: tuple(data[name]) for name in ("recipe", "notes")}
        return cls(changes=tuple(changes), model=data["model"], **pairs, **lists)

    def __str__(self) -> str:
        if not self.changes:
            return "no changes"
        counts = Counter(change.status for change in self.changes)
        title = f"{self.model} at {by(self.input_size)}: " + ", ".join(f"{n} {s}" for s, n in counts.items())
        head = ("path", "op", "status", "params", "MACs", "reason")
        rows = [(c.path, c.op, c.status, _arrow(c.params), _arrow(c.macs), c.reason) for c in self.changes]
        total = (
            f"whole model: parameters {_arrow(self.params)}, MACs {_arrow(self.macs)}, "
            f"activations {_arrow(self.activations)}B"
        )
        return "\n".join([title, table(head, rows), total, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__


def _arrow(pair: tuple[int, int]) -> str:
    return si(pair[0]) if pair[0] == pair[1] else f"{si(pair[0])} -> {si(pair[1])}"
