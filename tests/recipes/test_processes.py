"""Two processes under torchrun train as one does, where no batch norm stands between; and say so where one does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file

import recipes
from recipes.claiming import dump
from recipes.data import ALONE
from recipes.learner import has_batch_norm
from recipes.processes import pick_device, processes, seeded
from recipes.schema import RecipeFile
from surgeon import RecipeError

CHILD = """
import sys
import timm, torch
import recipes, surgeon
from recipes.processes import processes, seeded

torch.set_num_threads(1)
with processes("cpu") as who:
    assert who.world == 2 and who.agree(who.rank) == 0
    for path in sys.argv[1:]:
        recipe = recipes.load(path)
        with seeded(0):
            model = timm.create_model(recipe.model.timm)
        result = recipes.finetune(model, recipe, folder=path.removesuffix(".yaml"))
        total = sum(float(p.double().sum()) for p in model.parameters())
        assert who.agree(total) == total, "the processes ended with different weights"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three trainings in two processes: plain, with mixup and accumulation, and with batch norm."""
    folder = tmp_path_factory.mktemp("two")
    base = {"data": {"dataset": "digits", "size": 8, "canvas": 12, "max_train": 256, "max_val": 101}}
    common = {"epochs": 2, "batch_size": 32, "lr": 0.02, "device": "cpu"}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "plain": ("digits_convnet_nobn", {}),
        "mixed": ("digits_convnet_nobn", {"mixup": 0.4, "grad_accum_steps": 2, "clip_grad": 1.0, "model_ema": True}),
        "normed": ("digits_convnet", {}),
    }
    made = {
        name: recipes.parse({"name": name, "model": {"timm": net}, "train": {**common, **extra}, **base})
        for name, (net, extra) in cases.items()
    }
    for name, recipe in made.items():
        (folder / f"{name}.yaml").write_text(dump(recipe))
    return {"folder": folder, "recipes": made}


@pytest.fixture(scope="module")
def said(trained: dict[str, Any]) -> str:
    import os

    root = str(Path(recipes.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    script = trained["folder"] / "child.py"
    script.write_text(CHILD)
    files = [str(trained["folder"] / f"{name}.yaml") for name in trained["recipes"]]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script), *files], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def final(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    (place,) = (folder / "checkpoints").glob("epoch_*")
    return load_file(place / f"{name}.safetensors")


def alone(recipe: RecipeFile, folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    with seeded(0):
        model = timm.create_model(recipe.model.timm)
    result = recipes.finetune(model, recipe, folder=folder, console=Console(quiet=True))
    return final(folder), result.rows


@pytest.mark.parametrize("name", ["plain", "mixed"])
def test_two_processes_train_as_one(name: str, trained: dict[str, Any], said: str, tmp_path: Path) -> None:
    recipe = trained["recipes"][name]
    together, (single, rows) = final(trained["folder"] / name), alone(recipe, tmp_path / "one")
    largest = max(float((together[key] - single[key]).abs().max()) for key in single)
    assert largest < 2e-6, largest
    shared = [json.loads(line) for line in (trained["folder"] / name / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(shared, rows, strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-5)
        assert ours["val_accuracy"] == theirs["val_accuracy"]  # 101 images: not shared out evenly
    assert shared[-1]["train_loss"] == pytest.approx(rows[-1]["train_loss"], abs=1e-5)
    assert f"{name}: 2 processes; no batch norm, so the numbers are those of one process" in said
    if recipe.train.model_ema:
        averaged = [final(folder, "ema") for folder in (trained["folder"] / name, tmp_path / "one")]
        assert all(torch.allclose(averaged[0][key], averaged[1][key], atol=2e-6) for key in averaged[0])
    content = {**recipe.model_dump(), "train": {**recipe.train.model_dump(), "seed": 1}}
    other, _ = alone(recipes.parse(content), tmp_path / "other")
    assert max(float((together[key] - other[key]).abs().max()) for key in other) > 1e-3


def test_batch_norm_is_said_in_the_log(trained: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert "normed: 2 processes; batch norm: statistics per process, averaged for evaluation" in said
    together, (single, _) = final(trained["folder"] / "normed"), alone(trained["recipes"]["normed"], tmp_path)
    gaps = {key: float((together[key].double() - single[key].double()).abs().max()) for key in single}
    assert max(gaps.values()) > 1e-4  # batch norm does see half batches: not the numbers of one process


def test_synchronised_batch_norm_needs_cuda() -> None:
    from recipes.learner import Learner
    from recipes.processes import Processes

    train = recipes.parse(
        {
            "name": "x",
            "model": {"timm": "digits_convnet"},
            "data": {"dataset": "digits"},
            "train": {"sync_bn": True, "device": "cpu"},
        }
    ).train
    assert train is not None
    two = Processes(0, 2, torch.device("cpu"))
    with pytest.raises(RecipeError, match="sync_bn needs CUDA"):
        Learner(timm.create_model("digits_convnet"), train, 10, 4, two)
    Learner(timm.create_model("digits_convnet"), train, 10, 4, ALONE)  # alone there is nothing to share


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(RecipeError, match="CUDA"):
        pick_device("cuda:99")
    with processes("cpu") as who:
        assert who.main and who.agree("x") == "x" and who.total(torch.ones(2)).tolist() == [1, 1]


def test_batch_norm_is_found(small: Callable[..., RecipeFile]) -> None:
    assert has_batch_norm(timm.create_model("digits_convnet"))
    assert not has_batch_norm(timm.create_model("digits_convnet_nobn"))
