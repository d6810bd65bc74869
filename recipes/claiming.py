"""Whose folder it is: a run makes one its own, continues it, or starts over; it never takes what another made.

Apart from writing files because every refusal here protects what a user has: a recipe, weights, a running training.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from recipes.folders import write_text
from recipes.loading import load
from recipes.probes import written
from recipes.schema import RecipeFile
from surgeon.errors import RecipeError

RECIPE, LOCK = "recipe.yaml", ".lock"
MARK = "# The recipe of this folder with every default spelled out"
_FREE = ("device", "workers", "tensorboard")  # settings a continued run may change; and its analyses
_HELD: set[Path] = set()  # folders this process works in


def dump(recipe: RecipeFile) -> str:
    """Write a recipe as YAML, every default spelled out, so that it means the same in a later version."""
    body = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=110)
    return f"{MARK}; run it again with: surgeon run {RECIPE}\n{body}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def differences(old: RecipeFile, new: RecipeFile) -> list[str]:
    """Return the settings in which two recipes differ, as ``train.lr: 0.1 in the folder, 0.2 in the recipe``."""
    left, right = (dict(_leaves(recipe.model_dump(mode="json"))) for recipe in (old, new))
    keys = [key for key in {**left, **right} if key.rpartition(".")[2] not in _FREE and key != "analysis"]
    return [
        f"{key}: {left.get(key, 'nothing')} in the folder, {right.get(key, 'nothing')} in the recipe"
        for key in keys
        if left.get(key) != right.get(key)
    ]


@contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """Work in a folder in which no other process works; the hold ends with the process, however it ends.

    Raises:
        RecipeError: When another process works there.
    """
    place = folder.resolve() if folder is not None else None
    if place is None or place in _HELD:
        yield
        return
    if place.exists() and not place.is_dir():
        raise RecipeError(f"{folder} is a file; name a folder for the results")
    made = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    with (place / LOCK).open("a") as stream:
        if not _locked(stream.fileno()):
            raise RecipeError(f"another process is at work in {folder}; wait for it, or name another folder (--out)")
        _HELD.add(place)
        try:
            yield
        finally:
            _HELD.discard(place)
            if made and [path.name for path in place.iterdir()] == [LOCK]:  # refused before anything was written
                shutil.rmtree(place)


def _locked(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: nothing holds a folder there
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def check(folder: Path, recipe: RecipeFile, names: Sequence[str], resume: bool) -> None:
    """Refuse a folder that is not this recipe's; nothing is written.

    Args:
        folder: New, empty of what a run writes, or a run's.
        recipe: Is compared with the one of the folder.
        names: The files and folders a run writes.
        resume: Continue what is there; else any run's folder will do.

    Raises:
        RecipeError: When the folder holds the run of another recipe (the differing settings are named), or files of
            these names that no run wrote.
    """
    if not _a_runs(folder):
        foreign = [name for name in (RECIPE, *names) if (folder / name).exists()]
        if foreign:
            raise RecipeError(
                f"{folder} holds {', '.join(foreign)}, which no run wrote and a run would replace; "
                "name another folder (--out)"
            )
    elif resume:
        found = differences(load(folder / RECIPE), recipe)
        if found:
            listed = "\n".join(f"  {line}" for line in found)
            raise RecipeError(
                f"{folder} holds the run of another recipe:\n{listed}\n"
                "Name another folder (--out), or start over there (--no-resume, resume=False)."
            )


def claim(folder: Path, recipe: RecipeFile, names: Sequence[str], resume: bool) -> None:
    """Make a folder this recipe's own: new, continued, or emptied of what an earlier run wrote.

    Args:
        folder: Made where it is not there.
        recipe: Is written into it as ``recipe.yaml``.
        names: The files and folders a run writes; only these, and the earlier run's variants and analyses, are removed
            when starting over.
        resume: Continue what is there; else start over.

    Raises:
        RecipeError: As `check`.
    """
    check(folder, recipe, names, resume)
    if not resume and _a_runs(folder):
        for path in (folder / name for name in {*names, *_earlier(folder)}):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_text(folder / RECIPE, dump(recipe))


def _a_runs(folder: Path) -> bool:
    path = folder / RECIPE
    return path.is_file() and path.read_bytes().startswith(MARK.encode())


def _earlier(folder: Path) -> list[str]:
    """Return the variants and analyses of an earlier run; none where its recipe cannot be read any more."""
    try:
        recipe = load(folder / RECIPE)
    except RecipeError:
        return []
    return [*recipe.compare, *written(recipe.analysis)]
