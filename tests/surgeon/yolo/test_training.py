"""Training by ultralytics' own trainer: what was operated stays operated, and starts from the weights in memory."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import surgeon
from tests.surgeon.yolo.small import network, settings, squares

ultralytics = pytest.importorskip("ultralytics")
STILL = {"optimizer": "SGD", "lr0": 0.0, "warmup_epochs": 0, "weight_decay": 0.0, "momentum": 0.0}  # nothing is learnt


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def yolo(tmp_path: Path) -> Any:
    return surgeon.apply(ultralytics.YOLO(network(tmp_path)), "spd", 64)


def weights(thing: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in thing.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def is_operated(thing: Any, count: int = 3) -> bool:
    types = [type(module).__name__ for module in thing.model.modules()]
    return surgeon.record(thing).count("rewritten") == count == types.count("SPDConv2d")


def last(folder: Path, name: str = "run") -> Path:
    return folder / "runs" / name / "weights" / "last.pt"


def test_training_starts_from_the_weights_in_memory(yolo: Any, tmp_path: Path, data: str) -> None:
    before = weights(yolo)
    yolo.train(**settings(tmp_path, data, **STILL))
    assert is_operated(yolo) and same(weights(yolo), before)
    assert yolo.names == {0: "class 0", 1: "class 1", 2: "class 2"}
    stock = ultralytics.YOLO(network(tmp_path))  # control: without surgery, what a yaml built is built anew
    before = weights(stock)
    stock.train(**settings(tmp_path, data, **STILL))
    assert not same(weights(stock), before)


def test_training_learns_and_can_be_undone(yolo: Any, tmp_path: Path, data: str) -> None:
    original = weights(surgeon.undo(copy.deepcopy(yolo)))
    before = weights(yolo)
    yolo.train(**settings(tmp_path, data, epochs=2, save_period=1, optimizer="SGD", lr0=0.1, warmup_epochs=0))
    assert is_operated(yolo) and not same(weights(yolo), before)
    assert {path.name for path in last(tmp_path).parent.iterdir()} == {"last.pt", "best.pt", "epoch0.pt", "epoch1.pt"}
    assert is_operated(surgeon.load(last(tmp_path)))
    with pytest.raises(surgeon.RefusedError, match="originals were not kept"):
        surgeon.undo(surgeon.load(last(tmp_path)))
    assert same(weights(surgeon.undo(yolo)), original)


def test_weights_of_a_checkpoint_stay_exactly(tmp_path: Path, data: str) -> None:
    stock = ultralytics.YOLO(network(tmp_path))
    stock.save(tmp_path / "mine.pt")
    yolo, image = ultralytics.YOLO(tmp_path / "mine.pt"), torch.rand(1, 3, 64, 64)
    before = yolo.model(image)[0]
    surgeon.apply(yolo, "spd", 64)
    torch.testing.assert_close(yolo.model(image)[0], before, rtol=1e-4, atol=1e-4)
    held = weights(yolo)
    yolo.train(**settings(tmp_path, data, **STILL))
    assert is_operated(yolo) and same(weights(yolo), held)


def test_other_classes_keep_all_but_the_classifier(yolo: Any, tmp_path: Path) -> None:
    before, classes = weights(yolo), dict(yolo.names)
    yolo.train(**settings(tmp_path, squares(tmp_path / "five", classes=5), **STILL))
    after = weights(yolo)
    assert is_operated(yolo) and yolo.model.model[-1].nc == 5 and len(classes) == 3
    changed = (
        {name for name in before if not torch.equal(before[name], after[name])}
        if before.keys() == after.keys()
        else None
    )
    assert changed and all(".cv3." in name and name.split(".")[-2] == "2" for name in changed)
    loaded = surgeon.load(last(tmp_path))
    assert is_operated(loaded) and loaded.model.model[-1].nc == 5
    with pytest.raises(surgeon.RefusedError, match="other classes"):
        surgeon.undo(yolo)


@pytest.mark.parametrize("source", ["nothing", "stock", "operated"])
def test_pretrained_names_where_training_starts(yolo: Any, tmp_path: Path, data: str, source: str) -> None:
    other = ultralytics.YOLO(network(tmp_path))
    surgeon.apply(other, "spd", 64) if source == "operated" else None
    other.save(tmp_path / "other.pt")
    pretrained = False if source == "nothing" else str(tmp_path / "other.pt")
    before = weights(yolo)
    yolo.train(**settings(tmp_path, data, **STILL, pretrained=pretrained, seed=7))
    assert is_operated(yolo) and not same(weights(yolo), before)
    if source != "nothing":
        surgeon.apply(other, "spd", 64) if source == "stock" else None
        for name, expected in weights(other).items():
            torch.testing.assert_close(weights(yolo)[name], expected, rtol=2e-3, atol=2e-3)  # stock files are halved


def interrupted(yolo: Any, folder: Path, data: str, **more: Any) -> None:
    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    yolo.add_callback("on_train_epoch_start", stop)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(**settings(folder, data, epochs=3, **more))
    yolo.clear_callback("on_train_epoch_start")


@pytest.mark.parametrize("how", ["loaded", pytest.param("named", marks=pytest.mark.slow)])
def test_an_interrupted_training_is_resumed(yolo: Any, tmp_path: Path, data: str, how: str) -> None:
    interrupted(yolo, tmp_path, data)
    held = torch.load(last(tmp_path), weights_only=True)
    assert held["epoch"] == 0 and held["optimizer"]["state"] and held["model"] is held["ema"] is None
    resumed = surgeon.load(last(tmp_path)) if how == "loaded" else yolo
    resumed.train(resume=True if how == "loaded" else str(last(tmp_path)))
    rows = (last(tmp_path).parents[1] / "results.csv").read_text().strip().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
    assert is_operated(resumed) and torch.load(last(tmp_path), weights_only=True)["epoch"] == -1


def test_a_resumed_training_takes_up_optimizer_and_average(yolo: Any, tmp_path: Path, data: str) -> None:
    interrupted(yolo, tmp_path, data)
    held = torch.load(last(tmp_path), weights_only=True)
    found: dict[str, Any] = {}

    def look(trainer: Any) -> None:
        found["epoch"], found["updates"] = trainer.start_epoch, trainer.ema.updates
        found["state"] = copy.deepcopy(trainer.optimizer.state_dict()["state"])
        found["ema"] = {name: t.clone() for name, t in trainer.ema.ema.state_dict().items()}
        raise KeyboardInterrupt

    resumed = surgeon.load(last(tmp_path))
    resumed.add_callback("on_train_start", look)
    with pytest.raises(KeyboardInterrupt):
        resumed.train(resume=True)
    assert found["epoch"] == 1 and found["updates"] == held["updates"] > 0
    assert all(torch.equal(found["ema"][name], t) for name, t in held["surgeon_tensors"]["weights"].items())
    for number, state in held["optimizer"]["state"].items():
        assert all(
            torch.equal(torch.as_tensor(found["state"][number][k]), torch.as_tensor(v))
            for k, v in state.items()
            if v is not None
        )


def test_a_network_gone_bad_recovers_from_the_last_checkpoint(
    yolo: Any, tmp_path: Path, data: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt: list[int] = []

    def spoil(trainer: Any) -> None:
        if trainer.epoch == 1 and not spoilt:
            spoilt.append(1)
            with torch.no_grad():
                trainer.model.model[0].conv.weight.fill_(float("nan"))

    yolo.add_callback("on_train_epoch_start", spoil)
    yolo.train(**settings(tmp_path, data, epochs=3))
    assert spoilt and is_operated(yolo)
    assert all(torch.isfinite(p).all() for p in yolo.model.parameters())
    assert yolo.trainer.epoch == 2


def test_training_stops_early(yolo: Any, tmp_path: Path, data: str) -> None:
    def was_better(trainer: Any) -> None:
        trainer.stopper.best_fitness, trainer.stopper.best_epoch = 1.0, 0

    yolo.add_callback("on_train_start", was_better)
    yolo.train(**settings(tmp_path, data, epochs=6, patience=2, **STILL))
    assert yolo.trainer.epoch == 1 and is_operated(yolo)


def test_frozen_layers_stay(yolo: Any, tmp_path: Path, data: str) -> None:
    before = weights(yolo)
    yolo.train(**settings(tmp_path, data, freeze=[0, 1], optimizer="SGD", lr0=0.1))
    moved = {name.split(".")[1] for name, tensor in weights(yolo).items() if not torch.equal(tensor, before[name])}
    assert is_operated(yolo) and moved and not moved & {"0", "1"}


@pytest.mark.slow
def test_the_op_freeze_holds_in_training(tmp_path: Path, data: str) -> None:
    yolo = ultralytics.YOLO(network(tmp_path))
    surgeon.apply(yolo, [{"freeze": {}, "select": {"kind": "block"}}], 64)
    frozen = [change.path for change in surgeon.record(yolo).changes if change.status == "rewritten"]
    before = weights(yolo)
    yolo.train(**settings(tmp_path, data, optimizer="SGD", lr0=0.1))
    moved = {name for name, tensor in weights(yolo).items() if not torch.equal(tensor, before[name])}
    assert frozen and moved and not any(name.startswith(tuple(frozen)) for name in moved)


@pytest.mark.slow
def test_a_list_of_data_sets_trains_on_each(yolo: Any, tmp_path: Path, data: str) -> None:
    arguments = settings(tmp_path, data)
    yolo.train(**{**arguments, "data": [data, squares(tmp_path / "other")]})
    found = sorted((tmp_path / "runs").rglob("last.pt"))
    assert len(found) == 2 and all(is_operated(surgeon.load(path)) for path in found)


def test_nothing_of_ultralytics_stays_changed(yolo: Any, tmp_path: Path, data: str) -> None:
    from ultralytics.engine import model, trainer
    from ultralytics.nn import tasks

    def functions() -> list[Any]:
        return [tasks.load_checkpoint, model.load_checkpoint, trainer.load_checkpoint, trainer.strip_optimizer]

    before = functions()
    interrupted(yolo, tmp_path, data)
    assert functions() == before
    surgeon.load(last(tmp_path)).train(resume=True)
    assert functions() == before


def test_a_network_that_cannot_be_rebuilt_is_refused_before_training(yolo: Any, tmp_path: Path, data: str) -> None:
    class Mine(torch.nn.SiLU):
        pass

    yolo.model.model[4].cv1.act = Mine()
    before = weights(yolo)
    with pytest.raises(surgeon.SurgeonError, match="cannot write a checkpoint that could be opened again"):
        yolo.train(**settings(tmp_path, data))
    assert same(weights(yolo), before) and not last(tmp_path).exists()


STOCK = """
import sys
from ultralytics.nn import tasks
from ultralytics import YOLO

asked = []
tasks.check_requirements = lambda *names, **_: asked.append(names)
try:
    import surgeon
except ImportError:
    pass
else:
    raise SystemExit("surgeon must not be importable here")
try:
    YOLO(sys.argv[1])
except TypeError as error:
    print("refused", asked, tasks.SAFE_LOAD, error)
"""


@pytest.mark.parametrize("safe", [False, True])
def test_stock_ultralytics_fails_to_open_it_and_installs_nothing(yolo: Any, tmp_path: Path, safe: bool) -> None:
    yolo.save(tmp_path / "mine.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"ULTRALYTICS_SAFE_LOAD": str(safe).lower()}
    (tmp_path / "stock.py").write_text(STOCK.replace("import surgeon\n", "import surgeon_is_not_here\n"))
    command = [sys.executable, "-W", "ignore", "stock.py", "mine.pt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"refused [] {safe}"), done.stdout + done.stderr
    names = torch.load(tmp_path / "mine.pt", weights_only=True).keys()  # control: it is whole, and data only
    assert "surgeon_tensors" in names


def test_the_file_of_a_multi_gpu_launch_trains_in_a_fresh_process(yolo: Any, tmp_path: Path, data: str) -> None:
    pytest.importorskip("cloudpickle")
    from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

    before = weights(yolo)
    arguments = settings(tmp_path, data, **STILL)
    files: list[str] = []

    def launch(trainer: Any) -> None:
        files.append(generate_ddp_file(trainer))
        raise KeyboardInterrupt

    yolo.add_callback("on_pretrain_routine_end", launch)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(**arguments)
    state = Path(files[0]).with_suffix(".pt")
    try:
        text = Path(files[0]).read_text().replace('state["callbacks"]', "None")  # ours would launch again
        (tmp_path / "launch.py").write_text(text)
        command = [sys.executable, "-W", "ignore", str(tmp_path / "launch.py")]
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    finally:
        Path(files[0]).unlink()
        state.unlink()
    loaded = surgeon.load(last(tmp_path))
    assert is_operated(loaded) and same(weights(loaded), before)
    assert ddp_cleanup is not None
    assert yaml.safe_load((last(tmp_path).parents[1] / "args.yaml").read_text())["epochs"] == 1
