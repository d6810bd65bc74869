"""Time and memory of a space-to-depth conv against the strided conv it replaces, and of other ways to compute it.

Run: pytest -m benchmark tests/benchmarks -s      (or: python -m tests.benchmarks.bench_spd_layers)
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.ops.spd_conv import SPDConv2d
from tests.benchmarks.measuring import milliseconds, peak_mib, table

# name: conv, input height and width
SHAPES: dict[str, tuple[Callable[[], nn.Conv2d], int]] = {
    "stem 7x7, 3 to 64, 224": (lambda: nn.Conv2d(3, 64, 7, 2, 3, bias=False), 224),
    "stage 3x3, 64 to 128, 56": (lambda: nn.Conv2d(64, 128, 3, 2, 1, bias=False), 56),
    "late 3x3, 256 to 512, 14": (lambda: nn.Conv2d(256, 512, 3, 2, 1, bias=False), 14),
    "depthwise 3x3, 96, 112": (lambda: nn.Conv2d(96, 96, 3, 2, 1, groups=96, bias=False), 112),
}
COLUMNS = {
    "shape": "s",
    "layer": "s",
    "forward_ms": ".3f",
    "forward_ratio": ".2f",
    "train_ms": ".3f",
    "train_ratio": ".2f",
    "forward_peak_mib": ".1f",
    "train_peak_mib": ".1f",
    "train_peak_ratio": ".2f",
}


class SliceAndConcatenate(nn.Module):
    """The form printed in the papers: s*s strided slices, concatenated, then a stride-1 conv; even sizes only."""

    def __init__(self, spd: SPDConv2d) -> None:
        super().__init__()
        self.block, self.groups, self.padding = spd.stride, spd.groups, (spd.rows.lead, spd.cols.lead)
        area = self.block[0] * self.block[1]
        o, c, kh, kw = spd.weight.shape
        weight = spd.weight.detach()
        if self.groups == 1:  # whole images one after another: block-major
            weight = weight.view(o, c // area, area, kh, kw).transpose(1, 2).reshape(o, c, kh, kw)
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        bh, bw = self.block
        parts = [x[:, :, i::bh, j::bw] for i in range(bh) for j in range(bw)]
        # concatenating would tear the groups of a grouped conv apart
        x = torch.cat(parts, 1) if self.groups == 1 else torch.stack(parts, 2).flatten(1, 2)
        return F.conv2d(x, self.weight, padding=self.padding, groups=self.groups)


def variants(conv: nn.Conv2d) -> dict[str, nn.Module]:
    """The strided conv, and four ways to compute its space-to-depth form with every tap in use."""
    spd, minimal = SPDConv2d.from_conv2d(conv), SPDConv2d.from_conv2d(conv, kernel="minimal")
    with torch.no_grad():
        for layer in (spd, minimal):
            layer.weight += 0.01 * torch.randn_like(layer.weight)
    lowered = spd.lower()
    if lowered is None:
        raise RuntimeError(f"{conv} has no lowered form; choose another conv for the benchmark")
    return {
        "strided conv": conv,
        "SPDConv2d": spd,
        "SPDConv2d, minimal": minimal,
        "slice and concatenate": SliceAndConcatenate(spd),
        "lowered": lowered,
    }


def train_step(layer: nn.Module, x: Tensor) -> None:
    """Forward and backward, gradients of input and weight."""
    layer.zero_grad(set_to_none=True)
    x.grad = None
    layer(x).sum().backward()


def measure(
    device: str,
    *,
    batch: int,
    seconds: float = 0.5,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[dict]:
    """One row per shape and layer; ratios are against the strided conv."""
    rows = []
    for shape, (make, size) in SHAPES.items():
        torch.manual_seed(0)
        conv = make().to(device=device, dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]
        x = torch.randn(batch, conv.in_channels, size, size, device=device, dtype=dtype)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        found = [_row(shape, name, layer, x, seconds) for name, layer in variants(conv).items()]
        for row in found:
            for key in ("forward", "train"):
                row[f"{key}_ratio"] = row[f"{key}_ms"] / found[0][f"{key}_ms"]
            row["train_peak_ratio"] = row["train_peak_mib"] / found[0]["train_peak_mib"]
        rows += found
    return rows


def _row(shape: str, name: str, layer: nn.Module, x: Tensor, seconds: float) -> dict:
    device = x.device.type
    with torch.no_grad():
        forward, forward_peak = milliseconds(lambda: layer(x), seconds), peak_mib(lambda: layer(x), device)
    return {
        "shape": shape,
        "layer": name,
        "forward_ms": forward,
        "train_ms": milliseconds(lambda: train_step(layer, x), seconds),
        "forward_peak_mib": forward_peak,
        "train_peak_mib": peak_mib(lambda: train_step(layer, x), device),
    }


@pytest.mark.benchmark
@pytest.mark.parametrize("shape", SHAPES)
def test_the_four_forms_are_the_same_function(shape: str) -> None:
    make, size = SHAPES[shape]
    layers = variants(make().double())
    x = torch.randn(1, layers["strided conv"].in_channels, size, size, dtype=torch.float64)
    y = layers["SPDConv2d"](x)
    assert all(torch.allclose(layers[name](x), y, atol=1e-10) for name in ("slice and concatenate", "lowered"))
    assert not torch.allclose(layers["strided conv"](x), y, atol=1e-3)  # every tap is in use


@pytest.mark.benchmark
def test_time_and_memory_of_the_layers() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = measure(device, batch=64 if device == "cuda" else 4)
    print(
        f"\n{device}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads, float32\n{table(rows, COLUMNS)}"
    )
    assert len(rows) == 5 * len(SHAPES)
    assert all(row[key] > 0 for row in rows for key in COLUMNS if key not in ("shape", "layer"))


if __name__ == "__main__":
    test_time_and_memory_of_the_layers()
