"""What units are called: as the papers do where that fits, else by their path.

Zhang, Bengio and Singer (JMLR 2022, arXiv:1902.01996): ``stage0``, ``stage2.resblk3`` and ``final_linear`` of ResNets,
``stage1.block2`` and ``fc1`` of VGG nets, ``layer1`` of fully connected ones. Apart from finding units, which decides
nothing about names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from surgeon.site import Site


@dataclass(frozen=True)
class Unit:
    """A part of a model with all its values.

    Attributes:
        name: As the papers say where that fits (``stage2.resblk3``, ``stage0``, ``final_linear``), else the path.
        paths: Of the modules it consists of, in order of call.
        parameters: Names of its parameters in the model.
        buffers: Names of its buffers: running statistics belong to the unit of their norm.
        params: Number of values of its parameters.
        type_name: Class of its module; "" where it has several.
        residual: Whether it is a residual block.
        stage: Number of its stage, the stem is 0; None outside of stages.
    """

    name: str
    paths: tuple[str, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    params: int
    type_name: str
    residual: bool = False
    stage: int | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of parameters and buffers."""
        return self.parameters + self.buffers

    @property
    def path(self) -> str:
        """The paths in one text."""
        return ", ".join(self.paths)

    def joined(self, name: str, others: Sequence[Unit]) -> Unit:
        """This unit and others as one."""
        group = (self, *others)

        def together(field: str) -> tuple[str, ...]:
            return tuple(value for unit in group for value in getattr(unit, field))

        return replace(
            self,
            name=name,
            paths=together("paths"),
            parameters=together("parameters"),
            buffers=together("buffers"),
            params=sum(unit.params for unit in group),
            type_name="" if others else self.type_name,
            residual=self.residual and not others,
        )


def named(found: Sequence[Unit], module: nn.Module, sites: Sequence[Site], by_layer: bool = False) -> list[Unit]:
    """Give units their stages and names.

    Args:
        found: In order of call, named by their paths.
        module: Whose units they are.
        sites: Of the model.
        by_layer: Keep paths as names, whatever the network.
    """
    staged = _in_stages(found, module, sites)
    if by_layer:
        return staged
    detector = isinstance(getattr(module, "yaml", None), dict)
    names = [_detector_name(u) for u in staged] if detector else _paper_names(staged, module)
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [replace(u, name=u.name if name in twice else name) for u, name in zip(staged, names, strict=True)]


def _detector_name(unit: Unit) -> str:
    return f"layer{unit.name.split('.')[1]}.{unit.type_name}"


def _in_stages(found: Sequence[Unit], module: nn.Module, sites: Sequence[Site]) -> list[Unit]:
    """Number the stages: a new one with each container of blocks, else with each change of resolution."""
    homes = [unit.name.rpartition(".")[0] for unit in found if unit.residual]
    reductions = [_reduction(unit, sites) for unit in found]
    yaml = getattr(module, "yaml", None)
    if isinstance(yaml, dict):
        return _of_detector(found, reductions, len(yaml["backbone"]))
    several = len(set(homes)) > 1
    marks = [
        (u.name.rpartition(".")[0] if several else r) if u.residual else None
        for u, r in zip(found, reductions, strict=True)
    ]
    if not homes:
        marks = [
            r if u.type_name not in ("Linear",) and "pre_logits" not in u.name else None
            for u, r in zip(found, reductions, strict=True)
        ]
    marks = (
        [_sibling(u, module, set(homes)) or mark for u, mark in zip(found, marks, strict=True)] if several else marks
    )
    last = max((i for i, mark in enumerate(marks) if mark is not None), default=-1)
    staged, following, order = [], None, list(dict.fromkeys(mark for mark in marks if mark is not None))
    for i in reversed(range(len(found))):
        following = marks[i] if marks[i] is not None else following
        number = order.index(following) + 1 if i <= last and following is not None else None
        staged.append(replace(found[i], stage=0 if found[i].name == "stage0" else number))
    return staged[::-1]


def _sibling(unit: Unit, module: nn.Module, homes: set[str]) -> str | None:
    """A container of blocks without a skip is a stage like those beside it: ``blocks.0`` beside ``blocks.1``."""
    home, _, own = unit.name.rpartition(".")
    if unit.residual or not own.isdigit():
        return None
    if home in homes:
        return home
    weighted = any(p.ndim >= 2 for path in unit.paths for p in module.get_submodule(path).parameters())
    beside = any(h.rpartition(".")[0] == home and h.rpartition(".")[2].isdigit() for h in homes)
    return unit.name if weighted and beside else None


def _of_detector(found: Sequence[Unit], reductions: Sequence[int | None], backbone: int) -> list[Unit]:
    """A backbone has the stages of its resolutions; neck and head have none."""
    staged, stage, before = [], 0, None
    for unit, reduction in zip(found, reductions, strict=True):
        inside = int(unit.name.split(".")[1]) < backbone
        stage += inside and reduction is not None and before is not None and reduction > before
        before = reduction if reduction is not None else before
        staged.append(replace(unit, stage=stage if inside else None))
    return staged


def _reduction(unit: Unit, sites: Sequence[Site]) -> int | None:
    """Of what the unit reads."""
    inside = (site for site in sites if any(site.owner == p or site.owner.startswith(f"{p}.") for p in unit.paths))
    return next((site.reduction for site in inside if site.reduction), None)


def _paper_names(found: Sequence[Unit], module: nn.Module) -> list[str]:
    """ResNets', VGG nets' and fully connected nets' units as the papers call them; others by path."""
    last = _classifier(found, module)
    dense = [u for u in found if u.type_name == "Linear"]
    if any(u.residual for u in found):
        names = _of_residual(found)
    elif len(dense) == len(found):
        names = [f"layer{i + 1}" for i in range(len(found))]
    elif _is_chain(found, module):
        names = _of_chain(found)
    else:
        names = [u.name for u in found]
    return ["final_linear" if u is last else name for u, name in zip(found, names, strict=True)]


def _of_residual(found: Sequence[Unit]) -> list[str]:
    stages = {u.stage for u in found if u.residual}
    if len(stages) < 2:
        return [u.name for u in found]
    counts: Counter[int] = Counter()
    names = []
    for unit in found:
        block = unit.residual or (unit.stage and unit.name.rpartition(".")[2].isdigit() and unit.type_name != "Conv2d")
        if block and unit.stage:
            counts[unit.stage] += 1
            names.append(f"stage{unit.stage}.{'resblk' if unit.residual else 'block'}{counts[unit.stage]}")
        elif unit.stage:
            names.append(f"stage{unit.stage}.downsample")
        else:
            names.append(unit.name)
    return names


def _is_chain(found: Sequence[Unit], module: nn.Module) -> bool:
    """Whether all convs in stages are spatial, as in VGG nets."""
    convs = [module.get_submodule(u.name) for u in found if u.stage]
    return bool(convs) and all(isinstance(conv, nn.Conv2d) and max(conv.kernel_size) > 1 for conv in convs)


def _of_chain(found: Sequence[Unit]) -> list[str]:
    counts: Counter[int | None] = Counter()
    names = []
    for unit in found:
        counts[unit.stage] += 1
        names.append(f"stage{unit.stage}.block{counts[unit.stage]}" if unit.stage else f"fc{counts[None]}")
    return names


def _classifier(found: Sequence[Unit], module: nn.Module) -> Unit | None:
    """The unit of the classifier: what timm says it is, else the last linear layer."""
    ask: Any = getattr(module, "get_classifier", None)
    said = ask() if callable(ask) else None
    layers = [layer for layer in (said if isinstance(said, (tuple, list)) else [said]) if isinstance(layer, nn.Module)]
    own = {id(p) for layer in layers for p in layer.parameters()}
    mine = {name for name, p in module.named_parameters() if id(p) in own}
    holding = [unit for unit in found if mine & set(unit.parameters)]
    return next(iter(holding), found[-1] if found[-1].type_name == "Linear" else None)


__all__ = ["Unit", "named"]
