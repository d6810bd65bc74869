"""What an attribution may be asked for, checked before anything runs; and what it is compared with, the baseline.

Apart from the attributions, which read it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor

from analysis.attribution_objective import Target
from analysis.study_settings import TYPES, Settings, size_in_bytes
from analysis.study_settings import check as check_study
from surgeon.errors import AnalysisError
from surgeon.host import InputSize

BASELINES = ("zero", "mean", "blur")
BLUR = 8  # times the standard deviation of the blur is the shorter side


@dataclass(frozen=True)
class Asked:
    """What a user wants explained, and how; see :func:`analysis.attribution`.

    Attributes:
        verb: Name of the function, for messages.
        methods: In order.
        target: None for the usual one.
    """

    verb: str
    methods: tuple[str, ...]
    baseline: str | float | Tensor = "zero"
    steps: int = 50
    target: str | None = None
    top: int = 100
    internal_batch_size: int | None = None
    memory: int | str = "1GiB"
    seed: int = 0
    limit: int | None = None
    progress: bool = True
    amp: str | None = None
    command: str = ""
    detector: Mapping[str, Any] | None = None
    input_size: InputSize = None

    def study(self) -> Settings:
        """The part of it that every study has."""
        more = {"seed": self.seed, "limit": self.limit, "progress": self.progress, "amp": self.amp}
        return Settings(memory=self.memory, detector=self.detector, input_size=self.input_size, **more)  # type: ignore[arg-type]

    def plain(self) -> dict[str, Any]:
        """What was asked for, as plain values."""
        given = self.baseline
        base = f"tensor {tuple(given.shape)}" if isinstance(given, Tensor) else given
        return {
            **{"method": list(self.methods), "baseline": base, "steps": self.steps, "top": self.top},
            **{"internal_batch_size": self.internal_batch_size, "memory": self.memory, "seed": self.seed},
            **{"limit": self.limit, "amp": self.amp},
        }


def methods_of(verb: str, given: Any, known: Collection[str]) -> tuple[str, ...]:
    """Names of methods, one or several, each once.

    Raises:
        AnalysisError: For a name that is none.

    Example:
        >>> methods_of("attribution", "conductance", ["conductance", "integrated_gradients"])
        ('conductance',)
    """
    several = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, (list, tuple)) else ()
    names = tuple(dict.fromkeys(several))
    if wrong := [name for name in names if name not in known]:
        near = difflib.get_close_matches(str(wrong[0]), list(known), 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise AnalysisError(f"{verb}: method {wrong[0]!r} is unknown{hint} (known: {', '.join(known)})")
    if not names:
        raise AnalysisError(f"{verb}: method is {given!r}; name one or several of {', '.join(known)}")
    return names


def check(asked: Asked) -> None:
    """Refuse settings that are none.

    Raises:
        AnalysisError: Likewise.

    Example:
        >>> check(Asked("attribution", ("conductance",), steps=16))
    """
    check_study(asked.study())
    whole, base = asked.internal_batch_size, asked.baseline
    wrong = [
        (
            isinstance(asked.steps, int) and asked.steps >= 2 and asked.steps % 2 == 0,
            f"steps is {asked.steps!r}; give an even number, at least 2 (the error is told from half of them)",
        ),
        (
            asked.target is None or asked.target in get_args(Target),
            f"target is {asked.target!r}; it is one of {', '.join(get_args(Target))}, or None for the usual one",
        ),
        (_counts(asked.top), f"top is {asked.top!r}; give the number of a detector's places that count, at least 1"),
        (whole is None or _counts(whole), f"internal_batch_size is {whole!r}; give a number of images, at least 1"),
        (
            isinstance(base, Tensor) or base in BASELINES or (isinstance(base, Real) and not isinstance(base, bool)),
            f"baseline is {base!r}; it is one of {', '.join(BASELINES)}, a number, or a tensor of one image",
        ),
    ]
    if reasons := [reason for fine, reason in wrong if not fine]:
        raise AnalysisError(f"{asked.verb}: {reasons[0]}")
    size_in_bytes(asked.memory)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def baseline_of(verb: str, images: Tensor, given: str | float | Tensor) -> Tensor:
    """What images are compared with, as the model takes them.

    Args:
        verb: Name of the function, for messages.
        images: (N, C, H, W).
        given: "zero" (0 everywhere: of normalised images the mean colour of the data), "mean" (each image's mean
            colour), "blur" (the image blurred by a Gaussian whose standard deviation is an eighth of the shorter side),
            a number, or a tensor that goes with one image.

    Raises:
        AnalysisError: For a tensor of another shape.

    Example:
        >>> baseline_of("attribution", torch.tensor([[[[1.0, 3.0]]]]), "mean").flatten().tolist()
        [2.0, 2.0]
    """
    if isinstance(given, Tensor):
        try:
            return given.detach().to(images).expand_as(images).clone()
        except RuntimeError as error:
            raise AnalysisError(
                f"{verb}: baseline is {tuple(given.shape)}, images {tuple(images.shape)}; give one image (C, H, W)"
            ) from error
    if given == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images).clone()
    if given == "blur":
        sigma = min(images.shape[-2:]) / BLUR
        down, across = (_gaussian(side, sigma).to(images) for side in images.shape[-2:])
        return down @ images @ across.T
    return torch.full_like(images, 0.0 if given == "zero" else float(given))


def _gaussian(side: int, sigma: float) -> Tensor:
    """Weights of all pixels of a line for each of them, (side, side); each row sums to one, also at the border."""
    place = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
    return weights / weights.sum(1, keepdim=True)


__all__ = ["BASELINES", "TYPES", "Asked", "baseline_of", "check", "methods_of"]
