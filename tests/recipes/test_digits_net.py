"""The digits net behaves as timm's own classifiers do."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import surgeon
from recipes.summary import macs_of
from surgeon.units import unit_paths

NAMES = ("digits_convnet", "digits_convnet_nobn")


@pytest.mark.parametrize("name", NAMES)
def test_protocol(name: str) -> None:
    model = timm.create_model(name).eval()
    images = torch.randn(2, 1, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, 4, 4)
    assert torch.equal(model.forward_head(features), model(images))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model(torch.randn(1, 1, 37, 29)).shape == (1, 10)
    assert model.get_classifier() is model.fc and model.default_cfg["input_size"] == (1, 32, 32)
    model.reset_classifier(7)
    assert model(images).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0, "max")
    assert model(images).shape == (2, model.num_features)
    assert timm.create_model(name, in_chans=3, num_classes=5)(torch.randn(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("name", NAMES)
def test_features(name: str) -> None:
    model = timm.create_model(name, features_only=True)
    for features, info in zip(model(torch.randn(1, 1, 32, 32)), model.feature_info.info, strict=True):
        assert features.shape[1] == info["num_chs"] and features.shape[2] == 32 // info["reduction"]


def test_size_and_sites() -> None:
    model = timm.create_model("digits_convnet")
    assert sum(parameter.numel() for parameter in model.parameters()) == 58_250
    kinds = [site.kind for site in surgeon.locate(model)]
    assert (kinds.count("strided_conv"), kinds.count("strided_pool")) == (2, 1)
    assert macs_of(model, (1, 32, 32)) == surgeon.plan(model, "spd").macs[0]
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in timm.create_model(name).modules()) for name in NAMES]
    assert norms == [4, 0]


def test_dropout_only_in_training() -> None:
    model, images = timm.create_model("digits_convnet_nobn", drop_rate=0.5), torch.randn(4, 1, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_the_small_vgg() -> None:
    model = timm.create_model("digits_vgg16").eval()
    sites = surgeon.locate(model)
    assert len(unit_paths(model, sites)) == sites.count("spatial_conv") == 13 and sites.count("strided_pool") == 5
    assert sum(parameter.numel() for parameter in model.parameters()) == 71_874
    images = torch.randn(2, 1, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, 32, 1, 1) and torch.equal(model.forward_head(features), model(images))
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    layers = timm.create_model("digits_vgg16", features_only=True)
    for part, info in zip(layers(images), layers.feature_info.info, strict=True):
        assert part.shape[1] == info["num_chs"] and part.shape[2] == 32 // info["reduction"]


@pytest.mark.parametrize(("last", "params"), [("31%", 39_106), ("54%", 20_162)])
def test_shares_of_the_small_vgg(last: str, params: int) -> None:
    record = surgeon.plan(timm.create_model("digits_vgg16"), {"gap_fc": {}, "select": {"last": last}})
    assert record.params[1] == params
