"""Intervals cover what they promise to, and tests that look again and again err no more often than they say."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from analysis.intervals import SequentialTest, _means, normal_interval, paired_bootstrap, verdict, wilson
from surgeon.errors import AnalysisError

rng = np.random.default_rng


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (0, 450), (3, 450), (225, 450), (449, 450), (7, 9)])
def test_wilson_in_closed_form(count: int, total: int, confidence: float) -> None:
    """Wilson 1927, equation as in Brown, Cai and DasGupta 2001."""
    z = norm.ppf((1 + confidence) / 2)
    share = count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    assert wilson(count, total, confidence) == pytest.approx(
        (max(0, middle - reach), min(1, middle + reach)), abs=1e-12
    )


def coverage(draw: Any, truth: float, images: int, repeats: int = 400) -> float:
    """Share of 95% intervals that hold the true mean."""
    generator = rng(0)
    samples = [draw(generator, images) for _ in range(repeats)]
    intervals = paired_bootstrap(samples, seed=1, resamples=400)
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def errors(better: float, worse: float) -> Any:
    """Differences of errors: an image is right only untreated, only treated, or alike."""
    return lambda g, n: g.choice([-1.0, 0.0, 1.0], n, p=[better, 1 - better - worse, worse])


@pytest.mark.parametrize("images", [50, 300])
@pytest.mark.parametrize(("better", "worse"), [(0.05, 0.05), (0.0, 0.1), (0.1, 0.4), (0.01, 0.03)])
def test_coverage_of_differences(better: float, worse: float, images: int) -> None:
    assert 0.90 <= coverage(errors(better, worse), worse - better, images) <= 0.995


def test_coverage_of_means_over_draws() -> None:
    assert 0.90 <= coverage(lambda g, n: g.binomial(3, 0.3, n) / 3 - g.binomial(1, 0.1, n), 0.2, 200) <= 0.99


def test_too_narrow_intervals_would_be_seen() -> None:
    """The negative control: intervals of a quarter of the images do not pass for those of all."""
    generator = rng(0)
    samples = [np.repeat(errors(0.05, 0.05)(generator, 75), 4) for _ in range(200)]
    intervals = paired_bootstrap(samples, seed=1, resamples=400)
    assert np.mean([low <= 0 <= high for low, high in intervals]) < 0.85


def test_as_scipy_where_there_are_many_images() -> None:
    values = errors(0.1, 0.3)(rng(3), 1500)
    low, high = paired_bootstrap([values])[0]
    other = bootstrap((values,), np.mean, method="percentile", rng=rng(0), n_resamples=999, vectorized=True)
    interval = other.confidence_interval
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.006)


def test_drawing_values_is_drawing_images() -> None:
    """Means of images drawn with replacement, one by one, spread as those of drawn counts."""
    values, generator = errors(0.1, 0.3)(rng(1), 200), rng(2)
    padded = np.concatenate([values, [1.0, -1.0]])
    one_by_one = padded[generator.integers(0, 202, (4000, 202))].mean(1)
    by_count = _means(values, 0, 4000)
    assert by_count.mean() == pytest.approx(one_by_one.mean(), abs=0.003)
    assert by_count.std() == pytest.approx(one_by_one.std(), rel=0.05)
    assert np.quantile(by_count, (0.025, 0.975)) == pytest.approx(np.quantile(one_by_one, (0.025, 0.975)), abs=0.006)


def test_few_images_that_agree_are_no_certainty() -> None:
    assert [low < 0 < high for low, high in paired_bootstrap([np.zeros(1), np.zeros(20), np.ones(3) * 0])] == [True] * 3
    assert paired_bootstrap([np.ones(5)])[0][0] < 1
    assert verdict(*paired_bootstrap([np.zeros(30)])[0], 0.01) == "undecided"
    assert verdict(*paired_bootstrap([np.zeros(3000)])[0], 0.01) == "robust"


def test_draws_are_shared_seeded_and_of_each_length() -> None:
    values = rng(0).normal(size=90)
    one, two, short, none = paired_bootstrap([values, values, values[:40], np.zeros(0)], seed=5)
    assert one == two != short and all(math.isnan(bound) for bound in none)
    assert paired_bootstrap([values], seed=5) == [one] and paired_bootstrap([values], seed=6) != [one]
    assert paired_bootstrap([values[:40]], seed=5) == [short] and paired_bootstrap([values[::-1]], seed=5) == [one]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((-0.1, 0.01), "robust"), ((0.01, 0.02), "undecided"), ((0.0101, 0.02), "critical"), ((0.0, 0.0), "robust")],
)
def test_verdict(interval: tuple[float, float], expected: str) -> None:
    assert verdict(*interval, 0.01) == expected
    assert verdict(math.nan, math.nan, 0.01) == "undecided"


# looking again and again


def ended(
    draw: Any, bound: float, confidence: float, seed: int, images: int = 2000, batch: int = 20
) -> tuple[Any, int]:
    """Verdict, and how many images it took, looking after every batch."""
    test, values = SequentialTest(bound, confidence), draw(rng(seed), images)
    for start in range(0, images, batch):
        if test.add(values[start : start + batch]) is not None:
            return test.verdict, start + batch
    return None, images


@pytest.mark.parametrize(("better", "worse"), [(0.0, 0.05), (0.2, 0.25), (0.02, 0.07)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_errors_at_the_boundary(confidence: float, better: float, worse: float) -> None:
    """Where the mean lies just at the bound both verdicts are wrong, and each comes with at most that probability."""
    found = [ended(errors(better, worse), worse - better, confidence, seed)[0] for seed in range(100)]
    for wrong in ("critical", "robust"):
        assert np.mean([each == wrong for each in found]) <= 1 - confidence + 0.04


def test_looking_at_an_interval_after_every_batch_errs_often() -> None:
    """The negative control: the same loop with plain intervals is wrong far more often than it says."""
    wrong = 0
    for seed in range(60):
        values = errors(0.2, 0.25)(rng(seed), 1000)
        looks = [values[:end] for end in range(100, 1000, 50)]
        means = [(v.mean() - 1.96 * v.std() / len(v) ** 0.5, v.mean() + 1.96 * v.std() / len(v) ** 0.5) for v in looks]
        wrong += any(low > 0.05 or high < 0.05 for low, high in means)
    assert wrong / 60 > 0.12


@pytest.mark.parametrize(
    ("better", "worse", "expected", "most"),
    [(0.0, 0.6, "critical", 40), (0.02, 0.25, "critical", 150), (0.0, 0.0, "robust", 120), (0.01, 0.01, "robust", 400)],
)
def test_power_away_from_the_boundary(better: float, worse: float, expected: str, most: int) -> None:
    found = [ended(errors(better, worse), 0.05, 0.95, seed) for seed in range(40)]
    assert np.mean([each == expected for each, _ in found]) >= 0.97
    assert np.median([images for _, images in found]) <= most


@pytest.mark.parametrize("bound", [0.0, 0.01, 0.2, 0.99])
def test_any_values_are_taken(bound: float) -> None:
    """The capital never becomes negative or nothing, whatever comes."""
    for value in (-1.0, 0.0, bound, 1.0, 0.5):
        test = SequentialTest(bound, 0.95)
        for _ in range(50):
            test.add(np.full(7, value))
        assert all(math.isfinite(capital) for capital in test.capital)
        if abs(value - bound) > 0.04:
            assert test.verdict == ("critical" if value > bound else "robust")
        if value == bound:
            assert test.verdict is None


def test_a_verdict_stays() -> None:
    test = SequentialTest(0.05, 0.95)
    assert test.add(np.ones(50)) == "critical"
    assert test.add(-np.ones(500)) == "critical" and test.count == 550


def test_batches_do_not_matter_much() -> None:
    values = errors(0.0, 0.3)(rng(0), 400)
    used = [next(n for n in range(b, 401, b) if _after(values, n, b) is not None) for b in (1, 10, 50)]
    assert max(used) - min(used) <= 60


def _after(values: Any, images: int, batch: int) -> Any:
    test = SequentialTest(0.05, 0.95)
    for start in range(0, images, batch):
        test.add(values[start : start + batch])
    return test.verdict


@pytest.mark.parametrize("confidence", [0.2, 1.0, 1.5, -1])
def test_a_confidence_that_is_none(confidence: float) -> None:
    with pytest.raises(AnalysisError, match=r"give the confidence of a verdict, 0.5 to under 1"):
        SequentialTest(0.05, confidence)


def test_normal_interval() -> None:
    low, high = normal_interval(0.5, np.array([0.4, 0.5, 0.6]), 0.95)
    assert (low, high) == pytest.approx((0.5 - 1.959964 * 0.1, 0.5 + 1.959964 * 0.1), abs=1e-6)
