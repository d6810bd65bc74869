"""The proof can fail: the witness sees what is hidden, and every way a list of sites can be wrong is told."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon import Site, locating
from tests.surgeon.completeness import differences, witness

SIZE = (3, 64, 48)


class Mixed(nn.Module):
    """A net no library built: functional convs and pools, slices in both layouts, shared and aliased modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, 2, 3)
        self.shared = nn.Conv2d(8, 8, 3, 1, 1)
        self.alias = self.shared
        self.kernel = nn.Parameter(torch.ones(8, 8, 3, 3))
        self.point = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.lowest = nn.LPPool2d(2, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.alias(self.shared(x))
        x = F.conv2d(x, self.kernel, stride=2, padding=1)
        x = self.pool(self.point(self.up(x)))
        x = F.max_pool2d(x, 3, 2, 1)[:, :, ::2, ::2]
        x = x.permute(0, 2, 3, 1)[:, ::2, ::1].permute(0, 3, 1, 2)
        x = self.lowest(F.interpolate(x, scale_factor=4))
        x = F.avg_pool2d(x.permute(0, 2, 3, 1)[:, ::2, ::2].permute(0, 3, 1, 2), 2)
        return self.head(x.mean((2, 3)))


EXPECTED = [
    ("stem", "strided_conv", 1),
    ("shared", "spatial_conv", 2),
    (":conv2d:0", "strided_conv", 1),
    (":max_pool2d:0", "strided_pool", 1),
    (":getitem:0", "strided_pool", 1),
    ("lowest", "strided_pool", 1),
    (":getitem:2", "strided_pool", 1),
    (":avg_pool2d:0", "strided_pool", 1),
]


@pytest.fixture(scope="module")
def sites() -> surgeon.Sites:
    return surgeon.locate(Mixed(), SIZE)


def spatial(sites: surgeon.Sites) -> list[Site]:
    return [site for site in sites if site.kind not in ("block", "skip")]


def told(listed: list[Site]) -> list[str]:
    return differences(witness(Mixed(), SIZE), listed)


def test_a_plain_net_is_listed_in_full(sites: surgeon.Sites) -> None:
    assert [(site.path, site.kind, site.calls) for site in spatial(sites)] == EXPECTED
    assert told(spatial(sites)) == []
    assert next(site for site in sites if site.path == "shared").aliases == ("shared", "alias")


def test_the_second_list(sites: surgeon.Sites) -> None:
    others = witness(Mixed(), SIZE).others
    assert others == {"slice that strides one axis": 1, "axes moved": 3}


@pytest.mark.parametrize("path", [path for path, _, _ in EXPECTED])
def test_a_site_left_out_is_missed(sites: surgeon.Sites, path: str) -> None:
    (message, *more) = told([site for site in spatial(sites) if site.path != path])
    assert message.startswith("missing x") and repr(path.split(":")[0]) in message and not more


Doctor = Callable[[Site], Site]
DOCTORED: dict[str, tuple[Doctor, str]] = {
    "calls": (lambda site: replace(site, calls=1), "missing x1: ('shared', 'conv', (3, 3), (1, 1))"),
    "more calls": (lambda site: replace(site, calls=3), "invented x1: ('shared', 'conv', (3, 3), (1, 1))"),
    "path": (lambda site: replace(site, path="up"), "invented x2: ('up', 'conv', (3, 3), (1, 1))"),
    "kernel": (lambda site: replace(site, kernel_size=(5, 5)), "invented x2: ('shared', 'conv', (5, 5), (1, 1))"),
    "stride": (lambda site: replace(site, stride=(2, 2)), "invented x2: ('shared', 'conv', (3, 3), (2, 2))"),
    "shape": (lambda site: replace(site, out_shape=(8, 1, 1)), "wrong shape: shared makes (8, 1, 1)"),
}


@pytest.mark.parametrize("what", DOCTORED)
def test_a_doctored_site_is_told(sites: surgeon.Sites, what: str) -> None:
    doctor, message = DOCTORED[what]
    listed = [doctor(site) if site.path == "shared" else site for site in spatial(sites)]
    assert message in told(listed)


def test_an_invented_site_is_told(sites: surgeon.Sites) -> None:
    listed = spatial(sites)
    assert told([*listed, replace(listed[0], path="point")]) == ["invented x1: ('point', 'conv', (7, 7), (2, 2))"]


def test_a_wrong_order_is_told(sites: surgeon.Sites) -> None:
    first, second, *rest = spatial(sites)
    assert [message[:11] for message in told([second, first, *rest])] == ["wrong order"]


def test_a_locator_blind_to_functional_pools_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locating, "_POOL_CALLS", ())
    blind = surgeon.locate(Mixed(), SIZE)
    assert [message.split(":")[0] for message in told(spatial(blind))] == ["missing x1", "missing x1"]


class Hidden(nn.Module):
    """A conv that only its owner's code shows, behind a plain function and called past ``__call__``."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 3, 5, 5))
        self.inner = nn.Conv2d(4, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.forward(self.hide(x)).mean((2, 3))

    def hide(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, self.kernel, None, 2)


def test_hidden_convs_are_listed_and_their_loss_is_told() -> None:
    sites, testimony = surgeon.locate(Hidden(), SIZE), witness(Hidden(), SIZE)
    assert [site.path for site in sites] == [":conv2d:0", ":conv2d:1"]
    assert differences(testimony, sites) == []
    assert differences(testimony, [sites[1]]) == ["missing x1: ('', 'conv', (5, 5), (2, 2))"]


CLASSES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "mean of H and W": (lambda x: x.mean((2, 3), keepdim=True), "global pool"),
    "adaptive pool to 1": (lambda x: F.adaptive_max_pool2d(x, 1), "global pool"),
    "adaptive pool to 4": (lambda x: F.adaptive_avg_pool2d(x, 4), "adaptive pool to cells"),
    "mean of channels": (lambda x: x.mean(1, keepdim=True), "reduction of one axis"),
    "mean of all": (lambda x: x.mean((1, 2, 3), keepdim=True), "reduction"),
    "crop": (lambda x: x[:, :, 30:], "part of an axis"),
    "channel split": (lambda x: x.chunk(3, 1)[0], "part of an axis"),
    "window reshape": (lambda x: x.reshape(12, -1, 16, 16), "reshape"),
    "transpose": (lambda x: x.transpose(1, 2), "axes moved"),
    "resampling": (lambda x: F.interpolate(x, size=8, mode="bilinear"), "resampling"),
    "index": (lambda x: x[:, :, torch.arange(0, 64, 2)], "gather"),
    "rotary": (lambda x: x[..., ::2], "slice that strides one axis"),
    "sequence": (lambda x: F.avg_pool1d(x[0], 4)[None], "pool over a sequence"),
    "unfold": (lambda x: F.unfold(x, 3, stride=2), "windows"),
    "space-to-depth": (lambda x: F.pixel_unshuffle(x, 2), "space-to-depth"),
    "unknown": (lambda x: x.topk(8, 2)[0], "other: topk"),
}


class Only(nn.Module):
    def __init__(self, code: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.code, self.weight = code, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.code(x)


@pytest.mark.parametrize("what", CLASSES)
def test_other_shrinking_operations_are_classed(what: str) -> None:
    code, name = CLASSES[what]
    testimony = witness(Only(code), SIZE)
    assert testimony.spatial == []
    assert any(found.startswith(name) for found in testimony.others), testimony.others
