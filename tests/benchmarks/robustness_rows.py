"""Rows of finished runs of the robustness recipes, gathered over seeds: what write_robustness computes with."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.stored import StoredResult, read_result
from recipes.repeating import spread

FULL = "full model"
TOLERANCE = 2.0  # points of error that a robust layer may cost; that of the recipes


class Net:
    """The analyses of one variant of a recipe, one per seed.

    Args:
        runs: Folder of the runs.
        recipe: Name of the recipe.
        variant: Of it; empty where it compares none.
    """

    def __init__(self, runs: Path, recipe: str, variant: str = "") -> None:
        self.folders = sorted((runs / recipe).glob("seed_*"), key=lambda path: int(path.name.removeprefix("seed_")))
        self.folders = [folder / variant for folder in self.folders]
        self.layers = self._read("robustness")
        self.joint = self._read("joint_robustness") if (self.folders[0] / "joint_robustness.json").exists() else []
        self.search = self._read("search_joint") if (self.folders[0] / "search_joint.json").exists() else []
        self.units = [name for name in dict.fromkeys(row["unit"] for row in self.layers[0].rows) if name != FULL]

    def _read(self, name: str) -> list[StoredResult]:
        return [read_result(folder / f"{name}.json") for folder in self.folders]

    def rows(self, unit: str, treatment: str) -> list[dict[str, Any]]:
        """The row of a unit and a treatment, one per seed."""
        found = [row for one in self.layers for row in one.rows if (row["unit"], row["treatment"]) == (unit, treatment)]
        return found

    def lost(self, units: Sequence[str], treatment: str) -> list[float]:
        """Error gained by a treatment, in points, mean over units; one number per seed."""
        each = [[100 * row["difference"] for row in self.rows(unit, treatment)] for unit in units]
        return [statistics.fmean(values) for values in zip(*each, strict=True)]

    def together(self, group: str, treatment: str) -> list[float]:
        """Error gained where a group is treated at once, in points; one number per seed."""
        rows = [row for one in self.joint for row in one.rows if (row["group"], row["treatment"]) == (group, treatment)]
        return [100 * row["difference"] for row in rows]

    def errors(self) -> list[float]:
        """Error of the untouched nets, in percent."""
        return [100 * row["error"] for row in self.rows(FULL, "final")]

    def share_robust(self, treatment: str) -> float:
        """Share of the pairs of unit and seed that lose no more than the tolerance."""
        found = [100 * row["difference"] <= TOLERANCE for unit in self.units for row in self.rows(unit, treatment)]
        return statistics.fmean(found)


def pm(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and standard deviation in words."""
    return f"{statistics.fmean(values):{form}} ± {statistics.stdev(values):{form}}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean over seeds, Student's t."""
    mean, half = spread(values)
    return mean - half, mean + half


def apart(values: Sequence[float]) -> str:
    """Mean with its 95% interval in words."""
    low, high = interval(values)
    return f"{statistics.fmean(values):+.1f} points ({low:+.1f} to {high:+.1f})"


def firsts(net: Net) -> list[str]:
    """First blocks of the stages, whose skip is no identity or whose channels are new."""
    return [name for name in net.units if name.endswith("resblk1")]


def laters(net: Net) -> list[str]:
    """All other residual blocks."""
    return [name for name in net.units if "resblk" in name and not name.endswith("resblk1")]
