"""Equivariance error: how far the features of a shifted image are from the shifted features, layer by layer.

Where the line rises, invariance is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.figure import Figure

from analysis.model_names import model_name
from analysis.moves import check_fill
from analysis.moving import Fill, Padding
from analysis.opening import versions_of
from analysis.parts import Level, Unit
from analysis.result import ReadBack, Row
from analysis.shift_errors import Array, Shift, ShiftErrors, ratios
from analysis.shifted_passes import run_shifted, size_of
from analysis.study_settings import size_in_bytes
from analysis.tapping import Tap, find_taps
from surgeon.errors import AnalysisError
from surgeon.host import unwrap

Border = Literal["keep", "crop"]
COLUMNS = ("error", "relative_error")
PIECE = 64  # images at once, where memory allows more


class Equivariance(ReadBack):
    """Errors of units under shifts.

    Attributes:
        units: In order of call.
        shifts: (right, down) in pixels.
        complete: False where Ctrl-C ended it; then the errors are those of the images seen.
        by_image: "error" and "other", each by unit and shift: of each image in order ||f(Tx) - T f(x)||,
            and ||f(x) - f(x')||, its distance to the image before; files do not have them.
    """

    kind = "equivariance"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Equivariance error of {settings['model']}", rows, summary, settings)
        self.units = list(dict.fromkeys(row["unit"] for row in rows))
        self.shifts = list(dict.fromkeys((row["dx_px"], row["dy_px"]) for row in rows))
        self.complete = bool(settings["complete"])

    def figure(self) -> Figure:
        """Draw the error against depth, one line per shift."""
        from analysis.features_shifted_figure import draw

        return draw(self)


def equivariance(
    model: Any,
    data: Iterable[Any],
    *,
    units: Level | Sequence[str | Unit] = "block",
    shifts: Sequence[float | Shift] | None = None,
    padding: Padding = "circular",
    border: Border = "keep",
    fill: Fill | None = None,
    seed: int = 0,
    limit: int | None = None,
    memory: int | str = "1GiB",
    progress: bool = True,
    command: str = "",
) -> Equivariance:
    """Measure how far the features of a shifted image are from the shifted features, unit by unit.

    f are the features behind a unit, T shifts by s pixels the image, and by s / r positions the features, of which one
    is r pixels wide (a Fourier shift where that is no whole number). Norms are over all values of an image:

    - ``error`` = mean ||f(Tx) - T f(x)|| / mean ||f(x) - m(x)||, means over the images x, m the mean of each channel
      over all positions: 0 is equivariant, about 1.4 as if the features lay anywhere. Vectors have none.
    - ``relative_error`` = mean ||f(Tx) - T f(x)|| / mean ||f(x) - f(x')||, x' the image before x in the data: 1 is as
      different as another image. Of vectors (behind global pooling) T changes nothing: it is the error of invariance.

    The errors of a net with zero padding grow with depth although nothing is subsampled: see ``padding``. One forward
    pass for each shift and for the images themselves; no features are kept beyond a piece of a batch. The model is put
    back bit for bit.

    Args:
        model: A classifier, any network that takes one image tensor, or a ``YOLO`` object (its top-level layers).
        data: Batches of images (N, C, H, W) as the model takes them, or of (images, anything); of one size.
        units: "layer", "block" or "stage", with the pools between them and the output; or paths of modules, or units.
        shifts: In pixels: numbers go right and down alike, pairs are (right, down). By default 1, 2, 4, ... up to the
            total stride of the net.
        padding: What comes in at the border of the shifted image: "circular", what has left; then a net whose convs
            pad with zeros errs there, and by more the deeper one looks. "mirror" or "black", with ``border="crop"``.
        border: "crop" leaves out the positions that a shift has brought in, and one more (not what zero padding
            spreads); "keep" counts all.
        fill: Value of black for "black", as of :func:`analysis.translation`: one for all channels, or one each.
        seed: Of the draws behind the intervals, and of models that draw at random.
        limit: Most images.
        memory: What features of a piece of a batch may take, bytes or as "1GiB".
        progress: Show it in a terminal.
        command: What made the result, for its report.

    Returns:
        Rows per unit and shift with both errors, their 95% intervals (images drawn anew), the reduction r and the
        shift of the features in positions.

    Raises:
        AnalysisError: When data, shifts or units do not fit the model.
        SurgeonError: When the model cannot be recorded.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular"), nn.ReLU())
        >>> result = equivariance(net, [torch.rand(4, 3, 8, 8)], units="layer", shifts=(1, 2), progress=False)
        >>> [(row["dx_px"], row["error"] < 1e-5) for row in result.rows]
        [(1.0, False), (2.0, True)]

    References:
        Azulay and Weiss, JMLR 2019; Zhang, ICML 2019, section 4.1 (internal shift equivariance, by cosine distance);
        Lenc and Vedaldi, CVPR 2015. The two normalisations are ours.
    """
    _check(padding, border, seed, limit)
    fill = check_fill(fill, padding)
    module = unwrap(model)
    size = size_of(data)
    taps, notes = find_taps(model, module, units, size)
    wanted = _shifts(shifts, taps, size)
    errors = ShiftErrors(taps, wanted, padding, border)
    images_at_once = max(1, min(PIECE, size_in_bytes(memory) // (4 * sum(tap.values for tap in taps))))
    complete = run_shifted(module, data, errors, images_at_once, limit, seed, progress, fill)
    cells = {(tap.path, shift): _values(errors, tap.path, shift) for tap in taps for shift in wanted}
    rows = _rows(taps, errors, cells, seed)
    settings = {
        "model": model_name(module), "input_size": list(size), "images": errors.images, "padding": padding,
        "border": border, "shifts": [list(shift) for shift in wanted], "fill": np.atleast_1d(fill).tolist(),
        "units": units if isinstance(units, str) else "by name", "seed": seed, "limit": limit,
        "complete": complete, "notes": notes, "command": command, "versions": versions_of(),
    }  # fmt: skip
    found = Equivariance(rows, _summary(rows, notes, complete), settings)
    for key, of in (("error", 0), ("other", 2)):
        found.by_image[key] = {(tap.name, shift): cells[tap.path, shift][of] for tap in taps for shift in wanted}
    return found


def _check(padding: str, border: str, seed: int, limit: int | None) -> None:
    if padding not in get_args(Padding) or padding == "crop":
        known = ", ".join(name for name in get_args(Padding) if name != "crop")
        raise AnalysisError(f"padding is {padding!r}; it is one of {known}")
    if border not in get_args(Border):
        raise AnalysisError(f"border is {border!r}; it is one of {', '.join(get_args(Border))}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise AnalysisError(f"limit is {limit!r}; give a number of images, at least 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise AnalysisError(f"seed is {seed!r}; give a whole number, at least 0")


def _shifts(shifts: Any, taps: Sequence[Tap], size: tuple[int, int, int]) -> list[Shift]:
    """The shifts as pairs."""
    if shifts is None:
        most = min(max(max(tap.layout.reduction) for tap in taps), min(size[1:]) // 2)
        shifts = [2**i for i in range(int(math.log2(max(most, 1))) + 1)]
    found: list[Shift] = []
    for each in shifts if isinstance(shifts, Iterable) and not isinstance(shifts, str) else [None]:
        pair = tuple(each) if isinstance(each, Iterable) and not isinstance(each, str) else (each, each)
        if len(pair) != 2 or not all(isinstance(s, Real) and math.isfinite(s) for s in pair) or not any(pair):
            raise AnalysisError(f"shifts is {shifts!r}; give pixels, or pairs (right, down), none of them (0, 0)")
        if abs(pair[0]) >= size[2] or abs(pair[1]) >= size[1]:
            raise AnalysisError(f"shifts holds {each!r}, which moves images of {size[1]} x {size[2]} out of sight")
        found.append((float(pair[0]), float(pair[1])))
    if not found:
        raise AnalysisError("shifts is empty; give at least one, or leave it out")
    return list(dict.fromkeys(found))


def _values(errors: ShiftErrors, path: str, shift: Shift) -> tuple[Array, Array, Array]:
    """Of each image: the error, the spread of the features, and their distance to those of another image."""
    norms, crop, none = errors.norms[path], errors.crop(path, shift), [math.nan] * errors.images
    spread, other = (none if crop is None else part.get(crop, none) for part in (norms.spread, norms.other))
    return np.array(norms.error.get(shift, none)), np.array(spread), np.array(other)


def _rows(
    taps: Sequence[Tap], errors: ShiftErrors, cells: Mapping[tuple[str, Shift], tuple[Array, Array, Array]], seed: int
) -> list[Row]:
    keys = [(tap, shift) for tap in taps for shift in errors.shifts]
    parts = [cells[tap.path, shift] for tap, shift in keys]
    above = {i: part[0] for i, part in enumerate(parts)}
    columns = [ratios(above, {i: part[of] for i, part in enumerate(parts)}, seed) for of in (1, 2)]
    depth = max(tap.order for tap in taps)
    return [_row(tap, shift, errors, [column[i] for column in columns], depth) for i, (tap, shift) in enumerate(keys)]


def _row(tap: Tap, shift: Shift, errors: ShiftErrors, found: Sequence[tuple[float, float, float]], depth: int) -> Row:
    layout = tap.layout
    step = errors.step(tap.path, shift) if layout.spatial else (None, None)
    row: Row = {
        "unit": tap.name, "path": tap.path, "what": tap.what, "depth": tap.order / max(depth, 1),
        "layout": layout.kind, "reduction_px": max(layout.reduction) if layout.spatial else None,
        "dx_px": shift[0], "dy_px": shift[1], "dx_positions": step[0], "dy_positions": step[1],
        "images": errors.images,
    }  # fmt: skip
    for name, (value, low, high) in zip(COLUMNS, found, strict=True):
        numbers = [None if math.isnan(number) else number for number in (value, low, high)]
        row |= {name: numbers[0], f"{name}_low_95": numbers[1], f"{name}_high_95": numbers[2]}
    row["note"] = ""
    if errors.crop(tap.path, shift) is None:
        row["note"] = "the crop leaves no position"
    elif row["relative_error"] is None:
        row["note"] = "all images have the same features here" if errors.images > 1 else "needs two images"
    return row


def _summary(rows: Sequence[Row], notes: Sequence[str], complete: bool) -> str:
    known = [row for row in rows if row["relative_error"] is not None]
    words = []
    for shift in dict.fromkeys((row["dx_px"], row["dy_px"]) for row in rows):
        mine = [row for row in known if (row["dx_px"], row["dy_px"]) == shift]
        if not mine:
            continue
        worst, last = max(mine, key=lambda row: float(row["relative_error"])), mine[-1]
        words.append(
            f"({shift[0]:g}, {shift[1]:g}) px: most at {worst['unit']} ({worst['relative_error']:.2g} of the distance "
            f"to another image), {last['relative_error']:.2g} at {last['unit']}"
        )
    ended = "" if complete else " Stopped before all images were seen."
    return (
        ("; ".join(words) or "no error could be measured")
        + "."
        + ended
        + "".join(f" Left out: {note}." for note in notes)
    )


__all__ = ["Equivariance", "equivariance"]
