"""Digits to detect: the same bytes everywhere, tight boxes, no digit in both parts, whole folders or none."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from recipes import digits_detection
from recipes.digit_scenes import Scene, digits, draw
from surgeon import RecipeError

SMALL: dict[str, Any] = {"image_size": 96, "images": 3, "val_images": 2, "object_size": (8, 32), "objects": 8}
DIGEST = "d6a08bc2f432658d0cbeebb3f2312e55d32060c9ae82e9bd2bef7df817b4f198"  # of SMALL with seed 0


def written(folder: Path) -> str:
    """One digest of names and bytes of all that was written."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def test_the_same_settings_give_the_same_bytes_everywhere(tmp_path: Path) -> None:
    first = digits_detection.write(tmp_path / "a", **SMALL)
    assert written(tmp_path / "a") == DIGEST
    assert digits_detection.write(tmp_path / "a", **SMALL) == first  # found again
    digits_detection.write(tmp_path / "b", **SMALL, seed=1)  # control
    assert written(tmp_path / "b") != DIGEST


def test_more_images_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    digits_detection.write(tmp_path / "few", **SMALL)
    digits_detection.write(tmp_path / "more", **{**SMALL, "images": 4})
    for kind in ("images/train/0002.png", "labels/train/0002.txt", "images/val/0001.png"):
        assert (tmp_path / "few" / kind).read_bytes() == (tmp_path / "more" / kind).read_bytes()


def scenes(count: int = 20, size: int = 160) -> list[Scene]:
    return [draw(digits(training=True), size, (8, 64), 12, number) for number in range(count)]


def test_boxes_are_tight_apart_and_of_the_sizes_asked() -> None:
    longest = []
    for scene in scenes():
        for i, (left, top, right, bottom) in enumerate(scene.boxes):
            assert 0 <= left < right <= 160 and 0 <= top < bottom <= 160
            longest.append(max(right - left, bottom - top))
            for other in scene.boxes[:i]:
                assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    assert min(longest) == 8 and 40 < max(longest) <= 64
    assert np.median(longest) < 32  # small ones are the many


def test_ink_reaches_all_four_sides_of_a_box() -> None:
    pool = digits(training=True)
    for digit in pool[:50]:
        rows, columns = digit.grey.max(1), digit.grey.max(0)
        assert min(rows[0], rows[-1], columns[0], columns[-1]) >= 4


def test_no_digit_is_in_both_parts() -> None:
    train, val = ({digit.grey.tobytes() + bytes(digit.grey.shape) for digit in digits(part)} for part in (True, False))
    assert len(train) > 1300 and len(val) > 400
    assert len(train & val) <= 2  # scikit-learn has a few digits twice


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"image_size": 31}, "image_size=31: write 32 to 2048"),
        ({"object_size": (4, 32)}, r"object_size=\(4, 32\): write 8 <= smallest"),
        ({"object_size": (8, 90)}, r"largest <= 64, two thirds of image_size=96"),
        ({"images": 0, "objects": 0}, "images=0: write 1 or more; objects=0: write 1 or more"),
        ({"seed": -1}, "seed=-1: write 0 or more"),
        ({"images": 2.5}, "settings are whole numbers"),
    ],
)
def test_settings_out_of_range_are_named(setting: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        digits_detection.write(tmp_path / "set", **{**SMALL, **setting})
    assert not (tmp_path / "set").exists()


def test_a_folder_of_something_else_or_changed_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="holds something else than the digits data set"):
        digits_detection.write(tmp_path / "mine", **SMALL)
    digits_detection.write(tmp_path / "set", **SMALL)
    with pytest.raises(RecipeError, match=r"other settings \(images: 3 there, 4 asked\)"):
        digits_detection.write(tmp_path / "set", **{**SMALL, "images": 4})
    (tmp_path / "set" / "labels" / "val" / "0000.txt").write_text("")
    with pytest.raises(RecipeError, match="changed since they were written"):
        digits_detection.write(tmp_path / "set", **SMALL)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_process_that_dies_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(image: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits_detection, "png", die)
    with pytest.raises(KeyboardInterrupt):
        digits_detection.write(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_ultralytics_reads_every_label(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    path = digits_detection.write(tmp_path / "set", **SMALL)
    found = check_det_dataset(str(path))
    settings = get_cfg(overrides={"imgsz": 96, "task": "detect"})
    read = build_yolo_dataset(settings, found["train"], batch=1, data=found, mode="val", rect=False)
    scenes = list(digits_detection.scenes("train", 3, {**SMALL, "seed": 0}))
    assert yaml.safe_load(path.read_text())["names"] == {i: str(i) for i in range(10)} == found["names"]
    for label, scene in zip(read.labels, scenes, strict=True):
        assert label["cls"].ravel().tolist() == scene.classes
        centre, extent = label["bboxes"][:, :2] * 96, label["bboxes"][:, 2:] * 96
        corners = np.concatenate([centre - extent / 2, centre + extent / 2], 1)
        np.testing.assert_allclose(corners, scene.boxes, atol=1e-3)
        np.testing.assert_array_equal(np.asarray(Image.open(label["im_file"])), scene.image)
