"""Who built a model, and building it again: what ``save`` writes down and ``load`` starts from."""

from __future__ import annotations

import json
from typing import Any

import timm
import torch
from torch import nn

from surgeon.ledger import BUILDER, Ledger
from surgeon.rewriting import apply

Builder = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def create_model(name: str, recipe: Any = None, **timm_kwargs: Any) -> nn.Module:
    """``timm.create_model(name, **timm_kwargs)``, operated by ``recipe``; it remembers its arguments for ``save``.

    Args:
        name: A timm model name.
        recipe: As for ``apply``; None leaves the model as timm builds it.
        timm_kwargs: Passed to ``timm.create_model``.

    Raises:
        SurgeonError: As ``apply``.

    Example:
        >>> import surgeon
        >>> surgeon.record(create_model("test_resnet", "spd", num_classes=10)).count("rewritten")
        8
    """
    model: nn.Module = timm.create_model(name, **timm_kwargs)
    arguments = {key: value for key, value in timm_kwargs.items() if not key.startswith(("pretrained", "checkpoint"))}
    if _is_data(arguments):
        model.__dict__[BUILDER] = {"timm": name, "arguments": arguments}
    return model if recipe is None else apply(model, recipe)


def builder_of(model: nn.Module) -> Builder | None:
    """How to build ``model`` as it was before surgery; None when that is not known for sure.

    What ``create_model`` remembered; else timm's architecture with the number of classes and channels, checked by
    building it without memory and comparing every tensor's shape.
    """
    remembered = model.__dict__.get(BUILDER)
    if remembered is not None:
        return dict(remembered)
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture")
    if not name or not timm.is_model(name):
        return None
    classes, channels = getattr(model, "num_classes", None), _channels(model)
    arguments = {k: v for k, v in (("num_classes", classes), ("in_chans", channels)) if v is not None}
    ledger = Ledger.of(model)
    expected = ledger.shapes if ledger else shapes_of_state(model)
    for candidate in (arguments, {k: v for k, v in arguments.items() if k != "in_chans"}):
        builder = {"timm": name, "arguments": candidate}
        try:
            with torch.device("meta"):
                twin = build(builder)
        except Exception:
            continue
        if shapes_of_state(twin) == expected and type(twin).__qualname__ == type(model).__qualname__:
            return builder
    return None


def _channels(model: nn.Module) -> int | None:
    conv = next((m for m in model.modules() if hasattr(m, "in_channels")), None)
    return None if conv is None else int(conv.in_channels)  # type: ignore[arg-type]


def build(builder: Builder) -> nn.Module:
    """Build the model a builder describes, with fresh weights."""
    model: nn.Module = timm.create_model(builder["timm"], pretrained=False, **builder["arguments"])
    model.__dict__[BUILDER] = builder
    return model


def shapes_of_state(model: nn.Module) -> Shapes:
    """The shape of every tensor of the state dict."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _is_data(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False
