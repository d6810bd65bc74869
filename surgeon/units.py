"""Units: what "the last 31% of a network" counts, the same for surgery and for analysis.

Residual blocks where there are any, else the spatial convs, else the top-level layers (papers of Fan et al. 2020 and
Zhang et al. 2022 count so). The classifier and ``pre_logits`` are no units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from torch import nn

from surgeon.errors import RecipeError
from surgeon.site import Site

HEAD = {"pre_logits", "classifier", "head", "fc"}


def unit_paths(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    """Paths of the units of the whole model, in order of call.

    Example:
        >>> import timm, surgeon
        >>> model = timm.create_model("test_resnet")
        >>> unit_paths(model, surgeon.locate(model))
        ['layer1.0', 'layer2.0', 'layer3.0', 'layer4.0']
    """
    blocks = [site.path for site in sites if site.kind == "block"]
    outer = [path for path in blocks if not any(path.startswith(other + ".") for other in blocks)]
    if outer:
        return outer
    spatial = [s for s in sites if s.kind in ("strided_conv", "spatial_conv") and max(s.kernel_size or (1,)) > 1]
    convs = [s.path for s in spatial if "pre_logits" not in s.path.split(".")]  # VGG's fully connected layers are convs
    return convs or [name for name, _ in model.named_children() if name not in HEAD]


def why_no_share(share: int | str | None) -> str | None:
    """What is wrong with a count or share of whatever model; None where nothing is."""
    if not isinstance(share, str):
        return None
    number = share.strip().removesuffix("%")
    percent = share.strip().endswith("%") and number.replace(".", "", 1).isdecimal()
    if percent and Fraction(number) <= 100:
        return None
    return f"is {share!r}; give a count such as 3 or a share such as '31%', at most '100%'"


def count_of(share: int | str, total: int, field: str) -> int:
    """A count, or a share such as ``"31%"`` of ``total``, rounded half up.

    Raises:
        RecipeError: When it is neither, or no number of units from 1 to ``total``.

    Example:
        >>> [count_of(share, 13, "last") for share in ("8%", "31%", "54%", "77%", "100%", 2)]
        [1, 4, 7, 10, 13, 2]
    """
    if reason := why_no_share(share):
        raise RecipeError(f"{field} {reason}")
    exact = Fraction(share.strip().removesuffix("%")) / 100 * total if isinstance(share, str) else Fraction(share)
    count = math.floor(exact + Fraction(1, 2))
    if not 0 < count <= total:
        raise RecipeError(f"{field}={share!r} means {count} of the {total} units of the model; give 1 to {total}")
    return count


def unit_of(site: Site, units: Sequence[str]) -> str | None:
    """The path of the unit a site is, or lies in; None where it lies in none.

    Example:
        >>> import timm, surgeon
        >>> model = timm.create_model("test_resnet")
        >>> sites = surgeon.locate(model)
        >>> [unit_of(site, unit_paths(model, sites)) for site in sites if site.kind == "strided_conv"]
        [None, 'layer2.0', 'layer3.0', 'layer4.0']
    """
    own = site.owner
    return next((unit for unit in units if own == unit or own.startswith(unit + ".")), None)
