"""How a module holds its features: as a map, channels last, as tokens, as a vector; and what a pixel is there.

Apart from reading features off a running model, because it is decided beforehand, from recorded shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from surgeon.errors import AnalysisError

Kind = Literal["map", "channels last", "tokens", "vector"]
PREFIXES = 8  # tokens at most that stand for no place: class, distillation, registers


@dataclass(frozen=True)
class Layout:
    """Where the positions of features lie.

    Attributes:
        kind: "map" (N, C, H, W), "channels last" (N, H, W, C), "tokens" (N, prefix + H*W, C), "vector" (N, C, ...).
        height: In positions; 1 of a vector.
        width: Likewise.
        reduction: Pixels of the image from one position to the next, down and right.
        prefix: Tokens in front that stand for no place.
    """

    kind: Kind
    height: int = 1
    width: int = 1
    reduction: tuple[float, float] = (1.0, 1.0)
    prefix: int = 0

    @property
    def spatial(self) -> bool:
        """Whether there are positions, so that features can be shifted."""
        return self.kind != "vector"

    def open(self, features: Tensor) -> Tensor:
        """Features as (N, C, H, W); of a vector as (N, C, 1, 1).

        Raises:
            AnalysisError: When they have another shape than was recorded.

        Example:
            >>> import torch
            >>> Layout("tokens", 2, 3, prefix=1).open(torch.rand(5, 7, 4)).shape
            torch.Size([5, 4, 2, 3])
        """
        if self.kind == "vector":
            return features.flatten(1)[:, :, None, None]
        if self.kind == "tokens" and features.ndim == 3 and features.shape[1] == self.prefix + self.height * self.width:
            return features[:, self.prefix :].mT.reshape(len(features), -1, self.height, self.width)
        opened = features.permute(0, 3, 1, 2) if self.kind == "channels last" and features.ndim == 4 else features
        if opened.ndim != 4 or opened.shape[2:] != (self.height, self.width):
            raise AnalysisError(
                f"features are {tuple(features.shape)}, recorded were {self.height} x {self.width} positions; give "
                "images of one size"
            )
        return opened


def layout_of(
    shape: tuple[int, ...],
    stride: int,
    size: tuple[int, int],
    channels_last: bool = False,
    prefix: int | None = None,
    strides: Iterable[int] = (),
) -> Layout | str:
    """Tell how an output of one image holds its features, or why that cannot be told.

    Args:
        shape: Of the output, the batch of one included.
        stride: Total stride of the layers on the way.
        size: (height, width) of the image.
        channels_last: What to believe where both ends of the shape could be positions.
        prefix: Tokens that stand for no place, where the model says.
        strides: Others the model has; tokens may have passed by a layer that strides for its own ends.

    Example:
        >>> layout_of((1, 197, 192), 16, (224, 224))
        Layout(kind='tokens', height=14, width=14, reduction=(16.0, 16.0), prefix=1)
        >>> layout_of((1, 7, 7, 768), 32, (224, 224)).kind, layout_of((1, 10), 32, (224, 224)).kind
        ('channels last', 'vector')
        >>> layout_of((4, 49, 96), 4, (56, 56))
        'holds windows or parts of the image in its batch axis'
    """
    if not shape or shape[0] != 1:
        return "holds windows or parts of the image in its batch axis"
    if len(shape) == 2 or (len(shape) == 4 and (shape[2:] == (1, 1) or shape[1:3] == (1, 1))):
        return Layout("vector")
    if len(shape) == 4:
        pairs: list[tuple[Kind, tuple[int, int]]] = [("map", shape[2:]), ("channels last", shape[1:3])]  # type: ignore[list-item]
        fitting = [(kind, sides) for kind, sides in pairs if _fits(sides, stride, size)]
        if channels_last:
            fitting.reverse()
        if fitting:
            kind, sides = fitting[0]
            return Layout(kind, *sides, _reduction(sides, stride, size))
    if len(shape) == 3:
        for each in (stride, *strides):
            for height, width in _sides(each, size):
                front = shape[1] - height * width
                usual = each == stride and prefix is None and 0 <= front <= PREFIXES
                if front in (0, prefix) or usual:
                    return Layout("tokens", height, width, _reduction((height, width), each, size), front)
    return f"is {'x'.join(map(str, shape))}, of which no part has the shape of the image"


def _fits(sides: tuple[int, int], stride: int, size: tuple[int, int]) -> bool:
    """Whether two axes have the shape of the image, at about the stride, or at any where it divides them evenly."""
    expected = (size[0] / stride, size[1] / stride)
    near = all(0.5 * e - 1 <= side <= 1.25 * e + 1 for side, e in zip(sides, expected, strict=True))
    alike = abs(sides[0] * size[1] - sides[1] * size[0]) <= max(size)  # by up to about one position
    even = all(whole % side == 0 for whole, side in zip(size, sides, strict=True))
    return alike and (near or (even and size[0] // sides[0] == size[1] // sides[1]))


def _sides(stride: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids that tokens may form: images are cut, or filled up, to whole patches."""
    down = (size[0] // stride, -(-size[0] // stride))
    right = (size[1] // stride, -(-size[1] // stride))
    return [(down[i], right[i]) for i in (0, 1) if down[i] and right[i]]


def _reduction(sides: tuple[int, int], stride: int, size: tuple[int, int]) -> tuple[float, float]:
    """The stride; image size over map size where the map is larger than it says, as behind upsampling.

    Maps of convs without padding are smaller than the stride says, and still a position is ``stride`` pixels wide.
    """
    found = []
    for whole, side in zip(size, sides, strict=True):
        expected = whole / stride
        told = whole % side == 0 and (side > expected or side < 0.5 * expected - 1)
        found.append(float(whole / side if told else stride))
    return (found[0], found[1])


__all__ = ["Layout", "layout_of"]
