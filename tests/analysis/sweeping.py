"""Sweeps over treated networks for the tests of the engine: every unit gets other values, and all ways must agree."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.parts import Unit, units
from analysis.perturb import Places
from analysis.readings import FINAL, Readings
from analysis.sweeping import sweep
from analysis.tasks import Classification
from analysis.variants import WHOLE, Plan, Variant

Batches = list[tuple[Tensor, Tensor]]


def batches(size: int, counts: Sequence[int] = (3, 2), channels: int = 3, classes: int = 10, seed: int = 0) -> Batches:
    """Random images and classes; the last batch is smaller."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(count, channels, size, size, generator=generator),
            torch.randint(0, classes, (count,), generator=generator),
        )
        for count in counts
    ]


def other_values(model: nn.Module, names: Iterable[str], seed: int) -> dict[str, Tensor]:
    """Values of the same shape, far from the model's own."""
    tensors, generator = Places(model).tensors, torch.Generator().manual_seed(seed)
    found = {}
    for name in names:
        tensor = tensors[name]
        if not tensor.is_floating_point():
            found[name] = tensor.clone()
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        moved = tensor.detach() + noise * (0.3 * tensor.detach().abs().mean() + 0.05)
        found[name] = moved.abs() + 0.1 if name.endswith("running_var") else moved
    return found


def plan_of(
    model: nn.Module, data: Any, found: Sequence[Unit], draws: int = 1, whole: bool = True, **more: Any
) -> Plan:
    """A sweep that gives each unit, and the whole model, other values."""
    parts = {unit.name: (list(unit.paths), list(unit.tensors)) for unit in found}
    tensors = {**{name: held for name, (_, held) in parts.items()}}
    if whole:
        tensors[WHOLE] = [name for _, held in parts.values() for name in held]

    def values(part: str, draw: int) -> Callable[[], dict[str, Tensor]]:
        return cache(lambda: other_values(model, tensors[part], draw))

    variants = [Variant(part, "other", draw, values(part, draw)) for part in tensors for draw in range(draws)]
    return Plan(model, Classification(), data, parts, variants, progress=False, **more)


def swept(plan: Plan) -> Readings:
    readings, complete = sweep(plan)
    assert complete
    return readings


def differences(one: Readings, other: Readings) -> list[str]:
    """Where two sweeps do not say the same: counts exactly, losses to 1e-6."""
    left, right = one.pack(), other.pack()
    found = [f"{name!r} is in one only" for name in left.keys() ^ right.keys()]
    for name in left.keys() & right.keys():
        a, b = left[name], right[name]
        near = np.allclose(a, b, 1e-6, 1e-6, equal_nan=True) if name.endswith("\nloss") else np.array_equal(a, b)
        found += [] if near else [f"{name!r}: {a} {b}"]
    return found


def both_ways(
    model: nn.Module, data: Batches, level: Any = "block", size: Any = None, full: Sequence[str] = (), **more: Any
) -> Readings:
    """Sweep in one pass and in a pass each, and insist on equal numbers; ``full`` are parts that cannot be replayed."""
    found = units(model, level, size or tuple(data[0][0].shape[1:])) if isinstance(level, str) else level
    plan = plan_of(model, data, found, **more)
    one = swept(plan)
    each = swept(replace(plan, method="naive", notes=[], loaded=0))
    assert differences(one, each) == []
    told = [note.split("'")[1] for note in plan.notes if "is computed in full" in note]
    assert sorted(told) == sorted(full), plan.notes
    changed = {key.split("|")[0] for key in one.variants() if key != FINAL and np.any(one.paired(key, "loss"))}
    assert changed == {*(unit.name for unit in found), *([WHOLE] if more.get("whole", True) else [])}
    return one
