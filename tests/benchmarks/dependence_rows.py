"""Rows of finished runs of the shuffle recipes, gathered over seeds: what write_spatial_dependence computes with."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from analysis.stored import StoredResult, read_result
from recipes.repeating import spread

Place = str | int  # a layer, block or image shuffled alone, or how many last ones are shuffled together


@dataclass(frozen=True)
class Cell:
    """One shuffle: the variant that was trained with it, and where it stands in the test-time result."""

    variant: str
    place: Place
    shuffle: str
    patch: int | None = None


class Net:
    """A net in its two recipes.

    Args:
        runs: Folder of the runs.
        key: "vgg" or "resnet".
        singles: What is shuffled alone, by the name the recipe has for it, and its number among the units.
        shares: What is shuffled together, by the share the recipe names, and how many units that are.
    """

    def __init__(self, runs: Path, key: str, singles: dict[str, int], shares: dict[str, int]) -> None:
        self.key, self.singles, self.shares = key, singles, shares
        repeated = json.loads((runs / f"digits_spatial_{key}_sweep" / "repeated.json").read_text())
        self.seeds = [int(seed) for seed in repeated["seeds"]]
        self.trained: dict[str, list[float]] = {row["variant"]: row["values"] for row in repeated["rows"]}
        folder = runs / f"digits_spatial_{key}"
        self.seen = [read_result(folder / f"seed_{seed}" / "spatial_dependence.json") for seed in self.seeds]
        self.units: list[str] = self.seen[0].settings["units_shuffled"]

    def cells(self) -> list[Cell]:
        """Every shuffle the sweep has trained with."""
        found = []
        for variant in self.trained:
            name, _, rest = variant.partition("_")
            if name in self.singles:
                place = self.units[self.singles[name]]
                patch = None if rest == "whole" else int(rest.removeprefix("patch_"))
                found.append(Cell(variant, place, "spatial" if patch is None else "patch", patch))
            elif rest:
                found.append(Cell(variant, self.shares[rest.removeprefix("last_")], name))
        return found

    def at_test(self, place: Place, shuffle: str = "spatial", patch: int | None = None) -> list[float]:
        """Accuracy of the untouched net with the shuffle, one per seed; nothing where it was not measured."""
        return [row["accuracy"] for one in self.seen if (row := _row(one, place, shuffle, patch)) is not None]

    def start(self) -> tuple[list[float], list[float]]:
        """Accuracy without shuffles: of the net that was shuffled at test time, and of the sweep's."""
        return [one.rows[0]["accuracy"] for one in self.seen], self.trained["original"]

    def lost(self, variant: str) -> list[float]:
        """Points a net trained with a shuffle has less than the one without, one per seed."""
        return points(self.trained[variant], self.trained["original"])

    def lost_at_test(self, place: Place, shuffle: str = "spatial", patch: int | None = None) -> list[float]:
        """Points lost by shuffling at test time, one per seed."""
        return points(self.at_test(place, shuffle, patch), self.start()[0])

    def rank_correlation(self) -> list[float]:
        """Between points lost at test time and in nets trained anew, over spatial and patch shuffles; per seed."""
        every = [cell for cell in self.cells() if cell.shuffle != "channel"]
        both = [
            (self.lost_at_test(cell.place, cell.shuffle, cell.patch), self.lost(cell.variant))
            for cell in every
            if self.at_test(cell.place, cell.shuffle, cell.patch)
        ]
        return [
            float(spearmanr([test[i] for test, _ in both], [trained[i] for _, trained in both]).statistic)
            for i in range(len(self.seeds))
        ]


def _row(one: StoredResult, place: Place, shuffle: str, patch: int | None) -> dict[str, Any] | None:
    which, key = ("last", "units_shuffled") if isinstance(place, int) else ("alone", "unit")
    wanted = (which, place, shuffle, patch)
    return next((r for r in one.rows if (r["which"], r[key], r["shuffle"], r["patch_px"]) == wanted), None)


def points(less: Sequence[float], more: Sequence[float]) -> list[float]:
    """Differences in points, seed by seed."""
    return [100 * (b - a) for a, b in zip(less, more, strict=True)]


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares."""
    if not values:
        return "-"
    return f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def apart(values: Sequence[float]) -> str:
    """Points lost: mean, and its 95% interval."""
    mean, half = spread(list(values))
    return f"{mean:.1f} points ({mean - half:+.1f} to {mean + half:+.1f})"
