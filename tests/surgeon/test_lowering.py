"""Lowered models compute what trained ones do, at every size, in standard layers; what stays is listed."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from tests.contracts import Snapshot, images, relative, stir
from tests.zoo import PlainNet

SIZES = [(64, 64), (77, 90), (63, 38)]
RECIPES = {
    "spd": "spd",
    "minimal, full": {"spd": {"kernel": "minimal", "pool_conv": "full"}},
    "conv-spd": {"spd": {"order": "conv-spd"}},
    "before the norm": {"spd": {"order": "conv-spd", "before": "norm"}},
}


def trained(model: nn.Module, recipe: Any) -> nn.Module:
    """Operated, and every weight moved, those that start at zero too."""
    operated = surgeon.apply(model.double(), recipe, 64)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in operated.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.05)
    return operated.eval()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", ["plain", "test_resnet", "test_efficientnet", "test_nfnet", "densenet121"])
def test_the_same_function_at_every_size(name: str, recipe: Any) -> None:
    model = trained(PlainNet() if name == "plain" else timm.create_model(name, num_classes=4), recipe)
    before = Snapshot.of(model)
    lowered = surgeon.lower(model)
    assert before.differences(Snapshot.of(model)) == []
    for size in SIZES:
        assert relative(model(images(size)).detach(), lowered(images(size)).detach()) < 1e-10
    listed = {change.path for change in surgeon.record(lowered).changes if change.status == "refused"}
    stays = {path for path, m in lowered.named_modules() if type(m).__module__.startswith("surgeon.")}
    assert {path for path in stays if not any(path.startswith(p) for p in listed)} == set()


def test_every_spd_conv_becomes_one_strided_conv() -> None:
    model = trained(PlainNet(), {"spd": {"pool": "keep"}})
    lowered = surgeon.lower(model)
    assert surgeon.record(lowered).count("rewritten") == 3 and surgeon.record(lowered).count("refused") == 0
    assert {type(m) for m in lowered.modules() if not list(m.children())} <= {
        nn.Conv2d, nn.ZeroPad2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Linear
    }  # fmt: skip
    assert [c.macs for c in surgeon.record(lowered).changes if c.macs[1] == 0] == []


def test_untrained_layers_become_what_they_were() -> None:
    model = PlainNet().eval()
    lowered = surgeon.lower(surgeon.apply(copy.deepcopy(model), "spd", 64))
    assert type(lowered.pool) is nn.MaxPool2d
    assert torch.allclose(lowered(images(64, dtype=torch.float32)), model(images(64, dtype=torch.float32)), atol=1e-5)


class Between(nn.Module):
    """An activation between space-to-depth and the conv that reads it."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.down, self.function, self.conv = nn.Conv2d(3, 4, 3, 2, 1), function, nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.function(self.down(x)))


@pytest.mark.parametrize(("function", "folds"), [(F.relu, True), (F.silu, True), (torch.sigmoid, False)])
def test_functions_of_zero_that_are_not_zero_stay_in_the_way(function: Any, folds: bool) -> None:
    model = trained(Between(function), RECIPES["conv-spd"])
    lowered = surgeon.lower(model)
    (change,) = surgeon.record(lowered).changes
    assert change.status == ("rewritten" if folds else "refused")
    assert folds or "space-to-depth is read by 'sigmoid', which is no plain conv" in change.reason
    for size in SIZES:
        assert relative(model(images(size)).detach(), lowered(images(size)).detach()) < 1e-12


def test_what_cannot_fold_says_so() -> None:
    pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), pool), "spd")
    (change,) = surgeon.record(surgeon.lower(model)).changes
    assert change.status == "refused" and "no standard layer that is equal at every input size" in change.reason


class Reads(nn.Module):
    """Code that uses the size of a map between space-to-depth and its reader."""

    def __init__(self, code: Any) -> None:
        super().__init__()
        self.down, self.conv, self.side = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(3, 4, 1)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        edge = self.down(x)
        return self.code(self, x, edge, self.conv(edge))


@pytest.mark.parametrize(
    "code",
    [
        lambda net, x, edge, y: y + F.interpolate(net.side(x), size=edge.shape[2:]),
        lambda net, x, edge, y: y / edge.shape[2],
        lambda net, x, edge, y: y + torch.ones(edge.shape[-2:], dtype=y.dtype),
    ],
)
def test_a_size_that_code_reads_stays(code: Any) -> None:
    old = Reads(code).double().eval()
    model = trained(copy.deepcopy(old), RECIPES["conv-spd"])
    lowered = surgeon.lower(model)
    (change,) = surgeon.record(lowered).changes
    assert change.status == "refused" and change.reason == "code of the model reads the size of its output"
    for size in SIZES:
        assert torch.equal(model(images(size)), lowered(images(size)))


def test_modes_stay() -> None:
    model = timm.create_model("test_resnet", features_only=True, feature_cls="fx").eval()
    model = trained(model, "spd")
    lowered = surgeon.lower(model)
    assert not any(m.training for m in lowered.modules())
    for a, b in zip(model(images(64)), lowered(images(64)), strict=True):
        assert relative(a.detach(), b.detach()) < 1e-10
    model.train()
    model.graph_module.bn1.eval()
    lowered = surgeon.lower(model)
    assert lowered.training and lowered.graph_module.conv1.training and not lowered.graph_module.bn1.training


def test_the_copy_is_for_inference() -> None:
    lowered = surgeon.lower(trained(PlainNet(), "spd"))
    with pytest.raises(surgeon.RefusedError, match="cannot undo"):
        surgeon.undo(lowered)


def test_a_functional_pool_is_lowered_in_its_owner() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(self.conv(x), 2)

    model = trained(Functional(), "spd")
    lowered = surgeon.lower(model)
    assert surgeon.record(lowered).count("rewritten") == 2
    for size in SIZES:
        assert relative(model(images(size)).detach(), lowered(images(size)).detach()) < 1e-12
    assert stir(lowered) is lowered
