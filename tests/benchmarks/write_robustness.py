"""Write docs/robustness.md from finished runs: python -m tests.benchmarks.write_robustness RUNS.

RUNS holds what ``surgeon run digits_layers_fcn --seeds 3 --out RUNS/digits_layers_fcn`` and the like have left; of
digits_width five seeds. Every verdict of the page is computed from the rows; the rules stand in robustness_claims.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.heatmap import heatmap_mean
from tests.benchmarks import robustness_claims as claims
from tests.benchmarks.measuring import table
from tests.benchmarks.robustness_rows import TOLERANCE, Net, laters, pm

DOCS = Path(__file__).parents[2] / "docs"
NETS = {"fcn": "FCN 3x256", "vgg": "VGG-11 of a quarter width", "resnet": "ResNet of twelve blocks"}
CONFIGURATIONS = {"plain": "N/A", "wd": "+wd", "bn": "+bn", "wd_bn": "+wd+bn"}
QUARTER = {"vgg": "VGG-11 of a quarter width", "resnet": "ResNet-18 of a quarter width"}
PRINTED = {"vgg": ("VGG11", 11.8, 10.7, 9.4, 8.2), "resnet": ("ResNet18", 10.4, 7.5, 6.9, 5.5)}  # CIFAR-10, Table 3
TABLE_1 = {"paper: ResNet50": (8.40, "9.77 ± 1.38", 11.74, 9.23), "paper: ResNet152": (8.54, "8.74 ± 0.39", 9.17, 9.23)}
WIDTHS = (16, 32, 64, 128, 256, 512)
TEXT = """# Are all layers equal? On digits

Measured on {date}, torch {torch}, timm {timm}. `python -m tests.benchmarks.write_robustness RUNS` writes this page from
the runs of the shipped recipes; its verdicts are computed from their rows. Zhang, Bengio and Singer (JMLR 2022,
arXiv:1902.01996) set one layer of a trained net back to its initial values (re-initialise, column 0; columns 1 and 10:
to its values after that epoch) or draw it anew (re-randomise), and count the errors. Here the nets are small, the data
scikit-learn's digits (1,347 to train, 450 to validate), without norm and weight decay where nothing else is said; SGD
with Nesterov's momentum, the learning rate times 0.2 at 30%, 60% and 90%. Figures are mean ± standard deviation over
{seeds} seeds; of re-randomised layers over three draws each too. A layer counts as robust where it costs at most
{tolerance:g} points: 450 images tell no less.

## Does the paper's pattern show?

A claim shows in a seed where its rule holds there; the rules stand in `tests/benchmarks/robustness_claims.py`.

{claims}

## Layer by layer: Figs. 1, 4 and 5

`surgeon run digits_layers_fcn --seeds 3`, likewise `_vgg` and `_resnet`. Bright is bad; the number is the error, below
it the standard deviation over seeds; the last row or column is the whole net at that checkpoint. What a run writes also
has each seed's table, distances and a page.

Error of the trained nets: {errors}.

![error of each layer of the FCN, set back or drawn anew](robustness_fcn.png)

![error of each layer of the VGG, set back or drawn anew](robustness_vgg.png)

![error of each block of the ResNet, set back or drawn anew](robustness_resnet.png)

## Several together: Figs. 8 to 10

Error gained, in points, where the layers of a group are treated at once; "alone" is the mean over the same layers one
by one. `all-but-first` of the ResNet are the second and third block of every stage, `@1,4` those of stages 1 and 4.

{joint}

The largest set on the way of `search_joint` (greedy, initial values) that costs at most {tolerance:g} points; sets are
chosen on one half of the images, figures are of the other, whose intervals are too wide to prove most of them robust:

{search}

## Can blocks be made robust? Table 1

`surgeon run digits_frozen --seeds 3`: error in percent of the full net, with one block but the first of its stage
re-initialised (mean over these blocks), with all of them re-initialised at once, and of nets that were trained with
these blocks frozen at their initial weights, or without them.

{frozen}

## Wide and narrow: Fig. 3

`surgeon run digits_width --seeds 5`: error gained where one layer but the first is re-initialised, mean over these
layers; bars are one standard deviation over five seeds.

{width}

![error gained by re-initialising upper layers, by width](robustness_width.png)

## Norm and weight decay: Table 3, Figs. 11 and 12

`surgeon run digits_norm_decay_vgg --seeds 3`, likewise `_resnet`, of two blocks per stage; weight decay 5e-4, running
statistics are set back with their layer. Error in percent, the paper's on CIFAR-10:

{decay}

Layers (of all seeds) that cost at most {tolerance:g} points:

{kept}
"""


def rows_of(rows: list[dict[str, str]]) -> str:
    """A Markdown table of texts."""
    return table(rows, dict.fromkeys(rows[0], "s"))


def joint(nets: dict[str, Net]) -> str:
    """Groups of each net, treated together and one by one."""
    lines = []
    for name, net in nets.items():
        for group in dict.fromkeys(row["group"] for row in net.joint[0].rows):
            about = next(row for row in net.joint[0].rows if row["group"] == group)
            line = {"net": NETS[name], "group": group, "layers": str(about["units_treated"])}
            line["share of parameters"] = f"{about['share_of_params']:.0%}"
            for treatment, words in (("rerand", "drawn anew"), ("0", "re-initialised")):
                line[words] = pm(net.together(group, treatment))
                line[f"{words}, alone"] = pm(net.lost(about["units"].split(", "), treatment))
            lines.append(line)
    return rows_of(lines)


def search(nets: dict[str, Net]) -> str:
    """What `search_joint` found, seed by seed."""
    lines = []
    for name, net in nets.items():
        for seed, found in enumerate(net.search):
            fits = [row for row in found.rows if 100 * row["difference"] <= TOLERANCE]
            row = max(fits, key=lambda one: one["share_of_params"])
            low, high = (100 * row[f"difference_{end}_95"] for end in ("low", "high"))
            line = {"net": NETS[name], "seed": str(seed), "layers": row["units"] or "none"}
            line["share of parameters"] = f"{row['share_of_params']:.0%}"
            line["error gained (95%)"] = f"{100 * row['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"
            lines.append(line)
    return rows_of(lines)


def frozen(nets: dict[str, Net], resnet: Net) -> str:
    """Table 1."""
    full, blocks = nets["full"], laters(nets["full"])
    alone = [100 * row["error"] for block in blocks for row in full.rows(block, "0")]
    together = [a + b for a, b in zip(resnet.together("all-but-first", "0"), resnet.errors(), strict=True)]
    ours = {
        "net": NETS["resnet"], "full": pm(full.errors(), ".2f"), "one re-initialised": pm(alone, ".2f"),
        "all at once": pm(together, ".2f"), "frozen": pm(nets["frozen"].errors(), ".2f"),
        "removed": pm(nets["removed"].errors(), ".2f"),
    }  # fmt: skip
    paper = [
        dict(zip(ours, (name, f"{full:.2f}", one, "-", f"{cold:.2f}", f"{gone:.2f}"), strict=True))
        for name, (full, one, cold, gone) in TABLE_1.items()
    ]
    return rows_of([ours, *paper])


def width_table(nets: dict[int, Net]) -> str:
    """Fig. 3 as a table."""
    return rows_of(
        [
            {
                "width": str(width),
                "parameters": f"{net.rows('full model', 'final')[0]['params']:,}",
                "error": pm(net.errors(), ".2f"),
                "upper layers re-initialised": f"{pm(net.lost(net.units[1:], '0'))} points",
                "first layer re-initialised": f"{pm(net.lost(net.units[:1], '0'))} points",
            }
            for width, net in nets.items()
        ]
    )


def width_figure(nets: dict[int, Net]) -> Figure:
    """Fig. 3: a bar per width and upper layer."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, units = figure.subplots(), next(iter(nets.values())).units[1:]
    for i, (unit, colour) in enumerate(zip(units, ("#0072B2", "#E69F00", "#009E73"), strict=True)):
        lost = [net.lost([unit], "0") for net in nets.values()]
        places = [place + (i - 1) * 0.27 for place in range(len(nets))]
        means, bars = [statistics.fmean(one) for one in lost], [statistics.stdev(one) for one in lost]
        axes.bar(places, means, 0.25, yerr=bars, color=colour, label=unit, capsize=2, error_kw={"linewidth": 1})
    axes.set_xticks(range(len(nets)), [str(width) for width in nets])
    axes.set(xlabel="width of the hidden layers", ylabel="error gained (points)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="set back to its initial values")
    return figure


def decay(nets: dict[str, dict[str, Net]]) -> tuple[str, str]:
    """Table 3, and how many layers stay robust."""
    errors, kept = [], []
    for name, variants in nets.items():
        errors.append(
            {"net": QUARTER[name], **{words: pm(variants[key].errors()) for key, words in CONFIGURATIONS.items()}}
        )
        printed = dict(zip(CONFIGURATIONS.values(), PRINTED[name][1:], strict=True))
        errors.append({"net": f"paper: {PRINTED[name][0]}", **{words: f"{value}" for words, value in printed.items()}})
        for treatment, how in (("rerand", "drawn anew"), ("0", "to 0"), ("1", "to 1"), ("10", "to 10")):
            shares = {words: f"{variants[key].share_robust(treatment):.0%}" for key, words in CONFIGURATIONS.items()}
            kept.append({"net": QUARTER[name], "treatment": how, **shares})
    return rows_of(errors), rows_of(kept)


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs
    nets = {name: Net(runs, f"digits_layers_{name}") for name in NETS}
    widths = {width: Net(runs, "digits_width", f"width_{width}") for width in WIDTHS}
    decayed = {
        name: {key: Net(runs, f"digits_norm_decay_{name}", key) for key in CONFIGURATIONS} for name in ("vgg", "resnet")
    }
    frozen_nets = {name: Net(runs, "digits_frozen", name) for name in ("full", "frozen", "removed")}
    for name, net in nets.items():
        net.layers[0].title = f"{NETS[name]}: error, mean ± standard deviation over {len(net.layers)} seeds"
        heatmap_mean(net.layers).savefig(DOCS / f"robustness_{name}.png", dpi=110)
    width_figure(widths).savefig(DOCS / "robustness_width.png", dpi=110)
    parts: dict[str, Any] = dict(zip(("decay", "kept"), decay(decayed), strict=True))
    text = TEXT.format(
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        timm=timm.__version__,
        seeds=len(nets["fcn"].layers),
        tolerance=TOLERANCE,
        claims=claims.every(nets, widths, decayed, frozen_nets),
        errors=", ".join(f"{NETS[name]} {pm(net.errors(), '.2f')}%" for name, net in nets.items()),
        joint=joint(nets),
        search=search(nets),
        frozen=frozen(frozen_nets, nets["resnet"]),
        width=width_table(widths),
        **parts,
    )
    (DOCS / "robustness.md").write_text(text)


if __name__ == "__main__":
    main()
