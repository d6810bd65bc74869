"""Functional sites: what ``F.conv2d(...)``, ``F.max_pool2d(...)`` or ``x[:, :, ::2, ::2]`` is as a module.

Kept apart so that locating and operating see modules only: a function call is lifted to the layer that does the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.tracing import strided_slice

CONV = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
MAX_POOL = {"input": None, "kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
AVG_POOL = {"input": None, "kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False}
SIGNATURES: dict[str, dict[str, Any]] = {
    "conv2d": CONV,
    "max_pool2d": {**MAX_POOL, "return_indices": False},
    "max_pool2d_with_indices": {**MAX_POOL, "return_indices": False},
    "avg_pool2d": {**AVG_POOL, "count_include_pad": True, "divisor_override": None},
}


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a recorded or traced functional call by name, defaults filled in."""
    defaults = SIGNATURES[node.meta["name"]]
    given = dict(zip(defaults, node.args, strict=False))
    return {**defaults, **given, **node.kwargs}


def slice_stride(index: Any, ndim: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The two neighbouring axes (of a 4-D tensor) both strided by ``x[index]``, and their strides; else None."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    if ndim != 4 or not all(isinstance(p, slice) for p in parts):
        return None
    steps = [p.step or 1 for p in parts] + [1] * (ndim - len(parts))
    for axes in ((2, 3), (1, 2)):
        if all(isinstance(steps[a], int) and steps[a] > 1 for a in axes):
            return axes, (steps[axes[0]], steps[axes[1]])
    return None


def lift(node: fx.Node, attribute: Any) -> nn.Module | None:
    """The layer that computes what functional ``node`` computes; None where the node is no spatial conv or pool.

    Args:
        node: A recorded call with its name in ``meta["name"]``.
        attribute: Answers the tensor of a ``get_attr`` node, from the model to be operated; None where it has none.

    Slicing with steps is a max pool with a kernel of one. A conv whose kernel is computed in the forward comes back as
    a conv without weight (``weight`` is None).
    """
    name = node.meta["name"]
    if name == "getitem":
        found = slice_stride(node.args[1], node.args[0].meta["val"].ndim) if strided_slice(node.args[1]) else None
        return None if found is None else nn.MaxPool2d(1, found[1])
    if name not in SIGNATURES:
        return None
    given = arguments(node)
    if given["input"].meta["val"].ndim != 4:
        return None
    if name == "conv2d":
        return _conv(given, attribute)
    given.pop("input")
    return nn.MaxPool2d(**given) if "dilation" in given else nn.AvgPool2d(**given)


def _conv(given: dict[str, Any], attribute: Any) -> nn.Conv2d:
    shape = given["weight"].meta["val"].shape
    settings = {name: given[name] for name in ("stride", "padding", "dilation", "groups")}
    with torch.device("meta"):
        conv = nn.Conv2d(shape[1] * given["groups"], shape[0], tuple(shape[2:]), bias=False, **settings)
    weight: Tensor | None = attribute(given["weight"])
    bias: Tensor | None = None if given["bias"] is None else attribute(given["bias"])
    known = weight is not None and (bias is not None or given["bias"] is None)
    conv.weight = nn.Parameter(weight.detach(), weight.requires_grad) if known and weight is not None else None
    conv.bias = nn.Parameter(bias.detach(), bias.requires_grad) if known and bias is not None else None
    return conv
