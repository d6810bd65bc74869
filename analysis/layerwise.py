"""Layer-wise robustness: one unit at a time set back to an earlier state or drawn anew, and what that costs.

Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis.judging import Judged, Measures, pivot
from analysis.parts import Level, Unit
from analysis.result import ReadBack, Row
from analysis.studying import FULL, Settings, Study, settings_of
from analysis.tasks import Metric
from analysis.treatments import BatchNorm
from analysis.variants import WHOLE, Method
from surgeon.host import InputSize

UNMOVED = "changes no answer: nothing reads these values, or what they feed is dead"


class Robustness(ReadBack):
    """What each unit's values are worth; prints as a table, draws as the paper's heatmap.

    Attributes:
        units: Names of the units in order of call, then "full model".
        treatments: "rerand", the kept checkpoints, "final".
        primary: "error" of classifiers, "ap" of detectors.
        tolerance: Loss of the primary metric up to which a unit is robust.
        complete: False where Ctrl-C ended it; then the intervals are those of the images seen.
    """

    kind = "robustness"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Layer-wise robustness of {settings['model']}", rows, summary, settings)
        self.units = list(dict.fromkeys(row["unit"] for row in rows))
        self.treatments = list(dict.fromkeys(row["treatment"] for row in rows))
        self.primary, self.tolerance = str(settings["primary"]), float(settings["tolerance"])
        self.complete = bool(settings["complete"])

    def figure(self) -> Figure:
        """Units x treatments, the full model last (Fig. 1 of the paper)."""
        from analysis.heatmap import heatmap

        return heatmap(self)

    def __str__(self) -> str:
        return "\n".join([self.title, pivot(self.rows, "unit", self.primary), self.summary])

    def share_robust(self, treatment: str) -> float:
        """Share of the parameters that lie in units robust to a treatment, 0 to 1."""
        rows = [row for row in self.rows if row["treatment"] == treatment and row["unit"] != FULL]
        robust = sum(int(row["params"]) for row in rows if row["verdict"] == "robust")
        return robust / max(sum(int(row["params"]) for row in rows), 1)

    def robust(self, treatment: str) -> list[str]:
        """Names of the units robust to a treatment."""
        return [r["unit"] for r in self.rows if r["treatment"] == treatment and r["verdict"] == "robust"]


def robustness(
    model: Any,
    data: Iterable[Any] | Any,
    *,
    units: Level | Sequence[Unit] = "block",
    initial: Any = None,
    checkpoints: Any = (),
    draws: int = 1,
    batchnorm: BatchNorm = "keep",
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
    method: Method = "single_pass",
    stop: float | bool | None = None,
    tolerance: float = 0.01,
    metrics: Mapping[str, Metric] | None = None,
    memory: int | str = "1GiB",
    ledger: Any = None,
    progress: bool = True,
    limit: int | None = None,
    amp: str | None = None,
    command: str = "",
    detector: Mapping[str, Any] | None = None,
    input_size: InputSize = None,
) -> Robustness:
    """Measure how much each unit of a trained network matters: reset it, draw it anew, and count the errors.

    Each unit by itself gets the values it had at the kept states, or fresh ones from the distribution it started with;
    everything else stays as trained, nothing is trained again. A unit is *robust* where this costs at most
    ``tolerance``, *critical* where it costs more, as far as the 95% interval tells. The model is put back bit for bit.

    Args:
        model: A classifier, or a ``YOLO``/``RTDETR`` object.
        data: Batches of (images, class indices), in an order that has nothing to do with the classes where ``stop`` is
            used; of a detector a data yaml, or batches of (images, [{"boxes", "labels"}]).
        units: "layer", "block" or "stage", or a list from :func:`analysis.units`.
        initial: State at the start of training: state dict, file, module, or a folder that holds it.
        checkpoints: Kept states to go back to: a trajectory folder, files, state dicts, a mapping from labels to these.
        draws: Fresh draws of each unit; their mean is reported, and their spread.
        batchnorm: Running statistics of a treated unit: "keep" the trained ones, "reset" to those of the state or
            draw, "recalibrate" those from the unit on, on ``calibration`` (a pass over the data for each variant).
        calibration: Batches of training images; of a detector also a data yaml.
        seed: Of draws and resamples.
        method: "single_pass": one pass over the data for all, computing only what lies behind each unit; "naive": a
            pass for each variant. The numbers are the same.
        stop: Stop measuring a unit once its verdict is certain at this confidence (True: 0.95), whenever that is;
            verdicts stay valid although they are looked at after each batch.
        tolerance: Loss of accuracy (or AP) that still counts as robust, 0 to 1.
        metrics: More columns: functions of (logits, targets) that answer a number per image.
        memory: What kept answers of a batch may take, bytes or as "1GiB"; larger batches are cut.
        ledger: File that keeps what was measured, so that an interrupted analysis goes on.
        progress: Show it in a terminal.
        limit: Most images.
        amp: "bfloat16" or "float16" for autocast.
        command: What made the result, for its report.
        detector: Of detectors: ``imgsz``, ``batch``, ``split``, ``conf``, ``iou``, ``max_det``, ``resamples``.
        input_size: As for ``surgeon.locate``; by default the model's own, or that of the first images.

    Returns:
        Rows per unit and treatment: error, loss, agreement with the untouched model, the paired difference and its 95%
        interval, verdict, distances. After Ctrl-C those of the images seen so far.

    Raises:
        AnalysisError: When settings, data or states do not fit the model.
        SurgeonError: When the model cannot be recorded.

    Example:
        >>> import torch, surgeon
        >>> model = surgeon.create_model("fcn", depth=2, width=16, in_chans=1, img_size=8)
        >>> data = [(torch.rand(20, 1, 8, 8), torch.arange(20) % 10)]
        >>> result = robustness(model, data, checkpoints={"0": surgeon.create_model("fcn", depth=2, width=16,
        ...                     in_chans=1, img_size=8)})
        >>> result.units, result.treatments
        (['layer1', 'layer2', 'final_linear', 'full model'], ['rerand', '0', 'final'])

    References:
        Zhang, Bengio and Singer, JMLR 2022, sections 2 and 3, Appendix C. Intervals, verdicts and ``stop`` are ours.
    """
    settings = Settings(
        units, initial, checkpoints, draws, batchnorm, calibration, seed, method, stop, tolerance, metrics, memory,
        ledger, progress, limit, amp, command, detector, input_size,
    )  # fmt: skip
    study = Study(model, data, settings)
    parts = {unit.name: [unit] for unit in study.units}
    measures = study.measure(parts, whole=True, name="robustness")
    study.plan_notes += _nothing_learnt(study, measures)
    rows = [
        row for name, members in {**parts, WHOLE: study.every}.items() for row in _rows(study, measures, name, members)
    ]
    study.plan_notes += _flagged(rows)
    return Robustness(rows, _summary(study, measures, rows), settings_of(study, measures))


def _flagged(rows: Sequence[Row]) -> list[str]:
    """Which units the column ``note`` is about, for those who read the summary only."""
    noted = {row["unit"]: row["note"] for row in rows if row["note"] and row["unit"] != FULL}
    refused = [name for name, note in noted.items() if note.startswith("cannot be drawn")]
    trivial = [name for name, note in noted.items() if name not in refused and note != UNMOVED]
    found = []
    if trivial:
        found.append(
            f"{', '.join(trivial)}: the branch starts at zero or nearly (column note), so that what is initial adds "
            "little to what a skip carries, whatever the unit has learnt"
        )
    if refused:
        found.append(f"{', '.join(refused)} cannot be re-randomised: {noted[refused[0]].partition(': ')[2]}")
    return found


def _nothing_learnt(study: Study, measures: Measures) -> list[str]:
    """A note where the whole model drawn anew does no worse: then every unit is robust, and that says nothing."""
    whole = measures.of(WHOLE, "rerand")
    if whole.difference is None or whole.difference > study.settings.tolerance:
        return []
    return ["the whole model re-randomised does no worse, so the model has learnt nothing about these data"]


def _rows(study: Study, measures: Measures, name: str, members: Sequence[Unit]) -> list[Row]:
    rows = []
    parameters = [tensor for unit in members for tensor in unit.parameters]
    for treatment in [*study.treatments.names, "final"]:
        judged: Judged = measures.of(name, treatment)
        distances = study.treatments.distances(treatment, parameters)
        dead = UNMOVED if judged.unmoved and distances["rms_distance"] else ""
        rows.append(
            {
                "unit": name or FULL,
                "path": members[0].path if name else "",
                "params": sum(unit.params for unit in members),
                "treatment": treatment,
                **judged.row(verdict=bool(name) and treatment != "final"),
                **distances,
                "note": study.note(name, treatment, members) or dead,
            }
        )
    return rows


def _summary(study: Study, measures: Measures, rows: Sequence[Row]) -> str:
    words = [measures.headline()]
    for treatment in study.treatments.names:
        mine = [row for row in rows if row["treatment"] == treatment and row["unit"] != FULL]
        robust = [row for row in mine if row["verdict"] == "robust"]
        share = sum(row["params"] for row in robust) / max(sum(row["params"] for row in mine), 1)
        critical = sum(row["verdict"] == "critical" for row in mine)
        how = "re-randomised" if treatment == "rerand" else f"set back to {treatment}"
        words.append(
            f"{how}: {len(robust)} of {len(mine)} units robust ({share:.0%} of the parameters), {critical} critical"
        )
    return "; ".join(words) + "." + "".join(f" Note: {note}." for note in study.notes())
