"""``surgeon analyze robustness``: from a run's folder, from a model and images, stopped and continued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import analysis
import recipes
from analysis.tasks import Classification
from recipes import cli
from recipes.viewing import View, view_images, view_model

NET = {"timm": "fcn", "args": {"depth": 2, "width": 12, "img_size": 8}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run that kept its first weights."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    recipe = {
        "name": "short",
        "model": NET,
        "data": {"dataset": "digits", "size": 8},
        "train": {"epochs": 2, "lr": 0.1, "keep_epochs": [0, 1], "device": "cpu"},
    }
    recipes.run(recipe, folder, console=Console(quiet=True))
    return folder


def analyze(*words: Any) -> int:
    return cli.main(["analyze", "robustness", *map(str, words), "--device", "cpu"])


def rows(folder: Path, name: str = "robustness") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())["rows"]
    return found


def test_a_run_brings_its_data_and_states(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--draws", 2, "--joint", "all-but-first", "--search", "--out", tmp_path / "out")
    assert analyze(run, *words) == 0
    said = capsys.readouterr().out
    assert "final_linear" in said and "all-but-first" in said and "untouched error" in said
    found = rows(tmp_path / "out")
    assert {row["treatment"] for row in found} == {"rerand", "0", "1", "final"}
    assert {row["images"] for row in found} == {450}
    for name in ("robustness", "joint_robustness", "search_joint"):
        assert all((tmp_path / "out" / f"{name}.{kind}").is_file() for kind in ("json", "csv", "png"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "surgeon " in page and "Joint robustness" in page
    assert not list((tmp_path / "out").glob("*.ledger*"))  # finished: nothing to continue


def test_any_model_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("digits_convnet", "--data", "digits", "--draws", 1, "--limit", 64, "--out", tmp_path / "out")
    assert analyze(*words) == 0
    assert "no initial weights were given" in capsys.readouterr().out
    assert {row["images"] for row in rows(tmp_path / "out")} == {64}


def test_stopping_early_and_recalibrating(run: Path, tmp_path: Path) -> None:
    assert analyze(run, "--stop", 0.95, "--tolerance", 0.05, "--batch-size", 32, "--out", tmp_path / "a") == 0
    assert min(row["images"] for row in rows(tmp_path / "a") if row["unit"] != "full model") < 450
    words = ("--batchnorm", "recalibrate", "--calibration", 64, "--draws", 1, "--out", tmp_path / "b")
    assert analyze(run, *words) == 0
    assert {row["images"] for row in rows(tmp_path / "b")} == {450}


def test_ctrl_c_keeps_what_there_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (run, "--draws", 1, "--batch-size", 50, "--out", tmp_path / "out")
    whole = View.__iter__

    def until_the_third(self: View) -> Iterator[Any]:
        for number, batch in enumerate(whole(self)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(View, "__iter__", until_the_third)
    assert analyze(*words) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert {row["images"] for row in rows(tmp_path / "out")} == {150}
    monkeypatch.setattr(View, "__iter__", whole)
    assert analyze(*words) == 0
    assert analyze(*words[:-1], tmp_path / "fresh") == 0
    assert rows(tmp_path / "out") == rows(tmp_path / "fresh")


def test_what_is_done_is_not_measured_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the second of two analyses: the first is answered from its ledger."""
    words = (run, "--draws", 1, "--batch-size", 150, "--joint", "all-but-first", "--out", tmp_path / "out")
    whole, joint = View.__iter__, analysis.joint_robustness

    def stopped(*given: Any, **settings: Any) -> Any:
        monkeypatch.setattr(View, "__iter__", until_the_second)
        return joint(*given, **settings)

    def until_the_second(self: View) -> Iterator[Any]:
        yield next(whole(self))
        raise KeyboardInterrupt

    monkeypatch.setattr(analysis, "joint_robustness", stopped)
    assert analyze(*words) == 130
    assert (tmp_path / "out" / "robustness.ledger").is_file()
    monkeypatch.undo()
    measured = []
    measure = Classification.measure
    monkeypatch.setattr(Classification, "measure", lambda *given: (measured.append(1), measure(*given))[1])
    assert analyze(*words) == 0
    assert len(measured) == 2 * 4  # two batches: untouched, rerand, 0 and 1 of the group
    assert not list((tmp_path / "out").glob("*.ledger*"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nosuchnet", "--data", "digits"), "has no model 'nosuchnet'"),
        (("digits_convnet",), "which images? Name a data set by --data"),
        (("digits_convnet", "--data", "nosuch"), "nosuch"),
        (("digits_convnet", "--data", "digits", "--units", "cell"), "layer, block, stage"),
        (("digits_convnet", "--data", "digits", "--joint", "nosuch"), "name units, patterns"),
        (("digits_convnet", "--data", "digits", "--memory", "7X"), "memory is '7X'"),
        (("digits_convnet", "--data", "digits", "--method", "fast"), "single_pass, naive"),
        (("digits_convnet", "--data", "digits", "--stop", "2"), "confidence of a verdict"),
        (("digits_convnet", "--data", "digits", "--checkpoints", "nosuch.pt"), "nosuch.pt"),
        (("digits_convnet", "--data", "digits", "--draws", "0"), "there is nothing to do"),
        (("RUN", "--pretrained"), "a run with weights of its own"),
    ],
)
def test_errors_in_words(
    words: tuple[str, ...], expected: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run) if word == "RUN" else word for word in words]
    assert analyze(*given, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_view_has_every_image_once_and_in_parts(run: Path) -> None:
    viewed = view_model(str(run))
    view = view_images(viewed, None, batch_size=64, shuffle=3)
    plain = view_images(viewed, None, batch_size=64)
    targets = torch.cat([batch[1] for batch in view])
    assert len(view) == 8 and len(targets) == 450
    assert not torch.equal(targets, torch.cat([batch[1] for batch in plain]))
    assert torch.equal(targets.sort().values, torch.cat([batch[1] for batch in plain]).sort().values)
    shared = [batch[1] for pair in zip(view.part(0, 2), view.part(1, 2), strict=True) for batch in pair]
    assert torch.equal(torch.cat(shared), targets)
    assert sum(len(batch[1]) for batch in view_images(viewed, None, training=100)) == 100


def test_from_python_as_on_the_command_line(run: Path, tmp_path: Path) -> None:
    assert analyze(run, "--draws", 1, "--out", tmp_path / "out") == 0
    viewed = view_model(str(run))
    result = analysis.robustness(viewed.model, view_images(viewed, None, shuffle=0), checkpoints=viewed.trajectory)
    assert result.rows == rows(tmp_path / "out")
