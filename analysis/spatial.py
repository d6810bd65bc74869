"""What a trained network makes of where things are: its features shuffled at test time, unit by unit.

Fan, Xian, Losch and Schiele, Analyzing the Dependency of ConvNets on Spatial Information, GCPR 2020, arXiv:2002.01827,
sections 3.1, 4.1, 4.3 and 4.4. The paper trains a net anew for each shuffle; this is what one net says at test time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from analysis.opening import input_size_of
from analysis.parts import Level, Unit
from analysis.readings import FINAL
from analysis.scanning import Scan
from analysis.shuffle_cells import Which, cells_of, parts_of, places_by_unit, variants_of
from analysis.shuffling import How, Opened, Place, insert_shuffles
from analysis.spatial_result import SpatialDependence, rows_of, summary_of
from analysis.study_settings import Settings, check
from analysis.studying import units_of
from analysis.tasks import Metric
from analysis.variants import Method
from surgeon.errors import AnalysisError
from surgeon.host import InputSize, host_of, unwrap
from surgeon.randomness import generators_kept

SHUFFLES = ("spatial", "patch", "channel")
NAMED = 3  # of a list in a note


def spatial_dependence(
    model: Any,
    data: Iterable[Any] | Any,
    *,
    shuffles: Sequence[str] = SHUFFLES,
    patches: Sequence[int] = (2, 4),
    units: Level | Sequence[Unit] = "block",
    which: Sequence[Which] = ("alone", "last"),
    passes: int = 5,
    skips: bool = True,
    seed: int = 0,
    method: Method = "single_pass",
    metrics: Mapping[str, Metric] | None = None,
    memory: int | str = "1GiB",
    ledger: str | Path | None = None,
    progress: bool = True,
    limit: int | None = None,
    amp: str | None = None,
    command: str = "",
    detector: Mapping[str, Any] | None = None,
    input_size: InputSize = None,
) -> SpatialDependence:
    """Measure how much a trained network needs to know where its features are, by shuffling them at test time.

    What the convs larger than 1x1 of a unit read is shuffled, and the features of its skips, each by a permutation of
    its own, shared by the images of a batch and drawn anew for each batch and pass. Everything happens in a copy of
    the network; yours is not touched. Pooling and attention read positions too, and are not shuffled.

    Args:
        model: A classifier, or an ultralytics detector.
        data: Batches of (images, class indices); of a detector a data yaml, or batches of (images, [{"boxes",
            "labels"}]).
        shuffles: "spatial" permutes all positions of each channel by itself, "patch" within cells of a grid, "channel"
            the order of the channels, alike at all positions.
        patches: Sides of the cells in pixels, for "patch".
        units: What is shuffled together: "layer", "block" or "stage", or units from ``analysis.units``. Units without a
            conv larger than 1x1 are left out.
        which: "alone", each unit by itself; "last", the last 1, 2, ... units together.
        passes: Draws of each, averaged.
        skips: Whether the features of skips are shuffled, so that they carry nothing around the convs.
        seed: Of draws and resamples.
        method: "single_pass": one pass over the data for all, computing only what lies behind what is shuffled;
            "naive": a pass for each draw. The numbers are the same.
        metrics: More columns: functions of (logits, targets) that answer a number per image.
        memory: What kept answers of a batch may take, bytes or as "1GiB"; larger batches are cut.
        ledger: File that keeps what was measured, so that an interrupted analysis goes on.
        progress: Show it in a terminal.
        limit: Most images.
        amp: "bfloat16" or "float16" for autocast.
        command: What made the result, for its report.
        detector: Of detectors: ``imgsz``, ``batch``, ``split``, ``conf``, ``iou``, ``max_det``, ``resamples``.
        input_size: (C, H, W) of the images; by default that of the first ones, or the model's own.

    Returns:
        Rows per unit (or number of last units), shuffle and patch: accuracy (AP), averaged over the passes, with its
        95% interval (Wilson), loss, agreement with the untouched net, the paired ``drop`` and its 95% interval (images
        resampled), the standard deviation over the passes. After Ctrl-C those of the images seen so far.

    Raises:
        AnalysisError: When settings, data and model do not fit, or the model has no conv larger than 1x1.
        SurgeonError: When the model cannot be recorded.

    Example:
        >>> import torch, surgeon
        >>> model = surgeon.create_model("digits_convnet")
        >>> data = [(torch.rand(16, 1, 16, 16), torch.arange(16) % 10)]
        >>> result = spatial_dependence(model, data, patches=[2], passes=2, progress=False)
        >>> result.units, result.tail("channel", tolerance=1.0)
        (['stage1.block1', 'stage2.block1', 'stage3.block1', 'stage3.block2'], 4)

    References:
        Fan et al. 2020, Table 1 (test-time rows) and the forms of Figures 4, 6 and 7. In a residual block the skip is
        shuffled behind its projection; the paper does not say where.
    """
    settings = Settings(
        seed=seed, method=method, metrics=metrics, memory=memory, ledger=ledger, progress=progress, limit=limit,
        amp=amp, command=command, detector=detector, input_size=input_size,
    )  # fmt: skip
    check(settings)
    hows = _hows(shuffles, patches, which, passes)
    scan = _scan_of_copy(model, data, settings)
    size = _size(scan, data, input_size)
    wanted = units_of(scan.module, units, size)
    opened = insert_shuffles(scan.module, skips, size)
    held = places_by_unit(wanted, opened.places)
    if not any(place.site.kind != "skip" for mine in held.values() for place in mine):
        raise AnalysisError(_none(scan.module, opened))
    scan.notes += _notes(wanted, opened, held)
    cells = cells_of(held, which, hows, fixed=scan.detector is None)
    if any(cell.treatment != cell.how.name for cell in cells):
        opened.switch.largest = {place.number: place.side for mine in held.values() for place in mine}
    about = {"passes": passes, "skips": skips, "sites": [place.site.path for place in opened.places]}
    variants = variants_of(cells, held, passes, seed, opened.switch)
    readings = scan.run("spatial_dependence", variants, parts=parts_of(cells, held), about=about)
    measures = scan.measures(readings, sorted({(cell.part, cell.treatment, passes) for cell in cells}))
    own = {
        **{"primary": "accuracy" if scan.detector is None else "ap", "units_shuffled": list(held)},
        **{"units": units if isinstance(units, str) else [unit.name for unit in wanted], "which": list(which)},
        **{"shuffles": list(shuffles), "patches": list(patches), "passes": passes, "skips": skips},
        **{"input_size": list(size) if isinstance(size, tuple) else size, "metrics": sorted(metrics or ())},
        **({} if scan.detector is None else {"detector": scan.detector.about}),
    }
    result = SpatialDependence(rows_of(cells, held, measures), "", scan.about(readings.images(FINAL), own))
    result.summary = summary_of(result) + scan.said()
    return result


def _hows(shuffles: Sequence[str], patches: Sequence[int], which: Sequence[str], passes: int) -> list[How]:
    """The ways to shuffle that are asked for; bad ones are refused."""
    for name, given, known in (("shuffles", shuffles, SHUFFLES), ("which", which, get_args(Which))):
        odd = [given] if isinstance(given, str) else [one for one in given if one not in known]
        if odd or not given or len(set(given)) < len(given):
            raise AnalysisError(f"{name} is {given!r}; give some of {', '.join(known)}, each once, as a list")
    whole = [isinstance(patch, int) and not isinstance(patch, bool) and patch > 1 for patch in patches]
    if "patch" in shuffles and not (whole and all(whole) and len(set(patches)) == len(whole)):
        raise AnalysisError(f"patches is {patches!r}; give sides of cells in pixels, at least 2, each once, as [2, 4]")
    if not isinstance(passes, int) or isinstance(passes, bool) or passes < 1:
        raise AnalysisError(f"passes is {passes!r}; give a number of draws to average, at least 1")
    found = []
    for shuffle in shuffles:
        found += [How("patch", patch) for patch in patches] if shuffle == "patch" else [How(shuffle)]
    return found


def _scan_of_copy(model: Any, data: Any, settings: Settings) -> Scan:
    module, host = unwrap(model), host_of(model)
    with generators_kept():
        twin = copy.deepcopy(module)
    return Scan(twin if host is None else host.around(model, twin), data, settings)


def _size(scan: Scan, data: Any, given: InputSize) -> InputSize:
    """The size of the images: the user's, else that of the first images, else the model's own."""
    if given is None and scan.detector is None and isinstance(data, Iterable) and not isinstance(data, Iterator):
        with generators_kept():
            first = next(iter(data), None)
        if first is not None and scan.task.count(first) and first[0].ndim == 4:
            return (first[0].shape[1], first[0].shape[2], first[0].shape[3])
    return input_size_of(scan.module, scan.task, data, given)


def _none(module: Any, opened: Opened) -> str:
    """Why there is nothing to shuffle."""
    reasons = "; ".join(f"'{path}' {reason}" for path, reason in list(opened.refused.items())[:NAMED])
    return (
        f"no unit of {type(module).__name__} has a conv larger than 1x1 that can be shuffled, so there is nothing to "
        f"measure{f': {reasons}' if reasons else ''}; give a convolutional network, or other units"
    )


def _notes(units: Sequence[Unit], opened: Opened, held: Mapping[str, Sequence[Place]]) -> list[str]:
    """Which units and sites are left out."""
    notes, used = [], {place.number for mine in held.values() for place in mine}
    if without := [unit.name for unit in units if unit.name not in held]:
        notes.append(f"{len(held)} of {len(units)} units have a conv larger than 1x1; not so {_listed(without)}")
    if bare := [name for name, mine in held.items() if all(place.site.kind == "skip" for place in mine)]:
        notes.append(f"of {_listed(bare)} only a skip is shuffled")
    if out := [place.site.path for place in opened.places if place.site.kind == "skip" and place.number not in used]:
        notes.append(f"skips that lie in no unit are not shuffled: {_listed(out)}")
    if refused := [f"'{path}' ({reason})" for path, reason in opened.refused.items()]:
        notes.append(f"cannot be shuffled: {_listed(refused)}")
    return notes


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
