"""`run`: all of a recipe, from the model to a folder with weights, metrics, record, summary and figure.

Just the order of the steps; each step is a function of a lower floor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import timm
from rich.console import Console
from torch import nn

import surgeon
from recipes import figure, summary
from recipes.build import build, operate, rehearse
from recipes.claiming import alone, check, claim
from recipes.data import Data, Source, batch, open_source
from recipes.detect_running import WRITES as DETECTOR_WRITES
from recipes.detect_running import DetectorSteps
from recipes.evaluating import Score, evaluate
from recipes.finetuning import WRITES as TRAINING_WRITES
from recipes.finetuning import Finetuned, finetune
from recipes.fitting import outputs
from recipes.folders import write_json, write_text
from recipes.loading import load
from recipes.probes import written
from recipes.probing import probe
from recipes.probing import rehearse as rehearse_analyses
from recipes.processes import Processes, processes
from recipes.schema import DetectorRecipe, RecipeFile, TrainSection
from recipes.steps import Steps, ops_in

WRITES = (*TRAINING_WRITES, "record.json", "record.txt", "verification.txt", "weights", "weights_ema", "pretrain")
VERIFIED = 512  # validation images an operated model is verified on, about
REPORTS = ("summary.json", "summary.txt", "curves.png")


@dataclass(frozen=True)
class Run:
    """What `run` gives back; everything lies in its folder too.

    Attributes:
        folder: ``recipe.yaml``, ``summary.txt``, ``curves.png``; per variant ``record.json``, ``metrics.jsonl`` and
            ``weights/`` for `surgeon.load`. A recipe that compares keeps each variant in a folder of its name.
        rows: One dict per variant: parameters, MACs, accuracies (0 to 1) with Wilson's 95% interval; of detectors
            mean average precision, COCO's AP by size of object.
        verdicts: In words, whether the variants can be told apart.
        outcomes: One `summary.Outcome` or `summary.DetectionOutcome` per variant.
        findings: Of the analyses, a line each; rows, figures and pages lie in the variants' folders.
    """

    folder: Path
    rows: list[dict[str, Any]]
    verdicts: list[str]
    outcomes: list[Any]
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([summary.as_table(self.outcomes), *self.verdicts, *self.findings])


@dataclass
class _ClassifierSteps(Steps):
    """One run of a classifier's recipe under way."""

    sources: dict[int, Source] = field(default_factory=dict)

    @property
    def settings(self) -> TrainSection:
        return self.recipe.train or self.recipe.pretrain or TrainSection()

    def prepare(self) -> nn.Module:
        """Build the model, and try whatever can be refused, so that nothing is trained or written in vain."""
        base = self.build(self.recipe)
        for part in (self.recipe.before_surgery(), *self.recipe.variants().values()):
            if part is None:
                continue
            model = self.start(part, base)
            data = self.batched(model, part)
            if data is not None:
                outputs(model, data)
            size = None if data is None else data.input_size
            rehearse(model, part, size)
            if part.analysis:
                operated = operate(copy.deepcopy(model), part, self.settings.seed, size)
                rehearse_analyses(operated, part, self.batched(model, part, whole=True))
        return base

    def build(self, recipe: RecipeFile) -> nn.Module:
        """Build the model of the recipe, or of a variant that names one, from the same seed."""
        source = self.source(self.settings)
        classes, channels = (source.num_classes, source.in_chans) if source else (None, None)
        return build(recipe, self.settings.seed, classes, channels).to(self.who.device)

    def start(self, recipe: RecipeFile, base: nn.Module) -> nn.Module:
        """Return what a variant operates on: the model all share, or its own."""
        return base if recipe.model == self.recipe.model else self.build(recipe)

    def pretrain(self, model: nn.Module) -> None:
        """Train the model before the surgery, where the recipe says so."""
        first = self.recipe.before_surgery()
        if first is not None:
            self.train(model, first, self.folder / "pretrain")
            if self.who.main:
                surgeon.save(model, self.folder / "pretrain" / "weights")

    def source(self, settings: TrainSection) -> Source | None:
        """Open the data once for every seed that is asked for."""
        if self.recipe.data is None:
            return None
        if settings.seed not in self.sources:
            self.sources[settings.seed] = open_source(self.recipe.data, settings.seed)
        return self.sources[settings.seed]

    def batched(self, model: nn.Module, recipe: RecipeFile, whole: bool = False) -> Data | None:
        """Batch the data as this variant trains on them; ``whole`` is without leaving a part to other processes."""
        settings = recipe.train or self.settings
        source = self.source(settings)
        if source is None:
            return None
        channels = recipe.model.in_chans or source.in_chans
        sizes = {"batch_size": settings.batch_size, "workers": settings.workers}
        who = Processes(0, 1, self.who.device) if whole else self.who
        return batch(source, model, seed=settings.seed, in_chans=channels, who=who, **sizes)

    def train(self, model: nn.Module, recipe: RecipeFile, place: Path) -> Finetuned:
        return finetune(model, recipe, folder=place, data=self.batched(model, recipe), console=self.console)

    def variant(self, name: str, recipe: RecipeFile, base: nn.Module, place: Path) -> summary.Outcome:
        """Operate on a copy of the model, fine-tune it, and keep everything."""
        base = self.start(recipe, base)
        model, data = copy.deepcopy(base), self.batched(base, recipe)
        size = data.input_size if data is not None else None
        operate(model, recipe, self.settings.seed, size)
        self.verify(name, base, model, data, place)
        before = self.score(model, data)
        trained: Finetuned | None = None
        if recipe.train is not None and data is not None:
            trained = self.train(model, recipe, place)
        if self.who.main:
            surgeon.save(model, place / "weights")
            if trained is not None and trained.ema is not None:
                surgeon.save(trained.ema, place / "weights_ema")
        after = self.score(model, data) if trained else before
        self.findings += probe(self, name, model, recipe, self.batched(base, recipe, whole=True), place)
        params = sum(parameter.numel() for parameter in model.parameters())
        macs = summary.macs_of(model, size or surgeon.record(model).input_size or _input_size(model))
        return summary.Outcome(name, ops_in(model), params, macs, before, after, trained.rows if trained else [])

    def verify(self, name: str, base: nn.Module, model: nn.Module, data: Data | None, place: Path) -> None:
        """Keep the table of changes, and how the operated model answers on real images."""
        if self.who.main and self.keep_record(name, model, place) and data is not None:
            some = islice(data.val, -(-VERIFIED // self.settings.batch_size))
            self.keep_verification(name, surgeon.verify(base, model, some), place)

    def score(self, model: nn.Module, data: Data | None) -> Score | None:
        return None if data is None else evaluate(model.to(self.who.device), data.val, self.who)


def _finish(this: Steps, outcomes: list[Any]) -> Run:
    """Write summary and figure, and say the result."""
    run = Run(this.folder, [one.row() for one in outcomes], summary.verdicts(outcomes), outcomes, this.findings)
    if this.who.main:
        packages = ("torch", "timm", *(("ultralytics",) if isinstance(this.recipe, DetectorRecipe) else ()))
        versions = {**{name: version(name) for name in packages}, "surgeon": surgeon.__version__}
        notes: dict[str, Any] = {"recipe": this.recipe.name, "versions": versions, "device": this.device}
        notes |= {"analyses": this.findings} if this.findings else {}
        write_json(this.folder / "summary.json", summary.as_json(outcomes, notes))
        write_text(this.folder / "summary.txt", f"{run}\n")
        lines = {one.name: one.rows for one in outcomes if one.rows and one.after is not None}
        if lines and isinstance(this.recipe, DetectorRecipe):
            drawn = figure.paired(this.recipe.name, {name: [rows] for name, rows in lines.items()}, "map50_95")
            figure.save(drawn, this.folder / "curves.png")
        elif lines:
            scores = {one.name: one.after for one in outcomes if one.name in lines}
            figure.save(figure.curves(this.recipe.name, lines, scores), this.folder / "curves.png")
    this.say(f"\n{run}\nEverything is in {this.folder}")
    return run


def _input_size(model: nn.Module) -> tuple[int, ...]:
    return tuple(timm.data.resolve_model_data_config(model)["input_size"])


def run(
    recipe: RecipeFile | Mapping[str, Any] | str | Path,
    folder: str | Path | None = None,
    *,
    resume: bool = True,
    console: Console | None = None,
) -> Run:
    """Do all of a recipe: model, surgery, fine-tuning, summary; called again, it continues where it was stopped.

    Args:
        recipe: A recipe, its path, its name or its content.
        folder: Of the results; ``runs/NAME`` where none is given.
        resume: Continue what the folder holds; else start over there.
        console: Where progress and results are shown.

    Raises:
        SurgeonError: When the recipe is not valid, data are missing, the surgery is refused, or the folder belongs to
            another recipe.

    Example:
        >>> import tempfile
        >>> recipe = {"name": "short", "model": {"timm": "digits_convnet"}, "data": {"dataset": "digits", "size": 8},
        ...           "surgery": ["spd"], "train": {"epochs": 1, "device": "cpu"}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run(recipe, folder, console=Console(quiet=True))
        >>> result.rows[0]["surgery"], result.rows[0]["images"]
        ('spd', 450)
    """
    recipe = load(recipe)
    place = Path(folder).expanduser() if folder is not None else Path("runs") / recipe.name
    detector = isinstance(recipe, DetectorRecipe)
    own = recipe.compare or written(recipe.analysis)
    names = (*(DETECTOR_WRITES if detector else WRITES), *REPORTS, *own)
    device = "cpu" if detector else (recipe.train or recipe.pretrain or TrainSection()).device
    with processes(device) as who, alone(place if who.main else None):
        if who.main:
            check(place, recipe, names, resume)
        steps = DetectorSteps if detector else _ClassifierSteps
        this = steps(recipe, place, who, console or Console())
        base = this.prepare()
        if who.main:
            claim(place, recipe, names, resume)
        who.wait()
        this.pretrain(base)
        outcomes = [
            this.variant(name, variant, base, place / name if recipe.compare else place)
            for name, variant in recipe.variants().items()
        ]
        return _finish(this, outcomes)
