"""Layers that replace a strided pool: space-to-depth and a conv that starts as the same function.

Kept apart from the conv's because a pool has no weight to carry over: what it does by rule becomes one that learns.
"""

from __future__ import annotations

import abc
import copy
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.errors import RefusedError
from surgeon.ops.space_to_depth import Blocks, Window, block_conv2d, embed, pad_or_crop
from surgeon.ops.spd_fold import fold
from surgeon.ops.spd_windows import is_same_pool, pair, pool_windows, why_not_pool

Device = torch.device | str | None


class SPDPool2d(nn.Module, abc.ABC):
    """What the two pools share: the weight, its start, and the names of the pool it stands for."""

    replaces: ClassVar[type[nn.AvgPool2d] | type[nn.MaxPool2d]]
    weight: nn.Parameter

    def __init__(self, pool: nn.AvgPool2d | nn.MaxPool2d, channels: int, full: bool) -> None:
        """Take the geometry from ``pool``; ``from_pool`` adds the weight."""
        super().__init__()
        self.channels, self.groups = channels, 1 if full else channels
        self.kernel_size, self.stride = pair(pool.kernel_size), pair(pool.stride)
        self.padding: str | tuple[int, int] = "same" if is_same_pool(pool) else pair(pool.padding)
        self.ceil_mode = bool(pool.ceil_mode)
        self.windows = pool_windows(pool)
        self.original = (copy.deepcopy(pool),)  # in a tuple: not a submodule, it is no part of this layer
        self.train(pool.training)

    @classmethod
    def why_not(cls, pool: nn.Module) -> str | None:
        """Why ``pool`` has no exact space-to-depth form, as a verb phrase; None if it has one.

        Example:
            >>> SPDMaxPool2d.why_not(nn.MaxPool2d(3, stride=1))
            'has stride (1, 1), so there is no block to move into channels'
        """
        return why_not_pool(pool, cls.replaces)

    @classmethod
    def from_pool(
        cls,
        pool: nn.Module,
        channels: int,
        *,
        full: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Build the layer from a strided pool, of torch's class or of timm's "same" ones.

        Args:
            pool: The pool; a max pool of kernel 1 stands for the slice ``x[:, :, ::s, ::s]``.
            channels: Channels of its input.
            full: A conv over all channels instead of one per channel; the same function at first.
            device: Where the weight goes.
            dtype: Its type.

        Raises:
            RefusedError: When ``why_not`` has a reason.

        Example:
            >>> SPDAvgPool2d.from_pool(nn.AvgPool2d(2), 8).weight.shape
            torch.Size([8, 4, 1, 1])
            >>> SPDMaxPool2d.from_pool(nn.MaxPool2d(3, 2, 1), 8, full=True).weight.shape
            torch.Size([8, 32, 1, 1])
        """
        reason = cls.why_not(pool)
        if reason is not None or not isinstance(pool, cls.replaces):
            raise RefusedError(f"{cls.__name__} cannot replace this module: it {reason}; leave it as it is")
        layer = cls(pool, channels, full)
        layer.weight = nn.Parameter(layer._start(device, dtype))
        return layer

    @abc.abstractmethod
    def _one(self, device: Device, dtype: torch.dtype | None) -> Tensor:
        """The start for one channel, (1, sh*sw, Kh, Kw)."""

    @abc.abstractmethod
    def _fold(self) -> nn.Module | None:
        """The trained layer as standard layers."""

    def _start(self, device: Device, dtype: torch.dtype | None) -> Tensor:
        """(C, sh*sw, Kh, Kw); or with zeros between channels, (C, C*sh*sw, Kh, Kw)."""
        one = self._one(device, dtype)
        if self.groups == self.channels:
            return one.repeat(self.channels, 1, 1, 1)
        eye = torch.eye(self.channels, device=device, dtype=dtype)[:, :, None, None, None]
        return (eye * one).reshape(self.channels, -1, *one.shape[2:])

    def lower(self) -> nn.Module | None:
        """Fold to standard layers equal at every size: the pool itself while untrained, else a strided conv.

        Returns:
            The pool; or a Conv2d, alone or last in a Sequential (behind a max pool of stride 1); or None: for trained
            pools whose divisor varies, trained max pools with ``ceil_mode``, dilation or "same" padding.

        Example:
            >>> SPDMaxPool2d.from_pool(nn.MaxPool2d(3, 2, 1), 8).lower()
            MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False)
        """
        weight = self.weight.detach()
        if not weight.is_meta and torch.equal(weight, self._start(weight.device, weight.dtype)):
            return copy.deepcopy(self.original[0]).train(self.training)
        lowered = self._fold()
        return None if lowered is None else lowered.train(self.training)

    def extra_repr(self) -> str:
        """Show the pool it stands for."""
        parts = [f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"]
        parts += ["ceil_mode=True"] if self.ceil_mode else []
        parts += ["full=True"] if self.groups < self.channels else []
        return ", ".join(parts)


class SPDAvgPool2d(SPDPool2d):
    r"""Space-to-depth, then a conv that starts as the mean over the pool's window.

    The kernel is the smallest over blocks that holds the window. Where the pool divides by fewer pixels at a border
    (``ceil_mode``, ``count_include_pad=False``), the output is multiplied by kh*kw over that count, before and after
    training.

    Shape:
        - Input: (N, C, H, W), any H and W the pool takes
        - Output: (N, C, H', W'), as the pool it replaces
        - ``weight``: (C, sh*sw, Kh, Kw), or (C, C*sh*sw, Kh, Kw) with ``full``

    Example:
        >>> pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        >>> x = torch.rand(1, 4, 9, 6)
        >>> bool(torch.allclose(SPDAvgPool2d.from_pool(pool, 4)(x), pool(x), atol=1e-6))
        True

    References:
        Sunkara and Luo, No More Strided Convolutions or Pooling, ECML PKDD 2022, arXiv:2208.03641.
        Deviation: the paper removes pools; here one starts as itself and learns.
    """

    replaces = nn.AvgPool2d

    def __init__(self, pool: nn.AvgPool2d, channels: int, full: bool) -> None:
        """Take the geometry from ``pool``; ``from_pool`` adds the weight."""
        super().__init__(pool, channels, full)
        self.rows, self.cols = (Blocks.of(window) for window in self.windows)
        self.count_include_pad, self.divisor_override = bool(pool.count_include_pad), pool.divisor_override

    def _one(self, device: Device, dtype: torch.dtype | None) -> Tensor:
        ones = torch.ones(1, 1, *self.kernel_size, device=device, dtype=dtype)
        return embed(ones / (self.divisor_override or ones.numel()), self.rows, self.cols)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, C, H, W) -> (N, C, H', W')."""
        y = block_conv2d(x, self.weight, None, self.rows, self.cols, self.groups)
        if not self._divides_evenly(self.rows.window, x.shape[2]):
            y = y * self._ratio(self.rows.window, x.shape[2], y)[:, None]
        if not self._divides_evenly(self.cols.window, x.shape[3]):
            y = y * self._ratio(self.cols.window, x.shape[3], y)
        return y

    def _counted(self, window: Window, size: int) -> tuple[int, int]:
        """First pixel that counts, and the one after the last: with the padding or without."""
        front, back = window.pads(size)
        return (-front, size + back) if self.count_include_pad or window.same else (0, size)

    def _divides_evenly(self, window: Window, size: int) -> bool:
        """Whether every output divides by the same number."""
        if self.divisor_override is not None:
            return True
        size %= window.stride  # nothing below depends on more of it
        (low, high), first = self._counted(window, size), -window.pads(size)[0]
        return first >= low and first + (window.outputs(size) - 1) * window.stride + window.kernel <= high

    def _ratio(self, window: Window, size: int, y: Tensor) -> Tensor:
        """Kernel size over the number of pixels that count, (H',) or (W',)."""
        low, high = self._counted(window, size)
        first = torch.arange(window.outputs(size), device=y.device) * window.stride - window.pads(size)[0]
        count = (first + window.kernel).clamp(max=high) - first.clamp(min=low)
        return window.kernel / count.to(y.dtype)

    def _fold(self) -> nn.Module | None:
        evenly = all(self._divides_evenly(w, size) for w in self.windows for size in range(w.stride))
        if self.ceil_mode or not evenly:
            return None
        return fold(self.weight, None, self.rows, self.cols, self.groups)


class SPDMaxPool2d(SPDPool2d):
    r"""A max pool of stride 1, space-to-depth, then a 1x1 conv that starts by selecting the pool's outputs.

    The maxima between the pool's outputs are there too, with weight zero at first. Where a dilated window holds padding
    only (inputs smaller than the dilation), torch gives -inf and this layer the lowest finite number.

    Shape:
        - Input: (N, C, H, W), any H and W the pool takes
        - Output: (N, C, H', W'), as the pool it replaces
        - ``weight``: (C, sh*sw, 1, 1), or (C, C*sh*sw, 1, 1) with ``full``

    Example:
        >>> pool = nn.MaxPool2d(3, stride=2, padding=1)
        >>> x = torch.rand(1, 4, 9, 6)
        >>> bool((SPDMaxPool2d.from_pool(pool, 4)(x) == pool(x)).all())
        True

    References:
        Sunkara and Luo, No More Strided Convolutions or Pooling, ECML PKDD 2022, arXiv:2208.03641.
        Deviation: the paper removes pools; here one starts as itself and learns.
    """

    replaces = nn.MaxPool2d

    def __init__(self, pool: nn.MaxPool2d, channels: int, full: bool) -> None:
        """Take the geometry from ``pool``; ``from_pool`` adds the weight."""
        super().__init__(pool, channels, full)
        self.dilation = pair(pool.dilation)
        self.rows, self.cols = (Blocks.of(Window(1, window.stride)) for window in self.windows)
        self.borders = tuple(tuple(_lowest(window, size) for size in range(window.stride)) for window in self.windows)

    def _one(self, device: Device, dtype: torch.dtype | None) -> Tensor:
        return embed(torch.ones(1, 1, 1, 1, device=device, dtype=dtype), self.rows, self.cols)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, C, H, W) -> (N, C, H', W')."""
        (sh, sw), (rows, cols) = self.stride, self.borders
        x = pad_or_crop(x, rows[x.shape[2] % sh], cols[x.shape[3] % sw], value=float("-inf"))
        if self.kernel_size != (1, 1):
            padding = (0, 0) if isinstance(self.padding, str) else self.padding
            x = F.max_pool2d(x, self.kernel_size, 1, padding, self.dilation)
        if max(self.dilation) > 1:
            x = x.clamp(min=torch.finfo(x.dtype).min)  # -inf times a zero weight would be NaN
        return block_conv2d(x, self.weight, None, self.rows, self.cols, self.groups)

    def _fold(self) -> nn.Module | None:
        conv = fold(self.weight, None, self.rows, self.cols, self.groups)
        if self.ceil_mode or isinstance(self.padding, str) or max(self.dilation) > 1 or conv is None:
            return None
        pools = [] if self.kernel_size == (1, 1) else [nn.MaxPool2d(self.kernel_size, 1, self.padding)]
        return nn.Sequential(*pools, *(conv if isinstance(conv, nn.Sequential) else [conv]))


def _lowest(window: Window, size: int) -> tuple[int, int]:
    """Pixels of -inf in front and back for the pool of stride 1, beside the padding it does itself."""
    front, back = window.pads(size)
    found = size + front + back - window.reach  # outputs of stride 1
    missing = max((window.outputs(size) - 1) * window.stride + 1 - found, 0)  # only in ceil_mode
    return front - window.padding, back - window.padding + missing
