"""Layers that read an edge whose channels grow: the new channels count nothing at first, whatever they hold."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, StdConv2d
from torch import Tensor, nn

import surgeon
from surgeon.ops.widening import THROUGH, Growth, widen_conv, widen_linear, widen_norm
from tests.contracts import images, relative, stir

X = images((37, 50))


def grown(x: Tensor, growth: Growth, seed: int = 0) -> Tensor:
    """``x`` with the channels of ``growth``: the old ones where they are primary, anything elsewhere."""
    noise = torch.randn(x.shape[0], len(growth.source), *x.shape[2:], generator=torch.Generator().manual_seed(seed))
    primary = torch.tensor(growth.primary).view(1, -1, *[1] * (x.ndim - 2))
    return torch.where(primary, x[:, list(growth.source)], noise.to(x.dtype))


def test_growth_of_blocks_and_of_nothing() -> None:
    assert Growth.of_blocks(2, 3) == Growth((0, 0, 0, 1, 1, 1), (True, False, False, True, False, False))
    assert Growth.none(2) == Growth((0, 1), (True, True)) == Growth.of_blocks(2, 1)


def test_growth_along_a_concatenation() -> None:
    both = Growth.of_blocks(2, 2).then(Growth.none(1)).then(Growth.of_blocks(1, 2))
    assert both == Growth((0, 0, 1, 1, 2, 3, 3), (True, False, True, False, True, True, False))


GROWTHS = {
    "blocks": Growth.of_blocks(6, 4),
    "behind": Growth.none(2).then(Growth.of_blocks(4, 4)),
    "between": Growth.of_blocks(1, 9).then(Growth.none(3)).then(Growth.of_blocks(2, 2)),
}


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(6, 8, (1, 3), bias=False, padding_mode="reflect", padding=(0, 1))]
)
def test_convs_ignore_what_is_new(layer: nn.Conv2d, growth: Growth) -> None:
    x, old = images((9, 11), channels=6, dtype=torch.float32), layer.weight.detach().clone()
    wide = widen_conv(growth, layer)
    assert torch.allclose(wide(grown(x, growth)), layer(x), atol=1e-6) and wide.in_channels == len(growth.source)
    assert torch.equal(layer.weight, old) and layer.in_channels == 6 and wide.bias is layer.bias
    with torch.no_grad():
        wide.weight[:, growth.primary.index(False)] += 1
    assert not torch.allclose(wide(grown(x, growth)), layer(x), atol=1e-2)


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_grouped_convs_keep_their_groups(groups: int) -> None:
    growth, x = GROWTHS["blocks"], images((9, 11), channels=6, dtype=torch.float32)
    layer = nn.Conv2d(6, 12, 3, 1, 1, groups=groups)
    wide = widen_conv(growth, layer)
    assert wide.weight.shape == (12, 24 // groups, 3, 3) and wide.groups == groups
    assert torch.allclose(wide(grown(x, growth)), layer(x), atol=1e-6)


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_linear_layers_ignore_what_is_new(growth: Growth) -> None:
    x, layer = torch.rand(5, 6), nn.Linear(6, 3)
    wide = widen_linear(growth, layer)
    assert torch.allclose(wide(grown(x, growth)), layer(x), atol=1e-6) and wide.in_features == len(growth.source)
    assert layer.weight.shape == (3, 6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, track_running_stats=False),
     BatchNormAct2d(6)],
    ids=["plain", "no scale", "no statistics", "timm"],
)  # fmt: skip
def test_norms_treat_each_channel_as_before(layer: nn.Module, growth: Growth, training: bool) -> None:
    stir(layer).train(training)
    x = images((9, 11), channels=6, dtype=torch.float32)
    wide = widen_norm(growth, layer)
    old, new = layer(x), wide(grown(x, growth))
    assert torch.allclose(new[:, list(growth.primary)], old, atol=1e-5) and wide.num_features == len(growth.source)
    assert layer.num_features == 6 and type(wide) is type(layer)
    assert {name: b.dtype for name, b in wide.named_buffers()} == {name: b.dtype for name, b in layer.named_buffers()}
    held = {id(t) for t in [*layer.parameters(), *layer.buffers()]}
    assert not held & {id(t) for t in [*wide.parameters(), *wide.buffers()]}


@pytest.mark.parametrize("make", [widen_conv, widen_linear, widen_norm], ids=lambda make: make.__name__)
@pytest.mark.parametrize("trainable", [True, False])
def test_widened_tensors_carry_precision_and_freezing(make: Any, trainable: bool) -> None:
    kinds = {widen_conv: nn.Conv2d(6, 4, 3), widen_linear: nn.Linear(6, 4), widen_norm: nn.BatchNorm2d(6)}
    layer = kinds[make].double().requires_grad_(trainable).eval()
    wide = make(GROWTHS["behind"], layer)
    assert {(p.dtype, p.requires_grad) for p in wide.parameters()} == {(torch.float64, trainable)}
    assert not wide.training


def test_widened_kernels_keep_their_memory_format() -> None:
    layer = nn.Conv2d(6, 4, 3).to(memory_format=torch.channels_last)
    wide = widen_conv(GROWTHS["blocks"], layer)
    assert wide.weight.is_contiguous(memory_format=torch.channels_last) and not wide.weight.is_contiguous()


class Own(nn.Module):
    """A strided conv, a function, a conv."""

    def __init__(self, between: Callable[[Tensor], Tensor], reads: nn.Module | None = None) -> None:
        super().__init__()
        self.down, self.between = nn.Conv2d(3, 4, 3, 2, 1), between
        self.reads = nn.Conv2d(4, 5, 3, 1, 1) if reads is None else reads

    def forward(self, x: Tensor) -> Tensor:
        return self.reads(self.between(self.down(x)))


def operate(model: nn.Module, before: str) -> tuple[nn.Module, nn.Module]:
    old = stir(model.double()).eval()
    new = surgeon.apply(
        copy.deepcopy(old), {"spd": {"order": "conv-spd", "before": before}, "select": {"path": "down"}}, 64
    )
    return old, new


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "max_pool2d": (3, 2, 1),
    "avg_pool2d": (3, 2, 1),
    "adaptive_avg_pool2d": (5,),
    "adaptive_max_pool2d": (5,),
    "clamp": (-0.3, 0.4),
    "interpolate": (None, 1.5),
    "to": (torch.float64,),
    "dropout": (0.5, False),
    "dropout2d": (0.5, False),
}


def function_of(name: str) -> Callable[..., Any]:
    return next(getattr(home, name) for home in (F, Tensor) if hasattr(home, name))


@pytest.mark.parametrize("before", ["consumer", "norm"])
@pytest.mark.parametrize("name", sorted(THROUGH - {"max_pool2d_with_indices"}))
def test_every_function_growth_passes_through_is_exact(name: str, before: str) -> None:
    function, arguments = function_of(name), ARGUMENTS.get(name, ())
    old, new = operate(Own(lambda x: function(x, *arguments).to(x.dtype)), before)
    tolerance = 1e-6 if name == "float" else 1e-12
    for size in ((37, 50), (64, 64)):
        assert relative(old(images(size)).detach(), new(images(size)).detach()) < tolerance
    assert new.reads.in_channels == 16


@pytest.mark.parametrize("before", ["consumer", "norm"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.ReLU(inplace=True), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.Hardtanh(), nn.Softplus(), nn.Sigmoid(),
        nn.ELU(),
        nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.LPPool2d(2, 2),
        nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(3), nn.ZeroPad2d(1), nn.ConstantPad2d(1, 1.0), nn.Dropout2d(),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Identity(), nn.BatchNorm2d(4), BatchNormAct2d(4),
        nn.BatchNorm2d(4, track_running_stats=False), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
    ],
    ids=repr,
)  # fmt: skip
def test_every_layer_growth_passes_through_is_exact_or_refused(layer: nn.Module, before: str) -> None:
    model = Own(nn.Identity())
    model.between = layer
    if isinstance(layer, nn.LPPool2d):
        with pytest.raises(surgeon.RefusedError, match=r"is read by 'between' \(LPPool2d\), which cannot be widened"):
            operate(model, before)
        return
    old, new = operate(model, before)
    for size in ((37, 50), (64, 64)):
        assert relative(old(images(size)).detach(), new(images(size)).detach()) < 1e-12


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.PReLU(4), r"'between' \(PReLU\), which cannot be widened"),
        (nn.GroupNorm(2, 4), r"'between' \(GroupNorm\)"),
        (nn.InstanceNorm2d(4), r"'between' \(InstanceNorm2d\)"),
        (nn.LocalResponseNorm(2), r"'between' \(LocalResponseNorm\)"),
        (nn.Softmax2d(), r"'between' \(Softmax2d\)"),
        (nn.ReflectionPad2d(1), r"'between' \(ReflectionPad2d\)"),
        (nn.ConvTranspose2d(4, 4, 2), r"'between' \(ConvTranspose2d\)"),
        (StdConv2d(4, 4, 3, 1, 1), r"'between' \(StdConv2d\)"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(25 * 19, 4), nn.Unflatten(2, (2, 2))), "'between.0' \\(Flatten\\)"),
        (nn.ChannelShuffle(2), r"'between' \(ChannelShuffle\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_mix_channels_are_refused(layer: nn.Module, words: str) -> None:
    model = Own(nn.Identity())
    model.between = layer
    with pytest.raises(surgeon.RefusedError, match=f"'down' is read by {words}"):
        surgeon.apply(model, {"spd": {"order": "conv-spd"}, "select": {"path": "down"}}, (37, 50))


@pytest.mark.parametrize(
    "code",
    [
        lambda x: F.channel_shuffle(x, 2),
        lambda x: x[:, [1, 0, 2, 3]],
        lambda x: x.flip(1),
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: x.softmax(1),
        lambda x: x + torch.arange(4, dtype=x.dtype).view(1, 4, 1, 1),
        lambda x: x + x.mean(1, keepdim=True),
        lambda x: F.layer_norm(x, x.shape[1:]),
        lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
        lambda x: torch.cumsum(x, 1),
    ],
)
def test_functions_that_mix_channels_are_refused(code: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(surgeon.RefusedError, match="'down' is read by '"):
        operate(Own(code), "consumer")


def test_readers_with_hooks_or_computed_weights_are_refused() -> None:
    hooked, computed = Own(nn.Identity()), Own(nn.Identity())
    hooked.reads.register_forward_hook(lambda *_: None)
    nn.utils.parametrizations.weight_norm(computed.reads)
    for model, words in ((hooked, "'reads', which carries hooks"), (computed, "'reads', which is parametrized")):
        with pytest.raises(surgeon.RefusedError, match=f"is read by {words}"):
            operate(model, "consumer")


def test_a_reader_of_other_features_too_is_refused() -> None:
    class Two(Own):
        def forward(self, x: Tensor) -> Tensor:
            return self.reads(self.down(x)).mean((2, 3)) + self.reads(x[:, [0, 1, 2, 0]]).mean((2, 3))

    with pytest.raises(surgeon.RefusedError, match="is read by 'reads', which also reads other features"):
        operate(Two(nn.Identity()), "consumer")
