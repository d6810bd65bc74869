"""The shift layer: every channel moves by an offset of its own, and learns where to.

The layer alone: it knows nothing of sites, graphs or recipes, so it can be used and tested by itself.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from surgeon.errors import RecipeError, SurgeonError
from surgeon.ops.shift_kernel import (
    Size,
    bilinear_shift,
    bilinear_weights,
    integer_shift,
    round_half_away,
    sparse_shift,
)

Mode = Literal["sparse", "active", "grouped"]
Start = Literal["grouped", "uniform", "zeros"]


def grouped_taps(channels: int, kernel_size: Size) -> Tensor:
    """Return row and column of the tap of each channel: the taps in order, one group of channels for each.

    The groups are ``channels // taps`` wide; the channels left over have the middle tap.

    Example:
        >>> grouped_taps(7, (1, 3))
        tensor([[0, 0, 0, 0, 0, 0, 0],
                [0, 0, 1, 1, 2, 2, 1]])
    """
    rows, columns = kernel_size
    taps, width = rows * columns, channels // (rows * columns)
    tap = torch.arange(taps).repeat_interleave(width)
    middle = torch.tensor([[rows // 2], [columns // 2]]).expand(2, channels - taps * width)
    return torch.cat([torch.stack([tap // columns, tap % columns]), middle], 1)


def grouped_offsets(channels: int, kernel_size: int = 3) -> Tensor:
    """Return the offsets of grouped shift (Eq. 2): one tap of the kernel for each group of channels, (2, channels).

    The groups are ``channels // kernel_size**2`` wide; the channels left over stay where they are.

    Example:
        >>> grouped_offsets(10)
        tensor([[-1, -1, -1,  0,  0,  0,  1,  1,  1,  0],
                [-1,  0,  1, -1,  0,  1, -1,  0,  1,  0]])

    References:
        Wu et al., Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions, CVPR 2018, arXiv:1711.08141.
        Deviation: as printed, Eq. 2 of Chen et al. 2019 divides the channel's number by K² where it must be divided
        by the width of a group, as its text says; the released code divides without rounding, here whole numbers are.
    """
    return grouped_taps(channels, (kernel_size, kernel_size)) - kernel_size // 2


class SparseShift2d(nn.Module):
    r"""Move every channel by its own offset, zero outside; between two 1x1 convs it stands for a spatial conv.

    ``sparse`` moves by the rounded offset (halves away from zero) and learns the real one by the gradient of bilinear
    interpolation; ``active`` interpolates; ``grouped`` has fixed whole offsets. Works under autocast, ``torch.compile``
    (no graph break), DDP, EMA and ``deepcopy``. In half precision offsets round to coarse steps: train them in float32.

    Args:
        channels: Of input and output.
        mode: "sparse", "active" or "grouped".
        kernel_size: Offsets start in -k//2 ... (k-1)//2; learned ones may leave this range.
        stride: Every so many-th row and column is kept, from the first on.
        init: "grouped" as the authors' code, "uniform" in [-k//2, k//2] as active shift, or "zeros".
        seed: For ``init="uniform"``; None draws from torch's global generator.
        device: Of the offsets.
        dtype: Of the offsets, unless ``grouped``.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, ⌈H/stride⌉, ⌈W/stride⌉)
        - ``offset``: (2, C), row 0 vertical, row 1 horizontal; a parameter, in mode "grouped" an int64 buffer

    Raises:
        RecipeError: For a setting with no such value.

    Example:
        >>> shift = SparseShift2d(18)
        >>> shift(torch.rand(2, 18, 7, 5)).shape, [name for name, _ in shift.named_parameters()]
        (torch.Size([2, 18, 7, 5]), ['offset'])
        >>> round(shift.sparsity, 3)  # one group of nine stays
        0.111

    References:
        Chen et al., All You Need is a Few Shifts: Designing Efficient Convolutional Neural Networks for Image
        Classification, CVPR 2019, arXiv:1903.05285, Eq. 1 to 7.
        Deviations: row 0 is vertical as in the released code (the text names alpha horizontal but indexes rows with
        it); ``init="grouped"`` follows the paper's Eq. 2 (see ``grouped_offsets``), where the released code ramps.
    """

    offset: Tensor

    def __init__(
        self,
        channels: int,
        mode: Mode = "sparse",
        kernel_size: int = 3,
        stride: int = 1,
        init: Start = "grouped",
        seed: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check(channels, mode, kernel_size, stride, init)
        self.channels, self.mode, self.kernel_size, self.stride = channels, mode, kernel_size, stride
        if mode == "grouped":
            self.register_buffer("offset", grouped_offsets(channels, kernel_size).to(device))
            return
        start = _start(channels, kernel_size, init, seed)
        self.offset = nn.Parameter(start.to(device, dtype or torch.get_default_dtype()))

    @property
    def rounded(self) -> Tensor:
        """The whole offsets the channels move by, int64, (2, C); of mode "active", what they are nearest to."""
        return round_half_away(self.offset.detach()).long()

    @property
    def sparsity(self) -> float:
        """Share of channels that do not move: both rounded offsets are zero."""
        return float((self.rounded == 0).all(0).float().mean())

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, C, H, W) -> (N, C, H', W')."""
        y = shift(x, self.offset, self.mode)
        return y if self.stride == 1 else y[:, :, :: self.stride, :: self.stride]

    def lower(self) -> nn.Module:
        """A depthwise conv of the same function, its kernel just large enough; an identity where nothing moves.

        Example:
            >>> SparseShift2d(18).lower()
            Conv2d(18, 18, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=18, bias=False)
        """
        kernel = depthwise_kernel(self.offset, self.mode)
        if kernel.shape[-1] == 1 and self.stride == 1:
            return nn.Identity()
        conv = nn.Conv2d(
            self.channels,
            self.channels,
            kernel.shape[-1],
            self.stride,
            kernel.shape[-1] // 2,
            groups=self.channels,
            bias=False,
            device="meta",
        )
        conv.weight = nn.Parameter(kernel.to(torch.get_default_dtype()) if self.mode == "grouped" else kernel)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """Show the settings that are not the defaults."""
        parts = [f"{self.channels}, mode={self.mode!r}, kernel_size={self.kernel_size}"]
        return ", ".join(parts + ([f"stride={self.stride}"] if self.stride > 1 else []))


def shift(x: Tensor, offset: Tensor, mode: Mode, size: Size | None = None) -> Tensor:
    """Move the channels of (N, C, H, W) as ``mode`` says, to an output of ``size``.

    Raises:
        SurgeonError: When ``x`` is no map of as many channels as there are offsets.

    Example:
        >>> shift(torch.ones(1, 1, 1, 3), torch.tensor([[0.0], [1.4]]), "sparse")
        tensor([[[[1., 1., 0.]]]])
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if not tracing and (x.ndim != 4 or x.shape[1] != offset.shape[1]):
        raise SurgeonError(
            f"a shift of {offset.shape[1]} channels reads maps (N, {offset.shape[1]}, H, W), not {tuple(x.shape)}; "
            "build it for the channels in front of it"
        )
    if mode == "grouped":
        return integer_shift(x, offset, size)
    return sparse_shift(x, offset, size) if mode == "sparse" else bilinear_shift(x, offset, size)


def depthwise_kernel(offset: Tensor, mode: Mode) -> Tensor:
    """The kernel of the depthwise conv that moves as a shift does: (C, 1, K, K), K odd, padding K // 2.

    Example:
        >>> depthwise_kernel(torch.tensor([[0.0], [1.4]]), "sparse")
        tensor([[[[0., 0., 0.],
                  [0., 0., 1.],
                  [0., 0., 0.]]]])
    """
    offset = offset.detach()
    whole = offset.floor() if mode == "active" else round_half_away(offset)
    values = bilinear_weights(offset) if mode == "active" else torch.ones_like(offset[0])[:, None, None, None]
    held = values.abs().amax((0, 1)).nonzero() if mode == "active" else values.new_zeros(1, 2)
    ends = torch.stack([whole.amin(1), whole.amax(1) + held.amax(0)]).abs()
    reach = int(ends.max())
    kernel = values.new_zeros(offset.shape[1], 1, 2 * reach + 2, 2 * reach + 2)
    channel, (row, column) = torch.arange(offset.shape[1], device=offset.device), (whole + reach).long()
    for i in range(values.shape[2]):
        for j in range(values.shape[3]):
            kernel[channel, 0, row + i, column + j] = values[:, 0, i, j]
    return kernel[:, :, :-1, :-1].contiguous()


def _check(channels: int, mode: str, kernel_size: int, stride: int, init: str) -> None:
    for name, value, allowed in (("mode", mode, get_args(Mode)), ("init", init, get_args(Start))):
        if value not in allowed:
            raise RecipeError(f"SparseShift2d: {name}={value!r} is unknown; use {', '.join(map(repr, allowed))}")
    for name, number in (("channels", channels), ("kernel_size", kernel_size), ("stride", stride)):
        if not isinstance(number, int) or number < 1:
            raise RecipeError(f"SparseShift2d: {name}={number!r} is no whole number from 1 on; use one such as 3")


def _start(channels: int, kernel_size: int, init: Start, seed: int | None) -> Tensor:
    if init == "grouped":
        return grouped_offsets(channels, kernel_size).float()
    if init == "zeros":
        return torch.zeros(2, channels)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    reach = kernel_size // 2
    return (torch.rand(2, channels, generator=generator) * 2 - 1) * reach
