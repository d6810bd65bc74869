"""The page of all names is up to date, and every name is configured as timm expects."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

import surgeon
from surgeon.units import unit_paths
from tests.surgeon.reference_nets.catalogue import PAGE, names, page

SETTINGS: dict[str, dict[str, Any]] = {
    "vgg16_cifar": {"widths": (8, 8, 8, 8, 8), "fully_connected": 16},
    "blocknet_42": {"width": 8},
}
ASKED = [
    "vgg16_cifar",
    "resnet18_cifar",
    "resnet50_cifar",
    "resnet152_cifar",
    "resnet20_cifar",
    "resnet56_cifar",
    "shiftresnet20",
    "shiftresnet56",
    "fenet_100",
    "fenet_138",
    "fenet_138_se_v1",
    "fenet_138_se_v2",
    "fenet_100_dw",
    "fenet_138_dw",
    "fcn",
    "vgg11_plain",
    "vgg13_plain",
    "vgg16_plain",
    "vgg19_plain",
    "blocknet_42",
    "blocknet_44",
]


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_no_name_is_missing() -> None:
    assert set(ASKED) <= set(names()) and len(names()) == len(set(names()))
    assert all(timm.is_model(name) for name in names())


@pytest.mark.parametrize("name", names())
def test_configuration(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, in_chans=1)
    modules, config = dict(model.named_modules()), model.default_cfg
    side = 224 if name.startswith("fenet") else 32
    assert config["input_size"] == (3, side, side) and model.in_chans == 1
    first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert modules[config["first_conv"]] is first
    assert modules[config["classifier"]] is model.get_classifier()
    model.reset_classifier(5, "max")
    assert model.get_classifier().out_features == model.num_classes == 5
    assert name == "fcn" or model.global_pool.pool_type == "max"


@pytest.mark.parametrize("name", ["resnet20_cifar", "shiftresnet20", "fenet_100", "vgg16_cifar", "blocknet_42"])
def test_chosen_features(name: str) -> None:
    images, settings = torch.randn(1, 3, 64, 64), SETTINGS.get(name, {})
    depths = timm.create_model(name, features_only=True, **settings).eval().feature_info.info
    model = timm.create_model(name, features_only=True, out_indices=(0, -1), **settings).eval()
    for part, info in zip(model(images), (depths[0], depths[-1]), strict=True):
        assert part.shape[1:] == (info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])


def test_there_are_no_weights_to_load() -> None:
    with pytest.raises(RuntimeError):
        timm.create_model("resnet20_cifar", pretrained=True)


@pytest.mark.parametrize(("name", "units"), [("resnet18_cifar", 8), ("resnet56_cifar", 27), ("shiftresnet56", 27)])
def test_units(name: str, units: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert len(unit_paths(model, surgeon.locate(model))) == units


@pytest.mark.parametrize("name", ["shiftresnet20", "shiftresnet56"])
def test_printed_operations_leave_the_stem_out(name: str) -> None:
    """53.48M and 166.72M are twice the multiply-adds without the stem conv (16 channels, 27 weights each)."""
    with torch.device("meta"):
        model = timm.create_model(name)
    macs = surgeon.tracing.record_forward(model, [(3, 32, 32)]).macs() - 32 * 32 * 16 * 27
    assert round(2 * macs / 1e6, 2) == {"shiftresnet20": 53.48, "shiftresnet56": 166.72}[name]
