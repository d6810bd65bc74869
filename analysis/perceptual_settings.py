"""Settings of judging and learning perceptual distances, and of their data, checked before anything is read.

Apart from what they are settings of, which go on with values that are known to be right.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any


def whole(value: Any, least: int = 0) -> bool:
    """Whether a value is a whole number, also of numpy, of at least so much; True and False are none.

    Example:
        >>> whole(3), whole(3, least=4), whole(3.0), whole(True)
        (True, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
