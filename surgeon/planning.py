"""Work a recipe out on a skeleton: what each op decides, the edits in order, and what they cost.

Kept apart from :mod:`surgeon.rewriting`, which performs the edits on the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from surgeon.change import Change, Record, Status
from surgeon.edit import Append, Edit, OnEdge, Prepend, SetAttribute, Swap, SwapCall, perform
from surgeon.errors import NoSiteError, RefusedError, TraceError
from surgeon.host import InputSize, input_sizes
from surgeon.ledger import Ledger
from surgeon.locating import sites_of
from surgeon.op import AbstractOp, Decision, Refused, Rewrite, Unchanged
from surgeon.recipe import Recipe, Step
from surgeon.select import Select
from surgeon.site import Pair, Site
from surgeon.skeleton import FAKE_MODE
from surgeon.tracing import Trace, calls_of, record_forward, trace, within
from surgeon.units import unit_paths

STRUCTURAL = (Append, OnEdge, Prepend, Swap, SwapCall)


@dataclass
class Planned:
    """A recipe worked out on a skeleton: the edits in order, the record they will leave, the sites they rewrite.

    ``located`` are the sites of the model before any surgery: units, depth and reduction in selections are theirs.
    """

    edits: list[Edit]
    record: Record
    sites: dict[str, list[Site]]
    input_size: tuple[int, int, int]
    located: tuple[Site, ...]


def plan_recipe(model: nn.Module, recipe: Recipe, input_size: InputSize = None) -> Planned:
    """Work a recipe out on a skeleton of ``model``."""
    recorded = record_forward(model, input_sizes(model, input_size))
    ledger = Ledger.of(model)
    sites = {name: list(found) for name, found in ledger.sites.items()} if ledger else {}
    located = (ledger.located if ledger else ()) or tuple(sites_of(recorded))
    planned = Planned([], Record(), sites, recorded.input_size, located)
    earlier = {name: len(sites) for name, sites in planned.sites.items()}
    noted = _counts(recorded.model)
    for step in recipe.steps:
        before = recorded
        changes, recorded = _plan_step(step, recorded, planned)
        done = tuple(change.path for change in changes if change.status == "rewritten")
        resolved = (Step(step.op, Select(path=done)).to_dict(),) if done else ()
        planned.record = planned.record.then(_costs(model, before, recorded, tuple(changes), resolved))
    planned.sites = {name: sites[earlier.get(name, 0) :] for name, sites in planned.sites.items()}
    now = _counts(recorded.model)
    changed = {path: n for path, n in now.items() if n != noted.get(path)}
    planned.edits += [SetAttribute(path, "np", partial(_exchange, n)) for path, n in changed.items()]
    return planned


def _counts(model: nn.Module) -> dict[str, int]:
    """The parameters of each layer that says how many it has, as those of ultralytics do in ``np``."""
    telling = {path: module for path, module in model.named_modules() if "np" in module.__dict__}
    return {path: sum(p.numel() for p in module.parameters()) for path, module in telling.items()}


def _exchange(new: int, _old: int) -> int:
    return new


def _costs(model: nn.Module, before: Trace, after: Trace, changes: tuple[Change, ...], resolved: Any) -> Record:
    return Record(
        changes=changes,
        model=type(model).__name__,
        input_size=before.input_size,
        params=(before.params, after.params),
        macs=(before.macs(), after.macs()),
        activations=(before.activation_bytes(), after.activation_bytes()),
        recipe=resolved,
        notes=after.notes,
    )


def _plan_step(step: Step, recorded: Trace, planned: Planned) -> tuple[list[Change], Trace]:
    """Decide every selected site, perform the edits on the skeleton, and trace it anew."""
    op = step.op
    sites = sites_of(recorded)
    operated = planned.sites.get(op.name, [])
    units = unit_paths(recorded.model, planned.located)
    candidates = op.candidates(sites, recorded)
    selected = step.select(_placed(candidates, planned.located), units)
    again = step.select([s for s in operated if op.takes(s)], units)
    selected = [site for site in selected if site.path not in {s.path for s in again}]
    changes = [_change(op, site, Unchanged(f"already operated by {op.name}")) for site in again]
    done: list[Site] = []
    for batch in [[site] for site in selected] if op.one_at_a_time else [selected]:
        present = {s.path: s for s in (sites_of(recorded) if op.one_at_a_time and done else candidates)}
        decided = _decide(op, [present[site.path] for site in batch], recorded, units)
        fresh, recorded = _perform(op, decided, recorded, planned)
        changes += fresh
        done += [site for site, what in decided if isinstance(what, Rewrite)]
    _insist(step, changes, len(candidates), recorded)
    planned.sites.setdefault(op.name, []).extend(done)
    order = list(dict.fromkeys(site.path for site in [*planned.located, *operated, *sites, *done]))
    return sorted(changes, key=lambda c: order.index(c.path)), recorded


def _placed(sites: list[Site], located: Sequence[Site]) -> list[Site]:
    """Each site where it lay before surgery, so that a selection means the same sites ever after."""
    known = {site.path: site for site in located}
    was = [known.get(site.path, site) for site in sites]
    return [replace(site, depth=old.depth, reduction=old.reduction) for site, old in zip(sites, was, strict=True)]


def _decide(
    op: AbstractOp, sites: Sequence[Site], recorded: Trace, units: Sequence[str]
) -> list[tuple[Site, Decision]]:
    with recorded.model.__dict__[FAKE_MODE]:
        found = op.decide_all(sites, recorded, units)
    lost = {site.path: reason for site, what in found if (reason := _why_lost(site, what, recorded.model))}
    return [(site, Refused(lost[site.path]) if site.path in lost else what) for site, what in found]


def _why_lost(site: Site, what: Decision, model: nn.Module) -> str | None:
    """Why surgery at a site would not last: a module around it merges its branches into one conv at ``fuse()``."""
    edits = what.edits if isinstance(what, Rewrite) else ()
    if not any(isinstance(e, STRUCTURAL) and e.path in (site.path, site.owner) for e in edits):
        return None
    parts = site.owner.split(".")
    for path in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
        module = model.get_submodule(path)
        merges = hasattr(module, "forward_fuse") and (hasattr(module, "fuse_convs") or hasattr(module, "fuse"))
        if merges and path != site.path:
            return f"lies in a {type(module).__name__}: fuse() merges its branches into one conv, and would lose it"
    return None


def _perform(
    op: AbstractOp, decided: list[tuple[Site, Decision]], before: Trace, planned: Planned
) -> tuple[list[Change], Trace]:
    """Perform the edits of the sites decided on the skeleton; the changes, with costs, and the new trace."""
    changes = [_change(op, site, what) for site, what in decided if not isinstance(what, Rewrite)]
    rewritten = [(site, what) for site, what in decided if isinstance(what, Rewrite)]
    if not rewritten:
        return changes, before
    model = before.model
    costs = {site.path: _cost(site, what.edits, before) for site, what in rewritten}
    ordered = sorted(rewritten, key=lambda pair: _call_index(pair[0]), reverse=True)  # later calls first: indices hold
    for site, what in ordered:
        try:
            with model.__dict__[FAKE_MODE]:
                perform(model, what.edits)
        except RefusedError as error:
            raise RefusedError(f"op '{op.name}' refuses {error}; exclude '{site.path}'") from error
        planned.edits.extend(what.edits)
    after = _retrace(op, before)
    if op.one_at_a_time:
        _insist_on_sizes(op, rewritten[0][0], rewritten[0][1].edits, before, after)
    for site, what in rewritten:
        built = _built(what.edits)
        if built and not any(within(node, path) for path in built for node in after.graph.nodes):
            raise RefusedError(
                f"op '{op.name}' refuses '{site.path}': the forward reaches it by another way than its name (a plain "
                "list, say), so the new layer would never run; call it by its name, or exclude this path"
            )
        ends = _cost(site, what.edits, after)
        params, macs = zip(costs[site.path], ends, strict=True)
        changes.append(_change(op, site, what, params, macs))
    return changes, after


def _insist_on_sizes(op: AbstractOp, site: Site, edits: Sequence[Edit], before: Trace, after: Trace) -> None:
    """Code must not have read a size that changes: what it computes from it would be another number."""
    touched = {edit.path for edit in edits if isinstance(edit, Append)}
    if new := calls_of(after, touched) - calls_of(before, touched):
        owner, function, _ = next(iter(new))
        raise RefusedError(
            f"op '{op.name}' refuses '{site.path}': the code of '{owner or type(before.model).__name__}' reads a size "
            f"that would change, for '{function}'; exclude this path"
        )


def _built(edits: Sequence[Edit]) -> list[str]:
    """The paths of the modules the edits put in, or put something in front of."""
    whole = [edit.path for edit in edits if isinstance(edit, (Swap, Prepend))]
    inside = [edit for edit in edits if isinstance(edit, (SwapCall, OnEdge))]
    return whole + [f"{edit.path}.{edit.how.child}".lstrip(".") for edit in inside]


def _change(op: AbstractOp, site: Site, what: Decision, params: Pair = (0, 0), macs: Pair = (0, 0)) -> Change:
    status: Status = "rewritten"
    if not isinstance(what, Rewrite):
        status = "refused" if isinstance(what, Refused) else "unchanged"
    return Change(path=site.path, op=op.name, status=status, reason=what.reason, params=params, macs=macs)


def _retrace(op: AbstractOp, before: Trace) -> Trace:
    """The operated skeleton must run and answer in the shapes it had."""
    try:
        after = trace(before.model, before.input_size)
    except TraceError as error:
        raise RefusedError(f"op '{op.name}' leaves a model that does not run: {error}; narrow the selection") from error
    old, new = (shapes_of(t.outputs) for t in (before, after))
    if old != new:
        raise RefusedError(f"op '{op.name}' would change the output from {old} to {new}; narrow the selection")
    return after


def shapes_of(outputs: Any) -> Any:
    """The shapes of a model's outputs, nested as they are."""
    if isinstance(outputs, torch.Tensor):
        return tuple(outputs.shape)
    if isinstance(outputs, dict):
        return {key: shapes_of(value) for key, value in outputs.items()}
    return [shapes_of(value) for value in outputs] if isinstance(outputs, (tuple, list)) else None


def _call_index(site: Site) -> int:
    return -1 if site.via == "module" else int(site.path.rsplit(":", 1)[1])


def _cost(site: Site, edits: Sequence[Edit], recorded: Trace) -> tuple[int, int]:
    """Parameters and MACs of the modules the edits touch (a functional site: of its owner)."""
    paths = {edit.path for edit in edits if not isinstance(edit, SetAttribute)} | {site.owner}
    outer = {p for p in paths if not any(p != q and p.startswith(f"{q}." if q else "") for q in paths)}
    held = {id(t): t.numel() for p in outer for t in recorded.model.get_submodule(p).parameters()}
    return sum(held.values()), sum(recorded.macs(path) for path in outer)


def _insist(step: Step, changes: list[Change], there: int, recorded: Trace) -> None:
    """A step that neither rewrites nor finds anything unchanged is an error."""
    op, model = step.op, type(recorded.model).__name__
    wanted = " or ".join(sorted(op.kinds))
    if not changes:
        raise NoSiteError(
            f"op '{op.name}' found no {wanted} in {model} with {step.select.to_dict() or 'no selection'}, "
            f"which has {there} in all; list them with surgeon.locate(model)"
        )
    if all(change.status == "refused" for change in changes):
        reasons = "\n".join(f"  '{c.path}' {c.reason}" for c in changes)
        raise RefusedError(f"op '{op.name}' refuses all {len(changes)} sites selected in {model}:\n{reasons}")
