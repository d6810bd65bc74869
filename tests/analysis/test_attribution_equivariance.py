"""Maps that move with the image and maps that do not: nets where it is known, chance, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import analysis
from analysis.attribution_objective import Objective
from analysis.saliency_maps import METHODS, Seeing, Shown, maps
from analysis.saliency_result import Compared, agreement
from analysis.tasks import Classification
from surgeon.errors import AnalysisError
from tests.analysis import odd_nets
from tests.analysis.attributing import Circular, batches

captum = pytest.importorskip("captum.attr")
GRADIENTS = ("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad")


def moving(model: nn.Module, data: Any, **more: Any) -> analysis.AttributionEquivariance:
    settings: dict[str, Any] = {"progress": False, "steps": 8, "samples": 4, "shifts": [1], **more}
    return analysis.attribution_equivariance(model, data, **settings)


# known answers


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_an_equivariant_net_move_with_the_image(method: str) -> None:
    model = Circular(act=nn.ReLU() if "guided" in method else None)
    found = moving(model, batches(4, (3, 8, 8), 4), method=method, shifts=(1, (3, 0), (0, -2)), units="layer")
    for row in found.rows:
        assert row["pearson"] > 1 - 1e-5 and row["spearman"] > 0.999 and row["l2"] < 1e-4
        assert row["chance_pearson"] < 0.9 and row["stayed_pearson"] < 0.9 and row["chance_l2"] > 0.1


@pytest.mark.parametrize("method", GRADIENTS)
def test_maps_of_a_strided_net_move_by_whole_strides_only(method: str) -> None:
    found = moving(Circular(stride=2), batches(4, (3, 8, 8), 4), method=method, shifts=(1, 2, 3))
    odd, even, other = found.rows
    assert even["pearson"] > 1 - 1e-5 and even["l2"] < 1e-4
    assert max(odd["pearson"], other["pearson"]) < 0.97 and min(odd["l2"], other["l2"]) > 0.05


class Middle(nn.Module):
    """Looks at the middle, whatever is there."""

    def forward(self, x: Tensor) -> Tensor:
        line = torch.arange(x.shape[-1]) - (x.shape[-1] - 1) / 2
        window = torch.exp(-(line**2) / 4)
        found = (x * window * window[:, None]).sum((2, 3))
        return torch.cat([found, found.sum(1, keepdim=True)], 1)


def test_a_map_that_stays_is_seen_as_such() -> None:
    found = moving(Middle(), batches(5, (3, 9, 9), 4), shifts=[1, 3], units="layer")
    for row in found.rows:
        assert row["stayed_pearson"] > 1 - 1e-6 and row["stayed_l2"] < 1e-6
        assert row["pearson"] == pytest.approx(row["chance_pearson"], abs=1e-6) and row["pearson"] < 0.9
    assert found.rows[1]["pearson"] < found.rows[0]["pearson"] - 0.2


@pytest.mark.parametrize("padding", ["mirror", "black"])
def test_without_wrapping_what_shows_the_same_is_compared(padding: Any) -> None:
    pointwise = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    fill = {"fill": 0.0} if padding == "black" else {}
    found = moving(pointwise, batches(4, (3, 8, 8), 4), padding=padding, shifts=[(2, 0), (0, -3), 1], **fill)
    assert all(row["pearson"] > 1 - 1e-5 and row["l2"] < 1e-5 for row in found.rows)
    bordered = moving(Circular(), batches(4, (3, 8, 8), 4), padding=padding, shifts=[(2, 0)], **fill)
    assert bordered.rows[0]["pearson"] < 1 - 1e-4  # what comes in at the border is another


def test_maps_are_captums() -> None:
    model, images, targets = Circular(act=nn.ReLU()), torch.randn(3, 3, 8, 8), torch.arange(3)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    seeing = Seeing(Objective(model, Classification(), "label"), steps=10, samples=50, noise=0.01, at_once=2)
    shown = Shown(images, targets, torch.zeros_like(images), lambda value: value)
    given = images.clone().requires_grad_()
    kinds = {
        "saliency": captum.Saliency(model).attribute(given, targets).sum(1),
        "input_x_gradient": captum.InputXGradient(model).attribute(given, targets).sum(1),
        "integrated_gradients": captum.IntegratedGradients(model).attribute(given, target=targets, n_steps=10).sum(1),
    }
    for method, expected in kinds.items():
        assert torch.allclose(maps(seeing, shown, method), expected.detach(), atol=1e-6)
    smooth, plain = maps(seeing, shown, "smoothgrad"), kinds["saliency"].detach()
    assert agreement(smooth, plain)[:, 0].min() > 0.9 and not torch.equal(smooth, plain)


def test_agreement_is_scipys() -> None:
    from scipy.stats import pearsonr, spearmanr

    one, other = torch.randn(2, 5, 6), torch.randn(2, 5, 6).round()
    for (x, y), found in zip(zip(one, other, strict=True), agreement(one, other), strict=True):
        a, b = x.flatten().double().numpy(), y.flatten().double().numpy()
        assert np.allclose(found[:2], (pearsonr(a, b).statistic, spearmanr(a, b).statistic))
        assert found[2] == pytest.approx(2 * np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b)))
    assert np.isnan(agreement(one * 0, other)[:, :2]).all()


# batches, chance, notes


@pytest.mark.parametrize("method", ["saliency", "smoothgrad"])
def test_batches_change_nothing(method: str) -> None:
    images, targets, model = torch.randn(7, 3, 8, 8), torch.arange(7) % 4, Circular(2)
    found = []
    for sizes, internal in (((7,), None), ((3, 4), 2), ((1,) * 7, 1), ((4, 1, 2), 100)):
        data = list(zip(images.split(list(sizes)), targets.split(list(sizes)), strict=True))
        rows = moving(model, data, method=method, internal_batch_size=internal, shifts=[1, (2, 1)]).rows
        found.append([[value for value in row.values() if isinstance(value, float)] for row in rows])
    assert all(np.allclose(found[0], other, atol=1e-5) for other in found[1:])


def test_maps_kept_at_once_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    add = Compared.add

    def counted(self: Compared, found: Any) -> None:
        sizes.append(len(next(iter(found.values()))[0]))
        add(self, found)

    monkeypatch.setattr(Compared, "add", counted)
    model, data, more = Circular(2), batches(9, (3, 8, 8), 4, 9), {"shifts": [1, 2], "internal_batch_size": 100}
    whole = moving(model, data, **more)
    assert sizes == [9]
    parts = moving(model, data, **more, memory=5 * 16 * 8 * 64)  # two maps of two shifts, and copies
    assert sizes == [9, 5, 4] and len(whole.rows) == 2
    close = [np.allclose(one["pearson"], other["pearson"]) for one, other in zip(whole.rows, parts.rows, strict=True)]
    assert all(close)


def test_images_of_several_sizes_are_compared_with_those_of_their_size() -> None:
    compared, moved = Compared(["one"], [(1, 1)], wrapped=True), {}
    maps_ = [torch.rand(2, 6, 8), torch.rand(1, 4, 4), torch.rand(3, 6, 8)]
    for still in maps_:
        moved["one", (1, 1)] = (still, still.roll((1, 1), (1, 2)))
        compared.add(moved)
    compared.finish()
    values = {key: np.concatenate(compared.values["one", (1, 1), key]) for key in ("", "chance_", "stayed_")}
    assert {key: len(one) for key, one in values.items()} == {"": 6, "chance_": 5, "stayed_": 6}  # one is alone
    assert np.allclose(values[""][:, 0], 1) and compared.images == 6 and np.all(values["chance_"][:, 0] < 0.9)


def test_shifts_are_whole_numbers_of_any_library() -> None:
    found = moving(Circular(), batches(2, (3, 8, 8), 4), shifts=np.arange(1, 3))
    assert [row["shift_right_px"] for row in found.rows] == [1, 2]


def test_chance_is_another_image() -> None:
    model, (images, targets) = Circular(2), batches(3, (3, 8, 8), 4, 3)[0]
    found = moving(model, [(images, targets)]).rows[0]
    seeing = Seeing(Objective(model, Classification(), "label"))
    still = maps(seeing, Shown(images, targets, images * 0, lambda value: value), "saliency")
    moved = maps(seeing, Shown(images, targets, images * 0, lambda value: value.roll((1, 1), (2, 3))), "saliency")
    pairs = agreement(still.roll((1, 1), (1, 2)).roll(1, 0), moved)
    assert found["chance_pearson"] == pytest.approx(pairs[:, 0].mean())
    alone = moving(model, [(images[:1], targets[:1])]).rows[0]
    assert alone["chance_pearson"] is None and alone["pearson"] is not None


def test_images_without_a_map_are_told() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.mean((2, 3)) - 5).relu()

    images = torch.randn(4, 3, 8, 8)
    images[1:] += 20 * torch.rand(3, 3, 8, 8)
    found = moving(Gated(), [(images, torch.zeros(4, dtype=torch.int64))], method="input_x_gradient", units="layer")
    assert found.rows[0]["without_map"] == 1 and "1 of 4 images have a map without any structure" in found.summary


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "salience"}, "did you mean 'saliency'"),
        ({"padding": "crop"}, "one of circular, mirror, black"),
        ({"shifts": [1.5]}, "give whole pixels"),
        ({"shifts": []}, "shifts is empty"),
        ({"shifts": [(1, 2, 3)]}, "give whole pixels"),
        ({"shifts": [5]}, "more than half of images of 8x8"),
        ({"samples": 0}, "samples is 0"),
        ({"noise": -1}, "noise is -1"),
        ({"method": "guided_backprop"}, "Circular has none"),
        ({"method": "gradcam", "unit": "head"}, "'head' is no unit that gives one"),
    ],
)
def test_what_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        moving(Circular(), batches(2, (3, 8, 8), 4), **{"units": "layer", **more})


def test_gradcam_needs_maps() -> None:
    with pytest.raises(AnalysisError, match=r"'norm' is no unit that gives one \(those that do: "):
        moving(
            timm.create_model("test_vit", num_classes=4), batches(2, (3, 160, 160), 4), method="gradcam", unit="norm"
        )


def test_guided_maps_of_code_that_counts_on_what_is_written_are_refused() -> None:
    model = odd_nets.Odd(odd_nets.ignores_the_answer, relu=nn.ReLU(inplace=True)).eval()
    with pytest.raises(AnalysisError, match="counts on what these layers write"):
        moving(model, batches(2, (3, 8, 8), 10), method="guided_backprop")
    assert moving(model, batches(2, (3, 8, 8), 10), method="saliency").rows


def test_results_are_kept_and_drawn(tmp_path: Path) -> None:
    found = moving(Circular(2), batches(4, (3, 8, 8), 4), method=["saliency", "smoothgrad"], shifts=[1, 2, (1, 0)])
    found.to_json(tmp_path / "a.json")
    stored = analysis.read_result(tmp_path / "a.json")
    assert stored.rows == found.rows and "saliency" in str(found) and "chance" in found.summary
    panels = stored.figure().axes
    assert len(panels) == 6 and [label.get_text() for label in panels[-1].get_xticklabels()] == ["1", "2", "(1, 0)"]
