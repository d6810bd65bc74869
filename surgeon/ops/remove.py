"""The op ``remove``: a residual block becomes the identity.

Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996, and Veit et al., Residual Networks
Behave Like Ensembles of Relatively Shallow Networks, NeurIPS 2016: what a block adds can be left out where its shapes
allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from surgeon.edit import Swap, untouchable
from surgeon.op import AbstractOp, Decision, Refused, Rewrite, Unchanged, register_op, why_not_exchanged
from surgeon.site import Kind, Site
from surgeon.table import by
from surgeon.tracing import Trace


class Removed(nn.Module):
    """Passes on what a block was given.

    Example:
        >>> Removed()(3, "whatever else the block took")
        3
    """

    def forward(self, x: Any, *_args: Any, **_kwargs: Any) -> Any:
        """The first argument."""
        return x


@register_op
@dataclass(frozen=True)
class Remove(AbstractOp):
    """Residual block -> identity, where its output is shaped as its input.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_vit", {"remove": {}, "select": {"unit": [2]}})
        >>> model.blocks[2]
        Removed()
    """

    name: ClassVar[str] = "remove"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"block"})

    @property
    def exact(self) -> bool:
        """Never: what the block added is gone."""
        return False

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """Refuse where the shapes differ."""
        block = recorded.model.get_submodule(site.path)
        if site.in_shape != (answer := answered(site, recorded)):
            return Refused(f"takes {by(site.in_shape)} and answers {by(answer)}: no identity does")
        if reason := why_not_exchanged(site, block) or _inner(block):
            return Refused(reason)
        return Rewrite([Swap(site.path, lambda _block: Removed())], f"{site.type_name} -> identity")

    def decide_all(self, sites: Sequence[Site], recorded: Trace, units: Sequence[str]) -> list[tuple[Site, Decision]]:
        """A block in a block that goes, goes with it."""
        found = super().decide_all(sites, recorded, units)
        gone = [site.path for site, what in found if isinstance(what, Rewrite)]
        around = {site.path: outermost(site.path, gone) for site in sites}
        return [(s, Unchanged(f"goes with '{o}'") if (o := around[s.path]) else what) for s, what in found]


def outermost(path: str, others: Sequence[str]) -> str | None:
    """The first of ``others`` inside of which ``path`` lies."""
    return next((other for other in others if path.startswith(f"{other}.")), None)


def answered(site: Site, recorded: Trace) -> tuple[int, ...]:
    """The shape a block answers, which its last addition may have in another form (positions in a row)."""
    nodes = [node for node in recorded.graph.nodes if site.path in node.meta.get("returned_by", ())]
    return tuple(nodes[-1].meta["val"].shape[1:]) if nodes else site.out_shape


def _inner(block: nn.Module) -> str | None:
    found = ((name, untouchable(module)) for name, module in block.named_modules())
    return next((f"holds '{name}', which {reason}" for name, reason in found if reason), None)
