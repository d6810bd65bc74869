"""Ultralytics' trainers, kept from rebuilding the network without its surgery.

Only what builds, saves, resumes and reads checkpoints is overridden; the training itself is theirs.
"""

from __future__ import annotations

import copy
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.building import replay
from surgeon.change import Record
from surgeon.derived import Frozen, hows
from surgeon.errors import RefusedError
from surgeon.host import Size
from surgeon.ledger import Ledger
from surgeon.yolo.checkpoints import manifest_of, plain, reading, write
from surgeon.yolo.guarding import stand_down


def operated_trainer(base: type, record: Record, size: Size) -> type:
    """``base``, a trainer of ultralytics', for networks operated as ``record`` says."""
    if not isinstance(base, type):
        raise RefusedError(f"trainer is {base!r}, no class; derive one from ultralytics' trainer")
    base = next(cls for cls in base.__mro__ if not issubclass(cls, OperatedTrainer))  # one made here before is not kept
    return type(base.__name__, (OperatedTrainer, base), {"record": record, "input_size": size})


class OperatedTrainer:
    """What an operated network's trainer does otherwise; the rest comes from the trainer it is mixed into."""

    record: Record
    input_size: Size

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Read a checkpoint of an operated network."""
        resume: Any = self.args.resume  # type: ignore[attr-defined]
        if isinstance(resume, (str, Path)) and not Path(resume).is_file():  # ultralytics would resume the latest run
            raise RefusedError(f"cannot resume: there is no file {resume}; surgeon.load the last.pt of the run")
        with reading():
            super().check_resume(overrides)  # type: ignore[misc]

    def train(self) -> Any:
        """Train."""
        with reading():
            return super().train()  # type: ignore[misc]

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """The operated network, with the weights given, for the data's classes and channels."""
        stock = None if weights is None or Ledger.of(weights) is not None else weights
        if weights is not None and stock is None:
            insist_on_recipe(weights, self.record)
        cfg = copy.deepcopy(dict(cfg) if isinstance(cfg, dict) else cfg)  # the data's classes are written into it
        fresh: nn.Module = super().get_model(cfg=cfg, weights=stock, verbose=verbose)  # type: ignore[misc]
        if weights is not None and stock is None and _like(fresh, weights) and not _other_order(fresh, weights):
            return _trainable(copy.deepcopy(weights), fresh)
        replay(fresh, self.record, self.input_size, keep=stock is not None)
        if weights is not None and stock is None:
            _take_over(fresh, weights)
        return fresh

    def _setup_train(self) -> None:
        super()._setup_train()  # type: ignore[misc]
        network = self._network()
        insist_on_recipe(network, self.record)
        for module in network.modules():
            if any(isinstance(how, Frozen) for how in hows(module)):
                module.requires_grad_(False)
        plain(vars(self.args), "train_args")  # type: ignore[attr-defined]
        self._manifest = manifest_of(network)

    def _network(self) -> nn.Module:
        from ultralytics.utils.torch_utils import unwrap_model

        network: nn.Module = unwrap_model(self.model)  # type: ignore[attr-defined]
        return network

    def save_model(self) -> bool:
        """Write ``last.pt``, and ``best.pt`` where it is: data only, in float32, each in one step."""
        me: Any = self
        ema = _mended(me.ema.ema, self._network())
        state = _training_state(me)
        for path in _files(me):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(ema, path, state, self._manifest)
        return True


def insist_on_recipe(network: nn.Module, record: Record) -> None:
    """Refuse to train a network that was operated in another way than the object.

    Raises:
        RefusedError: When it was, or was not operated at all.
    """
    ledger = Ledger.of(network)
    if ledger is None:
        raise RefusedError(
            f"the network to train, a {type(network).__name__}, was not operated, or is wrapped (distillation is not "
            "supported); train the object that surgeon.apply returned"
        )
    if ledger.record.recipe != record.recipe:
        found, expected = ([str(step) for step in of.recipe] for of in (ledger.record, record))
        raise RefusedError(
            f"the network to train was operated by {found}, this object by {expected}; use weights of the same "
            "surgery, or of an unoperated network"
        )


def _files(trainer: Any) -> list[Path]:
    best = [trainer.best] if trainer.best_fitness == trainer.fitness else []
    due = trainer.save_period > 0 and trainer.epoch % trainer.save_period == 0
    return [trainer.last, *best, *([trainer.wdir / f"epoch{trainer.epoch}.pt"] if due else [])]


def _mended(ema: nn.Module, network: nn.Module) -> nn.Module:
    """The averaged network; where it is not finite, it takes the value of the network trained, as ultralytics does."""
    live = network.state_dict()
    for name, tensor in ema.state_dict().items():
        if not torch.isfinite(tensor).all():
            tensor.copy_(live[name] if torch.isfinite(live[name]).all() else torch.nan_to_num(tensor))
    return ema


def _training_state(trainer: Any) -> dict[str, Any]:
    """What ultralytics' checkpoints hold beside the network."""
    from ultralytics import __version__

    return {
        "epoch": trainer.epoch,
        "best_fitness": trainer.best_fitness,
        "stopper": {"best_fitness": trainer.stopper.best_fitness, "best_epoch": trainer.stopper.best_epoch},
        "updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "train_args": vars(trainer.args),
        "train_metrics": {**trainer.metrics, "fitness": trainer.fitness},
        "train_results": trainer.read_results_csv(),
        "date": datetime.now().astimezone().isoformat(),
        "version": __version__,
    }


def _like(fresh: nn.Module, operated: nn.Module) -> bool:
    """Whether the stock network has the classes and channels of the operated one."""
    return all(fresh.yaml.get(key) == operated.yaml.get(key) for key in ("nc", "channels", "kpt_shape"))  # type: ignore[union-attr, operator]


def _other_order(fresh: Any, operated: nn.Module) -> bool:
    """Whether ultralytics would give the classifier's rows to other classes, by their names."""
    found: int = copy.deepcopy(fresh)._remap_cls_by_names(operated.state_dict(), operated, verbose=False)
    return found > 0


def _trainable(operated: Any, fresh: Any) -> nn.Module:
    """``operated`` in float32, with the names of the data's classes and without the loss of an earlier training."""
    operated.names, operated.criterion = fresh.names, None
    network: nn.Module = operated.float()
    stand_down(network)
    return network


def _take_over(fresh: nn.Module, operated: nn.Module) -> None:
    """Copy every tensor of the same shape, by ultralytics' own rules for class names, and name those that are new."""
    from ultralytics.utils import LOGGER

    held = {name: tensor.shape for name, tensor in operated.state_dict().items()}
    fresh.load(operated, verbose=False)  # type: ignore[operator]
    new = [name for name, tensor in fresh.state_dict().items() if held.get(name) != tensor.shape]
    shown = ", ".join(new[:6]) + (f" and {len(new) - 6} more" if len(new) > 6 else "")
    LOGGER.info(f"surgery kept for {fresh.yaml['nc']} classes; {len(new)} tensors start anew: {shown}")  # type: ignore[index]
