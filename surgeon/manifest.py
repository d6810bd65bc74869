"""``recipe.json`` of a saved model: its fields, and the checks of a file that somebody may have edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import timm
import torch

from surgeon.change import Status
from surgeon.errors import LoadError

SCHEMA = 1
MANIFEST = "recipe.json"
BUILT_BY = ("timm", "yolo")
Check = Callable[[Any], bool]


def _is(*kinds: type) -> Check:
    return lambda value: isinstance(value, kinds)


def _list_of(part: Check) -> Check:
    return lambda value: isinstance(value, list) and all(part(v) for v in value)


def _dict_of(part: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(part(v) for v in value.values())


def _fields(parts: dict[str, Check]) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == parts.keys()
        and all(fits(value[name]) for name, fits in parts.items())
    )


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_pair(value: Any) -> bool:
    return _counts(value) and len(value) == 2


_text = _is(str)
_counts = _list_of(lambda value: type(value) is int and value >= 0)
_change = {
    **dict.fromkeys(("path", "op", "reason"), _text),
    "status": lambda value: value in get_args(Status),
    **dict.fromkeys(("params", "macs"), _is_pair),
}
_record = {
    "changes": _list_of(_fields(_change)),
    "model": _text,
    "input_size": _counts,
    **dict.fromkeys(("params", "macs", "activations"), _is_pair),
    "recipe": _list_of(_is(dict)),
    "notes": _list_of(_text),
}
FIELDS: dict[str, Check] = {
    "schema": lambda value: value == SCHEMA,
    "versions": _dict_of(_text),
    "builder": _or_none(lambda value: any(_fields({name: _text, "arguments": _is(dict)})(value) for name in BUILT_BY)),
    "builder_note": _text,
    "input_size": _or_none(lambda value: _counts(value) and len(value) == 3),
    "keep_originals": _is(bool),
    "record": _or_none(_fields(_record)),
    "shapes": _or_none(_dict_of(_counts)),
    "structure": _dict_of(_text),
    "forward": _or_none(_list_of(_text)),
    "frozen": _list_of(_text),
    "frozen_before": _list_of(_text),
    "files": _dict_of(_fields({"name": _text, "sha256": _text})),
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        LoadError: When it is missing, damaged, or of another schema.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LoadError(
            f"{folder} holds no {MANIFEST}; name a folder written by surgeon.save, or an operated detector's .pt file"
        ) from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LoadError(f"{path} is damaged: {error}; restore it from a copy") from error
    return checked(manifest, path)


def checked(manifest: Any, path: Path) -> dict[str, Any]:
    """The manifest read from ``path``, every field looked at.

    Raises:
        LoadError: When a field is missing or damaged, or the schema is another.
    """
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise LoadError(f"{path}: field 'schema' is {found!r}, this version reads {SCHEMA}{version_hint(manifest)}")
    for name, fits in FIELDS.items():
        if name not in manifest:
            raise LoadError(f"{path} is damaged: field '{name}' is missing; restore it from a copy")
        if not fits(manifest[name]):
            raise damaged(path, name, manifest[name])
    if manifest["input_size"] is None and (manifest["record"] or manifest["forward"]):
        raise damaged(path, "input_size", None)
    if manifest["record"] is None and manifest["keep_originals"]:
        raise damaged(path, "keep_originals", True)
    return manifest


def damaged(path: Path, field: str, value: Any) -> LoadError:
    """The error that names a field of the manifest at ``path``."""
    text = repr(value)
    shown = text if len(text) < 100 else f"{text[:100]}..."
    return LoadError(f"{path} is damaged: field '{field}' is {shown}; restore it from a copy")


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a model is."""
    from surgeon import __version__

    return {"surgeon": __version__, "torch": str(torch.__version__), "timm": timm.__version__}


def same_versions(manifest: dict[str, Any]) -> bool:
    """Whether the libraries here are those that wrote the manifest."""
    return bool(manifest["versions"] == versions())


def version_hint(manifest: Any) -> str:
    """How the versions of the manifest differ from those here, to end a message with; "" where they do not."""
    saved = manifest.get("versions") if isinstance(manifest, dict) else None
    saved = saved if isinstance(saved, dict) else {}
    differ = [f"{k} {saved.get(k)} there, {v} here" for k, v in versions().items() if saved.get(k) != v]
    return f" (versions differ: {'; '.join(differ)})" if differ else ""
