"""The released layout: what reads a widened edge, where space-to-depth goes, what is refused and why."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from tests.contracts import images, relative, stir

X = images((37, 50))


class Own(nn.Module):
    """A strided conv, then the code given, with layers at hand."""

    def __init__(self, code: Callable[["Own", Tensor], Tensor]) -> None:
        super().__init__()
        self.down, self.code = nn.Conv2d(3, 4, 3, 2, 1), code
        self.norm, self.conv, self.wide = nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, 1, 1), nn.Conv2d(8, 5, 1)
        self.grouped, self.gate, self.head = nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, self.down(x))


def operate(code: Callable[[Own, Tensor], Tensor], before: str = "consumer") -> tuple[Own, Own]:
    model = stir(Own(code).double()).eval()
    old = copy.deepcopy(model)
    recipe = {"spd": {"order": "conv-spd", "before": before}, "select": {"path": "down"}}
    surgeon.apply(model, recipe, 64)
    return old, model


@pytest.mark.parametrize("before", ["consumer", "norm"])
@pytest.mark.parametrize(
    ("code", "readers"),
    [
        (lambda net, x: net.conv(x), ["conv"]),
        (lambda net, x: net.conv(F.relu(net.norm(x))), ["conv"]),
        (lambda net, x: net.conv(F.relu(input=net.norm(x))), ["conv"]),
        (lambda net, x: net.conv(F.max_pool2d(F.silu(x), 3, 1, 1)), ["conv"]),
        (lambda net, x: net.wide(torch.cat([x, net.norm(x)], 1)), ["wide"]),
        (lambda net, x: net.wide(torch.cat(tensors=[x, x], dim=1)), ["wide"]),
        (lambda net, x: net.conv(x) + net.wide(torch.cat([x, x], 1)), ["conv", "wide"]),
        (lambda net, x: net.grouped(x), ["grouped"]),
        (lambda net, x: net.head(x.mean((2, 3))), ["head"]),
        (lambda net, x: net.head(F.adaptive_avg_pool2d(x, 1).flatten(1)), ["head"]),
        (lambda net, x: net.conv(x + F.relu(x)), ["conv"]),
    ],
)
def test_readers_are_widened_and_the_function_stays(code: Any, readers: list[str], before: str) -> None:
    old, new = operate(code, before)
    assert relative(old(X).detach(), new(X).detach()) < 1e-12
    for name in readers:
        layer = new.get_submodule(name)
        each = layer.weight.shape[1] // old.get_submodule(name).weight.shape[1]
        assert (
            each == 4
            and layer.weight.detach().view(len(layer.weight), -1, 4, *layer.weight.shape[2:])[:, :, 1:].abs().max() == 0
        )
    assert new.down.stride == (1, 1)
    with torch.no_grad():
        new.get_submodule(readers[0]).weight.add_(0.01)  # the new channels are alive
    assert relative(old(X).detach(), new(X).detach()) > 1e-6


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (lambda net, x: x, "reaches the model's output"),
        (lambda net, x: net.conv(x + net.gate(x)), "is read by 'add' in 'the model', which needs the channels it had"),
        (lambda net, x: net.conv(x * net.gate(x)), "is read by 'mul'"),
        (lambda net, x: net.conv(x.softmax(1)), "is read by 'softmax'"),
        (lambda net, x: net.conv(x) * net.conv.weight.mean(), "'conv.weight' is read by other code too"),
        (lambda net, x: net.head(x.permute(0, 2, 3, 1)), "is read by 'permute'"),
    ],
)
def test_what_cannot_be_widened_is_refused(code: Any, words: str) -> None:
    with pytest.raises(surgeon.RefusedError, match=words):
        operate(code)


@pytest.mark.parametrize(
    "code",
    [
        lambda net, x: net.conv(x) / x.shape[1],
        lambda net, x: net.conv(F.relu(x)) * x.size(1) ** -0.5,
        lambda net, x: net.conv(x).relu() if x.shape[1] < 5 else net.conv(x).sigmoid(),
    ],
)
@pytest.mark.parametrize("before", ["consumer", "norm"])
def test_code_that_reads_the_number_of_channels_is_refused(code: Any, before: str) -> None:
    with pytest.raises(surgeon.RefusedError, match="'down': the code of 'Own' reads a size that would change"):
        operate(code, before)


def test_code_that_reads_other_sizes_is_not() -> None:
    old, new = operate(lambda net, x: net.conv(x) * x.shape[2] / x.shape[0])
    assert relative(old(X).detach(), new(X).detach()) < 1e-12


def test_residual_networks_widen_what_they_can() -> None:
    model = timm.create_model("resnet18", num_classes=4)
    surgeon.apply(model, {"spd": {"order": "conv-spd"}}, 64)
    found = {c.path: (c.status, c.reason) for c in surgeon.record(model).changes}
    assert found["layer2.0.conv1"][0] == "rewritten" and "readers widened" in found["layer2.0.conv1"][1]
    status, reason = found["layer2.0.downsample.0"]
    assert status == "refused" and "is read by 'add' in 'layer2.0'" in reason


def test_a_concatenating_network_is_widened_through() -> None:
    old = stir(timm.create_model("densenet121", num_classes=4).double()).eval()
    model = copy.deepcopy(old)
    surgeon.apply(model, {"spd": {"order": "conv-spd"}}, 64)
    assert surgeon.record(model).count("refused") == 0
    first = model.features.denseblock1.denselayer1.conv1
    assert first.in_channels == 4 * old.features.denseblock1.denselayer1.conv1.in_channels
    assert model.features.transition1.norm.num_features > old.features.transition1.norm.num_features
    assert relative(old(images(64)).detach(), model(images(64)).detach()) < 1e-10


def test_timms_facts_follow() -> None:
    old = stir(timm.create_model("regnetx_002", num_classes=4).double()).eval()
    model = surgeon.apply(copy.deepcopy(old), {"spd": {"order": "conv-spd"}, "select": {"path": "stem*"}}, 64)
    assert [e["num_chs"] for e in model.feature_info][:2] == [
        4 * old.feature_info[0]["num_chs"],
        old.feature_info[1]["num_chs"],
    ]
    surgeon.undo(model)
    assert model.feature_info == old.feature_info


def test_training_starts_as_the_same_function_before_the_norm_only() -> None:
    gaps = {}
    for before in ("norm", "consumer"):
        old, new = operate(lambda net, x: net.conv(F.relu(net.norm(x))), before)
        gaps[before] = relative(old.train()(X).detach(), new.train()(X).detach())
    assert gaps["norm"] < 1e-12 and gaps["consumer"] > 1e-3


def test_the_record_says_what_changes_in_training() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    (change,) = surgeon.plan(model, {"spd": {"order": "conv-spd"}}, 64).changes
    assert "in training the norm sees 4 times the positions" in change.reason


def test_a_norm_of_the_batch_itself_is_not_passed() -> None:
    """Its statistics over four times the positions would be others, also in evaluation."""
    old, new = operate(lambda net, x: net.conv(F.relu(net.norm(x))))
    assert hasattr(new.norm, "surgeon_after")
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = stir(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), norm, nn.ReLU(), nn.Conv2d(4, 4, 1)).double()).eval()
    old = copy.deepcopy(model)
    surgeon.apply(model, {"spd": {"order": "conv-spd"}}, 64)
    assert hasattr(model[0], "surgeon_after") and model[1].num_features == 16
    assert relative(old(X).detach(), model(X).detach()) < 1e-12
    assert relative(old.train()(X).detach(), model.train()(X).detach()) < 1e-12
    assert "in training" not in surgeon.record(model).changes[0].reason


def test_without_a_norm_nothing_is_said_of_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    (change,) = surgeon.plan(model, {"spd": {"order": "conv-spd"}}, 64).changes
    assert change.reason == "stride-1 conv, space-to-depth(2) before the consumer, 1 readers widened"


def test_steps_after_one_another_widen_twice() -> None:
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    old = stir(nn.Sequential(*layers).double()).eval()
    model = surgeon.apply(copy.deepcopy(old), {"spd": {"order": "conv-spd"}}, 64)
    assert [layer.in_channels for layer in model if isinstance(layer, nn.Conv2d)] == [3, 16, 16]
    assert relative(old(X).detach(), model(X).detach()) < 1e-12
