"""A training killed by the system, without a chance to tidy up, goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml
from rich.console import Console

import recipes
from recipes.claiming import dump
from recipes.processes import seeded
from recipes.schema import RecipeFile

CHILD = """
import sys, time
import timm, torch
import recipes, surgeon
from recipes.data import ALONE, Data
from recipes.finetuning import data_for
from recipes.processes import seeded

class Slow:  # the same batches, so slowly that a signal comes in the middle of an epoch
    def __init__(self, batches): self.batches, self.num_images = batches, batches.num_images
    def __len__(self): return len(self.batches)
    def epoch(self, number):
        for batch in self.batches.epoch(number):
            time.sleep(0.05)
            yield batch

torch.set_num_threads(1)
recipe = recipes.load(sys.argv[1])
with seeded(0):
    model = timm.create_model("digits_convnet")
data = data_for(recipe, model, recipe.train, ALONE)
slow = Data(data.name, Slow(data.train), data.val, data.num_classes, data.input_size)
try:
    recipes.finetune(model, recipe, folder=sys.argv[2], data=slow)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(recipe: RecipeFile, tmp_path: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    command = [sys.executable, str(tmp_path / "child.py"), str(tmp_path / "recipe.yaml"), str(tmp_path / "run")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stop_after_epoch_2(child: subprocess.Popen[str], run: Path, what: signal.Signals) -> str:
    for _ in range(1200):
        if list((run / "checkpoints").glob("epoch_000[2-9]")) or child.poll() is not None:
            break
        time.sleep(0.05)
    os.kill(child.pid, what)
    said, _ = child.communicate(timeout=60)
    return said


@pytest.mark.parametrize("what", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_killed_and_continued_is_uninterrupted(
    small: Callable[..., RecipeFile], quiet: Console, tmp_path: Path, environment: dict[str, str], what: signal.Signals
) -> None:
    recipe = small(epochs=6, opt="adamw", lr=0.003, keep_epochs=[0, 3])
    child = start(recipe, tmp_path, environment)
    said = stop_after_epoch_2(child, tmp_path / "run", what)
    if what is signal.SIGKILL:
        assert child.returncode == -signal.SIGKILL, said
    else:
        assert child.returncode == 130 and "Run the same command again to go on." in said
    kept = [int(path.name[-4:]) for path in (tmp_path / "run" / "checkpoints").glob("epoch_*")]
    assert max(kept) in (2, 3)  # it was indeed cut short

    def train(recipe: RecipeFile, folder: Path | None) -> dict[str, torch.Tensor]:
        with seeded(0):
            model = timm.create_model("digits_convnet")
        return recipes.finetune(model, recipe, folder=folder, console=quiet).model.state_dict()

    resumed, through = train(recipe, tmp_path / "run"), train(recipe, None)
    assert all(torch.equal(resumed[name], through[name]) for name in through)
    assert (tmp_path / "run" / "trajectory" / "epoch_0003.safetensors").exists()
    content = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    content["train"]["seed"] = 1
    other = train(recipes.parse(content), None)
    assert not all(torch.equal(other[name], through[name]) for name in through)
