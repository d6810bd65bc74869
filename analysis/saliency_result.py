"""Maps compared pixel by pixel: correlations and distances with what chance gives, as rows with intervals.

Apart from `saliency_shifts`, which makes the maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from analysis.correlating import ratio_bounds
from analysis.explaining import Explained
from analysis.moving import shift_images
from analysis.result import ReadBack, Row, as_text
from surgeon.table import table

Values = NDArray[np.float64]
Pair = tuple[int, int]
MEASURES = ("pearson", "spearman", "l2")
AGAINST = ("", "chance_", "stayed_")
SHOWN = ("method", "shift_right_px", "shift_down_px", "pearson", "chance_pearson", "stayed_pearson", "spearman", "l2")


class AttributionEquivariance(ReadBack):
    """How far maps move with the image; prints as a table, draws curves over the shift.

    Rows have ``method``, ``shift_right_px``, ``shift_down_px``, ``images``; ``pearson``, ``spearman`` and ``l2``, means
    over the images with 95% intervals, and of each ``chance_`` (map of another image) and ``stayed_`` (map not moved).
    A map that is the same everywhere has no correlation: such images are left out and counted in ``without_map``.

    Attributes:
        complete: False where Ctrl-C ended it.
    """

    kind = "attribution_equivariance"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Attribution equivariance of {settings['model']}", rows, summary, settings)
        self.complete = bool(settings["complete"])

    def figure(self) -> Figure:
        """Correlation and distance against the shift, a column of panels per method."""
        from analysis.saliency_figure import draw

        return draw(self)

    def __str__(self) -> str:
        lines = [[as_text(row[key]) for key in SHOWN] for row in self.rows]
        return "\n".join([self.title, table(SHOWN, lines, right=frozenset(SHOWN[1:])), self.summary])


class Compared:
    """Maps of shifted images against shifted maps, batch after batch.

    Args:
        methods: In order.
        shifts: (right, down) in pixels.
        wrapped: Whether all of a map is compared; else what shows the same pixels.

    Attributes:
        images: Compared so far.
    """

    def __init__(self, methods: Sequence[str], shifts: Sequence[Pair], wrapped: bool) -> None:
        self.methods, self.shifts, self.wrapped, self.images = tuple(methods), tuple(shifts), wrapped, 0
        self.values: dict[tuple[str, Pair, str], list[Values]] = {}
        # by size of the images: the first map moved, the last map shifted, and how many there were
        self._ends: dict[tuple[str, Pair, tuple[int, ...]], tuple[Tensor, Tensor, int]] = {}

    def add(self, found: Mapping[tuple[str, Pair], tuple[Tensor, Tensor]]) -> None:
        """Compare a batch: of each method and shift the maps as they were, and those of the shifted images, (N, H, W).

        Images are compared with the one of their size before; the first with the last, once all are there.
        """
        for (method, shift), (still, moved) in found.items():
            shifted = shift_images(still[:, None], *shift, "circular")[:, 0]
            size = tuple(still.shape[1:])
            first, last, images = self._ends.get((method, shift, size), (moved[:1], shifted[:0], 0))
            others = torch.cat([last, shifted[:-1]])
            for key, one in (("", shifted), ("chance_", others), ("stayed_", still)):
                against = moved[-len(one) :] if len(one) else moved[:0]
                parts = self.values.setdefault((method, shift, key), [])
                parts.append(agreement(self._seen(one, shift), self._seen(against, shift)))
            self._ends[method, shift, size] = (first, shifted[-1:], images + len(still))
        self.images += len(next(iter(found.values()))[0])

    def finish(self) -> None:
        """Compare the first image of each size with the last."""
        for (method, shift, _), (first, last, images) in self._ends.items():
            if images > 1:
                pair = agreement(self._seen(last, shift), self._seen(first, shift))
                self.values[method, shift, "chance_"].append(pair)
        self._ends = {}

    def _seen(self, maps: Tensor, shift: Pair) -> Tensor:
        if self.wrapped:
            return maps
        (right, down), (height, width) = shift, maps.shape[-2:]
        return maps[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]


def agreement(one: Tensor, other: Tensor) -> Values:
    """Pearson, Spearman and normalised L2 distance of each pair of maps, (N, 3); not a number where a map is flat.

    Args:
        one: (N, H, W).
        other: Likewise.

    Example:
        >>> one = torch.rand(1, 4, 4)
        >>> [round(abs(value), 4) for value in agreement(one, 2 * one)[0].tolist()]
        [1.0, 1.0, 0.6667]
    """
    x, y = (maps.detach().flatten(1).double().cpu().numpy() for maps in (one, other))
    if not len(x):
        return np.zeros((0, 3))
    lengths = np.linalg.norm(x, axis=1) + np.linalg.norm(y, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        far = 2 * np.linalg.norm(x - y, axis=1) / lengths
    return np.stack([_pearson(x, y), _pearson(_ranks(x), _ranks(y)), far], 1)


def _ranks(values: Values) -> Values:
    found: Values = rankdata(values, axis=1).astype(np.float64)
    return found


def _pearson(x: Values, y: Values) -> Values:
    flat = (np.ptp(x, axis=1) == 0) | (np.ptp(y, axis=1) == 0)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (x, y)]
    found: Values = np.where(flat, np.nan, (scaled[0] * scaled[1]).sum(1))
    return found


def result_of(explained: Explained, compared: Compared, about: Mapping[str, Any]) -> AttributionEquivariance:
    """Put everything together."""
    compared.finish()
    rows = [
        _row(compared, method, shift, explained.asked.seed) for method in compared.methods for shift in compared.shifts
    ]
    lost = max(row["without_map"] for row in rows)
    if lost:
        explained.notes.append(f"up to {lost} of {compared.images} images have a map without any structure")
    words = [_words([row for row in rows if row["method"] == method], method) for method in compared.methods]
    summary = f"{compared.images} images, {about['padding']} shifts; " + "; ".join(words) + "." + explained.said()
    return AttributionEquivariance(rows, summary, explained.about(compared.images, dict(about)))


def _row(compared: Compared, method: str, shift: Pair, seed: int) -> Row:
    values = {key: np.concatenate(compared.values[method, shift, key]) for key in AGAINST}
    row: Row = {"method": method, "shift_right_px": shift[0], "shift_down_px": shift[1], "images": compared.images}
    row["without_map"] = int(np.isnan(values[""]).any(1).sum())
    for index, name in enumerate(MEASURES):
        for key in AGAINST:
            known = values[key][:, index]
            known = known[np.isfinite(known)]
            row[f"{key}{name}"] = float(known.mean()) if len(known) else None
            if not key:
                low, high = ratio_bounds(known, np.ones(len(known)), seed)
                row |= {f"{name}_low_95": low, f"{name}_high_95": high}
    return row


def _words(rows: Sequence[Row], method: str) -> str:
    known = [row for row in rows if row["pearson"] is not None]
    if not known:
        return f"{method}: no map has any structure"
    row = min(known, key=lambda row: row["pearson"])
    where = f"at ({row['shift_right_px']}, {row['shift_down_px']}) px"
    chance = "no chance level of one image" if row["chance_pearson"] is None else f"chance {row['chance_pearson']:.3f}"
    return (
        f"{method}: maps of shifted images correlate with the shifted maps by {row['pearson']:.3f} at least ({where}; "
        f"{chance}, with a map that stays {row['stayed_pearson'] or 0:.3f})"
    )


__all__ = ["AttributionEquivariance", "Compared", "agreement", "result_of"]
