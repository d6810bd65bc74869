"""Scenes of handwritten digits on textured background: the pixels and boxes of `recipes.digits_detection`.

Apart from the files so that all arithmetic stands in one place: integers only, and random numbers from a stream numpy
has promised never to change, so that a scene is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from recipes.data_schema import DigitsData
from recipes.processes import derive

Grey = npt.NDArray[np.int64]
CELLS = (64, 32, 16, 8, 4)  # pixels between the random values of each layer of texture
ROUGHNESS = 22  # grey values each layer adds at most, up and down
CONTRAST = (70, 130)  # grey values between a digit's ink and the texture below
TRIES = 40  # places tried for a digit before it is left out
GAP = 1  # pixels between two boxes at least


@dataclass(frozen=True)
class Scene:
    """One image: grey values 0 to 255, (H, W); classes; boxes (left, top, right, bottom) in pixels, none overlapping.

    Attributes:
        image: Unsigned bytes, (H, W).
        classes: One digit 0 to 9 per box.
        boxes: Ends are exclusive: a box 8 pixels wide has right - left = 8.
    """

    image: npt.NDArray[np.uint8]
    classes: list[int]
    boxes: list[tuple[int, int, int, int]]


@dataclass(frozen=True)
class Digit:
    """One of scikit-learn's digits, cut to its ink: grey values 0 to 16, and its class."""

    grey: Grey
    label: int


def digits(training: bool) -> list[Digit]:
    """Return the digits of one part; the parts are those of the data set ``digits``, so that no digit is in both.

    Example:
        >>> len(digits(training=True)), len(digits(training=False))
        (1347, 450)
    """
    bunch, split = load_digits(), DigitsData()
    parts = train_test_split(
        range(len(bunch.target)), test_size=split.val_share, stratify=bunch.target, random_state=split.split_seed
    )
    chosen = sorted(parts[0 if training else 1])
    return [Digit(_ink(bunch.images[i].astype(np.int64)), int(bunch.target[i])) for i in chosen]


def _ink(grey: Grey) -> Grey:
    """Cut a digit to the rows and columns that hold ink of a quarter of full strength."""
    rows, columns = (np.flatnonzero((grey >= 4).any(axis=axis)) for axis in (1, 0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def enlarge(grey: Grey, height: int, width: int) -> Grey:
    """Enlarge bilinearly on zero ground, in steps of 1/256 of a pixel and rounded down: (h, w) to (height, width).

    Example:
        >>> enlarge(np.array([[16, 16]]), 1, 4).tolist()
        [[12, 16, 16, 12]]
    """
    for axis, new in enumerate((height, width)):
        old = grey.shape[axis]
        around = np.pad(grey, [(int(axis == other),) * 2 for other in (0, 1)])
        centre = (2 * np.arange(new) + 1) * old * 128 // new + 128
        share = np.expand_dims(centre % 256, 1 - axis)
        low, high = (np.take(around, centre // 256 + step, axis) for step in (0, 1))
        grey = (low * (256 - share) + high * share) // 256
    return grey


def texture(size: int, random: np.random.RandomState) -> Grey:
    """Draw a background: layers of smooth noise, coarse to fine, on a random grey; (size, size), not yet clipped."""
    canvas = np.full((size, size), random.randint(80, 176, dtype=np.int64))
    for cell in CELLS:
        points = size // cell + 3
        layer = random.randint(-ROUGHNESS, ROUGHNESS + 1, (points, points), dtype=np.int64)
        canvas += enlarge(layer * 256, points * cell, points * cell)[cell : cell + size, cell : cell + size] // 256
    return canvas


def draw(pool: Sequence[Digit], size: int, heights: tuple[int, int], most: int, *seeds: int) -> Scene:
    """Draw one scene.

    Heights are drawn evenly on a logarithmic scale, so small digits are the many; the largest are placed first, and a
    digit for which `TRIES` places overlap another one is left out.

    Args:
        pool: Digits to choose from.
        size: Of the square image, pixels.
        heights: Smallest and largest height or width of a digit, whichever is longer; pixels, from 8.
        most: Digits to place, where there is room.
        seeds: Any numbers; the scene depends on all.

    Example:
        >>> scene = draw(digits(training=True), 96, (8, 32), 6, 0, 1)
        >>> scene.image.shape, len(scene.boxes)
        ((96, 96), 6)
    """
    random = np.random.RandomState(derive(*seeds))
    canvas, scene = texture(size, random), Scene(np.empty(0, np.uint8), [], [])
    sides = _sides(heights)
    for choice in sorted(random.randint(len(sides), size=most, dtype=np.int64), reverse=True):
        side = sides[int(choice)]
        digit = pool[int(random.randint(len(pool), dtype=np.int64))]
        long = max(digit.grey.shape)
        high, wide = (max(length, (2 * length * side + long) // (2 * long)) for length in digit.grey.shape)
        corners = random.randint(0, (size - wide + 1, size - high + 1), (TRIES, 2), dtype=np.int64)
        boxes = [(x, y, x + wide, y + high) for x, y in corners.tolist()]
        box = next((box for box in boxes if not any(_near(box, other) for other in scene.boxes)), None)
        contrast = random.randint(CONTRAST[0], CONTRAST[1] + 1, dtype=np.int64)
        dark = random.randint(256, dtype=np.int64)
        if box is not None:
            place = canvas[box[1] : box[3], box[0] : box[2]]
            sign = -1 if dark < place.mean() else 1
            place += sign * contrast * enlarge(digit.grey * 256, high, wide) // (16 * 256)
            scene.classes.append(digit.label)
            scene.boxes.append(box)
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), scene.classes, scene.boxes)


def _sides(heights: tuple[int, int]) -> list[int]:
    """Return sides in steps of about 5%, so that choosing one evenly is even on a logarithmic scale."""
    sides = [heights[0] * 64]
    while sides[-1] * 21 // 20 <= heights[1] * 64:
        sides.append(sides[-1] * 21 // 20)
    return [side // 64 for side in sides]


def _near(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    across, down = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return across > -GAP and down > -GAP
