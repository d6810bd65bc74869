"""Fresh values: what a part of a model would start with, drawn from its own initial distribution.

Where the model knows its builder, the same architecture is built anew, so that timm's own initialisation draws; else
the part's modules draw by their ``reset_parameters``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from surgeon.errors import RefusedError
from surgeon.randomness import generators_kept
from surgeon.skeleton import BUILDER


def fresh_values(model: nn.Module, path: str, seed: int) -> dict[str, Tensor]:
    """Initial values of the module at ``path``: parameters and buffers by their names in it.

    Args:
        model: Its weights are not read.
        path: Of the part; "" is the whole.
        seed: The same seed draws the same values; parts of one seed stem from one model.

    Raises:
        RefusedError: When a parameter has no initial distribution that is known.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet")
        >>> values = fresh_values(model, "layer4.0", seed=0)
        >>> values["conv1.weight"].shape == model.layer4[0].conv1.weight.shape
        True
    """
    return draw(model.get_submodule(path), architecture(model), path, seed)


def architecture(model: nn.Module) -> str:
    """How timm builds the model, as JSON; "" where that is not known."""
    builder = model.__dict__.get(BUILDER)
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, Mapping) else None
    if builder is None and isinstance(name, str) and timm.is_model(name):
        builder = {"timm": name, "arguments": {}}
    return json.dumps(builder) if builder else ""


def draw(part: nn.Module, built: str, path: str, seed: int) -> dict[str, Tensor]:
    """Initial values of ``part``, which lies at ``path`` of what :func:`architecture` describes.

    Of a part without values (on a skeleton) nothing is drawn: the answer is empty.
    """
    held = tensors(part)
    if any(is_fake(tensor) or tensor.is_meta for tensor in held.values()):
        return {}
    if built:
        found = {
            name: value for name, value in _whole(built, seed).items() if name.startswith(f"{path}." if path else "")
        }
        cut = {name.removeprefix(f"{path}." if path else ""): value for name, value in found.items()}
        if cut.keys() == held.keys() and all(cut[name].shape == held[name].shape for name in held):
            return cut
    return _reset(part, path, seed)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@lru_cache(maxsize=1)
def _whole(built: str, seed: int) -> dict[str, Tensor]:
    builder: dict[str, Any] = json.loads(built)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in builder["arguments"].items()}
    with generators_kept():
        torch.manual_seed(seed)
        model = timm.create_model(builder["timm"], pretrained=False, **arguments)
    return {name: tensor.detach() for name, tensor in tensors(model).items()}


def _reset(part: nn.Module, path: str, seed: int) -> dict[str, Tensor]:
    drawn = copy.deepcopy(part)
    with generators_kept():
        torch.manual_seed(seed)
        for name, module in drawn.named_modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            elif any(True for _ in module.parameters(recurse=False)):
                raise RefusedError(
                    f"'{path}.{name}'.{type(module).__name__} has no reset_parameters, and timm does not build the "
                    "model: nothing says how it starts; give the class a reset_parameters"
                )
    return {name: tensor.detach() for name, tensor in tensors(drawn).items()}
