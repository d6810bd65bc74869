"""The op ``aps``: which positions a strided layer keeps is decided by the features, not by where the image starts.

Chaman and Dokmanic, Truly shift-invariant convolutional neural networks, CVPR 2021, arXiv:2011.14214. Written from the
paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import nn

from surgeon.calls import takes_apart
from surgeon.derived import why_not_derived
from surgeon.edit import Append, Edit, Prepend
from surgeon.locating import sites_of
from surgeon.op import (
    AbstractOp,
    Decision,
    Refused,
    Rewrite,
    Unchanged,
    call_of,
    exchange,
    layer_of,
    register_op,
    why_not_exchanged,
)
from surgeon.ops.circular import around_conv, pools_around, why_not_around, why_not_in_front
from surgeon.ops.dense import (
    OnChannelsLast,
    conv_windows_at,
    pads_by_size,
    unstride,
    why_not_dense_conv,
    why_not_dense_pool,
)
from surgeon.ops.phases import STRIDED, Groups
from surgeon.ops.polyphase import APSPool2d, Choice, Order, Polyphase2d
from surgeon.ops.spd_windows import pad_pixels
from surgeon.site import Kind, Site
from surgeon.table import by
from surgeon.tracing import Trace


@register_op
@dataclass(frozen=True)
class APS(AbstractOp):
    """Strided conv or pool -> the same at stride 1, then of its s*s components the one of the largest norm.

    Layers whose outputs meet, such as the main branch and the shortcut of a block, take the component that the one
    which runs first has chosen; they are rewritten together or not at all.

    Args:
        norm: By which components are compared, over all channels and positions of an image: 1, 2 or "inf".
        padding: "keep", or "circular": every conv and pool selected pads around instead of with zeros. Then the logits
            of a convolutional model with global average pooling are the same for every circular shift of an image whose
            height and width the model's total stride divides. With "keep" that holds away from the borders only.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import torch, surgeon
        >>> model = surgeon.create_model("test_resnet", {"aps": {"padding": "circular"}}).double().eval()
        >>> x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
        >>> with torch.no_grad():
        ...     a, b = model(x), model(x.roll((3, -5), (2, 3)))
        >>> bool((a - b).abs().max() < 1e-10)
        True

    Source:
        The paper's adaptive polyphase sampling, with its rule that a shortcut takes the indices of its block.
        Deviations: any stride and size, any branches that meet, and the selection stands directly behind the conv, so
        that norm and activation cost what they did.
    """

    name: ClassVar[str] = "aps"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"strided_conv", "strided_pool", "spatial_conv"})

    norm: Order = 2
    padding: Literal["keep", "circular"] = "keep"

    @property
    def exact(self) -> bool:
        """Another component may be taken than the first."""
        return False

    def takes(self, site: Site) -> bool:
        """Strided convs and pools; with circular padding every spatial conv."""
        return site.kind in STRIDED or (site.kind == "spatial_conv" and self.padding == "circular")

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """What to do if ``site`` alone were selected."""
        return self.decide_all([site], recorded, ())[0][1]

    def decide_all(self, sites: Sequence[Site], recorded: Trace, units: Sequence[str]) -> list[tuple[Site, Decision]]:
        """Decide for layers whose outputs meet together."""
        groups = Groups(recorded, sites_of(recorded))
        held = {site.path: self._hindrance(site, recorded, groups) for site in sites}
        circles: dict[str, _Circle] = {}
        decided: list[tuple[Site, Decision]] = []
        for site in sites:
            decision: Decision | None = held[site.path]
            if decision is None and site.kind == "spatial_conv":
                decision = Rewrite(around_conv(site, recorded), "pads around")
            elif decision is None:
                members = groups.members(site.path)
                decision = _others(site.path, members, held)
                circle = circles.setdefault(members[0], _Circle(members))
                decision = decision or self._rewrite(site, recorded, circle)
            decided.append((site, decision))
        return self._with_pools_of_stride_1(decided, recorded)

    def _hindrance(self, site: Site, recorded: Trace, groups: Groups) -> Refused | Unchanged | None:
        """Why the site by itself cannot be rewritten, or need not."""
        owner = recorded.model.get_submodule(site.owner)
        if site.via == "slice" and takes_apart(call_of(site, recorded)):
            return Unchanged("with its siblings it takes the map apart into blocks: nothing is dropped")
        if site.kind == "spatial_conv":
            return why_not_around(site, owner)
        if met := groups.at_odds.get(site.path):
            return Refused(f"strides {site.stride}, and its output meets a map that {met}, so no choice fits both")
        if site.calls > 1 and len(groups.members(site.path)) > 1:
            return Refused("runs several times, so a layer that must follow its choice could not tell which")
        if site.kind == "strided_conv":
            reason = self._why_not_conv(site, owner)
        else:
            reason = why_not_exchanged(site, owner)
            reason = reason or why_not_dense_pool(layer_of(site, owner, recorded))
        return Refused(reason) if reason else None

    def _why_not_conv(self, site: Site, conv: nn.Module) -> str | None:
        if site.via != "module":
            return "is called as a function, whose stride is fixed in its owner's code; make it a module"
        if (reason := why_not_dense_conv(conv)) or not isinstance(conv, nn.Conv2d):
            return reason
        if self.padding == "circular" and pads_by_size(conv):
            return "pads with zeros by input size (TensorFlow's same) and cannot pad around; use padding='keep'"
        if Append.name in conv._modules:
            return "has surgery at its output already"
        pads = self.padding == "circular" and any(w.reach for w in conv_windows_at(conv))
        return why_not_in_front(conv) if pads else why_not_derived(type(conv))

    def _rewrite(self, site: Site, recorded: Trace, circle: _Circle) -> Decision:
        select = partial(self._select, site.stride or (1, 1), circle, site.path)
        follows = f", as '{circle.members[0]}' chooses" if circle.follows(site.path) else ""
        into = f"component {by(site.stride)} of the largest norm{follows}"
        if site.kind == "strided_pool":
            return exchange(site, recorded, partial(self._pool, select), f"pool of stride 1, {into}")
        conv = recorded.model.get_submodule(site.path)
        edits: list[Edit] = around_conv(site, recorded) if self.padding == "circular" else []
        if site.kernel_size == (1, 1) and pad_pixels(conv) == (0, 0) and follows:  # type: ignore[arg-type]
            edits = [Prepend(site.path, select)]  # the same, for less
        else:
            edits.append(Append(site.path, select))
        return Rewrite([*edits, unstride(site.path)], f"conv of stride 1, {into}")

    def _select(self, stride: tuple[int, int], circle: _Circle, path: str, _module: nn.Module) -> Polyphase2d:
        return Polyphase2d(stride, self.norm, circle.choice(path), not circle.follows(path))

    def _pool(self, select: Callable[[nn.Module], Polyphase2d], _site: Site, pool: nn.Module) -> nn.Module:
        layer = APSPool2d(pool, select(pool), self.padding == "circular")
        found = getattr(pool, "slice", None)
        return OnChannelsLast(layer) if found is not None and found.axes == (1, 2) else layer

    def _with_pools_of_stride_1(
        self, decided: list[tuple[Site, Decision]], recorded: Trace
    ) -> list[tuple[Site, Decision]]:
        """Pools that do not stride are no sites, but pad: the first site rewritten brings them along."""
        edits = pools_around(recorded) if self.padding == "circular" else []
        for i, (site, what) in enumerate(decided):
            if edits and isinstance(what, Rewrite):
                decided[i] = (site, Rewrite([*what.edits, *edits], f"{what.reason}; pools of stride 1 pad around"))
                break
        return decided


class _Circle:
    """Gives the layers of one group the same choice; asked again by one it has answered, it begins anew.

    The edits are performed twice, on the skeleton and on the model, and each must get a choice of its own.
    """

    def __init__(self, members: Sequence[str]) -> None:
        self.members = list(members)
        self.asked: set[str] = set()
        self.present: Choice | None = None

    def follows(self, path: str) -> bool:
        """Whether another layer runs first."""
        return path != self.members[0]

    def choice(self, path: str) -> Choice | None:
        """The choice of the group; None where there is only one member."""
        if path in self.asked or not self.asked:
            self.asked, self.present = set(), Choice(len(self.members) - 1)
        self.asked.add(path)
        return self.present if len(self.members) > 1 else None


def _others(path: str, members: Sequence[str], held: dict[str, Refused | Unchanged | None]) -> Refused | None:
    """Why the others of a group keep one of it from being rewritten."""
    for other in members:
        if other != path and other not in held:
            return Refused(f"must take the positions '{other}' takes, whose output it meets; select both")
        if other != path and (what := held[other]) is not None:
            return Refused(
                f"must take the positions '{other}' takes, whose output meets its own, and that one {what.reason}"
            )
    return None
