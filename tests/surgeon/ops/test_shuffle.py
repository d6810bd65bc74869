"""Shuffles: which positions move, what is shared and what is redrawn, streams, gradients, and where they are put in."""

import copy
import io
from typing import Any

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import surgeon
from surgeon.ops.drawing import average_outputs, rewind
from surgeon.ops.shuffle_layers import ChannelShuffle2d, SpatialShuffle2d, draw_positions, permute
from tests.contracts import images, operate, rewritten
from tests.zoo import FAMILIES, PlainNet

X = torch.arange(2 * 3 * 6 * 8.0).reshape(2, 3, 6, 8)


def cells(x: Tensor, patch: int) -> list[list[float]]:
    """The sorted values of every cell of every channel of the first image."""
    _, channels, height, width = x.shape
    return [
        sorted(x[0, c, i : i + patch, j : j + patch].flatten().tolist())
        for c in range(channels)
        for i in range(0, height, patch)
        for j in range(0, width, patch)
    ]


@pytest.mark.parametrize("patch", [2, 3, 4, 5, 6, 8, 50])
def test_positions_stay_in_their_cell(patch: int) -> None:
    y = SpatialShuffle2d(patch)(X)
    assert cells(y, patch) == cells(X, patch) and not torch.equal(y, X)
    if patch < 5:
        assert cells(SpatialShuffle2d(None)(X), patch) != cells(X, patch)


def test_a_patch_as_large_as_the_map_is_a_spatial_shuffle() -> None:
    assert torch.equal(SpatialShuffle2d(8, seed=3)(X), SpatialShuffle2d(None, seed=3)(X))
    assert not torch.equal(SpatialShuffle2d(4, seed=3)(X), SpatialShuffle2d(None, seed=3)(X))


def test_each_channel_by_itself_all_images_alike() -> None:
    same = torch.arange(48.0).reshape(1, 1, 6, 8).expand(2, 3, 6, 8)
    y = SpatialShuffle2d()(same)
    assert torch.equal(y[0], y[1]) and not torch.equal(y[0, 0], y[0, 1])


def test_every_position_is_as_likely_as_any_other() -> None:
    """Of 9 positions, each of 4,000 draws lands where it lands: chi-squared with 8 degrees of freedom, at 1 in 10^6."""
    order = draw_positions(4000, 3, 3, None, torch.Generator().manual_seed(0))
    counts = torch.stack([torch.bincount(order[:, i], minlength=9) for i in range(9)])
    expected = 4000 / 9
    assert float(((counts - expected) ** 2 / expected).sum(1).max()) < 42.7
    edge = draw_positions(4000, 5, 3, 3, torch.Generator().manual_seed(0))[:, 9:]
    counts = torch.bincount(edge[:, 0] - 9, minlength=6)
    assert float(((counts - 4000 / 6) ** 2 / (4000 / 6)).sum()) < 37.4


def test_channels_change_places_everywhere_alike() -> None:
    y = ChannelShuffle2d()(torch.arange(12.0).reshape(1, 12, 1, 1).expand(2, 12, 4, 4))
    order = y[0, :, 0, 0]
    assert sorted(order.tolist()) == list(range(12)) and order.tolist() != list(range(12))
    assert torch.equal(y, order[None, :, None, None].expand(2, 12, 4, 4))


LAYERS = {"spatial": SpatialShuffle2d, "channel": ChannelShuffle2d}


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_drawn_anew_in_each_pass_and_in_two_streams(build: Any) -> None:
    x = torch.rand(1, 16, 5, 5)

    def passes(layer: nn.Module, modes: str) -> list[Tensor]:
        return [layer.train(mode == "t")(x) for mode in modes]

    t1, t2, e1, e2 = passes(build(seed=1), "ttee")
    assert not any(torch.equal(a, b) for a, b in ((t1, t2), (e1, e2), (t1, e1), (t2, e2)))
    again = passes(build(seed=1), "teet")  # evaluating in between changes no training draw
    assert all(torch.equal(a, b) for a, b in zip(again, (t1, e1, e2, t2), strict=True))
    assert not torch.equal(build(seed=2)(x), t1)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = torch.get_rng_state()
        build(seed=1)(x)
        assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(
    ("when", "shuffled"), [("train", (True, False)), ("eval", (False, True)), ("both", (True, True))]
)
def test_when(build: Any, when: Any, shuffled: tuple[bool, bool]) -> None:
    layer, x = build(when=when), torch.rand(1, 16, 5, 5)
    assert tuple(not torch.equal(layer.train(mode)(x), x) for mode in (True, False)) == shuffled


@pytest.mark.parametrize("layer", [SpatialShuffle2d(), SpatialShuffle2d(3), ChannelShuffle2d()], ids=str)
def test_gradients_go_where_the_values_came_from(layer: nn.Module) -> None:
    x = torch.rand(2, 4, 5, 7, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        rewind(layer)
        return layer(x)

    torch.autograd.gradcheck(function, x)
    torch.autograd.gradgradcheck(function, x)
    y = function(x)
    (gradient,) = torch.autograd.grad((y * y.detach()).sum(), x)
    assert torch.equal(gradient, x)


def test_permuting_by_a_fixed_order() -> None:
    order = torch.tensor([[2, 0, 1]])
    assert permute(torch.tensor([[[10.0, 20.0, 30.0]]]), order).tolist() == [[[30.0, 10.0, 20.0]]]


# in models


@pytest.mark.parametrize("name", ["spatial_shuffle", "patch_shuffle", "channel_shuffle"])
def test_what_the_conv_reads_and_what_the_skip_adds(name: str) -> None:
    """In a block whose layers are the identity, what comes out is a shuffled image plus one shuffled otherwise."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
            nn.init.dirac_(self.conv.weight, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + x

    model = nn.Sequential(nn.Conv2d(8, 8, 1), Block(), nn.Flatten()).eval()
    nn.init.dirac_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    surgeon.apply(model, name, (8, 6, 6))
    x = torch.rand(1, 8, 6, 6)
    block = model[1]
    branch, skip = block.conv.surgeon_before, block.get_submodule("surgeon_skip_add_0_")
    y = model(x).view(1, 8, 6, 6)
    rewind(model)
    first, second = branch(x), skip(x)
    assert torch.allclose(y, first + second) and not torch.equal(first, second)
    assert not torch.equal(first, x) and not torch.equal(second, x)


@pytest.mark.parametrize("entry", FAMILIES, ids=str)
def test_residual_families_are_shuffled_on_their_skips(entry: Any) -> None:
    model = entry.build()
    skips = [s for s in surgeon.locate(model, entry.size) if s.kind == "skip" and len(s.out_shape) == 3]
    convs = [s for s in surgeon.locate(model, entry.size) if max(s.kernel_size or (1,)) > 1 and "conv" in s.kind]
    if not convs:
        pytest.skip("no spatial convs")
    operate(model, "spatial_shuffle", entry.size)
    done = {change.path for change in rewritten(model)}
    assert {s.path for s in convs if s.via == "module"} <= done
    if entry.name not in ("swin_tiny_patch4_window7_224", "levit_128s"):  # channels last, tokens
        assert {s.path for s in skips} <= done
    model(images(entry.size, dtype=torch.float32)[:1])


def test_nothing_else_of_the_model_moves() -> None:
    model = timm.create_model("resnet18", num_classes=4).eval()
    names = [name for name, _ in model.named_parameters()]
    x, plain = images(64, dtype=torch.float32), model(images(64, dtype=torch.float32))
    surgeon.apply(model, {"spatial_shuffle": {"when": "train"}, "select": {"last": "50%"}}, 64)
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(model(x), plain) and not torch.equal(model.train()(x), model(x))
    assert (
        isinstance(model.layer4[0], timm.models.resnet.BasicBlock) and type(model.layer4[0].conv1).__name__ == "Conv2d"
    )


def test_the_image_itself() -> None:
    model = PlainNet().eval()
    surgeon.apply(model, {"patch_shuffle": {"patch": 4}, "select": {"path": "stem.0"}}, 64)
    seen: list[Tensor] = []
    model.stem[0].surgeon_before.register_forward_hook(lambda _m, i, o: seen.extend((i[0], o)))
    x = images(64, dtype=torch.float32)
    model(x)
    assert torch.equal(seen[0], x) and cells(seen[1], 4) == cells(x, 4) and not torch.equal(seen[1], x)


def test_copies_states_and_averages_go_on_alike() -> None:
    model = surgeon.apply(PlainNet(), "spatial_shuffle", 64).train()
    x = images(64, dtype=torch.float32)
    ema = ModelEmaV3(model)
    for _ in range(3):
        model(x)
    state, twin = io.BytesIO(), copy.deepcopy(model)
    torch.save(model.state_dict(), state)
    fresh = surgeon.apply(PlainNet(), "spatial_shuffle", 64).train()
    fresh.load_state_dict(torch.load(io.BytesIO(state.getvalue())))
    y = model(x)
    assert torch.equal(twin(x), y) and torch.equal(fresh(x), y) and not torch.equal(model(x), y)
    ema.update(model)
    assert ema.module(x).shape == y.shape


def test_checkpointing_repeats_the_draw() -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=4).double().train()
        surgeon.apply(model, {"spatial_shuffle": {}, "select": {"last": 2}}, 64)
        model.set_grad_checkpointing(checkpointing)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
        for _ in range(2):
            model(images(64)).square().sum().backward()
        return [p.grad for p in model.parameters()]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-10, atol=1e-12)


def test_average_outputs() -> None:
    model = surgeon.apply(PlainNet(), "spatial_shuffle", 64).eval()
    x = images(64, dtype=torch.float32)
    rewind(model)
    single = torch.stack([model(x) for _ in range(4)]).detach()
    rewind(model)
    mean, spread = average_outputs(model, x, 4)
    assert torch.allclose(mean, single.mean(0)) and torch.allclose(spread, single.std(0)) and (spread > 0).any()
    with pytest.raises(surgeon.errors.AnalysisError, match="passes is 1"):
        average_outputs(model, x, 1)


def test_exporting_a_drawing_mode_is_refused() -> None:
    x = (images(64, dtype=torch.float32),)
    model = surgeon.apply(PlainNet(), {"spatial_shuffle": {"when": "train"}}, 64).eval()
    program = torch.export.export(model, x)
    assert torch.allclose(program.module()(*x), model(*x), atol=1e-6)
    with pytest.raises(Exception, match="would repeat one draw for ever"):
        torch.export.export(model.train(), x)


@torch.no_grad()
def test_compiled_models_draw_too() -> None:
    model = surgeon.apply(PlainNet(), "spatial_shuffle", 64).eval()
    x = images(64, dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager")
    rewind(model)
    expected = [model(x), model(x)]
    rewind(model)
    found = [compiled(x), compiled(x)]
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spatial_shuffle": {"when": "test"}}, "'train', 'eval' or 'both'"),
        ({"patch_shuffle": {"patch": 1}}, "cells have at least 2 pixels"),
        ({"channel_shuffle": {"seed": 2**63}}, r"less than 2\*\*62"),
    ],
)
def test_settings_that_are_none(settings: Any, words: str) -> None:
    with pytest.raises(surgeon.RecipeError, match=words):
        surgeon.plan(PlainNet(), settings, 64)


def test_surgery_that_would_lose_the_shuffle_is_refused() -> None:
    model = surgeon.apply(PlainNet(), {"spatial_shuffle": {}, "select": {"path": "stem.0"}}, 64)
    with pytest.raises(surgeon.RefusedError, match="put this step before that one"):
        surgeon.apply(model, {"spd": {}, "select": {"path": "stem.0"}})
    other = surgeon.apply(PlainNet(), [{"spd": {}, "select": {"path": "stem.0"}}, "spatial_shuffle"], 64)
    assert other(images(64, dtype=torch.float32)).shape == (2, 10)
