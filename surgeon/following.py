"""How a module that takes another's place follows it: mode, tags, device and precision."""

from __future__ import annotations

from collections.abc import Callable

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
    """Move fresh floating-point tensors to the device and dtype of ``near`` (``Module.to`` refuses fake parameters)."""
    for module in new.modules():
        for name, b in module._buffers.items():
            if b is not None and b.is_floating_point():
                module._buffers[name] = b.to(near.device, near.dtype)
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


def align(old: nn.Module, model: nn.Module, path: str) -> Callable[[], None]:
    """Give each tensor of ``old`` device, dtype and memory format of its namesake in the module at ``path``.

    Where it has none, of the nearest weight. What is answered puts back the tensors as they were.
    """
    present, kept = model.get_submodule(path), []
    here = {**dict(present.named_parameters()), **dict(present.named_buffers())}
    nearest = next((t for t in here.values() if t.is_floating_point()), _nearest_weight(model, path))
    for name, tensor in [*old.named_parameters(), *old.named_buffers()]:
        like = here.get(name, nearest)
        if like is None:
            continue
        data = tensor.data
        dtype = like.dtype if data.is_floating_point() and like.is_floating_point() else data.dtype
        moved = data.to(like.device, dtype, memory_format=_format(data, like))
        if moved is not data:
            kept.append((tensor, data))
            tensor.data = moved

    def back() -> None:
        for tensor, data in kept:
            tensor.data = data

    return back


def memory_format(weight: Tensor) -> torch.memory_format:
    """Whether a 4-D weight lies channels-last; where the shape leaves it open, contiguous."""
    last = weight.is_contiguous(memory_format=torch.channels_last)
    plain = torch.empty(weight.shape, device="meta").stride()
    return torch.channels_last if last and weight.stride() != plain else torch.contiguous_format


def _format(data: Tensor, like: Tensor) -> torch.memory_format:
    """Channels-last where ``like`` is so for sure, else as it is."""
    last = data.ndim == like.ndim == 4 and memory_format(like) == torch.channels_last
    return torch.channels_last if last else torch.preserve_format
