"""From a recipe's ``data:`` to batches: open the data set, learn its classes, then batch it for a model.

Two steps, because the model's head needs the number of classes and the batches need the model's input size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageDataset

from recipes import datasets
from recipes.batches import Batches, IndexedBatches, SeededImages
from recipes.data_schema import DigitsData, ImageData
from recipes.digits import Digits
from recipes.processes import Processes
from recipes.streams import STREAMS, StreamBatches, open_stream
from recipes.transforms import data_config, make_transform
from surgeon.errors import RecipeError

ALONE = Processes(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Data:
    """Batches for training and validation, and what a model must know about them.

    Attributes:
        name: The data set.
        train: Shuffled whole batches; ``train.epoch(n)`` gives those of one epoch.
        val: All validation images, in order.
        num_classes: Of the data set.
        input_size: (C, H, W) of the images.
    """

    name: str
    train: Batches
    val: Batches
    num_classes: int
    input_size: tuple[int, int, int]


@dataclass(frozen=True)
class Source:
    """An opened data set, not yet batched: `train` and `val` are what the section's reader gives."""

    section: DigitsData | ImageData
    train: Any
    val: Any
    num_classes: int

    @property
    def in_chans(self) -> int | None:
        """Channels the data set settles by itself (digits), or None: those of the model."""
        return self.section.channels if isinstance(self.section, DigitsData) else None


def open_source(section: DigitsData | ImageData, seed: int = 0) -> Source:
    """Open the data set a recipe names.

    Args:
        section: The recipe's ``data:``.
        seed: Of random placements.

    Raises:
        RecipeError: When data or packages are missing, or the number of classes stays unknown.

    Example:
        >>> source = open_source(DigitsData())
        >>> len(source.train), len(source.val), source.num_classes
        (1347, 450, 10)
    """
    if isinstance(section, DigitsData):
        return Source(section, Digits(section, True, seed), Digits(section, False), Digits.num_classes)
    if section.dataset in datasets.READERS:
        reader, root = datasets.READERS[section.dataset], Path(section.root or ".")
        (train, count), (val, _) = reader(root, True), reader(root, False)
        return Source(section, train, val, _classes(section, count))
    streamed = section.dataset.startswith(STREAMS)
    train, val = ((open_stream if streamed else datasets.timm_dataset)(section, part) for part in (True, False))
    datasets.check_same_classes(section, train, val)
    names = getattr(train, "classes", None) or getattr(getattr(train, "reader", None), "class_to_idx", None)
    return Source(section, _read(train), _read(val), _classes(section, len(names or ())))


def _read(images: Any) -> Any:
    """Take timm's reader without its data set, which passes over broken images."""
    return datasets.Read(images.reader) if isinstance(images, ImageDataset) else images


def _classes(section: ImageData, told: int) -> int:
    """Return the number of classes: what the data tell, else what the recipe says.

    Raises:
        RecipeError: When neither says it, or both and differently.
    """
    if not (told or section.num_classes):
        raise RecipeError(f"data set '{section.dataset}' does not tell its number of classes; set data.num_classes")
    if told and section.num_classes not in (None, told):
        raise RecipeError(
            f"data.num_classes is {section.num_classes}, but '{section.dataset}' has {told} classes; take it out "
            "(model.num_classes sets the number of outputs)"
        )
    return told or int(section.num_classes or 0)


def _some(images: Any, limit: int | None) -> Any:
    """Take a fixed random choice of images, in order, so that sorted data keep all their classes."""
    if limit is None or limit >= len(images):
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return datasets.Part(images, sorted(order[:limit].tolist()))


def _transformed(source: Source, config: dict[str, Any], seed: int) -> list[SeededImages]:
    section = source.section
    parts = ((source.train, section.max_train, True), (source.val, section.max_val, False))
    return [
        SeededImages(_some(images, limit), make_transform(section, config, training), seed)  # type: ignore[arg-type]
        for images, limit, training in parts
    ]


def batch(
    source: Source,
    model: Any,
    *,
    batch_size: int,
    seed: int = 0,
    workers: int = 0,
    in_chans: int | None = None,
    who: Processes = ALONE,
) -> Data:
    """Batch an opened data set for a model.

    Args:
        source: From `open_source`.
        model: Whose input size, mean and std count, where the section names none.
        batch_size: Images per training batch, over all processes.
        seed: Of order and augmentation.
        workers: Processes that read images.
        in_chans: Channels the model was built for, where it is not its default.
        who: This process among those that train together.

    Raises:
        RecipeError: When a batch cannot be filled or shared out evenly.

    Example:
        >>> data = batch(open_source(DigitsData()), None, batch_size=64)
        >>> len(data.train), data.input_size
        (21, (1, 32, 32))
    """
    section = source.section
    kind: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "who": who, "workers": workers}
    if batch_size % who.world:
        raise RecipeError(f"train.batch_size ({batch_size}) must be a multiple of the {who.world} processes")
    config = {} if isinstance(section, DigitsData) else data_config(section, model, in_chans)
    train: Batches
    val: Batches
    if isinstance(section, DigitsData):
        side = section.canvas or section.size
        config, images = {"input_size": (section.channels, side, side)}, [source.train, source.val]
    elif section.dataset.startswith(STREAMS):
        train, val = (StreamBatches(section, config, training=part, **kind) for part in (True, False))
        return Data(section.dataset, train, val, source.num_classes, config["input_size"])
    else:
        images = list(_transformed(source, config, seed))
    if len(images[0]) < batch_size:
        raise RecipeError(f"train.batch_size ({batch_size}) exceeds the {len(images[0])} training images; lower it")
    train, val = (
        IndexedBatches(part, training=first, **kind) for part, first in zip(images, (True, False), strict=True)
    )
    return Data(section.dataset, train, val, source.num_classes, config["input_size"])
