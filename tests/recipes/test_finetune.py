"""Fine-tuning: timm's settings do what they say, and a training can be stopped anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

import recipes
import surgeon
from recipes.batches import Batch
from recipes.checkpoint import Checkpoints
from recipes.data import ALONE, Data
from recipes.finetuning import data_for
from recipes.learner import Learner
from recipes.processes import seeded
from recipes.schema import RecipeFile
from surgeon import LoadError, RecipeError

Small = Callable[..., RecipeFile]


def net(name: str = "digits_convnet", seed: int = 0) -> nn.Module:
    with seeded(seed):
        return timm.create_model(name)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Interrupting:
    """Training batches that stop the program in the middle of an epoch."""

    def __init__(self, batches: Any, epoch: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.batches, self.stop_in, self.error = batches, epoch, error
        self.num_images = batches.num_images

    def epoch(self, number: int) -> Any:
        for position, batch in enumerate(self.batches.epoch(number)):
            if number == self.stop_in and position == 2:
                raise self.error
            yield batch

    def __iter__(self) -> Any:
        return iter(self.epoch(0))

    def __len__(self) -> int:
        return len(self.batches)


def stopping(recipe: RecipeFile, epoch: int) -> Data:
    assert recipe.train is not None
    data = data_for(recipe, net(), recipe.train, ALONE)
    return Data(data.name, Interrupting(data.train, epoch), data.val, data.num_classes, data.input_size)


def test_it_learns_and_reports(small: Small, quiet: Console, tmp_path: Path) -> None:
    recipe = small(epochs=6, opt="adamw", lr=0.003, keep_epochs=[0, 1, 6], data={"max_train": 1024})
    model = net()
    initial = weights(model)
    result = recipes.finetune(model, recipe, folder=tmp_path, console=quiet)
    assert [row["epoch"] for row in result.rows] == list(range(7))
    assert result.rows[-1]["val_accuracy"] > 0.8 > 0.3 > result.rows[0]["val_accuracy"]
    assert result.rows[-1]["train_loss"] < result.rows[1]["train_loss"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.rows
    kept = sorted(path.name for path in (tmp_path / "trajectory").iterdir())
    assert kept == [f"epoch_{number:04d}.safetensors" for number in (0, 1, 6)]
    assert same(load_file(tmp_path / "trajectory" / kept[0]), initial)
    assert same(load_file(tmp_path / "trajectory" / kept[2]), weights(model))
    assert result.model is model and model.training  # modes are put back after each measuring


def test_same_seed_same_weights(small: Small, quiet: Console) -> None:
    def train(**changes: Any) -> dict[str, torch.Tensor]:
        return weights(recipes.finetune(net(), small(epochs=1, **changes), console=quiet).model)

    first = train()
    torch.rand(3)  # the global generator's state is of no importance
    assert same(train(), first)
    assert not same(train(seed=1), first)


def test_accumulated_batches_are_one_large_batch(small: Small, quiet: Console) -> None:
    def train(batch_size: int, parts: int) -> torch.Tensor:
        recipe = small("digits_convnet_nobn", epochs=1, batch_size=batch_size, grad_accum_steps=parts, lr=0.05)
        result = recipes.finetune(net("digits_convnet_nobn"), recipe, console=quiet)
        assert result.rows[-1]["updates"] == 256 // (batch_size * parts)
        return nn.utils.parameters_to_vector(result.model.parameters()).detach()

    whole, parts, other = train(64, 1), train(16, 4), train(32, 1)
    assert torch.allclose(whole, parts, atol=1e-6)
    assert not torch.allclose(whole, other, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.2, "cutmix": 1.0, "smoothing": 0.1},
        {"mixup": 0.2, "mixup_off_epoch": 1},
        {"smoothing": 0.1, "clip_grad": 1.0},
        {"clip_grad": 0.01, "clip_mode": "agc"},
        {"opt": "adamw", "layer_decay": 0.7, "opt_kwargs": {"betas": [0.9, 0.95]}},
        {"sched": "multistep", "decay_milestones": [1], "decay_rate": 0.1},
        {"sched": "none", "channels_last": True},
        {"sched_on_updates": True, "warmup_epochs": 1},
        {"amp": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_settings_of_timm(small: Small, quiet: Console, settings: dict[str, Any]) -> None:
    result = recipes.finetune(net(), small(**settings), console=quiet)
    assert all(math.isfinite(row["val_loss"]) for row in result.rows)
    mixed = [row for row in result.rows[1:] if "train_accuracy" not in row]
    expected = {"mixup": 2} if "mixup" in settings else {}
    expected = {"mixup": 1} if settings.get("mixup_off_epoch") else expected
    assert len(mixed) == expected.get("mixup", 0)  # the accuracy on mixed images would say nothing


def test_the_learning_rate_follows_the_schedule(small: Small, quiet: Console) -> None:
    stepped = small(epochs=3, lr=0.1, sched="multistep", decay_milestones=[2], decay_rate=0.5, data={"max_train": 64})
    rates = [row["lr"] for row in recipes.finetune(net(), stepped, console=quiet).rows[1:]]
    assert rates == pytest.approx([0.1, 0.05, 0.05])  # timm decays one epoch early: at index 1 for milestone 2
    warm = small(epochs=4, lr=0.1, warmup_epochs=2, warmup_lr=0.02, sched="constant", data={"max_train": 64})
    rates = [row["lr"] for row in recipes.finetune(net(), warm, console=quiet).rows[1:]]
    assert rates == pytest.approx([0.02, 0.06, 0.1, 0.1])


def test_clipping_bounds_the_step(small: Small, quiet: Console) -> None:
    def step(**changes: Any) -> float:
        recipe = small(epochs=1, lr=1.0, opt="momentum", momentum=0.0, sched="constant", batch_size=256, **changes)
        model = net()
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        recipes.finetune(model, recipe, console=quiet)
        return float((nn.utils.parameters_to_vector(model.parameters()).detach() - before).norm())

    assert step(clip_grad=0.01) == pytest.approx(0.01, rel=1e-3)
    assert step() > 0.1


def test_averaged_weights(small: Small, quiet: Console, tmp_path: Path) -> None:
    recipe = small(model_ema=True, model_ema_decay=0.9)
    model = net()
    result = recipes.finetune(model, recipe, folder=tmp_path, console=quiet)
    assert result.ema is not None and result.ema is not model
    assert not same(weights(result.ema), weights(model))
    assert "ema_accuracy" in result.rows[-1]
    again = recipes.finetune(net(seed=3), recipe, folder=tmp_path, console=quiet)
    assert again.ema is not None and same(weights(again.ema), weights(result.ema))


@pytest.mark.parametrize("settings", [{}, {"opt": "adamw", "model_ema": True, "mixup": 0.3, "sched_on_updates": True}])
def test_interrupted_and_continued_is_uninterrupted(
    small: Small, recording: Console, quiet: Console, tmp_path: Path, settings: dict[str, Any]
) -> None:
    recipe = small(epochs=4, **settings)
    through = recipes.finetune(net(), recipe, folder=tmp_path / "through", console=quiet)
    with pytest.raises(KeyboardInterrupt):
        recipes.finetune(net(), recipe, folder=tmp_path / "cut", data=stopping(recipe, 2), console=recording)
    said = recording.export_text()
    assert "stopped after epoch 2 of 4" in said and "Run the same command again to go on." in said
    (tmp_path / "cut" / "checkpoints" / ".epoch_0003.part").mkdir()  # a kill in the middle of writing leaves this
    (tmp_path / "cut" / "metrics.jsonl").write_text('{"epoch": 0}\n{"epo')
    resumed = recipes.finetune(net(seed=9), recipe, folder=tmp_path / "cut", console=recording)
    assert "continuing after epoch 2 of 4" in recording.export_text()
    assert same(weights(resumed.model), weights(through.model))
    timing = ("seconds", "images_per_second")
    rows = [[{k: v for k, v in row.items() if k not in timing} for row in r.rows] for r in (resumed, through)]
    assert rows[0] == rows[1]
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 5
    other = recipes.finetune(net(), small(epochs=4, seed=1, **settings), console=quiet)
    assert not same(weights(other.model), weights(through.model))


def test_a_finished_training_is_not_repeated(small: Small, quiet: Console, tmp_path: Path) -> None:
    recipe = small()
    first = recipes.finetune(net(), recipe, folder=tmp_path, console=quiet)
    again = recipes.finetune(net(seed=5), recipe, folder=tmp_path, data=stopping(recipe, 0), console=quiet)
    assert same(weights(first.model), weights(again.model)) and again.rows == first.rows
    with pytest.raises(KeyboardInterrupt):
        recipes.finetune(net(), recipe, folder=tmp_path, data=stopping(recipe, 0), resume=False, console=quiet)
    assert Checkpoints(tmp_path).last() == tmp_path / "checkpoints" / "epoch_0000"


def test_checkpoints_hold_data_only(small: Small, quiet: Console, tmp_path: Path) -> None:
    recipes.finetune(net(), small(epochs=1, opt="adamw"), folder=tmp_path, console=quiet)
    (place,) = (tmp_path / "checkpoints").iterdir()
    assert sorted(path.name for path in place.iterdir()) == ["model.safetensors", "rows.json", "state.pt"]
    assert set(torch.load(place / "state.pt", weights_only=True)) == {"optimizer", "scaler", "updates"}


def test_a_folder_of_another_recipe_is_refused(small: Small, quiet: Console, tmp_path: Path) -> None:
    recipes.finetune(net(), small(), folder=tmp_path, console=quiet)
    with pytest.raises(RecipeError) as caught:
        recipes.finetune(net(), small(lr=0.5, epochs=3, workers=1), folder=tmp_path, console=quiet)
    said = str(caught.value)
    assert "train.lr: 0.02 in the folder, 0.5 in the recipe" in said and "train.epochs: 2 in the folder, 3" in said
    assert "workers" not in said and "--no-resume" in said
    (tmp_path / "a_file").write_text("")
    with pytest.raises(RecipeError, match="is a file"):
        recipes.finetune(net(), small(), folder=tmp_path / "a_file", console=quiet)


def test_damaged_or_foreign_checkpoints_are_named(small: Small, quiet: Console, tmp_path: Path) -> None:
    recipe = small(epochs=1)
    recipes.finetune(net(), recipe, folder=tmp_path, console=quiet)
    with pytest.raises(LoadError, match=r"(?s)holds the weights of another model.*use another folder"):
        recipes.finetune(timm.create_model("test_resnet", in_chans=1), recipe, folder=tmp_path, console=quiet)
    place = tmp_path / "checkpoints" / "epoch_0001"
    (place / "state.pt").write_bytes(b"nonsense")
    with pytest.raises(LoadError, match=r"epoch_0001: damaged"):
        recipes.finetune(net(), recipe, folder=tmp_path, console=quiet)
    (place / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(LoadError, match=r"model.safetensors: damaged"):
        recipes.finetune(net(), recipe, folder=tmp_path, console=quiet)


def test_mistakes_are_explained(small: Small, quiet: Console) -> None:
    with pytest.raises(RecipeError, match=r"loss became .* in epoch 1 .*lower train.lr"):
        recipes.finetune(net("digits_convnet_nobn"), small(lr=1e30, sched="constant"), console=quiet)
    frozen = net().requires_grad_(False)
    with pytest.raises(RecipeError, match="no parameter is trainable"):
        recipes.finetune(frozen, small(), console=quiet)
    with pytest.raises(RecipeError, match=r"train.opt 'sgd' with opt_kwargs \{'bets': 1\}"):
        recipes.finetune(net(), small(opt_kwargs={"bets": 1}), console=quiet)
    with pytest.raises(RecipeError, match="float16 needs CUDA, and the device is cpu"):
        recipes.finetune(net(), small(amp=True, amp_dtype="float16"), console=quiet)
    with pytest.raises(RecipeError, match="has no train section"):
        recipes.finetune(net(), {"name": "x", "model": {"timm": "digits_convnet"}}, console=quiet)
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="sees no CUDA device"):
            recipes.finetune(net(), small(device="cuda"), console=quiet)


def test_frozen_parameters_stay(small: Small, quiet: Console) -> None:
    model = net()
    model.stem.requires_grad_(False)
    before = weights(model)
    recipes.finetune(model, small(epochs=1, weight_decay=0.1), console=quiet)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in model.named_parameters() if not name.startswith("stem.")}


def test_tensorboard_on_request(small: Small, quiet: Console, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipes.finetune(net(), small(epochs=1, tensorboard=True), folder=tmp_path / "on", console=quiet)
    recipes.finetune(net(), small(epochs=1), folder=tmp_path / "off", console=quiet)
    assert list((tmp_path / "on" / "tensorboard").glob("events*"))
    assert not (tmp_path / "off" / "tensorboard").exists()


def test_an_operated_model_trains_and_continues(small: Small, quiet: Console, tmp_path: Path) -> None:
    recipe = small()
    operated = [surgeon.apply(net(seed=seed), "spd", (1, 12, 12)) for seed in (0, 4)]
    with pytest.raises(KeyboardInterrupt):
        recipes.finetune(operated[0], recipe, folder=tmp_path, data=stopping(recipe, 1), console=quiet)
    recipes.finetune(operated[1], recipe, folder=tmp_path, console=quiet)
    through = recipes.finetune(surgeon.apply(net(), "spd", (1, 12, 12)), recipe, console=quiet)
    assert same(weights(operated[1]), weights(through.model))


def test_progress_in_a_terminal_shows_loss_accuracy_and_time(small: Small, tmp_path: Path) -> None:
    import io

    screen = Console(file=io.StringIO(), force_terminal=True, width=150)
    recipes.finetune(net(), small(), console=screen)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    for words in ("epoch 2/2", "loss", "accuracy", "left"):
        assert words in shown


def test_batch_norm_statistics_and_groups_of_batches(small: Small) -> None:
    recipe = small(grad_accum_steps=3)
    assert recipe.train is not None
    learner = Learner(net(), recipe.train, 10, 8, ALONE)
    assert learner.updates_per_epoch == 3  # 3 + 3 + 2 batches
    batches: list[Batch] = [(torch.randn(4, 1, 12, 12), torch.arange(4)) for _ in range(8)]
    seen: list[int] = []
    learner.train_epoch(0, batches, lambda totals: seen.append(int(totals[2])))
    assert learner.updates == 3 and seen == [4 * n for n in range(1, 9)]


@pytest.mark.gpu
@pytest.mark.parametrize("amp_dtype", ["float16", "bfloat16"])
def test_on_cuda(small: Small, quiet: Console, tmp_path: Path, amp_dtype: str) -> None:
    settings = {"device": "cuda", "amp": True, "amp_dtype": amp_dtype, "channels_last": True, "model_ema": True}
    recipe = small(epochs=6, opt="adamw", lr=0.003, clip_grad=1.0, data={"max_train": 1024}, **settings)
    with pytest.raises(KeyboardInterrupt):
        recipes.finetune(net(), recipe, folder=tmp_path, data=stopping(recipe, 3), console=quiet)
    result = recipes.finetune(net(), recipe, folder=tmp_path, console=quiet)
    assert next(result.model.parameters()).is_cuda and len(result.rows) == 7
    assert result.rows[-1]["val_accuracy"] > 0.8
