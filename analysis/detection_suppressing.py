"""Suppress double boxes only until as many are found as are wanted: the same ones, in a fraction of the time.

A treated detector is often a little sure of everything, and comparing its tens of thousands of boxes with each other
takes far longer than the network. Apart from measuring, since it reaches into what ultralytics calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

Suppress = Callable[[Tensor, Tensor, float], Tensor]


def surest(suppress: Suppress, boxes: Tensor, scores: Tensor, overlap: float, wanted: int) -> Tensor:
    """The first of what ``suppress`` keeps, surest first: ``wanted`` at least, where there are so many.

    Whether a box is kept depends on surer ones alone, so the surest boxes are looked at by themselves, and more of
    them until enough are kept. Boxes of equal score come in their order, as torchvision has them.

    Args:
        suppress: As ``torchvision.ops.nms``.
        boxes: Corners (n, 4).
        scores: (n,).
        overlap: Above which the less sure of two boxes is dropped.
        wanted: How many are enough.

    Example:
        >>> from torchvision.ops import nms
        >>> boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9], [40, 0, 49, 9]])
        >>> surest(nms, boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.5, 1)[:1].tolist()
        [0]
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    some = 4 * wanted
    while True:
        first = order[:some]
        kept = first[suppress(boxes[first], scores[first], overlap)]
        if len(kept) >= wanted or some >= len(order):
            return kept
        some *= 4


@contextmanager
def suppressing_until(wanted: int) -> Iterator[None]:
    """In the block, ``torchvision.ops.nms`` as called by this thread answers no more than needs be."""
    import torchvision.ops

    usual, here = torchvision.ops.nms, threading.get_ident()

    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        if threading.get_ident() == here:
            return surest(usual, boxes, scores, iou_threshold, wanted)
        everything: Tensor = usual(boxes, scores, iou_threshold)
        return everything

    with mock.patch.object(torchvision.ops, "nms", nms):
        yield
