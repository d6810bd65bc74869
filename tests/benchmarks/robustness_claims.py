"""What Zhang et al. claim of layers, each beside what the rows of our runs say: the rules and their wording.

A claim "shows" where its rule holds in every seed, and shows "in k of n seeds" otherwise; none is written by hand.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from scipy.stats import spearmanr

from tests.benchmarks.robustness_rows import TOLERANCE, Net, apart, firsts, laters, pm


def every(
    nets: Mapping[str, Net],
    widths: Mapping[int, Net],
    decayed: Mapping[str, Mapping[str, Net]],
    frozen: Mapping[str, Net],
) -> str:
    """All claims, a line of a Markdown list each."""
    lines = [
        *first_critical(nets),
        *upper_robust(nets),
        *blocks(nets["resnet"]),
        *wide(widths),
        *together(nets),
        *made_robust(nets["resnet"], frozen),
        *normed(decayed),
        *distant(nets),
    ]
    return "\n".join(f"- {line}" for line in lines)


def says(holds: Sequence[bool]) -> str:
    """The verdict of a rule, seed by seed."""
    if all(holds):
        return f"shows, in all {len(holds)} seeds"
    return f"shows in {sum(holds)} of {len(holds)} seeds" if any(holds) else "does not show, in no seed"


def first_critical(nets: Mapping[str, Net]) -> list[str]:
    """Set back to its initial values, the first layer costs more than the tolerance, and more than the others do."""
    lines = []
    for name, words in (("fcn", "FCN"), ("vgg", "VGG")):
        net = nets[name]
        first, rest = net.lost(net.units[:1], "0"), net.lost(net.units[1:], "0")
        holds = [a > TOLERANCE and a > b for a, b in zip(first, rest, strict=True)]
        lines.append(
            f"**The first layer is critical** (paper: FCN, VGG), {words}: {says(holds)}. Re-initialised it costs "
            f"{pm(first)} points, the others one by one {pm(rest)}."
        )
    return lines


def upper_robust(nets: Mapping[str, Net]) -> list[str]:
    """Set back to its initial values, an upper layer costs no more than the tolerance, on average over them."""
    lines = []
    for name, words, start in (("fcn", "FCN, all but the first", 1), ("vgg", "VGG, the upper half", 0)):
        net = nets[name]
        upper = net.units[start or len(net.units) // 2 :]
        lost = net.lost(upper, "0")
        each = ", ".join(f"{unit} {pm(net.lost([unit], '0'))}" for unit in upper)
        lines.append(
            f"**Upper layers are robust to re-initialisation** (paper: FCN, VGG), {words}: "
            f"{says([value <= TOLERANCE for value in lost])}. Points lost: {each}."
        )
    return lines


def blocks(net: Net) -> list[str]:
    """Drawn anew, a block with an identity skip costs at most the tolerance on average, a stage's first block more."""
    one, other = net.lost(laters(net), "rerand"), net.lost(firsts(net), "rerand")
    holds = [a <= TOLERANCE < b for a, b in zip(one, other, strict=True)]
    back = net.lost(laters(net), "0")
    return [
        "**Residual blocks are robust even to re-randomisation, but for the first of a stage** (paper: ResNets): "
        f"{says(holds)}. Drawn anew they cost {pm(one)} points, the first blocks {pm(other)}; re-initialised "
        f"{pm(back)} and {pm(net.lost(firsts(net), '0'))}."
    ]


def wide(widths: Mapping[int, Net]) -> list[str]:
    """The upper layers of the widest net cost less than those of the narrowest."""
    lost = {width: net.lost(net.units[1:], "0") for width, net in widths.items()}
    narrowest, widest = min(lost), max(lost)
    gaps = [a - b for a, b in zip(lost[narrowest], lost[widest], strict=True)]
    means = [statistics.fmean(values) for values in lost.values()]
    rank = float(spearmanr(list(lost), means).statistic)
    return [
        f"**Wide nets are more robust than narrow ones** (paper: FCN): {says([gap > 0 for gap in gaps])}. Upper layers "
        f"cost {pm(lost[narrowest])} points at width {narrowest} and {pm(lost[widest])} at {widest}, {apart(gaps)} "
        f"between them (95%, paired); rank correlation of width and mean cost {rank:+.2f}."
    ]


def together(nets: Mapping[str, Net]) -> list[str]:
    """Re-initialised at once, all but the first cost more than the tolerance, and more than twice what one does."""
    lines = []
    for name, words in (("fcn", "FCN"), ("vgg", "VGG"), ("resnet", "ResNet")):
        net = nets[name]
        members = next(row["units"] for row in net.joint[0].rows if row["group"] == "all-but-first").split(", ")
        one, all_of_them = net.lost(members, "0"), net.together("all-but-first", "0")
        holds = [b > TOLERANCE and b > 2 * a for a, b in zip(one, all_of_them, strict=True)]
        every_second = net.together("every-second", "0")
        lines.append(
            f"**Layers robust one by one are not robust together** (paper: FCN, deep ResNets), {words}: {says(holds)}. "
            f"All but the first, re-initialised, cost {pm(one)} points one by one and {pm(all_of_them)} together; "
            f"every second one {pm(every_second)} (paper: that about half can be)."
        )
    return lines


def made_robust(resnet: Net, frozen: Mapping[str, Net]) -> list[str]:
    """Trained with these blocks frozen or without them, a net errs less than one whose blocks are set back at once."""
    full = frozen["full"].errors()
    joint = resnet.together("all-but-first", "0")
    cold, gone = ([a - b for a, b in zip(frozen[name].errors(), full, strict=True)] for name in ("frozen", "removed"))
    return [
        "**Trained with these blocks frozen, a net does far better than with them re-initialised afterwards** (paper: "
        f"Table 1): {says([a < b for a, b in zip(cold, joint, strict=True)])}. Frozen costs {apart(cold)} against the "
        f"full net, re-initialised together {pm(joint)}.",
        "**Without these blocks it does about as well as with them frozen** (paper: CIFAR-10): "
        f"{says([abs(a - b) <= TOLERANCE for a, b in zip(cold, gone, strict=True)])}. Removed costs {apart(gone)}.",
    ]


def normed(decayed: Mapping[str, Mapping[str, Net]]) -> list[str]:
    """Norm takes the robustness of a VGG, not of a ResNet; epoch 1 can be worse than epoch 0."""
    vgg, resnet = decayed["vgg"]["bn"], decayed["resnet"]["bn"]
    none = [
        all(100 * vgg.rows(unit, "0")[seed]["difference"] > TOLERANCE for unit in vgg.units)
        for seed in range(len(vgg.layers))
    ]
    one, other = resnet.lost(laters(resnet), "0"), resnet.lost(firsts(resnet), "0")
    both = decayed["resnet"]["wd_bn"]
    early, start = both.lost(both.units, "1"), both.lost(both.units, "0")
    return [
        f"**With BatchNorm no layer of a VGG is robust** (paper: Fig. 11): {says(none)}; "
        f"{vgg.share_robust('0'):.0%} of its layers are robust to re-initialisation, without norm "
        f"{decayed['vgg']['plain'].share_robust('0'):.0%}.",
        "**With BatchNorm a ResNet keeps its pattern** (paper: Fig. 12): "
        f"{says([a < b and a <= TOLERANCE for a, b in zip(one, other, strict=True)])}. Re-initialised, blocks cost "
        f"{pm(one)} points, the first of a stage {pm(other)}.",
        "**With norm and weight decay, epoch 1 is a worse place to go back to than epoch 0** (paper: some ResNets): "
        f"{says([a > b for a, b in zip(early, start, strict=True)])}. Units cost {pm(early)} points set back to epoch "
        f"1, {pm(start)} to epoch 0.",
    ]


def distant(nets: Mapping[str, Net]) -> list[str]:
    """How far a unit has moved, against what setting it back costs; rank correlation, seed by seed."""
    found = []
    for name, words in (("fcn", "FCN"), ("vgg", "VGG"), ("resnet", "ResNet")):
        net, ranks = nets[name], []
        for seed in range(len(net.layers)):
            rows = [net.rows(unit, "0")[seed] for unit in net.units]
            moved, lost = [row["rms_distance"] for row in rows], [row["difference"] for row in rows]
            ranks.append(float(spearmanr(moved, lost).statistic))
        found.append(f"{words} {pm(ranks, '+.2f')}")
    return [
        "**The distance a layer has moved does not tell whether it is robust** (paper: no obvious correlation in the "
        "FCN, a weak one in VGG and ResNet): rank correlation of normalised L2 distance and points lost "
        f"{', '.join(found)}."
    ]
