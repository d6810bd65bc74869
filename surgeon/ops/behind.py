"""Where the features of a conv are ready: behind its norm and activation.

Kept apart from :mod:`surgeon.ops.conv_spd`, which passes only what commutes with space-to-depth: a blur may go further.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, fx, nn

from surgeon.derived import why_not_derived
from surgeon.edit import Append, untouchable
from surgeon.op import Refused
from surgeon.tracing import Trace

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardtanh, nn.SELU, nn.CELU, nn.Softplus, nn.Hardsigmoid),
)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
POINTWISE = "relu relu6 silu gelu hardswish hardtanh leaky_relu elu selu mish sigmoid tanh prelu clamp"
FUNCTIONS = frozenset(form for name in POINTWISE.split() for form in (name, f"{name}_"))


@dataclass(frozen=True)
class Place:
    """The output, or else the input, of the module at ``path``."""

    path: str
    output: bool


def behind(node: fx.Node, recorded: Trace) -> Place | Refused:
    """Behind the norm and activation of the conv ``node``, where these are modules called once, or before their reader.

    An activation that is a function, or a module called in several places, has no output of its own to take: then the
    place is the input of the one module that reads it. Where several read it, the place is in front of the activation.

    Args:
        node: A conv.
        recorded: The trace it is in.
    """
    calls = Counter(str(n.target) for n in recorded.graph.nodes if n.op == "call_module")
    last, best, loose = node, node, False
    for user in _chain(node, recorded):
        last = user
        if user.op == "call_function" or calls[str(user.target)] > 1 or not _appendable(user, recorded):
            loose = True
        elif not isinstance(_module(user, recorded), NOTHING):
            best, loose = user, False
    reader = next(iter(last.users)) if len(last.users) == 1 else None
    if loose and reader is not None and reader.op == "call_module" and reader.args[:1] == (last,):
        module = _module(reader, recorded)
        if module is not None and calls[str(reader.target)] == 1 and why_not_derived(type(module)) is None:
            return Place(str(reader.target), output=False)
    if not _appendable(best, recorded):
        return Refused(f"the output of '{best.target}' is already rearranged, or its class cannot be derived")
    return Place(str(best.target), output=True)


def _chain(node: fx.Node, recorded: Trace) -> list[fx.Node]:
    """The norms behind ``node``, then the activation, each the only reader of the one before."""
    found: list[fx.Node] = []
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = _module(node, recorded)
        activates = isinstance(module, ACTIVATIONS) or (
            node.op == "call_function" and node.meta["name"] in FUNCTIONS and len(node.all_input_nodes) == 1
        )
        if not activates and not isinstance(module, (*NORMS, *NOTHING)):
            break
        found.append(node)
        if activates or not isinstance(node.meta["val"], Tensor):
            break
    return found


def _module(node: fx.Node, recorded: Trace) -> nn.Module | None:
    if node.op != "call_module" or "<" in str(node.target):
        return None
    return recorded.model.get_submodule(str(node.target))


def _appendable(node: fx.Node, recorded: Trace) -> bool:
    module = _module(node, recorded)
    if module is None or Append.name in module._modules:
        return False
    return not untouchable(module) and why_not_derived(type(module)) is None
