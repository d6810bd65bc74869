"""How far two answers are apart: every tensor in them, by name, against the rounding error measured there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (str, bytes, int, float, complex, type(None), type, nn.Module)


def tensors_in(value: Any, name: str = "", within: frozenset[int] = frozenset()) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested containers, dataclasses and plain objects, with how it is reached.

    Example:
        >>> [name for name, _ in tensors_in({"logits": torch.ones(1), "maps": [torch.ones(2)]})]
        ["['logits']", "['maps'][0]"]
    """
    parts: Iterator[tuple[str, Any]] = iter(())
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, PLAIN) or id(value) in within:
        return
    elif isinstance(value, Mapping):
        parts = ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (tuple, list)):
        parts = ((f"[{i}]", part) for i, part in enumerate(value))
    elif is_dataclass(value):
        parts = ((f".{f.name}", getattr(value, f.name)) for f in fields(value))
    elif hasattr(value, "__dict__"):
        parts = ((f".{key}", part) for key, part in vars(value).items())
    for suffix, part in parts:
        yield from tensors_in(part, name + suffix, within | {id(value)})


@dataclass
class Gap:
    """Of one tensor over all images: largest difference, largest value, relative rounding error, any finite value."""

    gap: float = 0.0
    scale: float = 0.0
    rounding: float = 0.0
    finite: bool = False

    @property
    def relative(self) -> float:
        """The difference over the largest value."""
        return self.gap / self.scale if self.scale else self.gap

    def add(self, old: Tensor, new: Tensor) -> None:
        """Take in one more pair: where only one value is finite, or they are other infinities, the gap is infinite."""
        if not old.numel():
            return
        a, b = (_numbers(x) for x in (old, new))
        equal = (a == b) | (a.isnan() & b.isnan())
        gaps = (a - b).abs().masked_fill(equal, 0.0).nan_to_num(math.inf, math.inf)
        self.gap = max(self.gap, float(gaps.max()))
        self.scale = max(self.scale, float(a.abs().nan_to_num(0, 0, 0).max()))
        self.finite |= bool(a.isfinite().any())


def _numbers(x: Tensor) -> Tensor:
    """In float64 on the CPU, complex ones as pairs."""
    x = torch.view_as_real(x.detach().resolve_conj()) if x.is_complex() else x.detach()
    return x.cpu().double()


@dataclass
class Difference:
    """Of one site or the output: a gap for each tensor in its answer.

    ``least`` is the least rounding error to reckon with; ``broken`` says that the tensors are not the same ones.
    """

    gaps: dict[str, Gap] = field(default_factory=dict)
    note: str = ""
    broken: bool = False
    least: float = 0.0

    def add(self, old: Any, new: Any) -> None:
        """Take in one more pair of answers."""
        a, b = dict(tensors_in(old)), dict(tensors_in(new))
        if shapes(a) != shapes(b):
            self.note, self.broken = f"{shapes(a)} before, {shapes(b)} after", True
            return
        if not a:
            self.note = self.note or f"{type(old).__name__} holds no tensor to compare"
        for name in a:
            self.gaps.setdefault(name, Gap()).add(a[name], b[name])

    def add_rounding(self, there: Any, here: Any, share: float) -> None:
        """Measure the rounding error of ``here``: its ``share`` in the difference from another precision's answer.

        What is not finite, or comes out in another shape, tells nothing.
        """
        found = Difference()
        found.add(there, here)
        for name, gap in found.gaps.items():
            if math.isfinite(gap.gap):
                entry = self.gaps.setdefault(name, Gap())
                entry.rounding = max(entry.rounding, share * gap.relative)

    def row(self, path: str, times: int, tolerance: float | None) -> dict[str, Any]:
        """The tensor that differs most: ``path``, ``max_abs``, ``relative``, ``limit`` and ``note``.

        Args:
            path: Of the site.
            times: How often the rounding error a difference may be.
            tolerance: The limit, in place of the measured one.
        """
        limits = {
            n: tolerance if tolerance is not None else times * max(g.rounding, self.least) for n, g in self.gaps.items()
        }
        if self.broken or not any(g.finite or g.gap for g in self.gaps.values()):
            note = self.note or ("no value is finite" if self.gaps else "did not run")
            return {"path": path, "max_abs": None, "relative": None, "limit": None, "note": note}
        name = max(limits, key=lambda n: (self.gaps[n].relative > limits[n], self.gaps[n].relative / (limits[n] or 1)))
        worst, notes = self.gaps[name], [f"at {name}"] if name else []
        if math.isinf(worst.gap):
            notes.append("a value is not finite in one of them only")
        known = {"max_abs": worst.gap, "relative": worst.relative, "limit": limits[name]}
        return {"path": path, **known, "note": ", ".join(notes)}


def shapes(tensors: Mapping[str, Tensor]) -> str:
    """Names and shapes in words."""
    return ", ".join(f"{name} {tuple(x.shape)}".strip() for name, x in tensors.items()) or "no tensor"
