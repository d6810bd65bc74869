"""The command ``surgeon analyze spatial``: what shuffled features cost a trained net.

Apart from the other analyses, as each has settings of its own; free of slow imports like them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.jobs import at_work, command_line

SPATIAL = (
    "surgeon analyze spatial runs/digits_spatial_vgg | "
    "surgeon analyze spatial resnet50 --pretrained --data folder:imagenet --limit 2000 | "
    "surgeon analyze spatial best.pt --data mine.yaml --shuffle spatial --which alone"
)
Net = Annotated[
    str, typer.Argument(help="Folder of a run (weights, recipe), or any model: timm's name, .pt, a folder of weights.")
]


def spatial(
    model: Net,
    data: Annotated[
        str | None, typer.Option(help="A data set, a recipe, or a detector's yaml. Default: the run's own.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the data set, where it needs one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/spatial"),
    units: Annotated[str, typer.Option(help="layer, block or stage.")] = "block",
    shuffle: Annotated[
        list[str] | None, typer.Option(help="spatial, patch or channel; may be repeated. Default: all.")
    ] = None,
    patch: Annotated[
        list[int] | None, typer.Option(help="Pixels of a cell's side; may be repeated. Default: 2 and 4.")
    ] = None,
    which: Annotated[
        list[str] | None, typer.Option(help="alone, or last: the last k units together. Default: both.")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="Draws that are averaged.")] = 5,
    skips: Annotated[bool, typer.Option(help="Shuffle the features of skips too.")] = True,
    method: Annotated[str, typer.Option(help="single_pass, or naive: a pass for each draw.")] = "single_pass",
    limit: Annotated[int | None, typer.Option(min=1, help="Most images.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch, which share a draw.")] = 128,
    memory: Annotated[str, typer.Option(help="What kept answers of a batch may take.")] = "1GiB",
    amp: Annotated[str | None, typer.Option(help="bfloat16 or float16.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of draws, order of images and resamples.")] = 0,
    pretrained: Annotated[bool, typer.Option(help="Load timm's pretrained weights.")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="A file of the model's weights.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Of the checkpoint, where not timm's.")] = None,
    imgsz: Annotated[int, typer.Option(min=32, help="Of detectors: pixels of the longer side.")] = 640,
    split: Annotated[str, typer.Option(help="Of detectors: train, val or test.")] = "val",
    resume: Annotated[bool, typer.Option(help="Continue what the folder holds, or start over.")] = True,
) -> None:
    """What where-things-are is worth: features shuffled at test time, unit by unit and from each unit on.

    Writes tables (JSON, CSV), the figure and one page into a folder. Ctrl-C keeps what was measured; run it again to go
    on.
    """
    import analysis
    from recipes.viewing import view_data

    settings: dict[str, Any] = {
        **{"units": units, "passes": passes, "skips": skips, "seed": seed, "method": method, "limit": limit},
        **{"memory": memory, "amp": amp, "command": command_line()},
        **{key: value for key, value in (("shuffles", shuffle), ("patches", patch), ("which", which)) if value},
    }
    opened = {"pretrained": pretrained, "checkpoint": checkpoint, "num_classes": num_classes}
    with at_work(model, out, ["spatial"], device, resume, **opened) as (who, viewed):
        batches, detector = view_data(
            viewed, data, root=root, batch_size=batch_size, seed=seed, imgsz=imgsz, split=split
        )
        settings |= {} if detector is None else {"detector": detector}
        result = analysis.spatial_dependence(viewed.model, batches, ledger=out / "spatial.ledger", **settings)
        if who.main:
            _write(result, out)
        if not result.complete:
            if who.main:
                typer.echo(f"stopped; what was measured is in {out}, run the same command again to go on", err=True)
            raise KeyboardInterrupt


def _write(result: Any, out: Path) -> None:
    from recipes.analyze_cli import write_result

    write_result(result, out, "spatial")
    if result.complete:
        (out / "spatial.ledger").unlink(missing_ok=True)
        typer.echo(f"written to {out}: spatial (.json .csv .png .html)")
