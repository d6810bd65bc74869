"""A study: a model, its units, treatments and data, checked once, and measured under whatever parts are asked for.

What layer-wise, joint and greedy robustness have in common. Apart from them so that each reads as its question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from analysis.judging import ErrorMeasures, Measures
from analysis.model_names import model_name
from analysis.opening import digest, fingerprint, input_size_of, open_data, versions_of
from analysis.parts import Level, Unit
from analysis.parts import units as find_units
from analysis.perturb import Places, untouched
from analysis.readings import FINAL, Ledger
from analysis.sharing import world
from analysis.study_settings import TYPES, Settings, check, confidence, size_in_bytes
from analysis.sweeping import sweep
from analysis.treatments import Treatments, starts_as_identity
from analysis.variants import WHOLE, Plan, Variant
from surgeon.errors import AnalysisError
from surgeon.host import InputSize, Size, input_sizes, unwrap
from surgeon.tracing import record_forward

FULL = "full model"


class Study:
    """A model under study.

    Args:
        model: As of :func:`analysis.robustness`.
        data: Likewise.
        settings: Likewise.

    Raises:
        AnalysisError: When they do not fit together.
    """

    def __init__(self, model: Any, data: Any, settings: Settings) -> None:
        self.model, self.settings, self.module = model, settings, unwrap(model)
        check(settings)
        self.task, self.data, self.detector = open_data(model, data, settings)
        self.input_size = input_size_of(self.module, self.task, data, settings.input_size)
        self.units = units_of(model, settings.units, self.input_size)
        # all units of the model, where the user named some
        self.every = self.units if isinstance(settings.units, str) else find_units(model, "layer", self.input_size)
        self.treatments = Treatments(
            model, settings.initial, settings.checkpoints, settings.draws, settings.batchnorm, settings.seed
        )
        self.plan_notes: list[str] = [] if self.detector is None else list(self.detector.notes)
        self.complete = True

    def measure(
        self,
        parts: Mapping[str, Sequence[Unit]],
        name: str,
        whole: bool = False,
        data: Iterable[Any] | None = None,
        keep: bool = True,
    ) -> Measures:
        """Treat each part in every way, and measure.

        Args:
            parts: Units that are treated together, by a name of theirs.
            name: Of the analysis, which its ledger is about.
            whole: Treat the model as a whole too.
            data: Other batches than all.
            keep: Have a ledger, where the settings name one.

        Raises:
            KeyboardInterrupt: When that came before the first batch was done, so that there is nothing to tell.
        """
        everything = {**parts, **({WHOLE: self.every} if whole else {})}
        cells = [
            (part, treatment, self.treatments.number_of_draws(treatment))
            for part, members in everything.items()
            for treatment in self.treatments.names
            if self.treatments.why_not(treatment, _tensors(members)) is None
        ]
        variants = [self._variant(everything[p], p, t, i) for p, t, count in cells for i in range(count)]
        plan = self._plan({part: _held(members) for part, members in parts.items()}, variants, name)
        plan.data = self.data if data is None else data
        plan.ledger = plan.ledger if keep else None
        if self.detector is not None:
            with self.detector:
                readings, complete = sweep(plan)
        else:
            readings, complete = sweep(plan)
        self.complete = self.complete and complete
        self.plan_notes += [note for note in plan.notes if note not in self.plan_notes]
        if not readings.images(FINAL):
            raise KeyboardInterrupt
        loaded = sum(world().gathered(plan.loaded))
        if self.detector is not None:
            return self.detector.measures(readings, cells, self.settings.tolerance, self.settings.seed, loaded)  # type: ignore[no-any-return]
        return ErrorMeasures(readings, cells, self.settings.tolerance, self.settings.seed, loaded)

    def note(self, name: str, treatment: str, members: Sequence[Unit]) -> str:
        """What is worth saying of a part with a treatment."""
        if treatment == FINAL:
            return ""
        if reason := self.treatments.why_not(treatment, _tensors(members)):
            return f"cannot be drawn: {reason}"
        return self._identities.get((members[0].name, treatment), "") if len(members) == 1 else ""

    def notes(self) -> list[str]:
        """What is worth saying of the whole."""
        ended = [] if self.complete else ["stopped before all images were measured; intervals are of those seen"]
        return [*ended, *self.treatments.notes, *self.plan_notes]

    @cached_property
    def _identities(self) -> dict[tuple[str, str], str]:
        """Of residual blocks and treatments: which begin as an identity."""
        blocks, treatments, found = [unit for unit in self.units if unit.residual], self.treatments, {}
        if blocks:
            with untouched(self.module):
                places = Places(self.module)
                for unit in blocks:
                    for treatment in {"rerand", "0"} & set(treatments.names):
                        values = treatments.values(treatment, 0, unit.parameters, unit.buffers)
                        found[unit.name, treatment] = starts_as_identity(places, unit, values, self._size)
        return found

    @cached_property
    def _size(self) -> Size:
        return record_forward(self.module, input_sizes(self.module, self.input_size)).input_size

    @cached_property
    def _states(self) -> dict[str, str]:
        return {label: digest(state.values()) for label, state in self.treatments.states.items()}

    def _variant(self, members: Sequence[Unit], part: str, treatment: str, draw: int) -> Variant:
        parameters = [tensor for unit in members for tensor in unit.parameters]
        buffers = [tensor for unit in members for tensor in unit.buffers]
        values = self.treatments.values
        return Variant(part, treatment, draw, lambda: values(treatment, draw, parameters, buffers))

    def _plan(self, parts: Mapping[str, Any], variants: Sequence[Variant], name: str) -> Plan:
        s = self.settings
        calibration = s.calibration if self.detector is None else self.detector.calibration(s.calibration)
        return Plan(
            model=self.module, task=self.task, data=self.data, parts=parts, variants=variants, method=s.method,
            memory=size_in_bytes(s.memory), stop=confidence(s.stop), tolerance=s.tolerance, limit=s.limit, seed=s.seed,
            ledger=None if s.ledger is None else Ledger(_ledger(s.ledger, name), self._about(parts, variants, name)),
            calibration=calibration if s.batchnorm == "recalibrate" else None,
            amp=None if s.amp is None else TYPES[s.amp], progress=s.progress,
        )  # fmt: skip

    def _about(self, parts: Mapping[str, Any], variants: Sequence[Variant], name: str) -> dict[str, Any]:
        """What tells a sweep from another."""
        s = self.settings
        return {
            "analysis": name,
            "model": fingerprint(self.module),
            "variants": [variant.key for variant in variants],
            "parts": hashlib.blake2b(repr(sorted(parts.items())).encode(), digest_size=12).hexdigest(),
            "states": self._states,
            "metrics": sorted(s.metrics or ()),
            **{"draws": s.draws, "batchnorm": s.batchnorm, "seed": s.seed, "stop": confidence(s.stop)},
            **{"tolerance": s.tolerance, "limit": s.limit, "amp": s.amp, "method": s.method},
            **({} if self.detector is None else {"detector": self.detector.about}),
        }


def units_of(model: Any, wanted: str | Sequence[Unit], input_size: InputSize = None) -> list[Unit]:
    """The units a user named: by level, or as a list of them."""
    if isinstance(wanted, str):
        return find_units(model, wanted, input_size)  # type: ignore[arg-type]
    found = list(wanted) if isinstance(wanted, Iterable) else []
    if not found or not all(isinstance(unit, Unit) for unit in found):
        raise AnalysisError(f"units: give one of {', '.join(get_args(Level))}, or a list from analysis.units(model)")
    return found


def settings_of(study: Study, measures: Measures) -> dict[str, Any]:
    """What made a result, as plain values."""
    s = study.settings
    return {
        "model": model_name(study.module),
        "params": sum(p.numel() for p in study.module.parameters()),
        **({} if study.detector is None else {"detector": study.detector.about}),
        "primary": study.task.primary,
        "images": measures.of("", FINAL).images,
        "images_loaded": measures.loaded,
        **{"method": s.method, "batchnorm": s.batchnorm, "draws": s.draws, "seed": s.seed},
        **{"stop": confidence(s.stop), "tolerance": s.tolerance, "amp": s.amp},
        **{"complete": study.complete, "notes": study.notes()},
        **{"command": s.command, "versions": versions_of()},
    }


def _ledger(path: str | Path, name: str) -> Path:
    """Analyses of several sweeps keep one ledger for each."""
    _first, _, step = name.partition(" ")
    return Path(path) if not step else Path(path).with_name(f"{Path(path).name}.{step}")


def _tensors(members: Sequence[Unit]) -> list[str]:
    return [name for unit in members for name in unit.tensors]


def _held(members: Sequence[Unit]) -> tuple[list[str], list[str]]:
    return [path for unit in members for path in unit.paths], _tensors(members)


__all__ = ["FULL", "Settings", "Study", "settings_of", "units_of"]
