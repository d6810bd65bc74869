"""Leaving the global random number generators as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = tuple[Any, Any, torch.Tensor]


def generators() -> State:
    """Where the generators of Python, numpy and torch (CPU) stand."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set(state: State) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def drawn_since(state: State) -> bool:
    """Whether anything was drawn since the generators stood at ``state``.

    Example:
        >>> state = generators()
        >>> drawn_since(state), torch.rand(1).shape, drawn_since(state)
        (False, torch.Size([1]), True)
    """
    now = generators()
    same = all(np.array_equal(a, b) for a, b in zip(now[1], state[1], strict=True))
    return now[0] != state[0] or not same or not torch.equal(now[2], state[2])


@contextmanager
def generators_kept(start: State | None = None) -> Iterator[None]:
    """Whatever the block draws from torch (CPU), Python or numpy, the generators are as before it afterwards.

    Args:
        start: Where they stand when the block begins, if not where they are.

    Example:
        >>> before = torch.get_rng_state()
        >>> with generators_kept():
        ...     _ = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    kept = generators()
    try:
        if start is not None:
            _set(start)
        yield
    finally:
        _set(kept)
