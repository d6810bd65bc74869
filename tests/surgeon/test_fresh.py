"""Fresh values come from the model's own initial distribution, seeded, and leave nothing changed."""

import pytest
import timm
import torch
from torch import nn

import surgeon
from surgeon.fresh import fresh_values
from tests.contracts import Snapshot, stir
from tests.zoo import PlainNet


def test_timms_own_initialisation_draws() -> None:
    model = stir(timm.create_model("resnet18", num_classes=7))
    values = fresh_values(model, "layer2.0", seed=3)
    assert values.keys() == {**dict(model.layer2[0].named_parameters()), **dict(model.layer2[0].named_buffers())}.keys()
    weight = values["conv1.weight"]
    expected = (2 / (weight.shape[0] * 9)) ** 0.5  # timm: Kaiming normal, fan out
    assert float(weight.std()) == pytest.approx(expected, rel=0.02)
    assert float(model.layer2[0].bn1.weight.detach().std()) > 0.1 and (values["bn1.weight"] == 1).all()
    assert (values["bn2.weight"] == 0).all()  # timm starts the last norm of a block at zero
    with torch.random.fork_rng():
        torch.manual_seed(3)
        whole = timm.create_model("resnet18")
    assert torch.equal(weight, whole.layer2[0].conv1.weight)


def test_seeds() -> None:
    model = surgeon.create_model("test_resnet")
    first, again, other = (fresh_values(model, "layer4.0", seed)["conv1.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, model.layer4[0].conv1.weight)


def test_modules_draw_themselves_where_no_builder_is_known() -> None:
    model = stir(PlainNet())
    before = Snapshot.of(model)
    values = fresh_values(model, "block", seed=0)
    assert before.differences(Snapshot.of(model)) == []
    bound = 1 / (8 * 9) ** 0.5  # torch: uniform by fan in
    assert 0.9 * bound < float(values["conv1.weight"].abs().max()) <= bound


def test_parameters_of_no_known_distribution_are_refused() -> None:
    model = PlainNet()
    model.block.scale = nn.ParameterList([torch.ones(3)])
    with pytest.raises(surgeon.RefusedError, match=r"holds 'scale', a ParameterList without reset_parameters"):
        fresh_values(model, "block", seed=0)
