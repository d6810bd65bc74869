"""Lists of numbers as one types them on a command line: 1,2,4 or 1/2,1/4.

Apart from the commands, several of which take some.
"""

from __future__ import annotations

from fractions import Fraction

from surgeon.errors import RecipeError


def numbers(option: str, text: str) -> list[float]:
    """Read numbers, with commas between them.

    Args:
        option: Whose they are, for a message.
        text: What was typed.

    Raises:
        RecipeError: When it is no such list.

    Example:
        >>> numbers("--factors", "1/2, 0.25"), numbers("--shifts", "-4,8")
        ([0.5, 0.25], [-4.0, 8.0])
    """
    try:
        return [float(Fraction(part.strip())) for part in text.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise RecipeError(f"{option} {text}: give numbers with commas between them, as 1,2,4 or 1/2,1/4") from None
