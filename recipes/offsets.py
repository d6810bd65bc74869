"""What a training does with the offsets of shift layers: a parameter group of their own, a penalty, a last update.

Apart from the learner, which knows one training step for every model.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from recipes.schema import ShiftSection
from surgeon.ops.offsets import freeze_offsets, offset_parameters, offset_penalty, shift_share


def optimizer_for(net: nn.Module, lr: float, lr_scale: float, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """Build timm's optimiser; offsets that learn are its last group, without weight decay, marked ``offsets``.

    Args:
        net: With or without shift layers.
        lr: Of everything else.
        lr_scale: Learning rate of the offsets over `lr`.
        settings: Further arguments of `timm.optim.create_optimizer_v2`.
    """
    offsets = [p for p in offset_parameters(net).values() if p.requires_grad]
    group = {"params": offsets, "weight_decay": 0.0, "lr": lr * lr_scale, "offsets": True}
    for offset in offsets:
        offset.requires_grad_(False)  # timm leaves out what is frozen
    try:
        if not any(p.requires_grad for p in net.parameters()):
            return create_optimizer_v2([group], lr=lr, **settings)  # type: ignore[no-any-return]
        optimizer: torch.optim.Optimizer = create_optimizer_v2(net, lr=lr, **settings)
    finally:
        for offset in offsets:
            offset.requires_grad_(True)
    if offsets:
        optimizer.add_param_group(group)
    return optimizer


class Offsets:
    """The offsets of one model while it trains.

    Args:
        net: With or without shift layers.
        settings: The recipe's ``train.shift:``, if any.
        updates: Of the whole training.
        parallel: Whether DistributedDataParallel holds the net: it expects a gradient of every parameter it was given.
    """

    def __init__(self, net: nn.Module, settings: ShiftSection | None, updates: int, parallel: bool) -> None:
        self.net, self.settings, self.parallel = net, settings, parallel
        self.last = updates + 1 if settings is None or settings.freeze_at == 1 else settings.freeze_at * updates
        self.learning = {name: p for name, p in offset_parameters(net).items() if p.requires_grad}
        self.frozen = False

    def before_update(self, update: int) -> None:
        """Freeze when ``freeze_at`` is reached; `update` counts from 0, so a continued training does the same."""
        if not self.frozen and self.learning and update >= self.last:
            self.frozen = True
            if not self.parallel:
                freeze_offsets(self.net)

    def penalty(self) -> torch.Tensor | float:
        """Return what is added to the loss of each batch."""
        if self.frozen or self.settings is None or not self.settings.weight:
            return 0.0
        return offset_penalty(self.net, self.settings.penalty, self.settings.weight)

    def before_step(self) -> None:
        """Take the gradients of frozen offsets, where they are still computed: optimisers pass over them then."""
        if self.frozen:
            for offset in self.learning.values():
                offset.grad = None

    def after_training(self) -> None:
        """Leave the model as trainable as it came."""
        for offset in self.learning.values():
            offset.requires_grad_(True)

    def row(self) -> dict[str, float]:
        """Return what a row of metrics says of them: the share of channels that do not move."""
        share = shift_share(self.net)
        return {} if share is None else {"shift_sparsity": round(share, 6)}
