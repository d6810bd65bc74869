"""Every yaml ultralytics ships: what ``locate`` lists is proved, what ops decide is compared, what is exact stays so.

On every push one yaml of each family; all of them by the marker ``matrix``. The counts stand in
``tests/matrix/yolo_expected.json``; any change, better or worse, fails until somebody has looked at it and run
``pytest -m matrix --update-matrix tests/surgeon/yolo``.
"""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import surgeon
from tests.contracts import TOLERANCE
from tests.matrix.checking import Check, checker
from tests.matrix.measure import Book, Row
from tests.matrix.yolo_coverage import EXPECTED, TRIALS, passes
from tests.surgeon.completeness import differences, witness
from tests.surgeon.yolo import measuring
from tests.surgeon.yolo.measuring import (
    CONV_FIRST,
    OPS,
    QUICK,
    furthest,
    measure,
    same,
    stirred,
    trial,
    trials,
)
from tests.surgeon.yolo.zoo import FAMILIES, build, size_of, ultralytics, yaml_names

BOOK = Book.read(EXPECTED)


@pytest.fixture(scope="session")
def check(request: pytest.FixtureRequest) -> Iterator[Check]:
    """Compare a row with the book, or write it there."""
    yield from checker(EXPECTED, request, lambda name: name in yaml_names())


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_listed_in_full_and_decided_as_written(name: str) -> None:
    found, row = measure(name, QUICK), BOOK.rows[name]
    assert found.differences == []
    quick = {**row, "ops": {op: row["ops"][op] for op in QUICK}}
    assert Book(EXPECTED, BOOK.versions, {name: quick}).complaint(name, found.row) is None


def went(name: str, op: str, training: bool) -> Row:
    """A trial, as many sites as written, that went as it should."""
    found = trial(stirred(name), op, size_of(name), training)
    assert found is not None and passes(found), found
    assert found["sites"] == BOOK.rows[name]["ops"][op]["rewritten"]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_family_computes_the_same_fused_and_undone_too(name: str) -> None:
    assert {"error", "model", "fused"} <= went(name, "spd", training=False).keys()


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("yolov5.yaml", CONV_FIRST),
        ("yolov10n.yaml", "shift"),
        ("yolov8-pose.yaml", "spatial_shuffle"),
        ("yolo11-obb.yaml", "remove"),
    ],
)
def test_family_with_other_ops(name: str, op: str) -> None:
    went(name, op, training=True)


@pytest.mark.parametrize(("kind", "name"), [("YOLO", "yolov5n.yaml"), ("RTDETR", "yolov8-rtdetr.yaml")])
def test_objects_and_their_networks_are_taken_alike(kind: str, name: str) -> None:
    thing = getattr(ultralytics, kind)(name)
    assert list(surgeon.locate(thing, 128)) == list(surgeon.locate(thing.model, 128))
    assert surgeon.apply(thing, "spd", 128) is thing and isinstance(thing, getattr(ultralytics, kind))
    assert surgeon.record(thing) == surgeon.record(thing.model) and surgeon.record(thing).count("rewritten") == 7
    assert type(surgeon.undo(thing)) is getattr(ultralytics, kind)


# the checks can fail


@pytest.mark.parametrize(("name", "path"), [("yolov5.yaml", "model.13.m.0.cv2.conv"), ("yolov3-tiny.yaml", "model.1")])
def test_a_site_left_out_is_missed(name: str, path: str) -> None:
    model = build(name)
    sites = surgeon.locate(model)
    seen = witness(model, sites.input_size)
    assert differences(seen, sites) == []
    (message, *more) = differences(seen, [site for site in sites if site.path != path])
    assert message.startswith("missing x1") and not more


def test_a_changed_weight_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def slip(model: Any, recipe: Any, size: int) -> None:
        surgeon.apply(model, recipe, size)
        with torch.no_grad():
            model.model[3].conv.weight[0, 0, 0, 0] += 1
        model.model[3].np += 1

    monkeypatch.setattr(measuring, "surgeon", SimpleNamespace(**{**vars(surgeon), "apply": slip}))
    found = trial(stirred("yolov5.yaml"), "spd", 64)
    assert found is not None and min(found["error"], found["model"], found["fused"]) > 1e3 * TOLERANCE
    assert found["wrong"] == ["np is wrong in [3]"] and not passes(found)


def test_what_undo_left_behind_is_seen() -> None:
    one = stirred("yolov5.yaml")
    other: Any = copy.deepcopy(one)
    assert same(one, other)
    other.model[3].bn.running_mean[0] += 1e-12
    assert not same(one, other)
    other = copy.deepcopy(one)
    other.model[3].np += 1
    assert not same(one, other)


GOOD: Row = {"sites": 7, "error": 1e-15, "model": 1e-15, "fused": 1e-15, "wrong": []}


@pytest.mark.parametrize("bad", [{"error": 1e-3}, {"model": 1e-3}, {"fused": 1e-3}, {"moved": 0.0}, {"wrong": ["np"]}])
def test_a_trial_that_went_wrong_does_not_pass(bad: Row) -> None:
    assert passes(GOOD) and not passes({**GOOD, **bad})


def test_an_answer_of_other_tensors_is_told() -> None:
    x = torch.rand(2, 3)
    assert furthest({"a": x, "b": [x, None]}, {"a": x, "b": (x, x)}) == float("inf")
    assert furthest([x], [x]) == 0 and furthest([x], [x + 1]) > 0.1


# all of them


@pytest.mark.matrix
@pytest.mark.parametrize("name", yaml_names())
def test_yaml(name: str, check: Check) -> None:
    found = measure(name)
    assert found.differences == []
    check(name, found.row)


@pytest.mark.matrix
@pytest.mark.parametrize("name", yaml_names())
def test_yaml_with_every_op(name: str) -> None:
    row = trials(name)
    assert {op: found for op, found in row.items() if found is not None and not passes(found)} == {}
    sites = {op: 0 if found is None else found["sites"] for op, found in row.items()}
    assert sites == {op: BOOK.rows[name]["ops"][op]["rewritten"] for op in OPS}


def test_every_yaml_is_in_the_books() -> None:
    tried = Book.read(TRIALS).rows
    assert tuple(BOOK.rows) == tuple(tried) == yaml_names()
    assert {op for row in tried.values() for op in row} == set(OPS)
    assert [(name, op) for name, row in tried.items() for op, found in row.items() if found and not passes(found)] == []
