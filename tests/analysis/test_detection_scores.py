"""Average precision by size: cases by hand, against ultralytics' own, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("ultralytics")
pytest.importorskip("faster_coco_eval")

import ultralytics

import analysis
from analysis import AnalysisError, DetectionScores
from analysis.detection_coco import METRICS, CocoScores, interval
from analysis.detection_latency import latencies, side
from recipes import digits_detection
from tests.analysis.detecting import Found, detections, oracle
from tests.surgeon.yolo.small import network, squares

SMALL, MEDIUM, LARGE = [0.0, 0.0, 20.0, 20.0], [100.0, 0.0, 150.0, 50.0], [200.0, 0.0, 320.0, 120.0]


def scores(predictions: list[Found], targets: list[Found]) -> dict[str, float | None]:
    return DetectionScores(detections(predictions, targets), resamples=0, seed=0).values


# --------------------------------------------------------------------------------------------------- by hand


def test_perfect_is_one_and_none_is_zero() -> None:
    objects: Found = [(SMALL, 0, 1), (MEDIUM, 0, 1), (LARGE, 1, 1)]
    assert scores([objects], [objects]) == pytest.approx(dict.fromkeys(METRICS, 1.0))
    assert scores([[]], [objects]) == pytest.approx(dict.fromkeys(METRICS, 0.0))
    wrong_class: Found = [(box, 1 - label, 1) for box, label, _ in objects]
    assert scores([wrong_class], [objects]) == pytest.approx(dict.fromkeys(METRICS, 0.0))


def test_one_of_two_classes_and_half_of_one() -> None:
    objects: Found = [(SMALL, 0, 1), (SMALL, 1, 1)]
    assert scores([objects[:1]], [objects])["AP"] == pytest.approx(0.5)
    two: Found = [(SMALL, 0, 1), ([40, 0, 60, 20], 0, 1)]
    half = scores([two[:1]], [two])  # precision 1 at the 51 recalls 0.00 to 0.50 of 101, else 0
    assert half["AP"] == pytest.approx(51 / 101) and half["AR"] == pytest.approx(0.5)


def test_a_surer_mistake_costs_precision_and_an_unsure_one_nothing() -> None:
    right, wrong = (SMALL, 0, 0.8), [40.0, 40.0, 60.0, 60.0]
    assert scores([[right, (wrong, 0, 0.9)]], [[right]])["AP"] == pytest.approx(0.5)
    assert scores([[right, (wrong, 0, 0.7)]], [[right]])["AP"] == pytest.approx(1.0)


def test_thresholds_of_overlap() -> None:
    objects: Found = [([0, 0, 10, 100], 0, 1)]
    values = scores([[([0, 0, 10, 72], 0, 0.9)]], [objects])  # overlap 0.72: hits at 0.50, 0.55, ... 0.70
    assert (values["AP50"], values["AP75"], values["AP"]) == pytest.approx((1.0, 0.0, 0.5))


def test_sizes_go_by_area() -> None:
    objects: Found = [(SMALL, 0, 1), (MEDIUM, 0, 1), (LARGE, 0, 1)]
    result = DetectionScores(detections([objects[:1]], [objects]), resamples=0, seed=0)
    assert [result.values[key] for key in ("AP_S", "AP_M", "AP_L")] == [1, 0, 0]
    assert result.objects == dict.fromkeys(METRICS, 3) | dict.fromkeys(("AP_S", "AP_M", "AP_L"), 1)
    only_large = DetectionScores(detections([objects[2:]], [objects[2:]]), resamples=0, seed=0)
    assert [only_large.values[key] for key in ("AP_S", "AP_M", "AP_L")] == [None, None, 1]
    assert [row["note"] for row in only_large.rows if row["metric"] == "AP_S"] == ["no small object"]


@pytest.mark.parametrize(
    ("width", "height", "sizes"),
    [
        (31, 33, {"AP_S"}),
        (32, 32, {"AP_S", "AP_M"}),
        (33, 32, {"AP_M"}),
        (96, 96, {"AP_M", "AP_L"}),
        (96, 97, {"AP_L"}),
    ],
)
def test_borders_of_sizes(width: int, height: int, sizes: set[str]) -> None:
    objects: Found = [([5, 5, 5 + width, 5 + height], 0, 1)]
    result = DetectionScores(detections([objects], [objects]), resamples=0, seed=0)
    assert {key for key in ("AP_S", "AP_M", "AP_L") if result.values[key] is not None} == sizes
    assert {key for key in ("AP_S", "AP_M", "AP_L") if result.objects[key]} == sizes


def test_images_without_objects_count_as_background() -> None:
    objects: Found = [(SMALL, 0, 0.5)]
    assert scores([objects, []], [objects, []])["AP"] == pytest.approx(1.0)
    assert scores([objects, [(SMALL, 0, 0.9)]], [objects, []])["AP"] == pytest.approx(0.5)
    assert scores([[(SMALL, 0, 0.9)]], [[]]) == dict.fromkeys(METRICS)  # nothing to find at all


# ------------------------------------------------------------------------------------------------- intervals


def some_images(count: int) -> tuple[list[Found], list[Found]]:
    rng = np.random.default_rng(0)
    targets: list[Found] = []
    predictions: list[Found] = []
    for _ in range(count):
        corners = rng.integers(0, 200, (4, 2)).astype(float)
        there = np.concatenate([corners, corners + rng.integers(8, 120, (4, 2))], 1)
        targets.append([(box, int(rng.integers(2)), 1.0) for box in there.tolist()])
        near = there + rng.normal(0, 4, there.shape)
        found = [
            (box, label, float(rng.random())) for box, (_, label, _) in zip(near.tolist(), targets[-1], strict=True)
        ]
        predictions.append([*found, ([220.0, 0.0, 240.0, 20.0], 0, float(rng.random()))])
    return predictions, targets


def test_drawing_images_again_is_copying_them() -> None:
    predictions, targets = some_images(12)
    whole, drawn = CocoScores(detections(predictions, targets)), np.array([0, 3, 3, 5, 11, 11, 11, 6, 6, 6, 6, 7])
    copied = CocoScores(detections([predictions[i] for i in drawn], [targets[i] for i in drawn]))
    assert whole.of(drawn) == pytest.approx(copied.all(), abs=1e-12, nan_ok=True)
    assert not np.allclose(whole.of(drawn), whole.all(), equal_nan=True)


def test_intervals_hold_the_value_and_come_again() -> None:
    found = detections(*some_images(12))
    first, again, other = (DetectionScores(found, resamples=40, seed=seed) for seed in (0, 0, 1))
    row = first.rows[0]
    assert row["low_95"] < row["value"] < row["high_95"] and "40 draws" in first.summary
    assert np.array_equal(first.draws, again.draws) and not np.array_equal(first.draws, other.draws)
    few = DetectionScores(detections(*some_images(9)), resamples=40, seed=0)
    assert len(few.draws) == 0 and few.rows[0]["low_95"] is None and "9 images are too few" in few.summary


def test_an_interval_of_mostly_nothing_is_none() -> None:
    assert interval(np.array([np.nan, np.nan, 0.5])) is None and interval(np.array([])) is None
    assert interval(np.array([np.nan, 0.5, 0.5])) == (0.5, 0.5)


# ------------------------------------------------------------------------------------ through ultralytics


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "set"
    return digits_detection.write(folder, image_size=192, images=1, val_images=24, object_size=(8, 128), objects=16)


def truth(data: Path) -> dict[Path, Found]:
    """The objects of the validation images, read from the label files."""
    answers: dict[Path, Found] = {}
    for path in sorted((data.parent / "images" / "val").iterdir()):
        height, width = np.asarray(Image.open(path)).shape[:2]
        lines = (data.parent / "labels" / "val" / f"{path.stem}.txt").read_text().splitlines()
        found: Found = []
        for label, x, y, w, h in ([float(word) for word in line.split()] for line in lines):
            corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            found.append((corners, int(label), 0.9))
        answers[path] = found
    return answers


def spoilt(answers: dict[Path, Found]) -> dict[Path, Found]:
    """Some objects missed, some of another class, all moved a little, and some found where nothing is."""
    rng = np.random.default_rng(0)
    result: dict[Path, Found] = {}
    for path, objects in answers.items():
        found: Found = []
        for box, label, _ in objects:
            side = box[2] - box[0]
            moved = (np.array(box) + rng.normal(0, 0.06 * side, 4)).tolist()
            if rng.random() < 0.8:
                found.append(
                    (moved, label if rng.random() < 0.85 else int(rng.integers(10)), float(rng.uniform(0.3, 1)))
                )
        x, y = rng.uniform(0, 150, 2)
        result[path] = [*found, ([x, y, x + 20, y + 20], int(rng.integers(10)), float(rng.uniform(0.1, 0.9)))]
    return result


def test_an_oracle_has_one_everywhere(digits: Path, tmp_path: Path) -> None:
    result = analysis.detection(oracle(tmp_path, truth(digits), 10), digits, imgsz=192, latency=False, resamples=0)
    assert result.values == pytest.approx(dict.fromkeys(METRICS, 1.0), abs=1e-9)
    assert min(result.objects.values()) >= 4 and set(result.found.names.values()) == set("0123456789")


def test_as_ultralytics_own_map(digits: Path, tmp_path: Path) -> None:
    """Both average the precision at 101 recalls; ultralytics interpolates between detections: within 0.01 here."""
    result = analysis.detection(
        oracle(tmp_path, spoilt(truth(digits)), 10), digits, imgsz=192, latency=False, resamples=0
    )
    own = {"AP50": result.found.own["metrics/mAP50(B)"], "AP": result.found.own["metrics/mAP50-95(B)"]}
    assert 0.2 < own["AP"] < 0.8
    assert {key: result.values[key] for key in own} == pytest.approx(own, abs=0.01)
    assert result.values["AP75"] != pytest.approx(own["AP"], abs=0.01)  # the comparison can fail


def test_areas_are_pixels_of_the_image_on_disk(digits: Path, tmp_path: Path) -> None:
    model = ultralytics.YOLO(network(tmp_path, 10))
    counts = [analysis.DetectionScores(analysis.detect(model, digits, imgsz=s), 0, 0).objects for s in (64, 192)]
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for found in truth(digits).values() for b, _, _ in found]
    assert counts[0] == counts[1] and counts[0]["AP_S"] == sum(round(area) <= 1024 for area in areas)


def test_the_model_and_the_random_numbers_stay_as_they_are(tmp_path: Path) -> None:
    model, data = ultralytics.YOLO(network(tmp_path)), squares(tmp_path)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    modules, state = [type(m) for m in model.model.modules()], torch.get_rng_state()
    modes = [m.training for m in model.model.modules()]
    result = analysis.detection(model, data, imgsz=100, resamples=0)
    assert torch.equal(torch.get_rng_state(), state) and model.metrics is None
    assert [type(m) for m in model.model.modules()] == modules and [m.training for m in model.model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.model.state_dict().items())
    assert (
        result.rows[-1]["metric"] == "latency_ms" and result.rows[-1]["value"] > 0 and " ms per image" in result.summary
    )


def test_latency_is_of_the_size_validation_uses(tmp_path: Path) -> None:
    model = ultralytics.YOLO(network(tmp_path))
    assert [side(model, imgsz) for imgsz in (64, 65, 100, 640)] == [64, 96, 128, 640]
    assert latencies([], 64) == []


def test_rtdetr_too(tmp_path: Path) -> None:
    layers = yaml.safe_load(Path(network(tmp_path)).read_text())
    layers["head"][-1] = [[7, 4], 1, "RTDETRDecoder", ["nc", 32, 30, 4, 4, 1]]
    (tmp_path / "rtdetr.yaml").write_text(yaml.safe_dump(layers))
    model = ultralytics.RTDETR(str(tmp_path / "rtdetr.yaml"))
    result = analysis.detection(model, squares(tmp_path), imgsz=64, latency=False, conf=1e-6)
    assert result.values["AP"] is not None and result.objects["AP"] == 12
    assert max(len(one["scores"]) for one in result.found.predictions) > 0


def test_a_data_set_named_like_coco_needs_no_file_of_cocos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "coco").mkdir()
    data = yaml.safe_load(Path(squares(tmp_path / "coco")).read_text())
    images = sorted((tmp_path / "coco" / "images" / "val").iterdir())
    (tmp_path / "coco" / "val2017.txt").write_text("\n".join(map(str, images)))  # ultralytics takes this for COCO
    model = ultralytics.YOLO(network(tmp_path))
    found = analysis.detect(model, _written(tmp_path, "coco.yaml", {**data, "val": "val2017.txt"}), imgsz=64, conf=1e-6)
    assert found.images == [str(path) for path in images]
    assert max(len(one["scores"]) for one in found.predictions) > 0 and "instances_val2017" not in caplog.text


def test_figure_and_report(tmp_path: Path) -> None:
    result = DetectionScores(detections(*some_images(12)), resamples=10, seed=0, latency_ms=12.5)
    axes = result.figure().axes[0]
    assert [text.get_text().splitlines()[0] for text in axes.get_xticklabels()] == list(METRICS)
    page = result.report(tmp_path / "page.html").read_text()
    assert "AP_S" in page and "12.5" in page and "data:image/png" in page


# ------------------------------------------------------------------------------------------------- bad input


def test_what_cannot_be_scored_is_refused_in_words(tmp_path: Path) -> None:
    data = squares(tmp_path)
    model = ultralytics.YOLO(network(tmp_path))
    other = {"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": ["only one"]}
    cases: list[tuple[Any, str, dict[str, Any], str]] = [
        ("yolo11n.pt", data, {}, "found str; pass YOLO"),
        (model.model, data, {}, "found DetectionModel"),
        (ultralytics.YOLO("yolo11n-cls.yaml"), data, {}, "found 'classify'"),
        (model, str(tmp_path / "nowhere.yaml"), {}, "cannot read the data set"),
        (model, data, {"split": "test"}, "no split 'test'; it has train, val"),
        (model, data, {"split": "validation"}, "no split 'validation'"),
        (model, _written(tmp_path, "one.yaml", other), {}, "the model has 3 classes"),
        (model, _written(tmp_path, "none.yaml", {"path": str(tmp_path)}), {}, "cannot read the data set"),
        (model, _written(tmp_path, "list.yaml", ["a"]), {}, "cannot read the data set"),
        (model, _written(tmp_path, "gone.yaml", {**other, "val": "gone"}), {}, "cannot read the data set"),
        (model, data, {"device": "bogus"}, "bogus"),
    ]
    for net, where, options, words in cases:
        with pytest.raises(AnalysisError, match=words):
            analysis.detection(net, where, imgsz=64, **options)


def _written(folder: Path, name: str, content: Any) -> str:
    (folder / name).write_text(yaml.safe_dump(content))
    return str(folder / name)


def test_a_folder_without_images_or_without_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model = squares(tmp_path), ultralytics.YOLO(network(tmp_path))
    for label in (tmp_path / "labels" / "val").iterdir():
        label.write_text("")
    empty = analysis.detection(model, data, imgsz=64, latency=False)
    assert set(empty.values.values()) == {None} and empty.objects["AP"] == 0
    for image in (tmp_path / "images" / "val").iterdir():
        image.unlink()
    with pytest.raises(AnalysisError, match="cannot run over"):
        analysis.detection(model, data, imgsz=64)


def test_images_left_out_are_said(tmp_path: Path) -> None:
    data, model = squares(tmp_path), ultralytics.YOLO(network(tmp_path))
    whole = analysis.detection(model, data, imgsz=64, latency=False)
    assert whole.found.left_out == () and "left out" not in whole.summary
    (tmp_path / "labels" / "val" / "0.txt").write_text("7 0.5 0.5 0.1 0.1")  # there are three classes
    (tmp_path / "labels" / "val" / "1.txt").write_text("1 0.5 0.5 9 9")
    (tmp_path / "labels" / "val.cache").unlink()
    some = analysis.detection(model, data, imgsz=64, latency=False)
    assert [Path(name).name for name in some.found.left_out] == ["0.png", "1.png"]
    assert (
        some.summary.startswith("2 images, 6 objects") and "2 more images were left out as unreadable" in some.summary
    )


def test_a_missing_package_is_named_before_the_net_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ultralytics.YOLO(network(tmp_path))
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(AnalysisError, match=r"needs faster-coco-eval .*pip install"):
        analysis.detection(model, "nowhere.yaml")
    monkeypatch.setitem(sys.modules, "ultralytics.engine.model", None)
    with pytest.raises(AnalysisError, match=r"needs the package ultralytics .*pip install"):
        analysis.detect(model, "nowhere.yaml")
