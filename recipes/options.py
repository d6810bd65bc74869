"""Options that several of the commands ``surgeon analyze ...`` have, in the same words.

Apart from the commands, whose signatures name them; free of slow imports like them.
"""

from __future__ import annotations

from typing import Annotated

import typer

Net = Annotated[str, typer.Argument(help="Folder of a run, or any model: timm's name, a folder of surgeon.save.")]
Data = Annotated[str | None, typer.Option(help="A data set, or a recipe whose data counts. Default: the run's own.")]
Root = Annotated[str | None, typer.Option(help="Folder of the data set, where it needs one.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Most images.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything drawn.")]
Pretrained = Annotated[bool, typer.Option(help="Load timm's pretrained weights.")]
Checkpoint = Annotated[str | None, typer.Option(help="A file of the model's weights.")]
Classes = Annotated[int | None, typer.Option(min=1, help="Of the checkpoint, where not timm's.")]
Resume = Annotated[bool, typer.Option(help="Continue what the folder holds, or start over.")]
Amp = Annotated[str | None, typer.Option(help="bfloat16 or float16.")]


def two_labels(labels: str) -> list[str]:
    """The names of two nets, as ``--labels`` gives them.

    Raises:
        RecipeError: When they are not two different ones.

    Example:
        >>> two_labels("original, operated")
        ['original', 'operated']
    """
    from surgeon.errors import RecipeError

    names = [name.strip() for name in labels.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise RecipeError(f"--labels {labels}: give two different names, as original,operated")
    return names
