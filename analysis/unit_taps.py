"""Where the output of a unit is, and a tap there that captum can hold on to.

Apart from the attributions, which then need not know what a model's code does: layers that write into their input,
modules called several times, and modules that answer several tensors are dealt with here. Captum's own hooks would take
a tensor that an in-place addition has changed since, or the answer of another call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from analysis.unit_names import Unit
from surgeon.errors import AnalysisError
from surgeon.site import Site

TOLERANCE = 1e-3  # of the largest value, by which an image alone may differ from the same in a batch


@dataclass(frozen=True)
class Place:
    """Where the output of a unit is.

    Attributes:
        unit: Whose output.
        path: Of the module that gives it.
        calls: How often a forward pass calls it; the last one counts.
        leaf: Which of the things it answers.
        values: Numbers per image.
        shape: Of the tensor, for one image.
        taken: All this in words.
        skipped: Whether the unit adds its input to what it computes, all skips of its code being identities.
        trouble: Why there is none; then the others mean nothing.
    """

    unit: Unit
    path: str = ""
    calls: int = 1
    leaf: int = 0
    values: int = 0
    shape: tuple[int, ...] = ()
    taken: str = ""
    skipped: bool = False
    trouble: str = ""


class Tap(nn.Module):
    """Passes a tensor on, keeps a look at it, and gives gradients a place to be taken.

    Attributes:
        seen: The tensor of the last pass.
        entered: What went into the unit then, where a skip adds that to its output.
        held: Is passed on instead, where it is set.
    """

    def __init__(self, place: Place | None = None) -> None:
        super().__init__()
        self.place, self.count = place, 0
        self.seen: Tensor | None = None
        self.entered: Tensor | None = None
        self.held: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        """The same; a constant becomes a leaf, so that it has a gradient (of zero, where nothing reads it)."""
        value = value if self.held is None else self.held
        value = value if value.requires_grad else value.detach().requires_grad_()
        self.seen = value.detach()
        return value

    def before(self, module: nn.Module, given: Any) -> None:
        """Of the unit's module: keeps a copy of what goes in, as the unit may write into it."""
        if self.place is not None and self.place.skipped and self.count + 1 == self.place.calls:
            self.entered = next(leaf for leaf in tree_flatten(given)[0] if _is_value(leaf)).detach().clone()

    def hook(self, module: nn.Module, given: Any, answer: Any) -> Any:
        """Of the unit's module: sends the answer of its last call through the tap.

        What comes after gets a copy, so that it may write into it.
        """
        place, self.count = self.place, self.count + 1
        if place is None or self.count != place.calls:
            return None
        leaves, form = tree_flatten(answer)
        leaves[place.leaf] = self(leaves[place.leaf]).clone()
        return tree_unflatten(leaves, form)


@contextmanager
def tapped(module: nn.Module, places: Sequence[Place]) -> Iterator[list[Tap]]:
    """Taps at the outputs of units, for as long as the block runs.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
        >>> unit = Unit("conv", ("0",), ("0.weight", "0.bias"), (), 4, "Conv2d")
        >>> images = -torch.ones(1, 1, 2, 2)
        >>> with tapped(model, places_of(model, [unit], model, images)) as taps:
        ...     _ = model(images)
        >>> torch.equal(taps[0].seen, model[0](images)), len(model[0]._forward_hooks)
        (True, 0)
    """
    taps = [Tap(place) for place in places]

    def begin(module: nn.Module, given: Any) -> None:
        for tap in taps:
            tap.count = 0

    handles = [module.register_forward_pre_hook(begin)]
    try:
        for tap, place in zip(taps, places, strict=True):
            handles.append(module.get_submodule(place.path).register_forward_pre_hook(tap.before))
            handles.append(module.get_submodule(place.path).register_forward_hook(tap.hook))
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def places_of(
    module: nn.Module,
    units: Sequence[Unit],
    run: Callable[[Tensor], Any],
    images: Tensor,
    skipped: Collection[str] = (),
) -> list[Place]:
    """Find the output of each unit: that of whichever of its modules finishes last.

    The model is run on two images and on one of them alone, which tells how a tensor holds its images.

    Args:
        module: Whose units they are.
        units: Wanted.
        run: A forward pass of the module.
        images: At least one.
        skipped: Paths of blocks that add their input to what they compute (:func:`identity_blocks`).

    Returns:
        One for each unit, in order.

    Raises:
        AnalysisError: When a unit is of another model.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
        >>> place = places_of(model, [Unit("stem", ("0", "1"), (), (), 8, "")], model, torch.rand(1, 1, 4, 4))[0]
        >>> place.taken, place.values
        ('output of 1', 32)
    """
    first = images[:1]
    paths = list(dict.fromkeys(path for unit in units for path in unit.paths if path))
    there = {path for path, _ in module.named_modules(remove_duplicate=False)}
    if unknown := [path for path in paths if path not in there]:
        raise AnalysisError(
            f"units: {type(module).__name__} has no module '{unknown[0]}'; take analysis.units of this very model"
        )
    both = _Watch(module, paths).over(run, torch.cat([first, images[1:2] if len(images) > 1 else first.flip(-1)]))
    alone = _Watch(module, paths).over(run, first)
    places = [_place(unit, both, alone) for unit in units]
    return [replace(place, skipped=place.unit.residual and place.path in skipped) for place in places]


def identity_blocks(sites: Iterable[Site]) -> set[str]:
    """Paths of the residual blocks whose code adds nothing but its input, unprojected, to what it computes from it.

    Args:
        sites: Of the model, as :func:`surgeon.locate` lists them.

    Example:
        >>> import surgeon, timm
        >>> sorted(identity_blocks(surgeon.locate(timm.create_model("test_resnet"))))
        ['layer1.0']
    """
    owners: dict[str, list[bool]] = {}
    blocks = set()
    for site in sites:
        if site.kind == "skip":
            owners.setdefault(site.path.partition(":")[0], []).append(site.type_name == "identity")
        elif site.kind == "block" and site.in_shape == site.out_shape:
            blocks.add(site.path)
    return {path for path in blocks if owners.get(path) and all(owners[path])}


@dataclass
class _Watch:
    """What modules answered in one forward pass."""

    module: nn.Module
    paths: Sequence[str]
    order: list[str] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    def over(self, run: Callable[[Tensor], Any], images: Tensor) -> _Watch:
        def watching(path: str) -> Callable[..., None]:
            def note(module: nn.Module, given: Any, answer: Any) -> None:
                self.order.append(path)
                leaves = tree_flatten(answer)[0]
                self.last[path] = [leaf.clone() if _is_value(leaf) else leaf for leaf in leaves]

            return note

        handles = []
        try:
            for path in self.paths:
                handles.append(self.module.get_submodule(path).register_forward_hook(watching(path)))
            with torch.no_grad():
                run(images)
        finally:
            for handle in handles:
                handle.remove()
        return self


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0


def _place(unit: Unit, both: _Watch, alone: _Watch) -> Place:
    called = [path for path in both.order if path in unit.paths]
    if not called:
        own = "they are values of the model itself" if "" in unit.paths else "the forward pass calls no module of it"
        return Place(unit, trouble=f"no output of its own: {own}")
    path = called[-1]
    leaves = both.last[path]
    index = next((i for i, leaf in enumerate(leaves) if _is_value(leaf)), None)
    if index is None or len(alone.last.get(path, ())) != len(leaves):
        return Place(unit, trouble=f"no output of its own: '{path}' answers no tensor of numbers")
    two, one = leaves[index], alone.last[path][index]
    if not _keeps_apart(two, one):
        return Place(unit, trouble=f"the output of '{path}' does not keep images apart ({tuple(two.shape)} for two)")
    calls = called.count(path)
    words = [f"output of {path}"] + [f"last of {calls} calls"] * (calls > 1)
    words += [f"first tensor of {len(leaves)}"] * (len(leaves) > 1)
    words += ["a unit of several modules"] * (len(unit.paths) > 2)
    return Place(unit, path, calls, index, one.numel(), tuple(one.shape), ", ".join(words))


def _keeps_apart(two: Tensor, one: Tensor) -> bool:
    """Whether the first half of a tensor of two images is all there is of the first of them."""
    if two.shape[0] == 2 and one.shape[0] == 1 and two.shape[1:] == one.shape[1:]:
        return True
    if two.numel() != 2 * one.numel() or two.shape[0] != 2 * one.shape[0]:
        return False
    left, right = two[: one.shape[0]].double(), one.double()
    return bool((left - right).abs().max() <= TOLERANCE * right.abs().max().clamp_min(1e-12))


__all__ = ["Place", "Tap", "identity_blocks", "places_of", "tapped"]
