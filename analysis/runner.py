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

from analysis.differing import difference
from analysis.engine import Replay
from analysis.interrupts import breathe
from analysis.perturb import Places
from analysis.readings import FINAL
from analysis.recalibrating import recalibrated
from analysis.tasks import Measured
from analysis.variants import WHOLE, Piece, Plan, Variant
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
        for piece in self._pieces(number, raw):
            for key, measured in self._on_piece(piece, variants):
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
        for piece in self._pieces(number, raw):
            shown = piece.shown(variant)
            with self._during(variant, piece):
                answer = self._forward(shown, piece)
            if variant is None:
                self.references[piece.place] = self.task.reference(answer)
            found.append(self.task.measure(answer, shown, self.references[piece.place]))
        return _joined(found)

    def remember(self, number: int, raw: Any) -> None:
        """Compute what the untouched model answers, where a ledger holds the rest."""
        for piece in self._pieces(number, raw):
            if piece.place not in self.references:
                self.references[piece.place] = self.task.reference(self._forward(piece.shown(None), piece))

    def _replaced(self, variant: Variant) -> AbstractContextManager[None]:
        """Treat the model; what counts the draws stays, so that all variants see the same."""
        moving = {name for name, *_ in self.moving}
        return self.places.replaced({name: value for name, value in variant.values().items() if name not in moving})

    @staticmethod
    def _during(variant: Variant | None, piece: Piece) -> AbstractContextManager[Any]:
        return nullcontext() if variant is None else variant.during(*piece.place)

    def _pieces(self, number: int, raw: Any) -> Iterator[Piece]:
        """A batch where the model is, cut so that what is kept of it finds room."""
        batch = self._prepare(raw)
        size = self.images_at_once or self.task.count(batch)
        for start in range(0, self.task.count(batch), size):
            breathe()
            yield Piece(self.task.part(batch, start, start + size), (number, start), self.plan.view)

    def _prepare(self, raw: Any) -> Any:
        batch = self.task.prepare(raw, self.device)
        if self.images_at_once is None:
            self._look(batch)
        return batch

    def _on_piece(self, piece: Piece, variants: list[Variant]) -> Iterator[tuple[str, Measured]]:
        replayed = any(variant.part not in self.plain for variant in variants)
        usual = piece.shown(None)
        forward = partial(self._forward, usual, piece)
        untouched = self.replay.record(forward) if replayed else forward()
        reference = self.task.reference(untouched)
        yield FINAL, self.task.measure(untouched, usual, reference)
        for variant in variants:
            breathe()
            shown = usual if variant.view is None else piece.shown(variant)
            run = partial(self._treated, variant, piece, partial(self._forward, shown, piece))
            answer = run(untouched)
            while replayed and self.replay.spoilt():
                untouched = self.replay.record(forward)
                answer = run(untouched)
            yield variant.key, self.task.measure(answer, shown, reference)

    def _treated(self, variant: Variant, piece: Piece, forward: Forward, untouched: Any) -> Any:
        def anew() -> Any:
            with self._during(variant, piece):
                return forward()

        with self._replaced(variant):
            return self._answer(variant.part, anew, untouched)

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
            gap = difference(answer, whole)
            if gap > CLOSE and gap > NOISE * difference(whole, forward()):
                self._in_full(part, "a replay gave other numbers")
                return whole
            if 0 < difference(whole, untouched) < np.inf:
                self.checked.add(part)
        return answer

    def _in_full(self, part: str, why: str) -> None:
        self.plain.add(part)
        self.plan.notes.append(f"'{part}' is computed in full for each variant: {why}")

    def _forward(self, batch: Any, piece: Piece) -> Any:
        """Run the model; where it draws, it draws the same for every variant, and anew for every batch."""
        amp, (number, start) = self.plan.amp, piece.place
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
        few = tree_map_only(Tensor, Tensor.clone, self._few(batch).shown(None))
        forward = partial(self._forward, few, Piece(few))
        before = {name: (buffer, _version(buffer), buffer.clone()) for name, buffer in self.model.named_buffers()}
        inputs = [(leaf, _version(leaf)) for leaf in tree_flatten(few)[0] if isinstance(leaf, Tensor)]
        state, on_device = generators(), self._device_generator()
        self._record_first(few, forward)
        self.places.learn_memories(forward)
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

    def _few(self, batch: Any) -> Piece:
        return Piece(self.task.part(batch, 0, 2), (0, 0), self.plan.view)

    def _record_first(self, few: Any, forward: Forward) -> None:
        try:
            for _ in range(2):  # first all answers are kept, then those that are needed
                self.replay.record(forward)
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
            few = self._few(self.task.prepare(first, self.device))
            self.replay.record(partial(self._forward, few.shown(None), few))
        return recalibrated(self.places, self.replay.behind(part), lambda: self._run_over(calibration))

    def _run_over(self, calibration: Iterable[Any]) -> int:
        """Run the model on batches; their number."""
        number = 0
        for number, raw in enumerate(calibration, 1):
            breathe()
            batch = Piece(self.task.prepare(raw, self.device), (number - 1, 0), self.plan.view)
            self._forward(batch.shown(None), batch)
        return number


def _joined(several: list[Measured]) -> Measured:
    if len(several) == 1:
        return several[0]
    return {name: np.concatenate([measured[name] for measured in several]) for name in several[0]}


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
