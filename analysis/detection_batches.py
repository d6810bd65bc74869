"""Batches a detector is measured on: ultralytics' own of a data yaml, or a user's, put into the same form.

Apart from measuring them, which does not care where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.detection_running import check_classes, quiet, read_data, targets_of, words_of
from surgeon.errors import AnalysisError

Batch = dict[str, Any]
PER_IMAGE = ("img", "ori_shape", "ratio_pad", "im_file", "truth", "place")  # one entry per image
PER_OBJECT = ("batch_idx", "cls", "bboxes")


class Batches:
    """Batches that can be gone through again and again, each converted when its turn comes.

    Args:
        source: Of the batches.
        convert: What to make of each.
        restart: Called before each pass.
    """

    def __init__(
        self, source: Iterable[Any], convert: Callable[[Any], Batch], restart: Callable[[], None] = lambda: None
    ) -> None:
        self.source, self.convert, self.restart = source, convert, restart

    def __iter__(self) -> Iterator[Batch]:
        self.restart()
        yield from map(self.convert, self.source)


class CountedBatches(Batches):
    """Batches whose number is known."""

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]


def of_yaml(validator: Any, module: Any, data: str | Path, split: str, batch: int) -> tuple[CountedBatches, int]:
    """The batches on which ultralytics would validate, prepared as it does; its validator is made ready for them.

    Args:
        validator: Knows its device.
        module: The network.
        data: A data yaml.
        split: train, val or test.
        batch: Images per batch.

    Returns:
        The batches, and the number of images that were left out since they or their labels cannot be read.

    Raises:
        AnalysisError: When data and network do not fit, or ultralytics cannot read the images.
    """
    with quiet():
        read = read_data(data, split)
        check_classes(module.names, {int(index): str(name) for index, name in read["names"].items()}, data)
        validator.data = read
        validator.stride, validator.names = max(int(module.stride.max()), 32), module.names
        try:
            loader = validator.get_dataloader(read[split], batch)
            files = set(loader.dataset.get_img_files(loader.dataset.img_path))
        except (OSError, ValueError, AssertionError, RuntimeError) as error:  # no image, ...
            raise AnalysisError(f"ultralytics cannot run over {data}: {words_of(error)}") from error
    labels = {label["im_file"]: label for label in loader.dataset.labels}
    places = {path: place for place, path in enumerate(sorted(labels))}

    def convert(raw: Mapping[str, Any]) -> Batch:
        shapes = zip(raw["im_file"], raw["ori_shape"], strict=True)
        own = {
            "truth": tuple(_table(targets_of(labels[path], shape)) for path, shape in shapes),
            "place": tuple(places[path] for path in raw["im_file"]),
        }
        return {key: own[key] if key in own else raw[key] for key in (*PER_IMAGE, *PER_OBJECT)}

    validator.dataloader = loader
    return CountedBatches(loader, convert, loader.reset), len(files.difference(labels))  # it goes on where it was left


def of_user(data: Any, names: Mapping[int, str], grid: int) -> Iterable[Batch]:
    """A user's batches of (images, targets), in ultralytics' form.

    Args:
        data: Re-iterable; where it is not, what comes is not either.
        names: Of the classes.
        grid: Pixels that divide the sides of every image.

    Raises:
        AnalysisError: When it holds no batches at all.
    """
    if not isinstance(data, Iterable) or isinstance(data, (Mapping, Tensor)):
        raise AnalysisError(
            f"data is a {type(data).__name__}; of a detector give a data yaml, or batches of (images, targets)"
        )

    def convert(raw: Any) -> Batch:
        return as_batch(raw, names, grid)

    if iter(data) is iter(data):
        return map(convert, data)
    return (CountedBatches if isinstance(data, Sized) else Batches)(data, convert)


def as_batch(raw: Any, names: Mapping[int, str], grid: int) -> Batch:
    """One batch of a user's in ultralytics' form.

    Raises:
        AnalysisError: When it is no pair of images (N, C, H, W), 0 to 1, and a list of boxes and labels per image.

    Example:
        >>> target = {"boxes": torch.tensor([[8.0, 8.0, 24.0, 16.0]]), "labels": torch.tensor([0])}
        >>> as_batch((torch.rand(1, 3, 32, 32), [target]), {0: "cat"}, 32)["bboxes"].tolist()
        [[0.5, 0.375, 0.5, 0.25]]
    """
    images, targets = raw if isinstance(raw, (tuple, list)) and len(raw) == 2 else (None, None)
    if not isinstance(images, Tensor) or not isinstance(targets, (list, tuple)):
        raise AnalysisError(
            f"data: a batch is a {type(raw).__name__}, and no (images, targets) of a tensor and a list with one "
            '{"boxes", "labels"} per image; wrap your loader so that it gives these, or name a data yaml'
        )
    _check_images(images, targets, grid)
    height, width = images.shape[2:]
    truth = tuple(_truth(one, (height, width), names) for one in targets)
    objects = torch.from_numpy(np.concatenate(truth))
    corners = objects[:, :4] / torch.tensor([width, height, width, height])
    sides = corners[:, 2:] - corners[:, :2]
    return {
        "img": images,
        "ori_shape": ((height, width),) * len(images),
        "ratio_pad": (((1.0, 1.0), (0.0, 0.0)),) * len(images),
        "im_file": ("",) * len(images),
        "truth": truth,
        "place": (0,) * len(images),
        "batch_idx": torch.repeat_interleave(torch.arange(len(truth)), torch.tensor([len(one) for one in truth])),
        "cls": objects[:, 4:].float(),
        "bboxes": torch.cat([corners[:, :2] + sides / 2, sides], 1).float(),
    }


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """Some images of a batch, with their objects."""
    inside = (batch["batch_idx"] >= start) & (batch["batch_idx"] < stop)
    found = {key: batch[key][start:stop] for key in PER_IMAGE} | {key: batch[key][inside] for key in PER_OBJECT}
    return {**found, "batch_idx": found["batch_idx"] - start}


def _check_images(images: Tensor, targets: Sequence[Any], grid: int) -> None:
    if images.ndim != 4 or len(images) != len(targets) or not images.numel():
        raise AnalysisError(
            f"data: {tuple(images.shape)} images and {len(targets)} targets; give some (N, C, H, W) and one target each"
        )
    if not images.is_floating_point() or not 0 <= float(images.min()) <= float(images.max()) <= 1:
        raise AnalysisError(
            f"data: images are {images.dtype}, from {images.min():g} to {images.max():g}; divide pixels by 255, "
            "detectors take 0 to 1"
        )
    if images.shape[2] % grid or images.shape[3] % grid:
        raise AnalysisError(
            f"data: images are {images.shape[2]}x{images.shape[3]} pixels, but this detector takes multiples of "
            f"{grid}; pad them, or name a data yaml"
        )


def _truth(target: Any, shape: tuple[int, int], names: Mapping[int, str]) -> NDArray[np.float64]:
    """Corners in pixels and class of each object, (n, 5)."""
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= set(target):
        raise AnalysisError(f'data: a target is a {type(target).__name__}; give {{"boxes": (n, 4), "labels": (n,)}}')
    boxes = torch.as_tensor(target["boxes"]).detach().cpu().double().reshape(-1, 4).numpy()
    labels = torch.as_tensor(target["labels"]).detach().cpu().reshape(-1).numpy()
    if len(boxes) != len(labels):
        raise AnalysisError(f"data: a target has {len(boxes)} boxes and {len(labels)} labels; give one label each")
    height, width = shape
    fine = (boxes >= 0).all(1) & (boxes <= (width, height, width, height)).all(1) & (boxes[:, :2] < boxes[:, 2:]).all(1)
    if not fine.all():
        raise AnalysisError(
            f"data: box {boxes[~fine][0].tolist()} is none in an image of {height}x{width} pixels; give corners "
            "x1 < x2, y1 < y2 in pixels"
        )
    if unknown := sorted(set(labels.tolist()) - set(names)):
        raise AnalysisError(f"data: label {unknown[0]} is no class of the model, which has 0 to {max(names)}")
    return np.concatenate([boxes, labels[:, None].astype(np.float64)], 1)


def _table(target: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    return np.concatenate([target["boxes"], target["labels"][:, None].astype(np.float64)], 1)
