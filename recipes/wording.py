"""The nearest of several names, as errors suggest it; apart from them so that schema and messages can share it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of the allowed names, or an empty string.

    Example:
        >>> nearest("epoch", ["epochs", "lr"])
        "; did you mean 'epochs'?"
    """
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
