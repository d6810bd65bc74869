"""Save an operated model: JSON and safetensors, no pickle, no module.

A folder holds ``recipe.json`` (who built the model, the steps with resolved paths, versions, digests) and the tensors
in files named by their digest. ``recipe.json`` is replaced last and atomically, so at any moment the folder holds a
whole model: the old one or the new one.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.building import builder_of, replay, shapes_of_state
from surgeon.errors import SurgeonError
from surgeon.host import Size, input_sizes, unwrap
from surgeon.ledger import Ledger
from surgeon.manifest import MANIFEST, SCHEMA, versions
from surgeon.storage import replace_file, sweep, write_tensors
from surgeon.structure import forward_of, structure


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write ``model`` to ``folder``, so that :func:`load` rebuilds it in a fresh process.

    Args:
        model: Operated or not.
        folder: Made when it does not exist; an older model in it is replaced atomically.

    Returns:
        The folder.

    Raises:
        SurgeonError: When ``folder`` is a file or cannot be written, when the model was lowered, lies on the meta
            device, keeps more than tensors in its state, or lost an operated module; an older model stays as it was.

    Example:
        >>> import tempfile, surgeon
        >>> model = surgeon.create_model("test_resnet", "spd")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     surgeon.record(surgeon.load(save(model, folder))).count("rewritten")
        8
    """
    module, folder = unwrap(model), Path(folder).expanduser()
    _insist_not_lowered(Ledger.of(model))
    if folder.exists() and not folder.is_dir():
        raise SurgeonError(f"cannot save to {folder}: it is a file; name a folder")
    tensors, manifest = contents(module)
    try:
        _write(folder, tensors, manifest)
    except OSError as error:
        raise SurgeonError(
            f"cannot save to {folder}: {error.strerror or error}; an older model in it is as it was"
        ) from error
    return folder


def _write(folder: Path, tensors: dict[str, dict[str, Tensor]], manifest: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest["files"] = {stem: write_tensors(folder, stem, held) for stem, held in tensors.items()}
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    sweep(folder, {str(file["name"]) for file in manifest["files"].values()})


def contents(module: nn.Module, originals: bool = True) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What is saved of ``module``: the tensors, and the manifest that says how to rebuild it.

    Args:
        module: Operated or not.
        originals: Whether what was replaced is saved too, so that the loaded model can be undone.

    Raises:
        SurgeonError: As :func:`save`.
    """
    ledger = Ledger.of(module)
    _insist_not_lowered(ledger)
    tensors = values_of(module)
    keep = originals and ledger is not None and ledger.log is not None
    before = _undone(module) if keep else None if ledger else module
    if keep and before is not None:
        old = {**_values(before.state_dict()), **_values(_transient(before))}
        tensors["originals"] = _others(old, {name: t for held in tensors.values() for name, t in held.items()})
    size = ledger.input_size if ledger else _size_of(module)
    forward = forward_of(module, size)
    manifest = {
        "schema": SCHEMA,
        "versions": versions(),
        **_how_built(module, before, ledger, size, forward),
        "input_size": list(size) if size else None,
        "keep_originals": keep,
        "record": ledger.record.to_dict() if ledger else None,
        "structure": structure(module),
        "forward": forward,
        "frozen": _frozen(module),
        "frozen_before": _frozen(before) if before is not None else [],
    }
    return tensors, manifest


def _insist_not_lowered(ledger: Ledger | None) -> None:
    if ledger is not None and any(change.op == "lower" for change in ledger.record.changes):
        raise SurgeonError("cannot save a lowered model: save the one it was made from; lower() is quick to repeat")


def values_of(module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors of ``module`` as they are saved: its state dict, and the buffers outside it where there are any."""
    buffers = _values(_transient(module))
    return {"weights": _values(module.state_dict()), **({"buffers": buffers} if buffers else {})}


def _how_built(
    module: nn.Module, before: nn.Module | None, ledger: Ledger | None, size: Size | None, forward: list[str] | None
) -> dict[str, Any]:
    """The builder, checked, and the shapes of the tensors before surgery."""

    def operate(base: nn.Module) -> None:
        if ledger is not None:
            replay(base, ledger.record, ledger.input_size, keep=False)

    builder, note, built = builder_of(module, size, forward, operate)
    base = before if before is not None else built
    shapes = None if base is None else shapes_of_state(base)
    return {"builder": builder, "builder_note": note, "shapes": shapes}


def _size_of(module: nn.Module) -> Size | None:
    try:
        return input_sizes(module)[0]
    except SurgeonError:
        return None


def _frozen(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if not p.requires_grad]


def _undone(module: nn.Module) -> nn.Module:
    """A copy of ``module`` as it was before surgery."""
    twin = copy.deepcopy(module)
    ledger = Ledger.of(twin)
    try:
        if ledger is not None:
            ledger.take_back(twin)
    except SurgeonError as error:
        raise SurgeonError(f"cannot save, for the saved model could not be undone: {error}") from error
    return twin


def _transient(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that the state dict leaves out."""
    state = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in state}


def _values(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors on the CPU, as they are written."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise SurgeonError(f"cannot save '{name}' of the state dict: it is a {kind}, and files hold tensors only")
        if tensor.is_meta:
            raise SurgeonError(f"cannot save '{name}': it is on the meta device and has no values; load weights first")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _others(tensors: dict[str, Tensor], saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of ``tensors`` that differ from the ``saved`` ones."""
    return {name: t for name, t in tensors.items() if name not in saved or not _equal(t, saved[name])}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
