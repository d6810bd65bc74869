"""Correlations and their intervals: against scipy on numbers that are really repeated, and by coverage."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from analysis.correlating import _kendall, _pearson, _ranks, _signs, correlate, correlation_bounds, draws, ratio_bounds

Values = NDArray[np.float64]


def numbers(seed: int, count: int = 24) -> tuple[Values, Values, NDArray[np.int64]]:
    """With ties, of six clusters of unequal size."""
    drawn = np.random.default_rng(seed)
    x = drawn.integers(0, 9, count).astype(float)
    return x, np.round(x + 3 * drawn.standard_normal(count)), np.sort(drawn.integers(0, 6, count))


def test_against_scipy() -> None:
    x, y, _ = numbers(0)
    found = correlate(x, y)
    assert found["spearman"] == pytest.approx(spearmanr(x, y).statistic)
    assert found["pearson"] == pytest.approx(pearsonr(x, y).statistic)
    assert found["kendall"] == pytest.approx(kendalltau(x, y).statistic)
    assert set(correlate(x, np.ones(24)).values()) == set(correlate(x[:1], y[:1]).values()) == {None}
    assert list(correlate(x, x).values()) == pytest.approx([1, 1, 1])
    curved = correlate(x, np.exp(x))
    assert [curved["spearman"], curved["kendall"]] == pytest.approx([1, 1]) and curved["pearson"] < 0.9


@pytest.mark.parametrize("seed", range(5))
def test_a_draw_is_the_numbers_repeated(seed: int) -> None:
    x, y, clusters = numbers(seed)
    names, which = np.unique(clusters, return_inverse=True)
    counts = next(draws(len(names), seed, 4, 24))
    weights = counts[:, which].astype(float)
    signs = _signs(x, y, which, len(names))
    for place, copies in enumerate(counts):
        repeated = [np.repeat(values, copies[which]) for values in (x, y)]
        ranks = _ranks(x, weights[place : place + 1])[0]
        assert np.repeat(ranks, copies[which]).tolist() == rankdata(repeated[0]).tolist()
        ours = _pearson(_ranks(x, weights), _ranks(y, weights), weights)[place]
        assert ours == pytest.approx(spearmanr(*repeated).statistic)
        assert _pearson(x[None], y[None], weights)[place] == pytest.approx(pearsonr(*repeated).statistic)
        assert _kendall(signs, counts)[place] == pytest.approx(kendalltau(*repeated).statistic)


def test_clusters_widen_the_interval() -> None:
    """Twenty copies of ten numbers are ten witnesses, not two hundred."""
    drawn = np.random.default_rng(0)
    x = drawn.standard_normal(10)
    y = x + drawn.standard_normal(10)
    many = [np.repeat(values, 20) for values in (x, y)]
    together = correlation_bounds(*many, np.repeat(np.arange(10), 20))
    apart = correlation_bounds(*many, np.arange(200))
    single = correlation_bounds(x, y, np.arange(10))
    for kind in ("spearman", "pearson", "kendall"):
        widths = [bounds[kind][1] - bounds[kind][0] for bounds in (together, apart, single)]
        assert widths[0] > 3 * widths[1]
        assert kind == "kendall" or widths[0] == pytest.approx(widths[2], rel=1e-9)  # tau-b knows that copies are tied


def test_signs_of_clusters_in_any_order_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, which = numbers(3)
    mixed = np.random.default_rng(0).permutation(len(x))
    x, y, which = x[mixed], y[mixed], np.unique(which[mixed], return_inverse=True)[1]
    member = which[:, None] == np.arange(which.max() + 1)
    a, b = (np.sign(values[:, None] - values) for values in (x, y))
    wanted = [member.T @ signs @ member for signs in (a * b, abs(a), abs(b))]
    assert np.array_equal(_signs(x, y, which, which.max() + 1), wanted)
    monkeypatch.setattr("analysis.correlating.AT_ONCE", 24 * 5)
    assert np.array_equal(_signs(x, y, which, which.max() + 1), wanted)
    assert np.array_equal(_signs(x, y, np.arange(24), 24), [a * b, abs(a), abs(b)])


def test_kendall_of_many_clusters_is_drawn_by_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.random.default_rng(2)
    x = drawn.standard_normal(600)
    y = x + drawn.standard_normal(600)
    whole = correlation_bounds(x, y, np.arange(600), resamples=300)
    tables = []
    monkeypatch.setattr("analysis.correlating.MOST", 100)
    monkeypatch.setattr("analysis.correlating._signs", lambda *given: tables.append(given[3]) or _signs(*given))
    groups = correlation_bounds(x, y, np.arange(600), resamples=300)
    assert tables == [100] and groups["spearman"] == whole["spearman"]
    widths = [bounds["kendall"][1] - bounds["kendall"][0] for bounds in (groups, whole)]
    assert groups["kendall"] != whole["kendall"] and widths[0] == pytest.approx(widths[1], rel=0.25)
    assert np.mean(groups["kendall"]) == pytest.approx(np.mean(whole["kendall"]), abs=0.01)


@pytest.mark.slow
def test_ten_thousand_own_references_are_no_trouble() -> None:
    drawn = np.random.default_rng(0)
    x = drawn.standard_normal(10_000)
    tracemalloc.start()
    low, high = correlation_bounds(x, x + drawn.standard_normal(10_000), np.arange(10_000))["kendall"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.48 < low < 0.5 < high < 0.52 and peak < 500 * 2**20


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    """Of 100 samples with true correlation 0.6 and cluster effects, about 95 intervals hold it."""
    hits = ratios = 0
    for seed in range(100):
        drawn = np.random.default_rng(seed)
        which = np.repeat(np.arange(40), 5)
        shared = drawn.standard_normal((2, 40))[:, which]
        own = drawn.standard_normal((2, 200))
        x, z = np.sqrt(0.5) * shared + np.sqrt(0.5) * own
        y = 0.6 * x + 0.8 * z
        low, high = correlation_bounds(x, y, which, seed, 200)["pearson"]
        hits += low <= 0.6 <= high
        sums = np.bincount(which, x + 1)
        low, high = ratio_bounds(sums, np.full(40, 5.0), seed, 200)
        ratios += low <= 1 <= high
    assert 88 <= hits <= 100 and 88 <= ratios <= 100


def test_too_few_or_nothing_to_tell() -> None:
    x = np.arange(6.0)
    assert correlation_bounds(x, x, [0, 0, 0, 1, 1, 1])["spearman"] == (None, None)
    assert correlation_bounds(x, np.ones(6), range(6))["kendall"] == (None, None)
    assert ratio_bounds(np.ones(2), np.ones(2)) == (None, None)
    assert ratio_bounds(np.ones(5), np.zeros(5)) == (None, None)


def test_draws_do_not_depend_on_how_many_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, clusters = numbers(1)
    whole = correlation_bounds(x, y, clusters, resamples=50)
    monkeypatch.setattr("analysis.correlating.AT_ONCE", 24 * 7)
    parts = correlation_bounds(x, y, clusters, resamples=50)
    assert all(parts[kind] == pytest.approx(whole[kind]) for kind in whole)
    assert correlation_bounds(x, y, clusters, seed=1, resamples=50) != whole
