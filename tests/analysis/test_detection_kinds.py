"""Kinds of detections: one case by hand for each, the brute-force version, similar classes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import analysis
from analysis import AnalysisError, detection_errors
from analysis.detection_kinds import KINDS
from analysis.detection_similar import COCO_NAMES, VOC, VOC_NAMES, similarity

CORRECT, LOCALISATION, SIMILAR, OTHER, BACKGROUND = range(5)
OBJECT = [0.0, 0.0, 10.0, 10.0]
SIMILAR_SETS = {"pets": ["cat", "dog"]}
NAMES = ["cat", "dog", "car"]
Image = dict[str, Any]


def there(*objects: tuple[list[float], int]) -> Image:
    return {"boxes": [box for box, _ in objects], "labels": [label for _, label in objects]}


def found(*detections: tuple[list[float], int, float]) -> Image:
    return {**there(*((box, label) for box, label, _ in detections)), "scores": [score for *_, score in detections]}


def kinds(detections: Image, objects: Image, **more: Any) -> list[int]:
    options = {"similar": SIMILAR_SETS, "names": NAMES, **more}
    return detection_errors([detections], [objects], **options).kinds[0].tolist()


# Overlap of a box (0, 0, w, 10) with OBJECT is w / 10.
@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        ([0, 0, 9, 10], 0, CORRECT),
        ([0, 0, 5, 10], 0, CORRECT),  # on the border
        ([0, 0, 4.9, 10], 0, LOCALISATION),
        ([0, 0, 1, 10], 0, LOCALISATION),  # on the border
        ([0, 0, 0.9, 10], 0, BACKGROUND),
        ([0, 0, 9, 10], 1, SIMILAR),  # however well it lies
        ([0, 0, 1, 10], 1, SIMILAR),
        ([0, 0, 0.9, 10], 1, BACKGROUND),
        ([0, 0, 9, 10], 2, OTHER),
        ([0, 0, 1, 10], 2, OTHER),
        ([0, 0, 0.9, 10], 2, BACKGROUND),
        ([30, 30, 40, 40], 0, BACKGROUND),
    ],
)
def test_each_kind_by_hand(box: list[float], label: int, kind: int) -> None:
    objects = there((OBJECT, 0), ([50, 50, 60, 60], 1), ([70, 70, 80, 80], 2))  # one of each, so that one counts
    assert kinds(found((box, label, 0.9)), objects) == [kind]


def test_the_class_goes_before_the_overlap() -> None:
    objects = there((OBJECT, 0), ([0, 0, 10, 9], 1), ([0, 0, 10, 8], 2))
    assert kinds(found(([0, 0, 10, 2], 0, 0.9)), objects) == [LOCALISATION]  # overlaps the others more
    near_only = there(([0, 0, 10, 2.5], 1), (OBJECT, 2), ([50, 50, 60, 60], 0))
    assert kinds(found((OBJECT, 0, 0.9)), near_only) == [SIMILAR]  # and the other class entirely


def test_an_object_is_found_once_by_the_surest() -> None:
    two = there((OBJECT, 0), ([40, 40, 50, 50], 0))
    sure_second = found(([0, 0, 10, 8], 0, 0.3), (OBJECT, 0, 0.9))
    assert kinds(sure_second, two) == [LOCALISATION, CORRECT]
    assert detection_errors([sure_second], [two]).duplicates == 1
    apart = found((OBJECT, 0, 0.3), ([40, 40, 50, 50], 0, 0.9))
    assert kinds(apart, two) == [CORRECT, CORRECT] and detection_errors([apart], [two]).duplicates == 0
    # two detections that touch two objects each: the one both overlap most belongs to the surer
    beside = there((OBJECT, 0), ([0, 4, 10, 14], 0))
    assert kinds(found(([0, 1, 10, 11], 0, 0.9), ([0, 1.5, 10, 11.5], 0, 0.8)), beside) == [CORRECT, LOCALISATION]


def test_as_many_count_as_there_are_objects_in_all_images() -> None:
    objects = [there((OBJECT, 0)), there((OBJECT, 0)), there()]
    detections = [
        found((OBJECT, 0, 0.5), ([30, 30, 40, 40], 0, 0.4)),
        found((OBJECT, 0, 0.6)),
        found((OBJECT, 0, 0.9), (OBJECT, 1, 1.0)),  # the surest of its class; class 1 has no object
    ]
    errors = detection_errors(detections, objects, names=NAMES)
    assert [one.tolist() for one in errors.kinds] == [[-1, -1], [CORRECT], [BACKGROUND, -1]]
    assert errors.shares == pytest.approx(
        {"correct": 50, "localisation": 0, "similar": 0, "other": 0, "background": 50}
    )


def test_a_perfect_detector_has_only_correct_ones_and_a_silent_one_none() -> None:
    objects = [there((OBJECT, 0), ([20, 0, 30, 10], 1)), there(([5, 5, 9, 9], 0))]
    perfect = [{**one, "scores": [0.5] * len(one["labels"])} for one in objects]
    assert detection_errors(perfect, objects).shares["correct"] == 100
    shifted = [{**one, "boxes": np.array(one["boxes"]) + 100} for one in perfect]
    assert detection_errors(shifted, objects).shares["background"] == 100
    silent = detection_errors([found(), found()], objects)
    assert set(silent.shares.values()) == {None} and "no detection in 2 images" in silent.summary


def test_rows_are_per_class_and_the_last_is_their_mean() -> None:
    objects = [there((OBJECT, 0), ([20, 0, 30, 10], 0), ([40, 0, 50, 10], 1), ([60, 0, 70, 10], 2))]
    detections = [found((OBJECT, 0, 0.9), ([40, 0, 50, 10], 0, 0.8), ([40, 0, 50, 10], 1, 0.7))]
    errors = detection_errors(detections, objects, similar=SIMILAR_SETS, names=[*NAMES, "absent"])
    assert [(row["class"], row["objects"], row["detections"]) for row in errors.rows] == [
        ("cat", 2, 2),
        ("dog", 1, 1),
        ("car", 1, 0),
        ("mean over classes", 4, 3),
    ]
    assert [row["correct_percent"] for row in errors.rows] == [50, 100, None, 75]
    assert errors.rows[-1]["similar_percent"] == 25 and "1 of 3 classes have no detection" in errors.summary


# ------------------------------------------------------------------------------------------------- brute force


def overlap(one: list[float], two: list[float]) -> float:
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    both = max(width, 0.0) * max(height, 0.0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)) - both
    return both / area if area else 0.0


def brute_force(predictions: list[Image], targets: list[Image], similar: set[frozenset[int]]) -> list[list[int]]:
    """Detection after detection, the surest first, in plain Python."""
    answer = [[-1] * len(one["labels"]) for one in predictions]
    for label in range(4):
        budget = sum(one["labels"].count(label) for one in targets)
        mine = [
            (-score, image, place)
            for image, one in enumerate(predictions)
            for place, score in enumerate(one["scores"])
            if one["labels"][place] == label
        ]
        taken: set[tuple[int, int]] = set()
        for _, image, place in sorted(mine)[:budget]:
            answer[image][place] = judge(predictions[image]["boxes"][place], label, image, targets, similar, taken)
    return answer


def judge(
    box: list[float],
    label: int,
    image: int,
    targets: list[Image],
    similar: set[frozenset[int]],
    taken: set[tuple[int, int]],
) -> int:
    overlaps = [(overlap(box, other), -i) for i, other in enumerate(targets[image]["boxes"])]
    labels = targets[image]["labels"]
    own = [pair for pair in overlaps if labels[-pair[1]] == label]
    if own and max(own)[0] >= 0.5 and (image, max(own)[1]) not in taken:
        taken.add((image, max(own)[1]))
        return CORRECT
    if own and max(own)[0] >= 0.1:
        return LOCALISATION
    touched = {labels[-i] for share, i in overlaps if share >= 0.1}
    if any(frozenset((label, other)) in similar for other in touched):
        return SIMILAR
    return OTHER if touched else BACKGROUND


def crowded(rng: np.random.Generator, images: int) -> tuple[list[Image], list[Image]]:
    """Images of 40 x 40 px with objects, and detections most of which lie near one; equal scores occur."""
    predictions, targets = [], []
    for _ in range(images):
        count = int(rng.integers(0, 6))
        corners = rng.integers(0, 28, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 12, (count, 2))], 1)
        targets.append({"boxes": boxes.tolist(), "labels": rng.integers(0, 4, count).tolist()})
        near = np.repeat(boxes, 3, 0) + rng.integers(-3, 4, (3 * count, 4))
        far = rng.integers(0, 20, (3, 2))
        guesses = np.concatenate([near, np.concatenate([far, far + rng.integers(0, 9, (3, 2))], 1)])
        guesses[:, 2:] = np.maximum(guesses[:, :2], guesses[:, 2:])
        labels, scores = rng.integers(0, 4, len(guesses)), rng.integers(0, 20, len(guesses)) / 20
        right = rng.random(3 * count) < 0.6
        labels[: 3 * count][right] = np.repeat(targets[-1]["labels"], 3)[right]
        predictions.append({"boxes": guesses.tolist(), "labels": labels.tolist(), "scores": scores.tolist()})
    return predictions, targets


def test_the_same_as_brute_force() -> None:
    rng = np.random.default_rng(0)
    pairs, seen, cases = {frozenset((0, 1)), frozenset((1, 2))}, np.zeros(6, dtype=int), 0
    while cases < 150:
        predictions, targets = crowded(rng, int(rng.integers(1, 7)))
        if not any(one["labels"] for one in targets):
            continue
        cases += 1
        errors = detection_errors(predictions, targets, similar={"a": [0, 1], "b": [1, 2]}, names=list("wxyz"))
        assert [one.tolist() for one in errors.kinds] == brute_force(predictions, targets, pairs)
        seen += np.bincount(np.concatenate(errors.kinds) + 1, minlength=6)
    assert (seen > 50).all(), seen  # every kind occurs often, uncounted ones too


def test_the_comparison_with_brute_force_would_notice() -> None:
    predictions, targets = crowded(np.random.default_rng(0), 60)
    sets: dict[str, list[str | int]] = {"a": [0, 1], "b": [1, 2]}
    theirs = brute_force(predictions, targets, {frozenset((0, 1)), frozenset((1, 2))})
    for other in ({"correct_iou": 0.6}, {"object_iou": 0.2}, {"similar": {"a": [0, 1]}}):
        ours = detection_errors(predictions, targets, **{"similar": sets, "names": list("wxyz"), **other})
        assert [one.tolist() for one in ours.kinds] != theirs


# ---------------------------------------------------------------------------------------------- similar classes


def test_sets_of_voc() -> None:
    pairs = similarity(dict(enumerate(VOC_NAMES)), "voc")
    place = {name: i for i, name in enumerate(VOC_NAMES)}
    assert len(VOC_NAMES) == 20 and (pairs == pairs.T).all() and not pairs.diagonal().any()
    assert {VOC_NAMES[i] for i in np.flatnonzero(pairs[place["aeroplane"]])} == {*VOC["vehicles"], "bird"} - {
        "aeroplane"
    }
    assert pairs[place["person"], place["horse"]] and not pairs[place["person"], place["car"]]
    assert not pairs[place["bottle"]].any()


def test_sets_of_coco() -> None:
    pairs = similarity(dict(enumerate(COCO_NAMES)), "coco")
    place = {name: i for i, name in enumerate(COCO_NAMES)}
    assert len(place) == 80 and pairs[place["cat"], place["zebra"]] and not pairs[place["cat"], place["couch"]]
    assert int(pairs.sum()) == sum(n * (n - 1) for n in (1, 8, 5, 10, 5, 10, 7, 10, 6, 6, 5, 7))


def test_names_of_voc_and_coco_are_those_of_ultralytics() -> None:
    import yaml

    folder = Path(pytest.importorskip("ultralytics").__file__).parent / "cfg" / "datasets"
    for file, ours in (("VOC.yaml", VOC_NAMES), ("coco.yaml", COCO_NAMES)):
        assert list(yaml.safe_load((folder / file).read_text(encoding="utf-8"))["names"].values()) == ours


def test_without_sets_a_confusion_is_other() -> None:
    objects = there((OBJECT, 0), ([50, 50, 60, 60], 1))
    assert kinds(found((OBJECT, 1, 0.9)), objects) == [SIMILAR]
    assert kinds(found((OBJECT, 1, 0.9)), objects, similar=None) == [OTHER]


# ------------------------------------------------------------------------------------------------- input


def test_tensors_and_boxes_without_area() -> None:
    one = {"boxes": torch.tensor([OBJECT]), "labels": torch.tensor([3]), "scores": torch.tensor([0.5])}
    assert detection_errors([one], [one]).kinds[0].tolist() == [CORRECT]
    point = found(([1, 1, 1, 1], 3, 0.5))
    assert detection_errors([point], [there(([1, 1, 1, 1], 3))]).kinds[0].tolist() == [BACKGROUND]


def test_what_is_not_boxes_is_refused() -> None:
    good, objects = found((OBJECT, 0, 0.5)), there((OBJECT, 0))
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        ([good], [objects, objects], {}, "1 predictions, 2 targets"),
        ([{"boxes": [OBJECT], "labels": [0]}], [objects], {}, r"predictions\[0\] has no 'scores'"),
        ([{**good, "labels": [0, 1]}], [objects], {}, r"labels \(2,\)"),
        ([{**good, "boxes": [[5, 5, 2, 2]]}], [objects], {}, "convert it from x, y, w, h"),
        ([{**good, "boxes": [[0, 0, 1, np.nan]]}], [objects], {}, "x1, y1, x2, y2"),
        ([{**good, "labels": [0.5]}], [objects], {}, "labels must be whole numbers"),
        ([{**good, "scores": [np.nan]}], [objects], {}, "scores numbers"),
        ([{**good, "scores": ["sure"]}], [objects], {}, "numbers"),
        (["boxes"], [objects], {}, r"predictions\[0\]"),
        ([good], [there()], {}, "no object in 1 images"),
        ([], [], {}, "no object in 0 images"),
        ([good], [objects], {"correct_iou": 0.05}, "object_iou=0.1, correct_iou=0.05"),
        ([good], [objects], {"names": []}, "label 0 has no name"),
        ([good], [objects], {"similar": "vco"}, "'vco' is unknown"),
        ([good], [objects], {"similar": {"a": ["ct"]}, "names": ["cat"]}, "did you mean 'cat'"),
        ([good], [objects], {"similar": "voc", "names": ["widget"]}, "none of its classes"),
        ([good], [objects], {"similar": 3}, "similar=3 is unknown"),
        ([good], [objects], {"similar": ["cat"]}, "is unknown"),
    ]
    for predictions, targets, options, words in cases:
        with pytest.raises(AnalysisError, match=words):
            detection_errors(predictions, targets, **options)


def test_exported() -> None:
    assert {"detection_errors", "DetectionErrors", "ErrorsBeside"} <= set(analysis.__all__)
    assert KINDS == ("correct", "localisation", "similar", "other", "background")
