"""The demo of detectors, quick: both nets start as one function, a folder is left, and the verdict says what it can."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import surgeon
from recipes import cli
from surgeon import RecipeError

pytest.importorskip("ultralytics")
pytest.importorskip("faster_coco_eval")

from recipes.demo_detector import demonstrate, verdict


class Compared:
    """As much of a comparison as a verdict reads."""

    labels = ("original", "spd")

    def __init__(self, first: float, second: float, low: float | None, high: float | None) -> None:
        row = {"metric": "AP_S", "original": first, "spd": second, "difference": second - first}
        self.rows = [row | {"low_95": low, "high_95": high, "verdict": "not tested"}]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((0.40, 0.45, 0.02, 0.08), "spd is better on these images"),
        ((0.45, 0.40, -0.08, -0.02), "original is better on these images"),
        ((0.40, 0.41, -0.02, 0.04), "the two cannot be told apart at this budget."),
        ((0.20, 0.21, -0.02, 0.04), "The original has not reached 0.3: this budget was too small"),
        ((0.20, 0.21, None, None), "not tested"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(row: Any, words: str) -> None:
    said = verdict(Compared(*row))  # type: ignore[arg-type]
    assert words in said and ("has not reached" in said) == (row[0] <= 0.3 and row[2] is not None)
    assert "too few epochs" in verdict(Compared(*row), quick=True)  # type: ignore[arg-type]


@pytest.mark.slow
def test_quick_demo(tmp_path: Path, recording: Console) -> None:
    shown = demonstrate(tmp_path / "demo", quick=True, console=recording)
    said = recording.export_text()
    for words in ("model.0.conv", "Rewrite them by SPD-Conv", "AP_S", "latency", "too few epochs to say anything"):
        assert words in said
    for file in ("recipe.yaml", "ap_by_size.png", "ap_by_size.json", "samples.html", "verdict.txt", "data/data.yaml"):
        assert (tmp_path / "demo" / file).stat().st_size > 0, file
    assert "4 rewritten" in (tmp_path / "demo" / "spd" / "record.txt").read_text()
    nets = [surgeon.load(tmp_path / "demo" / net / "weights") for net in ("original", "spd")]
    assert [surgeon.record(net).count("rewritten") for net in nets] == [0, 4]
    assert {row["metric"] for row in shown.comparison.rows} >= {"AP", "AP_S", "latency_ms"}
    image = torch.rand(1, 3, 96, 96)
    outputs = [net.model.eval()(image)[0].detach().numpy() for net in nets]
    assert not np.allclose(*outputs)  # each was trained by itself
    with pytest.raises(RecipeError, match="another recipe"):
        demonstrate(tmp_path / "demo", quick=True, seed=1, console=recording)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faster_coco_eval" else find(name))
    assert cli.main(["demo", "--detector", "--quick", "--out", str(tmp_path / "demo")]) == 2
    said = capsys.readouterr()
    assert "faster-coco-eval" in said.out + said.err and "pip install" in said.out + said.err
    assert "Traceback" not in said.out + said.err and not (tmp_path / "demo").exists()


def test_an_interrupted_demo_says_how_to_go_on(tmp_path: Path, monkeypatch: Any, recording: Console) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recipes.demo_detector.run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demonstrate(tmp_path / "demo", quick=True, seed=3, console=recording)
    assert "to go on: surgeon demo --detector --quick --seed 3 --out" in recording.export_text()


def test_seeds_below_zero_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--detector", "--seed", "-1", "--out", str(tmp_path / "demo")]) == 2
    assert "Traceback" not in capsys.readouterr().err
