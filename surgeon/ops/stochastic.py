"""The op ``stochastic``: in each forward pass some residual blocks run with other, random weights.

Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996, section 5 and Table 2: r weight
sets per block are drawn beforehand from its own initial distribution; each pass picks s stages, in each one block, and
one of its sets. A defence at inference, so by default training goes on as ever. A stage are the blocks of one parent.
A pass is one draw, for all images of its batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surgeon.derived import InPlace
from surgeon.edit import untouchable
from surgeon.errors import RefusedError
from surgeon.freezing import Attach
from surgeon.fresh import Whole, architecture, draw, whole
from surgeon.locating import sites_of
from surgeon.op import AbstractOp, Decision, Refused, Rewrite, register_op
from surgeon.ops.drawing import Drawing, When, check_seed, unreal
from surgeon.ops.remove import answered, outermost
from surgeon.settings import complain
from surgeon.site import Kind, Site
from surgeon.tracing import Trace

CHILD = "surgeon_sets"


class WeightSets(Drawing):
    """Random copies of a block, and which of them runs in its place, if any.

    Every block of a model computes the same choice from (seed, step) and picks its own part of it, so that no block
    needs to know of another.

    Args:
        copies: Of the block, with random weights.
        stages: Number of blocks of each stage.
        stage: Which stage the block is in.
        block: Which block of that stage it is.
        picked: Stages that are picked in each pass.
        seed: Of the choices; the same in every block of the model.
        when: In which mode weights are exchanged.
    """

    def __init__(
        self,
        copies: Sequence[nn.Module],
        stages: Sequence[int],
        stage: int,
        block: int,
        picked: int = 1,
        seed: int = 0,
        when: When = "eval",
    ) -> None:
        super().__init__(seed, when)
        self.copies = nn.ModuleList(copies)
        self.stages, self.stage, self.block, self.picked = tuple(stages), stage, block, picked

    def pick(self, x: Any) -> nn.Module | None:
        """The copy that runs in this pass; None for the block itself."""
        if not self.draws(x) or unreal(x):
            return None
        generator = self.generator()
        stages = torch.randperm(len(self.stages), generator=generator)[: self.picked].tolist()
        drawn = torch.rand(len(self.stages), 2, generator=generator, dtype=torch.float64)
        block = int(drawn[self.stage, 0] * self.stages[self.stage])
        if self.stage not in stages or block != self.block:
            return None
        return self.copies[int(drawn[self.stage, 1] * len(self.copies))]

    def extra_repr(self) -> str:
        """Show its place."""
        return f"stage={self.stage}, block={self.block}, picked={self.picked}, {super().extra_repr()}"


@register_op
@dataclass(frozen=True)
class Stochastic(AbstractOp):
    """Residual blocks with an identity skip run with random weights now and then.

    Args:
        r: Weight sets of each block.
        s: Stages in which a block is exchanged in each forward pass.
        when: "eval", "train" or "both".
        seed: Of weights and choices.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("blocknet_42", {"stochastic": {"r": 2, "s": 1}}).eval()
        >>> x = torch.rand(1, 3, 32, 32)
        >>> model.blocks[0][0].surgeon_sets.stages, len({float(model(x).detach().sum()) for _ in range(9)}) > 1
        ((4, 4), True)
    """

    name: ClassVar[str] = "stochastic"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"block"})

    r: int = 4
    s: int = 1
    when: When = "eval"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        small = [(name, f"is {value}; it is at least 1") for name, value in (("r", self.r), ("s", self.s)) if value < 1]
        complain(small, self.name)
        check_seed(self.seed, self.name)

    @property
    def exact(self) -> bool:
        """In evaluation mode, where only training exchanges."""
        return self.when == "train"

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """Of one block alone."""
        return self.decide_all([site], recorded, ())[0][1]

    def decide_all(self, sites: Sequence[Site], recorded: Trace, units: Sequence[str]) -> list[tuple[Site, Decision]]:
        """Group the blocks to stages; each knows its place among all."""
        projected = {s.owner for s in sites_of(recorded) if s.kind == "skip" and s.type_name == "projection"}
        reasons = {site.path: _why_not(site, recorded, projected) for site in sites}
        free = [path for path, reason in reasons.items() if reason is None]
        within = {path: around for path in free if (around := outermost(path, free))}
        reasons |= {path: f"lies in '{around}', which is exchanged as a whole" for path, around in within.items()}
        stages: dict[str, list[str]] = {}
        for site in sites:
            if reasons[site.path] is None:
                stages.setdefault(site.path.rpartition(".")[0], []).append(site.path)
        if stages and self.s > len(stages):
            raise RefusedError(
                f"op 'stochastic' exchanges in s={self.s} stages, but the selection has {len(stages)} of blocks with "
                f"an identity skip ({', '.join(stages) or 'none'}); lower s or widen the selection"
            )
        build = lru_cache(maxsize=self.r)(whole)  # each weight set is one model, built once for all blocks
        return [(site, self._decision(site, reasons[site.path], stages, recorded, build)) for site in sites]

    def _decision(
        self, site: Site, reason: str | None, stages: dict[str, list[str]], recorded: Trace, build: Whole
    ) -> Decision:
        if reason is not None:
            return Refused(reason)
        parent = site.path.rpartition(".")[0]
        place = (list(stages).index(parent), stages[parent].index(site.path))
        sizes = tuple(len(blocks) for blocks in stages.values())
        make = partial(self._sets, architecture(recorded.model), site.path, sizes, place, build)
        words = f"{self.r} random weight sets; stage {place[0] + 1} of {len(stages)}, {self.s} exchanged in each pass"
        return Rewrite([Attach(site.path, InPlace(CHILD), make)], words)

    def _sets(
        self, built: str, path: str, sizes: tuple[int, ...], place: tuple[int, int], build: Whole, block: nn.Module
    ) -> nn.Module:
        drawn = [draw(block, built, path, (self.seed * 1000 + i) % 2**62, build) for i in range(self.r)]
        copies = [_random_copy(block, values) for values in drawn]
        return WeightSets(copies, sizes, *place, self.s, self.seed, self.when)


def _random_copy(block: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """A copy of ``block`` with these values, kept as buffers: nothing trains them."""
    own = {id(t): torch.empty_like(t).copy_(t).detach() for t in [*block.parameters(), *block.buffers()]}
    kept = {id(t): t for m in block.modules() for t in _plain_tensors(m.__dict__.values())}  # as they are: not weights
    twin = copy.deepcopy(block, {**kept, **own})
    modes = {module: module.training for module in twin.modules()}
    twin.train()  # some keep what evaluation computed from the old weights (LeViT's biases) until they are trained
    for module, mode in modes.items():
        module.training = mode
    for name, module in twin.named_modules():
        for key in [key for key, p in module._parameters.items() if p is not None]:
            tensor = module._parameters.pop(key)
            module.register_buffer(key, tensor)
        for key, buffer in module._buffers.items():
            value = values.get(f"{name}.{key}" if name else key)
            if value is not None and buffer is not None:
                buffer.copy_(value)
    return twin


def _plain_tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among ``values`` that are neither parameters nor buffers, in plain dicts too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) is dict:
            yield from (tensor for tensor in value.values() if isinstance(tensor, Tensor))


def _why_not(site: Site, recorded: Trace, projected: set[str]) -> str | None:
    if site.in_shape != answered(site, recorded) or site.path in projected:
        return "has no identity skip, so without its own weights nothing of the image would pass"
    block = recorded.model.get_submodule(site.path)
    if site.calls > 1:
        return "runs several times in one pass, so its choice would be made several times"
    found = ((name, untouchable(module)) for name, module in block.named_modules())
    return next((f"holds '{name}', which {reason}" for name, reason in found if reason), None)
