"""Which process this is, on which device, and the few words processes exchange; and all seeds.

Apart from training so that one process and several run the very same code: alone, every exchange is the identity.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import distributed

from surgeon.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: Number of this process, 0 for the one that writes files.
        world: How many processes there are.
        device: Where this process computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes, on the CPU."""
        if self.world == 1:
            return values
        shared = values.to(self.device)
        distributed.all_reduce(shared)
        return shared.cpu()

    def agree(self, value: T) -> T:
        """Return what process 0 holds, so that all take the same decision."""
        if self.world == 1:
            return value
        box: list[T] = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.world > 1:
            distributed.barrier()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn a recipe's `device` into a torch device; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        RecipeError: When the device asked for is not there.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(
            f"train.device is '{name}', but torch {torch.__version__} sees no CUDA device; use auto or cpu"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise RecipeError(f"train.device is 'mps', but torch {torch.__version__} sees no such device; use auto or cpu")
    device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"train.device is '{device}', but there are {torch.cuda.device_count()} CUDA devices, from 0")
    return device


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        device: A recipe's `device`.

    Example:
        >>> with processes("cpu") as who:
        ...     who.rank, who.world
        (0, 1)
    """
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    place = pick_device(device, local)
    if distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size(), place)
        return
    if world == 1:
        yield Processes(0, 1, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), world, place)
    finally:
        distributed.destroy_process_group()


def derive(seed: int, *parts: int) -> int:
    """Return a seed that depends on all numbers given and on nothing else.

    Example:
        >>> derive(0, 1) == derive(0, 1), derive(0, 1) == derive(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint32)[0])


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from one seed inside, on the CPU, and leave every generator as it was found.

    Example:
        >>> with seeded(1):
        ...     first = torch.rand(1)
        >>> with seeded(1):
        ...     bool(torch.rand(1) == first)
        True
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
