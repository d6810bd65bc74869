"""Figures as SVG that stands inside an HTML page: heatmaps by own geometry, other figures by matplotlib.

Apart from the pages because it deals with points and markup. Heatmaps are drawn here, not by matplotlib, so that each
cell tells its numbers when it is pointed at, and takes a third of the bytes. Text and axes take the colour of the page.
"""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis.grids import FULL, Grid, cell_text, ink, short

CHAR = 7.3  # pixels, of a letter of 12 pixels in a wide font
WIDTH, HEIGHT, GAP = 64, 27, 7  # pixels of a cell, and before the full model
NARROW, ROOM = 20, 1090  # the smallest width of a cell, and of all cells where they are many
STEPS = 24  # of the scale of colours


def grid_maps(grid: Grid) -> list[dict[str, Any]]:
    """Lay a grid out: one map, or several where there are more units than fit beside each other.

    Returns:
        What the template draws, all lengths in pixels.

    Example:
        >>> from analysis.grids import Cell
        >>> (one,) = grid_maps(Grid(("fc1",), ("0", "final"), {("fc1", "0"): Cell(90.0)}, "error, %"))
        >>> [cell["text"] for cell in one["lines"][0]["cells"]]
        ['90.0', '–']
    """
    bands = grid.bands()
    maps = [_map(grid, names, max(map(len, bands))) for names in bands]
    maps[-1]["scale"] = _scale(grid)
    maps[-1]["height"] += 46
    return maps


def _map(grid: Grid, names: Sequence[str], most: int) -> dict[str, Any]:
    columns, lines = (names, grid.treatments) if grid.deep else (grid.treatments, names)
    width = min(46.0, max(NARROW, ROOM // most)) if grid.deep else WIDTH
    spread = any(cell.spread is not None for cell in grid.cells.values())
    height = HEIGHT + (10 if spread else 5 if width < 34 and grid.verdicts() else 0)
    left = 12 + CHAR * max(len(short(grid.beside(line))) for line in lines)
    upright = max(len(short(grid.beside(column))) for column in columns) * CHAR > width - 4
    top = 12 + (CHAR * max(len(short(grid.beside(column))) for column in columns) if upright else 12)
    xs, ys = _places(columns, left, width), _places(lines, top, height)
    return {
        "columns": [_name(grid, column, x + width / 2, top - 7) for column, x in zip(columns, xs, strict=True)],
        "lines": [
            _name(grid, line, left - 7, y)
            | {"cells": [_cell(grid, column, line, x, width, spread) for column, x in zip(columns, xs, strict=True)]}
            for line, y in zip(lines, ys, strict=True)
        ],
        "upright": upright,
        "cell": {"width": width - 1, "height": height - 1},
        "size": 9.5 if width < 34 else 12,
        "width": max(xs[-1] + width, left + 260) + 4,
        "height": ys[-1] + height + 2,
        "foot": ys[-1] + height + 14,
        "left": left,
        "label": f"{grid.label}: {len(names)} rows or columns; the table below has the same numbers",
    }


def _places(names: Sequence[str], start: float, step: float) -> list[float]:
    """Where each begins, with a gap before the full model."""
    return [round(start + step * i + (GAP if name == FULL and i else 0), 1) for i, name in enumerate(names)]


def _name(grid: Grid, name: str, x: float, y: float) -> dict[str, Any]:
    beside = grid.beside(name)
    return {"text": short(beside), "full": beside if short(beside) != beside else "", "x": round(x, 1), "y": y}


def _cell(grid: Grid, column: str, line: str, x: float, width: float, spread: bool) -> dict[str, Any]:
    place = (column, line) if grid.deep else (line, column)
    cell = grid.cells.get(place)
    about: dict[str, Any] = {"x": x, "middle": round(width / 2, 1), "corner": width - 6}
    if cell is None or cell.value is None:
        return about | {"text": "–", "fill": None, "words": f"{place[0]}, {place[1]}: not measured"}
    colour, narrow = grid.colour(cell.value), width < 34
    words = f"{place[0]}, {place[1]}: {cell.words}"
    below = f"±{cell_text(cell.spread, narrow)}" if spread and cell.spread is not None else ""
    about |= {"text": cell_text(cell.value, narrow), "below": below, "mark": cell.verdict}
    return about | {"fill": colour, "dark": ink(colour) == "#ffffff", "words": words}


def _scale(grid: Grid) -> dict[str, Any]:
    low, high = grid.limits
    steps = [low + (high - low) * (i + 0.5) / STEPS for i in range(STEPS)]
    return {
        "colours": [grid.colour(step) for step in steps],
        "low": cell_text(low, False),
        "high": cell_text(high, False),
    }


def figure_svg(figure: Figure, salt: str, label: str) -> Markup:
    """A matplotlib figure as SVG to stand in a page: the same bytes each time, black in the colour of the text.

    Args:
        figure: Without its title, which the page has above it. An artist whose gid begins with ``tip:`` says the rest
            of it when it is pointed at.
        salt: Keeps the names inside apart from those of other figures of the page.
        label: What readers hear who cannot see it.
    """
    figure.suptitle("").set_in_layout(False)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has its own fonts
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<g id="tip:([^"]*)"', r"<g><title>\1</title", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("#000000", "currentColor")
    text = re.sub(r"\n\s*", "\n", text)
    return Markup(text.replace("<svg", f'<svg class="plot" role="img" aria-label="{html.escape(label)}"', 1))


def figure_png(figure: Figure, label: str) -> Markup:
    """Any figure as a picture on white, as its analysis drew it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup(f'<img class="paper" alt="{html.escape(label)}" src="data:image/png;base64,{data}">')
