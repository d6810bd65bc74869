"""Two detectors side by side: known answers of planted ones, real ones on every measure, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import analysis
from surgeon.errors import AnalysisError
from tests.analysis.planting import Box, Found, Rule, exactly, on_a_grid, pictures, planted, scenes, squares
from tests.contracts import Snapshot
from tests.surgeon.yolo.small import network

pytest.importorskip("ultralytics")
BOXES = squares(12, 40, 8, 80)
AT = 48.0


def left_ones(box: Box) -> Found:
    """What lies at the left, exactly."""
    return exactly(box) if box[0] < AT else []


def nothing(_: Box) -> Found:
    """Blind."""
    return []


def of_another_class(box: Box) -> Found:
    """All, those at the right as another class."""
    return [(corners, int(box[0] >= AT), score) for corners, _, score in exactly(box)]


def net_of(folder: Path, rule: Rule, classes: int = 3) -> Any:
    folder.mkdir()
    return planted(folder, rule, classes)


def beside(a: Any, b: Any, data: Any, *measures: str, **more: Any) -> analysis.Comparison:
    settings = {"detector": {"resamples": 20}, "progress": False, **more}
    return analysis.compare(a, b, data, measures=measures, **settings)


def test_what_only_one_finds_is_counted_and_drawn(tmp_path: Path) -> None:
    missed = [i for i, [box] in enumerate(BOXES) if box[0] >= AT]
    assert 0 < len(missed) < len(BOXES)
    nets = [net_of(tmp_path / rule.__name__, rule) for rule in (exactly, left_ones)]
    before = [Snapshot.of(net.model) for net in nets]
    data = scenes(BOXES, (160, 160))
    found = beside(*nets, data, shown=3)
    assert [one.differences(Snapshot.of(net.model)) for one, net in zip(before, nets, strict=True)] == [[], []]
    rows = {row["measure"]: row for row in found.rows}
    ap, lacking = rows["average precision"], rows["detections the other net lacks"]
    assert ap["original"] == pytest.approx(1, abs=0.01) and ap["difference"] < -0.2 and ap["difference_high_95"] < 0
    assert (lacking["original"], lacking["operated"]) == (len(missed) / len(BOXES), 0)
    assert found.settings["disagree_images"] == len(missed) and found.settings["another_class_share"] == 0
    assert [each.index for each in found.disagreements] == missed[:3]
    first = found.disagreements[0]
    assert np.allclose(first.alone[0], BOXES[first.index]) and len(first.alone[1]) == len(first.both) == 0
    x1, y1, x2, y2 = (int(value) for value in first.alone[0][0])
    assert torch.all(first.image[:, y1:y2, x1:x2] == 1) and float(first.image.sum()) == 3 * 40 * 40
    assert len(found.gallery().axes[0].patches) == 1
    page = found.report(tmp_path / "page.html").read_text()
    assert page.count("<svg") + page.count("data:image/png") >= 2 and "average precision" in page


def test_boxes_lie_right_in_letterboxes(tmp_path: Path) -> None:
    data, _ = pictures(tmp_path / "data")
    nets = [net_of(tmp_path / rule.__name__, rule) for rule in (exactly, nothing)]
    found = beside(*nets, data, detector={"imgsz": 192, "batch": 4, "resamples": 20})
    assert len(found.disagreements) == 10 and found.settings["detector"]["imgsz"] == 192
    assert len({tuple(each.image.shape[1:]) for each in found.disagreements}) > 1
    for each in found.disagreements:
        there = each.image[0] > 0.6
        rows, columns = there.any(1).nonzero()[:, 0], there.any(0).nonzero()[:, 0]
        assert np.allclose(each.alone[0][0], [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1)


def test_both_see_images_of_one_size(tmp_path: Path) -> None:
    from ultralytics import YOLO

    data, _ = pictures(tmp_path / "data")
    nets = [YOLO(network(tmp_path)) for _ in range(2)]
    nets[1].model.load_state_dict(nets[0].model.state_dict())
    for net, size in zip(nets, (192, 96), strict=True):
        net.model.args = {"imgsz": size}
    own = {"detection_shift": {"shifts": (4,)}, "cost": {"rounds": 1, "least": 1e-3}}
    found = analysis.compare(*nets, data, measures=["detection_shift", "cost"], settings=own, progress=False)
    assert found.settings["detector"]["imgsz"] == 192 and "left out" not in found.summary
    differ = {row["measure"] for row in found.rows if row["difference"]}
    assert differ <= {"milliseconds at batch 1"}, differ


def test_nets_that_see_other_shapes_are_refused_before_anything_runs(tmp_path: Path) -> None:
    data, _ = pictures(tmp_path / "data")
    nets = [net_of(tmp_path / name, exactly) for name in "ab"]
    nets[1].model.stride = torch.tensor([8.0, 64.0])
    with pytest.raises(AnalysisError, match=r"of stride 64 are shown the first images as \(3, 96, 160\) and \(3, 128"):
        beside(*nets, data, detector={"imgsz": 96, "batch": 1})


def test_a_detector_beside_itself_differs_nowhere(tmp_path: Path) -> None:
    net, data = net_of(tmp_path / "a", exactly), scenes(BOXES, (160, 160))
    found = beside(
        net, net_of(tmp_path / "b", exactly), data, "detection_shift", settings={"detection_shift": {"shifts": (4,)}}
    )
    assert {row["difference"] for row in found.rows if row["difference"] is not None} == {0}
    assert found.disagreements == [] and "disagree on 0 images" in found.summary


def test_other_classes_and_what_shifts_do(tmp_path: Path) -> None:
    nets = [net_of(tmp_path / rule.__name__, rule) for rule in (on_a_grid, of_another_class)]
    own = {"detection_shift": {"shifts": (4, 8), "padding": "black"}}
    found = beside(*nets, scenes(BOXES, (160, 160)), "detection_shift", settings=own)
    rows = {row["measure"]: row for row in found.rows}
    share = sum(box[0] >= AT for [box] in BOXES) / len(BOXES)
    assert found.settings["another_class_share"] == pytest.approx(share)
    jitter, flips = rows["box jitter under shifts, in sides"], rows["detections of another class under shifts"]
    assert jitter["original"] > 0.02 > jitter["operated"] == pytest.approx(0, abs=1e-9)
    crossing = sum(AT - 4 <= box[0] < AT for [box] in BOXES) + sum(AT - 8 <= box[0] < AT for [box] in BOXES)
    assert flips["operated"] == pytest.approx(crossing / (2 * len(BOXES))) and flips["original"] == 0
    assert len(found.results) == 2


@pytest.mark.parametrize(
    ("classes", "more", "words"),
    [
        (4, {}, "3 and 4 classes"),
        (3, {"measures": ["translation"]}, "'translation' is none of detectors; there are detection_shift"),
        (3, {"settings": {"detection_shift": {"shfts": 2}}}, "takes no 'shfts'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, classes: int, more: Any, words: str) -> None:
    nets = net_of(tmp_path / "a", exactly), net_of(tmp_path / "b", exactly, classes)
    with pytest.raises(AnalysisError, match=words):
        analysis.compare(*nets, scenes(BOXES[:2], (160, 160)), progress=False, **{"measures": [], **more})


def test_a_classifier_and_a_detector_have_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="a classifier and a detector"):
        analysis.compare(torch.nn.Linear(3, 2), planted(tmp_path, exactly), scenes(BOXES[:2], (160, 160)))


@pytest.mark.slow
def test_real_detectors_on_every_measure(tmp_path: Path) -> None:
    pytest.importorskip("captum.attr")
    from ultralytics import YOLO

    import surgeon

    torch.manual_seed(0)
    nets = YOLO("yolo11n.yaml"), YOLO("yolo11n.yaml")
    nets[1].model.load_state_dict(nets[0].model.state_dict())
    surgeon.apply(nets[1], "spd", input_size=(3, 64, 64))
    before = [Snapshot.of(net.model) for net in nets]
    own = {"detection_shift": {"shifts": (1,)}, "resolution": {"factors": (1, 0.5)}, "attribution": {"shifts": (1,)}}
    found = analysis.compare(*nets, scenes(BOXES[:3], (160, 160)), settings=own, progress=False)
    assert [one.differences(Snapshot.of(net.model)) for one, net in zip(before, nets, strict=True)] == [[], []]
    assert "left out" not in found.summary, found.summary
    rows = {row["measure"]: row for row in found.rows}
    assert rows["parameters"]["difference"] > 0 and rows["multiply-adds"]["difference"] > 0
    assert len(found.results) == 9 and found.settings["input_size"] == [3, 160, 160]
    found.report(tmp_path / "page.html")
