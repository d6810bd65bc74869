"""What nets lose with the resolution of their images, the original beside the operated one.

Sunkara and Luo, No More Strided Convolutions or Pooling, ECML PKDD 2022, arXiv:2208.03641, is about low resolution and
small objects. How images get smaller lies in `resolution_views`, how figures are compared in `resolution_scores`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from analysis.resolution_passes import Pass, check_same, settings_after
from analysis.resolution_result import Resolution as Resolution
from analysis.resolution_result import summary_of
from analysis.resolution_scores import Accuracies, Cell, Precisions, Scores, columns_of
from analysis.resolution_views import Down, factors_of, named, shrink_images, sides
from analysis.result import Row
from analysis.study_settings import Settings
from analysis.tasks import Metric
from analysis.variants import Method
from surgeon.errors import AnalysisError
from surgeon.host import unwrap


def resolution(
    model: Any,
    data: Any,
    *,
    factors: Iterable[float] | float = (1, 1 / 2, 1 / 4, 1 / 8),
    other: Any = None,
    labels: Sequence[str] = ("original", "operated"),
    back: bool = True,
    down: Down = "bicubic",
    detector: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    method: Method = "single_pass",
    seed: int = 0,
    limit: int | None = None,
    amp: str | None = None,
    memory: int | str = "1GiB",
    ledger: str | Path | None = None,
    progress: bool = True,
    command: str = "",
) -> Resolution:
    """Measure accuracy, or average precision of detectors, against the resolution of the images.

    Images are made smaller and, with ``back``, enlarged again to their size: the net computes as ever and sees less.
    Without, it gets the small images as they are. Several nets see the same images; all resolutions of a net are
    measured in one pass over the data, and every net is put back bit for bit.

    Args:
        model: A classifier, or an ultralytics detector.
        data: Batches of (images, class indices) that can be gone through once per net; of detectors a data yaml, or
            batches of (images from 0 to 1, [{"boxes", "labels"}]).
        factors: Of both sides; full resolution, 1, is always measured.
        other: Another net, the operated one for instance, or several by name.
        labels: Names of ``model`` and ``other``.
        back: Enlarge images again to their size; False: the nets really get small images. A size that a classifier
            cannot take is said in its row; detectors get grey bars to the next multiple of their stride.
        down: How images get smaller: "bicubic" with antialiasing, or "area".
        detector: Settings of detectors: imgsz, batch, split, conf, iou, max_det, resamples.
        metrics: Of classifiers, as of :func:`analysis.robustness`; their means stand in the rows.
        method: "single_pass", or "naive" for a pass per resolution.
        seed: Of the resampled images.
        limit: Most images.
        amp: "bfloat16" or "float16" for autocast.
        memory: Bytes that batches may keep.
        ledger: File that keeps what was measured, so that an interrupted analysis goes on; further nets have their own
            beside it.
        progress: Show it in a terminal.
        command: What made the result, for its report.

    Returns:
        Rows per net and resolution: ``model``, ``factor``, ``height_px`` and ``width_px`` (what is left of the first
        image), ``accuracy``, or ``ap`` and ``ap_small`` (sizes of objects on disk, whatever the factor); of each
        ``_change``, to the same net at full resolution; of several nets ``_lead``, over the first one at the same
        resolution, and ``_lead_change``, what of the lead is not there at full resolution; all with paired 95%
        intervals over images; ``note``.

    Raises:
        AnalysisError: When settings, data or nets do not fit.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> data = [(torch.rand(20, 3, 8, 8), torch.arange(20) % 2)]
        >>> result = resolution(net, data, factors=(1 / 2, 1 / 4), down="area", back=False, progress=False)
        >>> [(row["resolution"], row["height_px"], row["accuracy_change"]) for row in result.rows]
        [('1', 8, 0.0), ('1/2', 4, 0.0), ('1/4', 2, 0.0)]

    References:
        Sunkara and Luo, ECML PKDD 2022, arXiv:2208.03641, who compare nets on small images and small objects.
    """
    settings = Settings(
        seed=seed, method=method, metrics=metrics, memory=memory, ledger=ledger, progress=progress, limit=limit,
        amp=amp, command=command, detector=detector,
    )  # fmt: skip
    wanted = factors_of(factors)
    shrink_images(torch.zeros(1, 1, 2, 2), 0.5, down)  # refuses what is none
    nets = _nets(model, other, labels)
    if len(nets) > 1 and isinstance(data, Iterator):
        raise AnalysisError(f"data can be gone through once only, and there are {len(nets)} nets; give a DataLoader")
    passes: dict[str, Pass] = {}
    for name, net in nets.items():
        first = next(iter(passes.values()), None)
        try:
            one = Pass.of(net, data, settings_after(settings, passes), wanted, down, back, first)
        except KeyboardInterrupt:  # before a further net was done with its first batch
            if not passes:
                raise
            break
        check_same(passes, one, name)
        passes[name] = one
        if not one.scan.complete:
            break
    scores = _scores(passes, seed)
    rows = _rows(passes, wanted, scores, None if len(passes) == 1 else next(iter(passes)))
    size = next(iter(passes.values())).size
    own = {
        "input_size": size and list(size),
        "nets": list(nets),
        "factors": wanted,
        "back": back,
        "down": down,
        "primary": scores.metrics[0],
    }
    about = next(iter(passes.values())).scan.about(scores.images, {**own, "detector": dict(detector or {})})
    several = {"images_loaded": sum(one.scan.loaded for one in passes.values()), "notes": _notes(passes)}
    complete = len(passes) == len(nets) and all(one.scan.complete for one in passes.values())
    return Resolution(rows, summary_of(rows, _notes(passes)), {**about, **several, "complete": complete})


def _nets(model: Any, other: Any, labels: Sequence[str]) -> dict[str, Any]:
    names = (labels,) if isinstance(labels, str) else tuple(labels)
    if other is None:
        return {type(unwrap(model)).__name__: model}
    others = dict(other) if isinstance(other, Mapping) else dict(zip(names[1:2], [other], strict=False))
    if not others or not names or not all(isinstance(name, str) and name for name in (names[0], *others)):
        raise AnalysisError(f"labels={labels!r}: two nets need two names; write ('original', 'operated')")
    if names[0] in others:
        raise AnalysisError(f"labels: two nets are called '{names[0]}'; name them differently")
    return {names[0]: model, **others}


def _scores(passes: Mapping[str, Pass], seed: int) -> Scores:
    readings = {name: one.readings for name, one in passes.items()}
    keys: dict[Cell, str] = {(name, factor): key for name, one in passes.items() for factor, key in one.keys.items()}
    detector = next(iter(passes.values())).scan.detector
    if detector is None:
        return Accuracies(readings, keys, seed)
    return Precisions(readings, keys, seed, detector.classes(), detector.options.resamples)


def _rows(passes: Mapping[str, Pass], wanted: Sequence[float], scores: Scores, first: str | None) -> list[Row]:
    rows = []
    for name, one in passes.items():
        empty = dict.fromkeys(columns_of(scores, (name, 1.0), first))
        for factor in wanted:
            refused = one.refused.get(factor, "")
            size = (None, None) if one.size is None else sides(factor, *one.size)
            rows.append(
                {
                    **{"model": name, "factor": factor, "resolution": named(factor)},
                    **{"height_px": size[0], "width_px": size[1], "images": 0 if refused else scores.images},
                    **(empty if refused else columns_of(scores, (name, factor), first)),
                    "note": refused,
                }
            )
    return rows


def _notes(passes: Mapping[str, Pass]) -> list[str]:
    found = {name: one.scan.notes for name, one in passes.items()}
    every = list(dict.fromkeys(note for notes in found.values() for note in notes))
    common = [note for note in every if all(note in notes for notes in found.values())]
    return common + [f"{name}: {note}" for name, notes in found.items() for note in notes if note not in common]
