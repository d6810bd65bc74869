"""Detectors under shift: jitter, flips and precision of detectors whose answers are known, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ultralytics")
pytest.importorskip("faster_coco_eval")

import ultralytics

import analysis
import surgeon
from analysis import AnalysisError
from analysis.detection_jitter import COUNTED, Drawn, columns_of
from analysis.detection_matching import match, match_by_truth, things
from analysis.shift_views import Shifting, moved_truth
from analysis.stored import read_result
from tests.analysis.detecting import Found
from tests.analysis.planting import Box, exactly, on_a_grid, pictures, planted, scenes, squares
from tests.analysis.test_detection_robustness import broken_by, detector, labelled_by, looks, some_batches

FEW = {"resamples": 2}


def shifted(model: Any, data: Any, **settings: Any) -> analysis.DetectionShift:
    return analysis.detection_shift(model, data, **{"detector": FEW, "progress": False, **settings})


def by_shift(result: Any) -> dict[tuple[float, float], dict[str, Any]]:
    return {(row["dx_px"], row["dy_px"]): row for row in result.rows}


def off_grid(corner: float, shift: int) -> float:
    """How far the box of a net of stride 8 is, after a shift, from where it should be."""
    return 8 * ((corner + shift) // 8) - shift - 8 * (corner // 8)


# ----------------------------------------------------------------------------------------------- known in closed form


@pytest.fixture(scope="module")
def on_grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[Box]], Any, Any]:
    """Squares of 40 pixels, found on a grid of 8, at every diagonal shift to 32."""
    boxes = squares(12, 40, 8, 80)
    model = planted(tmp_path_factory.mktemp("grid"), on_a_grid)
    data = scenes(boxes, (160, 160))
    return boxes, shifted(model, data, shifts=range(1, 33), padding="black"), (model, data)


def test_the_spectrum_of_jitter_finds_the_grid(on_grid: Any) -> None:
    found = analysis.aliasing(on_grid[1], column="jitter_px", periods=(5, 8), surrogates=199)
    assert found.periodic == [8.0]
    row = next(row for row in found.rows if row["period_px"] == 8)
    assert row["share"] > 0.8


def test_jitter_is_that_of_the_grid(on_grid: Any) -> None:
    boxes, result, _ = on_grid
    for (dx, dy), row in by_shift(result).items():
        away = np.array([[off_grid(box[0], int(dx)), off_grid(box[1], int(dy))] for [box] in boxes])
        common = np.prod(40 - np.abs(away), 1)
        expected = {
            "jitter_px": np.hypot(*away.T).mean(),
            "jitter_share": np.hypot(*away.T).mean() / 40,
            "overlap_lost": 1 - (common / (3200 - common)).mean(),
            **dict.fromkeys(("size_change_share", "score_change", "flip_share", "vanished_share"), 0.0),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-6) == row[f"truth_{name}"], (dx, name)
        assert row["paired"] == row["detections"] == 12 and row["objects_left_out"] == 0
        assert row["jitter_px_low_95"] <= row["jitter_px"] <= row["jitter_px_high_95"]
        if dx % 8 == 0:
            assert row["ap_difference"] == 0 and row["jitter_px"] == pytest.approx(0, abs=1e-9)
    moved = [row["jitter_px"] for row in result.rows if row["dx_px"] % 8]
    assert min(moved) > 1 and any(row["ap_difference"] != 0 for row in result.rows)


def test_the_stride_is_found_in_the_jitter(on_grid: Any) -> None:
    _, result, (model, data) = on_grid
    found = result.settings["jitter_repeats"]
    assert found["period_px"] == 8 and found["sure"] and found["explained_share"] > 0.99
    assert "jitter repeats every 8 px" in result.summary and "12 images, 12 objects" in result.summary
    few = shifted(model, data, shifts=np.array((1, 2, 5)), padding="black")
    assert few.settings["jitter_repeats"] is None and "repeats" not in few.summary


def test_a_detector_that_finds_what_there_is_does_not_jitter(tmp_path: Path) -> None:
    """In letterboxes too: pictures twice as large as on disk, with bars; boxes in pixels of the disk."""
    data, _ = pictures(tmp_path)
    model = planted(tmp_path, exactly)
    settings = {"shifts": (-3, 5, 16), "padding": "black", "detector": {**FEW, "imgsz": 192, "batch": 4}}
    result = shifted(model, data, **settings)
    assert [row["dx_px"] for row in result.rows] == [0, -3, 5, 16] and result.settings["input_size"] == 192
    for row in result.rows:
        assert row["ap"] == pytest.approx(result.rows[0]["ap"]) and row["ap"] > 0.8
        assert row["jitter_px"] == pytest.approx(0, abs=1e-3) and row["truth_jitter_px"] == pytest.approx(0, abs=1e-3)
        assert row["paired"] == row["detections"] > 8 and row["objects"] == 10


def test_a_shift_by_the_whole_image_is_none(tmp_path: Path) -> None:
    """Through the same code as any shift; by less than the whole the same detector jitters."""
    data = scenes(squares(10, 24, 9, 32), (64, 64))
    result = shifted(planted(tmp_path, on_a_grid), data, shifts=(64, 60), padding="circular")
    still, whole, less = result.rows
    assert whole["detections"] == whole["paired"] == 10
    for name, value in whole.items():
        if name not in ("dx_px", "dy_px") and not name.endswith("_95"):
            assert value == pytest.approx(still[name], abs=1e-9), name
    zero = ("jitter_px", "jitter_share", "overlap_lost", "size_change_share", "score_change", "ap_difference")
    for name in (*zero, "flip_share", "vanished_share", "appeared_share"):
        assert whole[name] == pytest.approx(0, abs=1e-9), name
    for name in zero:
        assert whole[f"{name}_low_95"] == pytest.approx(0, abs=1e-9) == whole[f"{name}_high_95"], name
    assert 0 < whole["flip_share_high_95"] < 0.5  # none in ten images is no certainty
    assert less["jitter_px"] > 1


def test_planted_flips_and_losses_are_counted(tmp_path: Path) -> None:
    def rule(box: Box) -> Found:
        """Another class at odd places; nothing at every fourth; less sure the lower."""
        x, y = int(box[0]), int(box[1])
        return [] if y % 4 == 3 else [([*box], x % 2, 0.5 + y / 200)]

    boxes = squares(12, 24, 8, 24)
    result = shifted(planted(tmp_path, rule), scenes(boxes, (96, 96)), shifts=(1, 2), axis="grid", padding="black")
    rows, there = by_shift(result), np.array([box[:2] for [box] in boxes])
    seen = there[:, 1] % 4 != 3
    for (dx, dy), row in rows.items():
        now = (there[:, 1] + dy) % 4 != 3
        assert row["detections"] == seen.sum() and row["paired"] == (seen & now).sum()
        assert row["flip_share"] == row["truth_flip_share"] == dx % 2
        assert row["vanished_share"] == row["truth_vanished_share"] == pytest.approx((seen & ~now).sum() / seen.sum())
        assert row["appeared_share"] == row["truth_appeared_share"] == pytest.approx((now & ~seen).sum() / now.sum())
        assert row["score_change"] == pytest.approx(dy / 200, abs=1e-6)
    assert rows[1, 1]["vanished_share"] > 0 and rows[2, 2]["appeared_share"] > 0 and len(rows) == 5


def test_what_leaves_the_image_is_clipped_and_left_out(tmp_path: Path) -> None:
    boxes = [[(40.0, 20.0, 60.0, 40.0)]] * 10
    result = shifted(planted(tmp_path, exactly), scenes(boxes, (64, 64)), shifts=(4, 12, 16), axis="horizontal",
                     padding="black")  # fmt: skip
    whole, touching, cut, gone = result.rows
    assert [row["objects_left_out"] for row in result.rows] == [0, 0, 0, 10] and gone["ap"] is None
    assert [row["detections"] for row in result.rows] == [10, 0, 0, 0]  # at the border a box may be cut
    assert whole["jitter_px"] == 0 and touching["jitter_px"] is None and cut["ap"] == pytest.approx(whole["ap"])
    assert "up to 10 objects are left out" in result.summary and str(result).count("\n") == 6


def test_a_crop_has_no_border_of_its_own(tmp_path: Path) -> None:
    """The window moves over the picture: no mirror, no black, and the same answers."""
    boxes = [[(30.0, 30.0, 46.0, 46.0)]] * 10
    model, data = planted(tmp_path, exactly), scenes(boxes, (64, 64))
    result = shifted(model, data, shifts=(-6, 8), padding="crop")
    assert result.settings["margin"] == 8
    assert [(row["jitter_px"], row["ap_difference"], row["paired"]) for row in result.rows] == [(0, 0, 10)] * 3
    with pytest.raises(AnalysisError, match="need 32 pixels on each side, and images are 64x64"):
        shifted(model, data, shifts=(32,), padding="crop")


# --------------------------------------------------------------------------------------------------------- definitions


def table(*rows: list[float]) -> Any:
    return np.array(rows, float).reshape(len(rows), -1)


def test_pairs_are_one_to_one_and_the_best_together() -> None:
    one = table([0, 0, 10, 10, 0.9, 0], [4, 0, 14, 10, 0.8, 0])
    other = table([3, 0, 13, 10, 0.9, 0], [8, 0, 18, 10, 0.9, 0])
    pairs = match(one, other, 0.2)  # the surest first would pair 4 with 3, and leave 0 alone
    assert dict(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == {0: 0, 1: 1}
    assert len(match(one, other, 0.9).first) == len(match(one[:0], other, 0.2).first) == 0
    twins = table([0, 0, 10, 10, 0.9, 1], [0, 0, 10, 10, 0.8, 2])
    assert match(twins, twins[::-1], 0.5).second.tolist() == [1, 0]  # each with its class


def test_one_thing_is_one_detection() -> None:
    found = table([0, 0, 10, 10, 0.6, 1], [0, 0, 10, 9, 0.7, 2], [6, 0, 16, 10, 0.5, 1], [40, 0, 50, 10, 0.2, 1])
    assert things(found, 0.25, 0.7)[:, 4].tolist() == [0.7, 0.5]
    assert things(found, 0.25, 1.0)[:, 4].tolist() == [0.7, 0.6, 0.5] and len(things(found, 0.95, 0.7)) == 0


def test_pairs_by_truth_need_not_overlap_each_other() -> None:
    truth = table([0, 0, 10, 10, 0], [50, 0, 60, 10, 1])
    one, other = table([0, 3, 10, 13, 0.9, 0], [50, 0, 60, 10, 0.9, 1]), table([0, -3, 10, 7, 0.9, 2])
    pairs, before, after = match_by_truth(one, other, (truth, truth), 0.5)
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0], [0])
    assert (before.first.tolist(), after.first.tolist()) == ([0, 1], [0])
    assert len(match(one, other, 0.5).first) == 0


def test_intervals_are_of_images_not_of_boxes() -> None:
    """Ten boxes that share their luck in each image say no more than one: the interval does not shrink."""
    sums = np.zeros((40, len(COUNTED)))
    sums[:, [COUNTED.index(name) for name in ("before", "after", "pairs")]] = 1
    sums[::2, COUNTED.index("distance")] = 2.0
    sums[::4, COUNTED.index("flips")] = 1.0
    one, many = columns_of(sums, Drawn(40, 0)), columns_of(10 * sums, Drawn(40, 0), "x_")
    assert {f"x_{name}": value for name, value in one.items()} == pytest.approx(many)
    assert one["jitter_px"] == 1.0 and one["flip_share"] == 0.25
    error = 1.96 / np.sqrt(40)
    assert one["jitter_px_high_95"] - one["jitter_px_low_95"] == pytest.approx(2 * error, rel=0.15)
    assert one["vanished_share"] == 0 == one["vanished_share_low_95"] and 0.05 < one["vanished_share_high_95"] < 0.1
    few = columns_of(sums[:9], Drawn(9, 0))
    assert few["jitter_px"] is not None and few["jitter_px_low_95"] is None
    assert columns_of(np.zeros((40, len(COUNTED))), Drawn(40, 0))["jitter_px"] is None


def test_objects_move_with_the_picture() -> None:
    truth = table([10, 10, 20, 30, 2], [0, 0, 10, 10, 1])
    assert moved_truth(truth, (-4, 0), (40, 40)).tolist() == [[6, 10, 16, 30, 2], [0, 0, 6, 10, 1]]
    assert moved_truth(truth, (-6, 0), (40, 40)).tolist() == [[4, 10, 14, 30, 2]]
    assert moved_truth(truth, (-6, 0), (40, 40), wrapped=True)[1].tolist() == [34, 0, 40, 10, 1]
    assert moved_truth(truth[:0], (1, 1), (40, 40)).shape == (0, 5)


def test_bars_of_the_letterbox_stay() -> None:
    image = torch.full((1, 3, 8, 8), 0.5)
    image[:, :, 2:6] = torch.arange(8) / 10
    batch = {"img": image, "ori_shape": ((8, 16),), "ratio_pad": (((0.5, 0.5), (0, 2)),), "truth": (np.ones((0, 5)),)}
    empty = {key: torch.zeros(0) for key in ("batch_idx", "cls", "bboxes")}
    moved = Shifting("circular").view({**batch, **empty}, 0, 0, shift=(3.0, 1.0))["img"]
    assert torch.equal(moved[:, :, 2:6], image[:, :, 2:6].roll((1, 3), (2, 3)))
    assert torch.equal(moved[:, :, :2], image[:, :, :2]) and torch.equal(moved[:, :, 6:], image[:, :, 6:])


# ---------------------------------------------------------------------------------------------------- nets as they are


@pytest.mark.slow
@pytest.mark.parametrize("head", ["Detect", "v10Detect", "RTDETRDecoder"])
def test_nets_of_all_kinds(head: str, tmp_path: Path) -> None:
    model = detector(tmp_path, head)
    data = labelled_by(model, tmp_path / "set", images=4)
    before = looks(model)
    settings = {"shifts": (3, 8), "conf": 0.01}
    few = {"imgsz": 64, "batch": 3}
    still = shifted(model, data, **settings, detector=few).rows[0]
    own = analysis.detection(model, data, imgsz=64, batch=3, latency=False, resamples=0).values
    assert still["ap"] == pytest.approx(own["AP"]) and still["ap_small"] == pytest.approx(own["AP_S"])
    assert looks(model) == before
    noise = torch.nn.functional.interpolate(torch.rand(4, 3, 20, 20), scale_factor=8)
    target = {"boxes": torch.tensor([[40.0, 40.0, 90.0, 80.0]]), "labels": torch.tensor([1])}
    result = shifted(model, [(noise, [target] * 4)], **settings)
    _, odd, stride = result.rows
    kept = [(1 - row["vanished_share"]) * (1 - (row["overlap_lost"] or 0)) for row in (odd, stride)]
    assert 0 <= kept[0] < kept[1] - 0.05 and stride["paired"] > 0 < stride["score_change"]
    assert "too few images for intervals" in result.summary
    if head == "Detect":
        surgeon.apply(model, "spd")  # the same function
        again = shifted(model, [(noise, [target] * 4)], **settings)
        assert [row["jitter_px"] for row in again.rows] == pytest.approx(
            [r["jitter_px"] for r in result.rows], abs=1e-3
        )


@pytest.mark.parametrize(
    "end", [None, *(pytest.param(end, marks=pytest.mark.slow) for end in (ZeroDivisionError, KeyboardInterrupt))]
)
def test_yolo11n_is_as_before(end: type[BaseException] | None) -> None:
    model = ultralytics.YOLO("yolo11n.yaml")
    before = looks(model)
    settings = {"shifts": (1, 2), "detector": {"imgsz": 64}}
    if end is None:
        result = shifted(model, iter(some_batches(1)), **settings)
        assert result.complete and result.settings["strides"] == [2, 4, 8, 16, 32] and result.settings["images"] == 2
    elif end is KeyboardInterrupt:
        assert not shifted(model, broken_by(end), **settings).complete
    else:
        with pytest.raises(end, match="here"):
            shifted(model, broken_by(end), **settings)
    assert looks(model) == before


def test_a_ledger_goes_on(tmp_path: Path) -> None:
    model, data = planted(tmp_path, on_a_grid), scenes(squares(10, 24, 4, 32), (64, 64))
    kept = tmp_path / "kept.npz"

    def stopped() -> Any:
        yield data[0]
        raise KeyboardInterrupt

    half = shifted(model, stopped(), shifts=(1,), ledger=kept)
    assert not half.complete and half.settings["images"] == 5
    whole, fresh = (shifted(model, data, shifts=(1,), ledger=ledger) for ledger in (kept, None))
    assert whole.rows == fresh.rows
    with pytest.raises(AnalysisError, match="ledger of another analysis"):
        shifted(model, data, shifts=(1,), padding="black", ledger=kept)


def test_what_is_none_is_refused_in_words(tmp_path: Path) -> None:
    model, data = planted(tmp_path, exactly), some_batches(1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"shifts": "all"}, "shifts holds 'all'"),
        ({"shifts": ()}, "shifts holds nothing"),
        ({"shifts": (1, float("nan"))}, "shifts holds nan"),
        ({"shifts": 0}, "0 shifts that move anything"),
        ({"axis": "across"}, "axis is 'across'; it is one of"),
        ({"padding": "grey"}, "padding is 'grey'; it is one of mirror"),
        ({"fill": 114}, "fill is 114; detectors see values from 0 to 1"),
        ({"match_iou": 0}, "match_iou is 0; give a number over 0"),
        ({"conf": 0.0005}, "detections below 0.001 are not kept"),
        ({"detector": {"size": 3}}, "unknown key 'size'"),
        ({"limit": 0}, "limit is 0"),
    ]
    for settings, words in cases:
        with pytest.raises(AnalysisError, match=words):
            shifted(model, data, **settings)
    with pytest.raises(AnalysisError, match=r"found Flatten; of a classifier call analysis\.translation"):
        shifted(nn.Flatten(), [])
    with pytest.raises(AnalysisError, match=r"found Flatten; of a classifier call"):
        analysis.detection_shift(torch.nn.Flatten(), "digits")


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_of_results_read_back(on_grid: Any, tmp_path: Path) -> None:
    _, result, (model, data) = on_grid
    result.to_json(tmp_path / "line.json")
    grid = shifted(model, data, shifts=(0, 8), axis="grid", padding="black", limit=4)
    grid.to_json(tmp_path / "grid.json")
    assert len(grid.rows) == 4 and "too few images for intervals" in grid.summary
    for name, one in (("line", result), ("grid", grid)):
        stored = read_result(tmp_path / f"{name}.json")
        assert stored.rows == one.rows and stored.kind == "detection_shift"
        figures = [each.figure() for each in (one, stored)]
        labels = [[axes.get_xlabel() for axes in figure.axes] for figure in figures]
        assert labels[0] == labels[1] and labels[0][0].startswith("shift right")
        assert "images" in result.report(tmp_path / f"{name}.html").read_text()
    nothing = shifted(model, data, shifts=8, conf=0.95)  # surer than it ever is
    assert nothing.rows[1]["jitter_px"] is None and len(nothing.figure().axes) == 3
    assert "no detection is as sure as conf asks for" in nothing.summary
    with pytest.raises(AnalysisError, match="has no column 'dx_px'"):
        analysis.StoredResult("detection_shift", "t", [{"a": 1}]).figure()
