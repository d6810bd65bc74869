"""Who built a model, and building it again: what ``save`` writes down and ``load`` starts from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import nn

from surgeon.host import Size
from surgeon.ledger import BUILDER
from surgeon.randomness import generators_kept
from surgeon.rewriting import apply
from surgeon.structure import why_not_equal

Builder = dict[str, Any]
Shapes = dict[str, list[int]]  # as JSON has them


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


def builder_of(
    model: nn.Module, size: Size | None, replay: Callable[[nn.Module], object]
) -> tuple[Builder | None, str, nn.Module | None]:
    """How to build ``model`` as it was before surgery, checked: built on the meta device it must compute the same.

    Tried are what ``create_model`` remembered, then timm's architecture with the number of classes, channels and the
    image size the model has now.

    Args:
        model: Operated or not.
        size: (C, H, W) of its images; None where it is not known.
        replay: Operates on a model built anew as ``model`` was operated.

    Returns:
        The builder; "" or, where it is None, why; and the model built with it and not operated yet.
    """
    note = "the model was not built by timm"
    for builder in _candidates(model):
        arguments = ", ".join([repr(builder["timm"]), *(f"{k}={v!r}" for k, v in builder["arguments"].items())])
        try:
            with generators_kept(), torch.device("meta"):
                base, twin = build(builder), build(builder)
            twin.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), None))
            replay(twin)
            differs = why_not_equal(twin, model, size) or _shapes_differ(twin, model)
        except Exception as error:
            differs = f"{type(error).__name__}: {error}"
        if differs is None:
            return builder, "", base
        if note.startswith("the model"):
            note = f"timm.create_model({arguments}) builds another model: {differs}"
    return None, note, None


def _candidates(model: nn.Module) -> Iterator[Builder]:
    """What was remembered, the same with what the model says now (``reset_classifier`` changes it), timm's own name."""
    seen = _seen(model)
    remembered = model.__dict__.get(BUILDER)
    if remembered is not None:
        yield remembered
        yield {**remembered, "arguments": {**remembered["arguments"], **seen}}
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if name and timm.is_model(name):
        yield {"timm": name, "arguments": {**seen, **_channels(model)}}
        yield {"timm": name, "arguments": seen}


def _seen(model: nn.Module) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that can be read off a model."""
    pool = getattr(getattr(model, "global_pool", None), "pool_type", None)
    side = getattr(getattr(model, "patch_embed", None), "img_size", None)
    found = {
        "num_classes": getattr(model, "num_classes", None),
        "global_pool": None if pool in ("", "avg") else pool,
        "img_size": tuple(side) if isinstance(side, (tuple, list)) else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _channels(model: nn.Module) -> dict[str, int]:
    """What the first conv takes; not the image's channels where a stem rearranges before it."""
    found = (getattr(module, "in_channels", None) for module in model.modules())
    return next(({"in_chans": n} for n in found if isinstance(n, int)), {})


def _shapes_differ(there: nn.Module, here: nn.Module) -> str | None:
    a, b = shapes_of_state(there), shapes_of_state(here)
    name = next((n for n in dict.fromkeys([*a, *b]) if a.get(n) != b.get(n)), None)
    return None if name is None else f"tensor '{name}': {a.get(name, 'none')} there, {b.get(name, 'none')} here"


def build(builder: Builder) -> nn.Module:
    """Build the model a builder describes, with fresh weights."""
    model: nn.Module = timm.create_model(builder["timm"], pretrained=False, **_tuples(builder["arguments"]))
    model.__dict__[BUILDER] = builder
    return model


def shapes_of_state(model: nn.Module) -> Shapes:
    """The shape of every tensor of the state dict."""
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, which it does not know."""
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _is_data(value: Any) -> bool:
    try:
        return bool(_tuples(json.loads(json.dumps(value))) == _tuples(value))
    except (TypeError, ValueError):
        return False
