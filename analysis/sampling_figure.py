"""Reads of each strided layer's input, and of the image by the whole model; a line of panels before and one after.

A function of rows and settings only, so that stored results are drawn too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.drawing import canvas
from analysis.result import Result, plain
from surgeon.errors import AnalysisError

MOST = 5  # layers that are drawn
TILE = 4  # positions of a panel
SMALL = 8.5
LONGEST = 20  # letters of a name
INK = ("#ffffff", "#111111")  # on dark and on bright cells, whatever the page behind


def draw(result: Result) -> Figure:
    """Draw, for each state, the layers with their reads per position, and the image: a panel of one colour is even.

    Raises:
        AnalysisError: When the settings hold no map.
    """
    maps = (result.settings.get("drawn") or {}).get("maps") or []
    if not maps:
        raise AnalysisError(f"'{result.title}' holds no map to draw; measure again")
    states = list(dict.fromkeys(each["state"] for each in maps))
    layers = _chosen(list(dict.fromkeys(each["site"] for each in maps if each["cell"] is not None)))
    known = {(each["state"], each["site"]): each for each in maps}
    images = {each["state"]: each["image"] for each in maps if each["image"] is not None}
    wide = len(layers) + bool(images)
    figure = canvas(result.title, 1.2 + 1.75 * wide, 1.0 + 2.15 * len(states))
    axes = figure.subplots(len(states), wide, squeeze=False)
    last: Any = None
    for line, state in enumerate(states):
        for column, site in enumerate(layers):
            cell = known.get((state, site), {}).get("cell")
            last = _layer(axes[line, column], cell, site, state if not column and len(states) > 1 else "") or last
    if last is not None:
        bar = figure.colorbar(last, ax=axes[:, : len(layers)], location="bottom", shrink=0.5, aspect=40, pad=0.03)
        _label(bar, "numbers: reads of each position of the layer's input; colours: over those of the most read one")
    if images:
        _images(figure, axes[:, -1], [images.get(state) for state in states])
    return figure


def _chosen(sites: Sequence[str]) -> list[str]:
    """Some of many, from first to last."""
    if len(sites) <= MOST:
        return list(sites)
    return [sites[round(i * (len(sites) - 1) / (MOST - 1))] for i in range(MOST)]


def _layer(axes: Any, cell: Any, site: str, state: str) -> Any:
    """One layer: its cell repeated, with the numbers of reads where there is room."""
    axes.set_xticks([])
    axes.set_yticks([])
    name = site if len(site) <= LONGEST else "…" + site[1 - LONGEST :]
    axes.set_title(plain(name), fontsize=SMALL)
    if state:
        axes.set_ylabel(plain(state), fontsize=SMALL + 1)
    if cell is None:
        axes.set_axis_off()
        words = {"ha": "center", "va": "center", "fontsize": SMALL, "transform": axes.transAxes}
        axes.text(0.5, 0.5, "no strided\nlayer here", **words)
        return None
    values = np.asarray(cell)
    times = [max(1, -(-TILE // side)) for side in values.shape]
    values = np.tile(values, times)[: max(TILE, len(cell)), : max(TILE, len(cell[0]))]
    high = max(float(values.max()), 1.0)
    image = axes.imshow(values / high, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    if values.size <= 64:
        for (row, column), value in np.ndenumerate(values):
            ink = INK[0] if value < 0.6 * high else INK[1]
            axes.text(column, row, f"{value:g}", ha="center", va="center", fontsize=SMALL, color=ink)
    return image


def _images(figure: Figure, axes: Any, images: Sequence[Any]) -> None:
    """What the whole model reads of the image, over the mean; all states in the same colours."""
    high = max(float(np.max(image)) for image in images if image is not None)
    shown: Any = None
    for axis, image in zip(axes, images, strict=True):
        axis.set_title("image, by the\nwhole model", fontsize=SMALL)
        if image is None:
            axis.set_axis_off()
            continue
        values = np.asarray(image)
        extent = (0, values.shape[1], values.shape[0], 0)
        shown = axis.imshow(values, cmap="magma", vmin=0, vmax=high, interpolation="nearest", extent=extent)
        axis.set_xlabel("pixels", fontsize=SMALL)
        axis.tick_params(labelsize=SMALL - 0.5)
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9, pad=0.03)
    _label(bar, "reads over their mean")


def _label(bar: Any, words: str) -> None:
    bar.set_label(words, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)


__all__ = ["draw"]
