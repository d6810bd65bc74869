"""Edits of a class and of values: derive a class, attach what it needs, fix a part of a model for good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgeon.derived import Frozen, How, derive, underived
from surgeon.edit import Reclass, derive_with, set_frozen
from surgeon.following import follow


@dataclass(frozen=True)
class Freeze:
    """Keep the tensors of module ``path``, with all below, as ``values`` has them: no gradients, evaluation mode.

    Args:
        path: Of the module.
        make: Answers the values to set first, by name in the module; an empty dict leaves them.
    """

    path: str
    make: Callable[[nn.Module], dict[str, Tensor]]

    def perform(self, model: nn.Module) -> Thaw:
        """Set the values, take gradients and modes."""
        module = model.get_submodule(self.path)
        held = _tensors(module)
        values = {name: value for name, value in self.make(module).items() if held[name].shape == value.shape}
        thaw = Thaw(
            self.path,
            {name: held[name].detach().clone() for name in values},
            tuple(name for name, p in module.named_parameters() if p.requires_grad),
            {name: part.training for name, part in module.named_modules()},
            model.get_submodule(self.path.rpartition(".")[0]).training,
        )
        module.train()  # what evaluation has kept of the old values goes (LeViT's biases)
        derive(module, Frozen())
        set_frozen(module, thaw.trainable, True)
        module.train()
        with torch.no_grad():
            for name, value in values.items():
                held[name].copy_(value)
        return thaw


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@dataclass
class Thaw:
    """Takes a :class:`Freeze` back."""

    path: str
    values: dict[str, Tensor]
    trainable: tuple[str, ...]
    modes: dict[str, bool]
    parent_mode: bool

    def revert(self, model: nn.Module) -> Callable[[], None]:
        """Set the old values, gradients and modes again; where the model changed its mode since, the part follows."""
        module, parent = model.get_submodule(self.path), model.get_submodule(self.path.rpartition(".")[0])
        cls, present = type(module), {name: _tensors(module)[name].detach().clone() for name in self.values}
        underived(module)
        module.train()
        self._set(module, self.values, frozen=False)
        same = parent.training == self.parent_mode
        for name, part in module.named_modules():
            part.training = self.modes.get(name, parent.training) if same else parent.training

        def again() -> None:
            module.__class__ = cls
            module.train()
            self._set(module, present, frozen=True)

        return again

    def _set(self, module: nn.Module, values: dict[str, Tensor], frozen: bool) -> None:
        held = _tensors(module)
        with torch.no_grad():
            for name, value in values.items():
                held[name].copy_(value)
        set_frozen(module, tuple(name for name in self.trainable if name in held), frozen)


@dataclass(frozen=True)
class Derive:
    """Give module ``path`` the class that ``how`` derives, which needs no child."""

    path: str
    how: How

    def perform(self, model: nn.Module) -> Reclass:
        """Derive the module's class."""
        derive(model.get_submodule(self.path), self.how)
        return Reclass(self.path, "")


@dataclass(frozen=True)
class Attach:
    """Give module ``path`` the class that ``how`` derives, and the child ``make`` builds from it."""

    path: str
    how: How
    make: Callable[[nn.Module], nn.Module]

    def perform(self, model: nn.Module) -> Reclass:
        """Derive the module's class."""
        child = follow(model, self.path, self.make(model.get_submodule(self.path)))
        return derive_with(model, self.path, self.how, child)
