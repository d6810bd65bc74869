"""Every reference net as it is built by its name alone, beside what its paper prints.

The page of all names, `docs/reference_nets.md`; `counts.py` has the counts behind surgery and settings.
``python -m tests.surgeon.reference_nets.catalogue`` writes the page.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import nn

from surgeon.reference_nets import fcn, fenet, preact, resnet_cifar, shiftresnet, vgg
from surgeon.tracing import record_forward
from tests.surgeon.reference_nets.counts import COUNTS

PAGE = Path(__file__).parents[3] / "docs" / "reference_nets.md"
SOURCES = {  # module -> what it holds, and the papers
    vgg: "VGG, arXiv:2002.01827 (`vgg16_cifar`) and arXiv:1902.01996 (plain)",
    resnet_cifar: "ResNets with a 3x3 stem, arXiv:2002.01827 and (20 and 56) arXiv:1903.05285",
    shiftresnet: "ShiftResNets, arXiv:1711.08141, arXiv:1903.05285 Table 1",
    fenet: "FE-Nets, arXiv:1903.05285 Table 4",
    preact: "Pre-activation ResNets, arXiv:1902.01996",
    fcn: "Fully connected nets, arXiv:1902.01996",
}
HEAD = """# Reference networks

Names for `timm.create_model` after `import surgeon`, with the settings they have by default: ten classes, FE-Net 1,000.
"conv+fc" leaves out norms and offsets; multiply-adds are of one image of the default size. No weights come with them.
Counts with 1,000 classes, other settings or surgery: [counts.md](counts.md). A test compares this page with the nets.

`blocknet_42` and `blocknet_44` are the nets "42" and "44" of arXiv:1902.01996, Table 2: two and four stages of four
blocks, a strided conv between stages. `_plain` is without norm; `_dw` has depthwise convs in the place of shifts.

"""


def names() -> list[str]:
    """All names, file by file."""
    return [key.split(".")[0] for module in SOURCES for key in module.default_cfgs]


def measured(name: str) -> tuple[int, int, int]:
    """Parameters, those of convs and linear layers, and multiply-adds of one image."""
    with torch.device("meta"):
        model = timm.create_model(name)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = sum(p.numel() for layer in layers for p in layer.parameters())
    macs = record_forward(model, [model.default_cfg["input_size"]]).macs()
    return sum(p.numel() for p in model.parameters()), weights, macs


def page() -> str:
    """The tables as Markdown."""
    return HEAD + "\n".join(_table(module.default_cfgs, source) for module, source in SOURCES.items())


def _table(keys: dict[str, object], source: str) -> str:
    title = f"## {source}\n\n"
    title += "| name | parameters | conv+fc | multiply-adds | printed | where a difference comes from |\n"
    return title + "|---|---|---|---|---|---|\n" + "".join(_row(key.split(".")[0]) for key in keys)


def _row(name: str) -> str:
    counts = [c for c in COUNTS if c.name == name and not c.surgery]
    plain = next((c for c in counts if not c.arguments), None)
    printed, note = (plain.printed, plain.note) if plain else ("", "")
    if counts and not plain:  # the paper has another number of classes
        settings = ", ".join(f"{key}={value}" for key, value in counts[0].arguments.items())
        printed, note = counts[0].printed, f"with {settings}: {counts[0].params:,}"
    all_, layers, macs = measured(name)
    return f"| `{name}` | {all_:,} | {layers:,} | {macs:,} | {printed} | {note} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
