"""What an attack may be asked for: every setting checked before anything is computed.

Apart from `attacking` so that the loop there reads in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor, nn

from analysis.attacks import NAMES, Norm, Strength
from surgeon.errors import AnalysisError

HALF_GREY = 0.002  # of the range: half a level of 8 bits, for rounding in half precision


@dataclass(frozen=True)
class Settings:
    """Everything `adversarial` is told about strength, repetition and scale; nonsense is refused.

    Raises:
        AnalysisError: When a setting has no such value.

    Example:
        >>> Settings(("fgsm", "pgd"), steps=5).strength.step_size == 2.5 * (8 / 255) / 5
        True
    """

    attacks: tuple[str, ...]
    epsilon: float = 8 / 255
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    eot: int = 1
    repeats: int = 1
    norm: Norm = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)
    seed: int = 0
    max_images: int | None = None

    def __post_init__(self) -> None:
        self._check_attacks()
        for key, least in (("steps", 1), ("eot", 1), ("repeats", 1), ("seed", 0), ("max_images", 1)):
            value = getattr(self, key)
            if key == "max_images" and value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise AnalysisError(f"adversarial: {key} is {value!r}; it is a whole number from {least} up")
        for key in ("epsilon", "step_size"):
            value = getattr(self, key)
            if (key == "epsilon" or value is not None) and not (_number(value) and value >= 0):
                raise AnalysisError(
                    f"adversarial: {key} is {value!r}; it is a change of pixels from 0 up, such as 8/255"
                )
        if len(_numbers(self.bounds)) != 2 or self.bounds[0] >= self.bounds[1]:
            raise AnalysisError(
                f"adversarial: bounds are {self.bounds!r}; they are the darkest and the brightest pixel, such as (0, 1)"
            )

    def _check_attacks(self) -> None:
        unknown = [name for name in self.attacks if name not in NAMES]
        if not self.attacks or unknown or len(set(self.attacks)) < len(self.attacks):
            raise AnalysisError(
                f"adversarial: attacks are {', '.join(map(repr, self.attacks)) or 'none'}; name one or several of "
                f"{', '.join(NAMES)}, each once"
            )
        if self.norm not in get_args(Norm):
            raise AnalysisError(f"adversarial: norm is {self.norm!r}; it is one of {', '.join(get_args(Norm))}")
        if self.norm == "L2" and "fgsm" in self.attacks:
            raise AnalysisError(
                "adversarial: fgsm changes every pixel by epsilon, so it has no L2 form; write attacks=('pgd',)"
            )

    @property
    def strength(self) -> Strength:
        """As the attacks take it."""
        size = 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size
        low, high = self.bounds
        same = {"epsilon": self.epsilon, "steps": self.steps, "random_start": self.random_start, "eot": self.eot}
        return Strength(step_size=size, norm=self.norm, bounds=(float(low), float(high)), **same)  # type: ignore[arg-type]

    def plain(self) -> dict[str, Any]:
        """As JSON has them."""
        return {**asdict(self), "attacks": list(self.attacks), "bounds": list(self.bounds)}


@dataclass(frozen=True)
class Scale:
    """How pixels became what the model takes: (pixel - mean) / std, for each channel or for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    def tensors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, (C, 1, 1) each, in single precision at least, where the images are.

        Raises:
            AnalysisError: When they are for another number of channels.
        """
        channels = images.shape[1]
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise AnalysisError(
                f"adversarial: mean and std ({self.origin}) have {len(self.mean)} and {len(self.std)} values, the "
                f"images {channels} channel{'s' * (channels > 1)}; pass mean= and std= the data were normalised with"
            )
        kind = torch.promote_types(images.dtype, torch.float32)
        one, two = (torch.tensor(v, dtype=kind, device=images.device).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return one, two

    def pixels(self, images: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Images before they were normalised, and the std.

        Raises:
            AnalysisError: When they are not within bounds, so that mean and std cannot be the right ones.

        Example:
            >>> Scale((0.5,), (0.25,), "given").pixels(torch.tensor([[[[2.0, -2.0]]]]), (0, 1))[0].flatten().tolist()
            [1.0, 0.0]
        """
        mean, std = self.tensors(images)
        found = images * std + mean
        (low, high), (least, most) = bounds, (float(found.min()), float(found.max()))
        slack = HALF_GREY * (high - low)
        if not (low - slack <= least and most <= high + slack):
            raise AnalysisError(
                f"adversarial: images * std + mean ({self.origin}: mean {_short(self.mean)}, std {_short(self.std)}) "
                f"are {least:.3g} to {most:.3g}, pixels {low:g} to {high:g}; pass mean= and std= the data were "
                "normalised with, or other bounds="
            )
        return found.clamp(low, high), std


def scale(model: nn.Module, mean: float | Sequence[float] | None, std: float | Sequence[float] | None) -> Scale:
    """Mean and std as given, else of the model's ``pretrained_cfg``, else 0 and 1.

    Raises:
        AnalysisError: When one of the two is missing, or no such numbers.

    Example:
        >>> import timm
        >>> scale(timm.create_model("test_resnet"), None, None).mean, scale(nn.ReLU(), None, None).mean
        ((0.5, 0.5, 0.5), (0.0,))
    """
    if (mean is None) != (std is None):
        raise AnalysisError("adversarial: one of mean and std is missing; pass both, or neither")
    origin = "given"
    if mean is None or std is None:
        config = getattr(model, "pretrained_cfg", None)
        config = config if isinstance(config, Mapping) else {}
        known = "mean" in config and "std" in config
        mean, std = (config["mean"], config["std"]) if known else (0.0, 1.0)
        origin = "the model's pretrained_cfg" if known else "the model has no pretrained_cfg"
    means, stds = _numbers(mean), _numbers(std)
    if not means or not stds or min(stds) <= 0:
        raise AnalysisError(
            f"adversarial: mean is {mean!r}, std {std!r}; they are numbers, one or one for each channel, std above 0"
        )
    return Scale(means, stds, origin)


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: Any) -> tuple[float, ...]:
    """As floats; nothing where any is no finite number."""
    several = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    several = [value.item() if isinstance(value, Tensor) and value.numel() == 1 else value for value in several]
    return tuple(map(float, several)) if all(map(_number, several)) else ()


def _short(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
