"""Operated detectors exported and tracked with; lowered ones saved for people without this library."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import surgeon
from tests.surgeon.yolo.small import network
from tests.surgeon.yolo.test_objects import IMAGE, outputs, stirred

ultralytics = pytest.importorskip("ultralytics")
RECIPES: dict[str, Any] = {"spd": "spd", "conv-spd": {"spd": {"order": "conv-spd"}}}


@pytest.fixture(params=["spd", pytest.param("conv-spd", marks=pytest.mark.slow)])
def operated(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    yolo = surgeon.apply(stirred(network(tmp_path)), RECIPES[request.param], 64)
    with torch.no_grad():
        for p in yolo.model.parameters():
            p.add_(torch.randn_like(p) * 0.2 * p.abs().mean())
        for _ in range(100):  # norms that know their inputs: outputs then depend on every weight
            yolo.model.train()(torch.rand(4, 3, 64, 64))
    yolo.model.eval()
    yolo.save(tmp_path / "operated.pt")  # from here on it knows where its file is, as exporting asks for
    return surgeon.load(tmp_path / "operated.pt")


def run_onnx(path: str) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: IMAGE[:1].numpy()})[0]
    return found


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)
def test_exported_it_computes_the_same(operated: Any, form: str) -> None:
    before = outputs(operated)[:1]
    path = operated.export(format=form, imgsz=64, device="cpu", verbose=False)
    after = torch.from_numpy(run_onnx(path)) if form == "onnx" else torch.jit.load(path)(IMAGE[:1])
    after = after[0] if isinstance(after, tuple) else after
    assert after.shape == before.shape
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert surgeon.record(operated).count("rewritten") == 3
    assert torch.equal(outputs(operated)[:1], before)  # the object itself is as it was
    with torch.no_grad():  # control: the comparison sees other weights
        operated.model.model[0].conv.weight.mul_(2)
    assert not torch.allclose(outputs(operated)[:1], after, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["shift", "blurpool"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::UserWarning")
def test_other_ops_are_exported_too(op: str, tmp_path: Path) -> None:
    yolo = surgeon.apply(stirred(network(tmp_path)), op, 64)
    yolo.save(tmp_path / "operated.pt")
    yolo = surgeon.load(tmp_path / "operated.pt")
    before = outputs(yolo)[:1]
    exported = yolo.export(format="onnx", imgsz=64, device="cpu", verbose=False)
    torch.testing.assert_close(torch.from_numpy(run_onnx(exported)), before, rtol=1e-3, atol=1e-3)


def test_it_tracks_a_film(operated: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "film.avi")
    film = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (64, 64))
    for step in range(4):
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[20:40, 5 * step : 5 * step + 20] = (0, 120, 250)
        film.write(frame)
    film.release()
    pytest.importorskip("lap")
    tracks = operated.track(path, imgsz=64, device="cpu", verbose=False, conf=0.01, stream=True)
    assert [len(result.orig_shape) for result in tracks] == [2] * 4


WITHOUT_US = """
import sys
sys.modules["surgeon"] = None  # any import of it fails
import torch
from ultralytics import YOLO
yolo = YOLO(sys.argv[1])
assert type(yolo.model).__name__ == "DetectionModel"
image = torch.load(sys.argv[2])
with torch.no_grad():
    found = yolo.model.float().eval()(image)[0]
    fused = yolo.fuse() or yolo.model(image)[0]
torch.save([found, yolo.model(image)[0].detach()], sys.argv[3])
"""


def test_lowered_it_is_an_ordinary_checkpoint_for_people_without_us(operated: Any, tmp_path: Path) -> None:
    before, lowered = outputs(operated), surgeon.lower(operated)
    assert type(lowered) is ultralytics.YOLO and surgeon.record(lowered).count("refused") == 0
    assert not [m for m in lowered.model.modules() if type(m).__module__.startswith("surgeon")]
    torch.testing.assert_close(outputs(lowered), before, rtol=1e-4, atol=1e-4)
    lowered.model.half().float()  # checkpoints of ultralytics' hold half the digits
    expected = outputs(lowered)
    lowered.save(tmp_path / "stock.pt")
    torch.save(IMAGE, tmp_path / "image.pt")
    command = [sys.executable, "-c", WITHOUT_US, *(str(tmp_path / name) for name in ("stock.pt", "image.pt", "out.pt"))]
    environment = {**os.environ, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    plain, fused = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused, expected, rtol=1e-3, atol=1e-3)
    assert surgeon.record(operated).count("rewritten") == 3 and torch.equal(outputs(operated), before)


def test_a_lowered_object_in_which_layers_of_ours_stay_refuses_to_be_saved(tmp_path: Path) -> None:
    yolo = surgeon.apply(stirred(network(tmp_path)), "spatial_shuffle", 64)
    lowered = surgeon.lower(yolo)
    assert surgeon.record(lowered).count("refused") > 0
    with pytest.raises(surgeon.RefusedError, match="cannot save: the lowered network still holds layers"):
        lowered.save(tmp_path / "never.pt")
    assert not (tmp_path / "never.pt").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_bare_network_is_lowered_too(recipe: str, tmp_path: Path) -> None:
    network_ = surgeon.apply(stirred(network(tmp_path)).model, RECIPES[recipe], 64)
    lowered = surgeon.lower(network_).eval()
    assert surgeon.record(lowered).count("refused") == 0
    assert not [m for m in lowered.modules() if type(m).__module__.startswith("surgeon")]
    torch.testing.assert_close(lowered(IMAGE)[0], network_(IMAGE)[0], rtol=1e-4, atol=1e-4)


def test_a_lowered_object_is_for_inference(operated: Any, tmp_path: Path) -> None:
    lowered = surgeon.lower(operated)
    with pytest.raises(surgeon.RefusedError, match="cannot train: a lowered object is for inference"):
        lowered.train(name="run")
    with pytest.raises(surgeon.RefusedError, match="cannot undo a lowered copy"):
        surgeon.undo(lowered)
    with pytest.raises(surgeon.SurgeonError, match="cannot save a lowered model"):
        surgeon.save(lowered, tmp_path / "folder")
    lowered.add_callback("on_val_end", print)
    assert print not in operated.callbacks["on_val_end"]
