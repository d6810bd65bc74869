"""Save and load an operated model: JSON and safetensors, no pickle, no module.

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

from surgeon.building import Builder, Shapes, build, builder_of, shapes_of_state
from surgeon.change import Record
from surgeon.errors import LoadError, SurgeonError
from surgeon.host import Size, input_sizes, unwrap
from surgeon.ledger import Ledger
from surgeon.manifest import MANIFEST, SCHEMA, damaged, read_manifest, version_hint, versions
from surgeon.randomness import generators_kept
from surgeon.recipe import Recipe
from surgeon.rewriting import apply
from surgeon.storage import read_tensors, replace_file, sweep, write_tensors
from surgeon.structure import first_difference, structure


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write ``model`` to ``folder``, so that :func:`load` rebuilds it in a fresh process.

    Args:
        model: Operated or not.
        folder: Made when it does not exist; an older model in it is replaced atomically.

    Returns:
        The folder.

    Raises:
        SurgeonError: When ``folder`` is a file or cannot be written, or the model was lowered.

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
    ledger = Ledger.of(module)
    if ledger is not None and any(change.op == "lower" for change in ledger.record.changes):
        raise SurgeonError("cannot save a lowered model: save the one it was made from; lower() is quick to repeat")
    try:
        _write(module, ledger, folder)
    except OSError as error:
        raise SurgeonError(
            f"cannot save to {folder}: {error.strerror or error}; an older model in it is as it was"
        ) from error
    return folder


def _write(module: nn.Module, ledger: Ledger | None, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    files = {"weights": write_tensors(folder, "weights", weights)}
    keep = ledger is not None and ledger.log is not None
    before = _undone(module) if keep else None if ledger else module
    if keep and before is not None:
        files["originals"] = write_tensors(folder, "originals", _originals(before, weights))
    manifest = {
        "schema": SCHEMA,
        "versions": versions(),
        **_how_built(module, before, ledger),
        "input_size": list(ledger.input_size) if ledger else None,
        "keep_originals": keep,
        "record": ledger.record.to_dict() if ledger else None,
        "structure": structure(module),
        "frozen": _frozen(module),
        "frozen_before": _frozen(before) if before is not None else [],
        "files": files,
    }
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    sweep(folder, {str(file["name"]) for file in files.values()})


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
    manifest = read_manifest(folder)
    with generators_kept():
        base = _rebuild(folder, manifest, model)
    return base.to(device).eval()


def _rebuild(folder: Path, manifest: dict[str, Any], model: nn.Module | None) -> nn.Module:
    weights = read_tensors(folder, manifest, "weights")
    originals = {**weights, **read_tensors(folder, manifest, "originals")} if manifest["keep_originals"] else None
    base = _base(manifest, model, folder)
    if model is not None:  # of which nothing is touched unless all fits
        _operate(copy.deepcopy(base).to("meta"), folder, manifest, weights, None)
    _operate(base, folder, manifest, weights, originals)
    base.load_state_dict(weights)
    _freeze(base, folder, manifest, "frozen")
    return base


def _operate(
    base: nn.Module,
    folder: Path,
    manifest: dict[str, Any],
    weights: dict[str, Tensor],
    originals: dict[str, Tensor] | None,
) -> None:
    """Replay the surgery on ``base``, filled with ``originals`` before, and check what comes out."""
    if manifest["shapes"] is not None:
        _compare(shapes_of_state(base), manifest["shapes"], f"{folder}: the model to operate", manifest)
    for name, tensor in [*base.named_parameters(), *base.named_buffers()]:
        if name in weights and tensor.is_floating_point():
            tensor.data = tensor.data.to(weights[name].dtype)
    if originals is not None:
        _fill(base, folder, manifest, originals)
    if manifest["record"] is not None:
        _replay_saved(base, folder, manifest)
    _compare(shapes_of_state(base), _shapes(weights), f"{folder}: its weights", manifest)
    if differs := first_difference(manifest["structure"], structure(base)):
        raise LoadError(f"{folder}: the model to operate is another: {differs}{version_hint(manifest)}")


def _fill(base: nn.Module, folder: Path, manifest: dict[str, Any], originals: dict[str, Tensor]) -> None:
    """Values and ``requires_grad`` of before the surgery."""
    found = shapes_of_state(base)
    _compare(_shapes({name: originals[name] for name in found if name in originals}), found, f"{folder}", manifest)
    base.load_state_dict({name: originals[name] for name in found})
    _freeze(base, folder, manifest, "frozen_before")


def _freeze(model: nn.Module, folder: Path, manifest: dict[str, Any], field: str) -> None:
    parameters, names = dict(model.named_parameters()), manifest[field]
    if strange := [name for name in names if name not in parameters]:
        raise damaged(folder, field, strange)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in names)


def _how_built(module: nn.Module, before: nn.Module | None, ledger: Ledger | None) -> dict[str, Any]:
    """The builder, checked, and the shapes of the tensors before surgery."""

    def replay(base: nn.Module) -> None:
        if ledger is not None:
            _replay(base, ledger.record, ledger.input_size, keep=False)

    builder, note, built = builder_of(module, ledger.input_size if ledger else _size_of(module), replay)
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
        raise LoadError(f"{folder}: builder {builder} fails: {error}{version_hint(manifest)}") from error


def _replay_saved(base: nn.Module, folder: Path, manifest: dict[str, Any]) -> None:
    record, size = Record.from_dict(manifest["record"]), tuple(manifest["input_size"])
    try:
        _replay(base, record, size, manifest["keep_originals"])
    except SurgeonError as error:
        raise LoadError(
            f"{folder}: the recorded surgery does not fit the model: {error}{version_hint(manifest)}"
        ) from error


def _replay(base: nn.Module, record: Record, size: Size, keep: bool) -> None:
    """Operate on ``base`` by the resolved steps of ``record``, and let it carry the record itself."""
    for i, step in enumerate(record.recipe):
        steps = Recipe.parse([step]).steps
        apply(base, Recipe(steps, keep_originals=keep), size if i == 0 else None)
    ledger = Ledger.of(base) or Ledger.open(base, size, keep)
    ledger.record = record
    ledger.hang_on(base)


def _undone(module: nn.Module) -> nn.Module:
    """A copy of ``module`` as it was before surgery."""
    twin = copy.deepcopy(module)
    ledger = Ledger.of(twin)
    if ledger is not None:
        ledger.take_back(twin)
    return twin


def _originals(before: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model before surgery that differ from the saved ones."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in before.state_dict().items()}
    return {name: t for name, t in tensors.items() if name not in weights or not _equal(t, weights[name])}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))


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
