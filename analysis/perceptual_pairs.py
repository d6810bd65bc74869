"""Going over judged images: each distorted image beside its reference, which is looked at once for all of its own.

Apart from fitting and judging a distance, which both need this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from analysis.perceptual_distance import PerceptualDistance
from analysis.ratings import RatedChoices, Ratings
from surgeon.errors import AnalysisError

Distance = Callable[[Tensor, Tensor], Tensor]
Beside = Callable[[Tensor], Tensor]  # from images (N, C, H, W) to a row each, beside the reference they belong to


def measured(
    reference: Callable[[Tensor], Beside], images: Callable[[str], Tensor], names: Sequence[tuple[str, str]], size: int
) -> Iterator[tuple[int, Tensor]]:
    """Go over pairs of names (reference, distorted), and answer where each batch begins, and its rows.

    Neighbours of one reference whose distorted images are of one size make a batch, of at most ``size`` images.

    Args:
        reference: From a reference (C, H, W) to what is made of images beside it.
        images: From a name to an image.
        names: The pairs.
        size: Of a batch.
    """
    beside, of = None, None
    waiting: list[Tensor] = []
    begin = 0
    for place, (original, distorted) in enumerate(names):
        image = images(distorted)
        if waiting and (original != of or image.shape != waiting[0].shape or len(waiting) == size):
            yield begin, beside(torch.stack(waiting))  # type: ignore[misc]
            waiting, begin = [], place
        if original != of:
            beside, of = reference(images(original)), original
        waiting.append(image)
    if waiting and beside is not None:
        yield begin, beside(torch.stack(waiting))


def differences_beside(distance: PerceptualDistance) -> Callable[[Tensor], Beside]:
    """What the weights of a distance act on, (N, channels)."""

    def beside(reference: Tensor) -> Beside:
        features = distance.features(reference[None])
        return lambda images: distance.differences(features, distance.features(images))

    return beside


def distances_beside(distance: Distance) -> Callable[[Tensor], Beside]:
    """Distances, (N,): of a :class:`PerceptualDistance`, or of any function of two batches of images.

    The two batches of a function have the same shape.
    """
    if isinstance(distance, PerceptualDistance):
        differences = differences_beside(distance)

        def combined(reference: Tensor) -> Beside:
            beside = differences(reference)
            return lambda images: distance.combine(beside(images)).double().cpu()

        return combined

    def called(reference: Tensor) -> Beside:
        return lambda images: _checked(distance(reference.expand_as(images), images), len(images))

    return called


def _checked(found: Any, count: int) -> Tensor:
    if not isinstance(found, Tensor) or found.numel() != count:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise AnalysisError(f"the distance answered {what} for {count} pairs of images; it must answer one number each")
    return found.detach().reshape(count).double().cpu()


def finite(rows: Tensor, names: Sequence[tuple[str, str]]) -> Tensor:
    """Rows of pairs, (N,) or (N, channels), as they are.

    Raises:
        AnalysisError: When one is no number, with the names of its pair.

    Example:
        >>> finite(torch.tensor([0.5, 2.0]), [("a", "b"), ("a", "c")]).tolist()
        [0.5, 2.0]
    """
    fine = rows.isfinite().flatten(1).all(1) if rows.ndim > 1 else rows.isfinite()
    if not fine.all():
        reference, distorted = names[int(fine.logical_not().nonzero()[0])]
        raise AnalysisError(
            f"the distance of '{distorted}' to '{reference}' is nan or infinite; look at these two images, and at the "
            "precision of the network: half precision overflows, .float() helps"
        )
    return rows


@contextmanager
def progress_of(what: str, things: Sized, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal; yields a function that tells it how far things are."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (shown and console.is_terminal), transient=True) as progress:
        task = progress.add_task(what, total=len(things))
        yield lambda done: progress.update(task, completed=done)


def numbers(distance: Distance, data: Ratings, size: int, shown: bool) -> tuple[Tensor, bool]:
    """Distances of all pairs, or of the first ones where Ctrl-C came; whether all are there."""
    names = [(pair.reference, pair.distorted) for pair in data.items]
    return _gathered(distance, data, names, size, shown)


def _gathered(
    distance: Distance, data: Ratings | RatedChoices, names: list[tuple[str, str]], size: int, shown: bool
) -> tuple[Tensor, bool]:
    parts: list[Tensor] = []
    complete = True
    try:
        with progress_of("distances", names, shown) as tell:
            for begin, rows in measured(distances_beside(distance), data.image, names, size):
                parts.append(finite(rows, names[begin:]))
                tell(begin + len(rows))
    except KeyboardInterrupt:
        if not parts:
            raise
        complete = False
    return torch.cat(parts), complete


def choices(distance: Distance, data: RatedChoices, size: int, shown: bool) -> tuple[Tensor, bool]:
    """Distances of the first and the second image of all triplets, (N, 2), or of the first ones; whether all."""
    names = [(one.reference, name) for one in data.items for name in (one.first, one.second)]
    found, complete = _gathered(distance, data, names, size, shown)
    if len(found) < 2:
        raise KeyboardInterrupt  # it came within the first triplet
    return found[: len(found) // 2 * 2].view(-1, 2), complete
