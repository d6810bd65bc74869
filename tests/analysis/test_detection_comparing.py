"""Two detectors beside each other: scores, errors, figures, the page of samples, and the command that writes them."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("ultralytics")
pytest.importorskip("faster_coco_eval")

import ultralytics

import analysis
import surgeon
from analysis import AnalysisError, DetectionComparison, DetectionErrors, DetectionScores, detection_errors
from analysis.detection_coco import METRICS
from analysis.detection_diagnosis import COLOURS
from analysis.detection_kinds import KINDS
from analysis.detection_running import why_other_classes
from recipes import cli
from tests.analysis.detecting import Found, detections
from tests.surgeon.yolo.small import network, squares

BOX = [0.0, 0.0, 20.0, 20.0]
ELSEWHERE = [40.0, 40.0, 60.0, 60.0]


def twelve(right: int) -> DetectionScores:
    """Twelve images with a small cat each, found in the first ones; elsewhere a surer mistake is made."""
    objects: list[Found] = [[(BOX, 0, 1.0)] for _ in range(12)]
    found: list[Found] = [[(BOX if i < right else ELSEWHERE, 0, 0.5 + i / 100)] for i in range(12)]
    return DetectionScores(detections(found, objects), resamples=50, seed=0, latency_ms=float(10 + right))


# --------------------------------------------------------------------------------------------------- scores


def test_differences_and_verdicts() -> None:
    result = DetectionComparison(twelve(2), twelve(12), ("small", "large"))
    rows = {row["metric"]: row for row in result.rows}
    assert rows["AP_S"]["difference"] == rows["AP_S"]["large"] - rows["AP_S"]["small"] > 0.5
    assert rows["AP_S"]["verdict"] == "higher" and rows["AP_S"]["low_95"] > 0
    assert rows["AP_L"]["verdict"] == "no large object" and rows["AP_L"]["difference"] is None
    assert rows["latency_ms"]["difference"] == 10 and rows["latency_ms"]["verdict"] == "1.83 times"
    assert "AP of small objects: large +0." in result.summary and "higher" in result.summary
    back = DetectionComparison(twelve(12), twelve(2), ("a", "b"))
    assert back.rows[0]["verdict"] == "lower"
    same = DetectionComparison(twelve(6), twelve(6), ("a", "b"))
    assert same.rows[0]["verdict"] == "cannot be told apart" and same.rows[0]["difference"] == 0
    assert DetectionComparison(twelve(6), twelve(7), ("a", "b")).rows[0]["verdict"] == "cannot be told apart"


def test_two_nets_that_find_nothing_are_no_tie() -> None:
    none = twelve(0)
    row = DetectionComparison(none, twelve(0), ("a", "b")).rows[METRICS.index("AP_S")]
    assert row["difference"] == 0 and row["verdict"] == "neither net finds any"
    assert DetectionComparison(none, twelve(1), ("a", "b")).rows[METRICS.index("AP_S")]["verdict"] != row["verdict"]


def test_errors_are_compared_over_the_classes_both_nets_detect() -> None:
    objects = [{"boxes": [BOX, ELSEWHERE], "labels": [0, 1]}]
    first = [{"boxes": [BOX, [80, 80, 90, 90]], "labels": [0, 1], "scores": [0.9, 0.9]}]
    second = [{"boxes": [BOX], "labels": [0], "scores": [0.9]}]
    one, two = (detection_errors(found, objects, names=["x", "y"]) for found in (first, second))
    assert (one.shares["correct"], two.shares["correct"]) == (50, 100)
    result = one.beside(two, ("a", "b"))
    assert {row["difference_points"] for row in result.rows} == {0}
    assert "without y, of which a net has no detection" in result.summary
    silent = detection_errors([{"boxes": [], "labels": [], "scores": []}], objects, names=["x", "y"])
    assert {row["difference_points"] for row in one.beside(silent, ("a", "b")).rows} == {None}


def test_names_may_hold_dollars() -> None:
    objects = [{"boxes": [BOX], "labels": [0]}]
    found = [{"boxes": [BOX], "labels": [0], "scores": [0.9]}]
    figure = detection_errors(found, objects, names=[r"$\foo$"]).figure()
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("own", "names", "reason"),
    [
        (["cat", "dog"], ["Cat ", "dog"], None),
        (["cat", "dog", "car"], ["cat", "dog"], None),
        (["0", "1"], ["cat", "dog"], None),
        (["0", "1", "2"], ["cat", "dog"], "the model has 3 classes, the data 2"),
        (["cat", "dog"], ["dog", "cat"], "the same in another order"),
        (["cat", "dog"], ["cat", "car"], "and not the same"),
        (["cat"], ["cat", "dog"], "the model has 1 classes, the data 2"),
    ],
)
def test_classes_are_compared_index_by_index(own: list[str], names: list[str], reason: str | None) -> None:
    said = why_other_classes(dict(enumerate(own)), dict(enumerate(names)))
    assert said is None if reason is None else said is not None and reason in said


def test_what_cannot_be_compared_is_refused() -> None:
    one = twelve(6)
    objects: list[Found] = [[(BOX, 1, 1.0)] for _ in range(12)]  # the same boxes, another class
    others = DetectionScores(detections(objects, objects), resamples=50, seed=0)
    for second, labels, words in (
        (others, ("a", "b"), "different images or objects"),
        (DetectionScores(one.found, resamples=50, seed=1), ("a", "b"), "50 draws from seed 0, 50 from 1"),
        (DetectionScores(one.found, resamples=20, seed=0), ("a", "b"), "50 draws from seed 0, 20 from 0"),
        (one, ("a", "a"), "two different names"),
        (one, "ab", "two different names"),
        (one, ("a", "objects"), "'objects' is another column"),
    ):
        with pytest.raises(AnalysisError, match=words):
            DetectionComparison(one, second, labels)  # type: ignore[arg-type]


def test_figure_of_two_nets_and_report(tmp_path: Path) -> None:
    result = DetectionComparison(twelve(2), twelve(12), ("before", "after"))
    left, right = result.figure().axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["before", "after"]
    heights = [bar.get_height() for bar in left.patches]
    assert heights[:7] == [row["before"] or 0 for row in result.rows[:7]]
    assert heights[7:] == [row["after"] or 0 for row in result.rows[:7]]
    assert [text.get_text() for text in right.get_yticklabels()] == list(METRICS)
    page = result.report(tmp_path / "page.html").read_text()
    assert "before" in page and "cannot be told apart" not in page.split("<table>")[0] and "1.83 times" in page


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.yaml, twelve validation images, a trained detector original.pt, and it operated."""
    folder = tmp_path_factory.mktemp("nets")
    data = squares(folder, train=16, val=12)
    model = ultralytics.YOLO(network(folder))
    fixed = {"optimizer": "AdamW", "lr0": 0.02, "mosaic": 0.0, "warmup_epochs": 0.0, "val": False, "nbs": 4}
    model.train(data=data, imgsz=64, epochs=12, batch=4, device="cpu", workers=0, plots=False, amp=False,
                verbose=False, project=str(folder / "runs"), name="run", **fixed)  # fmt: skip
    trained = ultralytics.YOLO(folder / "runs" / "run" / "weights" / "last.pt")
    trained.save(folder / "original.pt")
    surgeon.apply(trained, "spd").save(folder / "operated.pt")
    return folder


def test_an_operated_copy_scores_the_same(place: Path) -> None:
    original = ultralytics.YOLO(place / "original.pt")
    operated = surgeon.apply(copy.deepcopy(original), "spd")
    result = analysis.compare_detection(
        original, operated, place / "data.yaml", imgsz=64, conf=0.01, latency=False, resamples=30
    )
    assert len(surgeon.record(operated).changes) == 3 and len(surgeon.record(original).changes) == 0
    assert 0.05 < result.first.values["AP"] < 1.0, result.first.values  # it finds something, and not all
    assert result.first.values == pytest.approx(result.second.values, abs=1e-3)
    assert {row["verdict"] for row in result.rows} <= {"cannot be told apart", "no medium object", "no large object"}
    worse = surgeon.apply(copy.deepcopy(original), {"surgery": ["spd"]})
    with torch.no_grad():
        worse.model.model[0].conv.weight.mul_(-1)
    score = analysis.detection(worse, place / "data.yaml", imgsz=64, latency=False, conf=0.01).values["AP"]
    assert score < result.first.values["AP"] - 0.02  # the comparison can fail


# --------------------------------------------------------------------------------------------------- errors


def five_kinds() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One image with six objects; five detections, one of each kind."""
    objects = [[100.0 * i, 0.0, 100.0 * i + 50, 50.0] for i in range(6)]
    found = [objects[0], [100, 0, 120, 50], objects[2], objects[3], [0, 80, 40, 100]]
    targets = [{"boxes": objects, "labels": [0, 0, 1, 2, 0, 0]}]
    return [{"boxes": found, "labels": [0] * 5, "scores": [0.9, 0.8, 0.7, 0.6, 0.5]}], targets


def both_errors() -> tuple[DetectionErrors, DetectionErrors]:
    predictions, targets = five_kinds()
    perfect = [{**targets[0], "scores": [0.9] * 6}]
    options: dict[str, Any] = {"similar": {"pets": ["cat", "dog"]}, "names": ["cat", "dog", "car"]}
    return detection_errors(predictions, targets, **options), detection_errors(perfect, targets, **options)


def test_errors_of_two_nets() -> None:
    first, second = both_errors()
    result = first.beside(second, ("before", "after"))
    # six boxes in places, of class 0: four objects, so the fifth detection, of background, does not count
    assert [row["before_percent"] for row in result.rows] == [25, 25, 25, 25, 0]
    assert [row["after_percent"] for row in result.rows] == [100, 0, 0, 0, 0]
    assert [row["difference_points"] for row in result.rows] == [75, -25, -25, -25, 0]
    assert [row["kind"] for row in result.rows] == list(KINDS) and "after: correct +75.0 points" in result.summary


def test_errors_of_other_objects_are_refused() -> None:
    first, second = both_errors()
    predictions, targets = five_kinds()
    others = [{**targets[0], "labels": [0, 0, 1, 2, 0, 1]}]
    different = detection_errors(predictions, others, similar={"pets": ["cat", "dog"]}, names=["cat", "dog", "car"])
    renamed = detection_errors(predictions, targets, similar={"pets": ["cat", "dog"]}, names=["cat", "dog", "lorry"])
    for other in (different, renamed):
        with pytest.raises(AnalysisError, match="same targets and names"):
            first.beside(other)
    for options in ({"similar": None}, {"correct_iou": 0.6}, {"object_iou": 0.2}):
        judged: dict[str, Any] = {"similar": {"pets": ["cat", "dog"]}, "names": ["cat", "dog", "car"], **options}
        with pytest.raises(AnalysisError, match="other similar classes or overlaps"):
            first.beside(detection_errors(predictions, targets, **judged))
    with pytest.raises(AnalysisError, match="two different names"):
        first.beside(second, ("a", "a"))


def test_figures_of_errors() -> None:
    first, second = both_errors()
    axes = first.beside(second, ("before", "after")).figure().axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before", "after"]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(KINDS)
    heights = [round(bar.get_height(), 6) for container in axes.containers for bar in container]
    assert [height for height in heights if height] == [25, 25, 25, 25, 100]
    without = detection_errors(*five_kinds()).beside(detection_errors(*five_kinds()))
    assert "similar" not in without.summary.split(";")[0] and "any confusion is other" in without.summary
    assert without.figure().axes[0].get_xticklabels()[2].get_text() == "similar\n(none given)"
    alone = first.figure().axes[0]
    assert [text.get_text() for text in alone.get_yticklabels()][:2] == ["mean over classes (4 of 6)", "cat (4 of 4)"]
    widths = [[bar.get_width() for bar in container] for container in alone.containers]
    assert np.allclose(np.sum(widths, 0)[:2], 100)


# ------------------------------------------------------------------------------------------- page of samples


def test_the_page_shows_objects_and_both_nets(tmp_path: Path) -> None:
    first, second = both_errors()
    picture = np.full((100, 600, 3), 80, dtype=np.uint8)
    page = first.beside(second, ("before", "<after>")).samples(tmp_path / "page.html", [picture]).read_text()
    figures = re.findall(r"<figure.*?</figure>", page, flags=re.S)
    assert [re.search("<b>(.*?)</b>", one).group(1) for one in figures] == ["objects", "before", "&lt;after&gt;"]
    assert [one.count('class="box"') for one in figures] == [6, 4, 6]  # the fifth detection does not count
    assert page.count("data:image/jpeg;base64,") == 1 and "1 of 1 images" in page and "600 x 100 px" in page
    assert "cat 0.90: correct" in figures[1] and "cat 0.80: localisation" in figures[1]
    assert '<rect x="100.0" y="0.0" width="20.0" height="50.0"' in figures[1]
    colours = re.findall('stroke="(#.*?)"', figures[1])
    assert sorted(colours) == sorted(COLOURS[kind] for kind in KINDS[:4])
    assert "1 correct, 1 localisation, 1 similar, 1 other" in figures[1] and "cat (4), dog (1), car (1)" in figures[0]


def test_how_many_samples_and_which(tmp_path: Path) -> None:
    targets = [{"boxes": [BOX], "labels": [0]} if i % 2 else {"boxes": [], "labels": []} for i in range(40)]
    errors = detection_errors([{**one, "scores": [0.5] * len(one["labels"])} for one in targets], targets)
    pictures = [np.zeros((30, 30, 3), dtype=np.uint8)] * 40
    names = [
        re.findall(r"<h2>image (\d+) ", errors.samples(tmp_path / "page.html", pictures, 5, seed).read_text())
        for seed in (0, 0, 1)
    ]
    assert names[0] == names[1] != names[2] and [len(one) for one in names] == [5, 5, 5]
    assert all(int(name) % 2 == 0 for name in names[0])  # image 2, 4, ... have objects
    assert "No image" in errors.samples(tmp_path / "page.html", pictures, 0).read_text()


def test_pictures_are_turned_as_the_boxes_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (40, 20)).save(tmp_path / "plain.jpg")
    one = {"boxes": [BOX], "labels": [0], "scores": [0.5]}
    errors = detection_errors([one, one], [one, one])
    page = errors.samples(tmp_path / "page.html", [tmp_path / "plain.jpg", tmp_path / "turned.jpg"]).read_text()
    assert re.findall(r"<small>(.*?) px", page) == ["40 x 20", "20 x 40"]


def test_pictures_that_are_none_are_refused(tmp_path: Path) -> None:
    one = {"boxes": [BOX], "labels": [0], "scores": [0.5]}
    errors = detection_errors([one, one], [one, one])
    grey = np.zeros((30, 30, 3), dtype=np.uint8)
    (tmp_path / "text.png").write_text("no picture")
    for pictures, words in (
        ([grey], "1 images, but boxes in image 2"),
        ([grey, tmp_path / "gone.png"], "no image 2"),
        ([grey, tmp_path / "text.png"], "no image 2"),
        ([grey, np.zeros((30, 30, 3))], "arrays of bytes"),
    ):
        with pytest.raises(AnalysisError, match=words):
            errors.samples(tmp_path / "page.html", pictures)


# ------------------------------------------------------------------------------------------------- command


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["analyze", "detection", *arguments])
    seen = capsys.readouterr()
    assert "Traceback" not in seen.err + seen.out
    return code, seen.out, seen.err


def test_the_command_compares_two_checkpoints(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nets = [str(place / name) for name in ("original.pt", "operated.pt")]
    options = ["--data", str(place / "data.yaml"), "--imgsz", "64", "--resamples", "20", "--samples", "3"]
    code, out, err = call(capsys, *nets, *options, "--labels", "strided, spd", "--out", "results")
    assert code == 0, err
    assert "Detection: strided against spd" in out and "latency_ms" in out and "written to results" in out
    written = sorted(path.name for path in (tmp_path / "results").iterdir())
    kinds = [f"{name}.{end}" for name in ("detection", "errors") for end in ("csv", "html", "json", "png")]
    assert written == [*kinds, "samples.html"] and [path.name for path in tmp_path.iterdir()] == ["results"]
    found = json.loads((tmp_path / "results" / "detection.json").read_text())
    assert [row["metric"] for row in found["rows"]] == [*METRICS, "latency_ms"]
    page = (tmp_path / "results" / "samples.html").read_text()
    assert page.count("<h2>") == 3 and page.count("<figure") == 9 and "<b>spd</b>" in page


@pytest.mark.slow
def test_the_command_takes_one_net_and_builds_a_yaml_for_the_data(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(place / "data.yaml"), "--imgsz", "64", "--no-latency", "--out", str(tmp_path / "out")]
    code, out, err = call(capsys, network(tmp_path, classes=7), *options)
    assert code == 0 and "36 objects" in out and "latency" not in out, err
    assert (tmp_path / "out" / "samples.html").read_text().count("<h2>") == 12


def test_the_command_says_what_is_wrong(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, data = str(place / "original.pt"), str(place / "data.yaml")
    known = ["--data", data, "--imgsz", "64", "--no-latency", "--out", str(tmp_path / "out")]
    for arguments, words in (
        ([net], "--data"),
        ([net, "--data", "nowhere.yaml"], "cannot read the data set nowhere.yaml"),
        (["gone.pt", *known], "gone.pt"),
        (["resnet50", *known], "resnet50"),
        (["yolo11n-cls.yaml", *known], "classify"),
        ([net, *known, "--similar", "vco"], "'vco' is unknown"),
        ([net, *known, "--labels", "a"], "two different names"),
        ([net, net, *known, "--labels", "metric,b"], "another column"),
        ([net, *known, "--split", "test"], "no split 'test'"),
        ([net, *known, "--device", "cuda:77"], "device"),
        ([net, *known, "--imgsz", "3"], "--imgsz"),
        ([net, *known[:-1], str(place / "data.yaml")], "nothing can be written there"),
    ):
        code, out, err = call(capsys, *arguments)
        assert code == 2 and words in err, (arguments, out, err)
    assert not (tmp_path / "out").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0 and "--similar" in out and "operated.pt" in out
    assert cli.main(["analyze", "--help"]) == 0 and "detection" in capsys.readouterr().out
