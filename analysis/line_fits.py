"""Least squares of waves under noise of any kind, for one curve or a thousand surrogates at once.

Apart from the question that is asked of it (which periods does a curve have), because it is linear algebra only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from analysis.curve_noise import Array, Whitening, noises
from surgeon.errors import AnalysisError

Lines = Mapping[float, Sequence[Fraction]]  # of each period: frequencies per pixel
SPARE = 3  # points beside the numbers that are fitted
EXACT = 1e-14  # of the squares of a curve: what rounding leaves
DEGREE = 3  # of the polynomial that every curve may have
SLOW = 2  # cycles in a curve that still count as trend


class LineFit:
    """Waves at the points of a curve, made ready for every noise.

    Args:
        x: The points, at a constant step.
        step: Between two.
        own: Frequencies of each period that no shorter one has, the shortest period first.
        every: All frequencies of each period.

    Raises:
        AnalysisError: When there are hardly more points than numbers to be fitted.
    """

    def __init__(self, x: Array, step: float, own: Lines, every: Lines) -> None:
        base = base_columns(x)
        columns, self.places, self.at, start = [base], dict[float, slice](), dict[Fraction, slice](), base.shape[1]
        for period, lines in own.items():
            first = start
            for line in lines:
                columns.append(waves(x, step, line))
                self.at[line] = slice(start, start + columns[-1].shape[1])
                start += columns[-1].shape[1]
            self.places[period] = slice(first, start)
        self.spare = len(x) - start
        if self.spare < SPARE:
            raise AnalysisError(
                f"{start} numbers are to be fitted to {len(x)} shifts; take more shifts, fewer periods or harmonics"
            )
        self.every, self.columns = every, np.concatenate(columns, 1)
        self.slow, self.first = slow_columns(x, step, max(own)), base.shape[1]
        self.solve = np.linalg.pinv(np.concatenate([self.slow, self.columns[:, self.first :]], 1))
        self.ready = [_Solved(noise, self.columns, self.places.values()) for noise in noises(len(x))]

    def trend(self, curves: Array) -> Array:
        """The slow part of (points, any number), fitted together with the waves, so that it holds nothing of them."""
        trend: Array = self.slow @ (self.solve @ curves)[: self.slow.shape[1]]
        return trend

    def ratios(self, curves: Array) -> tuple[Array, NDArray[np.intp], Array]:
        """F ratios of the periods, each over all the others, under the likeliest noise of each curve.

        Args:
            curves: (points, curves).

        Returns:
            The ratios (periods, curves), which of ``ready`` (curves,), and the variance of its white part (curves,).
        """
        count, floor = curves.shape[1], EXACT * np.square(curves).sum(0)
        best, which, noise = np.full(count, np.inf), np.zeros(count, np.intp), np.ones(count)
        ratios = np.zeros((len(self.places), count))
        widths = np.array([[place.stop - place.start] for place in self.places.values()])
        axes, along = None, curves
        for i, solved in enumerate(self.ready):
            if solved.whitening.axes is not axes:
                axes = solved.whitening.axes
                along = axes.T @ curves
            rest, explained = solved.fit(along)
            rest = np.maximum(rest, floor) / self.spare
            unlikely = self.spare * np.log(rest) + solved.volume
            better = unlikely < best - 1e-9
            best[better], which[better], noise[better] = unlikely[better], i, rest[better]
            ratios[:, better] = (explained / widths / rest)[:, better]
        return ratios, which, noise

    def sums(self, curves: Array) -> tuple[Array, Array, Array]:
        """Sums of squares around the trend: by periods (periods, curves), and of all (curves,).

        Returns:
            What each period explains with all its harmonics, what it adds to the shorter ones, and what there is.
        """
        around = curves - self.trend(curves)
        whole, added, before, columns = [], [], np.zeros(curves.shape[1]), list[int]()
        for period, place in self.places.items():
            mine = [column for line in self.every[period] for column in range(self.at[line].start, self.at[line].stop)]
            columns += range(place.start, place.stop)
            whole.append(self._explained(around, mine))
            upto = self._explained(around, columns)
            added.append(upto - before)
            before = upto
        return np.array(whole), np.array(added), np.square(around).sum(0)

    def _explained(self, around: Array, places: Sequence[int]) -> Array:
        explained: Array = np.square(np.linalg.qr(self.columns[:, places])[0].T @ around).sum(0)
        return explained

    def heights(self, curve: Array) -> Array:
        """Half the distance from the highest to the lowest point of what the own frequencies of each period add."""
        numbers, shift = self.solve @ curve, self.slow.shape[1] - self.first
        parts = [(self.columns[:, p], numbers[p.start + shift : p.stop + shift]) for p in self.places.values()]
        return np.array([np.ptp(columns @ mine) / 2 for columns, mine in parts])


class _Solved:
    """Least squares under one noise."""

    def __init__(self, whitening: Whitening, columns: Array, places: Iterable[slice]) -> None:
        self.whitening = whitening
        self.q, r = np.linalg.qr(whitening.whiten(whitening.axes.T @ columns))
        self.inverse = solve_triangular(r, np.eye(len(r)))
        spread = self.inverse @ self.inverse.T
        self.groups = [(place, cholesky(np.linalg.inv(spread[place, place]))) for place in places]
        # of the restricted likelihood: the volume of the noise, and of what the fitted numbers may be
        self.volume = 2 * float(np.log(np.abs(np.diag(r))).sum()) + float(np.log(whitening.variances).sum())

    def fit(self, along: Array) -> tuple[Array, Array]:
        """What is left of curves, given along the axes of the noise, and what each period alone explains of them."""
        white = self.whitening.whiten(along)
        inside = self.q.T @ white
        rest = np.square(white).sum(0) - np.square(inside).sum(0)
        numbers = self.inverse @ inside
        return rest, np.array([np.square(root @ numbers[place]).sum(0) for place, root in self.groups])


def base_columns(x: Array) -> Array:
    """A polynomial, and a kink at 0 where 0 lies inside.

    Nets are trained on objects in the middle, so that curves often have a kink at no shift, which has no period.

    Example:
        >>> base_columns(np.arange(-4.0, 5.0)).shape, base_columns(np.arange(9.0)).shape
        ((9, 5), (9, 4))
    """
    at = 2 * (x - x.mean()) / (x[-1] - x[0])
    columns = [at**power for power in range(DEGREE + 1)]
    return np.stack([*columns, np.abs(x) / np.abs(x).max()] if x[1] < 0 < x[-2] else columns, 1)


def slow_columns(x: Array, step: float, longest: float) -> Array:
    """What counts as trend: :func:`base_columns`, and cosines of up to two cycles, one less than the longest period.

    Example:
        >>> slow_columns(np.arange(-16.0, 17.0), 1.0, 8.0).shape
        (33, 9)
    """
    at = (np.arange(len(x)) + 0.5) / len(x)
    cycles = len(x) * step / longest
    halves = math.floor(2 * min(cycles - 1, SLOW) + 1e-9)
    several = [np.cos(math.pi * k * at) for k in range(1, halves + 1)]
    return np.concatenate([base_columns(x), np.stack(several, 1)], 1) if several else base_columns(x)


def waves(x: Array, step: float, line: Fraction) -> Array:
    """Cosine and sine of a frequency; of the Nyquist frequency what changes its sign at each step.

    Example:
        >>> waves(np.arange(4.0), 1.0, Fraction(1, 2)).T.tolist()
        [[1.0, -1.0, 1.0, -1.0]]
    """
    if abs(float(line) * step - 0.5) < 1e-9:
        found: Array = np.power(-1.0, np.arange(len(x)))[:, None]
        return found
    phase = 2 * math.pi * float(line) * (x - x[0])
    return np.stack([np.cos(phase), np.sin(phase)], 1)


__all__ = ["Array", "LineFit", "Lines", "base_columns", "slow_columns", "waves"]
