"""Time of the shuffle layers against a copy of the tensor, and against one permutation per channel in a loop.

Run: pytest -m benchmark tests/benchmarks/bench_shuffle.py -s      (or: python -m tests.benchmarks.bench_shuffle)
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from surgeon.ops.shuffle_layers import ChannelShuffle2d, SpatialShuffle2d, draw_positions, permute
from tests.benchmarks.measuring import milliseconds, table

SHAPES = {"64 x 56": (64, 56), "128 x 28": (128, 28), "256 x 14": (256, 14), "512 x 7": (512, 7)}  # channels, size
COLUMNS = {"shape": "s", "what": "s", "forward_ms": ".3f", "copies": ".2f"}


def loop(x: Tensor) -> Tensor:
    """What one writes first: a permutation per channel, channel by channel."""
    flat = x.flatten(2)
    parts = [flat[:, c, torch.randperm(flat.shape[2], device=x.device)] for c in range(flat.shape[1])]
    return torch.stack(parts, 1).view(x.shape)


def ways(x: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    _, channels, height, width = x.shape
    order = draw_positions(channels, height, width, None, torch.Generator())
    spatial, patch, channel = SpatialShuffle2d(), SpatialShuffle2d(patch=4), ChannelShuffle2d()
    return {
        "copy": x.clone,
        "spatial_shuffle": lambda: spatial(x),
        "of which the gather": lambda: permute(x.flatten(2), order),
        "of which drawing": lambda: draw_positions(channels, height, width, None, torch.Generator()),
        "torch.gather, indices given": lambda: x.flatten(2).gather(2, order.to(x.device).expand(len(x), -1, -1)),
        "patch_shuffle, 4 x 4": lambda: patch(x),
        "channel_shuffle": lambda: channel(x),
        "a loop over channels": lambda: loop(x),
    }


def measure(device: str, batch: int, seconds: float = 0.3) -> list[dict]:
    """One row per shape and way; ratios are to a copy."""
    rows = []
    for shape, (channels, size) in SHAPES.items():
        x = torch.randn(batch, channels, size, size, device=device)
        found = [
            {"shape": shape, "what": what, "forward_ms": milliseconds(way, seconds)} for what, way in ways(x).items()
        ]
        rows += [{**row, "copies": row["forward_ms"] / found[0]["forward_ms"]} for row in found]
    return rows


@pytest.mark.benchmark
def test_shuffles() -> None:
    torch.set_num_threads(1)
    rows = measure("cpu", batch=64)
    print("\n" + table(rows, COLUMNS))
    assert {row["what"] for row in rows} >= {"copy", "spatial_shuffle", "a loop over channels"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(measure("cuda" if torch.cuda.is_available() else "cpu", batch=64), COLUMNS))
