"""A perceptual distance: how different two images look to a network, weighted as people see it.

Apart from `perceptual_fitting`, which learns the weights, and `perceiving`, which judges distances against people.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from analysis.perceptual_files import check_backbone, read_distance, write_distance
from analysis.perceptual_taps import Tap, collect, find_taps
from surgeon.errors import AnalysisError, LoadError
from surgeon.host import InputSize, unwrap

Form = Literal["lpips", "gap"]
Numbers = float | Sequence[float]


class PerceptualDistance(nn.Module):
    """The distance of two images in the features of a network, with one learned weight of at least 0 per channel.

    - "lpips": features of each tap are divided by their norm over the channels, plus ``eps``; squared differences are
      weighted, summed over channels, averaged over positions, summed over taps.
    - "gap": features of each tap are averaged over positions first (global average pooling) and joined to one vector;
      the distance is sqrt(mean((w * (f - g))**2)). Where the net moves its features with the image, this form does not
      see shifts.

    The distance has a copy of the network, frozen and always in evaluation mode; the network itself is never touched.
    Its only trainable parameter is ``raw``: weights are softplus(raw), so they stay above 0 whatever training does.
    A pass ends with the last tap, so images may have any size the layers before it take.

    Args:
        model: Any module that takes one image tensor, before or after surgery; timm models, ``YOLO`` objects.
        taps: Paths of modules whose outputs are compared; by default those of timm's ``feature_info``, else the last
            module of each stage of ``analysis.units(model, "stage")``.
        form: "lpips" or "gap".
        eps: Added to the norm over channels, of the lpips form.
        mean: Subtracted from images (values 0 to 1) per channel; of the model's ``pretrained_cfg`` by default, else 0.
        std: They are divided by; likewise, else 1.
        size: Side, or (height, width), to which images are resized first (bilinear, antialiased); None for as they are.
        input_size: As for ``surgeon.locate``; of the one pass that looks at the taps.

    Shape:
        - Input: twice (N, C, H, W), values 0 to 1, C as the network takes
        - Output: (N,), 0 for equal images

    Raises:
        AnalysisError: When a tap or a setting is none.
        SurgeonError: When the model cannot be opened, or its input size is not known.

    Example:
        >>> import timm
        >>> distance = PerceptualDistance(timm.create_model("test_resnet"), form="gap")
        >>> images = torch.rand(2, 3, 40, 56)
        >>> distance(images, images).tolist(), distance(images, images.flip(0)).shape
        ([0.0, 0.0], torch.Size([2]))

    References:
        Zhang, Isola, Efros, Shechtman and Wang, The Unreasonable Effectiveness of Deep Features as a Perceptual
        Metric, CVPR 2018, arXiv:1801.03924; Parameter-Efficient Architectural Modifications for Translation-Invariant
        CNNs, arXiv:2604.27870. Deviations: the released code of the latter leaves the weights of the lpips form free,
        so distances may be negative, and LPIPS sets negative ones to 0 after each step; here softplus keeps them above
        0. Weights start at 1 in both forms.
    """

    raw: nn.Parameter
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        taps: Sequence[str | Tap] | None = None,
        *,
        form: Form = "lpips",
        eps: float = 1e-6,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        size: int | tuple[int, int] | None = None,
        input_size: InputSize = None,
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise AnalysisError(f"PerceptualDistance: form is {form!r}; it is one of {', '.join(get_args(Form))}")
        if not (isinstance(eps, float) and 0 < eps < 1):
            raise AnalysisError(f"PerceptualDistance: eps is {eps!r}; give a small number above 0, such as 1e-6")
        self.form, self.eps, self.size = form, eps, _sides(size)
        self.backbone = copy.deepcopy(unwrap(model)).eval().requires_grad_(False)
        self.taps = tuple(find_taps(self.backbone, taps, input_size))
        self.channels = sum(tap.channels for tap in self.taps)
        like = next(self.backbone.parameters(), torch.empty(0))
        kind = torch.promote_types(like.dtype, torch.float32)
        for name, values in zip(("mean", "std"), _scale(self.backbone, mean, std), strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=kind, device=like.device).view(-1, 1, 1))
        start = math.log(math.expm1(1.0))  # softplus of it is 1
        self.raw = nn.Parameter(torch.full((self.channels,), start, dtype=kind, device=like.device))
        self.made: dict[str, Any] = {}
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the network stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @property
    def weights(self) -> Tensor:
        """All weights, (channels of all taps,), at least 0."""
        return functional.softplus(self.raw)

    def weights_by_tap(self) -> dict[str, Tensor]:
        """The weights of each tap, by its path."""
        parts = torch.split(self.weights.detach(), [tap.channels for tap in self.taps])
        return {tap.path: part for tap, part in zip(self.taps, parts, strict=True)}

    def forward(self, reference: Tensor, distorted: Tensor) -> Tensor:
        """The distance of each image to its partner, (N,)."""
        return self.combine(self.differences(self.features(reference), self.features(distorted)))

    def features(self, images: Tensor) -> list[Tensor]:
        """What of each tap is compared: (N, channels, positions) of unit length, or (N, channels) pooled.

        Raises:
            AnalysisError: When these are no images, or the network cannot take them.
        """
        return collect(self.backbone, self.taps, self._prepared(images), self._take)

    def differences(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """All of a pair that weights act on, (N, channels): mean squared differences, or plain ones of the gap form.

        One of the two may hold one image for all of the other.
        """
        if any(a.shape[2:] != b.shape[2:] for a, b in zip(first, second, strict=True)):
            raise AnalysisError("the two images differ in size; resize them, or give size= to the distance")
        if self.form == "gap":
            return torch.cat([a - b for a, b in zip(first, second, strict=True)], 1)
        return torch.cat([(a - b).square().mean(2) for a, b in zip(first, second, strict=True)], 1)

    def combine(self, differences: Tensor) -> Tensor:
        """Distances from differences, (N,)."""
        if self.form == "gap":
            # its gradient at 0 is 0, not infinite
            length: Tensor = torch.linalg.vector_norm(self.weights * differences, dim=1)
            return length / math.sqrt(self.channels)
        return differences @ self.weights

    def _take(self, tap: Tap, output: Tensor) -> Tensor:
        values = tap.positions(output)
        values = values.to(torch.promote_types(values.dtype, torch.float32))  # (N, C, positions)
        if self.form == "gap":
            return values.mean(2)
        lengths: Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        return values / (lengths + self.eps)

    def _prepared(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise AnalysisError(f"PerceptualDistance got {found}; give images (N, C, H, W), floats from 0 to 1")
        if {len(self.mean), len(self.std)} - {1, images.shape[1]}:
            raise AnalysisError(
                f"PerceptualDistance: images have {images.shape[1]} channels, mean and std {len(self.mean)} and "
                f"{len(self.std)} values; pass mean= and std= of the images the network was trained with"
            )
        images = images.to(self.mean.device, self.mean.dtype)
        if self.size is not None and tuple(images.shape[2:]) != self.size:
            images = functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        like = next(self.backbone.parameters(), images)
        return ((images - self.mean) / self.std).to(like.dtype)

    def save(self, folder: str | Path, *, backbone: bool = False) -> Path:
        """Write the weights (safetensors) and how they were made (JSON) to ``folder``.

        Args:
            folder: Made where it is not there.
            backbone: Write the network too, by :func:`surgeon.save`, so that :meth:`load` needs no model.

        Raises:
            SurgeonError: When that cannot be done.
        """
        return write_distance(Path(folder), self.about(), self.raw.detach(), self.backbone, backbone)

    def about(self) -> dict[str, Any]:
        """What makes this distance, as plain values."""
        return {
            **{"form": self.form, "eps": self.eps, "size": None if self.size is None else list(self.size)},
            **{"taps": [asdict(tap) for tap in self.taps], "made": self.made},
            **{"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()},
        }

    @classmethod
    def load(cls, folder: str | Path, model: Any = None, *, strict: bool = True, input_size: InputSize = None) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            folder: It wrote to.
            model: The network; needed unless it was saved too.
            strict: Refuse a network with other values than the one the weights belong to.
            input_size: As of the constructor.

        Raises:
            LoadError: When a file is missing or damaged, or the weights do not belong to this network.
        """
        about, raw, network = read_distance(Path(folder), model)
        plain = {key: about[key] for key in ("form", "eps", "mean", "std")}
        size = None if about["size"] is None else tuple(about["size"])
        taps = [Tap(**tap) for tap in about["taps"]]
        try:
            distance = cls(network, taps, size=size, input_size=input_size, **plain)  # type: ignore[arg-type]
        except AnalysisError as error:
            raise LoadError(f"the distance in {folder} does not fit this {type(network).__name__}: {error}") from error
        check_backbone(distance.backbone, about, len(raw), distance.channels, strict)
        with torch.no_grad():
            distance.raw.copy_(raw)
        distance.made = about["made"]
        return distance


def _sides(size: Any) -> tuple[int, int] | None:
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if size is None:
        return None
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise AnalysisError(f"PerceptualDistance: size is {size!r}; give a number of pixels, or (height, width)")
    return sides


def _scale(model: nn.Module, mean: Numbers | None, std: Numbers | None) -> tuple[list[float], list[float]]:
    """Mean and std as given, else of the model's ``pretrained_cfg``, else 0 and 1."""
    if (mean is None) != (std is None):
        raise AnalysisError("PerceptualDistance: one of mean and std is missing; pass both, or neither")
    if mean is None or std is None:
        config = getattr(model, "pretrained_cfg", None)
        config = config if isinstance(config, Mapping) else {}
        mean, std = (config["mean"], config["std"]) if {"mean", "std"} <= set(config) else (0.0, 1.0)
    means, stds = ([float(v) for v in (values if isinstance(values, Sequence) else [values])] for values in (mean, std))
    if not means or not stds or not all(map(math.isfinite, means + stds)) or min(stds) <= 0:
        raise AnalysisError(
            f"PerceptualDistance: mean is {mean!r}, std {std!r}; they are numbers, one or one per channel, std above 0"
        )
    return means, stds
