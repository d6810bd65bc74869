"""Treat parts of a model, and put everything back: the only analysis file that changes a model.

A treatment exchanges tensors, it never writes into one: the model's own parameters and buffers are set aside and come
back as the very same objects. Whatever else a forward pass leaves on a model is put back by `untouched`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from analysis.interrupts import uninterrupted
from analysis.keeping import held_tensors, untouched
from surgeon.errors import AnalysisError

OWN = frozenset(vars(nn.Module()))  # attributes that every module has
Holder = tuple[Any, Any]  # a dict or list that holds a tensor, and its key or index there


class Places:
    """Where each tensor of a model is held: registered under all its names, and wherever else a module keeps it.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> with Places(model).replaced({"bias": torch.ones(2)}):
        ...     print(model.bias.tolist())
        [1.0, 1.0]
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[str, Tensor] = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        self._held: dict[int, list[Holder]] = {id(tensor): [] for tensor in self.tensors.values()}
        self._owners: dict[int, list[nn.Module]] = {id(tensor): [] for tensor in self.tensors.values()}
        self._memories: list[tuple[dict[str, Any], str]] | None = None
        for module in model.modules():
            for container, key, tensor in held_tensors(module):
                if id(tensor) in self._held:
                    self._held[id(tensor)].append((container, key))
                    self._owners[id(tensor)].append(module)

    def owners(self, name: str) -> list[nn.Module]:
        """The modules that hold a tensor themselves; several where it is shared.

        Raises:
            AnalysisError: For a name the model has not.
        """
        return self._owners[id(self._known(name))]

    @contextmanager
    def replaced(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block the model computes with ``values``, a mapping from names of its tensors.

        What modules remember of their weights from pass to pass (LeViT's biases) they compute anew.

        Raises:
            AnalysisError: For a name the model has not, or another shape.
        """
        own = {name: self._checked(name, value) for name, value in values.items()}
        memories = self._remembered()
        try:
            for name, value in values.items():
                self._set(own[name], _like(own[name], value))
            for held, key, memory in memories:
                held[key] = _Memory(memory)
            yield
        finally:
            with uninterrupted():
                for tensor in own.values():
                    self._set(tensor, tensor)
                for held, key, memory in memories:
                    held[key] = memory

    def _known(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise AnalysisError(
                f"the model has no tensor '{name}' to exchange; take units and states of this very model"
            )
        return self.tensors[name]

    def _checked(self, name: str, value: Tensor) -> Tensor:
        tensor = self._known(name)
        if tensor.shape != value.shape:
            raise AnalysisError(
                f"'{name}' is {tuple(tensor.shape)} in the model and {tuple(value.shape)} in the treatment; "
                "take values of the same architecture"
            )
        return tensor

    def _set(self, tensor: Tensor, value: Tensor) -> None:
        for container, key in self._held[id(tensor)]:
            container[key] = value

    def learn_memories(self, run: Callable[[], Any]) -> None:
        """Find out, by a pass of the untouched model, which dicts of tensors it fills by itself where they are empty.

        The others hold constants, and stay. Without this all pass for memories.
        """
        candidates = self._remembered()
        stand_ins = [(held, key, _Memory(memory)) for held, key, memory in candidates]
        try:
            for held, key, stand_in in stand_ins:
                held[key] = stand_in
            if candidates:
                run()
        except Exception:  # code that cannot do without its constants; what was filled before is known
            pass
        finally:
            with uninterrupted():
                for held, key, memory in candidates:
                    held[key] = memory
        self._memories = [(held, key) for held, key, stand_in in stand_ins if stand_in]

    def _remembered(self) -> list[tuple[dict[str, Any], str, dict[Any, Any]]]:
        """Plain dicts of tensors that modules keep."""
        if self._memories is None:
            every = ((module.__dict__, key) for module in self.model.modules() for key in module.__dict__)
            self._memories = [(held, key) for held, key in every if key not in OWN and type(held[key]) is dict]
        found = ((held, key, held.get(key)) for held, key in self._memories)
        return [
            (held, key, value)
            for held, key, value in found
            if type(value) is dict and any(isinstance(inner, Tensor) for inner in value.values())
        ]


class _Memory(dict[Any, Any]):
    """Stands in for a dict whose tensors may have been computed from other weights: it seems empty.

    Who asks whether something is there computes it; who takes it for granted, as a constant, gets it.
    """

    def __init__(self, known: dict[Any, Any]) -> None:
        super().__init__()
        self.known = known

    def __missing__(self, key: Any) -> Any:
        return self.known[key]


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """``value`` as a tensor of the same kind, device, type and memory layout."""
    strided = torch.empty_like(tensor).copy_(value.detach())
    return nn.Parameter(strided, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else strided


__all__ = ["Places", "uninterrupted", "untouched"]
