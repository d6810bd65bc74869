"""Checkpoints of a training: one folder per epoch, complete or absent, holding data and no code.

Apart from the loop so that what a kill can interrupt is a single rename.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from recipes.folders import read_weights, write_json, write_state, write_weights
from recipes.learner import Learner
from surgeon.errors import LoadError

Row = dict[str, Any]


class Checkpoints:
    """The last finished epoch of a training, in ``checkpoints/epoch_0007/``.

    The folder is filled under another name and renamed when complete; then the one before it is removed. It holds
    ``model.safetensors``, ``ema.safetensors``, ``state.pt`` (optimiser and scaler, readable with ``weights_only``)
    and ``rows.json`` (all metrics so far). No random state is needed: every epoch starts from its own seed.

    Args:
        folder: Of the training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints"

    def last(self) -> Path | None:
        """Return the folder of the last finished epoch, or None."""
        found = sorted(self.folder.glob("epoch_*")) if self.folder.is_dir() else []
        return found[-1] if found else None

    def save(self, learner: Learner, rows: list[Row]) -> None:
        """Keep one more epoch: the number of the last row."""
        place = self.folder / f"epoch_{rows[-1]['epoch']:04d}"
        beside = self.folder / f".{place.name}.part"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write_weights(beside / "model.safetensors", learner.net)
        if learner.ema is not None:
            write_weights(beside / "ema.safetensors", learner.ema.module)
        write_state(beside / "state.pt", learner.state())
        write_json(beside / "rows.json", rows)
        if place.exists():
            shutil.rmtree(place)
        beside.rename(place)
        for old in self.folder.glob("epoch_*"):
            if old != place:
                shutil.rmtree(old)

    def restore(self, learner: Learner) -> list[Row]:
        """Put a learner into the state of the last finished epoch, and return the rows so far; none where none is.

        Raises:
            LoadError: When a file is damaged or belongs to another model.
        """
        place = self.last()
        if place is None:
            return []
        read_weights(place / "model.safetensors", learner.net)
        if learner.ema is not None:
            read_weights(place / "ema.safetensors", learner.ema.module)
        try:
            learner.restore(torch.load(place / "state.pt", weights_only=True, map_location="cpu"))
            rows: list[Row] = json.loads((place / "rows.json").read_text())
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise LoadError(f"{place}: damaged ({reason:.100}); remove that folder and run again") from None
        return rows
