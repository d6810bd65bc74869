"""Fresh values: what a part of a model would start with, drawn from its own initial distribution.

Where the model knows its builder, the same architecture is built anew, so that timm's own initialisation draws; else
the part's modules draw by their ``reset_parameters``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import timm
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from surgeon.errors import RefusedError
from surgeon.randomness import generators_kept
from surgeon.recorder import of_surgery
from surgeon.resetting import seed_generators
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


def draw(part: nn.Module, built: str, path: str, seed: int, build: Whole | None = None) -> dict[str, Tensor]:
    """Initial values of ``part``, which lies at ``path`` of what :func:`architecture` describes.

    Of a part without values (on a skeleton) nothing is drawn: the answer is empty.

    Raises:
        RefusedError: When the part has a parameter whose initial distribution is not known.
    """
    held = tensors(part)
    if any(is_fake(tensor) or tensor.is_meta for tensor in held.values()):
        if (not built or _operated(part)) and (reason := _why_not_reset(part)):
            raise RefusedError(reason)
        return {}
    if built:
        prefix = f"{path}." if path else ""
        values = (build or _kept)(built, seed)
        cut = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        if cut.keys() == held.keys() and all(cut[name].shape == held[name].shape for name in held):
            return cut
    if reason := _why_not_reset(part):
        raise RefusedError(reason)
    return _reset(part, seed)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


Whole = Callable[[str, int], dict[str, Tensor]]


def whole(built: str, seed: int) -> dict[str, Tensor]:
    """All values of the model that ``built`` describes, drawn with ``seed``."""
    builder: dict[str, Any] = json.loads(built)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in builder["arguments"].items()}
    with generators_kept():
        seed_generators(seed)
        model = timm.create_model(builder["timm"], pretrained=False, **arguments)
    return {name: tensor.detach() for name, tensor in tensors(model).items()}


_kept = lru_cache(maxsize=1)(whole)


def _operated(part: nn.Module) -> bool:
    return any(map(of_surgery, part.modules()))


def _why_not_reset(part: nn.Module) -> str | None:
    """Why the modules of ``part`` cannot draw by themselves; None where they can."""
    for name, module in part.named_modules():
        known = callable(getattr(module, "reset_parameters", None))
        if not known and any(True for _ in module.parameters(recurse=False)):
            what = f"holds '{name}', a {type(module).__name__}" if name else f"is a {type(module).__name__}"
            return (
                f"{what} without reset_parameters, and is not as timm builds it: nothing says how it starts; put this "
                "step before the surgery, or give the class a reset_parameters"
            )
    return None


def _reset(part: nn.Module, seed: int) -> dict[str, Tensor]:
    drawn = copy.deepcopy(part).to("cpu")  # whose generator is seeded
    with generators_kept():
        seed_generators(seed)
        for module in drawn.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return {name: tensor.detach() for name, tensor in tensors(drawn).items()}
