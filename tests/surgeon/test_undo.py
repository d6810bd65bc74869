"""Undo brings back every bit, or changes nothing and says why."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import surgeon
from surgeon import edit
from tests.contracts import Snapshot, images, operate, stir, undone
from tests.zoo import TINY, PlainNet, Wrap, entries

X = images(64, dtype=torch.float32)
RECIPES = {
    "spd": "spd",
    "fresh": {"spd": {"init": "fresh"}},
    "conv-spd": {"spd": {"order": "conv-spd"}},
    "before the norm": {"spd": {"order": "conv-spd", "before": "norm"}},
}


def train(model: nn.Module, x: torch.Tensor) -> None:
    """One step that moves every weight and every running statistic."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(**entries(TINY))
def test_every_bit_comes_back_after_training(entry: Any, recipe: Any) -> None:
    model = stir(entry.build()).train()
    before = Snapshot.of(model)
    operate(model, recipe, entry.size)
    if not surgeon.record(model).changes:
        with pytest.raises(surgeon.RefusedError, match="was not operated"):
            surgeon.undo(model)
        return
    train(model, images(entry.size, dtype=torch.float32))
    assert before.differences(Snapshot.of(model)) != []
    undone(before, surgeon.undo(model))


def test_a_copy_is_undone_alone() -> None:
    model = stir(PlainNet())
    before = Snapshot.of(model, identity=False)
    surgeon.apply(model, "spd", 64)
    twin = surgeon.undo(copy.deepcopy(model))
    undone(before, twin, identity=False)
    assert surgeon.record(model).count("rewritten") == 4
    undone(before, surgeon.undo(model), identity=False)


def test_shared_modules_are_shared_again() -> None:
    model = PlainNet()
    model.alias = model.stem
    before = Snapshot.of(stir(model))
    surgeon.apply(model, "spd", 64)
    assert model.alias[0] is model.stem[0]
    undone(before, surgeon.undo(model))


def test_derived_classes_are_dropped() -> None:
    model = Wrap(lambda m, x: F.max_pool2d(m.conv(x), 3, 2, 1), 4, conv=nn.Conv2d(3, 4, 3, 2, 1))
    before = Snapshot.of(stir(model))
    surgeon.apply(model, "spd", 64)
    assert type(model) is not Wrap
    twin = surgeon.undo(copy.deepcopy(model))
    assert type(twin) is Wrap and type(model) is not Wrap
    undone(before, surgeon.undo(model))


def test_a_removed_pool_comes_back() -> None:
    model = stir(PlainNet())
    before = Snapshot.of(model)
    surgeon.apply(model, {"spd": {"pool": "remove"}}, 64)
    assert isinstance(model.pool, nn.Identity)
    train(model, X)
    undone(before, surgeon.undo(model.train()))


def test_two_operations_are_undone_at_once() -> None:
    model = stir(PlainNet())
    before = Snapshot.of(model)
    surgeon.apply(model, {"spd": {}, "select": {"path": "stem*"}}, 64)
    surgeon.apply(model, {"spd": {"order": "conv-spd"}, "select": {"path": "block.conv1"}}, 64)
    undone(before, surgeon.undo(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_originals_follow_device_and_precision(dtype: torch.dtype) -> None:
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 5, 1)]
    model = nn.Sequential(*layers).eval()
    expected = copy.deepcopy(model).to(dtype)
    surgeon.apply(model, {"spd": {"order": "conv-spd", "before": "norm"}}, 64)
    surgeon.undo(model.to(dtype))
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {dtype}
    assert torch.equal(model(X.to(dtype)), expected(X.to(dtype)))


def test_originals_follow_the_memory_format() -> None:
    model = stir(PlainNet())
    expected = copy.deepcopy(model).to(memory_format=torch.channels_last)
    surgeon.apply(model, "spd", 64)
    undone(
        Snapshot.of(expected, identity=False), surgeon.undo(model.to(memory_format=torch.channels_last)), identity=False
    )


@pytest.mark.gpu
def test_originals_follow_the_device() -> None:
    recipe = {"spd": {"order": "conv-spd", "before": "norm"}}
    model = stir(PlainNet())
    before = Snapshot.of(model, identity=False)
    surgeon.undo(surgeon.apply(model, recipe, 64).cuda())
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    undone(before, model.cpu(), identity=False)


def test_originals_follow_where_nothing_took_their_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    log = edit.perform(model, [edit.Swap("1", lambda _: nn.Identity())])
    edit.revert(model.double(), log)
    assert {t.dtype for t in model[1].buffers()} == {torch.float64, torch.int64}


def test_originals_of_mixed_precision_stay_mixed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)).eval()
    model[0].bfloat16(), model[2].bfloat16()
    before = Snapshot.of(model)
    surgeon.apply(model[0], "spd", 64)
    surgeon.undo(model[0])
    undone(before, model)


def test_a_classifier_put_in_since_stays() -> None:
    model = stir(TINY[0].build())
    before = copy.deepcopy(model)
    surgeon.apply(model, "spd", 64)
    model.reset_classifier(5)
    classifier = model.fc
    surgeon.undo(model)
    assert model.fc is classifier and model(X).shape == (2, 5)
    assert torch.equal(model.conv1[0].weight, before.conv1[0].weight)
    assert surgeon.record(model).changes == ()


def test_a_norm_folded_since_is_told_and_one_taken_out_is_not() -> None:
    model = surgeon.apply(stir(PlainNet()), "spd", 64)
    taken = copy.deepcopy(model)
    model.stem[0].bias = nn.Parameter(torch.zeros(8))  # what folding leaves: a conv with a bias, and no norm
    model.stem[1] = nn.Identity()
    before = Snapshot.of(model)
    with pytest.raises(surgeon.RefusedError, match=r"norms were folded .*'stem\.1' is gone.*undo first and fuse then"):
        surgeon.undo(model)
    assert before.differences(Snapshot.of(model)) == []
    taken.stem[1] = nn.Identity()
    assert surgeon.record(surgeon.undo(taken)).changes == ()


def test_all_or_nothing() -> None:
    model = stir(PlainNet())
    plain = Snapshot.of(model, identity=False)
    surgeon.apply(model, "spd", 64)
    model.half()
    stem, model.stem = model.stem, nn.Identity()  # the first edit is taken back last
    before = Snapshot.of(model)
    with pytest.raises(surgeon.RefusedError, match=r"cannot undo: an operated module is gone .*put it back"):
        surgeon.undo(model)
    assert before.differences(Snapshot.of(model)) == []
    assert surgeon.record(model).count("rewritten") == 4
    model.stem = stem
    undone(plain, surgeon.undo(model.float()), identity=False)


def test_what_cannot_be_taken_back_rounds_no_original() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 5, 3))
    last = model[2]
    log = edit.perform(model, [edit.Swap(path, lambda _: nn.Identity()) for path in "12"])
    model.half()
    model[1] = None
    with pytest.raises(AttributeError):
        edit.revert(model, log)
    assert isinstance(model[2], nn.Identity) and last.weight.dtype == torch.float32


def test_nothing_to_undo_and_dropped_originals() -> None:
    with pytest.raises(surgeon.RefusedError, match="nothing to undo: PlainNet was not operated"):
        surgeon.undo(PlainNet())
    model = surgeon.apply(PlainNet(), {"surgery": ["spd"], "keep_originals": False}, 64)
    with pytest.raises(surgeon.RefusedError, match=r"the originals were not kept \(keep_originals: false"):
        surgeon.undo(model)
    assert surgeon.record(model).count("rewritten") == 4


def test_the_check_sees_one_bit() -> None:
    model = stir(PlainNet())
    before = Snapshot.of(model)
    surgeon.undo(surgeon.apply(model, "spd", 64))
    model.stem[1].running_mean.view(torch.int32)[0] ^= 1
    with pytest.raises(AssertionError, match=r"stem\.1\.running_mean bits"):
        undone(before, model)


@pytest.mark.parametrize("frozen_before", [False, True])
def test_what_was_frozen_before_is_frozen_again_and_nothing_else(frozen_before: bool) -> None:
    model = stir(PlainNet()).requires_grad_(not frozen_before)
    before = Snapshot.of(model)
    surgeon.apply(model, "spd", 64).requires_grad_(frozen_before)
    undone(before, surgeon.undo(model))
    assert {p.requires_grad for p in model.parameters()} == {not frozen_before}
