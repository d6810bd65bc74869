"""Treatments: what a unit's values are exchanged for, and how far these are from the trained ones.

Zhang, Bengio and Singer (JMLR 2022, arXiv:1902.01996), section 2: re-initialisation sets a unit back to its values at a
kept checkpoint, re-randomisation draws them anew from the distribution they started with. Apart from measuring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from analysis.parts import Unit
from analysis.perturb import Places
from analysis.readings import FINAL
from analysis.states import initial_state, read_states
from surgeon.errors import AnalysisError
from surgeon.host import Size, unwrap
from surgeon.redrawing import FreshValues, fresh_model_values
from surgeon.skeleton import BUILDER

BatchNorm = Literal["keep", "reset", "recalibrate"]
RERAND, INITIAL = "rerand", "0"
SAME, ALMOST = 1e-9, 1e-2  # relative change of a block's input that passes for none, and for little
MANY, TWICE = 64, 2.0  # values and factor that tell one distribution from another
DISTANCES = ("rms_distance", "linf_distance", "rms_from_initial", "linf_from_initial")
Tensors = Mapping[str, Tensor]


class Treatments:
    """The values of each treatment, for any part of a model.

    Args:
        model: Trained; it is only read.
        initial: The state training began with, if kept (as of ``analysis.states.read_states``).
        checkpoints: More kept states, likewise; one of label "0" is the initial one.
        draws: Fresh draws of re-randomisation; 0 leaves it out.
        batchnorm: What becomes of running statistics: "keep" the trained ones, "reset" them to those of the state or
            draw, or "recalibrate" them.
        seed: Of the draws.

    Attributes:
        names: In order: "rerand", then the labels of the states.
        draws: Of re-randomisation.
        initial: The initial state, or None.
        missing: Parameters that nothing says how to draw: name and reason.
        notes: What is worth saying.

    Raises:
        AnalysisError: For settings that are none, or states that are not the model's.
    """

    def __init__(
        self,
        model: Any,
        initial: Any = None,
        checkpoints: Any = (),
        draws: int = 1,
        batchnorm: BatchNorm = "keep",
        seed: int = 0,
    ) -> None:
        if batchnorm not in get_args(BatchNorm):
            raise AnalysisError(f"batchnorm is {batchnorm!r}; it is one of {', '.join(get_args(BatchNorm))}")
        if isinstance(draws, bool) or not isinstance(draws, int) or draws < 0:
            raise AnalysisError(f"draws is {draws!r}; give a number of draws, 0 to leave re-randomisation out")
        self.model, self.batchnorm, self.seed, self.draws = unwrap(model), batchnorm, seed, draws
        self.notes: list[str] = []
        self.states: dict[str, Tensors] = self._read(model, initial, checkpoints)
        self.initial = self.states.get(INITIAL)
        self._fresh: list[FreshValues] = [fresh_model_values(model, seed_of_draw(seed, i)) for i in range(draws)]
        self.missing = self._fresh[0].missing if draws else {}
        self.names = [*([RERAND] if draws else []), *self.states]
        if not self.names:
            raise AnalysisError("there is nothing to do: draws is 0, and no initial state or checkpoint is given")
        if self.initial is None:
            self.notes.append(
                "no initial weights were given, so there is no re-initialisation to the start of training "
                "(a pretrained checkpoint has none; keep them with train.keep_epochs: [0])"
            )
        if draws:
            self.notes.append(f"re-randomised values come from {self._fresh[0].source}{self._forgotten()}")
        if draws and self.initial is not None and (name := self._unlike(self._fresh[0].values, self.initial)):
            self.notes.append(
                f"the initial state is none that this would give ('{name}' is {_size_of(self.initial[name])} there and "
                f"{_size_of(self._fresh[0].values[name])} here), so re-randomised values are not of the distribution "
                "this model started with; build it by surgeon.create_model, which remembers its arguments"
            )

    def _read(self, model: Any, initial: Any, checkpoints: Any) -> dict[str, Tensors]:
        states: dict[str, Tensors] = {}
        if initial is not None:
            states[INITIAL] = initial_state(initial, model)
        nothing = checkpoints is None or (isinstance(checkpoints, (tuple, list)) and not checkpoints)
        for label, state in ({} if nothing else read_states(checkpoints, model)).items():
            states.setdefault(label, state)
        parameters = dict(self.model.named_parameters())
        for label in list(states):
            if all(_equal(states[label][name], p) for name, p in parameters.items() if name in states[label]):
                del states[label]
                self.notes.append(f"the state '{label}' is the model as it is, and is left out")
        return states

    def _unlike(self, fresh: Tensors, initial: Tensors) -> str | None:
        """A parameter whose values are of another size in one state than in the other; few values say nothing."""
        for name, _ in self.model.named_parameters():
            if name not in fresh or name not in initial or fresh[name].numel() < MANY:
                continue
            one, other = (float(state[name].double().square().mean().sqrt()) for state in (fresh, initial))
            if max(one, other) > TWICE * min(one, other):
                return name
        return None

    def _forgotten(self) -> str:
        """What timm does not remember of the arguments a model was built with."""
        by_timm = self._fresh[0].source.startswith("a fresh build of timm") and BUILDER not in vars(self.model)
        return " (with timm's defaults for arguments it does not remember, as zero_init_last)" if by_timm else ""

    def number_of_draws(self, treatment: str) -> int:
        """How often a treatment is drawn."""
        return self.draws if treatment == RERAND else 1

    def state(self, treatment: str, draw: int = 0) -> Tensors:
        """All values of a treatment."""
        return self._fresh[draw].values if treatment == RERAND else self.states[treatment]

    def why_not(self, treatment: str, tensors: Sequence[str]) -> str | None:
        """Why a part with these tensors cannot be treated so; None where it can."""
        if treatment != RERAND:
            return None
        return next((f"{name}: {self.missing[name]}" for name in tensors if name in self.missing), None)

    def values(self, treatment: str, draw: int, parameters: Sequence[str], buffers: Sequence[str]) -> Tensors:
        """What to exchange in a part with these parameters and buffers."""
        state = self.state(treatment, draw)
        names = [*parameters, *buffers] if self.batchnorm == "reset" else parameters
        return {name: state[name] for name in names if name in state}

    def distances(self, treatment: str, parameters: Sequence[str]) -> dict[str, float | None]:
        """Root mean square and largest difference, over all values of a part: trained to treated, treated to initial.

        Equations in section 3.1 of the paper; of several draws the mean. "final" is the model as it is.
        """
        if treatment != FINAL and self.why_not(treatment, parameters) is not None:
            return dict.fromkeys(DISTANCES)
        own = dict(self.model.named_parameters())
        treated = (
            [self.state(treatment, i) for i in range(self.number_of_draws(treatment))] if treatment != FINAL else [own]
        )
        known = [name for name in parameters if all(name in state for state in treated)]
        moved = [_distance(own, state, known) for state in treated]
        since = [_distance(state, self.initial, known) for state in treated] if self.initial is not None else []
        pairs = (moved, moved, since, since)
        return {
            name: _mean([pair[i % 2] for pair in found])
            for i, (name, found) in enumerate(zip(DISTANCES, pairs, strict=True))
        }


def _size_of(values: Tensor) -> str:
    return f"{float(values.double().square().mean().sqrt()):.2g} in root mean square"


def seed_of_draw(seed: int, number: int) -> int:
    """A seed of its own: with that of ``torch.manual_seed(0)`` before the model was built, its start is drawn again.

    Nor do two seeds share draws.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.detach().cpu().to(other.dtype), other.detach().cpu())


def _distance(one: Tensors, other: Tensors, names: Sequence[str]) -> tuple[float, float]:
    squares, count, largest = 0.0, 0, 0.0
    for name in names:
        gap = (one[name].detach().cpu().double() - other[name].detach().cpu().double()).abs()
        squares, count = squares + float(gap.square().sum()), count + gap.numel()
        largest = max(largest, float(gap.max()) if gap.numel() else 0.0)
    return math.sqrt(squares / max(count, 1)), largest


def starts_as_identity(places: Places, unit: Unit, values: Tensors, size: Size) -> str:
    """Say so where a unit with these values passes on its input; "" where it does not.

    Such a block, whose last norm starts at zero as timm's do, is robust to re-randomisation whatever it has learnt.
    The model is in evaluation mode, and is put back by the caller.
    """
    if not unit.residual or len(unit.paths) != 1:
        return ""
    seen: list[Any] = []
    module = places.model.get_submodule(unit.path)
    before = module.register_forward_pre_hook(lambda _, given: seen.extend(map(_copy, given[:1])))
    behind = module.register_forward_hook(lambda _, given, answer: seen.append(answer))
    generator = torch.Generator().manual_seed(0)
    like = next(iter(places.tensors.values()))
    image = torch.rand(1, *size, generator=generator).to(like.device, _float(places.model))
    try:
        with places.replaced(values):
            places.model(image)
    finally:
        before.remove()
        behind.remove()
    return _words(seen, values)


def _float(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _copy(given: Any) -> Any:
    return given.detach().clone() if isinstance(given, Tensor) else given


def _words(seen: Sequence[Any], values: Tensors) -> str:
    given, answer = seen[:2] if len(seen) >= 2 else (None, None)
    if isinstance(given, Tensor) and isinstance(answer, Tensor) and given.shape == answer.shape:
        change = float((answer - given).float().norm() / given.float().norm().clamp_min(1e-12))
        if change < SAME:
            return "identity at initialisation"
        if change < ALMOST:
            return f"almost the identity at initialisation (changes its input by {change:.1g} of its size)"
    zero = [name for name, value in values.items() if name.endswith("weight") and not value.any()]
    return f"its branch starts at zero ({zero[0]})" if zero else ""
