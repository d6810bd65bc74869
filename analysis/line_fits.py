"""Least squares of a trend, of waves and of coloured noise, for one curve or a thousand surrogates at once.

Apart from the question that is asked of it (which periods does a curve have), because it is linear algebra only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from surgeon.errors import AnalysisError

Array = NDArray[np.float64]
Lines = Mapping[float, Sequence[Fraction]]  # of each period: frequencies per pixel
COLOURS = (*np.arange(0, 0.9, 0.05).tolist(), 0.9, 0.925, 0.95, 0.975, 0.99)  # coefficients of noise that are tried
SPARE = 3  # points beside the numbers that are fitted
EXACT = 1e-14  # of the squares of a curve: what rounding leaves


class LineFit:
    """Trend and waves at the points of a curve, made ready for noise of every colour.

    Args:
        x: The points, at a constant step.
        step: Between two.
        own: Frequencies of each period that no shorter one has, the shortest period first.
        every: All frequencies of each period.

    Raises:
        AnalysisError: When there are hardly more points than numbers to be fitted.
    """

    def __init__(self, x: Array, step: float, own: Lines, every: Lines) -> None:
        trend = slow_columns(x, step, 1 / max(own) - 1 / (len(x) * step))
        columns, self.places, self.at, start = [trend], dict[float, slice](), dict[Fraction, slice](), trend.shape[1]
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
        self.slow = np.linalg.qr(trend)[0]
        self.ready = [_Colour(colour, self.columns, self.places.values()) for colour in COLOURS]

    def trend(self, curves: Array) -> Array:
        """The slow part of (points, curves)."""
        trend: Array = self.slow @ (self.slow.T @ curves)
        return trend

    def ratios(self, curves: Array) -> tuple[Array, NDArray[np.intp], Array]:
        """F ratios of the periods, each over all the others, under the likeliest colour of each curve.

        Args:
            curves: (points, curves).

        Returns:
            The ratios (periods, curves), which colour (curves,), and the variance of its innovations (curves,).
        """
        floor = EXACT * np.square(curves).sum(0)
        found = [colour.fit(curves) for colour in self.ready]
        rests = np.array([np.maximum(rest, floor) for rest, _ in found])  # (colours, curves)
        volumes = np.array([[colour.volume] for colour in self.ready])
        which = (self.spare * np.log(rests) + volumes).argmin(0)
        at = np.arange(curves.shape[1])
        explained = np.array([sums for _, sums in found])[which, :, at].T  # (periods, curves)
        noise = rests[which, at] / self.spare
        widths = np.array([[place.stop - place.start] for place in self.places.values()])
        return explained / widths / noise, which, noise

    def shares(self, curves: Array) -> tuple[Array, Array]:
        """Shares of the variance around the trend, (periods, curves).

        Returns:
            Of each period with all its harmonics, and what it adds to the shorter ones.
        """
        around = curves - self.trend(curves)
        total = np.square(around).sum(0)
        whole, added, before, columns = [], [], np.zeros(curves.shape[1]), list[int]()
        for period, place in self.places.items():
            mine = [column for line in self.every[period] for column in range(self.at[line].start, self.at[line].stop)]
            columns += range(place.start, place.stop)
            whole.append(self._explained(around, mine) / total)
            upto = self._explained(around, columns) / total
            added.append(upto - before)
            before = upto
        return np.array(whole), np.array(added)

    def _explained(self, around: Array, places: Sequence[int]) -> Array:
        columns = self.columns[:, places]
        columns = np.linalg.qr(columns - self.trend(columns))[0]
        explained: Array = np.square(columns.T @ around).sum(0)
        return explained

    def heights(self, curve: Array) -> Array:
        """Half the distance from the highest to the lowest point of what the own frequencies of each period add."""
        numbers = np.linalg.lstsq(self.columns, curve, rcond=None)[0]
        return np.array([np.ptp(self.columns[:, p] @ numbers[p]) / 2 for p in self.places.values()])

    def surrogates(self, colour: int, number: int, seed: int) -> Array:
        """Noise of a colour, (points, number), its innovations of variance 1."""
        coefficient = COLOURS[colour]
        noise = np.random.default_rng(seed).standard_normal((len(self.columns), number))
        noise[0] /= math.sqrt(1 - coefficient**2)
        for i in range(1, len(noise)):
            noise[i] += coefficient * noise[i - 1]
        return noise


class _Colour:
    """Least squares under noise of one colour."""

    def __init__(self, colour: float, columns: Array, places: Iterable[slice]) -> None:
        self.colour = colour
        self.q, r = np.linalg.qr(self._whitened(columns))
        self.inverse = solve_triangular(r, np.eye(len(r)))
        spread = self.inverse @ self.inverse.T
        self.groups = [(place, cholesky(np.linalg.inv(spread[place, place]))) for place in places]
        # of the restricted likelihood: the volume of the noise, and of what the fitted numbers may be
        self.volume = 2 * float(np.log(np.abs(np.diag(r))).sum()) - math.log(1 - colour**2)

    def _whitened(self, curves: Array) -> Array:
        white = curves.copy()
        white[0] *= math.sqrt(1 - self.colour**2)
        white[1:] -= self.colour * curves[:-1]
        return white

    def fit(self, curves: Array) -> tuple[Array, Array]:
        """What is left of (points, curves), and what each period explains that the others do not."""
        white = self._whitened(curves)
        inside = self.q.T @ white
        rest = np.square(white).sum(0) - np.square(inside).sum(0)
        numbers = self.inverse @ inside
        return rest, np.array([np.square(root @ numbers[place]).sum(0) for place, root in self.groups])


def slow_columns(x: Array, step: float, fastest: float) -> Array:
    """A constant, a line, a kink at 0 where 0 lies inside, and cosines slower than ``fastest`` per pixel.

    Nets are trained on objects in the middle, so that curves often have a kink at no shift, which has no period.

    Example:
        >>> slow_columns(np.arange(-4.0, 5.0), 1.0, 0.0).shape
        (9, 3)
    """
    at = (np.arange(len(x)) + 0.5) / len(x)
    slow = max(math.floor(2 * fastest * len(x) * step + 1e-9), 0)
    columns = [np.ones(len(x)), at - 0.5, *(np.cos(math.pi * k * at) for k in range(1, slow + 1))]
    if x[1] < 0 < x[-2]:
        columns.append(np.abs(x) / np.abs(x).max())
    return np.stack(columns, 1)


def waves(x: Array, step: float, line: Fraction) -> Array:
    """Cosine and sine of a frequency; of the Nyquist frequency what changes its sign at each step.

    Example:
        >>> waves(np.arange(4.0), 1.0, Fraction(1, 2)).T.tolist()
        [[1.0, -1.0, 1.0, -1.0]]
    """
    if abs(float(line) * step - 0.5) < 1e-9:
        return (-1.0) ** np.arange(len(x))[:, None]
    phase = 2 * math.pi * float(line) * (x - x[0])
    return np.stack([np.cos(phase), np.sin(phase)], 1)


__all__ = ["COLOURS", "Array", "LineFit", "Lines", "slow_columns", "waves"]
