"""Shuffles that are silent until they are switched on, in a copy of a network: one copy serves every shuffle.

Apart from the analysis, which decides what is switched on when. The layers stand where the ops ``spatial_shuffle``,
``patch_shuffle`` and ``channel_shuffle`` put theirs, and draw as those do.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from surgeon.edit import perform
from surgeon.errors import AnalysisError, NoSiteError, RefusedError
from surgeon.host import InputSize, input_sizes
from surgeon.locating import sites_of
from surgeon.ops.drawing import unreal
from surgeon.ops.shuffle import Shuffle
from surgeon.ops.shuffle_layers import draw_positions
from surgeon.planning import Planned, plan_recipe
from surgeon.randomness import generators_kept
from surgeon.recipe import Recipe, Step
from surgeon.select import Select
from surgeon.site import Site
from surgeon.tracing import record_forward


@dataclass(frozen=True)
class How:
    """One way to shuffle.

    Attributes:
        kind: "spatial", "patch" or "channel".
        patch: Side of the cells in pixels; None of the other two.

    Example:
        >>> How("patch", 4).name, How("channel").covers(1)
        ('patch 4', False)
    """

    kind: str
    patch: int | None = None

    @property
    def name(self) -> str:
        """As tables say it."""
        return self.kind if self.patch is None else f"{self.kind} {self.patch}"

    def covers(self, side: float) -> bool:
        """Whether positions go anywhere on a map of this side."""
        return self.kind != "channel" and (self.patch is None or self.patch >= side)


class Switch:
    """Which layers of a copy shuffle now, how, and with which draw; keeps what was drawn until the draw is another.

    Attributes:
        largest: Side of the largest map of a site, where the plan counts on it.
    """

    def __init__(self) -> None:
        self.on: frozenset[int] = frozenset()
        self.how, self.draw = How("spatial"), ""
        self.largest: Mapping[int, int] = {}
        self._orders: dict[tuple[object, ...], Tensor] = {}

    @contextmanager
    def turned(self, sites: frozenset[int], how: How, draw: str) -> Iterator[None]:
        """Let the layers of these sites shuffle; equal ``draw`` means equal permutations."""
        if draw != self.draw:
            self._orders.clear()
        self.on, self.how, self.draw = sites, how, draw
        try:
            yield
        finally:
            self.on = frozenset()

    def shuffled(self, x: Tensor, site: int) -> Tensor:
        """Features (N, C, H, W) as the layer of a site hands them on."""
        if site not in self.on:
            return x
        _, channels, height, width = x.shape
        if max(height, width) > self.largest.get(site, math.inf):
            raise AnalysisError(
                f"a map is {height}x{width}, and those of the first images were {self.largest[site]} wide at most: "
                "images have several sizes; name the largest one (input_size=)"
            )
        if (channels if self.how.kind == "channel" else height * width) < 2:
            return x
        kept = self._orders.get(key := (site, self.how, channels, height, width, x.device))
        order = self._order(site, channels, height, width).to(x.device) if kept is None else kept
        self._orders[key] = order
        if self.how.kind == "channel":
            return x.index_select(1, order)
        return x.flatten(1).index_select(1, order).view(x.shape)

    def _order(self, site: int, channels: int, height: int, width: int) -> Tensor:
        digest = hashlib.blake2b(f"{self.draw}:{site}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        if self.how.kind == "channel":
            return torch.rand(channels, generator=generator, dtype=torch.float64).argsort()
        within = draw_positions(channels, height, width, self.how.patch, generator)
        return (within + torch.arange(channels)[:, None] * (height * width)).flatten()


class Switched(nn.Module):
    """Hands its input on, shuffled where the switch says so.

    Args:
        site: Number of its place.

    Shape:
        - Input: (N, C, H, W)
        - Output: the same

    Example:
        >>> layer, x = Switched(7), torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> with layer.switch.turned(frozenset({7}), How("patch", 2), "any"):
        ...     y = layer(x)
        >>> sorted(y[0, 0, :2, :2].flatten().tolist()), layer(x) is x
        ([0.0, 1.0, 4.0, 5.0], True)
    """

    def __init__(self, site: int) -> None:
        super().__init__()
        self.site, self.switch = site, Switch()

    def forward(self, x: Tensor) -> Tensor:
        """The very same tensor where nothing is shuffled."""
        return x.clone() if unreal(x) else self.switch.shuffled(x, self.site)


@dataclass(frozen=True)
class SilentShuffle(Shuffle):
    """Puts a silent layer where the shuffles of the paper go. No op of recipes: only analyses can switch it on."""

    name: ClassVar[str] = "silent_shuffle"

    @property
    def exact(self) -> bool:
        """As long as it is silent."""
        return True

    def layer(self, seed: int) -> nn.Module:
        """One whose number is made of its site's path."""
        return Switched(seed)


@dataclass(frozen=True)
class Place:
    """A silent layer in the copy.

    Attributes:
        site: Where it stands, as a fact of the network.
        number: Of the layer.
        path: Of the layer.
    """

    site: Site
    number: int
    path: str

    @property
    def side(self) -> int:
        """Of the map, in pixels."""
        return max(self.site.in_shape[1:])


@dataclass
class Opened:
    """A copy with silent layers.

    Attributes:
        switch: Of all its layers.
        places: Of the layers, in order of call.
        refused: Sites that cannot be shuffled, and why.
    """

    switch: Switch
    places: list[Place]
    refused: dict[str, str]


def insert_shuffles(copy: nn.Module, skips: bool = True, input_size: InputSize = None) -> Opened:
    """Put silent shuffles before the spatial convs of a network, and on its skips; it is written to.

    Where they do not all fit together, each is tried by itself.

    Args:
        copy: Of a network.
        skips: Whether on skips too.
        input_size: As for ``surgeon.locate``.

    Raises:
        AnalysisError: When the network has no spatial conv.

    Example:
        >>> import timm
        >>> len(insert_shuffles(timm.create_model("test_resnet")).places)
        14
    """
    op, refused = SilentShuffle(skips=skips), dict[str, str]()
    with generators_kept():
        try:
            planned = [_operate(copy, Step(op), input_size)]
        except NoSiteError as error:
            raise AnalysisError(
                f"{type(copy).__name__} has no conv larger than 1x1, so there is nothing to shuffle; "
                "spatial dependence is of convolutional networks"
            ) from error
        except RefusedError:
            planned = list(_one_by_one(copy, op, input_size, refused))
    for each in planned:
        refused |= {change.path: change.reason for change in each.record.changes if change.status == "refused"}
    sites = [site for each in planned for site in each.sites.get(op.name, [])]
    return _opened(copy, sorted(sites, key=lambda site: site.depth), refused)


def _operate(copy: nn.Module, step: Step, input_size: InputSize) -> Planned:
    planned = plan_recipe(copy, Recipe((step,)), input_size)
    perform(copy, planned.edits)
    return planned


def _one_by_one(
    copy: nn.Module, op: SilentShuffle, input_size: InputSize, refused: dict[str, str]
) -> Iterator[Planned]:
    """Each site by itself; the reasons of those that cannot be shuffled are noted."""
    recorded = record_forward(copy, input_sizes(copy, input_size))
    for site in [site for site in sites_of(recorded) if op.takes(site)]:
        try:
            yield _operate(copy, Step(op, Select(path=site.path)), input_size)
        except RefusedError as error:
            refused[site.path] = re.split(rf"'{re.escape(site.path)}':? ", str(error))[-1]


def _opened(copy: nn.Module, sites: Sequence[Site], refused: dict[str, str]) -> Opened:
    switch, layers = Switch(), dict[int, str]()
    for path, module in copy.named_modules():
        if isinstance(module, Switched):
            module.switch = switch
            layers[module.site] = path
    numbers = {zlib.crc32(site.path.encode()): site for site in sites}
    return Opened(switch, [Place(site, number, layers[number]) for number, site in numbers.items()], refused)
