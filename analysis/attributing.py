"""How much of the answer flows through each unit, beside what drawing that unit anew costs.

Apart from the methods (`unit_flow`), which see a few images, and from what comes of it (`attribution_result`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analysis.attribution_result import Attribution, Beside, Column, beside_of, result_of, strangers
from analysis.attribution_settings import Asked, baseline_of, methods_of
from analysis.explaining import Explained
from analysis.layerwise import robustness as measure_robustness
from analysis.model_names import model_name
from analysis.parts import Level, Unit
from analysis.result import Result
from analysis.studying import units_of
from analysis.unit_flow import BRANCH, METHODS, Job
from analysis.unit_taps import Place, identity_blocks, places_of, tapped
from surgeon import locate
from surgeon.errors import AnalysisError
from surgeon.host import InputSize

Values = NDArray[np.float64]
LEAST = 1e-6  # share of the answer by which image and baseline must differ


def attribution(
    model: Any,
    data: Iterable[Any] | Any,
    *,
    method: str | Sequence[str] = "conductance",
    units: Level | Sequence[Unit] = "block",
    baseline: str | float | Tensor = "zero",
    steps: int = 50,
    target: str | None = None,
    robustness: Result | bool = True,
    draws: int = 1,
    internal_batch_size: int | None = None,
    memory: int | str = "1GiB",
    top: int = 100,
    seed: int = 0,
    limit: int | None = None,
    progress: bool = True,
    amp: str | None = None,
    command: str = "",
    detector: Mapping[str, Any] | None = None,
    input_size: InputSize = None,
) -> Attribution:
    """Measure how much of a model's answer flows through each unit, and whether that tells what the unit is worth.

    An attribution gives each number in a unit's output a part of the difference f(x) - f(baseline), f being the logit
    of a class; of a detector the sum of its ``top`` largest scores. Summed over the unit, and divided by that
    difference so that images compare, this is the unit's *signed share*: of conductance exactly 1 wherever everything
    passes through, the less the more goes past the unit. The sum of absolute values, the *absolute share*, grows with
    what cancels, and is what ranks units. It stands beside the loss when the unit is drawn anew
    (:func:`analysis.robustness`), with Spearman's correlation of the two over the units. The model is put back bit for
    bit.

    Of a unit of several modules, that module's output counts which finishes last; of one called several times, the
    last call; of one that answers several tensors, the first. The column ``taken`` says so. Code that writes into its
    input is of no consequence: units see a copy.

    Args:
        model: A classifier, or a ``YOLO``/``RTDETR`` object.
        data: Batches of (images, class indices); of a detector a data yaml, or batches of (images, [{"boxes",
            "labels"}]).
        method: "conductance", "branch_conductance" (of residual blocks without what their skip carries),
            "integrated_gradients" or "gradient_x_activation", or several (`analysis.unit_flow`).
        units: "layer", "block" or "stage", or a list from :func:`analysis.units`.
        baseline: "zero", "mean" (each image's mean colour), "blur", a number, or a tensor of one image; as the model
            takes them, so that "zero" of normalised images is the mean colour of the data.
        steps: Of the path from baseline to image; even.
        target: Class whose logit is explained: "label" (the default) or "predicted"; of detectors "confidence".
        robustness: A result of :func:`analysis.robustness` for the same units; True measures it on the same data;
            False leaves it out.
        draws: Fresh draws of each unit, where it is measured.
        internal_batch_size: Images in one forward and backward pass, points of a path counted as such; by default as
            many as ``memory`` holds.
        memory: What a pass may take, bytes or as "1GiB"; an estimate.
        top: Of a detector, places that count.
        seed: Of draws and resamples, and of a network's own random layers.
        limit: Most images.
        progress: Show it in a terminal.
        amp: "bfloat16" or "float16" for autocast.
        command: What made the result, for its report.
        detector: Of detectors: ``imgsz``, ``batch``, ``split`` and so on, as of :func:`analysis.robustness`.
        input_size: As for ``surgeon.locate``; by default the model's own, or that of the first images.

    Returns:
        Rows per method and unit: shares as medians over images with distribution-free 95% intervals, the integration
        error, the loss when drawn anew. ``rank_correlation`` has the correlations. After Ctrl-C those of the images
        seen so far.

    Raises:
        AnalysisError: When captum is missing, a method is unknown, or settings, data, model and robustness do not fit.

    Example:
        >>> import surgeon, torch
        >>> model = surgeon.create_model("fcn", depth=2, width=16, in_chans=1, img_size=8)
        >>> data = [(torch.rand(20, 1, 8, 8), torch.arange(20) % 10)]
        >>> found = attribution(model, data, progress=False)
        >>> [(row["unit"], round(row["signed_share"], 1)) for row in found.rows]
        [('layer1', 1.0), ('layer2', 1.0), ('final_linear', 1.0)]

    References:
        Dhamdhere, Sundararajan and Yan, How Important Is a Neuron?, ICLR 2019, arXiv:1805.12233.
        Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996 (drawing units anew).
        Putting the two side by side, and the shares, are ours.
    """
    asked = Asked(
        "attribution", methods_of("attribution", method, METHODS), baseline, steps, target, top, internal_batch_size,
        memory, seed, limit, progress, amp, command, detector, input_size,
    )  # fmt: skip
    if not isinstance(robustness, (bool, Result)):
        raise AnalysisError(
            f"attribution: robustness is {robustness!r}; give a result of analysis.robustness, True to measure it, or "
            "False"
        )
    explained = Explained(model, data, asked)
    members = units_of(model, units, explained.input_size)
    given = beside_of(robustness, members) if isinstance(robustness, Result) else None
    found = _measure(explained, members)
    if isinstance(robustness, Result):
        about = {"model": model_name(explained.module), "images": sum(map(len, found.changes))}
        explained.notes += strangers(robustness, about)
    beside = given
    if robustness is True and explained.complete:
        more: dict[str, Any] = {"memory": memory, "detector": detector, "input_size": input_size, "command": command}
        try:
            own = measure_robustness(
                model, data, units=members, draws=draws, seed=seed, limit=limit, progress=progress, amp=amp, **more
            )
            beside, explained.complete = beside_of(own, members), own.complete
        except KeyboardInterrupt:
            explained.complete = False
            explained.notes.append("stopped before any unit was drawn anew")
    return result_of(explained, found, beside, "given" if given else "measured" if beside else "left out")


@dataclass
class Found:
    """What was measured: of each method, (images, units + 1, 3), the input first; where the units' outputs are.

    Attributes:
        places: Of each unit.
        sums: By method.
        changes: f(x) - f(baseline) of each image.
        answers: f(x).
    """

    places: list[Place] = field(default_factory=list)
    sums: dict[str, list[Values]] = field(default_factory=dict)
    changes: list[Values] = field(default_factory=list)
    answers: list[Values] = field(default_factory=list)

    def columns(self) -> tuple[list[Column], dict[str, Values], int]:
        """Per unit and method the shares; those of the input by method; and how many images are left out.

        Images whose answer is all but that of the baseline have no shares.
        """
        change, answer = np.concatenate(self.changes), np.concatenate(self.answers)
        told = np.isfinite(change) & (np.abs(change) > LEAST * (np.abs(answer) + np.abs(answer - change)))
        found, inputs = [], {}
        for method, parts in self.sums.items():
            sums, by = np.concatenate(parts)[told], change[told][:, None]
            shares = np.stack([sums[..., 0] / np.abs(by), sums[..., 1] / by, sums[..., 2] / np.abs(by)], 2)
            inputs[method] = shares[:, 0]
            place = iter(range(1, shares.shape[1]))
            found += [Column(method, one, None if one.trouble else shares[:, next(place)]) for one in self.places]
        return found, inputs, int((~told).sum())


def _measure(explained: Explained, members: Sequence[Unit]) -> Found:
    found, asked = Found(), explained.asked
    with explained.ready():
        try:
            for images, targets in explained.rounds():
                if not found.places:
                    found.places = _places(explained, members, images, targets)
                _add(explained, found, images, targets)
        except KeyboardInterrupt:
            if not found.changes:
                raise
            explained.complete = False
            explained.notes.append("stopped before all images were explained; figures are of those seen")
    if all(place.trouble for place in found.places):
        raise AnalysisError(f"{asked.verb}: no unit has an output: {found.places[0].trouble}; try units='layer'")
    return found


def _places(explained: Explained, members: Sequence[Unit], images: Tensor, targets: Tensor) -> list[Place]:
    def run(some: Tensor) -> Any:
        return explained.objective(some, targets[:1].expand(len(some)))

    skipped = (
        identity_blocks(locate(explained.module, explained.input_size)) if BRANCH in explained.asked.methods else ()
    )
    return places_of(explained.module, members, run, images, skipped)


def _add(explained: Explained, found: Found, images: Tensor, targets: Tensor) -> None:
    """Explain a batch by all methods; what is added of it is whole."""
    asked, objective = explained.asked, explained.objective
    there = [place for place in found.places if not place.trouble]
    base = baseline_of(asked.verb, images, asked.baseline)
    with tapped(explained.module, there) as taps:
        at_once = explained.at_once(images, targets, sum(place.values for place in there))
        job = Job(objective, [objective.image, *taps], images, targets, base, asked.steps, at_once)
        answers = job.answers(images)
        change = answers - job.answers(base)
        sums = {name: METHODS[name](job) for name in asked.methods}
    for name, value in sums.items():
        found.sums.setdefault(name, []).append(value.cpu().numpy())
    found.changes.append(change.cpu().numpy())
    found.answers.append(answers.cpu().numpy())


__all__ = ["Attribution", "Beside", "attribution"]
