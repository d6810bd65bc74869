"""What detectors under shift come to: the result, its table and its words.

Apart from measuring, so that a stored result and one just measured read alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis.detection_scores import FEWEST
from analysis.result import ReadBack, Row
from surgeon.table import table

SHOWN = {  # columns of the printed table, their decimals, and what they are called there
    "ap": ("AP", 3),
    "ap_difference": ("to unshifted", 3),
    "jitter_px": ("jitter, px", 2),
    "jitter_share": ("of side, %", 1),
    "flip_share": ("flips, %", 1),
    "vanished_share": ("vanished, %", 1),
    "appeared_share": ("appeared, %", 1),
    "score_change": ("score change", 3),
}


class DetectionShift(ReadBack):
    """Average precision, jitter and class flips by shift; ``rows``: the unshifted images first.

    Attributes:
        complete: False where Ctrl-C ended it; then the figures are of the images seen.
    """

    kind = "detection_shift"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"{settings['model']} under shifts of its images", rows, summary, settings)
        self.complete = bool(settings["complete"])

    def figure(self) -> Figure:
        """Draw average precision, jitter and flips against the shift; maps where shifts are a grid."""
        from analysis.detection_shift_figure import draw

        return draw(self)

    def __str__(self) -> str:
        cells = [
            [f"{row['dx_px']:g}, {row['dy_px']:g}", *(_cell(row[key], *SHOWN[key]) for key in SHOWN)]
            for row in self.rows
        ]
        names = [name for name, _ in SHOWN.values()]
        return "\n".join([self.title, table(["shift, px", *names], cells, right=frozenset(names)), self.summary])


def summary_of(rows: Sequence[Row], repeats: Mapping[str, Any] | None) -> str:
    """The figures that matter: the worst shift, the largest jitter, and whether it comes with the strides.

    Args:
        rows: Of the result, the unshifted images first.
        repeats: The period of the jitter, where one was sought.
    """
    first, rest = rows[0], rows[1:]
    known = "none (no object)" if first["ap"] is None else f"{first['ap']:.3f}"
    words = [f"{first['images']} images, {first['objects']} objects, AP {known} unshifted"]
    if moved := [row for row in rest if row["ap_difference"] is not None]:
        worst = min(moved, key=lambda row: float(row["ap_difference"]))
        low, high = worst["ap_difference_low_95"], worst["ap_difference_high_95"]
        about = "" if low is None else f" ({low:+.3f} to {high:+.3f})"
        words.append(f"worst {_place(worst)}: AP {worst['ap']:.3f}, that is {worst['ap_difference']:+.3f}{about}")
    if shaken := [row for row in rest if row["jitter_px"] is not None]:
        most = max(shaken, key=lambda row: float(row["jitter_px"]))
        flips, lost = (max(float(row[name] or 0) for row in rest) for name in ("flip_share", "vanished_share"))
        words.append(
            f"boxes jitter by up to {most['jitter_px']:.2f} px ({most['jitter_share']:.1%} of their side, "
            f"{_place(most)}), up to {flips:.1%} change class, up to {lost:.1%} vanish"
        )
    else:
        words.append("no detection is as sure as conf asks for, or none has a partner, so that there is no jitter")
    if repeats is not None:
        words.append(_repeating(**repeats))
    if first["images"] < FEWEST:
        words.append(f"too few images for intervals (at least {FEWEST})")
    if left := max(row["objects_left_out"] for row in rows):
        words.append(f"up to {left} objects are left out, of which less than half stays in the image")
    return "; ".join(words) + "."


def _repeating(period_px: float, explained_share: float, p_value: float, sure: bool) -> str:
    how = f"which explains {explained_share:.0%} of its variance around the trend, p = {p_value:.2g}"
    if sure:
        return f"jitter repeats every {period_px:g} px, {how}"
    return f"jitter does not surely repeat with a stride (likeliest {period_px:g} px, {how})"


def _place(row: Row) -> str:
    return f"at ({row['dx_px']:g}, {row['dy_px']:g}) px"


def _cell(value: float | None, name: str, decimals: int) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.{decimals}f}" if name.endswith("%") else f"{value:.{decimals}f}"
