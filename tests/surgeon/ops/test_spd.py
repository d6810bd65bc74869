"""The op's settings and decisions; the layers have tests of their own, the contracts run over it elsewhere."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn

import surgeon
from surgeon.ops.spd_conv import SPDConv2d
from surgeon.ops.spd_pool import SPDAvgPool2d, SPDMaxPool2d
from tests.contracts import images, relative, rewritten, stir

SIZES = [(64, 64), (37, 50), (65, 38)]


class Gated(nn.Module):
    """A kernel computed from the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kernel = self.mix(x.mean((0, 2, 3)))[:, None, None, None].expand(-1, 4, 3, 3)
        return nn.functional.conv2d(x, kernel, stride=2)


def chain(*layers: nn.Module) -> nn.Module:
    return stir(nn.Sequential(*layers).double()).eval()


def changes(model: nn.Module, recipe: Any = "spd", size: Any = 64) -> list[surgeon.Change]:
    surgeon.apply(model, recipe, size)
    return list(surgeon.record(model).changes)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.Conv2d(3, 8, 7, 4, 3),
        nn.Conv2d(3, 9, 5, 3, 2, groups=3),
        nn.Conv2d(3, 6, (1, 7), (1, 2), (0, 3), groups=3),
        nn.Conv2d(3, 8, 3, 2, 3, dilation=3),
        nn.Conv2d(3, 8, 3, 2, 1, padding_mode="reflect"),
        nn.Conv2d(3, 8, 2, 2, 1),
        Conv2dSame(3, 8, 3, 2),
        StdConv2d(3, 8, 3, 2, 1),
        ScaledStdConv2d(3, 8, 3, 2, 1),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d(3, 3, dilation=2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(5, 2, 2, ceil_mode=True),
        nn.AvgPool2d((2, 3), (2, 1), divisor_override=4),
    ],
    ids=repr,
)
@pytest.mark.parametrize("settings", [{}, {"kernel": "minimal", "pool_conv": "full"}], ids=["same", "minimal"])
def test_the_same_function_at_every_size(layer: nn.Module, settings: dict[str, Any]) -> None:
    model = chain(copy.deepcopy(layer), nn.Conv2d(layer.out_channels if hasattr(layer, "out_channels") else 3, 2, 1))
    before = copy.deepcopy(model)
    (change,) = changes(model, {"spd": settings})
    assert change.status == "rewritten" and change.params[1] > change.params[0]
    for size in SIZES:
        assert relative(before(images(size)).detach(), model(images(size)).detach()) < 1e-12


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Conv2d(3, 8, 4, 4), "kernel = stride without padding is space-to-depth"),
        (nn.Conv2d(3, 8, 2, 2, groups=1, bias=False), "kernel = stride without padding"),
    ],
)
def test_patchify_convs_are_unchanged(layer: nn.Module, words: str) -> None:
    model = chain(layer)
    (change,) = changes(model)
    assert change.status == "unchanged" and words in change.reason
    assert type(model[0]) is nn.Conv2d


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
    model[0].register_forward_hook(lambda *_: None)
    return model


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
    nn.utils.parametrizations.weight_norm(model[0])
    return model


class Tied(nn.Module):
    """Two layers of one weight, the second behind the first."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.down, self.second = nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, stride, 1)
        self.third = nn.Conv2d(3, 3, 3, 1, 1)
        (self.down if stride > 1 else self.third).weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.down(x)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.last = nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.down(self.down(x)))


class Mine(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("build", "settings", "words"),
    [
        (hooked, {}, ["'0' carries hooks, which would be lost", "remove them, operate, and register them again"]),
        (parametrized, {}, ["is parametrized", "remove_parametrizations first"]),
        (lambda: nn.Sequential(Mine(3, 4, 3, 2, 1)), {}, ["Mine whose forward is not that of nn.Conv2d"]),
        (lambda: Gated(), {}, ["computes its kernel from the image, so there is no weight to place"]),
        (
            lambda: nn.Sequential(nn.MaxPool2d(2, return_indices=True)),
            {},
            ["returns the indices of the maxima (return_indices=True), which a conv has not"],
        ),
        (
            lambda: nn.Sequential(nn.LPPool2d(2, 3, 2)),
            {},
            ["LPPool2d: it takes a root of sums of powers, which no conv"],
        ),
        (
            lambda: Tied(2),
            {},
            ["'down' shares a parameter with 'second', and each would get one of its own; copy it first"],
        ),
        (
            lambda: Tied(1),
            {"order": "conv-spd"},
            ["'down' needs another 'second', which shares a parameter with 'third'; copy it first"],
        ),
        (Twice, {"order": "conv-spd"}, ["'down' runs as a function or several times, so its readers differ"]),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3)),
            {"kernel": 2},
            ["its taps lie in 4 blocks, more than kernel=2", "use kernel=4 or init='fresh'"],
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)),
            {"order": "conv-spd"},
            ["'0' reaches the model's output"],
        ),
        (
            lambda: nn.Sequential(Conv2dSame(3, 4, 3, 2), nn.Conv2d(4, 4, 1)),
            {"order": "conv-spd"},
            ["pads by the input size, so a stride-1 conv would pad differently"],
        ),
    ],
)
def test_refusals_say_why(build: Any, settings: dict[str, Any], words: list[str]) -> None:
    model = build()
    with pytest.raises(surgeon.RefusedError, match=r"op 'spd' refuses all [12] sites selected in") as caught:
        surgeon.apply(model, {"spd": settings}, 64)
    assert [word for word in words if word not in str(caught.value)] == []
    assert surgeon.record(model).changes == ()


def test_a_model_whose_layers_have_no_shape_yet_is_refused() -> None:
    with pytest.raises(surgeon.RefusedError, match="lazy layers have no shape yet: run it once on an image first"):
        surgeon.apply(nn.Sequential(nn.LazyConv2d(4, 3, 2)), "spd", 32)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(surgeon.RefusedError, match=r"'0': SPDConv2d cannot replace .*not finite.*leave it"):
        surgeon.apply(model, "spd", 64)
    assert type(model[0]) is nn.Conv2d and surgeon.record(model).changes == ()


def test_a_weight_that_other_code_reads_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.conv.weight.mean()

    with pytest.raises(surgeon.RefusedError, match=r"'conv\.weight' is read by other code too"):
        surgeon.apply(Scaled(), "spd", 64)


def test_pools_are_rewritten_kept_or_removed() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1))

    kinds = {}
    for pool in ("spd", "keep", "remove"):
        model = build()
        found = changes(model, {"spd": {"pool": pool}})
        kinds[pool] = [type(layer) for layer in model[1:3]]
        assert [c.path for c in found] == (["0"] if pool == "keep" else ["0", "1", "2"])
    assert kinds["spd"] == [SPDMaxPool2d, SPDAvgPool2d]
    assert kinds["keep"] == [nn.MaxPool2d, nn.AvgPool2d]
    assert kinds["remove"] == [nn.Identity, nn.Identity]


def test_fresh_weights_depend_on_the_seed_and_the_path_only() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))

    def weights(**step: Any) -> list[Tensor]:
        model = surgeon.apply(build(), {"spd": {"init": "fresh", "seed": 1}, **step}, 64)
        return [layer.weight.detach() for layer in model if isinstance(layer, SPDConv2d)]

    both, late = weights(), weights(select={"path": "2"})
    assert torch.equal(both[1], late[0]) and torch.equal(both[0], weights()[0])
    other = surgeon.apply(build(), {"spd": {"init": "fresh", "seed": 2}}, 64)
    assert not torch.equal(both[0], other[0].weight)
    bound = 1 / both[0][0].numel() ** 0.5  # torch's default for a conv of this width
    assert 0.9 * bound < both[0].abs().max().item() <= bound


def test_the_seed_of_the_site_is_independent_of_the_global_one() -> None:
    def weight(seed: int) -> Tensor:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1))
        torch.manual_seed(seed)
        return surgeon.apply(model, {"spd": {"init": "fresh"}}, 64)[0].weight

    assert torch.equal(weight(1), weight(2))


@pytest.mark.parametrize("name", ["resnet18_spd", "resnet50_spd", "digits_spd"])
def test_shipped_recipes_are_named(name: str) -> None:
    assert surgeon.Recipe.parse(name).steps[0].op.name == "spd"


@pytest.mark.parametrize(
    ("name", "model", "classes", "size", "params", "macs"),
    [
        ("resnet18_spd", "resnet18", 200, 64, (11_279_112, 16_437_576), (148_148_224, 749_572_096)),
        ("resnet50_spd", "resnet50", 10, 32, (23_528_522, 41_073_290), (83_431_424, 486_232_064)),
    ],
)
def test_the_papers_networks_have_the_counts_that_are_printed(
    name: str, model: str, classes: int, size: int, params: Any, macs: Any
) -> None:
    with torch.device("meta"):
        net = timm.create_model(model, num_classes=classes)
    record = surgeon.plan(net, name, size)
    assert (record.params, record.macs) == (params, macs)
    assert record.count("rewritten") == 8 and record.count("refused") == 0
    surgeon.apply(net, name, size)
    assert sum(p.numel() for p in net.parameters()) == params[1]
    assert net.conv1.weight.shape == (64, 12, 3, 3) and isinstance(net.maxpool, nn.Identity)


def test_costs_are_told() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False))
    (change,) = changes(model, size=32)
    assert change.params == (3 * 8 * 9, 12 * 8 * 9) and change.macs == (216 * 256, 864 * 256)
    record = surgeon.record(model)
    assert record.params == change.params and record.macs == change.macs
    assert rewritten(model) == [change]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"order": "conv-spd", "kernel": "minimal"}, "kernel is 'minimal', but order 'conv-spd' has no use for it"),
        ({"order": "conv-spd", "init": "fresh"}, "init is 'fresh', but order 'conv-spd' has no use for it"),
        ({"before": "norm"}, "before is 'norm', but order 'spd-conv' has no use for it"),
    ],
)
def test_settings_an_order_does_not_use_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(surgeon.RecipeError, match=words):
        surgeon.get_op("spd")(**settings)
