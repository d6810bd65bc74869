"""Nets by resolution: known losses, known leads, sizes that cannot be taken, and nothing left behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import analysis
from analysis import AnalysisError
from analysis.intervals import wilson
from analysis.resolution_views import Lower, shrink_images
from analysis.stored import read_result
from tests.analysis.test_perturb import changed, everything

SIZE = 16


class Detail(nn.Module):
    """Tells stripes of one pixel from grey by the mean step between neighbours, and says 1 where it is over a bound."""

    def __init__(self, bound: float = 0.1) -> None:
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(bound))

    def forward(self, images: Tensor) -> Tensor:
        steps = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean((1, 2, 3))
        return torch.stack([self.bound - steps, steps - self.bound], 1)


class Brightness(nn.Module):
    """Tells dark from bright by the mean over all pixels."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def stripes(count: int = 40, period: int = 2) -> list[Any]:
    """Batches of grey images (class 0) and stripes of half a period of pixels (class 1)."""
    wave = (torch.arange(SIZE) % period < period // 2).float().expand(1, SIZE, SIZE)
    images = torch.stack([wave if i % 2 else torch.full((1, SIZE, SIZE), 0.5) for i in range(count)])
    targets = torch.arange(count) % 2
    return [(images[i : i + 16], targets[i : i + 16]) for i in range(0, count, 16)]


def resolved(model: Any, data: Any, **settings: Any) -> analysis.Resolution:
    return analysis.resolution(model, data, **{"progress": False, **settings})


# ------------------------------------------------------------------------------------------------------------- images


def test_small_images_are_those_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36), dtype=np.uint8)
    own = shrink_images(torch.from_numpy(pixels)[None, None].float(), 1 / 3, back=False)[0, 0]
    theirs = np.asarray(Image.fromarray(pixels).resize((12, 8), Image.Resampling.BICUBIC), float)
    assert own.shape == (8, 12) and np.abs(own.numpy() - theirs).max() <= 1
    assert np.abs(own.numpy() - pixels[::3, ::3]).max() > 20


def test_values_stay_between_those_of_the_image() -> None:
    images = torch.rand(2, 3, 20, 20).round()
    assert images.unique().tolist() == [0, 1]
    for down in ("bicubic", "area"):
        small = shrink_images(images, 0.5, down)  # type: ignore[arg-type]
        assert small.shape == images.shape and small.min() >= 0 and small.max() <= 1
        assert small.var() < images.var()
    assert torch.equal(shrink_images(images, 1.0), images)
    area = shrink_images(images, 0.5, "area", back=False)
    assert torch.allclose(area, images.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)))


# --------------------------------------------------------------------------------------------------- known in advance


@pytest.mark.parametrize("back", [True, False])
def test_detail_of_one_pixel_is_gone_at_half_the_resolution(back: bool) -> None:
    result = resolved(Detail(), stripes(), back=back, factors=(0.5, 0.25))
    full, half, quarter = result.rows
    assert full["accuracy"] == 1 and [row["accuracy"] for row in (half, quarter)] == [0.5, 0.5]
    assert result.settings["input_size"] == [16, 16] and result.settings["images"] == 40
    assert (full["accuracy_change"], full["accuracy_change_high_95"]) == (0, 0)
    assert half["accuracy_change"] == -0.5 and half["accuracy_change_high_95"] < -0.3
    assert [half[f"accuracy_{end}_95"] for end in ("low", "high")] == pytest.approx(wilson(20, 40))
    assert [row["height_px"] for row in result.rows] == [16, 8, 4] == [row["width_px"] for row in result.rows]
    assert [row["resolution"] for row in result.rows] == ["1", "1/2", "1/4"] and half["agreement"] == 0.5
    wide = resolved(Detail(), stripes(period=8), back=back, factors=(0.5,))
    assert [row["accuracy"] for row in wide.rows] == [1, 1]  # stripes of four pixels are still there


def test_who_leads_where() -> None:
    """Detail against brightness, on bright stripes: the same at full resolution, not at half."""
    data = [(images + 0.4 * targets[:, None, None, None], targets) for images, targets in stripes()]
    result = resolved(Detail(), data, other=Brightness(), factors=(0.5,), labels=("detail", "mean"))
    rows = {(row["model"], row["factor"]): row for row in result.rows}
    half = rows["mean", 0.5]
    assert rows["mean", 1.0]["accuracy_lead"] == 0 and half["accuracy_lead"] == 0.5 == half["accuracy_lead_change"]
    assert 0.3 < half["accuracy_lead_low_95"] < 0.5 < half["accuracy_lead_high_95"] < 0.7
    assert rows["detail", 0.5]["accuracy_lead"] is None and rows["mean", 1.0]["accuracy_lead_change"] == 0
    assert "at 1/2 mean less detail is +50.0%" in result.summary and "at 1 mean less detail is +0.0%" in result.summary
    assert "cannot be told apart" in result.summary and "detail and mean by resolution" in result.title
    same = resolved(Detail(), data, other={"a": Detail(), "b": Brightness()}, factors=(0.5,))
    leads = {(row["model"], row["factor"]): row["accuracy_lead"] for row in same.rows}
    assert leads["a", 0.5] == 0 and leads["b", 0.5] == 0.5 and leads["original", 0.5] is None
    low, high = (same.rows[3][f"accuracy_lead_{end}_95"] for end in ("low", "high"))
    assert low < 0 < high


def test_one_pass_per_net_is_a_pass_per_resolution() -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
            for _ in range(2)]  # fmt: skip
    seen = []

    class Counted:
        def __iter__(self) -> Iterator[Any]:
            for batch in stripes():
                seen.append(len(batch[0]))
                yield batch

    settings = {"other": nets[1], "factors": (0.5, 0.3)}
    one = resolved(nets[0], Counted(), **settings)
    assert sum(seen) == 2 * (40 + 16)  # the first batch of each is looked at before
    assert one.settings["images_loaded"] == 80 and one.rows[2]["resolution"] == "0.3"
    each = resolved(nets[0], Counted(), method="naive", **settings)
    for row, same in zip(one.rows, each.rows, strict=True):
        assert same == pytest.approx(row, nan_ok=True)
    assert resolved(nets[0], iter(stripes()), factors=(0.5, 0.3)).rows[1]["images"] == 40
    with pytest.raises(AnalysisError, match="gone through once only, and there are 2 nets"):
        resolved(nets[0], iter(stripes()), **settings)


def test_more_metrics_and_amp() -> None:
    rows = resolved(
        Detail(), stripes(), factors=(0.5,), metrics={"sure": lambda logits, _: logits.amax(1)}, amp="bfloat16"
    ).rows
    assert rows[0]["sure"] > 0 and set(rows[0]) >= {"loss", "agreement", "note"}


# ------------------------------------------------------------------------------------------------- nets as they are


def test_sizes_a_net_cannot_take_are_said() -> None:
    data = [(torch.rand(6, 3, 160, 160), torch.arange(6))]
    vit = timm.create_model("test_vit", dynamic_img_size=False)
    result = resolved(vit, data, back=False, factors=(0.5,))
    full, half = result.rows
    assert full["accuracy"] is not None and half["accuracy"] is None and half["images"] == 0
    assert "cannot take images of this size: AssertionError" in half["note"] and "not measured" in result.summary
    assert "-" in str(result)
    assert resolved(vit, data, factors=(0.5,)).rows[1]["accuracy"] is not None  # enlarged it can
    deep = nn.Sequential(nn.Conv2d(3, 6, 60), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    both = resolved(vit, data, other=deep, back=False, factors=(0.5, 0.25))
    notes = {(row["model"], row["factor"]): bool(row["note"]) for row in both.rows}
    assert [notes["operated", factor] for factor in (1, 0.5, 0.25)] == [False, False, True]
    assert both.rows[4]["accuracy"] is not None and both.rows[4]["accuracy_lead"] is None


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_the_model_is_as_before(name: str) -> None:
    model = timm.create_model(name).train()
    data = [(torch.rand(2, 3, 64, 64), torch.tensor([1, 2]))]
    before = everything(model)
    assert resolved(model, data, back=False, factors=(0.5,)).complete
    assert changed(before, model) == []

    def broken() -> Iterator[Any]:
        yield data[0]
        raise KeyboardInterrupt

    assert not resolved(model, broken(), factors=(0.5,)).complete
    assert changed(before, model) == []


def test_ctrl_c_in_the_second_net(tmp_path: Path) -> None:
    class Data:
        passes, stop = 0, True

        def __iter__(self) -> Iterator[Any]:
            Data.passes += 1
            for number, batch in enumerate(stripes()):
                if Data.stop and Data.passes == 4 and number == 1:  # each net looks at the first batch before
                    raise KeyboardInterrupt
                yield batch

    settings = {"other": Brightness(), "factors": (0.5,), "ledger": tmp_path / "kept"}
    half = resolved(Detail(), Data(), **settings)
    assert not half.complete and {row["images"] for row in half.rows} == {16} and len(half.rows) == 4
    Data.stop = False
    whole = resolved(Detail(), Data(), **settings)
    assert whole.complete and whole.rows == resolved(Detail(), stripes(), other=Brightness(), factors=(0.5,)).rows


def test_nets_must_see_the_same_images() -> None:
    class Shuffled:
        order = torch.Generator().manual_seed(0)

        def __iter__(self) -> Iterator[Any]:
            return iter([(torch.rand(4, 1, SIZE, SIZE, generator=self.order), torch.arange(4) % 2)])

    with pytest.raises(AnalysisError, match="'original' and 'operated' saw different images"):
        resolved(Detail(), Shuffled(), other=Brightness(), factors=(0.5,))


def test_what_is_none_is_refused_in_words() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"factors": (2,)}, "factors holds 2; give shares of the resolution"),
        ({"factors": "1/2"}, "factors holds '1/2'"),
        ({"factors": (0,)}, "factors holds 0"),
        ({"down": "nearest"}, "down is 'nearest'; it is one of bicubic, area"),
        ({"other": Brightness(), "labels": ("one",)}, "two nets need two names"),
        ({"other": Brightness(), "labels": ("one", "one")}, "two nets are called 'one'"),
        ({"other": {}}, "two nets need two names"),
        ({"method": "fast"}, "method is 'fast'"),
    ]
    for settings, words in cases:
        with pytest.raises(AnalysisError, match=words):
            resolved(Detail(), stripes(), **settings)
    with pytest.raises(AnalysisError, match="data holds no batch"):
        resolved(Detail(), [])
    with pytest.raises(AnalysisError, match="data is int"):
        resolved(Detail(), 3)


# ---------------------------------------------------------------------------------------------------------- detectors


@pytest.fixture
def planted_net(tmp_path: Path) -> Any:
    pytest.importorskip("ultralytics")
    pytest.importorskip("faster_coco_eval")
    from tests.analysis.planting import exactly, planted

    return planted(tmp_path, exactly)


def test_detectors_by_resolution(planted_net: Any) -> None:
    """Squares at even places are found exactly in images half as large, with bars; of three pixels they are lost."""
    from tests.analysis.planting import scenes

    rng = np.random.default_rng(0)
    boxes = [[(float(x), float(y), x + 16.0, y + 16.0)] for x, y in 2 * rng.integers(2, 16, (12, 2))]
    small = [[(float(x), float(y), x + 3.0, y + 3.0)] for x, y in 2 * rng.integers(2, 16, (12, 2)) + 1]
    settings: dict[str, Any] = {"detector": {"resamples": 6}, "down": "area", "back": False, "factors": (0.5, 0.125)}
    result = resolved(planted_net, scenes(boxes, (56, 72)), **settings)
    full, half, eighth = result.rows
    assert result.primary == "ap" and full["ap"] == pytest.approx(1) == half["ap"] and half["ap_change"] == 0
    assert (half["height_px"], half["width_px"]) == (28, 36) and half["ap_small"] == pytest.approx(1)
    assert eighth["ap"] < 0.2 and eighth["ap_change_high_95"] < -0.5 and eighth["ap_low_95"] >= 0
    lost = resolved(planted_net, scenes(small, (56, 72)), **settings).rows[1]
    assert lost["ap"] < 0.3
    back = resolved(planted_net, scenes(boxes, (56, 72)), **settings | {"back": True}).rows
    assert back[0]["ap"] == full["ap"] and 0.3 < back[1]["ap"] <= 1
    words = "12 images; DetectionModel: AP 1.000 at 1, 1.000 at 1/2"
    assert words in result.summary and result.complete


def test_a_detector_beside_its_twin(planted_net: Any) -> None:
    from tests.analysis.planting import scenes, squares
    from tests.analysis.test_detection_robustness import looks

    data = scenes(squares(10, 16, 4, 40), (64, 64))
    before = looks(planted_net)
    result = resolved(planted_net, data, other=copy.deepcopy(planted_net), factors=(0.25,), detector={"resamples": 4})
    assert looks(planted_net) == before
    twin = result.rows[3]
    assert (twin["ap_lead"], twin["ap_lead_low_95"], twin["ap_lead_high_95"], twin["ap_lead_change"]) == (0, 0, 0, 0)
    assert result.rows[1]["ap_lead"] is None and len(result.figure().axes) == 3
    with pytest.raises(AnalysisError, match="are a classifier and a detector"):
        resolved(planted_net, data, other=nn.Flatten(), factors=(0.5,))


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_of_results_read_back(tmp_path: Path) -> None:
    one = resolved(Detail(), stripes(), factors=(0.5, 0.25))
    two = resolved(Detail(), stripes(), other=Brightness(), factors=(0.5, 0.25))
    for name, result, panels in (("one", one, 1), ("two", two, 2)):
        result.to_json(tmp_path / f"{name}.json")
        stored = read_result(tmp_path / f"{name}.json")
        assert stored.kind == "resolution" and stored.rows == result.rows
        for figure in (stored.figure(), result.figure()):
            assert len(figure.axes) == panels
            assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == [
                "1\n16 px",
                "1/2\n8 px",
                "1/4\n4 px",
            ]
        assert "resolution" in result.report(tmp_path / f"{name}.html").read_text()
        assert str(result).splitlines()[1].split()[:2] == ["model", "resolution"]
    with pytest.raises(AnalysisError, match="has no column of nets and factors"):
        analysis.StoredResult("resolution", "t", [{"a": 1}]).figure()


def test_names_of_variants_tell_factors_apart() -> None:
    assert Lower(1 / 3, "area", True).name != Lower(0.3333, "area", True).name
