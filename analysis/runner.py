"""Run a model and its treated variants on one batch.

Apart from the sweep over batches: here is what makes a replay trustworthy. On the first batch every part is computed
both ways; a part whose replay differs is computed in full from then on. A model that draws at random in evaluation
mode draws the same for every variant.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from analysis.engine import Replay
from analysis.perturb import Places
from analysis.readings import FINAL
from analysis.recalibrating import recalibrated
from analysis.tasks import Measured
from analysis.variants import WHOLE, Plan, Variant
from surgeon.randomness import drawn_since, generators, generators_kept

Forward = Callable[[], Any]
CLOSE = 1e-4  # relative; a replay computes the same sums, on some devices in another order


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
        self.references: dict[int, Any] = {}

    def prepare(self, raw: Any) -> Any:
        """A batch where the model is; the first one is looked at closely."""
        batch = self.task.prepare(raw, self.device)
        if self.images_at_once is None:
            self._look(batch)
        return batch

    def in_one_pass(self, number: int, raw: Any, variants: Iterable[Variant]) -> dict[str, Measured]:
        """Measure the untouched model and all variants on a batch."""
        batch, variants = self.prepare(raw), list(variants)
        size, found = self.images_at_once or 1, dict[str, list[Measured]]()
        for start in range(0, self.task.count(batch), size):
            piece = self.task.part(batch, start, start + size)
            for key, measured in self._on_piece(number, piece, variants):
                found.setdefault(key, []).append(measured)
        self.replay.forget()
        return {key: _joined(several) for key, several in found.items()}

    @contextmanager
    def treated(self, variant: Variant | None) -> Iterator[Callable[[int, Any], Measured]]:
        """Treat the model for a whole pass over the data; answers what measures a batch."""
        with ExitStack() as stack:
            if variant is not None:
                stack.enter_context(self.places.replaced(variant.values()))
            if self.plan.calibration is not None:
                stack.enter_context(self._recalibrated(WHOLE if variant is None else variant.part))
            yield lambda number, raw: self._alone(number, raw, variant)

    def _alone(self, number: int, raw: Any, variant: Variant | None) -> Measured:
        batch = self.prepare(raw)
        answer = self._forward(number, batch)
        if variant is None:
            self.references[number] = self.task.reference(answer)
        return self.task.measure(answer, batch, self.references[number])

    def remember(self, number: int, raw: Any) -> None:
        """Compute what the untouched model answers, where a ledger holds the rest."""
        if number not in self.references:
            self.references[number] = self.task.reference(self._forward(number, self.prepare(raw)))

    def _on_piece(self, number: int, piece: Any, variants: list[Variant]) -> Iterator[tuple[str, Measured]]:
        def forward() -> Any:
            return self._forward(number, piece)

        replayed = any(variant.part not in self.plain for variant in variants)
        answer = self.replay.record(forward) if replayed else forward()
        reference = self.task.reference(answer)
        yield FINAL, self.task.measure(answer, piece, reference)
        for variant in variants:
            with self.places.replaced(variant.values()):
                answer = self._answer(variant.part, forward)
            while replayed and self.replay.spoilt():
                self.replay.record(forward)
                with self.places.replaced(variant.values()):
                    answer = self._answer(variant.part, forward)
            yield variant.key, self.task.measure(answer, piece, reference)

    def _answer(self, part: str, forward: Forward) -> Any:
        """What the treated model answers; the first time a part is replayed, it is computed in full too."""
        if part in self.plain:
            return forward()
        answer = self.replay.run(part, forward)
        if part not in self.checked:
            whole = forward()
            self.checked.add(part)
            if not _close(answer, whole):
                self.plain.add(part)
                self.plan.notes.append(f"'{part}' is computed in full for each variant: a replay gave other numbers")
                return whole
        return answer

    def _forward(self, number: int, batch: Any) -> Any:
        """Run the model; where it draws, it draws the same for every variant, and anew for every batch."""
        amp = self.plan.amp
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, amp) if amp is not None else nullcontext())
            if self.draws:
                stack.enter_context(generators_kept())
                torch.manual_seed(int(np.random.SeedSequence([self.plan.seed, number]).generate_state(1)[0]))
                self._restart(number)
            given = tree_map_only(Tensor, Tensor.clone, batch) if self.writes else batch
            return self.task.forward(self.model, given)

    def _restart(self, number: int) -> None:
        """Changing buffers start each batch alike; counters of draws (named ``step``) go with the batches."""
        for name, buffer, start in self.moving:
            buffer.copy_(start + number if name.rpartition(".")[2] == "step" else start)

    def _look(self, batch: Any) -> None:
        """Find out, by one image, whether the model draws or writes, and how much of a batch can be kept at a time."""
        one = self.task.part(batch, 0, 1)
        before = {name: (buffer, buffer._version, buffer.clone()) for name, buffer in self.model.named_buffers()}
        inputs = [(leaf, leaf._version) for leaf in tree_flatten(one)[0] if isinstance(leaf, Tensor)]
        state = generators()
        for _ in range(2):  # first all answers are kept, then those that are needed
            self.replay.record(lambda: self._forward(0, one))
        self.writes = any(leaf._version != version for leaf, version in inputs)
        self.moving = [(name, b, start) for name, (b, version, start) in before.items() if b._version != version]
        self.draws = drawn_since(state) or bool(self.moving)
        whole = max(self.task.count(batch), 1)
        self.images_at_once = max(1, min(whole, self.plan.memory // max(self.replay.bytes(), 1)))
        if self.images_at_once < whole and self.plan.method == "single_pass":
            self.plan.notes.append(f"batches are cut to {self.images_at_once} images to keep within the memory given")
        self._say_what_was_seen()

    def _say_what_was_seen(self) -> None:
        if self.draws:
            self._restart(0)
            self.plain |= set(self.plan.parts)
            self.plan.notes.append(
                "the model draws at random or counts in evaluation mode: every variant sees the same draws, and is "
                "computed in full"
            )

    def _recalibrated(self, part: str) -> Any:
        """Batch norm statistics from calibration data, of the norms from the part on."""
        calibration = self.plan.calibration or ()
        if not self.replay.tape.calls:
            self.prepare(next(iter(calibration)))
            one = self.task.part(self.task.prepare(next(iter(calibration)), self.device), 0, 1)
            self.replay.record(lambda: self._forward(0, one))
        modules: list[nn.Module] = self.replay.behind(part)
        batches = (self.task.prepare(raw, self.device) for raw in calibration)
        return recalibrated(self.places, modules, lambda: [self._forward(0, batch) for batch in batches])


def _joined(several: list[Measured]) -> Measured:
    if len(several) == 1:
        return several[0]
    return {name: np.concatenate([measured[name] for measured in several]) for name in several[0]}


def _close(one: Any, other: Any) -> bool:
    pairs = zip(tree_flatten(one)[0], tree_flatten(other)[0], strict=True)
    tensors = ((a, b) for a, b in pairs if isinstance(a, Tensor))
    return all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), CLOSE, CLOSE, equal_nan=True) for a, b in tensors
    )
