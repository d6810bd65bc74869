"""A sweep as data: which parts of a model get which values, on what it is measured, and how carefully.

Apart from running it, so that layer-wise, joint and greedy analyses make plans and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from analysis.readings import Ledger
from analysis.tasks import Task

Method = Literal["single_pass", "naive"]
WHOLE = ""  # the part that is the whole model


@dataclass(frozen=True)
class Variant:
    """A model with one of its parts treated.

    Attributes:
        part: Name of the part; "" is the whole model.
        treatment: Name of the treatment.
        draw: Which of several, from 0.
        values: Answers what to exchange, by name of the model's tensors.
    """

    part: str
    treatment: str
    draw: int
    values: Callable[[], Mapping[str, Tensor]]

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
