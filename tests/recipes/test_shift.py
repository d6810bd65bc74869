"""Offsets in training: their group, their penalty, their last update; interrupted, and in two processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

import recipes
import surgeon
from recipes.claiming import dump
from recipes.data import ALONE, Data
from recipes.finetuning import data_for
from recipes.learner import Learner
from recipes.processes import seeded
from recipes.schema import RecipeFile
from surgeon.ops.offsets import (
    freeze_offsets,
    offset_groups,
    offset_parameters,
    offset_penalty,
    shift_share,
)
from surgeon.ops.shift_conv import ShiftConv2d
from surgeon.ops.shift_layer import SparseShift2d
from tests.recipes.test_processes import final

Small = Callable[..., RecipeFile]
SURGERY = {"shift": {}, "select": {"min_depth": 0.1}}


def shifted(net: str = "digits_convnet", mode: str = "sparse") -> nn.Module:
    with seeded(0):
        model = timm.create_model(net)
    return surgeon.apply(model, {"shift": {"mode": mode}, "select": {"min_depth": 0.1}})


def offsets(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in offset_parameters(model).values()])


def trained(recipe: RecipeFile, console: Console, **more: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    model = shifted()
    return model, recipes.finetune(model, recipe, console=console, **more).rows


# from Python


def test_the_groups_hold_every_trainable_parameter_once() -> None:
    model = shifted()
    rest, own = offset_groups(model, lr=0.5, weight_decay=0.1)
    assert {id(p) for p in own["params"]} == {id(p) for p in offset_parameters(model).values()}
    both = [id(p) for group in (rest, own) for p in group["params"]]
    assert sorted(both) == sorted(id(p) for p in model.parameters())
    assert (own["lr"], own["weight_decay"], own["offsets"]) == (0.5, 0.1, True)
    freeze_offsets(model)
    assert [group.get("offsets", False) for group in offset_groups(model)] == [False]
    assert len(offset_groups(nn.Sequential(SparseShift2d(9)))) == 1
    assert offset_parameters(shifted(mode="grouped")) == {}


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_penalty_is_that_of_the_paper(kind: Any) -> None:
    model = nn.Sequential(SparseShift2d(4, init="uniform", seed=0), ShiftConv2d.from_conv2d(nn.Conv2d(4, 2, 3)))
    flat = offsets(model)
    wanted = 0.3 * (flat.abs().sum() if kind == "l1" else flat.square().sum() / 2)
    penalty = offset_penalty(model, kind, 0.3)
    assert float(penalty.detach()) == pytest.approx(float(wanted))
    penalty.backward()
    assert torch.allclose(model[0].offset.grad, 0.3 * (flat[:8].sign() if kind == "l1" else flat[:8]).view(2, 4))
    freeze_offsets(model[0])
    assert offset_penalty(model[0], kind, 0.3) == 0 and model[0].offset.grad is None
    with pytest.raises(surgeon.RecipeError, match="kind='l3' is unknown"):
        offset_penalty(model, "l3")  # type: ignore[arg-type]


def test_the_penalty_pulls_channels_to_rest() -> None:
    layer = SparseShift2d(36)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        offset_penalty(layer, "l2", 1.0).backward()
        optimizer.step()
    assert layer.sparsity == shift_share(layer) == 1


# from a recipe


def test_the_offsets_are_a_group_of_their_own(small: Small) -> None:
    for opt in ("sgd", "adamw"):
        recipe = small(weight_decay=0.1, opt=opt, sched="none", shift={"lr_scale": 0.01})
        model = shifted()
        data = data_for(recipe, model, recipe.train, ALONE)
        learner = Learner(model, recipe.train, 10, len(data.train), ALONE)
        *others, own = learner.optimizer.param_groups
        assert {id(p) for p in own["params"]} == {id(p) for p in offset_parameters(model).values()}
        assert own["lr"] == pytest.approx(0.0002) and own["weight_decay"] == 0 and others[0]["lr"] == 0.02
        assert sum(len(g["params"]) for g in (*others, own)) == len([*model.parameters()])
        before = offsets(model)
        learner.train_epoch(0, data.train.epoch(0), lambda totals: None)
        assert 0 < float((offsets(model) - before).abs().max()) < 0.1


def test_the_penalty_makes_shifts_sparse(small: Small, quiet: Console) -> None:
    found = {}
    for name, settings in {"none": {}, "l1": {"penalty": "l1", "weight": 0.5}, "l2": {"weight": 1.0}}.items():
        _, rows = trained(small(epochs=3, shift=settings), quiet)
        found[name] = [row["shift_sparsity"] for row in rows]
    assert found["none"][-1] < found["l2"][-1] and found["none"][-1] < found["l1"][-1]
    assert found["none"][0] == found["l1"][0] < found["l1"][-1]


def test_weight_decay_of_the_optimiser_leaves_offsets_alone(small: Small, quiet: Console) -> None:
    recipe = small(epochs=1, weight_decay=0.5, shift={"lr_scale": 1e-9})
    model, _ = trained(recipe, quiet)
    assert torch.allclose(offsets(model), offsets(shifted()), atol=1e-4)


def test_offsets_stop_at_the_share_of_all_updates(small: Small, quiet: Console) -> None:
    history: list[torch.Tensor] = []
    model = shifted()
    recipe = small(epochs=4, opt="adamw", lr=0.01, shift={"weight": 0.01, "freeze_at": 0.375})  # 12 of 32 updates
    data = data_for(recipe, model, recipe.train, ALONE)
    learner = Learner(model, recipe.train, 10, len(data.train), ALONE)
    weights = []
    for epoch in range(4):
        learner.train_epoch(epoch, data.train.epoch(epoch), lambda totals: history.append(offsets(model)))
        weights.append(model.get_classifier().weight.detach().clone())
    moved = [bool((a != b).any()) for a, b in itertools.pairwise(history)]
    assert moved == [True] * 12 + [False] * 19  # each is seen before its own update
    assert not torch.equal(weights[2], weights[3])
    learner.finish()
    assert all(p.requires_grad for p in offset_parameters(model).values())
    never = Learner(shifted(), small(shift={"freeze_at": 1.0}).train, 10, 8, ALONE).offsets
    never.before_update(15)
    assert not never.frozen


class Stopping:
    """Batches that end in an interrupt, in the middle of one epoch."""

    def __init__(self, batches: Any, epoch: int) -> None:
        self.batches, self.at, self.num_images = batches, epoch, batches.num_images

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int) -> Any:
        for i, batch in enumerate(self.batches.epoch(number)):
            if number == self.at and i == 2:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("epoch", [1, 3])
def test_interrupted_before_or_after_freezing_ends_the_same(
    small: Small, quiet: Console, tmp_path: Path, epoch: int
) -> None:
    settings = {"weight": 0.01, "freeze_at": 0.6, "lr_scale": 2.0}
    recipe = small(epochs=5, opt="adamw", lr=0.005, model_ema=True, shift=settings)
    through, rows = trained(recipe, quiet)
    model = shifted()
    data = data_for(recipe, model, recipe.train, ALONE)
    stopping = Data(data.name, Stopping(data.train, epoch), data.val, data.num_classes, data.input_size)
    with pytest.raises(KeyboardInterrupt):
        recipes.finetune(model, recipe, folder=tmp_path / "run", data=stopping, console=quiet)
    again, continued = trained(recipe, quiet, folder=tmp_path / "run")
    for (name, a), b in zip(through.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [row["shift_sparsity"] for row in rows] == [row["shift_sparsity"] for row in continued]
    other, _ = trained(small(epochs=5, opt="adamw", lr=0.005, shift={**settings, "freeze_at": 0.2}), quiet)
    assert not torch.equal(offsets(other), offsets(again))


def test_a_model_without_offsets_is_told(small: Small, recording: Console) -> None:
    recipe = small(epochs=1, shift={"weight": 0.1})
    recipes.finetune(timm.create_model("digits_convnet"), recipe, console=recording)
    assert "train.shift changes nothing here: the model has no offsets that learn" in recording.export_text()


def test_mistakes_in_the_section_are_explained(small: Small) -> None:
    with pytest.raises(surgeon.RecipeError) as error:
        small(shift={"penality": "l1", "weight": -1, "freeze_at": 2, "penalty": "l3"})
    said = str(error.value)
    assert "train.shift.penality: unknown key 'penality'; did you mean 'penalty'? (allowed: freeze_at, lr_scale" in said
    assert "train.shift.weight" in said and "train.shift.freeze_at" in said and "train.shift.penalty" in said


CHILD = """
import sys
import timm, torch
import recipes, surgeon
from recipes.processes import processes, seeded

torch.set_num_threads(1)
with processes("cpu"):
    recipe = recipes.load(sys.argv[1])
    with seeded(0):
        model = timm.create_model("digits_convnet_nobn")
    surgeon.apply(model, {"shift": {}, "select": {"min_depth": 0.1}})
    recipes.finetune(model, recipe, folder=sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_freeze_as_one(small: Small, quiet: Console, tmp_path: Path) -> None:
    recipe = small("digits_convnet_nobn", grad_accum_steps=2, shift={"weight": 0.1, "freeze_at": 0.4, "lr_scale": 9.0})
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    (tmp_path / "child.py").write_text(CHILD)
    root = str(Path(recipes.__file__).parents[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(tmp_path / "child.py"), str(tmp_path / "recipe.yaml"), str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    model = shifted("digits_convnet_nobn")
    start = offsets(model)
    recipes.finetune(model, recipe, folder=tmp_path / "one", console=quiet)
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 5e-6
    assert float((offsets(model) - start).abs().max()) > 1e-3
