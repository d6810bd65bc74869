"""Every task of ultralytics': operated, trained, loaded, predicted, lowered, with its own head and its own data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import surgeon
from tests.surgeon.yolo.small import LAYERS, settings

ultralytics = pytest.importorskip("ultralytics")
SIZE = 64
HEADS: dict[str, list[Any]] = {
    "segment": [[7, 4], 1, "Segment", ["nc", 8, 16]],
    "pose": [[7, 4], 1, "Pose", ["nc", [2, 3]]],
    "obb": [[7, 4], 1, "OBB", ["nc", 1]],
    "classify": [-1, 1, "Classify", ["nc"]],
}
SHIPPED = {"semantic": "yolo26n-sem.yaml", "depth": "yolo26n-depth.yaml", "detect": "yolov8-rtdetr.yaml"}


def network(task: str, folder: Path) -> str:
    """The path of a narrow yaml with the task's head, or the name of one that ultralytics ships."""
    if task in SHIPPED:
        return SHIPPED[task]
    path = folder / f"small-{task}.yaml"
    layers = {**LAYERS, "nc": 2, "head": [*LAYERS["head"][:-1], HEADS[task]]}  # type: ignore[misc]
    path.write_text(yaml.safe_dump({**layers, "kpt_shape": [2, 3]} if task == "pose" else layers))
    return str(path)


def label(task: str, kind: int, x: int, y: int, side: int) -> str:
    """One object in the form of its task."""
    left, top, right, bottom = x / SIZE, y / SIZE, (x + side) / SIZE, (y + side) / SIZE
    box: list[float] = [(left + right) / 2, (top + bottom) / 2, side / SIZE, side / SIZE]
    form = {
        "segment": [left, top, right, top, right, bottom, left, bottom],
        "pose": [*box, left, top, 2, right, top, 2],
    }
    form["obb"] = form["segment"]
    return " ".join([str(kind), *(f"{number:.5f}" for number in form.get(task, box))])


def data(task: str, folder: Path) -> str:
    """A few images of squares with what the task asks for; the folder, or its data yaml."""
    rng = np.random.default_rng(0)
    for split, i in [("train", i) for i in range(4)] + [("val", i) for i in range(2)]:
        image = rng.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
        mask, lines = np.zeros((SIZE, SIZE), np.uint8), []
        for kind in range(2):
            x, y, side = (int(n) for n in rng.integers((0, 0, 12), (40, 40, 20)))
            image[y : y + side, x : x + side] = np.roll([250, 120, 0], kind)
            mask[y : y + side, x : x + side] = 1 + kind
            lines.append(label(task, kind, x, y, side))
        images = folder / (f"{split}/class {i % 2}" if task == "classify" else f"images/{split}")
        for place in (images, *(folder / kind / split for kind in ("labels", "masks", "depth"))):
            if task != "classify" or place is images:
                place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(images / f"{i}.png")
        if task != "classify":
            (folder / "labels" / split / f"{i}.txt").write_text("\n".join(lines))
            Image.fromarray(mask).save(folder / "masks" / split / f"{i}.png")
            np.save(folder / "depth" / split / f"{i}.npy", mask.astype(np.float32) + 1)
    if task == "classify":
        return str(folder)
    names = {"semantic": {0: "rest", 1: "a", 2: "b"}, "depth": {0: "depth"}}.get(task, {0: "a", 1: "b"})
    found = {"path": str(folder), "train": "images/train", "val": "images/val", "names": names}
    more = {"pose": {"kpt_shape": [2, 3]}, "semantic": {"masks_dir": "masks"}}.get(task, {})
    (folder / "data.yaml").write_text(yaml.safe_dump({**found, **more}))
    return str(folder / "data.yaml")


def answer(network: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The first tensor a network answers."""
    found: Any = network.eval()(image)
    while not isinstance(found, torch.Tensor):
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
    return found


@pytest.mark.parametrize(
    "task", ["segment", "classify", *(pytest.param(task, marks=pytest.mark.slow) for task in ("pose", "obb", *SHIPPED))]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
@torch.no_grad()
def test_a_task_keeps_its_surgery_and_its_task(task: str, tmp_path: Path) -> None:
    kind = ultralytics.RTDETR if "rtdetr" in SHIPPED.get(task, "") else ultralytics.YOLO
    thing = surgeon.apply(kind(network(task, tmp_path)), "spd", SIZE)
    count, before = surgeon.record(thing).count("rewritten"), thing.model.model[0].conv.weight.clone()
    assert count >= 3 and thing.task == task
    with torch.enable_grad():
        gentle = {"optimizer": "SGD", "lr0": 1e-6, "warmup_epochs": 0}
        thing.train(**settings(tmp_path, data(task, tmp_path / "data"), batch=4, **gentle))
    weight = thing.model.model[0].conv.weight
    assert surgeon.record(thing).count("rewritten") == count
    assert not torch.equal(weight, before) and torch.allclose(weight, before, atol=1e-3)  # from memory, not anew
    loaded = surgeon.load(tmp_path / "runs" / "run" / "weights" / "last.pt")
    assert isinstance(loaded, kind) and loaded.task == task and surgeon.record(loaded).count("rewritten") == count
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert len(loaded.predict(image, imgsz=SIZE, device="cpu", verbose=False)) == 1
    lowered = surgeon.lower(loaded)
    assert lowered.task == task and surgeon.record(lowered).count("refused") == 0
    x = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64)
    expected = answer(loaded.model.double(), x)
    torch.testing.assert_close(answer(lowered.model.double(), x), expected, rtol=1e-9, atol=1e-9)
    loaded.model.model[0].conv.weight[0] += 0.5  # control
    assert not torch.allclose(answer(loaded.model, x), expected, rtol=1e-9, atol=1e-9)
