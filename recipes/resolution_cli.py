"""The command ``surgeon analyze resolution``: what one net or two lose with the resolution of their images.

Apart from the other analyses, as it has settings of its own; free of slow imports like them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.jobs import command_line, prepare, run_jobs
from recipes.options import two_labels

RESOLUTION = (
    "surgeon analyze resolution runs/digits_spd/original runs/digits_spd/spd | "
    "surgeon analyze resolution resnet50 resnet50-spd --pretrained --data folder:imagenet --factors 1/2,1/4 | "
    "surgeon analyze resolution original.pt operated.pt --data mine.yaml --small"
)
Net = Annotated[str, typer.Argument(help="Folder of a run, or any model: timm's name, .pt, a folder of surgeon.save.")]


def resolution(
    model: Net,
    other: Annotated[str | None, typer.Argument(help="Another, measured on the same images.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A data set, a recipe, or a detector's yaml. Default: the run's own.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the data set, where it needs one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/resolution"),
    factors: Annotated[
        str, typer.Option(help="Of both sides; the full resolution is always measured.")
    ] = "1/2,1/4,1/8",
    small: Annotated[bool, typer.Option("--small", help="Show the small images as they are, not enlarged.")] = False,
    down: Annotated[str, typer.Option(help="How images get smaller: bicubic (antialiased) or area.")] = "bicubic",
    labels: Annotated[str, typer.Option(help="Names of the two nets.")] = "original,operated",
    limit: Annotated[int | None, typer.Option(min=1, help="Most images.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch. Default: 128; detectors 16.")] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Of detectors: draws of the images for intervals.")] = 50,
    amp: Annotated[str | None, typer.Option(help="bfloat16 or float16.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the order of images and of resamples.")] = 0,
    pretrained: Annotated[bool, typer.Option(help="Load timm's pretrained weights.")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="A file of the first model's weights.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Of the checkpoint, where not timm's.")] = None,
    imgsz: Annotated[int, typer.Option(min=32, help="Of detectors: pixels of the longer side.")] = 640,
    split: Annotated[str, typer.Option(help="Of detectors: train, val or test.")] = "val",
    resume: Annotated[bool, typer.Option(help="Continue what the folder holds, or start over.")] = True,
) -> None:
    """Accuracy, or average precision of detectors, against the resolution of the images; of two nets their difference.

    Writes tables (JSON, CSV), a figure and one page (report.html) into a folder. Ctrl-C keeps what was measured; run it
    again to go on.
    """
    import analysis
    from recipes.number_lists import numbers
    from recipes.processes import processes
    from recipes.viewing import view_data, view_model

    settings: dict[str, Any] = {
        **{"factors": numbers("--factors", factors), "back": not small, "down": down, "labels": two_labels(labels)},
        **{"limit": limit, "amp": amp, "seed": seed},
    }
    with processes(device) as who:
        given = {"pretrained": pretrained, "num_classes": num_classes}
        viewed = view_model(model, **given, checkpoint=checkpoint)
        if other is not None:
            stored = Path(other).expanduser().exists()  # it says itself where its weights come from
            settings["other"] = view_model(other, **({} if stored else given)).model.to(who.device)
        if who.main:
            prepare(out, resume, ["resolution"])
        who.wait()
        viewed.model.to(who.device)
        seen = {"imgsz": imgsz, "split": split, "batch": batch_size or 16, "resamples": resamples}
        batches, detector = view_data(viewed, data, root=root, batch_size=batch_size or 128, seed=seed)
        settings |= {} if detector is None else {"detector": seen}

        def job(**more: Any) -> Any:
            return analysis.resolution(viewed.model, batches, command=command_line(), **settings, **more)

        run_jobs({"resolution": job}, out, who.main)
