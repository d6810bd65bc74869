"""Recorded forward passes: what becomes a node, what it carries, and what reading leaves behind: nothing."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from surgeon.errors import TraceError
from surgeon.skeleton import skeleton
from surgeon.tracing import Trace, record_forward, within
from tests.contracts import Snapshot
from tests.zoo import PlainNet

SIZE = (3, 32, 40)


class Own(nn.Module):
    """A conv, then the code given."""

    def __init__(self, code: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.code = nn.Conv2d(3, 4, 3, 2, 1), code

    def forward(self, x: Tensor) -> Any:
        return self.code(self, self.conv(x))


def recorded(code: Callable[[Any, Tensor], Any], model: nn.Module | None = None) -> Trace:
    return record_forward(model or Own(code), [SIZE])


def names(trace: Trace) -> list[str]:
    return [node.meta["name"] for node in trace.graph.nodes if node.op.startswith("call_")]


def shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def test_nodes_carry_shapes_and_sources() -> None:
    trace = recorded(lambda net, x: F.relu(x) + x.mean((2, 3), keepdim=True))
    assert names(trace) == ["conv", "relu", "mean", "add"]
    conv, relu, mean, add = (node for node in trace.graph.nodes if node.op.startswith("call_"))
    assert [shape(n) for n in (conv, relu, mean, add)] == [(1, 4, 16, 20), (1, 4, 16, 20), (1, 4, 1, 1), (1, 4, 16, 20)]
    assert add.all_input_nodes == [relu, mean] and relu.all_input_nodes == [conv] == mean.all_input_nodes
    assert tuple(trace.outputs.shape) == (1, 4, 16, 20) and trace.input_size == SIZE


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (lambda net, x: x.relu() if x.shape[-1] > 19 else x.exp(), ["conv", "relu"]),
        (lambda net, x: x.relu() if len(x) > 1 else x.exp(), ["conv", "exp"]),
        (
            lambda net, x: sum(part.relu() for part in x[0]),
            ["conv", "getitem", "unbind", *["part"] * 4, *["relu", "add"] * 4],
        ),
        (lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1), ["conv", "chunk", "part", "part", "cat"]),
        (lambda net, x: x.new_zeros(x.shape).add_(x), ["conv", "new_zeros", "add"]),
        (lambda net, x: F.max_pool2d(x, 2, return_indices=True)[0], None),
    ],
)
def test_control_flow_runs_as_in_the_model(code: Any, expected: list[str] | None) -> None:
    trace = recorded(code)
    reference = Own(code).eval()(torch.rand(1, *SIZE))
    assert trace.outputs.shape == reference.shape and trace.notes == ()
    if expected is not None:
        assert names(trace) == expected


def test_tensors_changed_in_place_go_on() -> None:
    def code(net: nn.Module, x: Tensor) -> Tensor:
        y = x.relu_()
        y[:, 0] = 1
        return y.exp()

    trace = recorded(code)
    conv, relu, write, exp = (node for node in trace.graph.nodes if node.op.startswith("call_"))
    assert [n.meta["name"] for n in (relu, write, exp)] == ["relu", "setitem", "exp"]
    assert relu.all_input_nodes == [conv] and write.all_input_nodes == [relu] and exp.all_input_nodes == [write]


@pytest.mark.parametrize(
    ("code", "expected", "note"),
    [
        (lambda net, x: x.relu() if x.mean() > 0 else x.exp(), "exp", "bool was taken as False"),
        (lambda net, x: x[:, : int(x.sum())].relu(), "relu", "int was taken as 1"),
        (lambda net, x: x.relu() * x.max().item(), "mul", "item was taken as 1"),
    ],
)
def test_decisions_on_values_are_assumed_and_noted(code: Any, expected: str, note: str) -> None:
    trace = recorded(code)
    assert names(trace)[-1] == expected
    assert [n for n in trace.notes if note in n and "decides on a tensor's value" in n] == list(trace.notes) != []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (lambda net, x: x[x > 0], "cannot run Own on an image of"),
        (lambda net, x: x @ x, r"cannot run Own on an image of \(3, 32, 40\): RuntimeError"),
        (lambda net, x: 1 / 0, "ZeroDivisionError: division by zero; pass the input_size the model was built for"),
    ],
)
def test_a_forward_that_fails_says_where(code: Any, words: str) -> None:
    usual = nn.Module.__call__
    with pytest.raises(TraceError, match=words):
        recorded(code)
    assert nn.Module.__call__ is usual and not logging.getLogger("torch._subclasses.fake_tensor").disabled
    with torch.device("meta"):
        assert torch.rand(2).add(1).shape == (2,)


def test_the_failing_part_is_named() -> None:
    with pytest.raises(TraceError, match=r"it fails in 'block\.conv1': RuntimeError"):
        record_forward(_broken(), [SIZE])


def _broken() -> nn.Module:
    model = PlainNet()
    model.block.conv1 = nn.Conv2d(5, 12, 3)
    return model


def test_an_interrupted_reading_leaves_nothing_patched() -> None:
    def interrupted(net: nn.Module, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model, usual = Own(interrupted), nn.Module.__call__
    before = Snapshot.of(model)
    with pytest.raises(KeyboardInterrupt):
        record_forward(model, [SIZE])
    assert nn.Module.__call__ is usual and before.differences(Snapshot.of(model)) == []


def test_sizes_are_tried_in_order_and_the_first_failure_told() -> None:
    assert record_forward(PlainNet(), [(4, 32, 32), (3, 30, 30)]).input_size == (3, 30, 30)
    with pytest.raises(TraceError, match=r"an image of \(4, 32, 32\)"):
        record_forward(PlainNet(), [(4, 32, 32), (5, 30, 30)])
    with pytest.raises(TraceError, match="no input size was given"):
        record_forward(PlainNet(), [])


def test_subclasses_of_convs_are_one_node() -> None:
    class Mine(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    for layer in (Mine(3, 4, 3, 2), Conv2dSame(3, 4, 3, 2), nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))):
        trace = record_forward(nn.Sequential(layer), [SIZE])
        calls = [node for node in trace.graph.nodes if node.op.startswith("call_")]
        assert {node.op for node in calls} == {"call_module"} and len(calls) == max(1, len(list(layer.children())))


def test_owners_runs_and_numbers_of_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Own(lambda net, x: F.relu(F.relu(x)))
            self.part.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.part(self.part(x=x)))

    trace = record_forward(Twice(), [SIZE])
    relus = [node.meta for node in trace.graph.nodes if node.meta.get("name") == "relu"]
    assert [(m["owner"], m["run"], m["index"]) for m in relus] == [
        ("part", 0, 0), ("part", 0, 1), ("part", 1, 0), ("part", 1, 1), ("", 0, 0)
    ]  # fmt: skip
    assert trace.passed["part"] == [(0, ("x",)), (1, ())]
    inner = [node for node in trace.graph.nodes if within(node, "part")]
    assert len(inner) == 6 and len([n for n in trace.graph.nodes if within(n, "part.conv")]) == 2
    assert not any(within(node, "par") for node in trace.graph.nodes)


def test_tensors_that_are_not_inputs_have_their_names() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1))
            self.register_buffer("shift", torch.zeros(3, 1, 1))
            self.free = torch.ones(1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale + self.shift + self.free + torch.arange(3)[:, None, None]

    trace = record_forward(Parts(), [SIZE])
    assert [n.target for n in trace.graph.nodes if n.op == "get_attr"] == ["scale", "shift", "constant"]
    assert "arange" in names(trace)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "test_vit"])
def test_costs_are_torchs_own(name: str) -> None:
    size = (3, 160, 160)
    model = timm.create_model(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, *size))
    trace = record_forward(model, [size])
    assert 2 * trace.macs() == counter.get_total_flops() > 0
    assert trace.params == sum(p.numel() for p in model.parameters())
    own = [n for n in trace.graph.nodes if n.op == "call_function" and n.meta["owner"] == ""]
    assert trace.macs() == sum(map(trace.macs, dict(model.named_children()))) + sum(n.meta["macs"] for n in own)


def test_resnet18_costs_what_is_printed() -> None:
    with torch.device("meta"):
        trace = record_forward(timm.create_model("resnet18"), [(3, 224, 224)])
    assert trace.params == 11_689_512 and trace.macs() == 1_814_073_344


def test_activations_are_counted_by_hand() -> None:
    trace = recorded(lambda net, x: x.relu())
    assert trace.activation_bytes() == 2 * 4 * 16 * 20 * 4
    assert record_forward(Own(lambda net, x: x.relu()).double(), [SIZE]).activation_bytes() == 2 * 4 * 16 * 20 * 8


def test_hooks_do_not_run_and_modes_stay() -> None:
    model, ran = PlainNet().train(), []
    model.stem.register_forward_hook(lambda *_: ran.append("hook"))
    model.register_forward_pre_hook(lambda *_: ran.append("before"))
    before = Snapshot.of(model)
    record_forward(model, [SIZE])
    assert ran == [] and before.differences(Snapshot.of(model)) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_image_has_the_precision_of_the_model(dtype: torch.dtype) -> None:
    assert record_forward(PlainNet().to(dtype), [SIZE]).outputs.dtype == dtype


def test_other_answers_are_kept_as_they_are() -> None:
    trace = recorded(lambda net, x: {"a": x, "b": (x.relu(), [None, 3])})
    assert trace.outputs["a"].shape == (1, 4, 16, 20) and trace.outputs["b"][1] == [None, 3]
    assert trace.graph.output_node().args[0]["b"][0].meta["name"] == "relu"


def test_layers_made_in_the_forward_are_told_apart() -> None:
    trace = recorded(lambda net, x: nn.MaxPool2d(2)(x))
    assert names(trace)[-1] == "<MaxPool2d>"


def test_a_skeleton_costs_nothing() -> None:
    model = PlainNet().double().train()
    model.stem[0].weight.requires_grad_(False)
    copied = skeleton(model)
    old, new = dict(model.named_parameters()), dict(copied.named_parameters())
    assert list(old) == list(new) and not any(m.training for m in copied.modules())
    for name, p in new.items():
        assert type(p.data).__name__ == "FakeTensor" and isinstance(p, nn.Parameter)
        assert (p.shape, p.dtype, p.requires_grad) == (old[name].shape, torch.float64, old[name].requires_grad)
    shared = nn.Sequential(model.stem, model.stem)
    twin = skeleton(shared)
    assert twin[0] is twin[1] and twin[0] is not model.stem
