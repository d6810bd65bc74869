"""What runs a model's own code on fake tensors and notes every call as a node.

Kept apart from :mod:`surgeon.tracing`, which prepares the run and holds its result.
"""

from __future__ import annotations

import itertools
import operator
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from surgeon.errors import TraceError

ONE_AT_A_TIME = threading.RLock()
LEAVES = (
    nn.modules.conv._ConvNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.MultiheadAttention,
)
STANDS_FOR = re.compile(r"surgeon_(\w+)_\d+")  # a child in the place of a functional call, which still counts


def of_surgery(module: nn.Module) -> bool:
    """Whether a module is a layer that an op puts into networks.

    Example:
        >>> of_surgery(nn.Conv2d(3, 4, 1))
        False
    """
    return type(module).__module__.startswith("surgeon.ops.")


def is_leaf(module: nn.Module) -> bool:
    """Whether a call of ``module`` is one node: by class, so that subclasses of ``nn.Conv2d`` are leaves too."""
    if isinstance(module, LEAVES) or of_surgery(module):
        return True
    return type(module).__module__.startswith("torch.nn.") and not any(module.children())


def function_name(function: Callable[..., Any]) -> str:
    """The plain name of a torch function or method: ``conv2d``, ``getitem``, ``add``."""
    return str(getattr(function, "__name__", type(function).__name__)).strip("_")


def strided_slice(index: Any) -> bool:
    """Whether ``x[index]`` skips positions."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, slice) and isinstance(p.step, int) and abs(p.step) > 1 for p in parts)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    else:
        yield value


class _Macs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts multiply-adds by torch's own formulas, which count a multiply-add as two operations."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out) // 2
        return out


@dataclass
class _Frame:
    """One running call of a module."""

    path: str
    run: int = 0
    calls: Counter[str] = field(default_factory=Counter)


class Recorder(TorchFunctionMode):
    """Turns torch calls and leaf-module calls into nodes while the model's code runs on fake tensors."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.graph = fx.Graph()
        self.paths = {id(m): name for name, m in model.named_modules()}
        named = itertools.chain(model.named_parameters(), model.named_buffers())
        self.attributes = {id(t): name for name, t in named}
        self.nodes: dict[int, fx.Node] = {}
        self.alive: list[Any] = []  # an id is a key only while its tensor lives
        self.frames = [_Frame("")]
        self.runs: Counter[str] = Counter()
        self.passed: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
        self.inside_leaf = False
        self.failed = ""  # path of the innermost module that raised
        self.macs = _Macs()  # type: ignore[no-untyped-call]
        self.notes: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.macs.total
        try:
            out = func(*args, **kwargs)
        except DataDependentOutputException:
            return self._assume(func)
        if not self.inside_leaf and any(isinstance(t, Tensor) for t in _flat(out)):
            self._add("call_function", func, args, kwargs, out, before)
        elif not self.inside_leaf and function_name(func) == "setitem":
            self._add("call_function", func, args, kwargs, args[0], before)
        return out

    def call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for ``nn.Module.__call__``: hooks do not run, so reading a model triggers nothing."""
        if self.inside_leaf:
            return module.forward(*args, **kwargs)
        path = self.paths.get(id(module)) or f"{self.frames[-1].path}.<{type(module).__name__}>".lstrip(".")
        if module is self.root:
            path = ""
        self.frames.append(_Frame(path, self.runs[path]))
        self.runs[path] += 1
        self.passed.setdefault(path, []).append((len(args), tuple(kwargs)))
        self.inside_leaf = is_leaf(module) and path != ""
        before = self.macs.total
        try:
            out = module.forward(*args, **kwargs)
        except Exception:
            self.failed = self.failed or path
            raise
        finally:
            leaf, self.inside_leaf = self.inside_leaf, False
            self.frames.pop()
        self.failed = ""
        if leaf:
            self._add("call_module", path, args, kwargs, out, before)
            if stands := STANDS_FOR.fullmatch(path.rpartition(".")[2]):
                self.frames[-1].calls[stands[1]] += 1
        elif isinstance(out, Tensor) and path:
            self._node(out).meta.setdefault("returned_by", []).append(path)
        return out

    def _add(self, op: str, target: Any, args: Any, kwargs: Any, out: Any, macs_before: int) -> None:
        """One node for the call; where it returns several tensors, one more for each of them."""
        node = self.graph.create_node(op, target, self.arguments(tuple(args)), self.arguments(dict(kwargs)))
        frame = self.frames[-1]
        name = target if op == "call_module" else function_name(target)
        node.meta.update(val=out, owner=frame.path, run=frame.run, name=name, order=len(self.graph.nodes))
        node.meta["macs"] = self.macs.total - macs_before
        counted = name != "getitem" or strided_slice(args[1])
        node.meta["index"] = frame.calls[name]
        frame.calls[name] += counted
        if isinstance(out, Tensor):
            return self.bind(out, node)
        for i, tensor in enumerate(_flat(out)):
            if isinstance(tensor, Tensor):
                part = self.graph.create_node("call_function", operator.getitem, (node, i))
                part.meta.update(node.meta, val=tensor, name="part", macs=0, order=len(self.graph.nodes))
                self.bind(tensor, part)

    def bind(self, tensor: Tensor, node: fx.Node) -> None:
        """Let ``tensor`` stand for ``node`` from now on."""
        self.nodes[id(tensor)] = node
        self.alive.append(tensor)

    def arguments(self, args: Any) -> Any:
        """The same arguments, each tensor replaced by the node it stands for."""
        return map_aggregate(args, lambda a: self._node(a) if isinstance(a, Tensor) else a)

    def _node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self.nodes:
            node = self.graph.create_node("get_attr", self.attributes.get(id(tensor), "constant"))
            node.meta.update(val=tensor, owner=self.frames[-1].path, order=0)
            self.bind(tensor, node)
        return self.nodes[id(tensor)]

    def _assume(self, func: Any) -> Any:
        """The fallback where control flow depends on values: a test is taken as false, a number as one."""
        name = function_name(func)
        assumed = {"bool": False, "item": 1, "int": 1, "float": 1.0, "index": 1}
        if name not in assumed:
            raise TraceError(f"the forward of '{self.frames[-1].path}' needs the values of a tensor ({name})")
        self.notes.append(f"'{self.frames[-1].path}' decides on a tensor's value; {name} was taken as {assumed[name]}")
        return assumed[name]

    @property
    def root(self) -> nn.Module:
        """The module being recorded."""
        return self._root

    @contextmanager
    def recording(self, root: nn.Module) -> Iterator[None]:
        """Record every call made inside the block; one recording at a time, whatever the thread."""
        self._root = root
        with ExitStack() as stack:
            stack.enter_context(ONE_AT_A_TIME)
            stack.enter_context(mock.patch.object(nn.Module, "__call__", _redirect(self)))
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.macs)
            stack.enter_context(self)
            yield


def _redirect(recorder: Recorder) -> Callable[..., Any]:
    """Module calls of this thread go to the recorder; other threads run as ever."""
    usual, thread = nn.Module.__call__, threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        here = threading.get_ident() == thread
        return recorder.call(module, *args, **kwargs) if here else usual(module, *args, **kwargs)

    return call
