"""What two nets are compared by, classifiers and detectors alike: a measure each, with the difference of both.

Apart from the comparison, which goes through them and reports, and from what only one kind of net has.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.features_shifted import equivariance
from analysis.intervals import paired_bootstrap
from analysis.layerwise import robustness
from analysis.opening import input_size_of
from analysis.resolving import resolution
from analysis.result import Result, Row
from analysis.saliency_shifts import attribution_equivariance
from analysis.scanning import Scan
from analysis.study_settings import Settings
from analysis.timing import milliseconds
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
        detector: Settings of detectors; None of classifiers.
    """

    models: tuple[Any, Any]
    labels: tuple[str, str]
    data: Any
    common: Mapping[str, Any]
    input_size: Any = None
    detector: Mapping[str, Any] | None = None

    @property
    def opened(self) -> dict[str, Any]:
        """What measures of classifiers and detectors alike take, ``detector=`` of detectors."""
        return dict(self.common) if self.detector is None else {**self.common, "detector": self.detector}

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
        said: In words, for the summary.
        notes: What is worth knowing.
    """

    rows: list[Row]
    results: list[Result] = field(default_factory=list)
    own: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kit:
    """What nets of a kind are compared by.

    Attributes:
        first: What is always measured, and what shows the images on which the nets disagree.
        measures: What else, by name.
        takes: Settings of each.
    """

    first: Callable[[Pair], tuple[Part, Callable[[int], list[Any]]]]
    measures: Mapping[str, Callable[..., Part]]
    takes: Mapping[str, Set[str]]


def takes_of(measured_by: Mapping[str, Callable[..., Any]]) -> dict[str, Set[str]]:
    """What users may set of each measure: what its function takes beyond what the comparison gives it."""
    return {name: inspect.signature(function).parameters.keys() - OURS for name, function in measured_by.items()}


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def robustnesses(pair: Pair, **own: Any) -> Part:
    """Share of the parameters in units that are robust to being drawn anew, and what a unit costs in the mean."""
    found = [
        robustness(model, pair.data, input_size=pair.input_size, **{**pair.opened, **own}) for model in pair.models
    ]
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
    scans = [Scan(model, pair.data, Settings(**pair.opened)) for model in pair.models]
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
    """The size asked for, else that of the images, else (of a data yaml) the one detectors are measured at."""
    if scan.detector is not None and isinstance(pair.data, (str, Path)):
        return input_sizes(scan.module, pair.input_size or scan.detector.options.imgsz)
    first = next(iter(pair.data), None)
    given = pair.input_size if first is None or pair.input_size is not None else tuple(first[0].shape[1:])
    if scan.detector is not None:
        return input_sizes(scan.module, given)
    return input_sizes(scan.module, input_size_of(scan.module, scan.task, scan.data, given))


def resolutions(pair: Pair, **own: Any) -> Part:
    """Accuracy, or average precision, at lower resolutions."""
    one, other = pair.models
    found = resolution(one, pair.data, other=other, labels=pair.labels, **{**pair.opened, **own})
    rows, metric = [], found.settings["primary"]
    for factor in dict.fromkeys(row["factor"] for row in found.rows if row["factor"] < 1):
        both = {row["model"]: row for row in found.rows if row["factor"] == factor}
        mine = both.get(pair.labels[1], {})
        interval = (mine.get(f"{metric}_lead_low_95"), mine.get(f"{metric}_lead_high_95"))
        values = [both.get(label, {}).get(metric) for label in pair.labels]
        images = int(found.settings["images"])
        what = {"ap": "average precision"}.get(metric, metric)
        rows.append(pair.row(f"{what} at {mine.get('resolution', factor)} resolution", values, interval, images))
    return Part(rows, [found])


def equivariances(pair: Pair, **own: Any) -> Part:
    """How far the last features of a shifted image are from those of the image, mean over shifts."""
    taken = {key: pair.common[key] for key in ("seed", "limit", "memory", "progress", "command")}
    shown = [shown_to(model, pair) for model in pair.models]
    found = [
        equivariance(model, batches, **{**taken, **own}) for model, batches in zip(pair.models, shown, strict=True)
    ]
    means = []
    for result in found:
        means.append(mean(row["relative_error"] for row in result.rows if row["unit"] == result.rows[-1]["unit"]))
    what = "answer's" if pair.detector is None else "last features'"
    images = min(int(result.settings["images"]) for result in found)
    row = pair.row(f"{what} change by a shift, in that by another image", means, None, images)
    dropped = shown[0].dropped if isinstance(shown[0], Shown) else 0
    notes = [f"equivariance is of images of one size: {dropped} of another size were left out"] if dropped else []
    return Part([row], list(found), notes=notes)


def shown_to(model: Any, pair: Pair) -> Any:
    """The batches; of a detector the images it is shown, those of the size of the first."""
    return pair.data if pair.detector is None else Shown(Scan(model, pair.data, Settings(**pair.opened)))


class Shown:
    """Images as a detector is shown them, batch after batch, without those of another size than the first.

    Args:
        scan: Of the detector.

    Attributes:
        dropped: Images left out when they were last gone through.
    """

    def __init__(self, scan: Scan) -> None:
        self.scan, self.dropped = scan, 0

    def __iter__(self) -> Iterator[Tensor]:
        size, device = None, next(self.scan.module.parameters()).device
        self.dropped = 0
        for batch in self.scan.data:
            images = self.scan.task.prepare(batch, device)["img"]
            size = size or images.shape[1:]
            if images.shape[1:] == size:
                yield images
            else:
                self.dropped += len(images)


def attributions(pair: Pair, **own: Any) -> Part:
    """Whether saliency maps move with the image: their correlation, mean over shifts."""
    found = [
        attribution_equivariance(model, pair.data, **{**pair.opened, "input_size": pair.input_size, **own})
        for model in pair.models
    ]
    means = [mean(row["pearson"] for row in result.rows) for result in found]
    return Part([pair.row("saliency map of a shifted image, correlation", means)], list(found))


OURS = {"model", "data", "other", "labels", "nets", "images", "ledger", "input_size", "limit", "detector"}
