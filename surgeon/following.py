"""How a module that takes another's place follows it: mode, tags, device and precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TAGS = ("i", "f", "type", "np")  # ultralytics' forward reads them off each layer


def follow(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """Let ``new`` take over the mode and tags of the module at ``path``, and the nearest weights' device and dtype.

    A builder that had weights to start from has set device, dtype and ``requires_grad`` itself.
    """
    old = model.get_submodule(path)
    follow_modes(new, old)
    for tag in TAGS:
        if tag in old.__dict__:
            setattr(new, tag, getattr(old, tag))
    near = _nearest_weight(model, path)
    _join(new, torch.empty(0) if near is None else near)
    return new


def _join(new: nn.Module, near: Tensor) -> None:
    """Move fresh floating-point parameters to the device and dtype of ``near`` (``Module.to`` refuses fake ones)."""
    for module in new.modules():
        for name, p in module._parameters.items():
            if p is not None and p.is_floating_point() and (p.device != near.device or p.dtype != near.dtype):
                module._parameters[name] = nn.Parameter(p.detach().to(near.device, near.dtype), p.requires_grad)


def _nearest_weight(model: nn.Module, path: str) -> Tensor | None:
    """The last floating-point parameter at or before ``path``, else the first one behind it."""
    found: Tensor | None = None
    passed = False
    for name, module in model.named_modules():
        passed = passed or name == path
        for tensor in module._parameters.values():
            if tensor is not None and tensor.is_floating_point() and (not passed or found is None or name == path):
                found = tensor
    return found


def follow_modes(new: nn.Module, old: nn.Module) -> None:
    """Each part of ``new`` takes the mode of its namesake in ``old``, or of ``old`` where it has none."""
    modes = {path: module.training for path, module in old.named_modules()}
    for path, module in new.named_modules():
        module.training = modes.get(path, old.training)


def align(old: nn.Module, present: nn.Module) -> None:
    """Give each tensor of ``old`` device and dtype of its namesake in ``present``, or of the first weight there."""
    here = {**dict(present.named_parameters()), **dict(present.named_buffers())}
    first = next((t for t in here.values() if t.is_floating_point()), None)
    for path, module in old.named_modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                like = here.get(f"{path}.{name}".lstrip("."), first)
                if tensor is None or like is None or not (tensor.is_floating_point() and like.is_floating_point()):
                    continue
                if (tensor.device, tensor.dtype) != (like.device, like.dtype):
                    tensor.data = tensor.data.to(like.device, like.dtype)
