"""Whatever ends an analysis, and whenever, the model and the process are as before: bit for bit, object for object."""

import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from analysis.interrupts import breathe, orderly_interrupts, uninterrupted
from analysis.parts import units
from analysis.perturb import Places, untouched
from analysis.sweeping import sweep
from analysis.variants import Plan
from surgeon.errors import AnalysisError
from surgeon.host import input_sizes
from tests.analysis.odd_nets import Odd
from tests.analysis.sweeping import batches, other_values, plan_of
from tests.contracts import Snapshot, bits

METHODS = ("single_pass", "naive")


def everything(model: nn.Module) -> dict[str, Any]:
    """All that must be as before, beyond what `Snapshot` sees."""
    facts: dict[str, Any] = dict(Snapshot.of(model).facts)
    for path, module in model.named_modules():
        for key, value in module.__dict__.items():
            facts[f"{path}.{key} is"] = id(value)
            if isinstance(value, (dict, list, set, deque)):
                facts[f"{path}.{key} holds"] = [id(v) for v in (value.values() if isinstance(value, dict) else value)]
            if isinstance(value, Tensor):
                facts[f"{path}.{key} bits"] = bits(value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        facts[f"{name} version"] = tensor._version
        facts[f"{name} place"] = tensor.data_ptr()
        facts[f"{name} gradient"] = (id(tensor.grad), None if tensor.grad is None else bits(tensor.grad))
    facts["process"] = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    facts["calls"], facts["ctrl-c"] = nn.Module.__call__, signal.getsignal(signal.SIGINT)
    return facts


def changed(before: dict[str, Any], model: nn.Module) -> list[str]:
    after = everything(model)
    return [key for key in before.keys() | after.keys() if before.get(key, "none") != after.get(key, "none")]


class Busy(Odd):
    """Leaves traces of every kind with each forward pass, in evaluation mode too."""

    def __init__(self, draws: bool = True) -> None:
        super().__init__(Busy.traces)
        self.draws = draws
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.names, self.seen, self.last, self.kinds = ["stem"], {"passes": 0}, deque([1]), {"conv"}
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.plain, self.memory = torch.zeros(2), dict[str, Tensor]()

    def traces(self, x: Tensor) -> Tensor:
        self.names.append("again")
        self.seen["passes"] += 1
        self.last.append(len(self.names))
        self.kinds.add(str(len(self.names)))
        self.passes += self.draws  # a counter is a draw, too
        self.plain += 1
        self.new_attribute, self.state = x, (x, 1)
        if "mean" not in self.memory:
            self.memory["mean"] = self.b.weight.mean()
        if self.draws:
            random.random(), np.random.rand(), torch.rand(1)
        return self.drop(self.norm(self.c(self.b(self.a(x).relu()).relu()))) * (1 + self.memory["mean"])


def busy(draws: bool = True) -> Busy:
    """In mixed modes, partly frozen, with gradients."""
    model = Busy(draws)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    model.train()
    model.norm.eval()
    model.b.eval()
    model.a.weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("method", ["single_pass", "naive"])
def test_after_a_normal_end(method: str) -> None:
    model, ran = busy(), []
    model.b.register_forward_hook(lambda *_: ran.append("hook"))
    before = everything(model)
    readings, complete = sweep(plan_of(model, batches(8), [], method=method))
    assert complete and readings.images("final") == 5 and ran
    assert changed(before, model) == []
    with torch.no_grad():
        model.b.weight[0, 0, 0, 0] += 1
    assert {"b.weight bits", "b.weight version"} <= set(changed(before, model)), "the comparison sees a single value"


def test_hooks_of_users_run_and_stay() -> None:
    model = Odd(lambda m, x: m.c(m.b(m.a(x))))
    ran: list[str] = []
    model.a.register_forward_hook(lambda *_: ran.append("a"))
    model.c.register_forward_pre_hook(lambda *_: ran.append("c"))
    sweep(plan_of(model, batches(8, [2]), []))
    assert {"a", "c"} == set(ran)
    ran.clear()
    model(torch.rand(1, 3, 8, 8))
    assert ran == ["a", "c"]


UNITS = units(Busy(), input_size=(3, 8, 8))


class Ends:
    """Counts calls; at one of them an error or an interrupt comes up."""

    def __init__(self, at: int, how: BaseException) -> None:
        self.at, self.how, self.calls = at, how, 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.how


class Data(list[Any]):
    """Batches that tell before each is given."""

    def __init__(self, ends: Ends) -> None:
        super().__init__(batches(8))
        self.ends = ends

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self.ends()
            yield batch


def plan_that_ends(where: str, ends: Ends, model: nn.Module, **more: Any) -> Plan:
    """In the data, in a metric, in a hook or in a treatment something happens."""
    plan = plan_of(model, Data(ends) if where == "data" else batches(8), UNITS, **more)
    if where == "metric":
        plan.task.metrics["mine"] = lambda logits, targets: ends() or targets  # type: ignore[attr-defined]
    if where == "hook":
        model.c.register_forward_hook(ends)
    if where == "treatment":
        plan.variants = [replace(v, values=lambda kept=v.values: ends() or kept()) for v in plan.variants]
    return plan


def calls(where: str, method: Any) -> int:
    ends = Ends(0, ValueError())
    sweep(plan_that_ends(where, ends, busy(), method=method))
    return ends.calls


CALLS = {
    (where, method): calls(where, method) for where in ("data", "metric", "hook", "treatment") for method in METHODS
}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("where", "method"), CALLS)
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_after_an_error_and_ctrl_c(where: str, method: Any, share: float, kind: type[BaseException]) -> None:
    model, ends = busy(draws=share == 0.5), Ends(max(1, int(share * CALLS[where, method])), kind("the user's"))
    plan = plan_that_ends(where, ends, model, method=method)
    before = everything(model)
    if kind is ValueError:
        with pytest.raises((ValueError, AnalysisError), match="the user's"):
            sweep(plan)
    else:
        _, complete = sweep(plan)
        assert not complete
    assert ends.calls == ends.at and changed(before, model) == []


# Ctrl-C at any line


FILES = ("/analysis/", "contextlib.py", "/mock.py", "grad_mode.py", "randomness.py")


class Lines:
    """Counts lines of ours, and of what enters and leaves contexts; at one of them Ctrl-C is pressed."""

    def __init__(self, at: int, more: int = 0) -> None:
        self.at, self.more, self.count = at, more, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            return self if any(part in frame.f_code.co_filename for part in FILES) else None
        self.count += event == "line"
        if event == "line" and self.at <= self.count <= self.at + self.more:
            sys.settrace(self)  # which an exception here would end
            signal.raise_signal(signal.SIGINT)
        return self


def pressed(at: int, more: int = 0, method: Any = "single_pass") -> tuple[Lines, bool]:
    """Sweep, with Ctrl-C at a line; whether it came out of the sweep."""
    model = busy(draws=False)
    plan = plan_of(model, batches(8, [2]), UNITS[:2], method=method, whole=False)
    before, lines = everything(model), Lines(at, more)
    escaped = False
    sys.settrace(lines)
    try:
        sweep(plan)
    except KeyboardInterrupt:
        escaped = True
    finally:
        sys.settrace(None)
    assert changed(before, model) == [], f"Ctrl-C at line {at}"
    return lines, escaped


@pytest.mark.parametrize("method", ["single_pass", pytest.param("naive", marks=pytest.mark.slow)])
def test_ctrl_c_at_some_lines(method: Any) -> None:
    total = pressed(-1, method=method)[0].count
    assert total > 500
    found = [pressed(at, method=method) for at in np.random.default_rng(0).integers(1, total, 25)]
    assert sum(lines.count < total for lines, _ in found) > 15, "most end the sweep"
    assert sum(not escaped for _, escaped in found) > 5, "those during the sweep are caught: what was measured is kept"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_at_every_line(method: Any, part: int) -> None:
    total = pressed(-1, method=method)[0].count
    for at in range(1 + part, total, 8):
        pressed(at, method=method)


def test_ctrl_c_twice() -> None:
    total = pressed(-1)[0].count
    for at in np.random.default_rng(1).integers(1, total, 12):
        pressed(int(at), more=60)


def test_without_orderly_interrupts_some_line_leaves_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: plain handling of Ctrl-C is not enough, and the comparison sees it."""
    monkeypatch.setattr("analysis.keeping.orderly_interrupts", nullcontext)
    total = pressed(-1)[0].count
    with pytest.raises(AssertionError, match="Ctrl-C at line"):
        for at in range(total - 400, total):
            pressed(at)


def test_ctrl_c_waits_while_a_context_is_left() -> None:
    said: list[str] = []

    class Slow:
        def __enter__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            said.append("entered")

        def __exit__(self, *_: object) -> None:
            signal.raise_signal(signal.SIGINT)
            said.append("left")

    with pytest.raises(KeyboardInterrupt), orderly_interrupts():
        with Slow():
            said.append("inside")
        said.append("behind")
        breathe()
        said.append("never")
    assert said == ["entered", "inside", "left", "behind"]
    with pytest.raises(KeyboardInterrupt), orderly_interrupts(), Slow():
        said.append("at the end")
    assert said[-2:] == ["at the end", "left"]
    with pytest.raises(KeyboardInterrupt), orderly_interrupts():
        signal.raise_signal(signal.SIGINT)
        said.append("never")
    assert "never" not in said and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_uninterrupted_interrupts_at_its_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]


def test_other_threads_have_no_ctrl_c() -> None:
    model, found = busy(), []

    def run() -> None:
        sweep(plan_of(model, batches(8, [2]), UNITS[:1]))
        with uninterrupted():
            found.append(changed(before, model))

    before = everything(model)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [[]]


# what a forward pass may leave behind


def built(name: str, **more: Any) -> Any:
    return pytest.param(lambda _: timm.create_model(name, **more), id=name)


def inner_yolo(_: Path) -> nn.Module:
    from ultralytics import YOLO

    return YOLO("yolo11n.yaml").model  # type: ignore[no-any-return]


MODELS = [
    built("test_resnet"),
    built("test_vit"),
    built("test_convnext"),
    built("test_efficientnet"),
    built("resnet18"),
    built("digits_vgg16"),
    built("fcn", depth=2, width=16),
    built("levit_128s"),
    pytest.param(inner_yolo, id="yolo11n"),
]


ENDINGS = [(build, KeyboardInterrupt) for build in MODELS] + [(MODELS[0], None), (MODELS[0], ValueError)]


@pytest.mark.parametrize(("build", "ending"), [pytest.param(*b.values, e, id=f"{b.id}-{e}") for b, e in ENDINGS])
def test_models_of_libraries(build: Any, ending: type[BaseException] | None, tmp_path: Path) -> None:
    model = build(tmp_path).train()
    part = list(model.children())[-1].eval()
    next(iter(part.parameters())).requires_grad_(False)
    x = torch.randn(1, *input_sizes(model)[0])
    part.register_forward_hook(lambda *_: None)
    before = everything(model)
    with nullcontext() if ending is None else pytest.raises(ending), untouched(model):
        assert not model.training and not part.training
        values = other_values(model, [name for name, _ in model.named_parameters()][:40], 0)
        with Places(model).replaced(values):
            model(x)
            torch.rand(1)
            model.left_behind = 1
            if ending is not None:
                raise ending
    assert changed(before, model) == []


def test_values_written_past_autograd() -> None:
    """As layers do that merge an adapter into their weights when evaluation begins."""

    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> "Merging":
            if not mode and not self.merged:
                self.weight.data += 1
                self.bias.data = torch.zeros(2)
                self.merged = True
            return super().train(mode)

    model = nn.Sequential(Merging(2, 2), nn.BatchNorm1d(2)).train()
    nan = model[1].running_mean
    nan[0], nan[1] = float("nan"), -0.0
    before = everything(model)
    with untouched(model):
        assert model[0].merged and float(model[0].bias.abs().max()) == 0
        nan.data.zero_()
        model[1].running_var.add_(1)
        model[1].weight.grad = torch.ones(2)
        model[1].weight.requires_grad_(False)
    assert changed(before, model) == []


def test_a_graph_of_the_users_stays_valid() -> None:
    """Counters of versions are as before, so that a backward pass begun earlier can end."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    loss = model(torch.randn(3, 2)).sum()
    with untouched(model):
        model[1].running_mean.add_(1)
        with Places(model).replaced({"0.weight": torch.ones(2, 2)}):
            model(torch.randn(3, 2))
    loss.backward()
    assert model[0].weight.grad is not None


def test_inference_mode() -> None:
    with torch.inference_mode():
        model, data = Odd(lambda m, x: m.c(m.b(m.a(x)))).eval(), batches(8)
        before = {name: bits(p) for name, p in model.named_parameters()}
        readings, _ = sweep(plan_of(model, data, units(model, input_size=(3, 8, 8))[:2]))
        assert torch.is_inference_mode_enabled() and readings.images("final") == 5
        assert {name: bits(p) for name, p in model.named_parameters()} == before
    model = busy()
    with torch.inference_mode():
        assert sweep(plan_of(model, data, UNITS[:2]))[1]


# treating


def test_values_are_of_the_same_kind_as_those_they_stand_for() -> None:
    model = nn.Conv2d(3, 4, 3).to(torch.float64, memory_format=torch.channels_last)
    model.bias.requires_grad_(False)
    with Places(model).replaced({"weight": torch.ones(4, 3, 3, 3), "bias": torch.ones(4)}):
        assert isinstance(model.weight, nn.Parameter) and model.weight.requires_grad and not model.bias.requires_grad
        assert model.weight.dtype == torch.float64 and model.weight.is_contiguous(memory_format=torch.channels_last)
        assert float(model.weight.detach().sum()) == 108


def test_all_names_of_a_shared_tensor_are_exchanged() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    places = Places(model)
    assert places.owners("0.weight") == [model[0], model[1]]
    with places.replaced({"0.weight": torch.ones(2, 2)}):
        assert model[1].weight is model[0].weight and float(model[1].weight.detach().sum()) == 4
    assert float(model[0].weight.detach().sum()) != 4


def test_recurrent_layers_compute_with_what_they_are_given() -> None:
    model, x = nn.LSTM(3, 4), torch.rand(5, 1, 3)
    known = model(x)[0]
    with Places(model).replaced({"weight_ih_l0": torch.zeros(16, 3)}):
        assert not torch.equal(model(x)[0], known)
    assert torch.equal(model(x)[0], known)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.sums, self.scale = dict[str, Tensor](), {"mean": torch.tensor(3.0)}

    def forward(self, x: Tensor) -> Tensor:
        if "all" not in self.sums:
            self.sums["all"] = self.weight.sum()
        return x * self.sums["all"] * self.scale["mean"]


def test_what_is_remembered_of_other_weights_is_computed_anew_and_constants_stay() -> None:
    model, one = Remembers(), torch.ones(1)
    with torch.no_grad():
        assert float(model(one)) == 6
        places, sums, held = Places(model), model.sums, model.sums["all"]
        for value, expected in ((5.0, 30), (7.0, 42)):
            with places.replaced({"weight": torch.full((2,), value)}):
                assert float(model(one)) == expected
        assert float(model(one)) == 6 and model.sums is sums and sums == {"all": held}


@pytest.mark.parametrize(
    ("values", "match"),
    [({"w": torch.ones(2)}, "no tensor 'w'"), ({"weight": torch.ones(3)}, r"'weight' is \(2, 2\) .* and \(3,\)")],
)
def test_values_that_do_not_fit(values: dict[str, Tensor], match: str) -> None:
    model = nn.Linear(2, 2)
    before = everything(model)
    with pytest.raises(AnalysisError, match=match), Places(model).replaced({"bias": torch.ones(2), **values}):
        pass
    assert changed(before, model) == []
