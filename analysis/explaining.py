"""A model made ready to be explained, and its batches: what attributions of units and of pixels have in common.

Apart from them so that each reads as its question.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from analysis.attribution_objective import Objective
from analysis.attribution_settings import TYPES, Asked, check
from analysis.model_names import model_name
from analysis.opening import input_size_of, open_data, versions_of
from analysis.perturb import untouched
from analysis.study_settings import size_in_bytes
from analysis.unit_flow import captum_attr
from surgeon.errors import AnalysisError
from surgeon.host import input_sizes, unwrap

WORK = 1.5  # times what a forward pass keeps for the gradients is what the two passes take
COPIES = 6  # of a unit's output: two for captum, what the model goes on with, the gradient, what is added up


class Explained:
    """A model, its batches, and the number that is explained.

    Args:
        model: A classifier, or an ultralytics detector.
        data: Batches of (images, class indices); of a detector a data yaml, or batches of (images, [{"boxes",
            "labels"}]).
        asked: What is wanted.

    Attributes:
        objective: Of (images, targets) a number per image.
        notes: What is worth saying.
        complete: False once Ctrl-C has ended it.

    Raises:
        AnalysisError: When captum is missing, or they do not fit together.
    """

    def __init__(self, model: Any, data: Any, asked: Asked) -> None:
        check(asked)
        captum_attr(asked.verb)
        self.asked, self.module = asked, unwrap(model)
        if isinstance(data, Tensor) or (isinstance(data, Iterator) and isinstance(data, Iterable)):
            raise AnalysisError(
                f"{asked.verb}: data is a {type(data).__name__}; pass batches of (images, targets) that can be gone "
                "through again, a DataLoader or a list"
            )
        self.task, self.data, self.detector = open_data(model, data, asked.study())
        self.input_size = input_size_of(self.module, self.task, data, asked.input_size)
        self.target = self._target()
        amp = None if asked.amp is None else TYPES[asked.amp]
        self.objective = Objective(self.module, self.task, self.target, asked.top, amp)  # type: ignore[arg-type]
        self.notes: list[str] = [] if self.detector is None else list(self.detector.notes)
        self.complete = True
        self._kept: dict[torch.Size, int] = {}

    def _target(self) -> str:
        usual = "label" if self.detector is None else "confidence"
        target = self.asked.target or usual
        if (target == "confidence") != (self.detector is not None):
            what = "a classifier's class is 'label' or 'predicted'"
            what = what if self.detector is None else "of a detector the only one is 'confidence'"
            raise AnalysisError(f"{self.asked.verb}: target is '{target}', but {what}")
        return target

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The model in evaluation mode, its parameters without gradients; everything is put back afterwards."""
        with self.detector or nullcontext(), untouched(self.module):
            for parameter in self.module.parameters():
                parameter.requires_grad_(False)
            random.seed(self.asked.seed)
            np.random.seed(self.asked.seed % 2**32)
            torch.manual_seed(self.asked.seed)
            with torch.enable_grad():
                yield

    def rounds(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and classes of each batch, where the model is; up to the limit.

        Raises:
            AnalysisError: When there is none.
        """
        seen, limit = 0, self.asked.limit
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        batches = len(self.data) if isinstance(self.data, Sized) and limit is None else None
        console = Console(stderr=True)
        shown = self.asked.progress and console.is_terminal
        with Progress(console=console, disable=not shown, transient=True) as progress:
            bar = progress.add_task(self.asked.verb.replace("_", " "), total=batches if limit is None else limit)
            for batch in self.data:
                count = self.task.count(batch)
                if limit is not None and seen + count > limit:
                    batch, count = self.task.part(batch, 0, limit - seen), limit - seen
                yield self.objective.opened(self.task.prepare(batch, device))
                seen += count
                progress.advance(bar, 1 if limit is None else count)
                if seen == limit:
                    break
        if not seen:
            raise AnalysisError(f"{self.asked.verb} got no image; pass batches of (images, targets)")

    def at_once(self, images: Tensor, targets: Tensor, values: int = 0) -> int:
        """Images of one forward and backward pass, so that it takes about the memory allowed.

        Args:
            images: A batch.
            targets: Its classes.
            values: Numbers per image that are taken out of the pass.
        """
        if self.asked.internal_batch_size is not None:
            return self.asked.internal_batch_size
        size = images.shape[1:]
        if size not in self._kept:
            self._kept[size] = kept_bytes(self.objective, images[:1], targets[:1])
        per_image = WORK * self._kept[size] + COPIES * 4 * values
        return max(1, int(size_in_bytes(self.asked.memory) / per_image))

    def about(self, images: int, more: dict[str, Any]) -> dict[str, Any]:
        """The settings of a result.

        Args:
            images: Explained.
            more: Settings of the analysis itself.
        """
        return {
            "model": model_name(self.module),
            "input_size": list(input_sizes(self.module, self.input_size)[0]),
            **{"images": images, **self.asked.plain(), "target": self.target, **more},
            **({} if self.detector is None else {"detector": self.detector.about}),
            **{"complete": self.complete, "notes": self.notes},
            **{"command": self.asked.command, "versions": versions_of()},
        }

    def said(self) -> str:
        """The notes as the end of a summary."""
        return "".join(f" Note: {note}." for note in self.notes)


def kept_bytes(objective: torch.nn.Module, images: Tensor, targets: Tensor) -> int:
    """Bytes that a forward pass keeps for the gradients, the model's own values aside.

    Example:
        >>> from analysis.tasks import Classification
        >>> net = Objective(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Sigmoid()), Classification(), "label")
        >>> 400 <= kept_bytes(net, torch.rand(1, 1, 10, 10), torch.tensor([0])) < 1000
        True
    """
    found: dict[int, int] = {}

    def note(kept: Tensor) -> Tensor:
        found[kept.untyped_storage().data_ptr()] = kept.untyped_storage().nbytes()
        return kept

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        answer = objective(images.detach().clone().requires_grad_(), targets)
    own = {t.untyped_storage().data_ptr() for t in (*objective.parameters(), *objective.buffers())}
    size = sum(size for place, size in found.items() if place not in own)
    return size + int(answer.element_size())


__all__ = ["Explained", "kept_bytes"]
