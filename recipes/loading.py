"""Read a recipe: from a file, from the name of a shipped one, or from a dict; all its errors at once.

Separate from the schema because this is where files, YAML and `surgeon`'s own checks of `surgery:` come together.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import surgeon
from recipes import probes
from recipes.model_schema import ModelSection, changed_model
from recipes.problems import Problem, key_path, nearest, problems_of, summary
from recipes.schema import DetectorRecipe, RecipeFile, recipe_class
from surgeon.errors import RecipeError

ZOO = Path(__file__).parent / "zoo"


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice (YAML itself silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in seen:
                raise RecipeError(f"line {line}: key '{key}' is already given in line {seen[key]}; keep one of them")
            seen[key] = line
        return super().construct_mapping(node, deep)


def shipped() -> dict[str, Path]:
    """Return the shipped recipes, name to file, sorted by name.

    Example:
        >>> "digits_spd" in shipped()
        True
    """
    return {path.stem: path for path in sorted(ZOO.glob("*.yaml"))}


def purpose(path: Path) -> str:
    """Return the first comment line of a recipe file: what it is for, in one line."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").removeprefix("purpose:").strip() if first.startswith("#") else ""


def find(path_or_name: str | Path) -> Path:
    """Return the file of a recipe given by path or by the name of a shipped one.

    Raises:
        RecipeError: When there is neither.
    """
    path, names = Path(path_or_name), shipped()
    if path.is_file():
        return path
    if str(path_or_name) in names:
        return names[str(path_or_name)]
    where = f"no file '{path}' in {Path.cwd()}, and no shipped recipe of that name"
    raise RecipeError(f"{where}{nearest(str(path_or_name), names)} (shipped: {', '.join(names)})")


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RecipeError(f"{path}: {place}not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a YAML text: {error}") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None


def _as_yaml_has_it(surgery: Any) -> Any:
    """Write ops and steps that stand in a dict's `surgery` as plain data, so that the recipe can be kept."""
    if is_dataclass(surgery):
        return surgeon.Recipe.parse(surgery).to_list()
    if not isinstance(surgery, (list, tuple)):
        return surgery
    return [part for one in surgery for part in (_as_yaml_has_it(one) if is_dataclass(one) else [one])]


def _plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe, or an entry of its `compare`, with `surgery` as plain data."""
    return {key: _as_yaml_has_it(value) if key == "surgery" else value for key, value in section.items()}


def _surgery_problems(surgery: Any, path: tuple[str | int, ...]) -> list[Problem]:
    """Let `surgeon` check the operations, and put its key paths behind ours."""
    if not isinstance(surgery, list) or not surgery:
        return []  # wrong types are reported by the schema
    try:
        surgeon.Recipe.parse(surgery)
    except RecipeError as error:
        found = getattr(error, "problems", None) or [("", str(error))]
        base = key_path(path)
        return [(base + ("" if not inner or inner[0] == "[" else ".") + inner, message) for inner, message in found]
    return []


def _own_problems(error: ValidationError, path: tuple[str, str, str], document: Mapping[str, Any]) -> list[Problem]:
    """Keep the problems that a variant's own keys cause; the recipe's are reported at their place."""
    base, own = ".".join(path), document["compare"][path[1]][path[2]]
    problems = [(key.removeprefix(base), text) for key, text in problems_of(error, document, path)]
    return [(base + key, text) for key, text in problems if not key or re.split(r"[.\[]", key[1:])[0] in own]


def _variant_problems(document: Mapping[str, Any]) -> list[Problem]:
    """Check what the entries of `compare` make of the recipe's `model`, `surgery` and `train`."""
    problems: list[Problem] = []
    entries, train = document.get("compare"), recipe_class(document).train_section()
    for name, entry in entries.items() if isinstance(entries, Mapping) else ():
        if not isinstance(entry, Mapping):
            continue
        problems += _surgery_problems(entry.get("surgery"), ("compare", str(name), "surgery"))
        for key, section, put_together in (("model", ModelSection, changed_model), ("train", train, _merged)):
            base, own = document.get(key), entry.get(key)
            if not isinstance(own, Mapping) or not isinstance(base, Mapping):
                continue
            try:
                section.model_validate(put_together(base, own))
            except ValidationError as error:
                problems += _own_problems(error, ("compare", str(name), key), document)
    return problems


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **own}


def parse(document: Any, source: str = "recipe") -> RecipeFile:
    """Check a recipe given as a dict, and return it.

    Args:
        document: The content of a recipe file.
        source: What error messages call it, usually the file's path.

    Raises:
        RecipeError: With every problem, each on a line that starts with its key path.

    Example:
        >>> parse({"name": "plain", "model": {"timm": "resnet18"}}).model.timm
        'resnet18'
    """
    if isinstance(document, RecipeFile):
        return document
    if not isinstance(document, Mapping):
        raise RecipeError(f"{source}: a recipe is a mapping of sections (name, model, ...), not {document!r:.60}")
    document = _plain(document)
    entries = document.get("compare")
    if isinstance(entries, Mapping):
        document["compare"] = {
            name: _plain(entry) if isinstance(entry, Mapping) else entry for name, entry in entries.items()
        }
    problems = [*_surgery_problems(document.get("surgery"), ("surgery",)), *_variant_problems(document)]
    problems += probes.problems(document, issubclass(recipe_class(document), DetectorRecipe))
    try:
        recipe = recipe_class(document).model_validate(dict(document))
    except ValidationError as error:
        raise summary(source, problems_of(error, document) + problems) from None
    if problems:
        raise summary(source, problems)
    return recipe


def load(path_or_name: str | Path | Mapping[str, Any] | RecipeFile) -> RecipeFile:
    """Read and check a recipe.

    Args:
        path_or_name: Path of a YAML file, or the name of a shipped recipe (``surgeon recipes`` lists them).

    Raises:
        RecipeError: When it is not found, is not YAML, or has problems: all of them are listed.

    Example:
        >>> load("digits_spd").name
        'digits-spd'
    """
    if isinstance(path_or_name, (RecipeFile, Mapping)):
        return parse(path_or_name)
    path = find(path_or_name)
    return parse(_read(path), str(path_or_name))


def with_device(recipe: RecipeFile, device: str) -> RecipeFile:
    """Return a recipe for another device.

    Raises:
        RecipeError: When it is no device.

    Example:
        >>> with_device(load("digits_spd"), "cpu").train.device
        'cpu'
    """
    content = recipe.model_dump()
    for entry in content["compare"].values():
        entry["train"].pop("device", None)
    for section in (content[key] for key in ("pretrain", "train") if content[key]):
        section["device"] = device
    return parse(content, "--device")


def with_seed(recipe: RecipeFile, seed: int) -> RecipeFile:
    """Return a recipe whose weights, batches and placements follow another seed, the same in every variant.

    Raises:
        RecipeError: When it is no seed.

    Example:
        >>> with_seed(load("digits_spd"), 3).train.seed
        3
    """
    content = recipe.model_dump()
    for entry in content["compare"].values():
        entry["train"].pop("seed", None)
    for section in (content[key] for key in ("pretrain", "train") if content[key]):
        section["seed"] = seed
    return parse(content, "--seed")
