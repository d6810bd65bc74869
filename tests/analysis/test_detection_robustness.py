"""Robustness of detectors: the same numbers every way, ultralytics' own loss, COCO's averages, nothing left behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from torch import nn
from torchvision.ops import nms

pytest.importorskip("ultralytics")
pytest.importorskip("faster_coco_eval")

import ultralytics
from ultralytics.cfg import get_cfg
from ultralytics.utils.nms import non_max_suppression

import analysis
from analysis import AnalysisError, Detections, DetectionScores
from analysis.detection_batches import part_of
from analysis.detection_coco import METRICS, CocoScores
from analysis.detection_measures import APMeasures
from analysis.detection_suppressing import suppressing_until, surest
from analysis.detection_task import Detector, open_task
from analysis.readings import FINAL, Readings
from analysis.study_settings import Settings
from surgeon.host import unwrap
from tests.analysis.detecting import Found, boxes, detections
from tests.surgeon.yolo.small import LAYERS

HEADS: dict[str, list[Any]] = {
    "Detect": [[7, 4], 1, "Detect", ["nc"]],
    "v10Detect": [[7, 4], 1, "v10Detect", ["nc"]],
    "RTDETRDecoder": [[7, 4], 1, "RTDETRDecoder", ["nc", 32, 30, 4, 4, 1]],
}
SEEN = {"imgsz": 64, "batch": 5, "resamples": 10}


def detector(folder: Path, head: str = "Detect") -> Any:
    """A narrow net that is sure of some things, which depend on the image."""
    path = folder / f"{head}.yaml"
    path.write_text(yaml.safe_dump({**LAYERS, "head": [*LAYERS["head"][:-1], HEADS[head]]}))
    torch.manual_seed(5)
    model = (ultralytics.RTDETR if "RTDETR" in head else ultralytics.YOLO)(str(path))
    for norm in (norms := [part for part in model.model.modules() if isinstance(part, nn.BatchNorm2d)]):
        norm.momentum = 1.0  # statistics of one batch of noise, so that what the image says reaches the head
    with torch.no_grad():
        model.model.train()(torch.rand(8, 3, 64, 64))
    for norm in norms:
        norm.momentum = 0.03
    own = model.model.model[-1]
    for name in ("cv3", "one2one_cv3"):
        for layers in getattr(own, name, ()):
            nn.init.normal_(layers[-1].weight, std=0.5)
            nn.init.zeros_(layers[-1].bias)
    return model


def labelled_by(model: Any, folder: Path, images: int = 12) -> str:
    """The data yaml of noise whose objects are what the net itself is surest of, so that treatments cost something."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    for i in range(images):
        height, width = ((64, 64), (32, 64))[i % 2]
        noise = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(noise).save(folder / "images" / "val" / f"{i:02d}.png")
    path = folder / "data.yaml"
    path.write_text(
        yaml.safe_dump({"path": str(folder), "train": "images/val", "val": "images/val", "names": model.names})
    )
    found = analysis.detect(model, path, imgsz=64)
    for image, one in zip(found.images, found.predictions, strict=True):
        height, width = np.asarray(Image.open(image)).shape[:2]
        lines = []
        for (x1, y1, x2, y2), label in zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True):
            if x2 - x1 > 3 and y2 - y1 > 3 and len(lines) < 4:
                place = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
                lines.append(" ".join([str(label), *(f"{number:.6f}" for number in place)]))
        (folder / "labels" / "val" / f"{Path(image).stem}.txt").write_text("\n".join(lines))
    (folder / "labels" / "val.cache").unlink(missing_ok=True)
    return str(path)


@dataclass(frozen=True)
class Case:
    """A detector, data, and what it costs to treat two of its units."""

    model: Any
    data: str
    units: list[Any]
    result: Any

    def again(self, data: Any = None, model: Any = None, **more: Any) -> Any:
        """Robustness with some settings changed."""
        settings = {"units": self.units, "detector": SEEN, "seed": 1, "progress": False, **more}
        return analysis.robustness(model or self.model, self.data if data is None else data, **settings)


def case_of(folder: Path, head: str) -> Case:
    model = detector(folder, head)
    found = analysis.units(model)
    case = Case(model, labelled_by(model, folder / "set"), [found[2], found[-1]], None)
    return replace(case, result=case.again())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp("plain"), "Detect")


@pytest.fixture(scope="module", params=HEADS)
def case(request: pytest.FixtureRequest, plain: Case, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return plain if request.param == "Detect" else case_of(tmp_path_factory.mktemp(request.param), request.param)


def close(one: Any, other: Any, tolerance: dict[str, float], rel: float = 0) -> None:
    assert len(one.rows) == len(other.rows)
    for row, same in zip(one.rows, other.rows, strict=True):
        for key, value in row.items():
            near = pytest.approx(value, rel=rel, abs=tolerance.get(key, 1e-9)) if isinstance(value, float) else value
            assert same[key] == near, (row["unit"], row["treatment"], key)


# --------------------------------------------------------------------------------------------- the same numbers


def test_one_pass_is_a_pass_for_each_and_what_detection_says(case: Case) -> None:
    result = case.result
    close(result, case.again(method="naive"), {"loss": 1e-6})
    own = analysis.detection(case.model, case.data, imgsz=64, batch=5, latency=False, resamples=0).values
    by_name = {row["unit"]: row for row in result.rows if row["treatment"] == "rerand"}
    final = result.rows[-1]
    assert own["AP"] is not None and own["AP"] > 0.1
    assert [final[key] for key in ("ap", "ap50", "ap_small")] == [own[key] for key in ("AP", "AP50", "AP_S")]
    assert result.primary == "ap" and result.settings["primary"] == "ap" and final["images"] == 12
    assert final["difference"] == 0 and 0 <= final["ap_low_95"] <= final["ap"] <= final["ap_high_95"] <= 1
    for row in by_name.values():
        assert row["difference"] == pytest.approx(final["ap"] - row["ap"]) and math.isfinite(row["loss"])
        assert row["difference_low_95"] < row["difference"] < row["difference_high_95"]
    head = by_name[result.units[-2]]
    assert head["difference"] > 0.1 and head["verdict"] != "robust" and head["loss"] != final["loss"]
    assert {"error", "agreement"}.isdisjoint(final)


@pytest.mark.slow
def test_batches_cut_to_fit_the_memory_give_the_same(plain: Case) -> None:
    cut = plain.again(memory="150KB")
    assert any("batches are cut to" in note for note in cut.settings["notes"])
    assert not any("batches are cut to" in note for note in plain.result.settings["notes"])
    close(plain.result, cut, dict.fromkeys(cut.rows[0], 1e-3), rel=1e-5)


def test_the_loss_is_ultralytics_own_of_one_image(case: Case) -> None:
    network = copy.deepcopy(unwrap(case.model)).eval()
    network.args, network.end2end, network.nc = get_cfg(), False, network.model[-1].nc
    losses, together = [], []
    task, batches, _ = open_task(case.model, case.data, Settings(detector=SEEN))
    with torch.no_grad():
        for batch in (task.prepare(raw, torch.device("cpu")) for raw in batches):
            together.append(float(network.loss(batch, network(batch["img"]))[0].sum()))
            for i in range(len(batch["img"])):
                one = part_of(batch, i, i + 1)
                losses.append(float(network.loss(one, network(one["img"]))[0].sum()))
    rows = {row["unit"]: row["loss"] for row in case.result.rows if row["treatment"] == "rerand"}
    assert case.result.rows[-1]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert all(loss != pytest.approx(np.mean(losses), rel=1e-3) for loss in rows.values())
    assert sum(together) != pytest.approx(sum(losses), rel=1e-3)  # divided by what is in the batch


def test_batches_of_a_user_are_as_good(plain: Case) -> None:
    """Half of what the net finds is said to be there: AP is that of ultralytics' suppression, done by hand."""
    network = copy.deepcopy(unwrap(plain.model)).eval()
    images = torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = non_max_suppression(network(images), 0.001, 0.7, multi_label=True, max_det=300)
    found = []
    for one in rows:
        corners = one[:, :4].clamp(min=0).minimum(torch.tensor([96.0, 64.0, 96.0, 64.0])).double().numpy()
        found.append({"boxes": corners, "labels": one[:, 5].long().numpy(), "scores": one[:, 4].double().numpy()})
    there = [{key: one[key][:8:2] for key in ("boxes", "labels")} for one in found]
    values = DetectionScores(Detections(list("0123"), found, there, plain.model.names, {}), 0, 0).values
    targets = [{key: torch.from_numpy(value) for key, value in one.items()} for one in there]
    data = [(images[:3], targets[:3]), (images[3:], targets[3:])]
    final = plain.again(data, unwrap(plain.model), detector={"imgsz": 64}).rows[-1]
    assert 0.1 < values["AP"] < 0.9 and final["ap"] == pytest.approx(values["AP"], abs=1e-6)
    with pytest.raises(AnalysisError, match="can be gone through once only"):
        plain.again(iter(data), method="naive", detector={"imgsz": 64})
    once = plain.again(iter(data), detector={"imgsz": 64})
    assert once.rows[-1]["images"] == 4 and once.rows[-1]["loss"] == pytest.approx(final["loss"])


def test_a_ledger_goes_on_and_knows_its_settings(plain: Case, tmp_path: Path) -> None:
    kept = tmp_path / "kept.npz"
    close(plain.result, plain.again(ledger=kept), {})
    close(plain.result, plain.again(ledger=kept), {})
    with pytest.raises(AnalysisError, match="ledger of another analysis"):
        plain.again(ledger=kept, detector={**SEEN, "conf": 0.5})


@pytest.mark.slow
def test_fewer_images_and_statistics_from_training_images(plain: Case) -> None:
    few = plain.again(limit=7)
    assert few.rows[0]["images"] == 7 and few.rows[0]["ap_low_95"] is None and few.rows[0]["verdict"] == "undecided"
    assert "too few images for intervals" in few.summary
    new = plain.again(limit=7, batchnorm="recalibrate", calibration=plain.data)
    assert new.rows[0]["loss"] != pytest.approx(few.rows[0]["loss"], rel=1e-3)


def test_a_fused_net_has_no_loss_and_says_so(tmp_path: Path) -> None:
    model = detector(tmp_path, "v10Detect")
    data = labelled_by(model, tmp_path / "set", images=2)
    unwrap(model).end2end = True
    unwrap(model).fuse(verbose=False)
    other = {name: value + 0.1 for name, value in unwrap(model).state_dict().items()}
    result = Case(model, data, analysis.units(model)[-1:], None).again(checkpoints={"5": other}, draws=0)
    assert {row["loss"] for row in result.rows} == {None} and result.rows[-1]["ap"] is not None
    assert any(note.startswith("there is no loss: ultralytics' criterion fails") for note in result.settings["notes"])


def test_the_surest_boxes_are_those_of_suppressing_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for count, spread, levels in ((3000, 40, 50), (3000, 1, 1000), (10, 40, 3), (0, 1, 1)):
        corners = torch.rand(count, 2, generator=generator) * spread
        boxes_there = torch.cat([corners, corners + 1 + torch.rand(count, 2, generator=generator)], 1)
        scores = torch.randint(levels, (count,), generator=generator) / levels  # with ties
        looked_at: list[int] = []

        def counted(boxes: torch.Tensor, *others: Any, seen: list[int] = looked_at) -> torch.Tensor:
            seen.append(len(boxes))
            return nms(boxes, *others)

        kept, every = surest(counted, boxes_there, scores, 0.5, 30), nms(boxes_there, scores, 0.5)
        assert torch.equal(kept[:30], every[:30]) and len(kept) >= min(30, len(every))
        assert max(looked_at) < 3000 or spread == 1
    usual = torchvision.ops.nms
    with suppressing_until(5):
        assert torchvision.ops.nms is not usual
    assert torchvision.ops.nms is usual


def test_draws_of_ap_alone_are_the_same_draws() -> None:
    found, objects = images(16, 8)
    scores = CocoScores(detections(found, objects))
    whole = scores.resampled(6, 3)[:, 0]
    assert np.array_equal(scores.resampled_ap(6, 3), whole) and len(set(whole)) > 1
    assert np.array_equal(scores.resampled(6, 3)[:, 0], whole)  # nothing has changed


# --------------------------------------------------------------------------------------------------- classifiers


def test_an_ultralytics_classifier_is_judged_by_its_logits() -> None:
    model = ultralytics.YOLO("yolo11n-cls.yaml")
    torch.manual_seed(0)
    images, targets = torch.rand(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    task, data, nothing = open_task(model, [(images, targets)], Settings())
    network = unwrap(model).eval()
    with torch.no_grad():
        probabilities, logits = network(images)
        answer = task.forward(network, (images, targets))
        measured = task.measure(answer, (images, targets), task.reference(answer))
    assert nothing is None and len(data) == 1 and task.primary == "error"
    assert measured["loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets, reduction="none").numpy())
    wrong = nn.functional.cross_entropy(probabilities, targets, reduction="none").numpy()
    assert not np.allclose(measured["loss"], wrong, atol=1e-3)
    with pytest.raises(AnalysisError, match="of a classifier give batches"):
        open_task(model, "data.yaml", Settings())


# --------------------------------------------------------------------------------------------- nothing left behind


def looks(model: Any) -> list[Any]:
    """Everything a YOLO object and its network hold, down to the identity and content of tensors."""
    seen: list[Any] = [dict(model.overrides), torch.get_rng_state().tolist()]
    for module in (model, *model.model.modules()):
        for key, value in module.__dict__.items():
            held = {k: id(v) for k, v in value.items()} if isinstance(value, dict) else None
            seen.append((type(module), key, id(value), held, repr(value) if isinstance(value, (bool, tuple)) else None))
    for tensor in (*model.model.parameters(), *model.model.buffers()):
        seen.append((id(tensor), tensor._version, tensor.requires_grad, tensor.detach().clone().numpy().tobytes()))
    return seen


@pytest.fixture(scope="module")
def yolo11n() -> Case:
    model = ultralytics.YOLO("yolo11n.yaml")
    units = analysis.units(model)
    return Case(model, "", [units[9], units[-1]], None)


def some_batches(count: int) -> Any:
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 30.0]]), "labels": torch.tensor([3])}
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(2, 3, 64, 64, generator=generator), [target, target]) for _ in range(count)]


def broken_by(error: type[BaseException]) -> Iterator[Any]:
    yield some_batches(1)[0]
    raise error("here")


@pytest.mark.parametrize(
    ("end", "method"),
    [
        (None, "single_pass"),
        (KeyboardInterrupt, "single_pass"),
        pytest.param(ZeroDivisionError, "naive", marks=pytest.mark.slow),
        pytest.param(None, "naive", marks=pytest.mark.slow),
        pytest.param(ZeroDivisionError, "single_pass", marks=pytest.mark.slow),
        pytest.param(KeyboardInterrupt, "naive", marks=pytest.mark.slow),
    ],
)
def test_yolo11n_is_as_before(yolo11n: Case, end: type[BaseException] | None, method: str) -> None:
    class Batches:
        def __iter__(self) -> Iterator[Any]:
            return iter(some_batches(1)) if end is None else broken_by(end)

    other = {name: value + 0.1 for name, value in yolo11n.model.model.state_dict().items()}
    before = looks(yolo11n.model)
    settings = {"detector": {"imgsz": 64}, "method": method, "checkpoints": {"5": other}, "draws": 0}
    if end is ZeroDivisionError:
        with pytest.raises(ZeroDivisionError, match="here"):
            yolo11n.again(Batches(), **settings)
    else:
        assert yolo11n.again(Batches(), **settings).complete is (end is None)
    assert looks(yolo11n.model) == before


def test_looks_sees_what_a_forward_pass_leaves(yolo11n: Case) -> None:
    model = copy.deepcopy(yolo11n.model)
    before = looks(model)
    model.model.eval()(torch.rand(1, 3, 64, 64))
    assert looks(model) != before


def test_an_error_on_the_way_in_leaves_nothing(plain: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = plain.model, plain.data
    _, _, ready = open_task(model, data, Settings(detector=SEEN))
    before = looks(model)
    monkeypatch.setattr(ready.validator, "init_metrics", lambda module: 1 / 0)
    with pytest.raises(ZeroDivisionError), ready:
        pass
    assert looks(model) == before and isinstance(ready, Detector)


# ------------------------------------------------------------------------------------------------------- figures


def judged(final: list[Found], treated: list[list[Found]], targets: list[Found], **more: Any) -> APMeasures:
    """Measures of boxes by hand: an untouched model, and draws of a treated one."""
    readings = Readings()
    there = [np.concatenate([one["boxes"], one["labels"][:, None]], 1) for one in map(boxes_of, targets)]
    for key, found in ((FINAL, final), *((f"u|rerand|{i}", one) for i, one in enumerate(treated))):
        rows = [
            np.concatenate([one["boxes"], one["scores"][:, None], one["labels"][:, None]], 1)
            for one in map(boxes_of, found)
        ]
        measured = {"loss": np.arange(len(rows), dtype=float), "place": np.zeros(len(rows), np.int32)}
        measured |= {"found": np.array([len(one) for one in rows]), "objects": np.array([len(one) for one in there])}
        measured |= {"boxes": np.concatenate(rows).astype(np.float32), "truth": np.concatenate(there)}
        readings.add(key, 0, measured)
    settings = {"tolerance": 0.01, "seed": 0, "loaded": 0, "names": {0: "cat", 1: "dog"}, "resamples": 20, **more}
    return APMeasures(readings, [("u", "rerand", len(treated))], **settings)


def boxes_of(found: Found) -> Any:
    return boxes(*found)


def images(count: int, hits: int) -> tuple[list[Found], list[Found]]:
    """Detections, of which the first are right, and objects."""
    objects: list[Found] = [[([4.0, 4.0, 20.0 + i, 20.0], i % 2, 0.9)] for i in range(count)]
    return [one if i < hits else [] for i, one in enumerate(objects)], objects


def test_average_precision_of_draws_by_hand() -> None:
    all_right, objects = images(12, 12)
    half, nothing = images(12, 6)[0], images(12, 0)[0]
    found = judged(all_right, [half, nothing], objects)
    values = [DetectionScores(detections(one, objects), 0, 0).values["AP"] for one in (all_right, half, nothing)]
    row = found.of("u", "rerand")
    assert values[0] == 1 and values[2] == 0 and row.draws == 2 and row.images == 12
    assert row.value == pytest.approx(values[1] / 2) and row.difference == pytest.approx(1 - values[1] / 2)
    assert row.spread == pytest.approx(np.std([values[1], 0], ddof=1)) and row.decided == "critical"
    assert row.means["loss"] == pytest.approx(5.5) and row.means["ap50"] == pytest.approx(row.value)
    assert found.of("u", FINAL).interval == (1.0, 1.0) and found.of("v", "rerand").images == 0
    assert found.headline() == "12 images, untouched AP 1.000 (1.000 to 1.000)"


def test_intervals_are_paired() -> None:
    final, objects = images(16, 8)
    same, other = judged(final, [final], objects), judged(final, [images(16, 7)[0]], objects)
    one, two = same.of("u", "rerand"), other.of("u", "rerand")
    assert one.difference == 0 and one.difference_interval == (0.0, 0.0) and one.decided == "robust"
    assert one.interval is not None and one.interval[1] - one.interval[0] > 0.1
    assert two.interval is not None and two.difference_interval is not None
    width, unpaired = (np.diff(interval)[0] for interval in (two.difference_interval, two.interval))
    assert 0 < width < unpaired  # the same images are drawn for both


def test_what_cannot_be_told_is_undecided() -> None:
    nothing, objects = images(12, 0)
    hopeless = judged(nothing, [nothing], objects)
    assert hopeless.of("u", "rerand").decided == "undecided" and "too little to be lost" in hopeless.headline()
    few = judged(*(images(9, 9)[0], [images(9, 0)[0]]), images(9, 9)[1])
    assert few.of("u", "rerand").decided == "undecided" and few.of("u", "rerand").difference == 1
    empty = judged(nothing, [nothing], nothing)
    assert empty.of("u", "rerand").value is None and "none (no object)" in empty.headline()


def test_images_come_in_the_order_of_their_paths() -> None:
    """Two equally sure detections in two images, one right: which comes first decides."""
    right, wrong = [([4.0, 4.0, 20.0, 20.0], 0, 0.9)], [([40.0, 40.0, 60.0, 60.0], 0, 0.9)]
    readings = Readings()
    table = np.array([[*box, score, label] for box, label, score in (*wrong, *right)], np.float32)
    measured = {"loss": np.zeros(2), "place": np.array([0, 1]), "found": np.ones(2, int), "boxes": table}
    measured |= {"objects": np.array([0, 1]), "truth": np.array([[4.0, 4.0, 20.0, 20.0, 0.0]])}
    readings.add(FINAL, 0, measured)
    settings = {"tolerance": 0.01, "seed": 0, "loaded": 0, "names": {0: "cat"}, "resamples": 0}
    assert APMeasures(readings, [], **settings).final.value == pytest.approx(0.5)  # type: ignore[arg-type]
    readings.add(FINAL, 0, {**measured, "place": np.array([1, 0])})
    assert APMeasures(readings, [], **settings).final.value == pytest.approx(1.0)  # type: ignore[arg-type]
    assert METRICS[0] == "AP"


# ------------------------------------------------------------------------------------------------------ bad input


def test_settings_that_do_not_fit_are_refused_in_words(plain: Case) -> None:
    model, data = plain.model, plain.data
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (data, {"stop": True}, "average precision, which is no mean over images"),
        (data, {"metrics": {"x": lambda logits, targets: targets}}, "a detector has none"),
        (data, {"amp": "bfloat16"}, "round the corners of boxes to 4 pixels of 640"),
        (data, {"detector": {"imgsize": 64}}, "unknown key 'imgsize'; did you mean 'imgsz'"),
        (data, {"detector": {"batch": 0}}, "batch is 0; give a whole number, at least 1"),
        (data, {"detector": {"conf": 2}}, "conf is 2; give a number from 0 to 1"),
        (data, {"detector": {"split": "all"}}, "split is 'all'; it is one of train, val, test"),
        (data, {"detector": {"split": "test"}}, "no split 'test'; it has train, val"),
        ("nowhere.yaml", {}, "cannot read the data set"),
        (torch.rand(2, 3, 64, 64), {}, "data is a Tensor; of a detector give a data yaml"),
        (3, {}, "data is a int"),
    ]
    for where, more, words in cases:
        with pytest.raises(AnalysisError, match=words):
            open_task(model, where, Settings(**{"detector": SEEN, **more}))
    with pytest.raises(AnalysisError, match="task is 'segment' is not offered"):
        open_task(ultralytics.YOLO("yolo11n-seg.yaml"), data, Settings())


def test_batches_that_do_not_fit_are_refused_in_words(plain: Case) -> None:
    model = plain.model
    fine, box = torch.rand(1, 3, 64, 64), torch.tensor([[1.0, 1.0, 9.0, 9.0]])
    target = {"boxes": box, "labels": torch.tensor([0])}
    cases: list[tuple[Any, str]] = [
        (fine, "a batch is a Tensor, and no"),
        ((fine, torch.tensor([1])), "a batch is a tuple, and no"),
        ((fine, [target, target]), "2 targets; give some"),
        ((fine[:0], []), "0 targets; give some"),
        ((fine * 255, [target]), "divide pixels by 255"),
        (((fine * 255).byte(), [target]), "divide pixels by 255"),
        ((fine[..., :50], [target]), "images are 64x50 pixels, but this detector takes multiples of 8"),
        ((fine, [box]), "a target is a Tensor"),
        ((fine, [{**target, "labels": torch.tensor([0, 1])}]), "1 boxes and 2 labels"),
        ((fine, [{**target, "boxes": box * 20}]), "is none in an image of 64x64 pixels"),
        ((fine, [{**target, "boxes": box.flip(1)}]), "is none in an image"),
        ((fine, [{**target, "labels": torch.tensor([3])}]), "label 3 is no class of the model, which has 0 to 2"),
    ]
    _, batches, _ = open_task(model, [], Settings())
    for batch, words in cases:
        with pytest.raises(AnalysisError, match=words):
            batches.convert(batch)
