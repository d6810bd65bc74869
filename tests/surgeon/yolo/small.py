"""A narrow detector, a data set of coloured squares, and settings of a training that takes seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

LAYERS = {
    "nc": 3,
    "backbone": [
        [-1, 1, "Conv", [8, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "C2f", [16, True]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "SPPF", [16, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C2f", [16]],
        [[7, 4], 1, "Detect", ["nc"]],
    ],
}


def network(folder: Path, classes: int = 3, name: str = "small.yaml") -> str:
    """The path of the yaml of a detector with three strided convs."""
    path = folder / name
    path.write_text(yaml.safe_dump({**LAYERS, "nc": classes}))
    return str(path)


def squares(folder: Path, classes: int = 3, train: int = 8, val: int = 4, size: int = 64) -> str:
    """The path of the data yaml of a few images with coloured squares."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
            lines = []
            for _ in range(3):
                (x, y), side, label = (
                    rng.integers(0, size - 20, 2),
                    int(rng.integers(10, 20)),
                    int(rng.integers(classes)),
                )
                image[y : y + side, x : x + side] = np.roll([250, 120, 0], label % 3)
                place = ((x + side / 2) / size, (y + side / 2) / size, side / size, side / size)
                lines.append(" ".join([str(label), *(f"{number:.5f}" for number in place)]))
            Image.fromarray(image).save(folder / "images" / split / f"{i}.png")
            (folder / "labels" / split / f"{i}.txt").write_text("\n".join(lines))
    names = {i: f"class {i}" for i in range(classes)}
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"path": str(folder), "train": "images/train", "val": "images/val", "names": names}))
    return str(path)


def settings(folder: Path, data: str, **more: Any) -> dict[str, Any]:
    """Arguments of ``YOLO.train``."""
    return {
        "data": data,
        "imgsz": 64,
        "epochs": 1,
        "batch": 8,
        "device": "cpu",
        "workers": 0,
        "plots": False,
        "amp": False,
        "verbose": False,
        "project": str(folder / "runs"),
        "name": "run",
        "exist_ok": True,
        **more,
    }
