"""Shuffles at test time: nets with known answers, one pass as many, and the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import analysis
import surgeon
from analysis import shuffling
from analysis.shuffling import How, Switch, insert_shuffles
from analysis.stored import read_result
from surgeon.errors import AnalysisError

Data = list[tuple[Tensor, Tensor]]
AS_SPATIAL = "as spatial: both reach over every map"


def noise(channels: int = 1, side: int = 8, counts: tuple[int, ...] = (10, 6), classes: int = 4) -> Data:
    """Images of small whole numbers, with which sums are exact."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(0, 8, (count, channels, side, side), generator=generator).float(),
            torch.randint(classes, (count,), generator=generator),
        )
        for count in counts
    ]


class Bag(nn.Module):
    """What each pixel says, averaged (a bag of features): 3x3 convs that read their middle only, unless ``wide``."""

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        for layer in (self.one, self.two, self.head):
            nn.init.zeros_(layer.bias)
            layer.weight.data = torch.randint(-2, 3, layer.weight.shape).float()
        if not wide:
            middle = torch.zeros(3, 3)
            middle[1, 1] = 1
            for conv in (self.one, self.two):
                conv.weight.data *= middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two((self.one(x) - 2).relu()).mean((2, 3)))


class Shrinking(nn.Module):
    """The second conv reads a map of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, stride=8, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).flatten(1))


class Mute(nn.Module):
    """A residual block whose branch says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.conv(x)


class Skipping(nn.Module):
    """A head that reads positions behind a mute block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.block, self.head = Mute(), nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.norm(self.stem(x))).flatten(1))


def narrowing() -> nn.Module:
    """Convs that read maps of 8, 2 and 1 pixels."""
    first, second = nn.Conv2d(1, 4, 3, stride=4, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
    last = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *last)


def shuffled(model: Any, data: Any, **more: Any) -> analysis.SpatialDependence:
    settings = {"passes": 2, "patches": [2], "progress": False, **more}
    return analysis.spatial_dependence(model, data, **settings)


def unmoved(row: dict[str, Any], result: analysis.SpatialDependence) -> bool:
    """Whether nothing has changed, to the last bit."""
    return (row["drop"], row["agreement"], row["loss"]) == (0, 1, result.rows[0]["loss"])


def test_a_bag_of_features_does_not_ask_where_they_are() -> None:
    bag, wide = shuffled(Bag(), noise(), units="layer"), shuffled(Bag(wide=True), noise(), units="layer")
    assert bag.units == wide.units == ["one", "two"]
    for way in (("spatial", None), ("patch", 2)):
        for unit in ("one", "two", 2):
            assert unmoved(bag.row(unit, *way), bag)
            assert not unmoved(wide.row(unit, *way), wide)
    assert not unmoved(bag.row("two", "channel"), bag)
    assert unmoved(bag.row("one", "channel"), bag)  # it has one channel
    assert bag.tail("spatial", tolerance=0) == 2 and bag.rows[0]["passes"] == 1


def test_maps_of_one_pixel_cannot_be_shuffled() -> None:
    result = shuffled(Shrinking(), noise(), units="layer", shuffles=["spatial", "channel"])
    assert unmoved(result.row("two"), result) and not unmoved(result.row("one"), result)
    assert not unmoved(result.row("two", "channel"), result)
    assert result.row("two")["note"] == "no map is larger than 1x1" and result.row("one")["note"] == ""
    assert [result.row(name)["map_px"] for name in ("one", "two")] == [8, 1]


def test_a_skip_carries_what_its_block_lost_unless_it_is_shuffled() -> None:
    model = Skipping()
    closed, opened = (shuffled(model, noise(), skips=skips, shuffles=["spatial"]) for skips in (True, False))
    assert closed.units == opened.units
    block = closed.units[-1]
    assert unmoved(opened.row(block), opened) and not unmoved(closed.row(block), closed)
    by_layer = shuffled(model, noise(), units="layer", shuffles=["spatial"])  # with the last conv of its block
    assert by_layer.units == ["stem", "block.conv"] and by_layer.row("block.conv") == {
        **closed.row(block),
        "unit": "block.conv",
    }


def test_shuffles_are_permutations_within_cells_alike_in_a_batch() -> None:
    x, switch = torch.arange(2 * 3 * 36.0).reshape(2, 3, 6, 6), Switch()

    def drawn(how: How, draw: str = "0", site: int = 5) -> Tensor:
        with switch.turned(frozenset({5, 6}), how, draw):
            return switch.shuffled(x, site)

    whole, cells, channels = drawn(How("spatial")), drawn(How("patch", 4)), drawn(How("channel"))
    for y in (whole, cells):
        assert torch.equal(y.flatten(2).sort(-1).values, x.flatten(2)) and not torch.equal(y, x)
        moved = y - torch.arange(6.0).view(2, 3, 1, 1) * 36
        assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[:, 0], moved[:, 1])
    assert torch.equal(cells[..., :4, :4].flatten(2).sort(-1).values, x[..., :4, :4].flatten(2))
    assert torch.equal(cells[..., 4:, 4:].flatten(2).sort(-1).values, x[..., 4:, 4:].flatten(2))
    assert torch.equal(channels.sort(1).values, x) and not torch.equal(channels, x)
    assert torch.equal(drawn(How("patch", 8)), whole)  # a cell as large as the map
    others = (drawn(How("spatial"), "1"), drawn(How("spatial"), site=6))
    assert not any(torch.equal(whole, other) for other in others) and torch.equal(drawn(How("spatial")), whole)
    assert switch.shuffled(x, 5) is x and not switch.on


def test_draws_differ_and_seeds_repeat() -> None:
    model = Skipping().eval()
    data = [(images, model(images).argmax(1)) for images, _ in noise()]
    first, again, other = (shuffled(model, data, units="layer", passes=3, seed=seed) for seed in (1, 1, 2))
    assert first.rows == again.rows != other.rows
    one = shuffled(model, data, units="layer", passes=1, seed=1)
    assert one.row("stem")["loss"] != first.row("stem")["loss"] and one.row("stem")["sd_over_passes"] is None
    row = first.row("stem")
    assert row["sd_over_passes"] > 0 and row["drop"] == pytest.approx(1 - row["agreement"])
    assert row["drop"] > 0.1 and row["accuracy"] == pytest.approx(row["agreement"])
    assert row["accuracy_low_95"] < row["accuracy"] < row["accuracy_high_95"]
    assert row["drop_low_95"] < row["drop"] < row["drop_high_95"]


def same(one: analysis.SpatialDependence, other: analysis.SpatialDependence) -> bool:
    """Counts exactly, losses to 1e-6; not what cannot be shuffled."""
    assert len(one.rows) == len(other.rows) > 1
    for a, b in zip(one.rows, other.rows, strict=True):
        assert {**a, "loss": 0} == {**b, "loss": 0}
        assert np.isclose(a["loss"], b["loss"], 1e-6, 1e-6)
    return any(row["loss"] != one.rows[0]["loss"] for row in one.rows)


def both_ways(model: nn.Module, data: Any, **more: Any) -> analysis.SpatialDependence:
    one = shuffled(model, data, **more)
    assert same(one, shuffled(model, data, method="naive", **more))
    assert not any("in full" in note for note in one.settings["notes"])
    return one


def test_one_pass_gives_the_numbers_of_many() -> None:
    model = timm.create_model("test_resnet", num_classes=10).eval()
    data = noise(3, 32, (5, 3), 10)
    result = both_ways(model, data, passes=1, memory="1MiB")  # batches are cut
    assert result.units == ["stage0", *(f"stage{i}.resblk1" for i in (1, 2, 3, 4))]
    assert "cut to" in result.summary
    assert [row["units_share"] for row in result.rows if row["shuffle"] == "channel" and row["which"] == "last"] == [
        0.2, 0.4, 0.6, 0.8, 1.0]  # fmt: skip
    last = result.row(1)
    assert last == {**result.row("stage4.resblk1"), "which": "last"}


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_every_small_net(name: str) -> None:
    model = timm.create_model(name, num_classes=10).eval()
    before = copy.deepcopy(model.state_dict())
    side = model.pretrained_cfg["input_size"][-1]
    result = both_ways(model, [(torch.randn(3, 3, side, side), torch.arange(3))], passes=1, patches=[4])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if name.startswith("test_vit"):
        assert len(result.units) == 1 and "units have a conv larger than 1x1" in result.summary


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "densenet121", "mobilenetv3_small_100", "convnext_atto"])
def test_known_nets(name: str) -> None:
    model = timm.create_model(name, num_classes=10).eval()
    result = both_ways(model, [(torch.randn(2, 3, 64, 64), torch.arange(2))], passes=1, patches=[4], which=["alone"])
    assert len(result.units) > 4


def test_patches_that_reach_over_all_maps_are_not_measured_twice() -> None:
    data, model = noise(side=8), narrowing()
    both = shuffled(model, data, patches=[2, 8], shuffles=["spatial", "patch"], which=["alone"])
    alone = shuffled(model, data, patches=[8], shuffles=["patch"], which=["alone"])
    for unit in both.units:
        large, small = both.row(unit, "patch", 8), both.row(unit, "patch", 2)
        assert large["note"] == ("no map is larger than 1x1" if large["map_px"] == 1 else AS_SPATIAL)
        assert large == {**both.row(unit), "shuffle": "patch", "patch_px": 8, "note": large["note"]}
        assert {**alone.row(unit, "patch", 8), "note": ""} == {**large, "note": ""}
        assert (small["note"] == "") == (small["map_px"] > 2)
    assert {row["map_px"] for row in both.rows[1:]} == {8, 2, 1}
    with pytest.raises(AnalysisError, match=r"a map is 16x16, .* 8 wide at most: .* name the largest one \(input_size"):
        shuffled(model, [*data, *noise(side=16)], patches=[8], shuffles=["spatial", "patch"])
    several = shuffled(model, [*data, *noise(side=16)], patches=[8], shuffles=["spatial", "patch"], input_size=16)
    assert several.rows[0]["images"] == 32


@pytest.fixture
def untouched() -> Iterator[Callable[[nn.Module], nn.Module]]:
    """Watches a model; whatever a test does must leave it, and the generators, as they are."""
    watched = []

    def watch(model: nn.Module) -> nn.Module:
        watched.append((model, state_of(model)))
        return model

    yield watch
    for model, before in watched:
        assert state_of(model) == before


def state_of(model: nn.Module) -> Any:
    held = [*model.named_parameters(), *model.named_buffers()]
    tensors = {key: (id(value), value.detach().numpy().tobytes()) for key, value in held}
    modules = {path: (type(m), id(m), m.training, len(m._forward_hooks)) for path, m in model.named_modules()}
    return tensors, modules, torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()


def test_the_model_stays_as_it_was(untouched: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model = Skipping().train()
    model.block.eval()
    model = untouched(model)
    data = noise()

    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        shuffled(model, data, metrics={"broken": broken})
    calls = []

    def stopping(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        if calls.count(6) == 4:
            raise KeyboardInterrupt
        return targets.float()

    settings: dict[str, Any] = {"which": ["alone"], "ledger": tmp_path / "ledger.npz"}
    stopped = shuffled(model, data, metrics={"number": stopping}, **settings)
    assert not stopped.complete and stopped.rows[0]["images"] == 10 and "stopped before" in stopped.summary
    calls.clear()
    whole = shuffled(model, data, metrics={"number": lambda _, targets: targets.float()}, **settings)
    fresh = shuffled(model, data, metrics={"number": lambda _, targets: targets.float()}, which=["alone"])
    assert whole.complete and whole.rows == fresh.rows and whole.rows[0]["images"] == 16


def test_a_net_with_shuffles_of_its_own_may_be_asked(untouched: Callable[[nn.Module], nn.Module]) -> None:
    own = surgeon.create_model("digits_convnet", {"spatial_shuffle": {}, "select": {"last": 1}}, num_classes=4).eval()
    result = shuffled(untouched(own), noise(side=16), passes=1)
    assert len(result.units) == 4 and "draws at random" in result.summary
    again = shuffled(own, noise(side=16), passes=1)
    assert again.rows == result.rows


class Functional(nn.Module):
    """One conv is a module, the other a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight, self.head = nn.Conv2d(1, 4, 3), nn.Parameter(torch.rand(4, 4, 3, 3)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.conv2d(self.conv(x), self.weight).mean((2, 3)))


def test_what_cannot_be_shuffled_is_said() -> None:
    result = shuffled(Functional(), noise(), units="layer")
    assert result.units == ["conv"]
    assert "cannot be shuffled: ':conv2d:0' (is called as a function" in result.summary
    hooked = Bag(wide=True)
    hooked.two.register_forward_hook(lambda *_: None)
    result = shuffled(hooked, noise(), units="layer")
    assert result.units == ["one"] and "'two' (carries hooks" in result.summary


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shuffles": ["spacial"]}, r"shuffles is \['spacial'\]; give some of spatial, patch, channel"),
        ({"shuffles": "spatial"}, "shuffles is 'spatial'; give some of"),
        ({"shuffles": []}, r"shuffles is \[\]"),
        ({"patches": [2, 1]}, r"patches is \[2, 1\]; give sides of cells in pixels, at least 2"),
        ({"patches": []}, r"patches is \[\]"),
        ({"which": ["first"]}, r"which is \['first'\]; give some of alone, last"),
        ({"passes": 0}, "passes is 0; give a number of draws"),
        ({"limit": 0}, "limit is 0; give a number of images"),
        ({"units": "blok"}, "level is 'blok'; it is one of"),
    ],
)
def test_mistakes(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        shuffled(Bag(), noise(), **settings)


def test_nets_without_convs_are_refused() -> None:
    with pytest.raises(AnalysisError, match=r"FCN has no conv larger than 1x1, so there is nothing to shuffle"):
        shuffled(surgeon.create_model("fcn", depth=1, width=4, img_size=8, num_classes=4, in_chans=1), noise())
    net = Bag()
    with pytest.raises(AnalysisError, match="no unit of Bag has a conv larger than 1x1 that can be shuffled"):
        shuffled(net, noise(), units=analysis.units(net, "layer", (1, 8, 8))[-1:])


def test_units_may_be_named() -> None:
    net = Bag(wide=True)
    named = shuffled(net, noise(), units=analysis.units(net, "layer", (1, 8, 8))[:1])
    every = shuffled(net, noise(), units="layer")
    assert named.units == ["one"] and {**named.row("one"), "units_share": 0.5} == every.row("one")
    assert [row["units_share"] for row in named.rows if row["which"] == "last"] == [1.0] * 3


def test_sites_that_do_not_fit_together_are_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, plan = [], shuffling.plan_recipe

    def failing(model: nn.Module, recipe: Any, size: Any) -> Any:
        calls.append(recipe)
        if len(calls) == 1 or recipe.steps[0].select.path == "block.conv":
            raise surgeon.RefusedError("op 'silent_shuffle' refuses 'block.conv': it is a test")
        return plan(model, recipe, size)

    whole = insert_shuffles(Skipping(), input_size=(1, 8, 8))
    monkeypatch.setattr(shuffling, "plan_recipe", failing)
    each = insert_shuffles(Skipping(), input_size=(1, 8, 8))
    assert each.refused == {"block.conv": "it is a test"} and not whole.refused
    assert [place.site.path for place in whole.places] == ["stem", "block.conv", "block:add:0"]
    assert [place.site.path for place in each.places] == ["stem", "block:add:0"]


def test_tables_figure_and_files(tmp_path: Path) -> None:
    result = shuffled(Bag(wide=True), noise(), units="layer", command="a command")
    text = str(result)
    assert "accuracy, shuffled alone" in text and "last 2 (100%)" in text and "patch 2" in text
    assert "spatial shuffle of one unit costs" in result.summary and "of the last" in result.summary
    assert result.to_csv().startswith("unit,which,units_shuffled,units_share,shuffle,patch_px,map_px,passes,images")
    result.to_json(tmp_path / "result.json")
    for one in (result, read_result(tmp_path / "result.json")):
        left, right = one.figure().axes
        assert [text.get_text() for text in one.figure().legends[0].get_texts()] == [
            "all positions", "channels", "within 2x2 pixels", "untouched"]  # fmt: skip
        line = next(line for line in right.lines if line.get_label() == "all positions")
        assert list(line.get_xdata()) == [0.0, 0.5, 1.0]
        heights = [100 * result.rows[0]["accuracy"], 100 * result.row(1)["accuracy"], 100 * result.row(2)["accuracy"]]
        assert list(line.get_ydata()) == heights
        assert [tick.get_text() for tick in left.get_xticklabels()] == ["one", "two"]
    assert result.settings["command"] == "a command" and result.settings["complete"]
    page = result.report(tmp_path / "page.html").read_text()
    assert "Spatial dependence of Bag" in page and "a command" in page
    with pytest.raises(AnalysisError, match="was not measured"):
        result.row("three")


def test_a_user_may_add_metrics() -> None:
    result = shuffled(Bag(), noise(), metrics={"top": lambda logits, _: logits.amax(1)})
    assert all(isinstance(row["top"], float) for row in result.rows)


SEEN = {"imgsz": 64, "batch": 5, "resamples": 10}


def small_detector(folder: Path) -> Any:
    pytest.importorskip("ultralytics")
    pytest.importorskip("faster_coco_eval")
    from tests.analysis.test_detection_robustness import detector

    return detector(folder)


def of_detector(model: Any, data: Any, **more: Any) -> tuple[analysis.SpatialDependence, analysis.SpatialDependence]:
    """Both ways; nothing stays on the network, nor on the object around it."""
    inner = getattr(model, "model", model)
    before = state_of(inner), set(vars(inner)), set(vars(model))
    both = [shuffled(model, data, passes=1, method=method, **more) for method in ("single_pass", "naive")]
    assert (state_of(inner), set(vars(inner)), set(vars(model))) == before
    return both[0], both[1]


def test_detectors(tmp_path: Path) -> None:
    model = small_detector(tmp_path)
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 32.0]]), "labels": torch.tensor([1])}
    data = [(torch.rand(2, 3, 64, 64), [target, target])]
    first = analysis.units(model)[:1]
    one, naive = of_detector(model, data, shuffles=["spatial"], units=first, which=["alone"])
    assert same(one, naive) and one.primary == "ap" and one.units == ["layer0.Conv"]


@pytest.mark.slow
def test_what_shuffles_cost_a_detector(tmp_path: Path) -> None:
    from tests.analysis.test_detection_robustness import labelled_by

    model = small_detector(tmp_path)
    one, naive = of_detector(model, labelled_by(model, tmp_path / "set"), detector=SEEN, which=["alone"])
    assert same(one, naive) and len(one.units) == 6 and "layer4.SPPF" in one.summary
    row = one.row("layer0.Conv")
    assert one.rows[0]["ap"] - row["ap"] == pytest.approx(row["drop"]) and row["drop"] > row["drop_low_95"] > 0
    assert one.figure().axes[0].get_ylabel() == "average precision, %"
    inner, _ = of_detector(model.model, labelled_by(model, tmp_path / "again"), detector=SEEN, which=["alone"])
    assert inner.rows == one.rows


@pytest.mark.slow
def test_yolo11n(tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    pytest.importorskip("faster_coco_eval")
    from tests.surgeon.yolo.small import squares

    model, data = ultralytics.YOLO("yolo11n.yaml"), squares(tmp_path, 80)
    for norm in (norms := [part for part in model.model.modules() if isinstance(part, nn.BatchNorm2d)]):
        norm.momentum = 1.0  # statistics of one batch of noise, so that what the image says reaches the head
    with torch.no_grad():
        model.model.train()(torch.rand(4, 3, 64, 64))
    for norm in norms:
        norm.momentum = 0.03
    settings = {"detector": {"imgsz": 64, "batch": 4, "resamples": 0}, "shuffles": ["spatial", "channel"]}
    one, naive = of_detector(model, data, **settings)
    assert same(one, naive) and len(one.units) > 10
