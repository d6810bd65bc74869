"""What a curve over shifts may be besides its periods: a smooth trend of any shape, red noise, white noise.

A family of covariances (Gaussian processes) that the likeliest is chosen of. Apart from fitting waves, which takes any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SMOOTHNESS = (0.5, 1.5, math.inf)  # of Matern's functions: red noise, once differentiable, Gaussian
SHORTEST = 1.5  # points over which a smooth part holds on to its value
STRENGTHS = tuple(10.0**power for power in range(-1, 9))  # variances over that of the white noise


@dataclass(frozen=True)
class Noise:
    """White noise, and a smooth part.

    Attributes:
        smoothness: 0.5 is red noise (autoregressive of order 1), infinity the smoothest.
        length: Points over which the smooth part holds on to its value; 0 where there is none.
        strength: Variance of the smooth part over that of the white noise.
    """

    smoothness: float = math.inf
    length: float = 0.0
    strength: float = 0.0

    def covariance(self, count: int) -> Array:
        """Of so many points, in units of the white noise's variance.

        Example:
            >>> Noise(0.5, 1 / math.log(2), 4.0).covariance(3)[0].round(3).tolist()
            [5.0, 2.0, 1.0]
        """
        matrix: Array = np.eye(count)
        return matrix + self.strength * correlation(self.smoothness, self.length, count) if self.strength else matrix


@dataclass(frozen=True)
class Whitening:
    """A noise, and what makes it white.

    Attributes:
        noise: Which.
        axes: Orthogonal directions (points, points) in which it is independent.
        variances: Along each.
    """

    noise: Noise
    axes: Array
    variances: Array

    def whiten(self, along: Array) -> Array:
        """Make this noise white, of variance 1, in curves that are given along the axes, ``axes.T @ curves``."""
        white: Array = along / np.sqrt(self.variances)[:, None]
        return white

    def draw(self, number: int, seed: int) -> Array:
        """Noise of this kind, (points, number)."""
        drawn = np.random.default_rng(seed).standard_normal((len(self.axes), number))
        noise: Array = self.axes @ (np.sqrt(self.variances)[:, None] * drawn)
        return noise


def correlation(smoothness: float, length: float, count: int) -> Array:
    """Matern's correlation of points at distance 1 in a row."""
    far = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) / length
    if smoothness == 0.5:
        found: Array = np.exp(-far)
        return found
    if smoothness == 1.5:
        return (1 + math.sqrt(3) * far) * np.exp(-math.sqrt(3) * far)
    return np.exp(-(far**2) / 2)


@lru_cache(maxsize=2)
def noises(count: int) -> tuple[Whitening, ...]:
    """The whole family: white noise, and each smoothness at lengths a factor of 1.4 apart, up to all points.

    Neighbours that differ in strength only share their axes.

    Example:
        >>> len(noises(17))
        241
    """
    found = [Whitening(Noise(), np.eye(count), np.ones(count))]
    lengths = np.geomspace(SHORTEST, count, max(round(2 * math.log2(count / SHORTEST)) + 1, 2))
    for smoothness in SMOOTHNESS:
        for length in lengths.tolist():
            values, axes = np.linalg.eigh(correlation(smoothness, length, count))
            values = np.maximum(values, 0.0)
            found += [Whitening(Noise(smoothness, length, s), axes, s * values + 1) for s in STRENGTHS]
    return tuple(found)


__all__ = ["Noise", "Whitening", "noises"]
