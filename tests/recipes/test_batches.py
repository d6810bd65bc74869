"""Batches are functions of (seed, epoch, image): whatever workers, processes or interruptions there are."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.batches import IndexedBatches, SeededImages, shard
from recipes.data import ALONE, batch, open_source
from recipes.data_schema import DigitsData, ImageData
from recipes.datasets import Files
from recipes.digits import Digits
from recipes.processes import Processes, derive, seeded
from recipes.transforms import make_transform
from surgeon import RecipeError


def both(world: int) -> list[Processes]:
    return [Processes(rank, world, torch.device("cpu")) for rank in range(world)]


@pytest.mark.parametrize(("size", "world"), [(8, 1), (8, 2), (6, 2), (12, 3), (64, 4), (9, 3)])
def test_shards_are_the_batch(size: int, world: int) -> None:
    parts = [shard(range(size), rank, world) for rank in range(world)]
    assert sorted(index for part in parts for index in part) == list(range(size))
    assert {len(part) for part in parts} == {size // world}


@pytest.mark.parametrize(("size", "world"), [(8, 2), (12, 3), (64, 4)])
def test_shards_keep_mixup_pairs(size: int, world: int) -> None:
    for rank in range(world):
        part = shard(range(size), rank, world)
        pairs = [(part[i], part[-1 - i]) for i in range(len(part))]
        assert all(one + other == size - 1 for one, other in pairs)
    plain = [list(range(size))[rank::world] for rank in range(world)]  # the usual sharing out does not
    assert any(part[0] + part[-1] != size - 1 for part in plain)


def digits(who: Processes = ALONE, seed: int = 0, workers: int = 0, **section: Any) -> IndexedBatches:
    dataset = Digits(DigitsData(size=8, canvas=12, max_train=64, **section), training=True, seed=seed)
    return IndexedBatches(dataset, batch_size=16, seed=seed, training=True, who=who, workers=workers)


def content(batches: Any, epoch: int) -> torch.Tensor:
    return torch.cat([images.flatten(1).double() @ torch.arange(144.0).double() for images, _ in batches.epoch(epoch)])


def test_an_epoch_is_the_same_whenever_it_is_asked_for() -> None:
    batches = digits()
    third, first = content(batches, 3), content(batches, 1)
    assert torch.equal(content(digits(), 3), third)
    assert not torch.equal(first, third)
    assert not torch.equal(content(digits(seed=1), 3), third)
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.cat([i for i, _ in batches.epoch(0)]))


def test_processes_together_see_the_batches_of_one() -> None:
    alone, parts = digits().epoch(2), [digits(who).epoch(2) for who in both(2)]
    for whole, *shared in zip(alone, *parts, strict=True):
        ours, theirs = whole[0].flatten(1), torch.cat([images for images, _ in shared]).flatten(1)
        assert sorted(ours.tolist()) == sorted(theirs.tolist())


def test_validation_is_in_order_complete_and_shared_out_once() -> None:
    dataset = Digits(DigitsData(size=8, canvas=12, max_val=50), training=False)
    whole = IndexedBatches(dataset, batch_size=16, seed=0, training=False, who=ALONE)
    targets = torch.cat([targets for _, targets in whole])
    assert targets.tolist() == dataset.targets.tolist() and len(whole) == 4
    parts = [IndexedBatches(dataset, batch_size=16, seed=0, training=False, who=who) for who in both(2)]
    assert sorted(torch.cat([t for part in parts for _, t in part]).tolist()) == sorted(targets.tolist())


def test_random_transforms_depend_on_the_image_not_on_workers(
    tmp_path: Path, write_image: Callable[[Path, int], None]
) -> None:
    for number in range(8):
        write_image(tmp_path / f"{number}.png", 30 * number)
    images = Files([(tmp_path / f"{number}.png", number) for number in range(8)])
    section = ImageData(dataset="folder:x", reprob=0.5, auto_augment="rand-m9")
    config: dict[str, Any] = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    transform = make_transform(section, {**config, "interpolation": "bilinear", "crop_pct": 1.0}, True)

    def make(workers: int, seed: int = 0) -> IndexedBatches:
        return IndexedBatches(
            SeededImages(images, transform, seed), batch_size=4, seed=seed, training=True, who=ALONE, workers=workers
        )

    def pixels(batches: IndexedBatches, epoch: int) -> torch.Tensor:
        return torch.cat([images for images, _ in batches.epoch(epoch)])

    alone = pixels(make(0), 1)
    assert torch.equal(pixels(make(2), 1), alone)
    assert not torch.equal(pixels(make(0), 2), alone) and not torch.equal(pixels(make(0, seed=1), 1), alone)


def test_reading_leaves_the_generators_alone() -> None:
    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]

    with seeded(7):
        expected = draws()
    with seeded(7):
        list(digits())
        with seeded(1):
            assert draws() != expected
        assert draws() == expected


def test_derived_seeds_differ() -> None:
    seeds = {derive(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400


def test_digits_are_split_alike_for_all_training_seeds() -> None:
    section = DigitsData(size=8, canvas=16)
    one, other = Digits(section, False, seed=0), Digits(section, False, seed=5)
    keys = [(3, index) for index in range(len(one))]
    assert torch.equal(one.__getitems__(keys)[0], other.__getitems__(keys)[0])
    train = Digits(section, True)
    assert len(train) + len(one) == 1797
    assert not torch.equal(Digits(section, True, seed=1).corners(0), train.corners(0))
    assert not torch.equal(Digits(section.model_copy(update={"split_seed": 1}), False).targets, one.targets)


def test_digits_lie_whole_on_the_canvas() -> None:
    section = DigitsData(size=8, canvas=16, channels=3)
    dataset = Digits(section, training=True)
    images, targets = dataset.__getitems__([(0, index) for index in range(len(dataset))])
    assert images.shape == (len(dataset), 3, 16, 16) and torch.equal(images[:, 0], images[:, 2])
    ink = (images[:, :1] - images.amin()).sum((1, 2, 3))
    expected = dataset.images.sum((1, 2, 3)) / 0.37
    assert torch.allclose(ink, expected, rtol=1e-4)
    corners = dataset.corners(0)
    assert corners.amin() == 0 and corners.amax() == 8 and len(corners.unique(dim=0)) == 81
    centred = Digits(section.model_copy(update={"placement": "centre"}), training=True)
    assert centred.corners(5).unique().tolist() == [4]
    assert targets.bincount().amin() > 100


def test_batches_that_cannot_be_filled_are_refused() -> None:
    source = open_source(DigitsData(size=8, max_train=40))
    with pytest.raises(RecipeError, match=r"batch_size \(64\) exceeds the 40 training images"):
        batch(source, None, batch_size=64)
    with pytest.raises(RecipeError, match=r"batch_size \(33\) must be a multiple of the 2 processes"):
        batch(source, None, batch_size=33, who=both(2)[0])
