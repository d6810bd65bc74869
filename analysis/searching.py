"""The largest set of units that stays robust together, found by adding one unit at a time.

Zhang, Bengio and Singer (JMLR 2022, arXiv:1902.01996), section 5.1, leave this open: "one can enumerate all possible
grouping schemes to find the best with a trade-off of the robustness and number of layers included".
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from matplotlib.figure import Figure

from analysis.jointly import settings_from
from analysis.judging import Judged
from analysis.result import Result, Row
from analysis.studying import Study, settings_of
from analysis.sweeping import mark
from analysis.unit_names import Unit
from surgeon.errors import AnalysisError
from surgeon.randomness import generators_kept

Chosen = tuple[str, ...]  # names of units in the order in which they were added


class JointSearch(Result):
    """The curve of parameters treated against error, and the largest robust set on it.

    Attributes:
        found: Names of the units of that set, in order of call; empty where no unit is robust.
        share: Its share of all parameters.
    """

    kind = "search_joint"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any], found: Sequence[str]) -> None:
        super().__init__(f"Largest jointly robust set of {settings['model']}", rows, summary, settings)
        self.found = list(found)
        self.share = next((float(row["share_of_params"]) for row in rows if row["chosen"]), 0.0)
        self.treatment, self.primary = str(settings["treatment"]), str(settings["primary"])
        self.tolerance, self.complete = float(settings["tolerance"]), bool(settings["complete"])

    def figure(self) -> Figure:
        """Error against the share of parameters treated."""
        from analysis.curves import curve

        return curve(self)


def search_joint(
    model: Any,
    data: Iterable[Any] | Any,
    *,
    treatment: str | None = None,
    beam: int = 1,
    candidates: str | Sequence[str] = "*",
    most: int | None = None,
    prune: bool = True,
    **settings: Any,
) -> JointSearch:
    """Find the largest set of units that can be treated together within the tolerance.

    From the empty set on, every unit is tried in addition to the sets kept; those that lose least are kept for the next
    step (``beam=1`` is greedy). Sets are chosen on every other batch and reported on the batches between, so that the
    figures are not those of the luckiest choice.

    Args:
        model: As of :func:`analysis.robustness`.
        data: Likewise; it is gone through once per step.
        treatment: "rerand", or the label of a kept state; by default "0" where the initial state is given.
        beam: Sets kept in each step.
        candidates: Patterns of the units to try.
        most: Largest number of units.
        prune: Leave a unit out for good once adding it was critical; False tries all to the end of the curve.
        settings: As of :func:`analysis.robustness`; without ``stop``. ``limit`` counts the images of each half.

    Returns:
        A row per step: the best set of that size, its parameters, error, paired difference with interval, verdict;
        ``chosen`` marks the largest robust one, by parameters.

    Raises:
        AnalysisError: When settings, data or states do not fit the model, or no unit is a candidate.

    Example:
        >>> import torch, surgeon
        >>> model = surgeon.create_model("fcn", depth=2, width=16, in_chans=1, img_size=8)
        >>> data = [(torch.rand(50, 1, 8, 8), torch.arange(50) % 10) for _ in range(2)]
        >>> result = search_joint(model, data, tolerance=0.5)
        >>> [row["units_treated"] for row in result.rows]
        [0, 1, 2, 3]
    """
    if settings.get("stop") not in (None, False):
        raise AnalysisError("search_joint compares sets on the same images; leave stop out")
    study = Study(model, data, settings_from(settings))
    if isinstance(study.data, Iterator):
        raise AnalysisError("search_joint goes through the data once per step, and data is an iterator; give a list")
    names = study.treatments.names
    treatment = treatment or ("0" if "0" in names else names[0])
    if treatment not in names:
        raise AnalysisError(f"treatment is '{treatment}'; those at hand are {', '.join(names)}")
    if not isinstance(beam, int) or beam < 1:
        raise AnalysisError(f"beam is {beam!r}; keep at least 1 set in each step")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise AnalysisError(f"most is {most!r}; give the largest number of units to try together, at least 1")
    study.treatments.names = [treatment]
    return _Search(study, treatment, beam, prune, most).run(_candidates(study, treatment, candidates))


def _candidates(study: Study, treatment: str, patterns: str | Sequence[str]) -> list[Unit]:
    several = [patterns] if isinstance(patterns, str) else list(patterns)
    found = [unit for unit in study.units if any(fnmatch.fnmatchcase(unit.name, one) for one in several)]
    found = [unit for unit in found if study.treatments.why_not(treatment, unit.parameters) is None]
    if not found:
        known = ", ".join(unit.name for unit in study.units)
        raise AnalysisError(f"candidates {several} take no unit of this model that can be treated ({known})")
    return found


@dataclass
class _Search:
    study: Study
    treatment: str
    beam: int
    prune: bool
    most: int | None

    def run(self, candidates: Sequence[Unit]) -> JointSearch:
        units = {unit.name: unit for unit in candidates}
        data = self.study.data
        one = self._insist_in_order(data) < 2
        choosing, reporting = (data, data) if one else (_Every(data, 0), _Every(data, 1))
        if one:
            self.study.plan_notes.append("with one batch, sets are chosen and reported on the same images")
        kept: list[Chosen] = [()]
        path: list[Chosen] = []
        left = set(units)
        while left and self.study.complete and len(kept[0]) < (self.most or len(units)):
            try:
                kept, left = self._step(kept, left, units, choosing)
            except KeyboardInterrupt:  # before the first batch of this step
                self.study.complete = False
                if not path:
                    raise
                break
            path += kept[:1]
            if not kept:
                break
        return self._report(path, units, reporting)

    @staticmethod
    def _insist_in_order(data: Iterable[Any]) -> int:
        """The number of batches, up to 2; refuses data that come in another order in each pass."""
        marks = []
        for _ in range(2):
            with generators_kept():  # as each pass of the search has it
                marks.append([mark(raw) for raw in islice(iter(data), 2)])
        if marks[0] != marks[1]:
            raise AnalysisError(
                "data come in another order in each pass, so that sets are neither compared on the same images nor "
                "reported on others than they were chosen on; give shuffle=False, and no random transforms"
            )
        return len(marks[0])

    def _step(
        self, kept: Sequence[Chosen], left: set[str], units: Mapping[str, Unit], data: Iterable[Any]
    ) -> tuple[list[Chosen], set[str]]:
        """Try every unit in addition to every set kept."""
        tried: dict[frozenset[str], Chosen] = {}
        for chosen in kept:
            for name in units:
                if name in left and name not in chosen:
                    tried.setdefault(frozenset((*chosen, name)), (*chosen, name))
        if not tried:
            return [], set()
        parts = {_name(chosen): [units[name] for name in units if name in chosen] for chosen in tried.values()}
        measures = self.study.measure(parts, f"search_joint {len(kept[0]) + 1}", data=data)
        judged = {chosen: measures.of(_name(chosen), self.treatment) for chosen in tried.values()}
        order = sorted(judged, key=lambda chosen: (_loss(judged[chosen]), -_params(chosen, units)))
        fine = [chosen for chosen in order if judged[chosen].decided != "critical"] if self.prune else order
        return fine[: self.beam], {name for chosen in fine for name in chosen if name in left}

    def _report(self, path: Sequence[Chosen], units: Mapping[str, Unit], data: Iterable[Any]) -> JointSearch:
        """Measure the sets of the path on the other half of the data."""
        parts = {_name(chosen): [units[name] for name in units if name in chosen] for chosen in path}
        complete = self.study.complete  # else the path will be another one when the search goes on
        measures = self.study.measure(parts, "search_joint report", data=data, keep=complete)
        total = sum(unit.params for unit in self.study.every)
        rows = [
            _row(i, c, units, total, self.treatment, measures.of(_name(c), self.treatment))
            for i, c in enumerate(path, 1)
        ]
        rows.insert(0, _row(0, (), units, total, self.treatment, measures.of("", "final")))
        robust = [row for row in rows if row["verdict"] == "robust"]
        best = max(robust, key=lambda row: row["params"], default=None)
        for row in rows:
            row["chosen"] = row is best
        settings = {**settings_of(self.study, measures), "treatment": self.treatment, "beam": self.beam}
        found = best["units"].split(", ") if best is not None else []
        words = f"{measures.headline()}; " + (
            f"{len(found)} of {len(self.study.units)} units with {best['share_of_params']:.0%} of the parameters stay "
            f"robust together: {best['units']}"
            if best is not None
            else "no unit is robust"
        )
        notes = "".join(f" Note: {note}." for note in self.study.notes())
        return JointSearch(rows, f"{words}.{notes}", settings, found)


def _row(step: int, chosen: Chosen, units: Mapping[str, Unit], total: int, treatment: str, judged: Judged) -> Row:
    params = _params(chosen, units)
    return {
        "step": step,
        "added": chosen[-1] if chosen else "",
        "units": ", ".join(name for name in units if name in chosen),
        "units_treated": len(chosen),
        "params": params,
        "share_of_params": params / max(total, 1),
        "treatment": treatment if chosen else "final",
        **judged.row(verdict=bool(chosen)),
        "chosen": False,
    }


class _Every:
    """Every other batch of some data."""

    def __init__(self, data: Iterable[Any], start: int) -> None:
        self.data, self.start = data, start

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.data), self.start, None, 2)


def _name(chosen: Chosen) -> str:
    return "+".join(sorted(chosen))


def _params(chosen: Chosen, units: Mapping[str, Unit]) -> int:
    return sum(units[name].params for name in chosen)


def _loss(judged: Judged) -> float:
    return judged.difference if judged.difference is not None else float("inf")
