"""Results made by hand, in the shape the analyses of robustness answer; nothing is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.stored import StoredResult

TREATMENTS = ("rerand", "0", "1", "10", "100", "final")
FINAL = 0.02
DEEP = [
    "stage0",
    *(f"stage{stage}.resblk{block}" for stage, n in ((1, 6), (2, 12), (3, 24), (4, 10)) for block in range(1, n + 1)),
    "final_linear",
]  # 54


def robustness(
    units: Sequence[str] = ("layer1", "layer2", "final_linear"),
    treatments: Sequence[str] = TREATMENTS,
    *,
    seed: int = 0,
    initial: bool = True,
    measure: str = "error",
    notes: dict[str, str] | None = None,
    title: str = "Layer-wise robustness of a net",
    source: str = "",
    **settings: Any,
) -> StoredResult:
    """The first unit is critical, the second undecided, the others robust; the full model is lost when treated."""
    rows = []
    for place, unit in enumerate([*units, "full model"]):
        for treatment in treatments:
            loss = 0.0 if treatment == "final" else (0.6 + seed / 100, 0.015, 0.001)[min(place, 2)]
            loss = 0.7 if unit == "full model" and treatment != "final" else loss
            verdict = ("critical", "undecided", "robust")[min(place, 2)]
            rows.append(_row(unit, treatment, place, loss, verdict, measure, initial, (notes or {}).get(unit, "")))
    about = {"model": "net", "draws": 3, "seed": seed, "tolerance": 0.02, "complete": True, **settings}
    return StoredResult("robustness", title, rows, f"{len(units) - 2} units are robust.", about, source)


def _row(
    unit: str, treatment: str, place: int, loss: float, verdict: str, measure: str, initial: bool, note: str
) -> dict[str, Any]:
    full, final = unit == "full model", treatment == "final"
    value = FINAL + loss if measure == "error" else 0.8 - loss
    row = {"unit": unit, "path": "" if full else f"net.{unit}", "params": 100 * (place + 1), "treatment": treatment}
    row |= {"draws": 3 if treatment == "rerand" else 1, "images": 450, measure: value}
    row |= {f"{measure}_low_95": value - 0.01, f"{measure}_high_95": value + 0.01, "loss": 3 * loss}
    row |= {} if measure == "ap" else {"agreement": 1 - loss}
    row |= {"difference": loss, "difference_low_95": loss - 0.01, "difference_high_95": loss + 0.01}
    row |= {"verdict": "-" if full or final else verdict, "sd_over_draws": 0.003 if treatment == "rerand" else None}
    row |= {"rms_distance": 0.0 if final else 0.012, "linf_distance": 0.0 if final else 0.3}
    away = 0.0 if treatment == "0" else 0.001 * (place + 1)
    row |= {"rms_from_initial": away if initial else None, "linf_from_initial": 9 * away if initial else None}
    return row | {"note": note}


def joint() -> StoredResult:
    """Three groups; the larger ones are critical."""
    rows = [
        {"group": group, "units": "a, b", "units_treated": units, "params": 1000, "share_of_params": share}
        | {"treatment": treatment, "draws": 1, "images": 450, "error": FINAL + loss * (treatment != "final")}
        | {"difference": loss * (treatment != "final"), "verdict": "critical" if loss > 0.02 else "robust"}
        for group, units, share, loss in (("all", 3, 1.0, 0.5), ("every-second", 2, 0.5, 0.3), ("one", 1, 0.1, 0.0))
        for treatment in ("rerand", "0", "final")
    ]
    return StoredResult("joint_robustness", "Joint robustness of a net", rows, "one of three", {"tolerance": 0.02})


def search(measure: str = "error") -> StoredResult:
    """Six steps, of which the last two are too much."""
    sign = 1 if measure == "error" else -1
    rows = []
    for step in range(6):
        loss = 0.002 * step**2
        value = (FINAL if measure == "error" else 0.8) + sign * loss
        row = {"step": step + 1, "added": f"unit{step}", "units": "…", "units_treated": step + 1, "params": 10 * step}
        row |= {"share_of_params": 0.1 * (step + 1), "treatment": "0", "images": 450, measure: value}
        row |= {f"{measure}_low_95": value - 0.01, f"{measure}_high_95": value + 0.01, "difference": loss}
        rows.append(row | {"verdict": "robust" if loss < 0.02 else "critical"})
    return StoredResult("search_joint", "Largest joint set", rows, "four units", {"tolerance": 0.02})
