"""Do two rankings of units agree, and how sure is a median: figures for few values.

Apart from `correlating`, which is made for many images of few references: units are few, so chance is told by
exchanging their numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, rankdata

from analysis.correlating import correlate, correlation_bounds

Values = NDArray[np.float64]
FEWEST = 4  # units, of which an order can be told from chance at all
SHUFFLES = 9999


def rank_agreement(one: Sequence[float], other: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Spearman's rank correlation of numbers of units, its interval, and how often chance is as far from zero.

    The interval is from drawing the units anew with replacement: for few units it is wide, and rather too narrow. The
    share of chance is from exchanging the numbers, in all orders up to seven units, else in 9999 drawn ones.

    Args:
        one: A number per unit.
        other: Likewise.
        seed: Of the draws.

    Returns:
        ``spearman``, ``low_95``, ``high_95``, ``p_value`` and ``units``; None where there are fewer than four, or one
        of the rows does not vary.

    Example:
        >>> found = rank_agreement([1, 2, 3, 4, 5], [1, 4, 9, 16, 25])
        >>> found["spearman"], round(found["p_value"], 4), found["units"]
        (1.0, 0.0167, 5)
    """
    x, y = np.asarray(one, np.float64), np.asarray(other, np.float64)
    found = correlate(x, y)["spearman"] if len(x) >= FEWEST else None
    rho = None if found is None else round(found, 12)
    if rho is None:
        return {"spearman": None, "low_95": None, "high_95": None, "p_value": None, "units": len(x)}
    low, high = correlation_bounds(x, y, range(len(x)), seed)["spearman"]
    chance = _by_chance(x, y, rho, seed)
    return {"spearman": rho, "low_95": low, "high_95": high, "p_value": chance, "units": len(x)}


def _by_chance(x: Values, y: Values, rho: float, seed: int) -> float:
    ranks = [rankdata(values) - (len(x) + 1) / 2 for values in (x, y)]
    scale = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    exact = len(x) <= 7
    if exact:
        orders = np.array(list(itertools.permutations(range(len(x)))))
        drawn = ranks[1][orders]
    else:
        drawn = np.random.default_rng(seed).permuted(np.tile(ranks[1], (SHUFFLES, 1)), axis=1)
    far = np.abs(drawn @ ranks[0]) / scale >= abs(rho) - 1e-9
    return float(far.mean()) if exact else float((far.sum() + 1) / (len(far) + 1))


def median_interval(values: Values) -> tuple[float, float, float] | tuple[float, None, None]:
    """The median and its 95% interval between two of the values, whatever their distribution.

    At least 95%: the chance that the true median lies outside is that of as few or as many heads of a fair coin. Fewer
    than six values have none.

    Args:
        values: At least one.

    Example:
        >>> median_interval(np.arange(11.0)), median_interval(np.arange(3.0))
        ((5.0, 1.0, 9.0), (1.0, None, None))
    """
    ordered = np.sort(values)
    middle, first = float(np.median(ordered)), int(binom.ppf(0.025, len(ordered), 0.5))
    if first < 1:
        return middle, None, None
    return middle, float(ordered[first - 1]), float(ordered[-first])


__all__ = ["median_interval", "rank_agreement"]
