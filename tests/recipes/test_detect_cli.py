"""Detectors on the command line: yaml, ``.pt`` and saved folders are located, planned, operated, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ultralytics")

import ultralytics

import surgeon
from recipes import cli
from recipes.opening import model_names, open_model
from tests.surgeon.yolo.small import network, squares


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.yaml, small.pt, data.yaml and its images."""
    folder = tmp_path_factory.mktemp("place")
    squares(folder)
    ultralytics.YOLO(network(folder)).save(folder / "small.pt")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    seen = capsys.readouterr()
    assert "Traceback" not in seen.err + seen.out
    return code, seen.out, seen.err


@pytest.mark.parametrize("name", ["small.yaml", "small.pt"])
def test_locate_and_plan(capsys: pytest.CaptureFixture[str], here: Path, name: str) -> None:
    code, out, _ = call(capsys, "locate", name, "--input-size", "64")
    assert code == 0 and out.startswith("DetectionModel at 3x64x64: 3 strided_conv")
    code, out, _ = call(capsys, "plan", name, "spd", "--json")
    found = json.loads(out)
    assert code == 0 and [change["path"] for change in found["changes"]] == [f"model.{i}.conv" for i in (0, 1, 3)]


def test_nothing_is_fetched_or_printed_beside(
    capsys: pytest.CaptureFixture[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        raise OSError("weights were asked for")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", fetch)
    torch_vision = [-1, 1, "TorchVision", [512, "resnet18", "DEFAULT", True, 2, False]]
    layers = {"nc": 3, "scales": {"n": [1, 1, 1024], "s": [1, 1, 1024]}, "backbone": [torch_vision]}
    (here / "fetching.yaml").write_text(yaml.safe_dump({**layers, "head": [[-1, 1, "Classify", ["nc"]]]}))
    code, out, _ = call(capsys, "locate", "fetching.yaml", "--input-size", "64", "--json")
    assert code == 0 and json.loads(out)["sites"]
    code, _, err = call(capsys, "apply", "fetching.yaml", "spd", "--out", "x")  # control
    assert code == 2 and "ultralytics cannot open 'fetching.yaml': weights were asked for" in err


def test_a_shipped_recipe_on_a_named_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "plan", "yolov5n.yaml", "yolov5n_spd", "--input-size", "64", "--json")
    assert code == 0 and json.loads(out)["params"] == [2_654_816, 3_038_816]


def test_apply_then_verify(capsys: pytest.CaptureFixture[str], here: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "operated")
    code, said, _ = call(capsys, "apply", "small.pt", "spd", "--out", out)
    assert code == 0 and "3 rewritten" in said and "surgeon.load" in said
    assert surgeon.record(surgeon.load(out)).count("rewritten") == 3
    code, said, _ = call(capsys, "verify", "small.pt", out, "--data", "data.yaml", "--images", "1")
    assert code == 0 and said.startswith("same function: over 1 image")
    small = here / "images.yaml"
    small.write_text("name: s\nmodel: {yolo: any}\ndata: {dataset: data.yaml}\ntrain: {imgsz: 64, epochs: 1}\n")
    code, said, _ = call(capsys, "verify", "small.pt", out, "--data", "images.yaml")
    assert code == 0 and said.startswith("same function: over 4 images")
    code, said, _ = call(capsys, "verify", "small.yaml", out, "--data", "images.yaml")  # control: other weights
    assert code == 0 and said.startswith("not the same function: over 4 images")


def test_verify_on_digits_and_by_a_recipe(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    recipe = here / "recipe.yaml"
    data = "{dataset: digits_detection, image_size: 64, images: 1, val_images: 2, object_size: [8, 16]}"
    recipe.write_text(f"name: own\nmodel: {{yolo: small.pt}}\ndata: {data}\ntrain: {{imgsz: 64, epochs: 1}}\n")
    code, said, _ = call(capsys, "verify", "recipe.yaml", "small.pt", "--data", "recipe.yaml")
    assert code == 0 and said.startswith("same function: over 2 images")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["locate", "smal.yaml"], "no file 'smal.yaml' in "),
        (["locate", "yolo11q.yaml"], "did you mean 'yolo11"),
        (["plan", "small.yaml", "sdp"], "did you mean 'spd'?"),
        (["apply", "small.pt", "spd", "--out", "x", "--pretrained"], "says itself where its weights come from"),
        (["locate", "broken.pt"], "ultralytics cannot open 'broken.pt'"),
        (["locate", "broken.yaml"], "ultralytics cannot open 'broken.yaml'"),
        (["verify", "small.pt", "small.pt", "--data", "digits"], "images for classifiers, but the model is a detector"),
        (["verify", "small.pt", "small.pt", "--data", "digits_spd"], "images for classifiers, but the model is a"),
        (["verify", "small.pt", "small.pt", "--data", "digits_detecton"], "did you mean 'digits_detection'?"),
        (["verify", "small.pt", "small.pt", "--data", "none.yaml"], "ultralytics cannot read 'none.yaml'"),
        (["verify", "digits_convnet", "digits_convnet", "--data", "data.yaml"], "images for detectors, but the model"),
        (["verify", "digits_convnet", "digits_convnet", "--data", "none.yaml"], "no file 'none.yaml'"),
        (["models", "--yolo", "nonesuch*"], "no detector like 'nonesuch*'"),
        (["models", "--yolo", "--pretrained"], "--pretrained lists timm's weights"),
        (["run", "gpu.yaml", "--out", "x"], "train.device: Invalid CUDA 'device=99'"),
        (["run", "cls.yaml", "--out", "x"], "is a classify model; recipes train models with boxes: detect, "),
        (["run", "gone.yaml", "--out", "x"], "data.dataset: ultralytics cannot read 'gone/data.yaml'"),
    ],
)
def test_mistakes_end_with_code_2_and_one_message(
    capsys: pytest.CaptureFixture[str], here: Path, arguments: list[str], words: str
) -> None:
    (here / "broken.pt").write_text("no weights")
    (here / "broken.yaml").write_text("nc: 3\nbackbone:\n  - [-1, 1, Convv, [8, 3, 2]]\nhead: []\n")
    model = "name: x\nmodel: {yolo: small.yaml}\n"
    (here / "gpu.yaml").write_text(f"{model}data: {{dataset: data.yaml}}\ntrain: {{epochs: 1, device: 99}}\n")
    (here / "gone.yaml").write_text(f"{model}data: {{dataset: gone/data.yaml}}\n")
    (here / "cls.yaml").write_text("name: x\nmodel: {yolo: yolo11n-cls.yaml}\n")
    code, _, err = call(capsys, *arguments)
    assert code == 2 and words in " ".join(err.split())
    assert not (here / "x").exists()


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "models", "yolov5?.yaml", "--yolo")
    assert code == 0 and out.split() == [f"yolov5{scale}.yaml" for scale in "lmnsx"]
    assert {"resnet50_onescale.yaml", "digits_p2.yaml"} <= set(model_names(yolo=True))


def test_a_detector_by_its_recipe_and_its_folder(here: Path, tmp_path: Path) -> None:
    (here / "own.yaml").write_text("name: own\nmodel: {yolo: small.pt}\n")
    opened: Any = open_model(str(here / "own.yaml"), weights=False)
    surgeon.save(opened, tmp_path / "saved")
    again: Any = open_model(str(tmp_path / "saved"))
    assert type(opened).__name__ == type(again).__name__ == "YOLO" and again.names == opened.names
