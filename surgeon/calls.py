"""Functional sites: what ``F.conv2d(...)``, ``F.max_pool2d(...)`` or ``x[:, :, ::2, ::2]`` is as a module.

Kept apart so that locating and operating see modules only: a function call is lifted to the layer that does the same.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.recorder import strided_slice

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


@dataclass(frozen=True)
class Slice:
    """Indexing that skips positions of two neighbouring axes of a 4-D tensor: (2, 3), or (1, 2) with channels last.

    ``whole`` says that it cuts nothing besides: it goes on to the end, and takes all of the other axes.
    """

    axes: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]
    whole: bool = True


def spatial_slice(index: Any, ndim: int) -> Slice | None:
    """What ``x[index]`` skips, if it strides H and W; else None.

    Example:
        >>> spatial_slice((slice(None), slice(None, None, 2), slice(None, None, 2)), 4)
        Slice(axes=(1, 2), stride=(2, 2), start=(0, 0), whole=True)
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    if ndim != 4 or not all(isinstance(part, slice) for part in parts):
        return None
    parts += [slice(None)] * (ndim - len(parts))
    for i, j in ((2, 3), (1, 2)):
        stride = (parts[i].step or 1, parts[j].step or 1)
        if min(stride) > 1:
            others = [parts[k] for k in range(4) if k not in (i, j)]
            whole = all(part == slice(None) for part in others) and parts[i].stop is parts[j].stop is None
            return Slice((i, j), stride, (parts[i].start or 0, parts[j].start or 0), whole)
    return None


def takes_apart(node: fx.Node) -> bool:
    """Whether slice ``node`` and its siblings together keep every position: they are space-to-depth already."""
    siblings = [n for n in node.all_input_nodes[0].users if n.meta["name"] == "getitem" and strided_slice(n.args[1])]
    found = [s for n in siblings if (s := spatial_slice(n.args[1], _source(n).meta["val"].ndim)) and s.whole]
    own = spatial_slice(node.args[1], 4)
    if own is None or not own.whole:
        return False
    starts = {s.start for s in found if (s.axes, s.stride) == (own.axes, own.stride)}
    return starts == set(itertools.product(range(own.stride[0]), range(own.stride[1])))


def lift(node: fx.Node, attribute: Any) -> nn.Module | None:
    """The layer that computes what functional ``node`` computes; None where the node is no spatial conv or pool.

    Args:
        node: A recorded call with its name in ``meta["name"]``.
        attribute: Answers the tensor of a ``get_attr`` node, from the model to be operated; None where it has none.

    Slicing with steps is a max pool with a kernel of one (with the :class:`Slice` as its attribute ``slice``). A conv
    whose kernel is computed in the forward comes back without weight (``weight`` is None).
    """
    name = node.meta["name"]
    if name == "getitem":
        found = spatial_slice(node.args[1], _source(node).meta["val"].ndim) if strided_slice(node.args[1]) else None
        return None if found is None else _selection(found)
    if name not in SIGNATURES:
        return None
    given = arguments(node)
    if given["input"].meta["val"].ndim != 4:
        return None
    if name == "conv2d":
        return _conv(given, attribute)
    given.pop("input")
    return nn.MaxPool2d(**given) if "dilation" in given else nn.AvgPool2d(**given)


def _source(node: fx.Node) -> Any:
    return node.args[0]


def _selection(found: Slice) -> nn.MaxPool2d:
    pool = nn.MaxPool2d(1, found.stride)
    pool.slice = found  # type: ignore[assignment]
    return pool


def _conv(given: dict[str, Any], attribute: Any) -> nn.Conv2d:
    shape = given["weight"].meta["val"].shape
    settings = {name: given[name] for name in ("stride", "padding", "dilation", "groups")}
    with torch.device("meta"):
        conv = nn.Conv2d(shape[1] * given["groups"], shape[0], tuple(shape[2:]), bias=False, **settings)
    weight: Tensor | None = attribute(given["weight"])
    bias: Tensor | None = None if given["bias"] is None else attribute(given["bias"])
    known = weight is not None and (bias is not None or given["bias"] is None)
    conv.weight = nn.Parameter(weight.detach(), weight.requires_grad) if known and weight is not None else None  # type: ignore[assignment]
    conv.bias = nn.Parameter(bias.detach(), bias.requires_grad) if known and bias is not None else None
    return conv
