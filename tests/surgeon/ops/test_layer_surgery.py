"""Removing, freezing and exchanging blocks: by hand, in training, and how often what is chosen."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import surgeon
from surgeon.fresh import fresh_values
from surgeon.ops.drawing import rewind
from surgeon.ops.stochastic import WeightSets
from tests.contracts import Snapshot, images, operate, relative, rewritten, run, stir, undone
from tests.zoo import PlainNet

X = images(64)


def resnet(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return stir(timm.create_model("resnet18", num_classes=5, **more).double().eval())


# remove


def test_a_removed_block_is_skipped() -> None:
    model = resnet()
    by_hand = copy.deepcopy(model)
    by_hand.layer3[1] = nn.Identity()
    before = run(model, X)
    operate(model, {"remove": {}, "select": {"path": "layer3.1"}}, 64)
    assert torch.equal(run(model, X), run(by_hand, X)) and relative(before, run(model, X)) > 1e-6
    assert surgeon.record(model).params[1] == sum(p.numel() for p in by_hand.parameters())
    assert torch.equal(run(surgeon.undo(model), X), before)


def test_blocks_that_change_shapes_stay() -> None:
    model = operate(resnet(), "remove", 64)
    refused = {c.path: c.reason for c in surgeon.record(model).changes if c.status == "refused"}
    assert set(refused) == {"layer2.0", "layer3.0", "layer4.0"}
    assert refused["layer2.0"] == "takes 64x16x16 and answers 128x8x8: no identity does"
    assert len(rewritten(model)) == 5 and run(model, X).shape == (2, 5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_blocks_of_transformers(name: str) -> None:
    model = timm.create_model(name, num_classes=4, **({} if "conv" in name else {"img_size": 64})).eval()
    operate(model, {"remove": {}, "select": {"unit": [-1]}}, 64)
    assert len(rewritten(model)) == 1 and model(X.float()).shape == (2, 4)


# freeze


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()


def test_frozen_parts_stay_while_the_rest_learns() -> None:
    model = resnet()
    operate(model, {"freeze": {}, "select": {"path": ["layer1.*", "layer2.1"]}}, 64)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    train(model)
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    frozen = ("layer1.", "layer2.1.")
    assert not any(name.startswith(frozen) for name in moved)
    rest = {name for name in before if not name.startswith(frozen)}
    assert moved >= {name for name in rest if "running" in name or name.endswith("conv1.weight")}
    assert not model.layer1.training or not model.layer1[0].training
    model.train()
    assert not model.layer1[0].bn1.training and model.layer3[0].bn1.training


def test_undo_thaws(tmp_path: Path) -> None:
    model = surgeon.create_model("test_resnet", num_classes=5).train()
    before = Snapshot.of(model)
    surgeon.apply(model, {"freeze": {"at": "init"}, "select": {"first": 2}}, 64)
    loaded = surgeon.load(surgeon.save(model, tmp_path)).train()
    assert not loaded.layer1[0].conv1.weight.requires_grad and not loaded.layer1[0].training
    assert torch.equal(loaded.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    undone(before, surgeon.undo(model))


def test_frozen_at_initialisation() -> None:
    model = stir(surgeon.create_model("test_resnet", num_classes=5))
    other = model.layer4[0].conv2.weight.clone()
    surgeon.apply(model, {"freeze": {"at": "init", "seed": 4}, "select": {"path": "layer1.0"}}, 64)
    values = fresh_values(model, "layer1.0", 4)
    for name, value in values.items():
        found = {**dict(model.layer1[0].named_parameters()), **dict(model.layer1[0].named_buffers())}[name]
        assert torch.equal(found, value), name
    assert torch.equal(model.layer4[0].conv2.weight, other)


def test_what_lies_in_a_frozen_block_is_frozen_with_it() -> None:
    model = operate(resnet(), {"freeze": {}, "select": {"path": "layer1.0*"}}, 64)
    reasons = {c.path: (c.status, c.reason) for c in surgeon.record(model).changes}
    assert reasons["layer1.0"][0] == "rewritten"
    assert reasons["layer1.0.conv1"] == ("unchanged", "frozen with 'layer1.0'")
    operate(model, {"freeze": {}, "select": {"path": "layer1.0.conv2"}}, 64)
    assert surgeon.record(model).changes[-1].reason == "frozen with 'layer1.0'"


# stochastic


def net(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("blocknet_42", width=8).double().eval()
    return surgeon.apply(model, {"stochastic": settings}, 32)


Y = images(32)


def choices(model: nn.Module, passes: int) -> list[tuple[tuple[int, int, int], ...]]:
    """What was exchanged in each pass: stage, block and weight set."""
    found = []
    for _ in range(passes):
        sets = [m for m in model.modules() if isinstance(m, WeightSets)]
        picks = [(m, m.pick(Y)) for m in sets]
        found.append(tuple((m.stage, m.block, list(m.copies).index(copy)) for m, copy in picks if copy is not None))
    return found


@pytest.mark.parametrize("s", [1, 2])
def test_one_block_of_s_stages_with_one_of_r_sets(s: int) -> None:
    passes = choices(net(r=3, s=s), 1200)
    assert {len(picked) for picked in passes} == {s}
    assert all(len({stage for stage, _, _ in picked}) == s for picked in passes)
    counts = Counter(place for picked in passes for place in picked)
    assert len(counts) == 2 * 4 * 3  # stages, blocks, sets
    expected = 1200 * s / 24
    chi = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi < 68  # 23 degrees of freedom, one in a million


def test_a_pass_by_hand() -> None:
    model = net(r=2)
    ((stage, block, which),) = choices(copy.deepcopy(model), 1)[0]
    plain = surgeon.undo(copy.deepcopy(model))
    sets = model.get_submodule(f"blocks.{stage}.{block + bool(stage)}").surgeon_sets
    plain.blocks[stage][block + bool(stage)] = sets.copies[which]
    rewind(model)
    assert torch.equal(run(model, Y), run(plain, Y))


def test_the_sequence_is_seeded_and_kept_in_the_state() -> None:
    model = net(r=2)
    for _ in range(3):
        model(Y)
    twin = copy.deepcopy(model)
    fresh = net(r=2)
    fresh.load_state_dict(model.state_dict())
    later = [model(Y) for _ in range(6)]
    for other in (twin, fresh):
        assert all(torch.equal(other(Y), y) for y in later)
    assert len({float(y.detach().sum()) for y in later}) > 1


def test_training_goes_on_as_ever() -> None:
    model, plain = net(r=2).train(), surgeon.undo(net(r=2)).train()
    assert torch.equal(model(Y), plain(Y))
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in plain.named_parameters()}
    assert choices(net(r=1, when="train").train(), 3) != [(), (), ()] and choices(net(r=1, when="train"), 3) == [()] * 3


def test_projected_blocks_are_refused() -> None:
    model = operate(resnet(), {"stochastic": {"s": 2}}, 64)
    refused = {c.path for c in surgeon.record(model).changes if c.status == "refused"}
    assert refused == {"layer2.0", "layer3.0", "layer4.0"}
    assert model.layer1[0].surgeon_sets.stages == (2, 1, 1, 1)


def test_more_stages_than_there_are() -> None:
    with pytest.raises(surgeon.RefusedError, match=r"s=3 stages, but the selection has 2.*\(blocks\.0, blocks\.1\)"):
        net(s=3)
    with pytest.raises(surgeon.RecipeError, match="r: is 0; it is at least 1"):
        net(r=0)
    with pytest.raises(surgeon.RefusedError, match="has no identity skip"):
        surgeon.apply(PlainNet(), "stochastic", 64)
