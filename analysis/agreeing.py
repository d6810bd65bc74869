"""Shift consistency: how often two shifts of an image get the same class, by the protocols in use.

Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019; Chaman and Dokmanic, Truly Shift-Invariant
Convolutional Neural Networks, CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from matplotlib.figure import Figure

from analysis.intervals import wilson
from analysis.moves import window_of
from analysis.moving import Size
from analysis.protocols import PASSES, Protocol, Windows, pairs, reach_of
from analysis.readings import FINAL, Readings
from analysis.result import ReadBack, Row
from analysis.scanning import Scan, accuracy
from analysis.study_settings import Settings
from analysis.variants import Method, Variant
from surgeon.errors import AnalysisError


class Consistency(ReadBack):
    """Share of equal predictions for two shifts of the same image.

    Attributes:
        consistency: Over all passes (or, of "diagonal", between neighbouring shifts), 0 to 1.
    """

    kind = "consistency"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Shift consistency of {settings['model']}", rows, summary, settings)
        self.consistency = float(settings["consistency"])

    def figure(self) -> Figure:
        """Draw the consistency of each pass, or accuracy and consistency along the diagonal."""
        from analysis.consistency_figure import draw

        return draw(self)


def consistency(
    model: Any,
    data: Iterable[Any],
    protocol: Protocol = "crop",
    *,
    size: Size | int | None = None,
    reach: int | None = None,
    passes: int | None = None,
    method: Method = "single_pass",
    seed: int = 0,
    limit: int | None = None,
    amp: str | None = None,
    memory: int | str = "1GiB",
    ledger: str | Path | None = None,
    progress: bool = True,
    command: str = "",
) -> Consistency:
    """Measure how often a classifier gives two shifts of an image the same class.

    Protocols, with the numbers of their released code as defaults:

    - "crop" (Zhang 2019): two windows of ``size`` at random places of a larger image, each axis uniform over ``reach``
      = 32 places; five passes. Of 256-pixel images and 224-pixel windows this is the published protocol.
    - "diagonal" (likewise): windows at 0, 1, ... ``reach`` = 32 pixels on both axes together.
    - "circular" (Chaman and Dokmanic 2021): the middle ``size`` of an image (all of it by default) rolled by two random
      shifts, each axis uniform over -``reach`` to ``reach`` - 1, that is -32 to 31; one pass. ``reach=3``: their -3 to
      2 for CIFAR.

    All of it is measured in one pass over the data; the model is put back bit for bit.

    Args:
        model: A classifier.
        data: Batches of (images, class indices); of "crop" and "diagonal" larger images than the window.
        protocol: "crop", "diagonal" or "circular".
        size: Of the window: (height, width), or one for both. Left out for "circular": the image.
        reach: Of the shifts, in pixels.
        passes: Pairs per image; 5 for "crop", 1 for "circular".
        method: "single_pass", or "naive" for a pass over the data per window.
        seed: Of the shifts.
        limit: Most images.
        amp: "bfloat16" or "float16" for autocast.
        memory: Bytes that batches may keep.
        ledger: File that keeps what was measured, so that an interrupted scan goes on.
        progress: Show it in a terminal.
        command: What made the result, for its report.

    Returns:
        Rows per pass and of all passes: ``consistency`` with its 95% interval, accuracy over both windows. Of
        "diagonal" rows per shift: accuracy, mean probability of the right and of the likeliest wrong class,
        ``consistency`` with the shift before; the share of images whose class never changes is in the settings.
        Intervals are Wilson's for the number of images, wide where each is looked at several times.

    Raises:
        AnalysisError: When settings, data or model do not fit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> data = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 2)]
        >>> consistency(model, data, "circular", reach=3, progress=False).consistency
        1.0

    References:
        The released code draws one pair of shifts for a whole batch; here each image has its own, which moves no mean
        and narrows its error. The percentages of their tables are ours times 100.
    """
    if protocol not in get_args(Protocol):
        raise AnalysisError(f"protocol is {protocol!r}; it is one of {', '.join(get_args(Protocol))}")
    settings = Settings(
        seed=seed, method=method, memory=memory, ledger=ledger, progress=progress, limit=limit, amp=amp, command=command
    )
    window = None if protocol == "circular" and size is None else window_of(size, "crop")
    far, number = reach_of(protocol, reach), _passes(protocol, passes)
    scan = Scan(model, data, settings)
    if scan.detector is not None:
        raise AnalysisError("consistency is of classifiers; of a detector call analysis.detection_shift")
    scan.task.choices = True
    windows = Windows(protocol, window, far, seed)
    variants = [Variant("", name, view=view) for name, view in pairs(windows, number)]
    about = {"protocol": protocol, "size": window, "reach_px": far, "passes": number}
    readings = scan.run("consistency", variants, view=windows.middle, about=about)
    images, at_once = readings.images(FINAL), 1 if protocol == "diagonal" else 2
    keys = [variant.key for variant in variants]
    groups = [keys[at : at + at_once] for at in range(0, len(keys), at_once)]
    done = [key for group in groups if all(readings.images(key) == images for key in group) for key in group]
    if not done:  # Ctrl-C, before any pair was measured
        raise KeyboardInterrupt
    rows, own, shares = (_along if protocol == "diagonal" else _by_pass)(readings, done)
    low, high = wilson(round(own["consistency"] * images), images)
    own |= {"consistency_low_95": low, "consistency_high_95": high}
    found = Consistency(rows, _summary(protocol, own, images, scan), scan.about(images, about | own))
    found.by_image = {"consistency": shares}
    return found


def _passes(protocol: Protocol, passes: int | None) -> int:
    if passes is None:
        return PASSES[protocol]
    if protocol == "diagonal":
        raise AnalysisError("passes is of random shifts, and protocol is 'diagonal'; leave it out")
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
        raise AnalysisError(f"passes is {passes!r}; give the number of pairs per image, at least 1")
    return passes


def _by_pass(readings: Readings, keys: Sequence[str]) -> tuple[list[Row], dict[str, Any], Any]:
    rows, agreeing, wrong = [], [], []
    for number, (one, other) in enumerate(zip(keys[::2], keys[1::2], strict=True), 1):
        agreeing.append(_same(readings.values(one, "class"), readings.values(other, "class")))
        wrong.append(np.concatenate([readings.values(one, "error"), readings.values(other, "error")]))
        rows.append(_row(f"{number}", agreeing[-1], wrong[-1]))
    share = np.mean(agreeing, 0)
    everything = _row("all", share, np.concatenate(wrong))
    return [*rows, everything], {"consistency": float(share.mean()), "accuracy": everything["accuracy"]}, share


def _row(name: str, agreeing: Any, wrong: Any) -> Row:
    images = len(agreeing)
    low, high = wilson(round(float(agreeing.sum())), images)
    right = 1 - float(wrong.mean())
    below, above = wilson(round(right * images), images)
    return {
        **{"pass": name, "images": images, "consistency": float(agreeing.mean())},
        **{"consistency_low_95": low, "consistency_high_95": high},
        **{"accuracy": right, "accuracy_low_95": below, "accuracy_high_95": above},
    }


def _along(readings: Readings, keys: Sequence[str]) -> tuple[list[Row], dict[str, Any], Any]:
    chosen = np.stack([readings.values(key, "class") for key in keys])
    rows: list[Row] = []
    for shift, key in enumerate(keys):
        same = _same(chosen[shift], chosen[max(shift - 1, 0)])
        low, high = wilson(int(same.sum()), len(same))
        agreed = {"consistency": float(same.mean()), "consistency_low_95": low, "consistency_high_95": high}
        rows.append(
            {
                **{"shift_px": shift, "images": len(same), **accuracy(readings.values(key, "error"))},
                **(agreed if shift else dict.fromkeys(agreed)),
                **{name: _mean(readings.values(key, name)) for name in ("p_right", "p_wrong")},
            }
        )
    neighbours = _same(chosen[1:], chosen[:-1]).mean(0)
    stable = _same(chosen, chosen[0]).all(0)
    low, high = wilson(int(stable.sum()), len(stable))
    own = {"consistency": float(neighbours.mean()), "accuracy": float(np.mean([row["accuracy"] for row in rows]))}
    never = {"share": float(stable.mean()), "low_95": low, "high_95": high}
    return rows, own | {f"never_changes_{name}": value for name, value in never.items()}, neighbours


def _same(one: Any, other: Any) -> Any:
    """Where the classes are equal; an answer that is no number agrees with nothing."""
    return (one == other) & (one >= 0)


def _mean(values: Any) -> float | None:
    mean = float(values.mean())
    return mean if np.isfinite(mean) else None


def _summary(protocol: Protocol, own: Mapping[str, Any], images: int, scan: Scan) -> str:
    what = {
        "crop": "two random windows get the same class",
        "circular": "two random circular shifts get the same class",
        "diagonal": "windows one pixel apart on the diagonal get the same class",
    }[protocol]
    words = [
        f"{images} images: {what} in {own['consistency']:.2%} "
        f"({own['consistency_low_95']:.1%} to {own['consistency_high_95']:.1%}), accuracy {own['accuracy']:.2%}"
    ]
    if protocol == "diagonal":
        words.append(f"{own['never_changes_share']:.2%} of the images keep one class at all shifts")
    return "; ".join(words) + "." + scan.said()
