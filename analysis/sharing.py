"""The processes that analyse together: which batches are whose, and how what they found comes together.

Apart from the sweep so that one process and several run the very same code: alone, every exchange is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import distributed


@dataclass(frozen=True)
class World:
    """This process among those that analyse together.

    Attributes:
        rank: Number of this process, 0 for the one that writes and speaks.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def rounds(self, data: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Number of a batch and the batch, for each round; (number, None) where there is none left for this process.

        Every process goes through the same number of rounds, so that they can exchange what they found after each.
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

    def gathered(self, value: Any) -> list[Any]:
        """What each process has, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found


def world() -> World:
    """The processes that torch.distributed joined; alone where none did.

    Example:
        >>> world()
        World(rank=0, size=1)
    """
    if distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_rank(), distributed.get_world_size())
    return World()
