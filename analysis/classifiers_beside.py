"""What two classifiers are compared by beyond what any two nets are: choices, loss, moved images.

Apart from the measures of detectors, which answer boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, ttest_1samp

from analysis.agreeing import consistency
from analysis.beside import Kit, Pair, Part, attributions, costs, equivariances, resolutions, robustnesses, takes_of
from analysis.differing_images import same_images
from analysis.disagreeing import Disagreement, disagreements
from analysis.features_shifted import equivariance
from analysis.intervals import difference_of_ratios
from analysis.layerwise import robustness
from analysis.readings import FINAL
from analysis.resolving import resolution
from analysis.result import Row
from analysis.saliency_shifts import attribution_equivariance
from analysis.scanning import Scan
from analysis.study_settings import Settings
from analysis.timing import milliseconds
from analysis.translating import translation


def accuracies(pair: Pair) -> tuple[Part, Callable[[int], list[Disagreement]]]:
    """Accuracy, loss, and how often the nets disagree."""
    scans, found = [Scan(model, pair.data, Settings(**pair.common)) for model in pair.models], []
    for scan in scans:
        scan.task.choices = True
        found.append(scan.run("compare", []))
        if not scan.complete:
            raise KeyboardInterrupt
    same_images(found)
    wrong, losses, chosen = ([r.values(FINAL, name) for r in found] for name in ("error", "loss", "class"))
    images = min(map(len, chosen))
    differ = chosen[0][:images] != chosen[1][:images]
    only = [((1 - wrong[i][:images].astype(int)) * wrong[1 - i][:images]).sum() for i in (0, 1)]
    rows = [pair.paired("accuracy", 1 - wrong[0], 1 - wrong[1])]
    if all(np.isfinite(each).all() for each in losses):
        rows.append(_unbounded(pair, "loss", *losses))
    rows.append(pair.row("images only this net gets right", [int(each) for each in only], None, images))
    own = {"disagree_share": float(differ.mean()), "disagree_images": int(differ.sum())}
    return Part(rows, own=own, said=_said(pair.labels, rows, own)), partial(disagreements, pair.data, found)


def _said(labels: tuple[str, str], rows: list[Row], own: dict[str, Any]) -> list[str]:
    """Accuracies and disagreements in words."""
    accuracy, gains = rows[0], [int(rows[-1][label]) for label in labels]
    sure = binomtest(gains[1], sum(gains)).pvalue if sum(gains) else 1.0
    return [
        f"{accuracy['images']} images: accuracy {accuracy[labels[0]]:.2%} of {labels[0]}, {accuracy[labels[1]]:.2%} of "
        f"{labels[1]} ({100 * accuracy['difference']:+.2f} points, "
        f"{100 * accuracy['difference_low_95']:+.2f} to {100 * accuracy['difference_high_95']:+.2f})",
        f"they disagree on {own['disagree_images']}; {gains[0]} only {labels[0]} gets right, {gains[1]} only "
        f"{labels[1]} (sign test p = {sure:.2g})",
    ]


def _unbounded(pair: Pair, measure: str, one: NDArray[Any], other: NDArray[Any]) -> Row:
    """A mean over images without bounds: Student's interval of the paired differences."""
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


CLASSIFIERS = Kit(
    accuracies,
    {
        **{"translation": translations, "consistency": consistencies, "resolution": resolutions},
        **{"equivariance": equivariances, "robustness": robustnesses, "attribution": attributions, "cost": costs},
    },
    takes_of(
        {
            **{"translation": translation, "consistency": consistency, "resolution": resolution},
            **{"equivariance": equivariance, "robustness": robustness, "attribution": attribution_equivariance},
            **{"cost": milliseconds},
        }
    ),
)
