"""How far two answers of a model are apart, whatever they are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten


def difference(one: Any, other: Any) -> float:
    """Largest difference of two answers, as a share of the largest value of the second; infinite where they differ.

    Example:
        >>> difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        0.5
    """
    left, right = ([leaf for leaf in tree_flatten(side)[0] if isinstance(leaf, Tensor)] for side in (one, other))
    return max(map(_apart, left, right), default=0.0) if len(left) == len(right) else float("inf")


def _apart(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    if one.numel() == 0 or torch.equal(one, other):
        return 0.0
    odd = ~(one.isfinite() & other.isfinite())
    if not torch.equal(one[odd].nan_to_num(1.5), other[odd].nan_to_num(1.5)):
        return float("inf")
    one, other = one[~odd].double(), other[~odd].double()
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30)) if len(one) else 0.0
