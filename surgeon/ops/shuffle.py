"""The ops ``spatial_shuffle``, ``patch_shuffle`` and ``channel_shuffle``: what does a conv need of where things are?

Fan, Xian, Losch and Schiele, Analyzing the Dependency of ConvNets on Spatial Information, GCPR 2020, arXiv:2002.01827,
section 3.1. The features a spatial conv reads are shuffled; in a residual block those of the skip are too, by a
permutation of their own. The paper does not say where on a projected skip; here it is behind the projection.
"""

from __future__ import annotations

import abc
import zlib
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from surgeon.edit import Prepend, untouchable
from surgeon.op import AbstractOp, Decision, Refused, Rewrite, call_of, on_skip, register_op
from surgeon.ops.drawing import Drawing, When, check_seed
from surgeon.ops.layout import channels_last
from surgeon.ops.shuffle_layers import ChannelShuffle2d, SpatialShuffle2d
from surgeon.settings import complain
from surgeon.site import Kind, Site
from surgeon.tracing import Trace


@dataclass(frozen=True)
class Shuffle(AbstractOp):
    """What the three shuffles share."""

    kinds: ClassVar[frozenset[Kind]] = frozenset({"spatial_conv", "strided_conv", "skip"})

    when: When = "both"
    skips: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed, self.name)

    @property
    def exact(self) -> bool:
        """In evaluation mode, where only training shuffles."""
        return self.when == "train"

    @abc.abstractmethod
    def layer(self, seed: int) -> nn.Module:
        """The layer that shuffles, with the seed of its site."""

    def takes(self, site: Site) -> bool:
        """Convs larger than 1x1, and skips unless they are left out."""
        if site.kind == "skip":
            return self.skips
        return site.kind in self.kinds and max(site.kernel_size or (1,)) > 1

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """Put the shuffle on the edge to the conv, or on that of the skip."""
        make = partial(self._make, self.seed + zlib.crc32(site.path.encode()))
        if site.kind == "skip":
            if len(site.out_shape) != 3 or channels_last(call_of(site, recorded), recorded):
                return Refused(f"adds features of shape {site.out_shape}, no maps (C, H, W)")
            edge = on_skip(site, recorded, make)
            return edge if isinstance(edge, Refused) else Rewrite([edge], f"{self.name} on the {site.type_name} skip")
        if site.via != "module":
            return Refused("is called as a function, so its input cannot be told from its owner's; make it a module")
        if reason := untouchable(recorded.model.get_submodule(site.path)):
            return Refused(reason)
        return Rewrite([Prepend(site.path, make)], f"{self.name} before {site.type_name}")

    def _make(self, seed: int, _module: nn.Module) -> nn.Module:
        return self.layer(seed)


@register_op
@dataclass(frozen=True)
class SpatialShuffle(Shuffle):
    """Shuffle all positions of each channel before spatial convs.

    Each channel has a permutation of its own, shared by the images of a batch and drawn anew in each forward pass, in
    evaluation too, from another stream.

    Args:
        when: "train", "eval" or "both": in which mode positions are shuffled (rows of the paper's Table 1).
        skips: Whether the features of skips inside the selection are shuffled too.
        seed: Of all draws; each site has a stream of its own.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", {"spatial_shuffle": {}, "select": {"last": 1}})
        >>> [change.path for change in surgeon.record(model).changes]
        ['layer4.0.conv1', 'layer4.0.conv2', 'layer4.0:add:0']
    """

    name: ClassVar[str] = "spatial_shuffle"

    def layer(self, seed: int) -> Drawing:
        """Over the whole map."""
        return SpatialShuffle2d(None, seed, self.when)


@register_op
@dataclass(frozen=True)
class PatchShuffle(Shuffle):
    """Shuffle positions within cells of ``patch`` x ``patch`` before spatial convs.

    Cells at the edge are smaller where the patch does not divide the map; a patch as large as the map is
    ``spatial_shuffle``. Select the first conv to shuffle the image itself.

    Args:
        patch: Side of a cell in pixels, at least 2.
        when: "train", "eval" or "both".
        skips: Whether the features of skips inside the selection are shuffled too.
        seed: Of all draws; each site has a stream of its own.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", {"patch_shuffle": {"patch": 4}, "select": {"path": "conv1.0"}})
        >>> print(model.conv1[0].surgeon_before)
        SpatialShuffle2d(patch=4, when='both')
    """

    name: ClassVar[str] = "patch_shuffle"

    patch: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        complain(
            [("patch", f"is {self.patch}; cells have at least 2 pixels a side")] if self.patch < 2 else [], self.name
        )

    def layer(self, seed: int) -> Drawing:
        """Within cells."""
        return SpatialShuffle2d(self.patch, seed, self.when)


@register_op
@dataclass(frozen=True)
class ChannelShuffle(Shuffle):
    """Shuffle the order of the channels before spatial convs, alike at all positions.

    Args:
        when: "train", "eval" or "both".
        skips: Whether the features of skips inside the selection are shuffled too.
        seed: Of all draws; each site has a stream of its own.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import surgeon
        >>> step = {"channel_shuffle": {"skips": False}, "select": {"last": 1}}
        >>> surgeon.plan(surgeon.create_model("test_resnet"), step).count("rewritten")
        2
    """

    name: ClassVar[str] = "channel_shuffle"

    def layer(self, seed: int) -> Drawing:
        """Over the channels."""
        return ChannelShuffle2d(seed, self.when)
