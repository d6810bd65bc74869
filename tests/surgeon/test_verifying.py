"""`verify`: the same function only where the difference is rounding, whatever the outputs are made of."""

import copy
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.differences import Difference, tensors_in
from tests.contracts import Snapshot, stir
from tests.zoo import TINY, Entry, PlainNet, entries

X = torch.rand(2, 3, 32, 32)
Pair = namedtuple("Pair", "logits other")


@dataclass
class Output:
    logits: Tensor
    loss: float | None = None


class Plain:
    """An object that is no container."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.itself = logits, self


class Answers(nn.Module):
    """One conv; ``pack`` makes the answer of its logits."""

    def __init__(self, pack: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.conv(x).mean((2, 3)) * self.scale)


class Owner(nn.Module):
    """Its pool is a functional site; what it takes besides the features is the test's."""

    def forward(self, x: Tensor, *, scale: float, shift: Tensor | None = None) -> Tensor:
        y = F.avg_pool2d(x, 2) * scale
        return y if shift is None else y + shift


class Calling(nn.Module):
    def __init__(self, owner: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.b, self.c, self.call = owner, nn.Conv2d(3, 4, 3, 2, 1), call

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.call(self.b, x)).mean((2, 3))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x.add_(1), 2)


def pair(model: nn.Module, recipe: Any = "spd") -> tuple[nn.Module, nn.Module]:
    return model, surgeon.apply(copy.deepcopy(model), recipe, 32)


def output(verification: surgeon.Verification) -> dict[str, Any]:
    return verification.rows[-1]


@pytest.mark.parametrize(**entries(TINY, (Entry("test_nfnet"), Entry("resnet18"))))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_rewrite_is_the_same_function(entry: Entry, dtype: torch.dtype) -> None:
    before = stir(entry.build()).to(dtype)
    after = surgeon.apply(copy.deepcopy(before), "spd", entry.size)
    verification = surgeon.verify(before, after, torch.rand(2, 3, entry.size, entry.size))
    assert verification.same and verification.verdict.startswith("same function: over 2 images the largest relative")
    assert all(row["relative"] <= row["limit"] / 4 for row in verification.rows if row["relative"] is not None)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_nfnet", "resnet18"])
@pytest.mark.parametrize("noise", [1e-4, 1e-5])
def test_weights_off_by_more_than_rounding_are_noticed(name: str, noise: float) -> None:
    before, after = pair(stir(timm.create_model(name)).eval())
    with torch.no_grad():
        for p in after.parameters():
            p.mul_(1 + noise * torch.randn_like(p))
    verification = surgeon.verify(before, after, X)
    assert not verification.same and verification.verdict.startswith("not the same function: over 2 images it first")
    assert surgeon.verify(before, after, X, tolerance=0.1).same


@pytest.mark.parametrize("name", ["test_resnet", "resnet18"])
def test_one_wrong_site_is_noticed_and_named(name: str) -> None:
    before, after = pair(stir(timm.create_model(name)).eval())
    path = surgeon.record(after).changes[-1].path
    with torch.no_grad():
        after.get_submodule(path).weight *= 1.001
    verification = surgeon.verify(before, after, X)
    assert f"it first differs at '{path}', by" in verification.verdict
    wrong = [row["path"] for row in verification.rows if row["relative"] and row["relative"] > row["limit"]]
    assert wrong == [path, "output"]  # sites behind it get the right input


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["before", "after"])
def test_values_that_are_not_finite_in_one_only_differ(value: float, side: str) -> None:
    models = dict(zip(("before", "after"), pair(PlainNet().eval()), strict=True))
    models[side].head.bias.data[1] = value
    verification = surgeon.verify(**models, data=X)
    assert verification.verdict == (
        "not the same function: over 2 images it first differs at 'output', a value is not finite in one of them only, "
        "top-1 agreement 0.00%"
    )


def test_values_that_are_not_finite_in_both_agree() -> None:
    before, after = pair(PlainNet().eval())
    for model in (before, after):
        model.head.bias.data[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert surgeon.verify(before, after, X).same
    after.head.bias.data[1] *= -1
    assert not surgeon.verify(before, after, X).same


def test_another_number_of_classes_is_not_the_same() -> None:
    before, after = pair(PlainNet().eval())
    after.head = nn.Linear(12, 7)
    verification = surgeon.verify(before, after, X)
    assert not verification.same and verification.agreement is None
    assert "differs at 'output', (2, 10) before, (2, 7) after" in verification.verdict


PACKS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda y: y,
    "tuple": lambda y: (y, None),
    "nested": lambda y: [{"maps": [torch.ones(2), (y,)]}],
    "dataclass": lambda y: Output(y),
    "mapping": lambda y: OrderedDict(logits=y),
    "namedtuple": lambda y: Pair(y, 3),
    "object": lambda y: Plain(y),
    "complex": lambda y: torch.complex(torch.zeros_like(y), y),
    "scales apart": lambda y: (y, y * 1e8),
}


@pytest.mark.parametrize("pack", PACKS)
def test_every_tensor_of_an_answer_is_compared(pack: str) -> None:
    before, after = pair(Answers(PACKS[pack]).eval())
    assert surgeon.verify(before, after, X).same
    after.scale.data += 1e-3
    verification = surgeon.verify(before, after, X)
    assert not verification.same and "differs at 'output'" in verification.verdict
    assert verification.rows[0]["relative"] <= verification.rows[0]["limit"]  # the conv is still right


def test_a_small_tensor_beside_a_large_one_counts_by_itself() -> None:
    before, after = pair(Answers(lambda y: {"boxes": torch.full((3,), 600.0), "scores": y * 1e-4}).eval())
    after.scale.data += 1e-2
    assert output(surgeon.verify(before, after, X))["note"] == "at ['scores']"


def test_other_tensors_than_before_are_not_the_same() -> None:
    before, after = pair(Answers(lambda y: {"logits": y}).eval())
    after.pack = lambda y: {"logits": y, "features": y}
    verdict = surgeon.verify(before, after, X).verdict
    assert "['logits'] (2, 4) before, ['logits'] (2, 4), ['features'] (2, 4) after" in verdict


def test_an_answer_without_a_tensor_is_no_proof() -> None:
    before, after = pair(Answers().eval())
    before.pack = after.pack = lambda y: "cat"
    verification = surgeon.verify(before, after, X)
    assert not verification.same
    assert verification.verdict == "cannot tell whether it is the same function: str holds no tensor to compare"


@pytest.mark.parametrize(
    "call",
    [
        lambda owner, x: owner(x, scale=3.0),
        lambda owner, x: owner(x=x, scale=3.0, shift=torch.ones(3, 1, 1)),
        lambda owner, x: owner(owner(x, scale=3.0), scale=3.0),
    ],
    ids=["required", "all by name", "twice"],
)
def test_arguments_by_name_reach_the_site(call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    before, after = pair(Calling(Owner(), call).eval())
    verification = surgeon.verify(before, after, X)
    assert verification.same and [row["path"] for row in verification.rows] == ["b", "c", "output"]
    assert all(row["relative"] is not None for row in verification.rows)
    next(after.b.parameters()).data[0] *= 1.01
    assert "it first differs at 'b'" in surgeon.verify(before, after, X).verdict


def test_a_site_that_works_in_place_gets_its_input_as_it_came() -> None:
    before, after = pair(Calling(InPlace(), lambda owner, x: owner(x)).eval())
    data = X.clone()
    assert surgeon.verify(before, after, data).same
    assert torch.equal(data, X)


def test_inner_shapes_may_change_by_design() -> None:
    before, after = pair(stir(timm.create_model("test_resnet")).eval(), {"spd": {"order": "conv-spd"}})
    verification = surgeon.verify(before, after, X)
    notes = {row["note"] for row in verification.rows if row["relative"] is None}
    assert verification.same and notes and all("by design, see the output" in note for note in notes)
    after.fc.bias.data[0] += 1
    assert not surgeon.verify(before, after, X).same


def test_models_that_draw_random_numbers_draw_the_same() -> None:
    before, after = pair(Answers(lambda y: y + torch.rand(4)).eval())
    state = torch.get_rng_state()
    assert surgeon.verify(before, after, X).same
    assert torch.equal(state, torch.get_rng_state())


class Drawing(nn.Module):
    """Its pool is a functional site, and it draws a random number each time."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) + torch.rand(1)


def test_a_site_that_draws_starts_where_it_started_in_the_model() -> None:
    before, after = pair(Calling(Drawing(), lambda owner, x: owner(owner(x + torch.rand(1)))).eval())
    verification = surgeon.verify(before, after, X)
    assert verification.same
    assert {row["path"]: row["limit"] > 1e-4 for row in verification.rows} == {"b": True, "c": False, "output": True}
    assert all(row["limit"] < 1e-3 for row in verification.rows)  # not the spread of what is drawn
    next(after.b.parameters()).data[0] *= 1.01
    assert "it first differs at 'b'" in surgeon.verify(before, after, X).verdict


class Graded(PlainNet):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(x)


class Named(nn.Module):
    """A site by the name that the whole answer goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x).mean((2, 3))


@pytest.mark.parametrize("build", [Graded, Named])
def test_unusual_models_are_compared_like_any(build: Callable[[], nn.Module]) -> None:
    before, after = pair(build().eval())
    verification = surgeon.verify(before, after, X)
    assert verification.same and len(verification.rows) == 1 + surgeon.record(after).count("rewritten")
    next(after.parameters()).data *= 1.01
    assert not surgeon.verify(before, after, X).same


def test_hooks_of_the_model_run_once() -> None:
    before, after = pair(PlainNet().eval())
    for model in (before, after):
        model.register_forward_pre_hook(lambda _module, args: (args[0] * 1e3,))
    verification = surgeon.verify(before, after, X)
    assert verification.same and output(verification)["limit"] < 1e-4


def test_nothing_finite_is_no_proof() -> None:
    before, after = pair(PlainNet().eval())
    for model in (before, after):
        model.head.bias.data.fill_(float("nan"))
    verification = surgeon.verify(before, after, X)
    assert not verification.same
    assert verification.verdict == "cannot tell whether it is the same function: no value is finite"
    after.head.bias.data.zero_()
    assert surgeon.verify(before, after, X).verdict.startswith("not the same function")


@pytest.mark.parametrize("tolerance", ["0.1", -1, -1e-9, float("nan"), float("inf"), True, [0.1]])
def test_a_tolerance_is_a_number_from_0_up(tolerance: Any) -> None:
    before, after = pair(PlainNet().eval())
    with pytest.raises(surgeon.SurgeonError, match=r"tolerance is .*; it is a relative difference from 0 up, such as"):
        surgeon.verify(before, after, X, tolerance=tolerance)
    assert surgeon.verify(before, copy.deepcopy(before), X, tolerance=0).same


@pytest.mark.gpu
@pytest.mark.parametrize("moved", ["before", "after"])
def test_models_on_two_devices_are_compared_on_one(moved: str) -> None:
    models = dict(zip(("before", "after"), pair(stir(timm.create_model("resnet18")).eval()), strict=True))
    models[moved].cuda()
    assert surgeon.verify(**models, data=X).same
    assert [name for name, model in models.items() if next(model.parameters()).is_cuda] == [moved]
    models["after"].conv1.weight.data *= 1.1
    assert not surgeon.verify(**models, data=X).same


def test_code_that_fixes_a_precision_is_measured_in_units_in_the_last_place() -> None:
    before, after = pair(Answers(lambda y: y if y.dtype == torch.float32 else 1 / 0).eval())
    verification = surgeon.verify(before, after, X)
    assert verification.same and output(verification)["limit"] == 1024 * torch.finfo(torch.float32).eps
    after.scale.data += 1e-3
    assert not surgeon.verify(before, after, X).same


def test_verify_leaves_no_trace() -> None:
    before, after = pair(PlainNet())
    after.block.norm1.eval()
    snapshots = [Snapshot.of(model) for model in (before, after)]
    surgeon.verify(before, after, X)
    with pytest.raises(surgeon.SurgeonError):
        surgeon.verify(before, after, [X, X[:, :2]])
    assert [s.differences(Snapshot.of(model)) for s, model in zip(snapshots, (before, after), strict=True)] == [[], []]


def test_data_comes_as_a_tensor_or_in_batches() -> None:
    before, after = pair(PlainNet().eval())
    found = [surgeon.verify(before, after, d) for d in (X, iter([X[:1], X[1:]]), [(X, torch.ones(2))], X.bfloat16())]
    assert [v.images for v in found] == [2, 2, 2, 2] and all(v.same and v.agreement == 1.0 for v in found)
    before.head.weight.data[0] += 10
    assert surgeon.verify(before, after, X).agreement == 0.0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "verify got no image"),
        (X[:0], "verify got no image"),
        (5, r"verify got int; pass images \(N, C, H, W\)"),
        ([[]], "verify got list"),
        (X[0], r"verify got Tensor of shape \(3, 32, 32\)|verify got no image"),
        (X[:, :2], r"the model before \(PlainNet\) cannot run on images of shape \(2, 2, 32, 32\): RuntimeError"),
    ],
)
def test_data_that_is_no_images(data: Any, words: str) -> None:
    before, after = pair(PlainNet().eval())
    with pytest.raises(surgeon.SurgeonError, match=words):
        surgeon.verify(before, after, data)


def test_models_that_cannot_be_compared() -> None:
    before, after = pair(timm.create_model("test_resnet").eval())
    with pytest.raises(surgeon.SurgeonError, match=r"has no 'conv1\.0', which was rewritten .* the model it was made"):
        surgeon.verify(timm.create_model("test_vit"), after, X)
    with pytest.raises(surgeon.SurgeonError, match=r"got torch\.bfloat16 before and torch\.float32 after; .*\.to"):
        surgeon.verify(before.bfloat16(), after, X)
    with pytest.raises(surgeon.SurgeonError, match="on the meta device, which has no values; load its weights first"):
        surgeon.verify(copy.deepcopy(after).to("meta"), after, X)
    with pytest.raises(surgeon.SurgeonError, match=r"these are one object; keep copy\.deepcopy"):
        surgeon.verify(after, after, X)


def test_an_unrelated_model_with_the_same_paths_is_not_the_same() -> None:
    after = surgeon.apply(timm.create_model("resnet18").eval(), "spd")
    verification = surgeon.verify(timm.create_model("resnet26").eval(), after, X)
    assert not verification.same and verification.verdict.startswith("not the same function")


def test_tensors_are_found_by_name_once_per_way() -> None:
    loop: dict[str, Any] = {"a": X, "b": [Output(X), 3, "text", None]}
    loop["loop"] = loop
    assert [name for name, _ in tensors_in(loop)] == ["['a']", "['b'][0].logits"]


def test_a_difference_keeps_the_worst_of_all_batches() -> None:
    difference = Difference(least=1e-7)
    for gap in (0.0, 0.5, 0.25):
        difference.add(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + gap]))
    assert difference.row("site", 16, None) == {
        "path": "site", "max_abs": 0.5, "relative": 0.25, "limit": 16e-7, "note": "",
    }  # fmt: skip
    assert difference.row("site", 16, 0.3)["limit"] == 0.3
