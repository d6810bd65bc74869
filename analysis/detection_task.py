"""Detectors under study: which task a model has, and what makes a detector ready to be measured.

Ultralytics, whose own validator prepares images and whose own criterion is the loss, is optional and imported late.
Apart from measuring an image, and from the settings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from analysis.detection_batches import Batch, of_user, of_yaml
from analysis.detection_coco import coco_eval
from analysis.detection_measures import APMeasures
from analysis.detection_measuring import Detection, LogitsLast
from analysis.detection_options import Options
from analysis.detection_running import quiet, words_of
from analysis.perturb import untouched
from analysis.readings import Readings
from analysis.tasks import Classification
from surgeon.errors import AnalysisError
from surgeon.host import input_sizes, unwrap

if TYPE_CHECKING:
    from analysis.study_settings import Settings


def open_task(model: Any, data: Any, settings: Settings) -> tuple[Any, Any, Detector | None]:
    """The task of an ultralytics model, its batches, and what looks after a detector while it is measured.

    Args:
        model: A ``YOLO`` or ``RTDETR`` object, or its inner model.
        data: Of a detector a data yaml, or batches of (images, [{"boxes", "labels"}]); of a classifier batches of
            (images, class indices).
        settings: Of the study.

    Raises:
        AnalysisError: When faster-coco-eval is missing, the model is neither, or data or settings do not fit.
    """
    module, task = unwrap(model), task_of(model)
    if task in ("", "classify"):
        if isinstance(data, (str, Path)):
            raise AnalysisError(
                f"data is {str(data)!r}; of a classifier give batches of (images, class indices), such as a DataLoader"
            )
        return (LogitsLast if task else Classification)(settings.metrics), data, None
    if task != "detect":
        raise AnalysisError(
            f"robustness of a model whose task is '{task}' is not offered: boxes and classes are measured, of models "
            "whose task is 'detect' or 'classify'"
        )
    if settings.stop not in (None, False):
        raise AnalysisError(
            "stop= is for classifiers: a detector is judged by average precision, which is no mean over images, so "
            "that the sequential test does not hold; leave stop out, or measure fewer images with limit="
        )
    if settings.metrics:
        raise AnalysisError(
            "metrics= are functions of logits and class indices, and a detector has none; leave them out"
        )
    if settings.amp == "bfloat16":
        raise AnalysisError(
            "amp is 'bfloat16', whose 8 bits round the corners of boxes to 4 pixels of 640: average precision would be "
            "that of the rounding; give amp='float16', or leave it out"
        )
    coco_eval()
    detector = Detector(model, module, Options.read(settings.detector))
    return detector.task, detector.open(data), detector


def task_of(model: Any) -> str:
    """What a model is for, as ultralytics calls it; "" of a module that is not ultralytics'.

    Example:
        >>> task_of(torch.nn.ReLU())
        ''
    """
    try:
        from ultralytics.nn.tasks import BaseModel, ClassificationModel, RTDETRDetectionModel, guess_model_task
    except ImportError:
        return ""
    module = unwrap(model)
    if not isinstance(module, BaseModel):
        return ""
    if isinstance(module, (ClassificationModel, RTDETRDetectionModel)):
        return "classify" if isinstance(module, ClassificationModel) else "detect"
    return str(getattr(model, "task", None) or guess_model_task(module))


class Detector:
    """A detector made ready to be measured, and put back; a context around a sweep.

    Args:
        model: As the user gave it; an object is not written to.
        module: Its network.
        options: Settings.

    Attributes:
        task: What to measure.
        about: Settings and data, as plain values.
        notes: What is worth saying.
    """

    def __init__(self, model: Any, module: Any, options: Options) -> None:
        self.model, self.module, self.notes, self._stack = model, module, list[str](), ExitStack()
        self.options = replace(options, imgsz=options.imgsz or max(input_sizes(module)[0][1:]))
        with quiet():
            self.validator = _validator(model, module, self.options)
        self.task, self.about = Detection(module, self.validator), dict[str, Any]()

    def open(self, data: Any) -> Iterable[Batch]:
        """The batches; then a blank image is tried, so that a model that cannot be run, or has no loss, is known.

        Raises:
            AnalysisError: When the data do not fit, or the model cannot be run.
        """
        o = self.options
        if isinstance(data, (str, Path)):
            batches: Iterable[Batch]
            batches, lost = of_yaml(self.validator, self.module, data, o.split, o.batch)
            self.notes += [f"{lost} images of {data} were left out as unreadable"] * bool(lost)
            self.about = {"data": str(data), **vars(o)}
        else:
            batches = of_user(data, self.module.names, self.task.grid)
            self.validator.data, nothing = {}, SimpleNamespace()
            self.validator.dataloader = SimpleNamespace(dataset=nothing)
            self.about = {name: getattr(o, name) for name in ("conf", "iou", "max_det", "resamples")}
        with self:
            self._try()
        return batches

    def calibration(self, data: Any) -> Any:
        """Batches for batch norm statistics: of the training images where ``data`` is a data yaml."""
        if not isinstance(data, (str, Path)):
            return data
        with quiet():
            validator = _validator(self.model, self.module, self.options)
        return of_yaml(validator, self.module, data, "train", self.options.batch)[0]

    def _try(self) -> None:
        grid = max(self.task.grid, 32)
        side = -(-int(self.options.imgsz or grid) // grid) * grid
        blank = torch.zeros(1, input_sizes(self.module)[0][0], side, side)
        box = {"boxes": torch.tensor([[0.0, 0.0, side / 2, side / 2]]), "labels": torch.tensor([0])}
        batch = self.task.prepare((blank, [box]), self.validator.device)
        try:
            answer = self.task.forward(self.module, batch)
            self.task.found(answer, batch)
        except Exception as error:  # ultralytics raises whatever comes
            raise AnalysisError(
                f"the model cannot be run on an image of {side}x{side} pixels: {words_of(error)}; see whether "
                "model.val() runs"
            ) from error
        try:
            self.task.loss(answer, batch)
        except Exception as error:  # as of a fused network, which has lost one of its heads
            self.task.has_loss = False
            self.notes.append(
                f"there is no loss: ultralytics' criterion fails ({type(error).__name__}: {words_of(error)})"
            )

    def __enter__(self) -> Detector:
        """Give the network what ultralytics' validation and loss need."""
        try:
            self._stack.enter_context(quiet())
            self._stack.enter_context(untouched(self.module))
            self.module.args = _arguments(self.module)
            self.module.criterion = None  # made anew with the first loss
            self.module.nc = self.module.model[-1].nc  # which a trainer sets, and RT-DETR's loss reads
            self.module.end2end = self.validator.args.nms is False
            self.validator.init_metrics(self.module)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Put everything back."""
        self._stack.close()

    def measures(
        self, readings: Readings, cells: Sequence[tuple[str, str, int]], tolerance: float, seed: int, loaded: int
    ) -> APMeasures:
        """The figures of a sweep."""
        return APMeasures(readings, cells, tolerance, seed, loaded, self.classes(), self.options.resamples)

    def classes(self) -> Mapping[int, str]:
        """Names of the classes, those of the data where they have names."""
        return self.validator.data.get("names", self.module.names)  # type: ignore[no-any-return]


def _arguments(module: Any) -> Any:
    """A network's settings as its loss reads them, ultralytics' own where it says nothing."""
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    held = getattr(module, "args", None) or {}
    held = held if isinstance(held, dict) else vars(held)
    return get_cfg(overrides={key: value for key, value in held.items() if key in DEFAULT_CFG_DICT})


def _validator(model: Any, module: Any, options: Options) -> Any:
    """Ultralytics' validator of a model, with the settings its val() would have."""
    from ultralytics.models.rtdetr.val import RTDETRValidator
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.nn.tasks import RTDETRDetectionModel

    plain = RTDETRValidator if isinstance(module, RTDETRDetectionModel) else DetectionValidator
    base = model._smart_load("validator") if hasattr(model, "_smart_load") else plain
    device = next(module.parameters()).device
    wanted = {key: value for key, value in vars(options).items() if key != "resamples"}
    fixed = {"plots": False, "save_json": False, "save_txt": False, "verbose": False, "classes": None}
    args = {**getattr(model, "overrides", {}), "rect": True, "mode": "val", "single_cls": False, **fixed, **wanted}
    with tempfile.TemporaryDirectory() as folder:
        validator = base(save_dir=Path(folder), args={**args, "task": "detect"})
    validator.training, validator.device = False, device
    if device.type == "cpu":
        validator.args.workers = 0
    return validator


__all__ = ["Detector", "open_task", "task_of"]
