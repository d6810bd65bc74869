"""Time of FE-Net 1.375x against its twin with depthwise convs: whole nets, and the share of each component (Fig. 2).

Run: pytest -m benchmark tests/benchmarks/bench_fenet.py -s      (or: python -m tests.benchmarks.bench_fenet)
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import surgeon
from surgeon.ops.shift_layer import SparseShift2d
from tests.benchmarks.bench_shift import shift_at
from tests.benchmarks.measuring import milliseconds, table

NETS = {"fenet_138_dw": None, "fenet_138, 11% stay": None, "fenet_138, 90% stay": 0.9}
PARTS = ("1x1 conv", "3x3 conv", "shift or depthwise", "norm", "activation", "pooling", "rest")
COLUMNS = {
    "net": "s",
    "forward_ms": ".1f",
    "forward_ratio": ".2f",
    "train_ms": ".1f",
    "train_ratio": ".2f",
    **dict.fromkeys(PARTS, ".0%"),
}


def build(name: str, sparsity: float | None) -> nn.Module:
    """The net; its shifts as initialised (one in nine channels stays), or as after training with a penalty."""
    torch.manual_seed(0)
    net = timm.create_model(name.split(",")[0], drop_rate=0.0).eval()
    for module in net.modules() if sparsity is not None else ():
        if isinstance(module, SparseShift2d):
            module.offset.data.copy_(shift_at(float(sparsity or 0), module.channels).offset.data)
    return net


def part_of(module: nn.Module) -> str | None:
    """The component a leaf module belongs to."""
    if isinstance(module, SparseShift2d) or (isinstance(module, nn.Conv2d) and module.groups > 1):
        return "shift or depthwise"
    if isinstance(module, nn.Conv2d):
        return "1x1 conv" if module.kernel_size == (1, 1) else "3x3 conv"
    kinds = {nn.BatchNorm2d: "norm", nn.ReLU: "activation", nn.AvgPool2d: "pooling"}
    return next((part for kind, part in kinds.items() if isinstance(module, kind)), None)


@torch.no_grad()
def shares(net: nn.Module, x: Tensor, passes: int = 10) -> dict[str, float]:
    """The share of each component in the time of forward passes, by the clock around each leaf module."""
    spent: Counter[str] = Counter()
    began: dict[int, float] = {}
    handles: list[Any] = []

    def start(module: nn.Module, _inputs: Any) -> None:
        began[id(module)] = time.perf_counter()

    def stop(module: nn.Module, _inputs: Any, _output: Any) -> None:
        spent[part_of(module) or "rest"] += time.perf_counter() - began[id(module)]

    net(x)
    for module in net.modules():
        if part_of(module):
            handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    whole = time.perf_counter()
    for _ in range(passes):
        net(x)
    whole = time.perf_counter() - whole
    for handle in handles:
        handle.remove()
    spent["rest"] = whole - sum(spent[part] for part in PARTS if part != "rest")
    return {part: spent[part] / whole for part in PARTS}


def train_step(net: nn.Module, x: Tensor) -> None:
    """Forward and backward."""
    net.zero_grad(set_to_none=True)
    net(x).sum().backward()


def measure(batch: int = 4, seconds: float = 3.0, size: int = 224) -> list[dict[str, Any]]:
    """One row per net; ratios are to the depthwise twin."""
    x = torch.rand(batch, 3, size, size)
    rows: list[dict[str, Any]] = []
    for name, sparsity in NETS.items():
        net = build(name, sparsity)
        with torch.no_grad():
            forward = milliseconds(lambda net=net: net(x), seconds)  # type: ignore[misc]
        row = {"net": name, "forward_ms": forward, **shares(net, x)}
        net.train()
        row["train_ms"] = milliseconds(lambda net=net: train_step(net, x), seconds)  # type: ignore[misc]
        rows.append(row)
    for row in rows:
        for key in ("forward", "train"):
            row[f"{key}_ratio"] = row[f"{key}_ms"] / rows[0][f"{key}_ms"]
    return rows


@pytest.mark.benchmark
def test_fenet() -> None:
    torch.set_num_threads(1)
    rows = measure()
    print("\n" + table(rows, COLUMNS))
    assert all(abs(sum(row[part] for part in PARTS) - 1) < 1e-6 for row in rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(surgeon.__version__, table(measure(), COLUMNS), sep="\n")
