"""Save and load an operated model: JSON and safetensors, no pickle, no module.

A folder holds ``recipe.json`` (who built the model, the steps with resolved paths, versions, digests) and the tensors
in files named by their digest. ``recipe.json`` is replaced last and atomically, so at any moment the folder holds a
whole model: the old one or the new one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from surgeon.building import Builder, Shapes, build, builder_of, shapes_of_state
from surgeon.change import Record
from surgeon.errors import LoadError, SurgeonError
from surgeon.host import unwrap
from surgeon.ledger import Ledger
from surgeon.recipe import Recipe
from surgeon.rewriting import apply

SCHEMA = 1
MANIFEST = "recipe.json"
FIELDS = ("schema", "versions", "builder", "input_size", "keep_originals", "record", "shapes", "frozen", "files")


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write ``model`` to ``folder``, so that :func:`load` rebuilds it in a fresh process.

    Args:
        model: Operated or not.
        folder: Made when it does not exist; an older model in it is replaced atomically.

    Returns:
        The folder.

    Raises:
        SurgeonError: When ``folder`` is a file.

    Example:
        >>> import tempfile, surgeon
        >>> model = surgeon.create_model("test_resnet", "spd")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     surgeon.record(load(save(model, folder))).count("rewritten")
        8
    """
    module, folder = unwrap(model), Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise SurgeonError(f"cannot save to {folder}: it is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger.of(module)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    files = {"weights": _write(folder, "weights", weights)}
    if ledger is not None and ledger.log is not None:
        files["originals"] = _write(folder, "originals", _originals(module, weights))
    manifest = {
        "schema": SCHEMA,
        "versions": versions(),
        "builder": builder_of(module),
        "input_size": list(ledger.input_size) if ledger else None,
        "keep_originals": ledger is not None and ledger.log is not None,
        "record": ledger.record.to_dict() if ledger else None,
        "shapes": {k: list(v) for k, v in (ledger.shapes if ledger else shapes_of_state(module)).items()},
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        "files": files,
    }
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    _sweep(folder, {str(file["name"]) for file in files.values()})
    return folder


def load(path: str | Path, model: nn.Module | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a saved model: build, replay the surgery, load the weights strictly.

    Args:
        path: A folder written by :func:`save`.
        model: The untouched model to operate, for models whose builder is not known; it is changed in place.
        device: Where the result lives.

    Returns:
        The model in evaluation mode.

    Raises:
        LoadError: When a file is missing, damaged or edited, when a field or tensor does not fit, or when ``model`` is
            needed.
    """
    folder = Path(path).expanduser()
    manifest = _read_manifest(folder)
    weights = _read(folder, manifest, "weights")
    shapes: Shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    base = _base(manifest, model, folder)
    _compare(shapes_of_state(base), shapes, f"{folder}: the model to operate", manifest)
    for name, tensor in [*base.named_parameters(), *base.named_buffers()]:
        if name in weights and tensor.is_floating_point():
            tensor.data = tensor.data.to(weights[name].dtype)
    if manifest["record"] is not None:
        if manifest["keep_originals"]:
            originals = {**weights, **_read(folder, manifest, "originals")}
            base.load_state_dict({name: originals[name] for name in shapes})
        _replay(base, manifest)
    _compare(shapes_of_state(base), {k: tuple(v.shape) for k, v in weights.items()}, f"{folder}: its weights", manifest)
    base.load_state_dict(weights)
    frozen = set(manifest["frozen"])
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return base.to(device).eval()


def _base(manifest: dict[str, Any], model: nn.Module | None, folder: Path) -> nn.Module:
    if model is not None:
        module = unwrap(model)
        if Ledger.of(module) is not None:
            raise LoadError(f"{folder}: the model given was operated already; pass it untouched")
        return module
    builder: Builder | None = manifest["builder"]
    if builder is None:
        raise LoadError(
            f"{folder} does not know how its model was built; pass load(path, model=...) with the model as it was "
            "before surgery, or build it with surgeon.create_model before saving"
        )
    try:
        return build(builder)
    except Exception as error:
        raise LoadError(f"{folder}: builder {builder} fails: {error}{_version_hint(manifest)}") from error


def _replay(base: nn.Module, manifest: dict[str, Any]) -> None:
    record = Record.from_dict(manifest["record"])
    steps = Recipe.parse(list(record.recipe)).steps
    size = manifest["input_size"]
    try:
        for i, step in enumerate(steps):
            keep = manifest["keep_originals"]
            apply(base, Recipe((step,), keep_originals=keep), tuple(size) if i == 0 else None)
    except SurgeonError as error:
        raise LoadError(f"the recorded surgery does not fit the model: {error}{_version_hint(manifest)}") from error
    ledger = Ledger.of(base)
    if ledger is not None:
        ledger.record = record


def _originals(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model before surgery that differ from the saved ones."""
    twin = copy.deepcopy(module)
    ledger = Ledger.of(twin)
    if ledger is not None:
        ledger.take_back(twin)
    before = {name: tensor.detach().cpu().contiguous() for name, tensor in twin.state_dict().items()}
    return {name: t for name, t in before.items() if name not in weights or not _equal(t, weights[name])}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))


def _write(folder: Path, stem: str, tensors: dict[str, Tensor]) -> dict[str, str]:
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


def _sweep(folder: Path, keep: set[str]) -> None:
    """Remove the tensors of an older model."""
    for stem in ("weights", "originals"):
        for file in folder.glob(f"{stem}-????????????.safetensors"):
            if file.name not in keep:
                file.unlink()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoadError(f"{folder} holds no {MANIFEST}; name a folder written by surgeon.save") from error
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} is damaged: {error}; restore it from a copy") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise LoadError(f"{path}: field 'schema' is {found!r}, this version reads {SCHEMA}{_version_hint(manifest)}")
    missing = [name for name in FIELDS if name not in manifest]
    if missing:
        raise LoadError(f"{path} is damaged: field '{missing[0]}' is missing; restore it from a copy")
    return manifest


def _read(folder: Path, manifest: dict[str, Any], stem: str) -> dict[str, Tensor]:
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


def _compare(found: Shapes, expected: Shapes, what: str, manifest: dict[str, Any]) -> None:
    for name in [*expected, *(n for n in found if n not in expected)]:
        if found.get(name) != expected.get(name):
            raise LoadError(
                f"{what} differs in tensor '{name}': the model has {found.get(name, 'none')}, the file expects "
                f"{expected.get(name, 'none')}{_version_hint(manifest)}"
            )


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a model is."""
    from surgeon import __version__

    return {"surgeon": __version__, "torch": torch.__version__, "timm": timm.__version__}


def _version_hint(manifest: Any) -> str:
    saved = manifest.get("versions", {}) if isinstance(manifest, dict) else {}
    differ = [f"{k} {saved.get(k)} there, {v} here" for k, v in versions().items() if saved.get(k) != v]
    return f" (versions differ: {'; '.join(differ)})" if differ else ""
