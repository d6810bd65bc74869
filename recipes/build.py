"""From a recipe's ``model:`` to a network, and from its ``surgery:`` to an operated one.

Separate from running because these two steps have errors of their own: names, arguments, refusals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

import surgeon
from recipes.detectors import open_detector
from recipes.model_schema import ModelSection
from recipes.problems import nearest
from recipes.processes import derive, seeded
from recipes.schema import RecipeFile
from surgeon.errors import LoadError, RecipeError


def check_name(name: str) -> None:
    """Refuse a name timm does not know.

    Raises:
        RecipeError: With the nearest name.
    """
    if not timm.is_model(name) and "hf-hub:" not in name and "hf_hub:" not in name:
        hint = nearest(name, timm.list_models())
        raise RecipeError(f"timm {timm.__version__} has no model '{name}'{hint} (surgeon models PATTERN lists them)")


def _create(section: ModelSection, defaults: dict[str, Any]) -> nn.Module:
    name = str(section.timm)
    check_name(name)
    keys = ("num_classes", "in_chans", "drop_rate", "drop_path_rate")
    own = {key: getattr(section, key) for key in keys if getattr(section, key) is not None}
    arguments = {**{key: value for key, value in defaults.items() if value is not None}, **own, **section.args}
    try:
        return surgeon.create_model(name, pretrained=section.pretrained, **arguments)  # type: ignore[no-any-return]
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        weights = " with pretrained weights" if section.pretrained else ""
        raise RecipeError(f"timm cannot build '{name}'{weights}, arguments {arguments or 'none'}: {error}") from None


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Put the weights of a file into a model, strictly; averaged weights (EMA) where timm's training kept some.

    Raises:
        LoadError: When the file is not there, holds more than tensors, or another model's.
    """
    if not path.is_file():
        raise LoadError(f"checkpoint {path}: there is no such file in {Path.cwd()}; check the path")
    try:
        state = timm.models.load_state_dict(str(path))
        found = {name: tuple(value.shape) for name, value in state.items()}
    except Exception as error:  # torch, pickle, zipfile and safetensors have one each, and more
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise LoadError(
            f"checkpoint {path}: holds no state dict that can be read without running code ({reason:.200}); "
            "save model.state_dict() alone, with torch.save or safetensors"
        ) from None
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    odd = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if odd:
        some = ", ".join(
            f"{name} {found.get(name, 'missing')} in the file, {wanted.get(name, 'none')} in the model"
            for name in odd[:3]
        )
        raise LoadError(
            f"checkpoint {path}: {len(odd)} of {len(wanted)} tensors do not fit: {some}; "
            "name the model, num_classes and arguments it was trained with"
        )
    model.load_state_dict(state)


def build(recipe: RecipeFile, seed: int = 0, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
    """Build a recipe's model, before any surgery; the same seed gives the same weights.

    Args:
        recipe: Whose ``model:`` counts.
        seed: Of the initial weights.
        num_classes: Of the head, where the recipe names none: those of the data.
        in_chans: Of the image, likewise.

    Raises:
        RecipeError: When timm or ultralytics has no such model, or refuses the arguments.
        LoadError: When a saved folder or a checkpoint is damaged or another model's.

    Example:
        >>> import recipes
        >>> build(recipes.parse({"name": "small", "model": {"timm": "digits_convnet"}})).num_classes
        10
    """
    section = recipe.model
    with seeded(derive(seed, 0)):
        if section.yolo is not None:
            return open_detector(section.yolo, num_classes, in_chans)  # type: ignore[no-any-return]
        if section.folder is not None:
            return surgeon.load(Path(section.folder).expanduser())  # type: ignore[no-any-return]
        model = _create(section, {"num_classes": num_classes, "in_chans": in_chans})
        if section.checkpoint is not None:
            load_checkpoint(model, Path(section.checkpoint).expanduser())
        return model


def operate(model: nn.Module, recipe: RecipeFile, seed: int = 0, input_size: Any = None) -> nn.Module:
    """Apply a recipe's ``surgery:`` to a model in place; fresh weights, where an op draws some, come from the seed."""
    if not recipe.surgery:
        return model
    with seeded(derive(seed, 1)):
        return surgeon.apply(model, _steps(recipe), input_size)


def rehearse(model: nn.Module, recipe: RecipeFile, input_size: Any = None) -> None:
    """Plan a recipe's ``surgery:``, which raises what `operate` would; the model is only read."""
    if recipe.surgery:
        surgeon.plan(model, _steps(recipe), input_size)


def _steps(recipe: RecipeFile) -> dict[str, Any]:
    return {"name": recipe.name, "surgery": recipe.surgery, "keep_originals": recipe.keep_originals}
