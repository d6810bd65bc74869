"""Two nets side by side: figures as each measure gives them, paired intervals that can tell, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import analysis
import analysis.comparing
import surgeon
from analysis.intervals import difference_of_ratios
from surgeon.errors import AnalysisError
from tests.analysis.test_translation import Invariant, noise


class Answers(nn.Module):
    """Right for the images whose first pixel is below a threshold, else the next class; their class is the second."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold, self.scale = threshold, nn.Parameter(torch.tensor(8.0))

    def forward(self, x: Tensor) -> Tensor:
        target = x[:, 0, 0, 1].round().long()
        chosen = torch.where(x[:, 0, 0, 0] < self.threshold, target, (target + 1) % 4)
        return nn.functional.one_hot(chosen, 4) * self.scale


def images(count: int = 60) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(4, (count,), generator=generator)
    pixels = torch.zeros(count, 1, 8, 8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(count) / count, targets.float()
    return [(pixels[:25], targets[:25]), (pixels[25:], targets[25:])]


def beside(a: Any, b: Any, data: Any, *measures: str, **more: Any) -> analysis.Comparison:
    return analysis.compare(a, b, data, measures=measures, progress=False, **more)


def test_accuracy_and_disagreements_are_counted() -> None:
    found = beside(Answers(0.5), Answers(0.8), images())
    accuracy, loss, only = found.rows
    assert (accuracy["original"], accuracy["operated"]) == (0.5, 0.8)
    assert accuracy["difference"] == pytest.approx(0.3) and accuracy["difference_low_95"] > 0.15
    assert (only["original"], only["operated"]) == (0, 18) and found.settings["disagree_images"] == 18
    assert loss["difference_high_95"] < 0 and "18 only operated (sign test p = 7.6e-06)" in found.summary
    assert len(found.disagreements) == 12 and {each.chosen[1] == each.target for each in found.disagreements} == {True}
    whole = torch.cat([x for x, _ in images()])
    assert all(torch.equal(each.image, whole[each.index]) for each in found.disagreements)


def test_a_net_beside_itself_differs_nowhere() -> None:
    model = timm.create_model("test_resnet", num_classes=4).eval()
    found = beside(model, model, noise(3, 32), "translation", "consistency", "robustness")
    assert {row["difference"] for row in found.rows} == {0.0}
    assert all(row["difference_low_95"] in (None, 0.0) or row["difference_low_95"] < 0 for row in found.rows)
    assert found.disagreements == [] and "sign test p = 1)" in found.summary
    with pytest.raises(AnalysisError, match="no image on which the nets disagree"):
        found.gallery()


def test_consistency_and_relative_loss_tell_an_invariant_net_from_its_strided_twin() -> None:
    data = noise(1, 8, 200)
    model, twin = Invariant(), Invariant(stride=2)
    data = [(x, model(x).argmax(1)) for x, _ in data]  # all right unmoved
    settings = {"translation": {"padding": "circular", "step": 1, "reach": 2}, "consistency": {"reach": 3, "passes": 4}}
    found = beside(model, twin, data, "translation", "consistency", settings=settings)
    rows = {row["measure"]: row for row in found.rows}
    agreed = rows["consistency (circular)"]
    assert agreed["original"] == 1.0 > agreed["operated"] and agreed["difference_high_95"] < 0
    assert rows["relative loss over shifts"]["original"] == 0.0
    single = analysis.translation(twin, data, padding="circular", step=1, reach=2, progress=False)
    assert rows["relative loss over shifts"]["operated"] == single.relative_loss[0]


def test_difference_of_ratios_is_paired() -> None:
    generator = np.random.default_rng(0)
    right, lost = np.ones(500), (generator.random(500) < 0.5).astype(float)
    less = lost * (generator.random(500) < 0.8)
    low, high = difference_of_ratios((lost, right), (less, right))
    assert low < less.mean() - lost.mean() < high < 0
    shuffled = generator.permutation(less)
    assert np.ptp(difference_of_ratios((lost, right), (shuffled, right))) > 1.4 * (high - low)  # what pairing is worth


def test_costs_are_counted() -> None:
    model = surgeon.create_model("test_resnet", num_classes=4)
    operated = surgeon.apply(surgeon.create_model("test_resnet", num_classes=4), "spd", 32)
    settings = {"cost": {"rounds": 1, "least": 0.01}}
    found = beside(model, operated, noise(3, 32), "cost", settings=settings, input_size=32)
    rows = {row["measure"]: row for row in found.rows}
    assert rows["parameters"]["original"] == sum(p.numel() for p in model.parameters())
    assert (
        rows["parameters"]["operated"] == sum(p.numel() for p in operated.parameters()) > rows["parameters"]["original"]
    )
    assert rows["multiply-adds"]["difference"] > 0 and rows["milliseconds at batch 1"]["operated"] > 0


def test_a_measure_that_cannot_be_taken_is_said() -> None:
    found = beside(Answers(0.5), Answers(0.8), images(), "consistency", settings={"consistency": {"protocol": "crop"}})
    assert "consistency is left out: size is None" in found.summary and len(found.rows) == 3


def test_models_are_as_they_were() -> None:
    models = [timm.create_model(name, num_classes=4).train() for name in ("test_resnet", "test_efficientnet")]
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in models]
    state = torch.get_rng_state()
    beside(*models, noise(3, 32, 6), "translation", "consistency", "cost", settings={"cost": {"least": 0.01}})
    for model, values in zip(models, before, strict=True):
        assert all(torch.equal(model.state_dict()[key], value) for key, value in values.items()) and model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_page_has_both_nets_and_the_images(tmp_path: Path) -> None:
    found = beside(Answers(0.5), Answers(0.8), images(), "translation", labels=("before", "after"))
    page = found.report(tmp_path / "page.html").read_text()
    assert all(text in page for text in ("before and after", "Images on which the nets disagree", "after: Translation"))
    found.to_json(tmp_path / "found.json")
    stored = analysis.read_result(tmp_path / "found.json")
    assert stored.rows == found.rows and stored.figure().axes
    assert "accuracy" in stored.report(tmp_path / "stored.html").read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"measures": ["speed"]}, "'speed' is none; there are translation"),
        ({"measures": "cost"}, r"give a list, as \['cost'\]"),
        ({"settings": {"speed": {}}}, "'speed' is none"),
        ({"labels": ("a", "a")}, "two different names"),
        ({"labels": ("measure", "b")}, "another column"),
        ({"shown": -1}, "number of images"),
    ],
)
def test_mistakes(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        analysis.compare(Answers(0.5), Answers(0.8), images(), progress=False, **settings)


def test_other_images_for_the_second_net_are_refused() -> None:
    class Shuffled(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            order = torch.randperm(60, generator=self.generator)
            pixels, targets = (torch.cat(parts)[order] for parts in zip(*images(), strict=True))
            yield pixels, targets

        generator = torch.Generator().manual_seed(0)

    with pytest.raises(AnalysisError, match="other images than the first"):
        beside(Answers(0.5), Answers(0.8), Shuffled(images()))


def test_ctrl_c_ends_the_comparison_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(analysis.comparing.CLASSIFIERS.measures, "translation", stopped)
    found = beside(Answers(0.5), Answers(0.8), images(), "translation", "consistency")
    assert found.settings["complete"] is False and len(found.rows) == 3
    assert "stopped during translation" in found.summary


def test_a_measure_whose_code_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setitem(analysis.comparing.CLASSIFIERS.measures, "translation", failing)
    found = beside(Answers(0.5), Answers(0.8), images(), "translation", "consistency")
    assert "translation is left out: it failed by RuntimeError: sizes" in found.summary
    assert found.settings["complete"] and any("consistency" in row["measure"] for row in found.rows)


def test_unknown_settings_are_refused_before_anything_runs() -> None:
    with pytest.raises(AnalysisError, match="consistency takes no 'pases'; it takes"):
        beside(Answers(0.5), Answers(0.8), images(), "consistency", settings={"consistency": {"pases": 2}})


def test_data_that_can_be_gone_through_once_only_are_refused() -> None:
    with pytest.raises(AnalysisError, match="gone through for each net"):
        beside(Answers(0.5), Answers(0.8), iter(images()))
