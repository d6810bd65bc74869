"""The files of a perceptual distance: its weights as safetensors, and how they were made as JSON; nothing is unpickled.

Apart from the distance, which says what is in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import surgeon
from analysis.opening import versions_of
from surgeon.errors import AnalysisError, LoadError
from surgeon.storage import replace_file, sweep, write_tensors

ABOUT, BACKBONE, SCHEMA = "perceptual.json", "backbone", 1
KEYS: dict[str, Any] = {
    "form": str, "eps": float, "size": (list, type(None)), "taps": list, "mean": list, "std": list, "made": dict,
    "backbone": dict, "file": dict,
}  # fmt: skip
TAP = {"path": str, "channels": int, "last": bool, "before": bool}  # as perceptual_taps.Tap
ENTRIES: dict[str, Callable[[Any], bool]] = {
    "taps": lambda tap: isinstance(tap, dict) and {key: type(value) for key, value in tap.items()} == TAP,
    **dict.fromkeys(("mean", "std", "size"), lambda value: type(value) in (int, float)),
}


def write_distance(folder: Path, about: dict[str, Any], raw: Tensor, backbone: nn.Module, whole: bool) -> Path:
    """Write the weights, what they belong to, and on demand the network; an older distance is replaced at once.

    Args:
        folder: Made where it is not there.
        about: Plain values.
        raw: The parameter.
        backbone: The network, of which values are kept as a digest.
        whole: Whether it is written too.

    Raises:
        AnalysisError: When the folder cannot be written.
        SurgeonError: When the network cannot be saved.
    """
    folder = folder.expanduser()
    config = getattr(backbone, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else None
    described = {"class": type(backbone).__name__, "architecture": name, "digest": digest_of(backbone), "saved": whole}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if whole:
            surgeon.save(backbone, folder / BACKBONE)
        file = write_tensors(folder, "weights", {"raw": raw.cpu().contiguous()})
        content = {"schema": SCHEMA, **about, "backbone": described, "versions": versions_of(), "file": file}
        replace_file(folder / ABOUT, f"{json.dumps(content, indent=1)}\n".encode())
        sweep(folder, {file["name"]})
    except OSError as error:
        raise AnalysisError(f"cannot save the distance to {folder}: {error.strerror or error}") from error
    return folder


def read_distance(folder: Path, model: Any = None) -> tuple[dict[str, Any], Tensor, Any]:
    """Read what was written: the plain values, the parameter, and the network, given or saved.

    Raises:
        LoadError: When a file is missing, cut short or edited, or there is no network.
    """
    folder = folder.expanduser()
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}; name a folder written by distance.save") from error
    except ValueError as error:
        raise LoadError(f"{path} is no JSON: {error}; restore it from a copy") from error
    wrong = [key for key, kind in KEYS.items() if not isinstance(about, dict) or not isinstance(about.get(key), kind)]
    wrong += [] if wrong else [key for key, fine in ENTRIES.items() if not all(map(fine, about[key] or []))]
    if wrong or about.get("schema") != SCHEMA:
        raise LoadError(f"{path}: '{(wrong or ['schema'])[0]}' is missing or of another kind; restore it from a copy")
    raw = _tensors(folder / Path(str(about["file"].get("name"))).name, about["file"].get("sha256"))
    if model is None:
        if not about["backbone"].get("saved"):
            raise LoadError(f"{folder} holds weights only; pass the network they belong to, model=")
        model = surgeon.load(folder / BACKBONE)
    return about, raw, model


def _tensors(path: Path, digest: Any) -> Tensor:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}; it belongs to {ABOUT}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise LoadError(f"{path} is cut short or was edited ({len(data)} bytes); restore it from a copy")
    raw: Tensor = safetensors.torch.load(data)["raw"]
    return raw


def check_backbone(backbone: nn.Module, about: dict[str, Any], weights: int, channels: int, strict: bool) -> None:
    """Refuse a network that the weights do not belong to.

    Raises:
        LoadError: Likewise.
    """
    kind, known = type(backbone).__name__, about["backbone"]
    if weights != channels:
        raise LoadError(f"the taps of this {kind} have {channels} channels, and {weights} weights were saved")
    if strict and digest_of(backbone) != known.get("digest"):
        raise LoadError(
            f"the weights were learned on a {known.get('architecture') or known.get('class')} with other values than "
            f"this {kind} has; pass that very network, or strict=False"
        )


def digest_of(module: nn.Module) -> str:
    """Tell one network's values from another's.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> digest_of(one) == digest_of(one), digest_of(one) == digest_of(other)
        (True, False)
    """
    found = hashlib.blake2b(type(module).__name__.encode(), digest_size=12)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
