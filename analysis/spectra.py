"""Periods in a curve: how much of its variance repeats every so many pixels, and whether noise would show as much.

The numbers alone, from plain arrays: nothing here knows of models, images or results. A curve over shifts is short (17
to 101 points), falls smoothly to both sides, and its periods are known beforehand (strides). So no periodogram is
searched for peaks, which are as wide as the curve is short; the curve is fitted, by generalised least squares, with

- a cubic polynomial and a kink at no shift;
- sines and cosines of every period and its harmonics, up to the Nyquist frequency;
- white noise and a smooth part of any shape: red noise, or smoother, of the length and strength that are likeliest (a
  Gaussian process with a Matern covariance, by restricted likelihood).

A period is judged by the F ratio of those of its frequencies that no shorter period has (a curve of period 4 repeats
every 8 and 16 pixels too), and tested against surrogates: curves drawn from the fitted smooth part and noise, without
any period, put through the same fit, choice of the noise and all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from scipy.signal import periodogram
from scipy.signal.windows import hann

from analysis.curve_noise import Array, Noise
from analysis.line_fits import LineFit, slow_columns
from surgeon.errors import AnalysisError

FEWEST = 10  # points of a curve
CYCLES = 4.0  # of a period that the curve must hold: a bump as wide as a third of the curve passes for three
APART = 0.5  # of two frequencies, in 1 / length of the curve
FINER = 8  # points of a spectrum between two independent ones
Frozen = tuple[tuple[float, tuple[Fraction, ...]], ...]


@dataclass(frozen=True)
class Period:
    """What one period explains of a curve.

    Attributes:
        period: In pixels.
        frequencies: Of this period that no shorter one has, per pixel.
        share: Of the variance around the trend, by the period with all its harmonics; 0 to 1.
        own_share: What the frequencies that no shorter one has add to the shorter periods.
        chance_share: What they would add on average if they held nothing but this curve's noise.
        amplitude: Half the distance from the highest to the lowest point of what they add.
        ratio: Variance per frequency over that of the noise (F).
        p: Share of surrogates with a ratio as high, the curve itself counted as one of them.
    """

    period: float
    frequencies: tuple[float, ...]
    share: float = 0.0
    own_share: float = 0.0
    chance_share: float = 0.0
    amplitude: float = 0.0
    ratio: float = 0.0
    p: float = 1.0


@dataclass(frozen=True)
class Periodicity:
    """The fit of a curve.

    Attributes:
        periods: Those tested, the shortest first.
        left_out: Others, with the reason.
        trend: At each point.
        noise: The likeliest.
        white: Standard deviation of its white part; 0 where the curve is nothing but trend.
    """

    periods: tuple[Period, ...]
    left_out: Mapping[float, str]
    trend: Array
    noise: Noise
    white: float


def find_periods(
    shifts: Sequence[float] | Array,
    values: Sequence[float] | Array,
    periods: Iterable[float],
    *,
    harmonics: int | None = None,
    cycles: float = CYCLES,
    surrogates: int = 999,
    seed: int = 0,
) -> Periodicity:
    """Tell which periods a curve over shifts has.

    Args:
        shifts: In pixels, at a constant step, in rising order.
        values: Of the curve.
        periods: In pixels.
        harmonics: At most so many frequencies of each period, its first counted; by default all up to the Nyquist
            frequency.
        cycles: How often a period must fit into the curve to be looked for.
        surrogates: Number of noise curves; p-values are no smaller than 1 / (surrogates + 1).
        seed: Of the surrogates.

    Raises:
        AnalysisError: When the steps are not constant, a value is missing, or no period fits the curve.

    Example:
        >>> shifts = np.arange(-32.0, 33.0)
        >>> noise = np.random.default_rng(0).normal(size=65)
        >>> found = find_periods(shifts, 0.9 - 0.001 * shifts**2 + 2 * (shifts % 4 == 0) + 0.3 * noise, (2, 4, 8))
        >>> [period.period for period in found.periods if period.p < 0.01]
        [2.0, 4.0]

    References:
        Restricted likelihood: Patterson and Thompson, Biometrika 1971. Red noise as the null of a period: Allen and
        Smith, J. Climate 1996; smooth parts as Gaussian processes: Rasmussen and Williams 2006, section 2.7. Slow
        cosines as a trend: Friston et al., NeuroImage 2000.
    """
    x, y, step = _curve(shifts, values)
    every, own, left_out = _lines(periods, len(x), step, harmonics, cycles)
    if not own:
        reasons = "; ".join(f"{period:g} px {why}" for period, why in left_out.items())
        raise AnalysisError(f"no period can be looked for in {len(x)} shifts of {step:g} px: {reasons or 'none given'}")
    fit = _prepared(tuple(x.tolist()), step, _frozen(own), _frozen(every))
    around = (y - fit.trend(y))[:, None]
    if np.square(around).sum() <= 1e-18 * np.square(y).sum():
        flat = (Period(period, tuple(map(float, lines))) for period, lines in own.items())
        return Periodicity(tuple(flat), left_out, fit.trend(y), Noise(), 0.0)
    ratios, which, variance = fit.ratios(y[:, None] - y.mean())
    whitening = fit.ready[int(which[0])].whitening
    chance = whitening.draw(surrogates, seed)
    p = (1 + (fit.ratios(chance)[0] >= ratios).sum(1)) / (surrogates + 1)
    whole, added, total = fit.sums(around)
    usual = float(variance[0]) * fit.sums(chance)[1].mean(1)
    shares = (whole[:, 0] / total, added[:, 0] / total, usual / total)
    columns = (*shares, fit.heights(around[:, 0]), ratios[:, 0], p)
    numbers = np.stack(columns, 1).tolist()
    found = (Period(at, tuple(map(float, own[at])), *row) for at, row in zip(own, numbers, strict=True))
    return Periodicity(tuple(found), left_out, fit.trend(y), whitening.noise, math.sqrt(float(variance[0])))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's p-values: the chance of even one false alarm among all is bounded, whatever they have in common.

    Example:
        >>> holm([0.01, 0.04, 0.5])
        [0.03, 0.08, 0.5]
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(value) for value in adjusted]


def spectrum(values: Array, step: float) -> tuple[Array, Array]:
    """Power per frequency of a curve without its trend: under a Hann window, read finely.

    The window keeps a period that does not fit a whole number of times from spilling over the others. The steps of a
    scan are constant, so nothing calls for a Lomb-Scargle periodogram.

    Returns:
        Frequencies per pixel, from 0 to the Nyquist frequency, and power times pixel.

    Example:
        >>> frequencies, power = spectrum(np.cos(np.arange(64) * np.pi / 2), 1.0)
        >>> float(frequencies[power.argmax()])
        0.25
    """
    found = periodogram(values, 1 / step, window="hann", nfft=FINER * len(values), detrend=False)
    return found[0], found[1]


def noise_spectrum(x: Array, longest: float, noise: Noise, white: float) -> Array:
    """The power that noise alone has on average, as of :func:`spectrum`, after the trend was taken away.

    Args:
        x: The shifts.
        longest: Period, which says what is trend.
        noise: Of the fit.
        white: Of the fit.

    Example:
        >>> power = noise_spectrum(np.arange(64.0), 8.0, Noise(), 2.0)
        >>> round(float(np.median(power)), 1)  # 2 * variance * step
        8.0
    """
    step, count = float(x[1] - x[0]), len(x)
    slow = np.linalg.qr(slow_columns(x, step, longest))[0]
    keep = np.eye(count) - slow @ slow.T
    spread = keep @ noise.covariance(count) @ keep * white**2
    window = hann(count, sym=False)
    phases = np.exp(-2j * math.pi * np.outer(np.fft.rfftfreq(FINER * count), np.arange(count))) * window
    power: Array = np.einsum("fi,ij,fj->f", phases, spread, phases.conj(), optimize=True).real
    return 2 * step * power / float(window @ window)


def _curve(shifts: Sequence[float] | Array, values: Sequence[float] | Array) -> tuple[Array, Array, float]:
    x, y = np.asarray(shifts, np.float64), np.asarray(values, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < FEWEST:
        raise AnalysisError(
            f"the curve has shifts {x.shape} and values {y.shape}; give one value per shift, at least {FEWEST}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise AnalysisError("a shift or value of the curve is missing or infinite; a curve must have no gap")
    steps = np.diff(x)
    step = float(steps.mean())
    if step <= 0 or np.abs(steps - step).max() > 1e-6 * abs(step):
        raise AnalysisError(
            f"the shifts of the curve lie {steps.min():g} to {steps.max():g} px apart; give them in rising order, at a "
            "constant step"
        )
    return x, y, step


def _frozen(lines: Mapping[float, Sequence[Fraction]]) -> Frozen:
    return tuple((period, tuple(several)) for period, several in lines.items())


@lru_cache(maxsize=4)
def _prepared(x: tuple[float, ...], step: float, own: Frozen, every: Frozen) -> LineFit:
    """What depends on the shifts alone, for several curves over them."""
    return LineFit(np.array(x), step, dict(own), dict(every))


def _lines(
    periods: Iterable[float], count: int, step: float, harmonics: int | None, cycles: float
) -> tuple[dict[float, list[Fraction]], dict[float, list[Fraction]], dict[float, str]]:
    """All frequencies of each period, those that no shorter one has, and why periods cannot be looked for."""
    every, own, left_out, known = {}, {}, {}, set[Fraction]()
    highest, length = Fraction(1, 2) / Fraction(step).limit_denominator(10**6), count * step
    for period in sorted({float(period) for period in periods}):
        if not (math.isfinite(period) and period > 0):
            raise AnalysisError(f"periods: {period:g} px is none; give positive numbers of pixels")
        base = 1 / Fraction(period).limit_denominator(10**6)
        several = (base * k for k in itertools.count(1))
        mine = list(itertools.takewhile(lambda line: line <= highest, several))[:harmonics]
        new = [line for line in mine if line not in known]
        if base > highest:
            left_out[period] = f"is shorter than two steps of {step:g} px; take smaller steps"
        elif length < cycles * period:
            left_out[period] = f"fits less than {cycles:g} times into {length:g} px; shift further"
        elif any(abs(float(f - g)) * length < APART for f, g in itertools.product(new, known)):
            left_out[period] = "is too near another one for so few shifts; shift further"
        elif new:
            every[period], own[period] = mine, new
            known.update(new)
    return every, own, left_out


__all__ = ["Period", "Periodicity", "find_periods", "holm", "noise_spectrum", "spectrum"]
