"""The code a module itself runs, traced without values: batch and size stay free, children are calls.

Kept apart from :mod:`surgeon.tracing`, whose graphs carry values and are only looked at: these are executed. What
code reads besides its inputs is watched, because it is fixed in the graph.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from surgeon.errors import RefusedError
from surgeon.randomness import generators_kept
from surgeon.recorder import function_name, strided_slice
from surgeon.tracing import Trace

FORWARDS = "_surgeon_forwards"  # of a class whose code differs in training and evaluation
PLAIN = (int, float, str, tuple, type(None))  # bool is an int


def is_call(node: fx.Node, function: str) -> bool:
    """Whether a value-free node calls ``function``; of indexing only the kind that skips positions counts."""
    if node.op == "call_method":
        return str(node.target) == function
    if node.op != "call_function" or function_name(node.target) != function:  # type: ignore[arg-type]
        return False
    return function != "getitem" or strided_slice(node.args[1])


def child_name(function: str, index: int) -> str:
    """The name of the module that stands for the ``index``-th call of ``function`` in its owner."""
    return f"surgeon_{function}_{index}"


class _OwnCode(fx.Tracer):
    """Traces a module's own forward only: every child is a leaf, and a buffer is read anew each time."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Factories(TorchFunctionMode):
    """A tensor made inside the code (``torch.rand(1)``) is made anew each time instead of becoming a constant."""

    def __init__(self, tracer: fx.Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        return self.tracer.create_proxy("call_function", func, args, kwargs) if isinstance(out, Tensor) else out


@dataclass(frozen=True)
class OwnGraph:
    """A value-free graph, and the plain attributes of the module that are fixed in it."""

    graph: fx.Graph
    read: dict[str, Any]


def passed(owner: nn.Module, recorded: Trace, path: str) -> frozenset[str]:
    """The parameters of the forward of ``owner``, at ``path``, that were given in any of its recorded calls."""
    names = list(inspect.signature(forward_in(owner, True)).parameters)[1:]
    calls = recorded.passed.get(path, ())
    return frozenset(name for count, keywords in calls for name in (*names[:count], *keywords))


def forward_in(owner: nn.Module, training: bool) -> Callable[..., Any]:
    """What the class of ``owner`` runs in that mode."""
    several = getattr(type(owner), FORWARDS, None)
    found: Callable[..., Any] = type(owner).forward if several is None else several[0 if training else 1]
    return found


def own_graph(owner: nn.Module, training: bool, given: frozenset[str] | None = None) -> OwnGraph:
    """The value-free graph of a module's own code in one mode.

    Args:
        owner: It is only read.
        training: The mode.
        given: Parameters of its forward that callers give; the others are fixed at their defaults. None: all are given.

    Raises:
        RefusedError: When its control flow depends on sizes or values, or it draws numbers outside torch.
    """
    read: dict[str, Any] = {}
    twin, tracer, name = _watched(owner, training, read), _OwnCode(), type(owner).__name__
    states = repr((random.getstate(), np.random.get_state()))
    try:
        with generators_kept(), _Factories(tracer):
            graph = tracer.trace(twin, _fixed(owner, training, given))
            drawn = states != repr((random.getstate(), np.random.get_state()))
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise RefusedError(f"the code of its owner {name} cannot be traced without values: {reason}") from error
    if drawn:
        raise RefusedError(f"the code of its owner {name} draws Python's or numpy's random numbers; use torch's")
    names = list(inspect.signature(forward_in(owner, training)).parameters)[1:]
    for node, parameter in zip((n for n in graph.nodes if n.op == "placeholder"), names, strict=True):
        if not str(node.target).startswith("*"):
            node.target = parameter  # fx numbers those it fixes
    if constants := [node.target for node in graph.nodes if node.op == "get_attr" and not _has(owner, node.target)]:
        raise RefusedError(
            f"the code of its owner {name} uses {len(constants)} tensors it does not hold; register them"
        )
    return OwnGraph(graph, read)


def _watched(owner: nn.Module, training: bool, read: dict[str, Any]) -> nn.Module:
    """A shallow copy in that mode that notes the plain attributes its code reads."""
    base = type(owner)

    def look(self: nn.Module, name: str) -> Any:
        value = base.__getattribute__(self, name)
        own = name != "training" and not name.startswith("__") and name in base.__getattribute__(self, "__dict__")
        if own and isinstance(value, PLAIN):
            read[name] = value
        return value

    twin = copy.copy(owner)
    twin.training = training
    twin.__class__ = type(base.__name__, (base,), {"__getattribute__": look, "forward": forward_in(owner, training)})
    return twin


def _fixed(owner: nn.Module, training: bool, given: frozenset[str] | None) -> dict[str, Any] | None:
    """The parameters callers leave out, at their defaults: fx checks at each call that they are still left out."""
    if given is None:
        return None
    parameters = inspect.signature(forward_in(owner, training)).parameters
    free = {name: p.default for name, p in parameters.items() if p.default is not p.empty and name not in given}
    return {name: default for name, default in free.items() if isinstance(default, PLAIN)} or None


def _has(owner: nn.Module, target: Any) -> bool:
    holder, _, name = str(target).rpartition(".")
    try:
        return hasattr(owner.get_submodule(holder), name)
    except AttributeError:
        return False


def read_parameters(owner: nn.Module, given: frozenset[str]) -> set[str]:
    """The parameters of ``owner`` itself that its code reads in either mode."""
    nodes = [node for mode in (True, False) for node in own_graph(owner, mode, given).graph.nodes]
    return {str(n.target) for n in nodes if n.op == "get_attr" and n.users and str(n.target) in owner._parameters}


@dataclass(frozen=True)
class Code:
    """Python source of a forward, the names it uses, and the plain attributes that are fixed in it."""

    source: str
    names: tuple[tuple[str, Any], ...]
    read: tuple[tuple[str, Any], ...]

    def compile(self) -> Callable[..., Any]:
        """The function; its first argument is the owner."""
        space = dict(self.names)
        exec(compile(self.source, "<surgeon>", "exec"), space)
        forward: Callable[..., Any] = space["forward"]
        return forward


GraphEdit = Callable[[fx.Graph], bool]


def code_with(owner: nn.Module, edit: GraphEdit, given: frozenset[str], training: bool) -> Code:
    """The owner's code in one mode, changed by ``edit``, which answers whether it found what it changes.

    Raises:
        RefusedError: When the code cannot be traced, or has no such call.
    """
    own = own_graph(owner, training, given)
    if not edit(own.graph):
        raise RefusedError(f"the {'training' if training else 'evaluation'} code of its owner has no such call")
    for node in list(own.graph.nodes):
        if node.op == "get_attr" and not node.users:
            own.graph.erase_node(node)
    code = own.graph.python_code("self")
    by_name = [tuple(sorted(d.items(), key=lambda item: str(item[0]))) for d in (code.globals, own.read)]
    return Code(code.src, by_name[0], by_name[1])


def give_call_to(child: str, function: str, index: int, graph: fx.Graph) -> bool:
    """Let module ``child`` stand for the ``index``-th call of ``function``."""
    call = _find(graph, function, index)
    if call is None:
        return False
    image = call.args[0] if call.args else call.kwargs["input"]
    with graph.inserting_before(call):
        call.replace_all_uses_with(graph.call_module(child, (image,)))
    graph.erase_node(call)
    return True


def pass_operand_through(child: str, function: str, index: int, operand: int, graph: fx.Graph) -> bool:
    """Pass one operand of the ``index``-th call of ``function`` through module ``child``."""
    call = _find(graph, function, index)
    if call is None or len(call.args) <= operand or not isinstance(call.args[operand], fx.Node):
        return False
    with graph.inserting_before(call):
        call.update_arg(operand, graph.call_module(child, (call.args[operand],)))
    return True


def _find(graph: fx.Graph, function: str, index: int) -> fx.Node | None:
    """The ``index``-th call; those that children already stand for are counted, so that numbers stay."""
    seen = 0
    for node in graph.nodes:
        stands = node.op == "call_module" and node.target == child_name(function, seen)
        if is_call(node, function) and seen == index:
            found: fx.Node = node
            return found
        seen += stands or is_call(node, function)
    return None
