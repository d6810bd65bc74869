"""Names for the operations that shrink an axis of a 4-D tensor and are no site: the second list of the proof.

Kept apart from the witness because it is a judgement: what has a name here has been looked at. Whatever has none comes
out as ``other: <aten name>``, and the matrix test fails until somebody has looked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

AXES_MOVED = ("transpose", "permute", "t", "swapaxes", "movedim")
RESHAPED = ("view", "unsafe_view", "reshape", "reshape_alias", "unflatten", "expand", "squeeze")
PART = ("slice", "split", "split_with_sizes", "chunk", "narrow", "select", "unbind")
GATHERED = ("index", "index_select", "gather", "take", "roll")
REDUCED = ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm", "norm")
RESAMPLED = ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "grid_sampler_2d")
CELLS = ("adaptive_avg_pool2d", "adaptive_max_pool2d")


def class_of(name: str, args: Any, out: Tensor) -> str:
    """The class of one aten operation that takes ``args[0]`` to ``out``, both 4-D."""
    if name in AXES_MOVED:
        return "axes moved"
    if name in RESHAPED:
        return "reshape"
    if name in PART:
        return "part of an axis"
    if name in GATHERED:
        return "gather"
    if name in RESAMPLED:
        return "resampling"
    if name == "pixel_unshuffle":
        return "space-to-depth"
    if name in CELLS:
        return "global pool" if tuple(out.shape[2:]) == (1, 1) else "adaptive pool to cells"
    if name in REDUCED:
        return _reduction(args[0].shape, out.shape)
    return f"other: {name}"


def _reduction(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """A global pool takes two neighbouring axes to one position; else it is a statistic over one axis."""
    gone = tuple(i for i in range(4) if after[i] == 1 and before[i] > 1)
    return "global pool" if gone in ((2, 3), (1, 2)) else "reduction of one axis" if len(gone) == 1 else "reduction"
