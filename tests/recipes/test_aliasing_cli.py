"""``surgeon analyze aliasing`` and ``perceptual`` from model to page, mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import surgeon
from analysis import PerceptualDistance
from recipes.cli import main
from surgeon.errors import AnalysisError


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained net of three strides."""
    place = tmp_path_factory.mktemp("nets") / "net"
    torch.manual_seed(0)
    surgeon.save(surgeon.create_model("digits_convnet"), place)
    return place


def run(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(argument) for argument in ("analyze", *arguments, "--device", "cpu")])
    told = capsys.readouterr()
    return code, told.out, told.err


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_aliasing(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--data", "digits", "--limit", 8, "--reach", 8, "--units", "stage", "--out", tmp_path)
    code, out, err = run("aliasing", net, *words, capsys=capsys)
    assert code == 0 and "Sampling map" in out, err
    found = {name: read(tmp_path / f"{name}.json") for name in ("translation", "aliasing", "equivariance")}
    assert [row["dx_px"] for row in found["translation"]["rows"]] == list(range(-8, 9))
    assert [row["period_px"] for row in found["aliasing"]["rows"]] == [2, 4, 8], "the strides of this net"
    assert {found[name]["settings"]["images"] for name in found} == {8}
    assert not list(tmp_path.glob("*.ledger*")) and (tmp_path / "report.html").read_text().count("<svg") >= 4


def test_perceptual(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--data", "digits", "--form", "gap", "--shifts", 1, "--fit", "digits", "--epochs", 3)
    code, out, err = run("perceptual", net, *words, "--out", tmp_path / "a", capsys=capsys)
    assert code == 0 and "Spearman" in out, err
    fitted, judged = read(tmp_path / "a" / "perceptual_fit.json"), read(tmp_path / "a" / "perceptual.json")
    assert len(fitted["rows"]) == 4 and fitted["settings"]["references"] + 2 == judged["settings"]["references"] == 10
    distance = PerceptualDistance.load(tmp_path / "a" / "weights", surgeon.load(net))
    assert not torch.equal(distance.weights, torch.ones_like(distance.weights))
    words = ("--data", "digits", "--weights", tmp_path / "a" / "weights", "--shifts", 0, "--limit", 25)
    code, out, err = run("perceptual", net, *words, "--out", tmp_path / "b", capsys=capsys)
    assert code == 0 and read(tmp_path / "b" / "perceptual.json")["settings"]["form"] == "gap", err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("aliasing", "NET"), "Name a data set by --data"),
        (("aliasing", "NET", "--data", "digits", "--axis", "grid"), "is one of diagonal, horizontal, vertical"),
        (("aliasing", "NET", "--data", "digits", "--column", "acuracy"), "is one of loss, accuracy"),
        (("aliasing", "NET", "--data", "digits", "--units", "blok"), "is one of layer, block, stage"),
        (
            ("aliasing", "PATCHES", "--data", "digits", "--reach", "20"),
            "smallest stride, of 16 pixels, needs 64",
        ),
        (("perceptual", "NET", "--data", "digits", "--fit", "tid2014"), "--fit tid2014: name a database"),
        (("perceptual", "NET", "--data", "digits", "--weights", "x", "--form", "gap"), "leave out --form"),
        (("perceptual", "NET", "--data", "tid2013"), "name a database and its folder"),
        (("perceptual", "NET", "--data", "tid2014:x"), "did you mean 'tid2013'"),
        (("perceptual", "NET", "--data", "digits", "--form", "gabb"), "it is one of lpips, gap"),
        (("perceptual", "NET", "--data", "digits", "--fit", "digits", "--weights", "x"), "give one of the two"),
        (("perceptual", "NET", "--data", "digits", "--weights", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    given = [{"NET": str(net), "PATCHES": "test_vit"}.get(word, word) for word in arguments]
    code, _, err = run(*given, "--out", tmp_path / "out", capsys=capsys)
    assert code == 2 and words in err and "Traceback" not in err and len(err.strip().splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_what_was_learned_stays_where_judging_fails(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise AnalysisError("the picture is damaged")

    monkeypatch.setattr("analysis.perceptual", broken)
    words = ("--data", "photos", "--fit", "digits", "--epochs", 2, "--shifts", 0)
    code, _, err = run("perceptual", net, *words, "--out", tmp_path / "a", capsys=capsys)
    assert code == 2 and "damaged" in err
    PerceptualDistance.load(tmp_path / "a" / "weights", surgeon.load(net))
    assert (tmp_path / "a" / "perceptual_fit.json").exists()
