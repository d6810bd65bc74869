"""What a model is made of, as data that can be compared: its modules and settings, and what its forward does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from surgeon.errors import SurgeonError
from surgeon.host import Size
from surgeon.recorder import function_name
from surgeon.tracing import record_forward

Structure = dict[str, str]
NOTED = ("pt_path", "np", "max_det", "shape", "export", "dynamic", "format")  # by ultralytics, on the way
NO_FUNCTION = ("training", "grad_checkpointing", "num_classes", "inplace", *NOTED)  # settings that change no result
ELSEWHERE = re.compile(r" at 0x[0-9a-f]+|device\(type='\w+'(, index=\d+)?\)")  # differs from process to process

IN_PLACE = re.compile(r"(, )?inplace=\w+")  # where a result is written, not what it is


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
        if IN_PLACE.sub("", there.get(path, "")) != IN_PLACE.sub("", here.get(path, "")):
            return f"'{path}': {there.get(path, 'none')} there, {here.get(path, 'none')} here"
    return None


def why_not_equal(there: nn.Module, here: nn.Module, size: Size | None, forward: Sequence[str] | None) -> str | None:
    """The first way in which two models compute differently; None where they compute the same from the same tensors.

    Compared are the modules, their plain settings (dropout rates are used in training only), and every operation of one
    recorded forward pass with its arguments and shapes.

    Args:
        there: One model; it may lie on the meta device.
        here: The other.
        size: (C, H, W) of the recorded image.
        forward: :func:`forward_of` the other at that size.
    """
    return (
        first_difference(structure(there), structure(here))
        or first_difference(_settings(there, here), _settings(here, there))
        or first_operation(forward_of(there, size), forward)
    )


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


def forward_of(model: nn.Module, size: Size | None) -> list[str] | None:
    """Every operation of one forward pass in words, with arguments and shapes.

    The text is the same in every process and on every device. None where no size is known, or none can be recorded.

    Example:
        >>> forward_of(nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 9, 9))
        ['x() -> (1, 3, 9, 9)', '0(%0,) -> (1, 8, 7, 7)', 'output(%1,) -> (1, 8, 7, 7)']
    """
    try:
        recorded = record_forward(model, [] if size is None else [size])
    except SurgeonError:
        return None
    numbers = {node: f"%{i}" for i, node in enumerate(recorded.graph.nodes)}
    return [ELSEWHERE.sub("", _operation(node, numbers)) for node in recorded.graph.nodes]


def first_operation(there: Sequence[str] | None, here: Sequence[str] | None) -> str | None:
    """The first operation that differs, in words; None where all are equal.

    Example:
        >>> first_operation(["relu(%0,)"], ["gelu(%0,)"])
        'operation 0: relu(%0,) there, gelu(%0,) here'
    """
    if there is None or here is None:
        only = "here" if there is None else "there"
        return None if there is here else f"a forward pass can be recorded only {only}"
    for i, (a, b) in enumerate(zip(there, here, strict=False)):
        if a != b:
            return f"operation {i}: {a} there, {b} here"
    return None if len(there) == len(here) else f"{len(there)} operations there, {len(here)} here"


def _operation(node: fx.Node, numbers: dict[fx.Node, str]) -> str:
    name = function_name(node.target) if node.op == "call_function" else str(node.target)  # type: ignore[arg-type]
    given: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: _Number(numbers[n]))
    shape = getattr(node.meta.get("val"), "shape", None)
    return f"{name}{given[0]}{dict(given[1]) or ''} -> {tuple(shape) if shape is not None else '...'}"


class _Number(str):
    """Shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__
