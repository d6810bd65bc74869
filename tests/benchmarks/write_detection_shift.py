"""Write docs/detection_shift.md and its picture: python -m tests.benchmarks.write_detection_shift RUN.

RUN is what ``surgeon run digits_detection_spd --out RUN`` has left: the original and the operated detector, trained.
"""

from __future__ import annotations

import argparse
import datetime
import textwrap
import time
from pathlib import Path
from typing import Any

import torch
import ultralytics

import analysis
import surgeon

DOCS = Path(__file__).parents[2] / "docs"
IMGSZ, SHIFTS = 160, range(1, 33)
KEPT = (
    "Detections of all shifts are kept until the end: 7 kB per image and shift at 300 detections "
    '(`detector={"max_det": 100}` keeps fewer).'
)
TEXT = """# What a shift does to a detector

A detector whose input moves by a pixel should answer the same boxes, moved by a pixel. Strides see to it that it does
not. `analysis.detection_shift` moves the pictures by every pixel up to the net's largest stride and says what changes
besides the place, for any ultralytics detector, stock or operated:

```bash
surgeon analyze detection-shift best.pt --data mine.yaml --limit 500
surgeon analyze detection-shift best.pt --data mine.yaml --shifts 4,8,16 --axis horizontal --padding crop
```

```python
from ultralytics import YOLO
import analysis

result = analysis.detection_shift(YOLO("best.pt"), "mine.yaml", limit=500)
print(result)  # one line per shift
result.report("shifts.html")
```

All shifts are measured in one pass over the data; Ctrl-C keeps what was measured (`ledger=`), `torchrun` shares it
among processes, and the model is put back bit for bit.

## What is measured

**The shift** is of what the net sees, in its pixels: the picture moves inside its letterbox, whose bars stay. What
comes in at the border is the picture mirrored, black, or what has left on the other side (`padding=`); with `"crop"`
every view is a window of the picture, smaller by the largest shift on each side, so that nothing artificial comes in.
Mirrored objects are no objects of the truth, so that with `"mirror"` (the default) precision falls with the shift by
those that are found; pairs do not know them.
The objects of the truth move along. What leaves the image is clipped; an object of which less than half stays is left
out, and counted (`objects_left_out`).

**Average precision** is COCO's, of each shift by itself, with the paired difference to the unshifted images: the same
images are drawn anew for both.

**Pairs.** Detections from `conf=0.25` on, of several boxes on one thing (IoU above the detector's `iou`) the surest.
Those of the moved image are moved back and paired one to one with those of the unmoved one, so that the sum of their
overlaps is the largest; pairs of less than `match_iou=0.5` are none. A box that comes within a pixel of the border of
either view is left out, as it may be cut there. Columns `truth_...` are of detections that are paired by the object of
the truth they are on, each in its own view; they need not overlap each other.

| column | what it is |
| --- | --- |
| `jitter_px`, `jitter_share` | mean distance of the centres of a pair, in pixels the net sees and in sides of the box |
| `overlap_lost`, `size_change_share` | mean of 1 - IoU; mean change of the side |
| `score_change` | mean absolute change of the score |
| `flip_share` | pairs whose classes differ |
| `vanished_share`, `appeared_share` | detections of the unmoved, of the moved image that have no partner |

**Intervals** are 95%, from drawing the images (not the boxes) anew; of shares that are 0 or 1 in every image Wilson's
over images stands in. Below 10 images there are none. **Periods**: the jitter of shifts along a line is fitted with the
periods of the strides; the summary names one that noise does not explain (p < 0.01 after Holm).

## On digits

Measured on {date}, torch {torch}, ultralytics {ultralytics}: `python -m tests.benchmarks.write_detection_shift RUN`
writes this page from `surgeon run digits_detection_spd`: a small detector of digits of 8 to 64 pixels and the same
after SPD-Conv, trained alike; {images} images, {objects} objects. Black comes in at the border,
which costs this detector precision by itself; `padding="mirror"` and `"crop"` tell how much. The picture is of the
original.

![AP, jitter and flips against the shift](detection_shift.png)

{words}

{cost}

Known answers, as tests have them: a detector that finds what there is has no jitter and keeps its AP at any shift, in
letterboxes too; one whose boxes are rounded to a grid of 8 pixels jitters by exactly that rounding, and the period of 8
is found; planted flips and losses are counted; a circular shift by the whole image changes nothing.
"""


def measured(run: Path, name: str) -> analysis.DetectionShift:
    """A trained detector of the run, at every shift to twice its largest stride."""
    settings: dict[str, Any] = {"shifts": SHIFTS, "padding": "black", "detector": {"imgsz": IMGSZ, "batch": 16}}
    return analysis.detection_shift(surgeon.load(run / name / "weights"), data_of(run), **settings)


def data_of(run: Path) -> Path:
    """The data yaml of the run."""
    return next(run.rglob("data.yaml"))


def times(run: Path, shifts: int) -> str:
    """How long the shifts take together, and an evaluation of the same images by itself."""
    model, data = surgeon.load(run / "original" / "weights"), data_of(run)
    settings: dict[str, Any] = {"imgsz": IMGSZ, "batch": 16, "resamples": 0}
    start = time.perf_counter()
    analysis.detection_shift(model, data, detector=settings, shifts=range(1, shifts + 1), progress=False)
    shifted = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(3):
        analysis.detection(model, data, latency=False, **settings)
    alone = (time.perf_counter() - start) / 3
    return (
        f"{shifts} shifts took {shifted:.1f} s, {shifted / (shifts + 1):.2f} s for each view of all images with its "
        f"AP and pairs (without intervals of AP); `analysis.detection`, which goes over the data once per call, "
        f"{alone:.2f} s"
    )


def wrapped(text: str) -> str:
    """Lines of a page."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write the page and its picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    results = {name: measured(run, name) for name in ("original", "spd")}
    original = results["original"]
    original.title = "A detector of digits under diagonal shifts of its images"
    original.figure().savefig(DOCS / "detection_shift.png", dpi=110)
    text = TEXT.format(
        cost=wrapped(f"On {torch.get_num_threads()} thread {times(run, 8)}. {KEPT}"),
        date=datetime.date.today().isoformat(),
        torch=torch.__version__,
        ultralytics=ultralytics.__version__,
        images=original.rows[0]["images"],
        objects=f"{original.rows[0]['objects']:,}",
        words="\n\n".join(wrapped(f"**{name}**: {one.summary}") for name, one in results.items()),
    )
    (DOCS / "detection_shift.md").write_text(text)


if __name__ == "__main__":
    main()
