"""Classes made on the fly: a module that runs other code stays an instance of its own class.

They have no name to import, so an instance pickles as its own class plus how it was derived, and is derived again when
it is read back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from types import MethodType
from typing import Any, Protocol

from torch import nn

from surgeon.errors import RefusedError
from surgeon.owncode import FORWARDS, GraphEdit, child_name, code_with, give_call_to, pass_operand_through

Forward = Callable[..., Any]
HOWS = "_surgeon_derived"
PASSES = ("forward", "forward_fuse")  # the second runs once fuse() folded a norm away; ultralytics' name


class How(Protocol):
    """One way to derive a class."""

    @property
    def child(self) -> str:
        """The name of the module it needs as a child; "" where it needs none."""

    def members(self, module: nn.Module) -> dict[str, Any]:
        """The members of the class derived from that of ``module``."""


@dataclass(frozen=True)
class After:
    """The forward of the class, its output passed through ``child``."""

    child: str

    def members(self, module: nn.Module) -> dict[str, Any]:
        """A forward around the one there is."""
        child = self.child

        def around(base: Forward) -> Forward:
            @wraps(base)
            def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
                return self.get_submodule(child)(base(self, *args, **kwargs))

            return forward

        return _each_pass(module, around)


@dataclass(frozen=True)
class Before:
    """The forward of the class, its first argument passed through ``child``."""

    child: str

    def members(self, module: nn.Module) -> dict[str, Any]:
        """A forward around the one there is."""
        child = self.child

        def around(base: Forward) -> Forward:
            @wraps(base)
            def forward(self: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
                return base(self, self.get_submodule(child)(x), *args, **kwargs)

            return forward

        return _each_pass(module, around)


@dataclass(frozen=True)
class InPlace:
    """The forward of the class, or that of the module its ``child`` picks for this pass, if any."""

    child: str

    def members(self, module: nn.Module) -> dict[str, Any]:
        """A forward that asks the child first."""
        child = self.child

        def around(base: Forward) -> Forward:
            @wraps(base)
            def forward(self: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
                other = self.get_submodule(child).pick(x)  # type: ignore[operator]
                return base(self, x, *args, **kwargs) if other is None else other(x, *args, **kwargs)

            return forward

        return _each_pass(module, around)


def _each_pass(module: nn.Module, around: Callable[[Forward], Forward]) -> dict[str, Any]:
    """Every forward pass the class of ``module`` has, with ``around`` put around it."""
    known = {name: inspect.getattr_static(type(module), name, None) for name in PASSES}
    return {FORWARDS: None, **{name: around(base) for name, base in known.items() if inspect.isfunction(base)}}


@dataclass(frozen=True)
class Frozen:
    """A module that stays in evaluation mode, so that its statistics stay as they are."""

    child = ""

    def members(self, module: nn.Module) -> dict[str, Any]:
        """A ``train`` that always asks for evaluation."""
        base = type(module).train

        def train(self: nn.Module, mode: bool = True) -> nn.Module:
            return base(self, False)

        return {"train": train}


@dataclass(frozen=True)
class InsteadOf:
    """The module's own code with the ``index``-th call of ``function`` given to a child.

    Args:
        function: Its name.
        index: Counted in the code as it was before any call was exchanged.
        given: The parameters of the forward that callers give; the others are fixed at their defaults.
    """

    function: str
    index: int
    given: frozenset[str]

    @property
    def child(self) -> str:
        """Named after the call."""
        return child_name(self.function, self.index)

    def members(self, module: nn.Module) -> dict[str, Any]:
        """The code of each mode; setting an attribute that is fixed in it is refused."""
        return _rewritten(module, partial(give_call_to, self.child, self.function, self.index), self.given)


@dataclass(frozen=True)
class OnOperand:
    """The module's own code with one operand of the ``index``-th call of ``function`` passed through ``child``.

    Args:
        child: The name of the module.
        function: Such as ``add``.
        index: Counted in the code as it was before any call was exchanged.
        operand: 0 or 1.
        given: As of :class:`InsteadOf`.
    """

    child: str
    function: str
    index: int
    operand: int
    given: frozenset[str]

    def members(self, module: nn.Module) -> dict[str, Any]:
        """The code of each mode; setting an attribute that is fixed in it is refused."""
        edit = partial(pass_operand_through, self.child, self.function, self.index, self.operand)
        return _rewritten(module, edit, self.given)


def _rewritten(module: nn.Module, edit: GraphEdit, given: frozenset[str]) -> dict[str, Any]:
    codes = [code_with(module, edit, given, mode) for mode in (True, False)]
    forwards = tuple(code.compile() for code in codes)
    fixed = {name: value for code in codes for name, value in code.read}
    members: dict[str, Any] = {"forward": forwards[0], "__setattr__": _refusing(type(module), fixed)}
    if codes[0].source == codes[1].source and codes[0].names == codes[1].names:
        return {**members, FORWARDS: None}

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forwards[0 if self.training else 1](self, *args, **kwargs)

    forward.__signature__ = inspect.signature(forwards[0])  # type: ignore[attr-defined]
    return {**members, "forward": forward, FORWARDS: forwards}


def _refusing(base: type[nn.Module], fixed: dict[str, Any]) -> Callable[[nn.Module, str, Any], None]:
    """A ``__setattr__`` that lets no attribute fixed in the code become another."""

    def set_attribute(self: nn.Module, name: str, value: Any) -> None:
        if name in fixed and not (type(value) is type(fixed[name]) and value == fixed[name]):
            raise RefusedError(
                f"'{name}' of {base.__name__} stays {fixed[name]!r}: its rewritten code was made with this value; "
                f"surgeon.undo(model), set it to {value!r}, and apply again"
            )
        base.__setattr__(self, name, value)

    return set_attribute


def derive(module: nn.Module, how: How) -> None:
    """Give ``module`` the class that ``how`` derives from its own."""
    base = type(module)
    if reason := why_not_derived(base):
        raise RefusedError(reason)
    members = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__reduce_ex__": _reduce}
    hows = (*getattr(base, HOWS, ()), how)
    module.__class__ = type(base.__name__, (base,), {**members, **how.members(module), HOWS: hows})
    _rebind(module)


def hows(module: nn.Module) -> tuple[How, ...]:
    """How the class of ``module`` was derived from its own, oldest first."""
    found: tuple[How, ...] = getattr(type(module), HOWS, ())
    return found


def own_class(thing: object) -> type:
    """The class of ``thing`` before anything was derived from it."""
    return next(cls for cls in type(thing).__mro__ if HOWS not in vars(cls))


def underived(module: nn.Module) -> None:
    """Take the newest derivation of the class of ``module`` back."""
    module.__class__ = type(module).__bases__[0]
    _rebind(module)


def _rebind(module: nn.Module) -> None:
    """Where an instance runs another of its methods as its forward, as a fused one does, let it be its class's own."""
    bound = module.__dict__.get("forward")
    if isinstance(bound, MethodType) and bound.__self__ is module and bound.__name__ in PASSES:
        module.__dict__["forward"] = MethodType(getattr(type(module), bound.__name__), module)


def why_not_derived(cls: type) -> str | None:
    """Why no class can be derived from ``cls``; None where one can."""
    if hasattr(cls, HOWS) or not any({"__reduce_ex__", "__reduce__"} & vars(c).keys() for c in cls.__mro__[:-1]):
        return None
    return f"{cls.__name__} pickles in a way of its own, which its rewritten code could not follow"


@dataclass
class _Derived:
    """A derived class as pickle may carry it; copying within a process keeps the class itself."""

    base: type[nn.Module]
    hows: tuple[How, ...]
    cls: type[nn.Module] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Derived:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Derived, (self.base, self.hows)


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    cls = type(self)
    hows = getattr(cls, HOWS)
    return _revive, (_Derived(cls.__mro__[len(hows)], hows, cls),), self.__getstate__()  # type: ignore[no-untyped-call]


def _revive(what: _Derived) -> nn.Module:
    if what.cls is not None:
        return object.__new__(what.cls)

    def set_state(self: nn.Module, state: Any) -> None:
        what.base.__setstate__(self, state)  # type: ignore[no-untyped-call]
        self.__class__ = what.base  # type: ignore[assignment]
        for how in what.hows:
            derive(self, how)

    return object.__new__(type(what.base.__name__, (what.base,), {"__setstate__": set_state}))
