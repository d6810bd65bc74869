"""Treat parts of a model, and put everything back: the only analysis file that changes a model.

A treatment exchanges tensors, it never writes into one: the model's own parameters and buffers are set aside and come
back as the very same objects. Whatever else a forward pass leaves on a model is put back by :func:`untouched`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import AnalysisError
from surgeon.randomness import generators_kept

Holder = tuple[dict[str, Any], str]  # a module's dict of parameters or buffers, and the name in it


class Places:
    """Where each tensor of a model is registered, under all its names.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> with Places(model).replaced({"bias": torch.ones(2)}):
        ...     print(model.bias.tolist())
        [1.0, 1.0]
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[str, Tensor] = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        self._held: dict[int, list[Holder]] = {}
        self._owners: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    if tensor is not None:
                        self._held.setdefault(id(tensor), []).append((kind, name))
                        self._owners.setdefault(id(tensor), []).append(module)

    def owners(self, name: str) -> list[nn.Module]:
        """The modules that hold a tensor themselves; several where it is shared."""
        return self._owners[id(self.tensors[name])]

    @contextmanager
    def replaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block the model computes with ``values``, a mapping from names of its tensors.

        Raises:
            AnalysisError: For a name the model has not, or another shape.
        """
        own = {name: self._checked(name, value) for name, value in values.items()}
        owners = {id(m): m for name in values for m in self.owners(name)}
        computed = _computed_values(list(owners.values()))
        try:
            for name, value in values.items():
                self._set(own[name], _like(own[name], value))
            for held, _ in computed:
                held.clear()
            yield
        finally:
            with uninterrupted():
                for tensor in own.values():
                    self._set(tensor, tensor)
                for held, content in computed:
                    held.clear()
                    held.update(content)

    def _checked(self, name: str, value: Tensor) -> Tensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise AnalysisError(f"the model has no tensor '{name}' to exchange; names are those of its state")
        if tensor.shape != value.shape:
            raise AnalysisError(
                f"'{name}' is {tuple(tensor.shape)} in the model and {tuple(value.shape)} in the treatment; "
                "take values of the same architecture"
            )
        return tensor

    def _set(self, tensor: Tensor, value: Tensor) -> None:
        for kind, name in self._held[id(tensor)]:
            kind[name] = value


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """``value`` as a tensor of the same kind, device, type and memory layout."""
    strided = torch.empty_like(tensor).copy_(value.detach())
    return nn.Parameter(strided, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else strided


def _computed_values(modules: list[nn.Module]) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    """Plain dicts of tensors that modules keep of their weights in evaluation mode (LeViT's biases), and contents."""
    dicts = [
        value for module in modules for key, value in module.__dict__.items() if type(value) is dict and key[0] != "_"
    ]
    return [(held, dict(held)) for held in dicts if any(isinstance(value, Tensor) for value in held.values())]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever happens in the block, the model and the random number generators are as before it afterwards.

    Parameters, buffers, modes and plain attributes of every module come back bit for bit, also after an error or
    Ctrl-C. Inside, the model is in evaluation mode, and no gradients are computed.
    """
    before = [(module, _shallow(module)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone(), buffer._version) for buffer in model.buffers()]
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    with generators_kept():
        try:
            model.eval()
            with torch.no_grad():
                yield
        finally:
            with uninterrupted():
                for module, kept in before:
                    _put_back(module, kept)
                with torch.no_grad():
                    for buffer, value, version in buffers:
                        if buffer._version != version:
                            buffer.copy_(value)
                if devices is not None:
                    torch.cuda.set_rng_state_all(devices)


def _shallow(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and the content of those that are dicts and lists."""
    return {
        key: (value, value.copy() if isinstance(value, (dict, list)) else None)
        for key, value in module.__dict__.items()
    }


def _put_back(module: nn.Module, kept: dict[str, tuple[Any, Any]]) -> None:
    held = module.__dict__
    for key in [key for key in held if key not in kept]:
        del held[key]
    for key, (value, content) in kept.items():
        held[key] = value
        if isinstance(value, dict) and not _same(value, content):
            value.clear()
            value.update(content)
        elif isinstance(value, list):
            value[:] = content


def _same(held: dict[Any, Any], content: dict[Any, Any]) -> bool:
    pairs = zip(held.items(), content.items(), strict=False)
    return len(held) == len(content) and all(a == b and x is y for (a, x), (b, y) in pairs)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block has ended; then it interrupts as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[Any, Any]] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came and callable(handler):
            handler(*came[0])


__all__ = ["Places", "uninterrupted", "untouched"]
