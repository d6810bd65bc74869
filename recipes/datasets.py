"""Data sets read in the format they are published in: index in, (PIL image, class number) out.

Apart from `data`, which turns them into batches: here is only what each format is and what to do when it is missing.
"""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from recipes.data_schema import ImageData
from surgeon.errors import RecipeError

Item = tuple[Image.Image, int]

HOW_TO_GET = {
    "tiny-imagenet": "download tiny-imagenet-200.zip (cs231n.stanford.edu) and unpack it; root is the folder that "
    "holds wnids.txt, train/ and val/",
    "small-imagenet-32": "download the 32x32 batches from image-net.org (Downsampled ImageNet); root is the folder "
    "that holds train_data_batch_1 to 10 and val_data, as .npz or as published pickles",
    "folder": "root is a folder with train/CLASS/image.jpg and val/CLASS/image.jpg (or validation/, test/)",
}


class Images(Protocol):
    """A sized collection of (PIL image, class number)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class Files:
    """Images in files, opened when asked for."""

    def __init__(self, items: Sequence[tuple[Path, int]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        path, target = self.items[index]
        return _opened(path, lambda: path), target


class Read:
    """Images that one of timm's readers finds; timm's own data set gives the next image in place of a broken one."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Item:
        def name() -> Any:
            return self.reader.filename(index, absolute=True)

        try:
            stream, target, *_ = self.reader[index]
        except OSError as error:
            raise _broken(name(), error) from None
        with stream:
            return _opened(stream, name), target


def _opened(file: Any, name: Callable[[], Any]) -> Image.Image:
    """Read an image in full, in colour; what is no image, or a damaged one, is refused by name."""
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _broken(name(), error) from None


def _broken(name: Any, error: Exception) -> RecipeError:
    reason = getattr(error, "strerror", None) or str(error).partition(" <")[0].partition(" '")[0]
    return RecipeError(f"{name} cannot be read as an image ({reason}); mend it, or take it out of the data set")


class Arrays:
    """Images in memory: (N, H, W, 3) bytes."""

    def __init__(self, images: np.ndarray[Any, np.dtype[np.uint8]], targets: Sequence[int]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Item:
        return Image.fromarray(self.images[index]), int(self.targets[index])


class Part:
    """Some images of a data set, in a given order."""

    def __init__(self, images: Images, indices: Sequence[int]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        return self.images[self.indices[index]]


def missing(name: str, where: Path, lacks: str) -> RecipeError:
    """Return the error for data that are not there: what, where it looked, how to get them."""
    how = HOW_TO_GET.get(name.partition(":")[0], "set data.download: true, or put the files there")
    return RecipeError(f"data set '{name}': {lacks} in {where.resolve()}; {how}")


def tiny_imagenet(root: Path, training: bool) -> tuple[Images, int]:
    """Read Tiny-ImageNet-200: ``train/ID/images/*.JPEG``, and validation classes from ``val_annotations.txt``.

    Returns:
        The images, and the number of classes, which are numbered in the order of their sorted identifiers.

    Raises:
        RecipeError: When the folder is not there or incomplete.
    """
    listing, annotations = root / "wnids.txt", root / "val" / "val_annotations.txt"
    for needed in (listing, root / "train", annotations):
        if not needed.exists():
            raise missing("tiny-imagenet", root, f"no {needed.relative_to(root)}")
    names = sorted(listing.read_text().split())
    number = {name: position for position, name in enumerate(names)}
    if training:
        files = [(path, number[name]) for name in names for path in sorted((root / "train" / name).rglob("*.JPEG"))]
    else:
        rows = [line.split("\t") for line in annotations.read_text().splitlines() if line.strip()]
        unknown = sorted({row[1] for row in rows} - set(names))
        if unknown:
            raise RecipeError(
                f"{annotations}: class '{unknown[0]}' is not listed in {listing}; unpack the archive anew"
            )
        files = [(root / "val" / "images" / row[0], number[row[1]]) for row in rows]
    if not files:
        raise missing("tiny-imagenet", root, f"no images of the {'training' if training else 'validation'} part")
    return Files(files), len(names)


class _ArraysOnly(pickle.Unpickler):
    """Unpickle dicts, lists and numpy arrays; refuse to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        if (module.split(".")[0] == "numpy" and name in allowed) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds more than arrays: {module}.{name}")


def _small_batch(root: Path, name: str) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Read one published batch, npz or pickle: ``data`` (N, 3072) bytes, ``labels`` 1 to 1000."""
    packed, pickled = root / f"{name}.npz", root / name
    path = packed if packed.exists() else pickled
    try:
        if path is packed:
            with np.load(path, allow_pickle=False) as batch:
                data, labels = batch["data"], batch["labels"]
        else:
            with path.open("rb") as stream:
                content = _ArraysOnly(stream, encoding="latin1").load()
                data, labels = content["data"], content["labels"]
        data = np.asarray(data, dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.asarray(labels).astype(int) - 1
    except FileNotFoundError:
        raise missing("small-imagenet-32", root, f"neither {name}.npz nor {name}") from None
    except (KeyError, ValueError, TypeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise RecipeError(f"{path}: not a batch of the downsampled ImageNet: {error}; download it anew") from None
    if len(data) != len(labels) or labels.min(initial=0) < 0 or labels.max(initial=0) > 999:
        raise RecipeError(f"{path}: {len(data)} images, {len(labels)} labels (1 to 1000); download it anew")
    return data, labels.tolist()


def small_imagenet(root: Path, training: bool) -> tuple[Images, int]:
    """Read the downsampled ImageNet, 32 x 32: ``train_data_batch_1`` to ``10``, ``val_data``; all in memory.

    Returns:
        The images, and the number of classes, 1000.

    Raises:
        RecipeError: When a batch is missing or not in the published format.
    """
    names = [f"train_data_batch_{number}" for number in range(1, 11)] if training else ["val_data"]
    batches = [_small_batch(root, name) for name in names]
    return Arrays(np.concatenate([data for data, _ in batches]), [t for _, labels in batches for t in labels]), 1000


def need_package(dataset: str) -> None:
    """Say what to install where a data set needs a package that is not there.

    Raises:
        RecipeError: When it is missing.
    """
    packages = {"hfds/": "datasets", "hfids/": "datasets", "wds/": "webdataset", "tfds/": "tensorflow_datasets"}
    for prefix, package in packages.items():
        if dataset.startswith(prefix) and importlib.util.find_spec(package) is None:
            raise RecipeError(f"data set '{dataset}' needs the package {package}, which is not installed; "
                              f"run: pip install {package.replace('_', '-')}")  # fmt: skip


def timm_dataset(section: ImageData, training: bool, **extra: Any) -> Any:
    """Open anything `timm.data.create_dataset` reads.

    Raises:
        RecipeError: When the data or a package are missing.
    """
    from timm.data import create_dataset

    need_package(section.dataset)
    name, root = section.dataset, section.root
    if name.startswith("folder:"):
        name, root = "", name.removeprefix("folder:")
    elif name == "folder":
        name = ""
    where = Path(root or ".")
    if not name and not where.is_dir():
        raise missing("folder", where, "no such folder")
    split = section.train_split if training else section.val_split or "validation"
    if training or name.startswith(("torch/", "hfids/", "tfds/")):
        extra = {"download": section.download, **extra}
    try:
        return create_dataset(name, root=root, split=split, is_training=training, **extra)
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
        first = str(error).strip().splitlines()
        raise missing(
            section.dataset, where, f"cannot be read ({first[0] if first else type(error).__name__})"
        ) from None


def _folder_classes(dataset: Any) -> dict[str, int]:
    return dict(getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {})


def check_same_classes(section: ImageData, train: Any, val: Any) -> None:
    """Refuse folders that give both parts the same images, or the parts different class numbers.

    Raises:
        RecipeError: Naming the folder, or some of the classes.
    """
    places = [getattr(getattr(part, "reader", None), "root", None) for part in (train, val)]
    if places[0] is not None and places[0] == places[1] and _folder_classes(train):
        lacks = f"no sub-folders for '{section.train_split}' and '{section.val_split or 'validation'}'"
        raise missing("folder", Path(places[0]), lacks)
    ours, theirs = _folder_classes(train), _folder_classes(val)
    if ours and theirs and ours != theirs:
        odd = sorted(set(ours) ^ set(theirs))[:5]
        raise RecipeError(
            f"data set '{section.dataset}': {len(ours)} classes in training, {len(theirs)} in validation, "
            f"differing in {', '.join(odd) or 'their numbers'}; give both parts the same class folders"
        )


Reader = Callable[[Path, bool], tuple[Images, int]]
READERS: dict[str, Reader] = {"tiny-imagenet": tiny_imagenet, "small-imagenet-32": small_imagenet}
