"""Exchange replaced parameters inside an optimizer, each in its own group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from surgeon.errors import RefusedError

Named = Mapping[str, nn.Parameter]


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Refuse what :func:`exchange_parameters` could not handle, before anything is touched.

    Raises:
        RefusedError: When it is no optimizer, holds no parameter of ``model`` or one in several groups, or keeps a
            state that is not told apart by parameter.
    """
    kind, later = type(optimizer).__name__, "build it after apply"
    if not isinstance(optimizer, Optimizer):
        raise RefusedError(f"optimizer is a {kind}; pass a torch.optim.Optimizer, or {later}")
    if isinstance(optimizer, LBFGS):
        raise RefusedError(f"the optimizer, {kind}, has one state for all parameters together; {later}")
    if any(inner.param_groups is not optimizer.param_groups for inner in _inner(optimizer)):
        raise RefusedError(f"the optimizer, {kind}, holds another one with parameter groups of its own; {later}")
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in set(held) for p in model.parameters()):
        raise RefusedError("the optimizer holds no parameter of this model; build it from model.parameters()")
    if twice := len(held) - len(set(held)):
        raise RefusedError(f"the optimizer holds {twice} parameters more than once; {later}")


def exchange_parameters(optimizer: Optimizer, before: Named, model: nn.Module) -> Callable[[], None]:
    """Put the new parameters of ``model`` where the old ones were; settings stay, the state of old ones is dropped.

    A new parameter takes the place of the old one of the same name. One without such a forerunner (a pool had none)
    goes behind its nearest neighbour in the order of ``model.named_parameters()``, looked for in front first, among the
    old ones of its kind: matrices (``ndim > 1``) or vectors, as weight decay tells them apart; where there is none of
    its kind, among all. What stands in for, or beside, a parameter the optimizer does not hold is not held either.

    Args:
        optimizer: As :func:`check_optimizer` accepts it.
        before: The parameters before the rewrite by name.
        model: The rewritten model.

    Returns:
        What puts everything back.
    """
    now = dict(model.named_parameters())
    beside = _newcomers(before, now)
    renewed = [_renewed(group, before, now, beside) for group in optimizer.param_groups]
    kept = {id(p) for lists in renewed for p in lists["params"]}
    stale = [(state, p) for state in _states(optimizer) for p in before.values() if p in state and id(p) not in kept]
    undo: list[Callable[[], None]] = []

    def put_back() -> None:
        for step in undo:
            step()

    try:
        for group, lists in zip(optimizer.param_groups, renewed, strict=True):
            for key, new in lists.items():
                undo.append(_writer(group[key], list(group[key])))
                group[key][:] = new  # the very list: others may hold it
        for state, p in stale:
            undo.append(_setter(state, p, state[p]))
            del state[p]
    except BaseException:
        put_back()
        raise
    return put_back


def _writer(target: list[Any], values: list[Any]) -> Callable[[], None]:
    return lambda: target.__setitem__(slice(None), values)


def _setter(state: MutableMapping[Any, Any], key: Any, value: Any) -> Callable[[], None]:
    return lambda: state.__setitem__(key, value)


def _inner(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizers a wrapper such as Lookahead holds."""
    return (value for value in vars(optimizer).values() if isinstance(value, Optimizer))


def _states(optimizer: Optimizer) -> list[MutableMapping[Any, Any]]:
    return [optimizer.state, *(inner.state for inner in _inner(optimizer))]


def _renewed(group: dict[str, Any], before: Named, now: Named, beside: Mapping[str, list[str]]) -> dict[str, list[Any]]:
    """The parameters of a group after the rewrite, and their names where it has them; those of other models stay."""
    names = {id(p): name for name, p in before.items()}
    alive, given = {id(p) for p in now.values()}, "param_names" in group
    entries: list[tuple[nn.Parameter, str]] = []
    for p, label in zip(group["params"], group["param_names"] if given else [""] * len(group["params"]), strict=True):
        name = names.get(id(p))
        heir = p if name is None or id(p) in alive else now.get(name)
        entries += [] if heir is None else [(heir, label)]
        for new in beside.get(name or "", []):
            entries.append((now[new], label.removesuffix(name or "") + new if label.endswith(name or "") else new))
    lists: dict[str, list[Any]] = {"params": [p for p, _ in entries]}
    return {**lists, "param_names": [label for _, label in entries]} if given else lists


def _newcomers(before: Named, now: Named) -> dict[str, list[str]]:
    """The new parameters that replace none, by the old one each goes behind."""
    order, found = list(now), dict[str, list[str]]()
    for i, name in enumerate(order):
        if name in before or not now[name].requires_grad:
            continue
        near = [other for other in (*reversed(order[:i]), *order[i + 1 :]) if other in before]
        alike = (other for other in near if (before[other].ndim > 1) == (now[name].ndim > 1))
        neighbour = next(alike, next(iter(near), None))
        if neighbour is not None:
            found.setdefault(neighbour, []).append(name)
    return found
