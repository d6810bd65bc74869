"""The commands ``surgeon analyze translation | consistency | compare``: what shifts of the images do to one net or two.

Apart from the other analyses, and free of slow imports like them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.jobs import at_work, command_line, prepare, run_jobs
from recipes.options import (
    Amp,
    BatchSize,
    Checkpoint,
    Classes,
    Data,
    Device,
    Limit,
    Net,
    Pretrained,
    Resume,
    Root,
    Seed,
    two_labels,
)

TRANSLATION = (
    "surgeon analyze translation runs/digits_spd/spd | "
    "surgeon analyze translation resnet50 --pretrained --data folder:imagenet --reach 50 --step 10"
)
CONSISTENCY = (
    "surgeon analyze consistency runs/digits_spd/spd --protocol circular --reach 3 | "
    "surgeon analyze consistency resnet50.tv_in1k --pretrained --data imagenet_consistency --protocol crop --size 224"
)
COMPARE = (
    "surgeon analyze compare runs/digits_spd/original runs/digits_spd/spd | "
    "surgeon analyze compare resnet50 saved/operated --pretrained --data folder:imagenet --limit 5000 | "
    "surgeon analyze compare best.pt operated.pt --data mine.yaml --measure detection_shift --measure cost"
)
Padding = Annotated[str, typer.Option(help="What comes in: mirror, black, circular, or crop from a larger image.")]
Size = Annotated[int | None, typer.Option(min=1, help="Side of the window in pixels, of larger images.")]


def translation(
    model: Net,
    data: Data = None,
    root: Root = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/translation"),
    kind: Annotated[str, typer.Option(help="shift, rotation or scale.")] = "shift",
    axis: Annotated[str, typer.Option(help="Of shifts: grid, diagonal, horizontal, vertical.")] = "grid",
    reach: Annotated[float | None, typer.Option(help="Furthest: pixels (9), degrees (20), from 1 (0.5).")] = None,
    step: Annotated[float | None, typer.Option(help="Between two: 3 pixels of a grid or 1, 1 degree, 0.05.")] = None,
    padding: Padding = "mirror",
    size: Size = None,
    fill: Annotated[
        list[float] | None, typer.Option(help="Black, for --padding black: (0 - mean) / std; one, or once per channel.")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 128,
    amp: Amp = None,
    device: Device = "auto",
    seed: Seed = 0,
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    resume: Resume = True,
) -> None:
    """What shifts, turns or scales of the images cost: accuracy, loss, relative loss.

    Writes tables (JSON, CSV), a figure and one page (report.html) into a folder. Ctrl-C keeps what was measured; run it
    again to go on.
    """
    settings: dict[str, Any] = {
        "kind": kind,
        "axis": axis,
        "reach": reach,
        "step": step,
        "padding": padding,
        "size": size,
        "fill": tuple(fill) if fill else None,
    }
    opened = {"pretrained": pretrained, "checkpoint": checkpoint, "num_classes": num_classes}
    images = {"data": data, "root": root, "batch_size": batch_size}
    _one(
        "translation", model, opened, images, settings | {"limit": limit, "amp": amp, "seed": seed}, out, device, resume
    )


def consistency(
    model: Net,
    data: Data = None,
    root: Root = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/consistency"),
    protocol: Annotated[str, typer.Option(help="crop, diagonal or circular.")] = "circular",
    size: Size = None,
    reach: Annotated[int | None, typer.Option(min=1, help="Of the shifts in pixels. Default: 32.")] = None,
    passes: Annotated[int | None, typer.Option(min=1, help="Pairs per image. Default: 5; circular 1.")] = None,
    limit: Limit = None,
    batch_size: BatchSize = 128,
    amp: Amp = None,
    device: Device = "auto",
    seed: Seed = 0,
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
    resume: Resume = True,
) -> None:
    """How often two shifts of an image get the same class, by the public protocols.

    crop: two windows of --size from larger images, 5 passes, and diagonal: windows at 0 to 32 pixels (Zhang 2019);
    circular: rolled by -32 to 31 pixels, or with --reach 3 by -3 to 2 (Chaman and Dokmanic 2021).
    """
    settings: dict[str, Any] = {"protocol": protocol, "size": size, "reach": reach, "passes": passes}
    opened = {"pretrained": pretrained, "checkpoint": checkpoint, "num_classes": num_classes}
    images = {"data": data, "root": root, "batch_size": batch_size}
    _one(
        "consistency", model, opened, images, settings | {"limit": limit, "amp": amp, "seed": seed}, out, device, resume
    )


def compare(
    original: Net,
    operated: Annotated[str, typer.Argument(help="Another, for the same classes.")],
    data: Data = None,
    root: Root = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/compare"),
    labels: Annotated[str, typer.Option(help="Names of the two nets.")] = "original,operated",
    measure: Annotated[
        list[str] | None, typer.Option(help="translation, consistency, robustness, cost …; may be repeated. All.")
    ] = None,
    shown: Annotated[int, typer.Option(min=0, help="Images on which they disagree, shown.")] = 12,
    imgsz: Annotated[
        int | None, typer.Option(min=32, help="Of detectors, pixels of the longer side. Default: the first one's.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of detectors: train, val or test.")] = None,
    limit: Limit = None,
    batch_size: BatchSize = 128,
    amp: Amp = None,
    device: Device = "auto",
    seed: Seed = 0,
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
) -> None:
    """Two classifiers, or two detectors, on the same images, measure by measure, with paired intervals: one page.

    Weights options are those of models named as timm names them.
    """
    import analysis
    from analysis.comparing import kit_of
    from recipes.processes import processes
    from recipes.viewing import view_data, view_model

    names = two_labels(labels)
    opened = {"pretrained": pretrained, "checkpoint": checkpoint, "num_classes": num_classes}
    with processes(device) as who:
        both = [view_model(name, **(opened if _is_timm(name) else {})) for name in (original, operated)]
        kit_of(both[0].model, both[1].model)
        if who.main:
            prepare(out, True, [])
        who.wait()
        for viewed in both:
            viewed.model.to(who.device)
        batches, detector = view_data(
            both[0], data, root=root, batch_size=batch_size, seed=seed, imgsz=imgsz, split=split
        )
        found = analysis.compare(
            both[0].model, both[1].model, batches, detector=detector, labels=names, measures=measure or None,
            shown=shown, limit=limit, amp=amp, seed=seed, command=command_line(),
        )  # fmt: skip
        if who.main:
            _write(found, out)
        if not found.settings["complete"]:
            raise KeyboardInterrupt


def _write(found: Any, out: Path) -> None:
    from recipes.analyze_cli import write_result

    write_result(found, out, "compare", page=False)
    for result in found.results:
        write_result(result, out / "nets", _stem(result.title), page=False)
    found.report(out / "report.html")
    typer.echo(f"written to {out}: compare (.json .csv .png), report.html, nets/")


def _stem(title: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in title).lower().split())


def _is_timm(name: str) -> bool:
    return not Path(name).expanduser().exists()


def _one(
    name: str, model: str, opened: dict[str, Any], images: dict[str, Any], settings: dict[str, Any], out: Path,
    device: str, resume: bool,
) -> None:  # fmt: skip
    """Open model and images, and do the analysis of that name."""
    import analysis
    from recipes.viewing import view_images

    with at_work(model, out, [name], device, resume, **opened) as (who, viewed):
        batches = view_images(viewed, images.pop("data"), **images, shuffle=settings["seed"])
        function = getattr(analysis, name)
        run_jobs(
            {name: lambda **more: function(viewed.model, batches, command=command_line(), **settings, **more)},
            out, who.main,
        )  # fmt: skip
