"""Attributions to units: known in closed form, complete, dead where a unit is dead, and whatever the code is like."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analysis
from analysis.attribution_objective import Objective
from analysis.parts import units as find_units
from analysis.tasks import Classification
from analysis.unit_flow import Job, conductance
from analysis.unit_names import Unit
from analysis.unit_taps import places_of, tapped
from surgeon.errors import AnalysisError
from tests.analysis import odd_nets
from tests.analysis.attributing import Batches, Branch, Chain, batches, columns, planted, unit

captum = pytest.importorskip("captum.attr")
ALL = ("conductance", "integrated_gradients", "gradient_x_activation")
QUIET: dict[str, Any] = {"progress": False, "robustness": False}


def explain(model: nn.Module, data: Batches, **more: Any) -> analysis.Attribution:
    return analysis.attribution(model, data, **{"units": getattr(model, "units", "layer"), **QUIET, **more})


def by_unit(found: analysis.Attribution, key: str, method: str = "conductance") -> dict[str, Any]:
    return {row["unit"]: row[key] for row in found.rows if row["method"] == method}


# known answers


@pytest.mark.parametrize("method", ALL)
def test_a_linear_net_in_closed_form(method: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.Linear(5, 3, bias=False)).double()
    (images, targets), *_ = data = batches(9, (3, 2, 2), 3, 9, dtype=torch.float64)
    found = explain(model, data, method=method, units=[unit("a", "1"), unit("b", "2")])
    hidden, weights = images.flatten(1) @ model[1].weight.T, model[2].weight[targets]
    parts = (hidden * weights).detach()
    change = parts.sum(1)
    assert by_unit(found, "absolute_share", method)["a"] == pytest.approx(
        float((parts.abs().sum(1) / change.abs()).median()), rel=1e-6
    )
    assert by_unit(found, "absolute_share", method)["b"] == pytest.approx(1, rel=1e-6)
    assert np.allclose(list(by_unit(found, "signed_share", method).values()), 1, rtol=1e-6)
    assert by_unit(found, "absolute_share", method)["a"] > 1.1  # and so tells units apart


def test_a_baseline_is_what_is_compared_with() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 3)).double()
    (images, targets), *_ = data = batches(9, (3, 2, 2), 3, 9, dtype=torch.float64)
    base = torch.randn(3, 2, 2, dtype=torch.float64)
    found = explain(model, data, baseline=base, units=[unit("a", "1")])
    hidden = (images - base).flatten(1) @ model[1].weight.T
    parts = (hidden * model[2].weight[targets]).detach()
    expected = float((parts.abs().sum(1) / parts.sum(1).abs()).median())
    assert by_unit(found, "absolute_share")["a"] == pytest.approx(expected, rel=1e-6)
    other = explain(model, data, units=[unit("a", "1")])
    assert by_unit(other, "absolute_share")["a"] != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("baseline", ["zero", "mean", "blur", 0.5])
def test_what_passes_through_everything_adds_up(baseline: str | float) -> None:
    data = batches(6, (3, 9, 9), 4)
    found = explain(Chain(), data, baseline=baseline, steps=64)
    assert np.allclose(list(by_unit(found, "signed_share").values()), 1, atol=2e-3)
    assert found.completeness_error["conductance"] < 2e-3
    assert min(by_unit(found, "absolute_share").values()) >= 0.998
    past = explain(Branch(), data, steps=64)
    shares = by_unit(past, "signed_share")
    assert shares["one"] == pytest.approx(1, abs=5e-3) and shares["fc"] == pytest.approx(1, abs=5e-3)
    assert abs(shares["three"] - 1) > 0.02  # the skip goes past it


def test_integrated_gradients_say_what_the_unit_alone_changes() -> None:
    model, data = Branch().double(), batches(5, (3, 6, 6), 4, 5, dtype=torch.float64)
    found = explain(model, data, method="integrated_gradients", steps=64)
    images, targets = data[0]

    def answer(branch: Tensor, skip: Tensor) -> Tensor:
        return model.fc((branch + skip).mean((2, 3))).gather(1, targets[:, None])[:, 0].detach()

    skips = [model.one(x).relu() for x in (images, images * 0)]
    bare = model.three(model.two(skips[1]).tanh())
    full = model.three(model.two(skips[0]).tanh())
    change = answer(full, skips[0]) - answer(bare, skips[1])
    share = (answer(full, skips[0]) - answer(bare, skips[0])) / change
    assert by_unit(found, "signed_share", "integrated_gradients")["three"] == pytest.approx(
        float(share.median()), rel=1e-5
    )
    errors = by_unit(found, "integration_error_share", "integrated_gradients")
    assert errors["three"] < 1e-6 and max(errors.values()) < 5e-3  # the first one's path has kinks


def test_conductance_is_captums_but_for_the_rule() -> None:
    model, images, targets = Chain(nn.SiLU()).double(), torch.randn(3, 3, 7, 7, dtype=torch.float64), torch.arange(3)
    objective = Objective(model, Classification(), "label")
    places = places_of(model, model.units, model, images)
    base = torch.randn_like(images)
    with tapped(model, places) as taps:
        ours = {s: conductance(Job(objective, taps, images, targets, base, s, 64)) for s in (8, 16, 32, 256)}
    for index, layer in enumerate((model.one, model.two)):
        there, back = (
            captum.LayerConductance(model, layer).attribute(
                *pair, target=targets, n_steps=8, method="riemann_trapezoid"
            )
            for pair in ((images, base), (base, images))
        )  # gradients at the beginning of each step, and at its end
        both = ((there - back) / 2).flatten(1)
        assert torch.allclose(ours[8][:, index, 0], both.abs().sum(1))
        assert torch.allclose(ours[8][:, index, 1], both.sum(1))
        stock = (there.flatten(1).sum(1) - ours[256][:, index, 1]).abs().mean()
        errors = [float((ours[s][:, index, 1] - ours[256][:, index, 1]).abs().mean()) for s in (8, 16, 32)]
        assert errors[0] < stock / 3 and errors[0] > 2.5 * errors[1] > 6 * errors[2]
        told = ours[16][:, index, 2].mean()
        assert errors[1] < told < 12 * errors[1]


def test_too_few_steps_are_said() -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return (40 * (self.fc(x.flatten(1)) - 0.3)).sigmoid()

    data = batches(6, (3, 2, 2), 2)
    few, many = (explain(Steep(), data, units=[unit("fc", "fc")], steps=s) for s in (2, 400))
    assert "off, give more steps=" in few.summary and few.completeness_error["conductance"] > 0.05
    assert "off" not in many.summary and many.completeness_error["conductance"] < 0.05


def test_a_dead_unit_gets_nothing() -> None:
    data = batches(6, (3, 6, 6), 4)
    for method in ALL:
        found = by_unit(explain(Branch(dead=True), data, method=method), "absolute_share", method)
        assert found["two"] == 0 < found["one"]
        alive = by_unit(explain(Branch(), data, method=method), "absolute_share", method)
        assert alive["two"] > 0.01


class Skip(nn.Module):
    """A block that adds its input, around two linear layers, or one that projects it."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(features, 7, 1, bias=False), nn.Conv2d(7, out, 1, bias=False)
        self.project = None if out == features else nn.Conv2d(features, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x))
        y += x if self.project is None else self.project(x)
        return y


def test_what_a_block_makes_is_told_from_what_its_skip_carries() -> None:
    model = nn.Sequential(Skip(3, 3), Skip(3, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).double()
    (images, targets), *_ = data = batches(8, (3, 4, 4), 4, 8, dtype=torch.float64)
    asked: dict[str, Any] = {"method": ["conductance", "branch_conductance"], "units": "block"}
    found = explain(model, data, **asked)
    one, two, rest = [row["unit"] for row in found.rows[:3]]
    first, second = model[0], model[1]
    there = second.down.weight.flatten(1) @ second.up.weight.flatten(1) + second.project.weight.flatten(1)
    made, weights = first.down(first.up(images)).flatten(2), model[4].weight[targets] / 16
    share, whole = (torch.einsum("no,oc,ncp->n", weights, there, m) for m in (made, made + images.flatten(2)))
    own = by_unit(found, "signed_share", "branch_conductance")
    assert np.median((share / whole).detach()) == pytest.approx(own[one], rel=1e-6)
    assert by_unit(found, "taken", "branch_conductance")[one].endswith("less its input")
    assert [own[two], own[rest]] == pytest.approx([1, 1], rel=1e-6)  # the second projects, so all of it is its own
    assert np.allclose(list(by_unit(found, "signed_share").values()), 1, rtol=1e-6)
    with torch.no_grad():
        first.down.weight.zero_()
    dead = explain(model, data, **asked)
    assert by_unit(dead, "absolute_share", "branch_conductance")[one] == 0 < by_unit(dead, "absolute_share")[one]


# ranks


def test_a_planted_order_correlates_fully() -> None:
    model, data = Chain(), batches(6, (3, 9, 9), 4)
    model.units = (*find_units(model, "layer", (3, 9, 9)), unit("act", "act"))
    plain = by_unit(explain(model, data), "absolute_share")
    order = sorted(plain, key=lambda name: plain[name])
    for losses, rho in (((0.1, 0.2, 0.5, 0.9), 1.0), ((0.9, 0.5, 0.2, 0.1), -1.0)):
        found = explain(model, data, robustness=planted(dict(zip(order, losses, strict=True))))
        ranks = found.rank_correlation["conductance"]
        assert ranks["spearman"] == rho and ranks["units"] == 4 and ranks["p_value"] == pytest.approx(2 / 24)
        assert f"{rho:.2f}" in found.summary and "4 units" in found.summary
    assert [row["rerand_error"] for row in found.rows if row["unit"] == order[0]] == [0.9]


def test_what_was_measured_elsewhere_must_be_of_these_units() -> None:
    data = batches(4, (3, 9, 9), 4)
    with pytest.raises(AnalysisError, match="no unit 'two' drawn anew"):
        explain(Chain(), data, robustness=planted({"one": 0.1, "fc": 0.2}))
    with pytest.raises(AnalysisError, match="of the analysis 'attribution'"):
        explain(Chain(), data, robustness=explain(Chain(), data))


def test_what_was_measured_of_another_net_or_other_images_is_told() -> None:
    data, other = batches(4, (3, 9, 9), 4), planted({"one": 0.1, "two": 0.2, "fc": 0.3})
    other.settings = {**other.settings, "model": "Chain", "images": 4}
    assert "robustness given" not in explain(Chain(), data, robustness=other).summary
    other.settings = {**other.settings, "model": "resnet18", "images": 9}
    summary = explain(Chain(), data, robustness=other).summary
    assert "the model 'resnet18', not 'Chain'" in summary and "on 9 images, not 4" in summary


def test_robustness_is_measured_on_the_same_images() -> None:
    model, data = Chain(), batches(10, (3, 9, 9), 4)
    found = analysis.attribution(model, data, units="layer", steps=4, progress=False, limit=7, draws=2)
    own = analysis.robustness(model, data, units="layer", progress=False, limit=7, draws=2)
    rows = {row["unit"]: row for row in own.rows if row["treatment"] == "rerand"}
    assert [row["rerand_difference"] for row in found.rows] == [rows[row["unit"]]["difference"] for row in found.rows]
    assert found.settings["robustness"] == "measured" and found.settings["images"] == 7
    assert found.rank_correlation["conductance"]["spearman"] is None and "3 units: too few" in found.summary


# whatever the code is like


@pytest.mark.parametrize("method", ["conductance", "integrated_gradients"])
def test_layers_that_write_into_their_input_are_of_no_consequence(method: str) -> None:
    torch.manual_seed(3)
    data, kept, written = batches(5, (3, 9, 9), 4), Chain(nn.ReLU()), Chain(nn.ReLU(inplace=True))
    written.load_state_dict(kept.state_dict())
    found = [columns(explain(m, data, method=method).rows, "absolute_share", "signed_share") for m in (kept, written)]
    assert np.array_equal(*found)
    assert written.act.inplace


class Plain(Branch):
    """The same, and nothing is written."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        y = self.three(self.two(x).tanh())
        return self.fc((y + x).mean((2, 3)))  # type: ignore[no-any-return]


def test_functions_that_write_into_their_input_are_of_no_consequence() -> None:
    data, model, twin = batches(5, (3, 6, 6), 4), Branch(), Plain()
    twin.load_state_dict(model.state_dict())
    found = [columns(explain(m, data, method=ALL).rows, "absolute_share", "signed_share") for m in (model, twin)]
    assert np.allclose(*found, rtol=1e-5)


def test_code_that_counts_on_what_was_written_stays_as_it_is() -> None:
    model = odd_nets.Odd(odd_nets.ignores_the_answer, relu=nn.ReLU(inplace=True)).eval()
    found = explain(model, batches(4, (3, 8, 8), 10), units=[unit("stem", "stem"), unit("head", "head")], steps=64)
    assert np.allclose(list(by_unit(found, "signed_share").values()), 1, atol=2e-2)


def test_the_last_call_counts() -> None:
    model = odd_nets.Odd(odd_nets.runs_one_conv_three_times).eval()
    data = batches(4, (3, 8, 8), 10)
    found = explain(model, data, units=[unit("a", "a"), unit("stem", "stem")], method=ALL)
    assert by_unit(found, "taken")["a"] == "output of a, last of 3 calls"

    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.a = model, nn.Conv2d(6, 6, 3, 1, 1)
            self.a.load_state_dict(model.a.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            x = model.stem(x)
            for conv in (model.a, model.a, self.a):
                x = x + conv(torch.tanh(x))
            return model.head(model.c(model.b(x)).mean((2, 3)))  # type: ignore[no-any-return]

    alone = explain(Once().eval(), data, units=[unit("a", "a"), unit("stem", "model.stem")], method=ALL)
    pairs = [columns(one.rows, "absolute_share", "signed_share") for one in (found, alone)]
    assert np.allclose(*pairs, rtol=1e-5)


class Folded(nn.Module):
    """A layer sees the quarters of an image as images of their own; another sees images last."""

    def __init__(self) -> None:
        super().__init__()
        self.quarters, self.mixed, self.fc = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        cut = x.view(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(4 * n, c, h // 2, w // 2)
        found = self.quarters(cut).tanh().view(n, 4, 5, -1).mean(3)  # (N, 4, 5)
        turned = self.mixed(found.transpose(0, 1)).tanh()  # (4, N, 5)
        return self.fc(turned.mean(0))  # type: ignore[no-any-return]


def test_outputs_that_hold_several_rows_per_image() -> None:
    members = [unit("quarters", "quarters"), unit("mixed", "mixed"), unit("fc", "fc")]
    data = batches(4, (3, 8, 8), 4)
    found = explain(Folded(), data, units=members, steps=64, method=["conductance", "integrated_gradients"])
    for method in found.settings["method"]:
        assert by_unit(found, "signed_share", method)["quarters"] == pytest.approx(1, abs=1e-3)
    assert by_unit(found, "absolute_share")["mixed"] is None and by_unit(found, "values")["quarters"] == 320
    assert "does not keep images apart" in by_unit(found, "note")["mixed"]


def test_units_of_several_modules_and_units_without_an_output() -> None:
    model = Chain()
    several = Unit("front", ("one", "two", "act"), ("one.weight",), (), 1, "")
    lost = Unit("own values", ("",), (), (), 1, "")
    found = explain(model, batches(4, (3, 9, 9), 4), units=[several, lost, unit("fc", "fc")])
    assert by_unit(found, "taken")["front"] == "output of act, last of 2 calls, a unit of several modules"
    assert "values of the model itself" in by_unit(found, "note")["own values"]
    with pytest.raises(AnalysisError, match="no unit has an output"):
        explain(model, batches(4, (3, 9, 9), 4), units=[lost])


# memory, limits, what is refused


@pytest.mark.parametrize("method", ALL)
def test_internal_batches_bound_memory_and_change_nothing(method: str) -> None:
    torch.manual_seed(0)
    data, model = batches(7, (3, 9, 9), 4, 5, dtype=torch.float64), Chain().double()
    found = {}
    for size in (1, 3, 20, None):
        with_size = explain(model, data, method=method, steps=6, internal_batch_size=size)
        found[size] = columns(with_size.rows, "absolute_share", "signed_share")
    assert all(np.allclose(found[1], other, rtol=1e-6) for other in found.values())


def test_no_pass_is_larger_than_asked() -> None:
    sizes: list[int] = []
    model = Chain()
    handle = model.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    explain(model, batches(7, (3, 9, 9), 4, 7), method=ALL, steps=6, internal_batch_size=3)
    assert max(sizes) == 3
    sizes.clear()
    explain(model, batches(7, (3, 9, 9), 4, 7), steps=6, memory="1GiB")
    assert max(sizes) == 49  # all points of all images
    handle.remove()


def test_images_like_their_baseline_are_left_out() -> None:
    images, targets = torch.randn(7, 3, 9, 9), torch.arange(7) % 4
    images[2] = 0
    found = explain(Chain(), [(images, targets)])
    assert found.settings["images_left_out"] == 1 and found.rows[0]["images"] == 6
    assert "1 of 7 images are left out" in found.summary
    none = explain(Chain(), [(images * 0, targets)], robustness=planted({"one": 0.3, "two": 0.2, "fc": 0.1}))
    assert {row["absolute_share"] for row in none.rows} == {None} and "nothing to divide up" in none.summary
    assert str(none) and none.rank_correlation["conductance"]["units"] == 0
    with pytest.raises(AnalysisError, match="nothing to draw"):
        none.figure()


def test_predicted_classes() -> None:
    model, data = Chain(), batches(8, (3, 9, 9), 4)
    chosen = [(images, model.eval()(images).argmax(1)) for images, _ in data]
    found = [explain(model, d, target=t) for d, t in ((data, "predicted"), (chosen, "label"), (data, "label"))]
    first, second, other = (columns(one.rows, "absolute_share") for one in found)
    assert np.array_equal(first, second) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "conductanse"}, "did you mean 'conductance'.*known: conductance, branch_conductance"),
        ({"method": []}, "name one or several"),
        ({"steps": 5}, "steps is 5; give an even number"),
        ({"target": "confidence"}, "a classifier's class is 'label' or 'predicted'"),
        ({"target": "best"}, "one of label, predicted, confidence"),
        ({"baseline": "grey"}, "one of zero, mean, blur"),
        ({"baseline": torch.zeros(3, 5, 5)}, r"baseline is \(3, 5, 5\), images \(4, 3, 9, 9\)"),
        ({"internal_batch_size": 0}, "give a number of images"),
        ({"memory": "much"}, "memory is 'much'"),
        ({"limit": 0}, "limit is 0"),
        ({"units": "floor"}, "layer, block, stage"),
        ({"units": [unit("away", "away")]}, "Chain has no module 'away'"),
        ({"robustness": "yes"}, "robustness is 'yes'"),
    ],
)
def test_what_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        explain(Chain(), batches(4, (3, 9, 9), 4), **more)


def test_a_missing_captum_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(
        AnalysisError, match=r'attribution needs the package captum .* pip install "cnn-surgeon\[attack\]"'
    ):
        explain(Chain(), batches(4, (3, 9, 9), 4))


def test_results_are_kept_and_drawn(tmp_path: Path) -> None:
    model, data = Chain(), batches(6, (3, 9, 9), 4)
    found = explain(model, data, method=ALL, robustness=planted({"one": 0.3, "two": 0.2, "fc": 0.1}), command="me")
    json.loads(found.to_json(tmp_path / "a.json"))
    stored, again = analysis.read_result(tmp_path / "a.json"), analysis.Attribution.from_json(tmp_path / "a.json")
    assert again.rows == found.rows and str(again) == str(found) and "conductance" in str(found)
    panels = stored.figure().axes
    assert len(panels) == 6 and "Spearman" not in panels[1].get_title()  # three units have no order
    texts = {text.get_text() for text in panels[1].texts}
    assert texts == {"one", "two", "fc"}
    assert len(explain(model, data).figure().axes) == 1
    assert found.settings["command"] == "me" and found.settings["versions"]["captum"]
