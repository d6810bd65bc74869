"""``surgeon demo``: the whole idea on real digits in about a minute, and a folder to look at.

Only the words around it: the demonstration itself is the shipped recipe ``digits_spd``, run as any other,
`analysis.robustness` of the net it trains, and `analysis.compare` of both nets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

import analysis
import surgeon
from analysis.pages import write_report
from recipes.build import build
from recipes.digits import MEAN, STD
from recipes.figure import save
from recipes.loading import load
from recipes.running import Run, run
from recipes.viewing import view_images, view_model
from surgeon.errors import RecipeError

RECIPE = "digits_spd"
BLACK = -MEAN / STD  # of the normalised digits
MEASURES = ("translation", "consistency", "resolution", "equivariance", "cost")
ASKED: dict[str, dict[str, Any]] = {
    "translation": {"reach": 3, "step": 1, "padding": "black", "fill": BLACK},
    "consistency": {"protocol": "circular", "reach": 8, "passes": 2},
    "resolution": {"factors": (1, 1 / 2, 1 / 4)},
}
FEW, LESS = 60, ("consistency", "cost")  # images and measures of the quick demo


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
    say("\n5. What did the surgery change? Both nets on the same images, whole, shifted and blurred.\n")
    found = look_at_both(result.folder, seen, quick)
    say(str(found))
    place = result.folder
    say(f"\nLook at {place / 'robustness.png'} and {place / 'compare.png'}, and at all of it: {place / 'report.html'}.")
    if quick:
        say("This was the quick demo: too few epochs to say anything about accuracy.")
    return result


def look_inside(folder: Path) -> analysis.Robustness:
    """Measure what the layers of the demo's trained net are worth, and write table and heatmap.

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
    return found


def look_at_both(folder: Path, seen: analysis.Robustness, quick: bool = False) -> analysis.Comparison:
    """Compare the demo's nets with and without surgery, and write table, figure, and one page with all there is.

    Args:
        folder: Of the demo.
        seen: What the layers are worth, for the page.
        quick: Few images, and the measures that cost least.
    """
    original, operated = (view_model(str(folder / name)) for name in ("original", "spd"))
    found = analysis.compare(
        original.model,
        operated.model,
        view_images(original, None, shuffle=0),
        labels=("original", "spd"),
        measures=LESS if quick else MEASURES,
        settings=ASKED,
        limit=FEW if quick else None,
        command="surgeon demo",
    )
    found.to_json(folder / "compare.json")
    save(found.figure(), folder / "compare.png")
    write_report([found, seen, *found.results], folder / "report.html", "The demo: a net before and after surgery")
    return found
