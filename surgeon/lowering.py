"""Lower: a copy for inference in which space-to-depth and conv are one plain strided conv again."""

from __future__ import annotations

import copy
from functools import partial

from torch import nn

from surgeon.change import Change, Record
from surgeon.edit import Swap, perform
from surgeon.host import Size, input_sizes, unwrap
from surgeon.ledger import Ledger
from surgeon.skeleton import LEDGER
from surgeon.tracing import record_forward


def lower(model: nn.Module) -> nn.Module:
    """A copy of ``model`` of the same function to rounding at every size, in the cheapest standard layers.

    A trained SPD-Conv is a strided conv with a larger kernel; folded back it runs as one call. ``record(copy)`` lists
    what was folded and, as refused, what stays and why. The copy is for inference: it cannot be undone.

    Args:
        model: An operated model; it is not touched.

    Raises:
        RefusedError: When the model is wrapped.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", "spd")
        >>> surgeon.record(surgeon.lower(model)).count("rewritten")
        8
    """
    module = unwrap(model)
    twin = copy.deepcopy(module)
    ledger = Ledger.of(twin)
    twin.__dict__.pop(LEDGER, None)
    size: Size = ledger.input_size if ledger else input_sizes(twin)[0]
    before = record_forward(module, [size])
    changes = [_lower_layer(twin, path, layer) for path, layer in lowerable(twin)]
    after = record_forward(twin, [size])
    changes = [_with_macs(change, before.macs(change.path), after.macs(change.path)) for change in changes]
    record = Record(
        changes=tuple(changes),
        model=type(twin).__name__,
        input_size=size,
        params=(before.params, after.params),
        macs=(before.macs(), after.macs()),
        activations=(before.activation_bytes(), after.activation_bytes()),
    )
    Ledger(record, size, {}, None, {}).hang_on(twin)
    return twin


def lowerable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of every layer that knows how to fold itself, or says that it cannot."""
    own = [(path, m) for path, m in model.named_modules() if type(m).__module__.startswith("surgeon.ops.")]
    return [(path, m) for path, m in own if not any(path.startswith(f"{other}.") for other, _ in own)]


def _lower_layer(model: nn.Module, path: str, layer: nn.Module) -> Change:
    fold = getattr(layer, "lower", None)
    folded: nn.Module | None = fold() if fold is not None else None
    count = sum(p.numel() for p in layer.parameters())
    if folded is None:
        reason = f"{type(layer).__name__} has no standard layer that is equal at every input size"
        return Change(path=path, op="lower", status="refused", reason=reason, params=(count, count))
    perform(model, [Swap(path, partial(_keep, folded))])
    after = sum(p.numel() for p in folded.parameters())
    reason = f"{type(layer).__name__} -> {_names(folded)}"
    return Change(path=path, op="lower", status="rewritten", reason=reason, params=(count, after))


def _keep(folded: nn.Module, _old: nn.Module) -> nn.Module:
    return folded


def _names(module: nn.Module) -> str:
    parts = list(module.children()) if isinstance(module, nn.Sequential) else [module]
    return " + ".join(type(part).__name__ for part in parts)


def _with_macs(change: Change, before: int, after: int) -> Change:
    return Change(
        path=change.path,
        op=change.op,
        status=change.status,
        reason=change.reason,
        params=change.params,
        macs=(before, after),
    )
