"""Images moved: exact where pixels move whole, as the definition says between them, and what comes in at the border."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.moving import shift_images, turn_images
from surgeon.errors import AnalysisError

IMAGES = torch.rand(2, 3, 8, 11, generator=torch.Generator().manual_seed(0))
SMALL = IMAGES.double()


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, 0), (0, -2), (-4, 5), (11, 8), (-30, 17)])
def test_whole_pixels_move_exactly(dx: int, dy: int) -> None:
    assert torch.equal(shift_images(IMAGES, dx, dy, "circular"), IMAGES.roll((dy, dx), (2, 3)))
    mosaic = np.pad(IMAGES.numpy(), ((0, 0), (0, 0), (40, 40), (40, 40)), mode="symmetric")
    window = mosaic[:, :, 40 - dy : 48 - dy, 40 - dx : 51 - dx]
    assert np.array_equal(shift_images(IMAGES, dx, dy, "mirror").numpy(), window)
    canvas = np.zeros_like(mosaic)
    canvas[:, :, 40:48, 40:51] = IMAGES
    assert np.array_equal(
        shift_images(IMAGES, dx, dy, "black").numpy(), canvas[:, :, 40 - dy : 48 - dy, 40 - dx : 51 - dx]
    )


def test_black_is_a_value_per_channel() -> None:
    moved = shift_images(IMAGES, 2, 0, "black", fill=(-1.0, -2.0, -3.0))
    assert moved[0, :, 0, 0].tolist() == [-1.0, -2.0, -3.0] and torch.equal(moved[..., 2:], IMAGES[..., :-2])
    assert shift_images(IMAGES, 20, 0, "black", fill=5.0).unique().tolist() == [5.0]


def test_a_crop_shows_what_the_larger_image_holds() -> None:
    assert torch.equal(shift_images(IMAGES, 0, 0, "crop", size=(4, 5)), IMAGES[:, :, 2:6, 3:8])
    assert torch.equal(shift_images(IMAGES, 1, -2, "crop", size=(4, 5)), IMAGES[:, :, 4:8, 2:7])
    with pytest.raises(AnalysisError, match=r"4 x 5 shifted by \(4, 0\) leaves images of 8 x 11"):
        shift_images(IMAGES, 4, 0, "crop", size=(4, 5))


@pytest.mark.parametrize("padding", ["circular", "mirror", "black"])
def test_two_halves_are_a_whole(padding: str) -> None:
    """Band-limited circular images, and canvases wide enough: fractions add up; elsewhere they come close."""
    x = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
    wave = (torch.sin(3 * x)[None, :] + torch.cos(2 * x)[:, None]).view(1, 1, 16, 16)
    images = torch.nn.functional.pad(wave[:, :, 4:12, 4:12] * 0 + bump(), (4, 4, 4, 4)) if padding == "black" else wave
    half = shift_images(images, 0.5, 0.25, padding)  # type: ignore[arg-type]
    twice = shift_images(half, 0.5, 0.75, padding)  # type: ignore[arg-type]
    whole = shift_images(images, 1, 1, padding)  # type: ignore[arg-type]
    inside = (..., slice(3, -3), slice(3, -3)) if padding == "mirror" else ...
    assert (twice - whole)[inside].abs().max() < (1e-12 if padding == "circular" else 0.03)
    assert (half - whole).abs().max() > 0.1


def bump() -> Tensor:
    x = torch.arange(8, dtype=torch.float64) - 3.5
    return torch.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / 4).view(1, 1, 8, 8)


def test_a_fraction_reads_the_wave_through_the_pixels() -> None:
    x = torch.arange(12, dtype=torch.float64) * 2 * math.pi / 12
    wave = torch.sin(2 * x).view(1, 1, 1, 12)
    moved = shift_images(wave, 0.3, 0, "circular")
    assert torch.allclose(moved.flatten(), torch.sin(2 * (x - 2 * math.pi / 12 * 0.3)), atol=1e-12)


def test_a_turn_by_a_quarter_is_exact_and_four_are_none() -> None:
    square = SMALL[..., :8]
    assert torch.allclose(turn_images(square, 90), torch.rot90(square, 1, (2, 3)), atol=1e-12)
    assert torch.equal(turn_images(square, 360), square) and torch.equal(turn_images(square, scale=1), square)
    assert not torch.allclose(turn_images(square, 10), square, atol=1e-2)


def test_scale_shows_the_middle_larger() -> None:
    line = torch.arange(16, dtype=torch.float64).view(1, 1, 1, 16).expand(1, 1, 16, 16)
    twice = turn_images(line, scale=2)
    middle = 7.5 + (torch.arange(16, dtype=torch.float64) - 7.5) / 2
    assert torch.allclose(twice[0, 0, 8, 2:-2], middle[2:-2], atol=0.05)  # torch's cubic is not exact on lines
    half = turn_images(line, scale=0.5, padding="black", fill=-7.0)
    assert half[0, 0, 8, 0] == pytest.approx(-7) and half[0, 0, 0, 8] == pytest.approx(-7)


def test_types_and_mistakes() -> None:
    assert shift_images(IMAGES.half(), 0.5, 0).dtype == torch.float16
    assert turn_images(IMAGES.bfloat16(), 5).dtype == torch.bfloat16
    with pytest.raises(AnalysisError, match="give one of mirror, black, circular, crop"):
        shift_images(IMAGES, 1, 0, "wrap")  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="2 values for 3 channels"):
        shift_images(IMAGES, 1, 0, "black", fill=(0.0, 1.0))
    with pytest.raises(AnalysisError, match="size of the window"):
        shift_images(IMAGES, 1, 0, "crop")
    with pytest.raises(AnalysisError, match="positive factor"):
        turn_images(IMAGES, scale=0.0)
