"""One pass over the data gives the numbers that a pass for each variant gives, however odd the model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.densenet import DenseNet
from torch import Tensor, nn

import surgeon
from analysis import engine
from analysis.engine import Replay
from analysis.parts import units
from analysis.sweeping import sweep
from analysis.treatments import Treatments
from analysis.variants import Variant
from tests.analysis import odd_nets
from tests.analysis.odd_nets import Odd, odd
from tests.analysis.sweeping import batches, both_ways, differences, plan_of, swept
from tests.contracts import stir
from tests.zoo import FAMILIES, Entry, PlainNet


def built(name: str, size: int = 32, **arguments: Any) -> Any:
    return pytest.param(name, size, arguments, id=name)


def model_of(name: str, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return stir(timm.create_model(name, **{"num_classes": 10, **arguments})).eval()


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        built("test_resnet"),
        built("test_vit", img_size=32),
        built("test_convnext"),
        built("test_efficientnet"),
        pytest.param("test_nfnet", 32, {}, id="test_nfnet", marks=pytest.mark.slow),
        built("fcn", 8, depth=2, width=16, img_size=8),
        built("digits_vgg16"),
        built("preact_resnet18", 16, width=4),
        built("preact_resnet18_plain", 16, width=4),
        built("resnet18", stem_width=8, channels=(8, 8, 16, 16)),
    ],
)
def test_timm(name: str, size: int, arguments: dict[str, Any]) -> None:
    model = model_of(name, arguments)
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)) if name != "fcn" else 3
    both_ways(model, batches(size, [2, 1], channels))


@pytest.mark.slow
@pytest.mark.parametrize("entry", FAMILIES, ids=str)
def test_family(entry: Entry) -> None:
    both_ways(stir(entry.build()), batches(entry.size))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sequencer2d_s", "efficientformer_l1", "tiny_vit_5m_224", "efficientvit_m0"])
def test_lists_and_memories_of_weights(name: str) -> None:
    """Recurrent layers hold their weights in a list too; attention remembers what it computed from them."""
    both_ways(model_of(name, {}), batches(224, [2, 1]))


def test_features_of_a_densenet_are_shared() -> None:
    both_ways(stir(DenseNet(4, (2, 2), num_classes=10)).eval(), batches(32))


def test_a_recurrent_layer() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(24, 6, batch_first=True), nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x.permute(0, 2, 1, 3).flatten(2))[0].mean(1))

    both_ways(Rows().eval(), batches(8))  # which insists that treating the layer changes the loss


@pytest.mark.parametrize("level", [pytest.param("layer", marks=pytest.mark.slow), "stage"])
def test_levels(level: str) -> None:
    both_ways(model_of("test_resnet", {}), batches(32, [2]), level)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("test_vit", 160), ("efficientvim_m1", 224)])
def test_values_of_the_model_itself(name: str, size: int) -> None:
    both_ways(model_of(name, {}), batches(size, [2, 1]), "layer")


@pytest.mark.slow
def test_attention_biases_that_a_module_holds_itself() -> None:
    # on noise the positions of LeViT's last map are alike to rounding, and no bias of its attention changes the loss
    coarse = [(200 * nn.functional.interpolate(images, 224), y) for images, y in batches(4, [2, 1])]
    both_ways(model_of("levit_128s", {}), coarse, "layer")


# code that makes replaying hard

ODD = {
    odd_nets.adds_in_place: [],
    odd_nets.ignores_the_answer: ["b", "c", "head"],
    odd_nets.writes_its_input: [],
    odd_nets.runs_one_conv_three_times: [],
    odd_nets.shares_a_weight: [],
    odd_nets.reads_a_weight_itself: [],
    odd_nets.reads_a_weight_before_the_call: ["a"],
    odd_nets.hands_on_dicts: [],
    odd_nets.attends: [],
    odd_nets.fills_a_list: ["layer2", "layer3", "head"],
    odd_nets.keeps_a_map_on_itself: ["b"],
    odd_nets.reads_another_units_weight: ["b"],
    odd_nets.squeezes: [],
    odd_nets.writes_on_the_images: [],
    odd_nets.statistics_of_the_batch: [],
    odd_nets.remembers_and_reads_constants: [],
}


@pytest.mark.parametrize("code", ODD, ids=lambda code: code.__name__)
def test_odd_code(code: Callable[[Odd, Tensor], Tensor]) -> None:
    model = odd(code)
    found = units(model, "layer", (3, 8, 8))
    full = {unit.name for unit in found if any(unit.path.split(".")[0] == part for part in ODD[code])}
    for memory in (2**30, 6000):
        readings = both_ways(model, batches(8), found, full=sorted(full), memory=memory)
        assert readings.images("final") == 5


def test_every_odd_code_is_tried() -> None:
    codes = [v for k, v in vars(odd_nets).items() if callable(v) and getattr(v, "__annotations__", {}).get("m")]
    assert set(ODD) == set(codes)


def test_without_the_check_a_replay_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the nasty network is really computed wrongly, and the comparison sees it."""
    model = odd(odd_nets.reads_another_units_weight)
    found, data = units(model, "layer", (3, 8, 8)), batches(8)
    naive = swept(plan_of(model, data, found, method="naive"))
    monkeypatch.setattr("analysis.runner.difference", lambda one, other: 0.0)
    plan = plan_of(model, data, found)
    assert any(name.startswith("'b|") for name in differences(swept(plan), naive)) and not plan.notes


def test_an_error_of_the_model_itself_comes_through() -> None:
    class Breaks(Exception):
        pass

    def code(m: Odd, x: Tensor) -> Tensor:
        if m.b.weight.abs().max() > 5:
            raise Breaks
        return m.c(m.b(m.a(x)))

    model = Odd(code).eval()
    plan = plan_of(model, batches(8), units(model, "layer", (3, 8, 8)), whole=False)
    b = next(i for i, v in enumerate(plan.variants) if v.part == "b")
    plan.variants[b] = replace(plan.variants[b], values=lambda: {"b.weight": torch.full((6, 6, 3, 3), 9.0)})
    with pytest.raises(Breaks):
        sweep(plan)


def test_what_a_model_remembers_is_of_the_weights_it_has() -> None:
    """As if the treated values had been there from the start."""
    model, data = odd(odd_nets.remembers_and_reads_constants), batches(8)
    found = units(model, "layer", (3, 8, 8))
    model(data[0][0])
    plan = plan_of(model, data, found, whole=False)
    readings = swept(plan)
    for variant in plan.variants:
        twin = odd(odd_nets.remembers_and_reads_constants)
        twin.load_state_dict({**twin.state_dict(), **variant.values()})
        losses = [F.cross_entropy(twin(x).detach(), y, reduction="none") for x, y in data]
        assert np.allclose(readings.values(variant.key, "loss"), torch.cat(losses).numpy(), 1e-6)


# what is computed


def test_only_what_lies_behind_a_unit_is_computed() -> None:
    model = model_of("test_resnet", {})
    found = units(model, "block", (3, 32, 32))
    ran: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: ran.update({name: ran.get(name, 0) + 1}))
    one = plan_of(model, batches(32, [2] * 6), found, whole=False)
    swept(one)
    single = dict(ran)
    ran.clear()
    swept(replace(one, method="naive", notes=[]))
    first, *_, last = ran
    assert single[first] < ran[first] / 2, "the first conv is computed for itself only"
    assert single[last] < ran[last] + 30, "the last one for all, but on the first batch, where all is checked"
    assert sum(single.values()) < 0.8 * sum(ran.values())


def test_memory_cuts_batches_and_says_so() -> None:
    model, data = odd(odd_nets.adds_in_place), batches(8, [6, 9])
    found = units(model, "layer", (3, 8, 8))
    whole, cut = plan_of(model, data, found), plan_of(model, data, found, memory=6000)
    assert differences(swept(whole), swept(cut)) == [] and not whole.notes
    assert len(cut.notes) == 1 and "cut to 3 images" in cut.notes[0]


def test_larger_batches_behind_a_small_one_are_not_cut() -> None:
    sizes: list[int] = []
    model = odd(odd_nets.adds_in_place)
    model.stem.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    swept(plan_of(model, batches(8, [2, 7]), units(model, "layer", (3, 8, 8))[:1]))
    assert set(sizes) == {2, 7}


# models that draw


def dropped(m: Odd, x: Tensor) -> Tensor:
    return m.c(F.dropout(m.b(F.dropout(m.a(x), 0.3)), 0.3))


def shuffling(op: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return surgeon.apply(PlainNet(), surgeon.get_op(op)(**settings), 32).eval()


def stochastic() -> nn.Module:
    model = timm.create_model("blocknet_42", width=4, num_classes=10)
    return surgeon.apply(model, surgeon.get_op("stochastic")(r=2, s=1, when="both"), 16).eval()


DRAWING: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "dropout": (lambda: Odd(dropped).eval(), 8),
    "spatial_shuffle": (lambda: shuffling("spatial_shuffle", when="both"), 32),
    "stochastic": (stochastic, 16),
}


@pytest.mark.parametrize("name", DRAWING)
def test_draws_are_the_same_for_every_variant(name: str) -> None:
    build, size = DRAWING[name]
    model, data = build(), batches(size, [3, 2])
    found = units(model, "block", (3, size, size))[::3]
    plan = plan_of(model, data, found)
    one = swept(plan)
    assert sum("same draws" in note for note in plan.notes) == 1
    for other in (replace(plan, method="naive"), replace(plan, memory=6000), plan):
        assert differences(one, swept(replace(other, notes=[]))) == [], "repeatable, in every way"
    if name == "dropout":
        assert differences(one, swept(replace(plan, notes=[], seed=1))), "another seed draws other numbers"
    same = [Variant(found[0].name, "none", 0, dict)]
    readings = swept(replace(plan, variants=same, notes=[]))
    assert not readings.paired(same[0].key, "loss").any(), "an untreated variant differs in nothing"


# the parts of the engine


def test_a_replay_answers_from_memory_what_does_not_depend_on_the_unit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)).eval()
    x = torch.randn(2, 3, 9, 9)
    replay = Replay(model, {str(i): ([model[i]], [model[i]]) for i in (0, 2, 3)})
    with torch.no_grad():
        known = replay.record(lambda: model(x))
        for unit, computed in (("0", 4), ("2", 2), ("3", 1)):
            assert torch.equal(replay.run(unit, lambda: model(x)), known)
            assert replay.computed == computed
        assert replay.bytes() > 0
        replay.forget()
        assert replay.bytes() == 0
    assert [type(m).__name__ for m in replay.behind("3")] == []


def test_modules_are_called_as_ever_afterwards() -> None:
    usual, model = nn.Module.__call__, nn.Linear(2, 2)
    replay = Replay(model, {})
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        replay.record(lambda: model(torch.rand(1, 2)) / (1 // 0))
    assert nn.Module.__call__ is usual


def test_arguments_are_compared_with_their_places() -> None:
    x = torch.rand(2)
    known = engine._weak((x, 1), {"gain": 2.0})
    assert engine._are(known, (x, 1), {"gain": 2.0})
    others: list[tuple[Any, Any]] = [((x.clone(), 1), {"gain": 2.0}), ((x, 2), {"gain": 2.0})]
    others += [((x, 1), {"bias": 2.0}), (((x, 1),), {"gain": 2.0}), ((x, True), {"gain": 2.0})]
    assert [engine._are(known, *other) for other in others] == [False] * 5


def test_fresh_values_reach_the_computation() -> None:
    """What a conv computes with, seen from inside, is exactly what the treatment says; then what it was."""
    model = model_of("test_resnet", {})
    other = timm.create_model("test_resnet", num_classes=10)
    treatments = Treatments(model, initial=other, draws=2, seed=3)
    found = units(model, "block", (3, 32, 32))
    seen: list[Tensor] = []
    model.layer2[0].conv1.register_forward_hook(lambda m, *_: seen.append(m.weight.detach().clone()))
    name = "layer2.0.conv1.weight"
    variants = [
        Variant(u.name, t, d, lambda u=u, t=t, d=d: treatments.values(t, d, u.parameters, u.buffers))
        for u in found
        if name in u.parameters
        for t, d in (("rerand", 0), ("rerand", 1), ("0", 0))
    ]
    plan = replace(plan_of(model, batches(32, [2]), found, method="naive"), variants=variants)
    swept(plan)
    values = [treatments.state(t, d)[name] for t, d in (("rerand", 0), ("rerand", 1), ("0", 0))]
    expected = [model.layer2[0].conv1.weight, *values]
    assert [torch.equal(a, b) for a, b in zip(seen[-4:], expected, strict=True)] == [True] * 4
    assert len({float(np.abs(v.detach().numpy()).sum()) for v in expected}) == 4
    assert torch.equal(values[2], other.layer2[0].conv1.weight)
