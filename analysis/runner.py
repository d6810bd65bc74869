"""Run a model and its treated variants on one batch.

Apart from the sweep over batches: here is what makes a replay trustworthy. On the first batch every part is computed
both ways; a part whose replay differs is computed in full from then on. A model that draws at random in evaluation
mode draws the same for every variant.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from analysis.engine import Replay
from analysis.interrupts import breathe
from analysis.perturb import Places
from analysis.readings import FINAL
from analysis.recalibrating import recalibrated
from analysis.tasks import Measured
from analysis.variants import WHOLE, Plan, Variant
from surgeon.errors import AnalysisError
from surgeon.randomness import drawn_since, generators, generators_kept

Forward = Callable[[], Any]
CLOSE = 1e-6  # of the largest value; a replay computes the same sums
NOISE = 10  # times what two computations of the same differ by, on devices that add in any order


class Runner:
    """Runs the variants of a plan batch by batch; the model is in evaluation mode.

    Args:
        plan: Its notes are added to.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.task, self.model = plan, plan.task, plan.model
        self.places = Places(plan.model)
        parts = {}
        for name, (paths, held) in plan.parts.items():
            owners = {id(owner): owner for tensor in held for owner in self.places.owners(tensor)}
            parts[name] = ([plan.model.get_submodule(path) for path in paths], list(owners.values()))
        self.replay = Replay(plan.model, parts)
        self.plain = {WHOLE}  # parts that are computed in full
        self.checked: set[str] = set()
        self.images_at_once: int | None = None
        self.moving: list[tuple[str, Tensor, Tensor]] = []  # buffers a forward pass changes, and how they start
        self.draws = self.writes = False
        tensors = itertools.chain(plan.model.parameters(), plan.model.buffers())
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self.references: dict[tuple[int, int], Any] = {}

    def in_one_pass(self, number: int, raw: Any, variants: Iterable[Variant]) -> dict[str, Measured]:
        """Measure the untouched model and all variants on a batch."""
        found, variants = dict[str, list[Measured]](), list(variants)
        for _, piece, forward in self._pieces(number, raw):
            for key, measured in self._on_piece(piece, forward, variants):
                found.setdefault(key, []).append(measured)
        self.replay.forget()
        return {key: _joined(several) for key, several in found.items()}

    @contextmanager
    def treated(self, variant: Variant | None) -> Iterator[Callable[[int, Any], Measured]]:
        """Treat the model for a whole pass over the data, None not at all; answers what measures a batch."""
        with ExitStack() as stack:
            if variant is not None:
                stack.enter_context(self._replaced(variant))
                if self.plan.calibration is not None:
                    stack.enter_context(self._recalibrated(variant.part))
            yield lambda number, raw: self._alone(number, raw, variant)

    def _alone(self, number: int, raw: Any, variant: Variant | None) -> Measured:
        found = []
        for start, piece, forward in self._pieces(number, raw):
            answer = forward()
            if variant is None:
                self.references[number, start] = self.task.reference(answer)
            found.append(self.task.measure(answer, piece, self.references[number, start]))
        return _joined(found)

    def remember(self, number: int, raw: Any) -> None:
        """Compute what the untouched model answers, where a ledger holds the rest."""
        for start, _, forward in self._pieces(number, raw):
            if (number, start) not in self.references:
                self.references[number, start] = self.task.reference(forward())

    def _replaced(self, variant: Variant) -> AbstractContextManager[None]:
        """Treat the model; what counts the draws stays, so that all variants see the same."""
        moving = {name for name, *_ in self.moving}
        return self.places.replaced({name: value for name, value in variant.values().items() if name not in moving})

    def _pieces(self, number: int, raw: Any) -> Iterator[tuple[int, Any, Forward]]:
        """A batch where the model is, cut so that what is kept of it finds room, and what runs the model on it."""
        batch = self._prepare(raw)
        size = self.images_at_once or self.task.count(batch)
        for start in range(0, self.task.count(batch), size):
            breathe()
            piece = self.task.part(batch, start, start + size)
            yield start, piece, partial(self._forward, piece, number, start)

    def _prepare(self, raw: Any) -> Any:
        batch = self.task.prepare(raw, self.device)
        if self.images_at_once is None:
            self._look(batch)
        return batch

    def _on_piece(self, piece: Any, forward: Forward, variants: list[Variant]) -> Iterator[tuple[str, Measured]]:
        replayed = any(variant.part not in self.plain for variant in variants)
        untouched = self.replay.record(forward) if replayed else forward()
        reference = self.task.reference(untouched)
        yield FINAL, self.task.measure(untouched, piece, reference)
        for variant in variants:
            breathe()
            with self._replaced(variant):
                answer = self._answer(variant.part, forward, untouched)
            while replayed and self.replay.spoilt():
                untouched = self.replay.record(forward)
                with self._replaced(variant):
                    answer = self._answer(variant.part, forward, untouched)
            yield variant.key, self.task.measure(answer, piece, reference)

    def _answer(self, part: str, forward: Forward, untouched: Any) -> Any:
        """What the treated model answers; until a part has shown an effect, its replay is computed in full too."""
        if part in self.plain:
            return forward()
        try:
            answer = self.replay.run(part, forward)
        except Exception:  # code that cannot go on from what is kept; in full it may
            self._in_full(part, "its code cannot be replayed")
            return forward()
        if part not in self.checked:
            whole = forward()
            gap = _difference(answer, whole)
            if gap > CLOSE and gap > NOISE * _difference(whole, forward()):
                self._in_full(part, "a replay gave other numbers")
                return whole
            if 0 < _difference(whole, untouched) < np.inf:
                self.checked.add(part)
        return answer

    def _in_full(self, part: str, why: str) -> None:
        self.plain.add(part)
        self.plan.notes.append(f"'{part}' is computed in full for each variant: {why}")

    def _forward(self, batch: Any, number: int, start: int = 0) -> Any:
        """Run the model; where it draws, it draws the same for every variant, and anew for every batch."""
        amp = self.plan.amp
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, amp) if amp is not None else nullcontext())
            if self.draws:
                stack.enter_context(generators_kept())
                torch.manual_seed(int(np.random.SeedSequence([self.plan.seed, number, start]).generate_state(1)[0]))
                self._restart(number)
            given = tree_map_only(Tensor, Tensor.clone, batch) if self.writes else batch
            return self.task.forward(self.model, given)

    def _restart(self, number: int) -> None:
        """Changing buffers start each batch alike; counters of draws (named ``step``) go with the batches."""
        for name, buffer, start in self.moving:
            buffer.copy_(start + number if name.rpartition(".")[2] == "step" else start)

    def _look(self, batch: Any) -> None:
        """Find out, by two images, whether the model draws or writes, and how much of a batch can be kept at a time."""
        few = tree_map_only(Tensor, Tensor.clone, self.task.part(batch, 0, 2))
        before = {name: (buffer, _version(buffer), buffer.clone()) for name, buffer in self.model.named_buffers()}
        inputs = [(leaf, _version(leaf)) for leaf in tree_flatten(few)[0] if isinstance(leaf, Tensor)]
        state, on_device = generators(), self._device_generator()
        self._record_first(few)
        self.places.learn_memories(lambda: self._forward(few, 0))
        self.writes = any(_version(leaf) != version for leaf, version in inputs)
        self.moving = [(name, b, start) for name, (b, version, start) in before.items() if _version(b) != version]
        self.draws = drawn_since(state) or self._device_generator() != on_device or bool(self.moving)
        count, whole = self.task.count(few), self.task.count(batch)
        if self.plan.stop is not None:
            self.plan.notes += self.task.order_notes(batch)
        self.images_at_once = max(1, self.plan.memory * count // max(self.replay.bytes(), 1))
        if self.draws:
            self._draw_alike()
        elif self.images_at_once < whole and self.plan.method == "single_pass":
            self.plan.notes.append(f"batches are cut to {self.images_at_once} images to keep within the memory given")

    def _record_first(self, few: Any) -> None:
        try:
            for _ in range(2):  # first all answers are kept, then those that are needed
                self.replay.record(lambda: self._forward(few, 0))
        except AnalysisError:
            raise
        except Exception as error:  # whatever the model's code raises on images it was not made for
            given = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tree_flatten(few)[0] if isinstance(t, Tensor))
            kinds = {str(p.dtype) for p in self.model.parameters()}
            raise AnalysisError(
                f"the model fails on the first images ({given}; its parameters are {', '.join(sorted(kinds))}): "
                f"{type(error).__name__}: {error}; give images of the size and kind it was trained on"
            ) from error

    def _draw_alike(self) -> None:
        self._restart(0)
        self.plain |= set(self.plan.parts)
        self.images_at_once = 2**62  # nothing is kept
        self.plan.notes.append(
            "the model draws at random or counts in evaluation mode: every variant sees the same draws, and is "
            "computed in full"
        )

    def _device_generator(self) -> bytes:
        if self.device.type != "cuda":
            return b""
        return torch.cuda.get_rng_state(self.device).numpy().tobytes()

    def _recalibrated(self, part: str) -> Any:
        """Batch norm statistics from calibration data, of the norms from the part on."""
        calibration = self.plan.calibration or ()
        if not self.replay.tape.calls and (first := next(iter(calibration), None)) is not None:
            few = self.task.part(self.task.prepare(first, self.device), 0, 2)
            self.replay.record(lambda: self._forward(few, 0))
        return recalibrated(self.places, self.replay.behind(part), lambda: self._run_over(calibration))

    def _run_over(self, calibration: Iterable[Any]) -> int:
        """Run the model on batches; their number."""
        number = 0
        for number, raw in enumerate(calibration, 1):
            breathe()
            self._forward(self.task.prepare(raw, self.device), number - 1)
        return number


def _joined(several: list[Measured]) -> Measured:
    if len(several) == 1:
        return several[0]
    return {name: np.concatenate([measured[name] for measured in several]) for name in several[0]}


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _difference(one: Any, other: Any) -> float:
    """Largest difference of two answers, as a share of the largest value of the second; infinite where they differ."""
    left, right = ([leaf for leaf in tree_flatten(side)[0] if isinstance(leaf, Tensor)] for side in (one, other))
    return max(map(_apart, left, right), default=0.0) if len(left) == len(right) else float("inf")


def _apart(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    if one.numel() == 0 or torch.equal(one, other):
        return 0.0
    odd = ~(one.isfinite() & other.isfinite())
    if not torch.equal(one[odd].nan_to_num(1.5), other[odd].nan_to_num(1.5)):
        return float("inf")
    one, other = one[~odd].double(), other[~odd].double()
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30)) if len(one) else 0.0
