"""Widen the readers of an edge whose channels grow, so that the model computes the same function at first.

Growth is followed through norms (widened too), activations, pools and concatenation, until a conv or a linear layer
reads it; that one gets zero weights for the new channels. Anything else on the way is a reason to refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from surgeon.edit import Edit, SetAttribute, Swap, twin, untouchable
from surgeon.following import memory_format
from surgeon.ops.spd_windows import conv_style
from surgeon.tracing import Trace

SPATIAL = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.padding._ConstantPadNd,
    nn.Upsample,
    nn.Identity,
    nn.modules.dropout._DropoutNd,
)
PER_CHANNEL_ACTIVATIONS = (nn.PReLU, nn.GLU, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.MultiheadAttention)
THROUGH = frozenset(
    [
        "relu",
        "relu6",
        "silu",
        "gelu",
        "mish",
        "sigmoid",
        "tanh",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "leaky_relu",
        "elu",
        "selu",
        "softplus",
        "clamp",
        "dropout",
        "dropout2d",
        "max_pool2d",
        "max_pool2d_with_indices",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "interpolate",
        "contiguous",
        "clone",
        "float",
        "to",
    ]
)


@dataclass(frozen=True)
class Growth:
    """How the channels of an edge grow: which old channel each new one stems from, and whether it is that channel."""

    source: tuple[int, ...]
    primary: tuple[bool, ...]

    @classmethod
    def of_blocks(cls, channels: int, block: int) -> Growth:
        """Each channel becomes ``block`` neighbouring ones, of which the first is the old one."""
        return cls(
            tuple(c for c in range(channels) for _ in range(block)),
            tuple(i == 0 for _ in range(channels) for i in range(block)),
        )

    @classmethod
    def none(cls, channels: int) -> Growth:
        """Channels that stay as they are."""
        return cls(tuple(range(channels)), (True,) * channels)

    def then(self, other: Growth) -> Growth:
        """These channels followed by ``other``'s, as concatenation puts them."""
        offset = max(self.source) + 1
        return Growth(self.source + tuple(offset + c for c in other.source), self.primary + other.primary)


class Widening:
    """Follows the growth of one edge to its readers.

    Args:
        recorded: The trace.
        start: The node whose output grows.
        growth: How.
    """

    def __init__(self, recorded: Trace, start: fx.Node, growth: Growth) -> None:
        self.recorded = recorded
        self.grown: dict[fx.Node, Growth] = {start: growth}
        self.readers: dict[str, Callable[[nn.Module], nn.Module]] = {}
        self.reason: str | None = None
        self.extra: list[Edit] = []
        nodes = list(recorded.graph.nodes)
        for node in nodes[nodes.index(start) + 1 :]:
            if self.reason is None and any(n in self.grown for n in node.all_input_nodes):
                self.reason = self._meet(node)
        self.reason = self.reason or self._run_twice()

    def why_not(self) -> str | None:
        """Why a reader cannot be widened, or None."""
        return self.reason

    def edits(self) -> list[Edit]:
        """One swap per widened module."""
        swaps: list[Edit] = [Swap(path, make) for path, make in self.readers.items()]
        return swaps + self.extra

    def _meet(self, node: fx.Node) -> str | None:
        """Widen ``node``, pass the growth on, or say why neither can be."""
        if node.op == "output":
            return "reaches the model's output"
        if node.op == "call_module" and "<" not in str(node.target):
            return self._meet_module(node)
        name = node.meta["name"]
        if name == "cat" and self._axis(node) in (1, -3):
            self._concatenate(node)
            return None
        value = node.meta["val"]
        global_mean = name == "mean" and isinstance(value, Tensor) and value.shape[:2] == self._input(node).shape[:2]
        flat = name in ("flatten", "squeeze") and self._input(node).shape[2:] == (1, 1)
        if name in THROUGH or global_mean or flat:
            self.grown[node] = self.grown[_subject(node)]
            return None
        if name in ("add", "iadd") and len({self.grown.get(n) for n in node.all_input_nodes}) == 1:
            self.grown[node] = self.grown[node.all_input_nodes[0]]
            return None
        where = node.meta["owner"] or "the model"
        return f"is read by '{name}' in '{where}', which needs the channels it had"

    def _input(self, node: fx.Node) -> Tensor:
        value: Tensor = _subject(node).meta["val"]
        return value

    def _axis(self, node: fx.Node) -> Any:
        return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)

    def _concatenate(self, node: fx.Node) -> None:
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        grown = [self.grown.get(part, Growth.none(part.meta["val"].shape[1])) for part in parts]
        total = grown[0]
        for part in grown[1:]:
            total = total.then(part)
        self.grown[node] = total

    def _meet_module(self, node: fx.Node) -> str | None:
        path, growth = str(node.target), self.grown[node.all_input_nodes[0]]
        module = self.recorded.model.get_submodule(path)
        if reason := untouchable(module):
            return f"is read by '{path}', which {reason}"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            self.readers[path] = partial(widen_norm, growth)
            self.grown[node] = growth
            return None
        if isinstance(module, nn.Linear):
            return self._widen_linear(node, module, growth)
        if isinstance(module, nn.Conv2d) and conv_style(module) in ("plain", "same") and _groups_hold(module, growth):
            self.readers[path] = partial(widen_conv, growth)
            return None
        activation = type(module).__module__ == "torch.nn.modules.activation"
        if isinstance(module, SPATIAL) or (activation and not isinstance(module, PER_CHANNEL_ACTIVATIONS)):
            self.grown[node] = growth
            return None
        if isinstance(module, nn.Flatten) and self._input(node).shape[2:] == (1, 1):
            self.grown[node] = growth
            return None
        return f"is read by '{path}' ({type(module).__name__}), which cannot be widened"

    def _widen_linear(self, node: fx.Node, module: nn.Linear, growth: Growth) -> str | None:
        if self._input(node).ndim != 2 or module.in_features != max(growth.source) + 1:
            return f"is read by '{node.target}' (Linear) on the last axis of a map"
        self.readers[str(node.target)] = partial(widen_linear, growth)
        model = self.recorded.model
        classifier = getattr(model, "get_classifier", lambda: None)()
        if classifier is module:
            sizes = [n for n in ("num_features", "head_hidden_size") if getattr(model, n, None) == module.in_features]
            self.extra += [SetAttribute("", name, lambda _old: len(growth.source)) for name in sizes]
        return None

    def _run_twice(self) -> str | None:
        """A widened module must read only edges that grow, in the same way, each time it runs."""
        for node in self.recorded.graph.nodes:
            if node.op != "call_module" or str(node.target) not in self.readers:
                continue
            seen = {self.grown.get(n) for n in self.recorded.graph.nodes if n in node.all_input_nodes}
            calls = [n for n in self.recorded.graph.nodes if n.op == "call_module" and n.target == node.target]
            if len(seen) != 1 or None in seen or len(calls) > 1:
                return f"is read by '{node.target}', which also reads other features"
        return None


def _subject(node: fx.Node) -> fx.Node:
    """The tensor a function works on, given by position or by name."""
    return cast(fx.Node, node.args[0] if node.args else node.kwargs["input"])


def _groups_hold(conv: nn.Conv2d, growth: Growth) -> bool:
    """Whether the new channels of each group stem from the old ones of that group."""
    width, each = conv.in_channels // conv.groups, len(growth.source) // conv.groups
    whole = len(growth.source) % conv.groups == 0 and conv.in_channels == max(growth.source) + 1
    return whole and all(c // width == i // each for i, c in enumerate(growth.source))


def widen_conv(growth: Growth, conv: nn.Module) -> nn.Module:
    """The conv with zero weights for the channels that are new."""
    old: nn.Parameter = conv.weight  # type: ignore[assignment]
    groups, total = int(conv.groups), len(growth.source)  # type: ignore[arg-type]
    each, width = total // groups, old.shape[1]
    local = torch.tensor(growth.source, device=old.device) % width
    mask = torch.tensor(growth.primary, device=old.device).to(old.dtype).view(groups, 1, each, 1, 1)
    grouped = old.detach().view(groups, -1, width, *old.shape[2:])  # (g, C_out/g, C_in/g, kh, kw)
    index = local.view(groups, 1, each, 1, 1).expand(-1, grouped.shape[1], -1, *old.shape[2:])
    weight = (grouped.gather(2, index) * mask).reshape(old.shape[0], each, *old.shape[2:])
    new = twin(conv)
    new.weight = nn.Parameter(weight.contiguous(memory_format=memory_format(old)), old.requires_grad)
    new.in_channels = total  # type: ignore[assignment]
    return new


def widen_linear(growth: Growth, linear: nn.Module) -> nn.Module:
    """The linear layer with zero weights for the features that are new."""
    old: nn.Parameter = linear.weight  # type: ignore[assignment]
    mask = torch.tensor(growth.primary, device=old.device).to(old.dtype)
    new = twin(linear)
    new.weight = nn.Parameter(old.detach()[:, list(growth.source)] * mask, old.requires_grad)
    new.in_features = len(growth.source)  # type: ignore[assignment]
    return new


def widen_norm(growth: Growth, norm: nn.Module) -> nn.Module:
    """The norm whose new channels start with the scale, shift and statistics of the channel they stem from."""
    new, source = twin(norm), list(growth.source)
    for name, value in norm._parameters.items():
        if value is not None:
            new._parameters[name] = nn.Parameter(value.detach()[source], value.requires_grad)
    for name, buffer in norm._buffers.items():
        if buffer is not None:
            new._buffers[name] = buffer[source].clone() if buffer.ndim else buffer.clone()
    new.num_features = len(source)  # type: ignore[assignment]
    return new
