"""Which sites a step takes: "late" is a choice, and this is where it is made."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from surgeon.errors import RecipeError
from surgeon.settings import complain, read_settings
from surgeon.site import Kind, Site
from surgeon.units import count_of, why_no_share

Patterns = str | tuple[str, ...]
Share = int | Annotated[str, "a share such as '31%'"]


@dataclass(frozen=True, kw_only=True)
class Select:
    """Narrow the sites of an op; every field given must hold.

    Args:
        path: A pattern (fnmatch) or several, of which one must match the site's path or one of its aliases.
        exclude: A pattern or several, of which none may match.
        kind: ``strided_conv``, ``strided_pool``, ``spatial_conv``, ``block`` or ``skip``.
        kernel: Kernel size: 3 or (1, 7).
        min_depth: Least depth, 0 at the input to 1 at the output.
        max_depth: Greatest depth.
        min_reduction: Least ratio of the input's size to the features'.
        first: A count or a share (``"31%"``) of the units of the whole model before surgery, from the input.
        last: The same from the output.
        unit: Numbers of single units, from 0; negative ones count from the end.

    Raises:
        RecipeError: When a field has a value it cannot have.

    Example:
        >>> Select(path="layer4.*", kind="strided_conv").kind
        'strided_conv'
    """

    path: Patterns = "*"
    exclude: Patterns = ()
    kind: Kind | None = None
    kernel: int | tuple[int, int] | None = None
    min_depth: float = 0.0
    max_depth: float = 1.0
    min_reduction: int = 1
    first: Share | None = None
    last: Share | None = None
    unit: tuple[int, ...] | int | None = None

    def __post_init__(self) -> None:
        read_settings(self, "select")
        if isinstance(self.unit, int):
            object.__setattr__(self, "unit", (self.unit,))
        reasons = {name: why_no_share(getattr(self, name)) for name in ("first", "last")}
        problems = [(name, reason) for name, reason in reasons.items() if reason]
        depths = {name: getattr(self, name) for name in ("min_depth", "max_depth")}
        problems += [(n, f"is {d}; it lies between 0 and 1") for n, d in depths.items() if not 0 <= d <= 1]
        if self.min_depth > self.max_depth:
            problems.append(("min_depth", f"is {self.min_depth}, above max_depth={self.max_depth}; swap them"))
        complain(problems, "select")

    def __call__(self, sites: Sequence[Site], units: Sequence[str]) -> list[Site]:
        """The sites this selection takes; ``units`` are the paths of the units of the whole model."""
        within = self._units(units)
        return [site for site in sites if self._takes(site) and (within is None or _inside(site, within))]

    def _takes(self, site: Site) -> bool:
        kernel = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        return (
            _matches(site, self.path)
            and not _matches(site, self.exclude)
            and self.kind in (None, site.kind)
            and kernel in (None, site.kernel_size)
            and self.min_depth <= site.depth <= self.max_depth
            and site.reduction >= self.min_reduction
        )

    def _units(self, units: Sequence[str]) -> list[str] | None:
        """The paths of the units chosen; None when every unit is."""
        if self.first is None and self.last is None and self.unit is None:
            return None
        total = len(units)
        keep = set(range(total))
        if self.first is not None:
            keep &= set(range(count_of(self.first, total, "first")))
        if self.last is not None:
            keep &= set(range(total - count_of(self.last, total, "last"), total))
        if isinstance(self.unit, tuple):
            if beyond := [n for n in self.unit if not -total <= n < total]:
                raise RecipeError(f"unit {beyond[0]} is beyond the {total} units of the model, numbered from 0")
            keep &= {n % total for n in self.unit}
        return [units[n] for n in sorted(keep)]

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as YAML has them."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _matches(site: Site, patterns: Patterns) -> bool:
    several = (patterns,) if isinstance(patterns, str) else patterns
    names = {site.path, *site.aliases}
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names for pattern in several)


def _inside(site: Site, units: Sequence[str]) -> bool:
    return any(site.path == unit or site.owner == unit or site.owner.startswith(unit + ".") for unit in units)
