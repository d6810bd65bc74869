"""The commands ``surgeon analyze attribution`` and ``attribution-shifts``: what an answer rests on.

Apart from the other analyses, as each has settings of its own; free of slow imports like them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.options import Amp, BatchSize, Checkpoint, Classes, Device, Limit, Pretrained, Root

ATTRIBUTION = (
    "surgeon analyze attribution runs/digits_layers_resnet | "
    "surgeon analyze attribution resnet50 --pretrained --data folder:imagenet --limit 100 --no-robustness"
)
ATTRIBUTION_SHIFTS = (
    "surgeon analyze attribution-shifts runs/digits_spd/original --method saliency --method gradcam --shift 1 --shift 8"
)
Net = Annotated[
    str, typer.Argument(help="Folder of a run (weights, recipe), or any model: timm's name, .pt, a folder of weights.")
]
Data = Annotated[str | None, typer.Option(help="A data set, a recipe, or a detector's yaml. Default: the run's own.")]
Units = Annotated[str, typer.Option(help="layer, block or stage.")]
Baseline = Annotated[str, typer.Option(help="zero, mean (each image's mean colour) or blur.")]
StepCount = Annotated[int, typer.Option(min=2, help="Of the path from baseline to image; even.")]
Target = Annotated[str | None, typer.Option(help="label or predicted; of detectors confidence.")]
Internal = Annotated[int | None, typer.Option(min=1, help="Images in one pass. Default: what --memory holds.")]
Memory = Annotated[str, typer.Option(help="What a pass may take.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything drawn, and of the order of images.")]


def attribution(
    model: Net,
    data: Data = None,
    root: Root = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/attribution"),
    method: Annotated[
        list[str] | None,
        typer.Option(help="conductance, integrated_gradients, gradient_x_activation; may be repeated."),
    ] = None,
    units: Units = "block",
    baseline: Baseline = "zero",
    steps: StepCount = 50,
    target: Target = None,
    robustness: Annotated[bool, typer.Option(help="Draw each unit anew too, and compare.")] = True,
    draws: Annotated[int, typer.Option(min=1, help="Fresh draws of each unit.")] = 1,
    internal_batch_size: Internal = None,
    memory: Memory = "1GiB",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    amp: Amp = None,
    device: Device = "auto",
    seed: Seed = 0,
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
) -> None:
    """How much of the answer flows through each unit, beside what drawing that unit anew costs.

    Writes tables (JSON, CSV), the figure and one page into a folder; after Ctrl-C those of the images seen so far.
    """
    settings: dict[str, Any] = {
        **{"method": method or "conductance", "units": units, "baseline": baseline, "steps": steps, "target": target},
        **{"robustness": robustness, "draws": draws, "internal_batch_size": internal_batch_size, "memory": memory},
        **{"limit": limit, "amp": amp, "seed": seed},
    }
    opened = {"pretrained": pretrained, "checkpoint": checkpoint, "num_classes": num_classes}
    _run("attribution", model, opened, (data, root, batch_size), settings, out, device)


def attribution_shifts(
    model: Net,
    data: Data = None,
    root: Root = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/attribution_shifts"),
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="saliency, input_x_gradient, integrated_gradients, smoothgrad, guided_backprop, gradcam, "
            "guided_gradcam; may be repeated."
        ),
    ] = None,
    shift: Annotated[
        list[int] | None, typer.Option(help="Pixels right and down; may be repeated. Default: 1, 2, 4.")
    ] = None,
    padding: Annotated[str, typer.Option(help="What comes in: circular or mirror.")] = "circular",
    baseline: Baseline = "zero",
    steps: StepCount = 50,
    samples: Annotated[int, typer.Option(min=1, help="Noisy images of SmoothGrad.")] = 16,
    unit: Annotated[str | None, typer.Option(help="That GradCAM looks at. Default: the last with a map.")] = None,
    target: Target = None,
    internal_batch_size: Internal = None,
    memory: Memory = "1GiB",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    amp: Amp = None,
    device: Device = "auto",
    seed: Seed = 0,
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
) -> None:
    """Does the map of what an answer rests on move with the image?

    Writes tables (JSON, CSV), the figure and one page into a folder; after Ctrl-C those of the images seen so far.
    """
    settings: dict[str, Any] = {
        **{"method": method or "saliency", "shifts": shift or (1, 2, 4), "padding": padding, "baseline": baseline},
        **{"steps": steps, "samples": samples, "unit": unit, "target": target, "memory": memory},
        **{"internal_batch_size": internal_batch_size, "limit": limit, "amp": amp, "seed": seed},
    }
    opened = {"pretrained": pretrained, "checkpoint": checkpoint, "num_classes": num_classes}
    _run("attribution_equivariance", model, opened, (data, root, batch_size), settings, out, device)


def _run(
    name: str, model: str, opened: dict[str, Any], images: tuple[str | None, str | None, int], settings: Any, out: Path,
    device: str,
) -> None:  # fmt: skip
    import analysis
    from recipes.analyze_cli import try_folder, write_result
    from recipes.jobs import command_line
    from recipes.processes import processes
    from recipes.viewing import view_data, view_model
    from surgeon.errors import RecipeError

    with processes(device) as who:
        if who.world > 1:
            raise RecipeError(f"{name} is computed by one process, and {who.world} were started; leave torchrun out")
        try_folder(out)
        viewed = view_model(model, **opened)
        viewed.model.to(who.device)
        data, root, batch_size = images
        batches, detector = view_data(viewed, data, root=root, batch_size=batch_size, seed=settings["seed"])
        result = getattr(analysis, name)(viewed.model, batches, detector=detector, command=command_line(), **settings)
    write_result(result, out, name)
    typer.echo(f"written to {out}: {name} (.json .csv .png .html)")
    if not result.complete:
        raise KeyboardInterrupt
