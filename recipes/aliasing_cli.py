"""The command ``surgeon analyze aliasing``: what the strides of a net leave behind, on one page.

Apart from the scans it builds on, which are commands too; free of slow imports like them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from recipes.jobs import at_work, command_line, run_jobs
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
)

ALIASING = (
    "surgeon analyze aliasing runs/digits_spd/original | "
    "surgeon analyze aliasing resnet50 --pretrained --data folder:imagenet --limit 1000 --reach 64"
)
AXES, COLUMNS = ("diagonal", "horizontal", "vertical"), ("loss", "accuracy", "relative_loss")
Of = Annotated[str, typer.Option(help="Whose spectrum: loss, accuracy or relative_loss.")]


def aliasing(
    model: Net,
    data: Data = None,
    root: Root = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/aliasing"),
    column: Of = "loss",
    axis: Annotated[str, typer.Option(help="Of the shifts: diagonal, horizontal, vertical.")] = "diagonal",
    reach: Annotated[int | None, typer.Option(min=5, help="Furthest shift, pixels. Default: half the image.")] = None,
    padding: Annotated[str, typer.Option(help="What comes in: circular, mirror.")] = "circular",
    units: Annotated[str, typer.Option(help="Of the equivariance error: layer, block or stage.")] = "block",
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
    """Which pixels the strides read, where invariance is lost, and whether what is left of it is periodic.

    Sampling map, equivariance error layer by layer, and the spectrum of a measure over shifts. Writes tables (JSON,
    CSV), figures and one page (report.html) into a folder. Ctrl-C keeps what was measured; run it again to go on.
    """
    from analysis.parts import Level
    from analysis.shifted_passes import size_of
    from recipes.viewing import view_images
    from surgeon.errors import RecipeError

    for option, value, known in (("axis", axis, AXES), ("column", column, COLUMNS), ("units", units, get_args(Level))):
        if value not in known:
            raise RecipeError(f"--{option} {value}: it is one of {', '.join(known)}")
    opened = {"pretrained": pretrained, "checkpoint": checkpoint, "num_classes": num_classes}
    with at_work(model, out, ["translation"], device, resume, **opened) as (who, viewed):
        batches = view_images(viewed, data, root=root, batch_size=batch_size, shuffle=seed)
        size = size_of(batches)
        farthest = reach or min(size[1:]) // 2
        _long_enough(viewed.model, size, farthest)
        scan = {"axis": axis, "reach": farthest, "step": 1, "padding": padding, "amp": amp}
        more = {"limit": limit, "seed": seed, "command": command_line()}
        run_jobs(_jobs(viewed.model, batches, size, column, units, scan, more), out, who.main)


def _long_enough(model: Any, size: tuple[int, int, int], reach: int) -> None:
    """Refuse a line of shifts into which no stride fits often enough, before anything is measured."""
    from analysis.spectra import CYCLES
    from analysis.stride_periods import stride_periods
    from surgeon.errors import RecipeError

    periods = stride_periods(model, size)
    if periods and min(periods) * CYCLES > 2 * reach + 1:
        raise RecipeError(
            f"--reach {reach} makes {2 * reach + 1} shifts, and the smallest stride, of {min(periods)} pixels, needs "
            f"{min(periods) * CYCLES:.0f}; give --reach {min(periods) * CYCLES / 2:.0f}, and images larger than that"
        )


def _jobs(
    model: Any, batches: Any, size: tuple[int, int, int], column: str, units: Any, scan: dict[str, Any],
    more: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The four analyses in order; the spectrum is of the scan before it."""
    import analysis

    command, done = more["command"], dict[str, Any]()

    def translation(**ledger: Any) -> Any:
        done["scan"] = analysis.translation(model, batches, **scan, **more, **ledger)
        return done["scan"]

    def aliasing(**_: Any) -> Any:
        return analysis.aliasing(
            done["scan"], column=column, model=model, input_size=size, seed=more["seed"], command=command
        )

    def equivariance(**_: Any) -> Any:
        return analysis.equivariance(model, batches, units=units, padding=scan["padding"], **more)

    def sampling_map(**_: Any) -> Any:
        return analysis.sampling_map(model, size, command=command)

    return {job.__name__: job for job in (sampling_map, equivariance, translation, aliasing)}
