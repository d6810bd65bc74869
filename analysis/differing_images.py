"""Whether two nets were given the same images."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.readings import Readings
from surgeon.errors import AnalysisError


def same_images(found: Sequence[Readings]) -> None:
    """Refuse readings of different images.

    Raises:
        AnalysisError: Likewise.

    Example:
        >>> same_images([Readings(), Readings()])
    """
    if found[0].marks != found[1].marks:
        raise AnalysisError(
            "the second net was given other images than the first, or in another order, so that nothing can be "
            "compared image by image; give the same batches each time: shuffle=False, and no random transforms"
        )
