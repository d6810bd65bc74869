"""Checkpoints of operated networks that ultralytics' own training writes and reads.

They hold numbers, text and tensors, and no module: stock code then fails to open them instead of giving a wrong model,
or installing a package that happens to be called surgeon. While an operated object trains or loads, :func:`reading`
lets ultralytics' own code open them; everything else is handed on, and nothing stays changed afterwards.
"""

from __future__ import annotations

import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from surgeon.errors import SurgeonError
from surgeon.loading import rebuild
from surgeon.persistence import contents, values_of
from surgeon.storage import Saved, is_checkpoint, read_checkpoint, write_checkpoint
from surgeon.yolo.guarding import stand_guard

Opened = tuple[nn.Module, dict[str, Any]]
STRIPPED = ("optimizer", "best_fitness", "stopper", "updates", "scaler")
_lock = threading.RLock()
_depth = 0


class _Opened:
    """Networks that are served under a name instead of being read from a file."""

    def __init__(self) -> None:
        self.served: dict[str, Opened] = {}

    @contextmanager
    def set_to(self, served: dict[str, Opened]) -> Iterator[None]:
        before, self.served = self.served, {**self.served, **served}
        try:
            yield
        finally:
            self.served = before


OPENED = _Opened()


def write(module: nn.Module, path: Path, more: dict[str, Any], manifest: dict[str, Any] | None = None) -> None:
    """Write ``module`` and what training needs to ``path``; without a ``manifest`` the originals are kept too."""
    if manifest is None:
        tensors, manifest = contents(module)
        insist_on_builder(manifest)
    else:
        tensors = values_of(module)
    try:
        write_checkpoint(path, Saved(manifest, tensors, {**plain(more, "checkpoint"), "model": None, "ema": None}))
    except OSError as error:
        raise SurgeonError(f"cannot write {path}: {error.strerror or error}; an older file is as it was") from error


def manifest_of(module: nn.Module) -> dict[str, Any]:
    """The manifest of ``module`` without its originals, for many checkpoints of one training."""
    _, manifest = contents(module, originals=False)
    insist_on_builder(manifest)
    return manifest


def insist_on_builder(manifest: dict[str, Any]) -> None:
    """A checkpoint must be rebuilt from itself alone.

    Raises:
        SurgeonError: When nobody knows how the network is built.
    """
    if manifest["builder"] is None:
        raise SurgeonError(
            f"cannot write a checkpoint that could be opened again: {manifest['builder_note']}; operate on a network "
            "as ultralytics builds it from its yaml"
        )


def plain(value: Any, where: str) -> Any:
    """``value`` as numbers, text, tensors, lists and dicts.

    Raises:
        SurgeonError: When it holds something else.
    """
    if value is None or (isinstance(value, (bool, int, float, str, Tensor)) and type(value) is not np.float64):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key if isinstance(key, int) else str(key): plain(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part, where) for part in value]
    if isinstance(value, Namespace) or type(value).__name__ == "IterableSimpleNamespace":
        return plain(vars(value), where)
    raise SurgeonError(f"cannot write {where}: it is a {type(value).__name__}; checkpoints hold data only")


def read_as_ultralytics(module: Any, path: str, more: dict[str, Any]) -> Opened:
    """What ultralytics' loader answers for a file: the network with its arguments, and the rest as a dict."""
    from ultralytics.nn.tasks import guess_model_task
    from ultralytics.utils import DEFAULT_CFG_DICT

    task = getattr(module, "task", None) or guess_model_task(module)  # None for RT-DETR's head
    module.args = {**DEFAULT_CFG_DICT, **(more.get("train_args") or {})}
    module.task = task or module.args["task"]
    module.pt_path = path
    return module.eval(), {**more, "model": None, "ema": module}


@contextmanager
def reading() -> Iterator[None]:
    """While open, ultralytics' functions that read and strip checkpoints know those of operated networks too."""
    global _depth
    from ultralytics.engine import model, trainer
    from ultralytics.nn import tasks

    places = [(tasks, "load_checkpoint"), (model, "load_checkpoint"), (trainer, "load_checkpoint")]
    with _lock:
        _depth += 1
        if _depth == 1:
            _put(places, _load_checkpoint)
            _put([(trainer, "strip_optimizer")], _strip_optimizer)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                for place, name in [*places, (trainer, "strip_optimizer")]:
                    setattr(place, name, getattr(place, name).stock)


def _put(places: list[tuple[Any, str]], make: Any) -> None:
    for place, name in places:
        setattr(place, name, make(getattr(place, name)))


def _load_checkpoint(stock: Any) -> Any:
    def load_checkpoint(weight: Any, device: Any = None, inplace: bool = True, fuse: bool = False) -> Opened:
        """As ultralytics', for checkpoints of operated networks too."""
        if str(weight) in OPENED.served:
            return OPENED.served[str(weight)]
        if not is_checkpoint(Path(str(weight))):
            found: Opened = stock(weight, device, inplace, fuse)
            return found
        saved = read_checkpoint(Path(str(weight)))
        network, rest = read_as_ultralytics(rebuild(Path(str(weight)), saved).float(), str(weight), saved.more)
        stand_guard(network)  # whoever it was handed to
        module: Any = network.fuse(verbose=False) if fuse else network  # type: ignore[operator]
        for part in module.modules():
            if hasattr(part, "inplace"):
                part.inplace = inplace
        return module.to(device), rest

    load_checkpoint.stock = stock  # type: ignore[attr-defined]
    return load_checkpoint


def _strip_optimizer(stock: Any) -> Any:
    def strip_optimizer(f: Any = "best.pt", s: str = "", updates: dict[str, Any] | None = None) -> dict[str, Any]:
        """As ultralytics', for checkpoints of operated networks too."""
        if not is_checkpoint(Path(f)):
            found: dict[str, Any] = stock(f, s, updates)
            return found
        from ultralytics.utils import DEFAULT_CFG_KEYS

        saved = read_checkpoint(Path(f))
        args = {name: value for name, value in saved.more["train_args"].items() if name in DEFAULT_CFG_KEYS}
        more = {**saved.more, **dict.fromkeys(STRIPPED), "epoch": -1, "train_args": args, **(updates or {})}
        write_checkpoint(Path(s or f), Saved(saved.manifest, saved.tensors, plain(more, "checkpoint")))
        return more

    strip_optimizer.stock = stock  # type: ignore[attr-defined]
    return strip_optimizer
