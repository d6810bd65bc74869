"""The training of a detector stopped by Ctrl-C or killed by the system goes on from its last whole epoch."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

pytest.importorskip("ultralytics")

import recipes
import surgeon
from recipes import detect
from tests.recipes.detecting import TRAIN, content
from tests.surgeon.yolo.small import network, squares

CHILD = """
import sys, time
from recipes.cli import main
from ultralytics.engine.trainer import BaseTrainer
save = BaseTrainer.save_model
def slowly(self, *args, **kwargs):
    save(self, *args, **kwargs)
    time.sleep(0.3)
BaseTrainer.save_model = slowly
sys.exit(main(["run", "recipe.yaml", "--out", "out"]))
"""


@pytest.mark.parametrize("what", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_and_continued(tmp_path: Path, environment: dict[str, str], what: signal.Signals) -> None:
    squares(tmp_path / "squares")
    network(tmp_path)
    recipe = content(tmp_path, train={**TRAIN, "epochs": 5, "optimizer": "SGD"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "out" / "training"
    for _ in range(3000):
        if len(detect.read_rows(folder)) > 1 or child.poll() is not None:
            break
        time.sleep(0.02)
    os.kill(child.pid, what)
    said, complaints = child.communicate(timeout=60)
    if what is signal.SIGKILL:
        assert child.returncode == -signal.SIGKILL, complaints
    else:
        assert child.returncode == 130 and "Traceback" not in complaints, complaints
        assert "Run the same command again to go on." in said
    done = torch.load(folder / "weights" / "last.pt", weights_only=True)["epoch"] + 1
    assert 1 <= done <= 3  # it was indeed cut short
    if what is signal.SIGINT:
        return
    console = Console(record=True, width=300, file=io.StringIO())
    result = recipes.run(recipe, tmp_path / "out", console=console)
    assert f"continuing out after epoch {done} of 5" in console.export_text()
    assert result.rows[0]["epochs"] == 5 and [row["epoch"] for row in detect.read_rows(folder)] == [1, 2, 3, 4, 5]
    assert surgeon.record(surgeon.load(folder / "weights" / "last.pt")).count("rewritten") == 3
