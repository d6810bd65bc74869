"""Translation, rotation, scale: controls with known answers, one pass as many, and the model as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import analysis
import surgeon
from analysis.intervals import ratio_bootstrap
from analysis.moving import shift_images
from surgeon.errors import AnalysisError


class Invariant(nn.Module):
    """Circular convs, pointwise nonlinearity, GAP: no circular shift changes what it answers, but for rounding."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 8, 3, stride, 1, padding_mode="circular").requires_grad_(False)
        self.head = nn.Linear(8, 4, bias=False).requires_grad_(False)
        self.centre = self.features(torch.rand(99, 1, 8, 8)).mean(0)  # so that noise is given all classes

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().square().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(50 * (self.features(x) - self.centre))


class Corner(nn.Module):
    """Class 1 where the pixel at (2, 2) is lit, else class 0: what each shift does to it is known."""

    def forward(self, x: Tensor) -> Tensor:
        lit = x[:, 0, 2, 2]
        return torch.stack([1 - lit, lit], 1)


def lit(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    images = torch.zeros(count, 1, 6, 6)
    images[: count // 2, 0, 2, 2] = 1
    targets = (torch.arange(count) < count // 2).long()
    return [(images[:5], targets[:5]), (images[5:], targets[5:])]


def noise(channels: int = 1, side: int = 8, count: int = 24, classes: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, side, side, generator=generator)
    targets = torch.randint(classes, (count,), generator=generator)
    cut = count * 5 // 12
    return [(images[:cut], targets[:cut]), (images[cut:], targets[cut:])]


def scan(model: Any, data: Any, **more: Any) -> analysis.Translation:
    return analysis.translation(model, data, progress=False, **more)


def test_an_invariant_net_loses_nothing_and_its_strided_twin_does() -> None:
    found = scan(Invariant(), noise(), padding="circular", reach=3, step=1)
    assert len(found.rows) == 49 and {row["agreement"] for row in found.rows} == {1.0}
    assert found.relative_loss[0] == 0.0
    strided = scan(Invariant(stride=2), noise(), padding="circular", reach=3, step=1)
    odd = [row for row in strided.rows if row["dx_px"] % 2 or row["dy_px"] % 2]
    even = [row for row in strided.rows if row not in odd]
    assert {row["agreement"] for row in even} == {1.0} and min(row["agreement"] for row in odd) < 0.9


@pytest.mark.parametrize("padding", ["black", "mirror", "circular"])
def test_a_known_answer(padding: Any) -> None:
    """Half the images are right only where the lit pixel stays; the other half are always right."""
    found = scan(Corner(), lit(), padding=padding, reach=2, step=1, fill=0.0)
    for row in found.rows:
        moved = shift_images(lit()[0][0][:1], row["dx_px"], row["dy_px"], padding)
        stays = bool(moved[0, 0, 2, 2])
        assert row["accuracy"] == (1.0 if stays else 0.5) and row["relative_loss"] == (0.0 if stays else 0.5)
        assert stays == (row["dx_px"] == row["dy_px"] == 0)
    assert found.relative_loss[0] == 0.5 and found.relative_loss[1] < 0.5 < found.relative_loss[2]
    assert "(accuracy(unmoved) - accuracy(moved)) / accuracy(unmoved)" in found.summary


def test_relative_loss_is_of_the_right_images_and_unknown_where_there_are_none() -> None:
    data = [(images, 1 - targets) for images, targets in lit()]
    found = scan(Corner(), data, axis="diagonal", reach=1)
    assert found.relative_loss == (None, None, None) and found.rows[0]["relative_loss"] is None
    assert found.rows[1]["accuracy"] == 0.0  # unmoved
    low, high = ratio_bootstrap(np.ones(200), np.ones(200))
    assert low > 0.95 and high <= 1.0 and ratio_bootstrap(np.zeros(200), np.ones(200))[1] < 0.05


def test_one_pass_is_a_pass_for_each_and_loads_the_images_once() -> None:
    model = timm.create_model("test_resnet", num_classes=4).eval()
    kinds = [{"axis": "diagonal", "reach": 2, "step": 0.5}, {"kind": "rotation", "reach": 10, "step": 5}]
    for settings in (*kinds, {"kind": "scale", "reach": 0.2, "step": 0.1, "padding": "black", "fill": (0.1, 0.2, 0.3)}):
        one, many = (scan(model, noise(3, 32), method=method, **settings) for method in ("single_pass", "naive"))
        assert one.rows == many.rows
        assert one.settings["images_loaded"] == 24 and many.settings["images_loaded"] == 24 * len(one.rows)


def test_numbers_of_any_library_are_written_as_plain_ones() -> None:
    model, data = timm.create_model("test_resnet", num_classes=4).eval(), noise(3, 32)
    found = scan(model, data, axis="diagonal", reach=np.int64(1), step=np.float32(1))
    assert [row["dx_px"] for row in json.loads(found.to_json())["rows"]] == [-1, 0, 1]


def test_by_hand() -> None:
    model, data = timm.create_model("test_resnet", num_classes=4).eval(), noise(3, 32)
    found = scan(model, data, moves=np.array([(3, -1), (0.5, 0)]))
    assert [(row["dx_px"], row["dy_px"]) for row in found.rows] == [(0, 0), (3, -1), (0.5, 0)]
    with torch.no_grad():
        for row in found.rows:
            answers = [(model(shift_images(x, row["dx_px"], row["dy_px"])), y) for x, y in data]
            right = sum(int((answer.argmax(1) == y).sum()) for answer, y in answers)
            loss = sum(float(nn.functional.cross_entropy(answer, y, reduction="sum")) for answer, y in answers)
            assert row["accuracy"] == right / 24 and row["loss"] == pytest.approx(loss / 24, rel=1e-5)


def test_crops_of_larger_images() -> None:
    found = scan(
        Corner(), [(nn.functional.pad(x, (3, 3, 3, 3)), y) for x, y in lit()], padding="crop", size=6, reach=2, step=1
    )
    assert [row["accuracy"] for row in found.rows] == [
        1.0 if r["dx_px"] == r["dy_px"] == 0 else 0.5 for r in found.rows
    ]
    with pytest.raises(AnalysisError, match="leaves images of 12 x 12"):
        scan(
            Corner(),
            [(nn.functional.pad(x, (3, 3, 3, 3)), y) for x, y in lit()],
            padding="crop",
            size=6,
            reach=4,
            step=1,
        )


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"])
def test_the_model_is_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model(name, num_classes=4).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data, state = noise(3, 160 if name == "test_vit" else 32, 4), torch.get_rng_state()
    scan(model, data, axis="horizontal", reach=1)
    monkeypatch.setattr("analysis.moves.shift_images", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scan(model, data, axis="horizontal", reach=1)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items()) and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_interrupted_scan_goes_on(tmp_path: Path) -> None:
    model, data = timm.create_model("test_resnet", num_classes=4).eval(), noise(3, 32)
    ledger, whole = tmp_path / "kept.npz", scan(model, data, axis="diagonal", reach=2)

    class Stopped(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            yield data[0]
            raise KeyboardInterrupt

    part = scan(model, Stopped(data), axis="diagonal", reach=2, ledger=ledger)
    assert not part.settings["complete"] and part.settings["images"] == 10 and "stopped before" in part.summary
    rest = scan(model, data, axis="diagonal", reach=2, ledger=ledger)
    assert rest.rows == whole.rows and rest.settings["complete"]
    with pytest.raises(AnalysisError, match="ledger of another analysis"):
        scan(model, data, axis="diagonal", reach=2, ledger=ledger, padding="circular")


def test_an_interrupted_pass_for_each_tells_of_those_that_are_whole() -> None:
    model, data, gone = timm.create_model("test_resnet", num_classes=4).eval(), noise(3, 32), []

    class Stopped(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            gone.append(1)
            yield data[0]
            if len(gone) == 4:
                raise KeyboardInterrupt
            yield data[1]

    part = scan(model, Stopped(data), axis="diagonal", reach=2, method="naive")
    assert [row["dx_px"] for row in part.rows] == [-2, -1, 0] and not part.settings["complete"]
    assert part.rows == scan(model, data, moves=[(-2, -2), (-1, -1), (0, 0)]).rows


def test_a_net_and_its_twin_without_new_weights_share_no_ledger(tmp_path: Path) -> None:
    """APS has no weights of its own, so that the twins' values are the same."""
    models = [timm.create_model("test_resnet", num_classes=4).eval() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    surgeon.apply(models[1], "aps", 32)
    scan(models[0], noise(3, 32), axis="diagonal", reach=1, ledger=tmp_path / "kept.npz")
    with pytest.raises(AnalysisError, match="ledger of another analysis"):
        scan(models[1], noise(3, 32), axis="diagonal", reach=1, ledger=tmp_path / "kept.npz")


def test_few_images_that_agree_are_no_certainty() -> None:
    found = scan(Invariant(), noise(), padding="circular", axis="diagonal", reach=1)
    unmoved = next(row for row in found.rows if row["dx_px"] == 0)
    assert unmoved["relative_loss_high_95"] == 0.0 < found.rows[0]["relative_loss_high_95"]


def test_stored_and_drawn(tmp_path: Path) -> None:
    for settings in (
        {"reach": 2},
        {"axis": "vertical", "reach": 2},
        {"axis": "diagonal", "reach": 2},
        {"kind": "scale"},
    ):
        found = scan(Corner(), lit(), **settings)
        found.to_json(tmp_path / "found.json")
        stored = analysis.read_result(tmp_path / "found.json")
        assert stored.rows == found.rows and len(stored.figure().axes) >= 2
    page = found.report(tmp_path / "page.html").read_text()
    assert "<svg" in page and "scale of what images show" in page
    assert found.curve.__name__ == "curve"
    with pytest.raises(AnalysisError, match="this result has none"):
        found.curve()


def test_curves() -> None:
    found = scan(Corner(), lit(), reach=2, step=2)
    assert [found.curve(along=along)[0].tolist() for along in ("diagonal", "x", "y")] == [[-2.0, 0.0, 2.0]] * 3
    assert found.curve("relative_loss", "x")[1].tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "turn"}, "it is one of shift, rotation, scale"),
        ({"axis": "up"}, "it is one of grid, diagonal, horizontal, vertical"),
        ({"padding": "zeros"}, "it is one of mirror, black, circular, crop"),
        ({"reach": 0}, "give a positive number"),
        ({"reach": 1000, "step": 0.5}, "give a longer step"),
        ({"kind": "scale", "reach": 1.5}, "give less than 1"),
        ({"moves": []}, "give a list"),
        ({"moves": [(1, 2, 3)]}, "not a shift"),
        ({"kind": "scale", "moves": [0]}, "not a positive scale"),
        ({"padding": "crop"}, "needs the window"),
        ({"size": 4}, "leave it out"),
        ({"limit": 0}, "at least 1"),
        ({"padding": "black"}, "needs fill="),
        ({"padding": "black", "fill": (1.0, 2.0)}, "2 values for 1 channels"),
    ],
)
def test_mistakes(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        scan(Corner(), lit(), **settings)


def test_detectors_have_their_own(tmp_path: Path) -> None:
    with pytest.raises((AnalysisError, surgeon.SurgeonError), match="give batches"):
        scan(Corner(), "data.yaml")
