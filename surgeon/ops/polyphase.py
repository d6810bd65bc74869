"""The layers of ``aps``: of the s*s ways to take every s-th position, the one of the largest norm.

Chaman and Dokmanic, Truly shift-invariant convolutional neural networks, CVPR 2021, arXiv:2011.14214.
"""

from __future__ import annotations

from typing import Literal

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from surgeon.errors import SurgeonError
from surgeon.ops.dense import DensePool2d, extend
from surgeon.ops.space_to_depth import Window
from surgeon.site import Pair

Order = Literal[1, 2, "inf"]


class Choice:
    """Which component each image takes: left by the layer that runs first, read by the others of its group.

    It is a plain attribute of the layers of one group, copied along with them, and empty between forward passes.

    Args:
        readers: How many layers read it.
    """

    def __init__(self, readers: int) -> None:
        self.readers, self.left = readers, 0
        self.index: Tensor | None = None

    def leave(self, index: Tensor) -> None:
        """Leave the choice for the readers."""
        self.index, self.left = index, self.readers

    def read(self) -> Tensor:
        """The choice; the last reader empties it.

        Raises:
            SurgeonError: When no layer has left one.
        """
        if self.index is None:
            raise SurgeonError(
                "an APS layer takes the positions another one chooses, which has not run before it in this forward "
                f"({self.readers} follow that one); run the model as a whole, in one thread, or apply 'aps' without it"
            )
        index, self.left = self.index, self.left - 1
        if self.left == 0:
            self.index = None
        return index


def components(x: Tensor, stride: Pair) -> Tensor:
    """Every way to take each s-th position: (N, C, H, W) -> (N, sh*sw, C, H/sh, W/sw), by row, then column.

    Example:
        >>> components(torch.arange(8).view(1, 1, 2, 4), (2, 2))[0, :, 0].tolist()
        [[[0, 2]], [[1, 3]], [[4, 6]], [[5, 7]]]
    """
    (n, c, h, w), (sh, sw) = x.shape, stride
    x = x.reshape(n, c, h // sh, sh, w // sw, sw)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, sh * sw, c, h // sh, w // sw)


def largest(parts: Tensor, order: Order) -> Tensor:
    """Which of the components (N, S, C, H, W) has the largest norm, (N,); at least in float32.

    Maxima are often equal, behind a max pool always: "inf" then goes by the sum of squares.

    Example:
        >>> parts = torch.tensor([[1.0, 3.0], [3.0, 2.0], [2.5, 2.5]]).view(1, 3, 1, 1, 2)
        >>> [int(largest(parts, order)) for order in (1, 2, "inf")]
        [1, 1, 1]
    """
    flat = parts.detach().flatten(2)
    flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    if order == 1:
        return flat.abs().sum(2).argmax(1)
    squares = flat.square().sum(2)
    if order == "inf":
        highest = flat.abs().amax(2)
        squares = torch.where(highest == highest.amax(1, keepdim=True), squares, -1.0)
    return squares.argmax(1)


class Polyphase2d(nn.Module):
    """Adaptive polyphase sampling: each image takes the component of the largest norm over all channels.

    A shift by any number of pixels around the border only renames and shifts the components, so the same one is taken,
    shifted by whole positions. Where the size is no multiple of the stride the last rows and columns are repeated; then
    this holds no more. Gradients flow through the component taken.

    Args:
        stride: In rows and columns.
        order: Of the norm: 1, 2 or "inf".
        choice: Shared with layers whose output meets this one's; None where there are none.
        leads: Whether this layer chooses for them.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, ⌈H/s⌉, ⌈W/s⌉)

    Raises:
        SurgeonError: In the forward of a layer that follows one that has not run.

    Example:
        >>> x = torch.zeros(1, 1, 4, 4)
        >>> x[0, 0, 1, 1] = 5.0
        >>> Polyphase2d((2, 2))(x).tolist(), Polyphase2d((2, 2))(x.roll(1, -1)).tolist()
        ([[[[5.0, 0.0], [0.0, 0.0]]]], [[[[0.0, 5.0], [0.0, 0.0]]]])

    Source:
        The paper's adaptive polyphase sampling. Deviations: any stride, any size; ties of the largest value are broken.
    """

    def __init__(self, stride: Pair, order: Order = 2, choice: Choice | None = None, leads: bool = True) -> None:
        super().__init__()
        self.stride, self.order, self.choice, self.leads = stride, order, choice, leads

    def forward(self, x: Tensor) -> Tensor:
        """Fill up to a multiple of the stride and take one component."""
        return self.take(x, (-(-x.shape[2] // self.stride[0]), -(-x.shape[3] // self.stride[1])))

    def take(self, x: Tensor, outputs: Pair) -> Tensor:
        """One component of ``outputs`` rows and columns."""
        ends = [(0, count * s - size) for count, s, size in zip(outputs, self.stride, x.shape[2:], strict=True)]
        parts = components(extend(x, ends, "replicate"), self.stride)
        index = self._index(parts).view(-1, 1, 1, 1, 1).expand(-1, 1, *parts.shape[2:])
        return parts.gather(1, index).squeeze(1)

    def _index(self, parts: Tensor) -> Tensor:
        if self.choice is not None and not self.leads:
            return self.choice.read()
        index = largest(parts, self.order)
        if self.choice is not None:
            self.choice.leave(index)
        return index

    def extra_repr(self) -> str:
        """Show stride and norm."""
        role = "" if self.choice is None else ", leads" if self.leads else ", follows"
        return f"stride={self.stride}, norm={self.order}{role}"


class APSPool2d(nn.Module):
    """A max or average pool of stride 1, then the component of the largest norm.

    Args:
        pool: The strided pool.
        select: Takes the component.
        circular: Let the pool pad around.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, H', W'), as the pool's

    Example:
        >>> pool = nn.MaxPool2d(3, stride=2, padding=1)
        >>> x = torch.rand(2, 4, 8, 6)
        >>> y, z = (APSPool2d(pool, Polyphase2d((2, 2)), circular=True)(x.roll((n, n), (2, 3))) for n in (0, 1))
        >>> y.shape == pool(x).shape, bool((y.sum((2, 3)) - z.sum((2, 3))).abs().max() < 1e-5)
        (True, True)
    """

    def __init__(self, pool: nn.Module, select: Polyphase2d, circular: bool = False) -> None:
        super().__init__()
        self.pool, self.select = DensePool2d(pool, circular), select

    def forward(self, x: Tensor) -> Tensor:
        """Pool, then select."""
        rows, cols = (window.outputs(size) for window, size in zip(self.windows, x.shape[2:], strict=True))
        return self.select.take(self.pool(x), (rows, cols))

    @property
    def windows(self) -> tuple[Window, Window]:
        """Of H and W of the strided pool."""
        return self.pool.windows


for layer in (Polyphase2d, APSPool2d):
    register_notrace_module(layer)  # their shapes depend on the size: leaves for timm's feature extraction
