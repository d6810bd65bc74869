"""``surgeon analyze resolution`` and ``analysis: [resolution]``: one net, two, a detector, and errors in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import recipes
import surgeon
from recipes import cli
from recipes.number_lists import numbers
from recipes.opening import open_model
from recipes.probes import problems
from surgeon.errors import RecipeError
from tests.surgeon.yolo.small import network, squares

WITH = {"name": "r", "model": {"timm": "digits_convnet"}, "data": {"dataset": "digits"}}


def analyze(*words: Any) -> int:
    return cli.main(["analyze", "resolution", *map(str, words), "--device", "cpu"])


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "resolution.json").read_text())["rows"]
    return found


def test_two_nets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The operated net is the same function: no lead anywhere."""
    model = open_model("digits_convnet")
    surgeon.save(model, tmp_path / "original")
    surgeon.save(surgeon.apply(model, "spd"), tmp_path / "spd")
    words = (tmp_path / "original", tmp_path / "spd", "--data", "digits", "--limit", 60, "--labels", "a,b")
    assert analyze(*words, "--factors", "1/2,0.25", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "a and b by resolution of the images" in said and "1/4" in said
    found = rows(tmp_path / "out")
    assert [(row["model"], row["factor"]) for row in found] == [(m, f) for m in "ab" for f in (1, 0.5, 0.25)]
    assert {row["images"] for row in found} == {60} and {row["accuracy_lead"] for row in found[3:]} == {0}
    assert (tmp_path / "out" / "report.html").is_file() and not list((tmp_path / "out").glob("*.ledger*"))


def test_small_images_and_one_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("digits_convnet", "--data", "digits", "--limit", 30, "--factors", "1/2", "--small", "--down", "area")
    assert analyze(*words, "--out", tmp_path / "out") == 0
    found = rows(tmp_path / "out")
    assert len(found) == 2 and found[1]["accuracy"] is not None and "accuracy_lead" not in found[0]
    assert "accuracy change" in capsys.readouterr().out


def test_a_detector(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    pytest.importorskip("faster_coco_eval")
    data = squares(tmp_path / "set", val=2)
    words = (network(tmp_path), "--data", data, "--imgsz", 64, "--factors", "1/4", "--resamples", 0)
    assert analyze(*words, "--out", tmp_path / "out") == 0
    assert [row["resolution"] for row in rows(tmp_path / "out")] == ["1", "1/4"] and "ap" in rows(tmp_path / "out")[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("digits_convnet",), "which images? Name a data set by --data"),
        (("digits_convnet", "--data", "digits", "--factors", "half"), "--factors half: give numbers"),
        (("digits_convnet", "--data", "digits", "--factors", "2"), "factors holds 2.0"),
        (("digits_convnet", "--data", "digits", "--labels", "a"), "--labels a: give two different names"),
        (("digits_convnet", "nosuchnet", "--data", "digits"), "has no model 'nosuchnet'"),
    ],
)
def test_errors_in_words(
    words: tuple[str, ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze(*words, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said


def test_in_a_recipe(tmp_path: Path) -> None:
    entry = {"resolution": {"factors": [0.5], "back": False}}
    assert problems({**WITH, "analysis": [entry]}, False) == []
    wrong = problems({**WITH, "analysis": [{"resolution": {"other": "resnet18", "factor": 1}}]}, False)
    assert "surgeon analyze resolution A B" in wrong[0][1] and "did you mean 'factors'" in wrong[1][1]
    recipes.run({**WITH, "data": {"dataset": "digits", "max_val": 40}, "analysis": [entry]}, tmp_path / "run")
    (found,) = (tmp_path / "run").rglob("resolution.json")
    assert [row["factor"] for row in json.loads(found.read_text())["rows"]] == [1.0, 0.5]


def test_numbers_of_a_command_line() -> None:
    assert numbers("--x", " 1, -2,1/3") == [1.0, -2.0, 1 / 3]
    for text in ("", "1,", "a", "1/0", "1 2"):
        with pytest.raises(RecipeError, match="--x"):
            numbers("--x", text)
