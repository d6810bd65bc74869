"""Compute what lies behind a unit only: the module calls of one forward pass are kept, and answered from memory.

A forward pass on a batch is recorded as a tree of module calls. For a treatment of a unit the model's own code runs
again; calls that come before the unit, and later ones whose inputs are the very same tensors, are not computed but
answered with what they answered before. Skip connections, branches and whatever code lies between modules are thus
the model's own. No trace is needed, so this holds for models that have none.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from surgeon.recorder import ONE_AT_A_TIME

Modules = Sequence[nn.Module]


@dataclass(eq=False)
class Call:
    """One call of a module: which calls it made, what it read and what it answered.

    Attributes:
        module: Called.
        place: Numbers of the calls around it and its own, from the model's call down: the same for every batch.
        calls: Made by its own code.
        arguments: Their structure, then flat; tensors by weak reference.
        answer: None where it was not kept.
        kept: Whether it was.
        version: How often the tensors of the answer had been written to when it returned.
    """

    module: nn.Module
    place: tuple[int, ...]
    calls: list[Call] = field(default_factory=list)
    arguments: list[Any] = field(default_factory=list)
    answer: Any = None
    kept: bool = False
    version: tuple[int, ...] = ()

    def modules(self) -> Iterator[nn.Module]:
        """Of this call and all below."""
        yield self.module
        for call in self.calls:
            yield from call.modules()


class Replay:
    """Records forward passes of a model and replays them for its units.

    Args:
        model: In evaluation mode.
        parts: Of each unit, by its name: the modules it consists of, and those that hold its values themselves.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> replay, x = Replay(model, {"last": ([model[2]], [model[2]])}), torch.rand(1, 2)
        >>> answer = replay.record(lambda: model(x))
        >>> torch.equal(replay.run("last", lambda: model(x)), answer), replay.computed
        (True, 1)
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, tuple[Modules, Modules]]) -> None:
        self.model = model
        self.roots = {name: roots for name, (roots, _) in parts.items()}
        self.owners = {name: {id(module) for module in owners} for name, (_, owners) in parts.items()}
        self.around = {name: _around(model, owners) for name, owners in self.owners.items()}
        self.entered: set[tuple[int, ...]] | None = None  # places whose calls are kept; None: all
        self.written: set[tuple[int, ...]] = set()  # places whose answers are written to afterwards
        self.tape = Call(model, ())
        self.touching: dict[str, set[int]] = {}
        self.entries: dict[str, set[int]] = {}
        self.computed = 0  # calls that the last replay computed

    def record(self, forward: Callable[[], Any]) -> Any:
        """Run ``forward``, which calls the model, and keep what is needed to replay it."""
        while True:
            self.tape = Call(self.model, ())
            with _calls_go_to(_Recording(self)):
                answer = forward()
            spoilt = {call.place for call in self._kept() if _versions(call.answer) != call.version}
            if spoilt <= self.written:
                break
            self.written |= spoilt
        self._know_places()
        return answer

    def run(self, unit: str, forward: Callable[[], Any]) -> Any:
        """Run ``forward`` on the recorded batch; what does not depend on the values of ``unit`` is not computed."""
        replaying = _Replaying(self, unit)
        with _calls_go_to(replaying):
            answer = forward()
        self.computed = replaying.computed
        return answer

    def spoilt(self) -> bool:
        """Whether a replay has written to what is kept; then the batch must be recorded again."""
        found = {c.place for c in self._kept() if c.place not in self.written and _versions(c.answer) != c.version}
        self.written |= found
        return bool(found)

    def bytes(self) -> int:
        """Of all that is kept of the recorded batch."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for call in self._kept()
            for tensor in _tensors(call.answer)
        }
        return sum(storages.values())

    def behind(self, unit: str) -> list[nn.Module]:
        """Modules that run from the unit on, in order of call; all of them where the unit is not known."""
        begun, found = unit not in self.entries, dict[nn.Module, None]()
        for module in self.tape.modules():
            begun = begun or id(module) in self.entries[unit]
            if begun:
                found[module] = None
        return list(found)

    def forget(self) -> None:
        """Let go of the recorded batch."""
        self.tape = Call(self.model, ())

    def _kept(self) -> Iterator[Call]:
        stack = [self.tape]
        while stack:
            call = stack.pop()
            stack += call.calls
            if call.kept:
                yield call

    def _know_places(self) -> None:
        """Find, of each unit, the calls that depend on it, and those with which that begins."""
        called = {id(module) for module in self.tape.modules()}
        self.entered = set()
        for unit, roots in self.roots.items():
            begins = {id(module) for module in roots if id(module) in called}
            hidden = [module for module in roots if id(module) not in called]
            around = _parents(self.model, hidden)  # whose code reads the values itself
            begins |= {next((id(m) for m in path if id(m) in called), id(self.model)) for path in around}
            inside = _touching(self.tape, begins, self.around[unit])
            self.entries[unit] = begins | self.owners[unit]
            self.touching[unit] = {id(call) for call in inside}
            self.entered |= {call.place for call in inside if id(call.module) not in begins}


class _Recording:
    def __init__(self, replay: Replay) -> None:
        self.replay, self.stack = replay, [replay.tape]

    def __call__(self, usual: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        parent = self.stack[-1]
        call = Call(module, (*parent.place, len(parent.calls)))
        parent.calls.append(call)
        entered = self.replay.entered
        if entered is None or parent.place in entered:
            call.kept, call.arguments = True, _weak(args, kwargs)
        self.stack.append(call)
        try:
            answer = usual(module, *args, **kwargs)
        finally:
            self.stack.pop()
        if call.kept:
            own = call.place in self.replay.written
            call.answer = tree_map_only(Tensor, Tensor.clone, answer) if own else _copied(answer)
            call.version = _versions(call.answer)
        return answer


class _Replaying:
    def __init__(self, replay: Replay, unit: str) -> None:
        self.replay, self.stack, self.computed = replay, [(replay.tape, 0)], 0
        self.begun = self.plain = False  # behind the unit; in a call of which nothing inside is kept
        self.touching, self.entries = replay.touching[unit], replay.entries[unit]
        self.around = replay.around[unit]

    def __call__(self, usual: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.plain:
            return usual(module, *args, **kwargs)
        call = self._recorded(module)
        if call is not None and self._free(call) and (not self.begun or _are(call.arguments, args, kwargs)):
            written = call.place in self.replay.written
            return tree_map_only(Tensor, Tensor.clone, call.answer) if written else _copied(call.answer)
        self.begun = self.begun or id(module) in self.entries
        self.plain = self.begun and (call is None or not self._keeps_some(call))
        self.computed += self.plain
        self.stack.append((call or Call(module, ()), 0))
        try:
            return usual(module, *args, **kwargs)
        finally:
            self.plain = False
            self.stack.pop()

    def _keeps_some(self, call: Call) -> bool:
        entered = self.replay.entered
        return entered is None or call.place in entered

    def _free(self, call: Call) -> bool:
        """Whether nothing in the call holds values of the unit."""
        return call.kept and id(call) not in self.touching and id(call.module) not in self.around

    def _recorded(self, module: nn.Module) -> Call | None:
        parent, number = self.stack[-1]
        self.stack[-1] = (parent, number + 1)
        call = parent.calls[number] if number < len(parent.calls) else None
        return call if call is not None and call.module is module else None


@contextmanager
def _calls_go_to(handle: Callable[..., Any]) -> Iterator[None]:
    """Calls of modules made by this thread are handled; other threads run as ever."""
    usual, thread = nn.Module.__call__, threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        here = threading.get_ident() == thread
        return handle(usual, module, args, kwargs) if here else usual(module, *args, **kwargs)

    with ONE_AT_A_TIME, mock.patch.object(nn.Module, "__call__", call):
        yield


def _around(model: nn.Module, owners: set[int]) -> set[int]:
    """Modules that hold values of a unit, and those around them."""
    return {id(module) for module in model.modules() if any(id(part) in owners for part in module.modules())}


def _parents(model: nn.Module, held: Modules) -> list[list[nn.Module]]:
    """Of each place of each module: the modules around it, the nearest first."""
    wanted, found = {id(module) for module in held}, []
    for path, module in model.named_modules(remove_duplicate=False):
        if id(module) in wanted:
            parts = path.split(".")
            found.append([model.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, -1, -1)])
    return found


def _touching(call: Call, begins: set[int], around: set[int]) -> list[Call]:
    """The calls with which a unit begins, those around them, and whatever else holds its values."""
    if id(call.module) in begins:
        return [call]
    below = [found for inner in call.calls for found in _touching(inner, begins, around)]
    return [*below, call] if below or id(call.module) in around else []


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _versions(value: Any) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in _tensors(value))


def _copied(value: Any) -> Any:
    """The same tensors in lists and dicts of its own."""
    return value if isinstance(value, Tensor) else tree_map_only(Tensor, lambda tensor: tensor, value)


def _weak(args: Any, kwargs: Any) -> list[Any]:
    leaves, structure = tree_flatten((args, kwargs))
    return [structure, *(weakref.ref(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves)]


def _are(known: list[Any], args: Any, kwargs: Any) -> bool:
    """Whether arguments are the known ones: the very same tensors, and equal numbers and texts, in equal places."""
    leaves, structure = tree_flatten((args, kwargs))
    return len(known) == len(leaves) + 1 and known[0] == structure and all(map(_is, known[1:], leaves))


def _is(known: Any, leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return isinstance(known, weakref.ref) and known() is leaf
    plain = isinstance(leaf, (bool, int, float, str, type(None)))
    return type(known) is type(leaf) and known == leaf if plain else known is leaf


__all__ = ["Call", "Replay"]
