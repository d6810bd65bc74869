"""Write docs/spatial_dependence.md from finished runs: python -m tests.benchmarks.write_spatial_dependence RUNS.

RUNS holds what ``surgeon run digits_spatial_vgg --seeds 3 --out RUNS/digits_spatial_vgg``, the same for
``digits_spatial_resnet``, and ``..._sweep`` of both have left. Every verdict of the page is computed from the rows.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from pathlib import Path

import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import analysis
from analysis.drawing import GREY, HUES, MARKERS, tidy
from recipes.viewing import view_images, view_model
from tests.benchmarks.dependence_claims import PAPER, TITLES, claims, mean, starts, trained_from
from tests.benchmarks.dependence_rows import Net, percent
from tests.benchmarks.measuring import table

DOCS = Path(__file__).parents[2] / "docs"
SINGLES = {
    "vgg": {"layer1": 0, "layer4": 3, "layer7": 6, "layer10": 9, "layer13": 12},
    "resnet": {"image": 0, "block1": 1, "block3": 3, "block5": 5, "block7": 7},
}
SHARES = {"vgg": {"8": 1, "31": 4, "54": 7, "77": 10, "100": 13}, "resnet": {"31": 2, "56": 4, "81": 6, "100": 8}}
TEXT = """# What does a net need of where things are? On digits

Measured on {date}, torch {torch}, timm {timm}. `python -m tests.benchmarks.write_spatial_dependence RUNS` writes this
page from the runs of the shipped recipes; its verdicts are computed from their rows. Fan, Xian, Losch and Schiele (GCPR
2020, arXiv:2002.01827) train a net anew for each shuffle of its features; `analysis.spatial_dependence` shuffles the
features of one trained net at test time. Here are both, on two nets: `digits_vgg16` (VGG-16's thirteen convs, 8 to 32
channels) and `resnet18_cifar` of width 8 (eight blocks), which learn scikit-learn's digits, 24 pixels wide at a random
place of a 32-pixel canvas (1,347 to train, 450 to validate), for 20 and for 12 epochs. Figures are accuracy in percent,
mean ± standard deviation over {seeds} seeds; at test time each is the mean of {passes} draws too. Intervals are
Student's t over the seeds. Digits are an easier question than CIFAR-100: compare directions, not sizes.

```python
result = analysis.spatial_dependence(model, batches, shuffles=["spatial", "channel"], which=["alone", "last"], passes=5)
print(result, result.tail("spatial", tolerance=0.02))  # how many last units need no positions
result.report("spatial.html")
```

```bash
surgeon analyze spatial runs/mine                    # or resnet50 --pretrained --data folder:imagenet/val
surgeon analyze spatial best.pt --data mine.yaml --shuffle spatial --which alone
```

What the convs larger than 1x1 of a unit read is shuffled, each channel's positions by a permutation of its own, and the
features of its skips by others; a batch shares a draw. Pools and attention read positions too and are not shuffled. All
of it happens in a copy, as layers that are silent until they are switched on, so that every shuffle is measured in one
pass over the data and what lies before it is computed once.

## Does the paper's pattern show?

{claims}

## The last layers: Table 1 at test time, Figures 4 and 5

"trained" nets were trained and tested with the shuffle; "at test time" the net without shuffles is shuffled.

{last}

"paper" is VGG-16, or ResNet-50 (of sixteen blocks), on CIFAR-100. Shuffled at test time only, the last 31% of VGG-16
leave 23.49% (spatial) and 1.04% (channel) there.

![accuracy against the share of last units, and of single units against patches: VGG](spatial_dependence_vgg.png)

![accuracy against the share of last units, and of single units against patches: ResNet](spatial_dependence_resnet.png)

## One layer, or all from it on: Figure 6

All positions are shuffled, of the layer alone or of it and every later one.

{single}

## Patches: Figure 7

One layer (block, the image itself), positions shuffled within cells; each cell of the table says "trained / at test
time". Where a patch is as large as the map, it is the whole map.

{patches}

## What it costs

`spatial_dependence` of the trained nets, 450 images, one thread, {cost_passes} draws of each shuffle.

{cost}
"""


def nets_of(runs: Path) -> list[Net]:
    """Both nets."""
    return [Net(runs, key, SINGLES[key], SHARES[key]) for key in SINGLES]


def last(net: Net) -> str:
    """The table of last layers."""
    rows = [_last_row(net, "none", None)]
    rows += [_last_row(net, f"{share}% ({count})", (share, count)) for share, count in net.shares.items()]
    return f"{TITLES[net.key]}:\n\n" + table(rows, dict.fromkeys(rows[0], "s"))


def _last_row(net: Net, label: str, which: tuple[str, int] | None) -> dict[str, str]:
    found, paper = {"last units": label}, PAPER[net.key]
    for shuffle in ("spatial", "channel"):
        share, count = which or ("", 0)
        trained = net.trained["original"] if which is None else net.trained.get(f"{shuffle}_last_{share}", [])
        if which is not None and not trained and shuffle == "spatial":
            trained = net.trained[f"{list(net.singles)[-1]}_whole"]
        at_test = net.start()[0] if which is None else net.at_test(count, shuffle)
        printed = paper.get("" if which is None else f"{shuffle}_last_{share}")
        found |= {f"{shuffle}, trained": percent(trained), f"{shuffle}, at test time": percent(at_test)}
        found[f"{shuffle}, paper"] = "-" if printed is None else f"{printed:.2f}"
    return found


def single(net: Net) -> str:
    """The table of one layer against all from it on."""
    rows = [
        {
            "layer": name,
            "alone, trained": percent(net.trained[f"{name}_whole"]),
            "from it on, trained": percent(trained_from(net, name, share)),
            "alone, at test time": percent(net.at_test(net.units[net.singles[name]])),
            "from it on, at test time": percent(net.at_test(net.shares[share])),
        }
        for name, share in starts(net)
    ]
    return f"{TITLES[net.key]}:\n\n" + table(rows, dict.fromkeys(rows[0], "s"))


def patches(net: Net) -> str:
    """The table of patches."""
    rows, sides = [], [2, 4, 8, None]
    for name, number in net.singles.items():
        unit = net.units[number]
        row = {"shuffled": name}
        for side in sides:
            trained = net.trained.get(f"{name}_whole" if side is None else f"{name}_patch_{side}", [])
            at_test = net.at_test(unit, "spatial" if side is None else "patch", side) if trained else []
            label = "whole map" if side is None else f"{side} x {side}"
            row[label] = f"{percent(trained)} / {percent(at_test)}" if trained else "-"
        rows.append(row)
    return f"{TITLES[net.key]}:\n\n" + table(rows, dict.fromkeys(rows[0], "s"))


def picture(net: Net) -> Figure:
    """Last units together, and single ones by patch: trained so, and at test time."""
    figure = Figure(figsize=(10.8, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{TITLES[net.key]} on digits: features shuffled", fontsize=11)
    left, right = figure.subplots(1, 2, sharey=True)
    total = max(net.shares.values())
    for place, shuffle in enumerate(("spatial", "channel")):
        every = [0, *net.shares.values()]
        seen = [net.at_test(count, shuffle) if count else net.start()[0] for count in every]
        _line(left, [count / total * 100 for count in every], seen, place, f"{shuffle}, at test time", True)
        known = [("", 0), *net.shares.items()]
        trained = [net.trained.get(f"{shuffle}_last_{share}" if share else "original", []) for share, _ in known]
        if shuffle == "spatial" and not trained[1]:
            trained[1] = net.trained[f"{list(net.singles)[-1]}_whole"]
        _line(left, [count / total * 100 for _, count in known], trained, place, f"{shuffle}, trained so", False)
    for place, side in enumerate((2, 8, None)):
        label = "whole map" if side is None else f"{side} x {side}"
        cells = [net.trained.get(f"{n}_whole" if side is None else f"{n}_patch_{side}", []) for n in net.singles]
        seen = [
            net.at_test(net.units[number], "spatial" if side is None else "patch", side) if cell else []
            for number, cell in zip(net.singles.values(), cells, strict=True)
        ]
        _line(right, range(len(cells)), cells, place + 2, f"{label}, trained so", False)
        _line(right, range(len(cells)), seen, place + 2, f"{label}, at test time", True)
    for axes in (left, right):
        axes.axhline(100 * mean(net.trained["original"]), color=GREY, linewidth=1, linestyle=":", label="no shuffle")
    tidy(
        left, "last layers shuffled together, % of all" if net.key == "vgg" else "last blocks, % of all", "accuracy, %"
    )
    tidy(right, "one place shuffled alone, within patches", "")
    right.set_xticks(range(len(net.singles)), list(net.singles))
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


def _line(axes, x, values, place, label, dashed) -> None:  # type: ignore[no-untyped-def]
    """A line of means with the standard deviation over seeds; solid where nets were trained so."""
    known = [(at, v) for at, v in zip(x, values, strict=True) if v]
    means = [100 * statistics.fmean(v) for _, v in known]
    spreads = [100 * statistics.stdev(v) for _, v in known]
    style = {"color": HUES[place], "marker": MARKERS[place], "markersize": 4, "capsize": 2, "linewidth": 1.4}
    axes.errorbar([at for at, _ in known], means, spreads, label=label, linestyle="--" if dashed else "-", **style)


def cost(runs: Path, passes: int) -> str:
    """Seconds of both methods, and of a plain pass."""
    rows = []
    for key, title in TITLES.items():
        viewed = view_model(str(runs / f"digits_spatial_{key}" / "seed_0"))
        images = [(x, y) for x, y in view_images(viewed, None, batch_size=150)]
        seconds, variants = {}, 0
        for method in ("single_pass", "naive"):
            start = time.perf_counter()
            found = analysis.spatial_dependence(
                viewed.model, images, passes=passes, progress=False, method=method, input_size=(1, 32, 32)
            )
            seconds[method] = time.perf_counter() - start
            own = [row for row in found.rows if row["which"] != "none" and not row["note"].startswith("as ")]
            variants = passes * sum((row["which"], row["units_shuffled"]) != ("last", 1) for row in own)
        rows.append(
            {
                "net": title,
                "shuffles": variants,
                "single_pass, s": seconds["single_pass"],
                "naive, s": seconds["naive"],
                "times faster": seconds["naive"] / seconds["single_pass"],
            }
        )
    return table(rows, {"net": "s", "shuffles": ",", "single_pass, s": ".1f", "naive, s": ".1f", "times faster": ".1f"})


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path)
    parser.add_argument("--passes", type=int, default=2, help="draws for the times")
    given = parser.parse_args()
    torch.set_num_threads(1)
    nets = nets_of(given.runs)
    for net in nets:
        picture(net).savefig(DOCS / f"spatial_dependence_{net.key}.png", dpi=110)
    text = TEXT.format(
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        timm=timm.__version__,
        seeds=len(nets[0].seeds),
        passes=nets[0].seen[0].settings["passes"],
        claims="\n".join(claim for claim in claims(nets)),
        last="\n\n".join(map(last, nets)),
        single="\n\n".join(map(single, nets)),
        patches="\n\n".join(map(patches, nets)),
        cost=cost(given.runs, given.passes),
        cost_passes=given.passes,
    )
    (DOCS / "spatial_dependence.md").write_text(text)


if __name__ == "__main__":
    main()
