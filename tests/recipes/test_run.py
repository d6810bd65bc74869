"""`run`: the folder of a recipe holds what it should, can be loaded, and is continued or refused."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

import recipes
import surgeon
from recipes import running
from recipes.build import build
from recipes.data import batch, open_source
from recipes.evaluating import Score, compared, evaluate
from recipes.opening import open_model, validation_images
from recipes.schema import RecipeFile
from surgeon import LoadError, RecipeError

CONTENT: dict[str, Any] = {
    "name": "tiny",
    "model": {"timm": "digits_convnet"},
    "data": {"dataset": "digits", "size": 8, "canvas": 12, "max_train": 256, "max_val": 128},
    "pretrain": {"epochs": 2, "batch_size": 32, "opt": "adamw", "lr": 0.003, "device": "cpu"},
    "surgery": [{"spd": {}}],
    "train": {"epochs": 2, "batch_size": 32, "lr": 0.02, "device": "cpu", "model_ema": True},
    "compare": {"original": {"surgery": []}, "spd": {}, "spd-slow": {"train": {"lr": 0.001}}},
}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, running.Run, str]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder, console = tmp_path_factory.mktemp("run") / "tiny", Console(record=True, width=300, file=io.StringIO())
    result = recipes.run(CONTENT, folder, console=console)
    torch.set_num_threads(threads)
    return folder, result, console.export_text()


def test_the_folder_holds_everything(finished: tuple[Path, running.Run, str]) -> None:
    folder, result, _ = finished
    have = files(folder)
    assert {"recipe.yaml", "summary.json", "summary.txt", "curves.png", "pretrain/metrics.jsonl"} <= have
    for name in CONTENT["compare"]:
        assert {f"{name}/{file}" for file in ("record.json", "record.txt", "metrics.jsonl", "recipe.yaml")} <= have
        assert (folder / name / "weights").is_dir() and (folder / name / "weights_ema").is_dir()
    assert "spd/verification.txt" in have and "original/verification.txt" not in have
    assert not [name for name in have if name.endswith(".part")]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rows"] == result.rows and set(summary["versions"]) == {"torch", "timm", "surgeon"}
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 1000


def test_variants_start_alike_and_surgery_changes_nothing_before_training(
    finished: tuple[Path, running.Run, str],
) -> None:
    folder, result, said = finished
    rows = {row["variant"]: row for row in result.rows}
    assert rows["original"]["accuracy_before"] == rows["spd"]["accuracy_before"] == rows["spd-slow"]["accuracy_before"]
    assert rows["spd"]["params"] > rows["original"]["params"] and rows["spd"]["macs"] > rows["original"]["macs"]
    assert (rows["original"]["surgery"], rows["spd"]["surgery"]) == ("none", "spd")
    record = json.loads((folder / "spd" / "record.json").read_text())
    assert rows["original"]["macs"] == record["macs"][0] and rows["spd"]["macs"] == record["macs"][1]
    verified = (folder / "spd" / "verification.txt").read_text()
    assert verified.startswith("same function: over 128 images") and "top-1 agreement 100.00%" in verified
    assert "the table of changes" in said and "Everything is in" in said
    first = {name: json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[0]) for name in rows}
    assert first["original"]["val_accuracy"] == first["spd"]["val_accuracy"] == rows["spd"]["accuracy_before"]


def test_saved_weights_reproduce_the_summary(finished: tuple[Path, running.Run, str]) -> None:
    folder, result, _ = finished
    recipe = recipes.parse(CONTENT)
    assert recipe.data is not None
    data = batch(open_source(recipe.data), None, batch_size=32)
    from recipes.data import ALONE

    for row in result.rows:
        model = surgeon.load(folder / row["variant"] / "weights")
        assert evaluate(model, data.val, ALONE).correct == row["correct"]
        assert row["low"] < row["accuracy"] < row["high"]
    pretrained = surgeon.load(folder / "pretrain" / "weights")
    assert evaluate(pretrained, data.val, ALONE).accuracy == result.rows[0]["accuracy_before"]


def test_run_again_repeats_nothing_and_other_recipes_are_refused(
    finished: tuple[Path, running.Run, str], quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result, _ = finished
    monkeypatch.setattr("recipes.learner.Learner.train_epoch", None)  # nothing may train
    assert recipes.run(CONTENT, folder, console=quiet).rows == result.rows
    changed = copy.deepcopy(CONTENT)
    changed["compare"]["spd"] = {"train": {"lr": 0.3}}
    with pytest.raises(RecipeError, match=r"compare.spd.train.lr: nothing in the folder, 0.3 in the recipe"):
        recipes.run(changed, folder, console=quiet)


def test_interrupted_in_a_variant_and_continued(
    finished: tuple[Path, running.Run, str], quiet: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, through, _ = finished
    train, calls = running.finetune, []

    def stopping(model: Any, recipe: RecipeFile, **rest: Any) -> Any:
        calls.append(recipe.name)
        if recipe.name == "tiny.spd":
            raise KeyboardInterrupt
        return train(model, recipe, **rest)

    monkeypatch.setattr(running, "finetune", stopping)
    with pytest.raises(KeyboardInterrupt):
        recipes.run(CONTENT, tmp_path, console=quiet)
    assert calls == ["tiny.pretrain", "tiny.original", "tiny.spd"]
    monkeypatch.setattr(running, "finetune", train)
    assert recipes.run(CONTENT, tmp_path, console=quiet).rows == through.rows
    recipes.run({**CONTENT, "compare": {}, "pretrain": None}, tmp_path, resume=False, console=quiet)
    assert not (tmp_path / "pretrain").exists() and (tmp_path / "weights").is_dir()


def test_a_recipe_may_only_operate(quiet: Console, tmp_path: Path) -> None:
    content = {"name": "plain", "model": {"timm": "test_resnet"}, "surgery": ["spd"]}
    result = recipes.run(content, tmp_path, console=quiet)
    assert result.rows[0]["epochs"] == 0 and "accuracy" not in result.rows[0]
    assert surgeon.record(surgeon.load(tmp_path / "weights")).count("rewritten") > 0
    assert "summary.txt" in files(tmp_path) and "curves.png" not in files(tmp_path)
    again = {"name": "again", "model": {"folder": str(tmp_path / "weights")}, "data": {"dataset": "digits", "size": 64}}
    with pytest.raises(LoadError):
        recipes.run({**again, "model": {"folder": str(tmp_path / "nothing")}}, tmp_path / "b", console=quiet)


def test_default_folder(quiet: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes.run({"name": "here", "model": {"timm": "test_resnet"}}, console=quiet)
    assert (tmp_path / "runs" / "here" / "weights").is_dir()


def test_models_follow_data_seed_and_arguments() -> None:
    recipe = recipes.parse({"name": "x", "model": {"timm": "test_resnet", "drop_rate": 0.3}})
    first, again, other = build(recipe, 0, 7, 1), build(recipe, 0, 7, 1), build(recipe, 1, 7, 1)
    assert first.num_classes == 7 and first.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    pairs = [zip(first.parameters(), model.parameters(), strict=True) for model in (again, other)]
    assert all(torch.equal(a, b) for a, b in pairs[0]) and not all(torch.equal(a, b) for a, b in pairs[1])
    named = recipes.parse({"name": "x", "model": {"timm": "test_resnet", "num_classes": 3}})
    assert build(named, 0, 7).num_classes == 3
    for section, words in (
        ({"timm": "resnet5"}, r"no model 'resnet5'; did you mean 'resnet50'\?"),
        ({"timm": "test_resnet", "args": {"depht": 3}}, "timm cannot build 'test_resnet', arguments .*depht"),
    ):
        with pytest.raises(RecipeError, match=words):
            build(recipes.parse({"name": "x", "model": section}))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_your_own_checkpoint(suffix: str, tmp_path: Path) -> None:
    trained = build(recipes.parse({"name": "x", "model": {"timm": "test_resnet", "num_classes": 4}}), seed=3)
    file = tmp_path / f"mine.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}, "epoch": 3}, file)
    else:
        save_file(trained.state_dict(), file)
    section = {"timm": "test_resnet", "num_classes": 4, "checkpoint": str(file)}
    model = build(recipes.parse({"name": "x", "model": section}))
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in model.state_dict().items())
    named = open_model("test_resnet", checkpoint=str(file), num_classes=4)
    assert torch.equal(named.fc.weight, trained.fc.weight)
    with pytest.raises(LoadError, match=r"2 of 92 tensors do not fit: fc\.weight \(4, \d+\) in the file, \(7, \d+\)"):
        build(recipes.parse({"name": "x", "model": {**section, "num_classes": 7}}))


def test_checkpoints_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save(build(recipes.parse({"name": "x", "model": {"timm": "test_resnet"}})), tmp_path / "module.pth")
    for name, words in (
        ("none.pth", "there is no such file"),
        ("text.pth", "holds no state dict that can be read without running code"),
        ("module.pth", "holds no state dict that can be read without running code"),
    ):
        section = {"timm": "test_resnet", "checkpoint": str(tmp_path / name)}
        with pytest.raises(LoadError, match=words):
            build(recipes.parse({"name": "x", "model": section}))


def test_what_the_command_line_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'digits_convnet"):
        open_model("digits_convent")
    with pytest.raises(RecipeError, match="no folder 'some/where'"):
        open_model("some/where")
    (tmp_path / "weights.pth").write_text("")
    with pytest.raises(RecipeError, match="a file of weights, perhaps; name its model, and it as --checkpoint"):
        open_model(str(tmp_path / "weights.pth"))
    (tmp_path / "own.yaml").write_text("name: own\nmodel: {timm: test_resnet, num_classes: 3}\n")
    assert open_model(str(tmp_path / "own.yaml"), weights=False).num_classes == 3
    surgeon.save(surgeon.create_model("test_resnet"), tmp_path / "saved")
    with pytest.raises(RecipeError, match="says itself where its weights come from; take out pretrained"):
        open_model(str(tmp_path / "saved"), pretrained=True)
    model = open_model("digits_convnet")
    assert len(validation_images("digits", model)) == len(validation_images("digits_spd", model)) == 8
    with pytest.raises(RecipeError, match=r"--data: 1 problem\n  data.dataset: unknown data set 'digit'"):
        validation_images("digit", model)


def test_scores() -> None:
    sure, unsure = Score(50, 100, 0.0), Score(5, 10, 0.0)
    assert sure.accuracy == unsure.accuracy == 0.5
    assert sure.interval == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson's, by the textbook
    assert unsure.interval[0] < sure.interval[0] and str(sure) == "50.00% (40.4% to 59.6%)"
    hits = (True,) * 12 + (False,) * 2
    others = (False,) * 12 + (True,) * 2
    p_value, first, second = compared(Score(12, 14, 0, hits), Score(2, 14, 0, others))
    assert (first, second) == (12, 2) and p_value == pytest.approx(0.01294, abs=1e-5)
    assert compared(Score(12, 14, 0, hits), Score(12, 14, 0, hits)) == (1.0, 0, 0)
