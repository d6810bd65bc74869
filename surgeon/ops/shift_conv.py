"""Layers that replace a spatial conv: every input channel moves by one offset, then a 1x1 conv mixes.

The layers alone: they know nothing of sites, graphs or recipes, so they can be used and tested by themselves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.errors import RecipeError, RefusedError
from surgeon.ops.shift_kernel import round_half_away
from surgeon.ops.shift_layer import Mode, depthwise_kernel, grouped_taps, shift
from surgeon.ops.space_to_depth import Window
from surgeon.ops.spd_conv import standardize
from surgeon.ops.spd_windows import conv_style, conv_windows, pad_pixels, padding_mode, pair, why_unknown

Init = Literal["energy", "fresh"]


class ShiftConv2d(nn.Module):
    r"""A shift layer and a 1x1 conv in one: a spatial conv that keeps one tap of each input channel.

    Built by ``from_conv2d``. Stride, groups, padding and dilation are those of the conv it replaces; of a depthwise
    conv there remains a shift and one factor per channel. It owns ``weight`` and ``bias``, so that folding a BatchNorm
    which reads them works. Positions outside the padded input read zero, also where an offset has learned to go there.

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, H', W'), as the conv it replaces
        - ``weight``: (C_out, C_in/groups, 1, 1)
        - ``offset``: (2, C_in), row 0 vertical, row 1 horizontal, of the input pixel read for an output's position;
          a parameter, in mode "grouped" an int64 buffer

    Example:
        >>> conv = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        >>> with torch.no_grad():  # one tap alone is not zero: then nothing is lost
        ...     _ = conv.weight.zero_()[:, :, 0, 2].fill_(0.7)
        >>> x = torch.rand(1, 8, 9, 6)
        >>> layer = ShiftConv2d.from_conv2d(conv)
        >>> bool(torch.allclose(layer(x), conv(x))), layer.offset[:, 0].tolist()
        (True, [-1.0, 1.0])

    References:
        Chen et al., All You Need is a Few Shifts, CVPR 2019, arXiv:1903.05285; Wu et al., Shift, CVPR 2018.
        Deviation: the papers train such layers from scratch between two 1x1 convs; here they start from a trained conv.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    offset: Tensor

    def __init__(self, conv: nn.Conv2d, weight: Tensor, tap: Tensor, mode: Mode) -> None:
        """Take over everything but the weight from ``conv``; ``tap`` is row and column of each channel's."""
        super().__init__()
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation)
        self.mode, self.windows, self.padding_mode = mode, *_borders(conv)
        self.padding: str | tuple[int, int] = "same" if self.windows[0].same else pad_pixels(conv)
        self.border: list[int] = conv._reversed_padding_repeated_twice  # as F.pad takes it, for other padding modes
        origin = torch.stack([tap.new_tensor(w.origin) for w in self.windows])[:, None]
        offset = tap * torch.stack([tap.new_tensor(w.dilation) for w in self.windows])[:, None] - origin
        if mode == "grouped":
            self.register_buffer("offset", offset)
        else:
            self.offset = nn.Parameter(offset.to(weight.dtype), conv.weight.requires_grad)
        self.weight = nn.Parameter(weight, conv.weight.requires_grad)
        bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), conv.bias.requires_grad)
        self.register_parameter("bias", bias)
        self.train(conv.training)

    @staticmethod
    def why_not(conv: nn.Module) -> str | None:
        """Why ``conv`` has no shift form, as a verb phrase; None if it has one.

        Example:
            >>> ShiftConv2d.why_not(nn.Linear(3, 8))
            'is a Linear, not a Conv2d with one kernel'
        """
        if (reason := why_unknown(conv)) is not None or not isinstance(conv, nn.Conv2d):
            return reason
        if conv_style(conv) == "standardized" and conv.groups == conv.in_channels:
            return "standardises each filter to mean 0, and what is left of a depthwise filter is a single number"
        return None

    @classmethod
    def from_conv2d(
        cls, conv: nn.Module, mode: Mode = "sparse", *, init: Init = "energy", seed: int | None = None
    ) -> ShiftConv2d:
        """Build the layer from a conv; device, dtype, modes and ``requires_grad`` follow.

        Args:
            conv: An ``nn.Conv2d``, or timm's ``Conv2dSame``, ``StdConv2d`` and their kin.
            mode: "sparse", "active" or "grouped".
            init: "energy" keeps of each input channel the tap with the largest sum of squares over the outputs it
                feeds; in mode "grouped" the taps are assigned by channel (Eq. 2) and their weights kept. "fresh"
                assigns the taps so in every mode and draws weight and bias as ``nn.Conv2d`` does.
            seed: For ``init="fresh"``; None draws from torch's global generator.

        Raises:
            RefusedError: When ``why_not`` has a reason.
            RecipeError: For a setting with no such value.

        Example:
            >>> ShiftConv2d.from_conv2d(nn.Conv2d(3, 8, 3, padding=1))
            ShiftConv2d(3, 8, mode='sparse', kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
        """
        reason = cls.why_not(conv)
        if reason is not None or not isinstance(conv, nn.Conv2d):
            raise RefusedError(f"ShiftConv2d cannot replace this module: it {reason}; leave it as it is")
        for name, value, allowed in (("mode", mode, Mode), ("init", init, Init)):
            if value not in allowed.__args__:  # type: ignore[attr-defined]
                raise RecipeError(f"ShiftConv2d: {name}={value!r} is unknown; use one of {allowed.__args__}")  # type: ignore[attr-defined]
        standardized = conv_style(conv) == "standardized"
        kernel = standardize(conv).detach() if standardized else conv.weight.detach()
        by_channel = init == "fresh" or mode == "grouped"
        tap = grouped_taps(conv.in_channels, pair(conv.kernel_size)).to(kernel.device)
        tap = tap if by_channel else strongest_taps(kernel, conv.groups)
        layer = ShiftStdConv2d if standardized else ShiftConv2d
        built = layer(conv, at_taps(kernel, tap, conv.groups), tap, mode)
        if init == "fresh":
            built._draw(seed)
        return built

    @property
    def rounded(self) -> Tensor:
        """The whole offsets the channels move by, int64, (2, C_in); of mode "active", what they are nearest to."""
        return round_half_away(self.offset.detach()).long()

    @property
    def sparsity(self) -> float:
        """Share of input channels that do not move: both rounded offsets are zero."""
        return float((self.rounded == 0).all(0).float().mean())

    def point_weight(self) -> Tensor:
        """The kernel that the 1x1 conv uses, (C_out, C_in/groups, 1, 1)."""
        return self.weight

    def shifted(self, x: Tensor) -> Tensor:
        """What the 1x1 conv reads: the padded input, its channels moved, every position of stride 1."""
        if self.padding_mode != "zeros":
            x = F.pad(x, self.border, mode=self.padding_mode)
        sizes = list(zip(self.windows, x.shape[2:], strict=True))
        height, width = ((window.outputs(n) - 1) * window.stride + 1 for window, n in sizes)
        offset = self.offset
        later = [window.pads(n)[0] - window.origin for window, n in sizes]  # TensorFlow's "same" pads by the size
        if any(later):
            offset = torch.stack([offset[axis] - pixels for axis, pixels in enumerate(later)])
        return shift(x, offset, self.mode, (height, width))

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, C_in, H, W) -> (N, C_out, H', W')."""
        return F.conv2d(self.shifted(x), self.point_weight(), self.bias, self.stride, groups=self.groups)

    def lower(self) -> nn.Module | None:
        """A depthwise conv that moves, and the 1x1 conv; one conv where nothing moves or each channel is alone.

        Returns:
            None where no such layers are equal at every size: where the output is not the size of the input, or the
            padding is not zeros.

        Example:
            >>> ShiftConv2d.from_conv2d(nn.Conv2d(4, 4, 3, padding=1, groups=4)).lower().groups
            4
        """
        if self.padding_mode != "zeros" or not all(_keeps_size(window) for window in self.windows):
            return None
        kernel, weight = depthwise_kernel(self.offset, self.mode), self.point_weight().detach()
        kernel = kernel.to(weight.dtype)
        if self.groups == self.in_channels or kernel.shape[-1] == 1:
            if kernel.shape[-1] > 1:
                times = self.out_channels // self.groups
                weight = kernel.repeat_interleave(times, 0) * weight
            return self._conv(weight, self.bias, self.stride, self.groups)
        moving = self._conv(kernel, None, (1, 1), self.in_channels)
        return nn.Sequential(moving, self._conv(weight, self.bias, self.stride, self.groups)).train(self.training)

    def _conv(self, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], groups: int) -> nn.Conv2d:
        outputs, inputs, size = len(weight), weight.shape[1] * groups, weight.shape[-1]
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False, device="meta")
        conv.weight = nn.Parameter(weight.clone(), self.weight.requires_grad)
        conv.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        return conv.train(self.training)

    def _draw(self, seed: int | None) -> None:
        """Weights as a new 1x1 conv draws them."""
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            drawn = nn.Conv2d(self.in_channels, self.out_channels, 1, groups=self.groups, bias=self.bias is not None)
        for own, new in ((self.weight, drawn.weight), (self.bias, drawn.bias)):
            if own is not None and new is not None:
                own.data.copy_(new.detach())

    def extra_repr(self) -> str:
        """Show the conv it stands for."""
        parts = [f"{self.in_channels}, {self.out_channels}, mode={self.mode!r}, kernel_size={self.kernel_size}"]
        parts.append(f"stride={self.stride}, padding={self.padding}")
        parts += [f"dilation={self.dilation}"] if max(self.dilation) > 1 else []
        parts += [f"groups={self.groups}"] if self.groups > 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        return ", ".join(parts)


class ShiftStdConv2d(ShiftConv2d):
    """Shift form of a conv with weight standardisation (timm's ``StdConv2d`` and ``ScaledStdConv2d``).

    The 1x1 weight is standardised over the taps that are left. It starts as the standardised kernel's taps; where
    there is a gain, each output's is set so that its weights keep their spread, their mean is lost.

    Shape:
        - ``weight``: (C_out, C_in/groups, 1, 1)

    References:
        Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, arXiv:1903.10520.
        Brock et al., Characterizing signal propagation to close the performance gap in unnormalized ResNets, 2021.
    """

    gain: nn.Parameter | None

    def __init__(self, conv: nn.Conv2d, weight: Tensor, tap: Tensor, mode: Mode) -> None:
        """Take over everything but the weight from ``conv``; see ``ShiftConv2d.from_conv2d``."""
        super().__init__(conv, weight, tap, mode)
        self.eps = float(conv.eps)  # type: ignore[arg-type]
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.scale = float(getattr(conv, "scale", 1.0)) * taps**0.5  # type: ignore[arg-type]
        old, gain = getattr(conv, "gain", None), None
        if isinstance(old, Tensor):
            spread = weight.flatten(1).std(1, correction=0).view(-1, 1, 1, 1) / self.scale
            gain = nn.Parameter(spread.to(old.dtype), old.requires_grad)
        self.register_parameter("gain", gain)

    def point_weight(self) -> Tensor:
        """Standardise the weight as timm does."""
        return standardize(self)

    def _draw(self, seed: int | None) -> None:
        super()._draw(seed)
        if self.gain is not None:
            self.gain.data.fill_(1.0)


def strongest_taps(kernel: Tensor, groups: int) -> Tensor:
    """Row and column of the tap with the largest sum of squares, for each input channel: (2, C_in).

    Args:
        kernel: (C_out, C_in/groups, kh, kw).
        groups: Of the conv.

    Example:
        >>> strongest_taps(torch.tensor([[[[0.0, -3.0], [2.0, 1.0]]]]), 1).flatten().tolist()
        [0, 1]
    """
    (outputs, inputs, _, columns) = kernel.shape
    energy = kernel.square().view(groups, outputs // groups, inputs, -1).sum(1)  # (groups, C_in/groups, taps)
    tap = energy.view(groups * inputs, -1).argmax(1)
    return torch.stack([tap // columns, tap % columns])


def at_taps(kernel: Tensor, tap: Tensor, groups: int) -> Tensor:
    """The 1x1 kernel of the taps (2, C_in): (C_out, C_in/groups, 1, 1).

    Example:
        >>> at_taps(torch.tensor([[[[0.0, -3.0], [2.0, 1.0]]]]), torch.tensor([[0], [1]]), 1).item()
        -3.0
    """
    (outputs, inputs, _, columns) = kernel.shape
    flat = kernel.reshape(groups, outputs // groups, inputs, -1)
    index = (tap[0] * columns + tap[1]).view(groups, 1, inputs, 1).expand(-1, outputs // groups, -1, 1)
    return flat.gather(3, index).reshape(outputs, inputs, 1, 1).clone()


def _borders(conv: nn.Conv2d) -> tuple[tuple[Window, Window], str]:
    """The windows, also of stride-1 convs padded by name, and the padding mode."""
    rows, cols = conv_windows(conv)
    if conv.padding != "same":
        return (rows, cols), padding_mode(conv)
    if conv.padding_mode == "zeros":
        return (replace(rows, same=True), replace(cols, same=True)), "zeros"
    return (rows, cols), conv.padding_mode


def _keeps_size(window: Window) -> bool:
    """Whether both borders are padded by half the reach at every size."""
    return window.reach % 2 == 0 and (window.stride == 1 if window.same else 2 * window.padding == window.reach)
