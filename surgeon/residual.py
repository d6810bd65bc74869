"""Residual blocks and skip edges, read off the recorded graph.

A block is a module whose own code adds its input, or a projection of it, to what it computed from that input. The two
branches of an addition are followed back to the node where they part.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from surgeon.tracing import Trace

ADDITIONS = ("add", "iadd")
SCALINGS = ("mul", "imul", "div", "truediv")
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
WEIGHTED_CALLS = ("conv2d", "linear", "matmul", "einsum", "scaled_dot_product_attention")
MIXING = ("cat", "stack", "add", "iadd", "log")  # a logarithm: boxes as logits, as detectors refine them, no features


@dataclass(frozen=True)
class Residual:
    """One addition: the node where its branches part, the operand of the skip and its kind."""

    add: fx.Node
    fork: fx.Node
    skip: fx.Node
    projection: bool


def residuals(recorded: Trace) -> Iterator[tuple[fx.Node, dict[str, Any]]]:
    """Each residual addition as a ``skip`` fact; each module that owns one as a ``block`` fact."""
    found = [r for node in recorded.graph.nodes if (r := residual_of(node, recorded.model))]
    spans: dict[tuple[str, int], list[Residual]] = {}
    for r in found:
        spans.setdefault((r.add.meta["owner"], r.add.meta["run"]), []).append(r)
        path = f"{r.add.meta['owner']}:{r.add.meta['name']}:{r.add.meta['index']}"
        kind = {"kind": "skip", "type_name": "projection" if r.projection else "identity", "via": "function"}
        yield r.add, {"path": path, **kind, **_shapes(r.skip, r.add)}
    for (owner, _), group in spans.items():
        if owner and "<" not in owner:
            kind = {"kind": "block", "type_name": type(recorded.model.get_submodule(owner)).__name__}
            yield group[0].fork, {"path": owner, **kind, **_shapes(group[0].fork, group[-1].add)}


def _shapes(first: fx.Node, last: fx.Node) -> dict[str, tuple[int, ...]]:
    return {"in_shape": tuple(first.meta["val"].shape[1:]), "out_shape": tuple(last.meta["val"].shape[1:])}


def residual_of(node: fx.Node, model: nn.Module) -> Residual | None:
    """The residual that addition ``node`` closes; None where it is no addition of two branches of one tensor."""
    if node.op != "call_function" or node.meta["name"] not in ADDITIONS or len(node.args) < 2:
        return None
    operands = [o for o in node.args[:2] if isinstance(o, fx.Node) and _is_feature(o.meta["val"], node.meta["val"])]
    if len(operands) < 2:
        return None
    fork, branches = _part(*operands)
    if fork is None:
        return None
    first, second = (_weights(branch, model) for branch in branches)
    skip = 0 if first <= second else 1
    light, heavy = sorted((first, second))
    if light > 1 or heavy <= light or any(_mixes(n) for n in branches[skip]):
        return None
    identity = light == 0 and fork.meta["val"].shape == node.meta["val"].shape
    return Residual(node, fork, operands[skip], not identity)


def _is_feature(value: Any, total: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 3 and value.shape == total.shape


def _has_features(value: Any) -> bool:
    """Not what only says where to look: indices, such as those of the best queries."""
    return isinstance(value, Tensor) and value.ndim >= 2 and value.is_floating_point()


def _part(a: fx.Node, b: fx.Node) -> tuple[fx.Node | None, tuple[list[fx.Node], list[fx.Node]]]:
    """Where the branches that end in ``a`` and ``b`` part, and the nodes of each branch behind that point."""
    colours: dict[fx.Node, int] = {a: 1}
    colours[b] = colours.get(b, 0) | 2
    heap = [(-n.meta["order"], i, n) for i, n in enumerate({a: None, b: None})]
    heapq.heapify(heap)
    branches: tuple[list[fx.Node], list[fx.Node]] = ([], [])
    tick = 2
    while heap:
        _, _, node = heapq.heappop(heap)
        if colours[node] == 3:
            return (node if _has_features(node.meta["val"]) else None), branches
        branches[colours[node] - 1].append(node)
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                continue
            if source not in colours:
                heapq.heappush(heap, (-source.meta["order"], tick, source))
                tick += 1
            colours[source] = colours.get(source, 0) | colours[node]
    return None, branches


def _weights(branch: list[fx.Node], model: nn.Module) -> int:
    return sum(_is_weighted(node, model) for node in branch)


def _is_weighted(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module" and "<" not in str(node.target):
        module = model.get_submodule(str(node.target))
        return isinstance(module, WEIGHTED) or hasattr(module, "lower")
    return node.op == "call_function" and node.meta["name"] in WEIGHTED_CALLS


def _mixes(node: fx.Node) -> bool:
    return node.op == "call_function" and node.meta["name"] in MIXING
