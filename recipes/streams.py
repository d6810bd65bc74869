"""Batches of data sets that can only be read from the front (webdataset, streamed Hugging Face, TFDS).

Apart from `batches` because here timm's loader shuffles and shares out among processes: the order is a function of
(seed, epoch, workers, processes), and validation over several processes may count some images twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from recipes import datasets
from recipes.batches import Batch
from recipes.data_schema import ImageData
from recipes.processes import Processes, derive, seed_all
from recipes.transforms import make_transform

STREAMS = ("wds/", "hfids/", "tfds/")


def open_stream(section: ImageData, training: bool, seed: int = 0, batch_size: int = 1) -> Any:
    """Open one part of a streamed data set."""
    count = section.num_train if training else section.num_val
    return datasets.timm_dataset(section, training, num_samples=count, seed=seed, batch_size=batch_size)


class StreamBatches:
    """Batches of a stream that is opened anew, with its own seed, for every epoch.

    Args:
        section: The recipe's ``data:``.
        config: From `transforms.data_config`.
        batch_size: Images per training batch, over all processes.
        seed: Of order and augmentation.
        training: The training part.
        who: This process among those that train together.
        workers: Processes that read images.
    """

    def __init__(
        self,
        section: ImageData,
        config: dict[str, Any],
        *,
        batch_size: int,
        seed: int,
        training: bool,
        who: Processes,
        workers: int,
    ) -> None:
        self.section, self.config, self.training = section, config, training
        self.batch_size, self.seed, self.workers = batch_size // who.world if training else batch_size, seed, workers
        self.num_images = len(open_stream(section, training, batch_size=self.batch_size))

    def epoch(self, number: int) -> Iterable[Batch]:
        """Return the batches of one epoch; its shuffling depends on the seed and this number only."""
        from timm.data import create_loader

        seed = derive(self.seed, number)
        seed_all(seed)
        dataset = open_stream(self.section, self.training, seed, self.batch_size)
        loader = create_loader(
            dataset,
            self.config["input_size"],
            self.batch_size,
            is_training=self.training,
            use_prefetcher=False,
            num_workers=self.workers,
            persistent_workers=False,
            device=torch.device("cpu"),
        )
        dataset.transform = make_transform(self.section, self.config, self.training)
        return loader  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.epoch(0))

    def __len__(self) -> int:
        whole, rest = divmod(self.num_images, self.batch_size)
        return whole + (rest > 0 and not self.training)
