"""scikit-learn's 1,797 real handwritten digits (8 x 8 pixels) as a data set that needs no download.

Apart from the other data sets because whole batches are cut from one tensor, without image files or transforms.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional
from torch.utils.data import Dataset

from recipes.batches import Batch, Key
from recipes.data_schema import DigitsData
from recipes.processes import derive

MEAN, STD = 0.3, 0.37  # of the digits without margin, in grey values 0 to 1


class Digits(Dataset[Any]):
    """Digits drawn `size` pixels wide on a black canvas, at random or in the centre.

    Args:
        section: The recipe's ``data:``.
        training: The training part, placed anew in every epoch; else the validation part, which never changes.
        seed: Of the training placements; the split and the validation images depend on ``split_seed`` only.

    Example:
        >>> images, targets = Digits(DigitsData(size=16, canvas=32), training=False).__getitems__([(0, 0), (0, 1)])
        >>> images.shape
        torch.Size([2, 1, 32, 32])
    """

    num_classes = 10

    def __init__(self, section: DigitsData, training: bool, seed: int = 0) -> None:
        bunch = load_digits()
        parts = train_test_split(
            range(len(bunch.target)),
            test_size=section.val_share,
            stratify=bunch.target,
            random_state=section.split_seed,
        )
        limit = section.max_train if training else section.max_val
        chosen = sorted(parts[0 if training else 1][:limit])
        grey = torch.tensor(bunch.images[chosen] / 16, dtype=torch.float32)[:, None]
        side = (section.size, section.size)
        self.images = functional.interpolate(grey, side, mode="bilinear", antialias=True)  # (N, 1, size, size)
        self.targets = torch.tensor(bunch.target[chosen])
        self.section, self.seed = section, seed if training else section.split_seed
        self.training, self.canvas = training, section.canvas or section.size
        self._placed: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return len(self.images)

    def corners(self, epoch: int) -> torch.Tensor:
        """Return the upper left corner (row, column) of every digit in one epoch, (N, 2)."""
        room = self.canvas - self.section.size
        if self.section.placement == "centre":
            return torch.full((len(self), 2), room // 2)
        epoch = epoch if self.training and self.section.placement == "random" else 0
        if self._placed[0] != epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, epoch, int(self.training)))
            self._placed = epoch, torch.randint(0, room + 1, (len(self), 2), generator=generator)
        return self._placed[1]

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return a batch for keys (epoch, index) of one epoch: (B, channels, canvas, canvas) and classes."""
        indices = torch.tensor([index for _, index in keys])
        corners, size = self.corners(keys[0][0])[indices].tolist(), self.section.size
        images = torch.zeros(len(keys), 1, self.canvas, self.canvas)
        for position, (index, (top, left)) in enumerate(zip(indices, corners, strict=True)):
            images[position, :, top : top + size, left : left + size] = self.images[index]
        images = (images - MEAN) / STD
        return images.expand(-1, self.section.channels, -1, -1).contiguous(), self.targets[indices]
