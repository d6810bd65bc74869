"""How long one image takes: the forward pass of detectors, measured in turns.

Apart from the scores, which are the same on every machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

from analysis.timing import milliseconds


def latencies(models: Sequence[Any], imgsz: int, device: str = "cpu", rounds: int = 3) -> list[float]:
    """Median milliseconds per image at batch 1, in float32, of each model.

    The net alone is timed, fused as ultralytics fuses it for inference, without preparing the image and without
    suppressing double boxes. The models take turns, so that a busy moment of the machine meets all of them.

    Args:
        models: Ultralytics objects; copies are fused and timed.
        imgsz: Height and width of the image in pixels, rounded up to a multiple of the largest stride; validation
            pads by half a stride more.
        device: As torch names devices; a bare number is a CUDA device.
        rounds: Turns of each model, 0.3 seconds at least each.

    Returns:
        Milliseconds, in the order of the models.

    Example:
        >>> latencies([], 64)
        []
    """
    place = torch.device(f"cuda:{device}" if str(device).isdigit() else device)
    nets = [_fused(model).to(place) for model in models]
    sides = [side(model, imgsz) for model in models]
    draw = torch.Generator().manual_seed(0)
    images = [
        torch.rand(1, channels(model), one, one, generator=draw).to(place)
        for model, one in zip(models, sides, strict=True)
    ]
    return milliseconds(nets, images, rounds)


def side(model: Any, imgsz: int) -> int:
    """Height and width in pixels of the image an ultralytics object is given for ``imgsz``."""
    stride = max(int(model.model.stride.max()), 32)  # as ultralytics' AutoBackend
    return math.ceil(imgsz / stride) * stride


def channels(model: Any) -> int:
    """Colour channels of the images an ultralytics object takes."""
    return int(getattr(model.model, "yaml", {}).get("channels", 3))


def _fused(model: Any) -> Any:
    return copy.deepcopy(model.model).float().eval().fuse(verbose=False)
