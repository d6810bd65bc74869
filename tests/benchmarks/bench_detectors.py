"""Detectors: what surgery adds to building one, and what an operated one costs beside the original.

Run: pytest -m benchmark tests/benchmarks/bench_detectors.py -s      (or: python -m tests.benchmarks.bench_detectors)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import surgeon
from tests.benchmarks.bench_apply import seconds
from tests.benchmarks.measuring import milliseconds, table

NAMES = ("yolo11n", "yolo11x")
STEPS = {"model": "s", "step": "s", "seconds": ".2f", "ratio": ".2f"}
FORMS: dict[str, Any] = {
    "original": None,
    "spd": "spd",
    "spd, minimal": {"spd": {"kernel": "minimal"}},
    "conv-spd": {"spd": {"order": "conv-spd"}},
}
COSTS = {"network": "s", "million parameters": ".2f", "milliseconds": ".1f", "ratio": ".2f", "lowered": ".2f"}


def detector(name: str) -> Any:
    """An untrained detector."""
    return pytest.importorskip("ultralytics").YOLO(f"{name}.yaml")


def measure_steps(names: tuple[str, ...] = NAMES, runs: int = 3) -> list[dict]:
    """One row per detector and verb; the ratio is to building it."""
    rows = []
    for name in names:
        build = seconds(lambda name=name: detector(name), runs)
        yolo = detector(name)
        steps = {
            "YOLO(yaml)": build,
            "locate": seconds(lambda yolo=yolo: surgeon.locate(yolo), runs),
            "plan": seconds(lambda yolo=yolo: surgeon.plan(yolo, "spd"), runs),
            "YOLO(yaml) + apply, less YOLO(yaml)": seconds(lambda name=name: surgeon.apply(detector(name), "spd"), runs)
            - build,
        }
        rows += [{"model": name, "step": step, "seconds": t, "ratio": t / build} for step, t in steps.items()]
    return rows


@torch.no_grad()
def measure_forms(name: str = "yolo11n", size: int = 640, least: float = 3.0) -> list[dict]:
    """Forward passes of one image, fused as ultralytics predicts; ratios are to the original."""
    image, rows = torch.rand(1, 3, size, size), []
    for form, recipe in FORMS.items():
        yolo = detector(name)
        if recipe is not None:
            surgeon.apply(yolo, recipe)
            for parameter in yolo.model.parameters():  # as after training: every tap in use
                parameter.add_(torch.randn_like(parameter) * 1e-3)
        lowered = surgeon.lower(yolo).model if recipe is not None else yolo.model
        times = [milliseconds(lambda m=m: m(image), least) for m in (prepared(yolo.model), prepared(lowered))]
        count = sum(p.numel() for p in yolo.model.parameters()) / 1e6
        base = rows[0]["milliseconds"] if rows else times[0]
        ratios = {"ratio": times[0] / base, "lowered": times[1] / base}
        rows.append({"network": f"{name}, {form}", "million parameters": count, "milliseconds": times[0], **ratios})
    return rows


def prepared(network: Any) -> Any:
    """In evaluation mode, norms folded."""
    return network.eval().fuse(verbose=False)


@pytest.mark.benchmark
def test_detectors():
    steps, forms = measure_steps(), measure_forms()
    print("\n" + table(steps, STEPS) + "\n\n" + table(forms, COSTS))
    assert len(steps) == 4 * len(NAMES) and len(forms) == len(FORMS)


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(table(measure_steps(), STEPS) + "\n\n" + table(measure_forms(), COSTS))
