"""Layers that replace a strided conv: space-to-depth, then a stride-1 conv that starts as the same function.

The layers alone: they know nothing of sites, graphs or recipes, so they can be used and tested by themselves.
"""

from __future__ import annotations

import math
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.errors import RecipeError, RefusedError
from surgeon.following import memory_format
from surgeon.ops.space_to_depth import Blocks, Kernel, block_conv2d, embed
from surgeon.ops.spd_fold import fold
from surgeon.ops.spd_windows import conv_style, conv_windows, pad_pixels, padding_mode, pair, why_not_conv

Init = Literal["exact", "fresh"]


class SPDConv2d(nn.Module):
    r"""Space-to-depth, then a stride-1 conv: a strided conv that drops no position.

    Built by ``from_conv2d``. It owns ``weight`` and ``bias``, so that folding a BatchNorm which reads them works, and
    names ``in_channels`` ... ``groups`` as of the conv it replaces. New taps are zero and learn. Exact means: the same
    function to rounding, at every input size, for finite inputs.

    Shape:
        - Input: (N, C_in, H, W), any H and W the conv takes
        - Output: (N, C_out, ⌊(H + 2p − d(k−1) − 1)/s⌋ + 1, ...), as the conv it replaces
        - ``weight``: (C_out, C_in/groups*sh*sw, Kh, Kw), channel-major as in ``space_to_depth``

    Example:
        >>> import torch
        >>> conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        >>> spd = SPDConv2d.from_conv2d(conv)
        >>> x = torch.rand(1, 3, 33, 20)
        >>> spd.weight.shape, bool(torch.allclose(spd(x), conv(x), atol=1e-6))
        (torch.Size([8, 12, 3, 3]), True)

    References:
        Sunkara and Luo, No More Strided Convolutions or Pooling, ECML PKDD 2022, arXiv:2208.03641.
        Deviation: the old weight is placed exactly instead of drawn anew (``init="fresh"`` draws), and the channel
        order differs. The authors' released networks mostly put the conv first.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, conv: nn.Conv2d, weight: Tensor, rows: Blocks, cols: Blocks) -> None:
        """Take over everything but the weight from ``conv``; see ``from_conv2d``."""
        super().__init__()
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation)
        self.padding: str | tuple[int, int] = "same" if rows.window.same else pad_pixels(conv)
        self.padding_mode = padding_mode(conv)
        self.rows, self.cols = rows, cols
        self.weight = nn.Parameter(weight, conv.weight.requires_grad)
        self.register_parameter("bias", _copy(conv.bias))
        self.train(conv.training)

    @staticmethod
    def why_not(conv: nn.Module) -> str | None:
        """Why ``conv`` has no exact space-to-depth form, as a verb phrase; None if it has one.

        Example:
            >>> SPDConv2d.why_not(nn.Conv2d(3, 8, 3))
            'has stride (1, 1), so there is no block to move into channels'
        """
        return why_not_conv(conv)

    @staticmethod
    def is_patchify(conv: nn.Module) -> bool:
        """Whether ``conv`` cuts its input in patches that touch: then it is space-to-depth + 1x1 conv already.

        Example:
            >>> SPDConv2d.is_patchify(nn.Conv2d(3, 8, 4, stride=4))
            True
        """
        if not isinstance(conv, nn.Conv2d):
            return False
        return (
            all(
                w.kernel == w.stride and not w.same and w.padding == 0 and (w.dilation == 1 or w.kernel == 1)
                for w in conv_windows(conv)
            )
            and padding_mode(conv) == "zeros"
        )

    @staticmethod
    def minimal_kernel(conv: nn.Conv2d) -> tuple[int, int]:
        """The smallest kernel, in blocks, that holds every tap of ``conv``.

        Example:
            >>> SPDConv2d.minimal_kernel(nn.Conv2d(3, 8, (7, 1), stride=2, padding=(3, 0)))
            (4, 1)
        """
        rows, cols = conv_windows(conv)
        return Blocks.of(rows).kernel, Blocks.of(cols).kernel

    @classmethod
    def from_conv2d(cls, conv: nn.Module, *, kernel: Kernel = "same", init: Init = "exact") -> SPDConv2d:
        """Build the layer from a strided conv; device, dtype, memory format, modes and ``requires_grad`` follow.

        Args:
            conv: An ``nn.Conv2d``, or timm's ``Conv2dSame``, ``StdConv2d`` and their kin.
            kernel: In blocks: "same" as the conv's own kernel size, more only where dilation needs it; "minimal", the
                smallest exact one; or a number for both axes.
            init: "exact" places the old weight; "fresh" draws weight and bias as ``nn.Conv2d`` does for the new shape.

        Raises:
            RefusedError: When ``why_not`` has a reason.
            RecipeError: When ``kernel`` is too small to be exact, or a setting is unknown.

        Example:
            >>> SPDConv2d.from_conv2d(nn.Conv2d(3, 8, 7, stride=2, padding=3), kernel="minimal")
            SPDConv2d(3, 8, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), blocks=(4, 4))
        """
        reason = why_not_conv(conv)
        if reason is not None or not isinstance(conv, nn.Conv2d):
            raise RefusedError(f"SPDConv2d cannot replace this module: it {reason}; leave it as it is")
        if init not in ("exact", "fresh"):
            raise RecipeError(f"init={init!r} is unknown; use 'exact' or 'fresh'")
        rows, cols = (Blocks.of(window, kernel) for window in conv_windows(conv))
        if init == "exact" and (rows.kernel < rows.least or cols.kernel < cols.least):
            raise RecipeError(
                f"kernel={kernel} cannot hold a {_size(conv.kernel_size)} conv of stride {_size(conv.stride)} and "
                f"dilation {_size(conv.dilation)} exactly: its taps lie in {rows.least}x{cols.least} blocks; "
                f"use kernel={max(rows.least, cols.least)} or more, or init='fresh'"
            )
        layer = SPDStdConv2d if conv_style(conv) == "standardized" else SPDConv2d
        return layer._build(conv, rows, cols, init)

    @classmethod
    def _build(cls, conv: nn.Conv2d, rows: Blocks, cols: Blocks, init: Init) -> Self:
        if init == "exact":
            weight = embed(conv.weight.detach(), rows, cols)
            return cls(conv, weight.clone(memory_format=memory_format(conv.weight)), rows, cols)
        drawn = _draw(conv, rows, cols)
        layer = cls(conv, drawn.weight.detach().clone(memory_format=memory_format(conv.weight)), rows, cols)
        if layer.bias is not None and drawn.bias is not None:
            layer.bias.data = drawn.bias.detach()
        return layer

    def block_weight(self) -> Tensor:
        """The kernel that the conv over blocks uses, (C_out, C_in/groups*sh*sw, Kh, Kw)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, C_in, H, W) -> (N, C_out, H', W')."""
        if self.padding_mode != "zeros":
            top, left = pair(self.padding)  # type: ignore[arg-type]
            x = F.pad(x, (left, left, top, top), mode=self.padding_mode)
        return block_conv2d(x, self.block_weight(), self.bias, self.rows, self.cols, self.groups)

    def lower(self) -> nn.Module | None:
        """Fold to one plain strided conv, padded by ``ZeroPad2d`` where needed: equal to rounding at every size.

        Returns:
            Conv2d, Sequential ending in one, timm's Conv2dSame; None where no such layer is equal at every size.

        Example:
            >>> SPDConv2d.from_conv2d(nn.Conv2d(3, 8, 3, stride=2, padding=1)).lower()  # untrained: as it was
            Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
        """
        padding = (0, 0) if self.padding_mode == "zeros" else pair(self.padding)  # type: ignore[arg-type]
        weight = self.block_weight().detach().requires_grad_(self.weight.requires_grad)
        lowered = fold(weight, self.bias, self.rows, self.cols, self.groups, mode=self.padding_mode, padding=padding)
        return None if lowered is None else lowered.train(self.training)

    def extra_repr(self) -> str:
        """Show the conv it stands for, and the kernel size in blocks."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts.append(f"padding={self.padding}, blocks={(self.rows.kernel, self.cols.kernel)}")
        parts += [f"dilation={self.dilation}"] if max(self.dilation) > 1 else []
        parts += [f"groups={self.groups}"] if self.groups > 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        return ", ".join(parts)


class SPDStdConv2d(SPDConv2d):
    """Space-to-depth form of a conv with weight standardisation (timm's ``StdConv2d`` and ``ScaledStdConv2d``).

    Zero taps inside the standardised weight would change its mean and variance. So the old ``weight`` (and ``gain``)
    stays as it is, is standardised as before, and only then placed; the new taps are a parameter of their own,
    ``extra``, zero at first and not standardised. With ``init="fresh"`` there is no ``extra``: the weight has the new
    shape and is standardised whole.

    Shape:
        - ``weight``: (C_out, C_in/groups, kh, kw), as the conv it replaces
        - ``extra``: (C_out, C_in/groups*sh*sw, Kh, Kw)

    References:
        Qiao et al., Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, arXiv:1903.10520.
        Brock et al., Characterizing signal propagation to close the performance gap in unnormalized ResNets, 2021.
    """

    gain: nn.Parameter | None
    extra: nn.Parameter | None

    def __init__(self, conv: nn.Conv2d, weight: Tensor, rows: Blocks, cols: Blocks) -> None:
        """Take over everything but the weight from ``conv``; see ``SPDConv2d.from_conv2d``."""
        super().__init__(conv, weight, rows, cols)
        self.eps = float(conv.eps)  # type: ignore[arg-type]
        self.scale = float(getattr(conv, "scale", 1.0))  # type: ignore[arg-type]
        self.register_parameter("gain", _copy(getattr(conv, "gain", None)))
        self.register_parameter("extra", None)

    @classmethod
    def _build(cls, conv: nn.Conv2d, rows: Blocks, cols: Blocks, init: Init) -> Self:
        if init == "fresh":
            layer = super()._build(conv, rows, cols, init)
            layer._rescale(conv)
            return layer
        layer = cls(conv, conv.weight.detach().clone(), rows, cols)
        extra = torch.zeros_like(embed(conv.weight.detach(), rows, cols))
        extra = extra.contiguous(memory_format=memory_format(conv.weight))
        layer.extra = nn.Parameter(extra, conv.weight.requires_grad)
        return layer

    def _rescale(self, conv: nn.Conv2d) -> None:
        """Start a fresh scaled conv: its gain as at first, its scale for the new fan-in."""
        if self.gain is not None:
            self.scale *= math.sqrt(conv.weight[0].numel() / self.weight[0].numel())
            self.gain.data.fill_(float(conv.gain_init))  # type: ignore[arg-type]

    def block_weight(self) -> Tensor:
        """Standardise the weight as timm does, place it, add the new taps."""
        weight = standardize(self)
        return weight if self.extra is None else embed(weight, self.rows, self.cols) + self.extra


def standardize(conv: nn.Module) -> Tensor:
    """The kernel a weight-standardised conv computes with: as timm does, each filter to mean 0 and variance 1."""
    weight, gain = cast(Tensor, conv.weight), cast(Tensor | None, getattr(conv, "gain", None))
    factor = None if gain is None else (gain * float(getattr(conv, "scale", 1.0))).view(-1)
    flat = weight.reshape(1, len(weight), -1)
    eps = float(conv.eps)  # type: ignore[arg-type]
    flat = F.batch_norm(flat, None, None, weight=factor, training=True, momentum=0.0, eps=eps)
    return flat.reshape_as(weight)


def _copy(old: Tensor | None) -> nn.Parameter | None:
    return None if old is None else nn.Parameter(old.detach().clone(), old.requires_grad)


def _draw(conv: nn.Conv2d, rows: Blocks, cols: Blocks) -> nn.Conv2d:
    """A conv of the new shape as ``nn.Conv2d`` draws it."""
    return nn.Conv2d(
        conv.in_channels * rows.window.stride * cols.window.stride,
        conv.out_channels,
        (rows.kernel, cols.kernel),
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )


def _size(pixels: tuple[int, ...]) -> str:
    return "x".join(map(str, pixels))
