"""How a study is done: its settings, checked before anything runs.

Apart from the study, which reads them and measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch

from analysis.parts import Level, Unit
from analysis.tasks import Metric
from analysis.treatments import BatchNorm
from analysis.variants import Method
from surgeon.errors import AnalysisError
from surgeon.host import InputSize

SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """How a study is done; see :func:`analysis.robustness`."""

    units: Level | Sequence[Unit] = "block"
    initial: Any = None
    checkpoints: Any = ()
    draws: int = 1
    batchnorm: BatchNorm = "keep"
    calibration: Iterable[Any] | None = None
    seed: int = 0
    method: Method = "single_pass"
    stop: float | bool | None = None
    tolerance: float = 0.01
    metrics: Mapping[str, Metric] | None = None
    memory: int | str = "1GiB"
    ledger: str | Path | None = None
    progress: bool = True
    limit: int | None = None
    amp: str | None = None
    command: str = ""
    detector: Mapping[str, Any] | None = None
    input_size: InputSize = None


def check(s: Settings) -> None:
    """Refuse settings that are none, or that do not go together.

    Raises:
        AnalysisError: Likewise.

    Example:
        >>> check(Settings(draws=3, stop=0.95))
    """
    wrong = [
        (s.method in get_args(Method), f"method is {s.method!r}; it is one of {', '.join(get_args(Method))}"),
        (
            isinstance(s.tolerance, (int, float)) and 0 <= s.tolerance < 1,
            f"tolerance is {s.tolerance!r}; give the loss that still counts as robust, 0 to 1, as 0.01",
        ),
        (s.limit is None or _whole(s.limit, 1), f"limit is {s.limit!r}; give a number of images, at least 1"),
        (_whole(s.seed, 0), f"seed is {s.seed!r}; give a whole number, at least 0"),
        (
            s.metrics is None or isinstance(s.metrics, Mapping),
            f"metrics is a {type(s.metrics).__name__}; give a dict from names to functions of (logits, targets)",
        ),
        (
            s.ledger is None or isinstance(s.ledger, (str, PathLike)),
            f"ledger is a {type(s.ledger).__name__}; give the path of a file",
        ),
        (s.amp is None or s.amp in TYPES, f"amp is {s.amp!r}; it is one of {', '.join(TYPES)}, or None"),
        (
            s.batchnorm != "recalibrate" or s.calibration is not None,
            'batchnorm="recalibrate" needs calibration=, batches of training images',
        ),
        (
            s.batchnorm == "recalibrate" or s.calibration is None,
            f'calibration= is for batchnorm="recalibrate", and batchnorm is {s.batchnorm!r}',
        ),
    ]
    if reasons := [reason for fine, reason in wrong if not fine]:
        raise AnalysisError(reasons[0])
    confidence(s.stop)
    size_in_bytes(s.memory)


def confidence(stop: float | bool | None) -> float | None:
    """The confidence at which a sweep stops; None where it does not.

    Raises:
        AnalysisError: For one that is none.

    Example:
        >>> confidence(True), confidence(0.9), confidence(False)
        (0.95, 0.9, None)
    """
    value = 0.95 if stop is True else None if stop is False else stop
    if value is not None and not (isinstance(value, (int, float)) and 0.5 <= value < 1):
        raise AnalysisError(f"stop is {stop!r}; give the confidence of a verdict, 0.5 to under 1, or True for 0.95")
    return value


def size_in_bytes(memory: int | str) -> int:
    """A size in bytes, or as text with a unit.

    Raises:
        AnalysisError: For one that is none.

    Example:
        >>> size_in_bytes("512MiB"), size_in_bytes(1000)
        (536870912, 1000)
    """
    text = str(memory).strip().upper()
    number = text.rstrip("BKMGI ")
    unit = text[len(number) :].strip()
    try:
        value = float(number) * SIZES[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not value >= 1:
        raise AnalysisError(f"memory is {memory!r}; give bytes, or a text such as '512MiB' or '1GiB'")
    return int(value)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


__all__ = ["TYPES", "Settings", "check", "confidence", "size_in_bytes"]
