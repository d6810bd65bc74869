"""Re-iterable batches whose content depends on (seed, epoch, index) only.

Separate from the data sets so that the promise is kept in one place: any number of workers or processes, and a run
that was resumed, see the same images in the same order with the same augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from recipes.processes import Processes, derive, seeded
from surgeon.errors import SurgeonError

Batch = tuple[torch.Tensor, torch.Tensor]
Key = tuple[int, int]  # epoch, index of the image


class Batches(Protocol):
    """Batches of (images, targets): iterate over it for one epoch, or name the epoch."""

    num_images: int

    def epoch(self, number: int) -> Iterable[Batch]:
        """Return the batches of one epoch."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


def shard(indices: Sequence[int], rank: int, world: int) -> list[int]:
    """Return one process' part of a global batch; the parts of all processes together are the batch.

    Images i and B-1-i stay together where the parts are even, so that mixup, which pairs a batch with its reverse,
    forms the same pairs as in one process.

    Example:
        >>> shard(range(8), 0, 2), shard(range(8), 1, 2)
        ([0, 1, 6, 7], [2, 3, 4, 5])
    """
    size, total = len(indices) // world, len(indices)
    if size % 2:
        return list(indices[rank * size : (rank + 1) * size])
    half = size // 2
    front, back = indices[rank * half : (rank + 1) * half], indices[total - (rank + 1) * half : total - rank * half]
    return [*front, *back]


@dataclass
class _Order(Sampler[list[Key]]):
    """Keys of the images, batch by batch: shuffled and complete for training, in order for evaluation."""

    num_images: int
    batch_size: int
    seed: int
    training: bool
    who: Processes
    epoch: int = 0

    def __len__(self) -> int:
        if self.training:
            return self.num_images // self.batch_size
        share = len(range(self.who.rank, self.num_images, self.who.world))
        return -(-share // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        if self.training:
            generator = torch.Generator().manual_seed(derive(self.seed, self.epoch))
            order = torch.randperm(self.num_images, generator=generator).tolist()
            starts = range(0, len(self) * self.batch_size, self.batch_size)
            parts = [shard(order[at : at + self.batch_size], self.who.rank, self.who.world) for at in starts]
        else:
            mine = list(range(self.who.rank, self.num_images, self.who.world))
            parts = [mine[at : at + self.batch_size] for at in range(0, len(mine), self.batch_size)]
        for part in parts:
            yield [(self.epoch, index) for index in part]


class SeededImages(Dataset[Any]):
    """Images of a data set under a random transform that draws from (seed, epoch, index) alone.

    Args:
        images: Gives (PIL image, class) for an index.
        transform: Turns the image into a tensor.
        seed: Of the augmentation.
    """

    def __init__(self, images: Any, transform: Callable[[Any], torch.Tensor], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int]:
        epoch, index = key
        with seeded(derive(self.seed, epoch, index)):
            image, target = self.images[index]
            return self.transform(image), int(target)

    def __getitems__(self, keys: list[Key]) -> Batch | SurgeonError:
        """Return a batch, or why there is none: raised in a worker, an error comes out wrapped in its traceback."""
        try:
            images, targets = default_collate([self[key] for key in keys])
        except SurgeonError as error:
            return error
        return images, targets


class IndexedBatches:
    """Batches of a data set that can be read at any index.

    Args:
        dataset: Answers a list of (epoch, index) with a batch, by ``__getitems__``.
        batch_size: Images per batch over all processes (training), or per process (evaluation).
        seed: Of the order.
        training: Shuffled, whole batches only; else in order, to the last image.
        who: This process among those that train together.
        workers: Worker processes that read images; 0 reads in this one.
    """

    def __init__(
        self, dataset: Any, *, batch_size: int, seed: int, training: bool, who: Processes, workers: int = 0
    ) -> None:
        self.dataset, self.num_images = dataset, len(dataset)
        self._order = _Order(self.num_images, batch_size, seed, training, who)
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=who.device.type == "cuda",
            collate_fn=_whole,  # data sets answer with whole batches
            generator=torch.Generator().manual_seed(seed),  # workers' own seeds; keeps torch's global one untouched
        )

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of one epoch: the same images, order and augmentation for the same number."""
        self._order.epoch = number
        for found in self._loader:
            if isinstance(found, SurgeonError):
                raise found
            yield found

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.epoch(0))

    def __len__(self) -> int:
        return len(self._order)


def _whole(batch: Any) -> Any:
    """Take the batch as the data set made it."""
    return batch
