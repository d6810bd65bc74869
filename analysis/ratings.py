"""What people said of distorted images: scored pairs, and choices between two; images are read when asked for.

Apart from the published layouts (`rating_layouts`), which fill these classes, and from `distorting`, which makes
images of known strength: a user's own data need no more than this.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from surgeon.errors import AnalysisError

Higher = Literal["better", "worse"]
Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class RatedPair:
    """A reference and a distorted image, by the names they are read by, and what people said of the pair.

    Attributes:
        reference: Name of the image as it was.
        distorted: Name of the image as it was shown.
        score: As published; which end is good says :class:`Ratings`.
        distortion: What was done to it, in words.
        level: How strongly, in steps; None where there are none.
    """

    reference: str
    distorted: str
    score: float
    distortion: str = ""
    level: float | None = None

    @property
    def of_one(self) -> bool:
        """Whether it is an image beside itself, as level 1 of RAID; every distance answers 0 to it."""
        return self.reference == self.distorted


@dataclass(frozen=True)
class RatedTriplet:
    """A reference, two distorted images, and the share of judges who found the second one nearer.

    Attributes:
        reference: Name of the image as it was.
        first: Name of one distorted image.
        second: Name of the other.
        share: 0 where all judges chose the first, 1 where all chose the second.
        distortion: What was done, in words.
    """

    reference: str
    first: str
    second: str
    share: float
    distortion: str = ""


Item = TypeVar("Item", RatedPair, RatedTriplet)


class _Judged(Sequence[Any], Generic[Item]):
    """Items by name of their images, and how an image is read."""

    def __init__(self, name: str, items: Iterable[Item], read: Read) -> None:
        self.name, self.read = name, read
        self.items: tuple[Item, ...] = tuple(items)
        if not self.items:
            raise AnalysisError(f"{name}: no judged image; give at least one")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def references(self) -> list[str]:
        """Names of the references, in order."""
        return list(dict.fromkeys(item.reference for item in self.items))

    @property
    def distortions(self) -> list[str]:
        """What was done to the images, in order."""
        return list(dict.fromkeys(item.distortion for item in self.items))

    def image(self, name: str) -> Tensor:
        """Read an image, (C, H, W), values 0 to 1.

        Raises:
            AnalysisError: When it cannot be read, or is no such image.
        """
        found = self.read(name)
        if not isinstance(found, Tensor) or found.ndim != 3 or not found.is_floating_point():
            what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise AnalysisError(f"{self.name}: image '{name}' is {what}; read must answer floats (C, H, W), 0 to 1")
        low, high = float(found.min()), float(found.max())
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            raise AnalysisError(
                f"{self.name}: image '{name}' has values {low:.3g} to {high:.3g}; give 0 to 1, not yet normalised"
            )
        return found

    def only(self, *, distortions: Iterable[str] | None = None, references: Iterable[str] | None = None) -> Self:
        """Keep what has one of these distortions, and one of these references.

        Raises:
            AnalysisError: For a name that does not occur, or when nothing is left.
        """
        asked = {"distortion": distortions, "reference": references}
        kept = self.items
        for field, names in asked.items():
            if names is None:
                continue
            wanted = {names} if isinstance(names, str) else set(names)
            known = {getattr(item, field) for item in self.items}
            if unknown := sorted(wanted - known):
                raise AnalysisError(
                    f"{self.name} has no {field} '{unknown[0]}'; there are {', '.join(sorted(known)[:30])}"
                )
            kept = tuple(item for item in kept if getattr(item, field) in wanted)
        return self._with(kept)

    def split(self, share: float, seed: int = 0) -> tuple[Self, Self]:
        """Part by reference: no image's reference is in both parts.

        Args:
            share: Of the references, in the second part.
            seed: Of the choice.

        Raises:
            AnalysisError: When a part would be empty.
        """
        names = self.references
        count = round(share * len(names)) if 0 < share < 1 else 0
        if not 0 < count < len(names):
            raise AnalysisError(
                f"{self.name}: {share!r} of {len(names)} references leaves a part empty; give a share between 0 and 1, "
                "and data of more references"
            )
        chosen = set(random.Random(seed).sample(names, count))
        parts = ([i for i in self.items if (i.reference in chosen) is second] for second in (False, True))
        first, second = map(self._with, parts)
        return first, second

    def first(self, count: int | None) -> Self:
        """The first ``count`` items; all for None."""
        return self if count is None else self._with(self.items[:count])

    def _with(self, items: Iterable[Item]) -> Self:
        raise NotImplementedError


class Ratings(_Judged[RatedPair]):
    """Scored pairs of a reference and a distorted image; goes over (reference, distorted, score).

    Args:
        name: As results call it.
        items: The pairs, those of one reference together.
        read: From the name of an image to floats (C, H, W), 0 to 1; of a dict of tensors, its ``__getitem__``.
        higher: Which images have the higher scores, "better" (a mean opinion score, MOS) or "worse" ones (a
            difference, DMOS, or a response). The files do not say: KADID-10k's ``dmos`` is high for good images.
        scored: What a score is.
        curves: Whether the scores of a reference and a distortion are a response curve over its levels.

    Raises:
        AnalysisError: When there is no pair, or a score is no finite number.

    Example:
        >>> images = {"a": torch.zeros(1, 2, 2), "b": torch.ones(1, 2, 2)}
        >>> data = Ratings("mine", [RatedPair("a", "b", 4.5, "white")], images.__getitem__, higher="worse")
        >>> len(data), data[0][2], data.worse.tolist()
        (1, 4.5, [4.5])
    """

    def __init__(
        self,
        name: str,
        items: Iterable[RatedPair],
        read: Read,
        *,
        higher: Higher,
        scored: str = "score",
        curves: bool = False,
    ) -> None:
        super().__init__(name, items, read)
        if higher not in get_args(Higher):
            raise AnalysisError(f"{name}: higher={higher!r}; say whether higher scores are 'better' or 'worse' images")
        self.higher, self.scored, self.curves = higher, scored, curves
        if wrong := [item for item in self.items if not np.isfinite(item.score)]:
            raise AnalysisError(f"{name}: the score of '{wrong[0].distorted}' is {wrong[0].score}; give finite numbers")

    @property
    def worse(self) -> NDArray[np.float64]:
        """The scores, turned so that more is worse."""
        sign = 1.0 if self.higher == "worse" else -1.0
        return sign * np.array([item.score for item in self.items], dtype=np.float64)

    def of_two(self) -> Self:
        """Without pairs of an image with itself.

        Raises:
            AnalysisError: When there are no others.
        """
        if all(pair.of_one for pair in self.items):
            raise AnalysisError(f"{self.name}: all pairs are of an image with itself; give pairs of two images")
        return self._with(pair for pair in self.items if not pair.of_one)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._with(self.items[index])
        pair = self.items[index]
        return self.image(pair.reference), self.image(pair.distorted), pair.score

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        return (self[index] for index in range(len(self)))

    def _with(self, items: Iterable[RatedPair]) -> Self:
        more: dict[str, Any] = {"higher": self.higher, "scored": self.scored, "curves": self.curves}
        return type(self)(self.name, items, self.read, **more)


class RatedChoices(_Judged[RatedTriplet]):
    """Choices of judges between two distorted images; goes over (reference, first, second, share).

    Args:
        name: As results call it.
        items: The triplets.
        read: As of :class:`Ratings`.

    Raises:
        AnalysisError: When there is no triplet, or a share is not from 0 to 1.
    """

    def __init__(self, name: str, items: Iterable[RatedTriplet], read: Read) -> None:
        super().__init__(name, items, read)
        if wrong := [item for item in self.items if not 0 <= item.share <= 1]:
            raise AnalysisError(f"{name}: the share of '{wrong[0].second}' is {wrong[0].share}; give 0 to 1")

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._with(self.items[index])
        one = self.items[index]
        return (*map(self.image, (one.reference, one.first, one.second)), one.share)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        return (self[index] for index in range(len(self)))

    def _with(self, items: Iterable[RatedTriplet]) -> Self:
        return type(self)(self.name, items, self.read)


def read_image(path: str | Path) -> Tensor:
    """Read an image file in colour, (3, H, W), values 0 to 1.

    Raises:
        AnalysisError: When it is missing, no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition(" <")[0].partition(" '")[0]
        raise AnalysisError(f"{path} cannot be read as an image ({reason}); get the data set anew") from None
    except ImportError:  # ultralytics, once imported, looks for another reader of what Pillow does not know
        reason = "cannot identify image file"
        raise AnalysisError(f"{path} cannot be read as an image ({reason}); get the data set anew") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


__all__ = ["Higher", "RatedChoices", "RatedPair", "RatedTriplet", "Ratings", "read_image"]
