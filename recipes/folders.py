"""Files that survive a kill: written beside their place and moved there in one step; and whose folder it is.

Apart from training and running, which both keep folders that a later call must recognise and continue.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from recipes.loading import load
from recipes.schema import RecipeFile
from surgeon.errors import LoadError, RecipeError

RECIPE = "recipe.yaml"
_FREE = ("device", "workers", "tensorboard")  # settings a continued run may change


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_weights(path: Path, module: nn.Module) -> None:
    """Write a module's `state_dict` as safetensors in one step; tensors shared under several names are written each."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    save_file(tensors, beside)
    beside.replace(path)


def read_weights(path: Path, module: nn.Module) -> None:
    """Read what `write_weights` wrote into a module of the same structure.

    Raises:
        LoadError: When the file is damaged, or its names or shapes are not the module's.
    """
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{path}: damaged or not there ({error}); remove that folder and run again") from None
    except RuntimeError as error:
        raise LoadError(f"{path}: holds the weights of another model: {error}; use another folder") from None


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and numbers (an optimiser's state) in one step."""
    beside = path.with_name(f".{path.name}.part")
    torch.save(dict(state), beside)
    beside.replace(path)


def dump(recipe: RecipeFile) -> str:
    """Write a recipe as YAML, every default spelled out, so that it means the same in a later version."""
    body = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=110)
    return (
        f"# The recipe of this folder with every default spelled out; run it again with: surgeon run {RECIPE}\n{body}"
    )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def differences(old: RecipeFile, new: RecipeFile) -> list[str]:
    """Return the settings in which two recipes differ, as ``train.lr: 0.1 in the folder, 0.2 in the recipe``."""
    left, right = (dict(_leaves(recipe.model_dump(mode="json"))) for recipe in (old, new))
    keys = [key for key in {**left, **right} if key.rpartition(".")[2] not in _FREE]
    return [
        f"{key}: {left.get(key, 'nothing')} in the folder, {right.get(key, 'nothing')} in the recipe"
        for key in keys
        if left.get(key) != right.get(key)
    ]


def claim(folder: Path, recipe: RecipeFile, names: tuple[str, ...], resume: bool) -> None:
    """Make a folder this recipe's own: new, continued, or emptied of what an earlier run wrote.

    Args:
        folder: Made where it is not there.
        recipe: Is written into it as ``recipe.yaml``.
        names: The files and folders a run writes; only these are removed when starting over.
        resume: Continue what is there; else start over.

    Raises:
        RecipeError: When the folder holds the run of another recipe (the differing settings are named) or is no
            folder.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder} is a file; name a folder for the results")
    if not resume:
        for path in (folder / name for name in (RECIPE, *names)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if (folder / RECIPE).is_file():
        found = differences(load(folder / RECIPE), recipe)
        if found:
            listed = "\n".join(f"  {line}" for line in found)
            raise RecipeError(
                f"{folder} holds the run of another recipe:\n{listed}\n"
                "Name another folder (--out), or start over there (--no-resume, resume=False)."
            )
    write_text(folder / RECIPE, dump(recipe))
