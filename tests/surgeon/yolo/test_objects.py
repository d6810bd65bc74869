"""YOLO objects: operated, saved, loaded, lowered, copied and undone, errors included."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import surgeon
from tests.surgeon.yolo.small import network

ultralytics = pytest.importorskip("ultralytics")
IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def stirred(path: str) -> Any:
    """A detector whose every tensor differs from its first value, in evaluation mode."""
    yolo = ultralytics.YOLO(path)
    with torch.no_grad():
        for name, tensor in yolo.model.state_dict().items():
            if tensor.is_floating_point() and "dfl" not in name:
                tensor.add_(torch.rand_like(tensor) * 0.1 - (0.0 if "running_var" in name else 0.05))
    yolo.model.eval()
    return yolo


def outputs(thing: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = getattr(thing, "model", thing).eval()(IMAGE)[0]
    return found


@pytest.fixture
def yolo(tmp_path: Path) -> Any:
    return stirred(network(tmp_path))


def test_apply_answers_the_same_object_with_the_same_outputs(yolo: Any) -> None:
    before, kind = outputs(yolo), type(yolo).__mro__[0].__name__
    assert surgeon.apply(yolo, "spd", 64) is yolo
    assert isinstance(yolo, ultralytics.YOLO) and type(yolo).__name__ == kind
    assert surgeon.record(yolo).count("rewritten") == 3
    torch.testing.assert_close(outputs(yolo), before, rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # control: the comparison sees a changed weight
        yolo.model.model[0].conv.weight[0] += 0.5
    assert not torch.allclose(outputs(yolo), before, rtol=1e-4, atol=1e-4)


def test_the_size_is_the_one_the_detector_was_made_for(yolo: Any) -> None:
    assert surgeon.locate(yolo).input_size == (3, 640, 640)
    yolo.model.args["imgsz"] = [96, 64]
    assert surgeon.locate(yolo).input_size == surgeon.locate(yolo.model).input_size == (3, 96, 64)


def test_what_detectors_know_of_themselves_stays_true(yolo: Any) -> None:
    before = copy.deepcopy(yolo)
    surgeon.apply(yolo, "spd", 64)
    assert yolo.names == before.names and yolo.task == before.task and yolo.model.yaml == before.model.yaml
    assert torch.equal(yolo.model.stride, before.model.stride)
    assert [(m.i, m.f, m.type) for m in yolo.model.model] == [(m.i, m.f, m.type) for m in before.model.model]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_saved_and_loaded_it_is_the_same(yolo: Any, tmp_path: Path, kind: str) -> None:
    surgeon.apply(yolo, [{"spd": {"order": "conv-spd"}, "select": {"path": "model.3.*"}}], 64)
    before = outputs(yolo)
    path = tmp_path / ("mine.pt" if kind == "file" else "mine")
    yolo.save(path) if kind == "file" else surgeon.save(yolo, path)
    loaded = surgeon.load(path)
    assert isinstance(loaded, ultralytics.YOLO) and surgeon.record(loaded) == surgeon.record(yolo)
    assert torch.equal(outputs(loaded), before) and loaded.names == yolo.names
    undone = surgeon.undo(loaded)
    assert surgeon.record(undone).count("rewritten") == 0
    assert type(undone).__mro__[1].__name__ != "YOLO"
    torch.testing.assert_close(outputs(undone), before, rtol=1e-4, atol=1e-4)


def test_an_object_that_was_never_operated_is_saved_too(yolo: Any, tmp_path: Path) -> None:
    loaded = surgeon.load(surgeon.save(yolo, tmp_path / "plain"))
    assert type(loaded) is ultralytics.YOLO
    assert torch.equal(outputs(loaded), outputs(yolo))


def test_undo_gives_back_a_plain_object_bit_for_bit(yolo: Any, tmp_path: Path) -> None:
    before, keys = outputs(yolo), set(yolo.__dict__)
    surgeon.undo(surgeon.apply(yolo, "spd", 64))
    assert type(yolo) is ultralytics.YOLO and set(yolo.__dict__) == keys
    assert torch.equal(outputs(yolo), before)
    yolo.save(tmp_path / "stock.pt")
    torch.testing.assert_close(outputs(ultralytics.YOLO(tmp_path / "stock.pt")), before, rtol=0.02, atol=0.02)  # halved


def test_copies_and_pickles_are_operated_objects(yolo: Any) -> None:
    surgeon.apply(yolo, "spd", 64)
    for other in (copy.deepcopy(yolo), pickle.loads(pickle.dumps(yolo))):
        assert surgeon.record(other) == surgeon.record(yolo) and torch.equal(outputs(other), outputs(yolo))
        surgeon.undo(other)
        assert surgeon.record(yolo).count("rewritten") == 3


@pytest.mark.parametrize("verb", ["train", "save", "load", "tune", "reset_weights"])
def test_an_object_around_an_operated_one_is_refused_in_words(yolo: Any, verb: str) -> None:
    surgeon.apply(yolo, "spd", 64)
    twin = ultralytics.YOLO(yolo)
    with pytest.raises(surgeon.RefusedError, match=rf"cannot {verb}: this object shares an operated network"):
        getattr(twin, verb)(name="run")
    assert torch.equal(outputs(twin), outputs(yolo))  # what needs no rebuilding works
    surgeon.undo(yolo)
    assert verb not in yolo.__dict__


def test_tune_is_refused_in_words(yolo: Any) -> None:
    with pytest.raises(surgeon.RefusedError, match="tune the original, then train the operated object"):
        surgeon.apply(yolo, "spd", 64).tune(iterations=1)


def test_weights_of_an_unoperated_detector_are_operated_when_loaded(yolo: Any, tmp_path: Path) -> None:
    other = stirred(network(tmp_path))
    assert not torch.allclose(outputs(other), outputs(yolo), atol=1e-3)
    other.model.half().float()
    expected = outputs(other)
    other.save(tmp_path / "other.pt")
    surgeon.apply(yolo, "spd", 64).load(tmp_path / "other.pt")
    torch.testing.assert_close(outputs(yolo), expected, rtol=1e-4, atol=1e-4)


def test_an_exported_file_is_refused(yolo: Any) -> None:
    del yolo.model
    yolo.__dict__["model"] = "model.onnx"  # as ultralytics holds an exported file
    with pytest.raises(surgeon.RefusedError, match=r"exported model model\.onnx: its code is fixed"):
        surgeon.apply(yolo, "spd")


def test_a_failed_surgery_leaves_a_plain_object(yolo: Any) -> None:
    before = outputs(yolo)
    with pytest.raises(surgeon.NoSiteError):
        surgeon.apply(yolo, [{"spd": {}, "select": {"path": "nowhere"}}], 64)
    assert type(yolo) is ultralytics.YOLO and torch.equal(outputs(yolo), before)


def test_a_network_built_by_hand_says_that_it_cannot_be_rebuilt(yolo: Any, tmp_path: Path) -> None:
    yolo.model.model[4].cv1.act = torch.nn.ReLU()
    surgeon.apply(yolo, "spd", 64)
    with pytest.raises(surgeon.SurgeonError, match=r"'model\.4\.cv1\.act': SiLU\(.*\) there, ReLU\(\) here"):
        yolo.save(tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_features_of_ultralytics_that_train_nothing(yolo: Any, capfd: pytest.CaptureFixture[str]) -> None:
    surgeon.apply(yolo, "spd", 64)
    image = (IMAGE[0].permute(1, 2, 0) * 255).byte().numpy()
    assert len(yolo.predict(image, imgsz=64, device="cpu", verbose=False)) == 1
    assert yolo.embed(image, imgsz=64, device="cpu", verbose=False)[0].ndim == 1
    layers, parameters, *_ = yolo.info()
    assert parameters == sum(p.numel() for p in yolo.model.parameters()) and layers > 10
    before = outputs(yolo)
    assert yolo.fuse() is yolo and not any(isinstance(m, torch.nn.BatchNorm2d) for m in yolo.model.modules())
    torch.testing.assert_close(outputs(yolo), before, rtol=1e-3, atol=1e-3)
    assert surgeon.record(yolo).count("rewritten") == 3


def test_weights_are_not_reset_by_halves(yolo: Any) -> None:
    before = outputs(surgeon.apply(yolo, "spd", 64))
    with pytest.raises(surgeon.RefusedError, match=r"surgeon\.undo it, reset_weights\(\), and apply again"):
        yolo.reset_weights()
    assert torch.equal(outputs(yolo), before)


def test_weights_come_as_a_dict_too_and_from_the_same_surgery_only(yolo: Any, tmp_path: Path) -> None:
    other = stirred(network(tmp_path))
    with torch.no_grad():
        other.model.model[0].conv.weight.mul_(2)
    expected = outputs(other)
    surgeon.apply(yolo, "spd", 64).load({"model": other.model})
    torch.testing.assert_close(outputs(yolo), expected, rtol=1e-4, atol=1e-4)
    surgeon.apply(other, {"spd": {"kernel": "minimal"}}, 64).save(tmp_path / "other.pt")
    with pytest.raises(surgeon.RefusedError, match=r"was operated by .*minimal.*, this object by"):
        yolo.load(tmp_path / "other.pt")
    torch.testing.assert_close(outputs(yolo), expected, rtol=1e-4, atol=1e-4)


def test_the_object_around_an_operated_network_is_told(yolo: Any, tmp_path: Path) -> None:
    surgeon.apply(yolo.model, "spd", 64)
    yolo.save(tmp_path / "mine.pt")
    assert surgeon.record(surgeon.load(tmp_path / "mine.pt")).count("rewritten") == 3
    surgeon.undo(yolo.model)
    assert type(yolo) is ultralytics.YOLO


def test_a_network_alone_does_not_lose_its_surgery_without_a_word(tmp_path: Path) -> None:
    alone = stirred(network(tmp_path)).model
    before = dict(alone.yaml)
    surgeon.apply(alone, "spd", 64)
    twin = copy.deepcopy(alone)
    assert surgeon.record(twin).count("rewritten") == 3 and twin.yaml == alone.yaml == before
    with pytest.raises(surgeon.RefusedError, match=r"cannot pickle .* write it by surgeon\.save"):
        torch.save({"model": alone}, tmp_path / "never.pt")
    with pytest.raises(surgeon.RefusedError, match=r"built anew from its yaml.*surgeon\.apply\(yolo"):
        ultralytics.nn.tasks.DetectionModel(alone.yaml, verbose=False)
    assert surgeon.record(surgeon.load(surgeon.save(alone, tmp_path / "mine"))).count("rewritten") == 3
    assert type(surgeon.undo(twin).yaml) is dict


def test_a_given_object_is_operated_as_what_was_saved(yolo: Any, tmp_path: Path) -> None:
    surgeon.apply(yolo, "spd", 64).save(tmp_path / "mine.pt")
    for path in (surgeon.save(yolo, tmp_path / "mine"), tmp_path / "mine.pt"):
        given = stirred(network(tmp_path, name="given.yaml"))
        assert surgeon.load(path, given) is given
        assert torch.equal(outputs(given), outputs(yolo))
        with pytest.raises(surgeon.RefusedError, match=r"surgeon\.undo it"):
            given.reset_weights()  # it is an operated object


@pytest.mark.parametrize("name", ["mine.ckpt", ".", "folder.pt"])
def test_only_files_that_ultralytics_knows_are_written(yolo: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(surgeon.RefusedError, match=r"name a file that ends in \.pt"):
        surgeon.apply(yolo, "spd", 64).save(tmp_path / name)


def test_a_link_stays_a_link(yolo: Any, tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to(tmp_path / "target.pt")
    surgeon.apply(yolo, "spd", 64).save(tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink() and surgeon.load(tmp_path / "target.pt")


def test_a_changed_byte_is_seen(yolo: Any, tmp_path: Path) -> None:
    surgeon.apply(yolo, "spd", 64).save(tmp_path / "mine.pt")
    data = bytearray((tmp_path / "mine.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "mine.pt").write_bytes(data)
    with pytest.raises(surgeon.LoadError, match="damaged"):
        surgeon.load(tmp_path / "mine.pt")


def test_a_fused_object_says_what_it_cannot(yolo: Any, tmp_path: Path) -> None:
    surgeon.apply(yolo, "spd", 64).fuse()
    with pytest.raises(surgeon.RefusedError, match="save it before fuse"):
        yolo.save(tmp_path / "never.pt")
    with pytest.raises(surgeon.RefusedError, match="cannot train a fused network"):
        yolo.train(name="run")
