"""Units by treatments as a grid of cells: what a heatmap shows, before it is drawn.

Apart from the drawing because figures (matplotlib) and pages (SVG) draw the same grid; how it is read from rows stands
in ``gridding``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

DEEP = 12  # units; above it they become columns, as in Figs. 4 to 6 of the paper
BAND = 56  # columns at most beside each other
FULL = "full model"
UNTOUCHED = "final"
PERCENT = 100.0
LEAST_SPAN = 10.0  # percentage points from the darkest to the brightest cell, so that noise is not drawn as a finding
COLOURS = colormaps["cividis"]
LONGEST = 42  # letters of a name that are shown
DIFFERS = "differs"  # the verdict where seeds disagree


@dataclass(frozen=True)
class Cell:
    """One unit under one treatment: the value in the grid's unit, its verdict, and what a tooltip says of it."""

    value: float | None
    verdict: str = "-"
    words: str = ""
    spread: float | None = None


@dataclass(frozen=True)
class Grid:
    """Cells by name (of a unit or group) and treatment.

    Attributes:
        names: In order of call; ``full model`` last, where it is there.
        treatments: In order.
        cells: By name and treatment; one may be missing.
        label: What the values are, with their unit.
        bright_is_high: Whether the brighter colour is the higher value; the brighter one is always the worse.
        least: The smallest range of the colours.
        labels: What stands beside a name, where not the name alone.
        notes: Names by what must be known of them.
    """

    names: tuple[str, ...]
    treatments: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    label: str
    bright_is_high: bool = True
    least: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def deep(self) -> bool:
        """Whether the units are columns."""
        return sum(name != FULL for name in self.names) > DEEP

    @property
    def limits(self) -> tuple[float, float]:
        """The values of the first and the last colour."""
        values = [cell.value for cell in self.cells.values() if cell.value is not None]
        low, high = min(values, default=0.0), max(values, default=0.0)
        if self.bright_is_high:
            return low, max(high, low + self.least) if high > low or self.least else low + 1
        return min(low, high - self.least) if high > low or self.least else high - 1, high

    def bands(self) -> list[tuple[str, ...]]:
        """The names, in several rows of columns of about the same number where there are very many."""
        count = math.ceil(len(self.names) / BAND) if self.deep else 1
        size = math.ceil(len(self.names) / count) if self.names else 1
        return [self.names[start : start + size] for start in range(0, len(self.names), size)]

    def beside(self, name: str) -> str:
        """The label of a name, with a star where there is a note."""
        star = " *" if any(name in names for names in self.notes.values()) else ""
        return self.labels.get(name, name) + star

    def verdicts(self) -> tuple[str, ...]:
        """The verdicts that occur, worst first."""
        there = {cell.verdict for cell in self.cells.values()}
        return tuple(verdict for verdict in ("critical", "undecided", DIFFERS, "robust") if verdict in there)

    def colour(self, value: float) -> str:
        """The colour of a value, from dark (good) to bright."""
        low, high = self.limits
        place = (value - low) / (high - low)
        return str(to_hex(COLOURS(place if self.bright_is_high else 1 - place)))


def cell_text(value: float | None, narrow: bool) -> str:
    """A value as a cell shows it, short where the cell is narrow.

    Example:
        >>> [cell_text(value, True) for value in (0.04, 1.62, 90.2, 100.0, None)]
        ['0.0', '1.6', '90', '100', '–']
        >>> cell_text(90.2, False)
        '90.2'
    """
    if value is None:
        return "–"
    return f"{value:.0f}" if narrow and abs(value) >= 9.95 else f"{value:.1f}"


def short(name: str) -> str:
    """A name with its middle left out where it is very long.

    Example:
        >>> short("a" * 40 + "b" * 40)
        'aaaaaaaaaaaaaaaaaaaaa…bbbbbbbbbbbbbbbbbbbb'
    """
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 + 1 :]}"


def ink(colour: str) -> str:
    """Black or white, whichever is read better on a colour.

    Example:
        >>> ink("#00204d"), ink("#fee838")
        ('#ffffff', '#000000')
    """
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return "#000000" if sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) > 0.18 else "#ffffff"


def number(value: Any) -> float | None:
    """A finite number, or None for anything else.

    Example:
        >>> number(2), number("2"), number(float("nan"))
        (2.0, None, None)
    """
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
