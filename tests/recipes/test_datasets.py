"""Data sets in their published formats: small files of each are written and read back; what is said without them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision

from recipes.data import Source, batch, open_source
from recipes.data_schema import ImageData
from recipes.datasets import small_imagenet
from surgeon import RecipeError

Write = Callable[..., None]
# timm leaves the files of its folder data sets to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


def read(section: ImageData, **model: Any) -> tuple[Source, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Open, batch for a small timm net, and return the validation batches."""
    source = open_source(section)
    net = timm.create_model("test_resnet", num_classes=source.num_classes, **model)
    data = batch(source, net, batch_size=2, in_chans=model.get("in_chans"))
    assert data.num_classes == source.num_classes
    train = list(data.train)
    assert train and all(images.shape == (2, *data.input_size) for images, _ in train)
    return source, list(data.val)


def reds(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    """The red value of every image, 0 to 255: which picture it is, with mean 0 and std 1."""
    return [round(float(image[0].mean()) * 255) for images, _ in batches for image in images]


PLAIN: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0, "no_aug": True}


# ---- torchvision's CIFAR, from the published python pickles


def cifar_file(path: Path, key: str, count: int, start: int) -> None:
    data = np.zeros((count, 3072), np.uint8)
    data[:, :1024] = (np.arange(count, dtype=np.uint8) + start)[:, None]  # the red plane comes first
    labels = [(start + number) % 10 for number in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"data": data, key: labels, "batch_label": "x"}, protocol=2))


@pytest.fixture
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares md5 sums; miniature files have others."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())


def test_cifar10(tmp_path: Path, no_checksums: None) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    for number in range(1, 6):
        cifar_file(folder / f"data_batch_{number}", "labels", 2, 10 * number)
    cifar_file(folder / "test_batch", "labels", 3, 100)
    names = [f"class{number}" for number in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    source, val = read(ImageData(dataset="torch/cifar10", root=str(tmp_path), size=32, **PLAIN))
    assert (len(source.train), source.num_classes) == (10, 10)
    assert reds(val) == [100, 101, 102]
    assert torch.cat([targets for _, targets in val]).tolist() == [0, 1, 2]


def test_cifar100(tmp_path: Path, no_checksums: None) -> None:
    folder = tmp_path / "cifar-100-python"
    cifar_file(folder / "train", "fine_labels", 4, 0)
    cifar_file(folder / "test", "fine_labels", 2, 50)
    names = [f"class{number}" for number in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    source, val = read(ImageData(dataset="torch/cifar100", root=str(tmp_path), size=32, **PLAIN))
    assert source.num_classes == 100 and reds(val) == [50, 51]


def test_cifar_of_wrong_checksum_or_missing(tmp_path: Path) -> None:
    section = ImageData(dataset="torch/cifar10", root=str(tmp_path))
    with pytest.raises(RecipeError, match=r"data set 'torch/cifar10': cannot be read .*set data.download: true"):
        open_source(section)
    cifar_file(tmp_path / "cifar-10-batches-py" / "data_batch_1", "labels", 2, 0)
    with pytest.raises(RecipeError, match=rf"corrupted.*{tmp_path.name}"):
        open_source(section)


# ---- folders


def folders(root: Path, write: Write, parts: dict[str, list[str]]) -> None:
    for part, names in parts.items():
        for number, name in enumerate(names):
            for copy in range(2):
                write(root / part / name / f"{copy}.png", 30 * number + copy)


def test_folder(tmp_path: Path, write_image: Write) -> None:
    folders(tmp_path, write_image, {"train": ["cat", "dog", "owl"], "val": ["cat", "dog", "owl"]})
    source, val = read(ImageData(dataset=f"folder:{tmp_path}", size=16, **PLAIN))
    assert source.num_classes == 3 and reds(val) == [0, 1, 30, 31, 60, 61]
    assert torch.cat([targets for _, targets in val]).tolist() == [0, 0, 1, 1, 2, 2]
    _, val = read(ImageData(dataset="folder", root=str(tmp_path), size=16), in_chans=1)
    assert val[0][0].shape == (2, 1, 16, 16)


def test_folder_small_image_pipeline(tmp_path: Path, write_image: Write) -> None:
    folders(tmp_path, write_image, {"train": ["cat", "dog"], "val": ["cat", "dog"]})
    colours = {key: PLAIN[key] for key in ("mean", "std")}
    section = ImageData(dataset=f"folder:{tmp_path}", size=16, crop_padding=4, rotation=15, **colours)
    _, val = read(section)
    assert reds(val) == [0, 1, 30, 31]
    source = open_source(section)
    net = timm.create_model("test_resnet")
    images = torch.cat([images for images, _ in batch(source, net, batch_size=2).train.epoch(0)])
    assert (images[:, 0] == 0).any() and (images[:, 0] > 0).any()  # padded with black, not only


def test_max_images_keep_all_classes(tmp_path: Path, write_image: Write) -> None:
    folders(tmp_path, write_image, {"train": list("abcdefgh"), "val": list("abcdefgh")})
    section = ImageData(dataset=f"folder:{tmp_path}", size=16, max_val=8, **PLAIN)
    _, val = read(section)
    targets = torch.cat([targets for _, targets in val]).tolist()
    assert len(targets) == 8 and len(set(targets)) > 4  # the first eight would be four classes


def test_folder_mistakes(tmp_path: Path, write_image: Write) -> None:
    with pytest.raises(RecipeError, match=r"no such folder in .*nowhere; root is a folder with train/CLASS"):
        open_source(ImageData(dataset=f"folder:{tmp_path}/nowhere"))
    folders(tmp_path, write_image, {"train": ["cat", "dog"], "val": ["cat", "owl"]})
    with pytest.raises(RecipeError, match=r"2 classes in training, 2 in validation, differing in dog, owl"):
        open_source(ImageData(dataset=f"folder:{tmp_path}"))
    folders(tmp_path / "flat", write_image, {".": ["cat", "dog"]})
    with pytest.raises(RecipeError, match=r"no sub-folders for 'train' and 'validation'"):
        open_source(ImageData(dataset=f"folder:{tmp_path}/flat"))


# ---- Tiny-ImageNet-200


def tiny(root: Path, write: Write) -> None:
    names = ["n02", "n01"]
    root.mkdir()
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    for red, name in ((20, "n01"), (200, "n02")):
        write(root / "train" / name / "images" / f"{name}_0.JPEG", red, 64)
        write(root / "train" / name / "images" / f"{name}_1.JPEG", red, 64)
        write(root / "val" / "images" / f"val_{red}.JPEG", red, 64)
    rows = ["val_200.JPEG\tn02\t0\t0\t62\t62", "val_20.JPEG\tn01\t0\t0\t62\t62"]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")


def test_tiny_imagenet(tmp_path: Path, write_image: Write) -> None:
    tiny(tmp_path / "tiny", write_image)
    source, val = read(ImageData(dataset="tiny-imagenet", root=str(tmp_path / "tiny"), size=64, **PLAIN))
    assert (len(source.train), source.num_classes) == (4, 2)
    assert torch.cat([targets for _, targets in val]).tolist() == [1, 0]
    assert reds(val) == pytest.approx([200, 20], abs=3)


def test_tiny_imagenet_mistakes(tmp_path: Path, write_image: Write) -> None:
    section = ImageData(dataset="tiny-imagenet", root=str(tmp_path / "tiny"))
    with pytest.raises(RecipeError, match=r"no wnids.txt in .*tiny; download tiny-imagenet-200.zip"):
        open_source(section)
    tiny(tmp_path / "tiny", write_image)
    (tmp_path / "tiny" / "wnids.txt").write_text("n01\n")
    with pytest.raises(RecipeError, match="class 'n02' is not listed"):
        open_source(section)
    (tmp_path / "tiny" / "val" / "val_annotations.txt").unlink()
    with pytest.raises(RecipeError, match=r"no val.val_annotations.txt"):
        open_source(section)


# ---- downsampled ImageNet, 32 x 32


def planes(count: int, start: int) -> dict[str, Any]:
    data = np.zeros((count, 3072), np.uint8)
    data[:, :1024] = (np.arange(count, dtype=np.uint8) + start)[:, None]
    return {"data": data, "labels": [1 + (start + number) % 1000 for number in range(count)], "mean": np.zeros(3072)}


@pytest.mark.parametrize("packed", [True, False])
def test_small_imagenet(tmp_path: Path, packed: bool) -> None:
    for number, name in enumerate([*(f"train_data_batch_{n}" for n in range(1, 11)), "val_data"]):
        content = planes(2, 10 * number)
        if packed:
            np.savez(tmp_path / f"{name}.npz", **content)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(content))
    source, val = read(ImageData(dataset="small-imagenet-32", root=str(tmp_path), size=32, **PLAIN))
    assert (len(source.train), source.num_classes) == (20, 1000)
    assert reds(val) == [100, 101]
    assert torch.cat([targets for _, targets in val]).tolist() == [100, 101]  # labels count from 1


def test_small_imagenet_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"neither val_data.npz nor val_data in .*image-net.org"):
        small_imagenet(tmp_path, False)
    np.savez(tmp_path / "val_data.npz", data=np.zeros((2, 3072)))
    with pytest.raises(RecipeError, match=r"val_data.npz: not a batch.*labels"):
        small_imagenet(tmp_path, False)
    np.savez(tmp_path / "val_data.npz", **{**planes(2, 0), "labels": [0, 1]})
    with pytest.raises(RecipeError, match=r"labels \(1 to 1000\)"):
        small_imagenet(tmp_path, False)
    (tmp_path / "val_data.npz").write_bytes(b"PK nonsense")
    with pytest.raises(RecipeError, match="not a batch"):
        small_imagenet(tmp_path, False)


def test_pickles_that_hold_more_than_arrays_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "touched"
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": _Touch(marker), "labels": []}))
    with pytest.raises(RecipeError, match=r"it holds more than arrays: .*"):
        small_imagenet(tmp_path, False)
    assert not marker.exists()
    pickle.loads((tmp_path / "val_data").read_bytes())  # the plain way would have run it
    assert marker.exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# ---- packages that are not there


@pytest.mark.parametrize(
    ("dataset", "package"), [("hfds/cifar10", "datasets"), ("wds/shards", "webdataset"), ("tfds/mnist", "tensorflow")]
)
def test_missing_packages_are_named(dataset: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=rf"'{dataset}' needs the package {package}.*pip install {package}"):
        open_source(ImageData(dataset=dataset, num_classes=10, num_train=4, num_val=4))
