"""Recipe files: every mistake is found, all at once, each with its key path and a hint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import recipes
from recipes.claiming import differences, dump
from recipes.loading import with_device
from surgeon import RecipeError

GOOD: dict[str, Any] = {
    "name": "good",
    "model": {"timm": "resnet18"},
    "surgery": [{"spd": {"order": "spd-conv"}, "select": {"exclude": "*.downsample.*"}}],
    "data": {"dataset": "digits", "size": 16, "canvas": 32},
    "train": {"epochs": 3, "lr": "1e-3", "keep_epochs": [0, 1, 3]},
}


def problems(**changes: Any) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        recipes.parse({**GOOD, **changes}, "file.yaml")
    found = dict(caught.value.problems)  # type: ignore[attr-defined]
    lines = str(caught.value).splitlines()
    assert lines[0] == f"file.yaml: {len(found)} problem{'s' * (len(found) > 1)}"
    assert len(lines) == len(found) + 1  # one line each
    return found


def test_a_good_recipe_is_read() -> None:
    recipe = recipes.parse(GOOD)
    assert recipe.train is not None and recipe.train.lr == 1e-3  # YAML reads 1e-3 as a text
    assert recipe.train.keep_epochs == (0, 1, 3)
    assert recipe.data is not None and recipe.data.dataset == "digits"


def test_all_problems_come_at_once_with_their_paths() -> None:
    found = problems(
        modle={},
        model={"timm": "resnet18", "pretraind": True},
        surgery=[{"spd": {"ordr": "spd-conv"}, "select": {"min_dept": 0.5}}],
        data={"dataset": "digits", "canvs": 3},
        train={"epohcs": 3, "epochs": 0, "opt": "sdg", "sched": "cosin", "lr": "fast", "keep_epochs": [-1]},
        analysis=[{"robustnes": {}}],
    )
    assert set(found) == {
        "modle",
        "model.pretraind",
        "surgery[0].spd.ordr",
        "surgery[0].select.min_dept",
        "data.canvs",
        "train.epohcs",
        "train.epochs",
        "train.opt",
        "train.sched",
        "train.lr",
        "train.keep_epochs[0]",
        "analysis[0]",
    }
    hints = {
        "modle": "model",
        "model.pretraind": "pretrained",
        "surgery[0].spd.ordr": "order",
        "surgery[0].select.min_dept": "min_depth",
        "data.canvs": "canvas",
        "train.epohcs": "epochs",
        "train.opt": "sgd",
        "train.sched": "cosine",
        "analysis[0]": "robustness",
    }
    for path, hint in hints.items():
        assert f"did you mean '{hint}'?" in found[path], path
    assert "allowed: " in found["train.epohcs"] and "batch_size" in found["train.epohcs"]
    assert "(found 0)" in found["train.epochs"]


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"name": "a b"}, "name", "letter or digit"),
        ({"model": {}}, "model", "exactly one of timm, folder, yolo; named here: none"),
        ({"model": {"timm": "a", "folder": "b"}}, "model", "named here: timm, folder"),
        ({"model": "resnet18"}, "model", "must be a mapping"),
        ({"data": {"dataset": "digits", "canvas": 8, "size": 9}}, "data", "canvas (8) is smaller"),
        ({"data": {"dataset": "cifar10"}}, "data.dataset", "did you mean 'torch/cifar10'?"),
        ({"data": {"dataset": "folder"}}, "data", "root is required"),
        ({"data": {"dataset": "wds/x"}}, "data", "num_classes is required"),
        ({"data": {"dataset": "torch/cifar10", "size": [1, 2, 3]}}, "data.size", "[height, width]"),
        ({"data": {"dataset": "torch/cifar10", "canvas": 8}}, "data.canvas", "unknown key"),
        ({"data": None}, "", "data is required"),
        ({"train": {"epochs": 2, "warmup_epochs": 2}}, "train", "warmup_epochs (2) must be less than epochs (2)"),
        ({"train": {"epochs": 2, "keep_epochs": [3]}}, "train", "training ends with epoch 2"),
        ({"train": {"lr": 0.1, "min_lr": 0.2}}, "train", "min_lr (0.2) must not exceed lr (0.1)"),
        ({"train": {"batch_size": 3, "mixup": 0.1}}, "train", "batch_size (3) must be even"),
        ({"train": {"device": "gpu"}}, "train.device", "must be auto, cpu, cuda"),
        ({"train": {"smoothing": 1.0}}, "train.smoothing", "less than 1"),
        ({"train": {"sched": "rsqrt", "warmup_epochs": 0}}, "train", "square root of warmup_epochs"),
        ({"compare": {"pretrain": {}}}, "", "a run writes its own file or folder of this name"),
        ({"compare": {"Summary.txt": {}}}, "", "compare.Summary.txt: a run writes its own file"),
        ({"model": {"folder": "a", "pretrained": True}}, "model", "weights and arguments; take out pretrained"),
        ({"model": {"timm": "a", "pretrained": True, "checkpoint": "b"}}, "model", "both give the weights"),
        ({"model": {"timm": "a", "args": {"checkpoint_path": "b"}}}, "model", "name the file as checkpoint"),
        (
            {"data": {"dataset": "torch/cifar10", "rotation": 9, "reprob": 0.2, "no_aug": True}},
            "data",
            "small-image pipeline, which has no no_aug, reprob",
        ),
        ({"compare": {"a": {"train": {"epoch": 3}}}}, "compare.a.train.epoch", "did you mean 'epochs'?"),
        ({"compare": {"a": {"surgery": ["sdp"]}}}, "compare.a.surgery[0].sdp", "did you mean 'spd'?"),
        ({"compare": {"a": {"modle": 1}}}, "compare.a.modle", "unknown key"),
    ],
)
def test_one_problem(changes: dict[str, Any], path: str, words: str) -> None:
    found = problems(**changes)
    assert list(found) == [path]
    assert words in found[path]


def test_yaml_errors_name_the_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\nmodel: {timm: resnet18\ntrain: 3\n")
    with pytest.raises(RecipeError, match=r"broken.yaml: line 3, column 6: not valid YAML"):
        recipes.load(broken)
    broken.write_text("name: x\nmodel: {timm: resnet18}\nname: y\n")
    with pytest.raises(RecipeError, match=r"broken.yaml: line 3: key 'name' is already given in line 1"):
        recipes.load(broken)
    broken.write_text("just words")
    with pytest.raises(RecipeError, match="a recipe is a mapping of sections"):
        recipes.load(broken)
    broken.write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(RecipeError, match="not a YAML text"):
        recipes.load(broken)


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(RecipeError, match=r"no file 'digits_spt'.*did you mean 'digits_spd'\?.*shipped: "):
        recipes.load("digits_spt")


def test_variants_override_surgery_and_keys_of_train() -> None:
    recipe = recipes.parse({**GOOD, "compare": {"original": {"surgery": []}, "slow": {"train": {"lr": 0.0001}}}})
    variants = recipe.variants()
    assert list(variants) == ["original", "slow"]
    assert variants["original"].surgery == [] and variants["slow"].surgery == GOOD["surgery"]
    original, slow = variants["original"].train, variants["slow"].train
    assert original is not None and slow is not None
    assert (original.lr, slow.lr, slow.epochs) == (1e-3, 1e-4, 3)
    assert list(recipes.parse(GOOD).variants()) == ["good"]


def test_dump_reads_back_the_same_recipe_and_differences_are_named(tmp_path: Path) -> None:
    recipe = recipes.parse({**GOOD, "compare": {"a": {"train": {"lr": 0.5}}}})
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    again = recipes.load(tmp_path / "recipe.yaml")
    assert again == recipe and differences(again, recipe) == []
    other = recipes.parse({**GOOD, "train": {"epochs": 4, "device": "cpu"}, "compare": {"a": {"train": {"lr": 0.5}}}})
    assert differences(recipe, other)[0] == "train.epochs: 3 in the folder, 4 in the recipe"
    assert not any("device" in line for line in differences(recipe, other))


def test_quick_cuts_epochs_and_images() -> None:
    quick = recipes.parse({**GOOD, "compare": {"a": {"train": {"epochs": 30}}}}).quick()
    assert quick.train is not None and quick.data is not None
    assert (quick.train.epochs, quick.train.keep_epochs, quick.data.max_val) == (2, (0, 1), 512)
    variant = quick.variants()["a"].train
    assert variant is not None and variant.epochs == 2


def test_device_is_exchanged_or_refused() -> None:
    recipe = with_device(recipes.parse(GOOD), "cuda:1")
    assert recipe.train is not None and recipe.train.device == "cuda:1"
    own = with_device(recipes.parse({**GOOD, "compare": {"a": {"train": {"device": "mps"}}}}), "cpu").variants()["a"]
    assert own.train is not None and own.train.device == "cpu"
    with pytest.raises(RecipeError, match=r"train\.device: must be auto"):
        with_device(recipe, "tpu")


@pytest.mark.parametrize("sched", ["rsqrt", "wsd"])
def test_quick_takes_schedules_with_phases(sched: str) -> None:
    train = {"epochs": 10, "sched": sched, "warmup_epochs": 2, "decay_epochs": 3}
    quick = recipes.parse({**GOOD, "train": train}).quick()
    assert quick.train is not None and (quick.train.sched, quick.train.epochs) == ("cosine", 2)
