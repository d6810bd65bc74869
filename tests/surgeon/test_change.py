"""Changes and records: added up, counted, printed, and carried through JSON."""

import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

import surgeon
from surgeon import Change, Record

FIRST = Record(
    changes=(
        Change(path="a", op="spd", status="rewritten", reason="Conv2d -> b", params=(10, 40), macs=(1000, 4000)),
        Change(path="b", op="spd", status="refused", reason="is too small"),
    ),
    model="Net",
    input_size=(3, 32, 32),
    params=(100, 130),
    macs=(5000, 8000),
    activations=(64, 72),
    recipe=({"spd": {}, "select": {"path": ["a"]}},),
    notes=("assumed",),
)
SECOND = Record(
    changes=(Change(path="c", op="spd", status="unchanged", reason="already operated by spd", params=(7, 7)),),
    model="Net",
    input_size=(3, 64, 64),
    params=(130, 150),
    macs=(32_000, 33_000),
    activations=(90, 99),
    recipe=({"spd": {"kernel": "minimal"}},),
    notes=("assumed", "new"),
)


def test_records_add_up() -> None:
    both = FIRST.then(SECOND)
    assert both.changes == FIRST.changes + SECOND.changes and both.recipe == FIRST.recipe + SECOND.recipe
    assert (both.params, both.macs, both.activations) == ((100, 150), (5000, 33_000), (64, 99))
    assert both.notes == ("assumed", "new") and both.input_size == (3, 64, 64)
    assert Record().then(FIRST) == FIRST and FIRST.changes[0].path == "a"


def test_counts() -> None:
    assert [FIRST.then(SECOND).count(status) for status in ("rewritten", "refused", "unchanged")] == [1, 1, 1]


@pytest.mark.parametrize("record", [FIRST, FIRST.then(SECOND), Record()], ids=["one", "two", "none"])
def test_json_and_back(record: Record) -> None:
    data = json.loads(record.to_json())
    again = Record.from_dict(data)
    assert again.to_json() == record.to_json() and again.changes == record.changes and str(again) == str(record)
    assert (again.params, again.notes, again.input_size) == (record.params, record.notes, record.input_size)


def test_the_record_of_an_operated_model_survives_json() -> None:
    model = surgeon.apply(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 2, 2)), "spd", 32)
    record = surgeon.record(model)
    assert Record.from_dict(json.loads(record.to_json())).to_dict() == Record.from_dict(record.to_dict()).to_dict()
    assert record.params == (3 * 4 * 9 + 4 + 68, sum(p.numel() for p in model.parameters()))


def test_the_table() -> None:
    lines = str(FIRST).splitlines()
    assert lines[0] == "Net at 3x32x32: 1 rewritten, 1 refused"
    assert lines[1].split() == ["path", "op", "status", "params", "MACs", "reason"]
    assert lines[2].split(maxsplit=3) == ["a", "spd", "rewritten", "10 -> 40  1.00k -> 4.00k  Conv2d -> b"]
    assert lines[3].split(maxsplit=5) == ["b", "spd", "refused", "0", "0", "is too small"]
    assert lines[4] == "whole model: parameters 100 -> 130, MACs 5.00k -> 8.00k, activations 64 -> 72B"
    assert lines[5] == "note: assumed" and len(lines) == 6
    assert repr(FIRST) == str(FIRST) and str(Record()) == "no changes"


def test_an_untouched_model_has_no_changes() -> None:
    record = surgeon.record(nn.Conv2d(3, 4, 3))
    assert record.changes == () and record.recipe == () and str(record) == "no changes"


def test_facts_cannot_be_edited() -> None:
    with pytest.raises(FrozenInstanceError):
        FIRST.changes[0].status = "refused"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        FIRST.model = "Other"  # type: ignore[misc]


def test_a_plan_is_the_record_that_apply_leaves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1, 1))
    planned = surgeon.plan(model, "spd", 32)
    assert surgeon.record(model).changes == ()
    assert surgeon.record(surgeon.apply(model, "spd", 32)).to_dict() == planned.to_dict()
