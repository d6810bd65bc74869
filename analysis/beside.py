"""What two nets are compared by: a measure each, with the difference paired image by image.

Apart from the comparison, which goes through them and reports.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.agreeing import consistency
from analysis.features_shifted import equivariance
from analysis.intervals import difference_of_ratios, paired_bootstrap
from analysis.layerwise import robustness
from analysis.opening import input_size_of
from analysis.readings import FINAL, Readings
from analysis.resolving import resolution
from analysis.result import Result, Row
from analysis.saliency_shifts import attribution_equivariance
from analysis.scanning import Scan
from analysis.study_settings import Settings
from analysis.timing import milliseconds
from analysis.translating import translation
from surgeon.errors import AnalysisError
from surgeon.host import input_sizes
from surgeon.tracing import record_forward


@dataclass
class Pair:
    """Two nets and the images they are compared on.

    Attributes:
        models: Both.
        labels: Their names.
        data: Batches that can be gone through again.
        common: Settings all measures take: ``seed``, ``limit``, ``amp``, ``memory``, ``progress``.
        input_size: As for ``surgeon.locate``.
    """

    models: tuple[Any, Any]
    labels: tuple[str, str]
    data: Any
    common: Mapping[str, Any]
    input_size: Any = None

    @property
    def seed(self) -> int:
        """Of the resampled images."""
        return int(self.common.get("seed", 0))

    def row(self, measure: str, values: Sequence[float | None], interval: Any = None, images: int = 0) -> Row:
        """A measure of both; the difference is the second's less the first's."""
        one, other = values
        known = one is not None and other is not None
        low, high = interval or (None, None)
        return {
            **{"measure": measure, self.labels[0]: one, self.labels[1]: other},
            "difference": other - one if known else None,  # type: ignore[operator]
            **{"difference_low_95": low, "difference_high_95": high, "images": images or None},
        }

    def paired(self, measure: str, one: NDArray[Any], other: NDArray[Any]) -> Row:
        """A measure that is a mean over images."""
        images = min(len(one), len(other))
        one, other = one[:images].astype(float), other[:images].astype(float)
        finite = bool(np.isfinite(one).all() and np.isfinite(other).all())
        interval = paired_bootstrap([other - one], self.seed)[0] if finite and images else None
        means = [float(values.mean()) if np.isfinite(values).all() else None for values in (one, other)]
        return self.row(measure, means, interval, images)


@dataclass
class Part:
    """What one measure has found.

    Attributes:
        rows: Of the comparison.
        results: Of each net, with their figures.
        own: Settings and figures worth keeping.
    """

    rows: list[Row]
    results: list[Result] = field(default_factory=list)
    own: dict[str, Any] = field(default_factory=dict)


def accuracies(pair: Pair, **_: Any) -> tuple[Part, list[Readings]]:
    """Accuracy, loss, and how often the nets disagree."""
    found = []
    for model in pair.models:
        scan = Scan(model, pair.data, Settings(**pair.common))
        if scan.detector is not None:
            raise AnalysisError("compare is of classifiers; of detectors call analysis.compare_detection")
        scan.task.choices = True
        found.append(scan.run("compare", []))
        if not scan.complete:
            raise KeyboardInterrupt
    if found[0].marks != found[1].marks:
        raise AnalysisError(
            "the second net was given other images than the first, or in another order, so that nothing can be "
            "compared image by image; give the same batches each time: shuffle=False, and no random transforms"
        )
    wrong, losses, chosen = ([r.values(FINAL, name) for r in found] for name in ("error", "loss", "class"))
    images = min(map(len, chosen))
    differ = chosen[0][:images] != chosen[1][:images]
    only = [((1 - wrong[i][:images].astype(int)) * wrong[1 - i][:images]).sum() for i in (0, 1)]
    rows = [pair.paired("accuracy", 1 - wrong[0], 1 - wrong[1])]
    if all(np.isfinite(each).all() for each in losses):
        rows.append(_unbounded(pair, "loss", *losses))
    rows.append(pair.row("images only this net gets right", [int(each) for each in only], None, images))
    return Part(rows, own={"disagree_share": float(differ.mean()), "disagree_images": int(differ.sum())}), found


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _unbounded(pair: Pair, measure: str, one: NDArray[Any], other: NDArray[Any]) -> Row:
    """A mean over images without bounds: Student's interval of the paired differences."""
    from scipy.stats import ttest_1samp

    images = min(len(one), len(other))
    gaps = other[:images] - one[:images]
    row = pair.row(measure, [float(one.mean()), float(other.mean())], None, images)
    if images > 1:
        flat = not np.ptp(gaps)
        ends = (gaps[0], gaps[0]) if flat else ttest_1samp(gaps, 0.0).confidence_interval()
        row |= {"difference_low_95": float(ends[0]), "difference_high_95": float(ends[1])}
    return row


def translations(pair: Pair, **own: Any) -> Part:
    """Mean relative loss over a grid of shifts, and accuracy at the worst shift."""
    few = {"reach": 6, "step": 3} if own.get("kind", "shift") == "shift" and "moves" not in own else {}
    found = [translation(model, pair.data, **{**pair.common, **few, **own}) for model in pair.models]
    lost, right = ([result.by_image[name] for result in found] for name in ("lost", "right"))
    images = min(map(len, right))
    known = all(values[:images].any() for values in right)
    interval = difference_of_ratios(
        (lost[0][:images], right[0][:images]), (lost[1][:images], right[1][:images]), pair.seed
    ) if known else None  # fmt: skip
    kind = found[0].settings["kind"]
    lowest = [min(row["accuracy"] for row in result.rows) for result in found]
    mean = pair.row(f"relative loss over {kind}s", [result.relative_loss[0] for result in found], interval, images)
    worst = pair.row(f"accuracy at the worst {kind}", lowest, None, images)
    return Part([mean, worst], list(found))


def consistencies(pair: Pair, **own: Any) -> Part:
    """Shift consistency."""
    found = [consistency(model, pair.data, **{**pair.common, "protocol": "circular", **own}) for model in pair.models]
    one, other = (result.by_image["consistency"] for result in found)
    return Part([pair.paired(f"consistency ({found[0].settings['protocol']})", one, other)], list(found))


def robustnesses(pair: Pair, **own: Any) -> Part:
    """Share of the parameters in units that are robust to being drawn anew, and what a unit costs in the mean."""
    found = [robustness(model, pair.data, input_size=pair.input_size, **pair.common, **own) for model in pair.models]
    costs = []
    for result in found:
        mine = [
            row["difference"] for row in result.rows if row["treatment"] == "rerand" and row["unit"] != "full model"
        ]
        known = [value for value in mine if value is not None]
        costs.append(sum(known) / len(known) if known else None)
    shares = [result.share_robust("rerand") for result in found]
    rows = [pair.row("parameters in robust units", shares), pair.row("cost of re-randomising a unit", costs)]
    return Part(rows, list(found))


def costs(pair: Pair, **own: Any) -> Part:
    """Parameters, multiply-adds of an image, and milliseconds of a forward pass at batch 1."""
    scans = [Scan(model, pair.data, Settings(**pair.common)) for model in pair.models]
    modules = [scan.module for scan in scans]
    sizes = [_size(scan, pair) for scan in scans]
    traces = [record_forward(module, size) for module, size in zip(modules, sizes, strict=True)]
    rows = [
        pair.row("parameters", [sum(p.numel() for p in module.parameters()) for module in modules]),
        pair.row("multiply-adds", [trace.macs() for trace in traces]),
    ]
    images = [
        torch.rand(1, *trace.input_size, generator=torch.Generator().manual_seed(0)).to(next(module.parameters()))
        for module, trace in zip(modules, traces, strict=True)
    ]
    copies = [copy.deepcopy(module).eval() for module in modules]
    rows.append(pair.row("milliseconds at batch 1", milliseconds(copies, images, **own)))
    return Part(rows, own={"input_size": list(traces[0].input_size)})


def _size(scan: Scan, pair: Pair) -> Any:
    """The size asked for, else that of the images."""
    first = next(iter(pair.data), None)
    given = pair.input_size if first is None or pair.input_size is not None else tuple(first[0].shape[1:])
    return input_sizes(scan.module, input_size_of(scan.module, scan.task, scan.data, given))


def resolutions(pair: Pair, **own: Any) -> Part:
    """Accuracy at lower resolutions."""
    one, other = pair.models
    found = resolution(one, pair.data, other=other, labels=pair.labels, **{**pair.common, **own})
    rows = []
    for factor in dict.fromkeys(row["factor"] for row in found.rows if row["factor"] < 1):
        both = {row["model"]: row for row in found.rows if row["factor"] == factor}
        mine = both.get(pair.labels[1], {})
        interval = (mine.get("accuracy_lead_low_95"), mine.get("accuracy_lead_high_95"))
        values = [both.get(label, {}).get("accuracy") for label in pair.labels]
        images = int(found.settings["images"])
        rows.append(pair.row(f"accuracy at {mine.get('resolution', factor)} resolution", values, interval, images))
    return Part(rows, [found])


def equivariances(pair: Pair, **own: Any) -> Part:
    """How far the last features of a shifted image are from those of the image, mean over shifts."""
    taken = {key: pair.common[key] for key in ("seed", "limit", "memory", "progress", "command")}
    found = [equivariance(model, pair.data, **{**taken, **own}) for model in pair.models]
    means = []
    for result in found:
        means.append(_mean(row["relative_error"] for row in result.rows if row["unit"] == result.rows[-1]["unit"]))
    return Part([pair.row("answer's change by a shift, in that by another image", means)], list(found))


def attributions(pair: Pair, **own: Any) -> Part:
    """Whether saliency maps move with the image: their correlation, mean over shifts."""
    taken = {key: pair.common[key] for key in ("seed", "limit", "memory", "progress", "amp", "command")}
    found = [
        attribution_equivariance(model, pair.data, **{**taken, "input_size": pair.input_size, **own})
        for model in pair.models
    ]
    means = [_mean(row["pearson"] for row in result.rows) for result in found]
    return Part([pair.row("saliency map of a shifted image, correlation", means)], list(found))


MEASURES = {
    "translation": translations,
    "consistency": consistencies,
    "resolution": resolutions,
    "equivariance": equivariances,
    "robustness": robustnesses,
    "attribution": attributions,
    "cost": costs,
}
MEASURED_BY: dict[str, Callable[..., Any]] = {
    "translation": translation,
    "consistency": consistency,
    "resolution": resolution,
    "equivariance": equivariance,
    "robustness": robustness,
    "attribution": attribution_equivariance,
    "cost": milliseconds,
}
OURS = {"model", "data", "other", "labels", "nets", "images", "ledger", "input_size", "limit"}
TAKES = {name: inspect.signature(function).parameters.keys() - OURS for name, function in MEASURED_BY.items()}
