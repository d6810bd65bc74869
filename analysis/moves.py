"""Which moves a scan goes over: grids, diagonals, angles, scales; and how a batch looks after one.

Apart from moving pixels, which knows nothing of scans.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from torch import Tensor

from analysis.moving import Fill, Padding, Size, shift_images, turn_images
from surgeon.errors import AnalysisError

Kind = Literal["shift", "rotation", "scale"]
Axis = Literal["grid", "diagonal", "horizontal", "vertical"]
REACH = {"shift": 9.0, "rotation": 20.0, "scale": 0.5}
STEP = {"shift": 1.0, "rotation": 1.0, "scale": 0.05}
MOST = 100_000  # moves; more are a mistake


@dataclass(frozen=True)
class Move:
    """One move of what images show.

    Attributes:
        dx: Pixels to the right.
        dy: Pixels down.
        degrees: Anticlockwise.
        scale: 2 is twice as large.

    Example:
        >>> Move(dx=1.5).name, Move().none
        ('shift 1.5,0', True)
    """

    dx: float = 0.0
    dy: float = 0.0
    degrees: float = 0.0
    scale: float = 1.0

    @property
    def none(self) -> bool:
        """Whether it leaves images as they are."""
        return self == Move()

    @property
    def name(self) -> str:
        """What it is called among the readings."""
        if self.degrees or self.scale != 1:
            return f"turn {self.degrees:g},{self.scale:g}"
        return f"shift {self.dx:g},{self.dy:g}"


def shown(
    batch: tuple[Tensor, Tensor], _number: int, _start: int, *, move: Move, padding: Padding, size: Size | None,
    fill: Fill,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A batch after a move."""
    images, targets = batch
    if move.degrees or move.scale != 1:
        return turn_images(images, move.degrees, move.scale, padding, size=size, fill=fill), targets
    return shift_images(images, move.dx, move.dy, padding, size=size, fill=fill), targets


def moves_of(
    kind: Kind, axis: Axis, reach: float | None, step: float | None, moves: Sequence[Any] | None
) -> list[Move]:
    """The moves a user asked for, the unmoved images among them.

    Raises:
        AnalysisError: For values that are none.

    Example:
        >>> [(move.dx, move.dy) for move in moves_of("shift", "diagonal", 1, None, None)]
        [(-1.0, -1.0), (0.0, 0.0), (1.0, 1.0)]
        >>> [move.degrees for move in moves_of("rotation", "grid", 2, None, None)]
        [0.0, 1.0, 2.0]
    """
    _known("kind", kind, Kind)
    _known("axis", axis, Axis)
    if moves is not None:
        found = [_move(kind, each) for each in _listed(moves)]
    else:
        wide = REACH[kind] if reach is None else reach
        usual = 3.0 if kind == "shift" and axis == "grid" else STEP[kind]  # no multiple of strides
        found = _evenly(kind, axis, wide, usual if step is None else step)
    unmoved = [] if any(move.none for move in found) else [Move()]
    return list(dict.fromkeys([*unmoved, *found]))


def window_of(size: Size | int | None, padding: Padding) -> Size | None:
    """The window of a crop; None for other paddings.

    Raises:
        AnalysisError: Where it is missing, none, or not asked for.

    Example:
        >>> window_of(224, "crop"), window_of(None, "mirror")
        ((224, 224), None)
    """
    _known("padding", padding, Padding)
    if padding != "crop":
        if size is not None:
            raise AnalysisError(f"size is the window of padding='crop', and padding is {padding!r}; leave it out")
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Iterable) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise AnalysisError(f"size is {size!r}; padding='crop' needs the window, as 224 or (height, width)")
    return (pair[0], pair[1])


def check_fill(fill: Fill | None, padding: Padding) -> Fill:
    """The value of black, which nobody can guess of normalised images.

    Raises:
        AnalysisError: Where it is missing.

    Example:
        >>> check_fill(None, "mirror"), check_fill((-2.1, -2.0, -1.8), "black")
        (0.0, (-2.1, -2.0, -1.8))
    """
    if fill is None and padding == "black":
        raise AnalysisError(
            "padding='black' needs fill=, the value of black in these images: 0 of images from 0 to 1, "
            "(0 - mean) / std of normalised ones; one number, or one per channel"
        )
    return 0.0 if fill is None else fill


def _evenly(kind: Kind, axis: Axis, reach: float, step: float) -> list[Move]:
    for name, value in (("reach", reach), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, Real) or not (0 < value < math.inf):
            raise AnalysisError(f"{name} is {value!r}; give a positive number of pixels, degrees or share")
    reach, step = float(reach), float(step)
    if kind == "scale" and reach >= 1:
        raise AnalysisError(f"reach is {reach:g}; scales go from 1 - reach to 1 + reach, so give less than 1")
    count = math.floor(reach / step + 1e-9)
    if (2 * count + 1) ** (2 if kind == "shift" and axis == "grid" else 1) > MOST:
        raise AnalysisError(f"reach {reach:g} in steps of {step:g} makes over {MOST} moves; give a longer step")
    both = [round(place * step, 9) for place in range(-count, count + 1)]
    if kind == "rotation":
        return [Move(degrees=each) for each in both if each >= 0]
    if kind == "scale":
        return [Move(scale=round(1 + each, 9)) for each in both]
    pairs = {
        "grid": [(dx, dy) for dy in both for dx in both],
        "diagonal": [(each, each) for each in both],
        "horizontal": [(each, 0.0) for each in both],
        "vertical": [(0.0, each) for each in both],
    }
    return [Move(dx, dy) for dx, dy in pairs[axis]]


def _listed(moves: Any) -> list[Any]:
    found = list(moves) if isinstance(moves, Iterable) and not isinstance(moves, str) else []
    if not found:
        raise AnalysisError(f"moves is {moves!r}; give a list of (dx, dy), angles or scales")
    return found


def _move(kind: Kind, value: Any) -> Move:
    pair = tuple(value) if isinstance(value, Iterable) else (value,)
    wanted = 2 if kind == "shift" else 1
    numbers = [each for each in pair if isinstance(each, Real) and math.isfinite(each)]
    if len(pair) != wanted or len(numbers) != wanted or (kind == "scale" and numbers[0] <= 0):
        what = {"shift": "a shift (dx, dy)", "rotation": "an angle in degrees", "scale": "a positive scale"}[kind]
        raise AnalysisError(f"moves holds {value!r}, which is not {what}")
    if kind == "shift":
        return Move(float(numbers[0]), float(numbers[1]))
    return Move(degrees=float(numbers[0])) if kind == "rotation" else Move(scale=float(numbers[0]))


def _known(name: str, value: Any, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise AnalysisError(f"{name} is {value!r}; it is one of {', '.join(get_args(allowed))}")
