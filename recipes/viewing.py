"""What analyses look at: a trained model with its run around it, and images in an order of their own.

Apart from training, whose batches are those of an epoch; here every process sees the same data set and takes its share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgeon
from recipes.batches import Batch
from recipes.data import batch, open_source
from recipes.loading import load, shipped
from recipes.opening import images_recipe, open_model
from recipes.schema import DetectorRecipe, RecipeFile
from surgeon.errors import RecipeError, SurgeonError


@dataclass(frozen=True)
class Viewed:
    """A model to look into.

    Attributes:
        model: Trained, we hope.
        recipe: Of the run it comes from, if it does.
        trajectory: Folder of the states that run kept, if it did.
    """

    model: Any
    recipe: RecipeFile | None = None
    trajectory: Path | None = None


class View:
    """Images of a data set in a fixed order, in batches; several processes may take parts of them.

    Args:
        dataset: Answers a list of (epoch, index) with a batch.
        order: Indices of its images.
        batch_size: Images per batch.
        rank: Of this process.
        size: Processes that share the batches.
    """

    def __init__(self, dataset: Any, order: Sequence[int], batch_size: int, rank: int = 0, size: int = 1) -> None:
        self.dataset, self.order, self.batch_size, self.rank, self.size = dataset, list(order), batch_size, rank, size

    def part(self, rank: int, size: int) -> View:
        """The batches of one of several processes: every ``size``-th, from ``rank`` on."""
        return View(self.dataset, self.order, self.batch_size, rank, size)

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Batch]:
        for start in self._starts():
            found = self.dataset.__getitems__([(0, index) for index in self.order[start : start + self.batch_size]])
            if isinstance(found, SurgeonError):
                raise found
            yield found

    def _starts(self) -> range:
        return range(self.rank * self.batch_size, len(self.order), self.size * self.batch_size)


def view_model(name: str, **settings: Any) -> Viewed:
    """Open what a user names: a model as on any command line, or the folder of a run with its weights.

    Raises:
        RecipeError: When it is none of them.
        LoadError: When the folder or a checkpoint is damaged.

    Example:
        >>> view_model("digits_convnet").trajectory is None
        True
    """
    folder = Path(name).expanduser()
    if not (folder / "weights").is_dir() or not (folder / "recipe.yaml").is_file():
        return Viewed(open_model(name, **settings))
    if given := [key for key, value in settings.items() if value]:
        raise RecipeError(f"{name} is a run with weights of its own; take out {', '.join(given)}")
    kept = folder / "trajectory"
    recipe = load(folder / "recipe.yaml")
    return Viewed(surgeon.load(folder / "weights"), recipe, kept if kept.is_dir() else None)


def view_images(
    viewed: Viewed,
    data: str | None,
    *,
    root: str | None = None,
    batch_size: int = 128,
    shuffle: int | None = None,
    training: int = 0,
) -> View:
    """Batches of a classifier's images: all for validation, or some for training without augmentation's luck.

    Args:
        viewed: Whose model and recipe count.
        data: A data set, a recipe whose ``data:`` counts, or None for the one the model was trained on.
        root: Folder of the data set.
        batch_size: Images per batch.
        shuffle: Seed of an order that has nothing to do with the classes; None keeps the data set's.
        training: How many training images, instead of the validation images.

    Raises:
        RecipeError: When there is no such data set, or it is read as a stream.
    """
    recipe = _recipe(viewed, data, root)
    if recipe.data is None or isinstance(recipe, DetectorRecipe):
        raise RecipeError(f"recipe '{recipe.name}' has no images of a classifier; name a data set, as --data digits")
    source = open_source(recipe.data)
    opened = batch(source, viewed.model, batch_size=min(batch_size, len(source.train)), in_chans=recipe.model.in_chans)
    batches = opened.train if training else opened.val
    if not hasattr(batches, "dataset"):
        raise RecipeError(f"data set '{recipe.data.dataset}' is read as a stream; name one whose images lie in files")
    order = torch.arange(batches.num_images)
    if shuffle is not None or training:
        order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(shuffle or 0))]
    return View(batches.dataset, order[: training or len(order)].tolist(), batch_size)


def view_data(
    viewed: Viewed, data: str | None, *, root: str | None, batch_size: int, seed: int, **seen: Any
) -> tuple[Any, dict[str, Any] | None]:
    """What analyses measure on: of a classifier images in random order, so that the first ones are of all classes.

    Args:
        viewed: Whose model counts.
        data: As of :func:`view_images`; of a detector its data yaml.
        root: As of :func:`view_images`.
        batch_size: Images per batch.
        seed: Of the order.
        seen: Settings of detectors, such as ``imgsz``; None for what the detector has.

    Returns:
        The images and None; of a detector the name of its data, and its settings.

    Raises:
        RecipeError: When there is no such data set, or a detector has none.
    """
    from analysis.opening import detects  # late: drawing comes with it

    if not detects(viewed.model):
        return view_images(viewed, data, root=root, batch_size=batch_size, shuffle=seed), None
    if data is None:
        raise RecipeError("a detector needs its data: --data mine.yaml")
    return data, {"batch": batch_size, **{key: value for key, value in seen.items() if value is not None}}


def _recipe(viewed: Viewed, data: str | None, root: str | None) -> RecipeFile:
    if data is None:
        if viewed.recipe is None:
            raise RecipeError("which images? Name a data set by --data: digits, folder:PATH, or a recipe")
        return viewed.recipe
    path = Path(data)
    if data in shipped() or path.suffix in (".yaml", ".yml"):
        return load(data)
    if not isinstance(viewed.model, nn.Module):
        raise RecipeError(f"--data {data}: no model to fit the images to")
    return images_recipe(data, viewed.model, root)
