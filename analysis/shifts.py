"""Shift sparsity: how many channels of each shift layer stay where they are, and where the others go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from analysis.result import Result, Row
from surgeon.errors import AnalysisError
from surgeon.ops.offsets import remove_shifts as remove_shifts
from surgeon.ops.offsets import shift_layers

Pattern = Counter[tuple[int, int]]  # (vertical, horizontal) offset in pixels: channels


class ShiftSparsity(Result):
    """How many channels of each shift layer do not move; prints as Table 2 of the paper.

    ``unshifted`` and ``channels`` are the totals, ``sparsity`` their ratio, ``patterns`` maps the path of a layer to
    the number of channels of each offset (vertical, horizontal), in pixels.
    """

    def __init__(self, patterns: dict[str, Pattern], modes: dict[str, str]) -> None:
        self.patterns = patterns
        self.unshifted = sum(counts[0, 0] for counts in patterns.values())
        self.channels = sum(counts.total() for counts in patterns.values())
        self.sparsity = self.unshifted / self.channels
        rows = [_row(path, modes[path], counts) for path, counts in patterns.items()]
        total = f"{self.unshifted} of {self.channels} channels in {len(rows)} layers do not move: {self.sparsity:.1%}"
        super().__init__("Shift sparsity", rows, total)

    def least_important(self) -> list[str]:
        """Paths of the layers, the one with the largest share of unshifted channels first (section 5.3)."""
        order = sorted(self.rows, key=lambda row: -row["sparsity"])
        return [row["layer"] for row in order]

    def figure(self, layers: str | Sequence[str] | None = None) -> Figure:
        """Draw where the channels go, Fig. 5: the area of a bubble is the number of channels of that offset.

        Args:
            layers: Path or paths; all layers by default.

        Raises:
            AnalysisError: For a path that is no shift layer, or none at all.
        """
        paths = [layers] if isinstance(layers, str) else list(self.patterns if layers is None else layers)
        if not paths:
            raise AnalysisError("figure: no layer was named; name one or several, or leave `layers` out to draw all")
        if unknown := [path for path in paths if path not in self.patterns]:
            known = ", ".join(self.patterns)
            raise AnalysisError(f"'{unknown[0]}' is no shift layer of this model; the layers are {known}")
        columns = min(len(paths), 4)
        lines = math.ceil(len(paths) / columns)
        figure = Figure(figsize=(1.2 + 2.8 * columns, 0.6 + 2.9 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        reach = max(1, *(abs(step) for path in paths for offset in self.patterns[path] for step in offset))
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axis, path in zip(axes, paths, strict=False):
            self._bubbles(axis, path, reach)
        for axis in axes[len(paths) :]:
            axis.set_visible(False)
        figure.supxlabel("horizontal offset (pixels)")
        figure.supylabel("vertical offset (pixels)")
        return figure

    def _bubbles(self, axis: Any, path: str, reach: int) -> None:
        counts, total = self.patterns[path], self.patterns[path].total()
        largest = (150 / (2 * reach + 2)) ** 2  # square points: one cell of the grid
        for (vertical, horizontal), count in counts.items():
            rest = vertical == horizontal == 0
            colour = "#999999" if rest else "#0072B2"
            axis.scatter(horizontal, vertical, s=largest * count / total, color=colour, linewidths=0, zorder=2)
        axis.set(xlim=(-reach - 0.7, reach + 0.7), ylim=(reach + 0.7, -reach - 0.7), aspect="equal")  # down is down
        axis.set_title(f"{path}\n{counts[0, 0]} / {total} stay", fontsize="small")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(integer=True))
        axis.grid(linewidth=0.4, zorder=0)


def shift_sparsity(model: nn.Module) -> ShiftSparsity:
    """Count, layer by layer, the channels that shift layers leave where they are.

    A channel stays where both of its offsets round to zero; in mode "active", whose channels move by fractions, this
    tells where they would be after rounding. The model is only read.

    Args:
        model: With shift layers: rewritten by ``shift``, or built of ``SparseShift2d``.

    Returns:
        Rows with ``layer``, ``mode``, ``unshifted``, ``channels`` (counts), ``sparsity`` (0 to 1) and
        ``largest_offset_px``.

    Raises:
        AnalysisError: When the model has no shift layer.

    Example:
        >>> from surgeon.ops.shift_layer import SparseShift2d
        >>> print(shift_sparsity(nn.Sequential(SparseShift2d(96), nn.ReLU(), SparseShift2d(96, init="zeros"))))
        Shift sparsity
        layer  mode    unshifted  channels  sparsity  largest_offset_px
        0      sparse         16        96    0.1667                  1
        2      sparse         96        96         1                  0
        112 of 192 channels in 2 layers do not move: 58.3%

    References:
        Chen et al., All You Need is a Few Shifts, CVPR 2019, arXiv:1903.05285, Tables 1 and 2, Fig. 5.
    """
    layers = dict(shift_layers(model))
    if not layers:
        raise AnalysisError(
            f"shift_sparsity: {type(model).__name__} has no shift layer; rewrite it with surgeon.apply(model, 'shift') "
            "or build it of surgeon.ops.shift_layer.SparseShift2d"
        )
    patterns = {path: Counter(map(tuple, layer.rounded.T.tolist())) for path, layer in layers.items()}
    return ShiftSparsity(patterns, {path: layer.mode for path, layer in layers.items()})


def _row(path: str, mode: str, counts: Pattern) -> Row:
    return {
        "layer": path,
        "mode": mode,
        "unshifted": counts[0, 0],
        "channels": counts.total(),
        "sparsity": counts[0, 0] / counts.total(),
        "largest_offset_px": max(abs(step) for offset in counts for step in offset),
    }
