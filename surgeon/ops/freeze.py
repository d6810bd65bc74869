"""The op ``freeze``: a part of the model stays as it is, or as it would start, whatever is trained.

Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996, ask which layers need training at
all; running statistics are fixed too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from surgeon.derived import Frozen, hows
from surgeon.errors import RefusedError
from surgeon.freezing import Freeze as Fix
from surgeon.fresh import architecture, draw
from surgeon.op import AbstractOp, Decision, Refused, Rewrite, Unchanged, register_op
from surgeon.ops.drawing import check_seed
from surgeon.site import Kind, Site
from surgeon.tracing import Trace


@register_op
@dataclass(frozen=True)
class Freeze(AbstractOp):
    """Fix blocks and convs: no gradients, evaluation mode for good, so that running statistics stay too.

    Args:
        at: "current" weights, or those of a fresh "init"ialisation of the same architecture.
        seed: Of the fresh weights.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", {"freeze": {}, "select": {"first": 2}}).train()
        >>> model.layer1[0].training, model.layer3[0].training, model.layer1[0].conv1.weight.requires_grad
        (False, True, False)
    """

    name: ClassVar[str] = "freeze"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"block", "spatial_conv", "strided_conv"})

    at: Literal["current", "init"] = "current"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed, self.name)

    @property
    def exact(self) -> bool:
        """Where the weights stay."""
        return self.at == "current"

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """Fix the module."""
        if site.via != "module":
            return Refused("is no module of its own; freeze its owner")
        part = recorded.model.get_submodule(site.path)
        if around := _frozen_around(recorded.model, site.path):
            return Unchanged(f"frozen with '{around}'")
        if not any(True for _ in part.parameters()):
            return Unchanged("has no parameters")
        built = architecture(recorded.model)
        make = partial(_fresh, built, site.path, self.seed) if self.at == "init" else _as_it_is
        return Rewrite([Fix(site.path, make)], f"frozen at {'its current' if self.exact else 'fresh initial'} weights")

    def decide_all(self, sites: Sequence[Site], recorded: Trace, units: Sequence[str]) -> list[tuple[Site, Decision]]:
        """What lies in a block that is frozen is frozen with it."""
        outer = [site.path for site in sites if site.kind == "block"]

        def decision(site: Site) -> Decision:
            around = next((path for path in outer if site.path.startswith(f"{path}.")), None)
            if around is not None:
                return Unchanged(f"frozen with '{around}'")
            try:
                return self.decide(site, recorded)
            except RefusedError as error:
                return Refused(str(error))

        return [(site, decision(site)) for site in sites]


def _frozen_around(model: nn.Module, path: str) -> str | None:
    """The module around ``path`` that an earlier step froze."""
    parts = path.split(".")
    outer = (".".join(parts[:i]) for i in range(1, len(parts)))
    return next((o for o in outer if any(isinstance(h, Frozen) for h in hows(model.get_submodule(o)))), None)


def _as_it_is(_part: nn.Module) -> dict[str, Tensor]:
    return {}


def _fresh(built: str, path: str, seed: int, part: nn.Module) -> dict[str, Tensor]:
    return draw(part, built, path, seed)
