"""The command ``surgeon analyze robustness``: layer by layer, jointly, and the largest robust set.

Apart from the other analyses because it has three of them in one, and many settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.jobs import at_work, command_line, run_jobs

if TYPE_CHECKING:
    from recipes.viewing import Viewed

ROBUSTNESS = (
    "surgeon analyze robustness runs/digits_layers_fcn | "
    "surgeon analyze robustness resnet50 --pretrained --data folder:imagenet --draws 3 --stop 0.95 | "
    "surgeon analyze robustness best.pt --data mine.yaml --limit 500 | "
    "torchrun --nproc-per-node 4 -m recipes.cli analyze robustness runs/mine"
)
Net = Annotated[
    str, typer.Argument(help="Folder of a run (weights, recipe, trajectory), or any model: timm's name, .pt, folder.")
]


def robustness(
    model: Net,
    data: Annotated[
        str | None, typer.Option(help="A data set, a recipe, or a detector's yaml. Default: the run's own.")
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the data set, where it needs one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/robustness"),
    units: Annotated[str, typer.Option(help="layer, block or stage.")] = "block",
    initial: Annotated[str | None, typer.Option(help="File or folder of the weights training began with.")] = None,
    checkpoints: Annotated[
        list[str] | None, typer.Option(help="Kept states: a trajectory, run or file; may be repeated.")
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="Fresh draws of re-randomisation.")] = 3,
    batchnorm: Annotated[str, typer.Option(help="keep, reset or recalibrate the running statistics.")] = "keep",
    calibration: Annotated[int, typer.Option(min=1, help="Training images to recalibrate with.")] = 1024,
    joint: Annotated[
        list[str] | None, typer.Option(help="A group too: all-but-first, every-second, two-of-three, 'stage2.*'.")
    ] = None,
    search: Annotated[bool, typer.Option("--search", help="Find the largest set that stays robust together.")] = False,
    beam: Annotated[int, typer.Option(min=1, help="Sets kept in each step of the search.")] = 1,
    tolerance: Annotated[float, typer.Option(min=0, max=1, help="Loss that still counts as robust.")] = 0.01,
    stop: Annotated[float | None, typer.Option(help="Stop a unit once its verdict is this certain, as 0.95.")] = None,
    method: Annotated[str, typer.Option(help="single_pass, or naive: a pass for each variant.")] = "single_pass",
    limit: Annotated[int | None, typer.Option(min=1, help="Most images.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 128,
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
    """Which layers matter: each unit set back to earlier weights or drawn anew, and what it costs.

    Writes tables (JSON, CSV), figures and one page (report.html) into a folder. Ctrl-C keeps what was measured; run it
    again to go on. Of a run of surgeon's the data and the states it kept are found in its folder.
    """
    import analysis
    from analysis.grouping import groups_of
    from analysis.studying import units_of
    from recipes.viewing import view_data

    settings: dict[str, Any] = {
        **{"units": units, "draws": draws, "batchnorm": batchnorm, "seed": seed, "method": method},
        **{"tolerance": tolerance, "limit": limit, "memory": memory, "amp": amp, "command": command_line()},
    }
    opened = {"pretrained": pretrained, "checkpoint": checkpoint, "num_classes": num_classes}
    ledgers = ("robustness", "joint_robustness", "search_joint")
    with at_work(model, out, ledgers, device, resume, **opened) as (who, viewed):
        settings |= _states(viewed, initial, checkpoints)
        batches, detector = view_data(
            viewed, data, root=root, batch_size=batch_size, seed=seed, imgsz=imgsz, split=split
        )
        settings |= {} if detector is None else {"detector": detector}
        if batchnorm == "recalibrate":
            settings["calibration"] = (
                data if isinstance(batches, str) else _calibration(viewed, data, root, batch_size, seed, calibration)
            )
        if joint:
            groups_of(units_of(viewed.model, units), joint)  # refused before anything takes time
        jobs: dict[str, Any] = {
            "robustness": lambda **more: analysis.robustness(viewed.model, batches, stop=stop, **settings, **more)
        }
        if joint:
            jobs["joint_robustness"] = lambda **more: analysis.joint_robustness(
                viewed.model, batches, joint, stop=stop, **settings, **more
            )
        if search:
            jobs["search_joint"] = lambda **more: analysis.search_joint(
                viewed.model, batches, beam=beam, **settings, **more
            )
        run_jobs(jobs, out, who.main)


def _states(viewed: Viewed, initial: str | None, checkpoints: list[str] | None) -> dict[str, Any]:
    """The states to go back to; those the run kept, where none is named."""
    found: dict[str, Any] = {}
    if initial is not None:
        found["initial"] = Path(initial)
    if checkpoints:
        found["checkpoints"] = [Path(one) for one in checkpoints] if len(checkpoints) > 1 else Path(checkpoints[0])
    elif initial is None and viewed.trajectory is not None:
        found["checkpoints"] = viewed.trajectory
    return found


def _calibration(viewed: Viewed, data: str | None, root: str | None, batch_size: int, seed: int, images: int) -> Any:
    from recipes.viewing import view_images

    return view_images(viewed, data, root=root, batch_size=batch_size, shuffle=seed, training=images)
