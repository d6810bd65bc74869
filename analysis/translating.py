"""What a classifier loses when what images show is shifted, turned or scaled.

Paper 002 (translation-invariant CNNs by global average pooling), its test of translation, rotation and scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.intervals import ratio_bootstrap
from analysis.moves import Axis, Kind, Move, check_fill, moves_of, shown, window_of
from analysis.moving import Fill, Padding, Size
from analysis.readings import FINAL, Readings
from analysis.result import ReadBack, Row
from analysis.scanning import Scan, accuracy
from analysis.study_settings import Settings
from analysis.tasks import Metric
from analysis.variants import Method, Variant
from surgeon.errors import AnalysisError

MEAN = ("relative_loss", "relative_loss_low_95", "relative_loss_high_95")
COLUMN = {"rotation": "rotation_deg", "scale": "scale"}


class Translation(ReadBack):
    """Accuracy, loss and relative loss by shift, angle or scale.

    Attributes:
        relative_loss: Mean over all moves but none, and its 95% interval; None where no image is right unmoved.
    """

    kind = "translation"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        what = {"shift": "Translation", "rotation": "Rotation", "scale": "Scaling"}[str(settings["kind"])]
        super().__init__(f"{what} of images before {settings['model']}", rows, summary, settings)
        self.relative_loss: tuple[float | None, ...] = tuple(settings[key] for key in MEAN)

    def figure(self) -> Figure:
        """Draw a map over (dx, dy) and the curve along the diagonal, or the curve over one axis."""
        from analysis.translation_figure import draw

        return draw(self)

    def curve(self, column: str = "accuracy", along: Literal["diagonal", "x", "y"] = "diagonal") -> tuple[Any, Any]:
        """Shifts in pixels, in order, and a column at them: along a diagonal, or where only one coordinate moves.

        Raises:
            AnalysisError: When the result has no such rows or column.
        """
        if self.settings["kind"] != "shift" or (self.rows and column not in self.rows[0]):
            raise AnalysisError(f"curve: '{column}' along shifts is asked for, and this result has none")
        at, still = {"diagonal": ("dx_px", None), "x": ("dx_px", "dy_px"), "y": ("dy_px", "dx_px")}[along]
        mine = [row for row in self.rows if (row["dx_px"] == row["dy_px"] if still is None else row[still] == 0)]
        found = sorted((row[at], row[column]) for row in mine)
        return np.array([where for where, _ in found]), np.array([np.nan if v is None else v for _, v in found], float)


def translation(
    model: Any,
    data: Iterable[Any],
    *,
    kind: Kind = "shift",
    axis: Axis = "grid",
    reach: float | None = None,
    step: float | None = None,
    moves: Sequence[Any] | None = None,
    padding: Padding = "mirror",
    size: Size | int | None = None,
    fill: Fill | None = None,
    metrics: Mapping[str, Metric] | None = None,
    method: Method = "single_pass",
    seed: int = 0,
    limit: int | None = None,
    amp: str | None = None,
    memory: int | str = "1GiB",
    ledger: str | Path | None = None,
    progress: bool = True,
    command: str = "",
) -> Translation:
    """Measure accuracy, loss and relative loss of a classifier over shifts, angles or scales of its images.

    The relative loss of a move is the share of the accuracy that it costs,
    ``(accuracy(unmoved) - accuracy(moved)) / accuracy(unmoved)``; that of a grid is the mean over its moves without
    the unmoved images. No public text of paper 002 defines its relative loss; this is our definition. All moves are
    measured in one pass over the data; the model is put back bit for bit.

    Args:
        model: A classifier.
        data: Batches of (images, class indices); larger images than the model takes for ``padding="crop"``.
        kind: "shift", "rotation" or "scale".
        axis: Of shifts: "grid" all (dx, dy), "diagonal" dx = dy, "horizontal", "vertical".
        reach: Furthest: pixels of a shift (9), degrees (20), or how far scales go from 1 (0.5: 0.5 to 1.5). The paper
            shifts 256-pixel images by up to 50.
        step: Between two moves: 3 pixels of a grid (multiples of the strides would see little of them), else 1; of
            angles 1 degree; of scales 0.05.
        moves: These instead: shifts as (dx, dy), angles, or scales. Fractions of pixels are Fourier shifts.
        padding: What comes in at the border: "mirror" (the paper's mosaic), "black", "circular", "crop" from a larger
            image.
        size: Of the window for "crop": (height, width), or one for both.
        fill: Value of black for "black", one or one per channel: 0 of images from 0 to 1, (0 - mean) / std of
            normalised ones. It has no default, as a wrong one would be grey.
        metrics: More columns: functions of (logits, targets) that answer a number per image.
        method: "single_pass", or "naive" for a pass per move.
        seed: Of the resampled images.
        limit: Most images.
        amp: "bfloat16" or "float16" for autocast.
        memory: Bytes that batches may keep.
        ledger: File that keeps what was measured, so that an interrupted scan goes on.
        progress: Show it in a terminal.
        command: What made the result, for its report.

    Returns:
        Rows per move: ``dx_px`` and ``dy_px`` (what is shown moves right and down), ``rotation_deg`` (anticlockwise)
        or ``scale``; accuracy and relative loss with 95% intervals (Wilson; images resampled), loss, agreement with
        the prediction for the unmoved image. After Ctrl-C those of the images seen so far.

    Raises:
        AnalysisError: When settings, data or model do not fit.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        >>> data = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 2)]
        >>> result = translation(model, data, axis="diagonal", reach=3, padding="circular", progress=False)
        >>> result.curve()[0].tolist(), {row["agreement"] for row in result.rows}
        ([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], {1.0})

    References:
        Paper 002 and its released code: full grid of -50 to 50 pixels, mirror mosaic; angles 0 to 20 degrees.
    """
    settings = Settings(
        seed=seed, method=method, metrics=metrics, memory=memory, ledger=ledger, progress=progress, limit=limit,
        amp=amp, command=command,
    )  # fmt: skip
    every = moves_of(kind, axis, reach, step, moves)
    window = window_of(size, padding)
    scan = Scan(model, data, settings)
    if scan.detector is not None:
        raise AnalysisError("translation is of classifiers; of a detector call analysis.detection_shift")
    black = check_fill(fill, padding)
    view = partial(shown, padding=padding, size=window, fill=black)
    variants = {move: Variant("", move.name, view=partial(view, move=move)) for move in every if not move.none}
    about = {"padding": padding, "size": window, "fill": np.atleast_1d(black).tolist()}
    readings = scan.run(
        "translation", [*variants.values()], view=partial(view, move=Move()) if window else None, about=about
    )
    keys = {move: variants[move].key if move in variants else FINAL for move in every}
    keys = {move: key for move, key in keys.items() if readings.images(key) == readings.images(FINAL)}  # Ctrl-C
    rows = [_row(kind, move, key, readings, list(metrics or ()), seed) for move, key in keys.items()]
    lost = _mean_lost([key for key in keys.values() if key != FINAL], readings)
    mean = dict(zip(MEAN, _relative(lost, 1 - readings.values(FINAL, "error"), seed), strict=True))
    own = {"kind": kind, "axis": axis, "moves": len(every), **about, **mean}
    found = Translation(rows, _summary(rows, mean, readings, scan), scan.about(readings.images(FINAL), own))
    found.by_image = {"lost": lost, "right": 1 - readings.values(FINAL, "error")}
    return found


def _row(kind: Kind, move: Move, key: str, readings: Readings, others: Sequence[str], seed: int) -> Row:
    where = (
        {"dx_px": move.dx, "dy_px": move.dy}
        if kind == "shift"
        else {COLUMN[kind]: move.degrees if kind == "rotation" else move.scale}
    )
    wrong, right = readings.values(key, "error"), 1 - readings.values(FINAL, "error")[: readings.images(key)]
    loss, low, high = _relative(wrong.astype(float) - (1 - right), right, seed, key == FINAL)
    means = {name: float(readings.values(key, name).mean()) for name in ("loss", "agreement", *others)}
    return {
        **where,
        **accuracy(wrong),
        **{"relative_loss": loss, "relative_loss_low_95": low, "relative_loss_high_95": high},
        **{name: value if np.isfinite(value) else None for name, value in means.items()},
    }


def _mean_lost(keys: Sequence[str], readings: Readings) -> NDArray[Any]:
    """Of each image, the share of the moves by which it turns wrong, less that by which it turns right."""
    moved = [readings.paired(key, "error") for key in keys]
    return np.mean(moved, 0) if moved else np.zeros(readings.images(FINAL))


def _relative(
    lost: NDArray[Any], right: NDArray[Any], seed: int, unmoved: bool = False
) -> tuple[float | None, float | None, float | None]:
    """Share of the right images that is lost, and its interval."""
    if not right.sum():
        return None, None, None
    if unmoved:
        return 0.0, 0.0, 0.0
    return (float(lost.sum() / right.sum()), *ratio_bootstrap(lost, right, seed))


def _summary(rows: Sequence[Row], mean: Mapping[str, float | None], readings: Readings, scan: Scan) -> str:
    error, images = readings.values(FINAL, "error"), readings.images(FINAL)
    words = [f"{images} images, accuracy {1 - float(error.mean()):.2%} unmoved"]
    worst = min(rows, key=lambda row: row["accuracy"])
    where = ", ".join(f"{name} {worst[name]:g}" for name in ("dx_px", "dy_px", *COLUMN.values()) if name in worst)
    words.append(f"{worst['accuracy']:.2%} at the worst ({where})")
    if mean["relative_loss"] is not None:
        loss, low, high = (float(value or 0) for value in mean.values())
        words.append(
            f"mean relative loss {loss:.2%} ({low:.2%} to {high:.2%}), that is "
            "(accuracy(unmoved) - accuracy(moved)) / accuracy(unmoved)"
        )
    return "; ".join(words) + "." + scan.said()
