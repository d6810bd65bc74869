"""Every op keeps the ten contracts on every model of the table; a new op is one line in ``OPS``."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import surgeon
from tests import contracts
from tests.contracts import Snapshot, images, operate, rewritten, stir, undone
from tests.zoo import FAMILIES, TINY, Entry, PlainNet


@dataclass(frozen=True)
class Case:
    """A recipe; ``exact``: it starts as the same function."""

    recipe: Any
    exact: bool = True


OPS = {
    "spd": Case("spd"),
    "spd minimal full": Case({"spd": {"kernel": "minimal", "pool_conv": "full"}}),
    "spd convs only": Case({"spd": {"pool": "keep", "kernel": 3}}),
    "spd fresh": Case({"spd": {"init": "fresh"}}, exact=False),
    "conv-spd": Case({"spd": {"order": "conv-spd"}}),
    "conv-spd before the norm": Case({"spd": {"order": "conv-spd", "before": "norm"}}),
}
EXACT = {name: case for name, case in OPS.items() if case.exact}
MAIN = {name: OPS[name] for name in ("spd", "conv-spd")}


def over(cases: dict[str, Case], entries: tuple[Entry, ...]) -> dict[str, Any]:
    """Arguments of ``parametrize``: every case on every model."""
    pairs = [(case, entry) for case in cases.values() for entry in entries]
    ids = [f"{name}-{entry}" for name in cases for entry in entries]
    return {"argnames": ("case", "entry"), "argvalues": pairs, "ids": ids}


def operated(case: Case, entry: Entry, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """The stirred model, and a copy operated; skipped where every site is refused or unchanged."""
    before = stir(entry.build().to(dtype))
    after = operate(copy.deepcopy(before), case.recipe, entry.size)
    if not rewritten(after):
        pytest.skip("nothing to rewrite here")
    return before, after


@pytest.mark.parametrize(**over(OPS, TINY))
def test_shape(case: Case, entry: Entry) -> None:
    contracts.shape(*operated(case, entry), entry.sizes)


@pytest.mark.parametrize(**over(EXACT, TINY))
def test_exact_and_its_control(case: Case, entry: Entry) -> None:
    before, after = operated(case, entry)
    contracts.exact(before, after, entry.sizes)
    assert contracts.control(before, after, entry.sizes[0], limit=3) > 0


@pytest.mark.parametrize(**over(OPS, TINY))
def test_once(case: Case, entry: Entry) -> None:
    contracts.once(operated(case, entry)[1], case.recipe, entry.size)


@pytest.mark.parametrize(**over(MAIN, TINY))
def test_atomic(case: Case, entry: Entry) -> None:
    operated(case, entry)
    model = stir(entry.build())
    assert contracts.atomic(model, case.recipe, entry.size) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(**over(OPS, TINY))
def test_carries(case: Case, entry: Entry, dtype: torch.dtype) -> None:
    before = entry.build().to(dtype).to(memory_format=torch.channels_last)
    for i, module in enumerate(before.modules()):
        module.training = i % 3 == 0
    for i, p in enumerate(before.parameters()):
        p.requires_grad_(i % 2 == 0)
    after = operate(copy.deepcopy(before), case.recipe, entry.size)
    contracts.carries_dtype(after, dtype)
    contracts.carries_modes(before, after)
    contracts.carries_memory_format(before, after)


@pytest.mark.parametrize(**over(OPS, TINY))
def test_learns(case: Case, entry: Entry) -> None:
    before, after = operated(case, entry)
    assert contracts.learns(before, after, images(entry.size, batch=4)) > 0


@pytest.mark.parametrize(**over(MAIN, TINY))
def test_leaves_no_trace(case: Case, entry: Entry) -> None:
    def read(model: nn.Module) -> None:
        surgeon.locate(model, entry.size)
        surgeon.record(model)
        try:
            surgeon.plan(model, case.recipe, entry.size)
        except surgeon.RefusedError as error:
            assert "refuses all" in str(error)

    contracts.leaves_no_trace(stir(entry.build()).train(), read)


@pytest.mark.parametrize(**over(MAIN, FAMILIES))
def test_families(case: Case, entry: Entry) -> None:
    before, after = operated(case, entry)
    contracts.exact(before, after, entry.sizes)
    contracts.shape(before, after, entry.sizes[:1])
    contracts.once(after, case.recipe, entry.size)
    snapshot = Snapshot.of(before, identity=False)
    stir(after, seed=5)
    undone(snapshot, surgeon.undo(after), identity=False)


@pytest.mark.parametrize(
    "build", [PlainNet, lambda: torchvision.models.resnet18(num_classes=4)], ids=["plain", "vision"]
)
@pytest.mark.parametrize("case", MAIN.values(), ids=MAIN)
def test_models_no_library_registered(case: Case, build: Any) -> None:
    before = stir(build().double().eval())
    after = operate(copy.deepcopy(before), case.recipe, 64)
    contracts.exact(before, after, [(64, 64), (77, 90)])
    contracts.once(after, case.recipe)
    contracts.learns(before, copy.deepcopy(after), images(64, batch=4))
    undone(Snapshot.of(before, identity=False), surgeon.undo(after), identity=False)


def test_shared_and_aliased_modules_stay_shared() -> None:
    model = PlainNet().double().eval()
    model.alias = model.block
    model.block2 = model.block.conv1
    before = copy.deepcopy(model)
    surgeon.apply(model, "spd", 64)
    assert model.alias is model.block and model.block2 is model.block.conv1
    assert model.block2 is not before.block2 and not isinstance(model.block2, nn.Conv2d)
    contracts.exact(before, model, [(64, 64), (77, 90)])
    surgeon.undo(model)
    assert model.block2 is model.block.conv1 and isinstance(model.block2, nn.Conv2d)


def test_features_only_wrappers() -> None:
    import timm

    before = stir(timm.create_model("test_resnet", features_only=True).double().eval())
    after = surgeon.apply(copy.deepcopy(before), "spd", 64)
    assert type(after) is type(before) and after.feature_info.channels() == before.feature_info.channels()
    for old, new in zip(before(images(77)), after(images(77)), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-10)


# each contract can fail


def plain() -> tuple[nn.Module, nn.Module]:
    before = stir(PlainNet().double().eval())
    return before, surgeon.apply(copy.deepcopy(before), "spd", 64)


def fails(contract: Any, *args: Any, match: str | None = None) -> None:
    with pytest.raises(AssertionError, match=match):
        contract(*args)


def test_a_lost_shape_fails() -> None:
    before, after = plain()
    after.head = nn.Linear(12, 9).double()
    fails(contracts.shape, before, after, [(64, 64)])


def test_a_step_taken_twice_fails() -> None:
    _, after = plain()
    surgeon.undo(after)
    surgeon.apply(after, {"spd": {}, "select": {"path": "stem*"}}, 64)
    fails(contracts.once, after, "spd")


def test_an_edit_left_behind_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.edit.revert", lambda model, log: None)
    fails(contracts.atomic, stir(PlainNet()), "spd", 64)


def test_a_lost_dtype_mode_or_format_fails() -> None:
    before, after = plain()
    fails(contracts.carries_dtype, after.float(), torch.float64)
    after.block.train()
    fails(contracts.carries_modes, before, after)
    before.to(memory_format=torch.channels_last)
    fails(contracts.carries_memory_format, before, after)


def test_a_dead_weight_fails() -> None:
    before, after = plain()
    after.stem[0].weight.requires_grad_(False)
    fails(contracts.learns, before, after, images(64), match="stem")


def test_a_mark_left_by_reading_fails() -> None:
    def touch(model: nn.Module) -> None:
        model.stem[1].num_batches_tracked += 1

    fails(contracts.leaves_no_trace, PlainNet(), touch)
    fails(contracts.leaves_no_trace, PlainNet(), lambda model: torch.rand(1))
    fails(contracts.leaves_no_trace, PlainNet(), lambda model: setattr(model, "seen", True))
