"""The protocols of shift consistency: which windows of an image are compared, drawn for each image by itself.

Apart from the measure, which only compares what was chosen for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from analysis.moving import Size
from analysis.variants import View
from surgeon.errors import AnalysisError

Protocol = Literal["crop", "diagonal", "circular"]
REACH = {"crop": 32, "diagonal": 32, "circular": 32}  # of the released code; 3 for CIFAR
PASSES = {"crop": 5, "diagonal": 1, "circular": 1}


@dataclass(frozen=True)
class Windows:
    """Windows of the images of a batch.

    Attributes:
        protocol: As of :func:`analysis.consistency`.
        size: (height, width); None is the image.
        reach: In pixels.
        seed: Of the random ones.

    Example:
        >>> images, targets = torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([0])
        >>> windows = Windows("diagonal", (2, 2), 2, 0)
        >>> windows.at((images, targets), 0, 0, 1)[0].flatten().tolist()
        [5.0, 6.0, 9.0, 10.0]
        >>> windows.middle((images, targets), 0, 0)[0].flatten().tolist()
        [5.0, 6.0, 9.0, 10.0]
    """

    protocol: Protocol
    size: Size | None
    reach: int
    seed: int

    def middle(self, batch: Any, _number: int, _start: int) -> tuple[Tensor, Tensor]:
        """What the unshifted figures are of: the middle window."""
        images, targets = batch
        if self.size is None:
            return images, targets
        top, left = self._room(images)
        return images[:, :, top // 2 :, left // 2 :][:, :, : self.size[0], : self.size[1]], targets

    def random(self, batch: Any, number: int, start: int, key: int) -> tuple[Tensor, Tensor]:
        """A window or circular shift of its own for each image; the same for the same seed, key, batch and place."""
        images, targets = batch
        generator = np.random.default_rng([self.seed, key, number])
        if self.protocol == "circular":
            images = self.middle(batch, number, start)[0]
            drawn = generator.integers(-self.reach, self.reach, (start + len(images), 2))[start:]
            height, width = images.shape[-2:]
            return _picked(images, -drawn[:, 0], -drawn[:, 1], (height, width)), targets
        room = self._room(images)
        if min(room) < self.reach - 1:
            height, width = images.shape[-2:]
            raise AnalysisError(
                f"protocol 'crop' draws from {self.reach} places on each axis, and windows of {self._sides} have "
                f"{room[0] + 1} x {room[1] + 1} in images of {height} x {width}; give larger images, a smaller "
                "size or reach"
            )
        drawn = generator.integers(0, self.reach, (start + len(images), 2))[start:]
        top, left = self._corner(room)
        return _picked(images, drawn[:, 0] + top, drawn[:, 1] + left, self.size or (1, 1)), targets

    def at(self, batch: Any, _number: int, _start: int, shift: int) -> tuple[Tensor, Tensor]:
        """The window ``shift`` pixels from the upper left corner on both axes, of the middle of larger images."""
        images, targets = batch
        height, width = self.size or images.shape[-2:]
        top, left = self._corner(self._room(images))
        if min(self._room(images)) < self.reach:
            raise AnalysisError(
                f"protocol 'diagonal' goes to {self.reach} pixels, and windows of {self._sides} have room for "
                f"{min(self._room(images))} in images of {images.shape[-2]} x {images.shape[-1]}; give larger images, "
                "a smaller size or reach"
            )
        down, right = top + shift, left + shift
        return images[:, :, down : down + height, right : right + width], targets

    def _corner(self, room: tuple[int, int]) -> tuple[int, int]:
        """Where the middle part begins that all windows lie in, window and reach wide; more of an image is not seen."""
        return max((room[0] - self.reach) // 2, 0), max((room[1] - self.reach) // 2, 0)

    @property
    def _sides(self) -> str:
        return "the image" if self.size is None else f"{self.size[0]} x {self.size[1]}"

    def _room(self, images: Tensor) -> tuple[int, int]:
        height, width = self.size or (1, 1)
        room = (images.shape[-2] - height, images.shape[-1] - width)
        if min(room) < 0:
            raise AnalysisError(
                f"size is {height} x {width}, and the images are {images.shape[-2]} x {images.shape[-1]}; give larger "
                "images or a smaller size"
            )
        return room


def pairs(windows: Windows, passes: int) -> Iterator[tuple[str, View]]:
    """Names and views: two per pass, or one per shift of the diagonal."""
    if windows.protocol == "diagonal":
        for shift in range(windows.reach + 1):
            yield f"shift {shift}", partial(windows.at, shift=shift)
        return
    for key in range(2 * passes):
        yield f"pass {key // 2} {'ab'[key % 2]}", partial(windows.random, key=key)


def reach_of(protocol: Protocol, reach: int | None) -> int:
    """How far shifts go.

    Raises:
        AnalysisError: For a reach that is none.

    Example:
        >>> reach_of("circular", None), reach_of("circular", 3)
        (32, 3)
    """
    far = REACH[protocol] if reach is None else reach
    if isinstance(far, bool) or not isinstance(far, int) or far < 1:
        raise AnalysisError(f"reach is {reach!r}; give whole pixels, at least 1")
    return far


def _picked(images: Tensor, top: Any, left: Any, size: tuple[int, int]) -> Tensor:
    """Windows of each image from (top, left) on, around the border where they leave it."""
    height, width = images.shape[-2:]
    rows = torch.as_tensor((top[:, None] + np.arange(size[0])) % height, device=images.device)
    columns = torch.as_tensor((left[:, None] + np.arange(size[1])) % width, device=images.device)
    channels = images.shape[1]
    some = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return some.gather(3, columns[:, None, None, :].expand(-1, channels, size[0], -1))
