"""Edits are made in place, taken back bit for bit, made again, all or none."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from surgeon import RefusedError
from surgeon.derived import InsteadOf, OnOperand
from surgeon.edit import (
    Append,
    Edit,
    OnEdge,
    Prepend,
    SetAttribute,
    Swap,
    SwapCall,
    copy_tensors,
    perform,
    revert,
    twin,
    untouchable,
)
from surgeon.freezing import Freeze
from tests.contracts import Snapshot

X = torch.rand(2, 3, 16, 16)


class Net(nn.Module):
    """A conv with an alias, a functional pool, a parameter only the code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.alias, self.parts = self.conv, nn.ModuleList([self.conv, nn.Conv2d(4, 4, 1)])
        self.kernel = nn.Parameter(torch.rand(4, 4, 3, 3))
        self.width = 4

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.conv2d(self.parts[1](self.conv(x)), self.kernel), 2)

    def method(self) -> str:
        return "own"


def conv(*sizes: int) -> nn.Module:
    """Drawn without touching the random numbers."""
    layer = nn.utils.skip_init(nn.Conv2d, *sizes)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    return layer


def fresh(_old: nn.Module) -> nn.Module:
    return conv(3, 4, 3, 2, 1)


def fails(_old: nn.Module) -> nn.Module:
    raise RefusedError("this one is not to be had")


POOL = InsteadOf("max_pool2d", 0, frozenset({"x"}))
CONV = InsteadOf("conv2d", 0, frozenset({"x"}))
EDITS: dict[str, Edit] = {
    "swap": Swap("conv", fresh),
    "swap in a list": Swap("parts.1", lambda _old: conv(4, 4, 1)),
    "edge": OnEdge("", OnOperand("seen", "max_pool2d", 0, 0, frozenset({"x"})), lambda _net: nn.Tanh()),
    "call": SwapCall("", POOL, lambda _net: nn.AvgPool2d(2)),
    "call with a parameter": SwapCall("", CONV, lambda _net: conv(4, 4, 3)),
    "append": Append("conv", lambda _conv: nn.Tanh()),
    "prepend": Prepend("conv", lambda _conv: nn.Tanh()),
    "freeze": Freeze("conv", lambda conv: {"weight": torch.ones_like(conv.weight)}),
    "set": SetAttribute("", "width", lambda width: width + 1),
    "set anew": SetAttribute("conv", "note", lambda _missing: "seen"),
}


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_made_taken_back_and_made_again(net: Net, edit: Edit) -> None:
    before, y = Snapshot.of(net), net(X)
    reverse = edit.perform(net)
    made, changed = Snapshot.of(net), net(X)
    assert before.differences(made) != []
    again = reverse.revert(net)
    assert before.differences(Snapshot.of(net)) == [] and torch.equal(net(X), y)
    again()
    assert made.differences(Snapshot.of(net)) == [] and torch.equal(net(X), changed)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_class_paths_and_tensors_of_the_rest_stay(net: Net, edit: Edit) -> None:
    cls, held = type(net), {name: p for name, p in net.named_parameters() if not name.startswith(edit.path or "?")}
    edit.perform(net)
    assert isinstance(net, cls) and net.method() == "own" and isinstance(net.get_submodule(edit.path), nn.Module)
    assert all(net.get_parameter(name) is p for name, p in held.items())
    twin_of = copy.deepcopy(net)
    assert torch.equal(twin_of(X), net(X)) and list(twin_of.state_dict()) == list(net.state_dict())


def test_a_swap_reaches_every_name(net: Net) -> None:
    old = net.conv
    reverse = Swap("alias", fresh).perform(net)
    assert net.conv is net.alias is net.parts[0] is not old
    reverse.revert(net)
    assert net.conv is net.alias is net.parts[0] is old


def test_what_is_new_follows_what_it_replaces() -> None:
    net = Net().double().train()
    net.parts[1].eval()
    net.parts[1].type = "tag of another library"
    Swap("parts.1", lambda old: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).perform(net)
    new = net.parts[1]
    assert {p.dtype for p in new.parameters()} == {torch.float64} and not any(m.training for m in new.modules())
    assert new.type == "tag of another library"


def test_what_comes_back_follows_what_was_there(net: Net) -> None:
    reverse = Swap("conv", fresh).perform(net)
    net.double().train()
    net.conv.eval()
    reverse.revert(net)
    assert {p.dtype for p in net.parameters()} == {torch.float64} and not net.conv.training and net.training
    assert net(X.double()).dtype == torch.float64


def test_a_parameter_the_code_no_longer_reads_is_frozen(net: Net) -> None:
    reverse = EDITS["call with a parameter"].perform(net)
    assert not net.kernel.requires_grad and net.parts[1].weight.requires_grad
    again = reverse.revert(net)
    assert net.kernel.requires_grad
    again()
    assert not net.kernel.requires_grad


def test_a_parameter_that_was_frozen_stays_frozen(net: Net) -> None:
    net.kernel.requires_grad_(False)
    reverse = EDITS["call with a parameter"].perform(net)
    reverse.revert(net)
    assert not net.kernel.requires_grad


@pytest.mark.parametrize(
    ("path", "words"),
    [("conv", "'conv': this one is not to be had"), ("", "'': this one is not to be had")],
)
def test_one_that_fails_takes_all_back(net: Net, path: str, words: str) -> None:
    before = Snapshot.of(net)
    edits = [*EDITS.values(), Append(path, fails) if path else SwapCall(path, POOL, fails)]
    edits = [edit for edit in edits if path or edit is not EDITS["call"]]
    edits = [edit for edit in edits if not path or edit is not EDITS["append"]]
    with pytest.raises(RefusedError, match=words):
        perform(net, edits)
    assert before.differences(Snapshot.of(net)) == []


def test_any_error_takes_all_back(net: Net) -> None:
    def broken(_old: nn.Module) -> nn.Module:
        raise KeyboardInterrupt

    before = Snapshot.of(net)
    with pytest.raises(KeyboardInterrupt):
        perform(net, [*EDITS.values(), Swap("conv", broken)])
    with pytest.raises(AttributeError):
        perform(net, [*EDITS.values(), Swap("nowhere", fresh)])
    assert before.differences(Snapshot.of(net)) == []


def test_a_log_is_taken_back_whole(net: Net) -> None:
    before = Snapshot.of(net)
    log = perform(net, list(EDITS.values()))
    assert len(log) == len(EDITS)
    revert(net, log)
    assert before.differences(Snapshot.of(net)) == []


def test_a_log_that_cannot_be_taken_back_whole_is_left(net: Net) -> None:
    log = perform(net, list(EDITS.values()))
    del net.width  # the oldest but one of what is taken back last
    made = Snapshot.of(net)
    with pytest.raises(AttributeError, match="width"):
        revert(net, log)
    assert made.differences(Snapshot.of(net)) == []


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([EDITS["append"], EDITS["append"]], "'conv': the output of 'conv' is already rearranged"),
        ([SwapCall("", InsteadOf("max_pool2d", 3, frozenset({"x"})), lambda _: nn.Identity())], "has no such call"),
    ],
)
def test_what_cannot_be_edited_is_refused(net: Net, edits: list[Edit], words: str) -> None:
    before = Snapshot.of(net)
    with pytest.raises(RefusedError, match=words):
        perform(net, edits)
    assert before.differences(Snapshot.of(net)) == []


def test_a_name_that_is_taken_is_refused(net: Net) -> None:
    net.surgeon_max_pool2d_0 = "mine"
    with pytest.raises(RefusedError, match="has an attribute 'surgeon_max_pool2d_0' already; rename it"):
        perform(net, [EDITS["call"]])
    assert net.surgeon_max_pool2d_0 == "mine" and type(net) is Net


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(lambda *_: None),
    "forward with names": lambda m: m.register_forward_hook(lambda *_: None, with_kwargs=True),
    "before": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "backward": lambda m: m.register_full_backward_hook(lambda *_: None),
    "before backward": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("hang", HOOKS.values(), ids=HOOKS)
def test_hooks_are_seen(hang: Callable[[nn.Module], Any]) -> None:
    conv = nn.Conv2d(3, 4, 3)
    assert untouchable(conv) is None
    handle = hang(conv)
    assert "carries hooks, which would be lost; remove them" in str(untouchable(conv))
    handle.remove()
    assert untouchable(conv) is None


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (nn.utils.parametrizations.weight_norm, "is parametrized"),
        (nn.utils.parametrizations.spectral_norm, "is parametrized"),
        (lambda m: prune.random_unstructured(m, "weight", 0.5), "carries hooks"),
    ],
)
def test_computed_weights_are_seen(wrap: Any, words: str) -> None:
    conv = nn.Conv2d(3, 4, 3)
    wrap(conv)
    assert words in str(untouchable(conv))


def test_a_twin_shares_until_it_is_set_anew() -> None:
    norm = nn.BatchNorm2d(4)
    other = twin(norm)
    assert other.weight is norm.weight and other.running_mean is norm.running_mean and type(other) is type(norm)
    other.weight = nn.Parameter(torch.zeros(8))
    other.register_buffer("running_mean", None)
    assert norm.weight.shape == (4,) and norm.running_mean is not None


def test_values_are_copied_where_the_tensor_is_still_there() -> None:
    net = Net().half()
    values = {"conv.weight": torch.full((4, 3, 3, 3), 0.1), "kernel": torch.zeros(1), "gone": torch.zeros(1)}
    kernel, held = net.kernel.clone(), net.conv.weight
    copy_tensors(values, net)
    assert net.conv.weight is held and held.dtype == torch.half and torch.equal(net.kernel, kernel)
    assert torch.equal(held, values["conv.weight"].half())
