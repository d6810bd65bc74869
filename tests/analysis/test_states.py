"""Kept states of a network: every kind of file, folder and object, matched to the model, and what does not fit."""

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

import surgeon
from analysis import state_files
from analysis.states import initial_state, read_states
from recipes.folders import write_weights
from surgeon.errors import AnalysisError
from surgeon.fresh import tensors
from surgeon.storage import Saved, write_checkpoint
from tests.contracts import Snapshot, stir
from tests.surgeon.yolo.small import network
from tests.zoo import PlainNet


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


def stirred(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return stir(PlainNet(), seed)


def same(found: dict[str, Tensor], expected: nn.Module) -> bool:
    wanted = values(expected)
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


NETS = {0: stirred(0), 1: stirred(1), 10: stirred(10)}


def trajectory(folder: Path) -> Path:
    for epoch, net in NETS.items():
        write_weights(folder / "trajectory" / f"epoch_{epoch:04d}.safetensors", net)
    return folder


def fits(states: Any, labels: dict[str, nn.Module]) -> None:
    assert list(states) == list(labels) and len(states) == len(labels) and states.missing_buffers == {}
    assert [label for label, net in labels.items() if not same(states[label], net)] == []


# what is in memory


def test_state_dicts_and_modules_by_position() -> None:
    model = PlainNet()
    before = Snapshot.of(model)
    held = [net.state_dict() for net in NETS.values()]
    fits(read_states(held, model), {"0": NETS[0], "1": NETS[1], "2": NETS[10]})
    fits(read_states(list(NETS.values()), model), {"0": NETS[0], "1": NETS[1], "2": NETS[10]})
    fits(read_states(held[1], model), {"0": NETS[1]})
    fits(read_states((), model), {})
    assert before.differences(Snapshot.of(model)) == []


def test_labels_of_ones_own_keep_their_order(tmp_path: Path) -> None:
    mapped = {"late": NETS[10], 3: NETS[0].state_dict(), "run": trajectory(tmp_path)}
    expected = {"late": NETS[10], "3": NETS[0], "run/0": NETS[0], "run/1": NETS[1], "run/10": NETS[10]}
    states = read_states(mapped, PlainNet())
    fits(states, expected)
    fits(read_states(states, PlainNet()), expected)
    fits(read_states({"ema": NETS[0].state_dict(), "model": NETS[1].state_dict()}, PlainNet()), named(0, 1))


def named(*epochs: int) -> dict[str, nn.Module]:
    return dict(zip(("ema", "model"), (NETS[epoch] for epoch in epochs), strict=True))


def test_a_checkpoint_in_memory_is_one_state() -> None:
    state = {"epoch": 3, "model": NETS[1].state_dict(), "optimizer": {"state": {}, "param_groups": []}}
    fits(read_states(state, PlainNet()), {"0": NETS[1]})
    fits(read_states([{**state, "model_ema": NETS[10].state_dict()}], PlainNet()), {"0": NETS[10]})


def test_prefixes_are_stripped() -> None:
    state = NETS[1].state_dict()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "model."):
        fits(read_states({f"{prefix}{name}": tensor for name, tensor in state.items()}, PlainNet()), {"0": NETS[1]})
    inside = {name.replace("block.", "block._orig_mod."): tensor for name, tensor in state.items()}
    fits(read_states(inside, PlainNet()), {"0": NETS[1]})
    averaged = torch.optim.swa_utils.AveragedModel(NETS[1])  # holds a counter beside the network
    fits(read_states(averaged.state_dict(), PlainNet()), {"0": NETS[1]})
    own = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert read_states(own.state_dict(), copy.deepcopy(own))["0"].keys() == {"module.weight", "module.bias"}


def test_precision_is_the_models() -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in values(NETS[1]).items()}
    found = read_states(half, PlainNet())["0"]
    assert found["stem.0.weight"].dtype == torch.float32 and found["stem.1.num_batches_tracked"].dtype == torch.int64
    torch.testing.assert_close(found["head.weight"], values(NETS[1])["head.weight"], rtol=1e-3, atol=1e-3)


def test_tied_tensors_have_one_name() -> None:
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[1].weight = net[0].weight
        return net

    state = tied().state_dict()
    assert "1.weight" in state
    assert read_states(state, tied())["0"].keys() == {"0.weight", "0.bias", "1.bias"}
    del state["0.weight"]
    assert read_states(state, tied())["0"].keys() == {"0.weight", "0.bias", "1.bias"}


def test_the_models_own_tensors_are_refused() -> None:
    model = PlainNet()
    for own in (model, model.state_dict(), [NETS[0], model.state_dict()]):
        with pytest.raises(AnalysisError, match=r"is the model's own tensor, and changes with it; keep a copy"):
            read_states(own, model)
    assert list(read_states(copy.deepcopy(model.state_dict()), model)) == ["0"]


# what does not fit


def test_what_does_not_fit_is_named() -> None:
    state = NETS[1].state_dict()
    other = {**state, "head.weight": torch.zeros(5, 12), "strange": torch.zeros(2)}
    del other["stem.0.weight"]
    message = (
        r"the state dict given as '0' holds no state of this PlainNet: 'stem.0.weight' is missing; 'strange' is none "
        r"of the model's; 'head.weight' is \(5, 12\) there, \(10, 12\) in the model; pass states of the same "
    )
    with pytest.raises(AnalysisError, match=message):
        read_states(other, PlainNet())
    operated = surgeon.apply(PlainNet(), "spd", 32)
    with pytest.raises(AnalysisError, match=r"'stem.0.weight' is \(8, 3, 3, 3\) there, \(8, 12, 3, 3\) in the model"):
        read_states([state], operated)


def test_missing_buffers_are_noted() -> None:
    state = {name: tensor for name, tensor in NETS[1].state_dict().items() if "num_batches" not in name}
    states = read_states([NETS[0], state], PlainNet())
    assert states.missing_buffers == {"1": ("block.norm1.num_batches_tracked", "stem.1.num_batches_tracked")}
    assert states["1"].keys() == state.keys()
    wrong = {**state, "stem.1.running_mean": torch.zeros(3)}
    with pytest.raises(AnalysisError, match=r"'stem.1.running_mean' is \(3,\) there, \(8,\) in the model"):
        read_states(wrong, PlainNet())


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="a int is no source of states; pass a state dict"):
        read_states([3], PlainNet())
    with pytest.raises(AnalysisError, match=r"there is no file or folder gone\.pt"):
        read_states("gone.pt", PlainNet())
    with pytest.raises(AnalysisError, match="keeps no state of a network"):
        read_states(tmp_path, PlainNet())
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(AnalysisError, match=r"files of a network end in \.safetensors, \.pt"):
        read_states(tmp_path / "notes.txt", PlainNet())
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    with pytest.raises(AnalysisError, match=r"numbers.pt holds no tensors by name"):
        read_states(tmp_path / "numbers.pt", PlainNet())


def test_equal_and_taken_labels_are_refused(tmp_path: Path) -> None:
    for name in ("a/last.pt", "b/last.pt", "c/final.pt"):
        (tmp_path / name).parent.mkdir()
        torch.save(NETS[0].state_dict(), tmp_path / name)
    with pytest.raises(AnalysisError, match=r"a/last.pt and .*b/last.pt have the same label 'last'; pass a mapping"):
        read_states([tmp_path / "a/last.pt", tmp_path / "b/last.pt"], PlainNet())
    with pytest.raises(AnalysisError, match=r"the label 'final' of .*final.pt has a meaning of its own"):
        read_states(tmp_path / "c/final.pt", PlainNet())
    fits(read_states({"x": tmp_path / "c/final.pt"}, PlainNet()), {"x": NETS[0]})


# files


@pytest.mark.parametrize(
    ("name", "label"),
    [("epoch_0010.pt", "10"), ("10.pth", "10"), ("Epoch-0.safetensors", "0"), ("checkpoint-9.pth.tar", "checkpoint-9")],
)
def test_files(tmp_path: Path, name: str, label: str) -> None:
    path, state = tmp_path / name, NETS[1].state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    fits(read_states(path, PlainNet()), {label: NETS[1]})
    fits(read_states(str(path), PlainNet()), {label: NETS[1]})


def test_wrappers_in_files(tmp_path: Path) -> None:
    net, averaged = NETS[1].state_dict(), NETS[10].state_dict()
    as_timm = {"epoch": 3, "arch": "x", "state_dict": net, "optimizer": {}, "args": argparse.Namespace(lr=1)}
    for i, (held, expected) in enumerate(
        [
            ({"model": net}, NETS[1]),
            ({"model_state_dict": net, "epoch": 1}, NETS[1]),
            (as_timm, NETS[1]),
            ({**as_timm, "state_dict_ema": averaged}, NETS[10]),
            ({"state_dict": {f"model.{name}": tensor for name, tensor in net.items()}}, NETS[1]),
        ]
    ):
        torch.save(held, tmp_path / f"{i}.pt")
        fits(read_states(tmp_path / f"{i}.pt", PlainNet()), {str(i): expected})


class Trap:
    """Would run code if it was read."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("trapped"),)


def test_files_are_read_without_running_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, held in (("trap.pt", {**NETS[1].state_dict(), "x": Trap()}), ("module.pt", NETS[1])):
        torch.save(held, name)
        with pytest.raises(AnalysisError, match=f"{name} holds more than tensors, .* save model.state_dict"):
            read_states(name, PlainNet())
    assert not Path("trapped").exists()
    torch.load("trap.pt", weights_only=False)
    assert Path("trapped").exists()  # the trap works


def test_damaged_files(tmp_path: Path) -> None:
    torch.save(NETS[1].state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-300])
    (tmp_path / "b.pt").write_bytes(b"nothing")
    save_file(NETS[1].state_dict(), tmp_path / "c.safetensors")
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:-300])
    for name in ("a.pt", "b.pt", "c.safetensors"):
        with pytest.raises(AnalysisError, match=rf"{name} is damaged.*; restore it from a copy"):
            read_states(tmp_path / name, PlainNet())


def test_values_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    stock, load = torch.load, state_files.load_file

    def spied(path: Any, map_location: Any = None, **more: Any) -> Any:
        loaded.extend([Path(path).name] * (str(map_location) != "meta"))
        return stock(path, map_location=map_location, **more)

    def spied_load(path: Any) -> Any:
        loaded.append(Path(path).name)
        return load(path)

    monkeypatch.setattr(torch, "load", spied)
    monkeypatch.setattr(state_files, "load_file", spied_load)
    trajectory(tmp_path)
    torch.save(NETS[0].state_dict(), tmp_path / "trajectory" / "epoch_0020.pt")
    states = read_states(tmp_path, PlainNet())
    assert list(states) == ["0", "1", "10", "20"] and loaded == []
    first = states["20"]
    assert states["1"].keys() == first.keys() and loaded == ["epoch_0020.pt", "epoch_0001.safetensors"]
    (tmp_path / "trajectory" / "epoch_0020.pt").unlink()
    with pytest.raises(AnalysisError, match=r"epoch_0020.pt .*"):
        states["20"]
    with pytest.raises(KeyError):
        states["7"]


# folders


def test_a_trajectory_and_the_run_around_it(tmp_path: Path) -> None:
    run = trajectory(tmp_path / "run")
    expected = {str(epoch): net for epoch, net in NETS.items()}
    fits(read_states(run, PlainNet()), expected)
    fits(read_states(run / "trajectory", PlainNet()), expected)
    (tmp_path / "recipe.yaml").write_text("name: both\n")
    fits(read_states(tmp_path, PlainNet()), expected)
    trajectory(tmp_path / "other")
    with pytest.raises(AnalysisError, match=r"keeps several networks: name one of .*other, .*run"):
        read_states(tmp_path, PlainNet())


def test_what_the_fine_tuner_writes(tmp_path: Path) -> None:
    from recipes.finetuning import finetune

    recipe = {
        "name": "short",
        "model": {"timm": "digits_convnet"},
        "data": {"dataset": "digits", "size": 8},
        "train": {"epochs": 1, "device": "cpu", "keep_epochs": [0, 1]},
    }
    model = surgeon.create_model("digits_convnet")
    start = copy.deepcopy(model)
    finetune(model, recipe, folder=tmp_path, console=Console(quiet=True))
    fits(read_states(tmp_path, model), {"0": start, "1": model})
    assert same(initial_state(tmp_path, model), start) and not same(initial_state(tmp_path, model), model)


def test_a_run_that_kept_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: none\n")
    with pytest.raises(AnalysisError, match=r"kept no epochs: set train.keep_epochs: \[0, 1, 10\]"):
        read_states(tmp_path, PlainNet())


def test_a_folder_of_surgeon_save(tmp_path: Path) -> None:
    model = surgeon.apply(stirred(3), "spd", 32)
    folder = surgeon.save(model, tmp_path / "epoch_0003")
    target = surgeon.apply(PlainNet(), "spd", 32)
    states = read_states([folder], target)
    fits(states, {"3": model})
    (weights,) = folder.glob("weights-*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(surgeon.LoadError, match="truncated or was edited"):
        states["3"]
    weights.unlink()
    with pytest.raises(AnalysisError, match="is damaged or not there"):
        read_states(folder, target)


def test_caches_count_where_the_model_has_them(tmp_path: Path) -> None:
    class Cached(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.register_buffer("grid", torch.full((size,), 5.0), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    folder = surgeon.save(Cached(4), tmp_path / "saved")
    assert read_states(folder, Cached(4))["saved"]["grid"].tolist() == [5.0] * 4
    states = read_states([folder, Cached(6)], Cached(6))
    assert states["saved"].keys() == {"fc.weight", "fc.bias"} and states.missing_buffers == {}
    assert "grid" in states["1"]


# initial states


def test_initial_state(tmp_path: Path) -> None:
    model = PlainNet()
    assert same(initial_state(trajectory(tmp_path), model), NETS[0])
    assert same(initial_state(NETS[10].state_dict(), model), NETS[10])
    assert same(initial_state(tmp_path / "trajectory" / "epoch_0010.safetensors", model), NETS[10])
    with pytest.raises(AnalysisError, match=r"The source holds a, b, and no '0'; name its file"):
        initial_state({"a": NETS[0], "b": NETS[1]}, model)


# ultralytics


def checkpoint(net: nn.Module, epoch: int, done: int = 0, **more: Any) -> dict[str, Any]:
    """What ultralytics' trainer writes after an epoch counted from 0; stripped at the end, the epoch is -1."""
    half = copy.deepcopy(net).half()
    place = {"ema": half, "model": None} if epoch >= 0 else {"ema": None, "model": half}
    return {"epoch": epoch, **place, "train_args": {}, "train_results": {"epoch": list(range(1, done + 1))}, **more}


@pytest.fixture
def yolo(tmp_path: Path) -> Any:
    ultralytics = pytest.importorskip("ultralytics")
    yolo = ultralytics.YOLO(network(tmp_path))
    stir(yolo.model)
    return yolo


def test_a_run_of_ultralytics(tmp_path: Path, yolo: Any) -> None:
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    for name, held in {
        "epoch0": checkpoint(yolo.model, 0, 1),
        "epoch10": checkpoint(yolo.model, 10, 11),
        "last": checkpoint(yolo.model, -1, 13),
        "best": checkpoint(yolo.model, -1, 13),
    }.items():
        torch.save(held, run / "weights" / f"{name}.pt")
    states = read_states(run, yolo)
    assert list(states) == ["1", "11", "13", "best"] == list(read_states(run / "weights", yolo.model))
    expected = {name: t.half().to(t.dtype) if t.is_floating_point() else t for name, t in values(yolo.model).items()}
    found = states["11"]
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    torch.save(checkpoint(yolo.model, -1, 11), run / "weights" / "last.pt")  # the same as epoch10
    again = read_states(run, yolo)
    assert list(again) == ["1", "11", "best"] and again.where["11"].endswith("epoch10.pt")
    with pytest.raises(AnalysisError, match=r"no '0'; name its file, or keep it .*yolo.model.state_dict\(\), copied"):
        initial_state(run, yolo)
    with pytest.raises(AnalysisError, match=r"holds no state of this PlainNet: 'stem.0.weight' is missing"):
        read_states(run, PlainNet())


def test_networks_in_the_making_and_their_objects(tmp_path: Path, yolo: Any) -> None:
    twin = copy.deepcopy(yolo.model)
    start = copy.deepcopy(yolo.model.state_dict())
    assert same(initial_state(start, yolo), twin)
    assert same(initial_state({f"model.{name}": t for name, t in start.items()}, yolo), twin)  # as yolo.state_dict()
    yolo.save(tmp_path / "start.pt")
    found = initial_state(tmp_path / "start.pt", twin)
    assert found.keys() == values(twin).keys()


def test_foreign_code_in_a_checkpoint_of_ultralytics(tmp_path: Path, yolo: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint(yolo.model, 0, 1, extra=Trap()), tmp_path / "last.pt")
    with pytest.raises(AnalysisError, match=r"last.pt cannot be read .*open it by YOLO\(...\) and pass the object"):
        read_states(tmp_path / "last.pt", yolo)
    assert not Path("trapped").exists()


@pytest.mark.slow
def test_a_checkpoint_of_an_operated_detector(tmp_path: Path, yolo: Any) -> None:
    surgeon.apply(yolo, "spd")
    yolo.save(tmp_path / "mine.pt")
    fits(read_states(tmp_path / "mine.pt", copy.deepcopy(yolo.model)), {"mine": yolo.model})
    from surgeon.persistence import contents

    held, manifest = contents(yolo.model, originals=False)
    write_checkpoint(tmp_path / "epoch4.pt", Saved(manifest, held, {"epoch": 4, "train_results": {"epoch": [1]}}))
    fits(read_states([tmp_path / "epoch4.pt"], copy.deepcopy(yolo.model)), {"5": yolo.model})


@pytest.mark.slow
def test_a_training_of_ultralytics(tmp_path: Path, yolo: Any) -> None:
    from tests.surgeon.yolo.small import squares

    start = copy.deepcopy(yolo.model)
    settings = {"imgsz": 64, "batch": 4, "workers": 0, "plots": False, "verbose": False, "device": "cpu", "val": False}
    settings |= {"nbs": 4, "warmup_epochs": 0, "optimizer": "SGD", "lr0": 0.05}  # every batch is an update
    yolo.train(data=squares(tmp_path), epochs=3, save_period=2, project=str(tmp_path), name="run", **settings)
    states = read_states(tmp_path / "run", yolo)
    assert sorted(path.stem for path in (tmp_path / "run" / "weights").iterdir()) == [
        "best",
        "epoch0",
        "epoch2",
        "last",
    ]
    assert list(states) == ["1", "3", "best"] and states.where["3"].endswith("epoch2.pt")
    weights = [states[label]["model.0.conv.weight"] for label in ("1", "3")]
    assert not torch.equal(*weights) and not torch.equal(weights[0], start.model[0].conv.weight.half().float())
