"""Modules whose own code is rewritten: it does what it did, in both modes, and travels."""

import copy
import io
import logging
import random
import threading
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

import surgeon
from surgeon.owncode import own_graph
from tests.contracts import Snapshot, undone

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Digits(nn.Module):
    """Two functional pools, and a dropout that only trains."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 10, 5), nn.Conv2d(10, 20, 5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1, self.fc2 = nn.Linear(500, 50), nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(F.dropout(x, training=self.training))


class Cifar(nn.Module):
    """One pool on two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        return self.fc1(torch.flatten(self.pool(F.relu(self.conv2(x))), 1))


class Own(nn.Module):
    """A strided conv, then the code given."""

    def __init__(self, code: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.code = nn.Conv2d(3, 4, 3, 2, 1), code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, self.conv(x))


def statuses(model: nn.Module) -> dict[str, str]:
    return {change.path: change.status for change in surgeon.record(model).changes}


@pytest.mark.parametrize("build", [Digits, Cifar])
def test_the_tutorials_nets(build: type[nn.Module]) -> None:
    model = build()
    before, snapshot = copy.deepcopy(model), Snapshot.of(model)
    surgeon.apply(model, "spd", 32)
    assert set(statuses(model).values()) == {"rewritten"}
    torch.testing.assert_close(model.eval()(X), before.eval()(X))
    model.train(), before.train()
    torch.manual_seed(1), before(X)
    torch.testing.assert_close([torch.manual_seed(1), model(X)][1], [torch.manual_seed(1), before(X)][1])
    torch.testing.assert_close(surgeon.lower(model).eval()(X), before.eval()(X))
    undone(snapshot, surgeon.undo(model.train()))


def test_a_pool_on_two_widths_learns_both() -> None:
    model = surgeon.apply(Cifar(), "spd", 32)
    model(X).square().sum().backward()
    pools = {name: p for name, p in model.named_parameters() if name.startswith("pool.")}
    assert sorted(len(p) for p in pools.values()) == [6, 16]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in pools.values())


def test_tensors_made_in_the_code_are_made_anew() -> None:
    model = Own(lambda net, x: F.max_pool2d(x - torch.tensor([0.5]), 2) + torch.rand(1))
    state = torch.get_rng_state()
    surgeon.apply(model, "spd", 32)
    assert torch.equal(state, torch.get_rng_state())
    assert statuses(model) == {"conv": "rewritten", ":max_pool2d:0": "rewritten"}
    assert not torch.equal(model(X), model(X))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (lambda net, x: F.max_pool2d(x, 2) * random.random(), "draws Python's or numpy's random numbers"),
        (lambda net, x: F.max_pool2d(x, 2) * net.held[0], "1 tensors it does not hold"),
    ],
)
def test_code_that_would_become_a_constant_is_refused(code: Callable[..., Tensor], words: str) -> None:
    model = Own(code)
    model.held = [torch.rand(1)]
    surgeon.apply(model, "spd", 32)
    (refused,) = surgeon.record(model).changes[1:]
    assert refused.status == "refused" and words in refused.reason


def test_an_attribute_fixed_in_the_code_refuses_to_change() -> None:
    model = Own(lambda net, x: F.max_pool2d(x, 2) * net.scale)
    model.scale, model.epoch = 2.0, 1
    surgeon.apply(model, "spd", 32)
    model.epoch, model.scale = 2, 2.0
    with pytest.raises(surgeon.RefusedError, match=r"'scale' of Own stays 2\.0.*undo.*set it to 3\.0, and apply again"):
        model.scale = 3.0
    surgeon.undo(model).scale = 3.0


def test_arguments_left_out_stay_left_out() -> None:
    class Masked(Own):
        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
            x = F.max_pool2d(self.conv(x), 2) * scale
            return x if mask is None else x * mask

    model = Masked(lambda net, x: x)
    before = copy.deepcopy(model)
    surgeon.apply(model, "spd", 32)
    torch.testing.assert_close(model(X), before(X))
    torch.testing.assert_close(model(X, scale=1.0, mask=None), before(X))
    with pytest.raises(AssertionError, match="scale has been specialized"):
        model(X, scale=2.0)
    given = own_graph(before, False, frozenset({"x", "scale"})).graph
    assert [n.target for n in given.nodes if n.op == "placeholder" and n.users][:2] == ["x", "mask"]
    assert "mul" in str(given)


def test_calls_keep_their_numbers() -> None:
    model = Own(lambda net, x: F.max_pool2d(F.max_pool2d(x, 2), 3, 2, 1))
    before, recipe = copy.deepcopy(model), {"spd": {}, "select": {"path": ":max_pool2d:0"}}
    surgeon.apply(model, recipe, 32)
    assert [s.path for s in surgeon.locate(model, 32) if s.kind == "strided_pool"] == [":max_pool2d:1"]
    again = surgeon.plan(model, recipe, 32)
    assert [(c.path, c.status) for c in again.changes] == [(":max_pool2d:0", "unchanged")]
    surgeon.apply(model, "spd", 32)
    assert model.surgeon_max_pool2d_1.kernel_size == (3, 3)
    torch.testing.assert_close(model(X), before(X))


def test_a_parameter_nothing_reads_any_more_is_frozen() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel, stride=2, padding=1)

    model = Functional()
    snapshot = Snapshot.of(model)
    surgeon.apply(model, "spd", 32)
    model(X).sum().backward()
    assert {name: p.grad is None for name, p in model.named_parameters() if p.requires_grad} == {
        "surgeon_conv2d_0.weight": False
    }
    undone(snapshot, surgeon.undo(model))


@pytest.mark.parametrize(
    ("build", "recipe"),
    [
        (Digits, "spd"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 1)),
            {"spd": {"order": "conv-spd"}},
        ),
    ],
)
def test_derived_classes_pickle(build: Callable[[], nn.Module], recipe: object) -> None:
    model = build()
    snapshot = Snapshot.of(model, identity=False)
    surgeon.apply(model, recipe, 32)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert torch.equal(model.eval()(X), read.eval()(X))
    assert [str(m) for m in model.modules()] == [str(m) for m in read.modules()]
    undone(snapshot, surgeon.undo(read.train()), identity=False)
    assert surgeon.record(model).count("rewritten") > 0


def test_a_layer_reached_by_another_way_is_refused() -> None:
    class Listed(Own):
        def forward(self, x: Tensor) -> Tensor:
            return self.held[0](x)

    model = Listed(lambda net, x: x)
    model.held = [model.conv]
    with pytest.raises(surgeon.RefusedError, match="'conv': the forward reaches it by another way than its name"):
        surgeon.apply(model, "spd", 32)
    assert type(model.conv) is nn.Conv2d


def test_tied_weights_are_refused() -> None:
    model = nn.Sequential(*[nn.Conv2d(3, 3, 3, 2, 1) for _ in range(3)])
    model[1].weight = model[0].weight
    surgeon.apply(model, "spd", 32)
    assert statuses(model) == {"0": "refused", "1": "refused", "2": "rewritten"}
    assert "shares a parameter with '1'" in surgeon.record(model).changes[0].reason


def test_subclasses_of_same_convs_pad_by_the_input_size() -> None:
    class Mine(Conv2dSame):
        pass

    model = nn.Sequential(Mine(3, 4, 3, 2), nn.Conv2d(4, 4, 1))
    with pytest.raises(surgeon.RefusedError, match="pads by the input size"):
        surgeon.apply(model, {"spd": {"order": "conv-spd"}}, 32)
    before = copy.deepcopy(model)
    torch.testing.assert_close(surgeon.apply(model, "spd", 32)(X), before(X))


def test_threads_read_models_at_once() -> None:
    call, expected, wrong = nn.Module.__call__, {}, []
    models = {name: timm.create_model(name) for name in ("test_resnet", "test_efficientnet")}
    expected = {name: len(surgeon.locate(model, 64)) for name, model in models.items()}

    def read(name: str) -> None:
        wrong.extend(1 for _ in range(3) if len(surgeon.locate(models[name], 64)) != expected[name])

    threads = [threading.Thread(target=read, args=(name,)) for name in (*models, *models)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and nn.Module.__call__ is call
    assert not logging.getLogger("torch._subclasses.fake_tensor").disabled
