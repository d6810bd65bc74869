"""The paper's claims on shuffled nets, and whether they show on digits: rules for write_spatial_dependence."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from tests.benchmarks.dependence_rows import Net, apart, percent

PAPER = {  # top-1 on CIFAR-100: VGG-16 and ResNet-50
    "vgg": {"": 74.10, "spatial_last_31": 74.07, "spatial_last_54": 71.44, "spatial_last_77": 57.05,
            "channel_last_31": 67.56, "channel_last_77": 4.84, "layer1_whole": 16.02},
    "resnet": {"": 78.06, "spatial_last_31": 77.89, "spatial_last_56": 75.58, "spatial_last_81": 64.55,
               "image_whole": 40.76},
}  # fmt: skip
TITLES = {"vgg": "VGG-16 in small", "resnet": "ResNet-18 in small"}
LITTLE, CHANCE = 2.0, 0.1  # points that 450 images can tell; ten digits


def claims(nets: list[Net]) -> Iterator[str]:
    """The paper's claims, each with what is seen here."""
    for net in nets:
        third, half = (f"spatial_last_{share}" for share in ("31", "54" if net.key == "vgg" else "56"))
        yield _claim("The last third needs no positions", "within 1 point", net, mean(net.lost(third)) <= LITTLE,
                     f"trained so, {apart(net.lost(third))} are lost")  # fmt: skip
        yield _claim("Nor much does the last half", "within 7 points", net, mean(net.lost(half)) <= 7,
                     f"trained so, {apart(net.lost(half))} are lost")  # fmt: skip
        worse = [c > s for c, s in zip(net.lost("channel_last_31"), net.lost(third), strict=True)]
        yield _claim("Channels matter more than positions", "67.56 against 74.07%", net, all(worse),
                     f"of the last third channels cost {apart(net.lost('channel_last_31'))}, trained so")  # fmt: skip
        count = net.shares["31"]
        spatial, channel = (net.lost_at_test(count, shuffle) for shuffle in ("spatial", "channel"))
        yield _claim("Not trained so, a net does not bear it, of channels least", "23.49 and 1.04%", net,
                     min(spatial) > 10 and all(c > s for c, s in zip(channel, spatial, strict=True)),
                     f"at test time the last third costs {apart(spatial)}, its channels {apart(channel)}")  # fmt: skip
        yield from _of_single(net)
        rho = net.rank_correlation()
        yield (
            f"- **Does the test-time shuffle tell what training anew would?** {TITLES[net.key]}: rank correlation of "
            f"points lost, over all {sum(c.shuffle != 'channel' for c in net.cells())} spatial and patch shuffles, "
            f"{statistics.fmean(rho):+.2f} ± {statistics.stdev(rho):.2f}."
        )


def _of_single(net: Net) -> Iterator[str]:
    """Claims of single layers."""
    if net.key == "vgg":
        gaps = {name: _gap(net, name, share) for name, share in starts(net)}
        yield _claim("One layer costs what all from it on cost", "curves overlap", net,
                     max(map(mean, gaps.values())) <= 5,
                     "all from it on cost more by " + ", ".join(f"{mean(g):+.1f} ({n})" for n, g in gaps.items())
                     + " points")  # fmt: skip
    names = list(net.singles)
    first, late = names[0], names[2:]
    ranges = {name: _range(net, name) for name in (first, *late)}
    yield _claim("The size of patches matters at first layers, not at late ones", "alike at layers 8 to 14", net,
                 ranges[first] > 3 * max(ranges[name] for name in late),
                 "between the smallest patch and the whole map lie "
                 + ", ".join(f"{points:.1f} points ({name})" for name, points in ranges.items()))  # fmt: skip
    whole = net.trained[f"{first}_whole"]
    paper = PAPER[net.key][f"{first}_whole"]
    yield _claim("An image without any order is still told better than by chance", f"{paper}%, chance 1%", net,
                 min(whole) > CHANCE + 0.03, f"{percent(whole)}%, chance 10%")  # fmt: skip


def _claim(words: str, paper: str, net: Net, shows: bool, seen: str) -> str:
    return f"- **{words}** (paper: {paper}), {TITLES[net.key]}: {'shows' if shows else 'does not show'}; {seen}."


def mean(values: list[float]) -> float:
    return statistics.fmean(values)


def starts(net: Net) -> list[tuple[str, str]]:
    """Single layers, and the share of last ones that begins with each."""
    total = max(net.shares.values())
    return [
        (name, share)
        for name, number in net.singles.items()
        for share, count in net.shares.items()
        if (total - count == number if net.key == "vgg" else total - count + 1 == number)
    ]


def trained_from(net: Net, name: str, share: str) -> list[float]:
    """Trained with all from a layer on shuffled; the last one by itself is the last one alone."""
    return net.trained.get(f"spatial_last_{share}", net.trained[f"{name}_whole"])


def _gap(net: Net, name: str, share: str) -> list[float]:
    alone = net.trained[f"{name}_whole"]
    return [100 * (a - b) for a, b in zip(alone, trained_from(net, name, share), strict=True)]


def _range(net: Net, name: str) -> float:
    """Points between the best and the worst patch at a place, in nets trained so."""
    means = [100 * mean(values) for variant, values in net.trained.items() if variant.startswith(f"{name}_")]
    return max(means) - min(means)
