"""``surgeon demo``: the whole idea on real digits in about a minute, and a folder to look at.

Only the words around it: the demonstration itself is the shipped recipe ``digits_spd``, run as any other, and
`analysis.robustness` of the net it trains.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

import analysis
import surgeon
from analysis.pages import write_report
from recipes.build import build
from recipes.figure import save
from recipes.loading import load
from recipes.running import Run, run
from recipes.viewing import view_images, view_model
from surgeon.errors import RecipeError

RECIPE = "digits_spd"


def demonstrate(folder: str | Path = "surgeon-demo", *, quick: bool = False, console: Console | None = None) -> Run:
    """Train a small convnet on digits, show its sites, apply SPD-Conv, fine-tune both nets alike, compare; see inside.

    Args:
        folder: Of the results; an interrupted demo is continued there.
        quick: A few epochs only: shows the steps, not the accuracy.
        console: Where it speaks.

    Raises:
        RecipeError: When the folder belongs to another recipe, or to a demo of the other length.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shown = demonstrate(folder, quick=True, console=Console(quiet=True))
        >>> [row["variant"] for row in shown.rows]
        ['original', 'spd']
    """
    console, recipe = console or Console(), load(RECIPE)
    recipe = recipe.quick() if quick else recipe
    if recipe.pretrain is None or recipe.train is None:
        raise RecipeError(f"shipped recipe '{RECIPE}' lacks pretrain or train; reinstall cnn-surgeon")

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say("1. A small convnet for scikit-learn's 1,797 real digits, drawn at random places of a canvas, and its sites:\n")
    say(str(surgeon.locate(build(recipe), (1, 32, 32))))
    say(
        f"\n2. Train it for {recipe.pretrain.epochs} epochs, and rewrite its strided layers by SPD-Conv, exactly.\n"
        f"3. Fine-tune the original and the rewritten net for {recipe.train.epochs} epochs each, "
        "from the same weights and on the same batches.\n"
    )
    result = run(recipe, folder, console=console)
    rows = {row["variant"]: row for row in result.rows}
    before = [f"{rows[name]['accuracy_before']:.2%}" for name in ("original", "spd")]
    say(f"\nAccuracy right after the surgery: {before[1]}, before it: {before[0]}.")
    say(f"Look at {result.folder / 'curves.png'} and {result.folder / 'spd' / 'record.txt'}.")
    say(f"The rewritten net: surgeon.load('{result.folder / 'spd' / 'weights'}').")
    say("\n4. What is each layer of the trained net worth? Each is set back to its first weights, and drawn anew.\n")
    seen = look_inside(result.folder)
    say(str(seen))
    say(f"\nLook at {result.folder / 'robustness.png'}, and at all of it on one page: {result.folder / 'report.html'}.")
    if quick:
        say("This was the quick demo: too few epochs to say anything about accuracy.")
    return result


def look_inside(folder: Path) -> analysis.Robustness:
    """Measure what the layers of the demo's trained net are worth, and write table, heatmap and page.

    Args:
        folder: Of the demo; the net before the surgery lies in ``pretrain``.
    """
    viewed = view_model(str(folder / "pretrain"))
    found = analysis.robustness(
        viewed.model,
        view_images(viewed, None, shuffle=0),
        checkpoints=viewed.trajectory,
        draws=3,
        batchnorm="reset",
        command="surgeon demo",
    )
    found.to_json(folder / "robustness.json")
    save(found.figure(), folder / "robustness.png")
    write_report([found], folder / "report.html", "What the layers of the demo's net are worth")
    return found
