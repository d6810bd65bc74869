"""Exact invariance to circular shifts, with controls that are not invariant; who follows whom; where it declines."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

import surgeon
from surgeon.ops.polyphase import APSPool2d, Choice, Polyphase2d, components, largest
from tests import contracts
from tests.contracts import Snapshot, images, relative, rewritten, run, stir
from tests.zoo import PlainNet, Wrap

CIRCULAR = {"aps": {"padding": "circular"}}
SHIFTS = [(1, 0), (0, 1), (3, 5), (-7, 9), (16, 2), (31, 33)]


def worst(model: nn.Module, size: Any = 64, shifts: Any = SHIFTS, by: int = 1) -> float:
    """The largest relative change of the output over circular shifts of the image."""
    x = images(size)
    y = run(model, x)
    return max(relative(y, run(model, x.roll((dy * by, dx * by), (2, 3)))) for dy, dx in shifts)


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return stir(timm.create_model("resnet18", num_classes=10).double().eval())


def stock_with_circular_padding() -> nn.Module:
    model = resnet18()
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1):
        conv.padding_mode = "circular"
    model.maxpool = nn.Sequential(nn.CircularPad2d(1), nn.MaxPool2d(3, 2))
    return model


# the promise


def test_logits_are_the_same_for_every_circular_shift() -> None:
    assert worst(surgeon.apply(resnet18(), CIRCULAR, 64)) < 1e-10


def test_without_aps_or_without_circular_padding_they_are_not() -> None:
    assert worst(stock_with_circular_padding()) > 1e-2
    assert worst(stock_with_circular_padding(), by=32) < 1e-10  # it is its total stride that breaks it
    assert worst(surgeon.apply(resnet18(), "aps", 64)) > 1e-3


def test_a_shortcut_that_chooses_by_itself_breaks_it() -> None:
    model = surgeon.apply(resnet18(), CIRCULAR, 64)
    model.layer3[0].downsample[0].surgeon_before.choice = None
    assert worst(model) > 1e-3


INVARIANT = (
    "resnet50 mobilenetv3_small_050 mobilenetv2_050 convnext_atto regnetx_002 densenet121 nf_regnet_b0 repvgg_a0"
)


@pytest.mark.matrix
@pytest.mark.parametrize("name", [*INVARIANT.split(), "ghostnet_050", "resnet18d", "resnetv2_50"])
def test_families_are_invariant(name: str) -> None:
    before = stir(timm.create_model(name, num_classes=10).double().eval())
    assert worst(surgeon.apply(copy.deepcopy(before), CIRCULAR, 64)) < 1e-10 < 1e-4 < worst(before)


class Block(nn.Module):
    """A strided block of some kind between a stem and a pool."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.end = nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.a, self.b = nn.Conv2d(8, 8, 3, 2, 1, groups=4), nn.Conv2d(8, 8, 1, 2)
        self.c = nn.Conv2d(8, 8, 5, 2, 2, padding_mode="reflect")
        self.pool, self.mean = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.by_4, self.smooth = nn.Conv2d(8, 8, 4, 4), nn.AvgPool2d(3, 1, 1)
        self.wide, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.end(self.mix(F.relu(self.stem(x)))).square().mean((2, 3)))

    def mix(self, x: Tensor) -> Tensor:
        match self.kind:
            case "plain":
                return self.mean(self.smooth(self.pool(self.c(x))))
            case "shortcut last":
                return F.relu(self.a(x)) + self.b(x)
            case "shortcut first":
                skip = self.b(x)
                return F.relu(self.a(x)) + skip
            case "average shortcut":
                return self.a(x) + self.end(self.mean(x))
            case "three branches":
                return self.c(x) + self.a(x) + self.b(x)
            case "concatenation":
                return self.wide(torch.cat([self.a(x), self.pool(x)], 1))
            case "shuffled channels":
                y = self.a(x).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
                return y + self.mean(x.unflatten(1, (4, 2)).sum(2).repeat(1, 2, 1, 1))
            case "functions":
                return F.max_pool2d(x, 2) * self.a(x) + x[:, :, ::2, ::2]
            case "two in a row":
                return self.b(F.relu(self.a(x))) + self.mean(self.pool(x))
            case _:
                return self.by_4(x)


KINDS = {
    "plain": 0,
    "shortcut last": 1,
    "shortcut first": 1,
    "average shortcut": 1,
    "three branches": 2,
    "concatenation": 1,
    "shuffled channels": 1,
    "functions": 2,
    "two in a row": 2,
    "patches": 0,
}


def block(kind: str) -> nn.Module:
    torch.manual_seed(1)
    return stir(Block(kind).double().eval())


@pytest.mark.parametrize("norm", [1, 2, "inf"])
@pytest.mark.parametrize("kind", KINDS)
def test_branches_that_meet_take_the_same_positions(kind: str, norm: Any) -> None:
    before = block(kind)
    model = surgeon.apply(copy.deepcopy(before), {"aps": {"padding": "circular", "norm": norm}}, 32)
    assert sum("as '" in change.reason for change in rewritten(model)) == KINDS[kind]
    assert surgeon.record(model).count("refused") == 0
    assert worst(model, (32, 48), SHIFTS[:4]) < 1e-10 < 1e-4 < worst(before, (32, 48), SHIFTS[:4])
    choices = [m.choice for m in model.modules() if isinstance(m, Polyphase2d) and m.choice]
    assert all(choice.index is None and choice.left == 0 for choice in choices)  # emptied by the last to follow


def test_each_image_chooses_for_itself() -> None:
    model, x = surgeon.apply(resnet18(), "aps", 64), images(64, batch=5)
    alone = torch.cat([run(model, image[None]) for image in x])
    assert relative(run(model, x), alone) < 1e-12
    chosen = largest(components(x, (2, 2)), 2)
    assert len(chosen.unique()) > 1  # else the test says nothing


# the layers


def test_components_and_norms_are_those_of_the_paper() -> None:
    x = images((6, 12))
    parts = components(x, (2, 3))
    assert parts.shape == (2, 6, 3, 3, 4)
    for i in range(2):
        for j in range(3):
            assert torch.equal(parts[:, 3 * i + j], x[:, :, i::2, j::3])
    for order, p in ((1, 1), (2, 2), ("inf", float("inf"))):
        true = parts.flatten(2).norm(p, dim=2)
        assert torch.equal(largest(parts, order), true.argmax(1))
        picked = Polyphase2d((2, 3), order)(x)
        assert all(torch.equal(picked[n], parts[n, int(true[n].argmax())]) for n in range(2))


def test_equal_maxima_are_told_apart() -> None:
    parts = torch.zeros(1, 3, 1, 2, 2)
    parts[0, :, 0, 0, 0] = torch.tensor([2.0, 2.0, 1.9])
    parts[0, :, 0, 1, 1] = torch.tensor([0.5, 1.0, 1.9])
    assert [int(largest(parts, order)) for order in (1, 2, "inf")] == [2, 2, 1]  # type: ignore[arg-type]


def test_norms_do_not_overflow_in_half_precision() -> None:
    x = torch.full((1, 4, 64, 64), 200.0, dtype=torch.float16)
    x[:, :, 1::2, ::2] += 1
    assert not x.square().sum().isfinite()
    assert Polyphase2d((2, 2))(x).unique().item() == 201


def test_gradients_flow_through_the_component_taken() -> None:
    x = images((6, 6)).requires_grad_()
    Polyphase2d((2, 2))(x).sum().backward()
    index = largest(components(x, (2, 2)), 2)
    for n in range(2):
        i, j = divmod(int(index[n]), 2)
        assert x.grad is not None
        assert x.grad[n, :, i::2, j::2].eq(1).all() and x.grad[n].sum() == 27


POOLS = [
    *(nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 2)),
    *(nn.AvgPool2d(2), nn.AvgPool2d(3, 3, 1), nn.AvgPool2d(2, ceil_mode=True)),
]
CONVS = [(3, 2, 1), (7, 2, 3), (3, 2, 0), (2, 2, 0), (5, 3, 2), (3, 2, 2, 2), (4, 4, 0)]


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools_keep_their_size_and_their_values(pool: nn.Module, circular: bool) -> None:
    s = int(pool.stride)  # type: ignore[arg-type]
    first = Choice(1)
    layer = APSPool2d(pool, Polyphase2d((s, s), choice=first, leads=False), circular)
    for height in range(8, 15):
        x = images((height, 23 - height))
        first.leave(torch.zeros(2, dtype=torch.int64))
        y = layer(x)
        assert y.shape == pool(x).shape and y.isfinite().all()
        if not circular and not (isinstance(pool, nn.AvgPool2d) and pool.ceil_mode):
            assert relative(pool(x), y) < 1e-14  # the first component is the strided pool


@pytest.mark.parametrize("padding", ["keep", "circular"])
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_convs_keep_their_size(conv: tuple[int, ...], padding: str) -> None:
    before = Wrap(lambda m, x: m.conv(x), 4, conv=nn.Conv2d(3, 4, *conv)).double().eval()
    after = surgeon.apply(copy.deepcopy(before), {"aps": {"padding": padding}}, 32)
    for height in range(16, 23):
        x = images((height, 40 - height))
        old, new = run(before.conv, x), run(after.conv, x)
        assert old.shape == new.shape
        first = copy.deepcopy(after.conv)
        first.surgeon_after.choice, first.surgeon_after.leads = Choice(1), False
        first.surgeon_after.choice.leave(torch.zeros(2, dtype=torch.int64))
        assert padding == "circular" or relative(old, run(first, x)) < 1e-14


def test_trained_weights_and_paths_stay() -> None:
    before = resnet18()
    after = surgeon.apply(copy.deepcopy(before), CIRCULAR, 64)
    old, new = before.state_dict(), after.state_dict()
    assert list(old) == list(new) and all(torch.equal(old[name], new[name]) for name in old)
    contracts.undone(Snapshot.of(before, identity=False), surgeon.undo(after), identity=False)


# the choice that is shared


def test_who_follows_without_a_leader_says_so() -> None:
    model = surgeon.apply(block("shortcut last"), "aps", 32)
    with pytest.raises(surgeon.SurgeonError, match=r"which has not run before it in this forward \(1 follow"):
        model.b(images(8, channels=8))


def test_copies_share_among_themselves_only() -> None:
    model = surgeon.apply(block("three branches"), "aps", 32)
    twin = copy.deepcopy(model)
    held = [[m.choice for m in net.modules() if isinstance(m, Polyphase2d)] for net in (model, twin)]
    assert [len(set(map(id, choices))) for choices in held] == [1, 1] and held[0][0] is not held[1][0]
    x = images(32)
    model.stem(x)
    assert torch.equal(run(model, x), run(twin, x))


def test_it_travels(tmp_path: Path) -> None:
    model, x = surgeon.create_model("test_resnet", CIRCULAR).double().eval(), images(64)
    y = run(model, x)
    surgeon.save(model, tmp_path / "one")
    assert torch.equal(run(surgeon.load(tmp_path / "one"), x), y)
    torch.save(model, tmp_path / "two.pt")
    assert torch.equal(run(torch.load(tmp_path / "two.pt", weights_only=False), x), y)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    assert relative(run(exported, x), y) < 1e-12
    more = images(64, batch=5, seed=7)
    assert relative(run(exported, more), run(model, more)) < 1e-12
    assert torch.equal(run(model, x), y)  # exporting left nothing behind


def test_it_compiles_and_its_gradients_agree() -> None:
    model, x = surgeon.apply(block("three branches"), CIRCULAR, 32), images(32)
    fast = torch.compile(model, backend="aot_eager", fullgraph=True)
    model(x).sum().backward()
    eager = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    fast(x).sum().backward()
    assert eager and all(relative(eager[name], model.get_parameter(name).grad) < 1e-10 for name in eager)


def test_it_is_all_or_nothing() -> None:
    assert contracts.atomic(stir(PlainNet()), CIRCULAR, 64) > 4


# where it declines


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, 2, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) + self.conv(x + 1)).mean((2, 3)))


class Thrice(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 3, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.conv(x) + self.other(x), self.conv(x + 1)
        return self.head(y.mean((2, 3)) + z.mean((2, 3)))


def same() -> nn.Module:
    return Wrap(lambda m, x: m.conv(x), 8, conv=Conv2dSame(3, 8, 3, 2))


def function() -> nn.Module:
    return Wrap(lambda m, x: F.conv2d(x, m.conv.weight, stride=2), 8, conv=nn.Conv2d(3, 8, 3))


def at_odds() -> nn.Module:
    parts = {"a": nn.Conv2d(3, 8, 3, 4, 1), "b": nn.Conv2d(3, 8, 3, 2, 1), "c": nn.Conv2d(8, 8, 3, 2, 1)}
    return Wrap(lambda m, x: m.a(x) + m.c(m.b(x)), 8, **parts)


REFUSALS = {
    r"meets a map that comes from another call of the same layer": (Twice, "keep"),
    r"'conv' runs several times": (Thrice, "keep"),
    r"pads with zeros by input size": (same, "circular"),
    r"is called as a function, whose stride": (function, "keep"),
    r"strides \(4, 4\), and its output meets a map that strides \(2, 2\) at 'b'": (at_odds, "keep"),
    r"strides \(2, 2\), and its output meets a map that came there with fewer strided": (at_odds, "keep"),
}


@pytest.mark.parametrize(("words", "case"), REFUSALS.items(), ids=REFUSALS)
def test_refusals_say_why(words: str, case: Any) -> None:
    with pytest.raises(surgeon.RefusedError, match=words):
        surgeon.apply(case[0](), {"aps": {"padding": case[1]}}, 32)


def test_convs_that_pad_by_size_may_keep_doing_so() -> None:
    before = same().double().eval()
    after = surgeon.apply(copy.deepcopy(before), "aps", 32)
    for size in (31, 32):
        assert run(before.conv, images(size)).shape == run(after.conv, images(size)).shape


def test_half_a_group_is_refused() -> None:
    step = {"aps": {}, "select": {"exclude": "*.downsample.*"}}
    record = surgeon.plan(resnet18(), step, 64)
    reasons = {change.path: change.reason for change in record.changes if change.status == "refused"}
    assert set(reasons) == {f"layer{n}.0.conv1" for n in (2, 3, 4)}
    assert "'layer2.0.downsample.0' takes, whose output it meets; select both" in reasons["layer2.0.conv1"]


def test_a_group_is_refused_with_its_weakest_member() -> None:
    model = block("shortcut last")
    model.b.forward = model.b.forward  # code of its own
    record = surgeon.plan(model, CIRCULAR, 32)
    refused = {change.path: change.reason for change in record.changes if change.status == "refused"}
    assert set(refused) == {"a", "b"} and "and that one is a Conv2d whose forward" in refused["a"]


def test_what_another_op_rewrote_is_not_rewritten_again() -> None:
    for first, second in (("spd", "aps"), ("aps", "spd"), ("aps", "blurpool")):
        model = surgeon.apply(PlainNet(), first, 64)
        with pytest.raises(surgeon.NoSiteError):
            surgeon.apply(model, second)


@pytest.mark.parametrize(("first", "path"), [("blurpool", "a"), ("blurpool", "b"), ("spd", "b"), ("shift", "a")])
def test_a_branch_another_op_rewrote_keeps_the_other_from_choosing(first: str, path: str) -> None:
    model = surgeon.apply(block("shortcut last"), {first: {}, "select": {"path": path}}, 32)
    with pytest.raises(surgeon.RefusedError, match=f"comes through '{path}', whose positions are fixed by the surgery"):
        surgeon.apply(model, "aps")


@pytest.mark.parametrize("path", ["a", "stem"])
def test_padding_never_comes_in_front_of_other_surgery(path: str) -> None:
    model = surgeon.apply(block("shortcut last"), {"spatial_shuffle": {}, "select": {"path": path}}, 32)
    refused = [change for change in surgeon.plan(model, CIRCULAR).changes if change.status == "refused"]
    assert "has surgery at its input" in next(change.reason for change in refused if change.path == path)
    assert [change.path for change in refused] == (["a", "b"] if path == "a" else ["stem"])
    assert surgeon.plan(model, "aps").count("refused") == 0  # nothing is padded, nothing is in the way


def test_convs_that_pad_nothing_are_left() -> None:
    model = Wrap(lambda m, x: m.b(m.a(x)), 8, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3, 2, 1))
    status = {change.path: change.status for change in surgeon.plan(model, CIRCULAR, 32).changes}
    assert status == {"a": "unchanged", "b": "rewritten"}
