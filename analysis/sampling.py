"""Sampling map: how often each position is read through strided convs and pools, layer by layer and down to the image.

Sunkara and Luo (paper 001, section 3.2) argue by it against strides: at stride 3 each pixel is sampled once by a 3x3
filter, at stride 2 even and odd rows and columns are sampled differently, at kernel 1 most are not sampled at all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from analysis.footprint_graph import Paths, shape_of
from analysis.footprint_layers import Weights
from analysis.footprints import Cell, ones
from analysis.model_names import model_name
from analysis.opening import versions_of
from analysis.perturb import untouched
from analysis.result import ReadBack, Row
from surgeon.errors import AnalysisError, SurgeonError
from surgeon.host import InputSize, input_sizes, unwrap
from surgeon.rewriting import record, undo
from surgeon.tracing import record_forward

WHOLE = "whole model"
SHOWN = 64  # pixels of a map that is kept for the figure
WRITTEN = 4  # positions of a pattern that is written out


class SamplingMap(ReadBack):
    """Reads per position, of each strided layer and of the whole model, before and after surgery.

    Attributes:
        states: "before" and "after", or "model" alone.
    """

    kind = "sampling_map"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Sampling map of {settings['model']}", rows, summary, settings)
        self.states = list(dict.fromkeys(row["state"] for row in rows))

    def even(self, state: str | None = None) -> bool:
        """Whether the image is read evenly by the whole model; of the last state by default.

        Raises:
            AnalysisError: For a state there is not, or where no way to the image is known.
        """
        wanted = self.states[-1] if state is None else state
        found = [row for row in self.rows if row["state"] == wanted and row["site"] == WHOLE]
        if not found or found[0]["image_uneven_share"] is None:
            raise AnalysisError(f"even: nothing is known of '{wanted}'; the states are {', '.join(self.states)}")
        return bool(found[0]["image_uneven_share"] == 0)

    def figure(self) -> Figure:
        """Draw the reads of each layer's input, and of the image by the whole model, before and after."""
        from analysis.sampling_figure import draw

        return draw(self)


def sampling_map(
    model: Any,
    input_size: InputSize = None,
    *,
    before: Any = None,
    weights: Weights = "taps",
    command: str = "",
) -> SamplingMap:
    """Count how often each position is read by strided convs and pools, in each layer and down to the image.

    A read is a tap of a kernel (a position of a pool's window) at one output; channels do not count. Counts are exact
    whole numbers, got from kernel, stride, padding and dilation, away from borders: of one cell of an endless map, as
    large as the stride. Down to the image they are composed along all known ways of the recorded forward pass (convs,
    pools, padding, upsampling, layers of surgery; sums and whatever works position by position), each tap for as much
    as any other. Attention, global pooling and gates made from it mix all positions and are left out; the column
    ``note`` names them. The model is only read.

    Args:
        model: Any that ``surgeon.locate`` takes.
        input_size: Likewise.
        before: The model before surgery, for comparison. By default the model as it was before ``surgeon.apply``, where
            the originals are kept; False for none.
        weights: "taps" counts all taps; "nonzero" those with a weight that is not zero: right after an exact rewrite
            the map is the old one, and fills as the new taps are learnt.
        command: What made the result, for its report.

    Returns:
        Rows per state and strided layer, the whole model last: ``pattern`` of reads of one cell of its input (up to
        4 x 4), their least, most and mean, ``unread_share`` of positions, ``uneven_share`` of those read less often
        than the most read one, ``unread_in_map_share`` with borders, at this size. Then the same of the image, read by
        the layer's outputs through all layers before: period in pixels, least and most over the mean, shares, and the
        standard deviation over the mean.

    Raises:
        AnalysisError: For settings that are none.
        SurgeonError: When the model cannot be recorded.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1, stride=2))
        >>> found = sampling_map(net, 16)
        >>> [(row["site"], row["pattern"], row["unread_share"]) for row in found.rows[:2]]
        [('0', '1 2 / 2 4', 0.0), ('2', '1 0 / 0 0', 0.75)]
        >>> import surgeon
        >>> result = sampling_map(surgeon.apply(net, "spd", 16), 16)
        >>> result.even("before"), result.even("after")
        (False, True)

    References:
        Sunkara and Luo, No More Strided Convolutions or Pooling, ECML PKDD 2022, arXiv:2208.03641, section 3.2.
        Checkers of transposed convs, of which this is the mirror image: Odena, Dumoulin and Olah, Distill 2016.
    """
    if weights not in get_args(Weights):
        raise AnalysisError(f"weights is {weights!r}; it is one of {', '.join(get_args(Weights))}")
    if not (before is None or before is False or isinstance(before, nn.Module) or hasattr(before, "model")):
        raise AnalysisError(f"before is {before!r}; give a model, False for none, or leave it out")
    module, notes = unwrap(model), list[str]()
    earlier = None if before is False else _earlier(module, notes) if before is None else unwrap(before)
    states = {"model": module} if earlier is None else {"before": earlier, "after": module}
    size = input_sizes(module, input_size)
    rows: list[Row] = []
    maps: list[dict[str, Any]] = []
    for state, net in states.items():
        found, drawn, used = _of_state(state, net, size, weights)
        rows, maps = rows + found, maps + drawn
    compared = "none" if earlier is None else "as before surgery" if before is None else "given"
    settings = {
        "model": model_name(module), "input_size": list(used), "images": 0, "seed": None, "complete": True,
        "weights": weights, "before": compared, "notes": notes, "command": command, "versions": versions_of(),
        "drawn": {"maps": maps},
    }  # fmt: skip
    return SamplingMap(rows, _summary(rows, notes), settings)


def _earlier(module: nn.Module, notes: list[str]) -> nn.Module | None:
    """A copy of the model as it was before surgery; None where there was none."""
    if not record(module).count("rewritten"):
        return None
    try:
        return undo(copy.deepcopy(module))
    except SurgeonError as error:
        notes.append(f"nothing to compare with: {error}")
        return None


def _of_state(
    state: str, module: nn.Module, sizes: Sequence[tuple[int, int, int]], weights: Weights
) -> tuple[list[Row], list[dict[str, Any]], tuple[int, int, int]]:
    with untouched(module):
        recorded = record_forward(module, sizes)
        paths = Paths(recorded, module, weights)
    sites = paths.sites()
    rows: list[Row] = []
    maps: list[dict[str, Any]] = []
    for path, (node, reading) in sites.items():
        source = paths.sources[node][0][0]
        cell = reading.carry(ones((1, 1)))
        of_image, left_out = paths.reads_of_image([node])
        outputs = paths.places[node].size
        whole = reading.unread(paths.places[source].size, outputs)
        kind = type(module.get_submodule(path)).__name__ if ":" not in path else path.split(":")[1]
        note = "the features choose which; all are counted" if reading.chosen else ""
        row = {"state": state, "site": path, "type": kind, "stride_px": max(reading.stride), **_of_cell(cell)}
        row |= {"unread_in_map_share": whole, **_of_image(of_image), "note": _note(note, left_out)}
        rows.append(row)
        maps.append({"state": state, "site": path, "cell": _kept(cell), "image": None})
    last = paths.last()
    of_image, left_out = paths.reads_of_image(last)
    names = [f"read by {shape_of(node)[1:]}" for node in last] if len(last) > 1 else []
    empty = dict.fromkeys(("reads_min", "reads_max", "reads_mean", "unread_share", "uneven_share"))
    row = {"state": state, "site": WHOLE, "type": type(module).__name__, "stride_px": None, "pattern": "", **empty}
    note = f"by {len(names)} maps together" if names else ""
    rows.append(row | {"unread_in_map_share": None, **_of_image(of_image), "note": _note(note, left_out)})
    maps.append({"state": state, "site": WHOLE, "cell": None, "image": _kept(of_image, relative=True)})
    return rows, maps, recorded.input_size


def _of_cell(cell: Cell) -> dict[str, Any]:
    """Figures of the reads of one cell."""
    short = max(cell.shape) <= WRITTEN
    low, high = min(cell.flat), max(cell.flat)
    return {
        "pattern": " / ".join(" ".join(map(str, line)) for line in cell) if short else "",
        "reads_min": low, "reads_max": high, "reads_mean": float(sum(cell.flat)) / cell.size,
        "unread_share": sum(value == 0 for value in cell.flat) / cell.size,
        "uneven_share": sum(value < high for value in cell.flat) / cell.size,
    }  # fmt: skip


def _of_image(cell: Cell | None) -> dict[str, Any]:
    """Figures of the reads of the image, over their mean, for they are large."""
    keys = ("period_px", "min", "max", "unread_share", "uneven_share", "spread")
    if cell is None or not sum(cell.flat):
        return {f"image_{key}": None for key in keys}
    shares, high = _relative(cell), max(cell.flat)
    numbers = (
        *(max(cell.shape), float(shares.min()), float(shares.max())),
        *(sum(value == 0 for value in cell.flat) / cell.size, sum(value < high for value in cell.flat) / cell.size),
        float(shares.std()) if high != min(cell.flat) else 0.0,
    )
    return {f"image_{key}": value for key, value in zip(keys, numbers, strict=True)}


def _relative(cell: Cell) -> Any:
    """Over the mean; whole numbers may be too large for floating-point ones."""
    total = sum(cell.flat)
    return np.array([[value * cell.size / total for value in line] for line in cell])


def _note(first: str, left_out: Sequence[str]) -> str:
    more = f" and {len(left_out) - 2} more" if len(left_out) > 2 else ""
    words = f"left out: ways through {', '.join(left_out[:2])}{more}" if left_out else ""
    return "; ".join(part for part in (first, words) if part)


def _kept(cell: Cell | None, relative: bool = False) -> list[Any] | None:
    """A map as the figure needs it; its middle where it is large."""
    if cell is None or not sum(cell.flat):
        return None
    values = cell[:SHOWN, :SHOWN]
    return [[round(float(v), 4) for v in line] for line in (_relative(cell)[:SHOWN, :SHOWN] if relative else values)]


def _summary(rows: Sequence[Row], notes: Sequence[str]) -> str:
    words = []
    for state in dict.fromkeys(row["state"] for row in rows):
        mine = [row for row in rows if row["state"] == state]
        sites, whole = mine[:-1], mine[-1]
        uneven = sum(row["uneven_share"] > 0 for row in sites)
        unread = sum(row["unread_share"] > 0 for row in sites)
        said = f"{uneven} of {len(sites)} strided layers read their input unevenly, {unread} leave positions unread"
        if whole["image_uneven_share"] is None:
            said += "; no way down to the image is known"
        elif whole["image_uneven_share"] == 0:
            said += "; every pixel of the image is read equally often"
        else:
            said += (
                f"; pixels of the image are read {whole['image_min']:.2g} to {whole['image_max']:.2g} times the mean"
            )
        words.append(said if state == "model" else f"{state}: {said}")
    return ". ".join(words) + "." + "".join(f" Note: {note}." for note in notes)


__all__ = ["SamplingMap", "sampling_map"]
