"""Does the saliency map move with the image: attribution equivariance.

Apart from the maps (`saliency_maps`), which see one batch, and from what comes of the comparison (`saliency_result`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from analysis.attribution_settings import Asked, baseline_of, methods_of
from analysis.explaining import Explained
from analysis.moves import check_fill
from analysis.moving import shift_images
from analysis.parts import Level, Unit
from analysis.saliency_maps import AT_UNIT, GUIDED, METHODS, Seeing, Shown, maps
from analysis.saliency_result import AttributionEquivariance, Compared, result_of
from analysis.study_settings import size_in_bytes
from analysis.studying import units_of
from analysis.unit_taps import Place, places_of, tapped
from surgeon.errors import AnalysisError
from surgeon.host import InputSize

Padding = Literal["circular", "mirror", "black"]
Shift = tuple[int, int]
COPIES = 12  # of a map in double precision while two are compared


def attribution_equivariance(
    model: Any,
    data: Iterable[Any] | Any,
    *,
    method: str | Sequence[str] = "saliency",
    shifts: Sequence[int | tuple[int, int]] = (1, 2, 4),
    padding: Padding = "circular",
    fill: float | Sequence[float] | None = None,
    baseline: str | float | Tensor = "zero",
    steps: int = 50,
    samples: int = 16,
    noise: float = 0.15,
    target: str | None = None,
    unit: str | None = None,
    units: Level | Sequence[Unit] = "block",
    internal_batch_size: int | None = None,
    memory: int | str = "1GiB",
    top: int = 100,
    seed: int = 0,
    limit: int | None = None,
    progress: bool = True,
    amp: str | None = None,
    command: str = "",
    detector: Mapping[str, Any] | None = None,
    input_size: InputSize = None,
) -> AttributionEquivariance:
    """Measure whether the map of what an answer rests on moves with the image.

    Two maps are compared: that of the shifted image, and the shifted map of the image, for the same class. Pearson's
    and Spearman's correlation over the pixels are 1, and the normalised distance 2 |a - b| / (|a| + |b|) is 0, where
    the map moves exactly with the image. Beside them stand the same numbers for two references: *chance*, the map of
    another image (the one before), and *stayed*, the map left where it was. A map that only marks the middle of
    whatever it is shown is as good as chance; one so smooth that a pixel makes no difference is as good as stayed. The
    model is put back bit for bit.

    Without wrapping, only the part of the maps is compared that shows the same pixels; what came in at the border still
    changes the model's answer there.

    Args:
        model: A classifier, or a ``YOLO``/``RTDETR`` object.
        data: As of :func:`analysis.attribution`.
        method: One or several of "saliency", "input_x_gradient", "integrated_gradients", "smoothgrad",
            "guided_backprop", "gradcam", "guided_gradcam" (`analysis.saliency_maps`).
        shifts: Whole pixels: a number for that many to the right and down, or (right, down).
        padding: What comes in at the border: "circular", "mirror" or "black".
        fill: Value of black for "black", as of :func:`analysis.translation`.
        baseline: Of integrated gradients, as of :func:`analysis.attribution`; it moves with the image.
        steps: Of integrated gradients.
        samples: Noisy images of SmoothGrad; the noise of an image is the same for all shifts, and moves with it.
        noise: Of SmoothGrad: standard deviation in shares of the range of an image's values.
        target: Class explained, that of the image as it was: "label" (the default) or "predicted"; of detectors
            "confidence".
        unit: Name of the unit GradCAM looks at; by default the last one with a feature map larger than a pixel.
        units: Among which units.
        internal_batch_size: Images in one forward and backward pass; by default as many as ``memory`` holds.
        memory: What a pass may take, bytes or as "1GiB"; an estimate.
        top: Of a detector, places that count.
        seed: Of noise and resamples.
        limit: Most images.
        progress: Show it in a terminal.
        amp: "bfloat16" or "float16" for autocast.
        command: What made the result, for its report.
        detector: Of detectors: as of :func:`analysis.robustness`.
        input_size: As for ``surgeon.locate``.

    Returns:
        Rows per method and shift: ``pearson``, ``spearman``, ``l2`` as means over the images with 95% intervals, each
        with its ``chance_`` and ``stayed_`` means. After Ctrl-C those of the images seen so far.

    Raises:
        AnalysisError: When captum is missing, a method is unknown or cannot be had of the model, or settings and data
            do not fit.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.Tanh(),
        ...                     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> data = [(torch.rand(4, 1, 8, 8), torch.arange(4) % 3)]
        >>> found = attribution_equivariance(net, data, shifts=[1], progress=False)
        >>> round(found.rows[0]["pearson"], 4), round(found.rows[0]["l2"], 4)
        (1.0, 0.0)

    References:
        Shifts of the map against maps of the shift are the definition of equivariance; the references of chance and of
        a map that stays are ours.
    """
    names = methods_of("attribution_equivariance", method, METHODS)
    asked = Asked(
        "attribution_equivariance", names, baseline, steps, target, top, internal_batch_size, memory, seed, limit,
        progress, amp, command, detector, input_size,
    )  # fmt: skip
    wanted, fill = _shifts(shifts, padding), check_fill(fill, padding)
    _check(samples, noise)
    explained = Explained(model, data, asked)
    _check_guided(explained, names)
    members = units_of(model, units, explained.input_size) if set(names) & set(AT_UNIT) else []
    fixed: dict[str, Any] = {"steps": steps, "samples": samples, "noise": noise, "seed": seed, "verb": asked.verb}
    compared = Compared(names, wanted, wrapped=padding == "circular")
    place = None
    with explained.ready():
        try:
            for images, targets in explained.rounds():
                _fits(wanted, images)
                if members and place is None:
                    place = _place(explained, members, unit, images, targets)
                with _tap(explained, place) as tap:
                    at_once = explained.at_once(images, targets)
                    seeing = Seeing(explained.objective, tap, at_once=at_once, **fixed)
                    for part in _parts(images, targets, min(at_once, _maps_that_fit(asked, compared, images))):
                        _compare(compared, seeing, *part, baseline_of(asked.verb, part[0], baseline), padding, fill)
        except KeyboardInterrupt:
            if not compared.images:
                raise
            explained.complete = False
            explained.notes.append("stopped before all images were explained; figures are of those seen")
    about = {
        **{"shifts": [list(shift) for shift in wanted], "padding": padding, "samples": samples, "noise": noise},
        **{"fill": fill if isinstance(fill, (int, float)) else list(fill)},
        "gradcam_at": None if place is None else place.unit.name,
    }
    return result_of(explained, compared, about)


def _compare(
    compared: Compared, seeing: Seeing, images: Tensor, targets: Tensor, base: Tensor, padding: Padding, fill: Any
) -> None:
    """Add some images, all of them or none."""
    shown = Shown(images, targets, base, lambda value: value, compared.images)
    found = {}
    for name in compared.methods:
        still = maps(seeing, shown, name)
        for shift in compared.shifts:
            found[name, shift] = (still, maps(seeing, _moved(shown, shift, padding, fill), name))
    compared.add(found)


def _parts(images: Tensor, targets: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """A batch in parts of at most ``count`` images."""
    return list(zip(torch.split(images, count), torch.split(targets, count), strict=True))


def _maps_that_fit(asked: Asked, compared: Compared, images: Tensor) -> int:
    """Images whose maps the memory holds: two of each method and shift, and what comparing them takes."""
    numbers = 2 * len(compared.methods) * len(compared.shifts) + COPIES
    return max(1, size_in_bytes(asked.memory) // (numbers * 8 * images.shape[-2] * images.shape[-1]))


def _moved(shown: Shown, shift: Shift, padding: Padding, fill: Any) -> Shown:
    def move(value: Tensor) -> Tensor:
        return shift_images(value, *shift, padding, fill=fill)

    return Shown(shown.images, shown.targets, shown.baseline, move, shown.first)


def _shifts(given: Any, padding: Any) -> tuple[Shift, ...]:
    if padding not in get_args(Padding):
        raise AnalysisError(
            f"attribution_equivariance: padding is {padding!r}; it is one of {', '.join(get_args(Padding))}"
        )
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, Tensor)) else [given]
    pairs = [one if isinstance(one, (tuple, list)) else (one, one) for one in several]
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(step, Integral) and not isinstance(step, bool) for step in pair):
            raise AnalysisError(
                f"attribution_equivariance: shift {pair!r} is none; give whole pixels, as 2, or (2, 0) for right "
                "and down"
            )
    if not pairs:
        raise AnalysisError("attribution_equivariance: shifts is empty; give some, as (1, 2, 4)")
    return tuple(dict.fromkeys((int(pair[0]), int(pair[1])) for pair in pairs))


def _fits(shifts: Sequence[Shift], images: Tensor) -> None:
    height, width = images.shape[-2:]
    for right, down in shifts:
        if abs(right) > width // 2 or abs(down) > height // 2:
            raise AnalysisError(
                f"attribution_equivariance: a shift of ({right}, {down}) is more than half of images of "
                f"{height}x{width} pixels; give smaller ones"
            )


def _check(samples: Any, noise: Any) -> None:
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise AnalysisError(f"attribution_equivariance: samples is {samples!r}; give a number of images, at least 1")
    if not isinstance(noise, (int, float)) or not 0 <= noise < float("inf"):
        raise AnalysisError(f"attribution_equivariance: noise is {noise!r}; give a share of the range, as 0.15")


def _check_guided(explained: Explained, names: Sequence[str]) -> None:
    wanted = [name for name in names if name in GUIDED]
    if wanted and not any(isinstance(part, nn.ReLU) for part in explained.module.modules()):
        raise AnalysisError(
            f"attribution_equivariance: method '{wanted[0]}' changes gradients at nn.ReLU layers, and "
            f"{type(explained.module).__name__} has none, so that it would be plain saliency; choose that"
        )


def _place(explained: Explained, members: Sequence[Unit], name: str | None, images: Tensor, targets: Tensor) -> Place:
    """The unit that GradCAM looks at."""

    def run(some: Tensor) -> Any:
        return explained.objective(some, targets[:1].expand(len(some)))

    places = places_of(explained.module, members, run, images)
    spatial = [place for place in places if _is_map(place, images)]
    named = [place for place in spatial if name in (None, place.unit.name)]
    if not named:
        there = ", ".join(place.unit.name for place in spatial) or "none"
        what = "no unit" if name is None else f"'{name}' is no unit that"
        raise AnalysisError(
            f"attribution_equivariance: GradCAM needs a feature map (N, C, H, W), and {what} gives one (those that do: "
            f"{there}); name another with unit=, or choose a method of pixels such as saliency"
        )
    return named[-1]


def _is_map(place: Place, images: Tensor) -> bool:
    """Whether a unit gives maps of the image, channels first, more than a pixel large."""
    if place.trouble or len(place.shape) != 4 or place.shape[0] != 1:
        return False
    (height, width), (high, wide) = images.shape[-2:], place.shape[-2:]
    return high * wide > 1 and abs(height * wide - width * high) <= max(height, width)


@contextmanager
def _tap(explained: Explained, place: Place | None) -> Iterator[Any]:
    with nullcontext([None]) if place is None else tapped(explained.module, [place]) as taps:
        yield taps[0]


__all__ = ["AttributionEquivariance", "attribution_equivariance"]
