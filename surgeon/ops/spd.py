"""The op ``spd``: strided convs and pools become space-to-depth and a stride-1 conv, as the same function.

Sunkara and Luo, No More Strided Convolutions or Pooling: A New CNN Building Block for Low-Resolution Images and Small
Objects, ECML PKDD 2022, arXiv:2208.03641. Deviations: the old weights are placed exactly instead of drawn anew, the
channel order is channel-major, and pools keep their function where the paper drops them (``pool="remove"`` drops them).
The order "conv-spd" is the authors' released layout.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from surgeon.calls import takes_apart
from surgeon.locating import pair
from surgeon.op import (
    AbstractOp,
    Decision,
    Refused,
    Unchanged,
    call_of,
    exchange,
    layer_of,
    register_op,
    why_not_exchanged,
)
from surgeon.ops.conv_spd import conv_spd
from surgeon.ops.space_to_depth import Kernel
from surgeon.ops.spd_conv import Init, SPDConv2d, SPDStdConv2d
from surgeon.ops.spd_pool import SPDAvgPool2d, SPDMaxPool2d
from surgeon.settings import complain
from surgeon.site import Kind, Site
from surgeon.table import by
from surgeon.tracing import Trace


@register_op
@dataclass(frozen=True)
class SPD(AbstractOp):
    """Strided conv or pool -> space-to-depth + stride-1 conv.

    Args:
        order: "spd-conv", the paper's text: every pixel moves into channels, then a conv reads them. "conv-spd", the
            authors' released layout: the conv runs at the high resolution, then space-to-depth, and the layers that
            read the result are widened with zeros.
        kernel: Of the stride-1 conv, in blocks: "same" as the old one, "minimal", or a number.
        init: "exact", the old weights placed so that nothing changes; "fresh", drawn as a new conv.
        pool: What becomes of strided pools: "spd", "keep", or "remove" (an identity: later maps are larger).
        pool_conv: The conv of a rewritten pool: "depthwise" or "full" (over all channels, same function at first).
        before: Where "conv-spd" puts space-to-depth: before the "consumer" (after norm and activation, as in the
            released YOLOv5-SPD), or before the "norm", which is widened too (as in the released ResNets; then training
            starts as the same function as well).
        seed: For ``init="fresh"``; each site has a stream of its own.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> SPD(kernel="minimal").exact, SPD(init="fresh").exact
        (True, False)
    """

    name: ClassVar[str] = "spd"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"strided_conv", "strided_pool"})

    order: Literal["spd-conv", "conv-spd"] = "spd-conv"
    kernel: Kernel = "same"
    init: Init = "exact"
    pool: Literal["spd", "keep", "remove"] = "spd"
    pool_conv: Literal["depthwise", "full"] = "depthwise"
    before: Literal["consumer", "norm"] = "consumer"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if isinstance(self.kernel, int) and self.kernel < 1:
            problems.append(("kernel", f"is {self.kernel}; it is 'same', 'minimal' or a positive number"))
        if abs(self.seed) >= 2**62:
            problems.append(("seed", f"is {self.seed}; it is less than 2**62"))
        idle = {"conv-spd": ("kernel", "init"), "spd-conv": ("before",)}[self.order]
        given = self.settings()
        problems += [
            (name, f"is {given[name]!r}, but order {self.order!r} has no use for it") for name in idle if name in given
        ]
        complain(problems, self.name)

    @property
    def exact(self) -> bool:
        """Unless new weights are drawn or pools removed."""
        return self.init == "exact" and self.pool != "remove"

    @property
    def one_at_a_time(self) -> bool:
        """In the order "conv-spd" a rewrite widens what the next one sees."""
        return self.order == "conv-spd"

    def takes(self, site: Site) -> bool:
        """Strided convs, and strided pools unless they are kept."""
        return site.kind in self.kinds and not (site.kind == "strided_pool" and self.pool == "keep")

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """Refuse with the mathematical reason, leave what is the same already, or rewrite."""
        owner = recorded.model.get_submodule(site.owner)
        if reason := why_not_exchanged(site, owner):
            return Refused(reason)
        layer = layer_of(site, owner, recorded)
        if site.via == "slice" and takes_apart(call_of(site, recorded)):
            return Unchanged("with its siblings it takes the map apart into blocks: space-to-depth already")
        if site.kind == "strided_pool" and self.pool == "remove":
            return exchange(site, recorded, lambda _site, _pool: nn.Identity(), "removed")
        if site.kind == "strided_pool":
            reason = _why_not_pool(layer)
            return (
                Refused(reason)
                if reason
                else exchange(site, recorded, partial(self._pool, _widths(site, recorded)), _into(layer))
            )
        if getattr(layer, "weight", None) is None:
            return Refused("computes its kernel from the image, so there is no weight to place")
        if SPDConv2d.is_patchify(layer):
            return Unchanged("kernel = stride without padding is space-to-depth + 1x1 conv already")
        if reason := SPDConv2d.why_not(layer):
            return Refused(reason)
        if self.order == "spd-conv" and (reason := self._why_kernel_too_small(cast(nn.Conv2d, layer))):
            return Refused(reason)
        if self.order == "conv-spd":
            return conv_spd(site, cast(nn.Conv2d, layer), recorded, self.before)
        return exchange(site, recorded, self._conv, f"space-to-depth({by(site.stride)}) + conv")

    def _why_kernel_too_small(self, conv: nn.Conv2d) -> str | None:
        if isinstance(self.kernel, str) or self.init == "fresh":
            return None
        least = max(SPDConv2d.minimal_kernel(conv))
        if self.kernel >= least:
            return None
        return f"its taps lie in {least} blocks, more than kernel={self.kernel}; use kernel={least} or init='fresh'"

    def _conv(self, site: Site, conv: nn.Module) -> nn.Module:
        with torch.random.fork_rng(devices=[], enabled=self.init == "fresh"):
            if self.init == "fresh":
                torch.manual_seed(self.seed + zlib.crc32(site.path.encode()))
            return SPDConv2d.from_conv2d(conv, kernel=self.kernel, init=self.init)

    def _pool(self, widths: list[int], site: Site, pool: nn.Module) -> nn.Module:
        """``widths`` is empty for a functional pool, of which each call is a site."""
        if len(widths) > 1:
            return ByWidth({width: self._pool([width], site, pool) for width in widths})
        found = getattr(pool, "slice", None)
        last = found is not None and found.axes == (1, 2)
        channels = widths[0] if widths else site.in_shape[2 if last else 0]
        kind = SPDMaxPool2d if isinstance(pool, nn.MaxPool2d) else SPDAvgPool2d
        layer = kind.from_pool(pool, channels, full=self.pool_conv == "full", dtype=torch.float64)  # then as its model
        return ChannelsLast(layer) if last else layer


def _into(pool: nn.Module) -> str:
    if pair(pool.kernel_size) == (1, 1):
        return "space-to-depth + 1x1 conv"
    return "stride-1 max + space-to-depth + 1x1 conv" if isinstance(pool, nn.MaxPool2d) else "space-to-depth + conv"


def _why_not_pool(pool: nn.Module) -> str | None:
    found = getattr(pool, "slice", None)
    if found is not None and (found.start != (0, 0) or not found.whole):
        return f"starts at position {found.start} or cuts besides, as no pool does; slice twice in the code: cut, skip"
    kind = SPDMaxPool2d if isinstance(pool, nn.MaxPool2d) else SPDAvgPool2d
    return kind.why_not(pool)


def _widths(site: Site, recorded: Trace) -> list[int]:
    """The numbers of channels a pool is called on: it has no width, the layer that replaces it has one."""
    nodes = [n for n in recorded.graph.nodes if n.op == "call_module" and n.target == site.path]
    return sorted({n.all_input_nodes[0].meta["val"].shape[1] for n in nodes})


class ByWidth(nn.Module):
    """A layer for each number of channels, in the place of one pool that is called on several.

    Shape:
        - Input: (N, C, H, W), C one of the widths
        - Output: as the layer's of that width
    """

    def __init__(self, layers: dict[int, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(width): layer for width, layer in layers.items()})

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer of the input's width."""
        y: Tensor = self.layers[str(x.shape[1])](x)
        return y

    def lower(self) -> nn.Module | None:
        """The same around the lowered layers."""
        lowered = {int(width): layer.lower() for width, layer in self.layers.items()}  # type: ignore[operator]
        return None if None in lowered.values() else ByWidth(lowered)


class ChannelsLast(nn.Module):
    """Runs a layer on features the model holds as (N, H, W, C).

    Shape:
        - Input: (N, H, W, C)
        - Output: as the layer's, channels last
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Permute, run, permute back."""
        y: Tensor = self.layer(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)

    def lower(self) -> nn.Module | None:
        """The same around the lowered layer."""
        lowered = self.layer.lower()  # type: ignore[operator]
        return None if lowered is None else ChannelsLast(lowered)


for layer in (SPDConv2d, SPDStdConv2d, SPDAvgPool2d, SPDMaxPool2d, ByWidth):
    register_notrace_module(layer)  # their padding depends on the size: leaves for timm's feature extraction
