"""A scan over shifts in one pass over the data, against a pass for each and against a loop by hand.

Digits drawn, enlarged and normalised anew each time they are loaded, as images decoded from files are; 49 shifts.

Run: pytest -m benchmark tests/benchmarks/bench_translation.py -s   (or: python -m tests.benchmarks.bench_translation)
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import analysis
import surgeon
from analysis.moving import shift_images
from tests.benchmarks.measuring import table

COLUMNS = {"how": "s", "seconds": ".1f", "per_shift_ms": ".0f", "ratio": ".2f", "images_loaded": ",d", "same": "s"}
REACH, STEP, SIDE, BATCH = 6, 2, 64, 128


class Decoded:
    """Images kept as JPEG, decoded whenever they are gone through."""

    def __init__(self, count: int = 512) -> None:
        bunch = load_digits()
        self.targets, self.files, self.loaded = torch.tensor(bunch.target[:count]), list[bytes](), 0
        for image in bunch.images[:count]:
            file, large = io.BytesIO(), Image.fromarray((image * 15.9).astype(np.uint8)).resize((256, 256))
            large.save(file, "jpeg")
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return -(-len(self.files) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.files), BATCH):
            files = self.files[start : start + BATCH]
            self.loaded += len(files)
            pixels = [np.asarray(Image.open(io.BytesIO(file)).resize((SIDE, SIDE)), np.float32) for file in files]
            yield torch.from_numpy(np.stack(pixels))[:, None] / 255, self.targets[start : start + BATCH]


def by_hand(model: nn.Module, data: Decoded) -> list[float]:
    """A loop over shifts, and in it one over the data."""
    steps, found = range(-REACH, REACH + 1, STEP), []
    for dy in steps:
        for dx in steps:
            with torch.no_grad():
                right = [int((model(shift_images(x, dx, dy)).argmax(1) == y).sum()) for x, y in data]
            found.append(sum(right) / len(data.targets))
    return found


def measure() -> list[dict[str, Any]]:
    """A row per way; ratios are to one pass."""
    torch.manual_seed(0)
    model = surgeon.create_model("digits_convnet").eval()
    data, rows, found = Decoded(), [], dict[str, list[float]]()
    settings = {"reach": REACH, "step": STEP, "progress": False}
    ways: dict[str, Any] = {
        "a loop by hand": lambda: by_hand(model, data),
        "naive": lambda: _accuracies(analysis.translation(model, data, method="naive", **settings)),
        "single_pass": lambda: _accuracies(analysis.translation(model, data, **settings)),
    }
    for how, way in ways.items():
        data.loaded, begun = 0, time.perf_counter()
        found[how] = way()
        rows.append({"how": how, "seconds": time.perf_counter() - begun, "images_loaded": data.loaded})
    for row in rows:
        row |= {
            "per_shift_ms": 1e3 * row["seconds"] / len(found["naive"]),
            "ratio": row["seconds"] / rows[-1]["seconds"],
        }
        row["same"] = str(found[row["how"]] == found["single_pass"])
    return rows


def _accuracies(result: analysis.Translation) -> list[float]:
    return [row["accuracy"] for row in sorted(result.rows, key=lambda row: (row["dy_px"], row["dx_px"]))]


TEXT = """49 shifts (up to 6 pixels right and down in steps of 2) of 512 images of 64 pixels, decoded from JPEG of 256
whenever they are loaded, before `digits_convnet`, one thread. Ratios of seconds are to one pass.

{table}"""


def section() -> str:
    """The text of docs/benchmarks.md."""
    return TEXT.format(table=table(measure(), COLUMNS))


@pytest.mark.benchmark
def test_translation() -> None:
    torch.set_num_threads(1)
    rows = measure()
    print(f"\n{table(rows, COLUMNS)}")
    assert {row["same"] for row in rows} == {"True"}
    assert rows[-1]["images_loaded"] * 49 == rows[0]["images_loaded"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(section())
