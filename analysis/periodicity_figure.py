"""Curves over shifts and their spectra, with the periods of the strides; of a grid the spectrum in two dimensions.

A function of rows and settings only, so that stored results are drawn too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from analysis.curve_noise import Noise
from analysis.drawing import BLUE, GREY, HUES, canvas
from analysis.result import Result, Row, plain
from analysis.spectra import noise_spectrum, spectrum
from surgeon.errors import AnalysisError

RED = HUES[1]
SMALL = 8.5
RARE = -math.log(0.05)  # times its mean: what the power of noise exceeds at 5% of the frequencies


def draw(result: Result) -> Figure:
    """Draw each curve with its trend, and beside it its spectrum; periods that noise does not explain are marked.

    Raises:
        AnalysisError: When the settings hold no curve.
    """
    drawn = result.settings.get("drawn") or {}
    curves = drawn.get("curves") or []
    if not curves:
        raise AnalysisError(f"'{result.title}' holds no curve to draw; measure again")
    lines = len(curves) + ("grid" in drawn)
    figure = canvas(result.title, 10.4, 0.7 + 3.0 * lines + (0.9 if "grid" in drawn else 0))
    heights = [1.0] * len(curves) + [1.4] * ("grid" in drawn)
    places = figure.add_gridspec(lines, 2, height_ratios=heights, width_ratios=(1.0, 1.15))
    measure = str(result.settings.get("column", "measure")).replace("_", " ")
    for i, curve in enumerate(curves):
        mine = [row for row in result.rows if row["axis"] == curve["axis"]]
        _curve(figure.add_subplot(places[i, 0]), curve, measure)
        _spectrum(figure.add_subplot(places[i, 1]), curve, mine)
    if "grid" in drawn:
        _measure(figure, figure.add_subplot(places[-1, 0]), drawn["grid"], measure)
        _map(figure, figure.add_subplot(places[-1, 1]), drawn["grid"], result.rows)
    return figure


def _curve(axes: Any, curve: Mapping[str, Any], measure: str) -> None:
    shifts = curve["shifts_px"]
    axes.plot(shifts, curve["values"], color=BLUE, linewidth=1.1, marker="o", markersize=2.4, label=plain(measure))
    axes.plot(shifts, curve["trend"], color="black", linewidth=1.1, linestyle="--", label="trend")
    direction = f", {curve['axis']}" if curve["axis"] else ""
    axes.set_xlabel(f"shift, pixels{direction}", fontsize=SMALL)
    axes.set_ylabel(plain(measure), fontsize=SMALL)
    axes.legend(frameon=False, fontsize=SMALL)
    _plain_axes(axes)


def _spectrum(axes: Any, curve: Mapping[str, Any], rows: Sequence[Row]) -> None:
    step = curve["shifts_px"][1] - curve["shifts_px"][0]
    values = np.asarray(curve["values"]) - np.asarray(curve["trend"])
    frequencies, power = spectrum(values, step)
    noise = noise_spectrum(np.asarray(curve["shifts_px"]), curve["longest_px"], _noise(curve), curve["white"])
    shown = frequencies >= 1 / (len(values) * step)
    frequencies, power, noise = frequencies[shown], power[shown], RARE * noise[shown]
    high = max(float(power.max(initial=0.0)), 1e-30)
    axes.fill_between(frequencies, power / high, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(frequencies, power / high, color=BLUE, linewidth=1.2)
    noise = noise / high
    axes.plot(frequencies, noise, color="black", linewidth=1, linestyle=":", label="95% of noise lies below")
    top = 1.5
    axes.set_ylim(0, top)
    _periods(axes, rows, top)
    axes.set_xlim(frequencies[0], frequencies[-1] * 1.01)
    axes.set_ylabel("power, share of the highest", fontsize=SMALL)
    axes.legend(frameon=False, fontsize=SMALL, loc="upper left", borderaxespad=0.1)
    axes.set_yticks([0, 0.5, 1.0])
    _plain_axes(axes)


def _noise(curve: Mapping[str, Any]) -> Noise:
    known = curve["noise"]
    smoothness = math.inf if known["smoothness"] is None else float(known["smoothness"])
    return Noise(smoothness, float(known["length"]), float(known["strength"]))


def _periods(axes: Any, rows: Sequence[Row], top: float) -> None:
    """A line at each period, and its numbers above; the axis counts in periods."""
    axes.set_xscale("log")
    tested = [row for row in rows if row["p"] is not None]
    ends = sorted(1 / row["period_px"] for row in tested)
    for i, row in enumerate(tested):
        sure = row["verdict"] == "periodic"
        colour = RED if sure else GREY
        axes.axvline(1 / row["period_px"], color=colour, linewidth=1.4 if sure else 0.9, zorder=1)
        words = f"{row['own_share']:.0%}\np {row['p_adjusted']:.2g}"
        last = 1 / row["period_px"] == ends[-1]
        offset, side = (-3, "right") if last else (3, "left")
        place, ink = (1 / row["period_px"], (0.91 - 0.13 * (i % 2)) * top), colour if sure else "black"
        where: dict[str, Any] = {"textcoords": "offset points", "ha": side, "va": "top"}
        axes.annotate(words, place, (offset, 0), fontsize=SMALL - 0.5, color=ink, **where)
    axes.xaxis.set_major_locator(FixedLocator(ends))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticklabels([f"{1 / end:g}" for end in ends])
    axes.set_xlabel("period, pixels (share of the variance that each adds; red: periodic)", fontsize=SMALL)


def _measure(figure: Figure, axes: Any, grid: Mapping[str, Any], measure: str) -> None:
    right, down = grid["dx_px"], grid["dy_px"]
    halves = [(side[1] - side[0]) / 2 for side in (right, down)]
    extent = (right[0] - halves[0], right[-1] + halves[0], down[-1] + halves[1], down[0] - halves[1])
    image = axes.imshow(grid["values"], cmap="viridis", interpolation="nearest", extent=extent)
    axes.set_xlabel("shift right, pixels", fontsize=SMALL)
    axes.set_ylabel("shift down, pixels", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label(plain(measure), fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)


def _map(figure: Figure, axes: Any, grid: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """The spectrum of a grid: each direction's periods are ticks."""
    right, down = np.asarray(grid["dx_px"]), np.asarray(grid["dy_px"])
    power, steps = _power(np.asarray(grid["values"]), right, down), (right[1] - right[0], down[1] - down[0])
    reach = [0.5 / steps[0], 0.5 / steps[1]]
    floor = max(float(power.max()), 1e-300) * 1e-4
    image = axes.imshow(
        10 * np.log10(np.maximum(power, floor) / floor) - 40, origin="lower", cmap="viridis", vmin=-40, vmax=0,
        extent=(-reach[0], reach[0], -reach[1], reach[1]), interpolation="nearest",
    )  # fmt: skip
    periods = sorted({row["period_px"] for row in rows if row["p"] is not None})
    for limit, side in zip(reach, (axes.xaxis, axes.yaxis), strict=True):
        ticks = [sign / period for period in periods[:3] for sign in (-1, 1) if 1 / period <= limit + 1e-9]
        side.set_major_locator(FixedLocator([0, *ticks]))
        side.set_ticklabels(["0", *(f"{1 / abs(tick):g}" for tick in ticks)])
    axes.set_xlabel("period to the right, pixels", fontsize=SMALL)
    axes.set_ylabel("period down, pixels", fontsize=SMALL)
    axes.set_title("spectrum of the whole grid", fontsize=SMALL + 0.5)
    axes.tick_params(labelsize=SMALL)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("power, dB below the highest", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)


def _power(values: Any, right: Any, down: Any) -> Any:
    """Power of a grid without its smooth surface, under a Hann window in both directions."""
    x, y = (side / max(abs(side).max(), 1e-30) for side in (right, down))
    bowl = [np.outer(y**i, x**j).ravel() for i in range(5) for j in range(5 - i)]
    kinks = [np.outer(np.ones_like(y), abs(x)).ravel(), np.outer(abs(y), np.ones_like(x)).ravel()]
    columns = np.stack([*bowl, *kinks], 1)
    rest = values.ravel() - columns @ np.linalg.lstsq(columns, values.ravel(), rcond=None)[0]
    window = np.outer(np.hanning(len(y)), np.hanning(len(x)))
    return np.fft.fftshift(np.abs(np.fft.fft2(rest.reshape(values.shape) * window)) ** 2)


def _plain_axes(axes: Any) -> None:
    axes.tick_params(labelsize=SMALL)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


__all__ = ["draw"]
