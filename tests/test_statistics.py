"""The statistics of a comparison against closed forms, brute force and rliable."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from sb3_dpi.compare.statistics import (
    Interval,
    Ratio,
    improvement_interval,
    interquartile_mean,
    iqm_curve,
    iqm_interval,
    median_steps,
    profile_interval,
    ratio_to,
    steps_to_threshold,
    value_at,
)

INF = math.inf
TAUS = np.linspace(-1.5, 4.5, 13)


def probability_of_improvement(x: Any, y: Any) -> float:
    return improvement_interval(x, y, reps=1).point


def performance_profile(scores: Any, taus: Any) -> np.ndarray:
    return profile_interval(scores, taus, reps=1).point


def normal_scores(sizes: Sequence[int], seed: int, shift: float = 0.0) -> list[np.ndarray]:
    """Tasks far apart: a bootstrap that mixes them is too wide."""
    rng = np.random.default_rng(seed)
    return [rng.normal(shift + 1.5 * task, 1.0 + 0.5 * task, n) for task, n in enumerate(sizes)]


# Steps and curves


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([0, 6, 6, 6, 0], 200.0),
        ([6, 6, 0, 6, 6, 6], 400.0),
        ([5, 5, 5], 100.0),
        ([6, 6], INF),
        ([6, 6, 4.99, 6, 6], INF),
        ([], INF),
    ],
)
def test_a_threshold_is_reached_when_it_is_held_for_three_evaluations(means: list[float], expected: float) -> None:
    results = np.add.outer(np.array(means, dtype=float), [-3.0, 3.0])
    assert steps_to_threshold(100 * np.arange(1, len(means) + 1), results, 5.0) == expected


def test_a_curve_is_read_between_its_evaluations_only() -> None:
    curve = [100, 200, 400], [0.0, 10.0, 30.0]
    assert [value_at(*curve, steps) for steps in (100, 150, 200, 250, 400)] == [0.0, 5.0, 10.0, 15.0, 30.0]
    assert math.isnan(value_at(*curve, 99.9)) and math.isnan(value_at(*curve, 400.1))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([3.0], 3.0),
        ([INF], INF),
        ([9.0, 1.0, 5.0], 5.0),
        ([4.0, 1.0, 2.0, 9.0], 3.0),
        ([INF, 1.0, 5.0], 5.0),
        ([INF, 1.0, INF], INF),
        ([INF, 1.0, 2.0, 4.0], 3.0),
        ([INF, 1.0, INF, 4.0], INF),
        ([INF, INF], INF),
    ],
)
def test_the_median_counts_censored_runs(steps: list[float], expected: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert median_steps(steps) == expected


@pytest.mark.parametrize(
    ("steps", "baseline_steps", "expected", "text"),
    [
        ([10.0, 20.0, 30.0], [100.0, 200.0, 300.0], Ratio(0.1), "0.1"),
        ([11.0], [100.0], Ratio(0.11), "0.11"),
        # Censored runs that the medians do not fall on, one run of which ended after its budget
        ([10.0, 1200.0, INF], [100.0, 100.0, INF], Ratio(12.0), "12"),
        ([28.0, 28.0, INF], [INF, 300.0, INF], Ratio(0.07, "<="), "<= 0.07"),
        # The median of the baseline is above (100 + 400) / 2, not above 400
        ([10.0], [INF, 100.0], Ratio(0.04, "<="), "<= 0.04"),
        ([INF, INF, 5.0], [100.0], Ratio(10.0, ">="), ">= 10"),
        ([INF, 500.0], [100.0], Ratio(7.5, ">="), ">= 7.5"),
        ([INF], [0.5], Ratio(2000.0, ">="), ">= 2,000"),
        ([INF], [INF], Ratio(math.nan), "-"),
        ([1.0], [0.0], Ratio(math.nan), "-"),
    ],
)
def test_ratio_to_a_baseline(steps: list[float], baseline_steps: list[float], expected: Ratio, text: str) -> None:
    ratio = ratio_to(steps, 1000.0, baseline_steps, 400.0)
    assert ratio.value == pytest.approx(expected.value, nan_ok=True) and ratio.bound == expected.bound
    assert str(ratio) == text


# Estimates in closed form


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[7.0]], 7.0),
        ([[1.0, 2.0, 6.0]], 3.0),
        ([[-100.0, 2.0, 4.0, 1e9]], 3.0),
        ([[0.0, 1.0, 2.0, 3.0, 100.0]], 2.0),
        # 8 runs of two tasks: 2 are cut off at either end, whatever their task, 3, 5, 6, 7 stay
        ([[8.0, 1.0, 7.0, 2.0, 6.0], [3.0, 5.0, 400.0]], 5.25),
    ],
)
def test_interquartile_mean_in_numbers(scores: list[list[float]], expected: float) -> None:
    arrays = [np.array(task) for task in scores]
    assert interquartile_mean(arrays) == pytest.approx(expected, rel=1e-12)
    assert iqm_interval(arrays, reps=10).point == interquartile_mean(arrays)


def test_probability_of_improvement_counts_ties_as_half() -> None:
    x, y = np.array([1.0, 2.0, 2.0]), np.array([2.0, 0.0])
    # Pairs with 2: lost, tied, tied; pairs with 0: all won
    assert probability_of_improvement([x], [y]) == pytest.approx(4 / 6)
    assert probability_of_improvement([y], [x]) == pytest.approx(2 / 6)
    assert probability_of_improvement([x], [x]) == 0.5
    assert probability_of_improvement([x + 5], [y]) == 1.0
    # Every task weighs the same, however many runs it has
    assert probability_of_improvement([x, np.ones(50)], [y, np.zeros(1)]) == pytest.approx((4 / 6 + 1) / 2)
    # Censored runs: more steps are above less, two that never arrived are equal
    assert probability_of_improvement([np.array([INF, 1.0])], [np.array([INF, 5.0])]) == pytest.approx((0.5 + 1) / 4)


def test_performance_profile_is_the_share_above() -> None:
    scores = [np.array([0.0, 1.0, 1.0, 2.0]), np.array([1.5])]
    # The first task's shares are 1, 3/4, 1/4, 0: a score equal to tau is not above it
    expected = [1.0, (0.75 + 1) / 2, (0.25 + 1) / 2, 0.0]
    np.testing.assert_allclose(performance_profile(scores, [-1.0, 0.0, 1.0, 2.0]), expected, rtol=1e-12)
    assert performance_profile([np.array([INF, -INF])], [0.0]) == [0.5]


def test_curve_of_interquartile_means_is_one_at_each_point() -> None:
    rng = np.random.default_rng(0)
    curves = [rng.normal(task, 1.0, (n, 6)) for task, n in enumerate((5, 9, 4))]
    interval = iqm_curve(curves, reps=50)
    expected = [interquartile_mean([task[:, k] for task in curves]) for k in range(6)]
    np.testing.assert_allclose(interval.point, expected, rtol=1e-12)
    assert interval.low.shape == interval.high.shape == (6,)
    assert np.all(interval.low <= interval.point) and np.all(interval.point <= interval.high)


# Intervals


def test_resamples_are_stratified_by_task() -> None:
    scores = [np.zeros(4), np.ones(12), np.full(6, 2.0)]
    interval = iqm_interval(scores)
    assert interval.low == interval.point == interval.high
    profile = profile_interval(scores, [0.5, 1.5])
    np.testing.assert_allclose([profile.low, profile.high], [[2 / 3, 1 / 3]] * 2, rtol=1e-12)


def test_interval_of_a_share_is_binomial() -> None:
    """The share above in a resample of n is binomial: its quantiles are known, up to one run for the resamples' noise."""
    n, above = 60, 21
    interval = profile_interval([np.r_[np.ones(above), np.zeros(n - above)]], [0.5])
    expected = binom.ppf([0.025, 0.975], n, above / n) / n
    assert interval.point == pytest.approx(above / n)
    np.testing.assert_allclose([interval.low[0], interval.high[0]], expected, atol=1 / n + 1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of a normal distribution the interquartile mean is the mean.

    With 40 runs a percentile interval holds it somewhat less often than 95 %, about 93 %; the noise of 400 trials is 1.3 %.
    """
    rng, trials = np.random.default_rng(0), 400
    intervals = [iqm_interval([rng.normal(3.0, 2.0, 40)], reps=200, seed=trial) for trial in range(trials)]
    covered = np.mean([interval.low <= 3.0 <= interval.high for interval in intervals])
    assert 0.89 <= covered <= 0.975
    missed = np.mean([interval.high < 3.0 for interval in intervals])
    assert 0.01 <= missed <= 0.07


def test_the_seed_decides() -> None:
    x, y = normal_scores((7, 12), 1), normal_scores((9, 5), 2)
    for interval in (
        lambda seed: iqm_interval(x, seed=seed),
        lambda seed: improvement_interval(x, y, seed=seed),
        lambda seed: profile_interval(x, TAUS, seed=seed),
        lambda seed: iqm_curve([np.c_[task, 2 * task] for task in x], seed=seed),
    ):
        first, again, other = (np.array([each.low, each.high]) for each in map(interval, (3, 3, 4)))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


# Refusals


NAN, EMPTY = np.array([1.0, math.nan]), np.array([])


@pytest.mark.parametrize("function", [interquartile_mean, iqm_interval, lambda s: performance_profile(s, [0.0])])
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "no tasks"),
        ([np.ones(2), EMPTY], r"task 1 .*shape \(0,\)"),
        ([np.ones(2), np.ones((2, 2))], r"task 1 .*\[runs\]"),
        ([NAN, np.ones(2)], "task 0 .*NaN"),
    ],
)
def test_scores_that_cannot_be_averaged_are_refused(function: Callable[..., Any], scores: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(scores)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean([np.array([1.0, INF])]), "infinite"),
        (lambda: probability_of_improvement([np.ones(2)], [NAN]), "y of task 0 .*NaN"),
        (lambda: probability_of_improvement([EMPTY], [np.ones(2)]), "x of task 0"),
        (lambda: improvement_interval([np.ones(2)] * 2, [np.ones(2)]), "x has 2 tasks, y has 1"),
        (lambda: iqm_curve([np.array([[1.0, math.nan]])]), "NaN"),
        (lambda: profile_interval([np.ones(2)], []), "taus"),
        (lambda: performance_profile([np.ones(2)], [math.nan]), "taus"),
        (lambda: iqm_curve([np.ones((2, 3)), np.ones((2, 4))]), "zip"),
        (lambda: median_steps([]), "steps"),
        (lambda: ratio_to([1.0], 10, [math.nan], 10), "NaN"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# rliable, where it is installed


REPS = 20_000


def assert_same_interval(ours: Interval[Any], theirs: np.ndarray, reps: int, atom: float = 0.0) -> None:
    """
    An end of a 95 % interval from ``reps`` resamples errs by sqrt(0.025 * 0.975 / reps) / phi(1.96) = 2.67 / sqrt(reps)
    standard errors where resamples are about normal, and its width is 3.92 of these: four times that is allowed, and an atom
    where the statistic takes few values. Ours has many more resamples, its own error is left out.
    """
    width = np.asarray(ours.high) - np.asarray(ours.low)
    allowed = 4 * 2.67 / math.sqrt(reps) * width / 3.92 + atom + 1e-9
    for end, other in zip((ours.low, ours.high), theirs, strict=True):
        assert np.all(np.abs(end - other) <= allowed), (end, other, allowed)


@pytest.fixture
def rliable() -> Any:
    pytest.importorskip("rliable")
    from rliable import library, metrics

    np.random.seed(0)
    return library, metrics


def test_interquartile_mean_as_rliable(rliable: Any) -> None:
    library, metrics = rliable
    for sizes in ((1,), (2, 2), (5,) * 3, (7,) * 5, (10,) * 8):
        scores = normal_scores(sizes, len(sizes))
        assert interquartile_mean(scores) == pytest.approx(metrics.aggregate_iqm(np.stack(scores, axis=1)), abs=1e-9)
    scores = normal_scores((10,) * 4, 0)
    table = {"x": np.stack(scores, axis=1)}
    _, intervals = library.get_interval_estimates(table, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=1000)
    assert_same_interval(iqm_interval(scores, reps=REPS), intervals["x"][:, 0], 1000)


def test_curves_as_rliable(rliable: Any) -> None:
    library, metrics = rliable
    rng = np.random.default_rng(5)
    curves = [np.cumsum(rng.normal(task, 1.0, (8, 5)), axis=1) for task in range(3)]

    def sample_efficiency(scores: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(scores[..., k]) for k in range(scores.shape[-1])])

    points, intervals = library.get_interval_estimates({"x": np.stack(curves, axis=1)}, sample_efficiency, reps=600)
    ours = iqm_curve(curves, reps=REPS)
    np.testing.assert_allclose(ours.point, points["x"], rtol=0, atol=1e-9)
    assert_same_interval(ours, intervals["x"], 600)


def test_profiles_as_rliable(rliable: Any) -> None:
    library, _ = rliable
    scores = [np.round(task, 1) for task in normal_scores((9,) * 4, 3)]
    taus = np.append(TAUS, scores[0][:2])
    points, intervals = library.create_performance_profile({"x": np.stack(scores, axis=1)}, taus, reps=1000)
    np.testing.assert_allclose(performance_profile(scores, taus), points["x"], rtol=0, atol=1e-9)
    assert_same_interval(profile_interval(scores, taus, reps=REPS), intervals["x"], 1000, atom=1 / 36)


def test_probability_of_improvement_as_rliable(rliable: Any) -> None:
    library, metrics = rliable
    # Rounded, for ties; other numbers of runs for either algorithm; one task on which both are the same
    x = [*(np.round(task, 1) for task in normal_scores((8, 8), 1, shift=0.4)), np.arange(8.0)]
    y = [*(np.round(task, 1) for task in normal_scores((6, 6), 2)), np.arange(6.0)]
    tables = np.stack(x, axis=1), np.stack(y, axis=1)
    assert probability_of_improvement(x, y) == pytest.approx(metrics.probability_of_improvement(*tables), abs=1e-9)
    assert probability_of_improvement(x, x) == metrics.probability_of_improvement(tables[0], tables[0]) == 0.5

    def improvement(*pair: np.ndarray) -> np.ndarray:
        return np.array([metrics.probability_of_improvement(*pair)])

    _, intervals = library.get_interval_estimates({"x,y": tables}, improvement, reps=250)
    assert_same_interval(improvement_interval(x, y, reps=REPS), intervals["x,y"][:, 0], 250, atom=0.5 / (48 * 3))
