"""Units: the parts of a network that are treated together, read off its recorded forward pass.

Zhang, Bengio and Singer (Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996) treat a residual block, or a plain
layer outside of blocks, as one unit. Apart from what is done to units, so that every analysis counts the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from analysis.unit_names import Unit, named
from surgeon.errors import AnalysisError
from surgeon.host import InputSize, input_sizes, unwrap
from surgeon.locating import sites_of
from surgeon.recorder import is_leaf
from surgeon.site import Site
from surgeon.tracing import Trace, record_forward

Level = Literal["layer", "block", "stage"]
STEM = "stage0"
OWN = "own values"  # of the model itself, whose path is empty
Groups = list[tuple[str, list[str]]]


def units(model: Any, level: Level = "block", input_size: InputSize = None) -> list[Unit]:
    """List the units of a model in order of call; every value that a forward pass uses is in exactly one.

    At ``"block"`` residual blocks are units, and so is whatever lies between them; a network without such blocks has
    its plain layers, a detector of ultralytics' its top-level layers. ``"layer"`` makes every layer with weights a
    unit, with its norm; ``"stage"`` joins the units of one stage.

    Args:
        model: Any module that takes one image tensor; a ``YOLO`` object.
        level: "layer", "block" or "stage".
        input_size: As for ``surgeon.locate``.

    Raises:
        AnalysisError: For another level, or a model that uses no parameter.
        SurgeonError: When the model cannot be recorded.

    Example:
        >>> import timm
        >>> [unit.name for unit in units(timm.create_model("test_resnet"))]
        ['stage0', 'stage1.resblk1', 'stage2.resblk1', 'stage3.resblk1', 'stage4.resblk1', 'final_linear']
    """
    if level not in get_args(Level):
        raise AnalysisError(f"units: level is {level!r}; it is one of {', '.join(get_args(Level))}")
    module = unwrap(model)
    recorded = record_forward(module, input_sizes(module, input_size))
    held = _held(recorded, module)
    if not any(True for path in held for _ in module.get_submodule(path).parameters(recurse=False)):
        raise AnalysisError(f"units: the forward pass of {type(module).__name__} uses no parameter")
    sites = sites_of(recorded)
    blocks = _blocks(sites)
    found = _units(module, _groups(module, held, blocks, level), blocks)
    found = named(found, module, sites, by_layer=level == "layer")
    return _stages(found) if level == "stage" else found


def _held(recorded: Trace, module: nn.Module) -> list[str]:
    """Paths of the modules that hold the values a forward pass uses, in order of call."""
    holders = [path for path, part in module.named_modules() if _own(part)]
    order: dict[str, None] = {}
    for node in recorded.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and "<" not in target:
            order.update(dict.fromkeys(path for path in holders if _lies_in(path, target)))
        elif node.op == "get_attr" and target.rpartition(".")[0] in holders:
            order[target.rpartition(".")[0]] = None
    return list(order)


def _own(part: nn.Module) -> list[Tensor]:
    return [tensor for tensor in [*part._parameters.values(), *part._buffers.values()] if tensor is not None]


def _lies_in(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.")


def _blocks(sites: Iterable[Site]) -> list[str]:
    """Paths of the residual blocks that lie in no other."""
    paths = [site.path for site in sites if site.kind == "block"]
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


def is_detector(module: nn.Module) -> bool:
    """Whether a module is ultralytics': top-level layers in a row, built from a yaml."""
    return isinstance(getattr(module, "model", None), nn.Sequential) and isinstance(getattr(module, "yaml", None), dict)


def _groups(module: nn.Module, held: list[str], blocks: list[str], level: Level) -> Groups:
    """The holders of values, by the path of the unit they belong to."""
    if level != "layer" and is_detector(module):
        return _gather((".".join(path.split(".")[:2]), path) for path in held)
    if level == "layer" or not blocks:
        return _layers(module, held)
    first = next((i for i, path in enumerate(held) if _around(path, blocks)), len(held))
    later = _gather((_around(path, blocks) or _free(path, blocks), path) for path in held[first:])
    return _with_norms(module, [(STEM, held[:first])] * bool(first) + later)


def _with_norms(module: nn.Module, groups: Groups) -> Groups:
    """A norm right behind a layer of the same module joins it."""
    joined: Groups = []
    for key, holders in groups:
        light = [key] == holders and all(tensor.ndim < 2 for tensor in _own(module.get_submodule(key)))
        before = joined[-1][0] if joined else STEM
        if light and before != STEM and is_leaf(module.get_submodule(before)) and _parent(before) == _parent(key):
            joined[-1][1].append(key)
        else:
            joined.append((key, list(holders)))
    return joined


def _gather(keyed: Iterable[tuple[str, str]]) -> Groups:
    groups: dict[str, list[str]] = {}
    for key, path in keyed:
        groups.setdefault(key, []).append(path)
    return list(groups.items())


def _around(path: str, blocks: Sequence[str]) -> str | None:
    return next((block for block in blocks if _lies_in(path, block)), None)


def _free(path: str, blocks: Sequence[str]) -> str:
    """The largest module around ``path`` that has no block in it."""
    parts = path.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((each for each in around if not any(block.startswith(f"{each}.") for block in blocks)), path)


def _layers(module: nn.Module, held: list[str]) -> Groups:
    """Each layer with weights, with the norm or scale behind it, or in front of it where nothing else is there."""
    groups: Groups = []
    waiting: list[str] = []  # norms in front of a layer
    for path in held:
        last = groups[-1][0] if groups else ""
        if last and is_leaf(module.get_submodule(last)) and _lies_in(path, last):
            groups[-1][1].append(path)  # the projection of an attention layer
        elif any(tensor.ndim >= 2 for tensor in _own(module.get_submodule(path))):
            near = [norm for norm in waiting if _parent(norm) == _parent(path)]
            groups += [(norm, [norm]) for norm in waiting if norm not in near]
            groups.append((path, [*near, path]))
            waiting = []
        elif groups and _parent(last) == _parent(path) and not waiting:
            groups[-1][1].append(path)
        else:
            waiting.append(path)
    return [*groups, *((norm, [norm]) for norm in waiting)]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _units(module: nn.Module, groups: Groups, blocks: Sequence[str]) -> list[Unit]:
    """The units, each with the values no earlier one has (some models use one tensor twice)."""
    names = {id(tensor): name for name, tensor in [*module.named_buffers(), *module.named_parameters()]}
    parameters, taken, found = dict(module.named_parameters()), set[str](), []
    for key, holders in groups:
        own = dict.fromkeys(names[id(t)] for path in holders for t in _own(module.get_submodule(path)))
        mine = [name for name in own if name not in taken]
        taken.update(mine)
        whole = key != STEM and all(_lies_in(path, key) for path in holders)
        weights = tuple(name for name in mine if name in parameters)
        unit = Unit(
            name=key or OWN,
            paths=(key,) if whole else tuple(holders),
            parameters=weights,
            buffers=tuple(name for name in mine if name not in parameters),
            params=sum(parameters[name].numel() for name in weights),
            type_name=type(module.get_submodule(key)).__name__ if key != STEM else "",
            residual=key in blocks,
        )
        found += [unit] if weights else []
    return found


def _stages(found: Sequence[Unit]) -> list[Unit]:
    """Join the units of each stage."""
    joined: dict[str, list[Unit]] = {}
    for unit in found:
        joined.setdefault(unit.name if unit.stage is None else f"stage{unit.stage}", []).append(unit)
    return [group[0].joined(name, group[1:]) for name, group in joined.items()]


__all__ = ["Level", "Unit", "is_detector", "units"]
