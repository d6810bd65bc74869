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
    nearer = np.mean([1 - share for share in (0.0, 0.4, 1.0)])  # the first image is, in all triplets
    assert chosen.value("agreement", distortion="cnn") == chosen.value("agreement") == pytest.approx(nearer)
    assert abs(nearer - 0.5) > 0.03
    for found in (opinions, curves, chosen):
        found.figure()


def test_pairs_of_an_image_with_itself_count_in_curves_only() -> None:
    """As RAID's level 1: they would agree for free, and make the mean distortion smaller."""
    data = samples(images=6, distortions=["noise", "blur"])
    own = [RatedPair(name, name, 0.0, kind, 0.0) for name in data.references for kind in data.distortions]
    items = sorted([*data.items, *own], key=lambda pair: pair.reference)
    both = [judged(rms, Ratings("mine", part, data.read, higher="worse"), shifts=2) for part in (items, data.items)]
    more, without = ([row for row in found.rows if row["part"] != "curve"] for found in both)
    for row, plain in zip(more, without, strict=True):
        assert (row["measure"], row["pairs"], row["references"]) == (plain["measure"], plain["pairs"], 6)
        assert row["value"] == pytest.approx(plain["value"])
    assert both[0].value("distance", distortion="blur", level=0) == 0.0
    assert (both[0].settings["self_pairs"], both[1].settings["self_pairs"], both[0].settings["pairs"]) == (12, 0, 48)
    assert "12 of 48 pairs are of an image with itself" in str(both[0].settings["notes"])
    assert "36 pairs of 6 references" in both[0].summary and both[0].figure()
    alone = judged(rms, Ratings("mine", own, data.read, higher="worse"), shifts=1)
    assert {row["value"] for row in alone.rows if row["part"] != "curve"} == {None}


def test_each_reference_weighs_the_same_in_relative_distance() -> None:
    data = samples(images=3, distortions=["noise"])
    some = Ratings("mine", data.items[:5], data.read, higher="worse")  # three images of one, two of the other
    own = [rms(a[None], b[None]).item() for a, b, _ in some]
    moved = [
        np.mean([rms(i[None], i.roll(1, axis)[None]).item() for axis in (1, 2)])
        for i in map(some.image, some.references)
    ]
    found = judged(rms, some, shifts=1, padding="circular").value("relative_distance", shift_px=1)
    assert found == pytest.approx(np.mean(moved) / np.mean([np.mean(own[:3]), np.mean(own[3:])]))
    assert found != pytest.approx(np.mean(moved) / np.mean(own), rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_distance_that_is_no_number_is_refused(value: float) -> None:
    data = samples(images=2, distortions=["noise"])
    broken = data.items[4]

    def spoiled(a: Tensor, b: Tensor) -> Tensor:
        wrong = (b - data.image(broken.distorted)).abs().amax((1, 2, 3)) == 0
        return torch.where(wrong, value, rms(a, b))

    with pytest.raises(AnalysisError, match=f"of '{broken.distorted}' to '{broken.reference}' is nan or infinite"):
        judged(spoiled, data)

    def spoiled_where_shifted(a: Tensor, b: Tensor) -> Tensor:
        return rms(a, b) if len(b) == 3 else torch.full((len(b),), value)

    with pytest.raises(AnalysisError, match=f"of '{data.references[0]}, shifted' to '{data.references[0]}' is nan"):
        judged(spoiled_where_shifted, data)


def test_features_that_overflow_are_refused() -> None:
    data, distance = samples(images=2, distortions=["noise"]), distance_of("lpips")
    with torch.no_grad():
        distance.backbone[0].bias[0] = float("nan")
    with pytest.raises(AnalysisError, match=f"of '{data.items[0].distorted}' to '{data.references[0]}' is nan"):
        judged(distance, data)


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


def test_ctrl_c_within_the_first_triplet() -> None:
    calls = iter(range(1))

    def stopping(a: Tensor, b: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return rms(a, b)

    with pytest.raises(KeyboardInterrupt):
        judged(stopping, triplets([0.0, 0.2, 1.0]), batch_size=1)


def test_whole_numbers_of_numpy_are_shifts() -> None:
    data = samples(images=2, distortions=["noise"])
    found = [
        judged(rms, data, shifts=each) for each in (2, np.int64(2), (np.int64(1), 2), np.array([1, 2]), range(1, 3))
    ]
    assert all(each.settings["shifts"] == [1, 2] and each.to_json() == found[0].to_json() for each in found)


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
    ({"shifts": -3}, "shifts=-3: give whole pixels from 1 up, each once, or 0 for none"),
    ({"shifts": 1.5}, r"shifts=1\.5: give"),
    ({"shifts": None}, "shifts=None: give"),
    ({"shifts": True}, "shifts=True: give"),
    ({"shifts": (1, 1)}, r"shifts=\(1, 1\): give whole pixels from 1 up, each once"),
    ({"shifts": "12"}, "shifts='12': give"),
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
