"""Verify: does the operated model still compute the same function, on the user's own images, and where not?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import SurgeonError
from surgeon.host import unwrap
from surgeon.rewriting import record
from surgeon.table import table

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
OUTPUT = "output"


@dataclass(frozen=True)
class Verification:
    """Differences between two models on the same images; prints in words and as a table.

    Args:
        rows: One per site and one for the output: ``path``, ``max_abs`` (largest absolute difference), ``relative``
            (the same over the largest absolute value there) and ``note``.
        images: How many images were seen.
        agreement: Share of images with the same top-1 class; None where the output is no table of logits.
        tolerance: Largest relative difference that counts as rounding.
    """

    rows: list[dict[str, Any]]
    images: int
    agreement: float | None
    tolerance: float

    @property
    def same(self) -> bool:
        """Whether every site and the output agree to rounding."""
        return all(row["relative"] <= self.tolerance for row in self.rows if row["relative"] is not None)

    @property
    def verdict(self) -> str:
        """One sentence: the same function, or where not and by how much."""
        known = [row for row in self.rows if row["relative"] is not None]
        agree = "" if self.agreement is None else f", top-1 agreement {self.agreement:.2%}"
        if self.same:
            worst = max(known, key=lambda row: row["relative"])
            return (
                f"same function: over {self.images} images the largest relative difference is "
                f"{worst['relative']:.1e} ({worst['path']}){agree}"
            )
        first = next(row for row in known if row["relative"] > self.tolerance)
        return (
            f"not the same function: over {self.images} images it first differs at '{first['path']}', "
            f"by {first['max_abs']:.3g} absolute and {first['relative']:.1e} relative{agree}"
        )

    def __str__(self) -> str:
        rows = [(r["path"], _show(r["max_abs"]), _show(r["relative"]), r["note"]) for r in self.rows]
        columns = ("path", "max abs", "relative", "note")
        return f"{self.verdict}\n{table(columns, rows, right=frozenset(columns[1:3]))}"

    __repr__ = __str__


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def verify(before: nn.Module, after: nn.Module, data: Any, *, tolerance: float | None = None) -> Verification:
    """Compare two models on real images, site by site and at the output, in evaluation mode.

    Each site of ``after`` is given the input that the site of ``before`` got, so one wrong site does not hide another.

    Args:
        before: The model as it was (a deep copy, or loaded again).
        after: The operated model.
        data: A tensor of images (N, C, H, W), or batches of images or of (images, targets).
        tolerance: Relative difference that counts as rounding; by default 1e-9, 1e-3, 5e-2 or 2e-1 for float64,
            float32, float16 and bfloat16.

    Raises:
        SurgeonError: When ``data`` holds no image, or both models are one object.

    Example:
        >>> import copy, torch, surgeon
        >>> before = surgeon.create_model("test_resnet")
        >>> after = surgeon.apply(copy.deepcopy(before), "spd")
        >>> verify(before, after, torch.rand(2, 3, 64, 64)).same
        True
    """
    old, new = unwrap(before), unwrap(after)
    if old is new:
        raise SurgeonError("verify compares two models, these are one object; keep copy.deepcopy(model) before apply")
    paths = _paths(new)
    worst: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    images, agreed, classified = 0, 0, 0
    with _evaluating(old), _evaluating(new), torch.no_grad():
        for batch in _batches(data, next(new.parameters(), torch.empty(0))):
            seen, answer = _run(old, batch, paths)
            for path in paths:
                for inputs, output in seen.get(path, []):
                    _measure(path, output, new.get_submodule(path)(*inputs), worst, notes)
            result = new(batch)
            _measure(OUTPUT, answer, result, worst, notes)
            images += len(batch)
            if isinstance(answer, Tensor) and isinstance(result, Tensor) and answer.ndim == 2:
                agreed += int((answer.argmax(1) == result.argmax(1)).sum())
                classified += len(batch)
    if not images:
        raise SurgeonError("verify got no image; pass a tensor (N, C, H, W) or batches of (images, targets)")
    rows = [_row(path, worst.get(path), notes.get(path, "")) for path in [*paths, OUTPUT]]
    limit = tolerance if tolerance is not None else TOLERANCE.get(next(new.parameters()).dtype, 1e-3)
    return Verification(rows, images, agreed / classified if classified else None, limit)


def _paths(model: nn.Module) -> list[str]:
    """The modules that were rewritten, or own a rewritten call; the whole model counts as the output."""
    changes = (c for c in record(model).changes if c.status == "rewritten")
    return [path for path in dict.fromkeys(c.path.split(":")[0] for c in changes) if path]


def _run(model: nn.Module, batch: Tensor, paths: Iterable[str]) -> tuple[dict[str, list[Any]], Any]:
    """Run ``model``; for each path its inputs and output, call by call."""
    seen: dict[str, list[Any]] = {}

    def keep(path: str, _module: nn.Module, inputs: Any, output: Any) -> None:
        inputs = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
        seen.setdefault(path, []).append((inputs, output.clone() if isinstance(output, Tensor) else output))

    handles = [model.get_submodule(path).register_forward_hook(partial(keep, path)) for path in paths]
    try:
        return seen, model(batch)
    finally:
        for handle in handles:
            handle.remove()


def _measure(path: str, old: Any, new: Any, worst: dict[str, list[float]], notes: dict[str, str]) -> None:
    pairs = list(zip(_tensors(old), _tensors(new), strict=False))
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        notes[path] = "the shape changes here by design; see the output"
        return
    entry = worst.setdefault(path, [0.0, 0.0])
    for a, b in pairs:
        if a.numel():
            entry[0] = max(entry[0], float((a.double() - b.double()).abs().max()))
            entry[1] = max(entry[1], float(a.double().abs().max()))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _row(path: str, found: list[float] | None, note: str) -> dict[str, Any]:
    if found is None:
        return {"path": path, "max_abs": None, "relative": None, "note": note or "did not run"}
    relative = found[0] / found[1] if found[1] else found[0]
    return {"path": path, "max_abs": found[0], "relative": relative, "note": note}


def _batches(data: Any, like: Tensor) -> Iterator[Tensor]:
    for batch in [data] if isinstance(data, Tensor) else data:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise SurgeonError(f"verify got {type(images).__name__}; pass images (N, C, H, W) or batches of them")
        yield images.to(like.device, like.dtype)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
