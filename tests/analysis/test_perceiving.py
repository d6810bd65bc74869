"""Agreement with people: planted answers and shuffled ones, choices, curves, shifts, and the distance put back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analysis
from analysis import Perceptual
from analysis.perceptual_distance import PerceptualDistance
from analysis.ratings import RatedChoices, RatedPair, RatedTriplet, Ratings
from surgeon.errors import AnalysisError
from tests.analysis.test_rating_layouts import bapps, raid, tid
from tests.contracts import Snapshot


def rms(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean((1, 2, 3)).sqrt()


def judged(distance: Any, data: Any, **more: Any) -> Perceptual:
    return analysis.perceptual(distance, data, **{"resamples": 100, **more})


def distance_of(form: str, padding: str = "circular") -> PerceptualDistance:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 5, 3, 1, 1, padding_mode=padding), nn.GELU(), nn.Conv2d(5, 4, 1), nn.Tanh())
    return PerceptualDistance(net.double(), ["1", "3"], form=form, input_size=(1, 16, 16))


def samples(images: int = 12, **more: Any) -> Ratings:
    return analysis.distorted_samples(images=images, size=16, **{"levels": 3, **more})


def rescored(data: Ratings, scores: Any, higher: str = "worse") -> Ratings:
    pairs = [
        RatedPair(p.reference, p.distorted, float(s), p.distortion, p.level)
        for p, s in zip(data.items, scores, strict=True)
    ]
    return Ratings("rescored", pairs, data.read, higher=higher, curves=data.curves)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["lpips", "gap"])
def test_scores_made_of_the_distance_itself(form: str) -> None:
    distance, data = distance_of(form), samples()
    with torch.no_grad():
        own = [distance(a[None], b[None]).item() for a, b, _ in data]
    found = judged(distance, rescored(data, own), shifts=0)
    for measure in ("spearman", "pearson", "kendall", "spearman_of_curves"):
        row = next(row for row in found.rows if row["measure"] == measure)
        assert row["value"] == pytest.approx(1) and row["value_low_95"] == pytest.approx(1)
    opinion = judged(distance, rescored(data, [-(value**3) for value in own], "better"), shifts=0)
    assert opinion.value("spearman") == pytest.approx(1) and opinion.value("pearson") < 0.99
    turned = judged(distance, rescored(data, own, "better"), shifts=0)
    assert turned.value("kendall") == pytest.approx(-1)


def test_shuffled_scores_agree_with_nothing() -> None:
    data = samples()
    shuffled = np.random.default_rng(0).permutation([pair.score for pair in data.items])
    found = judged(rms, rescored(data, shuffled), shifts=0)
    for row in found.rows[:3]:
        assert abs(row["value"]) < 0.15 and row["value_low_95"] < 0 < row["value_high_95"]


def test_per_distortion_is_of_that_distortion_alone() -> None:
    data = samples(distortions=["noise", "blur"])
    scores = [p.score if p.distortion == "noise" else -p.score for p in data.items]
    found = judged(rms, rescored(data, scores), shifts=0)
    assert found.value("spearman", distortion="noise") > 0.9 and found.value("spearman", distortion="blur") < -0.7
    assert found.value("spearman_of_curves", distortion="noise") == pytest.approx(1)
    assert found.value("spearman_of_curves", distortion="blur") == pytest.approx(-1)
    assert [r["pairs"] for r in found.rows if r["measure"] == "kendall"] == [72, 36, 36]


def test_curves_are_means_per_level() -> None:
    data = samples(distortions=["contrast"])
    found = judged(rms, data, shifts=0)
    for level in (1, 2, 3):
        mine = [float(rms(a[None], b[None])) for a, b, score in data if score == level]
        assert found.value("distance", distortion="contrast", level=level) == pytest.approx(np.mean(mine), rel=1e-6)
        assert found.value("score", distortion="contrast", level=level) == level


def test_a_distance_that_sees_no_shift() -> None:
    data = samples(distortions=["noise"])
    gap, lpips, border = distance_of("gap"), distance_of("lpips"), distance_of("gap", "zeros")
    for distance, sees in ((gap, False), (lpips, True), (border, True), (rms, True)):
        found = judged(distance, data, shifts=(1, 5), padding="circular")
        assert (found.value("relative_distance", shift_px=5) > 1e-6) is sees
        assert (found.value("share_below", shift_px=5) > 0) is sees
    assert judged(gap, data, shifts=(1, 5)).value("relative_distance", shift_px=5) > 1e-6  # mirrored border


def test_relative_distance_by_hand() -> None:
    data = samples(images=4, distortions=["noise"])
    found = judged(rms, data, shifts=2, padding="circular")
    own = [rms(a[None], b[None]).item() for a, b, _ in data]
    images = [data.image(name) for name in data.references]
    moved = [np.mean([rms(i[None], i.roll(2, axis)[None]).item() for axis in (1, 2)]) for i in images]
    assert found.value("relative_distance", shift_px=2) == pytest.approx(np.mean(moved) / np.mean(own))
    below = [value < moved[place // 3] for place, value in enumerate(own)]
    assert found.value("share_below", shift_px=2) == np.mean(below)


def triplets(shares: list[float]) -> RatedChoices:
    """The first is always nearer to the reference than the second, but for the last, where they are equal."""
    images = {"r": torch.zeros(1, 4, 4), "a": torch.full((1, 4, 4), 0.2), "b": torch.full((1, 4, 4), 0.6)}
    names = [("a", "b")] * (len(shares) - 1) + [("b", "b")]
    items = [RatedTriplet("r", one, two, share, "kind") for (one, two), share in zip(names, shares, strict=True)]
    return RatedChoices("mine", items, images.__getitem__)


def test_choices() -> None:
    found = judged(rms, triplets([0.0, 0.2, 1.0, 0.9]))
    assert found.value("agreement") == pytest.approx((1 + 0.8 + 0 + 0.5) / 4)
    assert found.value("agreement_of_judges") == pytest.approx((1 + 0.68 + 1 + 0.82) / 4)
    assert len(found.rows) == 2 and "agrees with 0.575 of the judges" in found.summary


def test_published_layouts_end_to_end(tmp_path: Path) -> None:
    def red(a: Tensor, b: Tensor) -> Tensor:
        return (a - b)[:, 0].abs().mean((1, 2))

    opinions = judged(red, analysis.rating_data("tid2013", tid(tmp_path / "t")), shifts=1)
    assert opinions.value("spearman", distortion="gaussian blur") == pytest.approx(1)
    curves = judged(red, analysis.rating_data("raid", raid(tmp_path / "r")), shifts=1)
    assert (
        curves.value("spearman_of_curves") == pytest.approx(1)
        and curves.value("distance", distortion="scale", level=1) == 0
    )
    chosen = judged(red, analysis.rating_data("bapps", bapps(tmp_path / "b")))
    assert chosen.value("agreement", distortion="cnn") == chosen.value("agreement") == pytest.approx(0.5)
    for found in (opinions, curves, chosen):
        found.figure()


def test_the_distance_and_the_generators_are_put_back() -> None:
    distance = distance_of("lpips").train()
    with torch.no_grad():
        distance.raw.normal_()
    before = Snapshot.of(distance)
    judged(distance, samples(images=3, distortions=["noise"]), shifts=1)
    assert before.differences(Snapshot.of(distance)) == [] and torch.is_grad_enabled()
    with pytest.raises(AnalysisError):
        judged(distance, samples(images=3, channels=3, distortions=["noise"]))
    assert before.differences(Snapshot.of(distance)) == []


def test_one_seed_is_one_result_and_batches_do_not_matter() -> None:
    data = samples(images=4)
    one, same, other = (judged(rms, data, seed=s, shifts=1, batch_size=b) for s, b in ((0, 16), (0, 4), (1, 16)))
    for a, b in zip(one.rows, same.rows, strict=True):
        assert a["value"] == pytest.approx(b["value"]) and a["value_low_95"] == pytest.approx(b["value_low_95"])
    assert [row["value"] for row in other.rows] == pytest.approx([row["value"] for row in one.rows])
    assert [row["value_low_95"] for row in other.rows] != [row["value_low_95"] for row in one.rows]


def test_ctrl_c_tells_of_what_was_measured() -> None:
    data, calls = samples(images=6), iter(range(4))

    def stopping(a: Tensor, b: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return rms(a, b)

    found = judged(stopping, data, batch_size=15, shifts=1)
    assert found.settings["complete"] is False and found.settings["pairs"] == 60
    assert not any(row["part"] == "shift" for row in found.rows) and "stopped" in found.settings["notes"][0]
    with pytest.raises(KeyboardInterrupt):
        judged(stopping, data)


def test_told_drawn_and_stored(tmp_path: Path) -> None:
    found = judged(distance_of("gap"), samples(images=4), shifts=2, command="mine")
    text = str(found)
    assert "noise" in text and "relative_distance" in text and found.summary in text
    assert "4 references only" in found.settings["notes"][0] and found.settings["taps"] == "1, 3"
    found.to_json(tmp_path / "found.json")
    stored = analysis.read_result(tmp_path / "found.json")
    assert stored.kind == "perceptual" and stored.rows == json.loads(json.dumps(found.rows))
    assert len(stored.figure().axes) == len(found.figure().axes) == 7  # correlations, shifts, five curves
    assert found.to_csv().splitlines()[0].startswith("part,distortion,measure,level,shift_px,value,value_low_95")
    assert "Perceptual" in type(found).__name__ and found.report(tmp_path / "page.html").exists()
    with pytest.raises(AnalysisError, match="no row of"):
        found.value("spearmann")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"shifts": (0,)}, r"shifts=\(0,\): give whole pixels from 1 up"),
    ({"padding": "black"}, "padding='black': give one of mirror, circular"),
    ({"resamples": 0}, "resamples=0"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"limit": 0}, "limit=0"),
    ({"seed": -1}, "seed=-1"),
    ({"distance": "rms"}, "a str measures nothing"),
    ({"distance": lambda a, b: a}, r"the distance answered \(3, 1, 16, 16\) for 3 pairs"),
    ({"data": [1]}, "perceptual: data is a list; open a database by analysis.rating_data"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_settings(arguments: dict[str, Any], words: str) -> None:
    asked = {"distance": rms, "data": samples(images=1, distortions=["noise"]), **arguments}
    with pytest.raises(AnalysisError, match=words):
        judged(asked.pop("distance"), asked.pop("data"), **asked)
