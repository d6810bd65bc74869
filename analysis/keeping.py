"""Leave a model as it was found: parameters, buffers, gradients, modes, hooks, attributes, random number generators.

Apart from treating a model, which exchanges tensors and no more: whatever else a forward pass, or code of a user's,
leaves on a model is put back here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from analysis.interrupts import orderly_interrupts
from surgeon.randomness import generators_kept

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def held_tensors(module: nn.Module) -> Iterator[tuple[Any, Any, Tensor]]:
    """Every tensor a module holds itself, with the dict or list that holds it, and its key or index there.

    Lists count, for recurrent layers keep their weights in one too.

    Example:
        >>> [key for _, key, _ in held_tensors(nn.BatchNorm1d(2, affine=False))]
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    for key, value in module.__dict__.items():
        pairs: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Tensor):
            yield module.__dict__, key, value
        elif isinstance(value, dict):
            pairs = value.items()
        elif type(value) is list:
            pairs = enumerate(value)
        yield from ((value, place, tensor) for place, tensor in pairs if isinstance(tensor, Tensor))


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever happens in the block, the model and the random number generators are as before it afterwards.

    Parameters, buffers, gradients, modes, hooks and plain attributes of every module come back bit for bit, also after
    an error or Ctrl-C, whenever that comes. Inside, the model is in evaluation mode, and no gradients are computed.
    """
    with ExitStack() as stack:
        stack.enter_context(orderly_interrupts())
        stack.enter_context(generators_kept())
        stack.enter_context(_kept(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        model.eval()
        yield


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Put back the tensors and attributes of a model, and the generators of its devices."""
    before = [(module, _shallow(module)) for module in model.modules()]
    held = {id(tensor): tensor for module in model.modules() for _, _, tensor in held_tensors(module)}
    values = [_Value(tensor) for tensor in held.values()]
    counted = _unsafe_preserve_version_counter(tuple(v.tensor for v in values if not v.tensor.is_inference()))
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for module, kept in before:
            _put_back(module, kept)
        for value in values:
            value.put_back()
        with counted:
            pass  # versions are those of before when this is left
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


class _Value:
    """A tensor as it was: where its values lie, which they are, and what gradient it has."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.place, self.learns = tensor, tensor.data, tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.values = self.place.clone()

    def put_back(self) -> None:
        """Make it so again."""
        tensor, place = self.tensor, self.place
        with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
            if tensor.data_ptr() != place.data_ptr() or tensor.shape != place.shape or tensor.dtype != place.dtype:
                tensor.data = place
            if not _same_bits(place, self.values):
                place.copy_(self.values)
        if tensor.is_leaf:
            if tensor.requires_grad != self.learns:
                tensor.requires_grad_(self.learns)
            if tensor.grad is not self.grad:
                tensor.grad = self.grad


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.layout != torch.strided or one.is_meta or one.element_size() not in BITS:
        return False
    bits = BITS[one.element_size()]
    return torch.equal(one.view(bits), other.view(bits))


def _shallow(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and the content of those that can be added to."""
    return {
        key: (value, value.copy() if isinstance(value, (dict, list, set, deque)) else None)
        for key, value in module.__dict__.items()
    }


def _put_back(module: nn.Module, kept: dict[str, tuple[Any, Any]]) -> None:
    held = module.__dict__
    for key in [key for key in held if key not in kept]:
        del held[key]
    for key, (value, content) in kept.items():
        held[key] = value
        if isinstance(value, dict):
            if not _same(value, content):
                value.clear()
                value.update(content)
        elif isinstance(value, (list, set, deque)) and (len(value) != len(content) or not _equal(value, content)):
            value.clear()
            value.update(content) if isinstance(value, set) else value.extend(content)


def _same(held: dict[Any, Any], content: dict[Any, Any]) -> bool:
    pairs = zip(held.items(), content.items(), strict=False)
    return len(held) == len(content) and all(a == b and x is y for (a, x), (b, y) in pairs)


def _equal(held: Iterable[Any], content: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(held, content, strict=False))


__all__ = ["held_tensors", "untouched"]
