"""Run a model on images and on shifted images, and let the features go to whoever compares them.

Apart from what is asked of the features: here are data, pieces of batches, hooks, and putting the model back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from analysis.interrupts import breathe
from analysis.moving import Fill, shift_images
from analysis.perturb import untouched
from analysis.shift_errors import ShiftErrors
from analysis.tapping import listening
from surgeon.errors import AnalysisError


def images_of(batch: Any) -> Tensor:
    """The images of a batch: itself, or the first of what it holds.

    Raises:
        AnalysisError: When they are none.
    """
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or not len(images):
        what = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise AnalysisError(f"data: a batch holds {what}, and no images (N, C, H, W) of real numbers")
    return images


def size_of(data: Any) -> tuple[int, int, int]:
    """(C, H, W) of the first image.

    Raises:
        AnalysisError: When there is none, or the data can be gone through once only.
    """
    if not isinstance(data, Iterable) or isinstance(data, (str, Tensor, Iterator)):
        raise AnalysisError(f"data is a {type(data).__name__}; give batches that can be gone through again, as a list")
    first = next(iter(data), None)
    if first is None:
        raise AnalysisError("data holds no batch; give at least one of images")
    channels, height, width = images_of(first).shape[1:]
    return (channels, height, width)


def run_shifted(
    module: nn.Module,
    data: Iterable[Any],
    errors: ShiftErrors,
    at_once: int,
    limit: int | None,
    seed: int,
    show: bool,
    fill: Fill = 0.0,
) -> bool:
    """Go over the data, with one pass for the images and one for each shift; the model is put back bit for bit.

    Args:
        module: The model.
        data: Batches.
        errors: Gets the features.
        at_once: Images in one pass.
        limit: Most images.
        seed: Of models that draw at random.
        show: The progress.
        fill: Value of black.

    Returns:
        False where Ctrl-C ended it.
    """
    device = next((tensor.device for tensor in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    with untouched(module):
        try:
            with _progress(show) as advance:
                for images in _pieces(data, at_once, limit):
                    _piece(module, images.to(device), errors, seed, fill)
                    advance()
        except KeyboardInterrupt:
            if not errors.images:
                raise
            errors.close()
            return False
    errors.close()
    return True


def _pieces(data: Iterable[Any], at_once: int, limit: int | None) -> Iterator[Tensor]:
    left = math.inf if limit is None else limit
    for batch in data:
        images = images_of(batch)
        images = images[: int(min(left, len(images)))]
        left -= len(images)
        for start in range(0, len(images), at_once):
            breathe()
            yield images[start : start + at_once]
        if left <= 0:
            return


def _piece(module: nn.Module, images: Tensor, errors: ShiftErrors, seed: int, fill: Fill) -> None:
    """One forward pass of the images, and one for each shift."""
    taps, known = list(errors.taps.values()), {name: b.clone() for name, b in _counters(module)}

    def run(shown: Tensor, read: Callable[[str, Tensor], None]) -> None:
        with torch.random.fork_rng(devices=[]), listening(module, taps, read):
            torch.manual_seed(seed + errors.images)  # models that draw at random draw the same each time
            module(shown)
        for name, buffer in _counters(module):
            buffer.copy_(known[name])

    run(images, errors.keep)
    for shift in errors.shifts:
        run(shift_images(images, *shift, padding=errors.padding, fill=fill), partial(errors.compare, shift))
    errors.finish(len(images))


def _counters(module: nn.Module) -> list[tuple[str, Tensor]]:
    """What random layers count their passes in."""
    return [(name, b) for name, b in module.named_buffers() if b.dtype == torch.int64]


@contextmanager
def _progress(show: bool) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    with Progress(console=console, disable=not (show and console.is_terminal), transient=True) as progress:
        bar = progress.add_task("pieces of images", total=None)
        yield lambda: progress.advance(bar)


__all__ = ["images_of", "run_shifted", "size_of"]
