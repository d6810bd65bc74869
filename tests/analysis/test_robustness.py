"""Layer-wise robustness of classifiers: what rows say, treatments, verdicts, early stops, and what is refused."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy.stats import ks_2samp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import analysis
import surgeon
from analysis import Robustness, robustness
from analysis.intervals import verdict, wilson
from analysis.layerwise import UNMOVED
from analysis.parts import units
from analysis.perturb import Places, untouched
from analysis.treatments import Treatments, starts_as_identity
from surgeon.errors import AnalysisError, SurgeonError
from tests.analysis.odd_nets import Odd
from tests.analysis.sweeping import batches
from tests.contracts import Snapshot, stir
from tests.zoo import PlainNet


def fcn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return surgeon.create_model("fcn", depth=3, width=32, in_chans=1, img_size=8)


@pytest.fixture(scope="module")
def digits() -> list[tuple[Tensor, Tensor]]:
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = torch.tensor(found.images[order] / 16, dtype=torch.float32)[:, None]
    return list(zip(images.split(100), torch.tensor(found.target[order]).split(100), strict=True))


@pytest.fixture(scope="module")
def trained(digits: list[tuple[Tensor, Tensor]]) -> tuple[nn.Module, dict[str, dict[str, Tensor]]]:
    """A net trained on most of the digits, and its states before and after one epoch."""
    model, states = fcn().train(), {}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for epoch in range(8):
        if epoch in (0, 1):
            states[str(epoch)] = copy.deepcopy(model.state_dict())
        for images, targets in digits[:12]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
    return model.eval(), states


@pytest.fixture(scope="module")
def result(trained: Any, digits: Any) -> Robustness:
    model, states = trained
    metrics = {"top2": lambda logits, targets: (logits.topk(2).indices == targets[:, None]).any(1)}
    return robustness(model, digits[12:], checkpoints=states, draws=3, metrics=metrics, tolerance=0.02)


COLUMNS = [
    *("unit", "path", "params", "treatment", "draws", "images", "error", "error_low_95", "error_high_95", "agreement"),
    *("loss", "top2", "difference", "difference_low_95", "difference_high_95", "verdict", "sd_over_draws"),
    *("rms_distance", "linf_distance", "rms_from_initial", "linf_from_initial", "note"),
]


def row(result: Robustness, unit: str, treatment: str) -> dict[str, Any]:
    return next(row for row in result.rows if (row["unit"], row["treatment"]) == (unit, treatment))


# rows


def test_rows(result: Robustness) -> None:
    assert result.units == ["layer1", "layer2", "layer3", "final_linear", "full model"]
    assert result.treatments == ["rerand", "0", "1", "final"]
    order = [(row["unit"], row["treatment"]) for row in result.rows]
    assert order == [(unit, treatment) for unit in result.units for treatment in result.treatments]
    assert all(list(row) == COLUMNS for row in result.rows)
    assert {row["images"] for row in result.rows} == {597}
    assert all(row["draws"] == (3 if row["treatment"] == "rerand" else 1) for row in result.rows)
    assert row(result, "layer2", "0")["path"] == "layers.1.0" and row(result, "full model", "0")["path"] == ""
    assert row(result, "layer1", "0")["params"] == 64 * 32 + 32
    sizes = [row(result, unit, "0")["params"] for unit in result.units]
    assert sum(sizes[:-1]) == sizes[-1]
    finals = [{k: r[k] for k in COLUMNS[4:17]} for r in result.rows if r["treatment"] == "final"]
    assert all(final == finals[0] for final in finals)


def test_numbers_are_those_of_a_plain_loop(result: Robustness, trained: Any, digits: Any) -> None:
    model, states = trained
    images, targets = (torch.cat(parts) for parts in zip(*digits[12:], strict=True))
    with torch.no_grad():
        own = model(images)
        for unit in analysis.units(model):
            twin = copy.deepcopy(model)
            twin.load_state_dict({**model.state_dict(), **{name: states["1"][name] for name in unit.parameters}})
            logits, found = twin(images), row(result, unit.name, "1")
            wrong = (logits.argmax(1) != targets).double()
            assert found["error"] == pytest.approx(float(wrong.mean()), abs=1e-12)
            assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, targets)), rel=1e-5)
            assert found["agreement"] == pytest.approx(float((logits.argmax(1) == own.argmax(1)).double().mean()))
            assert found["top2"] == pytest.approx(
                float((logits.topk(2).indices == targets[:, None]).any(1).double().mean())
            )
            difference = wrong - (own.argmax(1) != targets).double()
            assert found["difference"] == pytest.approx(float(difference.mean()), abs=1e-12)
            assert (found["error_low_95"], found["error_high_95"]) == wilson(int(wrong.sum()), len(targets))
            assert found["difference_low_95"] <= found["difference"] <= found["difference_high_95"]
            moved = np.concatenate([(states["1"][n] - states["0"][n]).numpy().ravel() for n in unit.parameters])
            assert found["rms_from_initial"] == pytest.approx(np.sqrt((moved**2).mean()), rel=1e-5)
            moved = np.concatenate(
                [(dict(model.named_parameters())[n] - states["1"][n]).numpy().ravel() for n in unit.parameters]
            )
            assert found["rms_distance"] == pytest.approx(np.sqrt((moved**2).mean()), rel=1e-5)
            assert found["linf_distance"] == pytest.approx(np.abs(moved).max(), rel=1e-6)


def test_verdicts(result: Robustness) -> None:
    for each in result.rows:
        said = verdict(each["difference_low_95"], each["difference_high_95"], 0.02)
        judged = each["treatment"] != "final" and each["unit"] != "full model"
        assert each["verdict"] == (said if judged else "-")
    assert row(result, "layer1", "rerand")["verdict"] == "critical", "the first layer is, as in the paper"
    robust = [r for r in result.rows if r["treatment"] == "1" and r["verdict"] == "robust"]
    share = sum(r["params"] for r in robust) / sum(row(result, u, "1")["params"] for u in result.units[:-1])
    assert result.robust("1") == [r["unit"] for r in robust] and result.share_robust("1") == pytest.approx(share)
    assert row(result, "full model", "0")["error"] > 0.8 > 0.2 > row(result, "layer1", "final")["error"]


def test_it_is_written_and_read(result: Robustness, tmp_path: Path) -> None:
    held = json.loads(result.to_json(tmp_path / "result.json"))
    assert held == json.loads((tmp_path / "result.json").read_text())
    assert held["kind"] == "robustness" and held["rows"] == result.rows and held["settings"] == result.settings
    again = Robustness.from_json(tmp_path / "result.json")
    assert again.rows == result.rows and again.units == result.units and again.primary == "error"
    assert result.to_csv().splitlines()[0].split(",") == COLUMNS
    settings = result.settings
    assert settings["model"] == "fcn" and settings["images"] == settings["images_loaded"] == 597
    assert settings["complete"] and settings["method"] == "single_pass" and settings["versions"]["torch"]
    assert "597 images, untouched error" in result.summary and "of 4 units robust" in str(result)


def test_seeds_draws_and_methods(trained: Any, digits: Any) -> None:
    model, states = trained
    data = digits[16:]
    one = robustness(model, data, initial=states["0"], draws=2)
    assert robustness(model, data, initial=states["0"], draws=2).rows == one.rows
    assert robustness(model, data, initial=states["0"], draws=2, method="naive").rows == one.rows
    assert robustness(model, iter(data), initial=states["0"], draws=2).rows == one.rows
    other = robustness(model, data, initial=states["0"], draws=2, seed=1)
    assert row(other, "layer1", "rerand")["loss"] != row(one, "layer1", "rerand")["loss"]
    assert row(other, "layer1", "0")["loss"] == row(one, "layer1", "0")["loss"]
    assert row(one, "layer1", "rerand")["sd_over_draws"] is not None is row(one, "layer1", "0")["sd_over_draws"]
    assert "no initial weights were given" in robustness(model, data).summary


def test_limit_cuts_the_last_batch(trained: Any, digits: Any) -> None:
    model, _ = trained
    cut = robustness(model, digits[12:], limit=150)
    assert {r["images"] for r in cut.rows} == {150} and cut.settings["images_loaded"] == 150
    images, targets = (torch.cat(parts)[:150] for parts in zip(*digits[12:14], strict=True))
    whole = robustness(model, [(images, targets)])
    assert [r["error"] for r in whole.rows] == [r["error"] for r in cut.rows]


def test_half_precision(trained: Any, digits: Any) -> None:
    model, states = trained
    one = robustness(model, digits[16:], initial=states["0"], amp="bfloat16")
    each = robustness(model, digits[16:], initial=states["0"], amp="bfloat16", method="naive")
    full = robustness(model, digits[16:], initial=states["0"])
    assert one.rows == each.rows and one.settings["amp"] == "bfloat16"
    errors = np.array([[r["error"] for r in which.rows] for which in (one, full)])
    assert np.abs(errors[0] - errors[1]).max() < 0.05 and [r["loss"] for r in one.rows] != [
        r["loss"] for r in full.rows
    ]


# stopping


def test_stopping_early(trained: Any, digits: Any) -> None:
    model, states = trained
    data = [(x, y) for images, targets in digits[12:] for x, y in zip(images.split(20), targets.split(20), strict=True)]
    full = robustness(model, data, checkpoints=states, tolerance=0.05)
    early = robustness(model, data, checkpoints=states, tolerance=0.05, stop=0.95)
    cells = [(u, t) for u in full.units[:-1] for t in full.treatments[:-1]]
    both = [(row(full, *cell)["verdict"], row(early, *cell)["verdict"]) for cell in cells]
    opposed = [pair for pair in both if set(pair) == {"robust", "critical"}]
    assert opposed == [] and sum(a == b for a, b in both) >= len(both) - 3
    used = [row(early, *cell)["images"] for cell in cells]
    assert sum(used) < 0.6 * 597 * len(cells) and min(used) < 100
    assert early.settings["stop"] == 0.95 and "critical" in {b for _, b in both}
    naive = robustness(model, data, checkpoints=states, tolerance=0.05, stop=0.95, method="naive")
    assert [r["verdict"] for r in naive.rows] == [r["verdict"] for r in early.rows]
    assert [row(naive, *cell)["images"] for cell in cells] == used


def test_images_in_the_order_of_their_classes_are_told(trained: Any, digits: Any) -> None:
    model, _ = trained
    images, targets = (torch.cat(parts) for parts in zip(*digits[12:14], strict=True))
    order = targets.sort(stable=True).indices
    words = "images come in the order of their classes"
    assert words in robustness(model, [(images[order], targets[order])], stop=True).summary
    assert words not in robustness(model, [(images, targets)], stop=True).summary
    assert words not in robustness(model, [(images[order], targets[order])]).summary


# treatments


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnet20_cifar"])
def test_draws_follow_the_distribution_a_build_draws_from(name: str) -> None:
    model = stir(timm.create_model(name, num_classes=10))
    fresh = Treatments(model, draws=1).state("rerand")
    build = dict(timm.create_model(name, num_classes=10).named_parameters())
    own = dict(model.named_parameters())
    assert fresh.keys() >= own.keys()
    compared = 0
    for key, values in build.items():
        if values.numel() < 500:
            continue
        drawn, expected = (v.detach().flatten()[:4000].numpy() for v in (fresh[key], values))
        assert ks_2samp(drawn, expected).pvalue > 1e-5, key
        assert not np.array_equal(drawn, expected) or float(np.ptp(expected)) == 0
        compared += 1
    assert compared > 5
    stretched = 1.5 * build[max(build, key=lambda k: build[k].numel())].detach().flatten()[:4000].numpy()
    drawn = fresh[max(build, key=lambda k: build[k].numel())].flatten()[:4000].numpy()
    assert ks_2samp(drawn, stretched).pvalue < 1e-5, "the negative control"


def test_what_nothing_says_how_to_draw_is_left_out_with_a_reason() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.full((6, 1, 1), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    torch.manual_seed(0)
    model = Odd(lambda m, x: m.c(m.b(m.scale(m.a(x)))), scale=Scale())
    start = copy.deepcopy(model.state_dict())
    stir(model)
    found = robustness(model, batches(8), units="layer", initial=start)
    refused = [r for r in found.rows if r["note"].startswith("cannot be drawn")]
    assert {r["treatment"] for r in refused} == {"rerand"}
    holding = {u.name for u in units(model, "layer", 8) if "scale.factor" in u.parameters}
    assert {r["unit"] for r in refused} == {"full model", *holding} and len(holding) == 1
    assert all(r["error"] is None and r["images"] == 0 and r["verdict"] == "-" for r in refused)
    json.loads(found.to_json(), parse_constant=lambda word: pytest.fail(word))


@pytest.mark.parametrize("zero", [True, False])
def test_identities_at_the_start_are_flagged(zero: bool) -> None:
    """timm's ResNets start the last norm of each block at zero: a drawn block then passes on what its skip carries."""
    start = surgeon.create_model("test_resnet", num_classes=10, zero_init_last=zero)
    model = stir(copy.deepcopy(start))
    before = Snapshot.of(model)
    result = robustness(model, batches(32, [2]), initial=start)
    assert Snapshot.of(model).differences(before) == []
    flagged = {(r["unit"], r["treatment"]) for r in result.rows if r["note"]}
    blocks = {f"stage{i}.resblk1" for i in (1, 2, 3, 4)}
    assert flagged == ({(unit, treatment) for unit in blocks for treatment in ("rerand", "0")} if zero else set())
    first = row(result, "stage1.resblk1", "rerand")["note"]
    assert first == ("identity at initialisation" if zero else "")  # its skip is plain; the others' are projections


def test_layer_scale_is_almost_an_identity() -> None:
    model = timm.create_model("test_convnext", num_classes=10)
    block = next(unit for unit in units(model) if unit.residual)
    values = {name: p.detach().clone() for name, p in model.named_parameters() if name in block.parameters}
    with untouched(model):
        small = starts_as_identity(Places(model), block, values, (3, 32, 32))
        gamma = next(name for name in values if name.endswith("gamma"))
        none, exact = (
            starts_as_identity(Places(model), block, {**values, gamma: torch.full_like(values[gamma], g)}, (3, 32, 32))
            for g in (100.0, 0.0)
        )
    assert small.startswith("almost the identity at initialisation") and none == ""
    assert exact == "identity at initialisation"


def test_a_treatment_that_changes_nothing_is_told() -> None:
    """Nobody reads the answer of ``b``, and the row says so, so that nobody takes it for robust."""
    model = Odd(lambda m, x: m.c(m.a(x)) + 0 * m.b(x)).eval()
    found = robustness(model, batches(8), units="layer", input_size=(3, 8, 8))
    noted = {r["path"].split(", ")[0]: r["note"] for r in found.rows if r["treatment"] == "rerand"}
    assert noted == {"stem": "", "a": "", "b": UNMOVED, "c": "", "head": "", "": ""}


# what is refused


class Answers(nn.Module):
    """A classifier whose answer a test changes."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.layer, self.change, self.img_size = nn.Linear(3, 10), change, 32

    def forward(self, x: Tensor) -> Any:
        return self.change(self.layer(x.mean((2, 3))))


def plain() -> nn.Module:
    return Answers(lambda y: y)


def resnet(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", **{"num_classes": 10, **more})


X, Y = torch.randn(4, 3, 32, 32), torch.arange(4)


BAD_DATA: dict[str, tuple[Any, str]] = {
    "nothing": (None, "data is NoneType"),
    "a number": (3, "data is int"),
    "a name": ("imagenet", "data is 'imagenet'"),
    "no batch": ([], "data holds no batch"),
    "an empty batch": ([(X, Y), (X[:0], Y[:0])], "a batch holds no image"),
    "a data set": (TensorDataset(X, Y), r"images are \(3, 32, 32\) and targets \(\)"),
    "images only": ([X], "a batch is Tensor"),
    "a dict": ([{"image": X, "label": Y}], "a batch is dict"),
    "one batch": ((X, Y), "a batch is Tensor"),
    "real targets": ([(X, Y.float())], "give images .* one class index per image"),
    "one-hot targets": ([(X, torch.eye(10)[Y])], "one class index per image"),
    "too few targets": ([(X, Y[:2])], "one class index per image"),
    "other classes": ([(X, Y + 9)], "targets run from 9 to 1., but the model has 10 outputs"),
    "negative classes": ([(X, Y - 1)], "targets run from -1 to"),
    "other channels": ([(X[:, :1], Y)], r"the model fails on the first images \(\(2, 1, 32, 32\) torch.float32"),
    "bytes": ([((X * 50).byte(), Y)], r"torch.uint8.*its parameters are torch.float32"),
    "doubles": ([(X.double(), Y)], r"torch.float64.*its parameters are torch.float32"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_data_that_are_none(name: str) -> None:
    data, match = BAD_DATA[name]
    model = plain()
    before = Snapshot.of(model)
    with pytest.raises(AnalysisError, match=match):
        robustness(model, data)
    assert Snapshot.of(model).differences(before) == []


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"method": "fast"}, "method is 'fast'; it is one of single_pass, naive"),
    ({"units": "blocks"}, "level is 'blocks'"),
    ({"units": []}, "units: give one of"),
    ({"units": ["stage0"]}, "units: give one of"),
    ({"units": 3}, "units: give one of"),
    ({"batchnorm": "freeze"}, "batchnorm is 'freeze'"),
    ({"batchnorm": "recalibrate"}, "needs calibration="),
    ({"calibration": [(X, Y)]}, "calibration= is for"),
    ({"batchnorm": "recalibrate", "calibration": 3}, "calibration is int"),
    ({"batchnorm": "recalibrate", "calibration": iter([(X, Y)])}, "calibration is a list_iterator .* once only"),
    ({"draws": -1}, "draws is -1"),
    ({"draws": 1.5}, "draws is 1.5"),
    ({"draws": 0}, "there is nothing to do"),
    ({"stop": 2}, "stop is 2"),
    ({"stop": "yes"}, "stop is 'yes'"),
    ({"tolerance": -0.1}, "tolerance is -0.1"),
    ({"tolerance": "a"}, "tolerance is 'a'"),
    ({"memory": "1 potato"}, "memory is '1 potato'"),
    ({"memory": 0}, "memory is 0"),
    ({"limit": 0}, "limit is 0"),
    ({"amp": "fp8"}, "amp is 'fp8'"),
    ({"ledger": 3}, "ledger is a int"),
    ({"metrics": {"loss": len}}, "'loss' is a column of every result"),
    ({"metrics": {"note": len}}, "'note' is a column of every result"),
    ({"metrics": {"mine": 3}}, "'mine' is no name of a function"),
    ({"metrics": {"mine": lambda logits, _: logits}}, r"metric 'mine' answers \(4, 10\) for 4 images"),
    ({"metrics": {"mine": lambda *_: None}}, "metric 'mine' answers None"),
    ({"initial": fcn()}, "holds no state of this Answers: 'layer.weight' is missing"),
    ({"initial": "nowhere.pt"}, "there is no file or folder"),
    ({"checkpoints": 3}, "is no source of states"),
]


@pytest.mark.parametrize(("settings", "match"), BAD_SETTINGS, ids=[str(i) for i in range(len(BAD_SETTINGS))])
def test_settings_that_are_none(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(AnalysisError, match=match):
        robustness(plain(), [(X, Y)], **settings)


def test_data_that_can_be_gone_through_once_only() -> None:
    with pytest.raises(
        AnalysisError, match=r"data is a generator that can be gone through once only, and each variant"
    ):
        robustness(resnet(), ((X, Y) for _ in range(2)), method="naive")


def test_a_shuffled_loader_is_refused_where_passes_are_compared() -> None:
    data = DataLoader(TensorDataset(torch.randn(40, 1, 8, 8), torch.arange(40) % 10), batch_size=8, shuffle=True)
    with pytest.raises(AnalysisError, match=r"holds other images than in an earlier pass .* shuffle=False"):
        robustness(fcn(), data, method="naive")
    assert robustness(fcn(), data).settings["images"] == 40


def test_a_loader_with_workers_that_stay() -> None:
    """Its iterator is one object that begins anew, and yet it can be gone through again and again."""
    held = TensorDataset(torch.randn(4, 1, 8, 8), Y)
    data = DataLoader(held, batch_size=2, num_workers=1, persistent_workers=True)
    assert iter(data) is iter(data)
    assert robustness(fcn(), data, method="naive").settings["images"] == 4


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: resnet().to("meta"), "on the meta device"),
        (lambda: nn.DataParallel(resnet()), r"wrapped in DataParallel: operate on its \.module"),
        pytest.param(lambda: torch.compile(resnet()), "wrapped in OptimizedModule", marks=pytest.mark.slow),
        (lambda: 3, "an object of class int"),
        (lambda: resnet(features_only=True), "and no logits"),
        (lambda: Answers(lambda y: {"logits": y}), "the model answers dict to 2 images"),
        (lambda: Answers(lambda y: y[:, :, None]), r"the model answers \(2, 10, 1\) to 2 images"),
    ],
)
def test_models_that_are_none(build: Any, match: str) -> None:
    with pytest.raises(SurgeonError, match=match):
        robustness(build(), [(X, Y)])


def test_units_of_another_model() -> None:
    with pytest.raises(AnalysisError, match=r"the model has no tensor 'stem\.0\.weight' to"):
        robustness(resnet(), [(X, Y)], units=units(PlainNet(), input_size=32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers(value: float) -> None:
    found = robustness(Answers(lambda y: y * value), [(X, Y)])
    assert {r["error"] for r in found.rows} == {1.0} and {r["loss"] for r in found.rows} == {None}
    json.loads(found.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    some = robustness(Answers(lambda y: torch.where(torch.arange(len(y))[:, None] == 0, value, y)), [(X, Y)])
    assert {r["error"] for r in some.rows} <= {0.25, 0.5, 0.75, 1.0}
    assert all(math.isfinite(r["difference"]) for r in some.rows)


def test_tuples_of_logits_are_taken_apart() -> None:
    plain, paired = (robustness(Answers(change), [(X, Y)], draws=1) for change in (lambda y: y, lambda y: (y, y)))
    assert [r["images"] for r in plain.rows] == [r["images"] for r in paired.rows]
