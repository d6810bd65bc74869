"""From distances to rows: agreement with scores and choices, curves, shifts, each with its interval.

Apart from measuring, so that what a figure means stands in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.correlating import KINDS, NONE, Bounds, correlate, correlation_bounds, ratio_bounds, spearman
from analysis.ratings import RatedChoices, RatedPair, Ratings
from analysis.result import Row

Values = NDArray[np.float64]
ALL = "all"


@dataclass(frozen=True)
class Drawn:
    """How references are drawn anew."""

    seed: int
    resamples: int

    def ratio(self, above: Values, below: Values | None = None) -> tuple[float | None, Bounds]:
        """sum(above) / sum(below) of one number per reference, a mean without ``below``, and its interval."""
        below = np.ones_like(above) if below is None else below
        if not len(above) or below.sum() == 0:
            return None, NONE
        return float(above.sum() / below.sum()), ratio_bounds(above, below, self.seed, self.resamples)


def rating_rows(data: Ratings, found: Values, drawn: Drawn) -> list[Row]:
    """Rows of correlations, without pairs of an image with itself, and of curves, with them.

    Args:
        data: Scored pairs.
        found: Their distances.
        drawn: How intervals are made.
    """
    kinds, real = np.array([pair.distortion for pair in data.items]), _of_two(data)
    parts = {ALL: real}
    if len(data.distortions) > 1:
        parts |= {kind: real[kinds[real] == kind] for kind in data.distortions}
    worse, rows = data.worse, []
    for name, chosen in parts.items():
        of = [data.items[i] for i in chosen]
        rows += _correlations(name, of, found[chosen], worse[chosen], drawn)
        if all(pair.level is not None for pair in of):
            rows.append(_of_curves(name, of, found[chosen], worse[chosen], drawn))
    if all(pair.level is not None for pair in data.items):
        for kind in data.distortions:
            rows += _curve(data, kind, found, drawn)
    return rows


def _of_two(data: Ratings) -> NDArray[np.int64]:
    """Places of the pairs that are not of an image with itself."""
    return np.array([place for place, pair in enumerate(data.items) if not pair.of_one], dtype=np.int64)


def _correlations(name: str, pairs: Sequence[RatedPair], found: Values, worse: Values, drawn: Drawn) -> list[Row]:
    references = [pair.reference for pair in pairs]
    values = correlate(found, worse)
    bounds = correlation_bounds(found, worse, references, drawn.seed, drawn.resamples)
    counts = (len(pairs), len(set(references)))
    return [_row("correlation", kind, values[kind], bounds[kind], counts, distortion=name) for kind in KINDS]


def _of_curves(name: str, pairs: Sequence[RatedPair], found: Values, worse: Values, drawn: Drawn) -> Row:
    """Spearman within each reference and distortion, averaged over curves."""
    curves: dict[tuple[str, str], list[int]] = {}
    for place, pair in enumerate(pairs):
        curves.setdefault((pair.reference, pair.distortion), []).append(place)
    values = {key: spearman(found[at], worse[at]) for key, at in curves.items()}
    sums: dict[str, list[float]] = {}
    for (reference, _), value in values.items():
        if value is not None:
            total = sums.setdefault(reference, [0.0, 0.0])
            total[0], total[1] = total[0] + value, total[1] + 1
    table = np.array(list(sums.values())).reshape(-1, 2)
    value, bounds = drawn.ratio(table[:, 0], table[:, 1])
    return _row("correlation", "spearman_of_curves", value, bounds, (len(pairs), len(sums)), distortion=name)


def _curve(data: Ratings, kind: str, found: Values, drawn: Drawn) -> list[Row]:
    rows = []
    mine = [(place, pair) for place, pair in enumerate(data.items) if pair.distortion == kind]
    for level in sorted({float(pair.level or 0) for _, pair in mine}):
        at = [(place, pair.reference, pair.score) for place, pair in mine if pair.level == level]
        columns = {"distance": found[[place for place, _, _ in at]], "score": np.array([score for *_, score in at])}
        for measure, values in columns.items():
            value, bounds = drawn.ratio(*_by_reference([name for _, name, _ in at], values))
            counts = (len(at), len({name for _, name, _ in at}))
            rows.append(_row("curve", measure, value, bounds, counts, distortion=kind, level=level))
    return rows


def shift_rows(data: Ratings, found: Values, moved: Values, steps: Sequence[int], drawn: Drawn) -> list[Row]:
    """Rows of shifts, without pairs of an image with itself.

    Args:
        data: Scored pairs.
        found: Their distances.
        moved: Distances of each reference to itself shifted, (references, shifts).
        steps: The shifts, in pixels.
        drawn: How intervals are made.
    """
    real = _of_two(data)
    order = {name: place for place, name in enumerate(data.references)}
    names = [data.items[place].reference for place in real]
    found, own = found[real], np.array([order[name] for name in names], dtype=np.int64)
    sums, counts = _by_reference(names, found)
    moved_of = moved[np.array([order[name] for name in dict.fromkeys(names)], dtype=np.int64)]
    rows = []
    for column, step in enumerate(steps):
        below, _ = _by_reference(names, (found < moved[own, column]).astype(np.float64))
        of = {"relative_distance": (moved_of[:, column], sums / counts), "share_below": (below, counts)}
        for measure, (above, under) in of.items():
            value, bounds = drawn.ratio(above, under)
            rows.append(_row("shift", measure, value, bounds, (len(real), len(counts)), shift_px=step))
    return rows


def choice_rows(data: RatedChoices, found: Values, drawn: Drawn) -> list[Row]:
    """Rows of choices, per part of the data: the distance's agreement with the judges, and theirs with each other.

    Args:
        data: Triplets.
        found: Distances of the first and the second image, (N, 2).
        drawn: How intervals are made.
    """
    share = np.array([one.share for one in data.items])
    second = np.where(found[:, 0] == found[:, 1], 0.5, (found[:, 1] < found[:, 0]).astype(np.float64))
    measures = {
        "agreement": second * share + (1 - second) * (1 - share),
        "agreement_of_judges": share**2 + (1 - share) ** 2,
    }
    kinds = np.array([one.distortion for one in data.items])
    parts = {ALL: np.arange(len(data))}
    if len(data.distortions) > 1:
        parts |= {kind: np.flatnonzero(kinds == kind) for kind in data.distortions}
    rows = []
    for name, at in parts.items():
        references = [data.items[i].reference for i in at]
        for measure, values in measures.items():
            value, bounds = drawn.ratio(*_by_reference(references, values[at]))
            counts = (len(at), len(set(references)))
            rows.append(_row("choice", measure, value, bounds, counts, distortion=name))
    return rows


def _by_reference(names: Sequence[str], values: Values) -> tuple[Values, Values]:
    """Sum and number of the values of each reference, in order of appearance."""
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    which = np.array([order[name] for name in names], dtype=np.int64)
    sums = np.bincount(which, values, len(order)).astype(np.float64)
    return sums, np.bincount(which, minlength=len(order)).astype(np.float64)


def _row(
    part: str,
    measure: str,
    value: float | None,
    bounds: Bounds,
    counts: tuple[int, int],
    *,
    distortion: str = ALL,
    level: float | None = None,
    shift_px: int | None = None,
) -> Row:
    return {
        **{"part": part, "distortion": distortion, "measure": measure, "level": level, "shift_px": shift_px},
        **{"value": value, "value_low_95": bounds[0], "value_high_95": bounds[1]},
        **{"pairs": counts[0], "references": counts[1]},
    }


def summary_of(rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """One sentence with the figures that matter."""

    def of(measure: str, **more: Any) -> Row:
        wanted = {"distortion": ALL, "measure": measure, **more}
        return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), {})

    pairs = settings["pairs"] - settings.get("self_pairs", 0)
    count = f"{pairs:,} pairs of {settings['references']:,} references"
    if agreed := of("agreement"):
        count = f"{settings['pairs']:,} triplets"
        judges = _told(of("agreement_of_judges"))
        return f"agrees with {_told(agreed)} of the judges, one more judge would with {judges}; {count}"
    words = f"Spearman {_told(of('spearman'))}, Pearson {_told(of('pearson'))}, Kendall {_told(of('kendall'))}; {count}"
    first = next((step for step in settings["shifts"] if of("relative_distance", shift_px=step)), None)
    if first is None:
        return words
    moved = of("relative_distance", shift_px=first)["value"]
    if moved is None:
        return words
    return f"{words}; an image shifted by {first} px is as far as {moved:.2%} of the mean distortion"


def _told(row: Mapping[str, Any]) -> str:
    """A value with its interval, 95%."""
    if not row or row["value"] is None:
        return "none"
    if row["value_low_95"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['value_low_95']:.3f}, {row['value_high_95']:.3f}]"
