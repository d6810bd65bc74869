"""How sure a figure is: intervals of shares and of paired differences, and tests that may look as often as they like.

Apart from the analyses, which all judge alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from surgeon.errors import AnalysisError

Verdict = Literal["robust", "critical", "undecided"]
Values = NDArray[np.floating]
RESAMPLES = 1000
AT_ONCE = 2**24  # numbers drawn at once
NONE = (math.nan, math.nan)


def wilson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share.

    Example:
        >>> [round(bound, 3) for bound in wilson(0, 100)]
        [0.0, 0.037]
    """
    found = binomtest(count, total).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def paired_bootstrap(
    differences: Sequence[Values], seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES
) -> list[tuple[float, float]]:
    """Percentile intervals of mean differences, image by image, from drawing the images anew with replacement.

    Equal differences get equal intervals, whatever the others. Two images are added to each draw, one better by 1 and
    one worse, so that few images that all agree do not pass for certainty (Agresti and Min 2005, who do so for paired
    shares), nor those that differ in one of several treatments whose differences are averaged.

    Args:
        differences: Arrays of the same images, in order, from -1 to 1; shorter ones are of the first images.
        seed: Of the draws.
        confidence: Of each interval.
        resamples: Number of draws.

    Example:
        >>> low, high = paired_bootstrap([np.zeros(450)])[0]
        >>> -0.01 < low < 0 < high < 0.01
        True
        >>> one_in_three = np.where(np.arange(450) == 0, 1 / 3, 0)
        >>> paired_bootstrap([one_in_three])[0][1] >= high
        True
    """
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    found = []
    for values in differences:
        low, high = np.quantile(_means(values.astype(np.float64), seed, resamples), tails) if len(values) else NONE
        found.append((float(low), float(high)))
    return found


def _means(values: Values, seed: int, resamples: int) -> Values:
    """Means of resampled images; how often each value is drawn is all that counts, and most have few values."""
    generator, total = np.random.default_rng(seed), len(values) + 2
    distinct, counts = np.unique(np.concatenate([values, [1.0, -1.0]]), return_counts=True)
    chunk, means = max(1, AT_ONCE // len(distinct)), []
    for start in range(0, resamples, chunk):
        drawn = generator.multinomial(total, counts / total, size=min(chunk, resamples - start))
        means.append((drawn * distinct).sum(1) / total)
    return np.concatenate(means)


def ratio_bootstrap(
    part: Values, whole: Values, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile interval of a ratio of sums over images, from drawing the images anew with replacement.

    As in :func:`paired_bootstrap` two images are added to each draw: a right one that is lost, and a wrong one gained.

    Args:
        part: Of each image, such as what it loses; -1 to 1.
        whole: Of each image, such as whether it was right; 0 to 1, not 0 everywhere.
        seed: Of the draws.
        confidence: Of the interval.
        resamples: Number of draws.

    Example:
        >>> low, high = ratio_bootstrap(np.arange(400) % 4 == 0, np.ones(400))
        >>> 0.2 < low < 0.25 < high < 0.3
        True
    """
    draws = _ratios([(part, whole)], seed, resamples)[0]
    low, high = np.quantile(draws, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def difference_of_ratios(
    one: tuple[Values, Values], other: tuple[Values, Values], seed: int = 0, confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:  # fmt: skip
    """Percentile interval of the second ratio less the first, both of the same images, which are drawn anew.

    Args:
        one: Part and whole of each image, as of :func:`ratio_bootstrap`.
        other: Likewise, of the same images in the same order.
        seed: Of the draws.
        confidence: Of the interval.
        resamples: Number of draws.

    Example:
        >>> lost, right = np.arange(400) % 4 == 0, np.ones(400)
        >>> low, high = difference_of_ratios((lost, right), (lost, right))
        >>> low <= 0 <= high and high - low < 0.03
        True
    """
    first, second = _ratios([one, other], seed, resamples)
    low, high = np.quantile(second - first, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def _ratios(pairs: Sequence[tuple[Values, Values]], seed: int, resamples: int) -> list[Values]:
    """Ratios of sums over drawn images; of each net a right image that is lost and a wrong one gained are added."""
    columns, extra = [], 2 * len(pairs)
    for place, (part, whole) in enumerate(pairs):
        parts, wholes = np.zeros(extra), np.zeros(extra)
        parts[2 * place : 2 * place + 2], wholes[2 * place] = (1.0, -1.0), 1.0
        columns += [np.concatenate([part, parts]), np.concatenate([whole, wholes])]
    distinct, counts = np.unique(np.stack(columns, 1), axis=0, return_counts=True)
    total = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)
    sums = drawn @ distinct
    return [sums[:, 2 * i] / np.maximum(sums[:, 2 * i + 1], 1) for i in range(len(pairs))]


def verdict(low: float, high: float, tolerance: float) -> Verdict:
    """Robust where the loss is at most ``tolerance``, critical where it is more, as far as the interval tells.

    Example:
        >>> verdict(-0.01, 0.01, 0.02), verdict(0.1, 0.2, 0.02), verdict(0.0, 0.1, 0.02)
        ('robust', 'critical', 'undecided')
    """
    if high <= tolerance:
        return "robust"
    return "critical" if low > tolerance else "undecided"


class SequentialTest:
    """Two tests that stay valid however often one looks: is a mean of values in [-1, 1] above, is it below a bound?

    Each bets against its hypothesis; the capital exceeds 1 / (1 - confidence) with at most that probability where the
    hypothesis holds, at whatever time one stops (Ville's inequality; Waudby-Smith and Ramdas, JRSS B 2024, section 4).
    The images must come in an order that has nothing to do with their classes.

    Args:
        bound: The tolerance.
        confidence: Of each verdict, 0 to 1.

    Raises:
        AnalysisError: For a confidence that is none.

    Example:
        >>> test = SequentialTest(0.05, 0.95)
        >>> test.add(np.ones(20)), SequentialTest(0.05, 0.95).add(np.zeros(5))
        ('critical', None)
    """

    def __init__(self, bound: float, confidence: float) -> None:
        if not 0.5 <= confidence < 1:
            raise AnalysisError(f"stop is {confidence!r}; give the confidence of a verdict, 0.5 to under 1, as 0.95")
        self.bound, self.needed = bound, -math.log(1 - confidence)
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.capital = [0.0, 0.0]  # logarithms: against "at most the bound", against "at least the bound"
        self.verdict: Verdict | None = None

    def add(self, values: Values) -> Verdict | None:
        """Look at more images; the verdict, once certain, stays."""
        mean = (self.total - 0.0) / (self.count + 1)
        spread = (self.squares + 0.25) / (self.count + 1)
        for side, sign in enumerate((1, -1)):
            gap = sign * (mean - self.bound)
            most = 0.8 / (1 + sign * self.bound)
            bet = min(max(gap / (spread - mean * mean + gap * gap + 1e-9), 0.0), most) if self.count else most / 2
            self.capital[side] += float(np.log1p(bet * sign * (values - self.bound)).sum())
        self.count += len(values)
        self.total += float(values.sum())
        self.squares += float((values * values).sum())
        if self.verdict is None and max(self.capital) >= self.needed:
            self.verdict = "critical" if self.capital[0] > self.capital[1] else "robust"
        return self.verdict


def normal_interval(center: float, draws: Values, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a figure whose resampled values are ``draws``, few as they may be: normal around it."""
    reach = float(norm.ppf((1 + confidence) / 2)) * float(np.std(draws, ddof=1))
    return center - reach, center + reach
