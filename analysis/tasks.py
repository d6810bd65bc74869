"""What is measured of every image: error, loss and agreement of classifiers, and whatever a user adds.

A task knows how to take a batch apart, run the model on it and measure what came out; the sweep over treatments knows
nothing else. Detectors have their own in `detection_task`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from surgeon.errors import AnalysisError

Measured = dict[str, NDArray[Any]]  # one value per image
Metric = Callable[[Tensor, Tensor], Tensor]
MANY = 16  # class indices in a row that are not sorted by chance
TAKEN = (
    *("unit", "group", "units", "units_treated", "path", "params", "share_of_params", "treatment", "step", "added"),
    *("draws", "images", "error", "error_low_95", "error_high_95", "ap", "loss", "agreement", "difference"),
    *("difference_low_95", "difference_high_95", "verdict", "sd_over_draws", "note", "rms_distance", "linf_distance"),
    *("rms_from_initial", "linf_from_initial", "class", "p_right", "p_wrong"),
)


class Task(Protocol):
    """What a sweep needs to know of a model's job."""

    primary: str

    def prepare(self, batch: Any, device: torch.device) -> Any:
        """Check a batch and put it where the model is."""

    def count(self, batch: Any) -> int:
        """Images in a batch, prepared or not."""

    def part(self, batch: Any, start: int, stop: int) -> Any:
        """Some images of a batch, prepared or not."""

    def order_notes(self, batch: Any) -> list[str]:
        """What is wrong with the order of the images, if one is to stop early."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the model."""

    def reference(self, answer: Any) -> Any:
        """What to remember of the untouched model's answer."""

    def measure(self, answer: Any, batch: Any, reference: Any) -> Measured:
        """Measure each image, given what is remembered of the untouched model."""


class Classification:
    """Error, loss and agreement of a classifier.

    Args:
        metrics: More, by name: functions of logits (N, classes) and targets (N,) that answer one number per image.

    Attributes:
        choices: Whether to measure, besides, the chosen ``class`` (-1 where a logit is not finite), and the
            probabilities of the right class, ``p_right``, and of the likeliest wrong one, ``p_wrong``.

    Raises:
        AnalysisError: For a metric whose name is taken.
    """

    primary = "error"

    def __init__(self, metrics: Mapping[str, Metric] | None = None) -> None:
        self.metrics, self.choices = dict(metrics or {}), False
        if taken := [name for name in self.metrics if name in TAKEN]:
            raise AnalysisError(f"metrics: '{taken[0]}' is a column of every result; give your metric another name")
        if odd := [name for name, metric in self.metrics.items() if not (isinstance(name, str) and callable(metric))]:
            raise AnalysisError(f"metrics: {odd[0]!r} is no name of a function; give functions of (logits, targets)")

    def prepare(self, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and class indices of a batch.

        Raises:
            AnalysisError: When it is no pair of images (N, C, H, W) and class indices (N,).
        """
        images, targets = _pair(batch)
        return images.to(device, non_blocking=True), targets.to(device, non_blocking=True).long()

    def count(self, batch: Any) -> int:
        """Images in a batch."""
        return len(_pair(batch)[1])

    def part(self, batch: Any, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Some images of a batch."""
        images, targets = _pair(batch)
        return images[start:stop], targets[start:stop]

    def order_notes(self, batch: tuple[Tensor, Tensor]) -> list[str]:
        """What a sequential test should not be given: images in the order of their classes."""
        targets = batch[1]
        if len(targets) < MANY or not torch.equal(targets.sort().values, targets):
            return []
        return [
            "the images come in the order of their classes, so that verdicts reached early (stop=) are of the first "
            "classes only; give them in a random order that stays the same"
        ]

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The logits.

        Raises:
            AnalysisError: When the model answers anything else.
        """
        answer = model(batch[0])
        if isinstance(answer, (tuple, list)) and answer and isinstance(answer[0], Tensor):
            answer = answer[0]  # torchvision's auxiliary heads, ultralytics' (probabilities, logits)
        if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != len(batch[1]):
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise AnalysisError(f"the model answers {shape} to {len(batch[1])} images, and no logits (N, classes)")
        if int(batch[1].max()) >= answer.shape[1] or int(batch[1].min()) < 0:
            raise AnalysisError(
                f"data: targets run from {int(batch[1].min())} to {int(batch[1].max())}, but the model has "
                f"{answer.shape[1]} outputs; give the classes it was trained for"
            )
        return answer.float()

    def reference(self, answer: Tensor) -> Tensor:
        """The chosen class of each image."""
        return answer.argmax(1)

    def measure(self, answer: Tensor, batch: tuple[Tensor, Tensor], reference: Tensor) -> Measured:
        """Whether it is wrong, its cross-entropy, whether it agrees with the untouched model, and the user's metrics.

        Logits that are not finite count as wrong; their loss is infinite or not a number.
        """
        targets, chosen = batch[1], answer.argmax(1)
        lost = ~answer.isfinite().all(1)
        found = {
            "error": (chosen != targets) | lost,
            "agreement": (chosen == reference) & ~lost,
            "loss": nn.functional.cross_entropy(answer, targets, reduction="none"),
        }
        found |= _choices(answer, targets, lost) if self.choices else {}
        for name, metric in self.metrics.items():
            value = metric(answer.clone(), targets.clone())
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise AnalysisError(f"metric '{name}' answers {value!r:.60}; answer one number per image") from error
            if value.shape != targets.shape:
                raise AnalysisError(
                    f"metric '{name}' answers {tuple(value.shape)} for {len(targets)} images; answer one number each"
                )
            found[name] = value
        return {name: _numbers(value) for name, value in found.items()}


def _choices(answer: Tensor, targets: Tensor, lost: Tensor) -> dict[str, Tensor]:
    likely = answer.double().softmax(1)
    return {
        "class": torch.where(lost, -1, answer.argmax(1)),
        "p_right": likely.gather(1, targets[:, None])[:, 0],
        "p_wrong": likely.scatter(1, targets[:, None], -1.0).amax(1).clamp_min(0),
    }


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    pair = tuple(batch[:2]) if isinstance(batch, (tuple, list)) and len(batch) >= 2 else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
        kinds = ", ".join(type(part).__name__ for part in pair)
        raise AnalysisError(
            f"data: a batch is {type(batch).__name__}{f' of {kinds}' if kinds else ''}, and no (images, targets) of "
            "two tensors; give a DataLoader, or a list of such batches"
        )
    images, targets = pair
    if targets.ndim != 1 or targets.is_floating_point() or images.ndim < 2 or len(targets) != len(images):
        raise AnalysisError(
            f"data: images are {tuple(images.shape)} and targets {tuple(targets.shape)} {targets.dtype}; give images "
            "(N, C, H, W) and one class index per image (N,)"
        )
    if not len(targets):
        raise AnalysisError("data: a batch holds no image; leave empty batches out")
    return images, targets


def _numbers(values: Tensor) -> NDArray[Any]:
    kind = np.uint8 if values.dtype == torch.bool else np.float64
    return values.cpu().numpy().astype(kind)
