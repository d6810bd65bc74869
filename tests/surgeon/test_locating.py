"""Every kind of site, its facts, and what is none."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn

import surgeon
from surgeon import Site
from tests.zoo import PlainNet

RESNET = ["conv1", "layer2.0.conv1", "layer2.0.downsample.0", "layer3.0.conv1", "layer3.0.downsample.0",
          "layer4.0.conv1", "layer4.0.downsample.0"]  # fmt: skip


class Own(nn.Module):
    """Code with layers at hand."""

    def __init__(self, code: Callable[["Own", Tensor], Tensor]) -> None:
        super().__init__()
        self.code, self.a, self.b = code, nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.kernel = nn.BatchNorm2d(4), nn.Parameter(torch.ones(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def sites(code: Callable[[Own, Tensor], Tensor]) -> list[Site]:
    return list(surgeon.locate(Own(code), (4, 24, 32)))


def one(layer: nn.Module, size: Any = (4, 24, 32)) -> Site:
    (site,) = surgeon.locate(nn.Sequential(layer), size)
    return site


@pytest.mark.parametrize(
    ("layer", "kind", "facts"),
    [
        (nn.Conv2d(4, 6, 3, 2, 1), "strided_conv", ((3, 3), (2, 2), (1, 1), (1, 1), 1)),
        (nn.Conv2d(4, 8, (1, 7), (1, 2), (0, 3)), "strided_conv", ((1, 7), (1, 2), (0, 3), (1, 1), 1)),
        (nn.Conv2d(4, 8, 3, 2, dilation=2, groups=4), "strided_conv", ((3, 3), (2, 2), (0, 0), (2, 2), 4)),
        (nn.Conv2d(4, 8, 1, 2), "strided_conv", ((1, 1), (2, 2), (0, 0), (1, 1), 1)),
        (Conv2dSame(4, 8, 3, 2), "strided_conv", ((3, 3), (2, 2), (-1, -1), (1, 1), 1)),
        (StdConv2d(4, 8, 3, 2, 1), "strided_conv", ((3, 3), (2, 2), (1, 1), (1, 1), 1)),
        (ScaledStdConv2d(4, 8, 3, 2, 1), "strided_conv", ((3, 3), (2, 2), (1, 1), (1, 1), 1)),
        (nn.Conv2d(4, 6, 3, padding="same"), "spatial_conv", ((3, 3), (1, 1), (-1, -1), (1, 1), 1)),
        (nn.Conv2d(4, 4, (1, 3), groups=4), "spatial_conv", ((1, 3), (1, 1), (0, 0), (1, 1), 4)),
        (nn.MaxPool2d(3, 2, 1), "strided_pool", ((3, 3), (2, 2), (1, 1), (1, 1), None)),
        (nn.MaxPool2d((2, 3)), "strided_pool", ((2, 3), (2, 3), (0, 0), (1, 1), None)),
        (nn.AvgPool2d(2, ceil_mode=True), "strided_pool", ((2, 2), (2, 2), (0, 0), (1, 1), None)),
        (nn.LPPool2d(2, 3, 2), "strided_pool", ((3, 3), (2, 2), (0, 0), (1, 1), None)),
    ],
    ids=repr,
)
def test_layers_are_told_as_they_are(layer: nn.Module, kind: str, facts: Any) -> None:
    site = one(layer)
    assert (site.path, site.kind, site.type_name, site.via) == ("0", kind, type(layer).__name__, "module")
    assert (site.kernel_size, site.stride, site.padding, site.dilation, site.groups) == facts
    assert site.in_shape == (4, 24, 32) and site.out_shape == layer(torch.rand(1, 4, 24, 32)).shape[1:]
    assert (site.calls, site.aliases, site.owner, site.reduction) == (1, ("0",), "0", 1)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 1),
        nn.ConvTranspose2d(4, 8, 4, 2, 1),
        nn.MaxPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.AdaptiveMaxPool2d(1),
        nn.Upsample(scale_factor=0.5),
        nn.PixelUnshuffle(2),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3, 2)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_are_no_sites(layer: nn.Module) -> None:
    assert list(surgeon.locate(nn.Sequential(layer), (4, 24, 32))) == []


@pytest.mark.parametrize(
    ("code", "path", "kind", "via"),
    [
        (lambda net, x: F.conv2d(x, net.kernel, stride=2), ":conv2d:0", "strided_conv", "function"),
        (lambda net, x: F.conv2d(input=x, weight=net.kernel, padding=1), ":conv2d:0", "spatial_conv", "function"),
        (lambda net, x: torch.conv2d(x, net.kernel, None, 2), ":conv2d:0", "strided_conv", "function"),
        (lambda net, x: F.max_pool2d(F.relu(x), 2), ":max_pool2d:0", "strided_pool", "function"),
        (lambda net, x: torch.max_pool2d(x, 2), ":max_pool2d:0", "strided_pool", "function"),
        (lambda net, x: F.avg_pool2d(F.avg_pool2d(x, 3, 1), 3, 2), ":avg_pool2d:1", "strided_pool", "function"),
        (lambda net, x: x[:, 1:][..., ::2, ::3], ":getitem:0", "strided_pool", "slice"),
        (lambda net, x: x.permute(0, 2, 3, 1)[:, ::2, ::2], ":getitem:0", "strided_pool", "slice"),
    ],
)
def test_calls_of_functions_and_slices(code: Any, path: str, kind: str, via: str) -> None:
    (site,) = sites(code)
    assert (site.path, site.kind, site.via, site.owner) == (path, kind, via, "")
    assert site.type_name == path.split(":")[1]


@pytest.mark.parametrize(
    "code",
    [
        lambda net, x: x[:, ::2],
        lambda net, x: x[:, :, 1:, 1:],
        lambda net, x: x[::2].flatten(2)[:, :, ::2],
        lambda net, x: F.conv2d(x, net.kernel[:, :, :1, :1]),
        lambda net, x: F.conv1d(x.flatten(2), net.kernel[..., 0], stride=2),
        lambda net, x: F.adaptive_avg_pool2d(x, 2),
        lambda net, x: F.interpolate(x, scale_factor=0.5),
    ],
)
def test_other_calls_are_no_sites(code: Any) -> None:
    assert sites(code) == []


def test_pools_that_return_indices_are_listed() -> None:
    found = sites(lambda net, x: F.max_pool2d(x, 2, return_indices=True)[0])
    assert [(s.kind, s.out_shape) for s in found] == [("strided_pool", (4, 12, 16))]
    assert one(nn.MaxPool2d(2, return_indices=True)).out_shape == (4, 12, 16)


@pytest.mark.parametrize(
    ("code", "skip"),
    [
        (lambda net, x: x + net.a(x), "identity"),
        (lambda net, x: torch.add(net.a(x), x), "identity"),
        (lambda net, x: net.a(x).add_(x), "identity"),
        (lambda net, x: F.relu(net.norm(net.a(x)) * 0.5 + x), "identity"),
        (lambda net, x: net.a(net.a(F.relu(x))) + net.b(x), "projection"),
        (lambda net, x: net.a(net.b(x)) + F.avg_pool2d(x, 3, 1, 1), "identity"),
    ],
)
def test_residual_blocks_own_their_skip(code: Any, skip: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Own(code))
    found = {s.kind: s for s in surgeon.locate(model, (3, 24, 32)) if s.kind in ("block", "skip")}
    assert found["block"].path == "1" and found["block"].type_name == "Own"
    assert found["skip"].type_name == skip and found["skip"].path.startswith("1:") and found["skip"].via == "function"
    assert found["block"].in_shape == found["block"].out_shape == (4, 24, 32)


@pytest.mark.parametrize(
    "code",
    [
        lambda net, x: net.a(x) + 1,
        lambda net, x: net.a(x) + net.kernel.mean(),
        lambda net, x: net.a(x) * x,
        lambda net, x: net.a(net.a(x)) + net.a(net.b(x)),
        lambda net, x: net.a(x) + net.b(x),
        lambda net, x: torch.cat([net.a(x), x], 1),
        lambda net, x: x + F.relu(x),
    ],
)
def test_other_sums_are_no_residuals(code: Any) -> None:
    assert [s for s in sites(code) if s.kind in ("block", "skip")] == []


@pytest.mark.parametrize(
    ("name", "blocks", "identities", "projections"),
    [("resnet18", 8, 5, 3), ("resnet50", 16, 12, 4), ("mobilenetv2_100", 10, 10, 0), ("convnext_tiny", 18, 18, 0),
     ("vit_tiny_patch16_224", 12, 24, 0), ("densenet121", 0, 0, 0), ("vgg11", 0, 0, 0)],
)  # fmt: skip
def test_blocks_of_known_networks(name: str, blocks: int, identities: int, projections: int) -> None:
    with torch.device("meta"):
        found = surgeon.locate(timm.create_model(name))
    skips = [s.type_name for s in found if s.kind == "skip"]
    assert found.count("block") == blocks
    assert (skips.count("identity"), skips.count("projection")) == (identities, projections)


@pytest.mark.parametrize("build", [timm.models.resnet18, torchvision.models.resnet18], ids=["timm", "torchvision"])
def test_downsampling_of_resnet18(build: Any) -> None:
    with torch.device("meta"):
        model = build()
    found = surgeon.locate(model, 224)
    convs = {s.path: s for s in found if s.kind == "strided_conv"}
    assert list(convs) == RESNET
    assert [convs[path].reduction for path in RESNET] == [1, 4, 4, 8, 8, 16, 16]
    assert [(s.path, s.reduction, s.in_shape) for s in found if s.kind == "strided_pool"] == [
        ("maxpool", 2, (64, 112, 112))
    ]
    assert found.count("spatial_conv") == 13
    depths = [s.depth for s in found]
    assert depths == sorted(depths) and 0 <= depths[0] < 0.05 and 0.9 < depths[-1] <= 1
    assert {s.reduction for s in found if s.path.startswith("layer4.1")} == {32}


def test_the_same_sites_at_every_size() -> None:
    model = timm.create_model("test_efficientnet")
    small, large = (surgeon.locate(model, size) for size in (64, (77, 130)))
    facts = [[(s.path, s.kind, s.stride, s.reduction, s.depth) for s in found] for found in (small, large)]
    assert facts[0] == facts[1] and small.input_size == (3, 64, 64) and large.input_size == (3, 77, 130)


def test_shared_and_aliased_modules_are_listed_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, 2, 1)
            self.second = self.first
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.pool(self.second(self.first(x))))

    found = surgeon.locate(Shared(), 64)
    assert [(s.path, s.calls, s.aliases) for s in found] == [
        ("first", 2, ("first", "second")),
        ("pool", 2, ("pool",)),
    ]
    assert found[0].in_shape == (3, 64, 64), "of its first call"
    assert "first (x2)" in str(found)


def test_modules_made_in_the_forward_are_no_sites() -> None:
    assert sites(lambda net, x: nn.MaxPool2d(2)(x)) == []


def test_sites_are_a_sequence_a_table_and_json() -> None:
    found = surgeon.locate(PlainNet(), (40, 64))
    assert len(found) == len(list(found)) == 7 and found[0] in found and isinstance(found[1:3], tuple)
    assert [found.count(kind) for kind in ("strided_conv", "strided_pool", "spatial_conv", "block", "skip")] == [
        3, 1, 1, 1, 1
    ]  # fmt: skip
    data = json.loads(found.to_json())
    assert data["input_size"] == [3, 40, 64] and data["model"] == "PlainNet" and data["notes"] == []
    rows = [Site(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in data["sites"]]
    assert rows == list(found)
    lines = str(found).splitlines()
    assert lines[0] == "PlainNet at 3x40x64: 3 strided_conv, 1 strided_pool, 1 block, 1 spatial_conv, 1 skip"
    assert len(lines) == 2 + len(found) and repr(found) == str(found)
    columns = lines[2].split()
    assert columns == ["stem.0", "strided_conv", "Conv2d", "3", "2", "3x40x64", "8x20x32", "1", columns[-1]]


def test_what_was_assumed_is_noted() -> None:
    found = surgeon.locate(Own(lambda net, x: net.a(x) if x.mean() > 0 else F.max_pool2d(x, 2)), (4, 24, 32))
    assert [s.path for s in found] == [":max_pool2d:0"]
    assert "decides on a tensor's value" in found.notes[0] and str(found).endswith(f"note: {found.notes[0]}")


def test_a_model_that_does_not_run_says_how_to_go_on() -> None:
    with pytest.raises(
        surgeon.TraceError, match=r"cannot run PlainNet on an image of \(1, 32, 32\).*pass the input_size"
    ):
        surgeon.locate(PlainNet(), (1, 32, 32))
