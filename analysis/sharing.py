"""The processes that analyse together: which batches are whose, and how what they found comes together.

Apart from the sweep so that one process and several run the very same code: alone, every exchange is the identity.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import distributed
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from surgeon.errors import AnalysisError

Rounds = Iterator[tuple[int, Any]]


@dataclass(frozen=True)
class World:
    """This process among those that analyse together.

    Attributes:
        rank: Number of this process, 0 for the one that writes and speaks.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def rounds(self, data: Iterable[Any]) -> Rounds:
        """Number of a batch and the batch, for each round; (number, None) where there is none left for this process.

        Every process goes through the same number of rounds, so that they can exchange what they found after each, and
        through all data; its batches are every ``size``-th one.

        Example:
            >>> list(World(1, 2).rounds(["a", "b", "c"]))
            [(1, 'b'), (3, None)]
        """
        if self.size == 1:
            yield from enumerate(data)
            return
        mine: Any = None
        number = -1
        for number, batch in enumerate(data):
            if number % self.size == self.rank:
                mine = batch
            if number % self.size == self.size - 1:
                yield number - self.size + 1 + self.rank, mine
                mine = None
        if (left := (number + 1) % self.size) > 0:
            yield number + 1 - left + self.rank, mine

    def own_rounds(self, data: Any, limit: int | None = None) -> Rounds | None:
        """The same rounds, where this process can have its batches without loading those of the others.

        So it is for a ``torch.utils.data.DataLoader`` that reads a data set by index, in order; and for an object of
        a user's with ``len()``, its number of batches, and ``part(rank, size)``, every ``size``-th of them from number
        ``rank`` on. None for others, and in a single process.

        Args:
            data: Of the sweep.
            limit: Most images.

        Raises:
            AnalysisError: For a DataLoader that shuffles: each process would see another order.
        """
        if self.size == 1:
            return None
        if type(data) is DataLoader and isinstance(data.sampler, RandomSampler):
            raise AnalysisError(
                "data is a DataLoader that shuffles, and each process would see another order; give shuffle=False"
            )
        if (batches := _indices(data, limit)) is not None:
            return self._numbered(_loader(data, batches[self.rank :: self.size]), len(batches))
        if callable(getattr(data, "part", None)) and hasattr(data, "__len__") and limit is None:
            return self._numbered(data.part(self.rank, self.size), len(data))
        return None

    def _numbered(self, mine: Iterable[Any], batches: int) -> Rounds:
        own = iter(mine)
        for first in range(0, batches, self.size):
            number = first + self.rank
            batch = next(own, None) if number < batches else None
            if batch is None and number < batches:
                raise AnalysisError(f"data says it has {batches} batches, but number {number} is missing")
            yield number, batch

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found


def _indices(data: Any, limit: int | None) -> list[list[int]] | None:
    """The items of each batch of a loader that goes through a data set in order; None of any other."""
    if type(data) is not DataLoader or isinstance(data.dataset, IterableDataset):
        return None
    sampler = data.batch_sampler
    if type(sampler) is not BatchSampler or type(sampler.sampler) is not SequentialSampler:
        return None
    batches, left = [list(batch) for batch in sampler], limit
    if left is None:
        return batches
    before = [0, *itertools.accumulate(map(len, batches))]
    return [batch[: left - start] for batch, start in zip(batches, before, strict=False) if start < left]


def _loader(like: DataLoader[Any], batches: list[list[int]]) -> DataLoader[Any]:
    """A loader of these batches, with the settings of another."""
    kept = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    more = ("generator", "prefetch_factor", "pin_memory_device", "in_order")
    settings = {name: getattr(like, name) for name in (*kept, *more) if hasattr(like, name)}
    return DataLoader(like.dataset, batch_sampler=batches, **settings)  # type: ignore[arg-type]


def world() -> World:
    """The processes that torch.distributed joined; alone where none did.

    Example:
        >>> world()
        World(rank=0, size=1)
    """
    if distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_rank(), distributed.get_world_size())
    return World()
