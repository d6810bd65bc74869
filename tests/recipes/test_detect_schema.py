"""Recipes of detectors: every mistake at once, with its key path; classifiers' words are named for what they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("ultralytics")

import recipes
from recipes.detect_schema import DetectTrain
from recipes.loading import with_device, with_seed
from recipes.schema import DetectorRecipe, RecipeFile, TrainSection
from surgeon import RecipeError

GOOD: dict[str, Any] = {
    "name": "good",
    "model": {"yolo": "yolo11n.yaml"},
    "surgery": ["spd"],
    "data": {"dataset": "coco8.yaml"},
    "train": {"epochs": 3, "lr0": "1e-3", "mosaic": 0.5},
}


def problems(**changes: Any) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        recipes.parse({**GOOD, **changes}, "file.yaml")
    found = dict(caught.value.problems)  # type: ignore[attr-defined]
    lines = str(caught.value).splitlines()
    assert lines[0] == f"file.yaml: {len(found)} problem{'s' * (len(found) > 1)}"
    assert len(lines) == len(found) + 1  # one line each
    return found


def test_a_good_recipe_is_read_and_what_the_model_is_decides() -> None:
    recipe = recipes.parse(GOOD)
    assert isinstance(recipe, DetectorRecipe) and isinstance(recipe.train, DetectTrain)
    given = recipe.train.arguments()
    assert given["lr0"] == 1e-3 and given["mosaic"] == 0.5 and given["epochs"] == 3  # YAML reads 1e-3 as a text
    assert given["device"] is None and "lrf" not in given  # ultralytics' own defaults
    classifier = recipes.parse({"name": "c", "model": {"timm": "resnet18"}, "data": {"dataset": "digits"}, "train": {}})
    assert type(classifier) is RecipeFile and isinstance(classifier.train, TrainSection)


def test_all_problems_come_at_once_with_their_paths() -> None:
    found = problems(
        modle={},
        model={"yolo": "yolo11n.yaml", "pretraind": True},
        surgery=[{"spd": {"ordr": "spd-conv"}, "select": {"min_dept": 0.5}}],
        data={"dataset": "digits_detection", "image_size": 16, "imagse": 3},
        train={
            **{"epohcs": 3, "epochs": 0, "optimizer": "SDG", "lr0": "fast", "mosaic": 3, "momentum": 2, "imgsz": -1},
            **{"workers": -1, "batch": 0, "batch_size": 8, "lr": 0.1, "data": "x.yaml", "resume": True, "cos_lr": 3},
        },
        analysis=["no_such"],
    )
    hints = {
        "modle": "model",
        "model.pretraind": "pretrained",
        "surgery[0].spd.ordr": "order",
        "surgery[0].select.min_dept": "min_depth",
        "data.imagse": "images",
        "train.epohcs": "epochs",
        "train.optimizer": "sgd",
        "train.batch_size": "batch",
        "train.lr": "lr0",
    }
    for path, hint in hints.items():
        assert f"did you mean '{hint}'?" in found[path], path
    words = {
        "data.image_size": "(found 16)",
        "train.epochs": "'epochs' must be >= 1",
        "train.lr0": "lr0=fast",
        "train.mosaic": "between 0.0 and 1.0",
        "train.momentum": "between 0.0 and 1.0",
        "train.cos_lr": "must be a bool",
        "train.imgsz": "one number of pixels, at least 1 (found -1)",
        "train.workers": "at least 0 (found -1)",
        "train.batch": "a positive whole number",
        "train.data": "the data are named by data:",
        "train.resume": "a run continues by itself",
        "analysis[0]": "unknown analysis",
    }
    for path, text in words.items():
        assert text in found[path], path
    assert set(found) == {*hints, *words}


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"data": {"dataset": "digits"}}, "data.dataset", "did you mean 'digits_detection'?"),
        ({"data": {"dataset": "folder:x"}}, "data.dataset", "no data set for detectors (allowed: a data yaml"),
        (
            {"data": {"dataset": "digits_detection", "object_size": [9, 300]}},
            "data",
            "write smallest <= largest <= 106 (2/3 of image_size)",
        ),
        (
            {"model": {"yolo": "a.yaml", "timm": "b"}},
            "model",
            "name exactly one of timm, folder, yolo; named here: timm",
        ),
        ({"model": {"yolo": "a.yaml", "num_classes": 3}}, "model", "classes come from the data"),
        ({"model": {"timm": "resnet18"}}, "data.dataset", "unknown data set 'coco8.yaml'"),
        ({"train": "x"}, "train", "must be a mapping"),
        ({"data": None}, "", "data is required where there is train"),
        ({"pretrain": {"opt": "sgd"}}, "pretrain.opt", "did you mean 'optimizer'?"),
        ({"compare": {"a": {"train": {"epochs": 0}}}}, "compare.a.train.epochs", "must be >= 1"),
        ({"compare": {"data": {}}}, "compare.data", "a run writes its own file or folder of this name"),
    ],
)
def test_mistakes(changes: dict[str, Any], path: str, words: str) -> None:
    found = problems(**changes)
    if path == "compare.data":
        path, words = "", f"{path}: {words}"
    assert words in found[path]


def test_device_seed_and_trials_in_every_variant() -> None:
    content = {**GOOD, "compare": {"a": {"surgery": []}, "b": {"train": {"lr0": 0.5, "device": "cpu", "seed": 5}}}}
    recipe = with_seed(with_device(recipes.parse(content), "0,1"), 7)
    assert {part.train.device for part in recipe.variants().values()} == {"0,1"}
    assert {part.train.seed for part in recipe.variants().values()} == {7}
    assert [part.train.arguments()["lr0"] for part in recipe.variants().values()] == [1e-3, 0.5]
    quick = recipe.quick()
    assert quick.train.epochs == 2 and quick.train.arguments()["fraction"] == [64, 32] and quick.train.seed == 7
    kept = recipes.parse({**GOOD, "train": {"epochs": 1, "fraction": 0.1}}).quick().train
    assert kept.epochs == 1 and kept.arguments()["fraction"] == 0.1
    digits = recipes.parse({**GOOD, "data": {"dataset": "digits_detection", "images": 10}}).quick().data
    assert digits.images == 10 and digits.val_images == 32


def test_the_recipe_of_the_page_is_one() -> None:
    page = (Path(recipes.__file__).parents[1] / "docs" / "detectors.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    whole = [recipes.parse(block) for block in blocks if "model" in block]
    assert [recipe.name for recipe in whole] == ["mine-spd"] and whole[0].train.arguments()["mosaic"] == 0.5
    assert {"surgery": recipes.load("yolov5n_spd").surgery} in blocks


def test_finetune_refuses_it_in_words() -> None:
    with pytest.raises(RecipeError, match=r"a detector's, and finetune trains classifiers; call yolo.train"):
        recipes.finetune(torch.nn.Identity(), GOOD)
