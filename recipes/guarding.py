"""What every command does with an error: say it once, and end with a code; never a traceback for an intended one.

Apart from the commands so that all groups of them share it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

Command = Callable[..., None]


def guarded(function: Command) -> Command:
    """Turn intended errors of a command into one message and exit code 2, and Ctrl-C into exit code 130.

    Example:
        >>> guarded(print)("fine")
        fine
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("surgeon: stopped", err=True)
            raise SystemExit(130) from None
        except Exception as error:
            if isinstance(error, BrokenPipeError) or not _intended(error):
                raise
            typer.echo(f"surgeon: {error}", err=True)
            raise SystemExit(2) from None

    return run


def _intended(error: Exception) -> bool:
    from surgeon.errors import SurgeonError

    return isinstance(error, (SurgeonError, OSError))
