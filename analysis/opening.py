"""Open what a user gives to study: the task of the model, its batches, the size of its images, and what tells it apart.

Apart from the studies and scans, which all open alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.study_settings import Settings
from analysis.tasks import Classification
from surgeon.errors import AnalysisError, SurgeonError
from surgeon.host import InputSize, host_of, input_sizes, unwrap
from surgeon.randomness import generators_kept


def open_data(model: Any, data: Any, s: Settings) -> tuple[Any, Any, Any]:
    """The task of a model, its batches, and what looks after a detector's."""
    if host_of(model) is None and not isinstance(getattr(unwrap(model), "yaml", None), dict):
        if isinstance(data, (str, Path)):
            raise AnalysisError(f"data is {str(data)!r}; give batches of (images, class indices), such as a DataLoader")
        return Classification(s.metrics), data, None
    from analysis.detection_task import open_task

    return open_task(model, data, s)  # type: ignore[no-any-return]


def detects(model: Any) -> bool:
    """Whether a model is one of ultralytics' that finds boxes, or anything else but classes.

    Example:
        >>> detects(torch.nn.Linear(2, 2))
        False
    """
    if host_of(model) is None and not isinstance(getattr(unwrap(model), "yaml", None), dict):
        return False
    from analysis.detection_task import task_of

    return task_of(model) not in ("", "classify")


def input_size_of(module: torch.nn.Module, task: Any, data: Any, given: InputSize) -> InputSize:
    """The image size to record a model with: the user's, None for the model's own, else that of the first image.

    Raises:
        SurgeonError: When none of them is known, as of data that can be gone through once only.
    """
    if given is not None:
        return given
    try:
        input_sizes(module)
    except SurgeonError:
        if not isinstance(data, Iterable) or isinstance(data, Iterator):
            raise
        with generators_kept():
            first = next(iter(data), None)
        if first is None:
            raise AnalysisError("data holds no batch; give at least one (images, targets)") from None
        task.count(first)  # says what is wrong with the batch
        if first[0].ndim != 4:
            raise
        return (first[0].shape[1], first[0].shape[2], first[0].shape[3])
    return None


def versions_of() -> dict[str, str]:
    """The versions of the packages that computed a result."""
    found = {}
    for name in ("torch", "timm", "ultralytics", "scipy", "captum", "cnn-surgeon"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def fingerprint(module: torch.nn.Module) -> str:
    """Tells one model from another: its weights, and what its layers are."""
    layers = [f"{path} {type(part).__qualname__} {part.extra_repr()}" for path, part in module.named_modules()]
    made = hashlib.blake2b("\n".join(layers).encode(), digest_size=8).hexdigest()
    return f"{type(module).__name__} {digest([*module.parameters(), *module.buffers()])} {made}"


def digest(tensors: Iterable[Tensor]) -> str:
    """Of shapes and all values."""
    found = hashlib.blake2b(digest_size=12)
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
