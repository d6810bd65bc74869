"""Go over the data once for all variants of a model, or once for each; on one process or several.

Every way gives the same readings. Apart from running a batch, which knows nothing of ledgers, processes and stopping.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils._pytree import tree_flatten

from analysis.interrupts import Came, uninterrupted
from analysis.intervals import SequentialTest
from analysis.perturb import untouched
from analysis.readings import FINAL, Readings
from analysis.runner import Runner
from analysis.sharing import Rounds, world
from analysis.tasks import Measured
from analysis.variants import Plan, Variant
from surgeon.errors import AnalysisError

LOOK_AT = 4096  # values of a tensor that its mark is of
EVERY = 20.0  # seconds between two writings of the ledger


def sweep(plan: Plan) -> tuple[Readings, bool]:
    """Measure every variant of a plan; False comes second where Ctrl-C ended it before.

    The model is left bit for bit as it was, also after an error or an interrupt.

    Raises:
        AnalysisError: When data and model do not fit, or the data are empty or used up.
    """
    with untouched(plan.model):
        return _Sweep(plan).run()


class _Sweep:
    def __init__(self, plan: Plan) -> None:
        _check_data(plan)
        self.plan, self.world, self.runner = plan, world(), Runner(plan)
        self.readings = self._kept_readings()
        self.draws: dict[str, list[Variant]] = {}
        for variant in plan.variants:
            self.draws.setdefault(variant.cell, []).append(variant)
        tested = self.draws if plan.stop is not None else {}
        self.tests = {cell: SequentialTest(plan.tolerance, plan.stop or 0) for cell in tested}
        self.looked = dict.fromkeys(tested, 0)  # the next batch each test looks at
        self.seen: dict[int, int] = {}  # marks of the batches this process has seen in a round
        self.came: Came = []  # Ctrl-C that waits for the end of a round
        self.written = time.monotonic()
        for cell in tested:
            self._look(cell)

    def _kept_readings(self) -> Readings:
        """What the ledger holds; the first process reads it for all."""
        kept: Readings | AnalysisError = Readings()
        if self.plan.ledger is not None and self.world.rank == 0:
            try:
                kept = self.plan.ledger.read()
            except AnalysisError as error:
                kept = error
        first: Readings | AnalysisError = self.world.gathered(kept if self.world.rank == 0 else None)[0]
        if isinstance(first, AnalysisError):
            raise first
        return first

    def run(self) -> tuple[Readings, bool]:
        complete = True
        with uninterrupted() if self.world.size > 1 else nullcontext(Came()) as self.came:
            try:
                with self._progress() as advance:
                    self._in_one_pass(advance) if one_pass(self.plan) else self._one_by_one(advance)
            except KeyboardInterrupt:
                complete = False
            self._keep(EVERY)
            self.world.gathered(None)
            self.came.clear()  # all is done
        if not self.readings.images(FINAL) and complete:
            raise AnalysisError("data holds no batch; give at least one (images, targets)")
        return self.readings, complete

    def _in_one_pass(self, advance: Callable[[], None]) -> None:
        for number, raw in self._rounds():
            found: dict[str, Measured] = {}
            if raw is not None and not self._known(number):
                found = self.runner.in_one_pass(number, raw, [v for v in self.plan.variants if self._open(v.cell)])
            self._take(number, found)
            advance()
            if self.tests and not any(map(self._open, self.draws)):
                self.readings.keep_until(FINAL, max(self.looked.values()) - 1)  # several processes have gone further
                break

    def _one_by_one(self, advance: Callable[[], None]) -> None:
        for variant in (None, *self.plan.variants):
            self._pass(variant)
            advance()

    def _pass(self, variant: Variant | None) -> None:
        """All batches for one variant; None is the untouched model."""
        key = FINAL if variant is None else variant.key
        with self.runner.treated(variant) as measure:
            for number, raw in self._rounds():
                found: dict[str, Measured] = {}
                if raw is not None and not self.readings.has(key, number):
                    found = {key: measure(number, raw)}
                elif raw is not None and variant is None:
                    self.runner.remember(number, raw)
                self._take(number, found)
                if variant is not None and not self._open(variant.cell):
                    break

    def _known(self, number: int) -> bool:
        """Whether the ledger holds the whole batch."""
        keys = [
            FINAL,
            *(v.key for v in self.plan.variants if self._open(v.cell) or self.looked.get(v.cell, 0) > number),
        ]
        return all(self.readings.has(key, number) for key in keys)

    def _open(self, cell: str) -> bool:
        return cell not in self.readings.decided

    def _rounds(self) -> Rounds:
        self.seen.clear()
        own = self.world.own_rounds(self.plan.data, self.plan.limit)
        for number, raw in self.world.rounds(self._limited()) if own is None else own:
            if raw is not None:
                self.plan.loaded += self.plan.task.count(raw)
                self.seen[number] = mark(raw)
            yield number, raw

    def _limited(self) -> Iterable[Any]:
        left = self.plan.limit
        for number, raw in enumerate(self.plan.data):
            count = self.plan.task.count(raw)
            if left is not None and count > left:
                raw = self.plan.task.part(raw, 0, left)
            if self.world.size > 1:
                self.seen[number] = mark(raw)
            yield raw
            left = None if left is None else left - min(count, left)
            if left == 0:
                return

    def _take(self, number: int, found: dict[str, Measured]) -> None:
        """Add what all processes measured in this round, and look at the tests; Ctrl-C in one of them ends all."""
        everything = self.world.gathered((number, found, dict(self.seen), bool(self.came)))
        self.seen.clear()
        for batch, measured, seen, _ in sorted(everything, key=lambda each: each[0]):
            for known, its in seen.items():
                self.readings.check(known, its)
            for key, values in measured.items():
                if key == FINAL or self._open(key.rpartition("|")[0]):
                    self.readings.add(key, batch, values)
            for cell in self.tests:
                self._look(cell)
        self._keep()
        if any(asked for *_, asked in everything):
            raise KeyboardInterrupt

    def _look(self, cell: str) -> None:
        """Let the test of a cell see the batches of which all draws are known, in order; what is behind is dropped."""
        draws, test, metric = self.draws[cell], self.tests[cell], self.plan.task.primary
        keys = [FINAL, *(variant.key for variant in draws)]
        while self._open(cell) and all(self.readings.has(key, self.looked[cell]) for key in keys):
            batch = self.looked[cell]
            self.looked[cell] += 1
            wrong = np.mean([self.readings.batch(v.key, batch)[metric] for v in draws], 0, dtype=np.float64)
            verdict = test.add(wrong - self.readings.batch(FINAL, batch)[metric])
            if verdict is not None:
                self.readings.decided[cell] = verdict
                for variant in draws:
                    self.readings.keep_until(variant.key, batch)

    def _keep(self, since: float = 0.0) -> None:
        """Write the ledger now and then; at once where ``since`` says that it was long ago."""
        if self.plan.ledger is None or self.world.rank > 0:
            return
        if since or time.monotonic() - self.written > EVERY:
            self.plan.ledger.write(self.readings)
            self.written = time.monotonic()

    @contextmanager
    def _progress(self) -> Iterator[Callable[[], None]]:
        console = Console(stderr=True)
        quiet = not (self.plan.progress and console.is_terminal and self.world.rank == 0)
        batches = len(self.plan.data) if hasattr(self.plan.data, "__len__") else None  # type: ignore[arg-type]
        total = -(-batches // self.world.size) if one_pass(self.plan) and batches is not None else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=quiet, transient=True) as progress:
            words = f"{len(self.plan.variants)} variants, {'one pass' if one_pass(self.plan) else 'a pass each'}"
            bar = progress.add_task(words, total=total if one_pass(self.plan) else len(self.plan.variants) + 1)
            yield lambda: progress.advance(bar)


def one_pass(plan: Plan) -> bool:
    """Whether all variants are measured in one pass over the data."""
    return plan.method == "single_pass" and plan.calibration is None


def mark(batch: Any) -> int:
    """A number that tells the images of a batch from others; of some of their values."""
    total = 0
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor):
            flat = leaf.detach().flatten()
            some = flat[:: max(1, flat.numel() // LOOK_AT)].contiguous().cpu().view(torch.uint8)
            total = zlib.crc32(some.numpy().tobytes(), zlib.crc32(repr(tuple(leaf.shape)).encode(), total))
    return total


def _check_data(plan: Plan) -> None:
    for name, data in (("data", plan.data), ("calibration", plan.calibration)):
        if data is None and name == "calibration":
            continue
        if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
            raise AnalysisError(f"{name} is {type(data).__name__}; give batches of (images, targets), as a DataLoader")
        if isinstance(data, Iterator) and not one_pass(plan):
            raise AnalysisError(
                f"{name} is a {type(data).__name__} that can be gone through once only, and each variant needs a pass; "
                'give a list or a DataLoader, or method="single_pass" without recalibration'
            )
