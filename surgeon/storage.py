"""The files of a saved model: each whole or not there, and checked when it is read."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from surgeon.errors import LoadError
from surgeon.manifest import MANIFEST, damaged

STEMS = ("weights", "buffers", "originals")
DRAFT_SECONDS = 3600  # after which the process that was writing is taken to be dead


def write_tensors(folder: Path, stem: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Write a file named by its digest; returns its name and digest."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():  # the format holds no shared storage
        storage = tensor.untyped_storage().data_ptr()
        owned[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
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
    """Remove the tensors of an older model, and old drafts of killed processes; what cannot be removed does no harm."""
    older = [f for stem in STEMS for f in folder.glob(f"{stem}-????????????.safetensors") if f.name not in keep]
    drafts = [f for stem in (*STEMS, MANIFEST) for f in folder.glob(f".{stem}*.*")]
    for file in older:
        with suppress(OSError):
            file.unlink()
    for file in drafts:
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > DRAFT_SECONDS:
                file.unlink()


def read_tensors(folder: Path, manifest: dict[str, Any], stem: str) -> dict[str, Tensor]:
    """The tensors of one file the manifest names.

    Raises:
        LoadError: When it is missing, truncated or edited.
    """
    entry = manifest["files"].get(stem)
    if entry is None:
        raise damaged(folder, "files", manifest["files"])
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
