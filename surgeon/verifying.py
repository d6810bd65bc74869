"""Verify: does the operated model still compute the same function, on the user's own images, and where not?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surgeon.differences import Difference, tensors_in
from surgeon.errors import SurgeonError
from surgeon.host import unwrap
from surgeon.randomness import State, drawn_since, generators, generators_kept
from surgeon.rewriting import record
from surgeon.settings import misfit
from surgeon.verification import OUTPUT, Verification

ROUNDING = 16  # times the rounding error of the model before: another order of summation makes no more
UNMEASURED = 64  # units in the last place, where the rounding error of the model cannot be measured
WHOLE = ""  # the path of the model itself


class Call(NamedTuple):
    """What a module was given and answered, where the generators stood, and whether it drew from them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answer: Any
    start: State
    drew: bool


Calls = dict[str, list[Call]]
Found = dict[str, Difference]


def verify(before: nn.Module, after: nn.Module, data: Any, *, tolerance: float | None = None) -> Verification:
    """Compare two models on real images, site by site and at the output, in evaluation mode.

    Each site of ``after`` is given the input that the site of ``before`` got, so one wrong site does not hide another.
    A difference counts as rounding up to 16 times the rounding error of ``before`` itself, which is measured on the
    first batch: its own answer against that of its copy in float64. (Of a float64 model: against float32, scaled down;
    where its code allows no other precision or draws random numbers, 64 units in the last place are taken for it.)
    Every tensor of an answer is measured by itself, in containers and dataclasses too. Both models draw the same random
    numbers (on the CPU), if any. A model on another device than ``after`` is copied there: devices round differently.

    Args:
        before: The model as it was (a deep copy, or loaded again).
        after: The operated model, of the same precision, on whatever device.
        data: A tensor of images (N, C, H, W), or batches of images or of (images, targets).
        tolerance: Relative difference that counts as rounding, in place of the measured one.

    Raises:
        SurgeonError: When ``data`` holds no image or none the models take, both models are one object, they differ in
            precision or have no values, ``before`` lacks a site of ``after``, or ``tolerance`` is no such number.

    Example:
        >>> import copy, torch, surgeon
        >>> before = surgeon.create_model("test_resnet")
        >>> after = surgeon.apply(copy.deepcopy(before), "spd")
        >>> verify(before, after, torch.rand(2, 3, 64, 64)).same
        True
    """
    old, new = unwrap(before), unwrap(after)
    _check_tolerance(tolerance)
    found = {path: Difference() for path in [*_comparable(old, new), WHOLE]}
    if _device(old) != _device(new):
        old = copy.deepcopy(old).to(_device(new))
    images, agreements = 0, list[float]()
    with _evaluating(old), _evaluating(new), torch.no_grad():
        for batch in _batches(data):
            calls = _watched(old, batch, found)
            if not images and tolerance is None:
                _measure_rounding(old, calls, found)
            answer, result = calls[WHOLE][0].answer, _answer(new, batch, "after")
            found[WHOLE].add(answer, result)
            _compare_sites(new, calls, found)
            images += len(batch)
            agreements += _agreements(answer, result)
    if not images:
        raise SurgeonError("verify got no image; pass a tensor (N, C, H, W) or batches of (images, targets)")
    rows = [_row(path, difference, tolerance) for path, difference in found.items()]
    return Verification(rows, images, sum(agreements) / images if len(agreements) == images else None)


def _check_tolerance(tolerance: float | None) -> None:
    if misfit(tolerance, float | None) or (tolerance is not None and not 0 <= tolerance < math.inf):
        raise SurgeonError(f"tolerance is {tolerance!r}; it is a relative difference from 0 up, such as 1e-5, or None")


def _row(path: str, difference: Difference, tolerance: float | None) -> dict[str, Any]:
    """Inner shapes may change by design, those of the output may not."""
    row = difference.row(path or OUTPUT, ROUNDING, tolerance)
    if difference.broken and path == WHOLE:
        return {**row, "max_abs": math.inf, "relative": math.inf, "limit": 0.0}
    return {**row, "note": f"{row['note']}: by design, see the output"} if difference.broken else row


def _comparable(old: nn.Module, new: nn.Module) -> list[str]:
    """The modules that were rewritten, or own a rewritten call; the whole model counts as the output."""
    if old is new:
        raise SurgeonError("verify compares two models, these are one object; keep copy.deepcopy(model) before apply")
    if _dtype(old) != _dtype(new):
        raise SurgeonError(f"verify got {_dtype(old)} before and {_dtype(new)} after; bring both to one by .to(dtype)")
    if any(p.is_meta for model in (old, new) for p in model.parameters()):
        raise SurgeonError("verify got a model on the meta device, which has no values; load its weights first")
    changes = (c for c in record(new).changes if c.status == "rewritten")
    paths = [path for path in dict.fromkeys(c.path.split(":")[0] for c in changes) if path]
    there = dict(old.named_modules(remove_duplicate=False))
    if lost := [path for path in paths if path not in there]:
        raise SurgeonError(
            f"the model before ({type(old).__name__}) has no '{lost[0]}', which was rewritten in the one after "
            f"({type(new).__name__}); pass the model it was made from"
        )
    return paths


def _answer(model: nn.Module, batch: Tensor, which: str) -> Any:
    try:
        with generators_kept():
            return model(batch.to(_device(model), _dtype(model), copy=True))
    except Exception as error:
        raise SurgeonError(
            f"the model {which} ({type(model).__name__}) cannot run on images of shape {tuple(batch.shape)}: "
            f"{type(error).__name__}: {error}; pass images of the size it takes"
        ) from error


def _watched(model: nn.Module, batch: Tensor, paths: Iterable[str]) -> Calls:
    """The calls of each path, with the arguments as they came in."""
    calls: Calls = {path: [] for path in paths}
    entered: dict[str, list[Any]] = {path: [] for path in calls}

    def enter(path: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        entered[path].append((*_copied((args, kwargs)), generators()))

    def leave(path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        args, kwargs, start = entered[path].pop()
        calls[path].append(Call(args, kwargs, _copied(output), start, drawn_since(start)))

    handles = []
    try:
        for path in calls:
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(partial(enter, path), prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(partial(leave, path)))
        _answer(model, batch, "before")
        return calls
    finally:
        for handle in handles:
            handle.remove()


def _copied(value: Any) -> Any:
    """A copy whose tensors have no history."""
    return copy.deepcopy(value, {id(x): x.detach().clone() for _, x in tensors_in(value)})


def _called(module: nn.Module, call: Call, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The answer to the arguments of a call, moved to ``device`` and ``dtype``."""

    def move(x: Tensor) -> Tensor:
        return x.to(device, dtype if dtype is not None and x.is_floating_point() else x.dtype, copy=True)

    args, kwargs = torch.utils._pytree.tree_map_only(Tensor, move, (call.args, call.kwargs))
    with generators_kept(call.start):
        return module(*args, **kwargs)


def _compare_sites(model: nn.Module, calls: Calls, found: Found) -> None:
    """A site that cannot take its old input lies behind a widened one; the output tells whether that is right."""
    for path, several in calls.items():
        for call in several if path != WHOLE else []:
            try:
                found[path].add(call.answer, _called(model.get_submodule(path), call, _device(model)))
            except (RuntimeError, TypeError, ValueError) as error:
                found[path].broken, found[path].note = True, f"takes another input now ({str(error).splitlines()[0]})"


def _measure_rounding(model: nn.Module, calls: Calls, found: Found) -> None:
    """How far ``model`` is from its copy in another precision, at each site given the same input, and at the output."""
    eps = torch.finfo(_dtype(model)).eps
    steady = {path: several for path, several in calls.items() if not any(call.drew for call in several)}
    pairs, share = _answers_elsewhere(model, steady)
    for path, difference in found.items():
        difference.least = eps if path in pairs else UNMEASURED * eps
        for there, here in pairs.get(path, []):
            difference.add_rounding(there, here, share)


def _answers_elsewhere(model: nn.Module, calls: Calls) -> tuple[dict[str, list[tuple[Any, Any]]], float]:
    """The answers of a copy in another precision beside those there were, and how much of the difference is ours."""
    eps = torch.finfo(_dtype(model)).eps
    device = torch.device("cpu") if _device(model).type == "mps" else _device(model)
    for other in [dtype for dtype in (torch.float64, torch.float32) if dtype != _dtype(model)]:
        try:
            twin = copy.deepcopy(model).to(device).to(other)
            pairs = {
                path: [(_called(twin.get_submodule(path), call, device, other), call.answer) for call in several]
                for path, several in calls.items()
            }
        except Exception:  # its code fixes a precision
            continue
        return pairs, eps / max(eps, torch.finfo(other).eps)  # a coarser copy errs more, by as much
    return {}, 1.0


def _agreements(old: Any, new: Any) -> list[float]:
    """For each image whether the top-1 class is the same; empty where the answers are no tables of logits."""
    if (
        not all(isinstance(y, Tensor) and y.ndim == 2 and not y.is_complex() for y in (old, new))
        or old.shape != new.shape
    ):
        return []
    a, b = old.cpu(), new.cpu()
    return [float(x) for x in (a.argmax(1) == b.argmax(1)) & a.isfinite().all(1) & b.isfinite().all(1)]


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _batches(data: Any) -> Iterator[Tensor]:
    if not isinstance(data, Iterable):
        raise SurgeonError(f"verify got {type(data).__name__}; pass images (N, C, H, W) or batches of them")
    for batch in [data] if isinstance(data, Tensor) else data:
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
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
