"""What a sweep has measured so far, image by image; kept in a ledger, so that an interrupted sweep goes on.

Apart from the sweep, which only adds to it, and from the results, which only read it.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import AnalysisError
from surgeon.storage import replace_file

FINAL = "final"  # the untouched model
MARKS = "marks\nof\nbatches"
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class Readings:
    """Values of each image by variant, metric and batch.

    Example:
        >>> readings = Readings()
        >>> readings.add("final", 0, {"error": np.array([0, 1])})
        >>> readings.add("final", 1, {"error": np.array([1])})
        >>> readings.values("final", "error").tolist(), readings.images("final")
        ([0, 1, 1], 3)
    """

    def __init__(self) -> None:
        self._held: dict[str, dict[int, dict[str, NDArray[Any]]]] = {}
        self.marks: dict[int, int] = {}  # of the images of each batch, to know them again
        self.decided: dict[str, str] = {}  # verdicts of the sequential tests, by part and treatment

    def add(self, variant: str, batch: int, values: dict[str, NDArray[Any]]) -> None:
        """Take what was measured of a variant on a batch."""
        self._held.setdefault(variant, {})[batch] = values

    def has(self, variant: str, batch: int) -> bool:
        """Whether a variant was measured on a batch."""
        return batch in self._held.get(variant, {})

    def batch(self, variant: str, batch: int) -> dict[str, NDArray[Any]]:
        """What was measured of a variant on a batch."""
        return self._held[variant][batch]

    def keep_until(self, variant: str, last: int) -> None:
        """Forget what was measured of a variant behind a batch."""
        batches = self._held.get(variant, {})
        for number in [number for number in batches if number > last]:
            del batches[number]

    def check(self, batch: int, mark: int) -> None:
        """Compare the mark of a batch with that of earlier passes.

        Raises:
            AnalysisError: When it is another.
        """
        if self.marks.setdefault(batch, mark) != mark:
            raise AnalysisError(
                f"batch {batch} of the data holds other images than in an earlier pass or run, so that nothing can be "
                "compared image by image; give the same images in the same order each time: shuffle=False, and no "
                "random transforms"
            )

    def variants(self) -> list[str]:
        """Names of all that were measured."""
        return list(self._held)

    def metrics(self) -> list[str]:
        """Names of what is measured."""
        first = next((values for batches in self._held.values() for values in batches.values()), {})
        return list(first)

    def values(self, variant: str, metric: str) -> NDArray[Any]:
        """One value per image, in the order of the data."""
        batches = self._held.get(variant, {})
        parts = [batches[number][metric] for number in sorted(batches)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def paired(self, variant: str, metric: str) -> NDArray[Any]:
        """Values minus those of the untouched model on the same images."""
        batches, final = self._held.get(variant, {}), self._held[FINAL]
        parts = [
            batches[number][metric].astype(np.float64) - final[number][metric].astype(np.float64)
            for number in sorted(batches)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def images(self, variant: str) -> int:
        """How many images a variant was measured on."""
        return sum(len(next(iter(values.values()))) for values in self._held.get(variant, {}).values())

    def pack(self) -> dict[str, NDArray[Any]]:
        """Everything as plain arrays by name."""
        marks = np.array(sorted(self.marks.items()), dtype=np.int64).reshape(-1, 2)
        return {MARKS: marks} | {
            f"{variant}\n{batch}\n{metric}": values
            for variant, batches in self._held.items()
            for batch, measured in batches.items()
            for metric, values in measured.items()
        }

    def unpack(self, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Take what `pack` gave."""
        for name, values in arrays:
            if name == MARKS:
                self.marks = {int(batch): int(mark) for batch, mark in values}
                continue
            variant, batch, metric = name.split("\n")
            self._held.setdefault(variant, {}).setdefault(int(batch), {})[metric] = values


class Ledger:
    """A file that holds the readings of a sweep, and what was swept.

    Args:
        path: Of the file; written in one step, each time whole.
        about: Plain values that tell this sweep from another.
    """

    def __init__(self, path: str | Path, about: dict[str, Any]) -> None:
        self.path, self.about = Path(path).expanduser(), about

    def read(self) -> Readings:
        """What an earlier run of the same sweep has left; nothing where there is no file.

        Raises:
            AnalysisError: When the file is damaged, or another sweep's.
        """
        readings = Readings()
        if not self.path.exists():
            return readings
        try:
            with zipfile.ZipFile(self.path):
                held = np.load(self.path, allow_pickle=False)
            with held:
                about = dict(json.loads(str(held["about"])))
                arrays = {name: held[name] for name in held.files if "\n" in name}
                if int(held["checksum"]) != _checksum(arrays):
                    raise ValueError("its checksum is another")
                readings.unpack(arrays.items())
        except DAMAGE as error:
            raise AnalysisError(
                f"{self.path} is no ledger of an analysis, or damaged ({type(error).__name__}: {error}); name another "
                "file, or remove it"
            ) from error
        odd = [key for key in {**about, **self.about} if about.get(key) != self.about.get(key)]
        if odd:
            there, here = ({key: side.get(key) for key in odd[:3]} for side in (about, self.about))
            raise AnalysisError(
                f"{self.path} is the ledger of another analysis: {there} there, {here} here; "
                "name another file, or remove it (on the command line: --no-resume)"
            )
        return readings

    def write(self, readings: Readings) -> None:
        """Keep the readings so far.

        Raises:
            AnalysisError: When nothing can be written there.
        """
        buffer = io.BytesIO()
        arrays: dict[str, Any] = readings.pack()
        checksum = np.array(_checksum(arrays))
        arrays |= {"about": np.array(json.dumps(self.about)), "checksum": checksum}
        np.savez_compressed(buffer, **arrays)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, buffer.getvalue())
        except OSError as error:
            raise AnalysisError(f"ledger {self.path} cannot be written: {error.strerror}; name another") from error


def _checksum(arrays: dict[str, NDArray[Any]]) -> int:
    total = 0
    for name in sorted(arrays):
        values = arrays[name]
        total = zlib.crc32(f"{name} {values.dtype} {values.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(values).tobytes(), total)
    return total
