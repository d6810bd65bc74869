"""How far features are reduced: the input size of the model over their own.

Kept apart from locating because neither shapes nor strides alone tell it: unpadded convs and class tokens make a map of
299 / 32 come out as 8x8, and patch merging by reshape shrinks a map without any stride.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from surgeon.recorder import LEAVES, of_surgery
from surgeon.tracing import Trace


def total_strides(recorded: Trace, strides: Mapping[fx.Node, int]) -> dict[fx.Node, int]:
    """The product of the strides on the way to each node, its own included; the largest where ways meet.

    Where a layer's output shape shows that this is not so, as behind patch merging or upsampling, it starts anew.
    """
    found: dict[fx.Node, int] = {}
    for node in recorded.graph.nodes:
        found[node] = stride_before(node, found) * strides.get(node, 1)
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.ndim == 4 and _is_layer(node, recorded):
            found[node] = reduction(tuple(value.shape), found[node], recorded.input_size)
    return found


def _is_layer(node: fx.Node, recorded: Trace) -> bool:
    if node.op != "call_module" or "<" in str(node.target):
        return False
    module = recorded.model.get_submodule(str(node.target))
    return isinstance(module, LEAVES) or of_surgery(module)


def stride_before(node: fx.Node, totals: Mapping[fx.Node, int]) -> int:
    """The total stride at the input of ``node``."""
    return max((totals[source] for source in node.all_input_nodes), default=1)


def reduction(shape: tuple[int, ...], total_stride: int, input_size: tuple[int, int, int]) -> int:
    """The total stride where the shape agrees with it, else input height over feature height.

    Args:
        shape: (N, C, H, W), (N, H, W, C), (N, heads, positions, C) or (N, positions, C); N counts windows.
        total_stride: Of the ops so far.
        input_size: (C, H, W) of the model.

    Example:
        >>> reduction((1, 2048, 8, 8), 32, (3, 299, 299)), reduction((1, 14, 14, 384), 4, (3, 224, 224))
        (32, 16)
    """
    height, width = input_size[1:]
    side = _height(shape[1:], height / width)
    whole = side * math.sqrt(shape[0])
    expected = height / total_stride
    if side <= 1 or any(0.6 * expected <= seen <= 1.15 * expected + 1 for seen in (side, whole)):
        return total_stride
    return max(1, round(height / whole))


def _height(shape: Any, aspect: float) -> float:
    """Height of the features: of two neighbouring axes the pair that is shaped as the input, else by positions."""
    if len(shape) == 3:
        first, last = (abs(math.log(max(1, shape[i]) / max(1, shape[i + 1]) / aspect)) for i in (0, 1))
        if min(first, last) < 0.2:
            return float(shape[0] if first < last else shape[1])
    positions = shape[1] if len(shape) == 3 else shape[0]
    return math.sqrt(max(1, positions) * aspect)
