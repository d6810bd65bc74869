"""Run a detector over a YOLO-format data set: what it finds in each image, and what there is to find.

Apart from what is computed of it, average precision and kinds of error, so that a net is run once for both. The only
analysis file that drives ultralytics, which is optional and imported late.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.errors import AnalysisError

Boxes = dict[str, NDArray[Any]]
INSTALL = 'run: pip install "cnn-surgeon[yolo]"'
MISSING = f"detection needs the package ultralytics ({{}}); {INSTALL}"


@dataclass(frozen=True)
class Detections:
    """What a detector found in every image of a data set, and what is there.

    ``predictions`` and ``targets`` have one dict per image, in the order of ``images`` (paths, sorted): ``boxes``
    (n, 4) as x1, y1, x2, y2 in pixels of the image as it is on disk, ``labels`` (n,) class indices, and for predictions
    ``scores`` (n,). ``names`` maps class index to name; ``own`` holds the metrics ultralytics computed itself;
    ``left_out`` are images ultralytics left out, since they or their labels cannot be read.
    """

    images: list[str]
    predictions: list[Boxes]
    targets: list[Boxes]
    names: dict[int, str]
    own: dict[str, float]
    left_out: tuple[str, ...] = ()

    def without(self) -> str:
        """End a summary by saying how many images were left out, or nothing."""
        many = len(self.left_out)
        return f". {many} more {'image was' if many == 1 else 'images were'} left out as unreadable" if many else ""


def detect(
    model: Any,
    data: str | Path,
    *,
    imgsz: int = 640,
    batch: int = 16,
    conf: float = 0.001,
    max_det: int = 300,
    device: str = "cpu",
    split: str = "val",
) -> Detections:
    """Run an ultralytics detector over a data set, by ultralytics' own validator.

    The validator prepares images, suppresses double boxes and scales them back exactly as ``model.val()`` does; it
    works on a copy, so the model stays as it is. Ultralytics writes its label cache beside the labels, as always.

    Args:
        model: ``YOLO`` or ``RTDETR`` object for detection, stock or operated.
        data: A data yaml as ultralytics reads it (``path``, ``train``, ``val``, ``names``).
        imgsz: Pixels of the longer side the net sees.
        batch: Images per forward pass.
        conf: Lowest score of a detection.
        max_det: Most detections per image.
        device: As ultralytics names devices: cpu, 0, cuda:0.
        split: train, val or test.

    Returns:
        Boxes per image, without detections of classes the data has not; targets to 0.01 px, as COCO's files have
        them (label files carry six decimals of the side).

    Raises:
        AnalysisError: When a package is missing, the model is no detector, data and model do not fit, or ultralytics
            cannot run them (no such device, no image).

    Example:
        >>> detect("yolo11n.pt", "coco8.yaml")
        Traceback (most recent call last):
        ...
        surgeon.errors.AnalysisError: detection needs a YOLO or RTDETR object, found str; pass YOLO("best.pt") or ...
    """
    check_detector(model)
    predictions: dict[str, Boxes] = {}
    targets: dict[str, Boxes] = {}
    files: set[str] = set()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        names = data_classes(data, split)
        check_classes(model.names, names, data)
        kept = model.metrics
        try:
            model.val(
                _collector(model, predictions, targets, files),
                **{
                    "data": str(data),
                    "imgsz": imgsz,
                    "batch": batch,
                    "conf": conf,
                    "max_det": max_det,
                    "device": device,
                },
                **{"split": split, "project": folder, "name": "val", "plots": False, "save_json": False},
                **{"save_txt": False, "verbose": False, "classes": None, "single_cls": False},
            )
            own = {key: float(value) for key, value in model.metrics.results_dict.items()}
        except (OSError, ValueError, AssertionError, RuntimeError) as error:  # no image, no such device, ...
            raise AnalysisError(f"ultralytics cannot run over {data}: {words_of(error)}") from error
        finally:
            model.metrics = kept
    images = sorted(predictions)
    found, there = ([boxes[path] for path in images] for boxes in (predictions, targets))
    return Detections(images, found, there, names, own, tuple(sorted(files.difference(images))))


def check_detector(model: Any) -> None:
    """Say what is missing for a detector to be run: a package, or the detector.

    Raises:
        AnalysisError: When ultralytics is missing, or the model is no ultralytics object for detection.
    """
    try:
        from ultralytics.engine.model import Model
    except ImportError as error:
        raise AnalysisError(MISSING.format(error)) from error
    if not isinstance(model, Model):
        raise AnalysisError(
            f'detection needs a YOLO or RTDETR object, found {type(model).__name__}; pass YOLO("best.pt") or '
            "surgeon.load of an operated one, not its inner model"
        )
    if model.task != "detect":
        raise AnalysisError(f"detection needs a model whose task is 'detect', found '{model.task}'; use its val()")


def _collector(model: Any, predictions: dict[str, Boxes], targets: dict[str, Boxes], files: set[str]) -> type:
    """The model's own validator, which keeps what it sees by path of the image, and the paths of all images."""
    base = model._smart_load("validator")

    class Collector(base):  # type: ignore[misc, valid-type]
        def init_metrics(self, inner: Any) -> None:
            super().init_metrics(inner)
            self.args.save_json = False  # for COCO itself ultralytics turns it on, and asks for COCO's own files
            dataset = self.dataloader.dataset
            self.labels = {label["im_file"]: label for label in dataset.labels}
            files.update(dataset.get_img_files(dataset.img_path))

        def update_metrics(self, preds: Any, batch: Any) -> None:
            for index, one in enumerate(preds):
                prepared = self._prepare_batch(index, batch)
                scaled, path = self.scale_preds(one, prepared), prepared["im_file"]
                targets[path] = targets_of(self.labels[path], prepared["ori_shape"])
                known = scaled["cls"] < self.data["nc"]
                predictions[path] = {
                    "boxes": scaled["bboxes"][known].double().cpu().numpy(),
                    "labels": scaled["cls"][known].long().cpu().numpy(),
                    "scores": scaled["conf"][known].double().cpu().numpy(),
                }
            super().update_metrics(preds, batch)

    return Collector


def targets_of(label: Mapping[str, Any], shape: tuple[int, int]) -> Boxes:
    """The objects of a label of ultralytics', in pixels of an image of ``shape`` (height, width), to 0.01 px."""
    height, width = shape
    centre_x, centre_y, box_width, box_height = np.asarray(label["bboxes"], np.float64).reshape(-1, 4).T
    corners = np.stack([centre_x - box_width / 2, centre_y - box_height / 2] * 2, 1)
    corners[:, 2] += box_width
    corners[:, 3] += box_height
    boxes = np.round(corners * [width, height, width, height], 2)
    return {"boxes": boxes, "labels": np.asarray(label["cls"]).reshape(-1).astype(np.int64)}


def data_classes(data: str | Path, split: str) -> dict[int, str]:
    """The classes of a data yaml, index to name.

    Raises:
        AnalysisError: As :func:`read_data`.
    """
    return {int(index): str(name) for index, name in read_data(data, split)["names"].items()}


def read_data(data: str | Path, split: str) -> dict[str, Any]:
    """A data yaml as ultralytics reads it.

    Raises:
        AnalysisError: When ultralytics cannot read it, or it has no such split.
    """
    try:
        from ultralytics.data.utils import check_det_dataset
    except ImportError as error:
        raise AnalysisError(MISSING.format(error)) from error
    try:
        read: dict[str, Any] = check_det_dataset(str(data))
    except Exception as error:  # ultralytics raises whatever comes
        raise AnalysisError(
            f"cannot read the data set {data}: {words_of(error)}; name a data yaml with path, train, val and names"
        ) from error
    if not read.get(split):
        there = ", ".join(key for key in ("train", "val", "test") if read.get(key))
        raise AnalysisError(f"{data} has no split '{split}'; it has {there}")
    return read


def words_of(error: Exception) -> str:
    """What an error of ultralytics' says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def check_classes(own: Mapping[int, str], names: Mapping[int, str], data: str | Path) -> None:
    """Refuse a model of other classes: ultralytics would drop labels, or count foreign classes as wrong."""
    if reason := why_other_classes(own, names):
        raise AnalysisError(
            f"{reason} (model: {_few(own)}; {data}: {_few(names)}): its precision on them means nothing; train it on "
            "this data first, or give the data it was trained on"
        )


def why_other_classes(own: Mapping[int, str], names: Mapping[int, str]) -> str | None:
    """Why a model's classes are not those of a data set, index by index; None where they are.

    Names that are numbers, as a model built from a yaml has them, say nothing: then the count must agree.

    Example:
        >>> why_other_classes({0: "cat", 1: "dog"}, {0: "dog", 1: "cat"})
        'the classes are the same in another order'
    """
    mine, there = ([str(kind[index]).strip().lower() for index in sorted(kind)] for kind in (own, names))
    if any(all(str(index) == name for index, name in enumerate(kind)) for kind in (mine, there)):
        return None if len(mine) == len(there) else f"the model has {len(mine)} classes, the data {len(there)}"
    if mine[: len(there)] == there:
        return None
    if sorted(mine) == sorted(there):
        return "the classes are the same in another order"
    return f"the model has {len(mine)} classes, the data {len(there)}, and not the same"


def _few(names: Mapping[int, str]) -> str:
    shown = ", ".join(str(names[index]) for index in sorted(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown


@contextmanager
def quiet() -> Iterator[None]:
    """Ultralytics warns, of images it leaves out for instance, but reports no progress."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
