"""Training in odd orders and with odd arguments: nothing is lost without a word."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import surgeon
from tests.surgeon.yolo.small import network, settings
from tests.surgeon.yolo.test_training import STILL, data, interrupted, is_operated, last, same, weights, yolo

ultralytics = pytest.importorskip("ultralytics")
__all__ = ["data", "yolo"]  # fixtures
MINIMAL = {"spd": {"kernel": "minimal"}}


@pytest.mark.slow
def test_the_classifier_follows_the_names_of_the_classes(yolo: Any, tmp_path: Path, data: str) -> None:
    yolo.train(**settings(tmp_path, data, **STILL))
    rows = yolo.model.model[-1].cv3[0][2].weight.detach().clone()
    content = yaml.safe_load(Path(data).read_text())
    content["names"] = {0: "class 2", 1: "class 1", 2: "class 0"}
    turned = tmp_path / "turned.yaml"
    turned.write_text(yaml.safe_dump(content))
    yolo.train(**settings(tmp_path, str(turned), **STILL))
    assert is_operated(yolo) and yolo.names[0] == "class 2" and not torch.equal(rows, rows.flip(0))
    torch.testing.assert_close(yolo.model.model[-1].cv3[0][2].weight, rows.flip(0))
    yolo.train(**settings(tmp_path, data, **STILL, cls_remap=False))
    torch.testing.assert_close(yolo.model.model[-1].cv3[0][2].weight, rows.flip(0))


def test_a_refused_training_leaves_the_object_as_it_was(yolo: Any, tmp_path: Path, data: str) -> None:
    other = surgeon.apply(ultralytics.YOLO(network(tmp_path)), MINIMAL, 64)
    other.save(tmp_path / "other.pt")
    before, held, recipe = yolo.model, weights(yolo), surgeon.record(yolo).recipe
    with pytest.raises(surgeon.RefusedError, match=r"was operated by .*minimal.*, this object by .*use weights of the"):
        yolo.train(**settings(tmp_path, data, pretrained=str(tmp_path / "other.pt")))
    assert yolo.model is before and same(weights(yolo), held) and surgeon.record(yolo).recipe == recipe


@pytest.mark.slow
def test_a_second_training_takes_its_own_arguments_and_precision(yolo: Any, tmp_path: Path, data: str) -> None:
    interrupted(yolo, tmp_path, data, box=7.5)
    boxes: list[float] = []
    yolo.add_callback("on_train_batch_end", lambda trainer: boxes.append(trainer.model.criterion.hyp.box))
    yolo.model.half()
    yolo.train(**settings(tmp_path, data, box=0.5))
    assert boxes and set(boxes) == {0.5} and is_operated(yolo)


@pytest.mark.slow
def test_what_was_not_finite_in_both_is_written_as_a_number(yolo: Any, tmp_path: Path, data: str) -> None:
    def spoil(trainer: Any) -> None:
        for part in (trainer.model, trainer.ema.ema):
            part.model[0].bn.running_mean.fill_(float("nan"))

    yolo.add_callback("on_train_epoch_end", spoil)
    yolo.train(**settings(tmp_path, data))
    assert is_operated(yolo) and all(torch.isfinite(t).all() for t in yolo.model.state_dict().values())


def test_an_ordinary_object_does_not_train_an_operated_file_without_its_surgery(
    yolo: Any, tmp_path: Path, data: str
) -> None:
    seen: list[Any] = []
    yolo.add_callback("on_train_end", lambda trainer: seen.append(ultralytics.YOLO(trainer.best)))
    yolo.train(**settings(tmp_path, data))
    assert is_operated(yolo) and len(seen) == 1
    seen[0].callbacks = ultralytics.YOLO(network(tmp_path)).callbacks
    with pytest.raises(surgeon.RefusedError, match=r"built anew from its yaml.*surgeon\.apply\(yolo"):
        seen[0].train(**settings(tmp_path, data))
    with pytest.raises(surgeon.RefusedError, match="cannot pickle"):
        seen[0].save(tmp_path / "never.pt")


def test_an_operated_network_is_trained_by_the_object_around_it(tmp_path: Path, data: str) -> None:
    stock = ultralytics.YOLO(network(tmp_path))
    surgeon.apply(stock.model, "spd", 64)
    held = weights(stock)
    stock.train(**settings(tmp_path, data, **STILL))
    assert is_operated(stock) and same(weights(stock), held)


def test_only_files_that_are_there_are_resumed(yolo: Any, tmp_path: Path, data: str) -> None:
    interrupted(yolo, tmp_path, data)
    with pytest.raises(surgeon.RefusedError, match=r"there is no file .*gone\.pt; surgeon\.load the last\.pt"):
        yolo.train(resume=str(tmp_path / "gone.pt"))
    (tmp_path / "copy.ckpt").write_bytes(last(tmp_path).read_bytes())
    with pytest.raises(surgeon.LoadError, match=r"rename it to copy\.pt"):
        surgeon.load(tmp_path / "copy.ckpt")


@pytest.mark.slow
def test_a_training_before_the_surgery_is_not_resumed(tmp_path: Path, data: str) -> None:
    stock = ultralytics.YOLO(network(tmp_path))
    interrupted(stock, tmp_path, data)
    loaded = ultralytics.YOLO(last(tmp_path))
    assert loaded.ckpt["optimizer"] is not None
    surgeon.apply(loaded, "spd", 64)
    held = weights(loaded)
    loaded.train(**settings(tmp_path, data, **STILL), resume=True)  # from the weights in memory, from the first epoch
    assert is_operated(loaded) and same(weights(loaded), held)


@pytest.mark.slow
def test_trainers_of_ones_own(yolo: Any, tmp_path: Path, data: str) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    ended: list[int] = []

    class Mine(DetectionTrainer):  # type: ignore[misc]
        def optimizer_step(self) -> None:
            ended.append(self.epoch)
            super().optimizer_step()

    yolo.train(**settings(tmp_path, data), trainer=Mine)
    assert ended and is_operated(yolo)
    other = surgeon.apply(ultralytics.YOLO(network(tmp_path)), MINIMAL, 64)
    other.train(**settings(tmp_path, data), trainer=type(yolo.trainer))
    assert surgeon.record(other).recipe != surgeon.record(yolo).recipe and is_operated(other)
    with pytest.raises(surgeon.RefusedError, match="no class; derive one"):
        yolo.train(**settings(tmp_path, data), trainer=partial(DetectionTrainer))


@pytest.mark.slow
def test_a_copy_trains_and_the_original_stays(yolo: Any, tmp_path: Path, data: str) -> None:
    twin, held = copy.deepcopy(yolo), weights(yolo)
    twin.train(**settings(tmp_path, data, optimizer="SGD", lr0=0.1))
    assert is_operated(twin) and is_operated(yolo) and same(weights(yolo), held) and not same(weights(twin), held)
