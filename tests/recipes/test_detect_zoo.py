"""Every shipped recipe of a detector: valid, its surgery planned; YOLOv5-SPD and the papers' nets counted exactly."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ultralytics")

import recipes
import surgeon
from recipes.build import build
from recipes.detectors import ZOO, open_detector
from recipes.loading import shipped
from recipes.schema import DetectorRecipe
from tests.recipes.test_zoo import CLASSIFIERS

DETECTORS = [name for name in shipped() if name not in CLASSIFIERS]
PAGE = Path(recipes.__file__).parents[1] / "docs" / "detectors.md"
V6 = {"n": 1_872_157, "s": 7_235_389, "m": 21_190_557, "l": 46_563_709}  # YOLOv5 v6.0; the paper's own baselines
RELEASED = {"n": 2_256_157, "s": 8_771_389, "m": 24_646_557, "l": 52_707_709}  # counted on the authors' yamls
PAPER = {"n": 3_600_157, "s": 14_147_389, "m": 36_742_557, "l": 74_211_709}  # the paper's text read literally
BEFORE = {"n": 2_654_816, "s": 9_153_152, "m": 25_111_456, "l": 53_225_024}  # ultralytics' yolov5 of today


@cache
def opened(name: str) -> tuple[DetectorRecipe, Any]:
    recipe = recipes.load(name)
    assert isinstance(recipe, DetectorRecipe)
    return recipe, build(recipe)


def planned(name: str, variant: str) -> Any:
    recipe, model = opened(name)
    assert recipe.train is not None
    return surgeon.plan(model, {"surgery": recipe.variants()[variant].surgery}, recipe.train.imgsz)


def test_all_of_them() -> None:
    assert len(DETECTORS) == 6 and len(list(ZOO.glob("*.yaml"))) == 2


@pytest.mark.parametrize("name", DETECTORS)
def test_the_original_is_compared_and_whatever_differs_is_surgery(name: str) -> None:
    recipe = recipes.load(name)
    variants = recipe.variants()
    assert next(iter(variants)) == "original" and not variants["original"].surgery
    assert all(one.train == recipe.train for one in variants.values())
    assert all(variants[one].surgery for one in list(variants)[1:]) and len(variants) > 1
    quick = recipe.quick()
    assert quick.train.epochs == 2 and quick.train.warmup_epochs == 0


@pytest.mark.parametrize(("name", "variant"), [("digits_detection_spd", "spd"), ("voc_shuffle", "shuffled")])
def test_dry_run(name: str, variant: str) -> None:  # the YOLOv5-SPD are planned below
    record = planned(name, variant)
    assert record.count("rewritten") > 0 and not record.count("refused")


LAYOUTS: dict[str, Any] = {  # rows of the page, to their surgery
    "`spd`, the released layout": lambda recipe: {"surgery": recipe.variants()["spd"].surgery},
    "`spd_conv`, the paper's text": lambda recipe: {"surgery": recipe.variants()["spd_conv"].surgery},
    "all spd-conv, kernel as before": lambda recipe: "spd",
    "all spd-conv, minimal kernel": lambda recipe: [{"spd": {"kernel": "minimal"}}],
}
ADDED = {
    "`spd`, the released layout": {scale: RELEASED[scale] - V6[scale] for scale in V6},
    "`spd_conv`, the paper's text": {scale: PAPER[scale] - V6[scale] for scale in V6},
    "all spd-conv, kernel as before": {"n": 1_733_184, "s": 6_922_368, "m": 15_567_552, "l": 27_668_736},
    "all spd-conv, minimal kernel": {"n": 448_000, "s": 1_792_000, "m": 4_032_000, "l": 7_168_000},
}


def line(scale: str, label: str, params: tuple[int, int], macs: tuple[int, int]) -> str:
    """The row of docs/detectors.md."""
    added = f"+{params[1] - params[0]:,}" if params[1] > params[0] else ""
    return f"| yolov5{scale} | {label} | {params[1]:,} | {added} | {macs[1] / 1e9:.2f}G |"


@pytest.mark.parametrize("scale", ["n", "s", *(pytest.param(scale, marks=pytest.mark.slow) for scale in "ml")])
def test_yolov5_spd_counts(scale: str) -> None:
    name = f"yolov5{scale}_spd"
    recipe, model = opened(name)
    page = PAGE.read_text(encoding="utf-8").splitlines()
    for label, surgery in LAYOUTS.items():
        record = surgeon.plan(model, surgery(recipe), 640)
        assert record.count("rewritten") == len(record.changes) == 7
        assert record.params[0] == BEFORE[scale] and record.params[1] - record.params[0] == ADDED[label][scale]
        assert line(scale, label, record.params, record.macs) in page
        assert line(scale, "original", record.params[:1] * 2, record.macs[:1] * 2) in page
        stem, *others = record.changes
        assert stem.path == "model.0.conv" and all(change.params[1] > change.params[0] for change in others)
        assert (stem.params[0] == stem.params[1]) == (label != "all spd-conv, kernel as before")
    head = (ZOO.parent / f"{name}.yaml").read_text(encoding="utf-8")
    for number in (BEFORE[scale], V6[scale], RELEASED[scale], *(ADDED[label][scale] for label in list(ADDED)[:2])):
        assert f"{number:,}" in head


def test_what_the_released_layout_adds() -> None:
    added = ADDED["`spd`, the released layout"]
    assert added == {"n": 384_000, "s": 1_536_000, "m": 3_456_000, "l": 6_144_000}
    printed = {"n": "2.2", "s": "8.7", "m": "24.6", "l": "52.7"}  # Tables 4 and 5, truncated
    assert all(f"{RELEASED[scale] / 1e6:.3f}".startswith(printed[scale]) for scale in added)


def test_yolov5_spd_is_trained_as_the_paper_says() -> None:
    common = {"optimizer": "SGD", "lr0": 0.01, "lrf": 0.1, "cos_lr": True, "momentum": 0.937, "weight_decay": 0.0005}
    for scale, batch, epochs in (("n", 128, 300), ("s", 128, 300), ("m", 32, 200), ("l", 32, 200)):
        recipe = recipes.load(f"yolov5{scale}_spd")
        assert recipe.model.yolo == f"yolov5{scale}.yaml" and recipe.data.dataset == "coco.yaml"
        wanted = {**common, "batch": batch, "epochs": epochs, "imgsz": 640, "warmup_epochs": 3}
        assert recipe.train.model_dump().items() >= wanted.items()


@pytest.mark.parametrize("variant", ["spd", "spd_conv"])
def test_yolov5_spd_is_the_same_function(variant: str) -> None:
    recipe, shared = opened("yolov5n_spd")
    before = copy.deepcopy(shared)
    stir(before.model)
    after = surgeon.apply(copy.deepcopy(before), {"surgery": recipe.variants()[variant].surgery}, 64)
    images = torch.rand(2, 3, 64, 96)
    verified = surgeon.verify(before, after, images)
    assert verified.same, str(verified)
    with torch.no_grad():
        wide, same = (model.model.double().eval()(images.double())[0] for model in (before, after))
        assert torch.allclose(wide, same, rtol=1e-9, atol=1e-9)
        readers = [p for name, p in after.model.named_parameters() if name.startswith("model.2.cv1")]
        readers[0][0, 0] += 0.1  # control: one weight of what reads the first rewritten conv
        assert not torch.allclose(wide, after.model(images.double())[0], rtol=1e-9, atol=1e-9)


def stir(network: torch.nn.Module) -> None:
    """Values no layer is born with, so that none hides an error: statistics, scales and shifts of every norm."""
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            for tensor, low in ((part.running_mean, -0.2), (part.running_var, 0.5), (part.bias, -0.2)):
                torch.nn.init.uniform_(tensor, low, low + 0.5)


def test_the_one_scale_detector_has_a_resnet50_and_three_bottlenecks() -> None:
    import torchvision

    _, yolo = opened("voc_shuffle")
    network = yolo.model
    resnet = torchvision.models.resnet50()
    without = sum(p.numel() for name, p in resnet.named_parameters() if not name.startswith("fc"))
    assert sum(p.numel() for layer in network.model[:5] for p in layer.parameters()) == without == 23_508_032
    assert sum(p.numel() for p in network.parameters()) == 51_810_980
    assert network.stride.tolist() == [32.0] and network.yaml["nc"] == 20 and len(network.model[5].layer) == 3
    acts = {type(m).__name__ for m in network.modules() if type(m).__module__ == "torch.nn.modules.activation"}
    assert acts == {"ReLU"}
    record = planned("voc_shuffle", "shuffled")
    assert [change.path for change in record.changes] == ["model.4.layer.2.cv2.conv", "model.4.layer.2:add:0"]
    assert record.params[0] == record.params[1] == 51_810_980


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((path.name, "YOLO") for path in sorted(ZOO.glob("*.yaml"))),
        ("yolo26n-seg.yaml", "YOLO"),
        ("rtdetr-resnet50.yaml", "RTDETR"),
        ("yolov8n-world.yaml", "YOLOWorld"),
    ],
)
def test_yamls_open_by_name_and_take_the_classes_of_the_data(name: str, kind: str) -> None:
    yolo = open_detector(name, classes=3)
    assert type(yolo).__name__ == kind and yolo.model.yaml["nc"] == 3 and yolo.model.model[-1].nc == 3
