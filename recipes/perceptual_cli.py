"""The command ``surgeon analyze perceptual``: a distance of images in a net's features, learned and judged.

Apart from the other analyses, as its data are images that people rated; free of slow imports like them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.options import Checkpoint, Classes, Device, Net, Pretrained, Seed

PERCEPTUAL = (
    "surgeon analyze perceptual runs/digits_spd/spd --data digits | "
    "surgeon analyze perceptual vgg16 --pretrained --form gap --fit tid2008:data/TID2008 --data kadid10k:data/kadid10k"
)
SMOKE = "digits and photos are distorted here, in steps of known strength"
Rated = Annotated[str, typer.Option(help=f"tid2008:FOLDER, tid2013:, kadid10k:, raid:, bapps:; {SMOKE}.")]


def perceptual(
    model: Net,
    data: Rated,
    out: Annotated[Path, typer.Option(help="Folder of the results and of the learned weights.")] = Path(
        "runs/perceptual"
    ),
    form: Annotated[
        str | None, typer.Option(help="lpips (the default), or gap: features averaged over positions first.")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="Learn the weights on these scores, named as --data; of the same data on half of the references."
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder of weights learned before, by --fit.")] = None,
    validation: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the references of --fit that choose the epoch.")
    ] = 0.2,
    epochs: Annotated[int, typer.Option(min=1, help="Most epochs of --fit.")] = 200,
    lr: Annotated[float, typer.Option(help="Learning rate of --fit.")] = 1e-3,
    tap: Annotated[list[str] | None, typer.Option(help="Path of a module whose features count; repeat.")] = None,
    side: Annotated[int | None, typer.Option(min=1, help="Pixels images are resized to. Default: as they are.")] = None,
    shifts: Annotated[int, typer.Option(min=0, help="Measure shifts of 1 to so many pixels.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Most pairs.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 16,
    device: Device = "auto",
    seed: Seed = 0,
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    num_classes: Classes = None,
) -> None:
    """How well a distance in a net's features agrees with people, and how much it sees of small shifts.

    Writes tables (JSON, CSV), figures and one page (report.html) into a folder; with --fit the learned weights too, as
    --weights reads them. After Ctrl-C those of the images seen so far.
    """
    import analysis
    from recipes.analyze_cli import try_folder
    from recipes.jobs import command_line
    from recipes.processes import processes
    from recipes.viewing import view_model
    from surgeon.errors import RecipeError

    if fit is not None and weights is not None:
        raise RecipeError("--fit learns weights and --weights brings them; give one of the two")
    own = [name for name, value in (("form", form), ("tap", tap), ("side", side)) if value]
    if weights is not None and own:
        raise RecipeError(f"--weights {weights} says what the distance is; leave out --{own[0]}")
    with processes(device) as who:
        if who.world > 1:
            raise RecipeError(f"perceptual is computed by one process, and {who.world} were started; drop torchrun")
        try_folder(out)
        viewed = view_model(model, pretrained=pretrained, checkpoint=checkpoint, num_classes=num_classes)
        judged = _rated("data", data, viewed.model, seed)
        taught = None if fit is None else _rated("fit", fit, viewed.model, seed)
        if taught is not None:
            taught, judged = _apart(taught, judged, seed)
        network = viewed.model.to(who.device)
        size: Any = tuple(judged.image(judged.items[0].reference).shape) if side is None else side
        if weights is None:
            asked: dict[str, Any] = {"form": form or "lpips", "size": side, "input_size": size}
            distance = analysis.PerceptualDistance(network, tap, **asked)
        else:
            distance = analysis.PerceptualDistance.load(weights, network, input_size=size)
        how = {"validation": validation or None, "epochs": epochs, "lr": lr, "image_batch": batch_size}
        more = {"limit": limit, "seed": seed, "command": command_line()}
        _run(distance, taught, judged, how, {"shifts": shifts, "batch_size": batch_size}, more, out)


def _run(
    distance: Any, taught: Any, judged: Any, how: dict[str, Any], asked: dict[str, Any], more: dict[str, Any], out: Path
) -> None:
    """Learn, where something is taught, and judge; what was learned is written before judging begins."""
    import analysis

    found: list[Any] = []
    if taught is not None:
        found.append(analysis.fit_perceptual(distance, taught, **how, **more))
        _write(found, out)
        distance.save(out / "weights")
    if all(result.settings["complete"] for result in found):
        found.append(analysis.perceptual(distance, judged, **asked, **more))
        _write(found, out)
    kinds = ", ".join(result.kind for result in found)
    typer.echo(f"written to {out}: {kinds} (.json .csv .png), report.html{'' if taught is None else ', weights'}")
    if not all(result.settings["complete"] for result in found):
        raise KeyboardInterrupt


def _apart(taught: Any, judged: Any, seed: int) -> tuple[Any, Any]:
    """What weights learn from, and other references that judge them: halves, where both are the same data."""
    from surgeon.errors import RecipeError

    common = set(taught.references) & set(judged.references)
    if not common:
        return taught, judged
    if common == set(taught.references) == set(judged.references):
        return judged.split(0.5, seed)  # type: ignore[no-any-return]
    raise RecipeError(
        f"--fit and --data share {len(common)} references, such as '{min(common)}': weights would be judged on what "
        "they learned from; name other data"
    )


def _rated(option: str, name: str, model: Any, seed: int) -> Any:
    """Rated images by the name of their database and its folder, or distorted ones of scikit-learn's."""
    import analysis
    from analysis.distorting import SOURCES
    from surgeon.errors import RecipeError
    from surgeon.host import input_sizes, unwrap

    database, _, folder = name.partition(":")
    if name in SOURCES:
        return analysis.distorted_samples(name, channels=input_sizes(unwrap(model), 32)[0][0], seed=seed)
    if not folder:
        raise RecipeError(f"--{option} {name}: name a database and its folder, as tid2013:data/TID2013; {SMOKE}")
    return analysis.rating_data(database, Path(folder).expanduser().resolve())


def _write(found: list[Any], out: Path) -> None:
    """Tables and figure of the last result, and one page of all."""
    from analysis.pages import write_report
    from recipes.analyze_cli import write_result

    write_result(found[-1], out, found[-1].kind, page=False)
    write_report(found, out / "report.html")
