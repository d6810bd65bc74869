"""Write docs/resolution.md and its pictures: python -m tests.benchmarks.write_resolution CLASSIFIERS DETECTORS.

They are what ``surgeon run digits_spd --out CLASSIFIERS`` and ``surgeon run digits_detection_spd --out DETECTORS`` have
left: nets before and after SPD-Conv, trained alike.
"""

from __future__ import annotations

import argparse
import datetime
import textwrap
from pathlib import Path
from typing import Any

import torch

import analysis
import surgeon
from recipes.viewing import view_images, view_model

DOCS = Path(__file__).parents[2] / "docs"
NETS = ("original", "spd")
TEXT = """# What nets lose with the resolution of their images

SPD-Conv was made for low resolution and small objects (Sunkara and Luo, ECML PKDD 2022, arXiv:2208.03641).
`analysis.resolution` says what a net, and its operated twin on the same images, are worth at 1, 1/2, 1/4 and 1/8 of the
resolution:

```bash
surgeon analyze resolution runs/digits_spd/original runs/digits_spd/spd
surgeon analyze resolution resnet50 saved/resnet50-spd --pretrained --data folder:imagenet/val --limit 5000
surgeon analyze resolution original.pt operated.pt --data mine.yaml --small
```

```python
import analysis

result = analysis.resolution(net, loader, other=operated)  # or other={{"spd": one, "blurpool": another}}
print(result)  # accuracy, change to full resolution, lead over the first net, each with its interval
result.figure().savefig("resolution.png")
```

A recipe measures each of its variants with `analysis: [resolution]`. All resolutions of a net are measured in one pass
over the data; the nets are put back bit for bit.

## What is measured

**Images** get smaller by bicubic interpolation with antialiasing, as Pillow has it (`down="area"`: by the mean of what
a pixel covers), values kept within those of the image. By default they are enlarged again to their size (`back=True`):
the net computes as ever and sees less detail. With `back=False` (`--small`) the net really gets the small image: a
size that a classifier cannot take is said in the row (`note`), detectors get grey bars to the next multiple of their
stride. Sizes of objects (`ap_small`) are those on disk, whatever the factor.

**Figures**: `accuracy` with Wilson's interval, or COCO's `ap`, `ap50` and `ap_small`. `..._change` is less that of the
same net at full resolution; `..._lead` less that of the first net at the same resolution; `..._lead_change` what of
the lead is not there at full resolution, that is, what the net is worth at low resolution in particular. Intervals are
95% and paired: the same images are drawn anew for all nets and resolutions. They say what other images would change,
not what another training could.

## On digits

Measured on {date}, torch {torch}; `python -m tests.benchmarks.write_resolution CLASSIFIERS DETECTORS` writes
this page from `surgeon run digits_spd` and `surgeon run digits_detection_spd`, one seed each.

![accuracy against resolution, before and after SPD-Conv](resolution.png)

{classifiers}

The nets begin as the same function, and ten epochs after the surgery they still are nearly the same.

![AP against resolution, before and after SPD-Conv](resolution_detectors.png)

{detectors}

Known answers, as tests have them: a net that tells stripes of one pixel from grey falls from 100% to chance at half the
resolution and keeps stripes of four; a net of mean brightness loses nothing; the lead of one over the other is the
difference; a net has no lead over its copy.
"""


def classifiers(run: Path) -> analysis.Resolution:
    """Nets of digits on a canvas of 32 pixels, whose validation images are those of the run."""
    viewed = [view_model(str(run / name)) for name in NETS]
    models = [one.model for one in viewed]
    return analysis.resolution(models[0], view_images(viewed[0], None, shuffle=0), other=models[1], labels=NETS)


def detectors(run: Path) -> analysis.Resolution:
    """Detectors of digits of 8 to 64 pixels."""
    models = [surgeon.load(run / name / "weights") for name in NETS]
    settings: dict[str, Any] = {"imgsz": 160, "batch": 16}
    data = next(run.rglob("data.yaml"))
    return analysis.resolution(models[0], data, other=models[1], labels=NETS, detector=settings)


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("classifiers", type=Path)
    parser.add_argument("detectors", type=Path)
    runs = parser.parse_args()
    found = {"classifiers": classifiers(runs.classifiers), "detectors": detectors(runs.detectors)}
    for name, picture in (("classifiers", "resolution.png"), ("detectors", "resolution_detectors.png")):
        found[name].figure().savefig(DOCS / picture, dpi=110)
    words = {name: textwrap.fill(one.summary, 120, break_on_hyphens=False) for name, one in found.items()}
    date = datetime.date.today().isoformat()
    (DOCS / "resolution.md").write_text(TEXT.format(date=date, torch=torch.__version__, **words))


if __name__ == "__main__":
    main()
