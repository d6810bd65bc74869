"""Who built a model, and building it again: what ``save`` writes down and ``load`` starts from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from surgeon.change import Record
from surgeon.errors import LoadError
from surgeon.host import Size
from surgeon.ledger import Ledger, tensors_of
from surgeon.randomness import generators_kept
from surgeon.recipe import Recipe
from surgeon.rewriting import apply
from surgeon.skeleton import BUILDER
from surgeon.structure import why_not_equal

Builder = dict[str, Any]  # {"timm": name, "arguments": {...}}: the first key names the library
Shapes = dict[str, list[int]]  # as JSON has them
READ = ("pretrained", "checkpoint")  # arguments that make timm read weights from elsewhere


@dataclass(frozen=True)
class Library:
    """How the models of a library are built again.

    Args:
        candidates: What might build a model, the likeliest first.
        build: Builds what a builder describes, with fresh weights.
        on_meta: Whether it can do so on the meta device.
        dress: The object of the library's own around a module loaded from a path, with what else was saved with it.
    """

    candidates: Callable[[nn.Module], Iterator[Builder]]
    build: Callable[[Builder], nn.Module]
    on_meta: bool = True
    dress: Callable[[nn.Module, Builder, Path, dict[str, Any]], nn.Module] = lambda module, builder, path, more: module


LIBRARIES: dict[str, Library] = {}


def library_of(builder: Builder) -> tuple[str, Library]:
    """The name of the library a builder is of, and how it builds."""
    name = next(iter(builder))
    if name not in LIBRARIES:
        raise LoadError(f"no library named {name!r} is known here")
    return name, LIBRARIES[name]


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
    arguments = {key: value for key, value in timm_kwargs.items() if not key.startswith(READ)}
    if timm.is_model(name) and _is_data(arguments):
        model.__dict__[BUILDER] = {"timm": name, "arguments": arguments}
    return model if recipe is None else apply(model, recipe)


def builder_of(
    model: nn.Module, size: Size | None, forward: Sequence[str] | None, operate: Callable[[nn.Module], object]
) -> tuple[Builder | None, str, nn.Module | None]:
    """How to build ``model`` as it was before surgery, checked: built on the meta device it must compute the same.

    Tried are what ``create_model`` remembered, then timm's architecture with what can be read off the model: classes,
    channels, image size, pooling, dropout.

    Args:
        model: Operated or not.
        size: (C, H, W) of its images; None where it is not known.
        forward: What it does to them, by ``forward_of``.
        operate: Operates on a model built anew as ``model`` was operated.

    Returns:
        The builder; "" or, where it is None, why; and the model built with it and not operated yet.
    """
    note = "it names no model of timm's"
    for builder in (found for library in LIBRARIES.values() for found in library.candidates(model)):
        try:
            base, twin = blank(builder), blank(builder)
            take_precision(twin, tensors_of(model))
            operate(twin)
            differs = why_not_equal(twin, model, size, forward) or _shapes_differ(twin, model)
        except Exception as error:
            differs = f"{type(error).__name__}: {error}"
        if differs is None:
            return builder, "", base
        if note.startswith("it names"):
            note = f"{in_words(builder)} builds another model: {differs}"
    return None, note, None


def in_words(builder: Builder) -> str:
    """The call a builder describes, long arguments shortened."""
    name, _ = library_of(builder)
    shown = {k: repr(v) if len(repr(v)) < 80 else "{...}" for k, v in builder["arguments"].items()}
    arguments = ", ".join([repr(builder[name]), *(f"{k}={v}" for k, v in shown.items())])
    return f"{'timm.create_model' if name == 'timm' else name}({arguments})"


def blank(builder: Builder) -> nn.Module:
    """The model a builder describes, without memory."""
    with generators_kept(), torch.device("meta") if library_of(builder)[1].on_meta else nullcontext():
        return weightless(build(builder))


def weightless(model: nn.Module) -> nn.Module:
    """Move parameters and buffers, and no other tensor, to the meta device; returns the model."""
    nn.Module._apply(model, lambda tensor: tensor.to("meta"))  # type: ignore[no-untyped-call]
    return model


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
    parts = list(model.modules())
    pool = getattr(getattr(model, "global_pool", None), "pool_type", None)
    side = getattr(getattr(model, "patch_embed", None), "img_size", None)
    drop = [m.p for m in parts if isinstance(m, nn.Dropout)][-1:]
    found = {
        "num_classes": _classes(model),
        "global_pool": None if pool in ("", "avg") else pool,
        "img_size": tuple(side) if isinstance(side, (tuple, list)) else None,
        "drop_rate": getattr(model, "drop_rate", None) or max(drop, default=None) or None,
        "drop_path_rate": max((m.drop_prob or 0.0 for m in parts if isinstance(m, DropPath)), default=None) or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _classes(model: nn.Module) -> int | None:
    """Of the classifier that is there, else what the model says."""
    ask = getattr(model, "get_classifier", None)
    found = getattr(ask() if callable(ask) else None, "out_features", getattr(model, "num_classes", None))
    return found if isinstance(found, int) else None


def _channels(model: nn.Module) -> dict[str, int]:
    """What the first conv takes; not the image's channels where a stem rearranges before it."""
    found = (getattr(module, "in_channels", None) for module in model.modules())
    return next(({"in_chans": n} for n in found if isinstance(n, int)), {})


def _shapes_differ(there: nn.Module, here: nn.Module) -> str | None:
    a, b = shapes_of_state(there), shapes_of_state(here)
    name = next((n for n in dict.fromkeys([*a, *b]) if a.get(n) != b.get(n)), None)
    return None if name is None else f"tensor '{name}': {a.get(name, 'none')} there, {b.get(name, 'none')} here"


def build(builder: Builder) -> nn.Module:
    """Build the model a builder describes, with fresh weights.

    Raises:
        LoadError: When it names no model of the library's own, or arguments that read files: nothing foreign is run.
    """
    model = library_of(builder)[1].build(builder)
    model.__dict__[BUILDER] = builder
    return model


def _build_timm(builder: Builder) -> nn.Module:
    name, arguments = builder["timm"], builder["arguments"]
    if not timm.is_model(name):
        raise LoadError(f"timm {timm.__version__} has no model of its own named {name!r}")
    if foreign := [key for key in arguments if key.startswith(READ)]:
        raise LoadError(f"the argument {foreign[0]!r} reads weights from elsewhere")
    model: nn.Module = timm.create_model(name, pretrained=False, **_tuples(arguments))
    return model


LIBRARIES["timm"] = Library(_candidates, _build_timm)


def take_precision(model: nn.Module, like: Mapping[str, Tensor]) -> None:
    """Give each floating-point tensor of ``model`` the dtype of its namesake in ``like``."""
    for name, tensor in tensors_of(model).items():
        if name in like and tensor.is_floating_point():
            tensor.data = tensor.data.to(like[name].dtype)


def replay(base: nn.Module, record: Record, size: Size, keep: bool) -> None:
    """Operate on ``base`` by the resolved steps of ``record``, and let it carry the record itself."""
    for i, step in enumerate(record.recipe):
        steps = Recipe.parse([step]).steps
        apply(base, Recipe(steps, keep_originals=keep), size if i == 0 else None)
    ledger = Ledger.of(base) or Ledger.open(base, size, keep)
    ledger.record = record
    ledger.hang_on(base)


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
