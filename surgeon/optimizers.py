"""Exchange replaced parameters inside an optimizer, each in its own group."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from surgeon.errors import RefusedError

Held = dict[int, tuple[str, nn.Parameter]]


def exchange_parameters(optimizer: torch.optim.Optimizer, held: Held, model: nn.Module) -> None:
    """Put the new parameters of ``model`` where the old ones were.

    A new parameter takes the group of the old one of the same name; one without such a forerunner takes the group of
    the old parameters of its module, then of the nearest module before it. Settings of the groups stay; the state of
    replaced parameters is dropped. Nothing is written unless all of it can be.

    Args:
        optimizer: Any torch optimizer, built from the parameters of the model before the rewrite.
        held: The parameters before the rewrite: name and parameter by id.
        model: The rewritten model.

    Raises:
        RefusedError: When the optimizer does not hold the parameters of this model, or a group cannot be told.
    """
    group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    if not any(key in group_of for key in held):
        raise RefusedError("the optimizer holds no parameter of this model; build it from model.parameters()")
    now = dict(model.named_parameters())
    alive = {id(p) for p in now.values()}
    groups = {name: group_of[key] for key, (name, _) in held.items() if key in group_of}
    gone = {key for key in held if key not in alive}
    fresh = {name: p for name, p in now.items() if id(p) not in held and p.requires_grad}
    additions = {name: _group(name, groups, optimizer.param_groups) for name in fresh}
    for i, group in enumerate(optimizer.param_groups):
        kept = [p for p in group["params"] if id(p) not in gone]
        group["params"] = kept + [fresh[name] for name, at in additions.items() if at == i]
    for key in gone:
        optimizer.state.pop(held[key][1], None)


def _group(name: str, groups: dict[str, int], settings: list[dict[str, Any]]) -> int:
    if name in groups:
        return groups[name]
    owner = name.rpartition(".")[0]
    same = {at for old, at in groups.items() if old.rpartition(".")[0] == owner or old.startswith(owner + ".")}
    candidates = same or set(range(len(settings)))
    alike = {str({k: v for k, v in settings[at].items() if k not in ("params", "param_names")}) for at in candidates}
    if len(alike) == 1:
        return min(candidates)
    raise RefusedError(
        f"the new parameter '{name}' replaces none, and the {len(candidates)} groups it could join differ in their "
        "settings; build the optimizer after the rewrite"
    )
