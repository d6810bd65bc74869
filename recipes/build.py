"""From a recipe's ``model:`` to a network, and from its ``surgery:`` to an operated one.

Separate from running because these two steps have errors of their own: names, arguments, refusals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from torch import nn

import surgeon
from recipes.problems import nearest
from recipes.processes import derive, seeded
from recipes.schema import ModelSection, RecipeFile
from surgeon.errors import RecipeError


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
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise RecipeError(f"timm cannot build '{name}' with {arguments}: {error}") from None


def build(recipe: RecipeFile, seed: int = 0, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
    """Build a recipe's model, before any surgery; the same seed gives the same weights.

    Args:
        recipe: Whose ``model:`` counts.
        seed: Of the initial weights.
        num_classes: Of the head, where the recipe names none: those of the data.
        in_chans: Of the image, likewise.

    Raises:
        RecipeError: When timm has no such model, or refuses the arguments.
        LoadError: When a saved folder is damaged.

    Example:
        >>> import recipes
        >>> build(recipes.parse({"name": "small", "model": {"timm": "digits_convnet"}})).num_classes
        10
    """
    section = recipe.model
    with seeded(derive(seed, 0)):
        if section.folder is not None:
            return surgeon.load(Path(section.folder))  # type: ignore[no-any-return]
        return _create(section, {"num_classes": num_classes, "in_chans": in_chans})


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
