"""What a user names on the command line: models and images.

Apart from the command line itself, whose file stays free of anything slow to import.
"""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from recipes.build import build, check_name
from recipes.data import batch, open_source
from recipes.data_schema import PREFIXES, SPECIAL_DATASETS
from recipes.detect import images, open_data
from recipes.detectors import YAML, is_data_yaml, is_detector, names, open_detector, quiet
from recipes.loading import load, parse, shipped
from recipes.schema import DetectorRecipe, RecipeFile
from surgeon.errors import RecipeError
from surgeon.host import input_sizes, unwrap
from surgeon.yolo.joining import is_object

DIGITS = "digits_detection"


def open_model(name: str, weights: bool = True, **settings: Any) -> nn.Module:
    """Return the model a user names on the command line.

    Args:
        name: A folder saved by `surgeon.save`, a recipe file whose ``model:`` counts, a timm name, or a detector's
            yaml or ``.pt`` file.
        weights: False builds a timm model on the meta device, and fetches no weights for a detector's yaml: enough
            for locating and planning.
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
    if recipe.model.yolo is not None:
        with quiet(True):  # whatever is printed, JSON perhaps, is the command's
            return open_detector(recipe.model.yolo, weights=weights)  # type: ignore[no-any-return]
    if weights or recipe.model.folder is not None:
        return build(recipe)
    with torch.device("meta"):
        bare = recipe.model.model_copy(update={"pretrained": False, "checkpoint": None})
        return build(recipe.model_copy(update={"model": bare}))


def _model_section(name: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    if path.is_dir():
        return {"folder": str(path)}
    if is_detector(name):
        return {"yolo": name}
    if path.suffix in YAML and path.is_file():
        return {key: value for key, value in load(path).model.model_dump().items() if key != "timm" or value}
    if path.is_file():
        raise RecipeError(f"{name} is a file of weights, perhaps; name its model, and it as --checkpoint {name}")
    if "/" in name and not name.startswith(("hf-hub:", "hf_hub:")):
        raise RecipeError(f"no folder '{name}' in {Path.cwd()}; name a folder saved by surgeon.save, or a model")
    check_name(name)
    return {"timm": name}


def model_names(pattern: str = "*", pretrained: bool = False, yolo: bool = False) -> list[str]:
    """Return the names of models like a pattern: timm's, or the yamls of detectors.

    Args:
        pattern: A shell pattern.
        pretrained: Only those timm has weights for.
        yolo: ultralytics' yamls, in every scale, and those shipped here.

    Raises:
        RecipeError: When there is none, or what was asked for does not go together.

    Example:
        >>> model_names("digits_convnet")
        ['digits_convnet']
    """
    if yolo and pretrained:
        raise RecipeError("--pretrained lists timm's weights, --yolo has none; take one of them out")
    found = fnmatch.filter(sorted(names()), pattern) if yolo else timm.list_models(pattern, pretrained=pretrained)
    if not found:
        whose, example = ("no detector", "yolo11*") if yolo else (f"timm {timm.__version__} has no model", "resnet*")
        raise RecipeError(f"{whose} like '{pattern}'; quote a pattern such as '{example}'")
    return list(found)


def validation_images(data: str, model: nn.Module, root: str | None = None, batch_size: int = 64) -> Iterable[Any]:
    """Return batches of validation images for a model.

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
    detector, path = is_object(model), Path(data)
    unknown_yaml = path.suffix in YAML and not detector  # of a classifier it can only be meant as a recipe
    a_recipe = not is_data_yaml(path) if path.is_file() else unknown_yaml or data in shipped()
    recipe = load(data) if a_recipe else images_recipe(data, model, root, detector)
    if recipe.data is None:
        raise RecipeError(f"recipe '{data}' has no data section; name a data set, such as digits or folder:PATH")
    if detector != isinstance(recipe, DetectorRecipe):
        raise _wrong_kind(data, detector)
    if isinstance(recipe, DetectorRecipe):
        return _detection_images(recipe, model, batch_size)
    source = open_source(recipe.data)
    return batch(source, model, batch_size=min(batch_size, len(source.train))).val


def images_recipe(data: str, model: nn.Module, root: str | None = None, detector: bool = False) -> RecipeFile:
    """Return a recipe with nothing but images.

    Raises:
        RecipeError: When the images are not for that kind of model.
    """
    of_classifiers = data in SPECIAL_DATASETS or data.startswith(PREFIXES)
    of_detectors = data == DIGITS or data.endswith(YAML)
    if of_classifiers if detector else of_detectors:
        raise _wrong_kind(data, detector)
    section: dict[str, Any] = {"dataset": data} | ({"root": root} if root else {})
    if data == "digits":
        channels, height, _ = timm.data.resolve_model_data_config(model)["input_size"]
        section |= {"size": height, "channels": channels}
    kind = {"yolo": "any"} if detector else {"timm": "any"}
    return parse({"name": "images", "model": kind, "data": section}, "--data")


def _wrong_kind(data: str, detector: bool) -> RecipeError:
    whose, model, name = (
        ("classifiers", "detector", f"a data yaml, {DIGITS}")
        if detector
        else ("detectors", "classifier", "digits, folder:PATH")
    )
    return RecipeError(f"--data {data}: images for {whose}, but the model is a {model}; name some for it ({name})")


def _detection_images(recipe: DetectorRecipe, model: nn.Module, batch_size: int) -> Iterator[Any]:
    if recipe.data is None:
        return
    size = recipe.train.imgsz if recipe.train is not None else input_sizes(unwrap(model))[0][1]
    with tempfile.TemporaryDirectory() as folder, quiet(True):
        yield from images(open_data(recipe.data, Path(folder)), size, batch_size)
