"""Accuracy of a model on validation images, with its interval; and whether two models can be told apart.

Apart from training because `run`, `demo` and the command line measure models that nobody trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import nn

from recipes.batches import Batch
from recipes.processes import Processes


@dataclass(frozen=True)
class Score:
    """How a model did on a set of images.

    Attributes:
        correct: Images whose top-1 class is right.
        images: All of them.
        loss: Mean cross-entropy.
        hits: Right or wrong per image, in order; empty when several processes measured.
    """

    correct: int
    images: int
    loss: float
    hits: tuple[bool, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of images that are right, 0 to 1."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy, for images drawn like these."""
        found = binomtest(self.correct, self.images).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.2%} ({low:.1%} to {high:.1%})"


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    who: Processes,
    context: AbstractContextManager[Any] | None = None,
) -> Score:
    """Measure a model in eval mode; its modes are put back.

    Args:
        model: A classifier.
        batches: This process' part.
        who: This process among those that measure together.
        context: Of the forward pass, for mixed precision.

    Example:
        >>> from recipes.data import ALONE
        >>> score = evaluate(nn.Flatten(), [(torch.eye(3), torch.tensor([0, 1, 0]))], ALONE)
        >>> score.correct, score.hits
        (2, (True, True, False))
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    totals, hits = torch.zeros(3, dtype=torch.float64), []
    with torch.inference_mode(), context or nullcontext():
        for images, targets in batches:
            logits = model(images.to(who.device, non_blocking=True)).float()
            labels = targets.to(who.device)
            right = (logits.argmax(1) == labels).cpu()
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            totals += torch.tensor([loss, right.sum().item(), len(targets)], dtype=torch.float64)
            hits += right.tolist()
    for module, mode in modes.items():
        module.training = mode
    loss, correct, count = who.total(totals).tolist()
    return Score(int(correct), int(count), loss / count, tuple(hits) if who.world == 1 else ())


def compared(first: Score, second: Score) -> tuple[float, int, int]:
    """Compare two models on the same images by McNemar's exact test.

    Returns:
        The p-value, and how many images only the first, only the second has right.

    Example:
        >>> a, b = Score(2, 3, 0.0, (True, True, False)), Score(1, 3, 0.0, (True, False, False))
        >>> compared(a, b)
        (1.0, 1, 0)
    """
    only_first = sum(a and not b for a, b in zip(first.hits, second.hits, strict=True))
    only_second = sum(b and not a for a, b in zip(first.hits, second.hits, strict=True))
    odd = only_first + only_second
    return float(binomtest(only_first, odd).pvalue) if odd else 1.0, only_first, only_second
