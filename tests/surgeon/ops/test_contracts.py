"""Every op keeps the ten contracts on every model of the table; an op without a line in ``OPS`` runs as it is."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models._features_fx import create_feature_extractor
from torch import nn

import surgeon
from tests import contracts
from tests.contracts import Snapshot, images, operate, rewritten, run, stir, undone
from tests.zoo import FAMILIES, TINY, Entry, PlainNet


@dataclass(frozen=True)
class Case:
    """A recipe and what it promises.

    Args:
        recipe: As ``apply`` takes it.
        exact: It starts as the same function.
        learns: It brings parameters.
        modes: Modes and ``requires_grad`` stay.
    """

    recipe: Any
    exact: bool = True
    learns: bool = True
    modes: bool = True


OPS = {
    "spd": Case("spd"),
    "spd minimal full": Case({"spd": {"kernel": "minimal", "pool_conv": "full"}}),
    "spd convs only": Case({"spd": {"pool": "keep", "kernel": 3}}),
    "spd pools removed": Case({"spd": {"pool": "remove"}, "select": {"exclude": "*.downsample.*"}}, exact=False),
    "spd fresh": Case({"spd": {"init": "fresh"}}, exact=False),
    "conv-spd": Case({"spd": {"order": "conv-spd"}}),
    "conv-spd before the norm": Case({"spd": {"order": "conv-spd", "before": "norm"}}),
    "gap_fc": Case({"gap_fc": {}, "select": {"last": 1}}, exact=False),
    "gap_fc everywhere": Case({"gap_fc": {"init": "fresh"}}, exact=False),
    "gap": Case({"gap": {}}, exact=False, learns=False, modes=False),
    "gap of three": Case({"gap": {"depths": [0, 1, -1], "freeze": False}}, exact=False, modes=False),
    "spatial_shuffle": Case({"spatial_shuffle": {"when": "train"}}, learns=False),
    "patch_shuffle": Case({"patch_shuffle": {"patch": 4}}, exact=False, learns=False),
    "channel_shuffle": Case({"channel_shuffle": {"when": "eval"}}, exact=False, learns=False),
    "remove": Case("remove", exact=False, learns=False),
    "freeze": Case({"freeze": {}, "select": {"last": 1}}, learns=False, modes=False),
    "freeze at init": Case({"freeze": {"at": "init"}}, exact=False, learns=False, modes=False),
    "stochastic": Case({"stochastic": {"r": 2, "when": "both"}}, exact=False, learns=False),
    "stochastic in training": Case({"stochastic": {"r": 1, "when": "train"}}, learns=False),
    "shift": Case("shift", exact=False),
    "shift active": Case({"shift": {"mode": "active", "init": "fresh"}}, exact=False),
    "shift grouped": Case({"shift": {"mode": "grouped"}}, exact=False),
    "aps": Case({"aps": {"norm": "inf", "padding": "circular"}}, exact=False, learns=False),
    "blurpool": Case({"blurpool": {"stem": "blur", "patchify": "blur"}}, exact=False, learns=False),
}
for name in surgeon.list_ops():
    if not any(name == case.recipe or name in case.recipe for case in OPS.values()):
        OPS[name] = Case(name, exact=surgeon.get_op(name)().exact, learns=False)
EXACT = {name: case for name, case in OPS.items() if case.exact}
MAIN = {name: OPS[name] for name in ("spd", "conv-spd", "spatial_shuffle")}


def over(cases: dict[str, Case], entries: tuple[Entry, ...]) -> dict[str, Any]:
    """Arguments of ``parametrize``: every case on every model."""
    pairs = [(case, entry) for case in cases.values() for entry in entries]
    ids = [f"{name}-{entry}" for name in cases for entry in entries]
    return {"argnames": ("case", "entry"), "argvalues": pairs, "ids": ids}


MADE: dict[tuple[int, str], tuple[nn.Module, nn.Module]] = {}  # operating takes longer than the checks


def operated(case: Case, entry: Entry) -> tuple[nn.Module, nn.Module]:
    """The stirred model, and a copy operated; skipped where every site is refused or unchanged."""
    pair = MADE.get((id(case), entry.name)) or _operated(case, entry)
    if entry in TINY:
        MADE[id(case), entry.name] = pair
    if not rewritten(pair[1]):
        pytest.skip("nothing to rewrite here")
    return copy.deepcopy(pair[0]), copy.deepcopy(pair[1])


def _operated(case: Case, entry: Entry) -> tuple[nn.Module, nn.Module]:
    before = stir(entry.build().to(torch.float64))
    return before, operate(copy.deepcopy(before), case.recipe, entry.size)


@pytest.mark.parametrize(**over(OPS, TINY))
def test_shape(case: Case, entry: Entry) -> None:
    contracts.shape(*operated(case, entry), entry.sizes)


@pytest.mark.parametrize(**over(EXACT, TINY))
def test_exact_and_its_control(case: Case, entry: Entry) -> None:
    before, after = operated(case, entry)
    contracts.exact(before, after, entry.sizes)
    assert contracts.control(before, after, entry.sizes[0], limit=3) > 0 or not case.learns


@pytest.mark.parametrize(**over(OPS, TINY))
def test_once(case: Case, entry: Entry) -> None:
    contracts.once(operated(case, entry)[1], case.recipe, entry.size)


@pytest.mark.parametrize(**over(MAIN, TINY[::3]))
def test_atomic(case: Case, entry: Entry) -> None:
    operated(case, entry)
    model = stir(entry.build())
    assert contracts.atomic(model, case.recipe, entry.size) > 0


@pytest.mark.slow
@pytest.mark.parametrize(**over(MAIN, TINY[1:3]))
def test_atomic_on_more(case: Case, entry: Entry) -> None:
    test_atomic(case, entry)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(**over(OPS, TINY))
def test_carries(case: Case, entry: Entry, dtype: torch.dtype) -> None:
    before = entry.build().to(dtype).to(memory_format=torch.channels_last)
    for i, module in enumerate(before.modules()):
        module.training = i % 3 == 0
    for i, p in enumerate(before.parameters()):
        p.requires_grad_(i % 2 == 0)
    after = operate(copy.deepcopy(before), case.recipe, entry.size)
    if not rewritten(after):
        pytest.skip("nothing to rewrite here")
    contracts.carries_dtype(after, dtype)
    if case.modes:
        contracts.carries_modes(before, after)
    assert contracts.carries_memory_format(before, after) > 0 or not (case.learns and case.modes)


@pytest.mark.parametrize(**over(OPS, TINY))
def test_learns(case: Case, entry: Entry) -> None:
    before, after = operated(case, entry)
    assert contracts.learns(before, after, images(entry.size, batch=4)) > 0 or not case.learns


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


@pytest.mark.parametrize(**over({"spd": MAIN["spd"]}, FAMILIES))
def test_families(case: Case, entry: Entry) -> None:
    before, after = operated(case, entry)
    contracts.exact(before, after, entry.sizes)
    contracts.shape(before, after, entry.sizes[:1])
    contracts.once(after, case.recipe, entry.size)
    snapshot = Snapshot.of(before, identity=False)
    stir(after, seed=5)
    undone(snapshot, surgeon.undo(after), identity=False)


@pytest.mark.slow
@pytest.mark.parametrize(**over({name: case for name, case in MAIN.items() if name != "spd"}, FAMILIES))
def test_families_other_settings(case: Case, entry: Entry) -> None:
    test_families(case, entry)


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


WRAPPERS = {
    "list": ("test_resnet", {}),
    "dict": ("test_resnet", {"feature_cls": "dict"}),
    "hooks": ("test_efficientnet", {"feature_cls": "hook"}),
    "getter": ("resnet18", {"feature_cls": "getter"}),
    "graph": ("test_resnet", {"feature_cls": "fx"}),
    "own": ("mobilenetv3_small_050", {"out_indices": (1, 3)}),
}


def maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    found = run(model, x)
    return list(found.values() if isinstance(found, dict) else found)


@pytest.mark.parametrize("case", MAIN.values(), ids=MAIN)
@pytest.mark.parametrize(("name", "arguments"), WRAPPERS.values(), ids=WRAPPERS)
def test_features_only_wrappers(name: str, arguments: dict[str, Any], case: Case) -> None:
    model = stir(timm.create_model(name, features_only=True, **arguments).double().eval())
    sizes, cls, channels = ((64, 64), (77, 90)), type(model), model.feature_info.channels()
    before, snapshot = {size: maps(model, images(size)) for size in sizes}, Snapshot.of(model)
    assert surgeon.apply(model, case.recipe, 64) is model and type(model) is cls and rewritten(model)
    for size in sizes:
        for old, new in zip(before[size], maps(model, images(size)), strict=True):
            assert contracts.relative(old, new) < contracts.TOLERANCE
    assert model.feature_info.channels() == channels
    undone(snapshot, surgeon.undo(model))


@pytest.mark.parametrize("case", MAIN.values(), ids=MAIN)
def test_features_are_extracted_from_operated_models(case: Case) -> None:
    before = stir(timm.create_model("test_resnet").double().eval())
    after = operate(copy.deepcopy(before), case.recipe, 64)
    nodes = {"layer2": "middle", "layer4": "last"}
    old, new = (create_feature_extractor(model, nodes) for model in (before, after))
    for size in (64, 77):
        for name in nodes.values():
            assert contracts.relative(*(run(model, images(size))[name] for model in (old, new))) < contracts.TOLERANCE


# each contract can fail


def plain() -> tuple[nn.Module, nn.Module]:
    before = stir(PlainNet().double().eval())
    return before, surgeon.apply(copy.deepcopy(before), "spd", 64)


def fails(contract: Any, *args: Any, match: str | None = None) -> None:
    with pytest.raises(AssertionError, match=match):
        contract(*args)


def test_another_function_fails() -> None:
    before, after = plain()
    with torch.no_grad():
        after.block.conv1.weight.view(-1)[0] += 1
    fails(contracts.exact, before, after, [(64, 64)], match="block.conv1")
    before, after = plain()
    after.stem[0] = nn.Sequential(after.stem[0], nn.ZeroPad2d((1, 0, 1, 0)))
    fails(contracts.exact, before, after, [(64, 64)], match="stem.0")


def test_an_infinite_or_missing_value_fails() -> None:
    before, after = plain()
    with torch.no_grad():
        after.head.bias[0] = float("nan")
    fails(contracts.exact, before, after, [(64, 64)], match="model at")


def test_one_bit_that_did_not_come_back_fails() -> None:
    before, after = plain()
    snapshot = Snapshot.of(before, identity=False)
    undone(snapshot, surgeon.undo(after), identity=False)
    after.head.bias.data.view(torch.int64)[0] ^= 1
    with pytest.raises(AssertionError, match=r"head\.bias bits"):
        undone(snapshot, after, identity=False)


def test_a_buffer_a_class_or_a_mode_that_did_not_come_back_fails() -> None:
    def spoil(model: nn.Module, how: int) -> None:
        if how == 0:
            model.stem[1].num_batches_tracked += 1
        elif how == 1:
            model.stem[0] = nn.Conv2d(3, 8, 3, 2, 1, bias=False).double()
        elif how == 2:
            model.pool.train()
        else:
            model.pool.kernel_size = 4

    for how, words in enumerate(("num_batches_tracked bits", r"stem\.0", "pool mode", "pool keys")):
        before, after = plain()
        snapshot = Snapshot.of(before, identity=False)
        spoil(surgeon.undo(after), how)
        with pytest.raises(AssertionError, match=words):
            undone(snapshot, after, identity=False)


def test_a_lost_protocol_fails() -> None:
    entry = TINY[0]
    before = entry.build().double()
    after = operate(copy.deepcopy(before), "spd", entry.size)
    after.head_hidden_size += 1
    fails(contracts.shape, before, after, entry.sizes[:1], match="head_hidden_size")
    after.head_hidden_size -= 1
    after.feature_info[1]["num_chs"] += 1
    fails(contracts.shape, before, after, entry.sizes[:1], match="feature_info")


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
