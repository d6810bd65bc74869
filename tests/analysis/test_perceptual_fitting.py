"""Learned weights: planted ones are found, they stay above 0, the network stays, and one seed is one result."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analysis
from analysis.perceptual_distance import PerceptualDistance
from analysis.perceptual_fitting import fit_perceptual, pearson
from analysis.ratings import RatedChoices, RatedPair, RatedTriplet, Ratings
from surgeon.errors import AnalysisError
from tests.contracts import Snapshot


def net() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Dropout(0.5), nn.Tanh(), nn.Conv2d(6, 4, 3, 2), nn.ReLU())


def distance_of(form: str) -> PerceptualDistance:
    return PerceptualDistance(net(), ["2", "4"], form=form, input_size=(1, 12, 12))


def planted(form: str, higher: str = "worse", count: int = 6) -> Ratings:
    """Scores that only channels 1 and 7 make."""
    torch.manual_seed(0)
    images = {f"{r} {i}": torch.rand(1, 12, 12) for r in range(count) for i in range(6)}
    truth = distance_of(form)
    with torch.no_grad():
        truth.raw.copy_(torch.where(torch.isin(torch.arange(10), torch.tensor([1, 7])), 3.0, -20.0))
        pairs = []
        for name, image in images.items():
            reference = f"{name.split()[0]} 0"
            score = truth(images[reference][None], image[None]).item()
            pairs.append(RatedPair(reference, name, score if higher == "worse" else 5 - 2 * score))
    return Ratings("planted", pairs, images.__getitem__, higher=higher)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["lpips", "gap"])
def test_finds_the_weights_that_made_the_scores(form: str) -> None:
    distance, data = distance_of(form), planted(form)
    found = fit_perceptual(distance, data, epochs=60, lr=0.1, batch_size=12)
    assert found.rows[0]["pearson"] < 0.97 < 0.995 < found.rows[-1]["pearson"]
    assert set(distance.weights.topk(2).indices.tolist()) == {1, 7} and distance.weights.min() >= 0
    assert analysis.perceptual(distance, data, shifts=0, resamples=9).value("pearson") == pytest.approx(
        found.rows[-1]["pearson"]
    )
    assert found.rows[-1]["loss"] == pytest.approx(-found.rows[-1]["pearson"], abs=0.02)


def test_opinions_and_differences_teach_the_same() -> None:
    one, other, wrong = distance_of("gap"), distance_of("gap"), distance_of("gap")
    fit_perceptual(one, planted("gap"), epochs=5)
    fit_perceptual(other, planted("gap", "better"), epochs=5)
    assert torch.allclose(one.weights, other.weights, rtol=1e-3)
    data = planted("gap")
    data.higher = "better"
    assert fit_perceptual(wrong, data, epochs=5).rows[0]["pearson"] < 0


def test_cached_or_computed_anew_one_seed_is_one_result() -> None:
    found = []
    for memory, seed in (("1GiB", 0), (1, 0), (10 * 4 * 20, 0), ("1GiB", 1)):
        distance = distance_of("lpips")
        fit_perceptual(
            distance, planted("lpips"), epochs=2, lr=0.05, memory=memory, seed=seed, dropout=0.3, batch_size=8
        )
        found.append(distance.weights.detach())
    assert torch.allclose(found[0], found[1], rtol=1e-5) and torch.allclose(found[0], found[2], rtol=1e-5)
    assert not torch.allclose(found[0], found[3], rtol=1e-3)


def test_the_network_and_the_generators_stay() -> None:
    distance, data = distance_of("gap"), planted("gap")
    twin = copy.deepcopy(distance.backbone.state_dict())
    torch.manual_seed(5)
    before = Snapshot.of(distance.backbone)
    fit_perceptual(distance, data, epochs=2, dropout=0.5)
    assert before.differences(Snapshot.of(distance.backbone)) == []
    assert all(torch.equal(value, twin[name]) for name, value in distance.backbone.state_dict().items())
    assert distance.raw.grad is None and distance.raw.requires_grad


def test_the_best_epoch_of_a_validation_set_stays() -> None:
    """Of a validation set that says the opposite, epoch 0 is the best."""
    data, distance = planted("lpips"), distance_of("lpips")
    train, held = data.split(0.34)
    wrong = Ratings("wrong", held.items, held.read, higher="better")
    found = fit_perceptual(distance, train, validation=wrong, epochs=50, lr=0.3, patience=4)
    assert [row["best"] for row in found.rows] == [True] + 4 * [False]  # it stopped after four without a better one
    assert torch.allclose(distance.weights, torch.ones(10)) and distance.made["epoch"] == 0
    value = analysis.perceptual(distance, wrong, shifts=0, resamples=9).value("pearson")
    assert value == pytest.approx(found.rows[0]["validation_pearson"])
    assert distance.made["validation_pearson"] == found.rows[0]["validation_pearson"]
    right = fit_perceptual(distance, train, validation=held, epochs=12, lr=0.1, patience=None)
    best = int(np.argmax([row["validation_pearson"] for row in right.rows]))
    assert right.rows[best]["best"] and best > 0 and len(right.rows) == 13
    value = analysis.perceptual(distance, held, shifts=0, resamples=9).value("pearson")
    assert value == pytest.approx(right.rows[best]["validation_pearson"])


def test_a_share_of_the_references_validates() -> None:
    found = fit_perceptual(distance_of("gap"), planted("gap"), validation=0.34, epochs=2, limit=30)
    assert (found.settings["references"], found.settings["pairs"]) == (3, 15)
    assert found.settings["validation"] == "planted, 10 pairs"  # without those of an image with itself
    assert found.figure().axes[0].get_lines() and "validation" in found.summary


def interrupted(read: Any, calls: int) -> Any:
    counted: Iterator[int] = iter(range(calls))

    def image(name: str) -> Tensor:
        if next(counted, None) is None:
            raise KeyboardInterrupt
        return read(name)

    return image


def test_ctrl_c_keeps_the_last_whole_epoch() -> None:
    data, distance, whole = planted("gap"), distance_of("gap"), distance_of("gap")
    fit_perceptual(whole, data, epochs=0)
    images = len(data) + len(data.references)
    data.read = interrupted(data.read, 4 * images)
    found = fit_perceptual(distance, data, epochs=50, memory=1)
    assert found.settings["complete"] is False and 1 <= len(found.rows) < 5 and found.rows[-1]["best"]
    with pytest.raises(KeyboardInterrupt):
        fit_perceptual(distance, data, epochs=5)


@pytest.mark.parametrize("opt", ["sgd", "adamw", lambda parameters: torch.optim.Adagrad(parameters, lr=0.05)])
def test_optimisers(opt: Any) -> None:
    found = fit_perceptual(distance_of("gap"), planted("gap"), opt=opt, lr=0.05, epochs=3)
    assert found.rows[-1]["pearson"] > found.rows[0]["pearson"]
    assert found.settings["opt"] == (opt if isinstance(opt, str) else "Adagrad")


def test_correlation_as_a_loss() -> None:
    x, y = torch.randn(2, 50, dtype=torch.float64)
    assert pearson(x, y).item() == pytest.approx(np.corrcoef(x, y)[0, 1])
    flat = torch.ones(5, requires_grad=True)
    pearson(flat, torch.arange(5.0)).backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"epochs": -1}, "epochs=-1"),
    ({"batch_size": 2}, "batch_size=2: a correlation needs 3 pairs at least"),
    ({"dropout": 1}, "dropout=1: give a share"),
    ({"patience": 0}, "patience=0"),
    ({"image_batch": 0}, "image_batch=0"),
    ({"seed": -1}, "seed=-1"),
    ({"opt": "adm"}, "opt='adm': .*; give a name that timm.optim knows"),
    ({"validation": 0.01}, "leaves a part empty"),
    ({"limit": 0}, "limit=0: give a number of pairs"),
    ({"limit": -1}, "limit=-1: give a number of pairs"),
    ({"limit": 3}, "data: 2 pairs are left; a correlation needs 3"),
    ({"limit": 8, "validation": 0.5}, "1 pairs are left; a correlation needs 3"),
    ({"validation": [1]}, "validation is a list; give analysis.Ratings of other references, or the share"),
    ({"validation": 1}, "validation is a int; give"),
    ({"validation": True}, "validation is a bool; give"),
    ({"opt": lambda parameters: torch.optim.LBFGS(parameters)}, "LBFGS needs a closure for each step"),
    ({"opt": lambda parameters: parameters}, "opt made a list; it must make an optimiser"),
    ({"memory": "many"}, "memory"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_settings(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        fit_perceptual(distance_of("gap"), planted("gap", count=2), **{"epochs": 1, **arguments})


def scored(images: dict[str, Tensor], scores: list[float], reference: str = "a") -> Ratings:
    pairs = [RatedPair(reference, f"b{place}", score) for place, score in enumerate(scores)]
    return Ratings("scored", pairs, images.__getitem__, higher="worse")


def test_bad_data() -> None:
    images = {name: torch.full((1, 12, 12), 0.5) for name in ("a", "b0", "b1", "b2", "b3")}
    with pytest.raises(AnalysisError, match="data: all scores are equal"):
        fit_perceptual(distance_of("gap"), scored(images, [1.0] * 4))
    with pytest.raises(AnalysisError, match="data: 2 pairs are left; a correlation needs 3"):
        fit_perceptual(distance_of("gap"), planted("gap")[:3])
    with pytest.raises(AnalysisError, match="planted: all pairs are of an image with itself"):
        fit_perceptual(distance_of("gap"), planted("gap")[:1])
    with pytest.raises(AnalysisError, match="data: the distance is the same for all pairs"):
        fit_perceptual(distance_of("gap"), scored(images, [1.0, 2.0, 3.0]))
    with pytest.raises(AnalysisError, match="learns from scored pairs, and mine has choices"):
        fit_perceptual(distance_of("gap"), RatedChoices("mine", [RatedTriplet("a", "a", "a", 0)], images.__getitem__))  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="a Sequential has no weights; give a PerceptualDistance"):
        fit_perceptual(net(), planted("gap"))  # type: ignore[arg-type]


def test_sets_that_cannot_validate() -> None:
    data = planted("gap")
    images = {name: torch.full((1, 12, 12), 0.5) for name in ("a", "b0", "b1", "b2")}
    for validation, words in (
        (data, "validation has 6 of its 6 references in common with data, such as '0 0'"),
        (data.only(references="2 0"), "validation has 1 of its 1 references in common with data, such as '2 0'"),
        (scored(images, [1.0]), "validation: 1 pairs are left; a correlation needs 3"),
        (scored(images, [1.0] * 3), "validation: all scores are equal"),
        (scored(images, [1.0, 2.0, 3.0]), "validation: the distance is the same for all pairs"),
        (RatedChoices("mine", [RatedTriplet("a", "a", "a", 0)], images.__getitem__), "validation is choices; give"),
    ):
        with pytest.raises(AnalysisError, match=words):
            fit_perceptual(distance_of("gap"), data, validation=validation, epochs=1)  # type: ignore[arg-type]


def test_pairs_of_an_image_with_itself_teach_nothing() -> None:
    data = planted("gap")
    found = [fit_perceptual(distance_of("gap"), part, epochs=2) for part in (data, data.of_two())]
    assert found[0].rows == found[1].rows and (len(data), found[0].settings["pairs"]) == (36, 30)


def test_an_error_leaves_the_weights_as_they_were() -> None:
    class Failing(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> None:
            Failing.steps += 1
            super().step(closure)
            if Failing.steps == 5:
                raise ValueError("no more")

    distance = distance_of("gap")
    with pytest.raises(ValueError, match="no more"):
        fit_perceptual(distance, planted("gap"), opt=lambda p: Failing(p, lr=1.0), epochs=9)
    assert torch.allclose(distance.weights, torch.ones(10)) and distance.raw.grad is None and not distance.made


def test_features_that_overflow_are_refused() -> None:
    data, distance = planted("gap"), distance_of("gap")
    with torch.no_grad():
        distance.backbone[3].bias.fill_(float("inf"))
    with pytest.raises(AnalysisError, match="the distance of '0 1' to '0 0' is nan or infinite"):
        fit_perceptual(distance, data, epochs=1)
