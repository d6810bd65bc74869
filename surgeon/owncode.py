"""The code a module itself runs, traced without values: batch and size stay free, children are calls.

Kept apart from :mod:`surgeon.tracing`, whose graphs carry values and are only looked at: these are executed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from surgeon.errors import RefusedError
from surgeon.tracing import function_name, strided_slice


def is_call(node: fx.Node, function: str) -> bool:
    """Whether a value-free node calls ``function``; of indexing only the kind that skips positions counts."""
    if node.op == "call_method":
        return str(node.target) == function
    if node.op != "call_function" or function_name(node.target) != function:  # type: ignore[arg-type]
        return False
    return function != "getitem" or strided_slice(node.args[1])


class _OwnCode(fx.Tracer):
    """Traces a module's own forward only: every child is a leaf."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def own_graph(owner: nn.Module, training: bool) -> fx.Graph:
    """The value-free graph of a module's own code in one mode.

    Raises:
        RefusedError: When its control flow depends on sizes or values.
    """
    twin = copy.copy(owner)
    twin.training = training
    try:
        return _OwnCode().trace(twin)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise RefusedError(
            f"the code of its owner {type(owner).__name__} cannot be traced without values: {reason}"
        ) from error


@dataclass(frozen=True)
class Code:
    """Python source of a forward and the names it uses."""

    source: str
    names: tuple[tuple[str, Any], ...]

    def compile(self) -> Callable[..., Any]:
        """The function; its first argument is the owner."""
        space = dict(self.names)
        exec(compile(self.source, "<surgeon>", "exec"), space)
        forward: Callable[..., Any] = space["forward"]
        return forward


def code_with(owner: nn.Module, function: str, index: int, child: str, training: bool) -> Code:
    """The owner's code in one mode, with its ``index``-th call of ``function`` given to the child named ``child``.

    Raises:
        RefusedError: When the code cannot be traced, or has no such call.
    """
    graph = own_graph(owner, training)
    calls = [node for node in graph.nodes if is_call(node, function)]
    if len(calls) <= index:
        raise RefusedError(f"the {'training' if training else 'evaluation'} code of its owner has no such call")
    call = calls[index]
    with graph.inserting_before(call):
        call.replace_all_uses_with(graph.call_module(child, (call.args[0],)))
    graph.erase_node(call)
    code = graph.python_code("self")
    return Code(code.src, tuple(sorted(code.globals.items(), key=lambda item: item[0])))
