"""Verify: does the operated model still compute the same function, on the user's own images, and where not?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import SurgeonError
from surgeon.host import unwrap
from surgeon.rewriting import record
from surgeon.verification import OUTPUT, Verification

ROUNDING = 16  # times the rounding error of the model before: another order of summation makes no more
PLAIN = (str, bytes, int, float, type(None))


def verify(before: nn.Module, after: nn.Module, data: Any, *, tolerance: float | None = None) -> Verification:
    """Compare two models on real images, site by site and at the output, in evaluation mode.

    Each site of ``after`` is given the input that the site of ``before`` got, so one wrong site does not hide another.
    A difference counts as rounding up to 16 times the rounding error of ``before`` itself, which is measured on the
    first batch: its own answer against that of its copy in float64.

    Args:
        before: The model as it was (a deep copy, or loaded again).
        after: The operated model, of the same precision.
        data: A tensor of images (N, C, H, W), or batches of images or of (images, targets).
        tolerance: Relative difference that counts as rounding, in place of the measured one.

    Raises:
        SurgeonError: When ``data`` holds no image, both models are one object, they differ in precision, or ``before``
            lacks a site of ``after``.

    Example:
        >>> import copy, torch, surgeon
        >>> before = surgeon.create_model("test_resnet")
        >>> after = surgeon.apply(copy.deepcopy(before), "spd")
        >>> verify(before, after, torch.rand(2, 3, 64, 64)).same
        True
    """
    old, new = unwrap(before), unwrap(after)
    paths = _comparable(old, new)
    found = {path: _Difference() for path in [*paths, OUTPUT]}
    images, agreed, classified = 0, 0, 0
    with _evaluating(old), _evaluating(new), torch.no_grad():
        for batch in _batches(data):
            seen, answer = _run(old, batch, paths)
            if not images and tolerance is None:
                _measure_rounding(old, batch, seen, answer, found)
            for path, calls in seen.items():
                for inputs, keywords, output in calls:
                    args, kwargs = _for(new, (inputs, keywords))
                    found[path].compare(output, _answer(new.get_submodule(path), args, kwargs))
            result = new(_for(new, batch))
            found[OUTPUT].compare(answer, result)
            images += len(batch)
            if all(isinstance(y, Tensor) and y.ndim == 2 for y in (answer, result)):
                agreed += int((answer.argmax(1).cpu() == result.argmax(1).cpu()).sum())
                classified += len(batch)
    if not images:
        raise SurgeonError("verify got no image; pass a tensor (N, C, H, W) or batches of (images, targets)")
    eps = torch.finfo(_dtype(new)).eps
    rows = [difference.row(path, eps, tolerance) for path, difference in found.items()]
    return Verification(rows, images, agreed / classified if classified else None)


def _answer(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """None where the module takes other channels by now: what lies in front of it was widened."""
    try:
        return module(*args, **kwargs)
    except RuntimeError:
        return None


def _comparable(old: nn.Module, new: nn.Module) -> list[str]:
    """The modules that were rewritten, or own a rewritten call; the whole model counts as the output."""
    if old is new:
        raise SurgeonError("verify compares two models, these are one object; keep copy.deepcopy(model) before apply")
    if _dtype(old) != _dtype(new):
        raise SurgeonError(f"verify got {_dtype(old)} before and {_dtype(new)} after; bring both to one by .to(dtype)")
    changes = (c for c in record(new).changes if c.status == "rewritten")
    paths = [path for path in dict.fromkeys(c.path.split(":")[0] for c in changes) if path]
    there = dict(old.named_modules(remove_duplicate=False))
    if lost := [path for path in paths if path not in there]:
        raise SurgeonError(
            f"the model before ({type(old).__name__}) has no '{lost[0]}', which was rewritten in the one after "
            f"({type(new).__name__}); pass the model it was made from"
        )
    return paths


@dataclass
class _Difference:
    """What was seen of one site: largest difference, largest value, and the rounding error of the model before."""

    gap: float = 0.0
    scale: float = 0.0
    rounding: float = 0.0
    note: str = ""
    broken: bool = False
    compared: bool = False

    def compare(self, old: Any, new: Any) -> None:
        """Take in one more pair of answers."""
        a, b = list(_tensors(old)), list(_tensors(new))
        if [x.shape for x in a] != [x.shape for x in b]:
            shapes = (", ".join(str(tuple(x.shape)) for x in side) or "nothing" for side in (a, b))
            self.note, self.broken = "shape {} before, {} after".format(*shapes), True
            return
        self.note = self.note or ("" if a else f"{type(old).__name__} holds no tensor to compare")
        pairs = [(x.detach().double().cpu(), y.detach().double().cpu()) for x, y in zip(a, b, strict=True) if x.numel()]
        for x, y in pairs:
            self.compared = True
            self.gap = max(self.gap, _gap(x, y))
            self.scale = max(self.scale, float(x.abs().nan_to_num(0, 0, 0).max()))
        if self.gap == float("inf") and not self.note:
            self.note = "a value is not finite in one of them"

    def relative(self) -> float:
        """The difference over the largest value."""
        return self.gap / self.scale if self.scale else self.gap

    def row(self, path: str, eps: float, tolerance: float | None) -> dict[str, Any]:
        """As :class:`Verification` lists it; inner shapes may change by design, the output's may not."""
        limit = tolerance if tolerance is not None else ROUNDING * max(self.rounding, eps)
        known = {"path": path, "limit": limit}
        if self.broken and path == OUTPUT:
            return {**known, "max_abs": float("inf"), "relative": float("inf"), "note": self.note}
        if self.broken or not self.compared:
            note = f"{self.note}; by design, see the output" if self.broken else self.note or "did not run"
            return {**known, "max_abs": None, "relative": None, "note": note}
        return {**known, "max_abs": self.gap, "relative": self.relative(), "note": self.note}


def _gap(x: Tensor, y: Tensor) -> float:
    """The largest difference; infinite where only one of two values is finite, or they are other infinities."""
    equal = (x == y) | (x.isnan() & y.isnan())
    return float((x - y).abs().masked_fill(equal, 0.0).nan_to_num(float("inf"), float("inf")).max())


def _measure_rounding(
    model: nn.Module, batch: Tensor, seen: dict[str, list[Any]], answer: Any, found: dict[str, _Difference]
) -> None:
    """How far ``model`` is from its own copy in float64, at each site given the same input, and at the output."""
    exact = copy.deepcopy(model).to("cpu" if _device(model).type == "mps" else _device(model)).double()
    for path, calls in seen.items():
        for inputs, keywords, output in calls:
            args, kwargs = _for(exact, (inputs, keywords))
            found[path].rounding = max(
                found[path].rounding, _distance(exact.get_submodule(path)(*args, **kwargs), output)
            )
    found[OUTPUT].rounding = _distance(exact(_for(exact, batch)), answer)


def _distance(exact: Any, rounded: Any) -> float:
    one = _Difference()
    one.compare(exact, rounded)
    return one.relative() if one.compared and not one.broken and one.gap < float("inf") else 0.0


def _run(model: nn.Module, batch: Tensor, paths: Iterable[str]) -> tuple[dict[str, list[Any]], Any]:
    """Run ``model``; for each path its arguments as they came in, and its output, call by call."""
    seen: dict[str, list[Any]] = {path: [] for path in paths}

    def enter(path: str, _module: nn.Module, inputs: Any, keywords: Any) -> None:
        seen[path].append([*_cloned((inputs, keywords)), None])

    def leave(path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        next(call for call in reversed(seen[path]) if call[2] is None)[2] = _cloned(output)

    handles = []
    try:
        for path in seen:
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(partial(enter, path), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(leave, path)))
        return seen, model(_for(model, batch))
    finally:
        for handle in handles:
            handle.remove()


def _cloned(value: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, value)


def _for(model: nn.Module, value: Any) -> Any:
    """Fresh copies of the tensors, on the device of ``model`` and in its precision."""
    device, dtype = _device(model), _dtype(model)

    def move(x: Tensor) -> Tensor:
        return x.to(device, dtype if x.is_floating_point() else x.dtype, copy=True)

    return torch.utils._pytree.tree_map_only(Tensor, move, value)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, dataclasses and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, f.name) for f in fields(value)])
    elif not isinstance(value, (nn.Module, type, *PLAIN)) and hasattr(value, "__dict__"):
        yield from _tensors([part for part in vars(value).values() if part is not value])


def _batches(data: Any) -> Iterator[Tensor]:
    for batch in [data] if isinstance(data, Tensor) else data:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(images, Tensor) or images.ndim != 4:
            shape = f" of shape {tuple(images.shape)}" if isinstance(images, Tensor) else ""
            raise SurgeonError(
                f"verify got {type(images).__name__}{shape}; pass images (N, C, H, W) or batches of them"
            )
        yield images


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
