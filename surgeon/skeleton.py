"""A copy of a model that costs nothing: the same modules and code, fake tensors. What is read and planned on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

FAKE_MODE = "_surgeon_fake_mode"
LEDGER = "_surgeon"
BUILDER = "_surgeon_builder"
FEW = 64  # numbers a plain attribute may hold to be read; larger ones are caches


def skeleton(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode whose parameters and buffers are fake: it costs no memory and no arithmetic."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for module in model.modules():
        for held, known in ((module._parameters, False), (module._buffers, False), (module.__dict__, True)):
            for tensor in (t for t in held.values() if isinstance(t, Tensor) and id(t) not in memo):
                memo[id(tensor)] = _constant(tensor, fake) if known else _fake(tensor, fake)
    ledger = model.__dict__.get(LEDGER)
    if ledger is not None:
        memo[id(ledger)] = ledger
    copied = copy.deepcopy(model, memo).eval()
    copied.__dict__[FAKE_MODE] = fake
    for module in copied.modules():
        if "anchors" in module.__dict__:  # a detector's head: it computes them anew where the last run left no shape
            module.__dict__.update(dict.fromkeys({"shape", "shapes"} & module.__dict__.keys()))
    return copied


def _constant(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """A fake tensor whose value code may read: a plain attribute (the strides of a detector's head) is a setting."""
    if tensor.is_meta or isinstance(tensor, FakeTensor) or tensor.numel() > FEW:
        return _fake(tensor, mode)
    return mode.fake_tensor_converter.from_real_tensor(mode, tensor.detach(), make_constant=True)


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    device = torch.device("cpu") if tensor.is_meta else tensor.device
    with mode:
        blank = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(blank, requires_grad=tensor.requires_grad)
    return blank
