"""How well a distance of images agrees with people: correlations, response curves, choices, and small shifts.

Apart from the distance, which knows nothing of people, and from `perceptual_rows`, which makes figures of the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.correlating import RESAMPLES
from analysis.moving import shift_images
from analysis.opening import versions_of
from analysis.perceptual_distance import PerceptualDistance
from analysis.perceptual_pairs import Distance, choices, distances_beside, finite, numbers, progress_of
from analysis.perceptual_result import Perceptual
from analysis.perceptual_rows import Drawn, choice_rows, rating_rows, shift_rows, summary_of
from analysis.perceptual_settings import check_judging, checked_steps
from analysis.perturb import untouched
from analysis.ratings import RatedChoices, Ratings
from analysis.result import Row
from surgeon.randomness import generators_kept

FEW = 10  # references under which an interval is called rough


def perceptual(
    distance: Distance,
    data: Ratings | RatedChoices,
    *,
    shifts: int | Sequence[int] = 8,
    padding: str = "mirror",
    resamples: int = RESAMPLES,
    batch_size: int = 16,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
    command: str = "",
) -> Perceptual:
    """Measure how a distance of images agrees with people, and how much it sees of small shifts.

    Scores are turned so that more is worse; +1 is full agreement. Intervals (95%) come from drawing *references* anew:
    the images made from one reference are no independent witnesses. Pairs of an image with itself (level 1 of RAID),
    to which every distance answers 0, count in "curve" rows only; ``settings["self_pairs"]`` says how many there are.

    - "correlation": Spearman, Pearson (of plain distances, no fitted curve between) and Kendall's tau-b over all pairs
      and per distortion. ``spearman_of_curves``: Spearman within each reference and distortion, averaged.
    - "curve": mean distance and mean score at each level of each distortion.
    - "shift": ``relative_distance``, the distance of a reference to itself shifted by so many pixels (to the right and
      down, averaged), over the mean distance of its own distorted images; both are averaged over references before the
      one is divided by the other, so each reference weighs the same however many images were made of it.
      ``share_below``, the share of distorted images that are nearer to their reference than it is to itself shifted.
    - "choice", of two-alternative data: ``agreement``, the mean share of judges who chose as the distance does;
      ``agreement_of_judges``, what one more judge would reach.

    Args:
        distance: A :class:`PerceptualDistance`, or any function of two batches of images (N, C, H, W), values 0 to 1,
            that answers (N,): other metrics are measured alike.
        data: Of :func:`rating_data`, :func:`distorted_samples`, or your own :class:`Ratings` or :class:`RatedChoices`.
        shifts: Pixels: 1 to this number, or those named; 0 for none. Not of choices.
        padding: What comes in at the border of shifted images, "mirror" or "circular".
        resamples: Draws of references.
        batch_size: Images at once.
        limit: Use the first pairs only.
        seed: Of the draws.
        progress: Show a bar.
        command: As reports name it.

    Returns:
        One row per measure, distortion, level and shift. After Ctrl-C of the pairs measured so far.

    Raises:
        AnalysisError: When data or a setting is none, an image does not fit the distance, or a distance is no finite
            number.

    Example:
        >>> from analysis.distorting import distorted_samples
        >>> def rms(a, b): return (a - b).square().mean((1, 2, 3)).sqrt()
        >>> found = perceptual(rms, distorted_samples(images=4, distortions=["noise"]), shifts=2, resamples=50)
        >>> found.value("spearman") > 0.9, found.value("relative_distance", shift_px=1) > 0
        (True, True)

    References:
        Parameter-Efficient Architectural Modifications for Translation-Invariant CNNs, arXiv:2604.27870, section on
        image quality; Zhang et al., CVPR 2018, arXiv:1801.03924, for choices. Deviations: neither text says over what
        RAID's 0.95 is taken, so both pooled and per-curve Spearman are given; neither gives intervals.
    """
    check_judging(distance, data, padding, resamples, batch_size, limit, seed)
    steps = checked_steps(shifts)
    some = data.first(limit)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(untouched(distance) if isinstance(distance, nn.Module) else generators_kept())
        drawn = Drawn(seed, resamples)
        if isinstance(some, RatedChoices):
            found, complete = choices(distance, some, batch_size, progress)
            some = some.first(len(found))
            rows = choice_rows(some, found.numpy(), drawn)
        else:
            found, complete = numbers(distance, some, batch_size, progress)
            some = some.first(len(found))
            rows = rating_rows(some, found.numpy(), drawn)
            if complete and steps:
                more, complete = _shifted(distance, some, found.numpy(), steps, padding, batch_size, progress, drawn)
                rows += more
    asked = {"shifts": list(steps), "padding": padding, "resamples": resamples, "batch_size": batch_size}
    settings = {**_about(distance, some), **asked, "limit": limit, "seed": seed, "complete": complete}
    title = f"Perceptual distance {settings['distance']} on {some.name}"
    last = {"notes": _notes(some, complete), "command": command, "versions": versions_of()}
    return Perceptual(title, rows, summary_of(rows, settings), {**settings, **last})


def _shifted(
    distance: Distance, data: Ratings, found: Any, steps: Sequence[int], padding: str, size: int, shown: bool, d: Drawn
) -> tuple[list[Row], bool]:
    """Rows of shifts; none where Ctrl-C came."""
    beside = distances_beside(distance)
    moved = []
    try:
        with progress_of("shifts", data.references, shown) as tell:
            for done, name in enumerate(data.references, 1):
                image = data.image(name)
                versions = [_moved(image, step, padding) for step in steps]
                ask = beside(image)
                rows = [torch.cat([ask(part) for part in torch.split(one, size)]) for one in versions]
                moved.append([float(finite(row, [(name, f"{name}, shifted")] * 2).mean()) for row in rows])
                tell(done)
    except KeyboardInterrupt:
        return [], False
    return shift_rows(data, found, np.array(moved), steps, d), True


def _moved(image: Tensor, step: int, padding: str) -> Tensor:
    """An image shifted to the right, and shifted down, (2, C, H, W)."""
    return torch.cat([shift_images(image[None], dx, dy, padding) for dx, dy in ((step, 0), (0, step))])  # type: ignore[arg-type]


def _about(distance: Any, data: Ratings | RatedChoices) -> dict[str, Any]:
    """What was measured, on what."""
    named = {"data": data.name, "pairs": len(data), "references": len(data.references)}
    named["input_size"] = list(data.image(data.items[0].reference).shape)
    if isinstance(data, Ratings):
        images = {name for pair in data.items for name in (pair.reference, pair.distorted)}
        named |= {"self_pairs": sum(pair.of_one for pair in data.items), "images": len(images)}
        named |= {"higher": data.higher, "scored": data.scored, "curves": data.curves}
    else:
        named["images"] = 2 * len(data) + len(data.references)
    if not isinstance(distance, PerceptualDistance):
        name = getattr(distance, "__name__", type(distance).__name__)
        return {"distance": name, "model": name, **named}
    config = getattr(distance.backbone, "pretrained_cfg", None)
    known = config.get("architecture") if isinstance(config, dict) else None
    model = known or type(distance.backbone).__name__
    taps = ", ".join(tap.path for tap in distance.taps)
    about = {**distance.about(), "taps": taps, "weights": distance.channels}
    return {"distance": f"{model} ({distance.form})", "model": model, **named, **about}


def _notes(data: Ratings | RatedChoices, complete: bool) -> list[str]:
    notes = [] if complete else ["stopped before all images were measured; figures are of those seen"]
    if isinstance(data, Ratings) and len(data.references) < FEW:
        notes.append(f"{len(data.references)} references only: intervals are rough, and rather too narrow")
    if isinstance(data, Ratings) and (same := sum(pair.of_one for pair in data.items)):
        notes.append(f"{same} of {len(data)} pairs are of an image with itself: they count in the curves only")
    return notes
