"""What a user names on the command line: models and images.

Apart from the command line itself, whose file stays free of anything slow to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from recipes.batches import Batches
from recipes.build import build, check_name
from recipes.data import batch, open_source
from recipes.loading import load, parse, shipped
from surgeon.errors import RecipeError


def open_model(name: str, weights: bool = True, **settings: Any) -> nn.Module:
    """Return the model a user names on the command line.

    Args:
        name: A folder saved by `surgeon.save`, a recipe file whose ``model:`` counts, or a timm name.
        weights: False builds a timm model on the meta device, enough for locating and planning.
        settings: Keys of ``model:`` for a timm name, such as ``pretrained`` or ``checkpoint``.

    Raises:
        RecipeError: When it is none of them.
        LoadError: When the folder or a checkpoint is damaged.

    Example:
        >>> open_model("resnet18", weights=False).num_classes
        1000
    """
    section, given = _model_section(name), {key: value for key, value in settings.items() if value}
    if given and "timm" not in section:
        raise RecipeError(f"{name} says itself where its weights come from; take out {', '.join(given)}")
    recipe = parse({"name": "model", "model": {**section, **given}}, name)
    if weights or recipe.model.folder is not None:
        return build(recipe)
    with torch.device("meta"):
        bare = recipe.model.model_copy(update={"pretrained": False, "checkpoint": None})
        return build(recipe.model_copy(update={"model": bare}))


def _model_section(name: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    if path.is_dir():
        return {"folder": str(path)}
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return {key: value for key, value in load(path).model.model_dump().items() if key != "timm" or value}
    if path.is_file():
        raise RecipeError(f"{name} is a file of weights, perhaps; name its model, and it as --checkpoint {name}")
    if "/" in name and not name.startswith(("hf-hub:", "hf_hub:")):
        raise RecipeError(f"no folder '{name}' in {Path.cwd()}; name a folder saved by surgeon.save, or a timm model")
    check_name(name)
    return {"timm": name}


def validation_images(data: str, model: nn.Module, root: str | None = None, batch_size: int = 64) -> Batches:
    """Return validation images for a model.

    Args:
        data: A data set as in ``data.dataset``, or a recipe (file or shipped name) whose ``data:`` counts.
        model: Whose input size the images get, where the recipe names none.
        root: Folder of the data set.
        batch_size: Images per batch.

    Raises:
        RecipeError: When there is no such data set or recipe, or the recipe has no data.

    Example:
        >>> len(validation_images("digits_spd", open_model("digits_convnet")))
        8
    """
    if Path(data).is_file() or data in shipped():
        recipe = load(data)
    else:
        channels, height, _ = timm.data.resolve_model_data_config(model)["input_size"]
        section = {"dataset": data} | ({"root": root} if root else {})
        section |= {"size": height, "channels": channels} if data == "digits" else {}
        recipe = parse({"name": "images", "model": {"timm": "any"}, "data": section}, "--data")
    if recipe.data is None:
        raise RecipeError(f"recipe '{data}' has no data section; name a data set, such as digits or folder:PATH")
    source = open_source(recipe.data)
    return batch(source, model, batch_size=min(batch_size, len(source.train))).val
