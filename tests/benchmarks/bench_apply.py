"""Time of locate, plan and apply against building the model: what surgery adds to a script's start.

Run: pytest -m benchmark tests/benchmarks -s      (or: python -m tests.benchmarks.bench_apply)
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

import pytest
import timm
import torch

import surgeon
from tests.benchmarks.measuring import table

NAMES = ("resnet50", "mobilenetv3_large_100", "swin_tiny_patch4_window7_224")
COLUMNS = {"model": "s", "step": "s", "seconds": ".3f", "ratio": ".2f"}


def seconds(call, runs: int = 5) -> float:
    """Median time of a call after one that is not counted."""
    call()
    times = []
    for _ in range(runs):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return median(times)


def measure(names=NAMES, runs: int = 5) -> list[dict]:
    """One row per model and step; the ratio is to ``timm.create_model``."""
    rows = []
    for name in names:
        build = seconds(lambda name=name: timm.create_model(name), runs)
        model = timm.create_model(name)
        steps = {
            "timm.create_model": build,
            "locate": seconds(lambda model=model: surgeon.locate(model), runs),
            "plan": seconds(lambda model=model: surgeon.plan(model, "spd"), runs),
            "create_model + apply, less create_model": seconds(
                lambda name=name: surgeon.apply(timm.create_model(name), "spd"), runs
            )
            - build,
        }
        rows += [{"model": name, "step": step, "seconds": t, "ratio": t / build} for step, t in steps.items()]
    return rows


@pytest.mark.benchmark
def test_apply():
    rows = measure()
    print("\n" + table(rows, COLUMNS))
    assert len(rows) == 4 * len(NAMES)


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(table(measure(), COLUMNS))
