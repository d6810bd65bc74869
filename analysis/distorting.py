"""Images distorted to a known strength: digits and photographs that scikit-learn brings, so that no download is needed.

Apart from `ratings`, whose form they take: nobody judged these images, a score is the level of the distortion.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from analysis.moving import shift_images, turn_images
from analysis.perceptual_settings import whole
from analysis.ratings import RatedPair, Ratings
from surgeon.errors import AnalysisError

STRONGEST = {"noise": 0.3, "blur": 0.05, "contrast": 0.8, "shift": 0.16, "rotation": 20.0}
SOURCES = ("digits", "photos")
DIGITS, SHORT = 1797, 213  # how many digits there are; the shorter side of the photographs


def distorted_samples(
    source: str = "digits",
    *,
    images: int = 20,
    size: int = 32,
    distortions: Sequence[str] = tuple(STRONGEST),
    levels: int = 5,
    channels: int | None = None,
    seed: int = 0,
) -> Ratings:
    """Distort scikit-learn's images in steps of known strength; a score is the level, so higher is worse.

    At the highest level "noise" is Gaussian with a standard deviation of 0.3, "blur" Gaussian with one of 5% of the
    size, "contrast" takes away 80% of the difference to the mean, "shift" moves by 16% of the size to the right and
    down (mirrored), "rotation" turns by 20 degrees (mirrored); the lower levels are equal fractions of that. Levels of
    different distortions are *not* equally visible: compare within a distortion.

    A reference is named by what it is, so that the same image of two calls has one name: "digits 767" is number 767 of
    scikit-learn's, "china 12 40" the square of that photograph from row 12 and column 40 on. Two seeds are *not* two
    disjoint sets: draw all references at once and part them by :meth:`Ratings.split` or :meth:`Ratings.only`. Squares
    of other names may still overlap, so parts of "photos" are never quite apart.

    Args:
        source: "digits" (1,797 of 8 x 8 pixels, enlarged) or "photos" (squares cut from china.jpg and flower.jpg at
            half their size, so their references show two scenes only).
        images: Number of references, all different.
        size: Of the images, pixels.
        distortions: Some of those above, each once.
        levels: Number of steps.
        channels: 1 or 3; 1 of digits and 3 of photos by default.
        seed: Of the choice of references and of the noise, which has one pattern per image at all its levels.

    Raises:
        AnalysisError: For an unknown source or distortion, or a number that is none.

    Example:
        >>> data = distorted_samples(images=2, levels=3)
        >>> len(data), data.distortions, tuple(data[0][0].shape)
        (30, ['noise', 'blur', 'contrast', 'shift', 'rotation'], (1, 32, 32))
    """
    _check(source, images, size, distortions, levels, channels, seed)
    originals = (_digits if source == "digits" else _photos)(images, size, seed)
    wide = channels or (1 if source == "digits" else 3)
    pairs = [
        RatedPair(name, f"{name} {kind} {level}", float(level), kind, float(level))
        for name in originals
        for kind in distortions
        for level in range(1, levels + 1)
    ]
    places = {name: (name, "", 0.0) for name in originals}
    places |= {pair.distorted: (pair.reference, pair.distortion, pair.score / levels) for pair in pairs}

    def image(name: str) -> Tensor:
        reference, kind, strength = places[name]
        original = _coloured(originals[reference], wide)
        return distort(original, kind, strength, seed + zlib.crc32(reference.encode())) if kind else original

    return Ratings(f"distorted {source}", pairs, image, higher="worse", scored="level", curves=True)


def distort(image: Tensor, kind: str, strength: float, seed: int = 0) -> Tensor:
    """Distort one image.

    Args:
        image: (C, H, W), 0 to 1.
        kind: "noise", "blur", "contrast", "shift" or "rotation".
        strength: 0 leaves the image, 1 is the highest level of :func:`distorted_samples`.
        seed: Of the noise.

    Returns:
        (C, H, W), 0 to 1.

    Raises:
        AnalysisError: For another kind.

    Example:
        >>> distort(torch.tensor([[[0.0, 1.0]]]), "contrast", 1.0).flatten().tolist()
        [0.4000000059604645, 0.6000000238418579]
    """
    if kind not in STRONGEST:
        raise AnalysisError(f"distortion '{kind}' is unknown; there are {', '.join(STRONGEST)}")
    amount, height = strength * STRONGEST[kind], image.shape[1]
    if kind == "noise":
        generator = torch.Generator().manual_seed(seed)
        found = image + amount * torch.randn(image.shape, generator=generator)
    elif kind == "blur":
        sigma = amount * height
        found = torch.from_numpy(gaussian_filter(image.numpy(), (0, sigma, sigma), mode="reflect"))
    elif kind == "contrast":
        found = image + amount * (image.mean((1, 2), keepdim=True) - image)
    elif kind == "shift":
        pixels = round(amount * height)
        found = shift_images(image[None], pixels, pixels, "mirror")[0]
    else:
        found = turn_images(image[None], amount, padding="mirror")[0]
    return found.clamp(0, 1)


def _check(
    source: str, images: int, size: int, kinds: Sequence[str], levels: int, channels: int | None, seed: int
) -> None:
    listed = list(kinds) if isinstance(kinds, (list, tuple)) else []
    wrong = [
        (source in SOURCES, f"source is {source!r}; it is one of {', '.join(SOURCES)}"),
        (not isinstance(kinds, str), f"distortions is the text {kinds!r}; write a list of names"),
        (isinstance(kinds, (list, tuple)), f"distortions is {kinds!r}; write a list of names"),
        (
            all(kind in tuple(STRONGEST) for kind in listed),
            f"distortions are {kinds}; there are {', '.join(STRONGEST)}",
        ),
        (len(listed) > 0, "no distortion; name at least one"),
        (all(listed.count(kind) == 1 for kind in listed), f"distortions are {kinds}; name each once"),
        (whole(size, 8) and size <= SHORT, f"size is {size!r}; give 8 to {SHORT} pixels"),
        (whole(images, 1) and images <= DIGITS, f"images is {images!r}; give 1 to {DIGITS}"),
        (whole(levels, 1), f"levels is {levels!r}; give at least 1"),
        (channels is None or (whole(channels, 1) and channels in (1, 3)), f"channels is {channels!r}; give 1 or 3"),
        (whole(seed), f"seed is {seed!r}; give a whole number from 0 up"),
    ]
    if reasons := [reason for fine, reason in wrong if not fine]:
        raise AnalysisError(f"distorted_samples: {reasons[0]}")


def _coloured(image: Tensor, channels: int) -> Tensor:
    grey = image if len(image) == channels else image.mean(0, keepdim=True)
    return grey.expand(channels, -1, -1).contiguous()


def _digits(count: int, size: int, seed: int) -> dict[str, Tensor]:
    """Digits, (1, size, size), by their number."""
    from sklearn.datasets import load_digits

    every = load_digits().images
    chosen = np.random.default_rng(seed).permutation(len(every))[:count]
    small = torch.tensor(every[chosen] / 16, dtype=torch.float32)[:, None]
    large = functional.interpolate(small, (size, size), mode="bilinear").clamp(0, 1)
    return {f"digits {number}": image for number, image in zip(chosen, large, strict=True)}


@cache
def _scenes() -> dict[str, Tensor]:
    """Two photographs of (3, 213, 320)."""
    from sklearn.datasets import load_sample_images

    found = {}
    bunch = load_sample_images()
    for file, pixels in zip(bunch.filenames, bunch.images, strict=True):
        whole_photo = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255
        half = functional.interpolate(whole_photo, scale_factor=0.5, mode="bilinear", antialias=True)
        found[Path(file).stem] = half[0].clamp(0, 1)
    return found


def _photos(count: int, size: int, seed: int) -> dict[str, Tensor]:
    """Different squares, (3, size, size), of either photograph in turn, by where they are cut."""
    drawn = np.random.default_rng(seed)
    places, there = [], 0
    for name, scene in _scenes().items():
        high, wide = (side - size + 1 for side in scene.shape[1:])
        there += high * wide
        spots = drawn.permutation(high * wide)[: -(-count // 2)]
        places.append([(name, *map(int, divmod(spot, wide))) for spot in spots])
    if count > there:
        raise AnalysisError(
            f"distorted_samples: images is {count}, and of {size} pixels there are {there} squares; give fewer "
            "images, or a smaller size"
        )
    turns = [place for both in zip(*places, strict=True) for place in both]
    return {
        f"{name} {top} {left}": _scenes()[name][:, top : top + size, left : left + size]
        for name, top, left in turns[:count]
    }
