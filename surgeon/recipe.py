"""Recipes: which op on which sites, as values, as plain data and as YAML.

The ``surgery:`` part of a recipe file is parsed here; the rest of the file belongs to the package that trains.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from surgeon import ops as ops  # registers them
from surgeon.errors import RecipeError
from surgeon.op import OPS, AbstractOp
from surgeon.select import Select
from surgeon.settings import misfit, read_settings

Problems = list[tuple[str, str]]


@dataclass(frozen=True)
class Step:
    """One op on one selection.

    Raises:
        RecipeError: When it is not one op and one selection.

    Example:
        >>> from surgeon import Select, get_op
        >>> Step(get_op("spd")(kernel="minimal"), Select(path="conv1")).to_dict()
        {'spd': {'kernel': 'minimal'}, 'select': {'path': 'conv1'}}
    """

    op: AbstractOp
    select: Select = field(default_factory=Select)

    def __post_init__(self) -> None:
        read_settings(self)

    def to_dict(self) -> dict[str, Any]:
        """The step as YAML has it."""
        select = self.select.to_dict()
        return {self.op.name: self.op.settings(), **({"select": select} if select else {})}


@dataclass(frozen=True)
class Recipe:
    """Steps in order.

    Args:
        steps: What to do.
        name: For messages.
        keep_originals: Keep what is replaced, so that ``undo`` works; False saves memory.

    Raises:
        RecipeError: When there is no step, or a field has no such value.
    """

    steps: tuple[Step, ...]
    name: str = ""
    keep_originals: bool = True

    def __post_init__(self) -> None:
        read_settings(self)
        if not self.steps:
            raise RecipeError("the recipe has no step; give at least one op, such as 'spd'")

    @classmethod
    def parse(cls, recipe: Any) -> Recipe:
        """Read a recipe from anything that can stand for one.

        Args:
            recipe: An op's name, an op, a Step, a list of these, a Recipe, a dict (one step, or with a ``surgery``
                key), the path of a YAML file, or the name of a shipped recipe.

        Raises:
            RecipeError: With every problem found, each with its key path; they are also in its ``problems``.

        Example:
            >>> recipe = Recipe.parse([{"spd": {"kernel": "minimal"}, "select": {"exclude": "*.downsample.*"}}])
            >>> recipe.to_list()
            [{'spd': {'kernel': 'minimal'}, 'select': {'exclude': '*.downsample.*'}}]
        """
        if isinstance(recipe, Recipe):
            return recipe
        if isinstance(recipe, (str, Path)) and str(recipe) not in OPS:
            return cls._read(recipe)
        given: dict[str, Any] = {}
        problems: Problems = []
        if isinstance(recipe, Mapping) and "surgery" in recipe:
            hints = {key: hint for key, hint in {"name": str, "keep_originals": bool}.items() if key in recipe}
            problems = [(key, reason) for key, hint in hints.items() if (reason := misfit(recipe[key], hint))]
            given = {key: recipe[key] for key in hints}
            recipe = recipe["surgery"]
        several = isinstance(recipe, Sequence) and not isinstance(recipe, str)
        steps = [_step(part, f"[{i}]", problems) for i, part in enumerate(recipe if several else [recipe])]
        if not problems:
            return cls(tuple(step for step in steps if step is not None), **given)
        raise _error(problems)

    @classmethod
    def _read(cls, source: str | Path) -> Recipe:
        path = find_recipe(source)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise RecipeError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(data, Mapping) or "surgery" not in data:
            raise RecipeError(f"{path} has no 'surgery:' part; a recipe lists its steps there")
        try:
            return cls.parse(data)
        except RecipeError as error:
            problems = [(f"surgery{key}" if key.startswith("[") else key, text) for key, text in error.problems]
            raise _error(problems, f"{path}: ") from error

    def to_list(self) -> list[dict[str, Any]]:
        """The steps as YAML has them."""
        return [step.to_dict() for step in self.steps]


def _error(problems: Problems, prefix: str = "") -> RecipeError:
    lines = (f"{prefix}{key}: {text}" if key else f"{prefix}{text}" for key, text in problems)
    return RecipeError("\n".join(lines), problems)


def _step(part: Any, key: str, problems: Problems) -> Step | None:
    """One step from any of its forms; what is wrong goes into ``problems``."""
    if isinstance(part, Step):
        return part
    if isinstance(part, AbstractOp):
        return Step(part)
    if isinstance(part, str):
        part = {part: {}}
    if not isinstance(part, Mapping):
        problems.append(
            (key, f"is {part!r}; a step is an op's name, or a mapping such as {{spd: {{order: conv-spd}}}}")
        )
        return None
    names = [name for name in part if name != "select"]
    if len(names) != 1:
        problems.append(
            (key, f"names {len(names)} ops ({', '.join(map(str, names)) or 'none'}); a step has exactly one")
        )
        return None
    if names[0] not in OPS:
        problems.append((f"{key}.{names[0]}", unknown("op", str(names[0]), list(OPS))))
        return None
    op = _build(OPS[names[0]], part[names[0]], f"{key}.{names[0]}", problems)
    select = _build(Select, part.get("select"), f"{key}.select", problems)
    return Step(op, select) if op is not None and select is not None else None


def _build(cls: type[Any], given: Any, key: str, problems: Problems) -> Any:
    """An op or a selection from its mapping; a key without value (``spd:``) has none."""
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        problems.append((key, f"is {given!r}; it must be a mapping of settings"))
        return None
    names = [f.name for f in fields(cls)]
    strange = [name for name in given if name not in names]
    problems.extend((f"{key}.{name}", unknown("key", str(name), names)) for name in strange)
    try:
        built = cls(**{name: value for name, value in given.items() if name in names})
    except RecipeError as error:
        problems.extend((f"{key}.{name}" if name else key, text) for name, text in error.problems)
        return None
    return None if strange else built


def unknown(what: str, name: str, allowed: Sequence[str]) -> str:
    """Say that a name is unknown, the nearest allowed one, and all of them.

    Example:
        >>> unknown("op", "sdp", ["spd"])
        "unknown op 'sdp'; did you mean 'spd'? (allowed: spd)"
    """
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown {what} '{name}'{hint} (allowed: {', '.join(sorted(allowed))})"


def shipped_recipes() -> dict[str, Path]:
    """Name and file of every recipe that comes with the distribution."""
    spec = importlib.util.find_spec("recipes")
    folders = [Path(p) / "zoo" for p in (spec.submodule_search_locations or [])] if spec else []
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe given by path or by the name of a shipped one.

    Raises:
        RecipeError: When there is neither such a file nor such a name.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(source) in shipped:
        return shipped[str(source)]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise RecipeError(
            f"there is no recipe file {path}; check the path, or name a shipped one: {', '.join(shipped)}"
        )
    raise RecipeError(unknown("op or recipe", str(source), [*OPS, *shipped]))
