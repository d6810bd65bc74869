"""How two orders agree: correlations and ratios, with intervals from drawing whole references anew.

Apart from the analyses that need them. Images of one reference share its content, so they are drawn together (cluster
bootstrap); a draw is a number of copies per reference, so that all draws are computed at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import NearConstantInputWarning, kendalltau, pearsonr, rankdata, spearmanr

Values = NDArray[np.float64]
Counts = NDArray[np.int64]
Bounds = tuple[float | None, float | None]
NONE: Bounds = (None, None)
RESAMPLES, AT_ONCE, FEWEST = 1000, 2**22, 3  # numbers drawn at once; clusters that an interval needs
MOST = 2000  # clusters of which Kendall's correlation is drawn: its tables grow with their square
KINDS = ("spearman", "pearson", "kendall")


def correlate(x: Values, y: Values) -> dict[str, float | None]:
    """Spearman, Pearson and Kendall (tau-b) of two rows of numbers; None where one of them does not vary.

    Example:
        >>> round(correlate(np.arange(4.0), np.array([0.0, 1.0, 3.0, 2.0]))["spearman"], 6)
        0.8
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(KINDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NearConstantInputWarning)  # a value all the same, and rightly so
        found = (spearmanr(x, y), pearsonr(x, y), kendalltau(x, y))
    values = [float(one.statistic) for one in found]
    return {kind: value if math.isfinite(value) else None for kind, value in zip(KINDS, values, strict=True)}


def spearman(x: Values, y: Values) -> float | None:
    """Spearman's correlation alone, for many short rows.

    Example:
        >>> round(spearman(np.arange(4.0), np.array([0.0, 1.0, 3.0, 2.0])), 6)
        0.8
    """
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    one, other = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(y) + 1) / 2
    return float((one * other).sum() / math.sqrt((one * one).sum() * (other * other).sum()))


def correlation_bounds(
    x: Values, y: Values, clusters: Sequence[Any], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Bounds]:
    """95% percentile intervals of :func:`correlate`, from drawing clusters with replacement.

    Kendall's looks at each pair of numbers once, so its time grows with the square of their count. Of more than 2,000
    clusters it draws 2,000 groups of clusters instead, put together at random: as good a witness of the spread, in
    bounded memory.

    Args:
        x: Numbers.
        y: Likewise.
        clusters: Which cluster each number is of.
        seed: Of the draws.
        resamples: Number of draws.

    Returns:
        (low, high) of each; (None, None) for fewer than three clusters.

    Example:
        >>> x = np.arange(30.0)
        >>> low, high = correlation_bounds(x, x % 7, np.arange(30) // 3)["spearman"]
        >>> -1 < low < correlate(x, x % 7)["spearman"] < high < 1
        True
    """
    names, which = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < FEWEST or len(x) < FEWEST:
        return dict.fromkeys(KINDS, NONE)
    group, groups = which, len(names)
    if groups > MOST:
        group, groups = (np.random.default_rng(seed).permutation(groups) % MOST)[which], MOST
    signs = _signs(x, y, group, groups)
    drawn: dict[str, list[Values]] = {kind: [] for kind in KINDS}
    drawn["kendall"] = [_kendall(signs, counts) for counts in draws(groups, seed, resamples, len(x))]
    for counts in draws(len(names), seed, resamples, len(x)):
        weights = counts[:, which].astype(np.float64)  # (draws, numbers)
        ranks = [_ranks(values, weights) for values in (x, y)]
        drawn["spearman"].append(_pearson(ranks[0], ranks[1], weights))
        drawn["pearson"].append(_pearson(x[None] - x.mean(), y[None] - y.mean(), weights))
    return {kind: _bounds(np.concatenate(parts)) for kind, parts in drawn.items()}


def ratio_bounds(above: Values, below: Values, seed: int = 0, resamples: int = RESAMPLES) -> Bounds:
    """95% percentile interval of sum(above) / sum(below), one number of each per cluster; a mean where below is ones.

    Example:
        >>> low, high = ratio_bounds(np.arange(20.0), np.ones(20))
        >>> low < 9.5 < high
        True
    """
    if len(above) < FEWEST:
        return NONE
    parts = []
    for counts in draws(len(above), seed, resamples, len(above)):
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append((counts @ above) / (counts @ below))
    return _bounds(np.concatenate(parts))


def draws(clusters: int, seed: int, resamples: int, width: int) -> Iterator[Counts]:
    """How often each cluster is drawn, (draws, clusters), a part of all draws at a time; the same for one seed.

    Example:
        >>> sum(len(part) for part in draws(5, 0, 100, 5)), next(draws(5, 0, 100, 5)).sum(1).max()
        (100, np.int64(5))
    """
    generator, chunk = np.random.default_rng(seed), max(1, AT_ONCE // max(width, clusters))
    for start in range(0, resamples, chunk):
        yield generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=min(chunk, resamples - start))


def _ranks(values: Values, weights: Values) -> Values:
    """Ranks of numbers of which each is there ``weights`` times, ties sharing their mean rank, (draws, numbers)."""
    order = np.argsort(values, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(begins)), np.diff(np.r_[begins, len(values)]))
    sizes = np.add.reduceat(weights[:, order], begins, axis=1)
    middle = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    found: Values = middle[:, group]
    return found


def _pearson(x: Values, y: Values, weights: Values) -> Values:
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total
    y = y - (weights * y).sum(1, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = (weights * x * y).sum(1) / np.sqrt((weights * x * x).sum(1) * (weights * y * y).sum(1))
    return found


def _signs(x: Values, y: Values, which: Counts, clusters: int) -> tuple[Values, Values, Values]:
    """Over the pairs of numbers of each two clusters: concordant less discordant, untied in x, untied in y."""
    order = np.argsort(which, kind="stable")
    x, y, which = x[order], y[order], which[order]
    begins = np.flatnonzero(np.diff(which, prepend=-1))  # of each cluster, all of which occur
    found = np.zeros((3, clusters, clusters))
    for start in range(0, len(x), rows := max(1, AT_ONCE // len(x))):
        part = slice(start, start + rows)
        a, b = (_sign(values[part, None], values) for values in (x, y))
        first = np.flatnonzero(np.diff(which[part], prepend=-1))
        for table, signs in zip(found, (a * b, a != 0, b != 0), strict=True):
            columns = signs if len(begins) == len(x) else np.add.reduceat(signs, begins, axis=1, dtype=np.float64)
            table[which[part][first]] += np.add.reduceat(columns, first, axis=0, dtype=np.float64)
    return found[0], found[1], found[2]


def _sign(one: Values, other: Values) -> NDArray[np.int8]:
    return (one > other).view(np.int8) - (one < other).view(np.int8)


def _kendall(signs: tuple[Values, Values, Values], counts: Counts) -> Values:
    """Kendall's tau-b of draws: sums over pairs of clusters, each as often as both were drawn."""
    times = counts.astype(np.float64)
    both, in_x, in_y = (((times @ part) * times).sum(1) for part in signs)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = both / np.sqrt(in_x * in_y)
    return found


def _bounds(drawn: Values) -> Bounds:
    """Percentiles of the draws in which there is a value; none where most have none."""
    there = drawn[np.isfinite(drawn)]
    if 2 * len(there) < len(drawn) or not len(there):
        return NONE
    low, high = np.quantile(there, (0.025, 0.975))
    return float(low), float(high)
