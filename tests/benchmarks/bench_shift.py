"""Time of a sparse shift layer against the depthwise 3x3 conv it takes the place of, at three sparsities.

Run: pytest -m benchmark tests/benchmarks/bench_shift.py -s      (or: python -m tests.benchmarks.bench_shift)
On Linux, MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=8000000000 keeps freed memory in the process:
otherwise large maps measure page faults, of both layers.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from surgeon.ops.shift_layer import SparseShift2d
from tests.benchmarks.measuring import milliseconds, table

SHAPES = {"64 x 112": (64, 112), "96 x 56": (96, 56), "192 x 28": (192, 28), "384 x 14": (384, 14)}  # channels, size
SPARSITIES = (0.0, 0.7, 0.9)
COLUMNS = {
    "shape": "s",
    "layer": "s",
    "forward_ms": ".3f",
    "forward_ratio": ".2f",
    "train_ms": ".3f",
    "train_ratio": ".2f",
}


def shift_at(sparsity: float, channels: int, learns: bool = True) -> SparseShift2d:
    """A layer with this share of unshifted channels, the others on the eight taps around; offsets as after training."""
    generator = torch.Generator().manual_seed(0)
    layer = SparseShift2d(channels, init="zeros")
    taps = torch.tensor([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]).T
    moving = torch.randperm(channels, generator=generator)[: round(channels * (1 - sparsity))]
    with torch.no_grad():
        layer.offset[:, moving] = taps[:, torch.arange(len(moving)) % 8].float() * 0.75
        layer.offset += torch.rand(2, channels, generator=generator) * 0.4 - 0.2
    layer.offset.requires_grad_(learns)
    return layer


def layers(channels: int) -> dict[str, nn.Module]:
    """The depthwise conv, and shift layers whose offsets learn or are frozen."""
    found: dict[str, nn.Module] = {
        "depthwise 3x3": nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    }
    for learns in (True, False):
        for sparsity in SPARSITIES:
            words = f"shift, {sparsity:.0%} stay{'' if learns else ', offsets frozen'}"
            found[words] = shift_at(sparsity, channels, learns)
    return found


def train_step(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Forward and backward, gradients of input and parameters."""
    layer.zero_grad(set_to_none=True)
    x.grad = None
    layer(x).backward(grad)


def measure(device: str, batch: int, seconds: float = 0.5, compiled: bool = False) -> list[dict]:
    """One row per shape and layer; ratios are against the depthwise conv."""
    rows = []
    for shape, (channels, size) in SHAPES.items():
        torch.manual_seed(0)
        x = torch.randn(batch, channels, size, size, device=device, requires_grad=True)
        grad, found = torch.randn_like(x), []
        for name, layer in layers(channels).items():
            run = torch.compile(layer.to(device)) if compiled else layer.to(device)
            with torch.no_grad():
                forward = milliseconds(lambda run=run, x=x: run(x), seconds)
            train = milliseconds(lambda run=run, x=x, grad=grad: train_step(run, x, grad), seconds)
            found.append({"shape": shape, "layer": name, "forward_ms": forward, "train_ms": train})
        for row in found:
            for key in ("forward", "train"):
                row[f"{key}_ratio"] = row[f"{key}_ms"] / found[0][f"{key}_ms"]
        rows += found
    return rows


@pytest.mark.benchmark
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_the_layers_are_what_they_are_called(sparsity: float) -> None:
    layer = shift_at(sparsity, 96)
    assert layer.sparsity == pytest.approx(sparsity, abs=0.01)
    x = torch.randn(2, 96, 9, 7)
    if sparsity < 1:
        assert torch.allclose(layer(x), layer.lower()(x), atol=1e-6) and not torch.equal(layer(x), x)


@pytest.mark.benchmark
def test_time_of_the_layers() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = 64 if device == "cuda" else 4
    rows = measure(device, batch)
    where = f"{device}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads, float32, batch {batch}"
    print(f"\n{where}\n{table(rows, COLUMNS)}")
    assert len(rows) == 7 * len(SHAPES)
    assert all(row[key] > 0 for row in rows for key in ("forward_ms", "train_ms"))


if __name__ == "__main__":
    test_time_of_the_layers()
