"""A scan: one model measured on many views of the same images, or with parts of it disturbed, in one pass over data.

What translation, consistency, resolution and shuffles at test time have in common. Apart from studies, which exchange
the values of units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from analysis.intervals import wilson
from analysis.judging import ErrorMeasures, Measures
from analysis.model_names import model_name
from analysis.opening import fingerprint, open_data, versions_of
from analysis.readings import FINAL, Ledger, Readings
from analysis.sharing import world
from analysis.study_settings import TYPES, Settings, check, size_in_bytes
from analysis.sweeping import sweep
from analysis.variants import Plan, Variant, View
from surgeon.host import unwrap

Parts = Mapping[str, tuple[Sequence[str], Sequence[str]]]


class Scan:
    """A model, its batches, and how they are gone through.

    Args:
        model: A classifier, or an ultralytics detector.
        data: Batches of (images, class indices); of a detector a data yaml, or batches of (images, [{"boxes",
            "labels"}]).
        settings: ``method``, ``seed``, ``limit``, ``amp``, ``memory``, ``ledger``, ``progress``, ``command``,
            ``metrics`` and ``detector``; the others do not matter here.

    Attributes:
        task: What is measured of each image.
        detector: What looks after a detector; None of classifiers.
        notes: What is worth saying of the scan.
        complete: False once Ctrl-C has ended it.
        loaded: Images that were loaded, over all processes.

    Raises:
        AnalysisError: When they do not fit together.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model, data = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), [(torch.rand(3, 1, 2, 2), torch.arange(3) % 2)]
        >>> scan = Scan(model, data, Settings(progress=False))
        >>> dark = Variant("", "dark", view=lambda batch, number, start: (batch[0] * 0, batch[1]))
        >>> readings = scan.run("brightness", [dark])
        >>> len(readings.values(dark.key, "loss"))
        3
    """

    def __init__(self, model: Any, data: Any, settings: Settings) -> None:
        check(settings)
        self.module, self.settings = unwrap(model), settings
        self.task: Any
        self.task, self.data, self.detector = open_data(model, data, settings)
        self.notes: list[str] = [] if self.detector is None else list(self.detector.notes)
        self.complete, self.loaded = True, 0

    def run(
        self, name: str, variants: Sequence[Variant], *, parts: Parts | None = None, view: View | None = None,
        about: Mapping[str, Any] | None = None, module: Any = None,
    ) -> Readings:  # fmt: skip
        """Measure the untouched model and all variants.

        Args:
            name: Of the analysis, which its ledger is about.
            variants: Their ``part`` is one of ``parts``, or "" for the whole model.
            parts: Of each part: paths of its modules, and names of the tensors it holds.
            view: What the untouched model is shown of a batch; None for the batch.
            about: What tells this scan from another of the same name and variants, as plain values.
            module: Run this instead of the model, a copy of it for instance.

        Raises:
            KeyboardInterrupt: When that came before the first batch was done, so that there is nothing to tell.
        """
        s, module = self.settings, self.module if module is None else module
        ledger = None if s.ledger is None else Ledger(s.ledger, self._about(name, variants, about or {}))
        plan = Plan(
            model=module, task=self.task, data=self.data, parts=parts or {}, variants=variants, method=s.method,
            view=view, memory=size_in_bytes(s.memory), tolerance=s.tolerance, ledger=ledger, limit=s.limit,
            seed=s.seed, amp=None if s.amp is None else TYPES[s.amp], progress=s.progress,
        )  # fmt: skip
        with self.detector or nullcontext():
            readings, complete = sweep(plan)
        self.complete = self.complete and complete
        self.notes += [note for note in plan.notes if note not in self.notes]
        if not complete:
            self.notes.append("stopped before all images were measured; intervals are of those seen")
        if not readings.images(FINAL):
            raise KeyboardInterrupt
        self.loaded += sum(world().gathered(plan.loaded))
        return readings

    def about(self, images: int, own: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a result: which model and images, what was asked, what made it.

        Args:
            images: Measured.
            own: Settings of the analysis itself.
        """
        s = self.settings
        return {
            **{"model": model_name(self.module), "images": images, "images_loaded": self.loaded, **own},
            **{"method": s.method, "seed": s.seed, "amp": s.amp, "limit": s.limit},
            **{"complete": self.complete, "notes": self.notes},
            **{"command": s.command, "versions": versions_of()},
        }

    def said(self) -> str:
        """The notes as the end of a summary."""
        return "".join(f" Note: {note}." for note in self.notes)

    def measures(self, readings: Readings, cells: Sequence[tuple[str, str, int]]) -> Measures:
        """Figures of what was measured: of classifiers the error, of detectors AP, beside the untouched model's."""
        if self.detector is None:
            return ErrorMeasures(readings, cells, self.settings.tolerance, self.settings.seed, self.loaded)
        s = self.settings
        return self.detector.measures(readings, cells, s.tolerance, s.seed, self.loaded)  # type: ignore[no-any-return]

    def _about(self, name: str, variants: Sequence[Variant], more: Mapping[str, Any]) -> dict[str, Any]:
        s = self.settings
        return {
            "analysis": name,
            "model": fingerprint(self.module),
            "variants": [variant.key for variant in variants],
            "metrics": sorted(s.metrics or ()),
            **{"seed": s.seed, "limit": s.limit, "amp": s.amp, "method": s.method},
            **({} if self.detector is None else {"detector": self.detector.about}),
            **more,
        }


def accuracy(wrong: Any) -> dict[str, float]:
    """Accuracy and its Wilson interval, as columns.

    Args:
        wrong: Of each image, whether it is wrong.

    Example:
        >>> import numpy as np
        >>> accuracy(np.array([0, 0, 0, 1]))["accuracy"]
        0.75
    """
    right = len(wrong) - int(wrong.sum())
    low, high = wilson(right, len(wrong))
    return {"accuracy": right / len(wrong), "accuracy_low_95": low, "accuracy_high_95": high}
