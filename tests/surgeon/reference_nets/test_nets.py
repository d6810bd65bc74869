"""Every reference net behaves as timm's own classifiers do."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

import surgeon
from surgeon.ops.shift_layer import SparseShift2d
from surgeon.reference_nets.fenet import FEBlock, Unit
from surgeon.reference_nets.preact import PreActBlock
from surgeon.units import unit_paths

SMALL: dict[str, dict[str, Any]] = {
    "vgg16_cifar": {"widths": (8, 8, 8, 8, 8), "fully_connected": 16},
    "vgg11_plain": {"widths": (8, 8, 8, 8, 8), "fully_connected": 0},
    "vgg13_plain": {"widths": (8, 8, 8, 8, 8), "fully_connected": 16},
    "vgg16_plain": {"widths": (8, 8, 8, 8, 8), "fully_connected": 16},
    "vgg19_plain": {"widths": (8, 8, 8, 8, 8), "fully_connected": 16},
    "resnet18_cifar": {"width": 8},
    "resnet50_cifar": {"width": 8},
    "resnet20_cifar": {},
    "resnet56_cifar": {"width": 4},
    "shiftresnet20": {},
    "shiftresnet56": {"mode": "sparse"},
    "fenet_100": {"num_classes": 10},
    "fenet_138_se_v1": {"num_classes": 10, "width": 1.0},
    "fenet_138_se_v2": {"num_classes": 10, "width": 1.0},
    "fenet_100_dw": {"num_classes": 10},
    "preact_resnet18": {"width": 8},
    "preact_resnet34_plain": {"width": 8},
    "preact_resnet50": {"width": 8},
    "preact_resnet50_plain": {"width": 8},
    "blocknet_42": {"width": 8},
    "blocknet_44": {"width": 8, "norm": True},
    "fcn": {"depth": 2, "width": 16},
}
ALL = [
    *SMALL,
    *("resnet152_cifar", "fenet_138", "fenet_138_dw", "blocknet_44"),
    *(f"preact_resnet{depth}{kind}" for depth in (18, 34, 50, 101, 152) for kind in ("", "_plain")),
]


def size_of(name: str) -> int:
    return 64 if name.startswith("fenet") else 32


@pytest.mark.parametrize("name", sorted(set(ALL)))
def test_all_are_registered_and_located(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7)
    assert model.num_classes == 7 and model.get_classifier().out_features == 7
    sites = surgeon.locate(model)
    assert name == "fcn" or len(sites) > 0


@pytest.mark.parametrize("name", SMALL)
def test_protocol(name: str) -> None:
    model, side = timm.create_model(name, **SMALL[name]).eval(), size_of(name)
    images = torch.randn(2, 3, side, side)
    features = model.forward_features(images)
    assert features.shape[1] == model.num_features
    assert torch.equal(model.forward_head(features), model(images)) and model(images).shape == (2, 10)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    for info in model.feature_info:
        assert info["module"] in dict(model.named_modules())
    model.reset_classifier(7)
    assert model(images).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    assert model(images).shape == (2, model.head_hidden_size)
    grey = timm.create_model(name, in_chans=1, **SMALL[name]).eval()
    assert grey(images[:, :1]).shape == (2, 10)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "fcn"])
def test_without_head_and_pooling(name: str) -> None:
    model, side = timm.create_model(name, **{**SMALL[name], "num_classes": 0}, global_pool="").eval(), size_of(name)
    images = torch.randn(2, 3, side, side)
    assert torch.equal(model(images), model.forward_features(images))


@pytest.mark.parametrize("name", [name for name in SMALL if name != "fcn"])
def test_features(name: str) -> None:
    side = size_of(name)
    model = timm.create_model(name, features_only=True, **SMALL[name]).eval()
    maps = model(torch.randn(1, 3, side, side))
    assert len(maps) == len(model.feature_info.channels()) > 1
    for part, channels, reduction in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert part.shape[1:] == (channels, side // reduction, side // reduction)


@pytest.mark.parametrize("name", SMALL)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = timm.create_model(name, **SMALL[name], drop_rate=0.0).double().train()
        model.set_grad_checkpointing(checkpointing)
        side = size_of(name)
        model(torch.randn(2, 3, side, side, dtype=torch.float64)).square().sum().backward()
        return [p.grad for p in model.parameters()]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("vgg16_cifar", 13),
        ("resnet50_cifar", 16),
        ("resnet152_cifar", 50),
        ("resnet20_cifar", 9),
        ("shiftresnet20", 9),
        ("blocknet_42", 8),
        ("blocknet_44", 16),
        ("preact_resnet50_plain", 16),
    ],
)
def test_units(name: str, units: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert len(unit_paths(model, surgeon.locate(model))) == units


@pytest.mark.parametrize("name", ["blocknet_42", "blocknet_44"])
def test_every_block_has_a_true_identity_skip(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    skips = [site for site in surgeon.locate(model) if site.kind == "skip"]
    assert len(skips) == 4 * len(model.feature_info) and {site.type_name for site in skips} == {"identity"}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", ["vgg19_plain", "preact_resnet152_plain", "blocknet_44"])
def test_without_norm_signals_stay_in_range(name: str) -> None:
    """No norm, no explosion: logits of random images are of the order of one, and nothing starts at zero."""
    torch.manual_seed(0)
    arguments = {"widths": (16,) * 5, "fully_connected": 64} if "vgg" in name else {"width": 16}
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        assert 1e-4 < float(model(torch.randn(8, 3, 32, 32)).std()) < 10
    weights = [p for p in model.parameters() if p.ndim > 1]
    assert all(float(p.detach().std()) > 0 for p in weights)


def test_fe_block_by_hand() -> None:
    """The last part through unit one, the last two through unit two, all through unit three (Fig. 4)."""
    torch.manual_seed(0)
    units = [Unit(2, 2, 12, residual=True), Unit(4, 4, 24, residual=True), Unit(8, 6, 48, 2)]
    block, x = FEBlock(units).eval(), torch.randn(1, 8, 6, 6)
    first = torch.cat([x[:, :6], units[0](x[:, 6:])], 1)
    second = torch.cat([first[:, :4], units[1](first[:, 4:])], 1)
    assert torch.equal(block(x), units[2](second)) and block(x).shape == (1, 6, 3, 3)


def test_shifts_and_their_twins() -> None:
    with torch.device("meta"):
        shifted, twin = timm.create_model("fenet_100"), timm.create_model("fenet_100_dw")
    layers = [m for m in shifted.modules() if isinstance(m, SparseShift2d)]
    depthwise = [m for m in twin.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.channels for m in layers] == [m.groups for m in depthwise] and sum(m.channels for m in layers) == 5344


def test_the_projection_reads_what_the_first_conv_reads() -> None:
    block = PreActBlock(4, 8, 2).eval()
    x = torch.randn(1, 4, 6, 6)
    y = torch.relu(block.norms[0](x))
    expected = block.convs[1](torch.relu(block.norms[1](block.convs[0](y)))) + block.shortcut(y)
    assert torch.allclose(block(x), expected)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("fenet_100", {"expand": "inn"}, "expand='inn' is unknown"),
        ("fenet_100", {"se": "v3"}, "se='v3' is unknown"),
        ("fenet_100", {"width": 1.1}, r"width=1.1 makes 17 channels.*use 1.125"),
        ("fenet_100", {"spatial": "dw"}, "mode='dw' is unknown"),
        ("vgg11_plain", {"global_pool": "catavgmax"}, "doubles the channels"),
        ("fcn", {"features_only": True}, "no feature maps to extract"),
    ],
)
def test_settings_that_do_not_exist(name: str, arguments: dict[str, Any], words: str) -> None:
    with torch.device("meta"), pytest.raises(surgeon.RecipeError, match=words):
        timm.create_model(name, **arguments)


def test_other_widths_and_pools_run() -> None:
    fenet = timm.create_model("fenet_100", width=1.125, last=16, num_classes=3).eval()
    assert fenet(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    vgg = timm.create_model("vgg11_plain", **SMALL["vgg11_plain"], global_pool="catavgmax").eval()
    assert vgg(torch.rand(1, 3, 32, 32)).shape == (1, 10)  # no hidden layers
    vgg = timm.create_model("vgg13_plain", **SMALL["vgg13_plain"]).eval()
    vgg.reset_classifier(4, "avgmax")
    assert vgg(torch.rand(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(surgeon.RecipeError, match="doubles the channels"):
        vgg.reset_classifier(4, "catavgmax")
