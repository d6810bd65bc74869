"""Aliasing: a planted period is found, with its share; noise and smooth trends of any kind have none."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
from numpy.typing import NDArray
from torch import nn

import analysis
import surgeon
from analysis.spectra import find_periods, holm
from analysis.stored import read_result
from analysis.stride_periods import stride_periods

SHIFTS = np.arange(-32.0, 33.0)
Array = NDArray[np.float64]


def noise(seed: int, count: int = 65, colour: float = 0.0) -> Array:
    """White noise, or red: each value a share of the one before, and something new."""
    drawn = np.random.default_rng(seed).normal(size=count)
    for i in range(1, count):
        drawn[i] += colour * drawn[i - 1]
    return drawn


def wave(period: float, seed: int, shifts: Array = SHIFTS) -> Array:
    """A pattern that repeats: no sine, but any values, of variance 1."""
    pattern = np.random.default_rng(1000 + seed).normal(size=int(period))
    pattern = (pattern - pattern.mean()) / pattern.std()
    return pattern[(shifts.astype(int)) % int(period)]


def scan(values: Array, shifts: Array = SHIFTS, column: str = "accuracy") -> list[dict[str, float]]:
    return [{"dx_px": float(s), "dy_px": float(s), column: float(v)} for s, v in zip(shifts, values, strict=True)]


@pytest.mark.parametrize("period", [2, 4, 8, 16])
def test_a_planted_period_is_found(period: int) -> None:
    trend = 0.9 - 0.002 * np.abs(SHIFTS) - 1e-5 * SHIFTS**2
    found = analysis.aliasing((SHIFTS, trend + 0.01 * wave(period, 0) + 0.003 * noise(1)), surrogates=199)
    rows = {row["period_px"]: row for row in found.rows}
    assert rows[period]["verdict"] == "periodic"
    assert not any(row["verdict"] == "periodic" for at, row in rows.items() if at > period), "its multiples add nothing"
    assert rows[32]["verdict"] == "-"
    assert 0.8 < rows[period]["share"] < 1 and rows[period]["p"] == pytest.approx(1 / 200)
    assert rows[16]["share"] == pytest.approx(sum(rows[at]["own_share"] for at in (2, 4, 8, 16)), abs=0.05)


def test_the_share_is_that_which_was_planted() -> None:
    """The sine has the variance of the noise, so half is explained, and the amplitude is the sine's."""
    sine = math.sqrt(2) * np.sin(2 * np.pi * SHIFTS / 4 + 0.3)
    shares, heights = [], []
    for seed in range(8):
        found = find_periods(SHIFTS, 5 + sine + noise(seed), (2, 4, 8), surrogates=19)
        four = next(period for period in found.periods if period.period == 4)
        shares.append(four.own_share)
        heights.append(four.amplitude)
    assert np.mean(shares) == pytest.approx((65 + 2) / (65 + 56), abs=0.05)  # the trend takes 9 of 65 off the noise
    assert np.mean(heights) == pytest.approx(math.sqrt(2), rel=0.1)


NULLS = {
    "white noise": lambda seed: noise(seed),
    "red noise": lambda seed: noise(seed, colour=0.8),
    "a random walk": lambda seed: noise(seed, colour=1.0),
    "a line": lambda seed: 0.5 * SHIFTS + noise(seed),
    "a bowl with a kink": lambda seed: -0.3 * np.abs(SHIFTS) - 0.02 * SHIFTS**2 + noise(seed),
    "a step": lambda seed: 10 / (1 + np.exp(-(SHIFTS - 7.3) / 3)) + noise(seed),
    "a bump": lambda seed: 300 * np.exp(-((SHIFTS - 1.3) ** 2) / 128) + noise(seed),
    "a plateau": lambda seed: -0.5 * np.maximum(np.abs(SHIFTS) - 11, 0) + noise(seed),
}


def false_alarms(null: str, runs: int, first: int = 0) -> float:
    """How often any period is called periodic at a level of 0.05 for all together."""
    made = NULLS[null]
    found = [find_periods(SHIFTS, made(first + i), (2, 4, 8, 16, 32), surrogates=99, seed=i) for i in range(runs)]
    return float(np.mean([min(holm([period.p for period in each.periods])) <= 0.05 for each in found]))


@pytest.mark.parametrize("null", ["white noise", "a bump"])
def test_noise_has_no_period(null: str) -> None:
    assert false_alarms(null, 12) <= 0.25  # 4 of 12 at a chance of 1 in 20: one time in 500


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
def test_false_alarms_are_as_rare_as_promised(null: str) -> None:
    assert false_alarms(null, 400, 5000) <= 0.08  # 0.05 and three standard errors


def test_p_values_of_noise_are_even() -> None:
    found = [find_periods(SHIFTS, noise(seed), (2, 4), surrogates=99, seed=seed).periods for seed in range(20)]
    values = [each[0].p for each in found]
    assert 0.3 < np.mean(values) < 0.7 and max(values) > 0.9
    own, chance = (np.mean([getattr(each[1], key) for each in found]) for key in ("own_share", "chance_share"))
    assert 0.5 < own / chance < 1.6 and chance == pytest.approx(2 / 56, rel=0.2)


def test_a_smooth_curve_has_nothing_to_explain() -> None:
    found = analysis.aliasing((SHIFTS, 0.9 - 0.001 * np.abs(SHIFTS)), periods=(2, 4, 8))
    assert found.periodic == [] and all(row["own_share"] == 0 and row["p"] == 1 for row in found.rows)
    assert "nothing varies" in found.rows[0]["note"]


def test_fractions_of_pixels_show_the_pixel_grid() -> None:
    shifts = np.arange(-8, 8.25, 0.25)
    values = 0.02 * np.cos(2 * np.pi * shifts) + 0.004 * noise(3, len(shifts))
    found = analysis.aliasing((shifts, values), periods=(1, 2, 4), surrogates=199)
    assert found.periodic == [1.0] and found.settings["step_px"] == 0.25


def test_periods_that_do_not_fit_are_said() -> None:
    shifts = np.arange(-8.0, 9.0)
    found = analysis.aliasing((shifts, noise(0, 17)), periods=(2, 4, 32), surrogates=99)
    row = found.rows[-1]
    assert row["verdict"] == "-" and row["p"] is None and "fits less than 4 times into 17 px" in row["note"]
    assert "Not looked for: 32 px" in found.summary
    coarse = analysis.aliasing((np.arange(0, 128.0, 4), noise(0, 32)), periods=(2, 8, 16), surrogates=99)
    assert "shorter than two steps of 4 px" in coarse.rows[0]["note"]


def test_rows_of_a_scan_and_any_column() -> None:
    values = 0.01 * wave(4, 2) + 0.002 * noise(0)
    rows = scan(values, column="loss")
    arrays = analysis.aliasing((SHIFTS, values), column="loss", surrogates=99)
    found = analysis.aliasing(rows[::-1], column="loss", surrogates=99)  # in any order
    assert [row["share"] for row in found.rows] == pytest.approx([row["share"] for row in arrays.rows])
    assert {row["axis"] for row in found.rows} == {"diagonal"} and {row["axis"] for row in arrays.rows} == {""}
    assert found.settings["column"] == "loss" and "loss" in found.title


def grid(period: int, seed: int = 0) -> list[dict[str, float]]:
    """A pattern that repeats to the right only, on a grid."""
    side = np.arange(-12, 13)
    drawn = np.random.default_rng(seed).normal(size=(25, 25))
    pattern = wave(period, seed, side.astype(float))
    return [
        {"dx_px": float(dx), "dy_px": float(dy), "accuracy": 0.9 + 0.01 * pattern[i] + 0.003 * drawn[j, i]}
        for j, dy in enumerate(side)
        for i, dx in enumerate(side)
    ]


def test_a_grid_is_cut_or_taken_whole() -> None:
    found = analysis.aliasing(grid(4), periods=(2, 4, 6), surrogates=299)
    assert [row["axis"] for row in found.rows] == ["horizontal"] * 3 + ["vertical"] * 3 + ["diagonal"] * 3
    sure = {(row["axis"], row["period_px"]) for row in found.rows if row["verdict"] == "periodic"}
    assert ("horizontal", 4.0) in sure and not any(axis == "vertical" or period == 6 for axis, period in sure)
    alone = analysis.aliasing(grid(4), axis="vertical", periods=(2, 4, 6), surrogates=99)
    assert alone.periodic == [] and {row["axis"] for row in alone.rows} == {"vertical"}
    assert alone.settings["drawn"]["curves"][0]["shifts_px"] == list(range(-12, 13))


def test_periods_are_the_strides_of_the_model() -> None:
    model = timm.create_model("test_resnet")
    assert list(stride_periods(model)) == [2, 4, 8, 16, 32]
    assert stride_periods(model)[2] == "conv1.0" and stride_periods(model)[32] == "layer4.0.conv1"
    found = analysis.aliasing((SHIFTS, noise(0)), model=model, surrogates=99)
    assert [row["period_px"] for row in found.rows] == [2, 4, 8, 16, 32] and found.rows[0]["where"] == "conv1.0"
    assert stride_periods(surgeon.apply(model, "spd"))[4] == "maxpool", "surgery keeps the strides, in their places"
    assert stride_periods(nn.Conv2d(3, 4, 3), 16) == {}


def test_periods_of_a_detector_end_with_its_strides() -> None:
    assert list(stride_periods(pytest.importorskip("ultralytics").YOLO("yolo11n.yaml"))) == [2, 4, 8, 16, 32]


def test_it_is_drawn_and_read_back(tmp_path: Path) -> None:
    for source in (scan(0.01 * wave(4, 0) + 0.003 * noise(0)), grid(4)):
        found = analysis.aliasing(source, periods=(2, 4), surrogates=99)
        found.to_json(tmp_path / "aliasing.json")
        stored = read_result(tmp_path / "aliasing.json")
        assert stored.rows == found.rows and stored.kind == "aliasing"
        drawn, again = found.figure(), stored.figure()
        assert len(drawn.axes) == len(again.axes) >= 2
        labels = [axes.get_xlabel() for axes in drawn.axes]
        assert any("pixels" in label for label in labels) and any("period" in label for label in labels)


def test_the_same_seed_gives_the_same_result() -> None:
    values = noise(5, colour=0.5)
    one, two, other = (
        json.dumps(analysis.aliasing((SHIFTS, values), seed=seed, surrogates=199).rows) for seed in (0, 0, 1)
    )
    assert one == two != other


WRONG = [
    (([0, 1, 2, 4, 5, 6, 7, 8, 9, 10], range(10)), {}, "1 to 2 px apart"),
    ((range(12), [1.0] * 11 + [math.nan]), {}, "must have no gap"),
    ((range(4), range(4)), {}, "at least 10"),
    ((range(30), range(30)), {"periods": (0,)}, "0 px is none"),
    ((range(12), range(12)), {"periods": (32,)}, "no period can be looked for"),
    ((range(30), range(30)), {"cycles": 1}, "cycles is 1"),
    ((range(30), range(30)), {"level": 1.5}, "level is 1.5"),
    ((range(30), range(30)), {"surrogates": 3}, "need at least 19"),
    ((range(30), range(30)), {"harmonics": 0}, "harmonics is 0"),
    ((range(30), range(30)), {"axis": "sideways"}, "axis is 'sideways'"),
    ((range(30), range(30)), {"axis": "grid"}, "needs rows"),
    ([], {}, "of nothing"),
    ("accuracy", {}, "is a str"),
    ([{"dx_px": 0, "dy_px": 0, "loss": 1.0}], {}, "has no 'accuracy'"),
    ([{"dx_px": 0, "dy_px": 0, "accuracy": None}], {}, "is None"),
    ([{"dx_px": 0, "dy_px": 0, "accuracy": 1.0}] * 2, {}, "two rows are of the shift"),
    ([{"dx_px": x, "dy_px": y, "accuracy": 1.0} for x, y in ((0, 0), (1, 0), (0, 1))], {}, "are no grid"),
    ([{"dx_px": x, "dy_px": 0, "accuracy": 1.0} for x in range(9)], {"axis": "diagonal"}, "hold 1 shifts"),
]


@pytest.mark.parametrize(("rows", "settings", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_what_is_wrong_is_said(rows: object, settings: dict[str, object], words: str) -> None:
    if isinstance(rows, tuple):
        rows = tuple(list(part) for part in rows)
    with pytest.raises(analysis.AnalysisError, match=words):
        analysis.aliasing(rows, **settings)  # type: ignore[arg-type]
