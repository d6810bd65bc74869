"""``surgeon analyze translation | consistency | compare`` from model to page, mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import recipes
import surgeon
from recipes.cli import main


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained net and its twin after surgery."""
    place = tmp_path_factory.mktemp("nets")
    torch.manual_seed(0)
    surgeon.save(surgeon.create_model("digits_convnet"), place / "original")
    torch.manual_seed(0)
    surgeon.save(surgeon.create_model("digits_convnet", "spd"), place / "spd")
    return place


def run(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(argument) for argument in ("analyze", *arguments, "--device", "cpu")])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_translation(nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--data", "digits", "--limit", 20, "--axis", "diagonal", "--reach", 2, "--out", tmp_path)
    code, out, err = run("translation", nets / "original", *more, capsys=capsys)
    assert code == 0 and "mean relative loss" in out, err
    found = json.loads((tmp_path / "translation.json").read_text())
    assert [row["dx_px"] for row in found["rows"]] == [-2, -1, 0, 1, 2] and found["settings"]["images"] == 20
    assert found["settings"]["command"].startswith("surgeon") and not list(tmp_path.glob("*.ledger*"))
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_black_is_given(nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--data", "digits", "--limit", 10, "--axis", "diagonal", "--reach", 1, "--padding", "black")
    code, _, err = run("translation", nets / "spd", *words, "--fill", -0.81, "--out", tmp_path, capsys=capsys)
    assert code == 0, err
    assert json.loads((tmp_path / "translation.json").read_text())["settings"]["fill"] == [-0.81]


def test_other_ledgers_stay(nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "robustness.ledger").mkdir()
    (tmp_path / "robustness.ledger" / "readings.npz").write_bytes(b"kept")
    words = ("--data", "digits", "--limit", 4, "--reach", 1, "--out", tmp_path, "--no-resume")
    code, _, err = run("consistency", nets / "spd", *words, capsys=capsys)
    assert code == 0 and (tmp_path / "robustness.ledger" / "readings.npz").read_bytes() == b"kept", err


def test_consistency(nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--data", "digits", "--limit", 20, "--reach", 3, "--out", tmp_path)
    code, out, err = run("consistency", nets / "spd", *more, capsys=capsys)
    assert code == 0 and "two random circular shifts get the same class" in out, err
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv", ".png", ".html"}


def test_compare(nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--data", "digits", "--limit", 20, "--measure", "consistency", "--measure", "cost", "--out", tmp_path)
    code, out, err = run("compare", nets / "original", nets / "spd", *more, capsys=capsys)
    assert code == 0 and "they disagree on" in out, err
    rows = {row["measure"]: row for row in json.loads((tmp_path / "compare.json").read_text())["rows"]}
    assert rows["parameters"]["difference"] > 0 and rows["accuracy"]["difference"] == 0
    assert len(list((tmp_path / "nets").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("translation", "NET", "--data", "digits", "--padding", "zeros"), "it is one of mirror"),
        (("translation", "NET", "--data", "digits", "--padding", "black"), "needs fill"),
        (("consistency", "NET", "--data", "digits", "--protocol", "crop"), "needs the window"),
        (("compare", "NET", "nowhere/net", "--data", "digits"), "nowhere/net"),
        (("compare", "NET", "NET", "--data", "digits", "--labels", "a,a"), "two different names"),
        (("compare", "NET", "NET", "--data", "digits", "--measure", "speed"), "'speed' is none"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], words: str, nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(nets / "original") if one == "NET" else one for one in arguments]
    code, _, err = run(*given, "--out", tmp_path / "out", capsys=capsys)
    assert code != 0 and words in err and "Traceback" not in err


def test_the_published_protocol_from_a_folder_of_images(tmp_path: Path) -> None:
    """The shipped recipe, with another net and images: 256 pixels are read, windows of 224 seen."""
    for number, place in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        (tmp_path / "imagenet" / place).mkdir(parents=True)
        picture = Image.effect_noise((300, 280), 60 + number).convert("RGB")
        picture.save(tmp_path / "imagenet" / place / "image.png")
    shipped = recipes.load("imagenet_consistency").model_dump(exclude_unset=True)
    changed = {
        **shipped,
        "model": {"timm": "test_resnet", "num_classes": 2},
        "train": {"epochs": 1, "batch_size": 2, "device": "cpu"},
        "data": {**shipped["data"], "dataset": f"folder:{tmp_path / 'imagenet'}"},
    }
    done = recipes.run(recipes.parse(changed), tmp_path / "out")
    for stem, rows in (("consistency", 6), ("consistency_2", 33), ("consistency_3", 2)):
        found = json.loads((done.folder / f"{stem}.json").read_text())
        assert len(found["rows"]) == rows and found["settings"]["size"] == [224, 224]
