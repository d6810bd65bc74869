"""`finetune`: train a classifier as a recipe says, epoch by epoch, so that a kill costs at most one of them.

Just the loop; one update is in `learner`, what survives a kill in `checkpoint`, what is told in `reporting`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from recipes.checkpoint import Checkpoints
from recipes.claiming import alone, check, claim
from recipes.data import Data, batch, open_source
from recipes.evaluating import evaluate
from recipes.fitting import outputs
from recipes.folders import write_weights
from recipes.learner import Learner, has_batch_norm, precision
from recipes.loading import load
from recipes.processes import Processes, processes
from recipes.reporting import Metrics, Reporter
from recipes.schema import DetectorRecipe, RecipeFile, TrainSection
from surgeon.errors import RecipeError

Row = dict[str, Any]
WRITES = ("metrics.jsonl", "checkpoints", "trajectory", "tensorboard")


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` gives back.

    Attributes:
        model: The model handed in, trained.
        rows: One dict per epoch, from 0 (before training): losses, accuracies (0 to 1), ``lr``, ``seconds``.
        ema: A copy with averaged weights, with ``model_ema: true``.
        folder: Where metrics and checkpoints lie, if anywhere.
    """

    model: nn.Module
    rows: list[Row]
    ema: nn.Module | None = None
    folder: Path | None = None


@dataclass
class _Training:
    """One training under way: its parts, and its steps as methods."""

    title: str
    learner: Learner
    data: Data
    folder: Path | None
    who: Processes
    console: Console
    rows: list[Row] = field(default_factory=list)

    @property
    def settings(self) -> TrainSection:
        return self.learner.settings

    def continue_where_it_ended(self) -> None:
        """Take over the last checkpoint, the same one in every process."""
        if self.folder is not None:
            self.who.wait()
            self.rows = Checkpoints(self.folder).restore(self.learner)
            self.who.wait()

    def start(self) -> Row:
        """Measure the model before training: the row of epoch 0."""
        return {"epoch": 0, **self.measure(), "updates": 0}

    def measure(self) -> Row:
        score = evaluate(self.learner.net, self.data.val, self.who, precision(self.settings, self.who.device))
        row: Row = {"val_loss": score.loss, "val_accuracy": score.accuracy, **self.learner.offsets.row()}
        if self.learner.ema is not None:
            module = self.learner.ema.module
            averaged = evaluate(module, self.data.val, self.who, precision(self.settings, self.who.device))
            row.update(ema_loss=averaged.loss, ema_accuracy=averaged.accuracy)
        return row

    def epoch(self, number: int, reporter: Reporter) -> Row:
        """Train one epoch, counted from 1, and measure."""
        begun = time.perf_counter()
        batches = self.data.train.epoch(number - 1)
        trained = self.learner.train_epoch(number - 1, batches, lambda totals: reporter.batch(number, totals))
        seconds = time.perf_counter() - begun
        groups = self.learner.optimizer.param_groups
        rate = max(group["lr"] for group in groups if not group.get("offsets") or len(groups) == 1)
        if not math.isfinite(trained["train_loss"]):
            raise RecipeError(
                f"the loss became {trained['train_loss']} in epoch {number} (lr {rate:g}); "
                "lower train.lr, add warmup_epochs or clip_grad"
            )
        images = len(self.data.train) * self.settings.batch_size
        speed = {"seconds": round(seconds, 3), "images_per_second": round(images / seconds, 1)}
        return {
            "epoch": number,
            **trained,
            **self.measure(),
            "lr": rate,
            "updates": self.learner.updates,
            **speed,
        }

    def keep(self, row: Row, metrics: Metrics) -> None:
        """Write trajectory, checkpoint, metrics, in this order: the checkpoint decides what is done."""
        rows = [*self.rows, row]
        if self.folder is not None and self.who.main:
            if row["epoch"] in self.settings.keep_epochs:
                write_weights(self.folder / "trajectory" / f"epoch_{row['epoch']:04d}.safetensors", self.learner.net)
            Checkpoints(self.folder).save(self.learner, rows)
        self.rows = rows
        metrics.add(row)

    def run(self) -> None:
        """Train from where it stands to the last epoch."""
        done, s = len(self.rows) - 1, self.settings
        metrics = Metrics(self.folder if self.who.main else None, self.rows, s.tensorboard)
        with Reporter(self.title, self.console, s.epochs, max(done, 0), len(self.data.train), self.who) as reporter:
            self._announce(reporter, done)
            try:
                if done < 0:
                    self.keep(self.start(), metrics)
                for number in range(max(done, 0) + 1, s.epochs + 1):
                    row = self.epoch(number, reporter)
                    self.keep(row, metrics)
                    reporter.epoch(row)
            except KeyboardInterrupt:
                reporter.say(self._stopped())
                raise
            finally:
                metrics.close()

    def _announce(self, reporter: Reporter, done: int) -> None:
        if done > 0:
            reporter.say(f"{self.title}: continuing after epoch {done} of {self.settings.epochs} ({self.folder})")
        if self.learner.num_outputs > self.data.num_classes:
            more = f"{self.learner.num_outputs} outputs for {self.data.num_classes} classes"
            reporter.say(f"{self.title}: the model has {more}; its first {self.data.num_classes} are trained for them")
        if self.settings.shift is not None and not self.learner.offsets.learning:
            reporter.say(f"{self.title}: train.shift changes nothing here: the model has no offsets that learn")
        if self.who.world > 1:
            norm = "no batch norm, so the numbers are those of one process"
            if has_batch_norm(self.learner.net):
                synced = self.learner.net is not self.learner.model
                per_process = "statistics per process, averaged for evaluation (sync_bn: true shares them)"
                norm = f"batch norm: {'SyncBatchNorm, statistics of the whole batch' if synced else per_process}"
            reporter.say(f"{self.title}: {self.who.world} processes; {norm}")

    def _stopped(self) -> str:
        done = max(len(self.rows) - 1, 0)
        if self.folder is None:
            return f"{self.title}: stopped after epoch {done} of {self.settings.epochs}; nothing was kept (no folder)"
        kept = f"stopped after epoch {done} of {self.settings.epochs}; everything up to there is in {self.folder}"
        return f"{self.title}: {kept}. Run the same command again to go on."


def data_for(recipe: RecipeFile, model: nn.Module, train: TrainSection, who: Processes) -> Data:
    """Open and batch the data of a recipe for a model.

    Raises:
        RecipeError: When the recipe names no data, or they are missing.
    """
    if recipe.data is None:
        raise RecipeError(f"recipe '{recipe.name}' has no data section; add one, e.g. data: {{dataset: digits}}")
    source = open_source(recipe.data, train.seed)
    common: dict[str, Any] = {"batch_size": train.batch_size, "seed": train.seed, "workers": train.workers}
    return batch(source, model, in_chans=recipe.model.in_chans, who=who, **common)


def finetune(
    model: nn.Module,
    recipe: RecipeFile | Mapping[str, Any] | str | Path,
    *,
    folder: str | Path | None = None,
    data: Data | None = None,
    resume: bool = True,
    console: Console | None = None,
) -> Finetuned:
    """Fine-tune a classifier in place, as the ``train:`` and ``data:`` of a recipe say.

    Everything is drawn from ``train.seed``; order and augmentation are functions of (seed, epoch, image), so a
    training that was killed and continued ends, on the CPU, with the very weights of one that ran through, and
    several processes (``torchrun``) see the batches one process sees.

    Args:
        model: Any module that maps images to logits.
        recipe: A recipe or its path, name or content; only ``train`` and ``data`` are used, ``compare`` is not.
        folder: Where to keep ``metrics.jsonl``, checkpoints and trajectory; None keeps nothing.
        data: Already batched data, instead of the recipe's.
        resume: Continue what the folder holds; else start over there.
        console: Where progress is shown.

    Raises:
        RecipeError: For a detector's recipe or one without ``train``, missing data, a folder of another recipe, or a
            diverging loss.
        LoadError: When the folder is damaged or holds another model's weights.

    Example:
        >>> import timm, surgeon
        >>> recipe = {"name": "short", "model": {"timm": "digits_convnet"}, "data": {"dataset": "digits", "size": 8},
        ...           "train": {"epochs": 1, "device": "cpu"}}
        >>> result = finetune(timm.create_model("digits_convnet"), recipe, console=Console(quiet=True))
        >>> [row["epoch"] for row in result.rows]
        [0, 1]
    """
    recipe, place = load(recipe), Path(folder).expanduser() if folder is not None else None
    train = recipe.train
    if isinstance(recipe, DetectorRecipe):
        raise RecipeError(
            f"recipe '{recipe.name}' is a detector's, and finetune trains classifiers; call yolo.train(...) of the "
            "operated object, or recipes.run(recipe)"
        )
    if train is None:
        raise RecipeError(f"recipe '{recipe.name}' has no train section; add one, e.g. train: {{epochs: 20}}")
    with processes(train.device) as who, alone(place if who.main else None):
        if place is not None and who.main:
            check(place, recipe, WRITES, resume)
        data = data if data is not None else data_for(recipe, model, train, who)
        learner = Learner(model, train, outputs(model, data), len(data.train), who)
        if place is not None and who.main:
            claim(place, recipe, WRITES, resume)
        training = _Training(recipe.name, learner, data, place, who, console or Console())
        training.continue_where_it_ended()
        training.run()
        return Finetuned(model, training.rows, learner.finish(), place)
