"""The op ``gap_fc``: global average pooling before the first selected unit; from there on no spatial information.

Fan, Xian, Losch and Schiele, Analyzing the Dependency of ConvNets on Spatial Information, GCPR 2020, arXiv:2002.01827,
section 3.2 and Table 2 ("GAP+FC"). Behind the pooling every conv is a fully connected layer: a 1x1 conv with the
channels it had. The paper trains from scratch; here the new weights start from the old ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor, fx, nn

from surgeon.edit import Edit, Prepend, SetAttribute, Swap, untouchable
from surgeon.errors import RefusedError
from surgeon.locating import pair, sites_of
from surgeon.op import AbstractOp, Decision, Refused, Rewrite, Unchanged, exchange, not_alone, register_op
from surgeon.ops.point_conv import Init, point_conv, why_not_point
from surgeon.site import Kind, Site
from surgeon.table import by
from surgeon.tracing import Trace, within
from surgeon.units import unit_of

POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._LPPoolNd)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
POOL_CALLS = ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d")


@register_op
@dataclass(frozen=True)
class GAPFC(AbstractOp):
    """Global average pooling before the first selected unit; every later conv becomes 1x1, later pools and strides go.

    The first unit of the selection is pooled at its input, both branches of a residual block included; whatever the
    selection ends with, everything behind the pooling is rewritten. The classifier stays.

    Args:
        init: What a 1x1 conv starts with: "sum" of the taps (exact on constant maps, and the mean of what the conv
            answered but for the border), the "center" tap, or "fresh" weights.
        seed: For ``init="fresh"``; each conv has a stream of its own.
        at: Path of the module to pool before, for nets whose units are inside a branch; "" is the first unit selected.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", {"gap_fc": {}, "select": {"last": "25%"}})
        >>> model.layer4[0].conv2.kernel_size, model.layer2[0].conv2.kernel_size
        ((1, 1), (3, 3))
    """

    name: ClassVar[str] = "gap_fc"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"block", "spatial_conv", "strided_conv", "strided_pool"})

    init: Init = "sum"
    seed: int = 0
    at: str = ""

    @property
    def exact(self) -> bool:
        """Never: positions are lost."""
        return False

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """The convs behind the cut, one by one."""
        if site.via != "module":
            return Refused("computes with a kernel its owner holds; there is no conv to exchange")
        conv = recorded.model.get_submodule(site.path)
        if reason := why_not_point(conv) or not_alone(site, conv, recorded):
            return Refused(reason)
        conv = cast(nn.Conv2d, conv)
        start = {"sum": "the sum of its taps", "center": "its center tap", "fresh": "fresh weights"}[self.init]
        height, width = pair(conv.kernel_size)
        return Rewrite([Swap(site.path, self._point(site))], f"{height}x{width} conv -> 1x1, {start}")

    def decide_all(self, sites: Sequence[Site], recorded: Trace, units: Sequence[str]) -> list[tuple[Site, Decision]]:
        """Cut before the first unit, rewrite all that lies behind."""
        if not sites:
            return []
        first, path = _first(sites, units)
        try:
            cut = Cut.before(self.at or path, recorded)
        except SeveralTensorsError as error:
            return [(first, Refused(f"{error}{_nearest(path, recorded)}"))]
        except RefusedError as error:
            return [(first, Refused(str(error)))]
        if cut.pooled:
            return [(site, Unchanged("reads one position per channel already")) for site in sites]
        found = [(site, self._behind(site, recorded)) for site in cut.sites]
        refused = [(site, what) for site, what in found if isinstance(what, Refused)]
        if refused:
            site, why = refused[0]
            return [*refused, (first, Refused(f"'{site.path}' behind it {why.reason}"))]
        return _with_cut(first, cut, found, recorded)

    def _behind(self, site: Site, recorded: Trace) -> Decision:
        try:
            if site.kind == "strided_pool":
                return exchange(site, recorded, lambda _site, _pool: nn.Identity(), "removed")
            return self.decide(site, recorded)
        except RefusedError as error:
            return Refused(str(error))

    def _point(self, site: Site) -> Any:
        return partial(point_conv, init=self.init, seed=self.seed + zlib.crc32(site.path.encode()))


def _first(sites: Sequence[Site], units: Sequence[str]) -> tuple[Site, str]:
    """The first selected site, if possible of a unit, and the path to cut before."""
    of_units = [(site, unit) for site in sites if (unit := unit_of(site, units))]
    return of_units[0] if of_units else (sites[0], sites[0].owner)


def _with_cut(
    first: Site, cut: Cut, found: list[tuple[Site, Decision]], recorded: Trace
) -> list[tuple[Site, Decision]]:
    """The decisions with the pooling among them: at the site of the unit, or with the conv that is the unit."""
    edits: list[Edit] = [Prepend(cut.path, lambda _module: GlobalPool2d()), *_feature_info(cut, recorded)]
    words = f"global average pooling of {by(cut.shape)} before it"
    at = next((i for i, (site, _) in enumerate(found) if site.path == cut.path), None)
    if at is None:
        site = first if first.path == cut.path else replace(first, path=cut.path, kind="block", in_shape=cut.shape)
        return [(site, Rewrite(edits, words)), *found]
    site, what = found[at]
    swaps = what.edits if isinstance(what, Rewrite) else ()
    found[at] = (site, Rewrite([*swaps, *edits], f"{words}; {what.reason}"))
    return found


def _nearest(path: str, recorded: Trace) -> str:
    """The nearest module at or before ``path`` that could be pooled before instead, in words."""
    parts = path.split(".")
    outer = [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
    nodes = list(recorded.graph.nodes)
    start = next((i for i, node in enumerate(nodes) if node.op != "get_attr" and within(node, path)), 0)
    earlier = [str(n.target) for n in nodes[start::-1] if n.op == "call_module" and "<" not in str(n.target)]
    for other in dict.fromkeys([*outer, *earlier]):
        try:
            Cut.before(other, recorded)
        except RefusedError:
            continue
        return f"; one tensor alone passes before '{other}': set at: {other}"
    return ""


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
        """Whether there is one position only."""
        return self.shape[1:] == (1, 1)

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
        if node.op == "call_function" and name in (*POOL_CALLS, "conv2d"):
            path = f"{node.meta['owner']}:{name}:{node.meta['index']}"
        elif node.op != "call_module" or "<" in path:
            continue
        module = recorded.model.get_submodule(path) if ":" not in path else None
        if path in seen or not (path in known or name in POOL_CALLS or isinstance(module, POOLS)):
            continue
        seen.add(path)
        yield known.get(path) or _stride_one_pool(path, node, module)


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


def _feature_info(cut: Cut, recorded: Trace) -> list[Edit]:
    """Timm's feature_info tells how far stages are reduced: to one position behind the cut."""
    entries = getattr(recorded.model, "feature_info", None)
    if not isinstance(entries, list):
        return []
    first = cut.behind[0].meta["order"]
    last: dict[str, int] = {}
    for entry in entries:
        nodes = [n for n in recorded.graph.nodes if n.op != "get_attr" and within(n, str(entry["module"]))]
        last[str(entry["module"])] = max((n.meta["order"] for n in nodes), default=-1)

    def renew(entries: list[dict[str, object]]) -> list[dict[str, object]]:
        side = max(recorded.input_size[1:])
        return [{**e, "reduction": side} if last[str(e["module"])] >= first else e for e in entries]

    return [SetAttribute("", "feature_info", renew)]


class GlobalPool2d(nn.Module):
    """The mean over all positions, kept as a map of one.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, 1, 1)

    Example:
        >>> import torch
        >>> GlobalPool2d()(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 1, 1])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Average."""
        return x.mean((2, 3), keepdim=True)
