"""Attributions on timm's nets and on detectors, which come out as they went in, whatever happens."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import analysis
from tests.analysis.attributing import Batches, batches, settled
from tests.contracts import Snapshot, stir

pytest.importorskip("captum.attr")
QUIET: dict[str, Any] = {"progress": False, "robustness": False}


def prepared(name: str) -> nn.Module:
    """In mixed modes, with a frozen parameter and a gradient."""
    model = stir(timm.create_model(name, num_classes=4)).train()
    first = next(model.parameters())
    first.requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)
    list(model.children())[-1].eval()
    return model


class Breaking(list):  # type: ignore[type-arg]
    """Batches of which the third raises."""

    def __init__(self, data: Batches, error: BaseException) -> None:
        super().__init__(data)
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        yield from self[:2]
        raise self.error


@pytest.mark.parametrize("name", ["test_resnet", pytest.param("test_efficientnet", marks=pytest.mark.slow)])
def test_a_model_is_put_back(name: str) -> None:
    model, data = prepared(name), batches(6, (3, 32, 32), 4, 2)
    before, gradients = Snapshot.of(model), [p.grad for p in model.parameters()]
    more: dict[str, Any] = {**QUIET, "steps": 4, "internal_batch_size": 8}
    analysis.attribution(model, data[:1], method=["branch_conductance", "integrated_gradients"], **more)
    analysis.attribution_equivariance(model, data[:1], method="gradcam", shifts=[2], progress=False)
    with pytest.raises(RuntimeError, match="disk"):
        analysis.attribution(model, Breaking(data, RuntimeError("disk")), **more)
    stopped = analysis.attribution(model, Breaking(data, KeyboardInterrupt()), **more)
    assert not stopped.complete and stopped.settings["images"] == 4 and "stopped before" in stopped.summary
    moved = analysis.attribution_equivariance(model, Breaking(data, KeyboardInterrupt()), shifts=[1], progress=False)
    assert not moved.complete and moved.rows[0]["images"] == 4
    assert before.differences(Snapshot.of(model)) == []
    assert all(p.grad is grad for p, grad in zip(model.parameters(), gradients, strict=True))


def test_blocks_of_a_resnet_add_up() -> None:
    model = settled(timm.create_model("test_resnet", num_classes=4, zero_init_last=False)).double()
    data = batches(2, (3, 48, 48), 4, dtype=torch.float64)
    near = 0.98 * data[0][0][0]  # nets drawn at random have a kink every few steps of a longer path
    found = analysis.attribution(model, [(data[0][0][:1], data[0][1][:1])], steps=64, baseline=near, **QUIET)
    shares = [row["signed_share"] for row in found.rows]
    assert np.allclose(shares, 1, atol=0.02) and len(shares) == 6, shares
    assert found.completeness_error["conductance"] < 0.02
    assert max(row["integration_error_share"] for row in found.rows) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", timm.list_models("test_*"))
@pytest.mark.parametrize("level", ["block", "layer"])
def test_every_small_model(name: str, level: Any) -> None:
    model = stir(timm.create_model(name, num_classes=4))
    data = batches(1, model.pretrained_cfg["input_size"], 4)
    near = data[0][0][0] + 0.02 * torch.randn(data[0][0].shape[1:])  # norms over an image would cancel a factor
    before = Snapshot.of(model)
    found = analysis.attribution(model, data, units=level, steps=32, baseline=near, **QUIET)
    without = [row["note"] for row in found.rows if row["absolute_share"] is None]
    assert all(note.startswith(("no output of its own", "the output of")) for note in without)
    assert len(without) < len(found.rows) / 2 and (level == "layer" or len(without) < 2)
    assert found.completeness_error["conductance"] < 0.2
    moved = analysis.attribution_equivariance(model, data, shifts=[4], progress=False)
    assert moved.rows[0]["pearson"] is not None
    assert before.differences(Snapshot.of(model)) == []


def objects(images: int, batch: int = 2, side: int = 64) -> list[tuple[Tensor, list[dict[str, Tensor]]]]:
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 32.0]]), "labels": torch.tensor([3])}
    return [(part, [target] * len(part)) for part in torch.rand(images, 3, side, side).split(batch)]


def detector(yaml: str) -> Any:
    """With values as after training, surer of what it finds."""
    ultralytics = pytest.importorskip("ultralytics")
    model = ultralytics.YOLO(yaml, verbose=False) if "rtdetr" not in yaml else ultralytics.RTDETR(yaml)
    for name, parameter in model.model.named_parameters():
        if "cv3" in name and name.endswith(".2.bias"):
            parameter.data.fill_(-3.0)
    settled(model.model)
    return model


def test_yolo() -> None:
    model, data = detector("yolo11n.yaml"), objects(2)
    before, near, small = Snapshot.of(model.model), 0.97 * data[0][0][0], {"imgsz": 64}
    found = analysis.attribution(
        model, [(data[0][0][:1], data[0][1][:1])], steps=16, baseline=near, detector=small, **QUIET
    )
    assert [row["unit"] for row in found.rows][:2] == ["layer0.Conv", "layer1.Conv"]
    assert found.settings["target"] == "confidence" and found.completeness_error["conductance"] < 0.02
    shares = {row["unit"]: row["signed_share"] for row in found.rows}
    assert shares["layer0.Conv"] == pytest.approx(1, abs=0.02) and shares["layer23.Detect"] == pytest.approx(
        1, abs=0.02
    )
    assert abs(shares["layer13.C3k2"] - 1) > 0.05  # other ways lead past the neck's layers
    moved = analysis.attribution_equivariance(model, data, shifts=[32], detector=small, progress=False)
    assert 0 < moved.rows[0]["pearson"] <= 1
    assert before.differences(Snapshot.of(model.model)) == []


@pytest.mark.slow
@pytest.mark.parametrize("yaml", ["yolov8n.yaml", "yolov10n.yaml", "yolo26n.yaml", "rtdetr-resnet50.yaml"])
def test_every_kind_of_head(yaml: str) -> None:
    model, data = detector(yaml), objects(1)
    found = analysis.attribution(model, data, steps=64, baseline=0.99 * data[0][0][0], **QUIET)
    assert found.completeness_error["conductance"] < 0.2
    assert sum(row["absolute_share"] is not None for row in found.rows) > 10


@pytest.mark.slow
def test_yolo_beside_its_robustness() -> None:
    model = detector("yolo11n.yaml")
    found = analysis.attribution(model, objects(2), steps=4, progress=False, detector={"resamples": 10})
    assert found.settings["robustness"] == "measured" and "rerand_ap" in found.rows[0]
    assert found.rank_correlation["conductance"]["units"] == len(found.rows)


@pytest.mark.slow
def test_ultralytics_classifiers() -> None:
    ultralytics = pytest.importorskip("ultralytics")
    model = ultralytics.YOLO("yolo11n-cls.yaml", verbose=False)
    settled(model.model)
    data = batches(1, (3, 64, 64), 4, 2)
    found = analysis.attribution(model, data, steps=16, baseline=0.97 * data[0][0][0], **QUIET)
    assert found.settings["target"] == "label" and found.rows[0]["signed_share"] == pytest.approx(1, abs=0.05)
