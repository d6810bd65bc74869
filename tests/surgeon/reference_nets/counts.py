"""Parameters and multiply-adds of the papers' networks, ours against printed; the page docs/counts.md.

``python -m tests.surgeon.reference_nets.counts`` writes the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import surgeon
from surgeon.tracing import record_forward

PAGE = Path(__file__).parents[3] / "docs" / "counts.md"
POOLS = ["features.4", "features.9", "features.16", "features.23", "features.30"]  # VGG-16's five max pools


@dataclass(frozen=True)
class Count:
    """One network: what it is, what was counted, what is expected, what the paper prints.

    Args:
        paper: Short name.
        name: For timm.
        arguments: For timm.
        surgery: Steps, if any.
        what: What is counted: "all" parameters, or those of "conv+fc", or of the "head".
        params: Expected.
        macs: Expected multiply-adds of one image; None where the paper gives none.
        printed: The paper's figures.
        note: Where a difference comes from.
    """

    paper: str
    name: str
    params: int
    printed: str
    arguments: dict[str, Any] = field(default_factory=dict)
    surgery: Any = None
    what: str = "all"
    macs: int | None = None
    size: int | None = None
    note: str = ""

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        op = f" + {_words(self.surgery)}" if self.surgery else ""
        return f"{self.name}({settings}){op}, {self.what}"


def _words(surgery: Any) -> str:
    if isinstance(surgery, str):
        return surgery
    (op,) = (key for key in surgery if key != "select")
    last = surgery.get("select", {}).get("last")
    depths = len(surgery[op].get("depths", ()))
    return op + (f" last {last}" if last else "") + (f" of {depths} depths" if depths else "")


def gap_fc(last: Any) -> dict[str, Any]:
    """GAP+FC on the last units."""
    return {"gap_fc": {}, "select": {"last": last}}


SPATIAL, SHIFTS, INVARIANT, SPD = "Fan 2020", "Chen 2019", "GAP heads 2026", "SPD-Conv 2022"
V = {"num_classes": 1000}
TRUNCATED = "printed truncated"
COUNTS = (
    Count(SPATIAL, "vgg16_cifar", 37_702_696, "37.70M", V),
    Count(SPATIAL, "vgg16_cifar", 35_605_544, "35.61M", V, gap_fc(1)),
    Count(SPATIAL, "vgg16_cifar", 29_314_088, "29.31M", V, gap_fc("31%")),
    Count(SPATIAL, "vgg16_cifar", 25_644_072, "", V, gap_fc("54%")),
    Count(SPATIAL, "vgg16_cifar", 24_726_568, "", V, gap_fc("77%")),
    Count(SPATIAL, "vgg16_cifar", 24_626_728, "", V, gap_fc("100%")),
    Count(SPATIAL, "resnet50", 25_557_032, "25.56M"),
    Count(SPATIAL, "resnet50", 23_459_880, "23.46M", surgery=gap_fc("6%")),
    Count(SPATIAL, "resnet50", 18_217_000, "", surgery=gap_fc("31%")),
    Count(SPATIAL, "resnet50", 16_119_848, "", surgery=gap_fc("56%")),
    Count(SPATIAL, "resnet50", 15_595_560, "", surgery=gap_fc("81%")),
    Count(SPATIAL, "resnet50", 15_497_256, "", surgery=gap_fc("100%")),
    Count(SPATIAL, "resnet152", 60_192_808, "60.19M"),
    Count(SPATIAL, "resnet152", 52_852_776, "52.85M", surgery=gap_fc("10%")),
    Count(SPD, "resnet18_cifar", 11_271_432, "", {"num_classes": 200}),
    Count(SPD, "resnet50_cifar", 23_910_152, "", {"num_classes": 200}),
    Count(SHIFTS, "resnet20_cifar", 272_474, "0.27M, 81M", macs=40_813_184, note="81.63M operations; " + TRUNCATED),
    Count(SHIFTS, "resnet56_cifar", 855_770, "0.86M, 251M", macs=125_747_840, note="251.50M operations; " + TRUNCATED),
    Count(
        SHIFTS,
        "shiftresnet20",
        160_378,
        "0.16M, 53M",
        macs=27_181_696,
        note="54.36M operations, 53.48M without the stem",
    ),
    Count(
        SHIFTS,
        "shiftresnet56",
        556_858,
        "0.55M, 166M",
        macs=83_804_800,
        note="167.61M operations, 166.72M without the stem; " + TRUNCATED,
    ),
    Count(
        SHIFTS,
        "fenet_100",
        3_505_464,
        "3.7M, 301M",
        what="conv+fc",
        macs=299_676_320,
        note="as Table 4 has it; 3.70M, 301.8M with a last conv of 1536 channels instead of 1380",
    ),
    Count(SHIFTS, "fenet_100", 3_701_400, "3.7M, 301M", {"last": 1536}, what="conv+fc", macs=301_789_184),
    Count(SHIFTS, "fenet_138", 5_961_486, "5.9M, 563M", what="conv+fc", macs=563_699_360, note=TRUNCATED),
    Count(
        SHIFTS,
        "fenet_138_se_v1",
        6_056_658,
        "6.1M, 564M",
        what="conv+fc",
        macs=563_794_532,
        note="the reduction is not stated: 8 here, as in V2",
    ),
    Count(SHIFTS, "fenet_138_se_v2", 8_285_258, "8.2M, 566M", what="conv+fc", macs=566_023_132, note=TRUNCATED),
    Count(
        SHIFTS,
        "fenet_100",
        4_623_408,
        "3.7M, 301M",
        {"expand": "out", "last": 1932},
        macs=417_941_216,
        note="the released code widens by the output",
    ),
    Count(
        SHIFTS,
        "fenet_138",
        6_745_470,
        "5.9M, 563M",
        {"expand": "out"},
        macs=773_159_072,
        note="the released code widens by the output",
    ),
    Count(INVARIANT, "vgg16", 82_080, "82K", {"num_classes": 160}, "gap", "head", size=256),
    Count(INVARIANT, "vgg16", 14_796_768, "14M", {"num_classes": 160}, "gap", size=256),
    Count(
        INVARIANT,
        "vgg16",
        235_680,
        "",
        {"num_classes": 160},
        {"gap": {"depths": POOLS}},
        "head",
        size=256,
        note="the flattened 8x8x512 map needs 5,243,040",
    ),
)


def measured(count: Count) -> tuple[int, int]:
    """Parameters of what is counted, and multiply-adds of the whole network."""
    with torch.device("meta"):
        model = timm.create_model(count.name, **count.arguments)
    if count.surgery:
        surgeon.apply(model, count.surgery, count.size)
    parts: dict[str, Callable[[], int]] = {
        "all": lambda: sum(p.numel() for p in model.parameters()),
        "head": lambda: sum(p.numel() for p in model.get_classifier().parameters()),
        "conv+fc": lambda: sum(
            p.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) for p in m.parameters()
        ),
    }
    macs = 0
    if count.macs is not None:
        size = timm.data.resolve_model_data_config(model)["input_size"]
        macs = record_forward(model, [size]).macs()
    return parts[count.what](), macs


def page() -> str:
    """The table as Markdown."""
    head = "| paper | network | parameters | multiply-adds | printed | note |\n|---|---|---|---|---|---|\n"
    rows = [
        f"| {c.paper} | {c} | {c.params:,} | {f'{c.macs:,}' if c.macs else ''} | {c.printed} | {c.note} |"
        for c in COUNTS
    ]
    return TEXT + head + "\n".join(rows) + "\n"


TEXT = """# Parameters and multiply-adds, ours against printed

Every number is counted by a test (`tests/surgeon/reference_nets/test_counts.py`) on the network as `timm.create_model`
builds it, after the surgery named. "conv+fc" leaves out norms and offsets, as the papers do. Operations are twice the
multiply-adds. Papers: Fan et al., arXiv:2002.01827 (Table 2); Chen et al., arXiv:1903.05285 (Tables 1 to 5);
translation-invariant CNNs, arXiv:2604.27870; SPD-Conv, arXiv:2208.03641 (its baselines; none are printed).

"""

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
