"""Functional sites: which calls and slices the op ``spd`` may exchange in a module's own code, and which not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import surgeon
from surgeon.calls import spatial_slice

SIZE = (34, 40)
Code = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """A conv, a function of its features, a classifier."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code, self.conv, self.head = code, nn.Conv2d(3, 8, 3, 1, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.code(self, self.conv(x)).mean((2, 3)))


def decided(code: Code) -> list[tuple[str, str]]:
    try:
        changes = surgeon.plan(Net(code), "spd", SIZE).changes
    except surgeon.RefusedError as error:
        return [("refused", str(error))]
    return [(change.status, change.reason) for change in changes]


@pytest.mark.parametrize(
    "code",
    [
        lambda net, x: x[:, :, ::2, ::2],
        lambda net, x: x[:, :8][..., ::2, ::3],
        lambda net, x: F.max_pool2d(F.avg_pool2d(x[:, :6], 3, 2), 3, 2, 1).repeat(1, 2, 1, 1)[:, :8],
        lambda net, x: F.conv2d(x, net.conv.weight.repeat(1, 3, 1, 1)[:, :8], stride=1)[:, :, ::2, ::2],
        lambda net, x: x.permute(0, 2, 3, 1)[:, ::2, ::2].permute(0, 3, 1, 2),
    ],
)
def test_calls_are_exchanged_by_the_same_function(code: Code) -> None:
    net, x = Net(code).double().eval(), torch.rand(2, 3, *SIZE, dtype=torch.float64)
    old = net(x)
    surgeon.apply(net, "spd", SIZE)
    assert surgeon.record(net).count("rewritten") > 0
    torch.testing.assert_close(net(x), old, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "code",
    [
        lambda net, x: x[:, :, :9:2, :9:2],
        lambda net, x: x[:, :, 1::2, 1::2],
        lambda net, x: torch.cat([x[:, :4, ::2, ::2], x[:, 4:, ::2, ::2]], 1),
    ],
)
def test_a_slice_that_cuts_besides_is_refused(code: Code) -> None:
    (status, reason), *_ = decided(code)
    assert status == "refused"
    assert "cuts besides" in reason and "slice twice" in reason


def four(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]


def test_slices_that_keep_every_position_are_space_to_depth_already() -> None:
    changes = decided(lambda net, x: sum(four(x)))
    assert [status for status, _ in changes] == ["unchanged"] * 4
    assert all("space-to-depth already" in reason for _, reason in changes)


def test_three_of_four_are_not() -> None:
    statuses = [
        status for status, _ in decided(lambda net, x: x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2])
    ]
    assert sorted(statuses) == ["refused", "refused", "rewritten"]


def test_calls_only_one_mode_makes_are_refused() -> None:
    ((status, reason),) = decided(lambda net, x: (x[..., ::2, ::2] if net.training else x)[..., ::3, ::3])
    assert status == "refused"
    assert "the training code of its owner Net shows 2 calls of it, 1 were made" in reason


def halve(x: Tensor) -> Tensor:
    return x[..., ::2, ::2]


fx.wrap("halve")


def test_calls_in_a_function_fx_does_not_open_are_refused() -> None:
    ((status, reason),) = decided(lambda net, x: halve(x))
    assert status == "refused"
    assert "shows 0 calls of it, 1 were made" in reason


def test_a_slice_tells_what_it_cuts() -> None:
    every = slice(None)
    assert spatial_slice((every, every, slice(None, None, 2), slice(None, None, 2)), 4).whole
    assert not spatial_slice((every, slice(3), slice(None, None, 2), slice(None, None, 2)), 4).whole
    assert not spatial_slice((every, every, slice(None, 8, 2), slice(None, None, 2)), 4).whole
    assert spatial_slice((every, every, slice(None, None, 2)), 4) is None
