"""The op ``shift``: spatial convs become a shift of every input channel and a 1x1 conv.

Chen, Xie, Zhang and Pu, All You Need is a Few Shifts: Designing Efficient Convolutional Neural Networks for Image
Classification, CVPR 2019, arXiv:1903.05285. Modes: grouped shift (Wu et al., CVPR 2018), active shift (Jeon and Kim,
NeurIPS 2018) and sparse shift. Deviation: the papers design networks and train them from scratch; here convs of a
network you have are rewritten, started from their weights.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

from timm.layers import register_notrace_module
from torch import nn

from surgeon.derived import hows
from surgeon.edit import untouchable
from surgeon.op import AbstractOp, Decision, Refused, Unchanged, exchange, layer_of, register_op
from surgeon.ops.shift_conv import Init, ShiftConv2d, ShiftStdConv2d
from surgeon.ops.shift_fit import fit as fit
from surgeon.ops.shift_layer import Mode, SparseShift2d
from surgeon.settings import complain
from surgeon.site import Kind, Site
from surgeon.tracing import Trace


@register_op
@dataclass(frozen=True)
class SparseShift(AbstractOp):
    """Spatial conv -> one learnable offset per input channel + 1x1 conv; depthwise conv -> offset + factor.

    A stem that reads the image has three channels and so three taps left: leave it out (``select: {exclude: ...}``),
    as the paper's networks do. The rewritten network needs fine-tuning; a penalty on the offsets then decides how many
    channels move (``train: {shift: {penalty: l2, weight: 4e-4}}``).

    Args:
        mode: "sparse", moves by whole pixels and learns the offsets; "active", interpolates; "grouped", the taps are
            assigned to the channels in order and fixed.
        init: "energy", each input channel keeps its tap with the largest sum of squares; "fresh", taps assigned in
            order, weights drawn as for a new conv.
        seed: For ``init="fresh"``; each site has a stream of its own.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", {"shift": {}, "select": {"kind": "spatial_conv"}})
        >>> model.layer2[0].conv2
        ShiftConv2d(48, 48, mode='sparse', kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """

    name: ClassVar[str] = "shift"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"spatial_conv", "strided_conv"})

    mode: Mode = "sparse"
    init: Init = "energy"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.seed) >= 2**62:
            complain([("seed", f"is {self.seed}; it is less than 2**62")], self.name)

    @property
    def exact(self) -> bool:
        """Never: of each kernel one tap is left."""
        return False

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """Refuse with the mathematical reason, leave 1x1 convs, or rewrite."""
        owner = recorded.model.get_submodule(site.owner)
        if reason := untouchable(owner):
            return Refused(reason)
        conv = layer_of(site, owner, recorded)
        if hows(conv):
            return Refused("has surgery at its input or output already; put this step before that one")
        if reason := ShiftConv2d.why_not(conv):
            return Refused(reason)
        if site.kernel_size == (1, 1):
            return Unchanged("has one tap, so there is nothing to move")
        depthwise = site.groups == site.in_shape[0] == site.out_shape[0]
        return exchange(site, recorded, self._conv, f"{self.mode} shift + {'factor' if depthwise else '1x1 conv'}")

    def _conv(self, site: Site, conv: nn.Module) -> nn.Module:
        seed = self.seed + zlib.crc32(site.path.encode())
        return ShiftConv2d.from_conv2d(conv, self.mode, init=self.init, seed=seed)


for layer in (ShiftConv2d, ShiftStdConv2d, SparseShift2d):
    register_notrace_module(layer)  # they read sizes: leaves for timm's feature extraction
