"""What the tests of `recipes` share: a silent console, a recipe that trains in a second, images in a folder."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import recipes
from recipes.schema import RecipeFile

ROOT = Path(recipes.__file__).parents[1]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small train faster on one thread, and a child process started here uses as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def recording() -> Console:
    return Console(record=True, width=300, file=io.StringIO())


@pytest.fixture
def small() -> Callable[..., RecipeFile]:
    """A recipe for the digits net on 8 x 8 digits, 256 for training; keywords change its `train`."""

    def make(net: str = "digits_convnet", data: dict[str, Any] | None = None, **train: Any) -> RecipeFile:
        return recipes.parse(
            {
                "name": "small",
                "model": {"timm": net},
                "data": {
                    "dataset": "digits",
                    "size": 8,
                    "canvas": 12,
                    "max_train": 256,
                    "max_val": 128,
                    **(data or {}),
                },
                "train": {"epochs": 2, "batch_size": 32, "lr": 0.02, "device": "cpu", **train},
            }
        )

    return make


@pytest.fixture
def python() -> list[str]:
    """The command that runs a script in a process of its own, with the repository importable."""
    return [sys.executable]


@pytest.fixture
def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "PYTHONWARNINGS": "default",
    }


@pytest.fixture
def write_image() -> Callable[[Path, int], None]:
    """Writes a small picture whose red value is given."""

    def write(path: Path, red: int, size: int = 16) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((size, size, 3), np.uint8)
        pixels[..., 0] = red
        Image.fromarray(pixels).save(path)

    return write
