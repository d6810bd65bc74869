"""Files that survive a kill: written beside their place and moved there in one step.

Apart from training and running, which both keep folders that a later call must be able to continue.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from surgeon.errors import LoadError, SurgeonError


@contextmanager
def _in_one_step(path: Path) -> Iterator[Path]:
    """Give a name beside `path`; what lies there in the end takes its place, and a failure leaves the old one."""
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors have their own for a full disk
        with suppress(OSError):
            beside.unlink()
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise SurgeonError(f"cannot write {path}: {reason}; make room or name another folder, then go on") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, never a part."""
    with _in_one_step(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_weights(path: Path, module: nn.Module) -> None:
    """Write a module's `state_dict` as safetensors in one step; tensors shared under several names are written each."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    with _in_one_step(path) as beside:
        save_file(tensors, beside)


def read_weights(path: Path, module: nn.Module) -> None:
    """Read what `write_weights` wrote into a module of the same structure.

    Raises:
        LoadError: When the file is damaged, or its names or shapes are not the module's.
    """
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{path}: damaged or not there ({error}); remove that folder and run again") from None
    except RuntimeError as error:
        raise LoadError(f"{path}: holds the weights of another model: {error}; use another folder") from None


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and numbers (an optimiser's state) in one step."""
    with _in_one_step(path) as beside:
        torch.save(dict(state), beside)
