"""What a model is made of, as data that can be compared: its modules and settings, and what its forward does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from surgeon.errors import SurgeonError
from surgeon.host import Size
from surgeon.recorder import function_name
from surgeon.tracing import record_forward

Structure = dict[str, str]
NO_FUNCTION = ("training", "grad_checkpointing")  # settings that change no result


def structure(model: nn.Module) -> Structure:
    """Each module by path, as ``Class(settings)``.

    Example:
        >>> structure(nn.Sequential(nn.Conv2d(3, 8, 3)))["0"]
        'Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))'
    """
    named = model.named_modules(remove_duplicate=False)
    return {path: f"{type(module).__name__}({module.extra_repr()})" for path, module in named}


def first_difference(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """The first module that differs, in words; None where all are equal.

    Example:
        >>> first_difference({"conv": "Conv2d(3)"}, {"conv": "Conv2d(4)"})
        "'conv': Conv2d(3) there, Conv2d(4) here"
    """
    for path in dict.fromkeys([*there, *here]):
        if there.get(path) != here.get(path):
            return f"'{path}': {there.get(path, 'none')} there, {here.get(path, 'none')} here"
    return None


def why_not_equal(there: nn.Module, here: nn.Module, size: Size | None) -> str | None:
    """The first way in which two models compute differently; None where they compute the same from the same tensors.

    Compared are the modules, their plain settings (dropout rates are used in training only), and every operation of one
    recorded forward pass with its arguments and shapes.

    Args:
        there: One model; it may lie on the meta device.
        here: The other.
        size: (C, H, W) of the recorded image; None where none is known, then no pass is compared.
    """
    found = first_difference(structure(there), structure(here))
    found = found or first_difference(_settings(there, here), _settings(here, there))
    if found or size is None:
        return found
    try:
        passes = [_operations(model, size) for model in (there, here)]
    except SurgeonError as error:
        return f"its forward cannot be recorded: {error}"
    for i, (a, b) in enumerate(zip(*passes, strict=False)):
        if a != b:
            return f"operation {i}: {a} there, {b} here"
    return None if len(passes[0]) == len(passes[1]) else f"{len(passes[0])} operations there, {len(passes[1])} here"


def _settings(model: nn.Module, other: nn.Module) -> Structure:
    """The plain attributes of ``model`` that ``other`` has too; what users noted on one of them does not count."""
    known = {path: module.__dict__ for path, module in other.named_modules()}
    return {
        f"{path}.{name}".lstrip("."): repr(value)
        for path, module in model.named_modules()
        for name, value in module.__dict__.items()
        if not name.startswith("_") and name not in NO_FUNCTION
        if name in known.get(path, {}) and _is_plain(value) and _is_plain(known[path][name])
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _operations(model: nn.Module, size: Size) -> list[str]:
    recorded = record_forward(model, [size])
    numbers = {node: f"%{i}" for i, node in enumerate(recorded.graph.nodes)}
    return [_operation(node, numbers) for node in recorded.graph.nodes if node.op != "output"]


def _operation(node: fx.Node, numbers: dict[fx.Node, str]) -> str:
    name = function_name(node.target) if node.op == "call_function" else str(node.target)  # type: ignore[arg-type]
    given: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: _Number(numbers[n]))
    shape = getattr(node.meta.get("val"), "shape", None)
    return f"{name}{given[0]}{dict(given[1]) or ''} -> {tuple(shape) if shape is not None else '...'}"


class _Number(str):
    """Shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__
