"""What a set of runs says: when a threshold is reached, averages over runs and tasks, and how sure they are.

A curve is a list of evaluations: ``timesteps [k]``, increasing, and ``results [k, episodes]``, the raw episode returns.
Scores are one array of runs per task, ``[runs]`` each; the numbers of runs may differ between tasks. Definitions are those
of Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice", and their rliable.

Intervals are 95 % percentiles of a bootstrap stratified by task: a resample draws from every task as many of its runs as it
has, with replacement. With few runs the intervals are too narrow, with one run a task they have no width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.stats import trim_mean

FloatArray = npt.NDArray[np.float64]
Scores = Sequence[FloatArray]
"""One array of runs per task, ``[runs]``"""
T = TypeVar("T", float, FloatArray)
CONSECUTIVE = 3
"""Evaluations in a row that must be at or above a threshold"""
RESAMPLES = 2000
"""Of the bootstrap: an end of an interval then errs by about 0.06 standard errors"""


def steps_to_threshold(timesteps: npt.ArrayLike, results: npt.ArrayLike, threshold: float) -> float:
    """
    Find the environment steps at the first of three consecutive evaluations whose mean return is at or above a threshold.

    :param timesteps: Environment steps of each evaluation, ``[k]``; or seconds, to get seconds
    :param results: Episode returns of each evaluation, ``[k, episodes]``
    :return: Environment steps, infinite when the threshold is not reached
    """
    above = np.asarray(results, dtype=np.float64).mean(axis=1) >= threshold
    for first in range(len(above) - CONSECUTIVE + 1):
        if above[first : first + CONSECUTIVE].all():
            return float(np.asarray(timesteps)[first])
    return float("inf")


def value_at(timesteps: npt.ArrayLike, means: npt.ArrayLike, steps: float) -> float:
    """Read a curve between its evaluations; NaN before the first and after the last."""
    return float(np.interp(steps, np.asarray(timesteps), np.asarray(means), left=np.nan, right=np.nan))


def median_steps(steps: Sequence[float]) -> float:
    """Take the median over runs of which some, infinite, never arrived."""
    return float(np.median(_checked([steps], "steps")[0]))


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians, or what is known of it."""

    value: float
    """NaN when nothing is known"""
    bound: str = ""
    """``<=`` or ``>=`` when ``value`` is a bound, else empty"""

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "-"
        text = f"{self.value:.2g}" if self.value < 10 else f"{self.value:,.0f}"
        return f"{self.bound} {text}".lstrip()


def _least_median(steps: Sequence[float], budget: float) -> tuple[float, bool]:
    """:return: the median or, where it is censored, what it is at least, and whether it is censored"""
    median = median_steps(steps)
    if np.isfinite(median):
        return median, False
    # One of the two in the middle may be known: the whole budget would then be too much
    return median_steps([budget if np.isinf(value) else value for value in steps]), True


def ratio_to(steps: Sequence[float], budget: float, baseline_steps: Sequence[float], baseline_budget: float) -> Ratio:
    """
    Compare steps to a threshold with a baseline's, by the medians over runs.

    A run that did not reach the threshold would have needed more than its budget: a median that falls on one is at least the
    median with budgets in their place.

    :param steps: Steps to the threshold, one per run, infinite for a run that did not reach it
    :param budget: Steps that each of these runs had
    :return: The ratio, below 1 when the baseline needs more steps; a bound when one of the medians is censored, NaN when both
        are or when the baseline needs no steps
    """
    own, own_censored = _least_median(steps, budget)
    baseline, baseline_censored = _least_median(baseline_steps, baseline_budget)
    if (own_censored and baseline_censored) or baseline == 0:
        return Ratio(float("nan"))
    return Ratio(own / baseline, "<=" if baseline_censored else ">=" if own_censored else "")


@dataclass(frozen=True)
class Interval(Generic[T]):
    """An estimate and its bootstrap interval: three floats, or three arrays of one shape."""

    point: T
    low: T
    high: T


def _checked(scores: Sequence[npt.ArrayLike], name: str, finite: bool = False) -> list[FloatArray]:
    """Refuse what would end as NaN without notice."""
    arrays = [np.asarray(task, dtype=np.float64) for task in scores]
    if not arrays:
        raise ValueError(f"{name}: no tasks; pass one array of runs per task")
    for index, array in enumerate(arrays):
        where = f"{name} of task {index} (from 0)"
        if array.ndim != 1 or array.size == 0:
            raise ValueError(f"{where}: shape {array.shape}, must be [runs] with one or more; leave empty tasks out")
        if np.isnan(array).any():
            raise ValueError(f"{where}: holds NaN; leave out the runs without a value")
        if finite and np.isinf(array).any():
            raise ValueError(f"{where}: holds infinite values, which have no mean; use median_steps for censored runs")
    return arrays


def _bootstrap(
    samples: Sequence[npt.NDArray[Any]],
    statistic: Callable[[list[npt.NDArray[Any]]], FloatArray],
    reps: int,
    seed: int,
) -> Interval[FloatArray]:
    """
    Make the interval of a statistic.

    ``scipy.stats.bootstrap`` would refuse tasks with one run.

    :param samples: The runs of each stratum, ``[runs, ...]``
    :param statistic: From resamples of each, ``[reps, runs, ...]``, to values ``[reps, ...]``
    """
    rng = np.random.default_rng(seed)
    resamples = [sample[rng.integers(len(sample), size=(reps, len(sample)))] for sample in samples]
    low, high = np.quantile(statistic(resamples), [0.025, 0.975], axis=0)
    return Interval(statistic([sample[None] for sample in samples])[0], low, high)


def _scalars(interval: Interval[FloatArray]) -> Interval[float]:
    return Interval(float(interval.point), float(interval.low), float(interval.high))


def _iqm(samples: list[npt.NDArray[Any]]) -> FloatArray:
    return np.asarray(trim_mean(np.concatenate(samples, axis=-1), 0.25, axis=-1), dtype=np.float64)


def interquartile_mean(scores: Scores) -> float:
    """
    Average the middle half of all runs of all tasks together; scores of different tasks must be on one scale.

    :param scores: One array of runs per task; a task with more runs than another weighs more
    :return: Mean after a quarter of the runs, rounded down, is cut off at either end
    """
    return float(_iqm([*_checked(scores, "scores", finite=True)]))


def iqm_interval(scores: Scores, reps: int = RESAMPLES, seed: int = 0) -> Interval[float]:
    """Make the interval of ``interquartile_mean``; the seed of the resamples gives the same interval again."""
    return _scalars(_bootstrap(_checked(scores, "scores", finite=True), _iqm, reps, seed))


def iqm_curve(curves: Scores, reps: int = RESAMPLES, seed: int = 0) -> Interval[FloatArray]:
    """
    Make the interquartile mean and its interval at each point of curves, ``[runs, k]`` per task.

    A resample draws whole curves: the same seed draws the same runs at each point.
    """
    intervals = [iqm_interval(list(points), reps, seed) for points in zip(*(task.T for task in curves), strict=True)]
    point, low, high = np.array([[value.point, value.low, value.high] for value in intervals]).T
    return Interval(point, low, high)


def improvement_interval(x: Scores, y: Scores, reps: int = RESAMPLES, seed: int = 0) -> Interval[float]:
    """
    Estimate how likely a run of one algorithm beats a run of another on a task chosen at random: the mean over tasks of the
    share of pairs with x > y, ties counted as half. Both algorithms are resampled, each on its own.

    :param x: One array of runs per task; infinite values are compared as they are
    :param y: The same of the other algorithm, the same tasks in the same order, with any number of runs
    """
    x, y = _checked(x, "x"), _checked(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} tasks, y has {len(y)}: pass those that both have, in the same order")

    def statistic(samples: list[npt.NDArray[Any]]) -> FloatArray:
        pairs = zip(samples[: len(x)], samples[len(x) :], strict=True)
        compared = [(a[:, :, None], b[:, None, :]) for a, b in pairs]
        mean: FloatArray = np.mean([((a > b) + 0.5 * (a == b)).mean(axis=(1, 2)) for a, b in compared], axis=0)
        return mean

    return _scalars(_bootstrap([*x, *y], statistic, reps, seed))


def profile_interval(scores: Scores, taus: npt.ArrayLike, reps: int = RESAMPLES, seed: int = 0) -> Interval[FloatArray]:
    """
    Find the share of runs above each of a list of scores: the mean over tasks, every task weighs the same.

    :param scores: One array of runs per task
    :param taus: Scores to compare with, ``[k]``
    :return: Arrays ``[k]``
    """
    (levels,) = _checked([taus], "taus")
    above = [array[:, None] > levels for array in _checked(scores, "scores")]
    return _bootstrap(above, lambda samples: np.mean([sample.mean(axis=1) for sample in samples], axis=0), reps, seed)
