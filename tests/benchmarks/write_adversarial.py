"""Train, attack, and write docs/adversarial.md: python -m tests.benchmarks.write_adversarial [RUNS].

About three quarters of an hour on one core. What RUNS (runs/adversarial) holds already is not computed again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import timm
import torch
from matplotlib.figure import Figure

import recipes
import surgeon
from analysis.attacking import adversarial
from recipes.data import open_source
from recipes.digits import MEAN, STD
from recipes.loading import with_seed
from recipes.repeating import spread
from tests.benchmarks.measuring import table

DOCS = Path(__file__).parents[2] / "docs"
SEEDS, REPEATS, IMAGES, BATCH, STEPS, EOT = (0, 1, 2), 5, 225, 25, 10, 8
MAIN, WEAKER, TINY = 32, 16, 8  # epsilon, in grey levels of 255
PRINTED = {  # CIFAR-10, Table 2: clean, FGSM, PGD
    ("42", "baseline"): "91.05 / 12.75 / 0.33",
    ("42", "r4_s1"): "89.45 / 69.85 / 6.71",
    ("42", "r4_s2"): "87.70 / 71.18 / 9.65",
    ("44", "baseline"): "90.08 / 8.45 / 0.00",
    ("44", "r4_s1"): "89.64 / 62.76 / 2.60",
    ("44", "r4_s2"): "89.13 / 67.20 / 3.56",
    ("44", "r4_s4"): "88.24 / 69.09 / 5.60",
}
ROWS = list(PRINTED)
CLOSING = """In short:

- The large gain under FGSM {weak}.
- The small gain under PGD {strong}.
- Averaging over draws lowers the gain under PGD in {less} of {of} configurations.

FGSM's images, made against one draw, work against the next: the random blocks change little of what these nets compute
(44 hardly loses a clean image), or take clean images with them (42). Digits, 16 channels and our epsilon are not
CIFAR-10 and the paper's; which of these makes the difference, or whether gradients rounded away as above, its text
does not tell.
"""
CLAIMS = (
    ("clean", 1, "**Clean images cost little** (paper: 0.4 to 3.4 points)."),
    ("fgsm", 1, "**Against a weak attack, FGSM, randomness helps much** (paper: 54 to 61 points gained)."),
    ("pgd", 1, "**Against a strong attack, PGD, it helps little** (paper: 2.6 to 9.3 points gained)."),
    ("fgsm", EOT, f"**An attack that knows of the randomness finds more** (paper: expected). FGSM, EOT {EOT}."),
    ("pgd", EOT, f"PGD, EOT {EOT}."),
)
COLOURS = {"clean": "#999999", "fgsm": "#56B4E9", "pgd": "#0072B2"}
Row = dict[str, Any]
Found = dict[tuple[str, str, int, int, int], list[Row]]  # net, variant, seed, epsilon, eot
TEXT = """# Random layers under attack: Table 2 on digits

Measured on {date}, torch {torch}, captum {captum}, {machine}.
`python -m tests.benchmarks.write_adversarial` trains, attacks and writes this page. Zhang, Bengio and Singer (JMLR
2022, arXiv:1902.01996, Table 2) turn a trained network into a stochastic classifier: in each inference s stages run
one block
with one of r random weight sets. The op is [`stochastic`](ops/layers.md), the measure `analysis.adversarial`.

## Settings

The paper gives neither epsilon, step size, steps nor start, and has no code; all of these are ours.

- Nets "42" and "44" (`blocknet_42`, `blocknet_44`), 16 channels at first, no norm (as in the paper; with BatchNorm ours
  bear far less randomness), from the shipped recipes `digits_blocknet_42` and `_44`: scikit-learn's digits, 16 pixels
  wide, 1,347 to train, 450 to validate, 30 epochs, {seeds} training seeds; each draws its own random weight sets.
- Attacks on {images} of the 450 validation images, every other one (the paper: 1,000 test images): L-infinity, epsilon
  {main}/255 of the grey scale (digits are large, black and white: at {tiny}/255 the baseline of 42, seed 0, keeps
  {tiny_pgd:.0%} under PGD), FGSM one step, PGD {steps} steps of 2.5 epsilon / {steps} from a random start. "EOT {eot}":
  each step follows the mean of {eot} gradients, each of another draw.
- One forward pass draws once, for all images of its batch; the paper draws per inference. That moves no mean, but batch
  mates share their luck: so batches have {batch} images and everything is repeated {repeats} times: {draws} draws per
  figure and training seed.
- The attacker sees the network as it runs, draws included; the draw that judges an image is always a new one.
- Cross-entropy in the form of `analysis.attacks.cross_entropy`. Torch's own rounds the gradient of a confident network
  away, and captum leaves pixels with gradients below 1e-6 alone: with both, the baseline of 42, seed 0, seems to keep
  {masked_fgsm:.1%} under FGSM and {masked_pgd:.1%} under PGD, not {true_fgsm:.1%} and {true_pgd:.1%}.

## Accuracy, in percent

Mean ± standard deviation over the training seeds (in brackets over the repeats). "paper": CIFAR-10, clean / FGSM / PGD.

{main_table}

![accuracy clean and under attack, ours and the paper's](adversarial.png)

At epsilon {weaker}/255:

{weaker_table}

## Does the pattern show?

Points gained over the baseline, paired by training seed, with half the width of their 95% interval (Student's t over
{seeds} seeds, wide as three are few).

{verdict}

{closing}"""


def compute(runs: Path) -> Found:
    """Rows of every net, variant, seed, epsilon and number of averaged gradients."""
    found = {}
    for seed in SEEDS:
        for net in ("42", "44"):
            recipe = with_seed(recipes.load(f"digits_blocknet_{net}"), seed)
            place = runs / f"{net}_seed_{seed}"
            recipes.run(recipe, place)
            data = validation(recipe)
            for name, variant in recipe.variants().items():
                model = surgeon.load(place / "baseline" / "weights")
                if variant.surgery:
                    settings = {**variant.surgery[0]["stochastic"], "seed": seed}
                    surgeon.apply(model, {"stochastic": settings}, data[0][0].shape[1:])
                for epsilon in (MAIN, WEAKER):
                    for eot in (1,) if name == "baseline" or epsilon == WEAKER else (1, EOT):
                        file = runs / f"{net}_{name}_seed_{seed}_epsilon_{epsilon}_eot_{eot}.json"
                        found[net, name, seed, epsilon, eot] = rows_of(file, model, data, epsilon, eot)
    return found


def validation(recipe: recipes.RecipeFile) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every other validation image, in small batches."""
    digits = open_source(recipe.data).val
    chosen = range(0, len(digits), len(digits) // IMAGES)[:IMAGES]
    keys = [[(0, i) for i in chosen[j : j + BATCH]] for j in range(0, IMAGES, BATCH)]
    return [digits.__getitems__(key) for key in keys]


def rows_of(file: Path, model: torch.nn.Module, data: Any, epsilon: int, eot: int) -> list[Row]:
    """Attack, or read what was computed before."""
    if not file.exists():
        scale = {"mean": MEAN, "std": STD, "repeats": REPEATS, "steps": STEPS}
        found = adversarial(model, data, epsilon=epsilon / 255, eot=eot, **scale)
        found.to_json(file)
        print(f"{file.stem}: {found.summary}", flush=True)
    rows: list[Row] = json.loads(file.read_text())["rows"]
    return rows


def tiny(runs: Path) -> list[Row]:
    """The baseline of 42 at an epsilon that is usual for photographs."""
    model = surgeon.load(runs / "42_seed_0" / "baseline" / "weights")
    file = runs / f"42_baseline_seed_0_epsilon_{TINY}_eot_1.json"
    return rows_of(file, model, validation(recipes.load("digits_blocknet_42")), TINY, 1)


def masked(runs: Path) -> list[float]:
    """Accuracy of the baseline under captum's own FGSM and PGD with torch's own cross-entropy."""
    from captum.robust import FGSM, PGD

    model = surgeon.load(runs / "42_seed_0" / "baseline" / "weights").eval()
    right = [0, 0]
    data = validation(recipes.load("digits_blocknet_42"))
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    torch.manual_seed(0)
    for images, targets in data:
        pixels = (images * STD + MEAN).clamp(0, 1).requires_grad_()

        def forward(x: torch.Tensor) -> torch.Tensor:
            return model((x - MEAN) / STD)

        epsilon = MAIN / 255
        one = FGSM(forward, loss, 0, 1).perturb(pixels, epsilon, targets)
        many = PGD(forward, loss, 0, 1).perturb(
            pixels, epsilon, 2.5 * epsilon / STEPS, STEPS, targets, random_start=True
        )
        for i, changed in enumerate((one, many)):
            right[i] += int((forward(changed).argmax(1) == targets).sum())
    return [count / sum(len(targets) for _, targets in data) for count in right]


def over_seeds(found: Found, net: str, name: str, epsilon: int, eot: int, attack: str) -> tuple[float, ...]:
    """Mean and standard deviation over the training seeds, mean standard deviation over repeats, in percent."""
    rows = [row for seed in SEEDS for row in found[net, name, seed, epsilon, eot] if row["attack"] == attack]
    shares = [100 * row["accuracy"] for row in rows]
    within = 100 * statistics.fmean(row["sd_over_repeats"] for row in rows)
    return statistics.fmean(shares), statistics.stdev(shares), within


def page_table(found: Found, epsilon: int) -> str:
    """Beside the paper's."""
    lines = []
    for net, name in ROWS:
        line = {"net": net, "configuration": name.replace("r4_", "r=4, ").replace("s", "s=") if "_" in name else name}
        columns = [("clean", 1), ("fgsm", 1), ("pgd", 1), ("fgsm", EOT), ("pgd", EOT)]
        for attack, eot in columns if epsilon == MAIN else columns[:3]:
            head = attack if attack == "clean" else attack.upper() + (f", EOT {eot}" if eot > 1 else "")
            if name == "baseline" and eot > 1:
                line[head] = "-"
                continue
            mean, seeds, repeats = over_seeds(found, net, name, epsilon, eot, attack)
            line[head] = f"{mean:.1f} ± {seeds:.1f} ({repeats:.1f})"
        lines.append({**line, "paper": PRINTED[net, name]} if epsilon == MAIN else line)
    return table(lines, dict.fromkeys(lines[0], "s"))


def verdict(found: Found) -> str:
    """Each claim of the paper, and whether it holds here."""
    lines = []
    for measure, eot, claim in CLAIMS:
        gains = {key: gain(found, *key, measure, eot) for key in ROWS if key[1] != "baseline"}
        words = [f"{n} {v.replace('r4_s', 's=')} {m:+.1f} (± {half:.1f})" for (n, v), (m, half) in gains.items()]
        more, less = (sum(sign * mean > half for mean, half in gains.values()) for sign in (1, -1))
        rest = len(gains) - more - less
        told = f"more in {more} of {len(gains)} configurations, less in {less}, not to be told in {rest}"
        lines.append(f"- {claim} Here, points against the baseline: {', '.join(words)}: {told}.")
    return "\n".join(lines)


def closing(found: Found) -> str:
    """What the bullets come to."""
    means = {
        (measure, eot): {key: gain(found, *key, measure, eot)[0] for key in ROWS if key[1] != "baseline"}
        for measure, eot, _ in CLAIMS
    }
    weak, strong, averaged = means["fgsm", 1], means["pgd", 1], means["pgd", EOT]
    nets = [[value for (net, _), value in strong.items() if net == which] for which in ("42", "44")]
    ordered = all(values == sorted(values) and values[0] > 0 for values in nets)
    less = sum(averaged[key] < strong[key] for key in strong)
    return CLOSING.format(
        weak="shows" if min(weak.values()) > 10 else "does **not** show",
        strong="shows in sign and order (above zero everywhere, growing with s, larger for 42 than for 44), though "
        "three seeds tell few of these from none"
        if ordered and min(nets[0]) > max(nets[1])
        else "does **not** show",
        less=less,
        of=len(strong),
    )


def gain(found: Found, net: str, name: str, measure: str, eot: int) -> tuple[float, float]:
    """Points over the baseline, paired by training seed, and half the width of their 95% interval (Student's t)."""
    pairs = [
        [accuracy(found, net, which, seed, e, measure) for which, e in ((name, eot), ("baseline", 1))] for seed in SEEDS
    ]
    return spread([100 * (ours - base) for ours, base in pairs])


def accuracy(found: Found, net: str, name: str, seed: int, eot: int, attack: str) -> float:
    """Of one training seed, at the main epsilon."""
    return next(row["accuracy"] for row in found[net, name, seed, MAIN, eot] if row["attack"] == attack)


def draw(found: Found) -> Figure:
    """Bars: ours above, the paper's below."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    bars = (("clean", 1, 1.0), ("fgsm", 1, 1.0), ("fgsm", EOT, 0.5), ("pgd", 1, 1.0), ("pgd", EOT, 0.5))
    for i, (net, name) in enumerate(ROWS):
        for j, (attack, eot, alpha) in enumerate(bars):
            if name == "baseline" and eot > 1:
                continue
            mean, seeds, _ = over_seeds(found, net, name, MAIN, eot, attack)
            style = {"color": COLOURS[attack], "alpha": alpha, "width": 0.15}
            label = attack.upper() + (f", EOT {eot}" if eot > 1 else "") if attack != "clean" else "clean"
            above.bar(i + 0.16 * (j - 2), mean, yerr=seeds, capsize=2, label=label if i == 1 else None, **style)
        for j, value in zip((0, 1, 3), PRINTED[net, name].split(" / "), strict=True):
            below.bar(i + 0.16 * (j - 2), float(value), color=COLOURS[bars[j][0]], width=0.15)
    above.set_title(f"digits, epsilon {MAIN}/255 (bars: ± sd over {len(SEEDS)} training seeds)", fontsize="medium")
    below.set_title("the paper, CIFAR-10 (epsilon not given)", fontsize="medium")
    names = [f"{net} {name.replace('r4_', 'r=4, ').replace(', s', ', s=')}" for net, name in ROWS]
    below.set_xticks(range(len(ROWS)), names)
    for axis in (above, below):
        axis.set(ylim=(0, 104), ylabel="images right (%)")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *above.get_legend_handles_labels(), ncols=5, fontsize="small", frameon=False, loc="outside upper right"
    )
    return figure


def main() -> None:
    """Compute what is missing, then write the page and its picture."""
    from importlib.metadata import version

    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/adversarial"))
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    runs.mkdir(parents=True, exist_ok=True)
    found = compute(runs)
    stock = masked(runs)
    text = TEXT.format(
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        timm=timm.__version__,
        captum=version("captum"),
        machine=f"one core of an {platform.machine()} CPU",
        **{"seeds": len(SEEDS), "repeats": REPEATS, "batch": BATCH, "steps": STEPS, "eot": EOT},
        **{"main": MAIN, "weaker": WEAKER, "draws": REPEATS * IMAGES // BATCH, "images": IMAGES},
        **{"masked_fgsm": stock[0], "masked_pgd": stock[1]},
        tiny=TINY,
        tiny_pgd=tiny(runs)[2]["accuracy"],
        true_fgsm=accuracy(found, "42", "baseline", 0, 1, "fgsm"),
        true_pgd=accuracy(found, "42", "baseline", 0, 1, "pgd"),
        main_table=page_table(found, MAIN),
        weaker_table=page_table(found, WEAKER),
        verdict=verdict(found),
        closing=closing(found),
    )
    (DOCS / "adversarial.md").write_text(text)
    draw(found).savefig(DOCS / "adversarial.png", dpi=110)


if __name__ == "__main__":
    main()
