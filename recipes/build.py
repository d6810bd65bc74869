"""From a recipe's ``model:`` to a network, and from its ``surgery:`` to an operated one.

Separate from running because the command line builds models too, without any recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
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
        steps = {"name": recipe.name, "surgery": recipe.surgery, "keep_originals": recipe.keep_originals}
        return surgeon.apply(model, steps, input_size)


def open_model(name: str, pretrained: bool = False, weights: bool = True) -> nn.Module:
    """Return the model a user names on the command line: a folder saved by `surgeon.save`, or a timm name.

    Args:
        name: Folder or timm name.
        pretrained: Load timm's weights.
        weights: False builds a timm model on the meta device, enough for locating and planning.

    Raises:
        RecipeError: When it is neither.
        LoadError: When the folder is damaged.

    Example:
        >>> open_model("resnet18", weights=False).num_classes
        1000
    """
    if Path(name).is_dir():
        return surgeon.load(Path(name))  # type: ignore[no-any-return]
    if "/" in name and not name.startswith(("hf-hub:", "hf_hub:")):
        raise RecipeError(f"no folder '{name}' in {Path.cwd()}; name a folder saved by surgeon.save, or a timm model")
    check_name(name)
    with torch.device("cpu" if weights else "meta"):
        return surgeon.create_model(name, pretrained=pretrained)  # type: ignore[no-any-return]
