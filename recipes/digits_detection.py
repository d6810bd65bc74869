"""A small object-detection data set made on the spot: scikit-learn's real digits, many and small, on texture.

Apart from the other data sets because detectors read files: this one is written once, in YOLO format, and then any
trainer that takes a ``data.yaml`` can use it. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recipes.digit_scenes import Scene, digits, draw
from surgeon.errors import RecipeError

MANIFEST, DATA, FORMAT = "digits.json", "data.yaml", 1
PARTS = ("train", "val")
SMALLEST = 8  # pixels: scikit-learn's digits are 8 pixels high, and are never shrunk
NAMES = "".join(f"  {digit}: '{digit}'\n" for digit in range(10))
YAML = f"# {{images}}, made by cnn-surgeon\ntrain: images/train\nval: images/val\nnames:\n{NAMES}"
STORED = 65535  # bytes in one uncompressed block


def write(
    folder: str | Path,
    *,
    image_size: int = 160,
    images: int = 400,
    val_images: int = 100,
    seed: int = 0,
    object_size: tuple[int, int] = (8, 64),
    objects: int = 12,
) -> Path:
    """Write the data set, or find it already written, and return the path of its ``data.yaml``.

    Training images show digits of the training part only, validation images those of the validation part: the parts
    of ``dataset: digits``. The same settings give the same bytes on every machine. More images leave the first ones as
    they are. The folder appears complete or not at all.

    Args:
        folder: New or empty, or holding this data set already.
        image_size: Of the square grey images, pixels, 32 to 2048.
        images: For training, at least 1.
        val_images: For validation, at least 1; they depend on the seed too, not on `images`.
        seed: Of placements, sizes and textures.
        object_size: Smallest and largest digit, pixels, whichever of height and width is longer: from 8 to
            two thirds of the image. Small ones are the many.
        objects: Digits per image; fewer where there is no room, as digits do not overlap.

    Raises:
        RecipeError: When a setting is out of range, or the folder holds something else, or a data set with other
            settings, or one that was changed since.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     data = write(f"{place}/digits", images=2, val_images=1)
        ...     sorted(path.name for path in (data.parent / "images" / "train").iterdir())
        ['0000.png', '0001.png']
    """
    folder = Path(folder)
    settings = {
        "format": FORMAT,
        "image_size": image_size,
        "images": images,
        "val_images": val_images,
        "seed": seed,
        "object_size": list(object_size),
        "objects": objects,
    }
    _check(settings)
    if not _written(folder, settings):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _fill(beside, settings)
            beside.chmod(0o755)
            _move(beside, folder, settings)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder / DATA


def _check(settings: dict[str, Any]) -> None:
    numbers = [value for value in settings.values() if not isinstance(value, list)] + settings["object_size"]
    if not all(type(number) is int for number in numbers) or len(settings["object_size"]) != 2:
        raise RecipeError(f"digits_detection: settings are whole numbers, object_size a pair of them; got {settings}")
    size, (low, high) = settings["image_size"], settings["object_size"]
    problems = [
        (not 32 <= size <= 2048, f"image_size={size}: write 32 to 2048"),
        (
            not SMALLEST <= low <= high <= size * 2 // 3,
            f"object_size=({low}, {high}): write {SMALLEST} <= smallest <= largest <= {size * 2 // 3}, two thirds of "
            f"image_size={size}",
        ),
        *(
            (settings[key] < 1, f"{key}={settings[key]}: write 1 or more")
            for key in ("images", "val_images", "objects")
        ),
        (settings["seed"] < 0, f"seed={settings['seed']}: write 0 or more"),
    ]
    wrong = [words for bad, words in problems if bad]
    if wrong:
        raise RecipeError("digits_detection: " + "; ".join(wrong))


def _written(folder: Path, settings: dict[str, Any]) -> bool:
    """Say whether this very data set is there; refuse a folder that holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        before, digest = manifest["settings"], manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RecipeError(f"{folder} holds something else than the digits data set; name another folder") from None
    if before != settings:
        changed = [
            f"{key}: {before.get(key)} there, {settings[key]} asked"
            for key in settings
            if before.get(key) != settings[key]
        ]
        raise RecipeError(
            f"{folder} holds digits with other settings ({'; '.join(changed)}); name another folder, or remove this one"
        )
    if _digest(folder) != digest:
        raise RecipeError(f"{folder}: images or labels were changed since they were written; remove it, and run again")
    return True


def _digest(folder: Path) -> str:
    """Return the sha256 of names and bytes of every image and label, and of data.yaml."""
    found = hashlib.sha256()
    for path in sorted([*folder.glob("images/*/*.png"), *folder.glob("labels/*/*.txt"), *folder.glob(DATA)]):
        found.update(path.relative_to(folder).as_posix().encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _fill(folder: Path, settings: dict[str, Any]) -> None:
    for part, count in zip(PARTS, (settings["images"], settings["val_images"]), strict=True):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for number, scene in enumerate(scenes(part, count, settings)):
            (folder / "images" / part / f"{number:04}.png").write_bytes(png(scene.image))
            (folder / "labels" / part / f"{number:04}.txt").write_bytes(_labels(scene))
    size, (low, high) = settings["image_size"], settings["object_size"]
    words = f"Digits of {low} to {high} pixels on texture, images of {size} x {size} pixels"
    (folder / DATA).write_bytes(YAML.format(images=words).encode())
    manifest = json.dumps({"settings": settings, "sha256": _digest(folder)}, indent=1)
    (folder / MANIFEST).write_bytes(f"{manifest}\n".encode())


def _move(beside: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Give the complete folder its name; where another process was faster, its data set is as good."""
    try:
        if folder.is_dir():
            folder.rmdir()  # empty: some systems do not rename onto an empty folder
        os.rename(beside, folder)  # noqa: PTH104 - fails where the name is taken; Path.replace need not
    except OSError:
        if not _written(folder, settings):
            raise


def scenes(part: str, count: int, settings: dict[str, Any]) -> Iterator[Scene]:
    """Draw the images of one part, each from a seed of its own."""
    training = part == PARTS[0]
    pool, sides = digits(training), (settings["object_size"][0], settings["object_size"][1])
    for number in range(count):
        seeds = (settings["seed"], int(training), number)
        yield draw(pool, settings["image_size"], sides, settings["objects"], *seeds)


def _labels(scene: Scene) -> bytes:
    """Write one line ``class x y width height`` per box: centre and size as shares of the image."""
    height, width = scene.image.shape
    lines = []
    for label, (left, top, right, bottom) in zip(scene.classes, scene.boxes, strict=True):
        middle = (left + right) / 2 / width, (top + bottom) / 2 / height
        extent = (right - left) / width, (bottom - top) / height
        lines.append(" ".join([str(label), *(f"{number:.6f}" for number in (*middle, *extent))]) + "\n")
    return "".join(lines).encode()


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """Write a grey image (H, W) as PNG without compression, as compressors differ from machine to machine.

    Example:
        >>> png(np.zeros((2, 2), np.uint8))[1:4]
        b'PNG'
    """
    height, width = image.shape
    rows = np.insert(image, 0, 0, axis=1).tobytes()  # each row begins with its filter: none
    starts = range(0, len(rows), STORED)
    blocks = [rows[start : start + STORED] for start in starts]
    heads = [
        struct.pack("<BHH", start == starts[-1], len(block), len(block) ^ 0xFFFF)
        for start, block in zip(starts, blocks, strict=True)
    ]
    body = b"".join(head + block for head, block in zip(heads, blocks, strict=True))
    stream = b"\x78\x01" + body + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", stream), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
