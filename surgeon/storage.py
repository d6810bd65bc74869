"""The files of a saved model: each whole or not there, and checked when it is read."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor

from surgeon.errors import LoadError

SCHEMA = 1
MANIFEST = "recipe.json"
FIELDS = (
    "schema",
    "versions",
    "builder",
    "builder_note",
    "input_size",
    "keep_originals",
    "record",
    "shapes",
    "structure",
    "frozen",
    "frozen_before",
    "files",
)


def write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Write a file named by its digest; returns its name and digest."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():  # the format holds no shared storage
        owned[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    data = safetensors.torch.save(owned)
    digest = hashlib.sha256(data).hexdigest()
    name = f"{stem}-{digest[:12]}.safetensors"
    replace_file(folder / name, data)
    return {"name": name, "sha256": digest}


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path``, then put it in its place in one step."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def sweep(folder: Path, keep: set[str]) -> None:
    """Remove the tensors of an older model."""
    for stem in ("weights", "originals"):
        for file in folder.glob(f"{stem}-????????????.safetensors"):
            if file.name not in keep:
                file.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        LoadError: When it is missing, damaged, or of another schema.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoadError(f"{folder} holds no {MANIFEST}; name a folder written by surgeon.save") from error
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} is damaged: {error}; restore it from a copy") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise LoadError(f"{path}: field 'schema' is {found!r}, this version reads {SCHEMA}{version_hint(manifest)}")
    missing = [name for name in FIELDS if name not in manifest]
    if missing:
        raise LoadError(f"{path} is damaged: field '{missing[0]}' is missing; restore it from a copy")
    return manifest


def read_tensors(folder: Path, manifest: dict[str, Any], stem: str) -> dict[str, Tensor]:
    """The tensors of one file the manifest names.

    Raises:
        LoadError: When it is missing, truncated or edited.
    """
    entry = manifest["files"].get(stem)
    if not isinstance(entry, dict) or not {"name", "sha256"} <= entry.keys():
        raise LoadError(f"{folder / MANIFEST} is damaged: field 'files.{stem}' is {entry!r}; restore it from a copy")
    path = folder / Path(entry["name"]).name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}; it belongs to {MANIFEST}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise LoadError(
            f"{path} is truncated or was edited: {len(data)} bytes with sha256 {digest[:12]}, "
            f"{MANIFEST} expects {entry['sha256'][:12]}; restore it from a copy"
        )
    tensors: dict[str, Tensor] = safetensors.torch.load(data)
    return tensors


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a model is."""
    from surgeon import __version__

    return {"surgeon": __version__, "torch": torch.__version__, "timm": timm.__version__}


def version_hint(manifest: Any) -> str:
    """How the versions of the manifest differ from those here, to end a message with; "" where they do not."""
    saved = manifest.get("versions", {}) if isinstance(manifest, dict) else {}
    differ = [f"{k} {saved.get(k)} there, {v} here" for k, v in versions().items() if saved.get(k) != v]
    return f" (versions differ: {'; '.join(differ)})" if differ else ""
