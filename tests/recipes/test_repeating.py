"""Several seeds: each run as by itself, differences taken run by run, and continued where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import recipes
from recipes import repeating
from recipes.cli import main
from recipes.repeating import compare, spread
from surgeon.errors import RecipeError

CONTENT: dict[str, Any] = {
    "name": "tiny",
    "model": {"timm": "digits_convnet"},
    "data": {"dataset": "digits", "size": 8, "max_train": 128, "max_val": 64},
    "train": {"epochs": 1, "batch_size": 32, "lr": 0.02, "device": "cpu"},
    "compare": {"original": {}, "spd": {"surgery": ["spd"]}},
}


def test_each_seed_is_a_run_of_its_own(quiet: Console, tmp_path: Path) -> None:
    repeated = recipes.repeat(CONTENT, (0, 3), tmp_path / "both", console=quiet)
    alone = recipes.run({**CONTENT, "train": {**CONTENT["train"], "seed": 3}}, tmp_path / "alone", console=quiet)
    assert repeated.runs[3].rows == alone.rows and repeated.runs[0].rows != alone.rows
    assert [row["values"][1] for row in repeated.rows] == [row["accuracy"] for row in alone.rows]
    saved = json.loads((tmp_path / "both" / "repeated.json").read_text())
    assert saved["rows"] == repeated.rows and saved["seeds"] == [0, 3]
    assert (tmp_path / "both" / "repeated.png").stat().st_size > 1000
    assert "original" in (tmp_path / "both" / "repeated.txt").read_text()


def test_what_was_run_is_not_run_again(quiet: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = recipes.repeat(CONTENT, (0, 1), tmp_path, console=quiet)
    monkeypatch.setattr("recipes.learner.Learner.train_epoch", lambda *_: pytest.fail("trained"))
    assert recipes.repeat(CONTENT, (0, 1), tmp_path, console=quiet).rows == first.rows


class Finished:
    def __init__(self, *accuracies: float) -> None:
        names = ("original", "other")
        self.rows = [
            {"variant": name, "accuracy": accuracy, "params": 1, "macs": 1, "images": 10}
            for name, accuracy in zip(names, accuracies, strict=True)
        ]


def test_differences_are_paired() -> None:
    """The runs lie far apart, the differences do not: 0.1 each time, so their interval has no width."""
    runs: Any = [Finished(0.2, 0.3), Finished(0.5, 0.6), Finished(0.8, 0.9)]
    first, other = compare(runs)
    assert first["difference"] is None and first["sd"] == pytest.approx(0.3)
    assert other["difference"] == pytest.approx(0.1)
    assert other["difference_high"] - other["difference_low"] == pytest.approx(0, abs=1e-12)
    assert first["metric"] == other["metric"] == "accuracy" and other["values"] == [0.3, 0.6, 0.9]
    assert spread([1.0, 1.0, 4.0]) == (2.0, pytest.approx(4.303, abs=1e-3))  # t of 2 degrees of freedom times 1


@pytest.mark.parametrize("seeds", [(), (1,), (1, 1)])
def test_a_spread_needs_two_seeds(seeds: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least two different ones"):
        recipes.repeat(CONTENT, seeds, tmp_path)
    with pytest.raises(RecipeError, match="names no data"):
        repeating.repeat({"name": "x", "model": {"timm": "test_resnet"}}, (0, 1), tmp_path)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(CONTENT))
    file = file.rename(tmp_path / "tiny.yaml")
    assert main(["run", str(file), "--out", str(tmp_path / "out"), "--seeds", "2", "--seed", "4"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"seed_4", "seed_5"}
    assert "to the first, paired (95%)" in capsys.readouterr().out
