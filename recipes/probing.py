"""The analyses of a recipe: run on every variant once it is trained, written beside its weights, not run twice.

Apart from `running` because analyses come from a package of their own, and change no weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from recipes import figure
from recipes.batches import Batch
from recipes.data import Data
from recipes.folders import write_json
from recipes.probes import DONE, Probe, probes
from recipes.schema import RecipeFile
from recipes.steps import Steps

TRIED_ON = 2  # images


@dataclass
class Few:
    """The first images of a validation set, as batches that can be read again."""

    data: Data

    def __iter__(self) -> Iterator[Batch]:
        for images, targets in islice(self.data.val, 1):
            yield images[:TRIED_ON], targets[:TRIED_ON]


def rehearse(model: nn.Module, recipe: RecipeFile, data: Data | None) -> None:
    """Run the analyses of a variant on two images, which raises what its settings would raise after training.

    Args:
        model: Of the variant, operated; it is only read.
        recipe: The variant.
        data: To take the images from.

    Raises:
        SurgeonError: When an analysis does not take these settings or this model.
    """
    seed = recipe.train.seed if recipe.train else 0
    for probe in probes(recipe.analysis):
        given = {"seed": seed, "progress": False, "calibration": data and Few(data)}
        less = {"draws": 1} if "draws" in probe.settings else {}
        _call(probe, model, data and Few(data), {**given, **probe.settings, **less})


def probe(this: Steps, name: str, model: nn.Module, recipe: RecipeFile, data: Data | None, place: Path) -> list[str]:
    """Run the analyses of a trained variant and write them into its folder; those that are there stay.

    Args:
        this: The run.
        name: Of the variant.
        model: Trained; it is only read.
        recipe: The variant.
        data: Its validation images are measured on.
        place: Folder of the variant; its ``trajectory/`` is where units are put back to.

    Returns:
        One line of results per analysis.

    Raises:
        SurgeonError: When an analysis fails.
    """
    done = _read(place / DONE)
    for one in probes(recipe.analysis):
        if this.who.agree(_is_done(place, one, done)):
            continue
        result = _call(one, model.to(this.who.device), data and data.val, _given(this, one, name, recipe, data, place))
        if this.who.main:
            _write(result, place, one)
            done[one.stem] = {"settings": dict(one.settings), "summary": result.summary}
            write_json(place / DONE, done)
        this.say(f"{name}: {result.title}: {result.summary}")
    this.who.wait()
    return [f"{name}, {one.stem}: {done[one.stem]['summary']}" for one in probes(recipe.analysis) if one.stem in done]


def _given(this: Steps, one: Probe, name: str, recipe: RecipeFile, data: Data | None, place: Path) -> dict[str, Any]:
    """What a run gives an analysis where the recipe does not say it: trajectory, seed, whether to show a bar."""
    shown = this.who.main and this.console.is_terminal and not this.console.quiet
    given: dict[str, Any] = {"seed": recipe.train.seed if recipe.train else 0, "progress": shown}
    if one.settings.get("batchnorm") == "recalibrate" and data is not None:
        given["calibration"] = data.train
    if "checkpoints" in one.parameters and not {"initial", "checkpoints"} & set(one.settings):
        trajectory = place / "trajectory"
        if trajectory.is_dir():
            given.update(initial=trajectory, checkpoints=trajectory)
        else:
            this.say(f"{name}: {one.stem}: no checkpoints kept (train.keep_epochs): units are re-randomised only")
    return {**given, **one.settings}


def _call(one: Probe, model: nn.Module, data: Any, given: dict[str, Any]) -> Any:
    takes = one.parameters
    arguments = {key: value for key, value in given.items() if key in takes and value is not None}
    return one.function(model, data, **arguments) if "data" in takes else one.function(model, **arguments)


def _write(result: Any, place: Path, one: Probe) -> None:
    """Write figure, page and tables; the JSON last, as what makes the analysis count as done."""
    figure.save(result.figure(), place / f"{one.stem}.png")
    result.report(place / f"{one.stem}.html")
    result.to_csv(place / f"{one.stem}.csv")
    result.to_json(place / f"{one.stem}.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_done(place: Path, one: Probe, done: dict[str, Any]) -> bool:
    """Whether the analysis was finished with these settings."""
    found = _read(place / f"{one.stem}.json")
    complete = bool(found) and found.get("settings", {}).get("complete", True)
    return bool(complete and done.get(one.stem, {}).get("settings") == json.loads(json.dumps(dict(one.settings))))
