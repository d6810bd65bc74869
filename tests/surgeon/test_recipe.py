"""Recipes: every form that stands for one, every wrong value named with its key path, all problems at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import surgeon
from surgeon import Recipe, Select, Step
from surgeon.op import AbstractOp, Decision, Refused
from surgeon.recipe import shipped_recipes
from surgeon.settings import allowed, misfit, read
from surgeon.site import Kind, Site
from surgeon.tracing import Trace
from tests.contracts import Snapshot
from tests.zoo import PlainNet

SPD = surgeon.get_op("spd")
MINIMAL = [{"spd": {"kernel": "minimal"}}]


@pytest.mark.parametrize(
    "given",
    [
        "spd",
        SPD(),
        Step(SPD()),
        ["spd"],
        (SPD(),),
        {"spd": None},
        {"spd": {}},
        {"spd": {}, "select": None},
        {"spd": {}, "select": {}},
        [{"spd": {"order": "spd-conv"}}],
        {"surgery": ["spd"], "train": {"epochs": 2}},
        Recipe((Step(SPD()),)),
        Recipe([Step(SPD())]),
    ],
    ids=str,
)
def test_every_form_of_a_recipe(given: Any) -> None:
    assert Recipe.parse(given) == Recipe((Step(SPD(), Select()),))


def test_name_and_keep_originals_are_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"name": "mine", "keep_originals": False, "surgery": MINIMAL}))
    for given in (file, str(file)):
        recipe = Recipe.parse(given)
        assert (recipe.name, recipe.keep_originals, recipe.to_list()) == ("mine", False, MINIMAL)
    model = surgeon.apply(PlainNet(), file, 32)
    with pytest.raises(surgeon.RefusedError, match="originals were not kept"):
        surgeon.undo(model)


def test_a_recipe_survives_its_list() -> None:
    recipe = Recipe.parse([{"spd": {"seed": 3, "kernel": 5}, "select": {"last": "31%", "kernel": [3, 1]}}, "spd"])
    assert Recipe.parse(recipe.to_list()) == recipe
    assert Recipe.parse(yaml.safe_load(yaml.safe_dump(recipe.to_list()))) == recipe


def test_shipped_recipes_are_found_by_name() -> None:
    assert {"resnet18_spd", "resnet50_spd"} <= set(shipped_recipes())
    assert Recipe.parse("resnet18_spd").steps


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "the recipe has no step; give at least one op, such as 'spd'"),
        ({"surgery": []}, "the recipe has no step"),
        (5, r"\[0\]: is 5; a step is an op's name, or a mapping"),
        ([None], r"\[0\]: is None; a step is an op's name"),
        ({}, r"\[0\]: names 0 ops \(none\); a step has exactly one"),
        ([{"spd": {}, "gap": {}}], r"\[0\]: names 2 ops \(spd, gap\); a step has exactly one"),
        (["sdp"], r"\[0\]\.sdp: unknown op 'sdp'; did you mean 'spd'\? \(allowed: .*spd"),
        ([{"spd": 5}], r"\[0\]\.spd: is 5; it must be a mapping of settings"),
        ([{"spd": []}], r"\[0\]\.spd: is \[\]; it must be a mapping of settings"),
        ([{"spd": {}, "select": 0}], r"\[0\]\.select: is 0; it must be a mapping of settings"),
        ([{"spd": {"odrer": 1}}], r"\[0\]\.spd\.odrer: unknown key 'odrer'; did you mean 'order'\?"),
        ([{"spd": {5: 1}}], r"\[0\]\.spd\.5: unknown key '5'"),
        ({"surgery": ["spd"], "keep_originals": "no"}, "keep_originals: is 'no'; it is true or false"),
        ({"surgery": ["spd"], "name": 4}, "name: is 4; it is a text"),
        (
            "nothing.yaml",
            r"there is no recipe file nothing\.yaml; check the path, or name a shipped one: .*resnet18_spd",
        ),
        ("resnet18_sdp", "unknown op or recipe 'resnet18_sdp'; did you mean 'resnet18_spd'"),
    ],
)
def test_what_is_no_recipe(given: Any, words: str) -> None:
    with pytest.raises(surgeon.RecipeError, match=words):
        Recipe.parse(given)


def test_steps_and_recipes_made_in_python_are_checked_too() -> None:
    for make, words in (
        (lambda: Step("spd"), "op is 'spd'; it is of class AbstractOp"),
        (lambda: Step(SPD(), {"last": 1}), "select is {'last': 1}; it is of class Select"),
        (lambda: Recipe(("spd",)), r"steps is \('spd',\); it is a list \(each of class Step\)"),
        (lambda: Recipe(()), "the recipe has no step"),
        (lambda: Recipe((Step(SPD()),), keep_originals=1), "keep_originals is 1; it is true or false"),
    ):
        with pytest.raises(surgeon.RecipeError, match=words):
            make()


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    wrong = {"spd": {"kernel": 1.5, "odrer": "x", "seed": "x"}, "select": {"last": 0.31, "unit": ["a"], "lats": 1}}
    file.write_text(yaml.safe_dump({"surgery": [wrong, "spd", "sdp"], "keep_originals": "no"}))
    with pytest.raises(surgeon.RecipeError) as error:
        Recipe.parse(file)
    keys = ["spd.odrer", "spd.kernel", "spd.seed", "select.lats", "select.last", "select.unit"]
    assert [key for key, _ in error.value.problems] == [
        "keep_originals",
        *(f"surgery[0].{key}" for key in keys),
        "surgery[2].sdp",
    ]
    assert all(line.startswith(f"{file}: ") for line in str(error.value).splitlines())


@pytest.mark.parametrize(
    ("text", "words"),
    [("surgery: [", "cannot be read as YAML"), ("- spd", "has no 'surgery:' part"), ("", "has no 'surgery:' part")],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(surgeon.RecipeError, match=words):
        Recipe.parse(file)


# settings of ops

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"order": None}, "is None; it is 'spd-conv' or 'conv-spd'"),
    ({"order": "spd"}, "is 'spd'; it is 'spd-conv' or 'conv-spd'"),
    ({"order": ["spd-conv"]}, "is ['spd-conv']; it is 'spd-conv'"),
    ({"kernel": 1.5}, "is 1.5; it is 'same', 'minimal' or a whole number"),
    ({"kernel": True}, "is True; it is 'same', 'minimal' or a whole number"),
    ({"kernel": 0}, "is 0; it is 'same', 'minimal' or a positive number"),
    ({"kernel": "3"}, "is '3'; it is 'same', 'minimal'"),
    ({"init": 1}, "is 1; it is 'exact' or 'fresh'"),
    ({"pool": True}, "is True; it is 'spd', 'keep' or 'remove'"),
    ({"pool_conv": "dense"}, "is 'dense'; it is 'depthwise' or 'full'"),
    ({"before": ""}, "is ''; it is 'consumer' or 'norm'"),
    ({"seed": "x"}, "is 'x'; it is a whole number"),
    ({"seed": 1.0}, "is 1.0; it is a whole number"),
    ({"seed": None}, "is None; it is a whole number"),
    ({"seed": 2**62}, "it is less than 2**62"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG, ids=[str(settings) for settings, _ in WRONG])
def test_wrong_settings_name_the_setting_and_what_is_allowed(settings: dict[str, Any], words: str) -> None:
    (name,) = settings
    with pytest.raises(surgeon.RecipeError) as python:
        SPD(**settings)
    assert str(python.value).startswith(f"spd: {name} is ") and words in str(python.value)
    model = PlainNet()
    snapshot = Snapshot.of(model)
    with pytest.raises(surgeon.RecipeError) as data:
        surgeon.apply(model, {"spd": settings}, 32)
    assert str(data.value).startswith(f"[0].spd.{name}: is ") and words in str(data.value)
    assert snapshot.differences(Snapshot.of(model)) == []


@dataclass(frozen=True)
class Typed(AbstractOp):
    """An op with a field of every type, not registered."""

    name: ClassVar[str] = "typed"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"strided_conv"})
    exact: ClassVar[bool] = True  # type: ignore[misc]
    share: float = 0.5
    depths: tuple[int, ...] = ()
    mode: Literal["a", 2] | None = None
    again: bool = False

    def decide(self, site: Site, recorded: Trace) -> Decision:
        return Refused("never")


def test_the_settings_of_every_op_are_read_by_their_types() -> None:
    op = Typed(share=1, depths=[np.int64(3), 4], mode=2, again=True)
    assert (op.share, op.depths, op.mode) == (1.0, (3, 4), 2)
    assert type(op.share) is float and [type(n) for n in op.depths] == [int, int]
    assert op.settings() == {"share": 1.0, "depths": [3, 4], "mode": 2, "again": True}
    with pytest.raises(surgeon.RecipeError) as error:
        Typed(share="1", depths=[1, True], mode=2.0, again=1)
    assert [key for key, _ in error.value.problems] == ["share", "depths", "mode", "again"]


@pytest.mark.parametrize("value", [float("nan"), True, "1", None, [1.0], 1j])
def test_what_is_no_number(value: Any) -> None:
    assert misfit(value, float) == f"is {value!r}; it is a number"
    assert misfit(1.5, float) is None and read(np.float32(0.5), float) == 0.5


def test_types_in_words() -> None:
    assert (
        allowed(tuple[str, ...] | Literal["a", 2] | bool | None)
        == "a list (each a text), 'a', 2, true or false or null"
    )


# a kernel that cannot hold the old taps

SIZES = [(3, 2, 1, 2), (7, 2, 3, 4), (5, 4, 2, 2), (1, 2, 0, 1)]


@pytest.mark.parametrize(("kernel", "stride", "padding", "least"), SIZES)
def test_a_kernel_in_blocks_is_exact_or_refused(kernel: int, stride: int, padding: int, least: int) -> None:
    x = torch.randn(2, 3, 21, 24, dtype=torch.float64)
    conv = nn.Sequential(nn.Conv2d(3, 4, kernel, stride, padding)).double()
    expected = conv(x)
    if least > 1:
        words = rf"'0' its taps lie in {least} blocks, more than kernel={least - 1}; use kernel={least} or init='fresh'"
        with pytest.raises(surgeon.RefusedError, match=words):
            surgeon.apply(conv, {"spd": {"kernel": least - 1}}, (21, 24))
        assert torch.equal(conv(x), expected)
    for size in (least, least + 1):
        surgeon.apply(conv, {"spd": {"kernel": size}}, (21, 24))
        assert conv[0].weight.shape[2:] == (size, size)
        torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)
        surgeon.undo(conv)


def test_a_kernel_too_small_for_some_sites_leaves_the_others_to_be_rewritten() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.Conv2d(4, 4, 3, 2, 1))
    changes = surgeon.plan(net, {"spd": {"kernel": 2}}, 32).changes
    assert [(c.path, c.status) for c in changes] == [("0", "refused"), ("1", "rewritten")]
    changes = surgeon.plan(net, {"spd": {"kernel": 1, "init": "fresh"}}, 32).changes
    assert [c.status for c in changes] == ["rewritten", "rewritten"]
