"""What a recipe may ask of ``analysis:``, checked against the signatures of the functions it names.

Apart from `probing`, which runs them, so that every mistake is found when the recipe is read.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipes.schema import PROBES
from recipes.wording import nearest

SUFFIXES = ("json", "csv", "png", "html")
DONE = "analyses.json"
REQUIRED = inspect.Parameter.empty
FILLED_IN = {  # arguments a run gives itself
    "model": "it is the variant's",
    "data": "they are the recipe's validation images",
    "calibration": "with batchnorm: recalibrate it is the recipe's training images",
    "ledger": "a run continues by itself what was stopped",
    "progress": "it is shown in a terminal",
    "command": "it is the run's",
    "detector": "it is of detectors",
    "other": "a recipe measures each variant by itself; of two: surgeon analyze resolution A B",
    "metrics": "functions do not stand in a file; call analysis.{name}(..., metrics=...)",
}


@dataclass(frozen=True)
class Probe:
    """One entry of ``analysis:``.

    Attributes:
        name: Of the function in the package analysis.
        settings: Its keyword arguments, as the recipe has them.
        stem: Of the files it is written to; a second one of the same name gets a number.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    stem: str = ""

    @property
    def function(self) -> Callable[..., Any]:
        """The function of the package analysis."""
        import analysis

        return getattr(analysis, self.name)  # type: ignore[no-any-return]

    @property
    def parameters(self) -> dict[str, Any]:
        """Defaults of what the function takes, by name; `REQUIRED` where there is none.

        An analysis of several units that hands further settings on takes those of `robustness`.
        """
        import analysis

        takes = inspect.signature(self.function).parameters
        own = {name: one.default for name, one in takes.items() if one.kind is not one.VAR_KEYWORD}
        if len(own) == len(takes):
            return own
        base = inspect.signature(analysis.robustness).parameters
        handed_on = {name: one.default for name, one in base.items() if one.kind is one.KEYWORD_ONLY}
        return {**handed_on, **own}

    @property
    def files(self) -> list[str]:
        """Names of the files it is written to, and of the folder it works in."""
        return [*(f"{self.stem}.{suffix}" for suffix in SUFFIXES), self.ledger]

    @property
    def ledger(self) -> str:
        """Name of the folder that keeps what it has found while it is under way."""
        return f"{self.stem}.ledger"

    @property
    def plain(self) -> Any:
        """Its settings as a JSON file holds them."""
        return json.loads(json.dumps(dict(self.settings)))


def probes(analysis: Sequence[Any]) -> list[Probe]:
    """Read a valid ``analysis:`` section.

    Example:
        >>> [probe.stem for probe in probes(["shift_sparsity", {"robustness": {"draws": 3}}, {"robustness": {}}])]
        ['shift_sparsity', 'robustness', 'robustness_2']
    """
    found: list[Probe] = []
    for entry in analysis:
        name, settings = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        earlier = sum(probe.name == name for probe in found)
        found.append(Probe(name, settings or {}, f"{name}_{earlier + 1}" if earlier else name))
    return found


def written(analysis: Sequence[Any]) -> list[str]:
    """Names of the files that the analyses of a recipe are written to; none for a recipe without."""
    names = [name for probe in probes(analysis) for name in probe.files]
    return [*names, DONE] if names else []


def problems(document: Mapping[str, Any], of_detector: bool) -> list[tuple[str, str]]:
    """Return what is wrong with the ``analysis:`` of a recipe, as key paths and messages.

    Args:
        document: The recipe.
        of_detector: Whether its model is one.
    """
    entries = document.get("analysis")
    return [
        problem
        for position, entry in enumerate(entries if isinstance(entries, list) else [])
        for problem in _of_entry(f"analysis[{position}]", entry, document, of_detector)
    ]


def _of_entry(path: str, entry: Any, document: Mapping[str, Any], of_detector: bool) -> Iterator[tuple[str, str]]:
    names = [entry] if isinstance(entry, str) else list(entry) if isinstance(entry, Mapping) else []
    if len(names) != 1:
        yield path, f"must be one name, or one name with its settings: robustness: {{draws: 3}} (found {entry!r:.60})"
        return
    name, settings = names[0], (entry[names[0]] or {}) if isinstance(entry, Mapping) else {}
    if name not in PROBES:
        yield path, f"unknown analysis '{name}'{nearest(str(name), PROBES)} (allowed: {', '.join(PROBES)})"
    elif of_detector:
        yield path, f"{name} in a recipe is of classifiers; of a detector call analysis.{name}(yolo, data)"
    elif not isinstance(settings, Mapping):
        yield f"{path}.{name}", f"must be a mapping of settings to values (found {settings!r:.60})"
    else:
        yield from _of_settings(f"{path}.{name}", Probe(str(name), settings), document)


def _of_settings(path: str, probe: Probe, document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    takes = probe.parameters
    allowed = sorted(set(takes) - set(FILLED_IN))
    for key in probe.settings:
        if key in takes and key in FILLED_IN:
            yield f"{path}.{key}", f"is not for a recipe: {FILLED_IN[key].format(name=probe.name)}"
        elif key not in takes:
            listed = ", ".join(allowed) or "none"
            yield f"{path}.{key}", f"unknown key '{key}'{nearest(str(key), allowed)} (allowed: {listed})"
    for key in allowed:
        if takes[key] is REQUIRED and key not in probe.settings:
            yield f"{path}.{key}", "is required"
    if "data" in takes and document.get("data") is None:
        yield path, "needs images; add a data section, e.g. data: {dataset: digits}"


__all__ = ["DONE", "Probe", "probes", "problems", "written"]
