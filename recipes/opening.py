"""What a user names on the command line: models and images.

Apart from the command line itself, whose file stays free of anything slow to import.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import nn

import surgeon
from recipes.batches import Batches
from recipes.build import check_name
from recipes.data import batch, open_source
from recipes.loading import load, parse, shipped
from surgeon.errors import RecipeError


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
