"""A copy of a model that costs nothing: the same modules and code, fake tensors. What is read and planned on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

FAKE_MODE = "_surgeon_fake_mode"
LEDGER = "_surgeon"
BUILDER = "_surgeon_builder"


def skeleton(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode whose parameters and buffers are fake: it costs no memory and no arithmetic."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = (module._parameters, module._buffers, module.__dict__)
        for tensor in (t for d in held for t in d.values() if isinstance(t, Tensor)):
            if id(tensor) not in memo:
                memo[id(tensor)] = _fake(tensor, fake)
    ledger = model.__dict__.get(LEDGER)
    if ledger is not None:
        memo[id(ledger)] = ledger
    copied = copy.deepcopy(model, memo).eval()
    copied.__dict__[FAKE_MODE] = fake
    return copied


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    device = torch.device("cpu") if tensor.is_meta else tensor.device
    with mode:
        blank = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(blank, requires_grad=tensor.requires_grad)
    return blank
