"""Ctrl-C and code that puts things back: such code runs to its end first.

Apart from what is put back: a signal may come between any two lines, also between the end of a block and the first
line of what cleans up behind it, so it has to be caught before that begins.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

Came = list[int]  # signals that wait


@dataclass(eq=False)
class _Block:
    usual: Callable[[int, FrameType | None], Any]
    came: Came = field(default_factory=list)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Interrupt at once, but not what enters or leaves a context."""
        if _between(frame):
            self.came.append(number)
        else:
            self.usual(number, frame)

    def deliver(self) -> None:
        """Interrupt now, if that was asked for."""
        if self.came:
            number = self.came[0]
            self.came.clear()
            self.usual(number, sys._getframe(1))


_blocks: list[_Block] = []


@contextmanager
def orderly_interrupts() -> Iterator[None]:
    """Inside the block Ctrl-C interrupts as ever, but never in the middle of entering or leaving a context.

    There it waits: for :func:`breathe`, or for the end of the block. Thus whatever a ``with`` puts back is put back
    whole, in its own ``__exit__`` or behind the ``yield`` of a generator.

    Example:
        >>> with orderly_interrupts():
        ...     breathe()
    """
    usual = _handler()
    if usual is None:
        yield
        return
    block = _Block(usual)
    _blocks.append(block)
    signal.signal(signal.SIGINT, block.handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        _blocks.remove(block)
        block.deliver()


def breathe() -> None:
    """Let a Ctrl-C take effect that came while something was put back."""
    if _blocks:
        _blocks[-1].deliver()


@contextmanager
def uninterrupted() -> Iterator[Came]:
    """Ctrl-C waits until the block has ended; then it interrupts as ever.

    Yields:
        The signals that wait. Whoever has seen to them clears the list.

    Example:
        >>> with uninterrupted() as came:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(len(came))
        ...     came.clear()
        1
    """
    usual, came = _handler(), Came()
    if usual is None:
        yield came
        return
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            usual(came[0], sys._getframe())


def _handler() -> Callable[[int, FrameType | None], Any] | None:
    """What Ctrl-C does now; None in other threads, and where it does nothing that could be put off."""
    if threading.current_thread() is not threading.main_thread():
        return None
    usual = signal.getsignal(signal.SIGINT)
    return usual if callable(usual) else None


def _between(frame: FrameType | None) -> bool:
    """Whether a context is being entered or left."""
    while frame is not None:
        if frame.f_code.co_name in ("__enter__", "__exit__"):
            return True
        frame = frame.f_back
    return False


__all__ = ["Came", "breathe", "orderly_interrupts", "uninterrupted"]
