"""The op ``gap_fc``: global average pooling before the first selected unit; from there on no spatial information.

Fan, Xian, Losch and Schiele, Analyzing the Dependency of ConvNets on Spatial Information, GCPR 2020, arXiv:2002.01827,
section 3.2 and Table 2 ("GAP+FC"). Behind the pooling every conv is a fully connected layer: a 1x1 conv with the
channels it had. The paper trains from scratch; here the new weights start from the old ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

from timm.layers import BlurPool2d
from timm.models.vgg import ConvMlp
from torch import Tensor, nn

from surgeon.edit import Edit, Prepend, SetAttribute, Swap
from surgeon.errors import RefusedError
from surgeon.locating import pair
from surgeon.op import (
    AbstractOp,
    Decision,
    Refused,
    Rewrite,
    Unchanged,
    exchange,
    not_alone,
    register_op,
    why_not_exchanged,
)
from surgeon.ops.cut import Cut, SeveralTensorsError
from surgeon.ops.drawing import Drawing, check_seed
from surgeon.ops.gap import Tap2d
from surgeon.ops.point_conv import Init, point_conv, why_not_point
from surgeon.ops.remove import Removed
from surgeon.recorder import of_surgery
from surgeon.site import Kind, Site
from surgeon.table import by
from surgeon.tracing import Trace, within
from surgeon.units import unit_of


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed, self.name)

    @property
    def exact(self) -> bool:
        """Never: positions are lost."""
        return False

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """The convs behind the cut, one by one."""
        if site.via != "module":
            return Refused("computes with a kernel its owner holds; there is no conv to exchange")
        conv = recorded.model.get_submodule(site.path)
        if reason := why_not_exchanged(site, conv) or why_not_point(conv) or not_alone(site, conv, recorded):
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
            return [(first, Refused(f"{error}{_nearest(self.at or path, recorded)}"))]
        except RefusedError as error:
            return [(first, Refused(str(error)))]
        if cut.pooled:
            return [(site, Unchanged("reads one position per channel already")) for site in sites]
        if layer := _of_an_earlier_step(cut, recorded):
            return [(first, Refused(f"{layer} behind it is of an earlier step; put this step before that one"))]
        found = [(site, self._behind(site, recorded)) for site in cut.sites]
        refused = [(site, what) for site, what in found if isinstance(what, Refused)]
        if refused:
            site, why = refused[0]
            return [*refused, (first, Refused(f"'{site.path}' behind it {why.reason}"))]
        return _with_cut(first, cut, found, recorded)

    def _behind(self, site: Site, recorded: Trace) -> Decision:
        try:
            if site.type_name == BlurPool2d.__name__:
                return Rewrite([Swap(site.path, lambda _pool: nn.Identity())], "blur removed")
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
    edits += [SetAttribute(path, "input_kernel_size", _one) for path in _stretching(cut, recorded)]
    words = f"global average pooling of {by(cut.shape)} before it"
    at = next((i for i, (site, _) in enumerate(found) if site.path == cut.path), None)
    if at is None:
        site = first if first.path == cut.path else replace(first, path=cut.path, kind="block", in_shape=cut.shape)
        return [(site, Rewrite(edits, words)), *found]
    site, what = found[at]
    swaps = what.edits if isinstance(what, Rewrite) else ()
    found[at] = (site, Rewrite([*swaps, *edits], f"{words}; {what.reason}"))
    return found


def _of_an_earlier_step(cut: Cut, recorded: Trace) -> str | None:
    """A layer behind the cut that an op has built, and that would see more than one position."""
    paths = dict.fromkeys(path for node in cut.behind for path in (str(node.target), node.meta.get("owner", "")))
    layers = {path: module for path in paths if (module := _submodule(recorded.model, path)) is not None}
    return next((f"'{path}' ({type(layer).__name__})" for path, layer in layers.items() if _sees_more(layer)), None)


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _sees_more(layer: nn.Module) -> bool:
    one = isinstance(layer, (GlobalPool2d, Tap2d, Drawing, Removed))
    return of_surgery(layer) and not one


def _stretching(cut: Cut, recorded: Trace) -> list[str]:
    """Heads (VGG's) that stretch a map to the kernel of their first conv, which is 1x1 now."""
    owners = dict.fromkeys(str(node.meta.get("owner", "")) for node in cut.behind)
    return [path for path in owners if isinstance(recorded.model.get_submodule(path), ConvMlp)]


def _one(_old: Any) -> int:
    return 1


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


def _feature_info(cut: Cut, recorded: Trace) -> list[Edit]:
    """Timm's feature_info tells how far stages are reduced: to one position behind the cut."""
    entries = getattr(recorded.model, "feature_info", None)
    if not isinstance(entries, list):
        return []
    first = cut.behind[0].meta["order"]
    last: dict[str, int] = {}
    for entry in entries:
        nodes = [n for n in recorded.graph.nodes if n.op.startswith("call_") and within(n, str(entry["module"]))]
        last[str(entry["module"])] = max((n.meta["order"] for n in nodes if entry["module"]), default=-1)

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
