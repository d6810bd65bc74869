"""The only file that writes into a model, with `freezing`, which fixes parts of one.

An edit is planned once and performed twice: on the skeleton, where it costs nothing and shows whether it fits, then on
the model. Each returns how to take it back. The edited module stays an instance of its class: it gets a subclass made
on the fly, so that its attributes, its methods and the paths of all untouched parameters stay.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surgeon.derived import After, Before, How, InsteadOf, OnOperand, derive, underived
from surgeon.errors import RefusedError
from surgeon.following import align, follow, follow_modes
from surgeon.owncode import read_parameters

MISSING = "<missing>"
Make = Callable[[nn.Module], nn.Module]


class Reverse(Protocol):
    """How to take one edit back."""

    def revert(self, model: nn.Module) -> Callable[[], None]:
        """Undo the edit in ``model``; what is answered makes it again."""


class Edit(Protocol):
    """One change of a model."""

    @property
    def path(self) -> str:
        """Of the module it touches."""

    def perform(self, model: nn.Module) -> Reverse:
        """Make the change, in place."""


@dataclass(frozen=True)
class Swap:
    """Exchange the module at ``path``, under all its names, by what ``make`` builds from it."""

    path: str
    make: Make

    def perform(self, model: nn.Module) -> Restore:
        """Build, let the new module follow the old one, and set it."""
        old = model.get_submodule(self.path)
        new = follow(model, self.path, self.make(old))
        names = tuple(n for n, m in model.named_modules(remove_duplicate=False) if m is old)
        _set(model, names, new)
        return Restore(names, old, new)


@dataclass
class Restore:
    """Takes a :class:`Swap` back."""

    names: tuple[str, ...]
    old: nn.Module
    new: nn.Module = field(repr=False)

    def revert(self, model: nn.Module) -> Callable[[], None]:
        """Set the old module again, on the device and in the precision the model has now."""
        present = model.get_submodule(self.names[0])
        unaligned = align(self.old, model, self.names[0])
        follow_modes(self.old, present)
        _set(model, self.names, self.old)

        def again() -> None:
            _set(model, self.names, present)
            unaligned()

        return again


def _set(model: nn.Module, names: Sequence[str], module: nn.Module) -> None:
    for name in names:
        model.set_submodule(name, module, strict=True)


@dataclass(frozen=True)
class SwapCall:
    """Exchange one functional call in the forward of module ``path`` by the module ``make`` builds.

    The owner's own code is traced without values (batch and size stay free, its children are leaves), once per mode;
    the new code runs as a subclass of the owner. A parameter that only the call read is frozen: nothing reads it now.

    Args:
        path: Of the owner.
        how: Which call, and what callers give.
        make: Builds the new module; its argument is the owner.
    """

    path: str
    how: InsteadOf
    make: Make

    def perform(self, model: nn.Module) -> Reclass:
        """Derive the owner's class."""
        owner = model.get_submodule(self.path)
        child = follow(model, self.path, self.make(owner))
        before = read_parameters(owner, self.how.given)
        reverse = derive_with(model, self.path, self.how, child)
        unread = before - read_parameters(owner, self.how.given)
        reverse.frozen = tuple(name for name in sorted(unread) if owner.get_parameter(name).requires_grad)
        set_frozen(owner, reverse.frozen, True)
        return reverse


@dataclass(frozen=True)
class OnEdge:
    """Pass one operand of a functional call in the forward of module ``path`` through the module ``make`` builds.

    Args:
        path: Of the owner.
        how: Which call and operand, and what callers give.
        make: Builds the module; its argument is the owner.
    """

    path: str
    how: OnOperand
    make: Make

    def perform(self, model: nn.Module) -> Reclass:
        """Derive the owner's class."""
        owner = model.get_submodule(self.path)
        return derive_with(model, self.path, self.how, follow(model, self.path, self.make(owner)))


@dataclass(frozen=True)
class Append:
    """Pass the output of module ``path`` through the module ``make`` builds from it."""

    path: str
    make: Make
    name = "surgeon_after"

    def perform(self, model: nn.Module) -> Reclass:
        """Derive the module's class."""
        module = model.get_submodule(self.path)
        if self.name in module._modules:
            raise RefusedError(f"the output of '{self.path}' is already rearranged")
        return derive_with(model, self.path, After(self.name), follow(model, self.path, self.make(module)))


@dataclass(frozen=True)
class Prepend:
    """Pass the input of module ``path`` through the module ``make`` builds from it, in front of any that is there."""

    path: str
    make: Make
    name = "surgeon_before"

    def perform(self, model: nn.Module) -> Reclass:
        """Derive the module's class."""
        module = model.get_submodule(self.path)
        name = free_child(module, self.name)
        return derive_with(model, self.path, Before(name), follow(model, self.path, self.make(module)))


def free_child(module: nn.Module, name: str) -> str:
    """``name``, or with the lowest number behind it that no child of ``module`` has."""
    several = (name if n == 0 else f"{name}{n + 1}" for n in itertools.count())
    return next(free for free in several if not hasattr(module, free))


@dataclass
class Reclass:
    """Takes a derived class back."""

    path: str
    child: str
    frozen: tuple[str, ...] = ()

    def revert(self, model: nn.Module) -> Callable[[], None]:
        """Give the module its own class again and drop the child it got."""
        module = model.get_submodule(self.path)
        cls, child = type(module), module.get_submodule(self.child)
        underived(module)
        if self.child:
            delattr(module, self.child)
        set_frozen(module, self.frozen, False)

        def again() -> None:
            if self.child:
                module.add_module(self.child, child)
            module.__class__ = cls
            set_frozen(module, self.frozen, True)

        return again


def set_frozen(module: nn.Module, names: Sequence[str], frozen: bool) -> None:
    """Take the gradients of these parameters, or give them back."""
    for name in names:
        module.get_parameter(name).requires_grad_(not frozen)


def derive_with(model: nn.Module, path: str, how: How, child: nn.Module) -> Reclass:
    """Give the module at ``path`` the class that ``how`` derives, and the child it needs."""
    module = model.get_submodule(path)
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        raise RefusedError(
            f"'{path}' is a {type(module).__name__}, which would run what is put in; name one of its parts"
        )
    if hasattr(module, how.child):
        raise RefusedError(f"'{path}' has an attribute '{how.child}' already; rename it")
    module.add_module(how.child, child)
    try:
        derive(module, how)
    except BaseException:
        delattr(module, how.child)
        raise
    return Reclass(path, how.child)


@dataclass(frozen=True)
class SetAttribute:
    """Set a plain attribute of the module at ``path`` to what ``make`` answers for its present value."""

    path: str
    name: str
    make: Callable[[Any], Any]

    def perform(self, model: nn.Module) -> Reset:
        """Set it."""
        module = model.get_submodule(self.path)
        old = getattr(module, self.name, MISSING)
        setattr(module, self.name, self.make(old))
        return Reset(self.path, self.name, old)


@dataclass
class Reset:
    """Takes a :class:`SetAttribute` back."""

    path: str
    name: str
    old: Any

    def revert(self, model: nn.Module) -> Callable[[], None]:
        """Set the old value again."""
        module = model.get_submodule(self.path)
        present = getattr(module, self.name)
        if isinstance(self.old, str) and self.old == MISSING:
            delattr(module, self.name)
        else:
            setattr(module, self.name, self.old)
        return partial(setattr, module, self.name, present)


def twin(module: nn.Module) -> nn.Module:
    """A module of the same class that shares tensors and children with ``module`` until they are set anew."""
    new = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(module.__dict__[name])
    return new


def perform(model: nn.Module, edits: Sequence[Edit]) -> list[Reverse]:
    """Make every edit or none: any failure takes back those already made, newest first."""
    log: list[Reverse] = []
    try:
        with torch.no_grad():
            for edit in edits:
                log.append(_perform(edit, model))
    except BaseException:
        revert(model, log)
        raise
    return log


def _perform(edit: Edit, model: nn.Module) -> Reverse:
    try:
        return edit.perform(model)
    except RefusedError as error:
        raise RefusedError(f"'{edit.path}': {error}") from error


def revert(model: nn.Module, log: Sequence[Reverse]) -> None:
    """Take edits back, newest first: all of them, or none where one cannot be."""
    again: list[Callable[[], None]] = []
    try:
        for entry in reversed(log):
            again.append(entry.revert(model))
    except BaseException:
        for remake in reversed(again):
            remake()
        raise


def untouchable(module: nn.Module) -> str | None:
    """Why a module must not be exchanged whatever the op: it carries hooks or parametrizations."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks):
        return "carries hooks, which would be lost; remove them, operate, and register them again"
    if nn.utils.parametrize.is_parametrized(module):
        return (
            "is parametrized, so its weight is computed; call torch.nn.utils.parametrize.remove_parametrizations first"
        )
    return None


def copy_tensors(values: dict[str, Tensor], model: nn.Module) -> None:
    """Write ``values`` into the tensors of the same names, keeping device and dtype, and take their ``requires_grad``.

    A tensor of another shape, or gone, was replaced by the user since (a new classifier): it stays as it is.
    """
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for name in values.keys() & held.keys():
            if held[name].shape == values[name].shape:
                held[name].copy_(values[name])
                if isinstance(held[name], nn.Parameter):
                    held[name].requires_grad_(values[name].requires_grad)
