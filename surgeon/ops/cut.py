"""Where a network can be cut in two: an edge that alone connects what lies before with what lies behind.

Kept apart from :mod:`surgeon.ops.gap_fc`, which pools on that edge and rewrites what lies behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from timm.layers import BlurPool2d
from torch import Tensor, fx, nn

from surgeon.edit import untouchable
from surgeon.errors import RefusedError
from surgeon.locating import sites_of
from surgeon.site import Site
from surgeon.tracing import Trace, within

POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._LPPoolNd, BlurPool2d)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
POOL_CALLS = ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d")


class SeveralTensorsError(RefusedError):
    """An edge is not the only one between what lies before it and behind it."""


@dataclass
class Cut:
    """An edge of the graph that alone connects what lies before with what lies behind.

    Args:
        path: Of the module whose input it is.
        shape: (C, H, W) there.
        sites: The convs and pools behind it that see more than one position.
        behind: Nodes behind it.
    """

    path: str
    shape: tuple[int, ...]
    sites: list[Site]
    behind: list[fx.Node]

    @property
    def pooled(self) -> bool:
        """Whether nothing behind it could see more than one position, whatever the size of the image."""
        return self.shape[1:] == (1, 1) and not self.sites

    @classmethod
    def before(cls, path: str, recorded: Trace) -> Cut:
        """The cut at the input of the module at ``path``.

        Raises:
            RefusedError: When there is no such edge, or the model answers maps.
        """
        _insist_on_logits(recorded)
        nodes = [node for node in recorded.graph.nodes if node.op not in ("get_attr", "placeholder")]
        inside = [node for node in nodes if within(node, path)]
        if not inside:
            raise RefusedError(f"'{path}' does not run as a module of its own; name a module that the forward calls")
        if len({node.meta.get("run", 0) for node in inside if node.meta["owner"] == path}) > 1:
            raise RefusedError(f"'{path}' runs several times; select a unit that runs once")
        module = recorded.model.get_submodule(path)
        if isinstance(module, CONTAINERS):
            raise RefusedError(
                f"'{path}' is a {type(module).__name__}, which runs its children; name the first of them"
            )
        if reason := untouchable(module):
            raise RefusedError(reason)
        behind = nodes[nodes.index(inside[0]) :]
        crossing = {n for node in behind for n in node.all_input_nodes if n.op != "get_attr" and n not in behind}
        entry = {n for node in inside for n in node.all_input_nodes if n in crossing}
        others = [n for n in behind if n not in inside and crossing.intersection(n.all_input_nodes)]
        if len(crossing) != 1 or len(entry) != 1 or others:
            reader = (others or behind)[0].meta.get("owner") or "the model itself"
            several = f"{len(crossing)} tensors pass" if len(crossing) > 1 else "a tensor passes beside it"
            raise SeveralTensorsError(f"{several} from before '{path}' to behind it ('{reader}' reads it)")
        value = crossing.pop().meta["val"]
        _insist_on_maps(path, value, behind, recorded)
        return cls(path, tuple(value.shape[1:]), list(_spatial(behind, recorded)), behind)


def _insist_on_logits(recorded: Trace) -> None:
    out = recorded.outputs
    if not isinstance(out, Tensor) or out.ndim != 2:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise RefusedError(f"the model answers {shape}, no logits (N, classes): dense outputs need positions")


def _insist_on_maps(path: str, value: Any, behind: list[fx.Node], recorded: Trace) -> None:
    readers = [node for node in behind if any(n.meta["val"] is value for n in node.all_input_nodes)]
    is_map = isinstance(value, Tensor) and value.ndim == 4
    if not is_map or any(_reads_last(node, value, recorded) for node in readers):
        shape = tuple(value.shape[1:]) if isinstance(value, Tensor) else type(value).__name__
        raise RefusedError(f"reads features {shape} at '{path}', no maps (C, H, W) to pool")


def _reads_last(node: fx.Node, value: Tensor, recorded: Trace) -> bool:
    """Whether a layer takes the last axis of a 4-D tensor for its channels."""
    if node.op != "call_module" or "<" in str(node.target):
        return node.meta.get("name") == "permute"
    module = recorded.model.get_submodule(str(node.target))
    width = {nn.LayerNorm: "normalized_shape", nn.Linear: "in_features"}
    found = next((getattr(module, name) for cls, name in width.items() if isinstance(module, cls)), None)
    channels = found[-1] if isinstance(found, tuple) else found
    return channels is not None and channels == value.shape[3] != value.shape[1]


def _spatial(behind: list[fx.Node], recorded: Trace) -> Iterator[Site]:
    """Convs and pools that see more than one position, stride-1 pools among them."""
    known = {site.path: site for site in sites_of(recorded)}
    seen: set[str] = set()
    for node in behind:
        name, path = node.meta.get("name", ""), str(node.target)
        if _blurs(node, recorded):
            path = node.meta["owner"]
        elif node.op == "call_function" and name in (*POOL_CALLS, "conv2d"):
            path = f"{node.meta['owner']}:{name}:{node.meta['index']}"
        elif node.op != "call_module" or "<" in path:
            continue
        module = recorded.model.get_submodule(path) if ":" not in path else None
        if path in seen or not (path in known or name in POOL_CALLS or isinstance(module, POOLS)):
            continue
        seen.add(path)
        yield known.get(path) or _stride_one_pool(path, node, module)


def _blurs(node: fx.Node, recorded: Trace) -> bool:
    """Whether the node is the conv by which timm's blur pool computes."""
    call = node.op == "call_function" and node.meta.get("name") == "conv2d"
    return call and isinstance(recorded.model.get_submodule(node.meta["owner"]), BlurPool2d)


def _stride_one_pool(path: str, node: fx.Node, module: nn.Module | None) -> Site:
    source = node.all_input_nodes[0].meta["val"]
    return Site(
        path=path,
        kind="strided_pool",
        type_name=type(module).__name__ if module is not None else node.meta["name"],
        in_shape=tuple(source.shape[1:]),
        out_shape=tuple(source.shape[1:]),
        reduction=1,
        depth=1.0,
        via="module" if module is not None else "function",
    )
