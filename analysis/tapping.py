"""Which outputs of a model are looked at: those of its units, of its pools, and its own; read by hooks while it runs.

Apart from what is measured of them. Nothing is stored but what the reader of an output keeps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, get_args

from torch import Tensor, fx, nn
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from analysis.feature_layout import Layout, layout_of
from analysis.parts import Level, Unit
from analysis.parts import units as find_units
from analysis.stride_periods import reductions
from surgeon.errors import AnalysisError
from surgeon.tracing import Trace, record_forward

POOLS = (_AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd)
POOL_NAMES = ("pool", "blur", "aps")  # in the class names of layers that pool, of timm's and ours
OUTPUT = "output"
Read = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Tap:
    """An output that is looked at.

    Attributes:
        name: Of the unit, or the path of the module; "output" of the model itself.
        path: Of the module whose output it is.
        what: "unit", "pool", "module" (named by the user) or "output".
        layout: How it holds its features.
        channels: Of a map; length of a vector.
        order: Of the call in the forward pass.
    """

    name: str
    path: str
    what: str
    layout: Layout
    channels: int
    order: int

    @property
    def values(self) -> int:
        """Numbers per image."""
        return self.channels * self.layout.height * self.layout.width


def find_taps(
    model: Any, module: nn.Module, units: Level | Sequence[Any], size: tuple[int, int, int], pools: bool = True
) -> tuple[list[Tap], list[str]]:
    """List the outputs to look at, in order of call.

    Args:
        model: As users pass it.
        module: The module in it.
        units: "layer", "block" or "stage"; or units, or paths of modules.
        size: (C, H, W) of the images.
        pools: Add the pools that lie in no unit, and the output of the model.

    Returns:
        The taps, and what is left out, in words.

    Raises:
        AnalysisError: For units that are none, a path the model has not, or no output that can be looked at.
        SurgeonError: When the model cannot be recorded.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5))
        >>> [(tap.name, tap.what, tap.layout.kind) for tap in find_taps(net, net, "layer", (3, 8, 8))[0]]
        [('0', 'unit', 'map'), ('1', 'pool', 'map'), ('3', 'unit', 'vector')]
    """
    named = _named(model, module, units, size)
    recorded = record_forward(module, [size])
    answers, totals = _answers(recorded), reductions(recorded)
    wanted = [(name, path, what) for name, paths, what in named if (path := _last(paths, answers))]
    notes = [f"{name}: does not answer one tensor" for name, paths, _ in named if _last(paths, answers) is None]
    inside = [path for _, paths, _ in named for path in paths]
    if pools and isinstance(units, str):
        wanted += [(path, path, "pool") for path in _pools(module, answers) if not _lies_in_one(path, inside)]
    prefix, last = getattr(module, "num_prefix_tokens", None), getattr(module, "output_fmt", None) == "NHWC"
    found, strides = list[Tap](), sorted(set(totals.values()))
    for name, path, what in wanted:
        value, order = answers[path].meta["val"], answers[path].meta["order"]
        layout = layout_of(tuple(value.shape), totals[answers[path]], size[1:], last, prefix, strides)
        if isinstance(layout, str):
            notes.append(f"{name}: {layout}")
        else:
            channels = value.shape[-1] if layout.kind == "tokens" else value.numel() // layout.height // layout.width
            found.append(Tap(name, path, what, layout, channels, order))
    if pools and isinstance(units, str):
        found += _output(recorded, found)
    if not found:
        raise AnalysisError(
            f"{type(module).__name__} has no output to look at: {'; '.join(notes[:3]) or 'no module is called'}; name "
            "modules by their paths with units="
        )
    return sorted(found, key=lambda tap: tap.order), notes


@contextmanager
def listening(module: nn.Module, taps: Sequence[Tap], read: Read) -> Iterator[None]:
    """While the block runs, every output of a tap that this thread computes goes to ``read``, once per forward pass.

    Of a module that runs several times it is the first output. The hooks are gone afterwards.

    Args:
        module: Of the taps.
        taps: Their modules.
        read: Gets the path of the module and its output.
    """
    thread, heard = threading.get_ident(), set[str]()

    def hear(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if threading.get_ident() == thread and path not in heard and isinstance(output, Tensor):
                heard.add(path)
                read(path, output)

        return hook

    paths = dict.fromkeys(tap.path for tap in taps)
    hooks = [module.get_submodule(path).register_forward_hook(hear(path)) for path in paths]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _named(
    model: Any, module: nn.Module, units: Level | Sequence[Any], size: tuple[int, int, int]
) -> list[tuple[str, tuple[str, ...], str]]:
    """Name, paths, and what it is, of all that was asked for."""
    if isinstance(units, str):
        return [(unit.name, unit.paths, "unit") for unit in find_units(model, cast(Level, units), size)]
    known = {path for path, _ in module.named_modules(remove_duplicate=False)}
    found: list[tuple[str, tuple[str, ...], str]] = []
    for each in units if isinstance(units, Sequence) else ():
        if isinstance(each, Unit):
            found.append((each.name, each.paths, "unit"))
        elif isinstance(each, str) and each in known:
            found.append((each or OUTPUT, (each,), "module" if each else OUTPUT))
        else:
            raise AnalysisError(
                f"units holds {each!r}, which is no path of a module of {type(module).__name__} and no unit; list "
                "units with analysis.units(model), paths with model.named_modules()"
            )
    if not found:
        raise AnalysisError(f"units is {units!r}; give {', '.join(get_args(Level))}, a list of units, or paths")
    return found


def _answers(recorded: Trace) -> dict[str, fx.Node]:
    """The node that holds the output of each module that answers one tensor, by path; of its first call."""
    found: dict[str, fx.Node] = {}
    for node in recorded.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            own = [str(node.target)] if node.op == "call_module" and "<" not in str(node.target) else []
            for path in [*own, *node.meta.get("returned_by", ())]:
                if "<" not in path:
                    found.setdefault(path, node)
    return found


def _last(paths: Sequence[str], answers: dict[str, fx.Node]) -> str | None:
    """Of several modules the one that is called last."""
    there = [path for path in paths if path in answers]
    return max(there, key=lambda path: answers[path].meta["order"], default=None)


def _pools(module: nn.Module, answers: dict[str, fx.Node]) -> list[str]:
    """Pools, the outermost where one holds another."""
    found: list[str] = []
    for path in sorted(answers, key=lambda path: path.count(".")):
        part = module.get_submodule(path)
        name = type(part).__name__.lower()
        pools = isinstance(part, POOLS) or any(word in name for word in POOL_NAMES)
        if pools and not isinstance(part, (nn.Conv2d, nn.Linear)) and not _lies_in_one(path, found):
            found.append(path)
    return found


def _lies_in_one(path: str, others: Sequence[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in others)


def _output(recorded: Trace, taps: Sequence[Tap]) -> list[Tap]:
    """The model's own answer, where it is a vector and no tap has it."""
    given = recorded.graph.output_node().args[0]
    node = given if isinstance(given, fx.Node) else None
    value = recorded.outputs
    if node is None or not isinstance(value, Tensor) or value.ndim != 2:
        return []
    if any(tap.order == node.meta["order"] for tap in taps):
        return []
    return [Tap(OUTPUT, "", OUTPUT, Layout("vector"), value.shape[1], node.meta["order"] + 1)]


__all__ = ["Tap", "find_taps", "listening"]
