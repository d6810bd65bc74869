"""A detector's recipe from beginning to end: variants from one start, continued, stopped, killed; numbers kept."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

pytest.importorskip("ultralytics")

import recipes
import surgeon
from recipes import detect
from recipes.detectors import ZOO, open_detector
from recipes.detectors import quiet as silent
from recipes.running import Run
from surgeon import LoadError, RecipeError
from tests.recipes.detecting import STILL, TRAIN, both, content, same, weights
from tests.surgeon.yolo.small import network, squares


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.yaml and squares/data.yaml."""
    folder = tmp_path_factory.mktemp("place")
    squares(folder / "squares")
    network(folder, classes=7)  # the recipe builds it for the classes of the data
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[Path, Run, str]:
    console = Console(record=True, width=300, file=io.StringIO())
    result = recipes.run(both(place), place / "tiny", console=console)
    return place / "tiny", result, console.export_text()


def test_the_folder_holds_everything(finished: tuple[Path, Run, str]) -> None:
    folder, result, said = finished
    have = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"recipe.yaml", "summary.json", "summary.txt", "curves.png", "start.pt"} <= have
    for name in ("original", "spd"):
        files = ("record.json", "metrics.jsonl", "weights/recipe.json", "training/results.csv")
        assert {f"{name}/{file}" for file in (*files, "training/weights/last.pt")} <= have
    assert "spd/verification.txt" in have and "original/verification.txt" not in have
    assert not [name for name in have if ".part" in name]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rows"] == result.rows and set(summary["versions"]) == {"torch", "timm", "ultralytics", "surgeon"}
    assert "Everything is in" in said and "training spd for 2 epochs" in said


def test_variants_start_alike_and_differ_by_surgery(finished: tuple[Path, Run, str]) -> None:
    folder, result, _ = finished
    original, spd = result.rows
    assert (original["surgery"], spd["surgery"]) == ("none", "spd") and spd["params"] > original["params"]
    assert (folder / "spd" / "verification.txt").read_text().startswith("same function: over 4 images")
    record = json.loads((folder / "spd" / "record.json").read_text())
    assert record["params"] == [original["params"], spd["params"]] and record["macs"] == [original["macs"], spd["macs"]]
    lines = {
        name: [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("original", "spd")
    }
    first = [lines[name][0]["train_loss"] for name in lines]  # before the first update: same weights, same images
    assert first[0] == pytest.approx(first[1], rel=1e-4) and first[0] != lines["original"][1]["train_loss"]
    assert [row["epoch"] for row in lines["spd"]] == [1, 2] and original["epochs"] == 2


def test_the_networks_are_those_of_the_last_epochs(finished: tuple[Path, Run, str]) -> None:
    folder, _, _ = finished
    for name, operated in (("original", 0), ("spd", 3)):
        kept = surgeon.load(folder / name / "weights")
        assert surgeon.record(kept).count("rewritten") == operated and kept.model.model[-1].nc == 3
        assert kept.names == {0: "class 0", 1: "class 1", 2: "class 2"}
        assert same(weights(folder / name / "weights"), weights(folder / name / "training" / "weights" / "best.pt"))
        assert not same(weights(folder / name / "weights"), weights(folder / "start.pt"))


def test_run_again_repeats_nothing_and_other_recipes_are_refused(
    finished: tuple[Path, Run, str], place: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result, _ = finished
    monkeypatch.setattr("ultralytics.engine.trainer.BaseTrainer.train", lambda *_: pytest.fail("trained"))
    assert recipes.run(both(place), folder, console=quiet).rows == result.rows
    with pytest.raises(RecipeError, match=r"train.lr0: nothing in the folder, 0.3 in the recipe"):
        recipes.run(both(place, train={**TRAIN, "optimizer": "SGD", "lr0": 0.3}), folder, console=quiet)


@pytest.mark.slow
def test_what_is_cut_off_is_named(finished: tuple[Path, Run, str], place: Path, quiet: Console, tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "copy")
    last = tmp_path / "copy" / "spd" / "training" / "weights" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(LoadError, match=r"last.pt cannot be read, perhaps it was cut off.*remove .*training to train"):
        recipes.run(both(place), tmp_path / "copy", console=quiet)
    shutil.rmtree(last.parents[1])
    recipes.run(both(place), tmp_path / "copy", console=quiet)
    assert surgeon.record(surgeon.load(last)).count("rewritten") == 3


def test_trained_before_the_surgery(place: Path, quiet: Console, tmp_path: Path) -> None:
    recipe = both(place, pretrain={**TRAIN, "epochs": 1}, train=None)
    result = recipes.run(recipe, tmp_path, console=quiet)
    base = tmp_path / "pretrain" / "training" / "weights" / "best.pt"
    assert not same(weights(base), weights(tmp_path / "start.pt"))
    assert same(weights(tmp_path / "original" / "weights"), weights(base))
    operated = surgeon.load(tmp_path / "spd" / "weights")
    assert surgeon.record(operated).count("rewritten") == 3
    assert same(dict(surgeon.undo(operated).model.named_parameters()), weights(base))
    assert all(row["map50_95_before"] == row["map50_95"] and row["epochs"] == 0 for row in result.rows)


@pytest.mark.slow
def test_a_detector_of_your_own_keeps_its_weights(place: Path, quiet: Console, tmp_path: Path) -> None:
    mine = surgeon.apply(open_detector(str(place / "small.yaml"), classes=3), "spd", 64)
    mine.save(tmp_path / "mine.pt")
    recipe = content(
        place, model={"yolo": str(tmp_path / "mine.pt")}, surgery=[], train={**TRAIN, **STILL, "epochs": 1}
    )
    (row,) = recipes.run(recipe, tmp_path / "run", console=quiet).rows
    assert same(weights(tmp_path / "run" / "weights"), weights(tmp_path / "mine.pt"))
    assert row["surgery"] == "spd" and {"map50_95", "map50_95_before"} <= set(row)
    trained = tmp_path / "run" / "training" / "weights" / "best.pt"
    only = content(place, model={"yolo": str(trained)}, surgery=[], train=None)
    (again,) = recipes.run(only, tmp_path / "only", console=quiet).rows
    assert again["macs"] == row["macs"] and "map50_95" in again  # at the 64 pixels it was trained on
    other = content(place, model={"yolo": str(place / "small.yaml")}, surgery=[], train=None, data=None)
    (bare,) = recipes.run(other, tmp_path / "other", console=quiet).rows
    assert "map50_95" not in bare and bare["macs"] > row["macs"]  # at ultralytics' 640


@pytest.mark.slow
def test_a_transformer_with_convs(place: Path, quiet: Console, tmp_path: Path) -> None:
    yolo = yaml.safe_load((place / "small.yaml").read_text())
    decoder = [[2, 4], 1, "RTDETRDecoder", ["nc", 32, 20, 4, 4, 1]]
    (tmp_path / "rtdetr.yaml").write_text(yaml.safe_dump({**yolo, "head": [decoder]}))
    train = {**TRAIN, "nbs": 8, "optimizer": "AdamW", "lr0": 0.001}
    recipe = content(place, model={"yolo": str(tmp_path / "rtdetr.yaml")}, train=train)
    result = recipes.run(recipe, tmp_path / "run", console=quiet)
    there = surgeon.load(tmp_path / "run" / "weights")
    assert type(there).__name__ == "RTDETR" and there.model.model[-1].nc == 3
    assert surgeon.record(there).count("rewritten") == 3 and result.rows[0]["epochs"] == 2
    first, second = detect.read_rows(tmp_path / "run" / "training")
    assert first["val_loss"] != second["val_loss"]


def test_digits_are_written_into_the_folder(place: Path, quiet: Console, tmp_path: Path) -> None:
    data = {"dataset": "digits_detection", "image_size": 64, "images": 8, "val_images": 4, "object_size": [8, 24]}
    recipe = content(place, data=data, train={**TRAIN, "epochs": 1})
    result = recipes.run(recipe, tmp_path, console=quiet)
    assert (tmp_path / "data" / "data.yaml").is_file() and result.rows[0]["images"] == 4
    assert surgeon.load(tmp_path / "weights").model.model[-1].nc == 10


@pytest.mark.slow
def test_shuffled_on_images_laid_out_as_voc(place: Path, quiet: Console, tmp_path: Path) -> None:
    """The recipe voc_shuffle on a net an eighth as wide, and four images in each of VOC's folders."""
    import ultralytics

    there = yaml.safe_load((Path(ultralytics.__file__).parent / "cfg" / "datasets" / "VOC.yaml").read_text())
    squares(tmp_path / "squares", classes=20, train=4)
    for part in (*there["train"], *there["val"]):
        for kind in ("images", "labels"):
            shutil.copytree(tmp_path / "squares" / kind / "train", tmp_path / "VOC" / kind / Path(part).name)
    there = {key: value for key, value in there.items() if key != "download"} | {"path": str(tmp_path / "VOC")}
    (tmp_path / "VOC.yaml").write_text(yaml.safe_dump(there))
    narrow = yaml.safe_load((ZOO / "resnet50_onescale.yaml").read_text())
    for layer in [*narrow["backbone"], *narrow["head"][:2]]:
        layer[3] = [n // 8 if type(n) is int and n >= 64 else n for n in layer[3]]
    (tmp_path / "narrow.yaml").write_text(yaml.safe_dump(narrow))
    shipped = recipes.load("voc_shuffle").model_dump()
    shipped |= {"model": {"yolo": str(tmp_path / "narrow.yaml")}, "data": {"dataset": str(tmp_path / "VOC.yaml")}}
    shipped["train"] |= {
        **TRAIN,
        "epochs": 1,
        "imgsz": 128,
    }  # smaller ones have too few positions for ultralytics' loss
    result = recipes.run(shipped, tmp_path / "run", console=quiet)
    assert [row["surgery"] for row in result.rows] == ["none", "spatial_shuffle"]
    assert result.rows[0]["images"] == 4 and result.rows[0]["params"] == result.rows[1]["params"]
    shuffled = surgeon.load(tmp_path / "run" / "shuffled" / "weights")
    kinds = [type(module).__name__ for module in shuffled.model.modules()]
    assert kinds.count("SpatialShuffle2d") == 2 and shuffled.names[14] == "person"
    assert (tmp_path / "run" / "shuffled" / "verification.txt").read_text().startswith("not the same function")


@pytest.mark.slow
def test_several_seeds_are_compared_by_mean_average_precision(place: Path, quiet: Console, tmp_path: Path) -> None:
    recipe = both(place, train={**TRAIN, "epochs": 1})
    repeated = recipes.repeat(recipe, (0, 1), tmp_path, console=quiet)
    found = [(row["variant"], row["metric"]) for row in repeated.rows]
    expected = ["map50_95", *(["ap_s"] if importlib.util.find_spec("faster_coco_eval") else [])]
    assert found == [(name, metric) for metric in expected for name in ("original", "spd")]
    start = [weights(tmp_path / f"seed_{seed}" / "start.pt") for seed in (0, 1)]
    assert not same(*start) and (tmp_path / "repeated.png").is_file()


def test_without_the_evaluator_of_coco(
    finished: tuple[Path, Run, str], place: Path, quiet: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, find = finished[1].rows[0], importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "faster_coco_eval" else find(n, *a))
    shutil.copytree(finished[0], tmp_path / "copy")
    result = recipes.run(both(place), tmp_path / "copy", console=quiet)
    assert result.rows[0]["map50_95"] == there["map50_95"] and "ap_s" not in result.rows[0]
    assert result.verdicts[0].endswith("against original; not tested, one training run each.")


def test_rows_of_ultralytics(tmp_path: Path) -> None:
    assert detect.read_rows(tmp_path) == []
    head = "epoch, train/box_loss, train/cls_loss, metrics/mAP50(B), metrics/mAP50-95(B), val/box_loss, lr/pg0"
    lines = ["1, 1.0, 2.0, 0.1, 0.05, 4.0, 0.01", "2, 9.0, 9.0, 0, 0, 9, 9", "2, 0.5, 1.0, 0.2, 0.1, 3.0, 0.02"]
    (tmp_path / "results.csv").write_text("\n".join([head, *lines]))
    first, second = detect.read_rows(tmp_path)
    assert first == {"epoch": 1, "train_loss": 3.0, "val_loss": 4.0, "map50": 0.1, "map50_95": 0.05, "lr": 0.01}
    assert (second["epoch"], second["train_loss"]) == (2, 1.5)  # the epoch done twice counts once, the later one


def test_images_are_those_ultralytics_validates_on(place: Path) -> None:
    with silent(True):
        found = detect.open_data(recipes.parse(content(place)).data, place)
        batches = list(detect.images(found, 96, 3))
    assert [tuple(batch.shape) for batch in batches] == [(3, 3, 96, 96), (1, 3, 96, 96)]
    assert batches[0].max() > 0.5 and batches[0].min() >= 0 and batches[0].max() <= 1
    assert (found.classes, found.channels) == (3, 3)
