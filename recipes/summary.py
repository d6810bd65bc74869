"""What a run says in the end: one row per variant, and whether the variants can be told apart.

Apart from running so that the wording of results has one home.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from recipes.evaluating import Score, compared
from surgeon.table import si, table

Row = dict[str, Any]
TOLD_APART = 0.05


def macs_of(model: nn.Module, input_size: Sequence[int]) -> int:
    """Count the multiply-adds of one image.

    Example:
        >>> macs_of(nn.Conv2d(1, 1, 3), (1, 5, 5))
        81
    """
    parameter = next(model.parameters())
    images = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    for module, mode in modes.items():
        module.training = mode
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True)
class Outcome:
    """What became of one variant.

    Attributes:
        name: Of the variant.
        surgery: Its ops in words.
        params: Number of parameters.
        macs: Multiply-adds per image.
        before: Score after the surgery, before fine-tuning; None without data.
        after: Score of the final weights; None without data.
        rows: Of its fine-tuning, if any.
    """

    name: str
    surgery: str
    params: int
    macs: int
    before: Score | None
    after: Score | None
    rows: Sequence[Row]

    def row(self) -> Row:
        """Return the variant as plain data."""
        row: Row = {"variant": self.name, "surgery": self.surgery, "params": self.params, "macs": self.macs}
        if self.before is not None and self.after is not None:
            low, high = self.after.interval
            counts = {"correct": self.after.correct, "images": self.after.images}
            row.update(accuracy_before=self.before.accuracy, accuracy=self.after.accuracy, low=low, high=high, **counts)
        return row | {"epochs": self.rows[-1]["epoch"] if self.rows else 0}


def as_table(outcomes: Sequence[Outcome]) -> str:
    """Write the variants as a table."""
    head = ("variant", "surgery", "params", "MACs", "accuracy before", "accuracy after (95% interval)")
    lines = []
    for one in outcomes:
        before = f"{one.before.accuracy:.2%}" if one.before else "-"
        lines.append((one.name, one.surgery, si(one.params), si(one.macs), before, str(one.after or "-")))
    return table(head, lines)


def verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    """Say of every variant whether it can be told apart from the first, on the same images."""
    scored = [one for one in outcomes if one.after is not None and one.after.hits]
    return [_verdict(scored[0], other) for other in scored[1:]]


def _verdict(first: Outcome, second: Outcome) -> str:
    if first.after is None or second.after is None:
        return ""
    p_value, only_first, only_second = compared(first.after, second.after)
    each = f"{first.name} alone has {only_first} right, {second.name} alone {only_second}"
    if only_first + only_second == 0:
        each = "both have the same ones right"
    counts = f"of {first.after.images} images {each} (McNemar's exact test p = {p_value:.2g}; one training run each)"
    if p_value >= TOLD_APART:
        return f"{first.name} and {second.name} cannot be told apart at this budget: {counts}."
    better = first.name if only_first > only_second else second.name
    return f"{better} is better on these images: {counts}, so other seeds may differ."


def as_json(outcomes: Sequence[Outcome], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole summary as plain data."""
    return {**notes, "rows": [one.row() for one in outcomes], "verdicts": verdicts(outcomes)}
