"""``YOLO`` objects that keep their surgery when they train, save and load.

An operated object stays an instance of its class: a class derived from it gives its own ``train``, ``save``, ``load``
and ``tune``. Entries of the same names in its ``__dict__`` stand guard: ``YOLO(operated)`` shares that dict but not the
derived class, and would train a stock network without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn

from surgeon.building import replay
from surgeon.derived import derive, hows, own_class, underived
from surgeon.errors import LoadError, RefusedError, SurgeonError
from surgeon.ledger import Ledger
from surgeon.yolo.checkpoints import OPENED, read_as_ultralytics, reading, write
from surgeon.yolo.guarding import stand_down
from surgeon.yolo.training import insist_on_recipe, operated_trainer

RESUMED = ("ema", "epoch", "optimizer", "scaler", "stopper", "updates", "best_fitness")  # the state of a training
GUARDED = ("train", "save", "load", "tune", "reset_weights")


@dataclass(frozen=True)
class Operated:
    """How the class of an operated object is derived."""

    child = ""

    def members(self, module: nn.Module) -> dict[str, Any]:
        """Its methods; as properties they come before the guards in the object's ``__dict__``."""
        base = type(module)
        own: list[Callable[..., Any]] = [partial(_train, base), _save, partial(_load, base), _tune, _reset]
        return {name: _method(do, getattr(base, name)) for name, do in zip(GUARDED, own, strict=True)}


def _method(function: Callable[..., Any], like: Any) -> property:
    def bound(self: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return function(self, *args, **kwargs)

        call.__name__, call.__doc__ = like.__name__, like.__doc__
        return MethodType(call, self)

    return property(bound)


def _guard(verb: str, /, *_: Any, **__: Any) -> Any:
    raise RefusedError(
        f"cannot {verb}: this object shares an operated network and would lose its surgery; use the object that "
        f"surgeon.apply returned, or surgeon.load, instead of YOLO(object)"
    )


def forget_training(thing: Any) -> None:
    """Drop what a training left to be resumed: it is of other parameters."""
    thing.ckpt = {name: value for name, value in (thing.ckpt or {}).items() if name not in RESUMED}


def keep_surgery(thing: Any) -> None:
    """Derive the class of an operated object, and put up the guards."""
    stand_down(thing.model)
    if not any(isinstance(how, Operated) for how in hows(thing)):
        derive(thing, Operated())
    for name in GUARDED:
        thing.__dict__[name] = partial(_guard, name)
    thing.predictor = None  # it holds a copy of the network as it was


def forget_surgery(thing: Any) -> None:
    """Take the derived class and the guards away."""
    stand_down(thing.model)
    if any(isinstance(how, Operated) for how in hows(thing)):
        underived(thing)
    for name in GUARDED:
        thing.__dict__.pop(name, None)
    thing.predictor = None


def object_around(module: nn.Module, path: Path, more: dict[str, Any]) -> Any:
    """Ultralytics' object around a network read from ``path``, as if its own loader had opened it."""
    from ultralytics import YOLO

    if path.is_file() and path.suffix != ".pt":
        raise LoadError(f"{path}: ultralytics knows checkpoints by their suffix; rename it to {path.stem}.pt")
    name = str(path if path.suffix == ".pt" else path / "model.pt")
    with reading(), OPENED.set_to({name: read_as_ultralytics(module, name, more)}):
        thing = YOLO(name)
    if path.suffix != ".pt":  # a folder of ours is no file ultralytics could train from
        thing.overrides["model"] = thing.model_name = thing.model.yaml.get("yaml_file", "model.yaml")
    if Ledger.of(module) is not None:
        keep_surgery(thing)
    return thing


def plain_around(thing: Any, module: nn.Module) -> Any:
    """A plain object of the same kind around another network: no derived class, no guards, nothing shared."""
    new: Any = object.__new__(own_class(thing))
    left_out = (*GUARDED, "_modules", "predictor", "trainer", "metrics", "ckpt")
    new.__dict__ = {name: copy.copy(value) for name, value in thing.__dict__.items() if name not in left_out}
    new.callbacks = {event: list(calls) for event, calls in thing.callbacks.items()}
    new.__dict__.update(_modules={}, predictor=None, trainer=None, metrics=None, ckpt={})
    new.model = module
    if foreign := [path for path, part in module.named_modules() if _is_ours(part)]:
        new.__dict__["save"] = partial(_not_stock, foreign[0], type(module.get_submodule(foreign[0])).__name__)
    for name in ("train", "tune"):
        new.__dict__[name] = partial(_for_inference, name)
    return new


def _is_ours(part: nn.Module) -> bool:
    return type(part).__module__.startswith("surgeon.") or bool(hows(part))


def _for_inference(verb: str, /, *_: Any, **__: Any) -> Any:
    raise RefusedError(
        f"cannot {verb}: a lowered object is for inference, and ultralytics would build it anew from its yaml, with "
        "other kernels; train the operated object it was lowered from"
    )


def _not_stock(path: str, kind: str, /, *_: Any, **__: Any) -> Any:
    raise RefusedError(
        f"cannot save: the lowered network still holds layers that ultralytics alone cannot read, '{path}' ({kind}) "
        "first; surgeon.record tells why they stay; use the operated object it was lowered from"
    )


def _train(base: type, self: Any, trainer: Any = None, **kwargs: Any) -> Any:
    """Train by ultralytics' own trainer, which keeps the surgery and starts from the weights in memory."""
    network = self.model
    ledger = Ledger.of(network)
    if ledger is None:
        raise RefusedError("the network of this object was exchanged after the surgery: surgeon.apply it again")
    if self.model.is_fused():
        raise RefusedError("cannot train a fused network: its norms are gone; train the object as it was before fuse()")
    before = self.ckpt
    if not self.ckpt:
        self.ckpt = {"model": network}  # so that training starts from memory, for objects built from a yaml too
    keeps = operated_trainer(trainer or self._smart_load("trainer"), ledger.record, ledger.input_size)
    try:
        with reading():
            result = base.train(self, trainer=keeps, **kwargs)  # type: ignore[attr-defined]
    except SurgeonError:
        self.model, self.ckpt = network, before
        raise
    stand_down(self.model)
    trained = Ledger.of(self.model)
    if trained is None or trained.record.recipe != ledger.record.recipe:
        raise RefusedError("training ended with a network that lost its surgery; please report this with your versions")
    if self.model is not network and trained.log is None and _shapes(self.model) == _shapes(network):
        trained.log, trained.before = copy.deepcopy(ledger.log), ledger.before  # so that undo still works
    return result


def _shapes(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _save(self: Any, filename: str | Path = "saved_model.pt") -> None:
    """Write a checkpoint that holds data and no module; ``surgeon.load`` opens it."""
    self._check_is_pytorch_model()
    if self.model.is_fused():
        raise RefusedError("cannot save a fused network: it could not be built again; save it before fuse()")
    path = Path(filename).expanduser().resolve()
    if path.suffix != ".pt" or (path.exists() and not path.is_file()):
        raise RefusedError(f"cannot save to {filename}: name a file that ends in .pt, as ultralytics knows checkpoints")
    write(self.model, path, {name: value for name, value in self.ckpt.items() if name not in ("model", "ema")})


def _load(base: type, self: Any, weights: Any = "yolo26n.pt") -> Any:
    """Take over weights; those of an unoperated network are operated on first, as this one was."""
    ledger, found = Ledger.of(self.model), None
    with reading():
        if isinstance(weights, (str, Path)):
            from ultralytics.nn import tasks

            weights, found = tasks.load_checkpoint(weights)
        source: nn.Module = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        if ledger is not None and Ledger.of(source) is None:
            source = copy.deepcopy(source)
            replay(source, ledger.record, ledger.input_size, keep=False)
        elif ledger is not None:
            insist_on_recipe(source, ledger.record)
        base.load(self, source)  # type: ignore[attr-defined]
    if found is not None:  # as ultralytics: a training can be resumed from the file
        self.ckpt, self.ckpt_path = found, getattr(weights, "pt_path", None)
    return self


def _reset(self: Any) -> Any:
    """Refuse: ultralytics resets the layers that it knows, and would leave others as they are."""
    raise RefusedError(
        "cannot reset the weights of an operated object: its own layers would stay as they are; surgeon.undo it, "
        "reset_weights(), and apply again"
    )


def _tune(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse: ultralytics tunes in fresh processes, which build the network anew from its yaml."""
    raise RefusedError(
        "cannot tune an operated object: tune() starts fresh processes that would train the network without its "
        "surgery; tune the original, then train the operated object with the settings found"
    )


__all__ = ["forget_surgery", "keep_surgery", "object_around", "plain_around"]
