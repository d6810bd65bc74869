"""Surgery and ultralytics' ``fuse()``: what is operated fuses to the same function; what is fused can be operated."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from tests.contracts import TOLERANCE, Snapshot, images, new_tensors, run, stir
from tests.surgeon.yolo.measuring import furthest, fuse, same, wrong_counts
from tests.surgeon.yolo.small import LAYERS
from tests.surgeon.yolo.zoo import tasks

modules = pytest.importorskip("ultralytics.nn.modules")
CONV_FIRST = {"spd": {"order": "conv-spd"}}
RECIPES: dict[str, Any] = {
    "spd": "spd",
    "conv first": CONV_FIRST,
    "both": [{**CONV_FIRST, "select": {"path": "model.3.*"}}, {"spd": {}, "select": {"path": "model.1.*"}}],
}
X = images(64)


def network(merging: bool = False) -> Any:
    """A narrow detector in float64; its third layer has a residual block, or is one that ``fuse()`` merges."""
    yaml = copy.deepcopy(LAYERS)
    model: Any = tasks.DetectionModel(yaml, verbose=False)
    if merging:
        tags = {"i": 2, "f": -1, "type": "RepConv", "np": 0}
        model.model[2] = modules.RepConv(16, 16)
        model.model[2].__dict__.update(tags)
    return stir(model.double()).eval()


def operate(model: nn.Module, recipe: Any) -> Any:
    return surgeon.apply(copy.deepcopy(model), recipe, 64)


def pickled(model: Any) -> Any:
    """A copy whose layers were written and read."""
    twin = copy.deepcopy(model)
    twin.model = pickle.loads(pickle.dumps(model.model))
    return twin


@pytest.mark.parametrize("recipe", RECIPES)
def test_operated_then_fused(recipe: str) -> None:
    before = network()
    after = operate(before, RECIPES[recipe])
    folded = fuse(after)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert furthest(run(fuse(before), X), run(folded, X)) < TOLERANCE
    assert furthest(run(folded, X), run(pickled(folded), X)) == 0
    with torch.no_grad():  # control: the new weights are read after fusing too
        folded.model[3].conv.weight += 0.01
    assert furthest(run(fuse(before), X), run(folded, X)) > 1e3 * TOLERANCE


@pytest.mark.parametrize("recipe", RECIPES)
def test_fused_then_operated(recipe: str) -> None:
    before = fuse(network())
    after = operate(before, RECIPES[recipe])
    assert surgeon.record(after).count("rewritten") == (2 if recipe == "both" else 3)
    assert furthest(run(before, X), run(after, X)) < TOLERANCE
    assert furthest(run(after, X), run(pickled(after), X)) == 0
    assert not same(before, after) and same(before, surgeon.undo(after))
    assert furthest(run(before, X), run(after, X)) == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_new_learns(recipe: str) -> None:
    before = network()
    after = operate(before, RECIPES[recipe]).train()
    sum(answer.square().mean() for answer in (after(X)["boxes"], after(X)["scores"])).backward()
    fresh = new_tensors(before, after)
    assert len(fresh) >= 2
    for name, p in fresh.items():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad[p.detach() == 0].abs().max() > 0, name


def test_undo_of_a_fused_network_is_refused_and_changes_nothing() -> None:
    folded = fuse(operate(network(), "spd"))
    state = Snapshot.of(folded)
    with pytest.raises(surgeon.RefusedError, match=r"'model\.0\.bn' is gone, as after fuse\(\).*undo first and fuse"):
        surgeon.undo(folded)
    assert state.differences(Snapshot.of(folded)) == []
    surgeon.apply(folded, {"remove": {}, "select": {"path": "model.2.*"}}, 64)
    with pytest.raises(surgeon.RefusedError, match="it was fused before it was operated again"):
        surgeon.undo(folded)


def test_a_norm_of_more_channels_could_not_be_folded() -> None:
    with pytest.raises(
        surgeon.RefusedError, match=r"'model\.0\.conv' has a norm that fuse\(\) folds into it.*'consumer'"
    ):
        operate(network(), {"spd": {"order": "conv-spd", "before": "norm"}})


@pytest.mark.parametrize("op", ["spatial_shuffle", "shift"])
def test_what_fusing_would_merge_away_is_refused(op: str) -> None:
    before = network(merging=True)
    after = operate(before, op)
    (refused,) = (change for change in surgeon.record(after).changes if change.status == "refused")
    assert refused.path == "model.2.conv1.conv" and "RepConv: fuse() merges its branches" in refused.reason
    assert furthest(run(after, X)[0], run(fuse(after), X)[0]) < TOLERANCE


def test_readers_that_fusing_merges_are_widened() -> None:
    before = network(merging=True)
    after = operate(before, {**CONV_FIRST, "select": {"path": "model.1.*"}})
    assert after.model[2].conv1.conv.weight.shape[1] == after.model[2].conv2.conv.weight.shape[1] == 64
    assert furthest(run(before, X), run(after, X)) < TOLERANCE
    assert furthest(run(fuse(before), X), run(fuse(after), X)) < TOLERANCE


def test_layers_tell_the_parameters_they_have() -> None:
    model = network()
    before = [layer.np for layer in model.model]
    surgeon.apply(model, "spd", 64)
    assert wrong_counts(model) == [] and [i for i, n in enumerate(before) if model.model[i].np != n] == [0, 1, 3]
    surgeon.apply(model, {"remove": {}, "select": {"path": "model.2.*"}}, 64)
    assert wrong_counts(model) == [] and model.model[2].np < before[2]
    assert [layer.np for layer in surgeon.undo(model).model] == before
