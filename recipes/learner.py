"""What one update needs, made of timm's parts: optimiser, schedule, loss, mixup, averaging, precision, processes.

Apart from the loop over epochs, which then reads as a loop; all of a training's state that is not the model lives here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad, distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recipes.batches import Batch
from recipes.offsets import Offsets, optimizer_for
from recipes.processes import Processes, derive, seed_all
from recipes.schema import TrainSection
from surgeon.errors import RecipeError


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model's training depends on how a batch is shared out."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def precision(settings: TrainSection, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context the forward pass runs in.

    Raises:
        RecipeError: For float16 without CUDA.
    """
    if not settings.amp:
        return nullcontext()
    if settings.amp_dtype == "float16" and device.type != "cuda":
        raise RecipeError(f"train.amp_dtype float16 needs CUDA, and the device is {device.type}; use bfloat16")
    return torch.autocast(device.type, getattr(torch, settings.amp_dtype))


def _optimizer(net: nn.Module, settings: TrainSection) -> torch.optim.Optimizer:
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise RecipeError("no parameter is trainable: all are frozen; take train out or freeze less")
    keys = ("opt", "weight_decay", "momentum", "layer_decay")
    try:
        chosen = {key: getattr(settings, key) for key in keys}
        lr_scale = settings.shift.lr_scale if settings.shift is not None else 1.0
        return optimizer_for(net, settings.lr, lr_scale, {**chosen, **settings.opt_kwargs})
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise RecipeError(f"train.opt '{settings.opt}' with opt_kwargs {settings.opt_kwargs}: {error}") from None


class Learner:
    """A model in training.

    Args:
        model: Trained in place.
        settings: The recipe's ``train:``.
        num_outputs: Logits of the model.
        num_batches: Per epoch.
        who: This process among those that train together.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSection, num_outputs: int, num_batches: int, who: Processes
    ) -> None:
        self.model, self.settings, self.who, self.updates = model, settings, who, 0
        self.num_outputs = num_outputs
        self.net = self._synchronised(model.to(who.device))
        if settings.channels_last:
            self.net.to(memory_format=torch.channels_last)
        precision(settings, who.device)
        self.optimizer = _optimizer(self.net, settings)
        self.second_order = bool(getattr(self.optimizer, "is_second_order", False))
        self.updates_per_epoch = -(-num_batches // settings.grad_accum_steps)
        self.scheduler = self._schedule()
        scaled = settings.amp and settings.amp_dtype == "float16"
        self.scaler = torch.amp.GradScaler(who.device.type, enabled=scaled)
        decay, warmup = settings.model_ema_decay, settings.model_ema_warmup
        self.ema = ModelEmaV3(self.net, decay=decay, use_warmup=warmup) if settings.model_ema else None
        self.parallel: nn.Module = self._parallel()
        self.offsets = Offsets(self.net, settings.shift, settings.epochs * self.updates_per_epoch, who.world > 1)
        self.mixup, self.loss = self._mixing()

    def _synchronised(self, model: nn.Module) -> nn.Module:
        """Return the module that is trained: the model, or a copy of it with SyncBatchNorm."""
        if not (self.settings.sync_bn and self.who.world > 1 and has_batch_norm(model)):
            return model
        if self.who.device.type != "cuda":
            raise RecipeError(
                "train.sync_bn needs CUDA: torch's SyncBatchNorm does not run on the CPU; set it to false"
            )
        return convert_sync_batchnorm(copy.deepcopy(model))  # type: ignore[no-any-return]

    def _schedule(self) -> Any:
        s = self.settings
        keys = ("sched", "decay_epochs", "decay_rate", "min_lr", "warmup_lr", "warmup_epochs")
        chosen = {key: getattr(s, key) for key in keys} | {"decay_milestones": list(s.decay_milestones)}
        every = {"step_on_epochs": not s.sched_on_updates, "updates_per_epoch": self.updates_per_epoch}
        try:
            return create_scheduler_v2(self.optimizer, num_epochs=s.epochs, **chosen, **every)[0]
        except ValueError as error:
            raise RecipeError(f"train.sched '{s.sched}' with epochs {s.epochs}, {_words(chosen)}: {error}") from None

    def _parallel(self) -> nn.Module:
        if self.who.world == 1:
            return self.net
        on_gpu = self.who.device.type == "cuda"
        return DistributedDataParallel(self.net, device_ids=[self.who.device] if on_gpu else None)

    def _mixing(self) -> tuple[Mixup | None, nn.Module]:
        s = self.settings
        if not (s.mixup or s.cutmix):
            return None, LabelSmoothingCrossEntropy(s.smoothing) if s.smoothing else nn.CrossEntropyLoss()
        share = s.batch_size // self.who.world
        if share % 2:
            raise RecipeError(
                f"mixup pairs images, but each of {self.who.world} processes gets {share} of a batch; "
                f"make train.batch_size a multiple of {2 * self.who.world}"
            )
        mixup = Mixup(
            s.mixup,
            s.cutmix,
            prob=s.mixup_prob,
            switch_prob=s.mixup_switch_prob,
            label_smoothing=s.smoothing,
            num_classes=self.num_outputs,
        )
        return mixup, SoftTargetCrossEntropy()

    def train_epoch(
        self, epoch: int, batches: Iterable[Batch], seen: Callable[[torch.Tensor], None]
    ) -> dict[str, float]:
        """Train for one epoch, everything in it drawn from (seed, epoch).

        Args:
            epoch: From 0.
            batches: Of this epoch, this process' part.
            seen: Called after each batch with the sums so far of loss, right answers, images; reading them waits for
                the device.

        Returns:
            Mean loss and, without mixup, accuracy over the images as they were seen in training mode.
        """
        s = self.settings
        seed_all(derive(s.seed, epoch, self.who.rank))
        self.parallel.train()
        mixing = self.mixup is not None and not 0 < s.mixup_off_epoch <= epoch
        if self.mixup is not None:
            self.mixup.mixup_enabled = mixing
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates) if s.sched_on_updates else self.scheduler.step(epoch)
        exact = torch.float32 if self.who.device.type == "mps" else torch.float64
        totals = torch.zeros(3, dtype=exact, device=self.who.device)  # loss, correct, images
        for group in _groups(batches, s.grad_accum_steps):
            self.offsets.before_update(self.updates)
            for position, batch in enumerate(group):
                totals += self._backward(batch, position, len(group))
                seen(totals)
            self._update()
        loss, correct, images = self.who.total(totals).tolist()
        if self.who.world > 1 and has_batch_norm(self.net):
            self._share_statistics()
        return {"train_loss": loss / images, **({} if mixing else {"train_accuracy": correct / images})}

    def _backward(self, batch: Batch, position: int, parts: int) -> torch.Tensor:
        """Add the gradient of one batch of an update; processes exchange gradients at the update's last."""
        images, targets = (tensor.to(self.who.device, non_blocking=True) for tensor in batch)
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        labels = targets
        if self.mixup is not None:
            np.random.seed(derive(self.settings.seed, self.updates, position))  # the same mixture in every process
            images, labels = self.mixup(images.clone(), targets)
        alone = isinstance(self.parallel, DistributedDataParallel) and position < parts - 1
        with self.parallel.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with precision(self.settings, self.who.device):
                logits = self.parallel(images)
                loss = self.loss(logits, labels)
            self.scaler.scale((loss + self.offsets.penalty()) / parts).backward(create_graph=self.second_order)
        correct = (logits.detach().argmax(1) == targets).sum()
        return torch.stack([loss.detach() * len(targets), correct, torch.full_like(correct, len(targets))])

    def _update(self) -> None:
        s = self.settings
        self.offsets.before_step()
        if s.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.net.parameters(), s.clip_grad, s.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.updates += 1
        if self.ema is not None:
            self.ema.update(self.net, step=self.updates)
        if self.scheduler is not None and s.sched_on_updates:
            self.scheduler.step_update(self.updates)

    def _share_statistics(self) -> None:
        """Average BatchNorm's running statistics over the processes, as timm does."""
        for module in [self.net, *([self.ema.module] if self.ema is not None else [])]:
            distribute_bn(module, self.who.world, reduce=True)

    def finish(self) -> nn.Module | None:
        """Hand the trained weights to the model, and return a copy of it with the averaged ones, where asked for."""
        self.offsets.after_training()
        if self.net is not self.model:
            self.model.load_state_dict(self.net.state_dict())
        if self.ema is None:
            return None
        averaged = copy.deepcopy(self.model)
        averaged.load_state_dict(self.ema.module.state_dict())
        return averaged

    def state(self) -> dict[str, Any]:
        """Return what a continued training needs beside the weights: tensors and numbers."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "updates": self.updates}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.updates = int(state["updates"])


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if key.startswith(("decay_ep", "warmup_ep")))


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of batches, one per update; the last may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
