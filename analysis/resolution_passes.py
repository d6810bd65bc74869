"""One net at all resolutions: its pass over the data, the sizes it cannot take, and what makes two passes comparable.

Apart from the analysis, which compares several.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from analysis.perturb import untouched
from analysis.readings import FINAL, Readings
from analysis.resolution_views import Down, Lower
from analysis.scanning import Scan
from analysis.study_settings import Settings
from analysis.variants import Variant
from surgeon.errors import AnalysisError
from surgeon.randomness import generators_kept


@dataclass(frozen=True)
class Pass:
    """One net at all resolutions.

    Attributes:
        scan: Of the net.
        readings: What was measured.
        keys: What the variant of each factor is called among them.
        refused: Factors the net cannot take, and why.
        size: (height, width) of the first image; None where it is not known.
    """

    scan: Scan
    readings: Readings
    keys: Mapping[float, str]
    refused: Mapping[float, str]
    size: tuple[int, int] | None

    @classmethod
    def of(
        cls, net: Any, data: Any, settings: Settings, wanted: Sequence[float], down: Down, back: bool,
        before: Pass | None = None,
    ) -> Pass:  # fmt: skip
        """Measure a net.

        Args:
            net: As the user gave it.
            data: Likewise.
            settings: Likewise.
            wanted: Factors.
            down: As of :func:`analysis.resolution`.
            back: Likewise.
            before: The pass of the first net, where this is another.

        Raises:
            AnalysisError: When settings, data or nets do not fit.
        """
        scan = Scan(net, data, settings)
        if before is not None and (before.scan.detector is None) != (scan.detector is None):
            kinds = " and ".join(type(one.module).__name__ for one in (before.scan, scan))
            raise AnalysisError(f"{kinds} are a classifier and a detector, which have nothing in common to compare")
        if scan.detector is not None:
            scan.task.has_loss = False  # there are no objects for it in a view
            scan.notes = [note for note in scan.notes if not note.startswith("there is no loss")]
        grid = 0 if scan.detector is None else int(scan.task.grid)
        lower = [Lower(factor, down, back, grid) for factor in wanted if factor < 1]
        first = _first(scan)
        refused = {} if back or first is None else _refused(scan, first, lower)
        variants = {one.factor: Variant("", one.name, view=one.view) for one in lower if one.factor not in refused}
        readings = scan.run("resolution", [*variants.values()], about={"down": down, "back": back})
        keys = {1.0: FINAL, **{factor: variant.key for factor, variant in variants.items()}}
        images = None if first is None else first["img"] if isinstance(first, dict) else first[0]
        return cls(scan, readings, keys, refused, None if images is None else tuple(images.shape[-2:]))


def settings_after(settings: Settings, passes: Mapping[str, Pass]) -> Settings:
    """Of a further net: a ledger of its own, and the image size of the first detector."""
    if not passes:
        return settings
    first = next(iter(passes.values())).scan
    ledger = None if settings.ledger is None else f"{settings.ledger}.{len(passes) + 1}"
    size = {} if first.detector is None else {"imgsz": first.detector.options.imgsz}
    return replace(settings, ledger=ledger, detector={**size, **(settings.detector or {})} or None)


def _first(scan: Scan) -> Any:
    """The first batch; what can be gone through once only goes on from there. None where there is none."""
    if not isinstance(scan.data, Iterable):
        return None
    with generators_kept():
        first = next(iter(scan.data), None)
    if isinstance(scan.data, Iterator) and first is not None:
        scan.data = itertools.chain([first], scan.data)
    if first is not None:
        scan.task.count(first)  # says what is wrong with it
    return first


def _refused(scan: Scan, first: Any, lower: Sequence[Lower]) -> dict[float, str]:
    """Which resolutions the model cannot take, and why: it is tried on an image."""
    device = next((p.device for p in scan.module.parameters()), torch.device("cpu"))
    found = {}
    with scan.detector or nullcontext(), untouched(scan.module):
        one = scan.task.prepare(scan.task.part(first, 0, 1), device)
        for view in lower:
            try:
                scan.task.forward(scan.module, view.view(one, 0, 0))
            except Exception as error:  # whatever the model's code raises on images it was not made for
                words = " ".join(str(error).split())[:160]
                found[view.factor] = f"the model cannot take images of this size: {type(error).__name__}: {words}"
    return found


def check_same(passes: Mapping[str, Pass], one: Pass, name: str) -> None:
    """Refuse nets that saw different images.

    Args:
        passes: Of the nets before, by name.
        one: Of the next net.
        name: Its name.

    Raises:
        AnalysisError: Likewise.
    """
    if not passes:
        return
    before, first = next(iter(passes.items()))
    marks, others = first.readings.marks, one.readings.marks
    if any(marks[number] != others[number] for number in marks.keys() & others.keys()):
        raise AnalysisError(
            f"'{before}' and '{name}' saw different images, so that nothing can be compared image by image; give the "
            "same images in the same order each time: shuffle=False, and no random transforms"
        )
