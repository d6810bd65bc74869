"""The analyses of a recipe: run on every variant once it is trained, written beside its weights, not run twice.

Apart from `running` because analyses come from a package of their own, and change no weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
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
COMMAND = "surgeon run recipe.yaml"  # that of the folder


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
    epochs = recipe.train.keep_epochs if recipe.train else ()
    other = {name: value.detach() + 1 for name, value in model.state_dict().items()} if epochs else {}
    few = None if data is None else Few(data)
    for probe in probes(recipe.analysis):
        given: dict[str, Any] = {"progress": False, **_filled_in(probe, recipe, few)}
        if _wants_trajectory(probe) and epochs:
            given["checkpoints"] = {str(epoch): other for epoch in epochs}
        _call(probe, model, few, {**given, **probe.settings, **_once(probe)})


def _once(probe: Probe) -> dict[str, int]:
    """One draw of what would be drawn several times."""
    asked = {name: probe.settings.get(name, probe.parameters.get(name)) for name in ("draws", "passes")}
    return {name: 1 for name, count in asked.items() if isinstance(count, int) and count > 1}


def probe(this: Steps, name: str, model: nn.Module, recipe: RecipeFile, data: Data | None, place: Path) -> list[str]:
    """Run the analyses of a trained variant and write them into its folder; those that are there stay.

    Args:
        this: The run.
        name: Of the variant.
        model: Trained; it is only read.
        recipe: The variant.
        data: Its validation images are measured on; all of them in every process, which share the work themselves.
        place: Folder of the variant; its ``trajectory/`` is where units are put back to.

    Returns:
        One line of results per analysis.

    Raises:
        SurgeonError: When an analysis fails.
        KeyboardInterrupt: When it was stopped; what it had found by then is kept, and is where it goes on.
    """
    done, asked = _read(place / DONE), probes(recipe.analysis)
    for one in asked:
        if this.who.agree(_is_done(place, one, done)):
            continue
        if this.who.main:
            _begin(place, one, done)
        this.who.wait()
        given = _given(this, one, name, recipe, data, place)
        result = _call(one, model.to(this.who.device), None if data is None else data.val, given)
        complete = getattr(result, "settings", {}).get("complete", True)
        if this.who.main:
            _write(result, place, one)
        if not complete:
            this.say(f"{name}: {one.stem}: stopped; what it has found is in {place}. Run the same command to go on.")
            raise KeyboardInterrupt
        if this.who.main:
            _end(place, one, done, result.summary)
        this.say(f"{name}: {result.title}: {place / one.stem}.html")
    this.who.wait()
    return [f"{name}, {one.stem}: {done[one.stem]['summary']}" for one in asked if this.who.main]


def _begin(place: Path, one: Probe, done: dict[str, Any]) -> None:
    """Note what is asked, and go on from what the same analysis has found so far; another one's is removed."""
    if done.get(one.stem, {}).get("settings") != one.plain:
        shutil.rmtree(place / one.ledger, ignore_errors=True)
    (place / one.ledger).mkdir(parents=True, exist_ok=True)
    done[one.stem] = {"settings": one.plain}
    write_json(place / DONE, done)


def _end(place: Path, one: Probe, done: dict[str, Any], summary: str) -> None:
    done[one.stem]["summary"] = summary
    write_json(place / DONE, done)
    shutil.rmtree(place / one.ledger, ignore_errors=True)


def _given(this: Steps, one: Probe, name: str, recipe: RecipeFile, data: Data | None, place: Path) -> dict[str, Any]:
    """What a run gives an analysis where the recipe does not say it: trajectory, seed, whether to show a bar."""
    given: dict[str, Any] = {
        "progress": not this.console.quiet,
        "ledger": place / one.ledger / "readings.npz",
        "command": COMMAND,
    }
    given |= _filled_in(one, recipe, None if data is None else data.train)
    if _wants_trajectory(one):
        trajectory = place / "trajectory"
        if trajectory.is_dir():
            given["checkpoints"] = trajectory
        else:
            this.say(f"{name}: {one.stem}: no checkpoints kept (train.keep_epochs): units are re-randomised only")
    return {**given, **one.settings}


def _wants_trajectory(one: Probe) -> bool:
    return "checkpoints" in one.parameters and not {"initial", "checkpoints"} & set(one.settings)


def _filled_in(one: Probe, recipe: RecipeFile, training: Iterable[Batch] | None) -> dict[str, Any]:
    seed = {"seed": recipe.train.seed if recipe.train else 0}
    return seed | ({"calibration": training} if one.settings.get("batchnorm") == "recalibrate" else {})


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
    found, noted = _read(place / f"{one.stem}.json"), done.get(one.stem, {})
    complete = bool(found) and found.get("settings", {}).get("complete", True)
    return bool(complete and "summary" in noted and noted["settings"] == one.plain)
