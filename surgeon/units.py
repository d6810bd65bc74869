"""Units: what "the last 31% of a network" counts, the same for surgery and for analysis.

Residual blocks where there are any, else the spatial convs, else the top-level layers (papers of Fan et al. 2020 and
Zhang et al. 2022 count so). The classifier and ``pre_logits`` are no units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from surgeon.errors import RecipeError
from surgeon.site import Site


def unit_paths(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    """Paths of the units of the whole model, in order of call."""
    blocks = [site.path for site in sites if site.kind == "block"]
    outer = [path for path in blocks if not any(path.startswith(other + ".") for other in blocks)]
    if outer:
        return outer
    convs = [s.path for s in sites if s.kind in ("strided_conv", "spatial_conv") and max(s.kernel_size or (1,)) > 1]
    return convs or [name for name, _ in model.named_children()]


def count_of(share: int | str, total: int, field: str) -> int:
    """A count, or a share such as ``"31%"`` of ``total``, rounded half up.

    Example:
        >>> [count_of(share, 13, "last") for share in ("8%", "31%", "54%", "77%", "100%", 2)]
        [1, 4, 7, 10, 13, 2]
    """
    if isinstance(share, int):
        count = share
    else:
        number = share.strip().removesuffix("%")
        if not share.strip().endswith("%") or not number.replace(".", "", 1).isdigit():
            raise RecipeError(f"{field} is {share!r}; give a count such as 3 or a share such as '31%'")
        count = math.floor(float(number) / 100 * total + 0.5)
    if not 0 < count <= total:
        raise RecipeError(f"{field}={share!r} means {count} of the {total} units of the model; give 1 to {total}")
    return count
