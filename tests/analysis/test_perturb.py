"""Whatever ends an analysis, and whenever, the model and the process are as before: bit for bit, object for object."""

import random
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
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
        with pytest.raises(ValueError, match="the user's"):
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


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_at_some_lines(method: Any) -> None:
    total = pressed(-1, method=method)[0].count
    assert total > 500
    found = [pressed(at, method=method) for at in np.random.default_rng(0).integers(1, total, 40)]
    assert sum(lines.count < total for lines, _ in found) > 20, "most end the sweep"
    assert sum(escaped for _, escaped in found) < 20, "most are caught: what was measured is kept"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_at_every_line(method: Any, part: int) -> None:
    total = pressed(-1, method=method)[0].count
    for at in range(1 + part, total, 8):
        pressed(at, method=method)


def test_ctrl_c_twice() -> None:
    total = pressed(-1)[0].count
    for at in np.random.default_rng(1).integers(1, total, 20):
        pressed(int(at), more=60)
