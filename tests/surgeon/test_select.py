"""Selections: which sites a step takes, what counts as a unit, and that both mean the model before surgery."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon import Select
from surgeon.units import count_of, unit_paths
from tests.contracts import Snapshot
from tests.zoo import PlainNet


def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def located_units(model: nn.Module, size: Any = None) -> list[str]:
    return unit_paths(model, surgeon.locate(model, size))


def rewritten(model: nn.Module, select: Select, size: Any = 64) -> list[str]:
    record = surgeon.plan(model, surgeon.Step(surgeon.get_op("spd")(), select), size)
    return [change.path for change in record.changes if change.status == "rewritten"]


# the papers' counts

PRINTED = {
    "vgg16": (13, {"8%": 1, "30%": 4, "31%": 4, "53%": 7, "54%": 7, "77%": 10, "100%": 13}),
    "resnet50": (16, {"6%": 1, "31%": 5, "56%": 9, "81%": 13, "100%": 16}),
    "resnet152": (50, {"2%": 1, "10%": 5}),
}


@pytest.mark.parametrize("name", PRINTED)
def test_printed_percentages_are_the_papers_numbers_of_layers(name: str) -> None:
    total, shares = PRINTED[name]
    units = located_units(meta(name))
    assert len(units) == total
    assert {share: count_of(share, len(units), "last") for share in shares} == shares


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet50", ["layer4.1", "layer4.2"]),
        ("resnet18", ["layer4.0", "layer4.1"]),
        ("vgg16", ["features.26", "features.28"]),  # not pre_logits.fc1, a 7x7 conv
        ("vgg16_bn", ["features.37", "features.40"]),
        ("vit_tiny_patch16_224", ["blocks.10", "blocks.11"]),
        ("convnext_atto", ["stages.3.blocks.0", "stages.3.blocks.1"]),
    ],
)
def test_units_end_before_the_classifier(name: str, last: list[str]) -> None:
    assert located_units(meta(name))[-2:] == last


def test_units_of_nets_without_blocks_or_convs() -> None:
    convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, 2))
    assert located_units(convs, 32) == ["0", "3"]

    class Pointwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.pool, self.head = nn.Conv2d(3, 4, 1), nn.AvgPool2d(2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.mix(x)).mean((2, 3)))

    assert located_units(Pointwise(), 32) == ["mix", "pool"]


@pytest.mark.parametrize(
    ("share", "total", "count"),
    [("50%", 5, 3), ("50%", 4, 2), ("12.5%", 4, 1), ("30.0%", 15, 5), ("10%", 5, 1), (3, 4, 3), (" 31 %", 16, 5)],
)
def test_shares_round_half_up(share: Any, total: int, count: int) -> None:
    assert count_of(share.replace(" ", "") if isinstance(share, str) else share, total, "last") == count


@pytest.mark.parametrize("share", [0, -1, 9, "1%", "0%"])
def test_a_share_of_no_unit_or_too_many_says_how_many_there_are(share: Any) -> None:
    with pytest.raises(surgeon.RecipeError, match=rf"last='?{share}'? means -?\d+ of the 8 units .* give 1 to 8"):
        rewritten(meta("resnet18"), Select(last=share))
    with pytest.raises(surgeon.RecipeError, match="unit 8 is beyond the 8 units of the model, numbered from 0"):
        rewritten(meta("resnet18"), Select(unit=8))


# which sites

LAYERS = {n: [f"layer{n}.0.conv1", f"layer{n}.0.downsample.0"] for n in (2, 3, 4)}
STEM = ["conv1", "maxpool"]


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({}, [*STEM, *LAYERS[2], *LAYERS[3], *LAYERS[4]]),
        ({"path": "layer4.*"}, LAYERS[4]),
        ({"path": ["conv1", "*3.0.conv1"]}, ["conv1", "layer3.0.conv1"]),
        ({"exclude": "*.downsample.*", "kind": "strided_conv"}, ["conv1", *(LAYERS[n][0] for n in (2, 3, 4))]),
        ({"exclude": ["layer*"], "kind": "strided_pool"}, ["maxpool"]),
        ({"kernel": 7}, ["conv1"]),
        ({"kernel": [1, 1], "min_reduction": 8}, [LAYERS[3][1], LAYERS[4][1]]),
        ({"kernel": np.int64(7)}, ["conv1"]),
        ({"max_depth": 0.2}, STEM),
        ({"min_depth": 0.4, "max_depth": 0.7}, LAYERS[3]),
        ({"last": 2}, LAYERS[4]),
        ({"last": "31%"}, LAYERS[4]),  # 2 of 8
        ({"first": "50%"}, LAYERS[2]),
        ({"first": 5, "last": 5}, LAYERS[3]),  # blocks 3 and 4
        ({"unit": [2, -2]}, [*LAYERS[2], *LAYERS[4]]),
        ({"unit": 4}, LAYERS[3]),
    ],
)
def test_every_field_narrows(fields: dict[str, Any], paths: list[str]) -> None:
    assert rewritten(meta("resnet18"), Select(**fields)) == paths
    as_lists = {"spd": {}, "select": {k: v for k, v in fields.items() if not isinstance(v, np.integer)}}
    if len(as_lists["select"]) == len(fields):
        changes = surgeon.plan(meta("resnet18"), as_lists, 64).changes
        assert [c.path for c in changes if c.status == "rewritten"] == paths


def test_a_selection_survives_its_dict() -> None:
    select = Select(path=["a*", "b"], kernel=[1, 3], last="31%", unit=3, min_depth=0)
    assert select.to_dict() == {"path": ["a*", "b"], "kernel": [1, 3], "last": "31%", "unit": [3]}
    assert Select(**select.to_dict()) == select


# values of the wrong type

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"path": 5}, "path is 5; it is a text or a list (each a text)"),
    ({"path": None}, "path is None; it is a text"),
    ({"path": ["a", 5]}, "path is ['a', 5]; it is a text or a list"),
    ({"exclude": None}, "exclude is None; it is a text"),
    ({"kind": "conv"}, "kind is 'conv'; it is 'strided_conv', 'strided_pool', 'spatial_conv', 'block', 'skip' or null"),
    ({"kind": ["strided_conv"]}, "kind is ['strided_conv']; it is 'strided_conv'"),
    ({"kernel": "3"}, "kernel is '3'; it is a whole number, a list of 2 (each a whole number) or null"),
    ({"kernel": [3]}, "kernel is [3]; it is a whole number, a list of 2"),
    ({"kernel": 3.0}, "kernel is 3.0; it is a whole number"),
    ({"min_depth": "0.5"}, "min_depth is '0.5'; it is a number"),
    ({"min_depth": float("nan")}, "min_depth is nan; it is a number"),
    ({"max_depth": None}, "max_depth is None; it is a number"),
    ({"min_depth": 0.7, "max_depth": 0.2}, "min_depth is 0.7, above max_depth=0.2; swap them"),
    ({"max_depth": 2}, "max_depth is 2.0; it lies between 0 and 1"),
    ({"min_reduction": "4"}, "min_reduction is '4'; it is a whole number"),
    ({"min_reduction": 4.5}, "min_reduction is 4.5; it is a whole number"),
    ({"last": 0.31}, "last is 0.31; it is a whole number, a share such as '31%' or null"),
    ({"last": True}, "last is True; it is a whole number"),
    ({"first": "31"}, "first is '31'; give a count such as 3 or a share such as '31%'"),
    ({"last": "1.2.3%"}, "last is '1.2.3%'; give a count"),
    ({"last": "-31%"}, "last is '-31%'; give a count"),
    ({"last": "%"}, "last is '%'; give a count"),
    ({"last": "101%"}, "last is '101%'; give a count such as 3 or a share such as '31%', at most '100%'"),
    ({"unit": ["a"]}, "unit is ['a']; it is a list (each a whole number), a whole number or null"),
    ({"unit": True}, "unit is True; it is a list"),
    ({"unit": 1.0}, "unit is 1.0; it is a list"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_a_wrong_value_names_field_value_and_what_is_allowed(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(surgeon.RecipeError) as python:
        Select(**fields)
    assert f"select: {words}" in str(python.value)
    with pytest.raises(surgeon.RecipeError) as data:
        surgeon.Recipe.parse([{"spd": {}, "select": fields}])
    assert [key for key, _ in data.value.problems] == [f"[0].select.{next(iter(fields))}"]
    assert words.split(" ", 1)[1] in str(data.value)


# the model before surgery


def strided(n: int = 4) -> nn.Sequential:
    return nn.Sequential(*[nn.Conv2d(3, 3, 3, 2, 1) for _ in range(n)])


class Functional(nn.Module):
    """Convs and pools called as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(torch.randn(3, 3, 3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(3):
            x = F.conv2d(x, self.kernels[i], stride=2, padding=1)
        return x


CASES: list[tuple[Any, Any, dict[str, Any], list[str]]] = [
    (strided, 64, {"last": 1}, ["3"]),
    (strided, 64, {"first": "50%"}, ["0", "1"]),
    (strided, 64, {"unit": [1, -1]}, ["1", "3"]),
    (strided, 64, {"min_depth": 0.5}, ["2", "3"]),
    (lambda: timm.create_model("resnet18"), 64, {"last": "31%"}, LAYERS[4]),
    (lambda: timm.create_model("test_nfnet"), 64, {"first": 2, "kind": "strided_conv"}, ["stages.1.0.conv2"]),
    (PlainNet, 32, {"last": 1}, ["block.conv1", "block.downsample"]),
    (Functional, 32, {"last": 1}, [":conv2d:2"]),
    (Functional, 32, {"unit": [1]}, [":conv2d:1"]),
]


@pytest.mark.parametrize(("build", "size", "fields", "paths"), CASES, ids=range(len(CASES)))
def test_the_same_selection_again_changes_nothing(build: Any, size: int, fields: Any, paths: list[str]) -> None:
    model, recipe = build(), {"spd": {}, "select": fields}
    surgeon.apply(model, recipe, size)
    assert [c.path for c in surgeon.record(model).changes if c.status == "rewritten"] == paths
    snapshot = Snapshot.of(model, keys=False)
    again = surgeon.plan(model, recipe)
    surgeon.apply(model, recipe)
    assert [(c.path, c.status) for c in again.changes if c.status != "refused"] == [(p, "unchanged") for p in paths]
    assert snapshot.differences(Snapshot.of(model, keys=False)) == []


def test_units_depth_and_reduction_are_those_before_surgery_in_every_later_step() -> None:
    model = timm.create_model("resnet18")
    op = surgeon.get_op("spd")(order="conv-spd", pool="remove")
    before = {s.path: s for s in surgeon.locate(model, 64)}
    surgeon.apply(model, surgeon.Step(op, Select(max_depth=0.2, kind="strided_pool")), 64)
    now = {s.path: s for s in surgeon.locate(model, 64)}
    assert now["layer4.0.conv1"].reduction < before["layer4.0.conv1"].reduction == 16
    assert rewritten(model, Select(min_reduction=16)) == LAYERS[4]
    assert rewritten(model, Select(min_depth=before["layer3.0.conv1"].depth, unit=4)) == LAYERS[3]


def test_steps_of_one_recipe_count_alike() -> None:
    model = strided()
    steps = [{"spd": {}, "select": {"unit": [n]}} for n in (-1, -2)]
    surgeon.apply(model, [*steps, {"spd": {}, "select": {"last": 3}}], 64)
    assert [(c.path, c.status) for c in surgeon.record(model).changes] == [
        ("3", "rewritten"),
        ("2", "rewritten"),
        ("1", "rewritten"),
        ("2", "unchanged"),
        ("3", "unchanged"),
    ]


def test_the_count_survives_saving_and_undoing(tmp_path: Any) -> None:
    model = surgeon.create_model("digits_convnet")
    recipe = {"spd": {}, "select": {"last": 2}}
    surgeon.apply(model, recipe)
    done = [c.path for c in surgeon.record(model).changes]
    loaded = surgeon.load(surgeon.save(model, tmp_path / "saved"))
    assert [(c.path, c.status) for c in surgeon.plan(loaded, recipe).changes] == [(p, "unchanged") for p in done]
    surgeon.undo(model)
    assert [c.path for c in surgeon.plan(model, recipe).changes if c.status == "rewritten"] == done
