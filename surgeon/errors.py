"""Every error this library raises on purpose.

Kept apart so that a user can catch one class. A message says what, why with the numbers, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class SurgeonError(Exception):
    """Base class of every intended error."""


class TraceError(SurgeonError):
    """The model's forward could not be recorded."""


class NoSiteError(SurgeonError):
    """A selection matched neither something to rewrite nor something unchanged."""


class RefusedError(SurgeonError):
    """The model, or the very site the user named, cannot be operated."""


class RecipeError(SurgeonError):
    """A recipe, a YAML file or an op's settings are not valid; ``problems`` lists each with its key path."""

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems) or [("", message)]


class LoadError(SurgeonError):
    """A saved folder is damaged, or does not fit the model."""


class AnalysisError(SurgeonError):
    """An analysis has nothing to look at, or was asked for something the model has not."""
