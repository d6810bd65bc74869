"""Residual aliasing: does a measure rise and fall with the strides of the net when the image is shifted?

Paper 002 names it as what keeps nets with global average pooling from being invariant; nobody has measured it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.curve_noise import Noise
from analysis.cuts import Array, Axis, Cut, read_scan
from analysis.model_names import model_name
from analysis.opening import versions_of
from analysis.result import ReadBack, Row
from analysis.spectra import CYCLES, Periodicity, find_periods, holm
from analysis.stride_periods import stride_periods
from surgeon.errors import AnalysisError
from surgeon.host import InputSize, unwrap

STRIDES = (2, 4, 8, 16, 32)  # of most nets
KINDS = {0.5: "red noise", 1.5: "a smooth part", math.inf: "a very smooth part"}
DIGITS = 6  # of the curves that are kept for the figure


class Aliasing(ReadBack):
    """Periods of a measure over shifts: the share of its variance that each explains, and how sure that is.

    Attributes:
        periodic: The periods that noise does not explain, in pixels, the shortest first.
        level: Of the test, for all periods together.
    """

    kind = "aliasing"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Aliasing of {settings['model']}: {settings['column']}", rows, summary, settings)
        self.level = float(settings["level"])
        self.periodic = sorted({row["period_px"] for row in rows if row["verdict"] == "periodic"})

    def figure(self) -> Figure:
        """Draw the curve with its trend, and its spectrum with the periods and what noise would show."""
        from analysis.periodicity_figure import draw

        return draw(self)


def aliasing(
    rows: Any,
    *,
    column: str = "accuracy",
    axis: Axis = "auto",
    periods: Iterable[float] | None = None,
    model: Any = None,
    input_size: InputSize = None,
    harmonics: int | None = None,
    cycles: float = CYCLES,
    level: float = 0.05,
    surrogates: int = 999,
    seed: int = 0,
    command: str = "",
) -> Aliasing:
    """Find the periods of a measure over shifts, and tell them from noise and from smooth trends.

    A net that subsamples by s cannot treat shifts by less than s alike, so what remains of its sensitivity repeats
    every s pixels. A period is *periodic* where those of its frequencies that no shorter period has explain more than
    they do in curves without any period: white noise and a smooth part (a bump, a slope, red noise) of the shape that
    fits best, put through the same fit. p-values are corrected by Holm's rule for all periods and directions tested.
    Shares are of the variance around a smooth trend: a cubic, a kink at no shift, and what has up to two cycles.

    Args:
        rows: A result of :func:`analysis.translation`, its rows (``dx_px``, ``dy_px``, the column), or a pair of
            arrays: shifts in pixels at a constant step, whole or fractional, and values.
        column: "accuracy", "loss", "relative_loss", or any other column of numbers.
        axis: "diagonal", "horizontal" or "vertical": that line, of a grid the mean over all lines (of a diagonal that
            through no shift); "grid": all three, and the spectrum in two dimensions; "auto": what the rows hold.
        periods: In pixels; by default the cumulative strides of ``model``, or 2, 4, 8, 16 and 32.
        model: Whose strides count; with their layers in the column ``where``.
        input_size: Of the model, as for ``surgeon.locate``.
        harmonics: At most so many frequencies of each period; by default all up to half of one per step.
        cycles: How often a period must fit into the curve to be looked for: at fewer than four, smooth bumps pass for
            periods.
        level: Chance of a false alarm among all the periods.
        surrogates: Number of noise curves a test draws.
        seed: Of the draws.
        command: What made the result, for its report.

    Returns:
        Rows per direction and period: ``share`` of the variance around the trend that the period with its harmonics
        explains (the shorter periods that divide it included), ``own_share`` that its own frequencies add,
        ``chance_share`` they would add by the noise alone, ``amplitude`` of what they add in the measure's unit, ``p``
        and ``p_adjusted``, ``verdict`` "periodic", "none", or "-" where the curve is too short, with a note.

    Raises:
        AnalysisError: When the rows are no curve, or no period fits into it.
        SurgeonError: When the model cannot be recorded.

    Example:
        >>> shifts = np.arange(-16, 17)
        >>> noise = np.random.default_rng(0).normal(size=33)
        >>> accuracy = 0.9 - 0.01 * abs(shifts) - 0.05 * (shifts % 4 == 2) + 0.005 * noise
        >>> aliasing((shifts, accuracy), periods=(2, 4, 8)).periodic
        [2.0, 4.0]

    References:
        Paper 002, its "residual periodic aliasing" from pooling. Spectrum, shares and test are ours.
    """
    _check(level, surrogates, harmonics, cycles)
    cuts, grid = read_scan(rows, column, axis)
    strides = {} if model is None else stride_periods(model, input_size)
    wanted = sorted({float(period) for period in (strides or STRIDES if periods is None else periods)})
    fits = [
        find_periods(
            cut.shifts, cut.values, wanted, harmonics=harmonics, cycles=cycles, surrogates=surrogates, seed=seed
        )
        for cut in cuts
    ]
    found = [row for cut, fit in zip(cuts, fits, strict=True) for row in _rows(cut, fit, strides)]
    tested = [row for row in found if row["p"] is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_adjusted"], row["verdict"] = adjusted, "periodic" if adjusted <= level else "none"
    settings = {
        "model": _name(model, rows), "column": column, "axis": axis, "periods_px": wanted, "harmonics": harmonics,
        "cycles": cycles, "shifts": [len(cut.shifts) for cut in cuts],
        "step_px": float(cuts[0].shifts[1] - cuts[0].shifts[0]), **_source(rows), "level": level,
        "surrogates": surrogates, "seed": seed,
        "notes": _notes(cuts, fits), "command": command, "versions": versions_of(), "drawn": _drawn(cuts, fits, grid),
    }  # fmt: skip
    return Aliasing(found, _summary(found, settings), settings)


def _check(level: float, surrogates: int, harmonics: int | None, cycles: float) -> None:
    if not (isinstance(level, (int, float)) and 0 < level < 1):
        raise AnalysisError(f"level is {level!r}; give the chance of a false alarm, as 0.05")
    if isinstance(surrogates, bool) or not isinstance(surrogates, int) or surrogates < 1 / level - 1:
        raise AnalysisError(
            f"surrogates is {surrogates!r}; p-values below level={level:g} need at least {1 / level - 1:.0f}"
        )
    if harmonics is not None and (isinstance(harmonics, bool) or not isinstance(harmonics, int) or harmonics < 1):
        raise AnalysisError(f"harmonics is {harmonics!r}; give a number, at least 1, or None for all")
    if not (isinstance(cycles, (int, float)) and cycles >= 2):
        raise AnalysisError(f"cycles is {cycles!r}; what does not repeat is no period, so give at least 2")


def _rows(cut: Cut, fit: Periodicity, strides: Mapping[int, str]) -> list[Row]:
    length = len(cut.shifts) * float(cut.shifts[1] - cut.shifts[0])
    found: list[Row] = []
    for period in fit.periods:
        found.append(
            {
                **_begin(cut, period.period, strides, length),
                **{"share": period.share, "own_share": period.own_share, "chance_share": period.chance_share},
                **{"amplitude": period.amplitude, "p": period.p, "p_adjusted": period.p, "verdict": "none"},
                "note": "" if fit.white else "the curve is as smooth as its trend: nothing varies",
            }
        )
    for at, reason in fit.left_out.items():
        empty = dict.fromkeys(("share", "own_share", "chance_share", "amplitude", "p", "p_adjusted"))
        found.append({**_begin(cut, at, strides, length), **empty, "verdict": "-", "note": reason})
    return sorted(found, key=lambda row: row["period_px"])


def _begin(cut: Cut, period: float, strides: Mapping[int, str], length: float) -> Row:
    where = strides.get(int(period), "") if period.is_integer() else ""
    return {"axis": cut.axis, "period_px": period, "where": where, "cycles": length / period}


def _notes(cuts: Sequence[Cut], fits: Sequence[Periodicity]) -> list[str]:
    """What is worth saying of the curves."""
    step = float(cuts[0].shifts[1] - cuts[0].shifts[0])
    return [
        f"{cut.axis + ': ' if cut.axis else ''}beside the periods the curve is taken as white noise and "
        f"{KINDS[fit.noise.smoothness]} of a length of {fit.noise.length * step:.1f} px, "
        f"{math.sqrt(fit.noise.strength):.2g} times as large"
        for cut, fit in zip(cuts, fits, strict=True)
        if fit.noise.strength
    ]


def _source(rows: Any) -> dict[str, Any]:
    """What is known of the scan the rows come from."""
    known = {"input_size": None, "images": None, "complete": True, **getattr(rows, "settings", {})}
    return {key: known[key] for key in ("input_size", "images", "padding", "complete") if key in known}


def _name(model: Any, rows: Any) -> str:
    known = getattr(rows, "settings", {}).get("model")
    return str(known or ("a curve" if model is None else model_name(unwrap(model))))


def _drawn(cuts: Sequence[Cut], fits: Sequence[Periodicity], grid: tuple[Array, Array, Array] | None) -> dict[str, Any]:
    """What a figure needs beside the rows."""
    curves = [
        {
            **{"axis": cut.axis, "shifts_px": _plain(cut.shifts), "values": _plain(cut.values)},
            **{"trend": _plain(fit.trend), "white": fit.white, "longest_px": max(p.period for p in fit.periods)},
            "noise": _plain_noise(fit.noise),
        }
        for cut, fit in zip(cuts, fits, strict=True)
    ]
    if grid is None:
        return {"curves": curves}
    right, down, values = grid
    return {"curves": curves, "grid": {"dx_px": _plain(right), "dy_px": _plain(down), "values": _plain(values)}}


def _plain_noise(noise: Noise) -> dict[str, float | None]:
    """As JSON can hold it: no infinity."""
    smoothness = noise.smoothness if math.isfinite(noise.smoothness) else None
    return {"smoothness": smoothness, "length": noise.length, "strength": noise.strength}


def _plain(values: Array) -> list[Any]:
    """Numbers of a few digits."""
    return [_plain(part) if part.ndim else float(f"{part:.{DIGITS}g}") for part in np.asarray(values)]


def _summary(rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    tested = [row for row in rows if row["p"] is not None]
    sure = [row for row in tested if row["verdict"] == "periodic"]
    words = [
        f"{row['axis'] + ', ' if row['axis'] else ''}{row['period_px']:g} px: {row['own_share']:.0%} of the variance "
        f"around the trend (noise alone: {row['chance_share']:.0%}), p = {row['p_adjusted']:.2g}"
        for row in sure
    ]
    several = f"{len(tested)} periods{'' if len(settings['shifts']) == 1 else ' and directions'}"
    short = ", ".join(f"{at:g}" for at in sorted({row["period_px"] for row in rows if row["p"] is None}))
    left = f" Not looked for: {short} px." if short else ""
    said = "; ".join(words) if sure else "no period that noise does not explain"
    return f"Of {several}: {said} (level {settings['level']:g} for all together).{left}"


__all__ = ["Aliasing", "aliasing"]
