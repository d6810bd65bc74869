"""Load a saved model: every field, file and tensor is checked, and what is wrong is named.

A model that the user gives is touched only where all fits: the surgery is performed on a copy without memory first.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.building import (
    Builder,
    Shapes,
    build,
    in_words,
    library_of,
    replay,
    shapes_of_state,
    take_precision,
    weightless,
)
from surgeon.change import Record
from surgeon.errors import LoadError, SurgeonError
from surgeon.host import tell_operated, unwrap
from surgeon.ledger import Ledger
from surgeon.manifest import damaged, read_manifest, same_versions, version_hint
from surgeon.randomness import generators_kept
from surgeon.storage import Saved, read_checkpoint, read_tensors
from surgeon.structure import first_difference, first_operation, forward_of, structure

Tensors = dict[str, Tensor]


def load(path: str | Path, model: nn.Module | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a saved model: build, replay the surgery, load the weights strictly.

    Args:
        path: A folder written by :func:`save`, or the ``.pt`` file of an operated ultralytics object.
        model: The untouched model to operate, for models whose builder is not known; it is changed in place.
        device: Where the result lives.

    Returns:
        The model in evaluation mode; of ultralytics the object (``YOLO``, ``RTDETR``) around it.

    Raises:
        LoadError: When a file is missing, damaged or edited, when a field, a tensor or the device does not fit, or when
            ``model`` is needed or computes something else.
    """
    path = Path(path).expanduser()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LoadError(f"{path}: cannot load to device {device!r}: {str(error).splitlines()[0]}") from error
    if not path.exists():
        raise LoadError(f"there is no file or folder {path}; name what surgeon.save or the object's own save wrote")
    saved = read_checkpoint(path) if path.is_file() else _read_folder(path)
    base = rebuild(path, saved, model).to(device).eval()
    if model is not None:
        tell_operated(model)
        return model
    builder: Builder | None = saved.manifest["builder"]
    if builder is None:
        return base
    return library_of(builder)[1].dress(base, builder, path, saved.more)


def _read_folder(folder: Path) -> Saved:
    manifest = read_manifest(folder)
    held = {"weights": read_tensors(folder, manifest, "weights")}
    if "buffers" in manifest["files"]:
        held["buffers"] = read_tensors(folder, manifest, "buffers")
    if manifest["keep_originals"]:
        held["originals"] = read_tensors(folder, manifest, "originals")
    return Saved(manifest, held, {})


def rebuild(path: Path, saved: Saved, model: nn.Module | None = None) -> nn.Module:
    """The module that was ``saved`` at ``path``; torch's random numbers are as before.

    Raises:
        LoadError: As :func:`load`.
    """
    manifest = saved.manifest
    values = {**saved.tensors["weights"], **saved.tensors.get("buffers", {})}
    originals = {**values, **saved.tensors["originals"]} if manifest["keep_originals"] else None
    with generators_kept():
        base = _base(manifest, model, path)
        if model is not None:
            twin = weightless(copy.deepcopy(base))
            _operate(twin, path, manifest, values, None)
            _compare_forward(twin, path, manifest)
        _operate(base, path, manifest, values, originals)
        _put(base, values)
        _freeze(base, path, manifest, "frozen")
    return base


def _operate(
    base: nn.Module, folder: Path, manifest: dict[str, Any], values: Tensors, originals: Tensors | None
) -> None:
    """Replay the surgery on ``base``, filled with ``originals`` before, and check what comes out."""
    if manifest["shapes"] is not None:
        _compare(shapes_of_state(base), manifest["shapes"], f"{folder}: the model to operate", manifest)
    take_precision(base, values)
    if originals is not None:
        found = shapes_of_state(base)
        held = _shapes({name: originals[name] for name in found if name in originals})
        _compare(held, found, f"{folder}", manifest)
        _put(base, originals)
        _freeze(base, folder, manifest, "frozen_before")
    if manifest["record"] is not None:
        _replay_saved(base, folder, manifest)
    state = shapes_of_state(base)
    transient = dict(base.named_buffers()).keys() - state.keys()
    _compare(
        state, _shapes({n: t for n, t in values.items() if n not in transient}), f"{folder}: its weights", manifest
    )
    if differs := first_difference(manifest["structure"], structure(base)):
        raise LoadError(f"{folder}: the model to operate is another: {differs}{version_hint(manifest)}")


def _put(model: nn.Module, values: Tensors) -> None:
    """Load the state dict; buffers outside it are caches: they are set where the model has them in the same shape."""
    state = model.state_dict().keys()
    model.load_state_dict({name: values[name] for name in state})
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name not in state and name in values and buffer.shape == values[name].shape:
                buffer.copy_(values[name])


def _freeze(model: nn.Module, folder: Path, manifest: dict[str, Any], field: str) -> None:
    parameters, names = dict(model.named_parameters()), manifest[field]
    if strange := [name for name in names if name not in parameters]:
        raise damaged(folder, field, strange)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in names)


def _base(manifest: dict[str, Any], model: nn.Module | None, folder: Path) -> nn.Module:
    if model is not None:
        module = unwrap(model)
        if Ledger.of(module) is not None:
            raise LoadError(f"{folder}: the model given was operated already; pass it untouched")
        return module
    builder: Builder | None = manifest["builder"]
    if builder is None:
        raise LoadError(
            f"{folder} does not know how its model was built ({manifest['builder_note']}); pass load(path, model=...) "
            "with the model as it was before surgery, or build it with surgeon.create_model before saving"
        )
    try:
        return build(builder)
    except Exception as error:
        raise LoadError(f"{folder}: {in_words(builder)} fails: {error}{version_hint(manifest)}") from error


def _replay_saved(base: nn.Module, folder: Path, manifest: dict[str, Any]) -> None:
    record, size = Record.from_dict(manifest["record"]), tuple(manifest["input_size"])
    try:
        replay(base, record, size, manifest["keep_originals"])
    except SurgeonError as error:
        raise LoadError(
            f"{folder}: the recorded surgery does not fit the model: {error}{version_hint(manifest)}"
        ) from error


def _compare_forward(operated: nn.Module, folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse a model whose code does something else; other versions of the libraries may put the same otherwise."""
    if manifest["forward"] is None or not same_versions(manifest):
        return
    if differs := first_operation(manifest["forward"], forward_of(operated, tuple(manifest["input_size"]))):
        raise LoadError(
            f"{folder}: the model given computes something else: {differs}; pass it built and set as it was before"
        )


def _shapes(tensors: dict[str, Tensor]) -> Shapes:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _compare(found: Shapes, expected: Shapes, what: str, manifest: dict[str, Any]) -> None:
    for name in dict.fromkeys([*found, *expected]):
        if found.get(name) != expected.get(name):
            here, there = (tuple(shapes[name]) if name in shapes else "none" for shapes in (found, expected))
            raise LoadError(
                f"{what} differs in tensor '{name}': the model has {here}, the file expects {there}"
                f"{version_hint(manifest)}"
            )
