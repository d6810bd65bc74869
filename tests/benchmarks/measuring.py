"""Time and peak memory of a call, and a table of both: shared by the benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer


def milliseconds(call: Callable[[], object], seconds: float) -> float:
    """Median time of one call, in ms, CUDA waited for."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=seconds).median


def peak_mib(call: Callable[[], object], device: str) -> float:
    """Most memory in use at once during a call, above what was in use before, in MiB."""
    call()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    allocations = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    used = peak = 0
    for event in sorted(allocations, key=lambda e: e.start_ns()):
        used += event.nbytes()
        peak = max(peak, used)
    return peak / 2**20


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """Rows as a Markdown table; ``columns`` maps a row's key to the format of its value."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(format(row[key], spec) for key, spec in columns.items()) + " |" for row in rows]
    return "\n".join(lines)
