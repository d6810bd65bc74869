"""``surgeon analyze spatial``: from a model and images, stopped and continued; and the analysis in a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import recipes
from recipes import cli
from recipes.viewing import View

FEW = ("--passes", 1, "--shuffle", "spatial", "--which", "alone", "--limit", 64)


def analyze(*words: Any) -> int:
    return cli.main(["analyze", "spatial", *map(str, words), "--device", "cpu"])


def rows(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return found


def test_any_model_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("digits_convnet", "--data", "digits", *FEW, "--shuffle", "patch", "--patch", 3, "--no-skips")
    assert analyze(*words, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "patch 3" in said and "written to" in said
    found = rows(tmp_path / "out" / "spatial.json")
    assert {(row["shuffle"], row["patch_px"]) for row in found} == {("none", None), ("spatial", None), ("patch", 3)}
    assert {row["images"] for row in found} == {64} and len(found) == 1 + 2 * 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"spatial.{e}" for e in ("json", "csv", "png", "html")
    }
    page = (tmp_path / "out" / "spatial.html").read_text()
    assert "surgeon " in page and "Spatial dependence of digits_convnet" in page


def test_ctrl_c_keeps_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("digits_convnet", "--data", "digits", *FEW, "--batch-size", 16, "--out", tmp_path)
    whole = View.__iter__

    def until_the_third(self: View) -> Iterator[Any]:
        for number, batch in enumerate(whole(self)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(View, "__iter__", until_the_third)
    assert analyze(*words) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    half = rows(tmp_path / "spatial.json")
    assert {row["images"] for row in half} == {48} and (tmp_path / "spatial.ledger").is_file()
    monkeypatch.setattr(View, "__iter__", whole)
    assert analyze(*words) == 0
    assert {row["images"] for row in rows(tmp_path / "spatial.json")} == {64}
    assert not (tmp_path / "spatial.ledger").exists()


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze("digits_convnet", "--data", "digits", "--shuffle", "spacial", "--out", tmp_path / "new") == 2
    assert "shuffles is ['spacial']" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_in_a_recipe(tmp_path: Path) -> None:
    recipe = {
        "name": "short",
        "model": {"timm": "digits_convnet"},
        "data": {"dataset": "digits", "size": 16, "max_train": 64, "max_val": 32},
        "train": {"epochs": 1, "batch_size": 32, "device": "cpu", "seed": 3},
        "analysis": [{"spatial_dependence": {"shuffles": ["channel"], "passes": 2, "which": ["last"]}}],
    }
    done = recipes.run(recipe, tmp_path, console=Console(quiet=True))
    found = json.loads((tmp_path / "spatial_dependence.json").read_text())
    assert found["settings"]["seed"] == 3 and {row["passes"] for row in found["rows"][1:]} == {2}
    assert found["rows"][0]["accuracy"] == pytest.approx(done.rows[0]["accuracy"]) and len(found["rows"]) == 5
