"""Learn and judge perceptual distances on the smoke data, and write docs/perceptual.md.

Run by ``python -m tests.benchmarks.write_perceptual [RUNS]``; trained networks and results are kept in RUNS.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import platform
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import recipes
import surgeon
from analysis import PerceptualDistance, Ratings, distorted_samples, fit_perceptual, perceptual, read_result
from analysis.distorting import DIGITS
from recipes.data_schema import DigitsData
from recipes.digits import MEAN, STD, Digits
from recipes.loading import with_seed
from recipes.repeating import spread
from tests.benchmarks.measuring import table
from tests.benchmarks.perceptual_text import TEXT

DOCS = Path(__file__).parents[2] / "docs"
SEEDS, SIZE, EPOCHS, LR, NET_EPOCHS = (0, 1, 2), 32, 200, 0.03, 20
JUDGED, TEACHING, VALIDATING = 40, 40, 20  # references
TAUGHT, NETS = ("noise", "blur", "contrast"), ("untrained", "trained", "blurpool")
FORMS, DATA = ("lpips", "gap"), ("digits", "photos")
RECIPE = {
    "model": {"timm": "digits_vgg16"},
    "data": {"dataset": "digits", "size": 24, "canvas": SIZE, "placement": "random"},
    "train": {"epochs": NET_EPOCHS, "batch_size": 64, "opt": "adamw", "lr": 3e-3, "weight_decay": 0.05,
              "sched_on_updates": True},
    "compare": {"original": {"surgery": []}},
}  # fmt: skip
Key = tuple[str, str, str, str, int]  # data, network, form, weights, seed
Found = dict[Key, list[dict[str, Any]]]


def rms(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square of the difference of pixels."""
    return (a - b).square().mean((1, 2, 3)).sqrt()


@cache
def samples(source: str, part: str) -> Ratings:
    """Images of known strength, grey: those that "teach", "validate" and are "judged" have no reference in common.

    All digits are of the recipe's validation part, so the trained nets never saw them. The photographs are judged only:
    no net was trained and no weight learned on them.
    """
    if source == "photos":
        return distorted_samples(source, images=JUDGED, size=SIZE, channels=1, seed=7)
    every = distorted_samples(source, images=DIGITS, size=SIZE, channels=1, seed=7)
    some = [name for name in every.references if name in unseen()][: JUDGED + TEACHING + VALIDATING]
    rest, judged = every.only(references=some).split(JUDGED / len(some))
    teach, validate = rest.split(VALIDATING / (TEACHING + VALIDATING))
    chosen = {"judged": judged, "teach": teach, "validate": validate}[part]
    return chosen if part == "judged" else chosen.only(distortions=TAUGHT)


@cache
def unseen() -> set[str]:
    """Names of the digits that are not among those the recipe trains on, told by their pixels."""
    seen = {image.numpy().tobytes() for image in Digits(DigitsData(size=8), training=True).images}
    every = (load_digits().images / 16).astype("float32")
    return {f"digits {number}" for number, image in enumerate(every) if image.tobytes() not in seen}


def network(runs: Path, name: str, seed: int) -> nn.Module:
    """A net of one seed; trained once."""
    torch.manual_seed(seed)
    if name == "untrained":
        return timm.create_model("digits_vgg16")
    place = runs / f"net_seed_{seed}"
    recipes.run(with_seed(recipes.load({"name": "perceptual", **RECIPE}), seed), place)
    model: nn.Module = surgeon.load(place / "original" / "weights")
    return model if name == "trained" else surgeon.apply(model, "blurpool", (1, SIZE, SIZE))


def compute(runs: Path) -> Found:
    """Rows of every distance on both data."""
    found: Found = {}
    for data in DATA:
        found[data, "pixels", "rms", "-", 0] = rows_of(runs / f"rms_{data}.json", lambda: rms, data)
        for seed in SEEDS:
            for name in NETS:
                for form in FORMS:
                    for weights in ("1", "learned"):
                        file = runs / f"{name}_{form}_{weights}_seed_{seed}_{data}.json"

                        def make(name: str = name, form: str = form, weights: str = weights, seed: int = seed) -> Any:
                            return distance_of(runs, name, form, weights, seed)

                        found[data, name, form, weights, seed] = rows_of(file, make, data)
    return found


def distance_of(runs: Path, name: str, form: str, weights: str, seed: int) -> PerceptualDistance:
    """With weights of 1, or learned; learned once."""
    model, folder = network(runs, name, seed), runs / f"{name}_{form}_seed_{seed}"
    distance = PerceptualDistance(model, form=form, mean=MEAN, std=STD)
    if weights == "1":
        return distance
    if not (folder / "perceptual.json").exists():
        teach, held = samples("digits", "teach"), samples("digits", "validate")
        print(fit_perceptual(distance, teach, validation=held, epochs=EPOCHS, lr=LR, seed=seed).summary, flush=True)
        distance.save(folder)
    return PerceptualDistance.load(folder, model)


def rows_of(file: Path, make: Any, data: str) -> list[dict[str, Any]]:
    """Measure, or read what was measured before."""
    if not file.exists():
        distance, judged = make(), samples(data, "judged")
        result = perceptual(distance, judged, shifts=(1, 2, 3, 4, 6, 8), progress=False)
        taught = perceptual(distance, judged.only(distortions=TAUGHT), shifts=0, progress=False)
        for row in taught.rows:
            if row["distortion"] == "all":
                result.rows.append({**row, "distortion": "taught"})
        result.to_json(file)
        print(f"{file.stem}: {result.summary}", flush=True)
    return read_result(file).rows


COLUMNS = {
    "Spearman, taught": {"measure": "spearman", "distortion": "taught"},
    "curves, shift": {"measure": "spearman_of_curves", "distortion": "shift"},
    "curves, rotation": {"measure": "spearman_of_curves", "distortion": "rotation"},
    "1 px": {"measure": "relative_distance", "shift_px": 1},
    "4 px": {"measure": "relative_distance", "shift_px": 4},
}


def value(rows: list[dict[str, Any]], column: str) -> float:
    """Of one row; a correlation that is not there, as of distances all alike, counts as 0."""
    wanted = COLUMNS[column]
    row = next(row for row in rows if all(row[key] == each for key, each in wanted.items()))
    return float(row["value"] or 0.0)


def page_table(found: Found, data: str) -> str:
    """A line per network, form and weights."""
    lines = []
    for name, form, weights in [
        ("pixels", "rms", "-"),
        *((n, f, w) for n in NETS for f in FORMS for w in ("1", "learned")),
    ]:
        seeds = SEEDS if name != "pixels" else (0,)
        line = {"network": name, "form": form, "weights": weights}
        for column in COLUMNS:
            values = [value(found[data, name, form, weights, seed], column) for seed in seeds]
            line[column] = told(values, "%" if "px" in column else "")
        lines.append(line)
    return table(lines, dict.fromkeys(lines[0], "s"))


def told(values: list[float], unit: str) -> str:
    """Mean and standard deviation."""
    scale, digits = (100, 1) if unit else (1, 2)
    mean = f"{scale * statistics.fmean(values):.{digits}f}{unit}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def verdict(found: Found) -> str:
    """What the tables say of the questions."""
    lines = []
    trained, blurred = (("trained", "lpips"), ("trained", "gap")), (("blurpool", "lpips"), ("blurpool", "gap"))
    questions = [("GAP form less lpips form, weights learned", (*trained[1], "learned"), (*trained[0], "learned"))]
    for one, other in zip(trained, blurred, strict=True):
        questions.append((f"Learned weights less weights of 1, {one[1]} form", (*one, "learned"), (*one, "1")))
        questions.append((f"Blurpool less none, {one[1]} form, learned", (*other, "learned"), (*one, "learned")))
    for words, ours, theirs in questions:
        for data in DATA:
            parts = []
            for column in ("Spearman, taught", "curves, shift", "1 px"):
                mean, half = difference(found, data, ours, theirs, column)
                sure = "" if abs(mean) > half else " (not to be told from 0)"
                parts.append(f"{column} {mean:+.3f} ± {half:.3f}{sure}")
            lines.append(f"- {words}, {data}: {'; '.join(parts)}.")
    return "\n".join(lines)


def difference(
    found: Found, data: str, ours: tuple[str, str, str], theirs: tuple[str, str, str], column: str
) -> tuple[float, float]:
    """Of two distances, paired by seed: the mean, and half the width of its 95% interval."""
    pairs = [[value(found[data, *which, seed], column) for which in (ours, theirs)] for seed in SEEDS]
    return spread([a - b for a, b in pairs])


def closing(found: Found) -> str:
    """What the differences come to."""
    gap, lpips = ("trained", "gap", "learned"), ("trained", "lpips", "learned")
    order = [difference(found, data, gap, lpips, "Spearman, taught") for data in DATA]
    told = ["more" if m > h else "less" if -m > h else "not to be told from equal" for m, h in order]
    blurred = [
        difference(found, data, ("blurpool", form, "learned"), ("trained", form, "learned"), "1 px")
        for data in DATA
        for form in FORMS
    ]
    lower = sum(-mean > half for mean, half in blurred)
    return (
        f"- Does the GAP form agree more than the lpips form once weights are learned (paper: yes, 0.89 to 0.75)? "
        f"Digits: {told[0]}; photographs, which are other data as KADID-10k is to TID2008: {told[1]}.\n"
        f"- Do anti-aliased pools bring an image nearer to itself shifted by one pixel? Beyond chance in {lower} of "
        f"{len(blurred)} comparisons.\n"
        "- Shift and rotation are distortions here, whose level a distance is asked to follow: a form that sees less "
        "of them follows them less. Whether that is right is for people to say (RAID)."
    )


def control() -> list[float]:
    """Distance of images to their circular shifts by 3 pixels, relative to the mean distortion, GAP form and lpips."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(a, b, 3, 1, 1, padding_mode="circular") for a, b in ((1, 8), (8, 8))]
    net = nn.Sequential(convs[0], nn.GELU(), convs[1], nn.GELU()).double()
    found = []
    for form in ("gap", "lpips"):
        distance = PerceptualDistance(copy.deepcopy(net), ["1", "3"], form=form, input_size=(1, SIZE, SIZE))
        result = perceptual(distance, samples("photos", "judged"), shifts=(3,), padding="circular", progress=False)
        found.append(result.value("relative_distance", shift_px=3))
    return found


def main() -> None:
    """Compute what is missing, then write the page and its picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/perceptual"))
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    runs.mkdir(parents=True, exist_ok=True)
    found = compute(runs)
    gap, lpips = control()
    text = TEXT.format(
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        timm=timm.__version__,
        machine=f"one core of an {platform.machine()} CPU",
        **{
            "net_epochs": NET_EPOCHS,
            "seeds": len(SEEDS),
            "judged": JUDGED,
            "teaching": TEACHING,
            "validating": VALIDATING,
            "lr": LR,
        },
        **{
            "digits": page_table(found, "digits"),
            "photos": page_table(found, "photos"),
            "verdict": verdict(found),
            "closing": closing(found),
        },
        **{"control": gap, "control_lpips": lpips},
    )
    (DOCS / "perceptual.md").write_text(text)
    stored = read_result(runs / "trained_gap_learned_seed_0_photos.json")
    stored.rows = [row for row in stored.rows if row["distortion"] != "taught"]
    stored.figure().savefig(DOCS / "perceptual.png", dpi=110)


if __name__ == "__main__":
    main()
