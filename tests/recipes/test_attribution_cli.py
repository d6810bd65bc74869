"""``surgeon analyze attribution`` and ``attribution-shifts``: from a run's folder, in recipes, and errors in words."""

import json
from pathlib import Path
from typing import Any

import pytest

import recipes
from recipes import cli
from surgeon.errors import RecipeError

pytest.importorskip("captum.attr")
MODEL = {"timm": "fcn", "args": {"depth": 2, "width": 8, "img_size": 8}}
DATA = {"dataset": "digits", "size": 8}


def analyze(*words: Any) -> int:
    return cli.main(["analyze", *map(str, words), "--device", "cpu"])


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_a_run_with_its_analyses_and_again_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"attribution": {"steps": 4, "limit": 8}}, {"attribution_equivariance": {"shifts": [1], "limit": 4}}]
    recipe = {"name": "small", "model": MODEL, "data": DATA, "train": {"epochs": 1}, "analysis": asked}
    recipes.run(recipes.load(recipe), tmp_path / "run")
    first = read(tmp_path / "run" / "attribution.json")
    assert first["settings"]["images"] == 8 and first["settings"]["command"].startswith("surgeon run")
    assert read(tmp_path / "run" / "attribution_equivariance.json")["rows"][0]["images"] == 4
    words = ("--limit", 8, "--steps", 4, "--method", "gradient_x_activation", "--method", "conductance")
    assert analyze("attribution", tmp_path / "run", *words, "--no-robustness", "--out", tmp_path / "a") == 0
    settings = read(tmp_path / "a" / "attribution.json")["settings"]
    assert settings["method"] == ["gradient_x_activation", "conductance"] and settings["robustness"] == "left out"
    assert (tmp_path / "a" / "attribution.html").exists() and "conductance" in capsys.readouterr().out
    assert analyze("attribution-shifts", tmp_path / "run", "--limit", 4, "--shift", 2, "--out", tmp_path / "b") == 0
    rows = read(tmp_path / "b" / "attribution_equivariance.json")["rows"]
    assert [row["shift_right_px"] for row in rows] == [2] and (tmp_path / "b" / "attribution_equivariance.png").exists()


def test_errors_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("attribution", "fcn", "--data", "digits", "--out", tmp_path / "a")
    assert analyze(*words, "--method", "conductanse") == 2
    assert "did you mean 'conductance'" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="attribution"):
        recipes.load({"name": "x", "model": MODEL, "data": DATA, "analysis": [{"attribution": {"step": 3}}]})
