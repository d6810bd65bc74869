"""Layer-wise robustness in one pass over the data, against a pass for each variant and against a loop by hand.

A residual network of 16 blocks, trained on scikit-learn's digits; five treatments (one fresh draw, four kept states),
2,694 images held in memory, so that times are of computing alone; and the same by two processes.

Run: pytest -m benchmark tests/benchmarks/bench_robustness.py -s      (or: python -m tests.benchmarks.bench_robustness)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import analysis
import recipes
import surgeon
from analysis.treatments import seed_of_draw
from recipes.data import open_source
from recipes.processes import processes
from surgeon.redrawing import fresh_model_values
from tests.benchmarks.measuring import table

COLUMNS = {"how": "s", "seconds": ".1f", "ratio": ".2f", "images_loaded": ",d", "verdicts_equal": ".1%", "counts": "s"}
SHARED = {"how": "s", "seconds": ".1f", "speed": ".2f", "same_rows": "s"}
KEPT = (0, 1, 3, 6)
RECIPE: dict[str, Any] = {
    "name": "sixteen-blocks",
    "model": {"timm": "preact_resnet34_plain", "args": {"width": 8}},
    "data": {"dataset": "digits", "size": 12, "canvas": 16, "placement": "random"},
    "train": {"epochs": 12, "batch_size": 64, "lr": 0.02, "sched": "cosine", "keep_epochs": KEPT, "device": "cpu"},
}
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def trained(folder: Path) -> tuple[nn.Module, Path]:
    """The network, and the states it went through."""
    recipe = recipes.parse(RECIPE)
    torch.manual_seed(0)
    model = surgeon.create_model("preact_resnet34_plain", width=8, in_chans=1)
    recipes.finetune(model, recipe, folder=folder, console=Console(quiet=True))
    return model, folder / "trajectory"


def images(epochs: int = 2, batch: int = 128) -> Batches:
    """Training digits at places no epoch of the training has drawn."""
    source = open_source(recipes.parse(RECIPE).data)
    keys = [(100 + epoch, index) for epoch in range(epochs) for index in range(len(source.train))]
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0)).tolist()
    return [source.train.__getitems__([keys[i] for i in order[at : at + batch]]) for at in range(0, len(order), batch)]


def by_hand(model: nn.Module, data: Batches, states: dict[str, dict[str, torch.Tensor]]) -> list[int]:
    """What one writes first: exchange a unit's values by load_state_dict, and count the errors of a pass."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    variants: list[dict[str, torch.Tensor]] = [own]
    for unit in analysis.units(model):
        variants += [own | {name: state[name] for name in unit.tensors} for state in states.values()]
    variants += [dict(state) for state in states.values()]
    wrong = []
    for variant in variants:
        model.load_state_dict(variant)
        with torch.no_grad():
            wrong.append(sum(int((model(x).argmax(1) != y).sum()) for x, y in data))
    model.load_state_dict(own)
    return wrong


def measure(model: nn.Module, trajectory: Path, data: Batches) -> list[dict[str, Any]]:
    """A row per way; ratios are to one pass."""
    from analysis.states import read_states

    model.eval()
    states = {"rerand": fresh_model_values(model, seed_of_draw(0, 0)).values, **dict(read_states(trajectory, model))}
    begun = time.perf_counter()
    wrong = sorted(by_hand(model, data, states))
    rows = [{"how": "a loop by hand", "seconds": time.perf_counter() - begun, "loaded": len(wrong) * _count(data)}]
    ways = {"naive": {"method": "naive"}, "single_pass": {}, "single_pass, stop=0.95": {"stop": 0.95}}
    found: dict[str, Any] = {}
    for how, settings in ways.items():
        begun = time.perf_counter()
        found[how] = analysis.robustness(model, data, checkpoints=trajectory, progress=False, **settings)
        seconds = time.perf_counter() - begun
        rows.append({"how": how, "seconds": seconds, "loaded": found[how].settings["images_loaded"]})
    full = found["single_pass"]
    counts = {how: _counts(result) for how, result in found.items()} | {"a loop by hand": wrong}
    return [
        {
            "how": row["how"],
            "seconds": row["seconds"],
            "ratio": row["seconds"] / rows[2]["seconds"],
            "images_loaded": row["loaded"],
            "verdicts_equal": _agreeing(found.get(row["how"], full), full),
            "counts": "equal" if counts[row["how"]] == _counts(full) else "fewer images",
        }
        for row in rows
    ]


def _count(data: Batches) -> int:
    return sum(len(y) for _, y in data)


def _counts(result: analysis.Robustness) -> list[int]:
    """Wrong images of every variant, sorted."""
    seen = [row for row in result.rows if row["treatment"] != "final"]
    final = next(row for row in result.rows if row["treatment"] == "final")
    return sorted(round(row["error"] * row["images"]) for row in [*seen, final])


def _agreeing(one: analysis.Robustness, other: analysis.Robustness) -> float:
    """Share of equal verdicts, of those that one of the two is certain of."""
    pairs = [(a["verdict"], b["verdict"]) for a, b in zip(one.rows, other.rows, strict=True) if a["verdict"] != "-"]
    return sum(a == b for a, b in pairs) / len(pairs)


def shared(folder: Path, processes_: int) -> dict[str, Any]:
    """Seconds and rows of an analysis by one or two processes with a thread each."""
    command = ["-m", "tests.benchmarks.bench_robustness", "--worker", str(folder)]
    if processes_ > 1:
        command = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes_), "--standalone", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], check=True, env=environment, capture_output=True)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def work(folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    model, data = surgeon.load(folder / "weights"), images()
    with processes("cpu") as who:
        begun = time.perf_counter()
        result = analysis.robustness(model, data, checkpoints=folder / "trajectory", progress=False)
        seconds = time.perf_counter() - begun
        if who.main:
            (folder / "found.json").write_text(json.dumps({"seconds": seconds, "rows": result.rows}))


def everything() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Both tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, trajectory = trained(folder)
        surgeon.save(model, folder / "weights")
        alone = measure(model, trajectory, images())
        one, two = shared(folder, 1), shared(folder, 2)
    together = [
        {"how": how, "seconds": run["seconds"], "speed": one["seconds"] / run["seconds"], "same_rows": str(same)}
        for how, run, same in (("one process", one, True), ("two processes", two, one["rows"] == two["rows"]))
    ]
    return alone, together


TEXT = """A residual network of 16 blocks, trained on digits; 18 units, five treatments, and the whole model under each:
96 networks on 2,694 images held in memory, one thread. Ratios of seconds are to one pass; verdicts are compared with
those of one pass over all images. "by hand" exchanges values by `load_state_dict` and counts the errors of a pass.

{alone}

The same analysis by one and by two processes (`torchrun`, a thread each, on two cores).

{together}"""


def section() -> str:
    """The text of docs/benchmarks.md."""
    alone, together = everything()
    return TEXT.format(alone=table(alone, COLUMNS), together=table(together, SHARED))


@pytest.mark.benchmark
def test_robustness() -> None:
    torch.set_num_threads(1)
    alone, together = everything()
    print(f"\n{table(alone, COLUMNS)}\n\n{table(together, SHARED)}")
    assert [row["counts"] for row in alone[:3]] == ["equal"] * 3
    assert together[1]["same_rows"] == "True"


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]))
    else:
        print(section())
