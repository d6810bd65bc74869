"""Modules that draw their own initial values, by their ``reset_parameters`` or ``init_weights``.

Apart from the models some library builds anew: here nothing is known but the module's own code, so it runs on a copy
whose parameters are NaN, and whatever is NaN afterwards was not drawn.
"""

from __future__ import annotations

import copy
import inspect
import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.errors import RefusedError
from surgeon.skeleton import LEDGER

RESETS = ("reset_parameters", "_reset_parameters")
INITS = ("init_weights", "initialize_weights", "_initialize_weights", "_init_weights")


def seed_generators(seed: int, path: str = "") -> None:
    """Set the generators of torch (CPU), numpy and Python, so that each path draws values of its own.

    The whole model, path "", draws what ``torch.manual_seed(seed)`` would draw; no generator of an accelerator changes.

    Example:
        >>> from surgeon.randomness import generators_kept
        >>> with generators_kept():
        ...     seed_generators(3)
        ...     first = torch.rand(2)
        >>> torch.equal(first, torch.rand(2, generator=torch.Generator().manual_seed(3)))
        True
    """
    number = seed + zlib.crc32(path.encode())
    torch.default_generator.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def unset_copy(module: nn.Module) -> nn.Module:
    """A copy of ``module`` on the CPU: parameters are NaN where numbers can be, buffers keep their values.

    Raises:
        RefusedError: When the module cannot be copied, or has no values itself.

    Example:
        >>> bool(unset_copy(nn.Linear(2, 2)).weight.isnan().all())
        True
    """
    if bare := [name for name, tensor in _named(module) if tensor.is_meta]:
        raise RefusedError(
            f"cannot draw fresh values: '{bare[0]}' of {type(module).__name__} is on the meta device; pass the model "
            "with its weights, as built without torch.device('meta')"
        )
    memo: dict[int, Any] = {id(p): nn.Parameter(_unset(p), p.requires_grad) for p in module.parameters()}
    memo |= {id(b): b.detach().to("cpu", copy=True) for b in module.buffers()}
    for part in module.modules():
        kept = (value for value in part.__dict__.values() if isinstance(value, Tensor))
        memo |= {id(t): t.detach().clone() for t in kept}  # what a forward left there may have a gradient
        if (ledger := part.__dict__.get(LEDGER)) is not None:
            memo[id(ledger)] = ledger
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever a foreign class raises
        raise RefusedError(
            f"cannot draw fresh values for {type(module).__name__}: it cannot be copied ({type(error).__name__}: "
            f"{error}); copy.deepcopy(model) has to work"
        ) from error


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _unset(parameter: Tensor) -> Tensor:
    if parameter.is_floating_point() or parameter.is_complex():
        return torch.full_like(parameter.detach(), torch.nan, device="cpu")
    return parameter.detach().to("cpu", copy=True)


def is_unset(tensor: Tensor) -> bool:
    """Whether any entry is NaN."""
    return (tensor.is_floating_point() or tensor.is_complex()) and bool(torch.isnan(tensor).any())


def draw_itself(module: nn.Module) -> str | None:
    """Let ``module`` set its values by its own code; its children have done so before, as when it was built.

    First its ``reset_parameters``, then its ``init_weights``, or whatever stands for them. An ``_init_weights(module)``
    that takes a module is applied to all below, as classes with such a method do.

    Returns:
        Why its code failed; None where it ran, or where there is none.

    Example:
        >>> layer = unset_copy(nn.Linear(2, 2))
        >>> draw_itself(layer), is_unset(layer.weight)
        (None, False)
    """
    for names in (RESETS, INITS):
        for name in names:
            call = _callable(module, name)
            if call is None:
                continue
            try:
                with torch.no_grad():
                    call()
            except Exception as error:  # a foreign method
                return f"its {name} fails ({type(error).__name__}: {error})"
            break
    return None


def own_code(module: nn.Module) -> list[str]:
    """The methods by which ``module`` sets its values."""
    return [name for name in (*RESETS, *INITS) if _callable(module, name) is not None]


def _callable(module: nn.Module, name: str) -> Callable[[], Any] | None:
    """The method as it is called when a module is built; None where it has none that can be called."""
    method = getattr(module, name, None)
    if not callable(method) or isinstance(method, nn.Module):
        return None
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not needed:
        return method  # type: ignore[no-any-return]
    if name in INITS and len(needed) == 1 and needed[0].kind in positional:
        return lambda: module.apply(method)
    return None


__all__ = ["draw_itself", "is_unset", "own_code", "seed_generators", "unset_copy"]
