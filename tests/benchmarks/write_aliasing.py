"""Train three nets on digits, look for what their strides do, and write docs/aliasing.md with its pictures.

python -m tests.benchmarks.write_aliasing [RUNS]; a quarter of an hour on one core. What RUNS (runs/aliasing) holds
already is not computed again.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import analysis
import surgeon
from recipes.data_schema import DigitsData
from recipes.digits import Digits
from tests.benchmarks.measuring import table

DOCS = Path(__file__).parents[2] / "docs"
SIZE, CANVAS, REACH, SEEDS, EPOCHS, BATCH, IMAGES = 24, 64, 32, (0, 1, 2), 8, 64, 225
NETS: dict[str, Any] = {"original": None, "SPD": "spd", "APS": {"aps": {"padding": "circular"}}}
KINDS = ("translation", "equivariance", "sampling_map")
PATHS = ["conv1", "maxpool", "layer1", "layer2", "layer3", "layer4", "global_pool", "fc"]  # there in all nets
UNITS = ("conv1", "layer2", "layer4", "global_pool")
PERIODS = (2, 4, 8, 16)
TEXT = """# What strides leave behind: sampling map, equivariance error, aliasing

Measured on {date}, torch {torch}, timm {timm}. `python -m tests.benchmarks.write_aliasing` writes this page. The net is
timm's `test_resnet` (five strides of 2, global average pooling), its convs padding around instead of with zeros, so
that nothing but the strides can break its equivariance. *original* is that net, *SPD* the same after
`surgeon.apply(net, "spd")`, *APS* after `surgeon.apply(net, {{"aps": {{"padding": "circular"}}}})`. The data are
scikit-learn's digits, {size} pixels wide in the middle of a {canvas}-pixel canvas; all nets are trained alike for
{epochs} epochs on centred digits, and never see a shifted one: whatever invariance they have is built in. {images}
validation images; mean ± standard deviation over {seeds} seeds. Small nets and easy images: this page shows what the
three measures tell, not what ImageNet would.

On your own net, all three and the curve they explain on one page:

```bash
surgeon analyze aliasing runs/digits_spd/original
surgeon analyze aliasing resnet50 --pretrained --data folder:imagenet --limit 1000 --reach 64
```

## The sampling map: which pixels are read how often

`analysis.sampling_map(net)` counts the reads of each position by strided convs and pools: taps of a kernel, whatever
their weight. A 3x3 conv of stride 2 reads a quarter of its input once, half twice, a quarter four times; a 1x1 conv of
stride 2 leaves three quarters unread. "image" is the same down to the image, through all layers before, over the mean.

{sampling}

![reads of each strided layer's input and of the image, before and after SPD](aliasing_sampling.png)

{sampling_words}

## The equivariance error: where it is lost

`analysis.equivariance(net, images, units=["conv1", "maxpool", "layer1", ...])`: how far the features of a shifted
image are from the shifted features, over how far they are from those of another image (1: as different as another
digit). Circular shifts, right and down alike.

{equivariance}

![error against depth of the original net](aliasing_equivariance_original.png)

![error against depth of the net with SPD](aliasing_equivariance_spd.png)

![error against depth of the net with APS](aliasing_equivariance_aps.png)

{equivariance_words}

## The spectrum: what is left repeats with the strides

`scan = analysis.translation(net, data, axis="diagonal", reach={reach}, padding="circular")`, then
`analysis.aliasing(scan, column="loss", model=net)`: the loss over shifts, a smooth trend taken away, and the share of
the variance around it that each stride's period adds to the shorter ones; in brackets in how many seeds noise
does not explain the period (5% for all periods together).

{spectra}

![loss over shifts and its spectrum, original net](aliasing_spectrum_original.png)

![loss over shifts and its spectrum, net with SPD](aliasing_spectrum_spd.png)

![loss over shifts and its spectrum, net with APS](aliasing_spectrum_aps.png)

{spectra_words}

## Read with care

- The sampling map is of taps, not of weights. Right after an exact rewrite the new taps are zero and the function is
  the old one (`sampling_map(net, weights="nonzero")` then shows the old map); training fills them.
- Nets that pad with zeros, as almost all do, also lose equivariance at every border, and the deeper the further from
  it; there the error is no measure of strides alone. `border="crop"` leaves out what a shift brings in, not what zero
  padding spreads.
- Features are compared after a shift by s / r positions. Where that is no whole number they are read between positions
  (Fourier), which is exact for features without aliasing only: so this too is an error of the features.
- A period must fit four times into the curve to be looked for: at fewer, a smooth bump passes for a period.
"""


def data(training: bool) -> tuple[Tensor, Tensor]:
    """All digits of a part, centred."""
    digits = Digits(DigitsData(size=SIZE, canvas=CANVAS, placement="centre"), training)
    images, targets = digits.__getitems__([(0, i) for i in range(len(digits))])
    return images, targets


def built(recipe: Any, seed: int) -> nn.Module:
    """A net whose convs pad around, operated before training."""
    torch.manual_seed(seed)
    net: nn.Module = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and any(module.padding):
            module.padding_mode = "circular"
    return net if recipe is None else surgeon.apply(net, recipe, (1, CANVAS, CANVAS))


def trained(net: nn.Module, seed: int, images: Tensor, targets: Tensor) -> nn.Module:
    """A net after training."""
    torch.manual_seed(seed)
    each = len(images) // BATCH
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, EPOCHS * each)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for step in range(each):
            chosen = order[BATCH * step :][:BATCH]
            optimizer.zero_grad()
            functional.cross_entropy(net(images[chosen]), targets[chosen]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def measured(net: nn.Module, folder: Path) -> None:
    """What takes a pass over images, as JSON."""
    images, targets = data(False)
    batches = list(zip(images[:IMAGES].split(75), targets[:IMAGES].split(75), strict=True))
    circular: Any = {"padding": "circular", "progress": False}
    scan = analysis.translation(net, batches, axis="diagonal", reach=REACH, step=1, **circular)
    results = (
        scan,
        analysis.equivariance(net, batches, units=PATHS, **circular),
        analysis.sampling_map(net, (1, CANVAS, CANVAS)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / "net.pt")
    for kind, result in zip(KINDS, results, strict=True):
        result.to_json(folder / f"{kind}.json")


def spread(values: list[float], form: str) -> str:
    """Mean and standard deviation in words."""
    return f"{statistics.fmean(values):{form}} ± {statistics.stdev(values):{form}}"


def sampling_rows(found: Any) -> list[dict[str, str]]:
    """The original beside SPD: of each layer's input, and of the image by its outputs."""
    rows = []
    for site in dict.fromkeys(row["site"] for row in found.rows):
        line = {"layer": site}
        for state in ("before", "after"):
            row = next(r for r in found.rows if r["state"] == state and r["site"] == site)
            line[f"reads, {state}"] = row["pattern"] or "-"
            line[f"image, {state}"] = f"{row['image_min']:.2f} to {row['image_max']:.2f}"
        rows.append(line)
    return rows


def equivariance_rows(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """Errors of some units by shift."""
    rows = []
    for name, several in runs.items():
        for unit in UNITS:
            line = {"net": name, "behind": unit}
            for shift in dict.fromkeys((r["dx_px"], r["dy_px"]) for r in several[0]["equivariance"].rows):
                line[f"{shift[0]:g} px"] = spread(errors(several, unit, shift), ".2f")
            rows.append(line)
    return rows


def errors(several: list[dict[str, Any]], unit: str, shift: tuple[float, float]) -> list[float]:
    """Of all seeds."""
    every = [row for run in several for row in run["equivariance"].rows if row["path"] == unit]
    return [row["relative_error"] for row in every if (row["dx_px"], row["dy_px"]) == shift]


def spectrum_rows(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """Accuracies, and shares of the periods."""
    rows = []
    for name, several in runs.items():
        scans = [run["translation"].rows for run in several]
        line = {
            "net": name,
            "accuracy, centred": spread([r["accuracy"] for scan in scans for r in scan if r["dx_px"] == 0], ".1%"),
            "over all shifts": spread([statistics.fmean(r["accuracy"] for r in scan) for scan in scans], ".1%"),
        }
        for period in PERIODS:
            mine = of_period(several, period)
            sure = sum(row["verdict"] == "periodic" for row in mine)
            own = statistics.fmean(row["own_share"] for row in mine)
            line[f"{period} px"] = f"{own:.0%} ({sure} of {len(mine)})"
        line["loss, highest less lowest"] = spread([wide(scan) for scan in scans], ".2g")
        rows.append(line)
    return rows


def wide(scan: list[dict[str, Any]]) -> float:
    """How far the loss goes over all shifts."""
    losses = [row["loss"] for row in scan]
    return float(max(losses) - min(losses))


def of_period(several: list[dict[str, Any]], period: int) -> list[dict[str, Any]]:
    """Rows of all seeds."""
    return [row for run in several for row in run["aliasing"].rows if row["period_px"] == period]


def as_table(rows: list[dict[str, str]]) -> str:
    """Every column as text."""
    return table(rows, dict.fromkeys(rows[0], "s"))


def main() -> None:
    """Compute what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs/aliasing"))
    folder = parser.parse_args().runs
    torch.set_num_threads(1)
    images, targets = data(True)
    for seed in SEEDS:
        for name, recipe in NETS.items():
            place = folder / f"{name.lower()}_{seed}"
            if not (place / f"{KINDS[-1]}.json").exists():
                measured(trained(built(recipe, seed), seed, images, targets), place)
                print(place, flush=True)
    write({name: [read(folder / f"{name.lower()}_{seed}", name) for seed in SEEDS] for name in NETS})


def read(folder: Path, name: str) -> dict[str, Any]:
    """The results of one net, its aliasing among them."""
    found: dict[str, Any] = {kind: analysis.read_result(folder / f"{kind}.json") for kind in KINDS}
    net, size = built(NETS[name], 0), (1, CANVAS, CANVAS)
    found["aliasing"] = analysis.aliasing(found["translation"], column="loss", model=net, input_size=size)
    return found


def write(runs: dict[str, list[dict[str, Any]]]) -> None:
    """The page and its pictures."""
    DOCS.joinpath("aliasing.md").write_text(
        TEXT.format(
            date=datetime.date.today().isoformat(), torch=torch.__version__, timm=timm.__version__, size=SIZE,
            canvas=CANVAS, epochs=EPOCHS, images=IMAGES, seeds=len(SEEDS), reach=REACH,
            sampling=as_table(sampling_rows(runs["SPD"][0]["sampling_map"])), sampling_words=sampling_words(runs),
            equivariance=as_table(equivariance_rows(runs)), equivariance_words=equivariance_words(runs),
            spectra=as_table(spectrum_rows(runs)), spectra_words=spectra_words(runs),
        ),
        encoding="utf-8",
    )  # fmt: skip
    runs["SPD"][0]["sampling_map"].figure().savefig(DOCS / "aliasing_sampling.png", dpi=100)
    for name, several in runs.items():
        for kind, title in (("equivariance", "equivariance"), ("aliasing", "spectrum")):
            figure = several[0][kind].figure()
            figure.suptitle(f"{name}, seed {SEEDS[0]}", fontsize=11)
            figure.savefig(DOCS / f"aliasing_{title}_{name.lower()}.png", dpi=90)


def sampling_words(runs: dict[str, list[dict[str, Any]]]) -> str:
    """What the map says, in its own words."""
    return f"In words of the result: {runs['SPD'][0]['sampling_map'].summary}"


def equivariance_words(runs: dict[str, list[dict[str, Any]]]) -> str:
    """What the errors say."""
    one = {name: statistics.fmean(errors(runs[name], "global_pool", (1.0, 1.0))) for name in runs}
    rows = [row for run in runs["APS"] for row in run["equivariance"].rows]
    largest = max(row["relative_error"] for row in rows if row["path"] == "global_pool")
    stem = statistics.fmean(errors(runs["SPD"], "conv1", (2.0, 2.0)))
    return f"""- **Original**: a shift by the total stride so far, or a multiple, costs next to nothing (what is left is
  the max pool, which does not pad around); a shift by less is an error from that stride on, and pooling over all
  positions does not heal it: {one["original"]:.2f} behind `global_pool` at 1 pixel.
- **SPD** reads every pixel, and still answers at every second position only: {one["SPD"]:.2f} at 1 pixel.
  Space-to-depth loses nothing, but a shift by one pixel exchanges the channels it has filled, and nothing makes the
  conv behind it treat them alike. Its error at 2 pixels behind `conv1` ({stem:.2f}, where the original has none) is of
  another kind: the taps that SPD adds read zeros beyond the border, whatever the padding of the conv, and digits on
  black (which is -0.8 in these images, not 0) have a border all around.
- **APS** follows the image: behind `global_pool` its largest error over all shifts and seeds is {largest:.1g}. Its maps
  in between differ by half positions, since it may choose another grid, and that is no loss."""


def spectra_words(runs: dict[str, list[dict[str, Any]]]) -> str:
    """What the spectra say."""
    lines = []
    for name, several in runs.items():
        sure = [f"{p} px" for p in PERIODS if all(row["verdict"] == "periodic" for row in of_period(several, p))]
        some = [
            f"{p} px" for p in PERIODS
            if any(r["verdict"] == "periodic" for r in of_period(several, p)) and f"{p} px" not in sure
        ]  # fmt: skip
        share = statistics.fmean(of_period(several, PERIODS[-1])[i]["share"] for i in range(len(SEEDS)))
        said = f"periodic in all seeds at {', '.join(sure)}" if sure else "no period in all seeds"
        said += f", in some at {', '.join(some)}" if some else ""
        lines.append(f"- **{name}**: {said}; all periods together hold {share:.0%} of the variance around the trend.")
    most = max(wide(run["translation"].rows) for run in runs["APS"])
    if most < 1e-3:
        lines[-1] = (
            f"- **APS**: the loss differs by {most:.1g} at most, which is rounding: nothing is left that could repeat."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
