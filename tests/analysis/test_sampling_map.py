"""Sampling map: counts by hand, against the gradient of a net of ones, and even after SPD."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import analysis
import surgeon
from analysis.footprint_graph import Paths
from analysis.stored import read_result
from surgeon.tracing import record_forward
from tests.contracts import Snapshot


def conv(kernel: int, stride: int, padding: int = 0, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(1, 1, kernel, stride, padding, bias=False, **more)


def rows_of(net: nn.Module, size: int = 32, **settings: Any) -> list[dict[str, Any]]:
    return analysis.sampling_map(net, (1, size, size), **settings).rows


PATTERNS = [
    (conv(3, 2, 1), "1 2 / 2 4", 0.0, 0.75),
    (conv(3, 2), "4 2 / 2 1", 0.0, 0.75),
    (conv(1, 2), "1 0 / 0 0", 0.75, 0.75),
    (conv(2, 2), "1 1 / 1 1", 0.0, 0.0),
    (conv(3, 3), "1 1 1 / 1 1 1 / 1 1 1", 0.0, 0.0),
    (conv(7, 2, 3), "9 12 / 12 16", 0.0, 0.75),
    (conv(3, 2, 2, dilation=2), "9 0 / 0 0", 0.75, 0.75),
    (conv(2, 4), "1 1 0 0 / 1 1 0 0 / 0 0 0 0 / 0 0 0 0", 0.75, 0.75),
    (nn.MaxPool2d(3, 2, 1), "1 2 / 2 4", 0.0, 0.75),
    (nn.AvgPool2d(2), "1 1 / 1 1", 0.0, 0.0),
]


@pytest.mark.parametrize(("layer", "pattern", "unread", "uneven"), PATTERNS, ids=[str(p[0]) for p in PATTERNS])
def test_patterns_by_hand(layer: nn.Module, pattern: str, unread: float, uneven: float) -> None:
    row = rows_of(nn.Sequential(layer))[0]
    assert (row["pattern"], row["unread_share"], row["uneven_share"]) == (pattern, unread, uneven)
    assert (row["image_unread_share"], row["image_uneven_share"]) == (unread, uneven)


def test_the_border_counts_at_this_size() -> None:
    """A 3x3 conv of stride 2 without padding leaves the last line of an even image unread."""
    assert rows_of(nn.Sequential(conv(3, 2)), 8)[0]["unread_in_map_share"] == pytest.approx(1 - (7 / 8) ** 2)
    assert rows_of(nn.Sequential(conv(3, 2)), 9)[0]["unread_in_map_share"] == 0


class Branches(nn.Module):
    """A residual net with a strided shortcut, a pool, upsampling, slices and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = conv(7, 2, 3), nn.MaxPool2d(3, 2, 1)
        self.one, self.two, self.short = conv(3, 2, 1), conv(3, 1, 1), conv(1, 2)
        self.last = nn.Conv2d(6, 1, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """All ways."""
        x = F.relu(self.pool(self.stem(x)))
        y = F.relu(self.two(self.one(x)) + self.short(x))
        up = F.interpolate(y, scale_factor=2, mode="nearest")
        parts = [x[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]]
        down = torch.cat([*parts, y, F.pad(up, (1, 0, 1, 0))[:, :, ::2, ::2][:, :, :4, :4]], 1)
        out: Tensor = self.last(down)
        return out * torch.sigmoid(out.mean((2, 3), keepdim=True))


class Linear(Branches):
    """The same net with ones for weights, around, without nonlinearities: its gradient counts reads."""

    def forward(self, x: Tensor) -> Tensor:
        """All ways, each conv padded around."""

        def read(y: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
            padded = F.pad(y, (padding, padding, padding, padding), mode="circular") if padding else y
            return F.conv2d(padded, torch.ones(1, 1, kernel, kernel, dtype=y.dtype), stride=stride)

        x = read(read(x, 7, 2, 3), 3, 2, 1)
        y = read(read(x, 3, 2, 1), 3, 1, 1) + read(x, 1, 2, 0)
        up = F.interpolate(y, scale_factor=2, mode="nearest").roll((1, 1), (2, 3))
        parts = [x[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]]
        return read(sum([*parts, y, up[:, :, ::2, ::2]]), 3, 1, 1)  # type: ignore[arg-type]


def test_all_ways_together_are_what_a_gradient_counts() -> None:
    recorded = record_forward(Branches(), [(1, 32, 32)])
    paths = Paths(recorded, Branches())
    counted, left_out = paths.reads_of_image(paths.last())
    image = torch.zeros(1, 1, 64, 64, dtype=torch.float64, requires_grad=True)
    Linear()(image).sum().backward()
    assert counted is not None and image.grad is not None and counted.shape == (8, 8)
    whole = image.grad[0, 0].numpy()
    assert np.array_equal(np.tile(counted.astype(float), (8, 8)), whole)
    assert left_out == [":sigmoid:0"] and len(np.unique(whole)) > 1


def test_spd_makes_it_even() -> None:
    model = surgeon.apply(timm.create_model("test_resnet"), "spd")
    before = Snapshot.of(model)
    found = analysis.sampling_map(model)
    assert before.differences(Snapshot.of(model)) == []
    assert found.states == ["before", "after"] and not found.even("before") and found.even("after")
    after = [row for row in found.rows if row["state"] == "after"]
    assert [row["site"] for row in after] == [row["site"] for row in found.rows if row["state"] == "before"]
    assert all(row["image_uneven_share"] == row["image_unread_share"] == row["image_spread"] == 0 for row in after)
    assert {row["uneven_share"] for row in after[:-1]} == {0.0}
    assert "after: 0 of" in found.summary and "every pixel of the image is read equally often" in found.summary


def test_an_exact_rewrite_reads_what_it_read_until_it_learns() -> None:
    net = surgeon.apply(nn.Sequential(conv(3, 2, 1), nn.MaxPool2d(3, 2, 1)), "spd", (1, 32, 32))
    taps, used = (rows_of(net, weights=weights) for weights in ("taps", "nonzero"))
    before = [row["pattern"] for row in taps if row["state"] == "before"]
    assert [row["pattern"] for row in used if row["state"] == "after"] == before
    assert next(row["pattern"] for row in taps if row["state"] == "after") == "9 9 / 9 9"
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.1)
    assert analysis.sampling_map(net, (1, 32, 32), weights="nonzero").even()


UNLIKE = [conv((5, 3), (2, 3), (1, 0)), conv((2, 3), (3, 2), (0, 1), dilation=(2, 1)), conv(4, (1, 2), 2)]


@pytest.mark.parametrize("layer", UNLIKE, ids=str)
def test_taps_keep_their_places(layer: nn.Conv2d) -> None:
    """Rows and columns, strides, dilations that differ: what a rewritten layer uses is what the old one used."""
    net = surgeon.apply(nn.Sequential(layer), "spd", (1, 36, 36))
    used, before = (rows_of(net, 36, weights="nonzero", before=b) for b in (False, None))
    old = before[0]
    assert surgeon.record(net).count("rewritten") == 1 and old["state"] == "before"
    for key in ("pattern", "reads_min", "reads_max", "unread_share", "uneven_share", "image_spread"):
        assert used[0][key] == old[key], key


OPERATED = [
    ({"spd": {"order": "conv-spd"}}, True),
    ({"spd": {"kernel": "minimal"}}, True),
    ("blurpool", False),  # keeps the stem
    ("aps", True),
    ({"aps": {"padding": "circular"}}, True),
    ({"spd": {"pool": "keep"}}, False),
]


class Small(nn.Module):
    """Two convs and an overlapping pool."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.pool, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.ReLU()
        self.two, self.fc = nn.Conv2d(4, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """In a row."""
        x = self.act(self.two(self.pool(self.act(self.one(x)))))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


@pytest.mark.parametrize(("recipe", "even"), OPERATED, ids=[json.dumps(r) for r, _ in OPERATED])
def test_other_surgery(recipe: Any, even: bool) -> None:
    model = surgeon.apply(Small(), recipe, 64)
    found = analysis.sampling_map(model, 64)
    assert not found.even("before") and found.even("after") is even
    chosen = [row["note"] for row in found.rows if row["state"] == "after" and "choose" in row["note"]]
    assert bool(chosen) is ("aps" in json.dumps(recipe))


def test_blurs_count_by_their_fixed_weights() -> None:
    """1 2 1 at stride 2 takes as much of every position, whoever computes it."""
    rows = analysis.sampling_map(surgeon.apply(Small(), "blurpool", 64), 64, before=False).rows
    assert [row["pattern"] for row in rows[:3]] == ["1 2 / 2 4", "36 36 / 36 36", "36 36 / 36 36"]
    timms = analysis.sampling_map(timm.create_model("test_resnet", aa_layer=timm.layers.BlurPool2d)).rows
    blurs = {row["pattern"] for row in timms if ":conv2d:" in row["site"]}
    assert blurs == {"4 4 / 4 4"}


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_nfnet", "test_vit", "test_resnet"])
def test_models_of_timm(name: str) -> None:
    model = timm.create_model(name).train()
    before = Snapshot.of(model)
    found = analysis.sampling_map(model)
    assert before.differences(Snapshot.of(model)) == []
    assert found.states == ["model"] and all(row["image_min"] is not None for row in found.rows)
    assert found.even() is (name in ("test_vit", "test_convnext"))  # they cut patches


def test_same_padding() -> None:
    model = timm.create_model("test_efficientnet", pad_type="same")
    found = analysis.sampling_map(model, 64)
    assert found.rows[0]["pattern"] == "4 2 / 2 1", "TensorFlow pads behind first"
    assert not found.even() and "se" in found.rows[-1]["note"]


@pytest.mark.slow
def test_functional_pools_are_sites() -> None:
    inception = analysis.sampling_map(timm.create_model("inception_v3", pretrained=False), 139)
    assert any("max_pool2d" in row["site"] for row in inception.rows)


@pytest.mark.slow
def test_a_detector() -> None:
    pytest.importorskip("ultralytics")
    from ultralytics import YOLO

    found = analysis.sampling_map(surgeon.apply(YOLO("yolo11n.yaml"), "spd"))
    assert found.states == ["before", "after"] and not found.even("before") and found.even("after")


def test_behind_what_is_not_known_counting_begins_anew() -> None:
    class Cut(nn.Module):
        """Space-to-depth by hand, which no rule knows, then a strided conv."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            """Reshape and convolve."""
            n, _, h, w = x.shape
            x = x.view(n, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3).reshape(n, 4, h // 2, w // 2)
            y: Tensor = self.conv(x[:, :1])
            return y

    rows = rows_of(Cut())
    assert rows[0]["pattern"] == "1 2 / 2 4" and rows[0]["image_min"] is None
    assert rows[-1]["image_uneven_share"] is None and "left out" in rows[-1]["note"]
    with pytest.raises(analysis.AnalysisError, match="nothing is known"):
        analysis.sampling_map(Cut(), (1, 32, 32)).even()


def test_before_may_be_given() -> None:
    plain = nn.Sequential(conv(3, 2, 1))
    found = analysis.sampling_map(nn.Sequential(conv(2, 2)), (1, 8, 8), before=plain)
    assert not found.even("before") and found.even("after")
    operated = surgeon.apply(nn.Sequential(conv(3, 2, 1)), "spd", (1, 8, 8))
    assert analysis.sampling_map(operated, (1, 8, 8), before=False).states == ["model"]


def test_it_is_drawn_and_read_back(tmp_path: Path) -> None:
    found = analysis.sampling_map(surgeon.apply(Small(), "spd", 64), 64)
    found.to_json(tmp_path / "map.json")
    stored = read_result(tmp_path / "map.json")
    assert stored.rows == found.rows and len(stored.figure().axes) == len(found.figure().axes) == 2 * 4 + 2
    titles = [axes.get_title() for axes in stored.figure().axes]
    assert titles[:3] == ["one", "pool", "two"] and "image" in titles[3]


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(analysis.AnalysisError, match="weights is 'some'"):
        analysis.sampling_map(Small(), 64, weights="some")  # type: ignore[arg-type]
    with pytest.raises(analysis.AnalysisError, match="before is 'spd'"):
        analysis.sampling_map(Small(), 64, before="spd")
    with pytest.raises(surgeon.SurgeonError, match="input_size"):
        analysis.sampling_map(Small())
    with pytest.raises(analysis.AnalysisError, match="the states are model"):
        analysis.sampling_map(Small(), 64).even("after")
