"""The commands ``surgeon analyze ...``: one per analysis, thin over the package analysis.

Apart from the other commands, and free of slow imports like them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.aliasing_cli import ALIASING, aliasing
from recipes.attribution_cli import ATTRIBUTION, ATTRIBUTION_SHIFTS, attribution, attribution_shifts
from recipes.detection_shift_cli import DETECTION_SHIFT, detection_shift
from recipes.guarding import guarded
from recipes.perceptual_cli import PERCEPTUAL, perceptual
from recipes.resolution_cli import RESOLUTION, resolution
from recipes.robustness_cli import ROBUSTNESS, robustness
from recipes.shifts_cli import COMPARE, CONSISTENCY, TRANSLATION, compare, consistency, translation
from recipes.spatial_cli import SPATIAL, spatial

if TYPE_CHECKING:
    from analysis import DetectionErrors, Detections, Result

DETECTION = (
    "surgeon analyze detection best.pt --data mine.yaml | "
    "surgeon analyze detection original.pt operated.pt --data VOC.yaml --similar voc --device cuda"
)
analyze = typer.Typer(
    name="analyze",
    help="See inside a network: what it finds and misses, in tables, figures and pages.",
    epilog=f"Examples: {ROBUSTNESS} | {DETECTION}",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Net = Annotated[str, typer.Argument(help="A .pt file, stock or operated, a folder of surgeon.save, or a model yaml.")]
Other = Annotated[str | None, typer.Argument(help="Another, to be compared on the same images.")]


analyze.command(epilog=f"Examples: {ROBUSTNESS}")(guarded(robustness))
analyze.command(epilog=f"Examples: {TRANSLATION}")(guarded(translation))
analyze.command(epilog=f"Examples: {CONSISTENCY}")(guarded(consistency))
analyze.command(epilog=f"Examples: {ALIASING}")(guarded(aliasing))
analyze.command(epilog=f"Examples: {COMPARE}")(guarded(compare))
analyze.command(epilog=f"Examples: {SPATIAL}")(guarded(spatial))
analyze.command(epilog=f"Examples: {ATTRIBUTION}")(guarded(attribution))
analyze.command("attribution-shifts", epilog=f"Examples: {ATTRIBUTION_SHIFTS}")(guarded(attribution_shifts))
analyze.command("detection-shift", epilog=f"Examples: {DETECTION_SHIFT}")(guarded(detection_shift))
analyze.command(epilog=f"Examples: {RESOLUTION}")(guarded(resolution))
analyze.command(epilog=f"Examples: {PERCEPTUAL}")(guarded(perceptual))


@analyze.command(epilog=f"Examples: {DETECTION}")
@guarded
def detection(
    model: Net,
    data: Annotated[str, typer.Option(help="A data yaml as ultralytics reads it.")],
    other: Other = None,
    imgsz: Annotated[int, typer.Option(min=32, help="Pixels of the longer side the net sees.")] = 640,
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0.")] = "cpu",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/detection"),
    similar: Annotated[str | None, typer.Option(help="Which classes are similar: voc or coco.")] = None,
    labels: Annotated[str, typer.Option(help="Names of the two nets.")] = "original,operated",
    resamples: Annotated[int, typer.Option(min=0, help="Draws of the images for the intervals; 0: none.")] = 200,
    samples: Annotated[int, typer.Option(min=0, help="Images on the page of samples.")] = 12,
    latency: Annotated[bool, typer.Option(help="Measure how long one image takes.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Average precision by size of object, and kinds of errors.

    With two nets: the differences, and whether these images can tell them apart. Writes tables (JSON, CSV), figures and
    pages into a folder.
    """
    import analysis

    names = _two(labels)
    try_folder(out)
    nets = _open([name for name in (model, other) if name is not None], data, split, similar)
    settings: dict[str, Any] = {"imgsz": imgsz, "batch": batch, "device": device, "split": split, "latency": latency}
    settings |= {"resamples": resamples, "seed": seed}
    scores: Any
    errors: Any
    if len(nets) == 1:
        scores = analysis.detection(nets[0], data, **settings)
        write_result(scores, out, "detection")
        errors, images = _errors(scores.found, similar), scores.found.images
    else:
        scores = analysis.compare_detection(nets[0], nets[1], data, labels=names, **settings)
        write_result(scores, out, "detection")
        one, two = (_errors(each.found, similar) for each in (scores.first, scores.second))
        errors, images = one.beside(two, names), scores.first.found.images
    write_result(errors, out, "errors")
    errors.samples(out / "samples.html", images, samples, seed)
    typer.echo(f"written to {out}: detection and errors (.json .csv .png .html), samples.html")


def _open(names: list[str], data: str, split: str, similar: str | None) -> list[Any]:
    """Open the nets; what is wrong with the data or the sets shows before anything runs."""
    from analysis.detection_running import data_classes
    from analysis.detection_similar import similarity
    from recipes.detectors import open_detector

    classes = data_classes(data, split)
    similarity(classes, similar)
    return [open_detector(name, classes=len(classes)) for name in names]


def try_folder(out: Path) -> None:
    """See that the folder can be written to, before anything that takes time; a new one is gone again."""
    from surgeon.errors import SurgeonError
    from surgeon.storage import replace_file

    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / ".trial", b"")
        (out / ".trial").unlink()
        if new:
            out.rmdir()
    except OSError as error:
        raise SurgeonError(f"--out {out}: nothing can be written there ({error.strerror}); name a folder") from error


def _two(labels: str) -> tuple[str, str]:
    from surgeon.errors import SurgeonError

    first, _, second = (part.strip() for part in labels.partition(","))
    if not first or not second or first == second:
        raise SurgeonError(f"--labels {labels}: two different names are needed; write original,operated")
    return first, second


def _errors(found: Detections, similar: str | None) -> DetectionErrors:
    import analysis

    return analysis.detection_errors(found.predictions, found.targets, similar=similar, names=found.names)


def write_result(result: Result, out: Path, name: str, page: bool = True) -> None:
    """Print a result, and write it as JSON, CSV and picture; as a page of its own too, where asked for."""
    import io

    from surgeon.storage import replace_file

    typer.echo(str(result))
    out.mkdir(parents=True, exist_ok=True)
    result.to_json(out / f"{name}.json")
    result.to_csv(out / f"{name}.csv")
    image = io.BytesIO()
    result.figure().savefig(image, format="png", dpi=150)
    replace_file(out / f"{name}.png", image.getvalue())
    if page:
        result.report(out / f"{name}.html")
