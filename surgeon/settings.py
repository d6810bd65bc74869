"""Settings of ops and selections: each value is read by the type its field declares, or named with what is allowed."""

from __future__ import annotations

import math
import types
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from surgeon.errors import RecipeError

_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
_MISFIT = object()


def read_settings(instance: Any, of: str = "") -> None:
    """Read every field of a frozen dataclass by its declared type: lists become tuples, numpy's whole numbers ints.

    Args:
        instance: Its fields are set to what was read.
        of: Whose settings they are, for the message.

    Raises:
        RecipeError: With every field that has no such value.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     order: Literal["spd-conv", "conv-spd"] = "spd-conv"
        >>> read_settings(Settings(order="spd"), "an op")
        Traceback (most recent call last):
        surgeon.errors.RecipeError: an op: order is 'spd'; it is 'spd-conv' or 'conv-spd'
    """
    hints, problems = get_type_hints(type(instance), include_extras=True), []
    for name in (f.name for f in fields(instance)):
        value = getattr(instance, name)
        if reason := misfit(value, hints[name]):
            problems.append((name, reason))
        else:
            object.__setattr__(instance, name, read(value, hints[name]))
    complain(problems, of)


def misfit(value: Any, hint: Any) -> str | None:
    """Why ``value`` is no ``hint``, and what is allowed; None where it is one."""
    return f"is {value!r}; it is {allowed(hint)}" if read(value, hint) is _MISFIT else None


def complain(problems: Sequence[tuple[str, str]], of: str = "") -> None:
    """Raise all ``problems``, (field, what is wrong), as one error, if there are any."""
    prefix = f"{of}: " if of else ""
    if problems:
        raise RecipeError("\n".join(f"{prefix}{name} {text}" for name, text in problems), problems)


def read(value: Any, hint: Any) -> Any:
    """``value`` as a ``hint``; a marker where it is none. True is no number, NaN neither."""
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for part in get_args(hint) if (found := read(value, part)) is not _MISFIT), _MISFIT)
    if get_origin(hint) is Annotated:
        return read(value, get_args(hint)[0])
    if get_origin(hint) is Literal:
        return next((v for v in get_args(hint) if type(v) is type(value) and v == value), _MISFIT)
    if get_origin(hint) is tuple:
        return _read_tuple(value, get_args(hint))
    if hint is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if hint is float and isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value):
        return float(value)
    return value if hint not in (int, float) and isinstance(value, hint) else _MISFIT


def _read_tuple(value: Any, parts: tuple[Any, ...]) -> Any:
    if not isinstance(value, (tuple, list)) or (parts[-1] is not ... and len(value) != len(parts)):
        return _MISFIT
    hints = [parts[0]] * len(value) if parts[-1] is ... else parts
    found = tuple(read(v, hint) for v, hint in zip(value, hints, strict=True))
    return _MISFIT if any(v is _MISFIT for v in found) else found


def allowed(hint: Any) -> str:
    """A type in words.

    Example:
        >>> allowed(tuple[int, int] | Literal["same"] | None)
        "a list of 2 (each a whole number), 'same' or null"
    """
    words = _words(hint)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _words(hint: Any) -> list[str]:
    parts = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return [word for part in parts for word in _words(part)]
    if get_origin(hint) is Literal:
        return [repr(part) for part in parts]
    if get_origin(hint) is Annotated:
        return [parts[1]]
    if get_origin(hint) is tuple:
        return [f"a list{'' if parts[-1] is ... else f' of {len(parts)}'} (each {allowed(parts[0])})"]
    return [_NAMES.get(hint, f"of class {getattr(hint, '__name__', hint)}")]
