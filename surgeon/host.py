"""What users pass in: which module is meant, how large its images are.

``register_host`` lets other kinds of objects (detectors) join without this file knowing their library.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from surgeon.errors import RefusedError, SurgeonError
from surgeon.skeleton import LEDGER

InputSize = int | tuple[int, int] | tuple[int, int, int] | None
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Host:
    """How a library's objects, which hold a module, are operated on.

    Args:
        inner: The module inside an object; None where the object is not its kind.
        size: (H, W) a module of the library is made for; None where it is not its kind.
        operated: Told of an object, or a module of the library by itself, that was operated.
        restored: Told of one that is as it was again.
        around: An object like the one given around another module.
        grid: Pixels that divide the sides of every image a module of the library gets, where the library's own code
            fuses and exports modules, and knows plain convs only; None where it is not its kind.
    """

    inner: Callable[[Any], nn.Module | None]
    size: Callable[[nn.Module], tuple[int, int] | None] = lambda module: None
    operated: Callable[[Any], None] = lambda model: None
    restored: Callable[[Any], None] = lambda model: None
    around: Callable[[Any, nn.Module], Any] = lambda model, module: module
    grid: Callable[[nn.Module], int | None] = lambda module: None


_hosts: list[Host] = []
_WRAPPERS = {
    "DistributedDataParallel": "operate on its .module, then wrap again",
    "DataParallel": "operate on its .module, then wrap again",
    "FullyShardedDataParallel": "operate before sharding",
    "OptimizedModule": "operate on its ._orig_mod, then compile again",
}


def register_host(host: Host) -> None:
    """Let the objects of another library be operated on."""
    _hosts.append(host)


def host_of(model: Any) -> Host | None:
    """The host of an object that holds a module; None for a module as such."""
    return next((host for host in _hosts if host.inner(model) is not None), None)


def tell_operated(model: Any) -> None:
    """Tell the library that ``model``, an object or a module of its own, was operated."""
    if (host := _library(model)) is not None:
        host.operated(model)


def tell_restored(model: Any) -> None:
    """Tell the library that ``model``, an object or a module of its own, is as it was before surgery."""
    if (host := _library(model)) is not None:
        host.restored(model)


def _library(model: Any) -> Host | None:
    of_module = (host for host in _hosts if isinstance(model, nn.Module) and host.size(model) is not None)
    return host_of(model) or next(of_module, None)


def grid_of(module: nn.Module) -> int | None:
    """:attr:`Host.grid` of a module; None where no library says."""
    return next((grid for host in _hosts if (grid := host.grid(module)) is not None), None)


def unwrap(model: Any) -> nn.Module:
    """The module to operate on.

    Raises:
        RefusedError: When ``model`` is wrapped by something that holds on to its parameters, or is no module.
    """
    host = host_of(model)
    model = model if host is None else host.inner(model)
    kind = type(model).__name__
    if isinstance(model, (torch.jit.ScriptModule, fx.GraphModule)):
        raise RefusedError(
            f"cannot operate on a traced or scripted {kind}: its code is fixed; operate on the model it was made from"
        )
    if not isinstance(model, nn.Module):
        raise RefusedError(f"cannot operate on an object of class {kind}: it is no nn.Module; pass the model itself")
    for base in type(model).__mro__:
        if base.__name__ in _WRAPPERS and base.__module__.startswith("torch."):
            raise RefusedError(f"cannot operate on a model wrapped in {base.__name__}: {_WRAPPERS[base.__name__]}")
    if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        raise RefusedError(
            f"cannot operate on {kind}, whose lazy layers have no shape yet: run it once on an image first"
        )
    if any(hasattr(p, "device_mesh") for p in model.parameters()):
        raise RefusedError("cannot operate on a model whose parameters are sharded (DTensor): operate before sharding")
    return model


def input_sizes(model: nn.Module, input_size: InputSize = None) -> list[Size]:
    """(C, H, W) of the images of ``model``, the likeliest first.

    Channels come from the first conv, then from timm's ``pretrained_cfg`` (a stem may rearrange before it convolves);
    height and width from the model's ``img_size``, then from ``pretrained_cfg``.

    Raises:
        SurgeonError: When the size is malformed, or neither given nor known.
    """
    sides = _own_size(model) if input_size is None else _sides(input_size)
    if len(sides) not in (2, 3) or min(sides) < 1:
        raise SurgeonError(f"input_size is {input_size!r}; pass a positive int, (H, W) or (C, H, W)")
    if len(sides) == 3:
        return [(sides[0], sides[1], sides[2])]
    return [(channels, sides[0], sides[1]) for channels in _channels(model)]


def _sides(input_size: Any) -> tuple[int, ...]:
    """Whole numbers of any library; nothing where it is none."""
    several = input_size if isinstance(input_size, (tuple, list)) else (input_size, input_size)
    try:
        return () if any(isinstance(n, bool) for n in several) else tuple(operator.index(n) for n in several)
    except (TypeError, ValueError):
        return ()


def _channels(model: nn.Module) -> list[int]:
    ledger = model.__dict__.get(LEDGER)
    if ledger is not None:
        return [ledger.input_size[0]]
    convs = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    remembered = (getattr(m, "in_chans", None) or getattr(m, "in_channels", None) for m in model.modules())
    first = [*itertools.islice(convs, 1), *itertools.islice((n for n in remembered if isinstance(n, int)), 1)]
    return list(dict.fromkeys([*first, _config(model).get("input_size", (3,))[0]]))


def _config(model: nn.Module) -> dict[str, Any]:
    found = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    return found if isinstance(found, dict) else vars(found)


def _own_size(model: nn.Module) -> tuple[int, ...]:
    ledger = model.__dict__.get(LEDGER)
    if ledger is not None:
        return tuple(ledger.input_size)[1:]
    for holder in (model, getattr(model, "patch_embed", None)):
        size = getattr(holder, "img_size", None)
        if isinstance(size, int) or (isinstance(size, (tuple, list)) and len(size) == 2):
            return (size, size) if isinstance(size, int) else tuple(size)
    known = next((size for host in _hosts if (size := host.size(model)) is not None), None)
    size = _config(model).get("input_size") if known is None else (0, *known)
    if size is None:
        raise SurgeonError(
            f"the image size of {type(model).__name__} is not known: it has no img_size and no timm pretrained_cfg; "
            "pass input_size=224, (H, W) or (C, H, W)"
        )
    return tuple(size)[1:]
