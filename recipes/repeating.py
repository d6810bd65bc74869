"""`repeat`: a recipe run with several seeds, and what its variants differ by beyond the luck of one run.

Every variant has the same seed in each run, so differences are taken run by run ("paired") before they are averaged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.stats import t as student

from recipes import figure
from recipes.folders import write_json, write_text
from recipes.loading import load, with_seed
from recipes.running import Run, run
from recipes.schema import DetectorRecipe, RecipeFile
from surgeon.errors import RecipeError
from surgeon.table import table

Row = dict[str, Any]
METRICS = {"accuracy": "accuracy", "map50_95": "mAP50-95", "ap_s": "AP_S"}  # compared where every run has them


@dataclass(frozen=True)
class Repeated:
    """What `repeat` gives back; everything lies in its folder too.

    Attributes:
        folder: ``seed_0/``, ``seed_1/`` ... as `run` leaves them, and ``repeated`` as ``.txt``, ``.json``, ``.png``.
        rows: One dict per variant and metric (accuracy; of detectors mAP50-95 and, with faster-coco-eval, COCO's AP of
            small objects; all from 0 to 1): its values, their mean and standard deviation, the paired difference to the
            first variant with its 95% interval (Student's t).
        runs: The runs, by seed.
    """

    folder: Path
    rows: list[Row]
    runs: dict[int, Run]

    def __str__(self) -> str:
        head = ("variant", "params", "metric", "mean ± sd", "each seed", "to the first, paired (95%)")
        return table(head, [_line(row) for row in self.rows])


def _line(row: Row) -> tuple[Any, ...]:
    form = ".2%" if row["metric"] == "accuracy" else ".3f"
    each = " ".join(f"{value:{form}}" for value in row["values"])
    low, high = row["difference_low"], row["difference_high"]
    difference = "-" if row["difference"] is None else f"{row['difference']:+{form}} ({low:+{form}} to {high:+{form}})"
    spread_of = f"{row['mean']:{form}} ± {row['sd']:{form}}"
    return row["variant"], row["params"], METRICS[row["metric"]], spread_of, each, difference


def repeat(
    recipe: RecipeFile | Mapping[str, Any] | str | Path,
    seeds: Sequence[int],
    folder: str | Path | None = None,
    *,
    resume: bool = True,
    console: Console | None = None,
) -> Repeated:
    """Run a recipe once per seed and compare its variants over all of them; called again, it continues.

    Args:
        recipe: A recipe, its path, its name or its content, with data and training.
        seeds: At least two different ones.
        folder: Of the results; ``runs/NAME`` where none is given.
        resume: Continue what the folder holds; else start over there.
        console: Where progress and results are shown.

    Raises:
        RecipeError: When there are fewer than two seeds, or nothing is trained.
        SurgeonError: As from `run`.
    """
    recipe, console = load(recipe), console or Console()
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise RecipeError(f"seeds are {list(seeds)}; a spread needs at least two different ones")
    if recipe.data is None:
        raise RecipeError(f"{recipe.name} names no data, so its runs have nothing to compare")
    place = Path(folder).expanduser() if folder is not None else Path("runs") / recipe.name
    runs = {
        seed: run(with_seed(recipe, seed), place / f"seed_{seed}", resume=resume, console=console) for seed in seeds
    }
    repeated = Repeated(place, compare(list(runs.values())), runs)
    write_json(place / "repeated.json", {"recipe": recipe.name, "seeds": list(seeds), "rows": repeated.rows})
    write_text(place / "repeated.txt", f"{repeated}\n")
    lines = {o.name: [one.outcomes[i].rows for one in runs.values()] for i, o in enumerate(runs[seeds[0]].outcomes)}
    if any(rows for several in lines.values() for rows in several):
        metric = "map50_95" if isinstance(recipe, DetectorRecipe) else "val_accuracy"
        figure.save(figure.paired(recipe.name, lines, metric), place / "repeated.png")
    console.print(f"\n{repeated}\nEverything is in {place}", highlight=False, markup=False, soft_wrap=True)
    return repeated


def compare(runs: Sequence[Run]) -> list[Row]:
    """The variants over all runs, each with its difference to the first one, for every metric all of them have.

    Raises:
        RecipeError: When there is no such metric.
    """
    every = [row for one in runs for row in one.rows]
    shared = [key for key in METRICS if all(row.get(key) is not None for row in every)]
    if not shared:
        raise RecipeError("no run measured anything: the data's classes are not those of the model")
    return [row for metric in shared for row in _compared(runs, metric)]


def _compared(runs: Sequence[Run], metric: str) -> list[Row]:
    rows: list[Row] = []
    for i, row in enumerate(runs[0].rows):
        values = [one.rows[i][metric] for one in runs]
        mean, half = spread([one.rows[i][metric] - one.rows[0][metric] for one in runs])
        apart: Row = {"difference": mean, "difference_low": mean - half, "difference_high": mean + half}
        sizes = {"variant": row["variant"], "params": row["params"], "macs": row["macs"], "images": row.get("images")}
        centre = {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}
        rows.append({**sizes, "metric": metric, "values": values, **centre, **(apart if i else dict.fromkeys(apart))})
    return rows


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval by Student's t.

    Example:
        >>> mean, half = spread([1.0, 2.0, 3.0])
        >>> mean, round(half, 3)
        (2.0, 2.484)
    """
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(student.ppf(0.975, len(values) - 1)) * error
