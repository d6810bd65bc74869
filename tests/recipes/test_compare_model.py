"""Variants with a model of their own: put together as written, built from the same seed, refused where weights meet."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import recipes
import surgeon
from recipes.build import build
from recipes.claiming import differences, dump
from recipes.loading import with_device, with_seed
from surgeon import RecipeError

CONTENT: dict[str, Any] = {
    "name": "widths",
    "model": {"timm": "fcn", "drop_rate": 0.0, "args": {"depth": 2, "width": 8, "img_size": 8}},
    "data": {"dataset": "digits", "size": 8, "max_train": 128, "max_val": 64},
    "train": {"epochs": 1, "batch_size": 32, "lr": 0.02, "device": "cpu"},
    "compare": {
        "narrow": {},
        "wide": {"model": {"args": {"width": 16}}},
        "convs": {"model": {"timm": "digits_convnet"}, "train": {"lr": 0.01}},
    },
}


def problems(**changes: Any) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        recipes.parse({**copy.deepcopy(CONTENT), **changes})
    return dict(caught.value.problems)  # type: ignore[attr-defined]


def test_keys_are_merged_and_another_model_brings_its_own_arguments() -> None:
    variants = recipes.parse(CONTENT).variants()
    assert variants["narrow"].model == recipes.parse(CONTENT).model
    assert variants["wide"].model.args == {"depth": 2, "width": 16, "img_size": 8}
    assert variants["wide"].model.drop_rate == variants["convs"].model.drop_rate == 0.0
    assert (variants["convs"].model.timm, variants["convs"].model.args) == ("digits_convnet", {})
    saved = recipes.parse({**CONTENT, "compare": {"a": {"model": {"folder": "somewhere"}}}}).variants()["a"].model
    assert (saved.folder, saved.timm, saved.args) == ("somewhere", None, {})


def test_each_variant_is_the_net_a_recipe_of_its_own_builds(quiet: Console, tmp_path: Path) -> None:
    done = recipes.run(CONTENT, tmp_path / "all", console=quiet)
    alone = {**copy.deepcopy(CONTENT), "compare": {}}
    alone["model"]["args"]["width"] = 16
    (row,) = recipes.run(alone, tmp_path / "alone", console=quiet).rows
    rows = {one["variant"]: one for one in done.rows}
    assert {key: rows["wide"][key] for key in ("params", "macs", "accuracy", "accuracy_before", "correct")} == {
        key: row[key] for key in ("params", "macs", "accuracy", "accuracy_before", "correct")
    }
    loaded = {name: surgeon.load(tmp_path / "all" / name / "weights") for name in rows}
    assert [rows[name]["params"] for name in loaded] == [
        sum(p.numel() for p in m.parameters()) for m in loaded.values()
    ]
    assert len({one["params"] for one in done.rows}) == len({one["macs"] for one in done.rows}) == 3
    assert rows["narrow"]["macs"] == 64 * 8 + 8 * 8 + 8 * 10
    assert json.loads((tmp_path / "all" / "convs" / "record.json").read_text())["changes"] == []


def test_surgery_is_planned_and_verified_on_the_variants_own_model(quiet: Console, tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["compare"] = {"fcn": {}, "spd": {"model": {"timm": "digits_convnet"}, "surgery": ["spd"]}}
    recipes.run(content, tmp_path, console=quiet)
    assert (tmp_path / "spd" / "verification.txt").read_text().startswith("same function: ")
    content["compare"]["spd"]["model"] = {"args": {"width": 4}}  # fcn has no strided conv
    with pytest.raises(RecipeError, match="another recipe"):
        recipes.run(content, tmp_path, console=quiet)
    with pytest.raises(surgeon.SurgeonError, match="spd"):
        recipes.run(content, tmp_path / "new", console=quiet)
    assert not (tmp_path / "new").exists()  # refused before anything was written


def test_continued_where_it_was_stopped(quiet: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = recipes.run(CONTENT, tmp_path, console=quiet)
    monkeypatch.setattr("recipes.learner.Learner.train_epoch", None)  # nothing may train
    assert recipes.run(CONTENT, tmp_path, console=quiet).rows == first.rows
    changed = copy.deepcopy(CONTENT)
    changed["compare"]["wide"]["model"]["args"]["width"] = 32
    with pytest.raises(RecipeError, match=r"compare.wide.model.args.width: 16 in the folder, 32 in the recipe"):
        recipes.run(changed, tmp_path, console=quiet)


def test_seeds_devices_trials_and_the_kept_recipe(tmp_path: Path) -> None:
    recipe = recipes.parse(CONTENT)
    for other in (recipe.quick(), with_seed(recipe, 3), with_device(recipe, "cpu")):
        assert [part.model for part in other.variants().values()] == [part.model for part in recipe.variants().values()]
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert recipes.load(tmp_path / "recipe.yaml") == recipe
    wide = [with_seed(recipe, seed).variants()["wide"] for seed in (3, 3, 4)]
    first, again, other_seed = (build(part, part.train.seed, 10, 1).fc.weight for part in wide if part.train)
    assert torch.equal(first, again) and not torch.equal(first, other_seed)


def test_a_comparison_over_seeds(quiet: Console, tmp_path: Path) -> None:
    content = {**CONTENT, "compare": {name: CONTENT["compare"][name] for name in ("narrow", "wide")}}
    rows = recipes.repeat(content, (0, 1), tmp_path, console=quiet).rows
    assert [row["params"] for row in rows] == [64 * 8 + 8 + 8 * 8 + 8 + 90, 64 * 16 + 16 + 16 * 16 + 16 + 170]


def test_folders_of_recipes_without_own_models_go_on() -> None:
    old = recipes.parse({**CONTENT, "compare": {"a": {}, "b": {"surgery": []}}})
    kept = old.model_dump(mode="json")
    for entry in kept["compare"].values():
        del entry["model"]  # as it was written before there was such a key
    assert differences(recipes.parse(kept), old) == []


@pytest.mark.parametrize(
    ("compare", "path", "words"),
    [
        ({"a": {"model": {"argz": {}}}}, "compare.a.model.argz", "did you mean 'args'?"),
        ({"a": {"model": {"drop_rate": 3}}}, "compare.a.model.drop_rate", "less than or equal to 1"),
        ({"a": {"model": {"folder": "x", "pretrained": True}}}, "compare.a.model", "take out pretrained"),
        ({"a": {"model": 3}}, "compare.a.model", "must be a mapping of keys to values"),
        ({"a": {"model": {"yolo": "yolo11n.yaml"}}}, "", "compare.a.model: a detector among classifiers"),
    ],
)
def test_mistakes(compare: dict[str, Any], path: str, words: str) -> None:
    found = problems(compare=compare)
    assert list(found) == [path] and words in found[path]


def test_models_that_share_weights_are_the_same() -> None:
    found = problems(pretrain={"epochs": 1})
    assert "compare.wide.model: variants share the weights that pretrain trains" in found[""]
    shared = {name: {} for name in CONTENT["compare"]}
    assert recipes.parse({**CONTENT, "pretrain": {"epochs": 1}, "compare": shared}).pretrain is not None


def test_detectors_share_theirs() -> None:
    pytest.importorskip("ultralytics")
    content = {"name": "d", "model": {"yolo": "yolo11n.yaml"}, "compare": {"a": {"model": {"yolo": "yolov8n.yaml"}}}}
    with pytest.raises(RecipeError, match=r"compare\.a\.model: the variants of a detector start from one file"):
        recipes.parse(content)
