"""What the analyses of robustness share: settings, image sizes, draws, and going on after an interrupt."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import analysis
import surgeon
from analysis.treatments import Treatments
from surgeon import SurgeonError
from surgeon.errors import AnalysisError

Batches = list[tuple[Tensor, Tensor]]


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return surgeon.create_model("fcn", depth=2, width=8, in_chans=1, img_size=4)


@pytest.fixture
def data() -> Batches:
    torch.manual_seed(1)
    return [(torch.rand(8, 1, 4, 4), torch.randint(0, 10, (8,))) for _ in range(6)]


class Interrupted(Batches):
    """Ctrl-C comes in one of the passes, before one of its batches."""

    def __init__(self, data: Batches, on: int, before: int) -> None:
        super().__init__(data)
        self.on, self.before, self.passes = on, before, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for number in range(len(self)):
            if (self.passes, number) == (self.on, self.before):
                raise KeyboardInterrupt
            yield self[number]


def test_a_draw_is_not_what_the_model_began_with() -> None:
    """Whoever builds a net after torch.manual_seed(0) and asks for seed 0 gets other values than its first."""
    start, trained = net(0), net(5)
    drawn = [Treatments(trained, draws=3, seed=seed).state("rerand", i) for seed in (0, 1) for i in range(3)]
    weights = [start.get_parameter("fc.weight"), *(values["fc.weight"] for values in drawn)]
    assert all(not torch.equal(one, other) for i, one in enumerate(weights) for other in weights[:i])
    again = Treatments(trained, draws=3, seed=1).state("rerand", 2)
    assert torch.equal(again["fc.weight"], weights[-1])


def test_a_ledger_is_of_these_states_and_metrics(data: Batches, tmp_path: Path) -> None:
    model, given = net(5), {"ledger": tmp_path / "ledger", "initial": net(0)}
    begun = analysis.robustness(model, Interrupted(data, 1, 3), **given)
    assert not begun.complete and begun.rows[0]["images"] == 24
    with pytest.raises(AnalysisError, match=r"ledger of another analysis: \{'states'"):
        analysis.robustness(model, data, **{**given, "initial": net(1)})
    with pytest.raises(AnalysisError, match=r"ledger of another analysis: \{'metrics'"):
        analysis.robustness(model, data, **given, metrics={"top": lambda logits, _: logits.max(1).values})
    ended = analysis.robustness(model, data, **given)
    assert ended.complete and ended.rows == analysis.robustness(model, data, initial=net(0)).rows


class Plain(nn.Module):
    """A network that says nothing of the size of its images, and answers a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4 * 5 * 5, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(images).relu().flatten(1)
        return self.fc(features), features


def test_the_size_of_the_images_is_that_of_the_data() -> None:
    images, targets = torch.rand(20, 3, 12, 12), torch.arange(20) % 10
    data = DataLoader(TensorDataset(images, targets), 10)
    model, other = Plain(), Plain()
    state = torch.get_rng_state()
    result = analysis.robustness(model, data, draws=0, checkpoints={"5": other})
    assert result.units == ["stage1.block1", "final_linear", "full model"]
    assert torch.equal(torch.get_rng_state(), state)
    once = [(images, targets)]
    with pytest.raises(SurgeonError, match="pass input_size"):
        analysis.robustness(model, iter(once), draws=0, checkpoints={"5": other})
    given = analysis.robustness(model, iter(once), draws=0, checkpoints={"5": other}, input_size=12)
    assert given.units == result.units


def test_the_full_model_is_whole_where_some_units_are_named(data: Batches) -> None:
    model = net(5)
    every, some = analysis.units(model), analysis.units(model)[1:2]
    found = analysis.robustness(model, data, units=some)
    whole = next(row for row in found.rows if row["unit"] == "full model")
    assert found.units == ["layer2", "full model"] and whole["params"] == sum(unit.params for unit in every)
    assert whole == next(r for r in analysis.robustness(model, data).rows if r["unit"] == "full model")
    joint = analysis.joint_robustness(model, data, "layer2", units=some)
    assert joint.rows[0]["share_of_params"] == some[0].params / whole["params"]


def test_a_model_that_has_learnt_nothing_is_told(data: Batches) -> None:
    words = "has learnt nothing about these data"
    model = net(5)
    with torch.no_grad():
        right = [(images, model.eval()(images).argmax(1)) for images, _ in data]
        wrong = [(images, model.eval()(images).argmin(1)) for images, _ in data]
    assert words in analysis.robustness(model, wrong).summary
    assert words not in analysis.robustness(model, right).summary


def test_a_fresh_build_unlike_the_initial_state_is_told() -> None:
    """timm does not remember zero_init_last; surgeon.create_model does."""
    for make, told in ((timm.create_model, True), (surgeon.create_model, False)):
        model, start = (make("test_resnet", zero_init_last=False) for _ in range(2))
        notes = " ".join(Treatments(model, start, draws=1).notes)
        assert ("is 1 in root mean square there and 0 in root mean square here" in notes) is told
        assert ("surgeon.create_model, which remembers" in notes) is told


class Scaled(nn.Module):
    """Nothing says how its scale starts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(16, 10), nn.Parameter(torch.ones(10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1)) * self.scale
        return logits


def test_flagged_units_stand_in_the_summary(data: Batches) -> None:
    zero = timm.create_model("test_resnet", in_chans=1)
    odd = surgeon.create_model("test_resnet", in_chans=1, zero_init_last=False)
    images = [(nn.functional.interpolate(few, 32), targets) for few, targets in data[:1]]
    words = "stage1.resblk1, stage2.resblk1, stage3.resblk1, stage4.resblk1: the branch starts at zero"
    assert words in analysis.robustness(zero, images).summary
    assert "starts at zero" not in analysis.robustness(odd, images).summary
    refused = analysis.robustness(Scaled(), data, input_size=(1, 4, 4))
    assert "cannot be re-randomised" in refused.summary and "'scale'" in refused.summary
    assert any(row["error"] is None and row["note"] for row in refused.rows)


def test_batches_that_are_none_are_told_before_the_size_of_images() -> None:
    images, targets = torch.rand(4, 3, 12, 12), torch.arange(4)
    for data, words in (([], "holds no batch"), ((images, targets), "no \\(images, targets\\)")):
        with pytest.raises(AnalysisError, match=words):
            analysis.robustness(Plain(), data)


@pytest.mark.parametrize(("on", "before", "steps"), [(3, 1, 1), (4, 1, 2), (4, 0, 1)])
def test_a_search_goes_on(data: Batches, tmp_path: Path, on: int, before: int, steps: int) -> None:
    """Passes: two that see whether the order stays, then one for each step."""
    given = {"initial": net(0), "draws": 0, "prune": False, "progress": False}
    model, before_all = net(5), copy.deepcopy(net(5).state_dict())
    part = analysis.search_joint(model, Interrupted(data, on, 2 * before), **given, ledger=tmp_path / "ledger")
    assert not part.complete and not part.settings["complete"] and "stopped before all" in part.summary
    assert [row["units_treated"] for row in part.rows] == list(range(steps + 1))
    whole = analysis.search_joint(model, data, **given, ledger=tmp_path / "ledger")
    assert whole.complete and whole.rows == analysis.search_joint(model, data, **given).rows
    assert all(torch.equal(value, before_all[name]) for name, value in model.state_dict().items())


def test_a_search_needs_the_same_order_in_each_pass(data: Batches) -> None:
    images, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    shuffled = DataLoader(TensorDataset(images, targets), 8, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AnalysisError, match="another order in each pass"):
        analysis.search_joint(net(5), shuffled, initial=net(0), draws=0)
    model, other, ordered = net(5), {"5": net(1)}, DataLoader(TensorDataset(images, targets), 8)
    state = torch.get_rng_state()
    analysis.search_joint(model, ordered, checkpoints=other, draws=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"limit": 2.5}, "limit is 2.5"),
        ({"metrics": [len]}, "metrics is a list"),
    ],
)
def test_settings_that_are_none(data: Batches, settings: Any, words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        analysis.robustness(net(5), data, **settings)


@pytest.mark.parametrize("most", [0, -1, "all", True])
def test_a_search_of_no_unit(data: Batches, most: Any) -> None:
    with pytest.raises(AnalysisError, match="most is"):
        analysis.search_joint(net(5), data, most=most)
