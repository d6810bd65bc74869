"""What an operated model carries: its record, how to take it back, and what was replaced.

It hangs on the model as a plain attribute, outside ``state_dict`` and ``parameters()``, and follows ``deepcopy``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from surgeon.change import Record
from surgeon.edit import Reverse, copy_tensors, revert
from surgeon.errors import RefusedError
from surgeon.host import Size
from surgeon.site import Site
from surgeon.skeleton import LEDGER


@dataclass
class Ledger:
    """The history of an operated model.

    Args:
        record: Every change since the first ``apply``.
        input_size: (C, H, W) of the first ``apply``.
        sites: Every rewritten site, by the name of its op.
        log: How to take each edit back; None when the originals were not kept.
        before: The tensors of the untouched parts as they were at the first ``apply``, on the CPU.
        located: Every site of the model before the first ``apply``: selections mean that model.
    """

    record: Record
    input_size: Size
    sites: dict[str, list[Site]]
    log: list[Reverse] | None
    before: dict[str, Tensor]
    located: tuple[Site, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        """A copy with its own log; ``before`` is never written to, so it is shared."""
        return Ledger(
            self.record,
            self.input_size,
            {name: list(sites) for name, sites in self.sites.items()},
            copy.deepcopy(self.log, memo),
            self.before,
            self.located,
        )

    @classmethod
    def of(cls, model: nn.Module) -> Ledger | None:
        """The ledger of ``model``, if it was operated."""
        found = model.__dict__.get(LEDGER)
        return found if isinstance(found, Ledger) else None

    @classmethod
    def open(cls, model: nn.Module, input_size: Size, keep_originals: bool, located: tuple[Site, ...] = ()) -> Ledger:
        """A ledger for a model about to be operated for the first time; it is not attached yet."""
        return cls(Record(), input_size, {}, [], snapshot(model) if keep_originals else {}, located)

    def add(self, model: nn.Module, record: Record, sites: dict[str, list[Site]], log: list[Reverse] | None) -> None:
        """Enter one operation and attach to ``model``; without ``log`` no earlier one can be taken back either."""
        every = {name: [*self.sites.get(name, []), *sites.get(name, [])] for name in {**self.sites, **sites}}
        joined = None if log is None or self.log is None else self.log + log
        held = tensors_of(model) if joined is not None else {}
        before = {name: tensor for name, tensor in self.before.items() if name in held}
        self.record, self.sites, self.log, self.before = self.record.then(record), every, joined, before
        self.hang_on(model)

    def hang_on(self, model: nn.Module) -> None:
        """Attach to ``model``."""
        model.__dict__[LEDGER] = self

    def take_back(self, model: nn.Module) -> None:
        """Bring ``model`` back to before the first ``apply``, every value included.

        Raises:
            RefusedError: When the originals were not kept, or modules that were operated are gone.
        """
        if self.log is None:
            raise RefusedError(
                "cannot undo: the originals were not kept (keep_originals: false, or training rebuilt the network for "
                "other classes, or its checkpoint was loaded, or it was fused before it was operated again); load the "
                "original checkpoint instead"
            )
        if norm := self.folded(model):
            raise RefusedError(
                f"cannot undo: norms were folded into their convs since ('{norm}' is gone, as after fuse()), which "
                "cannot be taken back; undo first and fuse then, or load the original checkpoint"
            )
        try:
            revert(model, self.log)
        except AttributeError as error:
            raise RefusedError(
                f"cannot undo: an operated module is gone ({error}); put it back, or load the original checkpoint"
            ) from error
        copy_tensors(self.before, model)
        del model.__dict__[LEDGER]

    def folded(self, model: nn.Module) -> str | None:
        """The first norm folded into a conv since: its statistics are gone, and a layer beside it has got a bias."""
        held = tensors_of(model).keys()
        new, gone = held - self.before.keys(), self.before.keys() - held
        norms = (name.removesuffix(".running_mean") for name in gone if name.endswith(".running_mean"))
        blocks = {name.removesuffix(".bias").rpartition(".")[0] for name in new if name.endswith(".bias")}
        return min((norm for norm in norms if norm.rpartition(".")[0] in blocks), default=None)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of ``model`` by name, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer that has values, on the CPU; they know whether a gradient was wanted."""
    real = {name: tensor for name, tensor in tensors_of(model).items() if not tensor.is_meta}
    return {n: t.detach().to("cpu", copy=True).requires_grad_(t.requires_grad) for n, t in real.items()}
