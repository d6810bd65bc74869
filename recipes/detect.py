"""Fine-tune one detector by ultralytics' own trainer, so that a kill costs at most one epoch, and measure it.

Apart from the run of a whole recipe: here is what one net goes through, and all that ultralytics is asked to do.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes.data_schema import DigitsDetectionData, YoloData
from recipes.detect_schema import DetectTrain
from recipes.detectors import needed, open_detector
from recipes.folders import write_text
from recipes.summary import Detected
from surgeon.errors import LoadError, RecipeError

Row = dict[str, Any]
FOLDER = "training"  # ultralytics' own: weights/best.pt, weights/last.pt, results.csv, args.yaml, figures
VERIFIED = 8  # validation images an operated detector is verified on
IN_VALIDATION = ("batch", "split", "rect", "iou", "conf", "max_det", "agnostic_nms", "fraction", "workers", "cache")


@dataclass(frozen=True)
class DataSet:
    """A data set as ultralytics reads it.

    Attributes:
        yaml: Its data yaml, as ultralytics finds it.
        classes: How many.
        names: Of the classes, by index.
        channels: Of the images.
    """

    yaml: str
    classes: int
    names: dict[int, str]
    channels: int


def open_data(section: YoloData | DigitsDetectionData, folder: Path) -> DataSet:
    """Find the images of a recipe; ultralytics fetches its own data sets, digits are written where they are missing.

    Args:
        section: The ``data:`` of a recipe.
        folder: Where digits are written, unless the recipe names a `root`.

    Raises:
        RecipeError: When the data yaml or its images are missing or not as ultralytics wants them.
    """
    name = section.dataset
    if isinstance(section, DigitsDetectionData):
        from recipes import digits_detection

        place = Path(section.root).expanduser() if section.root is not None else folder / "data"
        name = str(digits_detection.write(place.resolve(), **section.settings()))
    try:
        found = needed("ultralytics.data.utils").check_det_dataset(name)
    except Exception as error:  # ultralytics has no error class of its own
        words = " ".join(str(error).split())[:400]
        raise RecipeError(f"data.dataset: ultralytics cannot read '{name}': {words}") from None
    return DataSet(str(found.get("yaml_file", name)), found["nc"], found["names"], found["channels"])


def train(model: Any, settings: DetectTrain, data: DataSet, place: Path, say: Callable[[str], None]) -> Any:
    """Train a detector, or go on where a training in this folder was stopped.

    Args:
        model: The ultralytics object, stock or operated; its weights in memory are where training starts.
        settings: The ``train:`` of a recipe.
        data: To train and validate on.
        place: Folder of the variant; ultralytics works in ``training/`` there.
        say: Told what begins.

    Returns:
        A fresh object with the weights of the best epoch by validation, as ultralytics chooses it.

    Raises:
        LoadError: When the checkpoint to go on from is damaged.
    """
    folder = (place / FOLDER).resolve()
    last, best = folder / "weights" / "last.pt", folder / "weights" / "best.pt"
    own = {"data": data.yaml, "save_dir": str(folder), "exist_ok": True}
    try:
        if last.is_file():
            _continue(_reopen(last), settings, own, place.name, say)
        else:
            say(f"training {place.name} for {settings.epochs} epochs")
            model.train(**settings.arguments(), **own)
    except (RuntimeError, ValueError, OSError) as error:  # whatever ultralytics raises on data that does not fit
        words = " ".join(str(error).split())[:400]
        raise RecipeError(f"ultralytics cannot train {place.name} on {data.yaml}: {words}") from error
    except KeyboardInterrupt:
        say(f"{place.name}: stopped; every finished epoch is in {folder}. Run the same command again to go on.")
        raise
    rows = read_rows(folder)
    write_text(place / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return _reopen(best if best.is_file() else last)


def _continue(stopped: Any, settings: DetectTrain, own: Row, name: str, say: Callable[[str], None]) -> None:
    """Train on from a checkpoint, unless it is a finished one's: ultralytics then counts no epoch in it."""
    done = stopped.ckpt.get("epoch", -1) + 1
    if 0 < done < settings.epochs:
        say(f"continuing {name} after epoch {done} of {settings.epochs}")
        free = {key: settings.arguments()[key] for key in ("device", "workers")}
        stopped.train(resume=True, **free, **own)


def _reopen(path: Path) -> Any:
    try:
        return open_detector(str(path))
    except (RecipeError, LoadError) as error:
        raise LoadError(
            f"{path} cannot be read, perhaps it was cut off: remove {path.parents[1]} to train anew ({error})"
        ) from None


def read_rows(folder: Path) -> list[Row]:
    """Return the epochs of ultralytics' ``results.csv``: losses summed, mAP from 0 to 1.

    An epoch done twice, because of a kill between its lines and its checkpoint, counts once.
    """
    path = folder / "results.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        lines = [{key.strip(): value for key, value in line.items()} for line in csv.DictReader(stream)]
    rows = {int(line["epoch"]): _row(line) for line in lines}
    return [rows[epoch] for epoch in sorted(rows)]


def _row(line: dict[str, str]) -> Row:
    losses = {
        part: sum(float(value) for key, value in line.items() if key.startswith(f"{part}/") and key.endswith("loss"))
        for part in ("train", "val")
    }
    row: Row = {"epoch": int(line["epoch"]), "train_loss": losses["train"], "val_loss": losses["val"]}
    for name, key in (("map50", "metrics/mAP50(B)"), ("map50_95", "metrics/mAP50-95(B)"), ("lr", "lr/pg0")):
        if line.get(key):
            row[name] = float(line[key])
    return row


def measure(model: Any, settings: DetectTrain, data: DataSet) -> Detected | None:
    """Validate a detector; the object is used up: ultralytics fuses its layers. None where there is no object.

    With faster-coco-eval installed, and for models that only detect, COCO's AP by size of object is taken from the
    same run over the images.
    """
    asked = settings.arguments()
    model.overrides.update({key: asked[key] for key in IN_VALIDATION if key in asked})
    device = "" if asked["device"] is None else str(asked["device"]).strip("[]").split(",")[0]
    batch = asked["batch"] if asked["batch"] >= 1 else 16
    common = {"imgsz": settings.imgsz, "batch": int(batch), "device": device, "split": asked.get("split", "val")}
    if model.task == "detect" and importlib.util.find_spec("faster_coco_eval") is not None:
        from analysis.detection_scores import detection

        common |= {key: asked[key] for key in ("conf", "max_det") if asked.get(key) is not None}
        scores = detection(model, data.yaml, latency=False, **common)
        if not scores.objects["AP"]:
            return None
        own = scores.found.own
        return Detected(own["metrics/mAP50-95(B)"], own["metrics/mAP50(B)"], scores)
    box = model.val(data=data.yaml, plots=False, verbose=False, **common).box
    return Detected(float(box.map), float(box.map50))


def images(data: DataSet, imgsz: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Give the validation images as ultralytics hands them to a net, square: (batch_size, C, imgsz, imgsz), 0 to 1."""
    configured = needed("ultralytics.cfg").get_cfg(overrides={"imgsz": imgsz, "task": "detect"})
    found = needed("ultralytics.data.utils").check_det_dataset(data.yaml)
    build = needed("ultralytics.data").build_yolo_dataset
    dataset = build(configured, found["val"], batch=batch_size, data=found, mode="val", rect=False)
    for start in range(0, len(dataset), batch_size):
        chosen = [dataset[i]["img"] for i in range(start, min(start + batch_size, len(dataset)))]
        yield torch.stack(chosen).float() / 255
