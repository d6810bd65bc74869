"""Train, attribute, and write docs/attribution.md: python -m tests.benchmarks.write_attribution [RUNS].

About half an hour on one core. What RUNS (runs/attribution) holds already is not computed again.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import analysis
import recipes
import surgeon
from analysis.ranking import rank_agreement
from analysis.stored import StoredResult
from recipes.data import open_source
from recipes.loading import with_seed
from tests.benchmarks.attribution_text import TEXT
from tests.benchmarks.measuring import table

DOCS = Path(__file__).parents[2] / "docs"
SEEDS, IMAGES, BATCH, STEPS = (0, 1, 2), 225, 25, 50
EXPLAINED = 75
NETS = {"fcn": "FCN 3x256", "vgg": "VGG-11 of a quarter width", "resnet": "ResNet of twelve blocks"}
METHODS = ("conductance", "branch_conductance", "integrated_gradients", "gradient_x_activation")
OF_SKIPS = METHODS[1]  # as conductance, where there is no skip
MAPS = ("saliency", "integrated_gradients", "smoothgrad")
SHIFTS = (1, 2, 3, 4, 8)
SHOWN = (1, 2, 3, 4, 8)
VARIANTS = {
    "original": [],
    "blurpool": [{"blurpool": {}}],
    "spd": [{"spd": {}}],
    "aps": [{"aps": {"padding": "circular"}}],
}
LEVEL = 0.05
Found = dict[tuple[str, int], StoredResult]


def methods(net: str) -> list[str]:
    """What is asked of a net."""
    return [method for method in METHODS if net == "resnet" or method != OF_SKIPS]


def recipe_of(name: str, seed: int, **changes: Any) -> recipes.RecipeFile:
    """A shipped recipe of a seed, without its analyses."""
    content = with_seed(recipes.load(name), seed).model_dump()
    return recipes.load({**content, "analysis": [], **changes})


def validation(recipe: recipes.RecipeFile) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every other validation image."""
    digits = open_source(recipe.data).val
    chosen = range(0, len(digits), len(digits) // IMAGES)[:IMAGES]
    keys = [[(0, i) for i in chosen[j : j + BATCH]] for j in range(0, IMAGES, BATCH)]
    return [digits.__getitems__(key) for key in keys]


def trained(recipe: recipes.RecipeFile, folder: Path, weights: str) -> torch.nn.Module:
    """A net of a recipe, trained where that is still to do."""
    if not (folder / weights).exists():
        recipes.run(recipe, folder)
    return surgeon.load(folder / weights).eval()


def kept(file: Path, compute: Any) -> StoredResult:
    """A result, computed where there is none yet."""
    if not file.exists():
        found = compute()
        found.to_json(file)
        print(f"{file.stem}: {found.summary}", flush=True)
    return analysis.read_result(file)


def units(runs: Path) -> Found:
    """Attributions of every net and seed, beside robustness."""
    found = {}
    for net in NETS:
        for seed in SEEDS:
            recipe = recipe_of(f"digits_layers_{net}", seed)

            def compute(recipe: Any = recipe, net: str = net, seed: int = seed) -> Any:
                model, data = trained(recipe, runs / f"{net}_seed_{seed}", "weights"), validation(recipe)
                beside = analysis.robustness(model, data, draws=3, tolerance=0.02, seed=seed)
                more: dict[str, Any] = {"method": methods(net), "steps": STEPS, "seed": seed, "limit": EXPLAINED}
                return analysis.attribution(model, data, robustness=beside, **more)

            found[net, seed] = kept(runs / f"units_{net}_seed_{seed}.json", compute)
    return found


def shifts(runs: Path) -> Found:
    """Attribution equivariance of every variant and seed."""
    found = {}
    for seed in SEEDS:
        compare = {name: {"surgery": surgery} for name, surgery in VARIANTS.items()}
        recipe = recipe_of("digits_spd", seed, compare=compare)
        for name in VARIANTS:

            def compute(recipe: Any = recipe, name: str = name, seed: int = seed) -> Any:
                model = trained(recipe, runs / f"spd_seed_{seed}", f"{name}/weights")
                more: dict[str, Any] = {"method": MAPS, "shifts": SHIFTS, "seed": seed, "steps": STEPS}
                return analysis.attribution_equivariance(model, validation(recipe), limit=EXPLAINED, **more)

            found[name, seed] = kept(runs / f"shifts_{name}_seed_{seed}.json", compute)
    return found


def pm(values: list[float], form: str = ".2f") -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(values):{form}} ± {statistics.stdev(values):{form}}"


def as_table(rows: list[dict[str, str]]) -> str:
    """Every column as text."""
    return table(rows, dict.fromkeys(rows[0], "s"))


def rank_table(found: Found) -> str:
    """Rank correlations of each net and method."""
    lines = []
    for net, words in NETS.items():
        for method in methods(net):
            ranks = [found[net, seed].settings["rank_correlation"][method] for seed in SEEDS]
            told = [
                f"{r['spearman']:+.2f} ({r['low_95']:+.2f} to {r['high_95']:+.2f}, p {r['p_value']:.2g})" for r in ranks
            ]
            mean = pm([r["spearman"] for r in ranks])
            line = {
                "net": words,
                "units": str(ranks[0]["units"]),
                "method": method.replace("_", " "),
                "mean ± sd": mean,
            }
            lines.append({**line, **{f"seed {seed}": one for seed, one in zip(SEEDS, told, strict=True)}})
    return as_table(lines)


def verdicts(found: Found) -> str:
    """What the correlations come to, net by net."""
    lines = []
    for net, words in NETS.items():
        told: dict[str, list[str]] = {}
        for method in methods(net):
            ranks = [found[net, seed].settings["rank_correlation"][method] for seed in SEEDS]
            told.setdefault(verdict([(r["spearman"], r["p_value"]) for r in ranks]), []).append(
                method.replace("_", " ")
            )
        lines += [f"- {words}, {', '.join(names)}: {what}." for what, names in told.items()]
    return "\n".join(lines)


def verdict(ranks: list[tuple[float, float]]) -> str:
    """Of the correlations and their p-values, one per seed."""
    more, less = (sum(sign * rho > 0 and p < LEVEL for rho, p in ranks) for sign in (1, -1))
    if max(more, less) == len(ranks):
        return (
            f"**the more flows through a unit, the {'more' if more else 'less'} drawing it anew costs**, in every seed"
        )
    if more or less:
        ways = ((more, "the more"), (less, "the less"))
        which = [f"{way} drawing it anew costs in {count} of {len(ranks)} seeds" for count, way in ways if count]
        return f"the more flows through a unit, {' and '.join(which)} (p < {LEVEL})"
    return f"not told from chance (p < {LEVEL}) in any seed"


def alone(found: Found) -> str:
    """Rank correlations of branch conductance over the blocks of the ResNet whose skip is an identity."""
    words = []
    for seed in SEEDS:
        rows = [row for row in found["resnet", seed].rows if row["taken"].endswith("less its input")]
        ranks = rank_agreement([r["absolute_share"] for r in rows], [r["rerand_difference"] for r in rows], seed)
        words.append(f"{ranks['spearman']:+.2f} (p {ranks['p_value']:.2g}, {ranks['units']} blocks)")
    return ", ".join(words)


def exactness(found: Found) -> dict[str, float]:
    """How exact the sums are."""
    results = [found[net, seed] for net in NETS for seed in SEEDS]
    whole = [r.settings["completeness_error"]["conductance"] for r in results]
    rows = [row for r in results for row in r.rows if row["method"] == "conductance"]
    apart = [abs(row["signed_share"] - 1) for row in rows]
    return {
        "completeness": max(whole),
        "apart": max(apart),
        "left": sum(r.settings["images_left_out"] for r in results),
    }


def shift_table(found: Found) -> str:
    """Pearson's correlation of each variant and method, by shift."""
    lines = []
    for method in MAPS:
        for name in VARIANTS:
            line = {"map": method.replace("_", " "), "net": name}
            for shift in SHOWN:
                rows = [row_of(found[name, seed], method, shift) for seed in SEEDS]
                line[f"{shift} px"] = pm([row["pearson"] for row in rows], ".3f")
            rows = [row_of(found[name, seed], method, 1) for seed in SEEDS]
            line["1 px, left where it was"] = pm([row["stayed_pearson"] for row in rows], ".3f")
            line["1 px, another image"] = pm([row["chance_pearson"] for row in rows], ".3f")
            lines.append(line)
    return as_table(lines)


def row_of(result: StoredResult, method: str, shift: int) -> dict[str, Any]:
    """Of a diagonal shift."""
    return next(row for row in result.rows if row["method"] == method and row["shift_right_px"] == shift)


def shift_words(found: Found) -> str:
    """What the table comes to."""

    def mean(name: str, method: str, shift: int, key: str = "pearson") -> float:
        return statistics.fmean(row_of(found[name, seed], method, shift)[key] for seed in SEEDS)

    lines = []
    for name in VARIANTS:
        one, whole = ([mean(name, method, shift) for method in MAPS] for shift in (1, 4))
        stays = sum(mean(name, method, 1, "stayed_pearson") > mean(name, method, 1) for method in MAPS)
        better = sum(mean(name, method, 4) > mean("original", method, 4) for method in MAPS)
        beside = "" if name == "original" else f"; there above the original for {better} of {len(MAPS)} kinds of map"
        lines.append(
            f"- {name}: {min(one):.2f} to {max(one):.2f} at 1 px, where a map left in its place agrees better for "
            f"{stays} of {len(MAPS)} kinds; {min(whole):.2f} to {max(whole):.2f} at 4 px{beside}."
        )
    return "\n".join(lines)


def cost(runs: Path) -> dict[str, float]:
    """Seconds of conductance for all blocks of the ResNet, and of captum's LayerConductance one by one."""
    from captum.attr import LayerConductance

    recipe = recipe_of("digits_layers_resnet", 0)
    model = trained(recipe, runs / "resnet_seed_0", "weights")
    images, targets = validation(recipe)[0]
    blocks = [unit for unit in analysis.units(model) if len(unit.paths) == 1]
    begun = time.perf_counter()
    analysis.attribution(model, [(images, targets)], units=blocks, steps=STEPS, robustness=False, progress=False)
    ours = time.perf_counter() - begun
    begun = time.perf_counter()
    for unit in blocks:
        layer = model.get_submodule(unit.paths[0])
        LayerConductance(model, layer).attribute(images, target=targets, n_steps=STEPS)
    return {"ours": ours, "stock": time.perf_counter() - begun, "blocks": len(blocks), "cost_images": len(images)}


def main() -> None:
    """Compute what is missing, then write the page and its pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/attribution"))
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    runs.mkdir(parents=True, exist_ok=True)
    by_unit, by_shift = units(runs), shifts(runs)
    text = TEXT.format(
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        captum=version("captum"),
        **{"seeds": len(SEEDS), "images": EXPLAINED, "judged": IMAGES, "steps": STEPS},
        ranks=rank_table(by_unit),
        verdicts=verdicts(by_unit),
        **exactness(by_unit),
        alone=alone(by_unit),
        shifts=shift_table(by_shift),
        shift_words=shift_words(by_shift),
        **cost(runs),
    )
    (DOCS / "attribution.md").write_text(text)
    by_unit["resnet", 0].figure().savefig(DOCS / "attribution_units.png", dpi=100)
    by_shift["original", 0].figure().savefig(DOCS / "attribution_shifts.png", dpi=100)


if __name__ == "__main__":
    main()
