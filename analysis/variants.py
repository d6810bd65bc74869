"""A sweep as data: which parts of a model get which values, on what it is measured, and how carefully.

Apart from running it, so that layer-wise, joint and greedy analyses make plans and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from analysis.readings import Ledger
from analysis.tasks import Task

Method = Literal["single_pass", "naive"]
View = Callable[[Any, int, int], Any]  # what of a prepared batch, its number and its first image is shown to the model
During = Callable[[int, int], AbstractContextManager[Any]]  # what holds while a batch, from an image on, is computed
WHOLE = ""  # the part that is the whole model


def _none() -> Mapping[str, Tensor]:
    return {}


def _ever(_number: int, _start: int) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class Variant:
    """A model with one of its parts treated, or that is shown other images.

    Attributes:
        part: Name of the part; "" is the whole model.
        treatment: Name of the treatment.
        draw: Which of several, from 0.
        values: Answers what to exchange, by name of the model's tensors.
        view: What the model is shown of a batch instead; None for what the untouched model is shown.
        during: Entered while the model runs, to act on modules of the part.
    """

    part: str
    treatment: str
    draw: int = 0
    values: Callable[[], Mapping[str, Tensor]] = _none
    view: View | None = None
    during: During = _ever

    @property
    def key(self) -> str:
        """Its name among the readings."""
        return f"{self.cell}|{self.draw}"

    @property
    def cell(self) -> str:
        """Part and treatment, whose draws are judged together."""
        return f"{self.part}|{self.treatment}"


@dataclass
class Plan:
    """A sweep to do.

    Attributes:
        model: In whatever mode; it is put back as it was.
        task: What to measure.
        data: Batches; they can be gone through again and again for ``naive``.
        parts: Of each part: paths of its modules, and names of the tensors it holds.
        variants: All of them; the untouched model is measured besides.
        method: "single_pass" or "naive".
        view: What the untouched model is shown of a batch; None for the batch.
        memory: Bytes the kept answers of one batch may take; larger batches are cut.
        stop: Confidence at which a cell is no longer measured; None measures all images.
        tolerance: Loss of the primary metric that the sequential tests are about.
        ledger: Where readings are kept, if anywhere.
        limit: Most images.
        calibration: Batches for batch norm statistics; None leaves them as the treatment has them.
        seed: Of models that draw in evaluation mode.
        amp: Type for autocast; None for none.
        progress: Show it in a terminal.
        notes: What a sweep found worth saying.
        loaded: Images that were loaded.
    """

    model: nn.Module
    task: Task
    data: Iterable[Any]
    parts: Mapping[str, tuple[Sequence[str], Sequence[str]]]
    variants: Sequence[Variant]
    method: Method = "single_pass"
    view: View | None = None
    memory: int = 2**30
    stop: float | None = None
    tolerance: float = 0.01
    ledger: Ledger | None = None
    limit: int | None = None
    calibration: Iterable[Any] | None = None
    seed: int = 0
    amp: torch.dtype | None = None
    progress: bool = True
    notes: list[str] = field(default_factory=list)
    loaded: int = 0


@dataclass(frozen=True)
class Piece:
    """Images of a prepared batch that are computed at a time.

    Attributes:
        batch: Their images and targets.
        place: Number of the batch, and of the first image in it.
        view: What the untouched model is shown of them.
    """

    batch: Any
    place: tuple[int, int] = (0, 0)
    view: View | None = None

    def shown(self, variant: Variant | None) -> Any:
        """What a variant is shown of them; None is the untouched model."""
        view = self.view if variant is None or variant.view is None else variant.view
        return self.batch if view is None else view(self.batch, *self.place)
