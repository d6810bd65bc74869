"""Batch norm statistics of treated models: kept, set back, or computed anew on calibration data."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from analysis.parts import Unit, units
from analysis.perturb import Places, untouched
from analysis.readings import FINAL
from analysis.recalibrating import recalibrated
from analysis.sweeping import sweep
from analysis.treatments import Treatments
from analysis.variants import Variant
from surgeon.errors import AnalysisError
from tests.analysis.sweeping import Batches, batches, plan_of, swept
from tests.contracts import Snapshot, stir


class Normed(nn.Module):
    """Three convs with batch norm, each of another momentum, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            (nn.Conv2d(3 if i == 0 else 6, 6, 3, 2, 1), nn.BatchNorm2d(6, momentum=m)) for i, m in enumerate(MOMENTA)
        ]
        self.layers = nn.ModuleList(nn.Sequential(*pair, nn.ReLU()) for pair in layers)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


MOMENTA = (0.1, 0.5, None)
CALIBRATION = batches(16, [6, 6], seed=3)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return stir(Normed(), seed).eval()


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


def seen_by(model: nn.Module, **more: Any) -> dict[str, dict[str, Tensor]]:
    """The statistics that each variant computes with, and the untouched model."""
    found: dict[str, dict[str, Tensor]] = {}
    key = [FINAL]
    model.head.register_forward_hook(lambda *_: found.update({key[0]: statistics(model)}))
    parts = units(model, "layer", (3, 16, 16))
    plan = plan_of(model, batches(16, [4]), parts, **more)
    plan.variants = [replace(v, values=lambda v=v: key.__setitem__(0, v.part) or weights(v)) for v in plan.variants]

    def weights(variant: Variant) -> dict[str, Tensor]:
        names = {u.name: u.parameters for u in parts}.get(variant.part, [n for u in parts for n in u.parameters])
        return {name: torch.full_like(Places(model).tensors[name], 0.1) for name in names}

    swept(plan)
    return found


def updated(model: nn.Module, unit: str, names: Any) -> dict[str, Tensor]:
    """What torch's own ``update_bn`` makes of a treated copy."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name.startswith(names):
                parameter.fill_(0.1)
    update_bn([x for x, _ in CALIBRATION], twin)
    return statistics(twin)


def test_as_torch_does_it_where_the_first_unit_is_treated() -> None:
    model = net()
    before = Snapshot.of(model)
    found = seen_by(model, calibration=CALIBRATION)
    model.head._forward_hooks.clear()
    assert Snapshot.of(model).differences(before) == [], "the model has its own statistics and momenta again"
    expected = updated(model, "layers.0.0", "layers.0")
    assert expected.keys() == found["layers.0.0"].keys()
    for name, value in expected.items():
        torch.testing.assert_close(found["layers.0.0"][name], value, rtol=1e-5, atol=1e-6)
        if "running" in name:
            assert not torch.allclose(value, statistics(model)[name])
    whole = updated(model, "", "")
    torch.testing.assert_close(found[""], whole, rtol=1e-5, atol=1e-6)


def test_norms_in_front_of_the_unit_keep_theirs() -> None:
    model = net()
    own, found = statistics(model), seen_by(model, calibration=CALIBRATION)["layers.1.0"]
    changed = {name.split(".")[1] for name, value in found.items() if not torch.equal(value, own[name])}
    assert changed == {"1", "2"}
    last = seen_by(net(), calibration=CALIBRATION)
    assert all(torch.equal(value, own[name]) for name, value in last["head"].items()), "no norm is behind the head"


def test_the_untouched_model_keeps_its_own() -> None:
    model = net()
    own = statistics(model)
    assert all(torch.equal(value, own[name]) for name, value in seen_by(model, calibration=CALIBRATION)[FINAL].items())


def test_without_calibration_nothing_changes() -> None:
    model = net()
    own = statistics(model)
    found = seen_by(model, method="naive")
    assert len(found) == 6
    assert all(torch.equal(value, own[name]) for seen in found.values() for name, value in seen.items())


def test_it_runs_a_pass_for_each_variant() -> None:
    model = net()
    parts = units(model, "layer", (3, 16, 16))
    one = swept(plan_of(model, batches(16), parts, calibration=CALIBRATION))
    each = swept(plan_of(model, batches(16), parts, calibration=CALIBRATION, method="naive"))
    assert all(np.array_equal(one.pack()[name], values) for name, values in each.pack().items())


@pytest.mark.parametrize("batchnorm", ["keep", "reset"])
def test_keep_and_reset(batchnorm: Any) -> None:
    model, start = net(), net(1)
    treatments = Treatments(model, initial=start, batchnorm=batchnorm)
    unit = next(unit for unit in units(model, "layer", (3, 16, 16)) if unit.path.startswith("layers.1"))
    for treatment in ("0", "rerand"):
        values = treatments.values(treatment, 0, unit.parameters, unit.buffers)
        assert set(values) == {*unit.parameters, *(unit.buffers if batchnorm == "reset" else ())}
    if batchnorm == "reset":
        values = treatments.values("0", 0, unit.parameters, unit.buffers)
        assert torch.equal(values["layers.1.1.running_mean"], start.layers[1][1].running_mean)
        fresh = treatments.values("rerand", 0, unit.parameters, unit.buffers)
        assert not torch.equal(fresh["layers.1.0.weight"], model.layers[1][0].weight)


def test_an_error_while_calibrating_leaves_nothing() -> None:
    model = net()
    before, places = Snapshot.of(model), Places(model)

    def fail() -> int:
        assert model.layers[0][1].training and model.layers[0][1].momentum is None
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), untouched(model), recalibrated(places, list(model.modules()), fail):
        pass
    assert Snapshot.of(model).differences(before) == []


@pytest.mark.parametrize("calibration", [[], [(torch.rand(2, 3, 16, 16),)], [3]])
def test_calibration_that_is_none(calibration: Batches) -> None:
    model = net()
    plan = plan_of(model, batches(16, [2]), units(model, "layer", (3, 16, 16))[:1], calibration=calibration)
    with pytest.raises(AnalysisError, match=r"calibration holds no batch|a batch is"):
        sweep(plan)


def test_a_model_without_norms_needs_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    found: list[Unit] = units(model, "layer", (3, 16, 16))
    data = batches(16, [2])
    one, other = (swept(plan_of(model, data, found, calibration=c)) for c in (CALIBRATION, None))
    assert all(np.allclose(one.pack()[name], values, 1e-6) for name, values in other.pack().items())
