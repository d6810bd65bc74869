"""Which strided layers must take the same component: those whose outputs meet, in an addition or a concatenation.

Kept apart from ``aps`` because it is a walk over the recorded graph: every map is followed with the strided sites it
has come through; where two maps meet, theirs are the same ones, place by place. A residual shortcut is the usual case;
branches of an Inception or RepVGG block are found alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, fx, nn

from surgeon.edit import Append, Prepend
from surgeon.locating import function_path
from surgeon.ops.blur_layers import Blur2d
from surgeon.ops.polyphase import APSPool2d, Polyphase2d
from surgeon.site import Pair, Site
from surgeon.tracing import Trace

Lineage = tuple[fx.Node, ...]  # the strided calls a map has come through, those that surgery rewrote before too
STRIDED = ("strided_conv", "strided_pool")
SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)
SLIDING_CALLS = ("conv2d", "max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "pad", "getitem")


class Groups:
    """The strided sites of a recorded model, joined where they must agree.

    Args:
        recorded: The trace.
        sites: Every site of it.
    """

    def __init__(self, recorded: Trace, sites: Sequence[Site]) -> None:
        self.strides: dict[str, Pair] = {s.path: s.stride for s in sites if s.stride and s.kind in STRIDED}
        self.parent = {path: path for path in self.strides}
        self.at_odds: dict[str, str] = {}
        self.first: dict[str, int] = {}
        self._follow(recorded)

    def members(self, path: str) -> list[str]:
        """The sites that agree with the one at ``path``, itself included, in order of call."""
        root = self._root(path)
        return sorted((p for p in self.parent if self._root(p) == root), key=lambda p: self.first.get(p, 0))

    def _root(self, path: str) -> str:
        while self.parent[path] != path:
            path = self.parent[path]
        return path

    def _follow(self, recorded: Trace) -> None:
        lineages: dict[fx.Node, Lineage | None] = {}
        for order, node in enumerate(recorded.graph.nodes):
            before = [found for source in _alike(node, recorded) if (found := lineages.get(source)) is not None]
            met = self._meet(before)
            path = _path(node)
            if path in self.strides or _thins(node, recorded):
                self.first.setdefault(path, order)
                met = (*(met or ()), node)
            elif not before and node.op == "placeholder":
                met = ()
            lineages[node] = met

    def _meet(self, lineages: Sequence[Lineage]) -> Lineage | None:
        """Join what meets; where strides differ on the way, the sites are at odds."""
        if not lineages:
            return None
        first = lineages[0]
        for other in lineages[1:]:
            for a, b in zip(first, other, strict=False):
                if a is not b:
                    self._join(_path(a), _path(b))
            for node in (*first[len(other) :], *other[len(first) :]):
                self.at_odds.setdefault(_path(node), "came there with fewer strided layers")
        return first

    def _join(self, a: str, b: str) -> None:
        if a == b:
            self.at_odds[a] = "comes from another call of the same layer"
        elif a not in self.strides or b not in self.strides:  # an operated layer is no site any more
            self.at_odds |= {a: f"comes through '{b}', whose positions are fixed by the surgery at it"}
            self.at_odds |= {b: f"comes through '{a}', whose positions are fixed by the surgery at it"}
        elif self.strides[a] != self.strides[b]:
            self.at_odds |= {a: f"strides {self.strides[b]} at '{b}'", b: f"strides {self.strides[a]} at '{a}'"}
        else:
            self.parent[self._root(a)] = self._root(b)


def _path(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    return function_path(node) if node.op == "call_function" and "index" in node.meta else ""


def _alike(node: fx.Node, recorded: Trace) -> Iterator[fx.Node]:
    """The inputs whose positions are those of the output: of convs and pools the features, else maps of its size."""
    size = _size(node.meta.get("val"))
    if size is None:
        return
    sliding = isinstance(_module(node, recorded), SLIDING)
    sliding = sliding or node.meta.get("name") in SLIDING_CALLS or _thins(node, recorded)
    for source in node.all_input_nodes:
        there = _size(source.meta.get("val"))
        if there is not None and source.op != "get_attr" and (sliding or there == size):
            yield source


def _thins(node: fx.Node, recorded: Trace) -> bool:
    """Whether an op other than ``aps`` put a layer here that drops positions: always the same ones."""
    module, size = _module(node, recorded), _size(node.meta.get("val"))
    if module is None or size is None:
        return False
    before = module._modules.get(Prepend.name)
    layer = before if isinstance(before, Blur2d) else module._modules.get(Append.name) or module
    ours = any(cls.__module__.startswith("surgeon.ops.") for cls in type(layer).__mro__)
    sizes = [_size(source.meta.get("val")) for source in node.all_input_nodes]
    smaller = any(there is not None and (there[0] > size[0] or there[1] > size[1]) for there in sizes)
    return ours and smaller and not isinstance(layer, (Polyphase2d, APSPool2d))


def _module(node: fx.Node, recorded: Trace) -> nn.Module | None:
    if node.op != "call_module" or "<" in str(node.target):
        return None
    return recorded.model.get_submodule(str(node.target))


def _size(value: Any) -> tuple[int, int] | None:
    """Height and width of a map (N, C, H, W), its channels cut in groups or not; None of other features."""
    value = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(value, Tensor) or value.ndim < 4:
        return None
    return value.shape[-2], value.shape[-1]
