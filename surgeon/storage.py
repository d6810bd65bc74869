"""The files of a saved model: each whole or not there, and checked when it is read.

A folder holds a manifest and safetensors. A checkpoint of a training run is one file that holds the same, and what the
training needs to go on: numbers, text and tensors only, so it is read without running anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import time
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from surgeon.errors import LoadError
from surgeon.manifest import MANIFEST, checked, damaged

STEMS = ("weights", "buffers", "originals")
DRAFT_SECONDS = 3600  # after which the process that was writing is taken to be dead
KEYS = ("surgeon_manifest", "surgeon_tensors")


@dataclass
class Saved:
    """What was read: the manifest, the tensors by file, and what else a checkpoint holds."""

    manifest: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    more: dict[str, Any]


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
    for file in older:
        with suppress(OSError):
            file.unlink()
    _sweep_drafts(f for stem in (*STEMS, MANIFEST) for f in folder.glob(f".{stem}*.*"))


def _sweep_drafts(drafts: Iterable[Path]) -> None:
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
        raise damaged(folder / MANIFEST, "files", manifest["files"])
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


def write_checkpoint(path: Path, saved: Saved) -> None:
    """Write one file that holds ``saved``, replacing an older one in one step."""
    _sweep_drafts(path.parent.glob(f".{path.name}.*"))
    buffer = io.BytesIO()
    torch.save({**saved.more, KEYS[0]: json.dumps({**saved.manifest, "files": {}}), KEYS[1]: saved.tensors}, buffer)
    replace_file(path, buffer.getvalue())


def is_checkpoint(path: Path) -> bool:
    """Whether :func:`write_checkpoint` wrote the file at ``path``; it is looked at, not unpickled."""
    try:
        with zipfile.ZipFile(path) as file:
            name = next(name for name in file.namelist() if name.endswith("/data.pkl"))
            return all(key.encode() in file.read(name) for key in KEYS)
    except (OSError, zipfile.BadZipFile, StopIteration):
        return False


def read_checkpoint(path: Path) -> Saved:
    """What :func:`write_checkpoint` wrote.

    Raises:
        LoadError: When the file is something else, truncated, or holds more than data.
    """
    if not is_checkpoint(path):
        raise LoadError(
            f"{path} is a file, and no whole checkpoint of an operated detector; name a folder written by "
            "surgeon.save, or open an ordinary ultralytics checkpoint by YOLO(path)"
        )
    try:
        with zipfile.ZipFile(path) as file:
            if changed := file.testzip():  # torch does not look at the sums
                raise LoadError(f"{path} is damaged: the sum of its part {changed} is another; restore it from a copy")
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise LoadError(f"{path} is damaged: {str(error).splitlines()[0]}; restore it from a copy") from error
    manifest, tensors = (held.pop(key) for key in KEYS)
    return Saved(checked(json.loads(manifest), path), tensors, held)
