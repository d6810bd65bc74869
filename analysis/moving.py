"""Images moved: shifted by whole pixels or fractions, rotated, scaled; what comes in at the border is said by name.

Apart from the analyses that move images, so that all of them mean the same by a shift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from surgeon.errors import AnalysisError

Padding = Literal["mirror", "black", "circular", "crop"]
Fill = float | Sequence[float]
Size = tuple[int, int]


def shift_images(
    images: Tensor, dx: float, dy: float, padding: Padding = "mirror", *, size: Size | None = None, fill: Fill = 0.0
) -> Tensor:
    """Shift what images show to the right and down.

    Whole pixels are moved exactly, bit for bit. Fractions are Fourier shifts of the padded image: the band-limited
    image through the pixels is read between them (of ``black``, of the difference to ``fill``). At the highest
    frequency of an even size, whose phase no real image holds, the cosine of the shift stays.

    Args:
        images: (N, C, H, W), or feature maps.
        dx: Pixels to the right; negative ones to the left.
        dy: Pixels down; negative ones up.
        padding: What comes in: "mirror" the image reflected, border pixels twice (a mosaic); "black" the value
            ``fill``; "circular" what has left on the other side; "crop" what a larger image holds there, of which the
            middle is taken.
        size: (height, width) of the window for "crop".
        fill: Black, in the values of the images: one for all channels, or one each. 0 unless images are normalised.

    Returns:
        (N, C, H, W), or windows (N, C, height, width) for "crop".

    Raises:
        AnalysisError: For an unknown padding, a window that leaves the image, or no window.

    Example:
        >>> row = torch.arange(4.0).view(1, 1, 1, 4)
        >>> for padding in ("mirror", "black", "circular"):
        ...     print(shift_images(row, 2, 0, padding).flatten().tolist())
        [1.0, 0.0, 0.0, 1.0]
        [0.0, 0.0, 0.0, 1.0]
        [2.0, 3.0, 0.0, 1.0]
        >>> shift_images(row, 1, 0, "crop", size=(1, 2)).flatten().tolist()
        [0.0, 1.0]

    References:
        Mosaic and canvas: the released code of paper 002 (``tf.pad``, SYMMETRIC); circular: Chaman and Dokmanic 2021.
    """
    if padding == "crop":
        return _window(images, dx, dy, size)
    if padding not in get_args(Padding):
        raise AnalysisError(f"padding={padding!r}: unknown; give one of {', '.join(get_args(Padding))}")
    black = _as_channels(fill, images) if padding == "black" else None
    whole = float(dx).is_integer() and float(dy).is_integer()
    return _whole(images, int(dx), int(dy), padding, black) if whole else _between(images, dx, dy, padding, black)


def turn_images(
    images: Tensor,
    degrees: float = 0.0,
    scale: float = 1.0,
    padding: Padding = "mirror",
    *,
    size: Size | None = None,
    fill: Fill = 0.0,
) -> Tensor:
    """Rotate what images show about their middle, and scale it; read by bicubic interpolation.

    Args:
        images: (N, C, H, W).
        degrees: Anticlockwise.
        scale: 2 shows everything twice as large; ones below 1 bring in what ``padding`` says, and much smaller ones
            alias, as nothing is blurred.
        padding: As of :func:`shift_images`.
        size: Likewise.
        fill: Likewise.

    Returns:
        (N, C, H, W), or windows (N, C, height, width) for "crop".

    Raises:
        AnalysisError: For an unknown padding, a scale that is not positive, or no window.

    Example:
        >>> image = torch.arange(9.0).view(1, 1, 3, 3)
        >>> turn_images(image, 90, padding="black").round().flatten().int().tolist()
        [2, 5, 8, 1, 4, 7, 0, 3, 6]
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise AnalysisError(f"scale={scale}: give a positive factor, 1 for images as they are")
    if padding not in get_args(Padding):
        raise AnalysisError(f"padding={padding!r}: unknown; give one of {', '.join(get_args(Padding))}")
    if padding == "crop":
        return _window(_turned(images, degrees, scale, "mirror", None), 0, 0, size)
    return _turned(images, degrees, scale, padding, _as_channels(fill, images) if padding == "black" else None)


def _whole(images: Tensor, dx: int, dy: int, padding: Padding, black: Tensor | None) -> Tensor:
    if black is None:
        return images[:, :, _rows(images, 2, -dy, padding)][:, :, :, _rows(images, 3, -dx, padding)]
    height, width = images.shape[-2:]
    moved = black.expand(images.shape).clone(memory_format=torch.contiguous_format)
    if abs(dx) < width and abs(dy) < height:
        inside = images[:, :, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
        moved[:, :, max(dy, 0) : height - max(-dy, 0), max(dx, 0) : width - max(-dx, 0)] = inside
    return moved


def _rows(images: Tensor, axis: int, start: int, padding: Padding, more: int = 0) -> Tensor:
    """Which rows or columns of the image lie where, from ``start`` on, in the endless mosaic."""
    count = images.shape[axis]
    at = torch.arange(start, start + count + more, device=images.device)
    if padding == "circular":
        return at % count
    at = at % (2 * count)
    return torch.minimum(at, 2 * count - 1 - at)


def _between(images: Tensor, dx: float, dy: float, padding: Padding, black: Tensor | None) -> Tensor:
    height, width = images.shape[-2:]
    if padding == "circular":
        return _fourier(images, dx, dy)
    if black is None:
        down, right = _rows(images, 2, 0, padding, height), _rows(images, 3, 0, padding, width)
        return _fourier(images[:, :, down][:, :, :, right], dx, dy)[:, :, :height, :width]
    if abs(dx) >= width or abs(dy) >= height:
        return black.expand(images.shape).clone()
    return _fourier(F.pad(images - black, (0, width, 0, height)), dx, dy)[:, :, :height, :width] + black


def _fourier(images: Tensor, dx: float, dy: float) -> Tensor:
    kind = torch.promote_types(images.dtype, torch.float32)
    spectrum = torch.fft.fft2(images.to(kind))
    shifted = spectrum * _phases(images.shape[-2], dy, spectrum)[:, None] * _phases(images.shape[-1], dx, spectrum)
    moved: Tensor = torch.fft.ifft2(shifted).real.to(images.dtype)
    return moved


def _phases(count: int, shift: float, like: Tensor) -> Tensor:
    frequencies = torch.fft.fftfreq(count, dtype=torch.float64)
    phases = torch.exp(-2j * math.pi * frequencies * shift)
    if count % 2 == 0:
        phases[count // 2] = math.cos(math.pi * shift)
    return phases.to(like.dtype).to(like.device)


def _window(images: Tensor, dx: float, dy: float, size: Size | None) -> Tensor:
    if size is None:
        raise AnalysisError("padding='crop': say the size of the window, (height, width); images must be larger")
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    down, right = math.floor(dy), math.floor(dx)
    lines, columns = (top - down, top - down + size[0]), (left - right, left - right + size[1])
    if min(lines[0], columns[0]) < 0 or lines[1] > images.shape[-2] or columns[1] > images.shape[-1]:
        raise AnalysisError(
            f"padding='crop': a window of {size[0]} x {size[1]} shifted by ({dx:g}, {dy:g}) leaves images of "
            f"{images.shape[-2]} x {images.shape[-1]}; give larger images or smaller shifts"
        )
    if (dx, dy) != (right, down):
        images = _between(images, dx - right, dy - down, "mirror", None)
    return images[:, :, lines[0] : lines[1], columns[0] : columns[1]]


def _turned(images: Tensor, degrees: float, scale: float, padding: Padding, black: Tensor | None) -> Tensor:
    if degrees % 360 == 0 and scale == 1:
        return images.clone()
    height, width = images.shape[-2:]
    far = math.hypot(height, width) / scale / 2 + 2
    above, beside = max(0, math.ceil(far - height / 2)), max(0, math.ceil(far - width / 2))
    if black is None:
        down = _rows(images, 2, -above, padding, 2 * above)
        wide = images[:, :, down][:, :, :, _rows(images, 3, -beside, padding, 2 * beside)]
    else:
        wide = F.pad(images - black, (beside, beside, above, above))
    kind = torch.promote_types(images.dtype, torch.float32)
    y = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    y, x = torch.meshgrid(y, x, indexing="ij")
    cosine, sine = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    across, along = cosine * x - sine * y, sine * x + cosine * y  # where in the image this is read
    grid = torch.stack([across * 2 / wide.shape[-1], along * 2 / wide.shape[-2]], -1).to(images.device, kind)
    places = grid.expand(len(images), -1, -1, -1)
    moved = F.grid_sample(wide.to(kind), places, mode="bicubic", padding_mode="border", align_corners=False)
    return (moved if black is None else moved + black).to(images.dtype)


def _as_channels(fill: Fill, images: Tensor) -> Tensor:
    """Black as (1, C or 1, 1, 1)."""
    values = torch.as_tensor(fill, dtype=images.dtype, device=images.device).flatten()
    if len(values) not in (1, images.shape[1]):
        raise AnalysisError(f"fill: {len(values)} values for {images.shape[1]} channels; give one for all, or one each")
    return values.view(1, -1, 1, 1)
