"""How far what a detector finds in an image and in a moved one differ: jitter, flips, what comes and goes.

Apart from the analysis, which knows models and data: here are the definitions, on plain arrays, image by image, and
what they come to over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.detection_frames import Seen
from analysis.detection_matching import CLASS, CORNERS, SCORE, Boxes, Pairs, match, match_by_truth, overlaps, things
from analysis.detection_scores import FEWEST
from analysis.intervals import RESAMPLES, wilson
from analysis.result import Row
from analysis.shift_views import Shift, moved_boxes

Tally = NDArray[np.float64]
COUNTED = (
    *("before", "after", "pairs", "vanished", "appeared", "flips"),
    *("distance", "relative", "apart", "resized", "score"),
)
MEASURES = {  # the column, what is summed, and what it is divided by
    "jitter_px": ("distance", "pairs"),
    "jitter_share": ("relative", "pairs"),
    "overlap_lost": ("apart", "pairs"),
    "size_change_share": ("resized", "pairs"),
    "score_change": ("score", "pairs"),
    "flip_share": ("flips", "pairs"),
    "vanished_share": ("vanished", "before"),
    "appeared_share": ("appeared", "after"),
}
COUNTS = ("flip_share", "vanished_share", "appeared_share")  # shares of things that either happen or not
AT_BORDER = 1.0  # pixel the net sees: a box that comes this near to the border may be cut
AT_ONCE = 2**22  # numbers multiplied at once


@dataclass(frozen=True)
class Rules:
    """What is compared with what.

    Attributes:
        conf: Lowest score of a detection that counts.
        overlap: Above which two detections of one view are on one thing.
        match_iou: Smallest overlap of a pair.
        wrapped: Whether what leaves the image comes in on the other side.
    """

    conf: float
    overlap: float
    match_iou: float
    wrapped: bool


def tally(still: Seen, moved: Seen, shift: Shift, rules: Rules) -> Tally:
    """Compare one image with itself after a shift; sums in the order of ``COUNTED``, (2, sums).

    The first line pairs detections with detections, the second those of the same object of the truth. Whatever
    touches the border of either view is left out, as it may be cut there.

    Args:
        still: The image as it is.
        moved: The same after the shift.
        shift: Pixels the net sees, right and down.
        rules: What counts.
    """
    by = (shift[0] / still.gain[0], shift[1] / still.gain[1])
    back, frame = (-by[0], -by[1]), (still.side[1], still.side[0])
    one, other = (things(view.found, rules.conf, rules.overlap) for view in (still, moved))
    ahead = one.copy()
    ahead[:, CORNERS] = moved_boxes(one[:, CORNERS], by, frame, rules.wrapped)
    returned = moved_boxes(other[:, CORNERS], back, frame, rules.wrapped)
    whole = _inside(one, still) & _inside(ahead, moved)
    plain = match(ahead, other, rules.match_iou)
    kept = Pairs(*(side[whole[plain.first]] for side in (plain.first, plain.second)))
    new = _inside(other, moved) & _inside(returned, still)
    new[plain.second] = False
    gone = whole.sum() - len(kept.first)
    after = (_inside(other, moved) & _inside(returned, still)).sum()
    by_truth = _by_truth(still, moved, by, (one, ahead, other), rules)
    return np.stack([_sums(ahead, other, kept, still, (whole.sum(), after, gone, new.sum())), by_truth])


def _by_truth(still: Seen, moved: Seen, by: Shift, found: tuple[Boxes, Boxes, Boxes], rules: Rules) -> Tally:
    one, ahead, other = found
    frame = (still.side[1], still.side[0])
    truth = still.truth.copy()
    truth[:, CORNERS] = moved_boxes(truth[:, CORNERS], by, frame, rules.wrapped)
    whole = _inside(still.truth, still) & _inside(truth, moved)
    truth[:, CORNERS] = np.clip(truth[:, CORNERS], 0, np.tile(moved.side, 2))
    pairs, before, after = match_by_truth(one, other, (still.truth, truth), rules.match_iou)
    common = np.intersect1d(before.first, after.first, assume_unique=True)
    kept = Pairs(*(side[whole[common]] for side in (pairs.first, pairs.second)))
    counts = [int(whole[each.first].sum()) for each in (before, after)]
    lost = [count - len(kept.first) for count in counts]
    return _sums(ahead, other, kept, still, (*counts, *lost))


def _inside(boxes: Boxes, view: Seen) -> NDArray[np.bool_]:
    near = AT_BORDER / view.gain
    far: NDArray[np.bool_] = np.concatenate([boxes[:, :2] >= near, boxes[:, 2:4] <= view.side - near], 1)
    return np.asarray(far.all(1))


def _sums(ahead: Boxes, other: Boxes, pairs: Pairs, view: Seen, counts: Sequence[float]) -> Tally:
    """Sums over pairs, distances in pixels that the net sees."""
    first, second = ahead[pairs.first], other[pairs.second]
    one, two = (boxes[:, CORNERS] * np.tile(view.gain, 2) for boxes in (first, second))
    away = np.hypot(*((two[:, :2] + two[:, 2:] - one[:, :2] - one[:, 2:]) / 2).T)
    sides = [np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], 1)) for boxes in (one, two)]
    least = np.maximum(sides[0], np.finfo(float).tiny)
    apart = 1 - np.diagonal(overlaps(one, two))
    flips = first[:, CLASS] != second[:, CLASS]
    scores = np.abs(first[:, SCORE] - second[:, SCORE])
    before, after, gone, new = counts
    summed = (away, away / least, apart, np.abs(sides[1] / least - 1), scores)
    return np.array([before, after, len(first), gone, new, flips.sum(), *(values.sum() for values in summed)])


class Drawn:
    """Images drawn anew with replacement, always the same draws: what images share (detections of one) stays together.

    Args:
        images: How many there are.
        seed: Of the draws.
        resamples: Number of draws; none below 10 images.
    """

    def __init__(self, images: int, seed: int, resamples: int = RESAMPLES) -> None:
        self.images, self.seed, self.resamples = images, seed, resamples if images >= FEWEST else 0

    @cached_property
    def counts(self) -> NDArray[np.uint16]:
        """How often each image is drawn, (draws, images)."""
        generator = np.random.default_rng(self.seed)
        shares = np.full(self.images, 1 / self.images)
        return generator.multinomial(self.images, shares, size=self.resamples).astype(np.uint16)

    def sums(self, values: Tally) -> Tally:
        """Sums of ``values`` (images, columns) over each draw, (draws, columns)."""
        some = max(1, AT_ONCE // max(self.images, 1))
        parts = [self.counts[i : i + some].astype(float) @ values for i in range(0, self.resamples, some)]
        return np.concatenate([*parts, np.empty((0, values.shape[1]))])


def columns_of(tallies: Tally, drawn: Drawn, prefix: str = "") -> Row:
    """Each measure over all images and its 95% interval, from drawing the images anew.

    Of flips, and of what comes and goes, none in any image (or all in each) is no certainty: there Wilson's interval
    over the images that had something to count stands in.

    Args:
        tallies: Sums of each image, in the order of ``COUNTED``, (images, sums).
        drawn: Of these images.
        prefix: Of the columns.
    """
    sums = dict(zip(COUNTED, tallies.sum(0), strict=True))
    draws = dict(zip(COUNTED, drawn.sums(tallies).T, strict=True))
    row: Row = {}
    for name, (part, whole) in MEASURES.items():
        value, low, high = None, None, None
        if sums[whole]:
            value = float(sums[part] / sums[whole])
            there = draws[whole] > 0
            if there.sum() * 2 > drawn.resamples > 0:
                low, high = (float(v) for v in np.quantile(draws[part][there] / draws[whole][there], (0.025, 0.975)))
            if name in COUNTS and value in (0.0, 1.0) and low is not None:
                counted = int((tallies[:, COUNTED.index(whole)] > 0).sum())
                low, high = wilson(int(value) * counted, counted)
        row |= {f"{prefix}{name}": value, f"{prefix}{name}_low_95": low, f"{prefix}{name}_high_95": high}
    return row
