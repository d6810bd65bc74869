"""What a run says in the end: one row per variant, and whether the variants can be told apart.

Apart from running so that the wording of results has one home.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from recipes.evaluating import Score, compared
from surgeon.table import si, table

Row = dict[str, Any]
TOLD_APART = 0.05
SIZES = ("AP_S", "AP_M", "AP_L")  # COCO's: objects up to 32 x 32 pixels, up to 96 x 96, larger


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

    HEAD: ClassVar = ("variant", "surgery", "params", "MACs", "accuracy before", "accuracy after (95% interval)")

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

    def cells(self) -> tuple[str, ...]:
        """Return the line of a table."""
        before = f"{self.before.accuracy:.2%}" if self.before else "-"
        return self.name, self.surgery, si(self.params), si(self.macs), before, str(self.after or "-")

    def against(self, first: Outcome) -> str:
        """Say whether this variant can be told apart from the first one, on the same images."""
        if self.after is None or first.after is None or not (self.after.hits and first.after.hits):
            return ""
        p_value, only_first, only_second = compared(first.after, self.after)
        each = f"{first.name} alone has {only_first} right, {self.name} alone {only_second}"
        if only_first + only_second == 0:
            each = "both have the same ones right"
        counts = (
            f"of {first.after.images} images {each} (McNemar's exact test p = {p_value:.2g}; one training run each)"
        )
        if p_value >= TOLD_APART:
            return f"{first.name} and {self.name} cannot be told apart at this budget: {counts}."
        better = first.name if only_first > only_second else self.name
        return f"{better} is better on these images: {counts}, so other seeds may differ."


@dataclass(frozen=True)
class Detected:
    """How a detector does on its validation images.

    Attributes:
        map50_95: Mean average precision over classes and over IoU thresholds 0.50 to 0.95, as ultralytics counts it.
        map50: At the IoU threshold 0.50.
        coco: The `analysis.detection` of it, with COCO's AP by size of object; None where that could not be had.
    """

    map50_95: float
    map50: float
    coco: Any = None

    def row(self) -> Row:
        """Return the metrics as plain data; what COCO's evaluation gives is named as there, in small letters."""
        row: Row = {"map50_95": self.map50_95, "map50": self.map50}
        for line in self.coco.rows if self.coco is not None else ():
            row[line["metric"].lower()] = line["value"]
            if line["metric"] == "AP":
                row.update(ap_low=line["low_95"], ap_high=line["high_95"])
        return row | ({"images": len(self.coco.found.images)} if self.coco is not None else {})


@dataclass(frozen=True)
class DetectionOutcome:
    """What became of one variant of a detector; as `Outcome`, with average precision in place of accuracy."""

    HEAD: ClassVar = ("variant", "surgery", "params", "MACs", "mAP50-95 before", "mAP50-95", "mAP50", *SIZES)

    name: str
    surgery: str
    params: int
    macs: int
    before: Detected | None
    after: Detected | None
    rows: Sequence[Row]

    def row(self) -> Row:
        """Return the variant as plain data."""
        row: Row = {"variant": self.name, "surgery": self.surgery, "params": self.params, "macs": self.macs}
        if self.before is not None:
            row["map50_95_before"] = self.before.map50_95
        if self.after is not None:
            row.update(self.after.row())
        return row | {"epochs": self.rows[-1]["epoch"] if self.rows else 0}

    def cells(self) -> tuple[str, ...]:
        """Return the line of a table."""
        row = self.row()
        keys = ("map50_95_before", "map50_95", "map50", *(key.lower() for key in SIZES))
        figures = ("-" if row.get(key) is None else f"{row[key]:.3f}" for key in keys)
        return self.name, self.surgery, si(self.params), si(self.macs), *figures

    def against(self, first: DetectionOutcome) -> str:
        """Say whether this variant can be told apart from the first one on these images."""
        if self.after is None or first.after is None:
            return ""
        difference = f"{self.name} has {self.after.map50_95 - first.after.map50_95:+.3f} mAP50-95 against {first.name}"
        if self.after.coco is None or first.after.coco is None:
            return f"{difference}; not tested, one training run each."
        from analysis.detection_comparing import DetectionComparison

        compared = DetectionComparison(first.after.coco, self.after.coco, (first.name, self.name))
        return f"{difference}. COCO's AP: {compared.summary}; one training run each, so other seeds may differ."


def as_table(outcomes: Sequence[Outcome] | Sequence[DetectionOutcome]) -> str:
    """Write the variants as a table."""
    return table(outcomes[0].HEAD, [one.cells() for one in outcomes])


def verdicts(outcomes: Sequence[Outcome] | Sequence[DetectionOutcome]) -> list[str]:
    """Say of every variant whether it can be told apart from the first, on the same images."""
    first: Any = outcomes[0]
    return [words for other in outcomes[1:] if (words := other.against(first))]


def as_json(outcomes: Sequence[Outcome] | Sequence[DetectionOutcome], notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole summary as plain data."""
    return {**notes, "rows": [one.row() for one in outcomes], "verdicts": verdicts(outcomes)}
