"""How long a forward pass takes: nets timed in turns, so that a busy moment of the machine meets all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Measurement, Timer


def milliseconds(nets: Sequence[Any], images: Sequence[Tensor], rounds: int = 3, least: float = 0.3) -> list[float]:
    """Median milliseconds of a forward pass of each net on its images.

    Args:
        nets: In evaluation mode, where their images are.
        images: One batch for each.
        rounds: Turns of each net.
        least: Seconds of a turn, at least.

    Example:
        >>> milliseconds([], [])
        []
    """
    runs: list[list[Measurement]] = [[] for _ in nets]
    with torch.inference_mode():
        for _ in range(rounds):
            for net, image, run in zip(nets, images, runs, strict=True):
                timer = Timer("net(image)", globals={"net": net, "image": image}, num_threads=torch.get_num_threads())
                run.append(timer.blocked_autorange(min_run_time=least))
    return [1e3 * float(Measurement.merge(run)[0].median) for run in runs]
