"""``surgeon analyze detection-shift``: from a file and a data yaml, and errors in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ultralytics")
pytest.importorskip("faster_coco_eval")

from recipes import cli
from tests.surgeon.yolo.small import network, squares


def analyze(*words: Any) -> int:
    return cli.main(["analyze", "detection-shift", *map(str, words), "--device", "cpu"])


def test_a_detector_and_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = squares(tmp_path / "set", val=2)
    words = (network(tmp_path), "--data", data, "--imgsz", 64, "--shifts", "2,8", "--axis", "vertical")
    assert analyze(*words, "--padding", "circular", "--resamples", 0, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "under shifts of its images" in said and "0, 8" in said
    rows = json.loads((tmp_path / "out" / "detection_shift.json").read_text())["rows"]
    assert [(row["dx_px"], row["dy_px"]) for row in rows] == [(0, 0), (0, 2), (0, 8)]
    for name in ("detection_shift.csv", "detection_shift.png", "report.html"):
        assert (tmp_path / "out" / name).is_file()
    assert not list((tmp_path / "out").glob("*.ledger*"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--shifts", "1;2"), "--shifts 1;2: give numbers with commas"),
        (("--axis", "across"), "axis is 'across'"),
        (("--match-iou", "2"), "match_iou is 2.0; give a number over 0, at most 1"),
    ],
)
def test_errors_in_words(
    words: tuple[str, ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = squares(tmp_path / "set", train=1, val=1)
    assert analyze(network(tmp_path), "--data", data, "--imgsz", 64, *words, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said


def test_a_classifier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze("digits_convnet", "--data", "mine.yaml", "--out", tmp_path / "out") == 2
    assert "found DigitsConvNet; of a classifier call analysis.translation" in capsys.readouterr().err
