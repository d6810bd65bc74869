"""`apply(..., optimizer=)`: parameters change places inside their groups, and nothing else of the optimizer changes."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import surgeon
from surgeon.ledger import Ledger
from tests.contracts import Snapshot
from tests.zoo import PlainNet

X = torch.rand(2, 3, 32, 32)


def held(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    """The names of what each group holds, in order; a parameter of no model is a question mark."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names.get(id(p), "?") for p in group["params"]] for group in optimizer.param_groups]


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def facts_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything an optimizer carries, by identity and by bits."""
    facts: dict[str, Any] = {"groups": [[id(p) for p in g["params"]] for g in optimizer.param_groups]}
    facts["names"] = [list(g.get("param_names", [])) for g in optimizer.param_groups]
    facts["lists"] = [id(g["params"]) for g in optimizer.param_groups]
    facts["settings"] = settings(optimizer)
    for p, state in optimizer.state.items():
        facts[f"state {id(p)}"] = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in state.items()}
    return facts


@pytest.mark.parametrize("recipe", ["spd", {"spd": {"order": "conv-spd", "pool": "keep"}}], ids=["spd", "conv-spd"])
def test_every_parameter_is_held_once_in_its_own_place(recipe: Any) -> None:
    model = PlainNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    (before,) = held(optimizer, model)
    train(model, optimizer)
    untouched = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    old = dict(model.named_parameters())
    surgeon.apply(model, recipe, 32, optimizer=optimizer)
    (after,) = held(optimizer, model)
    assert sorted(after) == sorted(name for name, _ in model.named_parameters())
    assert [name for name in after if name in before] == before
    for name, p in model.named_parameters():
        if old.get(name) is p:
            assert torch.equal(optimizer.state[p]["momentum_buffer"], untouched[name])
        else:
            assert p not in optimizer.state
    train(model, optimizer, 2)


@pytest.mark.parametrize("name", ["test_resnet", "test_nfnet", "resnet18"])
@pytest.mark.parametrize("more", [{}, {"layer_decay": 0.7}], ids=["decay", "layer-decay"])
def test_timm_groups_of_weight_decay_and_layer_decay(name: str, more: dict[str, Any]) -> None:
    model = timm.create_model(name, num_classes=4)
    optimizer = create_optimizer_v2(model, "adamw", lr=0.1, weight_decay=0.05, **more)
    before, was = held(optimizer, model), settings(optimizer)
    surgeon.apply(model, "spd", 64, optimizer=optimizer)
    after = held(optimizer, model)
    assert settings(optimizer) == was
    every = [name for group in after for name in group]
    assert sorted(every) == sorted(name for name, _ in model.named_parameters())
    place = {name: i for i, group in enumerate(after) for name in group}
    assert {name: place[name] for group in before for name in group} == {
        name: i for i, group in enumerate(before) for name in group
    }
    parameters = dict(model.named_parameters())
    new = [name for name in every if name not in {n for group in before for n in group}]
    assert {was[place[name]]["weight_decay"] > 0 for name in new} <= {parameters[name].ndim > 1 for name in new}
    if name == "resnet18":
        assert new == ["maxpool.weight"] and place["maxpool.weight"] == place["conv1.weight"]


def test_a_new_parameter_joins_the_nearest_old_one_of_its_kind() -> None:
    model = PlainNet()
    groups = [{"params": [p], "lr": float(i)} for i, p in enumerate(model.parameters())]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    surgeon.apply(model, "spd", 32, optimizer=optimizer)
    joined = [group for group in held(optimizer, model) if len(group) > 1]
    assert joined == [["stem.0.weight", "pool.weight"]]  # not the norm's vectors, which lie nearer


def test_where_none_stands_in_front_the_next_one_behind_is_joined() -> None:
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=1.0)
    surgeon.apply(model, "spd", 32, optimizer=optimizer)
    assert held(optimizer, model) == [["1.weight", "0.weight"], ["1.bias"], ["2.weight"], ["2.bias"]]


def test_parts_the_optimizer_does_not_hold_stay_out() -> None:
    model = timm.create_model("resnet18", num_classes=4)
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
    surgeon.apply(model, "spd", 64, optimizer=optimizer)
    assert held(optimizer, model) == [["fc.weight", "fc.bias"]]


def test_parameters_of_other_models_stay() -> None:
    model, other = PlainNet(), nn.Linear(2, 2)
    pairs = [("net." + n, p) for n, p in model.named_parameters()] + list(other.named_parameters())
    optimizer = torch.optim.SGD(pairs, lr=0.1)
    surgeon.apply(model, "spd", 32, optimizer=optimizer)
    (group,) = optimizer.param_groups
    assert group["params"][-2] is other.weight and group["params"][-1] is other.bias
    expected = {**{"net." + n: p for n, p in model.named_parameters()}, **dict(other.named_parameters())}
    assert len(group["param_names"]) == len(group["params"]) == len(expected)
    assert all(expected[name] is p for name, p in zip(group["param_names"], group["params"], strict=True))


def test_the_optimizer_goes_on_as_one_built_afterwards() -> None:
    model = PlainNet()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    surgeon.apply(model, "spd", 32, optimizer=optimizer)
    surgeon.apply(twin, "spd", 32)
    ordered = {name: dict(twin.named_parameters())[name] for name in held(optimizer, model)[0]}
    later = torch.optim.AdamW(ordered.values(), lr=0.01)
    train(model, optimizer)
    train(twin, later)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.005
    state = copy.deepcopy(optimizer.state_dict())
    later.load_state_dict(state)
    later.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
    train(model, optimizer)
    train(twin, later)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_lookahead_keeps_its_slow_weights_of_what_stays() -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    optimizer = create_optimizer_v2(model, "lookahead_sgd", lr=0.01, momentum=0.9)
    train(model, optimizer, 6)
    inner = optimizer._base_optimizer
    slow = inner.state[model.fc.weight]["lookahead_slow_buff"]
    surgeon.apply(model, "spd", 32, optimizer=optimizer)
    assert optimizer.param_groups is inner.param_groups
    assert inner.state[model.fc.weight]["lookahead_slow_buff"] is slow
    alive = {id(p) for p in model.parameters()}
    assert all(id(p) in alive for p in inner.state)
    train(model, optimizer, 6)


class Twice(torch.optim.SGD):
    """Holds an optimizer with groups of its own, as sharding wrappers do."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, lr=0.1)
        self.optim = torch.optim.SGD(params, lr=0.1)


def doubled(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [next(model.parameters())]})
    return optimizer


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda model: "adam", "optimizer is a str; pass a torch.optim.Optimizer"),
        (lambda model: model, "optimizer is a PlainNet"),
        (lambda model: torch.optim.SGD([nn.Parameter(X)], lr=0.1), "holds no parameter of this model; build it from"),
        (lambda model: torch.optim.LBFGS(model.parameters()), "LBFGS, has one state for all .* build it after apply"),
        (lambda model: Twice(list(model.parameters())), "Twice, holds another one with .* build it after apply"),
        (doubled, "holds 1 parameters more than once"),
    ],
)
def test_what_cannot_be_exchanged_is_refused_before_anything_is_touched(build: Any, words: str) -> None:
    model = PlainNet()
    snapshot, optimizer = Snapshot.of(model), build(model)
    with pytest.raises(surgeon.RefusedError, match=words):
        surgeon.apply(model, "spd", 32, optimizer=optimizer)
    assert snapshot.differences(Snapshot.of(model)) == []
    assert len(surgeon.record(model).changes) == 0


@pytest.mark.parametrize("fails", ["exchange", "ledger"])
def test_any_failure_rolls_back_model_and_optimizer(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PlainNet()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.01)
    train(model, optimizer)
    snapshot, facts = Snapshot.of(model), facts_of(optimizer)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if fails == "ledger":
        monkeypatch.setattr(Ledger, "hang_on", fail)
    else:
        state = type("State", (dict,), {"__delitem__": fail})(optimizer.state)
        optimizer.state = state
    with pytest.raises(KeyboardInterrupt):
        surgeon.apply(model, "spd", 32, optimizer=optimizer)
    assert snapshot.differences(Snapshot.of(model)) == []
    assert facts_of(optimizer) == facts
    monkeypatch.undo()
    if fails == "ledger":  # negative control: without a failure both change
        surgeon.apply(model, "spd", 32, optimizer=optimizer)
        assert snapshot.differences(Snapshot.of(model)) and facts_of(optimizer) != facts


def test_a_second_application_changes_no_optimizer() -> None:
    model = PlainNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    surgeon.apply(model, "spd", 32, optimizer=optimizer)
    train(model, optimizer)
    facts = facts_of(optimizer)
    surgeon.apply(model, "spd", 32, optimizer=optimizer)
    assert facts_of(optimizer) == facts
