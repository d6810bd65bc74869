"""Training the offsets of shift layers: their own parameter group, the penalty of Eq. 4, freezing.

Kept apart from the layers because a training loop calls these, not a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from surgeon.errors import NoSiteError, RecipeError
from surgeon.ops.shift_conv import ShiftConv2d
from surgeon.ops.shift_layer import SparseShift2d
from surgeon.units import count_of

Penalty = Literal["l1", "l2"]


def shift_layers(model: nn.Module) -> Iterator[tuple[str, SparseShift2d | ShiftConv2d]]:
    """Path and module of every layer that shifts, learnable or not.

    Example:
        >>> [path for path, _ in shift_layers(nn.Sequential(nn.ReLU(), SparseShift2d(9, "grouped")))]
        ['1']
    """
    for path, module in model.named_modules():
        if isinstance(module, (SparseShift2d, ShiftConv2d)):
            yield path, module


def offset_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The offsets that are parameters, frozen ones too, by name; those of mode "grouped" are none.

    Example:
        >>> list(offset_parameters(nn.Sequential(nn.ReLU(), SparseShift2d(9))))
        ['1.offset']
    """
    named = ((f"{path}.offset" if path else "offset", layer.offset) for path, layer in shift_layers(model))
    return {name: offset for name, offset in named if isinstance(offset, nn.Parameter)}


def offset_groups(model: nn.Module, lr: float | None = None, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Two parameter groups for an optimizer: all trainable parameters but the offsets, and the offsets.

    Args:
        model: With shift layers.
        lr: Of the offsets; None is the optimizer's own.
        weight_decay: Of the offsets; by default none, for the penalty is what pulls at them.

    Returns:
        The second group is marked ``offsets: True``; a group that would be empty is left out.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 9, 1), SparseShift2d(9))
        >>> optimizer = torch.optim.SGD(offset_groups(net, lr=0.01), lr=0.1, weight_decay=1e-4)
        >>> [(len(group["params"]), group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [(2, 0.1, 0.0001), (1, 0.01, 0.0)]
    """
    offsets = [p for p in offset_parameters(model).values() if p.requires_grad]
    own = {id(p) for p in offsets}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    more = {} if lr is None else {"lr": lr}
    groups: list[dict[str, Any]] = [
        {"params": rest},
        {"params": offsets, "weight_decay": weight_decay, "offsets": True, **more},
    ]
    return [group for group in groups if group["params"]]


def offset_penalty(model: nn.Module, kind: Penalty = "l1", weight: float = 1e-4) -> Tensor:
    """What to add to the loss so that few channels move: ``weight`` times the size of all trainable offsets.

    Args:
        model: With shift layers.
        kind: "l1", the sum of absolute values (Eq. 4); "l2", half the sum of squares, whose gradient is that of
            ``weight`` as weight decay: what the paper's experiments and the released code use.
        weight: λ of Eq. 4; the paper's are 0, 1e-4, 4e-4 and 5e-4.

    Returns:
        A scalar in float32 at least; zero where no offset is trainable.

    Raises:
        RecipeError: For an unknown ``kind``.

    Example:
        >>> float(offset_penalty(nn.Sequential(SparseShift2d(9)), "l1", 0.5).detach())  # nine taps, twelve steps
        6.0

    References:
        Chen et al., All You Need is a Few Shifts, CVPR 2019, arXiv:1903.05285, Eq. 4 and section 5.1.
    """
    if kind not in get_args(Penalty):
        raise RecipeError(f"offset_penalty: kind={kind!r} is unknown; use {', '.join(map(repr, get_args(Penalty)))}")
    total = torch.zeros(())
    for offset in offset_parameters(model).values():
        if offset.requires_grad:
            exact = offset if offset.dtype == torch.float64 else offset.float()
            total = total.to(offset.device) + (exact.abs().sum() if kind == "l1" else exact.square().sum() / 2)
    return weight * total


def freeze_offsets(model: nn.Module, frozen: bool = True) -> int:
    """Stop learning where to move, and drop the offsets' gradients; the rest of the model trains on.

    The paper does so after 48,000 of 64,000 updates (CIFAR) or 240 of 480 epochs (ImageNet). Optimizers pass over
    parameters without gradient, so their momentum and weight decay stop too. A model inside DistributedDataParallel
    must be wrapped anew afterwards.

    Args:
        model: With shift layers.
        frozen: False lets them learn again.

    Returns:
        The number of offset tensors set.

    Example:
        >>> net = nn.Sequential(SparseShift2d(9))
        >>> freeze_offsets(net), net[0].offset.requires_grad
        (1, False)
    """
    offsets = offset_parameters(model).values()
    for offset in offsets:
        offset.requires_grad_(not frozen)
        offset.grad = None
    return len(offsets)


def shift_share(model: nn.Module) -> float | None:
    """Share of channels, over all shift layers, that do not move; None where there is no shift layer.

    Example:
        >>> round(shift_share(nn.Sequential(SparseShift2d(9), SparseShift2d(9, init="zeros"))), 3)
        0.556
    """
    counts = [(layer.rounded == 0).all(0) for _, layer in shift_layers(model)]
    return float(torch.cat([c.cpu() for c in counts]).double().mean()) if counts else None


def remove_shifts(model: nn.Module, count: int | str) -> list[str]:
    """Let the shift layers with the fewest shifts move nothing any more, in place, and freeze their offsets.

    Args:
        model: With shift layers.
        count: How many, or a share of them such as ``"50%"``.

    Returns:
        Their paths, the least important first: by the share of channels that did not move, then in order of name.

    Raises:
        RecipeError: When ``count`` is no number of layers from 1 to all.
        NoSiteError: When the model has no shift layer.

    Example:
        >>> net = nn.Sequential(SparseShift2d(9), SparseShift2d(9, init="zeros"), SparseShift2d(9))
        >>> remove_shifts(net, 2), net[0].sparsity
        (['1', '0'], 1.0)

    References:
        Chen et al., All You Need is a Few Shifts, CVPR 2019, section 5.3, Table 3 (there followed by no training).
    """
    layers = dict(shift_layers(model))
    if not layers:
        raise NoSiteError(f"remove_shifts: {type(model).__name__} has no shift layer; rewrite it by 'shift' first")
    if not isinstance(count, (int, str)) or isinstance(count, bool):
        raise RecipeError(f"remove_shifts: count is {count!r}; give a number of layers, or a share such as '50%'")
    number = count_of(count, len(layers), "remove_shifts: count")
    order = sorted(layers, key=lambda path: -layers[path].sparsity)[:number]
    for path in order:
        offset = layers[path].offset
        with torch.no_grad():
            offset.zero_()
        if isinstance(offset, nn.Parameter):
            offset.requires_grad_(False)
            offset.grad = None
    return order
