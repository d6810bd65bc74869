"""Write docs/spatial.md from finished runs: python -m tests.benchmarks.write_spatial RUNS.

RUNS holds what ``surgeon run digits_shuffle --seeds 3 --out RUNS/digits_shuffle`` and the like have left.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import timm
import torch

import surgeon
from analysis import shift_sparsity
from tests.benchmarks.measuring import table

DOCS = Path(__file__).parents[2] / "docs"
PRINTED = {  # VGG-16 on CIFAR-100, Table 1
    "none_none": 74.10,
    "channel_channel": 67.56,
    "channel_none": 67.80,
    "none_channel": 1.04,
    "spatial_spatial": 74.07,
    "spatial_none": 73.74,
    "none_spatial": 23.49,
}
TEXT = """# What is spatial information worth? On digits

Measured on {date}, torch {torch}, timm {timm}. `python -m tests.benchmarks.write_spatial RUNS` writes this page from
the runs of the shipped recipes. The net is `digits_vgg16` (VGG-16's thirteen convs, 8 to 32 channels), the data
scikit-learn's digits, 24 pixels wide at a random place of a 32-pixel canvas: 1,347 to train, 450 to validate. Every
variant has the same initial weights, batches and placements per seed, so differences are taken seed by seed; their 95%
interval is Student's t over {seeds} seeds, wide as three runs are few. Digits are an easier question than CIFAR-100:
compare directions, not sizes.

## Shuffled in training / in test: the seven rows of Table 1

`surgeon run digits_shuffle --seeds 3`; the last 31% (four convs), as in Fan et al. 2020. "paper" is VGG-16 on
CIFAR-100.

{shuffles}

![accuracy and loss of the seven rows, epoch by epoch](spatial_shuffle.png)

{shuffle_words}

## GAP+FC

`surgeon run digits_gap_fc --seeds 3`; every conv of the last 31% and 54% becomes 1x1, weights drawn anew.

{gap_fcs}

![accuracy and loss with and without GAP+FC](spatial_gap_fc.png)

{gap_fc_words}

## Sparse shift at three penalties

`surgeon run digits_shift --seeds 3`; all convs but the first become shift + 1x1 conv, trained from scratch with an L2
penalty on the offsets. "do not move" is the share of channels whose offsets round to zero, over all layers.

{shifts}

![accuracy and loss of shift nets](spatial_shift.png)

{shift_words}

## Which depth knows the digit?

`surgeon run digits_gap`; one seed: a net trained for 20 epochs, then frozen; each depth (behind each max pool) pooled
over all positions and read by a new linear classifier.

{gaps}
"""


def rows_of(runs: Path, recipe: str) -> list[dict[str, Any]]:
    """The variants of a repeated recipe."""
    rows: list[dict[str, Any]] = json.loads((runs / recipe / "repeated.json").read_text())["rows"]
    return rows


def percent(row: dict[str, Any]) -> dict[str, str]:
    """A row in words."""
    low, high = row["difference_low"], row["difference_high"]
    apart = "-" if low is None else f"{row['difference']:+.1%} ({low:+.1%} to {high:+.1%})"
    return {
        "variant": row["variant"],
        "parameters": f"{row['params']:,}",
        "accuracy, mean ± sd": f"{row['mean']:.2%} ± {row['sd']:.2%}",
        "each seed": " ".join(f"{a:.1%}" for a in row["accuracies"]),
        "to the first, paired": apart,
    }


def as_table(rows: list[dict[str, str]]) -> str:
    """Every column as text."""
    return table(rows, dict.fromkeys(rows[0], "s"))


def shuffles(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Table 1, and whether each row agrees in direction with the paper's."""
    lines, verdicts = [], []
    first = rows[0]
    for row in rows:
        name = row["variant"]
        lines.append({**percent(row), "variant": name.replace("_", " / "), "paper": f"{PRINTED[name]:.2f}%"})
        if row is first:
            continue
        theirs, ours = PRINTED[name] - PRINTED["none_none"], 100 * row["difference"]
        agrees = (theirs * ours > 0 and abs(ours) > 0.5) or (abs(theirs) < 1 and row["difference_high"] > 0)
        sure = "" if row["difference_high"] < 0 else ", which three seeds cannot tell from none"
        words = "agrees" if agrees else "does not agree"
        verdicts.append(
            f"- {name.replace('_', ' / ')}: {ours:+.1f} points here{sure}, {theirs:+.1f} in the paper: {words} in "
            "direction."
        )
    same = (
        "Rows that differ in the test alone share their training: the same draws, so the same loss curve. Their "
        "accuracies differ by what the test shuffles."
    )
    return as_table(lines), "\n".join([same, "", *verdicts])


def gap_fcs(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """GAP+FC, and whether it agrees with the paper."""
    words = []
    for row in rows[1:]:
        saved = 1 - row["params"] / rows[0]["params"]
        told = "cannot be told from" if row["difference_high"] >= 0 >= row["difference_low"] else "differs from"
        words.append(
            f"- {row['variant']}: {saved:.0%} fewer parameters, {100 * row['difference']:+.1f} points; over all seeds "
            f"it {told} the original net. In the paper the last 30% cost nothing, the latter half 2.5 to 6.9 points: "
            f"{'agrees' if row['difference'] > -0.05 else 'does not agree'} in direction."
        )
    return as_table([percent(row) for row in rows]), "\n".join(words)


def sparsities(runs: Path, variant: str, seeds: int) -> list[float]:
    """Share of channels that do not move, per seed."""
    found = []
    for seed in range(seeds):
        model = surgeon.load(runs / "digits_shift" / f"seed_{seed}" / variant / "weights")
        found.append(shift_sparsity(model).sparsity)
    return found


def shifts(runs: Path, rows: list[dict[str, Any]]) -> tuple[str, str]:
    """Accuracy and sparsity by penalty."""
    lines, still = [], {}
    for row in rows:
        name, line = row["variant"], percent(row)
        if name != "convs":
            shares = sparsities(runs, name, len(row["accuracies"]))
            still[name] = (statistics.fmean(shares), row["mean"])
            line["do not move"] = f"{statistics.fmean(shares):.1%} ± {statistics.stdev(shares):.1%}"
        lines.append({**line, "do not move": line.get("do not move", "-")})
    grows = [share for share, _ in still.values()]
    rising = all(a < b for a, b in itertools.pairwise(grows))
    lost = [100 * (accuracy - next(iter(still.values()))[1]) for _, accuracy in still.values()]
    words = (
        f"With the penalty the share of channels that do not move {'grows' if rising else 'does not grow'}: "
        f"{', '.join(f'{share:.0%}' for share in grows)}; accuracy changes by "
        f"{', '.join(f'{points:+.1f}' for points in lost)} points against no penalty. In the paper most shifts can go "
        f"at little cost: {'agrees' if rising and lost[-1] > -2 else 'does not agree'} in direction. Against convs the "
        "shift nets have a seventh of the parameters and lose some points here, in nets of 8 to 32 channels."
    )
    return as_table(lines), words


def gaps(runs: Path) -> str:
    """Accuracy by depth."""
    rows = json.loads((runs / "digits_gap" / "seed_0" / "summary.json").read_text())["rows"]
    return as_table(
        [
            {
                "depth": row["variant"].replace("_", " "),
                "accuracy (95%)": f"{row['accuracy']:.2%} ({row['low']:.1%} to {row['high']:.1%})",
            }
            for row in rows
        ]
    )


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path)
    runs = parser.parse_args().runs
    parts: dict[str, str] = {"gaps": gaps(runs)}
    shuffled = rows_of(runs, "digits_shuffle")
    parts["shuffles"], parts["shuffle_words"] = shuffles(shuffled)
    parts["gap_fcs"], parts["gap_fc_words"] = gap_fcs(rows_of(runs, "digits_gap_fc"))
    parts["shifts"], parts["shift_words"] = shifts(runs, rows_of(runs, "digits_shift"))
    for name in ("shuffle", "gap_fc", "shift"):
        shutil.copy(runs / f"digits_{name}" / "repeated.png", DOCS / f"spatial_{name}.png")
    text = TEXT.format(
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        timm=timm.__version__,
        seeds=len(shuffled[0]["accuracies"]),
        **parts,
    )
    (DOCS / "spatial.md").write_text(text)


if __name__ == "__main__":
    main()
