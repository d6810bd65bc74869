"""The layers of the shuffles: permutations of positions or channels, drawn anew in each forward pass.

Fan, Xian, Losch and Schiele, Analyzing the Dependency of ConvNets on Spatial Information, GCPR 2020, arXiv:2002.01827,
section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor

from surgeon.ops.drawing import Drawing, When, unreal


class _Permute(torch.autograd.Function):
    """``x[:, order]`` for a permutation; its gradient is the inverse permutation, which is a gather again."""

    @staticmethod
    def forward(x: Tensor, order: Tensor) -> Tensor:
        return x.index_select(1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        return _Permute.apply(gradients[0], inverse), None  # type: ignore[no-untyped-call]


def permute(x: Tensor, order: Tensor) -> Tensor:
    """Permute the positions of each channel: one gather, and one for the gradient.

    Args:
        x: (N, C, L).
        order: (C, L), a permutation of L positions per channel, on the CPU.

    Example:
        >>> permute(torch.tensor([[[10.0, 20.0, 30.0]]]), torch.tensor([[2, 0, 1]])).tolist()
        [[[30.0, 10.0, 20.0]]]
    """
    channels, length = order.shape
    flat = (order + torch.arange(channels)[:, None] * length).flatten().to(x.device)
    y: Tensor = _Permute.apply(x.flatten(1), flat)  # type: ignore[no-untyped-call]
    return y.view(x.shape)


def draw_positions(channels: int, height: int, width: int, patch: int | None, generator: torch.Generator) -> Tensor:
    """One permutation of the positions per channel, within cells of ``patch`` x ``patch``; (channels, height * width).

    The cells at the lower and right edge are smaller where ``patch`` does not divide. None: one cell, the whole map.

    Example:
        >>> order = draw_positions(2, 4, 4, 2, torch.Generator().manual_seed(0))
        >>> sorted(order[0, [0, 1, 4, 5]].tolist()), order.sort(-1).values[1].tolist() == list(range(16))
        ([0, 1, 4, 5], True)
    """
    side = patch or max(height, width)
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    cell = (rows[:, None] * (width // side + 1) + columns).flatten()
    keys = torch.rand(channels, height * width, generator=generator, dtype=torch.float64)
    drawn = torch.from_numpy((keys + cell).numpy().argsort(-1))  # cell by cell, in random order; numpy's sort is faster
    by_cell = cell.argsort(stable=True)
    return torch.empty_like(drawn).scatter_(1, by_cell.expand_as(drawn), drawn)


class SpatialShuffle2d(Drawing):
    """Permute the positions of each channel, each channel by itself, all images of the batch alike.

    Args:
        patch: Side of the cells in pixels within which positions move; None is the whole map.
        seed: Of this layer.
        when: In which mode it shuffles; in the other it is an identity.

    Shape:
        - Input: (N, C, H, W)
        - Output: the same

    Example:
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> y = SpatialShuffle2d(patch=2)(x)
        >>> y.shape == x.shape, torch.equal(y, x), sorted(y[0, 0, :2, :2].flatten().tolist())
        (True, False, [0.0, 1.0, 4.0, 5.0])

    Source:
        Section 3.1, "Spatial Shuffle" and "Patch-wise Spatial Shuffle".
    """

    def __init__(self, patch: int | None = None, seed: int = 0, when: When = "both") -> None:
        super().__init__(seed, when)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """Draw the permutations and gather once."""
        return self._shuffle(x) if self.draws(x) else x

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _shuffle(self, x: Tensor) -> Tensor:
        if unreal(x):
            return x.clone()
        order = draw_positions(x.shape[1], x.shape[2], x.shape[3], self.patch, self.generator())
        return permute(x.flatten(2), order).view(x.shape)

    def extra_repr(self) -> str:
        """Show the patch size."""
        return f"patch={self.patch}, {super().extra_repr()}" if self.patch else super().extra_repr()


class ChannelShuffle2d(Drawing):
    """Permute the order of the channels, at all positions and for all images of the batch alike.

    Args:
        seed: Of this layer.
        when: In which mode it shuffles; in the other it is an identity.

    Shape:
        - Input: (N, C, H, W)
        - Output: the same

    Example:
        >>> x = torch.arange(8.0).reshape(1, 8, 1, 1)
        >>> y = ChannelShuffle2d()(x).flatten().tolist()
        >>> sorted(y) == x.flatten().tolist() != y
        True

    Source:
        Section 3.1, "Channel-wise Shuffle".
    """

    def __init__(self, seed: int = 0, when: When = "both") -> None:
        super().__init__(seed, when)

    def forward(self, x: Tensor) -> Tensor:
        """Draw the order and index once."""
        return self._shuffle(x) if self.draws(x) else x

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _shuffle(self, x: Tensor) -> Tensor:
        if unreal(x):
            return x.clone()
        order = torch.rand(x.shape[1], generator=self.generator(), dtype=torch.float64).argsort()
        y: Tensor = _Permute.apply(x, order.to(x.device))  # type: ignore[no-untyped-call]
        return y


for layer in (SpatialShuffle2d, ChannelShuffle2d):
    register_notrace_module(layer)  # leaves for timm's feature extraction
