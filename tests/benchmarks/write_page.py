"""Run the benchmarks and write docs/benchmarks.md: python -m tests.benchmarks.write_page [--device cuda]."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from pathlib import Path

import timm
import torch

from tests.benchmarks import (
    bench_apply,
    bench_detectors,
    bench_fenet,
    bench_locate,
    bench_robustness,
    bench_shift,
    bench_shuffle,
    bench_spd_layers,
    bench_translation,
)
from tests.benchmarks.measuring import table
from tests.matrix.measure import timm_names

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
TEXT = """# Benchmarks

Measured on {date}, {machine}; torch {torch}, timm {timm}, Python {python}. Each table is one run, so its ratios hold
where its times do not. `python -m tests.benchmarks.write_page` measures anew and writes this page.

## Surgery against building the model

What each verb adds to `timm.create_model`, random weights, two threads.

{apply}

## `locate`, every name of timm

Built on the meta device, which does not count; one thread.

{locate}

## The SPD layer, against what it replaces and other ways to compute it

One thread, batch {batch}, float32. Ratios are to the strided conv. "SPD" is what `spd` puts in (every tap in use, as
after training), "slice and concatenate" the form the papers print, "lowered" what `surgeon.lower` makes of it: one
strided conv with a larger kernel.

{layers}

## The sparse shift layer against the depthwise 3x3 conv

One thread, batch {batch}, float32. "stay" are channels whose offsets round to zero. A training step of a layer whose
offsets learn computes their gradient too; frozen ones, as in the last part of a training, move only. Freed memory was
kept in the process (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_): else large maps measure page faults, of both.

{shifts}

## FE-Net 1.375x against its depthwise twin

One thread, batch 4 at 224 pixels. Shares are of the forward pass in evaluation mode; "rest" is concatenation, addition
and Python. "stay" are channels that do not move: as initialised, and as after training with a penalty.

{fenets}

## The shuffles against a copy

One thread on the CPU, batch 64, float32. One draw serves the whole batch: its share falls as the batch grows. A copy of
a map that fits the caches is cheap: the gather costs what `torch.gather` costs or less.

{shuffles}

## Layer-wise robustness

{robustness}

## Scans over shifts

{moves}

## Detectors

What each verb adds to `YOLO(yaml)`, random weights, two threads.

{detector_steps}

Forward passes of one image of 640 pixels, fused, two threads, every tap in use; ratios are to the original. "lowered"
is what `surgeon.lower` makes of the network.

{detector_forms}
"""


def machine(device: str) -> str:
    """In words, without names of hosts."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(2)
    applied = table(bench_apply.measure(), bench_apply.COLUMNS)
    steps = table(bench_detectors.measure_steps(), bench_detectors.STEPS)
    forms = table(bench_detectors.measure_forms(), bench_detectors.COSTS)
    torch.set_num_threads(1)
    batch = 64 if device == "cuda" else 4
    layers = table(bench_spd_layers.measure(device, batch=batch), bench_spd_layers.COLUMNS)
    shifts = table(bench_shift.measure(device, batch), bench_shift.COLUMNS)
    fenets = table(bench_fenet.measure(), bench_fenet.COLUMNS)
    shuffles = table(bench_shuffle.measure(device, 64), bench_shuffle.COLUMNS)
    robustness = bench_robustness.section()
    moves = bench_translation.section()
    located = bench_locate.summary(bench_locate.measure(timm_names()))
    text = TEXT.format(
        date=datetime.date.today().isoformat(),
        machine=machine(device),
        torch=torch.__version__,
        timm=timm.__version__,
        python=platform.python_version(),
        batch=batch,
        apply=applied,
        locate=located,
        layers=layers,
        shifts=shifts,
        shuffles=shuffles,
        fenets=fenets,
        robustness=robustness,
        moves=moves,
        detector_steps=steps,
        detector_forms=forms,
    )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
