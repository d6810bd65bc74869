"""Time of ``locate`` for every name of timm, built on the meta device, on one thread.

Run: pytest -m benchmark tests/benchmarks/bench_locate.py -s      (or: python -m tests.benchmarks.bench_locate)
"""

from __future__ import annotations

from statistics import median
from time import perf_counter, process_time

import pytest
import torch

import surgeon
from tests.benchmarks.measuring import table
from tests.matrix.measure import build, timm_names

COLUMNS = {"model": "s", "sites": "d", "seconds": ".2f", "CPU seconds": ".2f"}


def measure(names: list[str]) -> list[dict]:
    """One row per name; building the model does not count."""
    rows = []
    for name in names:
        model = build(name)
        wall, cpu = perf_counter(), process_time()
        sites = surgeon.locate(model)
        times = {"seconds": perf_counter() - wall, "CPU seconds": process_time() - cpu}
        rows.append({"model": name, "sites": len(sites), **times})
    return rows


def summary(rows: list[dict]) -> str:
    """The slowest five, and all together."""
    slowest = sorted(rows, key=lambda row: -row["CPU seconds"])[:5]
    totals = {key: sum(row[key] for row in rows) for key in ("sites", "seconds", "CPU seconds")}
    middle = median(row["CPU seconds"] for row in rows)
    return (
        table([*slowest, {"model": f"all {len(rows)} names", **totals}], COLUMNS) + f"\nmedian {middle:.2f} CPU seconds"
    )


@pytest.mark.benchmark
def test_locate():
    torch.set_num_threads(1)
    names = timm_names()
    rows = measure(names)
    print("\n" + summary(rows))
    assert len(rows) == len(names)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(summary(measure(timm_names())))
