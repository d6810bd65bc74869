"""Labels beside points of a plot, so that none lies over another or over a point.

Apart from the figures with named points, which all place their labels alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from analysis.result import plain

SIZE = 8.0  # points, of a letter
RADII, ANGLES = (7, 13, 21, 32, 46, 62, 82), (0, 180, 45, 135, 315, 225, 90, 270, 20, 160, 340, 200)
Box = tuple[float, float, float, float]  # left, bottom, right, top, in points


def label_points(figure: Any, axes: Any, places: Sequence[tuple[float, float]], names: Sequence[str]) -> list[Box]:
    """Write a name beside each point, as near as there is room; those further away get a line.

    Args:
        figure: Whose layout is settled by this.
        axes: With its limits set.
        places: Of the points, in data.
        names: Of the points.

    Returns:
        Where the names are, in points of the figure.

    Example:
        >>> from matplotlib.figure import Figure
        >>> figure = Figure()
        >>> axes = figure.subplots()
        >>> one, two = label_points(figure, axes, [(0.5, 0.5), (0.5, 0.5)], ["a", "b"])
        >>> one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        True
    """
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    points = [tuple(scale * float(value) for value in axes.transData.transform(place)) for place in places]
    edges = axes.get_window_extent()
    frame = (edges.x0 * scale, edges.y0 * scale, edges.x1 * scale, edges.y1 * scale)
    taken: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for x, y in points]
    boxes = []
    for (x, y), place, name in zip(points, places, names, strict=True):
        radius, box = _free((x, y), name, taken, frame)
        taken.append(box)
        boxes.append(box)
        offset = ((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y)
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        note = axes.annotate(
            plain(name), place, offset, textcoords="offset points", ha="center", va="center", fontsize=SIZE,
            arrowprops=line if radius > RADII[1] else None,
        )  # fmt: skip
        note.set_in_layout(False)
    return boxes


def _free(point: tuple[float, float], name: str, taken: Sequence[Box], frame: Box) -> tuple[float, Box]:
    """The nearest place that is free, else the one that hides least."""
    wide, high = 0.58 * SIZE * len(name) + 2, 1.25 * SIZE
    best: tuple[float, float, Box] | None = None
    for radius in RADII:
        for angle in ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = point[0] + across * (radius + wide / 2)
            y = point[1] + up * (radius + high / 2)
            box = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
            lost = sum(_common(box, other) for other in taken) + 2 * (wide * high - _common(box, frame))
            if lost <= 1e-9:
                return radius, box
            if best is None or lost < best[0]:
                best = (lost, radius, box)
    return (0.0, (0, 0, 0, 0)) if best is None else best[1:]


def _common(one: Box, other: Box) -> float:
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)
