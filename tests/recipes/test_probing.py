"""Analyses of a recipe: checked before anything is trained, run once per variant, kept, continued, started over."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

import analysis
import recipes
import surgeon
from analysis.result import Result
from analysis.tasks import Classification
from recipes.probes import Probe, probes, written
from surgeon.errors import AnalysisError, RecipeError

CONTENT: dict[str, Any] = {
    "name": "probed",
    "model": {"timm": "fcn", "args": {"depth": 2, "width": 8, "img_size": 8}},
    "data": {"dataset": "digits", "size": 8, "max_train": 128, "max_val": 64},
    "train": {"epochs": 1, "batch_size": 32, "lr": 0.02, "device": "cpu", "keep_epochs": [0, 1], "seed": 5},
    "compare": {"plain": {}, "wide": {"model": {"args": {"width": 16}}}},
    "analysis": [{"robustness": {"draws": 2}}, {"joint_robustness": {"groups": "all-but-first"}}],
}
FILES = {f"{name}.{suffix}" for name in ("robustness", "joint_robustness") for suffix in ("json", "csv", "png", "html")}


class Standin(Result):
    """What a probe answers: its arguments."""

    def figure(self) -> Figure:
        return Figure()

    def to_json(self, path: str | Path | None = None) -> str:
        text = json.dumps({"summary": self.summary, "rows": self.rows, "settings": {"complete": self.complete}})
        if path is not None:
            Path(path).write_text(text)
        return text

    def report(self, path: str | Path) -> Path:
        Path(path).write_text("<html>")
        return Path(path)

    complete = True


class Probes:
    """Stand-ins for the analyses, which keep how they were called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, dict[str, Any]]] = []
        self.complete = True

    def robustness(self, model: nn.Module, data: Any, *, draws: int = 1, units: str = "block", initial: Any = None,
                   checkpoints: Any = (), calibration: Any = None, batchnorm: str = "keep", seed: int = 0,
                   ledger: Any = None, progress: bool = True, **more: Any) -> Result:  # fmt: skip
        if units != "block":
            raise AnalysisError(f"robustness: units is {units!r}; it is one of layer, block, stage")
        given = {"draws": draws, "initial": initial, "checkpoints": checkpoints, "seed": seed, "progress": progress}
        return self._answer("robustness", model, data, {**given, "calibration": calibration})

    def joint_robustness(self, model: nn.Module, data: Any, groups: Any, **settings: Any) -> Result:
        return self._answer("joint_robustness", model, data, {"groups": groups, **settings})

    def search_joint(self, model: nn.Module, data: Any, *, beam: int = 1) -> Result:
        return self._answer("search_joint", model, data, {"beam": beam})

    def _answer(self, name: str, model: nn.Module, data: Any, given: dict[str, Any]) -> Result:
        images = sum(len(targets) for _, targets in data)
        self.calls.append((name, images, given))
        answer = Standin(name, [{"unit": "layer1", "images": images}], f"{name} of {type(model).__name__}")
        answer.complete = self.complete
        return answer

    def finished(self) -> list[tuple[str, int, dict[str, Any]]]:
        """The calls on all images; the others are trials before training."""
        return [call for call in self.calls if call[1] > 2]


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> Probes:
    made = Probes()
    for name in ("robustness", "joint_robustness", "search_joint"):
        monkeypatch.setattr(analysis, name, getattr(made, name))
    monkeypatch.setattr("recipes.figure.save", lambda _, path: path.write_bytes(b"drawn elsewhere"))
    return made


def problems(section: Any, **changes: Any) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        recipes.parse({**copy.deepcopy(CONTENT), "analysis": section, **changes})
    return dict(caught.value.problems)  # type: ignore[attr-defined]


def test_every_variant_is_probed_once_trained(standins: Probes, recording: Console, tmp_path: Path) -> None:
    done = recipes.run(CONTENT, tmp_path, console=recording)
    assert [(name, images) for name, images, _ in standins.calls[:4]] == [  # a trial of both variants comes first
        ("robustness", 2), ("joint_robustness", 2), ("robustness", 2), ("joint_robustness", 2)]  # fmt: skip
    assert [name for name, _, _ in standins.finished()] == ["robustness", "joint_robustness"] * 2
    for variant, (_, images, given) in zip(("plain", "wide"), standins.finished()[::2], strict=True):
        trajectory = tmp_path / variant / "trajectory"
        assert given["checkpoints"] == trajectory and len(list(trajectory.iterdir())) == 2
        assert (images, given["draws"], given["seed"], given["progress"]) == (64, 2, 5, True)
        have = {path.name for path in (tmp_path / variant).iterdir()}
        assert {*FILES, "analyses.json"} <= have
    assert done.findings[0] == "plain, robustness: robustness of FCN" and len(done.findings) == 4
    assert done.findings[3] in (tmp_path / "summary.txt").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["analyses"] == done.findings
    assert "wide: joint_robustness: " in recording.export_text()


def test_what_is_there_is_not_probed_again(standins: Probes, quiet: Console, tmp_path: Path) -> None:
    first = recipes.run(CONTENT, tmp_path, console=quiet)
    standins.calls.clear()
    assert recipes.run(CONTENT, tmp_path, console=quiet).findings == first.findings and standins.finished() == []
    (tmp_path / "wide" / "robustness.json").unlink()
    recipes.run(CONTENT, tmp_path, console=quiet)
    assert [name for name, _, _ in standins.finished()] == ["robustness"]
    standins.calls.clear()
    text = (tmp_path / "plain" / "joint_robustness.json").read_text()
    (tmp_path / "plain" / "joint_robustness.json").write_text(text.replace("true", "false"))  # stopped half-way
    recipes.run(CONTENT, tmp_path, console=quiet)
    assert [name for name, _, _ in standins.finished()] == ["joint_robustness"]


def test_analyses_may_be_changed_and_added_without_training(
    standins: Probes, quiet: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes.run({**CONTENT, "analysis": []}, tmp_path, console=quiet)
    assert not standins.calls and not (tmp_path / "plain" / "analyses.json").exists()
    monkeypatch.setattr("recipes.learner.Learner.train_epoch", None)  # nothing may train
    recipes.run(CONTENT, tmp_path, console=quiet)
    assert len(standins.finished()) == 4
    standins.calls.clear()
    changed = {**CONTENT, "analysis": [{"robustness": {"draws": 3}}, *CONTENT["analysis"][1:]]}
    recipes.run(changed, tmp_path, console=quiet)
    assert [(name, given.get("draws")) for name, _, given in standins.finished()] == [("robustness", 3)] * 2
    assert recipes.load(tmp_path / "recipe.yaml").analysis == changed["analysis"]


def test_starting_over_removes_them(standins: Probes, quiet: Console, tmp_path: Path) -> None:
    alone = {**CONTENT, "compare": {}}
    recipes.run(alone, tmp_path, console=quiet)
    assert {path.name for path in tmp_path.iterdir()} >= FILES
    recipes.run({**alone, "analysis": []}, tmp_path, resume=False, console=quiet)
    assert not {*FILES, "analyses.json"} & {path.name for path in tmp_path.iterdir()}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "robustness.csv").write_text("a user's")
    with pytest.raises(RecipeError, match=r"holds robustness.csv, which no run wrote"):
        recipes.run(alone, tmp_path / "own", console=quiet)


def test_without_kept_epochs_units_are_randomised_only(standins: Probes, recording: Console, tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content.update(compare={}, analysis=[{"robustness": {"batchnorm": "recalibrate"}}])
    del content["train"]["keep_epochs"]
    recipes.run(content, tmp_path, console=recording)
    ((_, _, given),) = standins.finished()
    assert given["initial"] is None and given["checkpoints"] == () and given["draws"] == 1
    assert sum(len(targets) for _, targets in given["calibration"]) == 128  # the training images
    assert "no checkpoints kept (train.keep_epochs): units are re-randomised only" in recording.export_text()


def test_refused_before_anything_is_trained(standins: Probes, quiet: Console, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="units is 'blok'"):
        recipes.run({**CONTENT, "analysis": [{"robustness": {"units": "blok"}}]}, tmp_path / "new", console=quiet)
    assert not (tmp_path / "new").exists()


def test_several_of_one_name(standins: Probes, quiet: Console, tmp_path: Path) -> None:
    content = {**CONTENT, "compare": {}, "analysis": ["robustness", {"robustness": {"draws": 4}}]}
    recipes.run(content, tmp_path, console=quiet)
    assert [given["draws"] for _, _, given in standins.finished()] == [1, 4]
    assert {"robustness.json", "robustness_2.json"} <= {path.name for path in tmp_path.iterdir()}
    assert written(content["analysis"])[-2:] == ["robustness_2.ledger", "analyses.json"] and written([]) == []


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(
    ("entry", "path", "words"),
    [
        ("robustnes", "analysis[0]", "unknown analysis 'robustnes'; did you mean 'robustness'? (allowed: robustness,"),
        ({"robustness": {"drawz": 3}}, "analysis[0].robustness.drawz", "did you mean 'draws'? (allowed: batchnorm,"),
        ({"robustness": {"data": 3}}, "analysis[0].robustness.data", "they are the recipe's validation images"),
        ({"robustness": {"ledger": "x"}}, "analysis[0].robustness.ledger", "continues by itself"),
        ({"robustness": [3]}, "analysis[0].robustness", "must be a mapping of settings to values (found [3])"),
        ({"joint_robustness": {}}, "analysis[0].joint_robustness.groups", "is required"),
        ({"robustness": {}, "search_joint": {}}, "analysis[0]", "must be one name, or one name with its settings"),
        (3, "analysis[0]", "must be one name"),
        ({"shift_sparsity": {"draws": 3}}, "analysis[0].shift_sparsity.draws", "unknown key 'draws' (allowed: none)"),
    ],
)
def test_mistakes(entry: Any, path: str, words: str) -> None:
    found = problems([entry])
    assert list(found) == [path] and words in found[path]


@pytest.mark.usefixtures("standins")
def test_what_an_analysis_needs() -> None:
    found = problems(["robustness"], data=None, train=None, compare={})
    assert found == {"analysis[0].robustness": "needs images; add a data section, e.g. data: {dataset: digits}"}
    pytest.importorskip("ultralytics")
    content = {"name": "d", "model": {"yolo": "yolo11n.yaml"}, "analysis": ["robustness"]}
    with pytest.raises(RecipeError, match=r"analysis\[0\]: robustness in a recipe is of classifiers; of"):
        recipes.parse(content)


def test_the_analyses_as_they_are(quiet: Console, tmp_path: Path) -> None:
    section = [{"robustness": {"draws": 2}}, CONTENT["analysis"][1], {"search_joint": {"treatment": "0"}}]
    done = recipes.run({**CONTENT, "compare": {}, "analysis": section}, tmp_path, console=quiet)
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("robustness", "joint_robustness")}
    rows = found["robustness"]["rows"]
    assert [row["treatment"] for row in rows[:3]] == ["rerand", "0", "final"] and rows[-1]["unit"] == "full model"
    assert rows[2]["error"] == pytest.approx(1 - done.rows[0]["accuracy"]) and rows[2]["images"] == 64
    start = load_file(tmp_path / "trajectory" / "epoch_0000.safetensors")
    model = surgeon.load(tmp_path / "weights")
    trained = model.layers[0][0].state_dict()
    gap = torch.cat([(start[f"layers.0.0.{name}"] - value).flatten() for name, value in trained.items()])
    assert rows[1]["rms_distance"] == pytest.approx(gap.square().mean().sqrt().item())
    assert found["robustness"]["settings"]["command"] == "surgeon run recipe.yaml"
    assert found["robustness"]["settings"]["seed"] == 5 and found["robustness"]["settings"]["complete"]
    assert {row["units"] for row in found["joint_robustness"]["rows"]} == {"layer2, final_linear"}
    assert len(done.findings) == 3 and not list(tmp_path.glob("*.ledger*"))
    with Image.open(tmp_path / "robustness.png") as picture:
        assert picture.width > 300


def test_stopped_in_an_analysis_and_continued(
    quiet: Console, recording: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the third of four batches: what there is stands in the folder, the same command measures the rest."""
    content = {**CONTENT, "compare": {}, "analysis": ["robustness"]}
    content["data"] = {**content["data"], "max_val": 128}
    measure, calls = Classification.measure, []

    def stopping(self: Any, answer: Any, batch: Any, reference: Any) -> Any:
        calls.append(len(batch[1]))
        if calls.count(32) == 20:  # nine for each batch: the untouched net, four parts treated in two ways
            raise KeyboardInterrupt
        return measure(self, answer, batch, reference)

    monkeypatch.setattr(Classification, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        recipes.run(content, tmp_path, console=recording)
    assert "stopped; what it has found is in" in recording.export_text()
    half = json.loads((tmp_path / "robustness.json").read_text())
    assert not half["settings"]["complete"] and half["rows"][0]["images"] == 64
    assert list((tmp_path / "robustness.ledger").iterdir())
    monkeypatch.setattr(Classification, "measure", measure)
    monkeypatch.setattr("recipes.learner.Learner.train_epoch", None)  # nothing may train
    again = recipes.run(content, tmp_path, console=quiet)
    whole = json.loads((tmp_path / "robustness.json").read_text())
    assert whole["settings"]["complete"] and {row["images"] for row in whole["rows"]} == {128}
    assert "128 images" in again.findings[0] and not (tmp_path / "robustness.ledger").exists()


def test_a_probe_without_images(quiet: Console, tmp_path: Path) -> None:
    """`shift_sparsity` as it is: it takes a model alone, and this one has no shift layer."""
    assert probes(["shift_sparsity"]) == [Probe("shift_sparsity", {}, "shift_sparsity")]
    content = {**CONTENT, "compare": {}, "model": {"timm": "digits_convnet"}, "analysis": ["shift_sparsity"]}
    with pytest.raises(AnalysisError, match="has no shift layer"):
        recipes.run(content, tmp_path / "a", console=quiet)
    recipes.run({**content, "surgery": ["shift"]}, tmp_path / "b", console=quiet)
    assert "channels in" in json.loads((tmp_path / "b" / "shift_sparsity.json").read_text())["summary"]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(
    quiet: Console, tmp_path: Path, python: list[str], environment: dict[str, str]
) -> None:
    content = {**CONTENT, "analysis": [{"robustness": {"draws": 2}}, *CONTENT["analysis"][1:]]}
    recipes.run(content, tmp_path / "one", console=quiet)
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    launch = [*python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recipes.cli"]
    command = [*launch, "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "two")]
    for _ in range(2):  # the second time there is nothing left to do
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "Layer-wise robustness" not in done.stdout
    for name in ("plain/robustness.json", "wide/robustness.json", "wide/joint_robustness.json"):
        one, two = (json.loads((tmp_path / place / name).read_text())["rows"] for place in ("one", "two"))
        for ours, theirs in zip(one, two, strict=True):
            assert (ours["error"], ours["images"], ours["verdict"]) == (theirs["error"], 64, theirs["verdict"])
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    assert done.stdout.count("wide, joint_robustness: ") == 1
