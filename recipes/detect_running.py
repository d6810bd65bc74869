"""The steps of a detector's run: every variant starts from one file of weights, and what is finished stays so.

Apart from the classifiers' steps because training, checkpoints and evaluation are ultralytics'.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import surgeon
from analysis.detection_running import why_other_classes
from recipes import detect
from recipes.build import operate, rehearse
from recipes.data_schema import DigitsDetectionData
from recipes.detect_schema import DetectTrain
from recipes.detectors import check_device, check_task, open_detector, quiet
from recipes.processes import derive, seeded
from recipes.schema import DetectorRecipe, RecipeFile
from recipes.steps import Steps, ops_in
from recipes.summary import Detected, DetectionOutcome, macs_of
from surgeon.errors import RecipeError
from surgeon.host import input_sizes, unwrap

WRITES = (
    *("metrics.jsonl", "record.json", "record.txt", "verification.txt", "weights", "pretrain"),
    *(detect.FOLDER, "start.pt", "data"),
)


class DetectorSteps(Steps):
    """One run of a detector's recipe under way."""

    recipe: DetectorRecipe

    @property
    def settings(self) -> DetectTrain:
        """What data are opened and nets measured by, where a variant has no training of its own."""
        return self.recipe.train or self.recipe.pretrain or self.untrained

    @property
    def device(self) -> str:
        """Where nets are trained, as the recipe says it."""
        return str(self.settings.device)

    @property
    def start(self) -> Path:
        """The file of weights all begin with."""
        return self.folder / "start.pt"

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Of the images the net is trained on."""
        return (self.data.channels if self.data else 3, self.settings.imgsz, self.settings.imgsz)

    def prepare(self) -> Any:
        """Build the model, and try whatever can be refused, so that nothing is trained or written in vain."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RecipeError("ultralytics starts its own processes; run without torchrun, and name train.device: 0,1")
        recipe, name = self.recipe, str(self.recipe.model.yolo)
        for one in (recipe.pretrain, *(part.train for part in recipe.variants().values())):
            check_device(one.device if isinstance(one, DetectTrain) else "auto")
        self.data: detect.DataSet | None = None
        if isinstance(recipe.data, DigitsDetectionData):
            self.data = detect.DataSet("", 10, {}, 3)  # written when the folder is ours
        elif recipe.data is not None:
            with quiet(self.console.quiet):
                self.data = detect.open_data(recipe.data, self.folder)
        self.untrained = DetectTrain()
        classes, channels = (self.data.classes, self.data.channels) if self.data else (None, None)
        with seeded(derive(self.settings.seed, 0)):
            model = open_detector(name, classes, channels)
        check_task(name, model)
        self.untrained = DetectTrain(imgsz=max(input_sizes(unwrap(model))[0][1:]))
        for part in recipe.variants().values():
            rehearse(model, part, self.input_size)
        self.trained = recipe.pretrain is not None or not name.endswith((".yaml", ".yml"))
        return model

    def pretrain(self, base: Any) -> None:
        """Keep the weights all begin with, and train the model before the surgery, where the recipe says so."""
        if self.recipe.data is not None:
            with quiet(self.console.quiet):
                self.data = detect.open_data(self.recipe.data, self.folder)
        if not self.start.is_file():
            beside = self.folder / ".start.part.pt"
            base.save(beside)
            beside.replace(self.start)
        self.base = self.start
        first = self.recipe.before_surgery()
        if isinstance(first, DetectorRecipe) and first.train is not None:
            place = self.folder / "pretrain"
            self.train(open_detector(str(self.start)), first.train, place)
            best = place / detect.FOLDER / "weights" / "best.pt"
            self.base = best if best.is_file() else best.with_name("last.pt")

    def variant(self, name: str, recipe: RecipeFile, _base: Any, place: Path) -> DetectionOutcome:
        """Operate on the model with the common weights, fine-tune it, and keep everything."""
        train = recipe.train if isinstance(recipe, DetectorRecipe) else None
        model = self.operated(recipe)
        if self.keep_record(name, model, place) and self.data is not None:
            with quiet(self.console.quiet):
                some = next(detect.images(self.data, self.settings.imgsz, detect.VERIFIED))
            verification = surgeon.verify(open_detector(str(self.base)), model, some.to(_device(model)))
            self.keep_verification(name, verification, place)
        before = self.measure(self.operated(recipe), train) if self.trained else None
        if train is not None and self.data is not None:
            model = self.train(model, train, place)
        surgeon.save(model, place / "weights")
        params = sum(parameter.numel() for parameter in model.model.parameters())
        ops, macs = ops_in(model), macs_of(model.model, self.input_size)
        after = self.measure(model, train) if train is not None else before
        rows = detect.read_rows(place / detect.FOLDER) if train is not None else []
        return DetectionOutcome(name, ops, params, macs, before, after, rows)

    def operated(self, recipe: RecipeFile) -> Any:
        """Open the common weights and operate as a variant says."""
        return operate(open_detector(str(self.base)), recipe, self.settings.seed, self.input_size)

    def train(self, model: Any, settings: DetectTrain, place: Path) -> Any:
        """Train one net, or go on with it."""
        if self.data is None:
            return model
        with quiet(self.console.quiet):
            return detect.train(model, settings, self.data, place, self.say)

    def measure(self, model: Any, settings: DetectTrain | None) -> Detected | None:
        """Validate one net; None where its classes are not those of the data."""
        if self.data is None or why_other_classes(model.model.names, self.data.names) is not None:
            return None
        with quiet(self.console.quiet):
            return detect.measure(model, settings or self.settings, self.data)


def _device(model: Any) -> Any:
    return next(model.model.parameters()).device
