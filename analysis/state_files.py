"""Files that keep the values of a network: what kinds there are, and how each is read without running code.

Apart from :mod:`analysis.states`, which matches what is read here to a model. Values are read when they are asked for;
before, only what says the names and shapes, where the format allows.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from surgeon.errors import AnalysisError
from surgeon.storage import is_checkpoint, read_checkpoint

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
WRAPPED = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "ema",
    "model",
)  # averaged first, as in timm
NUMBER = re.compile(r"(?:epoch[-_]?)?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Kept:
    """One kept state of a network.

    Attributes:
        label: Epochs trained, where known; else the name of the file; "" where only the position tells.
        where: In words, for messages.
        shapes: Of every tensor, by the names the file has.
        read: Reads the tensors, to the CPU.
        caches: Names of tensors that are no part of the state proper; they count where the model has them.
        live: Whether the tensors are in use elsewhere.
    """

    label: str
    where: str
    shapes: Shapes
    read: Callable[[], Tensors]
    caches: frozenset[str] = frozenset()
    live: bool = False


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def unpacked(held: Any, where: str) -> Tensors:
    """The tensors of a state dict, of a checkpoint that holds one beside other things, or of a module.

    Of several the averaged ones count, as timm reads its checkpoints. What is no tensor is left out.

    Raises:
        AnalysisError: When there is no tensor.

    Example:
        >>> unpacked({"epoch": 3, "state_dict": {"weight": torch.zeros(2)}}, "a file")
        {'weight': tensor([0., 0.])}
    """
    if isinstance(held, nn.Module):
        return {**unpacked(held.state_dict(), where), **dict(held.named_buffers())}
    inner = (held[key] for key in WRAPPED if key in held) if isinstance(held, Mapping) else ()
    for one in inner:
        if isinstance(one, nn.Module) or (isinstance(one, Mapping) and one):
            return unpacked(one, where)
    found = {str(k): t for k, t in held.items() if isinstance(t, Tensor)} if isinstance(held, Mapping) else {}
    if not found:
        raise AnalysisError(
            f"{where} holds no tensors by name; save model.state_dict(), by torch.save or as safetensors"
        )
    return found


def label_of(path: Path) -> str:
    """The number in a name like ``epoch_0010.pt`` or ``10.pt``; else the name without what says its kind."""
    name = path.name.removesuffix(".tar")
    stem = Path(name).stem if Path(name).suffix in (*PICKLES, ".safetensors") else name
    number = NUMBER.fullmatch(stem)
    return str(int(number[1])) if number else stem


def header(path: Path) -> Shapes:
    """Names and shapes in a safetensors file.

    Raises:
        AnalysisError: When it is damaged or not there.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AnalysisError(f"{path} is damaged or not there ({error}); restore it from a copy") from None


def file_of(path: Path) -> Kept:
    """The state one file keeps.

    Raises:
        AnalysisError: When it is damaged, of no kind that is known, or holds more than data.
        LoadError: When it is a damaged checkpoint of an operated detector.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": nn.Linear(3, 2).state_dict()}, Path(folder) / "epoch_0010.pt")
        ...     kept = file_of(Path(folder) / "epoch_0010.pt")
        >>> kept.label, kept.shapes
        ('10', {'weight': (2, 3), 'bias': (2,)})
    """
    if path.suffix == ".safetensors":
        return Kept(label_of(path), str(path), header(path), partial(_safetensors, path))
    if is_checkpoint(path):
        return _operated(path)
    if path.suffix not in PICKLES:
        raise AnalysisError(f"{path}: files of a network end in .safetensors, {', '.join(PICKLES)}; rename it")
    if b"ultralytics.nn" in _pickled(path):
        held = _of_ultralytics(path)
        shapes = shapes_of(unpacked(held, str(path)))
        return Kept(_epoch(held, path), str(path), shapes, lambda: unpacked(_of_ultralytics(path), str(path)))
    shapes = shapes_of(unpacked(_torch_file(path, "meta"), str(path)))
    return Kept(label_of(path), str(path), shapes, lambda: unpacked(_torch_file(path, "cpu"), str(path)))


def _safetensors(path: Path) -> Tensors:
    try:
        return load_file(path)  # type: ignore[no-any-return]
    except (SafetensorError, OSError) as error:
        raise AnalysisError(f"{path} is damaged or not there ({error}); restore it from a copy") from None


def _operated(path: Path) -> Kept:
    """A checkpoint of an operated detector."""
    saved = read_checkpoint(path)

    def read() -> Tensors:
        return {name: tensor for held in _parts(read_checkpoint(path).tensors) for name, tensor in held.items()}

    shapes = {name: tuple(tensor.shape) for held in _parts(saved.tensors) for name, tensor in held.items()}
    return Kept(_epoch(saved.more, path), str(path), shapes, read, frozenset(saved.tensors.get("buffers", ())))


def _parts(tensors: Mapping[str, Tensors]) -> Iterator[Tensors]:
    return (tensors[stem] for stem in ("weights", "buffers") if stem in tensors)


def _epoch(held: Mapping[str, Any], path: Path) -> str:
    """How many epochs a network was trained that ultralytics' trainer saved at ``path``.

    The trainer counts from 0 and saves after an epoch, so that ``epoch0.pt`` was trained for one. When a training ends
    it takes the number out of ``last.pt``, whose table of results still tells it.
    """
    epoch, results = held.get("epoch"), held.get("train_results")
    if path.stem != "best" and isinstance(epoch, int) and epoch >= 0:
        return str(epoch + 1)
    done = results.get("epoch") if isinstance(results, Mapping) else None
    if path.stem == "last" and isinstance(done, list) and done:
        return str(int(done[-1]))
    return path.stem


def _pickled(path: Path) -> bytes:
    """The bytes that say which classes a file of torch's holds; nothing where it is an old one."""
    try:
        with zipfile.ZipFile(path) as file:
            return next((file.read(name) for name in file.namelist() if name.endswith("/data.pkl")), b"")
    except (OSError, zipfile.BadZipFile):
        return b""


def _torch_file(path: Path, device: str) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # which timm's training writes
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # it was no pickle to begin with
            raise AnalysisError(f"{path} is damaged, or no file of torch's; restore it from a copy") from None
        raise AnalysisError(
            f"{path} holds more than tensors, numbers and text, such as a whole module, and is not read, for that "
            "would run code; save model.state_dict(), or read it yourself and pass the module"
        ) from None
    except Exception as error:  # of torch, pickle and zipfile
        reason = str(error).partition("\n")[0]
        raise AnalysisError(
            f"{path} is damaged ({type(error).__name__}: {reason:.150}); restore it from a copy"
        ) from None


def _of_ultralytics(path: Path) -> dict[str, Any]:
    """A checkpoint with a pickled network, by ultralytics' own loader that builds no class but its own and torch's."""
    try:
        from ultralytics.nn.tasks import torch_safe_load
    except ImportError:
        raise AnalysisError(f"{path} is of ultralytics, which is missing: pip install 'cnn-surgeon[yolo]'") from None
    try:
        held, _ = torch_safe_load(str(path), safe_only=True)
    except Exception as error:  # of torch, pickle and ultralytics
        reason = str(error).partition("\n")[0]
        raise AnalysisError(
            f"{path} cannot be read ({reason:.150}); open it by YOLO(...) and pass the object"
        ) from None
    return held  # type: ignore[no-any-return]
