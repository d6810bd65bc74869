"""Joint robustness: groups of units treated together.

Zhang, Bengio and Singer, Are All Layers Created Equal?, JMLR 2022, arXiv:1902.01996, section 5: units that are robust
one by one are in general not robust together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis.grouping import Wanted, groups_of
from analysis.judging import Measures, pivot
from analysis.result import ReadBack, Row
from analysis.studying import Settings, Study, settings_of
from analysis.unit_names import Unit
from surgeon.errors import AnalysisError


class JointRobustness(ReadBack):
    """What groups of units are worth together; ``groups`` are their names, ``treatments`` as of `Robustness`."""

    kind = "joint_robustness"

    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Joint robustness of {settings['model']}", rows, summary, settings)
        self.groups = list(dict.fromkeys(row["group"] for row in rows))
        self.treatments = list(dict.fromkeys(row["treatment"] for row in rows))
        self.primary, self.tolerance = str(settings["primary"]), float(settings["tolerance"])
        self.complete = bool(settings["complete"])

    def __str__(self) -> str:
        return "\n".join([self.title, pivot(self.rows, "group", self.primary), self.summary])

    def figure(self) -> Figure:
        """Groups x treatments (Figs. 8 to 10 of the paper)."""
        from analysis.heatmap import joint

        return joint(self)


def joint_robustness(
    model: Any, data: Iterable[Any] | Any, groups: Wanted | Mapping[str, Wanted], **settings: Any
) -> JointRobustness:
    """Treat several units at once, and count the errors.

    Args:
        model: As of :func:`analysis.robustness`.
        data: Likewise.
        groups: A scheme ("all-but-first", "every-second", "two-of-three", each also on some stages, as
            "all-but-first@1,4"), a name or a pattern of units; several, a group each; or a mapping from names of groups
            to any of these, or to lists of them.
        settings: As of :func:`analysis.robustness`: ``units``, ``initial``, ``checkpoints``, ``draws`` ...

    Returns:
        Rows per group and treatment; ``share_of_params`` is of all parameters.

    Raises:
        AnalysisError: When a group is empty, or settings, data or states do not fit the model.

    Example:
        >>> import torch, surgeon
        >>> model = surgeon.create_model("fcn", depth=3, width=16, in_chans=1, img_size=8)
        >>> data = [(torch.rand(20, 1, 8, 8), torch.arange(20) % 10)]
        >>> result = joint_robustness(model, data, ["all-but-first", "every-second"])
        >>> [(row["group"], row["units"]) for row in result.rows if row["treatment"] == "rerand"]
        [('all-but-first', 'layer2, layer3, final_linear'), ('every-second', 'layer2, final_linear')]

    References:
        Zhang, Bengio and Singer, JMLR 2022, section 5.1, Figs. 8 to 10.
    """
    study = Study(model, data, settings_from(settings))
    found = groups_of(study.units, groups)
    measures = study.measure(found, "joint_robustness")
    total = sum(unit.params for unit in study.every)
    rows = [row for name, members in found.items() for row in _rows(study, measures, name, members, total)]
    return JointRobustness(rows, _summary(study, measures, rows), settings_of(study, measures))


def settings_from(given: Mapping[str, Any]) -> Settings:
    """Settings of a study from keywords.

    Raises:
        AnalysisError: For an unknown one.
    """
    known = Settings.__dataclass_fields__
    if unknown := [name for name in given if name not in known]:
        raise AnalysisError(f"unknown setting '{unknown[0]}'; the settings are {', '.join(known)}")
    return Settings(**given)


def _rows(study: Study, measures: Measures, name: str, members: Sequence[Unit], total: int) -> list[Row]:
    params = sum(unit.params for unit in members)
    about = {
        "group": name,
        "units": ", ".join(unit.name for unit in members),
        "units_treated": len(members),
        "params": params,
        "share_of_params": params / max(total, 1),
    }
    parameters = [tensor for unit in members for tensor in unit.parameters]
    return [
        {
            **about,
            "treatment": treatment,
            **measures.of(name, treatment).row(verdict=treatment != "final"),
            **study.treatments.distances(treatment, parameters),
            "note": study.note(name, treatment, members),
        }
        for treatment in [*study.treatments.names, "final"]
    ]


def _summary(study: Study, measures: Measures, rows: Sequence[Row]) -> str:
    words = [measures.headline()]
    for treatment in study.treatments.names:
        mine = [row for row in rows if row["treatment"] == treatment]
        robust = [row["group"] for row in mine if row["verdict"] == "robust"]
        how = "re-randomised" if treatment == "rerand" else f"set back to {treatment}"
        words.append(
            f"{how}: {len(robust)} of {len(mine)} groups robust" + (f" ({', '.join(robust)})" if robust else "")
        )
    return "; ".join(words) + "." + "".join(f" Note: {note}." for note in study.notes())
