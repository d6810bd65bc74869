"""Equivariance error: zero where theory says so, not where it does not; every model comes out as it went in."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import analysis
import surgeon
from analysis.feature_layout import layout_of
from analysis.shift_errors import ratios
from analysis.stored import read_result
from analysis.tapping import find_taps
from tests.contracts import Snapshot, stir

ROUNDING = 1e-5


def circular(*strides: int, channels: int = 6) -> nn.Sequential:
    """Convs that pad around, pointwise nonlinearities, global average pooling."""
    layers: list[nn.Module] = []
    for i, stride in enumerate(strides):
        layers += [nn.Conv2d(channels if i else 3, channels, 3, stride, 1, padding_mode="circular"), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def batches(size: int = 16, images: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    drawn = torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return [drawn[: images // 2], drawn[images // 2 :]]


def errors(result: analysis.Equivariance, unit: str) -> list[float]:
    """Relative errors of a unit by shift."""
    return [row["relative_error"] for row in result.rows if row["unit"] == unit]


def test_a_circular_net_is_equivariant() -> None:
    result = analysis.equivariance(circular(1, 1, 1), batches(), units="layer", shifts=(1, 2, (3, -5)), progress=False)
    assert len(result.units) == 5 and result.units[-1] == "8"  # three convs, the pool, the classifier
    assert max(row["relative_error"] for row in result.rows) < ROUNDING
    assert max(row["error"] for row in result.rows if row["error"] is not None) < ROUNDING


def test_a_stride_breaks_it_for_odd_shifts_only() -> None:
    result = analysis.equivariance(circular(1, 2, 1), batches(), units="layer", shifts=(1, 2, 3, 4), progress=False)
    assert max(errors(result, "0")) < ROUNDING, "before the stride nothing is lost"
    for unit in ("2", "4", "8"):
        odd, even = errors(result, unit)[::2], errors(result, unit)[1::2]
        assert max(even) < ROUNDING and min(odd) > 0.01, unit
    steps = {row["dx_positions"] for row in result.rows if row["unit"] == "2"}
    assert steps == {0.5, 1.0, 1.5, 2.0}


def test_aps_is_invariant_and_its_strided_twin_is_not() -> None:
    data = batches(32, 4, dtype=torch.float64)
    twin = stir(timm.create_model("test_resnet", num_classes=5)).double()
    model = surgeon.create_model("test_resnet", {"aps": {"padding": "circular"}}, num_classes=5).double()
    model.load_state_dict(twin.state_dict(), strict=False)
    shifts = (1, 2, (5, -2))
    found, plain = (analysis.equivariance(m, data, shifts=shifts, progress=False) for m in (model, twin))
    assert max(errors(found, "global_pool")) < 1e-9 and max(errors(found, "final_linear")) < 1e-9
    assert min(errors(plain, "global_pool")) > 1e-3


def test_zero_padding_errs_at_the_border_only() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    kept, cropped = (
        analysis.equivariance(net, batches(), units="layer", shifts=(1,), border=border, progress=False)
        for border in ("keep", "crop")
    )
    assert kept.rows[0]["error"] > 0.05 and cropped.rows[0]["error"] < ROUNDING
    black = analysis.equivariance(
        net, batches(), units="layer", shifts=(1,), padding="black", border="crop", fill=(0.3, 0.1, -2), progress=False
    )
    assert black.rows[0]["error"] < ROUNDING
    gone = analysis.equivariance(net, batches(8), units="layer", shifts=(5,), border="crop", progress=False)
    assert gone.rows[0]["error"] is None and "leaves no position" in gone.rows[0]["note"]


def test_the_yardsticks() -> None:
    """An identity is as far off as a shift by half the image makes it: numbers by hand."""
    images = batches()
    net = nn.Sequential(nn.Conv2d(3, 3, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None])
        net[0].bias.zero_()

    class Reversed(nn.Module):
        """Mirrors the map: then a shift to the right moves its features to the left."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor) -> Tensor:
            """Mirror."""
            return self.inner(x).flip(3)

    result = analysis.equivariance(Reversed(), images, units=["inner", "inner.0"], shifts=[(1, 0)], progress=False)
    assert [row["error"] < ROUNDING for row in result.rows] == [True, True]
    every = torch.cat(images)
    away = (every.roll(1, 3) - every.roll(-1, 3)).flatten(1).norm(dim=1)
    spread = (every - every.mean((2, 3), keepdim=True)).flatten(1).norm(dim=1)
    other = (every - every.roll(1, 0)).flatten(1).norm(dim=1)

    class Outer(nn.Module):
        """The mirrored map as a module's own answer."""

        def __init__(self) -> None:
            super().__init__()
            self.mirror = Reversed()

        def forward(self, x: Tensor) -> Tensor:
            """The same."""
            return self.mirror(x) * 1.0

    row = analysis.equivariance(Outer(), images, units=["mirror"], shifts=[(1, 0)], progress=False).rows[0]
    assert row["error"] == pytest.approx(float(away.mean() / spread.mean()), rel=1e-5)
    assert row["relative_error"] == pytest.approx(float(away.mean() / other.mean()), rel=1e-5)
    assert row["error_low_95"] < row["error"] < row["error_high_95"]
    result = analysis.equivariance(Outer(), images, units=["mirror"], shifts=[(1, 0)], progress=False)
    moved, others = (result.by_image[key]["mirror", (1.0, 0.0)] for key in ("error", "other"))
    assert moved == pytest.approx(away.numpy(), rel=1e-5) and others == pytest.approx(other.numpy(), rel=1e-5)


def test_how_data_are_cut_changes_nothing() -> None:
    net, data = circular(2, 2), batches(images=6)
    whole = analysis.equivariance(net, [torch.cat(data)], units="layer", shifts=(1, 2), progress=False)
    pairs = analysis.equivariance(net, [(b, None) for b in data], units="layer", shifts=(1, 2), progress=False)
    small = analysis.equivariance(net, data, units="layer", shifts=(1, 2), memory=1, progress=False)
    for other in (pairs, small):
        for a, b in zip(whole.rows, other.rows, strict=True):
            assert a["relative_error"] == pytest.approx(b["relative_error"], rel=1e-4, abs=1e-6)
    limited = analysis.equivariance(net, data, units="layer", shifts=(1,), limit=4, progress=False)
    assert limited.settings["images"] == 4
    alone = analysis.equivariance(net, data, units="layer", shifts=(1,), limit=1, progress=False)
    assert alone.rows[0]["error"] is not None and alone.rows[0]["relative_error"] is None
    assert alone.figure().axes[0].lines


SLOW = pytest.mark.slow
MODELS = [
    ("test_resnet", 64),
    ("test_vit", 160),
    *(pytest.param(name, size, marks=SLOW) for name, size in (("test_convnext", 64), ("test_efficientnet", 64))),
    *(pytest.param(name, size, marks=SLOW) for name, size in (("test_vit2", 160), ("test_nfnet", 64))),
]


@pytest.mark.parametrize(("name", "size"), MODELS)
def test_models_of_timm_come_out_as_they_went_in(name: str, size: int) -> None:
    model = timm.create_model(name).train()
    before = Snapshot.of(model)
    result = analysis.equivariance(model, batches(size, 2), shifts=(1, 16), progress=False)
    assert before.differences(Snapshot.of(model)) == []
    assert result.complete and len(result.units) > 3
    assert {row["layout"] for row in result.rows} >= ({"tokens"} if "vit" in name else {"map"})
    assert all(row["relative_error"] >= 0 for row in result.rows)
    tokens = [row["reduction_px"] for row in result.rows if row["layout"] == "tokens"]
    assert set(tokens) <= {16.0}


@pytest.mark.parametrize("recipe", ["spd", "blurpool", {"aps": {"padding": "circular"}}], ids=str)
def test_layers_of_surgery_have_the_strides_of_those_they_replace(recipe: Any) -> None:
    model = surgeon.apply(timm.create_model("test_resnet"), recipe, (3, 64, 64))
    found = analysis.equivariance(model, batches(64, 2), shifts=(4,), progress=False)
    plain = analysis.equivariance(timm.create_model("test_resnet"), batches(64, 2), shifts=(4,), progress=False)
    reductions = [{row["path"]: row["reduction_px"] for row in result.rows} for result in (found, plain)]
    assert reductions[0]["maxpool"] == 4
    assert all(reductions[0].get(path, pixels) == pixels for path, pixels in reductions[1].items())


def test_tokens_move_by_whole_patches() -> None:
    """Behind the patches of a transformer a shift by a patch is a shift by one token."""
    model = stir(timm.create_model("test_vit"))
    data = batches(160, 2)
    found = analysis.equivariance(model, data, units=["patch_embed", "blocks.0"], shifts=(8, 16), progress=False)
    patch = errors(found, "patch_embed")
    assert patch[1] < ROUNDING < 0.1 < patch[0]
    assert errors(found, "blocks.0")[1] > 1e-3, "positions are embedded"


def test_a_detector_has_its_layers() -> None:
    pytest.importorskip("ultralytics")
    from ultralytics import YOLO

    model = YOLO("yolo11n.yaml")
    before = Snapshot.of(model.model)
    result = analysis.equivariance(model, batches(64, 2), shifts=(1,), progress=False)
    assert before.differences(Snapshot.of(model.model)) == []
    reductions = {row["unit"]: row["reduction_px"] for row in result.rows}
    assert reductions["layer0.Conv"] == 2 and reductions["layer9.SPPF"] == 32 and len(reductions) > 10
    assert any("Detect" in note for note in result.settings["notes"])


class Failing(nn.Module):
    """Fails at the second pass, after hooks were set."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.passes = nn.Conv2d(3, 4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        """Count and fail."""
        y: Tensor = self.conv(x)
        if not torch.compiler.is_compiling() and type(x) is Tensor:
            self.passes += 1
            if self.passes == 2:
                raise KeyError("on the way")
        return y


def test_an_error_on_the_way_leaves_nothing_behind() -> None:
    model = Failing()
    before = Snapshot.of(model)
    with pytest.raises(KeyError, match="on the way"):
        analysis.equivariance(model, batches(), units=["conv"], shifts=(1,), progress=False)
    assert before.differences(Snapshot.of(model)) == []


class Interrupting(list[Tensor]):
    """Batches, and Ctrl-C before the last."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        yield self[0]
        raise KeyboardInterrupt


def test_after_an_interrupt_the_images_seen_count() -> None:
    model = circular(2)
    before = Snapshot.of(model)
    result = analysis.equivariance(model, Interrupting(batches()), units="layer", shifts=(1,), progress=False)
    assert not result.complete and result.settings["images"] == 3 and "Stopped" in result.summary
    assert before.differences(Snapshot.of(model)) == []


def test_random_layers_draw_the_same_each_time() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU())

    class Noisy(nn.Module):
        """Adds noise in evaluation too."""

        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            """Draw one number per image."""
            return self.net(x) + torch.rand(len(x), 1, 1, 1)

    found = analysis.equivariance(Noisy(), batches(), units=["net", "net.0"], shifts=(1,), progress=False)
    assert max(row["error"] for row in found.rows) < ROUNDING


def test_layouts() -> None:
    assert layout_of((1, 64, 8, 8), 8, (64, 64)).kind == "map"  # type: ignore[union-attr]
    assert layout_of((1, 64, 64, 64), 1, (64, 64), channels_last=True).kind == "channels last"  # type: ignore[union-attr]
    assert layout_of((1, 64, 7, 7), 32, (224, 224)).reduction == (32, 32)  # type: ignore[union-attr]
    unpadded = layout_of((1, 2048, 8, 8), 32, (299, 299))
    assert not isinstance(unpadded, str) and unpadded.reduction == (32, 32)
    upsampled = layout_of((1, 64, 16, 16), 32, (128, 128))
    assert not isinstance(upsampled, str) and upsampled.reduction == (8, 8)
    assert isinstance(layout_of((1, 5, 3), 16, (224, 224)), str)
    assert layout_of((1, 64, 1, 1), 32, (64, 64)).kind == "vector"  # type: ignore[union-attr]


def test_taps_of_swin_are_channels_last() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), num_heads=(3, 3), embed_dim=24)
    taps, _ = find_taps(model, model, "block", (3, 224, 224))
    kinds = {tap.name: (tap.layout.kind, tap.layout.reduction[0]) for tap in taps}
    assert ("channels last", 4.0) in kinds.values() and ("channels last", 8.0) in kinds.values()


def test_ratios_of_means() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    below = generator.random(500) + 1
    above = 0.3 * below + 0.01 * generator.normal(size=500)
    value, low, high = ratios({0: above}, {0: below}, 0)[0]
    assert low < 0.3 < high and high - low < 0.005 and value == pytest.approx(0.3, abs=0.002)
    assert math.isnan(ratios({0: above}, {0: 0 * below}, 0)[0][0])


def test_it_is_drawn_and_read_back(tmp_path: Path) -> None:
    result = analysis.equivariance(circular(1, 2), batches(), units="layer", shifts=(1, 2, (0, 3)), progress=False)
    result.to_json(tmp_path / "equivariance.json")
    stored = read_result(tmp_path / "equivariance.json")
    assert stored.rows == result.rows
    axes = stored.figure().axes[0]
    assert "another image" in axes.get_ylabel() and [t.get_text() for t in axes.get_xticklabels()] == result.units
    lines = [line.get_label() for line in axes.lines]
    assert [words for words in lines if not str(words).startswith("_")][:3] == [
        "1 px, diagonal",
        "2 px, diagonal",
        "3 px down",
    ]


WRONG = [
    ({"padding": "crop"}, "padding is 'crop'"),
    ({"border": "cut"}, "border is 'cut'"),
    ({"limit": 0}, "limit is 0"),
    ({"seed": -1}, "seed is -1"),
    ({"shifts": ()}, "shifts is empty"),
    ({"shifts": (0,)}, "none of them"),
    ({"shifts": (99,)}, "out of sight"),
    ({"shifts": "far"}, "give pixels"),
    ({"units": ["nowhere"]}, "'nowhere', which is no path"),
    ({"units": "neuron"}, "level is 'neuron'"),
    ({"units": []}, "a list of units"),
    ({"memory": "much"}, "memory is"),
    ({"data": []}, "holds no batch"),
    ({"data": torch.rand(2, 3, 8, 8)}, "gone through again"),
    ({"data": [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]}, "no images"),
    ({"data": [torch.rand(2, 3, 16, 16), torch.rand(2, 3, 24, 24)]}, "one size"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_said(settings: dict[str, object], words: str) -> None:
    given = {"units": "layer", "shifts": (1,), "progress": False, "data": batches(), **settings}
    with pytest.raises(analysis.AnalysisError, match=words):
        analysis.equivariance(circular(1), given.pop("data"), **given)  # type: ignore[arg-type]
