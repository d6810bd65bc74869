"""Follow the positions of the image through a recorded forward pass, and count, backwards, how often each is read.

Composed are convs, pools, shifts, padding, cropping, upsampling and the layers of surgery; what works position by
position (norms, activations, sums, concatenation, products) passes counts on. Whatever mixes positions otherwise
(attention, pooling over the whole map, gates made from that) is left out, and named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from analysis.footprint_layers import Weights, enlarged, proportions, total_stride, transfers_of
from analysis.footprints import Cell, Reading, Transfer, joined, ones, zeros
from surgeon.calls import arguments, lift
from surgeon.locating import function_path
from surgeon.tracing import Trace

MIXING = (
    *("matmul", "bmm", "einsum", "flip", "roll", "rot90", "sort", "gather", "scatter", "index_select", "grid_sample"),
    *("fft2", "ifft2", "rfft2", "irfft2", "cumsum", "scaled_dot_product_attention", "multi_head_attention_forward"),
)
RESHAPES = ("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze")
LARGEST = 512  # pixels of a cell at the image
LIFTED = ("conv2d", "max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "getitem")


@dataclass(frozen=True)
class Place:
    """Where the positions of a node's output lie.

    Attributes:
        axes: Of height and width.
        size: In positions.
        stride: Pixels of the image per position, down and right.
    """

    axes: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[float, float]


class Paths:
    """The ways from the image to each node, as far as they are known.

    Args:
        recorded: The forward pass.
        module: The model itself, whose layers have weights.
        weights: As of :func:`transfers_of`.
    """

    def __init__(self, recorded: Trace, module: nn.Module, weights: Weights = "taps") -> None:
        self.module, self.weights = module, weights
        self.buffers: dict[str, Tensor] = dict(module.named_buffers())
        self.tensors: dict[str, Tensor] = {**self.buffers, **dict(module.named_parameters())}
        self.nodes = list(recorded.graph.nodes)
        self.places: dict[fx.Node, Place] = {}
        self.sources: dict[fx.Node, list[tuple[fx.Node, list[Transfer]]]] = {}
        self.seeing: set[fx.Node] = set()  # whatever depends on the image
        for node in self.nodes:
            if node.op == "placeholder":
                self.places[node] = Place((2, 3), recorded.input_size[1:], (1.0, 1.0))
                self.image = node
                self.seeing.add(node)
            elif node.op.startswith("call") and self.seeing.intersection(node.all_input_nodes):
                self.seeing.add(node)
                self._visit(node)

    def sites(self) -> dict[str, tuple[fx.Node, Reading]]:
        """Layers that stride, by path: the node and what one output of it reads; each at its first call."""
        found: dict[str, tuple[fx.Node, Reading]] = {}
        for node, sources in self.sources.items():
            for _, transfers in sources:
                if max(total_stride(transfers)) > 1 and len(transfers) == 1 and isinstance(transfers[0], Reading):
                    found.setdefault(path_of(node), (node, transfers[0]))
        return found

    def last(self) -> list[fx.Node]:
        """Known maps that no other known map reads."""
        maps = [node for node in self.sources if max(self.places[node].size) > 1]
        read = {source for node in maps for source, _ in self.sources[node]}
        return [node for node in maps if node not in read]

    def reads_of_image(self, seeds: Iterable[fx.Node]) -> tuple[Cell | None, list[str]]:
        """How often each position of the image is read by all outputs of ``seeds``, each counted once.

        Returns:
            One cell of an endless image, None where no way back is known; and what is left out, by path.
        """
        wanted = [node for node in seeds if node in self.places]
        involved = self._behind(wanted)
        left_out = self._left_out(involved)
        period = self._period(involved)
        if self.image not in involved or period is None:
            return None, left_out
        cells = {node: zeros(self._cell(node, period)) for node in involved}
        for node in wanted:
            cells[node] = ones(self._cell(node, period))
        for node in reversed([node for node in self.nodes if node in involved]):
            for source, transfers in self.sources.get(node, ()):
                reads = cells[node]
                for transfer in reversed(transfers):
                    reads = transfer.carry(reads)
                if reads.shape != cells[source].shape:
                    return None, left_out  # meets itself at another stride
                cells[source] = cells[source] + reads
        return cells[self.image], left_out

    def _behind(self, seeds: Sequence[fx.Node]) -> set[fx.Node]:
        found, stack = set[fx.Node](), list(seeds)
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += [source for source, _ in self.sources.get(node, ())]
        return found

    def _left_out(self, involved: set[fx.Node]) -> list[str]:
        """Modules through which the image reaches the same places by ways that are not counted."""
        found = {}
        for node in self.nodes:
            if node in involved:
                known = {source for source, _ in self.sources.get(node, ())}
                others = [n for n in node.all_input_nodes if n in self.seeing and n not in known and n not in involved]
                found.update(dict.fromkeys(str(other.meta["owner"]) or path_of(other) for other in others))
        return list(found)

    def _period(self, involved: set[fx.Node]) -> tuple[int, int] | None:
        """The least cell at the image that holds whole cells of every map on the way."""
        sides = []
        for axis in (0, 1):
            strides = [self.places[node].stride[axis] for node in involved]
            if any(stride < 1 or not float(stride).is_integer() for stride in strides):
                return None
            sides.append(math.lcm(*(int(stride) for stride in strides)))
        return (sides[0], sides[1]) if max(sides) <= LARGEST else None

    def _cell(self, node: fx.Node, period: tuple[int, int]) -> tuple[int, int]:
        down, right = self.places[node].stride
        return (period[0] // int(down), period[1] // int(right))

    def _visit(self, node: fx.Node) -> None:
        known = [n for n in node.all_input_nodes if n in self.places] or self._begin_anew(node)
        if not known:
            return
        first, out = known[0], shape_of(node)
        place, transfers = self.places[first], self._transfers(node, self.places[first])
        if transfers is not None:
            self._add(node, _moved(place, transfers, out), [(first, joined(transfers))])
        elif node.op == "call_function" and node.meta["name"] in ("permute", "transpose", "movedim", *RESHAPES):
            self._add(node, _rearranged(node, shape_of(first), out, place), [(first, [])])
        elif not self._mixes(node, place):
            alike = [n for n in known if _same(self.places[n], place, out) and len(shape_of(n)) == len(out)]
            self._add(node, place if alike else None, [(n, []) for n in alike])

    def _begin_anew(self, node: fx.Node) -> list[fx.Node]:
        """The map that a layer reads behind what is not known: its reads count, but lead no further back."""
        source = next(iter(node.all_input_nodes))
        layer = self._layer(node)
        spatial = isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) or type(layer).__name__.startswith("SPD")
        if not spatial or len(shape_of(source)) != 4:
            return []
        self.places[source] = Place((2, 3), shape_of(source)[2:], (1.0, 1.0))  # type: ignore[arg-type]
        return [source]

    def _add(self, node: fx.Node, place: Place | None, sources: list[tuple[fx.Node, list[Transfer]]]) -> None:
        if place is not None:
            self.places[node], self.sources[node] = place, sources

    def _mixes(self, node: fx.Node, place: Place) -> bool:
        """Whether a call mixes positions by its nature, or is a linear layer along one of their axes."""
        name = node.meta["name"] if node.op == "call_function" else ""
        linear = name == "linear" or isinstance(self._layer(node), nn.Linear)
        return name in MIXING or (linear and len(shape_of(node)) - 1 in place.axes)

    def _layer(self, node: fx.Node) -> nn.Module | None:
        registered = node.op == "call_module" and "<" not in str(node.target)
        return self.module.get_submodule(str(node.target)) if registered else None

    def _transfers(self, node: fx.Node, place: Place) -> list[Transfer] | None:
        """What a layer or function reads; None where it is not known."""
        layer = self._layer(node)
        if layer is None and node.op == "call_function":
            layer = lift(node, self._attribute) if node.meta["name"] in LIFTED else None
            if layer is None:
                return function_transfers(node, place)
        found = None if layer is None else transfers_of(layer, place.size, self.weights)
        fixed = self._fixed(node) if found and node.op == "call_function" else None
        return found if fixed is None or found is None else [replace(found[0], taps=fixed)]  # type: ignore[type-var]

    def _fixed(self, node: fx.Node) -> Any:
        """Of a functional conv whose kernel is a buffer (timm's blurs): its weights as whole numbers."""
        weight = arguments(node)["weight"] if node.meta["name"] == "conv2d" else None
        while isinstance(weight, fx.Node) and weight.op == "call_function" and weight.meta["name"] in ("expand", "to"):
            weight = weight.args[0]
        known = isinstance(weight, fx.Node) and weight.op == "get_attr" and str(weight.target) in self.buffers
        return proportions(self.tensors[str(weight.target)]) if known else None  # type: ignore[union-attr]

    def _attribute(self, node: fx.Node) -> Tensor | None:
        return self.tensors.get(str(node.target)) if node.op == "get_attr" else None


def function_transfers(node: fx.Node, place: Place) -> list[Transfer] | None:
    """Of functions that pad, crop or enlarge."""
    name, out, rank = node.meta["name"], shape_of(node), len(shape_of(node))
    if name == "pad" and isinstance(node.args[1], (tuple, list)):
        pads = [side for side in node.args[1] if isinstance(side, int)]
        fronts = [pads[2 * (rank - 1 - axis)] if 2 * (rank - 1 - axis) < len(pads) else 0 for axis in place.axes]
        return [Reading((-fronts[0],), (-fronts[1],))]
    if name == "getitem" and isinstance(node.args[1], tuple) and len(node.args[1]) == rank == 4:
        parts = [node.args[1][axis] for axis in place.axes]
        if all(isinstance(part, slice) and part.step in (None, 1) for part in parts):
            starts = [part.start or 0 for part in parts]  # type: ignore[union-attr]
            return [Reading((starts[0],), (starts[1],))] if min(starts) >= 0 else None
    if name in ("interpolate", "upsample") and rank == 4:
        factors = [out[axis] / side for axis, side in zip(place.axes, place.size, strict=True)]
        if all(factor >= 1 and float(factor).is_integer() for factor in factors):
            return [enlarged((int(factors[0]), int(factors[1])))]
    return None


def path_of(node: fx.Node) -> str:
    """The path of a layer, or of a functional call as sites are named."""
    if node.op == "placeholder":
        return "the image"
    return str(node.target) if node.op == "call_module" else function_path(node)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Of the output; of the first of several."""
    value: Any = node.meta.get("val")
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _same(place: Place, other: Place, out: Sequence[int]) -> bool:
    """Whether the output has its positions where ``place`` has them, which are those of ``other``."""
    there = len(out) > max(place.axes) and tuple(out[axis] for axis in place.axes) == place.size
    return there and (place.axes, place.stride) == (other.axes, other.stride)


def _moved(place: Place, transfers: Sequence[Transfer], out: Sequence[int]) -> Place | None:
    if len(out) <= max(place.axes):
        return None
    stride = list(place.stride)
    for transfer in transfers:
        for axis in (0, 1):
            stride[axis] *= transfer.stride[axis] if isinstance(transfer, Reading) else 1 / transfer.factor[axis]
    return Place(place.axes, (out[place.axes[0]], out[place.axes[1]]), (stride[0], stride[1]))


def _rearranged(node: fx.Node, shape: Sequence[int], out: Sequence[int], place: Place) -> Place | None:
    """Where positions lie after axes were exchanged, split or joined; None where they are no longer two axes."""
    name, given = node.meta["name"], node.args[1:]
    if name in RESHAPES:
        front, back = math.prod(shape[: place.axes[0]]), math.prod(shape[place.axes[1] + 1 :])
        for axis in range(len(out) - 1):
            fits = (out[axis], out[axis + 1]) == place.size and place.axes[1] == place.axes[0] + 1
            if fits and math.prod(out[:axis]) == front and math.prod(out[axis + 2 :]) == back:
                return Place((axis, axis + 1), place.size, place.stride)
        return None
    flat = [axis for each in given for axis in (each if isinstance(each, (tuple, list)) else [each])]
    if not all(isinstance(axis, int) for axis in flat) or name == "movedim":
        return None
    axes = [int(axis) % len(shape) for axis in flat]  # type: ignore[arg-type]
    order = list(range(len(shape)))
    if name == "permute" and sorted(axes) == order:
        order = axes
    elif name == "transpose" and len(axes) == 2:
        order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
    else:
        return None
    rows, columns = (order.index(axis) for axis in place.axes)
    return Place((rows, columns), place.size, place.stride) if rows < columns else None


__all__ = ["Paths", "path_of"]
