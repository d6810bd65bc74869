"""Groups treated together, and the search for the largest that stays robust."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import analysis
import surgeon
from analysis.grouping import groups_of
from analysis.states import read_states
from surgeon import SurgeonError
from surgeon.errors import AnalysisError

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def layers(depth: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return surgeon.create_model("fcn", depth=depth, width=12, in_chans=1, img_size=4)


@pytest.fixture(scope="module")
def data() -> Batches:
    torch.manual_seed(1)
    return [(torch.rand(32, 1, 4, 4), torch.randint(0, 10, (32,))) for _ in range(4)]


def labelled(model: nn.Module, data: Batches) -> Batches:
    """The same images with the model's own answers as classes: its error is zero."""
    with torch.no_grad():
        return [(images, model.eval()(images).argmax(1)) for images, _ in data]


def names(model: nn.Module, wanted: Any) -> dict[str, list[str]]:
    found = groups_of(analysis.units(model), wanted)
    return {name: [unit.name for unit in group] for name, group in found.items()}


def test_schemes_of_a_residual_network() -> None:
    model = surgeon.create_model("preact_resnet34_plain", width=4)
    found = names(model, ["all-but-first", "all-but-first@1,4", "every-second", "two-of-three"])
    stages = {1: 3, 2: 4, 3: 6, 4: 3}
    every = [f"stage{s}.resblk{k + 1}" for s, n in stages.items() for k in range(n)]
    first = {f"stage{s}.resblk1" for s in stages}
    assert found["all-but-first"] == [name for name in every if name not in first]
    assert found["all-but-first@1,4"] == [f"stage{s}.resblk{k}" for s in (1, 4) for k in (2, 3)]
    assert found["every-second"] == [name for name in every if int(name[-1]) % 2 == 0]
    assert found["two-of-three"] == [name for name in every if int(name[-1]) % 3 != 1]


def test_schemes_of_a_fully_connected_network() -> None:
    found = names(layers(5), ["all-but-first", "every-second", "two-of-three"])
    assert found["all-but-first"] == ["layer2", "layer3", "layer4", "layer5", "final_linear"]
    assert found["every-second"] == ["layer2", "layer4", "final_linear"]
    assert found["two-of-three"] == ["layer2", "layer3", "layer5", "final_linear"]


def test_names_patterns_and_mappings() -> None:
    model = layers()
    assert names(model, "layer[13]") == {"layer[13]": ["layer1", "layer3"]}
    assert names(model, {"mine": ["final_linear", "layer1"]}) == {"mine": ["layer1", "final_linear"]}


@pytest.mark.parametrize("wanted", [[], "nosuch", {"mine": ["layer1", "nosuch"]}, "all-but-first@7"])
def test_groups_that_are_none(wanted: Any) -> None:
    with pytest.raises(AnalysisError, match="name units, patterns such as"):
        groups_of(analysis.units(layers()), wanted)


def test_a_group_is_its_units_exchanged_at_once(data: Batches) -> None:
    model, other = layers(), layers()
    nn.init.normal_(other.layers[1][0].weight)
    nn.init.normal_(other.layers[3][0].weight)
    result = analysis.joint_robustness(model, data, {"two": ["layer2", "layer4"]}, checkpoints={"5": other}, draws=0)
    mixed = layers()
    state = read_states({"5": other}, model)["5"]
    mixed.load_state_dict(
        {**model.state_dict(), **{n: v for n, v in state.items() if n.startswith(("layers.1", "layers.3"))}}
    )
    images, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    with torch.no_grad():
        expected, untouched = ((m.eval()(images).argmax(1) != targets).float().mean().item() for m in (mixed, model))
    row = next(row for row in result.rows if row["treatment"] == "5")
    assert row["error"] == pytest.approx(expected) and expected != untouched
    assert row["units"] == "layer2, layer4" and row["units_treated"] == 2
    assert row["share_of_params"] == pytest.approx(row["params"] / sum(p.numel() for p in model.parameters()))


def test_a_group_of_one_is_that_unit(data: Batches) -> None:
    model = layers()
    single = analysis.robustness(model, data, draws=2)
    joint = analysis.joint_robustness(model, data, "layer2", draws=2)
    pick = next(row for row in single.rows if row["unit"] == "layer2" and row["treatment"] == "rerand")
    same = {key: pick[key] for key in ("error", "loss", "difference", "difference_low_95", "rms_distance")}
    assert same == {key: joint.rows[0][key] for key in same}


def test_both_methods_agree(data: Batches) -> None:
    model = surgeon.create_model("preact_resnet18_plain", width=4, in_chans=1)
    some = [(nn.functional.interpolate(images, 32), targets) for images, targets in data[:1]]
    both = [
        analysis.joint_robustness(model, some, ["all-but-first", "every-second"], method=method)
        for method in ("single_pass", "naive")
    ]
    assert both[0].rows == both[1].rows


def test_the_search_finds_what_does_not_matter(data: Batches) -> None:
    """Two layers whose values another state shares are robust together; the others are not."""
    model = layers()
    for part in (*(layer[0] for layer in model.layers), model.fc):
        nn.init.orthogonal_(part.weight)  # every layer counts
    other = copy.deepcopy(model)
    for part in (other.layers[0][0], other.layers[2][0], other.fc):
        nn.init.orthogonal_(part.weight)
    result = analysis.search_joint(
        model, labelled(model, data), checkpoints={"5": other}, treatment="5", draws=0, tolerance=0.2
    )
    assert set(result.found) == {"layer2", "layer4"}
    chosen = next(row for row in result.rows if row["chosen"])
    assert chosen["difference"] == 0 and chosen["verdict"] == "robust"
    assert result.share == chosen["share_of_params"] > 0
    assert result.rows[0]["units"] == "" and result.rows[0]["treatment"] == "final"


def test_the_whole_curve_and_a_beam(data: Batches) -> None:
    model = layers(2)
    whole = analysis.search_joint(model, data, prune=False, beam=2)
    assert [row["units_treated"] for row in whole.rows] == [0, 1, 2, 3]
    assert whole.rows[-1]["share_of_params"] == 1
    two = analysis.search_joint(model, data, prune=False, most=2, candidates=["layer*"])
    assert two.rows[-1]["units"] == "layer1, layer2"


def test_sets_are_reported_on_other_batches(data: Batches) -> None:
    result = analysis.search_joint(layers(2), data, prune=False)
    assert {row["images"] for row in result.rows} == {64}
    alone = analysis.search_joint(layers(2), data[:1], prune=False)
    assert {row["images"] for row in alone.rows} == {32} and "on the same images" in alone.summary


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stop": 0.9}, "leave stop out"),
        ({"treatment": "7"}, "those at hand are rerand"),
        ({"beam": 0}, "beam is 0"),
        ({"candidates": "nosuch"}, "take no unit"),
        ({"nosuch": 1}, "unknown setting 'nosuch'"),
    ],
)
def test_searches_that_are_none(settings: dict[str, Any], words: str, data: Batches) -> None:
    with pytest.raises(SurgeonError, match=words):
        analysis.search_joint(layers(2), data, **settings)


def test_an_iterator_cannot_be_searched(data: Batches) -> None:
    with pytest.raises(AnalysisError, match="data is an iterator"):
        analysis.search_joint(layers(2), iter(data))


def test_the_model_is_put_back(data: Batches) -> None:
    model = layers().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    analysis.search_joint(model, data, most=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) and model.training


def test_results_are_read_back_as_themselves(data: Batches, tmp_path: Path) -> None:
    whole, joint = analysis.robustness(layers(2), data), analysis.joint_robustness(layers(2), data, "all-but-first")
    whole.to_json(tmp_path / "a.json")
    joint.to_json(tmp_path / "b.json")
    again = analysis.Robustness.from_json(tmp_path / "a.json")
    assert again.rows == whole.rows and str(again) == str(whole) and again.units == whole.units
    assert str(analysis.JointRobustness.from_json(tmp_path / "b.json")) == str(joint)
    with pytest.raises(AnalysisError, match="is of the analysis 'joint_robustness', not 'robustness'"):
        analysis.Robustness.from_json(tmp_path / "b.json")
