"""Exchange replaced parameters inside an optimizer, each in its own group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from surgeon.errors import RefusedError

Group = dict[str, Any]


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Refuse what :func:`exchange_parameters` could not handle, before anything is touched.

    Raises:
        RefusedError: When it is no optimizer, holds no parameter of ``model``, or one in several groups.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RefusedError(
            f"optimizer is a {type(optimizer).__name__}; pass a torch.optim.Optimizer, or build it later"
        )
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in set(held) for p in model.parameters()):
        raise RefusedError("the optimizer holds no parameter of this model; build it from model.parameters()")
    if len(held) > len(set(held)):
        raise RefusedError(
            f"the optimizer holds {len(held) - len(set(held))} parameters twice; build it anew after apply"
        )


def exchange_parameters(optimizer: torch.optim.Optimizer, before: Mapping[str, nn.Parameter], model: nn.Module) -> None:
    """Put the new parameters of ``model`` where the old ones were; settings stay, the state of old ones is dropped.

    A new parameter takes the place of the old one of the same name. One without such a forerunner (a pool had none)
    goes behind its nearest neighbour in the order of ``model.named_parameters()``, first looked for in front, among the
    old ones of its kind: matrices (``ndim > 1``) or vectors, as weight decay tells them apart. What stands in for a
    parameter the optimizer does not hold is not held either.

    Args:
        optimizer: As :func:`check_optimizer` accepts it.
        before: The parameters before the rewrite by name.
        model: The rewritten model.
    """
    now = dict(model.named_parameters())
    alive = {id(p) for p in now.values()}
    heirs = {id(old): now[name] for name, old in before.items() if name in now and id(old) not in alive}
    following = _newcomers(before, now)
    names = {id(p): name for name, p in now.items()}
    groups = [_renewed(group["params"], heirs, following, alive, before) for group in optimizer.param_groups]
    for group, params in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = params
        if "param_names" in group:
            group["param_names"] = [names[id(p)] for p in params]
    kept = {id(p) for params in groups for p in params}
    for one in (optimizer, getattr(optimizer, "base_optimizer", optimizer)):
        for p in [p for p in one.state if isinstance(p, nn.Parameter) and id(p) not in kept]:
            del one.state[p]


def _newcomers(before: Mapping[str, nn.Parameter], now: dict[str, nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """The new parameters that replace none, by the name of the old one each goes behind."""
    order, found = list(now), dict[str, list[nn.Parameter]]()
    for i, name in enumerate(order):
        if name in before:
            continue
        kind = now[name].ndim > 1
        near = (other for other in [*reversed(order[:i]), *order[i:]] if other in before)
        neighbour = next((other for other in near if (before[other].ndim > 1) == kind), None)
        if neighbour is not None:
            found.setdefault(neighbour, []).append(now[name])
    return found


def _renewed(
    params: list[nn.Parameter],
    heirs: dict[int, nn.Parameter],
    following: dict[str, list[nn.Parameter]],
    alive: set[int],
    before: Mapping[str, nn.Parameter],
) -> list[nn.Parameter]:
    """The parameters of one group after the rewrite, in order; those of other models stay."""
    names = {id(p): name for name, p in before.items()}
    found = []
    for p in params:
        heir = heirs.get(id(p), p)
        found += [heir] if id(heir) in alive or id(p) not in names else []
        found += [new for new in following.get(names.get(id(p), ""), []) if new.requires_grad]
    return found
