"""Every shipped recipe: found, described, valid, and its surgery planned on its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import recipes
import surgeon
from recipes.build import build, operate
from recipes.data import batch, open_source
from recipes.data_schema import DigitsData
from recipes.loading import ZOO, purpose, shipped
from recipes.probing import rehearse

FEW = 8  # variants; of more only some are planned by default
HEAD = ("# purpose: ", "# command: surgeon run ", "# paper: ", "# expected: ")


CLASSIFIERS = [name for name, path in shipped().items() if "{yolo: " not in path.read_text(encoding="utf-8")]


def test_all_are_found() -> None:
    files = sorted(ZOO.glob("*.yaml"))
    assert len(files) == len(shipped()) == 29 and len(CLASSIFIERS) == 23  # the others: test_detect_zoo.py
    assert all(path.stem in shipped() for path in files)
    assert sorted(ZOO.rglob("*.yaml")) == sorted([*files, *(ZOO / "models").glob("*.yaml")])


@pytest.mark.parametrize("name", shipped())
def test_head_comment(name: str) -> None:
    lines = shipped()[name].read_text().splitlines()
    for start in HEAD:
        assert any(line.startswith(start) for line in lines), f"{name}.yaml lacks '{start}'"
    assert any(line.split("  ")[0] == f"# command: surgeon run {name}" for line in lines)
    assert 10 < len(purpose(shipped()[name])) < 120


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_dry_run(name: str) -> None:
    plan_variants(name, some=True)


SWEEPS = [name for name in CLASSIFIERS if len(recipes.load(name).compare) > FEW]


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_dry_run_of_every_variant(name: str) -> None:
    plan_variants(name, some=False)


def plan_variants(name: str, some: bool) -> None:
    """Plan the surgery of a recipe's variants; of a sweep over many only some, where that will do."""
    recipe = recipes.load(name)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"pretrained": False})})  # offline
    size, own = None, {}
    if isinstance(recipe.data, DigitsData):
        own = {"num_classes": 10, "in_chans": recipe.data.channels}
        side = recipe.data.canvas or recipe.data.size
        size = (recipe.data.channels, side, side)
        assert open_source(recipe.data).num_classes == 10
    elif recipe.data is not None and recipe.data.size is not None:
        size = (3, *recipe.data.size)
    variants = list(recipe.variants().values())
    for variant in variants[:: len(variants) // 4 if some and len(variants) > FEW else 1]:
        with torch.device("meta"):
            model = build(variant, **own)
        if variant.surgery:
            record = surgeon.plan(model, {"surgery": variant.surgery}, size)
            assert record.count("rewritten") > 0


ON_DIGITS = [name for name in CLASSIFIERS if isinstance(recipes.load(name).data, DigitsData)]
PROBED = [name for name in ON_DIGITS if recipes.load(name).analysis]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBED)
def test_analyses_fit_every_variant(name: str) -> None:
    recipe = recipes.load(name)
    assert isinstance(recipe.data, DigitsData)
    data = batch(open_source(recipe.data), None, batch_size=64)
    for variant in recipe.variants().values():
        model = operate(build(variant, 0, 10, recipe.data.channels), variant, 0, data.input_size)
        before = [parameter.clone() for parameter in model.parameters()]
        rehearse(model, variant, data)
        assert all(map(torch.equal, before, model.parameters()))


def test_purpose_of_a_file_without_comment_is_empty(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n")
    assert purpose(tmp_path / "x.yaml") == ""
