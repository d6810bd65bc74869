"""The command line ``surgeon``: one function per command, thin over the library.

Heavy packages are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipes.analyze_cli import analyze
from recipes.guarding import Command, guarded
from recipes.report_cli import REPORT, report

if TYPE_CHECKING:
    from torch import nn

app = typer.Typer(
    name="surgeon",
    help="Operate on a vision network you already have, exactly: locate, plan, apply, verify, fine-tune.",
    epilog="Begin with: surgeon demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(analyze)

Model = Annotated[
    str,
    typer.Argument(
        help="A timm model, a detector's yaml or .pt file, a folder saved by surgeon.save, or a recipe file."
    ),
]
Surgery = Annotated[str, typer.Argument(help="An op (surgeon ops), a recipe file, or a shipped recipe.")]
Size = Annotated[str | None, typer.Option(help="Image size: 224, 224,224 or 3,224,224. Default: the model's own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Pretrained = Annotated[bool, typer.Option(help="Load timm's pretrained weights (downloads them if needed).")]
File = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe (surgeon recipes).")]
Out = Annotated[Path | None, typer.Option(help="Folder of the results. Default: runs/NAME.")]
Resume = Annotated[bool, typer.Option(help="Continue what the folder holds, or start over.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:0. Default: the recipe's.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of weights, batches and placements. Default: the recipe's.")]
Quick = Annotated[bool, typer.Option(help="A trial: a few epochs, few images.")]


def command(name: str | None = None, *, examples: str) -> Callable[[Command], Command]:
    """Register a command whose errors are said in one message."""

    def register(function: Command) -> Command:
        app.command(name, epilog=f"Examples: {examples}")(guarded(function))
        return function

    return register


def _size(text: str | None) -> Any:
    from surgeon.errors import SurgeonError

    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        numbers = ()
    if not 1 <= len(numbers) <= 3 or min(numbers) < 1:
        raise SurgeonError(f"--input-size {text}: not a size; write 224, 224,224 (H,W) or 3,224,224 (C,H,W)")
    return numbers[0] if len(numbers) == 1 else numbers


def _print(result: Any, as_json: bool = False) -> None:
    typer.echo(result.to_json() if as_json else str(result))


def _open(name: str, weights: bool = True, **settings: Any) -> nn.Module:
    from recipes.opening import open_model

    return open_model(name, weights, **settings)


@command(examples="surgeon demo | surgeon demo --quick --out /tmp/demo | surgeon demo --detector --seed 1")
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: surgeon-demo, surgeon-demo-detector.")
    ] = None,
    quick: Quick = False,
    detector: Annotated[
        bool, typer.Option("--detector", help="Detect small digits instead: minutes; needs ultralytics.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --detector: of weights and batches. Default: 0.")
    ] = None,
) -> None:
    """Show the whole idea on real digits: train, operate, compare.

    Takes about a minute (detectors: under ten) and writes a folder with weights, metrics, the table of changes and a
    figure.
    """
    from recipes import demo as classifiers
    from recipes import demo_detector as detectors
    from surgeon.errors import RecipeError

    if detector:
        detectors.demonstrate(out or "surgeon-demo-detector", quick=quick, seed=seed or 0)
    elif seed is not None:
        raise RecipeError(f"--seed {seed}: the demo of classifiers has one seed; add --detector, or leave it out")
    else:
        classifiers.demonstrate(out or "surgeon-demo", quick=quick)


@command(examples="surgeon locate resnet50 | surgeon locate vit_base_patch16_224 --input-size 3,224,224 --json")
def locate(model: Model, input_size: Size = None, as_json: Json = False) -> None:
    """List the sites of a model.

    Strided convs and pools, spatial convs, residual blocks, skip edges: whatever an op can apply to.
    """
    import surgeon

    _print(surgeon.locate(_open(model, weights=False), _size(input_size)), as_json)


@command(examples="surgeon plan resnet50 spd | surgeon plan resnet50 my_recipe.yaml --json")
def plan(model: Model, recipe: Surgery, input_size: Size = None, as_json: Json = False) -> None:
    """Show what a recipe would change, and its costs.

    Nothing is changed, and no weights are needed.
    """
    import surgeon

    _print(surgeon.plan(_open(model, weights=False), recipe, _size(input_size)), as_json)


@command(
    examples="surgeon apply resnet50 spd --pretrained --out resnet50-spd | "
    "surgeon apply resnet18 spd --checkpoint mine.pth --num-classes 10 --out mine-spd"
)
def apply(
    model: Model,
    recipe: Surgery,
    out: Annotated[Path, typer.Option(help="Folder for the operated model; surgeon.load reads it.")],
    pretrained: Pretrained = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="A file of the model's weights, your own for instance.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Of the checkpoint, where not timm's.")] = None,
    input_size: Size = None,
) -> None:
    """Operate on a model and save it."""
    import surgeon

    opened = _open(model, pretrained=pretrained, checkpoint=checkpoint, num_classes=num_classes)
    operated = surgeon.apply(opened, recipe, _size(input_size))
    surgeon.save(operated, out)
    _print(surgeon.record(operated))
    typer.echo(f"saved in {out}; load it with surgeon.load('{out}')")


@command(examples="surgeon verify before after --data digits | surgeon verify a b --data folder:images")
def verify(
    before: Model,
    after: Model,
    data: Annotated[str, typer.Option(help="A data set (digits, folder:PATH), or a recipe whose data section counts.")],
    images: Annotated[int, typer.Option(min=1, help="How many validation images.")] = 256,
    root: Annotated[str | None, typer.Option(help="Folder of the data set, where it needs one.")] = None,
) -> None:
    """Compare two models on real images.

    Site by site and at the output: the same function, or where not and by how much.
    """
    from itertools import islice

    import surgeon
    from recipes.opening import validation_images

    models = [_open(name) for name in (before, after)]
    batches = validation_images(data, models[0], root, min(images, 64))
    _print(surgeon.verify(models[0], models[1], islice(batches, -(-images // 64))))


@command(examples="surgeon train recipe.yaml | torchrun --nproc-per-node 4 -m recipes.cli train recipe.yaml")
def train(
    file: File, out: Out = None, resume: Resume = True, device: Device = None, seed: Seed = None, quick: Quick = False
) -> None:
    """Fine-tune as a recipe says.

    Surgery included, analyses left out. Run it again to continue where it was stopped.
    """
    _run(file, out, resume, device, seed, quick)


@command(examples="surgeon run digits_spd | surgeon run mine.yaml --device cuda | surgeon run digits_gap_fc --seeds 3")
def run(
    file: File,
    out: Out = None,
    resume: Resume = True,
    device: Device = None,
    seed: Seed = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with this many seeds, and compare over all.")] = 1,
    quick: Quick = False,
) -> None:
    """Do all of a recipe.

    Model, surgery, fine-tuning, analyses, summary and figure. Run it again to continue where it was stopped.
    """
    _run(file, out, resume, device, seed, quick, seeds)


def _run(
    file: str, out: Path | None, resume: bool, device: str | None, seed: int | None, quick: bool, seeds: int = 1
) -> None:
    import recipes
    from recipes.loading import with_device, with_seed

    recipe = recipes.load(file)
    recipe = recipe.quick() if quick else recipe
    if device is not None:
        recipe = with_device(recipe, device)
    if seed is not None:
        recipe = with_seed(recipe, seed)
    if seeds > 1:
        recipes.repeat(recipe, range(seed or 0, (seed or 0) + seeds), out, resume=resume)
    else:
        recipes.run(recipe, out, resume=resume)


command(examples=REPORT)(report)


@command(examples="surgeon ops")
def ops() -> None:
    """List the ops and what each does."""
    import surgeon
    from surgeon.table import table

    rows = [(name, (surgeon.get_op(name).__doc__ or "").strip().partition("\n")[0]) for name in surgeon.list_ops()]
    typer.echo(table(("op", "what it does"), rows))


@command(examples="surgeon models | surgeon models 'convnext*' --pretrained | surgeon models 'yolo11*' --yolo")
def models(
    pattern: Annotated[str, typer.Argument(help="A shell pattern.")] = "*",
    pretrained: Annotated[bool, typer.Option(help="Only those timm has weights for.")] = False,
    yolo: Annotated[bool, typer.Option(help="The yamls of ultralytics', and those shipped here.")] = False,
) -> None:
    """List the models a recipe can name: timm's, or the detectors'."""
    from recipes.opening import model_names

    typer.echo("\n".join(model_names(pattern, pretrained, yolo)))


@command("recipes", examples="surgeon recipes")
def recipe_list() -> None:
    """List the shipped recipes and what each is for."""
    from recipes.loading import purpose, shipped
    from surgeon.table import table

    typer.echo(table(("recipe", "purpose"), [(name, purpose(path)) for name, path in shipped().items()]))


def shadowed() -> str | None:
    """Say which of our packages a foreign one hides, and how to mend it; None where all is well."""
    home = Path(__file__).resolve().parent.parent
    for name in ("surgeon", "analysis"):
        if not (home / name).is_dir():
            continue
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
        if home / name not in places:
            found = places[0] if places else (spec.origin if spec else "nothing")
            return (
                f"another package named '{name}' hides this library's: found {found}, expected {home / name}; "
                "rename that folder, work in another one, or take it out of PYTHONPATH "
                f"(a package from the index: pip uninstall {name})"
            )
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; a bad input ends with exit code 2 and one message, Ctrl-C with 130.

    Example:
        >>> main(["models", "digits_convnet"])
        digits_convnet
        0
    """
    hidden = shadowed()
    if hidden:
        typer.echo(f"surgeon: {hidden}", err=True)
        return 2
    try:
        app(args=arguments, prog_name="surgeon")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
