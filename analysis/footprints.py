"""What one output of a layer reads, as whole numbers; and counts of reads carried from a layer's output to its input.

Apart from the classes of layers, which are read into these terms elsewhere. Counts are of an endless map, so that
borders play no part: one cell of it is kept, and what leaves a cell comes in on its other side. They are Python's whole
numbers, of any size, so nothing is rounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Cell = NDArray[Any]  # of Python's whole numbers
Pair = tuple[int, int]


@dataclass(frozen=True)
class Reading:
    """Output (t, u) reads the inputs (t * stride + row, u * stride + column), each offset as often as it is listed.

    Attributes:
        rows: Offsets down, one per tap.
        columns: Offsets to the right.
        stride: Down, right.
        taps: Which pairs of offsets are read, (rows, columns); None: all.
        chosen: Whether the features choose which of these are used (APS).
    """

    rows: tuple[int, ...] = (0,)
    columns: tuple[int, ...] = (0,)
    stride: Pair = (1, 1)
    taps: NDArray[np.int64] | None = None
    chosen: bool = False

    def carry(self, reads: Cell) -> Cell:
        """Reads of each input, of the reads of each output.

        Example:
            >>> Reading((-1, 0, 1), (-1, 0, 1), (2, 2)).carry(ones((1, 1))).tolist()
            [[1, 2], [2, 4]]
        """
        (height, width), (down, right) = reads.shape, self.stride
        spread = zeros((height * down, width * right))
        spread[::down, ::right] = reads
        if self.taps is None:
            spread = _sum([np.roll(spread, row, 0) for row in self.rows])
            return _sum([np.roll(spread, column, 1) for column in self.columns])
        pairs = itertools.product(enumerate(self.rows), enumerate(self.columns))
        parts = [
            np.roll(spread, (row, column), (0, 1)) * int(self.taps[i, j])
            for (i, row), (j, column) in pairs
            if self.taps[i, j]
        ]
        return _sum(parts) if parts else zeros(spread.shape)

    def behind(self, first: Reading) -> Reading:
        """This reading of what another one has answered, as one reading.

        Example:
            >>> blocks = Reading((0, 1), (0, 1), (2, 2)).behind(Reading((-1, 0, 1), (-1, 0, 1)))
            >>> blocks.stride, blocks.rows
            ((2, 2), (-1, 0, 1, 0, 1, 2))
        """
        rows = tuple(own * first.stride[0] + offset for own in self.rows for offset in first.rows)
        columns = tuple(own * first.stride[1] + offset for own in self.columns for offset in first.columns)
        taps = None
        if self.taps is not None or first.taps is not None:
            taps = np.kron(self._all_taps(), first._all_taps())
        stride = (self.stride[0] * first.stride[0], self.stride[1] * first.stride[1])
        return Reading(rows, columns, stride, taps, self.chosen or first.chosen)

    def unread(self, size: Pair, outputs: Pair) -> float:
        """Share of the positions of an input of ``size`` that none of the outputs reads, borders included.

        Example:
            >>> Reading((0,), (0,), (2, 2)).unread((8, 8), (4, 4))
            0.75
        """
        found = np.zeros(size, bool)
        rows = [_reached(offset, self.stride[0], outputs[0], size[0]) for offset in self.rows]
        columns = [_reached(offset, self.stride[1], outputs[1], size[1]) for offset in self.columns]
        if self.taps is None:
            found = np.outer(np.any(rows, 0), np.any(columns, 0))
        else:
            for i, j in zip(*np.nonzero(self.taps), strict=True):
                found |= np.outer(rows[i], columns[j])
        return float(1 - found.mean())

    def _all_taps(self) -> NDArray[np.int64]:
        return np.ones((len(self.rows), len(self.columns)), np.int64) if self.taps is None else self.taps


@dataclass(frozen=True)
class Enlarging:
    """Input (p, q) is read by the outputs (p * factor + row, q * factor + column): upsampling, transposed convs.

    Attributes:
        rows: Offsets down.
        columns: Offsets to the right.
        factor: Outputs per input, down and right.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    factor: Pair

    def carry(self, reads: Cell) -> Cell:
        """Reads of each input, of the reads of each output.

        Example:
            >>> Enlarging((0, 1), (0, 1), (2, 2)).carry(ones((2, 2))).tolist()
            [[4]]
        """
        down = _sum([np.roll(reads, -row, 0) for row in self.rows])[:: self.factor[0]]
        return _sum([np.roll(down, -column, 1) for column in self.columns])[:, :: self.factor[1]]


Transfer = Reading | Enlarging


def joined(transfers: Sequence[Transfer]) -> list[Transfer]:
    """Transfers in order of call, neighbouring readings as one."""
    found: list[Transfer] = []
    for transfer in transfers:
        if isinstance(transfer, Reading) and found and isinstance(found[-1], Reading):
            found[-1] = transfer.behind(found[-1])
        else:
            found.append(transfer)
    return found


def ones(shape: Pair) -> Cell:
    """A cell each position of which is read once."""
    cell = zeros(shape)
    cell[...] = 1
    return cell


def zeros(shape: Any) -> Cell:
    """A cell that nothing reads."""
    cell = np.empty(shape, dtype=object)
    cell[...] = 0
    return cell


def _sum(parts: Sequence[Cell]) -> Cell:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _reached(offset: int, stride: int, outputs: int, size: int) -> NDArray[np.bool_]:
    found, places = np.zeros(size, bool), np.arange(outputs) * stride + offset
    found[places[(places >= 0) & (places < size)]] = True
    return found


__all__ = ["Cell", "Enlarging", "Reading", "Transfer", "joined", "ones", "zeros"]
