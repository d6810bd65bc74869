"""Settings of judging and learning perceptual distances, and of their data, checked before an image is read.

Apart from what they are settings of, which go on with values that are known to be right.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from analysis.ratings import RatedChoices, Ratings
from surgeon.errors import AnalysisError

PADDINGS = ("mirror", "circular")
FEWEST = 3  # pairs that a correlation needs


def whole(value: Any, least: int = 0) -> bool:
    """Whether a value is a whole number, also of numpy, of at least so much; True and False are none.

    Example:
        >>> whole(3), whole(3, least=4), whole(3.0), whole(True)
        (True, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def insist_on_ratings(data: Any, verb: str) -> None:
    """Refuse what is neither scored pairs nor choices.

    Raises:
        AnalysisError: Likewise.
    """
    if not isinstance(data, (Ratings, RatedChoices)):
        raise AnalysisError(
            f"{verb}: data is a {type(data).__name__}; open a database by analysis.rating_data, or put your own pairs "
            "into analysis.Ratings"
        )


def checked_steps(shifts: Any) -> tuple[int, ...]:
    """Shifts in pixels, from how many or which are asked for.

    Raises:
        AnalysisError: For others than whole numbers from 1 up, each once, or 0 for none.

    Example:
        >>> checked_steps(3), checked_steps([1, 4]), checked_steps(0)
        ((1, 2, 3), (1, 4), ())
    """
    if whole(shifts):
        return tuple(range(1, int(shifts) + 1))
    try:
        steps: list[Any] = [None] if isinstance(shifts, (str, bytes)) else list(shifts)
    except TypeError:
        steps = [None]
    if not all(whole(step, 1) for step in steps) or len(set(steps)) < len(steps):
        raise AnalysisError(f"perceptual: shifts={shifts!r}: give whole pixels from 1 up, each once, or 0 for none")
    return tuple(int(step) for step in steps)


def check_judging(distance: Any, data: Any, padding: str, resamples: Any, size: Any, limit: Any, seed: Any) -> None:
    """Refuse what :func:`analysis.perceptual` cannot use.

    Raises:
        AnalysisError: Likewise.
    """
    insist_on_ratings(data, "perceptual")
    if not callable(distance):
        raise AnalysisError(f"perceptual: a {type(distance).__name__} measures nothing; give a function of two batches")
    _refuse(
        "perceptual",
        [
            (padding in PADDINGS, f"padding={padding!r}: give one of {', '.join(PADDINGS)}"),
            (_count(resamples, 1), f"resamples={resamples!r}: give a number of draws"),
            (_count(size, 1), f"batch_size={size!r}: give a number of images"),
            (limit is None or _count(limit, 1), f"limit={limit!r}: give a number of pairs, or None"),
            (_count(seed), f"seed={seed!r}: give a whole number from 0 up"),
        ],
    )


def check_fitting(epochs: Any, size: Any, dropout: Any, patience: Any, images: Any, limit: Any, seed: Any) -> None:
    """Refuse settings that :func:`analysis.fit_perceptual` cannot use.

    Raises:
        AnalysisError: Likewise.
    """
    share = isinstance(dropout, (int, float)) and 0 <= dropout < 1
    _refuse(
        "fit_perceptual",
        [
            (_count(epochs), f"epochs={epochs!r}: give a whole number from 0 up"),
            (_count(size, FEWEST), f"batch_size={size!r}: a correlation needs {FEWEST} pairs at least"),
            (share, f"dropout={dropout!r}: give a share from 0 to under 1"),
            (patience is None or _count(patience, 1), f"patience={patience!r}: give a number of epochs, or None"),
            (_count(images, 1), f"image_batch={images!r}: give a number of images"),
            (limit is None or _count(limit, 1), f"limit={limit!r}: give a number of pairs, or None"),
            (_count(seed), f"seed={seed!r}: give a whole number from 0 up"),
        ],
    )


def parted(data: Any, validation: Any, limit: int | None, seed: int) -> tuple[Ratings, Ratings | None]:
    """Pairs to learn from and those that validate, of two images each and of different references.

    Raises:
        AnalysisError: When they are no scored pairs, too few, or scored alike, or a reference is in both.
    """
    if not isinstance(data, Ratings):
        insist_on_ratings(data, "fit_perceptual")
        raise AnalysisError(f"fit_perceptual learns from scored pairs, and {data.name} has choices; give Ratings")
    some = data.first(limit).of_two()
    if validation is None:
        return _teaching(some, "data"), None
    if isinstance(validation, float):
        learned, held = some.split(validation, seed)
        return _teaching(learned, "data"), _teaching(held, "validation")
    if not isinstance(validation, Ratings):
        what = "choices" if isinstance(validation, RatedChoices) else f"a {type(validation).__name__}"
        raise AnalysisError(
            f"fit_perceptual: validation is {what}; give analysis.Ratings of other references, or the share of the "
            "references of data that validate, as 0.2"
        )
    if shared := set(some.references) & set(validation.references):
        raise AnalysisError(
            f"fit_perceptual: validation has {len(shared)} of its {len(validation.references)} references in common "
            f"with data, such as '{min(shared)}'; part one set by data.split, or give a share, as validation=0.2"
        )
    return _teaching(some, "data"), _teaching(validation.of_two(), "validation")


def _teaching(data: Ratings, role: str) -> Ratings:
    """Pairs of which a correlation can be told."""
    varies = len(data) < FEWEST or float(np.ptp(data.worse)) > 0
    _refuse(
        f"fit_perceptual: {role}",
        [
            (len(data) >= FEWEST, f"{len(data)} pairs are left; a correlation needs {FEWEST} at least"),
            (varies, "all scores are equal; there is nothing to learn or to compare"),
        ],
    )
    return data


def _count(value: Any, least: int = 0) -> bool:
    """As :func:`whole`, of what reports keep as it is given: they are JSON, which knows no numbers of numpy."""
    return isinstance(value, int) and whole(value, least)


def _refuse(what: str, wrong: list[tuple[bool, str]]) -> None:
    if reasons := [reason for fine, reason in wrong if not fine]:
        raise AnalysisError(f"{what}: {reasons[0]}")
