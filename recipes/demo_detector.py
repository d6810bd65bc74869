"""``surgeon demo --detector``: two small detectors of many small real digits, before and after SPD-Conv.

Apart from `demo` because detectors need ultralytics, minutes instead of one, and other words: the demonstration itself
is the shipped recipe ``digits_detection_spd``, run as any other; here are the progress, the comparison and the verdict.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import surgeon
from recipes import figure
from recipes.detectors import NEEDED, needed, open_detector, quiet
from recipes.folders import write_text
from recipes.loading import load, with_seed
from recipes.running import Run, run
from surgeon.errors import RecipeError
from surgeon.table import table

if TYPE_CHECKING:
    from analysis import DetectionComparison

RECIPE, NETS = "digits_detection_spd", ("original", "spd")
ENOUGH = 0.3  # AP of small objects from which the original counts as trained
SHOWN = 12  # images on the page of samples
LINES = 4  # per training, where there is no terminal to draw a bar in


@dataclass(frozen=True)
class Shown:
    """What `demonstrate` gives back; everything lies in ``run.folder`` too.

    Attributes:
        run: Of the recipe.
        comparison: Average precision by size of both nets with intervals, and latency.
        verdict: The result in words.
    """

    run: Run
    comparison: DetectionComparison
    verdict: str


def demonstrate(
    folder: str | Path = "surgeon-demo-detector",
    *,
    quick: bool = False,
    seed: int = 0,
    console: Console | None = None,
) -> Shown:
    """Train a small detector of small digits and the same one after SPD-Conv, from the same weights, and compare them.

    The folder gets the images (``data/``), the recipe, per net ``record.txt``, ``metrics.jsonl`` and ``weights/``, and
    ``ap_by_size.png``, ``ap_by_size.json``, ``samples.html``, ``verdict.txt``.

    Args:
        folder: Of the results; an interrupted demo is continued there.
        quick: Two epochs on a few images: shows the steps, not the precision.
        seed: Of weights and the order of images; both nets share it.
        console: Where it speaks.

    Raises:
        RecipeError: When ultralytics or faster-coco-eval is missing, or the folder belongs to another recipe, seed or
            length.

    Example:
        >>> demonstrate("shown", seed=-1)
        Traceback (most recent call last):
        ...
        surgeon.errors.RecipeError: demo: seed -1; write 0 or more
    """
    if seed < 0:
        raise RecipeError(f"demo: seed {seed}; write 0 or more")
    for package in ("ultralytics", "faster_coco_eval"):
        if importlib.util.find_spec(package) is None:
            raise RecipeError(f"the demo of detectors needs {package.replace('_', '-')}: {NEEDED}")
    console, recipe = console or Console(), with_seed(load(RECIPE), seed)
    recipe = recipe.quick() if quick else recipe
    content = recipe.model_dump()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    try:
        with quiet(True):
            _introduce(content, say)
            with _watched(console):
                done = run(recipe, folder, console=console)
            comparison = _compare(done, imgsz=content["train"]["imgsz"], seed=seed)
    except KeyboardInterrupt:
        again = f"surgeon demo --detector{' --quick' * quick}{f' --seed {seed}' * bool(seed)} --out {folder}"
        say(f"Stopped. What is finished stays in {folder}; to go on: {again}")
        raise
    words = verdict(comparison, quick)
    write_text(done.folder / "verdict.txt", f"{comparison}\n\n{words}\n")
    say(f"\n{comparison}\n\n{words}\n")
    say(f"Look at {done.folder / 'ap_by_size.png'} and {done.folder / 'samples.html'}.")
    say(f"The rewritten detector: surgeon.load('{done.folder / NETS[1] / 'weights'}').")
    return Shown(done, comparison, words)


def _introduce(content: dict[str, Any], say: Callable[[str], None]) -> None:
    """Show the detector's strided layers, and say what is about to happen."""
    name, data, train = content["model"]["yolo"], content["data"], content["train"]
    sites = surgeon.locate(open_detector(name), (3, train["imgsz"], train["imgsz"]))
    strided = [site for site in sites if site.kind.startswith("strided")]
    shapes = [("x".join(map(str, site.in_shape)), "x".join(map(str, site.out_shape))) for site in strided]
    low, high = data["object_size"]
    say(f"1. A detector of real digits, {low} to {high} pixels high, on texture; the layers where it loses detail:\n")
    say(table(("path", "in", "out"), [(site.path, *shape) for site, shape in zip(strided, shapes, strict=True)]))
    say(
        "\n2. Rewrite them by SPD-Conv, exactly: before training both nets are the same function.\n"
        f"3. Train both for {train['epochs']} epochs on {data['images']} images, from the same weights, "
        "on the same batches.\n"
        f"4. Compare average precision by size of object on {data['val_images']} images of other digits.\n"
    )


def _compare(done: Run, imgsz: int, seed: int) -> DetectionComparison:
    """Compare what both nets found when the run measured them, time them in turns, and keep figure, table and page."""
    from analysis import detection_errors
    from analysis.detection_comparing import DetectionComparison
    from analysis.detection_latency import latencies
    from analysis.detection_scores import DetectionScores

    found = [outcome.after.coco.found for outcome in done.outcomes]
    times = latencies([surgeon.load(done.folder / net / "weights") for net in NETS], imgsz)
    draws = len(done.outcomes[0].after.coco.draws)
    one, two = (DetectionScores(each, draws, seed, time) for each, time in zip(found, times, strict=True))
    comparison = DetectionComparison(one, two, NETS)
    write_text(done.folder / "ap_by_size.json", comparison.to_json() + "\n")
    figure.save(comparison.figure(), done.folder / "ap_by_size.png")
    errors = [detection_errors(each.predictions, each.targets, names=each.names) for each in found]
    errors[0].beside(errors[1], NETS).samples(done.folder / "samples.html", found[0].images, SHOWN, seed)
    return comparison


def verdict(comparison: DetectionComparison, quick: bool = False) -> str:
    """Say in words what the comparison shows, and what it does not.

    Args:
        comparison: Of the original and the operated net.
        quick: Whether this was a trial, of which nothing can be said.
    """
    if quick:
        return "This was the quick demo: too few epochs to say anything about precision."
    row = next(row for row in comparison.rows if row["metric"] == "AP_S")
    first, second = comparison.labels
    if row["low_95"] is None:
        return f"AP of small digits: {row['verdict']}."
    figures = f"{first} {row[first]:.3f}, {second} {row[second]:.3f}"
    range_ = f"{row['difference']:+.3f}, 95% interval {row['low_95']:+.3f} to {row['high_95']:+.3f}"
    if row["low_95"] <= 0 <= row["high_95"]:
        result = "the two cannot be told apart at this budget"
    else:
        better = second if row["difference"] > 0 else first
        result = f"{better} is better on these images; one training each, so other seeds may differ (--seed)"
    untrained = f" The original has not reached {ENOUGH}: this budget was too small." if row[first] <= ENOUGH else ""
    return f"AP of small digits: {figures} ({range_}): {result}.{untrained}"


@contextmanager
def _watched(console: Console) -> Iterator[None]:
    """Show ultralytics' trainings as one bar each; where there is no terminal, as a few lines."""
    defaults = needed("ultralytics.utils.callbacks.base").default_callbacks
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}  {task.fields[words]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        hooks = _hooks(bars, console)
        for event, hook in hooks.items():
            defaults[event].append(hook)
        try:
            yield
        finally:
            for event, hook in hooks.items():
                defaults[event].remove(hook)


def _hooks(bars: Progress, console: Console) -> dict[str, Callable[[Any], None]]:
    """Make the callbacks that tell of a training; ultralytics gives each its trainer."""
    tasks: dict[str, Any] = {}

    def start(trainer: Any) -> None:
        net, batches = Path(trainer.save_dir).parent.name, len(trainer.train_loader)
        about = {"epoch": trainer.start_epoch, "epochs": trainer.epochs, "words": ""}
        done = trainer.start_epoch * batches
        tasks[net] = bars.add_task(net, total=trainer.epochs * batches, completed=done, **about)

    def batch(trainer: Any) -> None:
        bars.update(tasks[Path(trainer.save_dir).parent.name], advance=1, epoch=trainer.epoch + 1)

    def epoch(trainer: Any) -> None:
        net, number = Path(trainer.save_dir).parent.name, trainer.epoch + 1
        if number > trainer.epochs:  # the final evaluation, told as one more epoch
            return
        value = (trainer.metrics or {}).get("metrics/mAP50-95(B)")
        words = "" if value is None else f"mAP50-95 {value:.3f}"
        bars.update(tasks[net], words=words)
        if not console.is_terminal and number % max(1, trainer.epochs // LINES) == 0:
            text = f"{net}: epoch {number}/{trainer.epochs}, {words}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    return {"on_train_start": start, "on_train_batch_end": batch, "on_fit_epoch_end": epoch}
