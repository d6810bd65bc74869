"""The wording of a recipe file's errors: one line per problem, starting with its key path.

Separate from the schema so that every message has one home: what is wrong, the allowed values, the nearest name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from recipes import data_schema, model_schema, schema
from recipes.detect_schema import ULTRALYTICS
from recipes.wording import nearest as nearest
from surgeon.errors import RecipeError

Problem = tuple[str, str]  # key path, message
_TAGS = {"digits", "images", "digits_detection", "yaml"}  # names pydantic puts in the path of a tagged union


def key_path(parts: Sequence[str | int]) -> str:
    """Write a key path as it is read: ``train.keep_epochs[1]``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _section(parts: Sequence[str | int], document: Any) -> type[data_schema.Section] | None:
    """Return the class of the section at a path, to name its keys."""
    recipe = schema.recipe_class(document)
    if not parts:
        return recipe
    if parts[0] == "data":
        return data_schema.section_of(document.get("data"), issubclass(recipe, schema.DetectorRecipe))
    if parts[-1] == "shift" and parts[-2:-1] in (["train"], ["pretrain"]):
        return schema.ShiftSection
    if parts[0] == "compare":
        own_model = model_schema.ModelSection if parts[2:3] == ["model"] else recipe.train_section()
        return schema.VariantSection if len(parts) == 2 else own_model
    sections: dict[str, type[data_schema.Section]] = {
        "model": model_schema.ModelSection,
        "train": recipe.train_section(),
        "pretrain": recipe.train_section(),
    }
    return sections.get(str(parts[0]))


def _unknown_key(parts: Sequence[str | int], document: Any) -> str:
    section = _section(parts[:-1], document)
    allowed = sorted(section.model_fields) if section else []
    return f"unknown key '{parts[-1]}'{nearest(str(parts[-1]), allowed)} (allowed: {', '.join(allowed)})"


def _choices(text: str) -> str | None:
    """Suggest a name for the two validators that leave ``what|name`` as their message."""
    what, _, name = text.partition("|")
    if what == "unknown data set":
        allowed = [*data_schema.SPECIAL_DATASETS, "torch/cifar10", "torch/cifar100"]
        kinds = ", ".join([*data_schema.SPECIAL_DATASETS, *(prefix + "..." for prefix in data_schema.PREFIXES)])
        return f"unknown data set '{name}'{nearest(name, allowed)} (allowed: {kinds})"
    if what == "unknown optimiser":
        from timm.optim import list_optimizers

        return f"unknown optimiser '{name}'{nearest(name, list_optimizers())} (timm.optim.list_optimizers() lists all)"
    return None


def _message(error: Any, parts: Sequence[str | int], document: Any) -> str:
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return _unknown_key(parts, document)
    if kind == "missing":
        return "is required"
    if kind == ULTRALYTICS:
        return str(error["msg"])
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        return _choices(text) or text
    if kind == "string_pattern_mismatch":
        return f"{schema.PATTERNS['device' if parts[-1] == 'device' else 'name']} (found {value!r})"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a mapping of keys to values (found {value!r:.60})"
    message: str = error["msg"][0].lower() + error["msg"][1:]
    if kind == "literal_error" and isinstance(value, str):
        expected = [word.strip("'") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        message += nearest(value, expected)
    if isinstance(value, (str, int, float, bool)) or value is None:
        message += f" (found {value!r})"
    return message


def problems_of(error: ValidationError, document: Any, prefix: Sequence[str] = ()) -> list[Problem]:
    """Turn pydantic's errors into key paths and messages; `prefix` is where the checked part lies in the file."""
    found: dict[str, str] = {}
    for item in error.errors():
        parts: list[str | int] = [*prefix, *(part for part in item["loc"] if part != "[key]")]
        if parts[0:1] == ["data"] and len(parts) > 1 and parts[1] in _TAGS:
            parts.pop(1)
        parts = [part for part in parts if not str(part).startswith(("constrained-", "tuple["))]
        found.setdefault(key_path(parts), _message(item, parts, document))
    return list(found.items())


def summary(source: str, problems: Sequence[Problem]) -> RecipeError:
    """Return one error that lists every problem; its attribute ``problems`` holds them as (key path, message)."""
    lines = [f"{path}: {message}" if path else message for path, message in problems]
    count = f"{len(lines)} problem{'s' * (len(lines) > 1)}"
    error = RecipeError(f"{source}: {count}\n" + "\n".join(f"  {line}" for line in lines))
    error.problems = list(problems)  # type: ignore[attr-defined]
    return error
