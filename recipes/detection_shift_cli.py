"""The command ``surgeon analyze detection-shift``: what shifts of its images do to a detector.

Apart from the other analyses, as it has settings of its own; free of slow imports like them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.jobs import at_work, command_line, run_jobs

DETECTION_SHIFT = (
    "surgeon analyze detection-shift best.pt --data mine.yaml --limit 500 | "
    "surgeon analyze detection-shift best.pt --data mine.yaml --shifts 4,8,16,32 --axis horizontal --padding crop | "
    "torchrun --nproc-per-node 4 -m recipes.cli analyze detection-shift best.pt --data mine.yaml"
)


def detection_shift(
    model: Annotated[str, typer.Argument(help="A .pt file, stock or operated, a folder of surgeon.save, or a yaml.")],
    data: Annotated[str, typer.Option(help="A data yaml as ultralytics reads it.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/detection_shift"),
    shifts: Annotated[
        str | None, typer.Option(help="Pixels the net sees, as 1,2,4. Default: 1 to the largest stride.")
    ] = None,
    axis: Annotated[str, typer.Option(help="diagonal, horizontal, vertical or grid.")] = "diagonal",
    padding: Annotated[str, typer.Option(help="What comes in: mirror, black, circular; crop: windows.")] = "mirror",
    fill: Annotated[float, typer.Option(min=0, max=1, help="Of black; the letterbox has 0.447.")] = 0.0,
    match_iou: Annotated[float, typer.Option(help="Smallest overlap of two boxes of the same thing.")] = 0.5,
    conf: Annotated[float, typer.Option(help="Lowest score of the detections that are paired.")] = 0.25,
    resamples: Annotated[int, typer.Option(min=0, help="Draws of the images for intervals of AP; 0: none.")] = 50,
    imgsz: Annotated[int, typer.Option(min=32, help="Pixels of the longer side.")] = 640,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Most images.")] = None,
    amp: Annotated[str | None, typer.Option(help="float16.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the resampled images.")] = 0,
    resume: Annotated[bool, typer.Option(help="Continue what the folder holds, or start over.")] = True,
) -> None:
    """What shifts of its images do to a detector: average precision, box jitter, class flips.

    Writes tables (JSON, CSV), a figure and one page (report.html) into a folder. Ctrl-C keeps what was measured; run it
    again to go on.
    """
    import analysis
    from recipes.number_lists import numbers

    settings: dict[str, Any] = {
        **{"shifts": None if shifts is None else numbers("--shifts", shifts), "axis": axis, "padding": padding},
        **{"fill": fill, "match_iou": match_iou, "conf": conf, "limit": limit, "amp": amp, "seed": seed},
        **{"detector": {"imgsz": imgsz, "split": split, "batch": batch_size, "resamples": resamples}},
    }
    with at_work(model, out, ["detection_shift"], device, resume) as (who, viewed):

        def job(**more: Any) -> Any:
            return analysis.detection_shift(viewed.model, data, command=command_line(), **settings, **more)

        run_jobs({"detection_shift": job}, out, who.main)
