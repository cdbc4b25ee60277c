"""What a set of runs says: when a threshold is reached, averages over runs and tasks, and how sure they are (numpy only).

A curve is a list of evaluations: ``timesteps [k]``, increasing, and ``results [k, episodes]``, the raw episode returns.
Scores are one array of runs per task, ``[runs]`` each; the numbers of runs may differ between tasks. Definitions are those
of Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice", and their rliable.

Intervals are percentiles of a bootstrap stratified by task: a resample draws from every task as many of its runs as it has,
with replacement. A resample is stored as how often it drew each run, ``counts [resamples, all runs]``, and each statistic is
a function of counts: one of one everywhere is its estimate. With few runs the intervals are too narrow, with one run a task
they have no width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Scores = Sequence[FloatArray]
"""One array of runs per task, ``[runs]``"""
T = TypeVar("T", float, FloatArray)
CONSECUTIVE = 3
"""Evaluations in a row that must be at or above a threshold"""
RESAMPLES = 2000
"""Of the bootstrap: an end of a 95 % interval then errs by about 0.06 standard errors"""
MAX_CELLS = 2**18
"""Counts held at a time, 2 MB"""


def steps_to_threshold(timesteps: npt.ArrayLike, results: npt.ArrayLike, threshold: float) -> float:
    """
    Find the environment steps at the first of three consecutive evaluations whose mean return is at or above a threshold.

    :param timesteps: Environment steps of each evaluation, ``[k]``; or seconds, to get seconds
    :param results: Episode returns of each evaluation, ``[k, episodes]``
    :param threshold: The return to reach
    :return: Environment steps, infinite when the threshold is not reached
    """
    above = np.asarray(results, dtype=np.float64).mean(axis=1) >= threshold
    for first in range(len(above) - CONSECUTIVE + 1):
        if above[first : first + CONSECUTIVE].all():
            return float(np.asarray(timesteps)[first])
    return float("inf")


def value_at(timesteps: npt.ArrayLike, means: npt.ArrayLike, steps: float) -> float:
    """
    Read a curve between its evaluations.

    :param timesteps: Environment steps of each evaluation, ``[k]``
    :param means: Mean return of each evaluation, ``[k]``
    :param steps: Environment steps to read it at
    :return: Linear interpolation, NaN before the first and after the last evaluation
    """
    return float(np.interp(steps, np.asarray(timesteps), np.asarray(means), left=np.nan, right=np.nan))


def median_steps(steps: Sequence[float]) -> float:
    """
    Take the median over runs of which some never arrived.

    :param steps: Steps to a threshold, one per run, infinite for a run that did not reach it
    :return: The middle one, of an even number the mean of the two in the middle; infinite when one of these is
    :raises ValueError: without runs, or for NaN
    """
    (array,) = _checked([np.asarray(steps, dtype=np.float64)], "steps")
    ordered = np.sort(array)
    return float(0.5 * (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]))


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
    :param baseline_steps: The same of the baseline
    :param baseline_budget: Steps that each run of the baseline had
    :return: The ratio, below 1 when the baseline needs more steps; a bound when one of the medians is censored, NaN when both
        are or when the baseline needs no steps
    :raises ValueError: without runs, or for NaN
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


def _checked(scores: Sequence[npt.ArrayLike], name: str, ndim: int = 1, finite: bool = False) -> list[FloatArray]:
    """
    Refuse what would end as NaN without notice.

    :param ndim: Dimensions of each task's array, the first is that of runs
    :param finite: Whether infinite values are refused too
    :return: One array of floats per task
    """
    arrays = [np.asarray(task, dtype=np.float64) for task in scores]
    if not arrays:
        raise ValueError(f"{name}: no tasks; pass one array of runs per task")
    for index, array in enumerate(arrays):
        where = f"{name} of task {index} (from 0)"
        if array.ndim != ndim or array.size == 0:
            wanted = "[runs]" if ndim == 1 else "[runs, evaluations]"
            raise ValueError(f"{where}: shape {array.shape}, must be {wanted} with one or more of each; leave empty tasks out")
        if np.isnan(array).any():
            raise ValueError(f"{where}: holds NaN; leave out the runs without a value")
        if finite and np.isinf(array).any():
            raise ValueError(f"{where}: holds infinite values, which have no mean; use median_steps for censored runs")
        if array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(f"{where}: {array.shape[1]} evaluations, task 0 has {arrays[0].shape[1]}; use a common grid")
    return arrays


def _point(statistic: Callable[[FloatArray], FloatArray], n_runs: int) -> FloatArray:
    point: FloatArray = statistic(np.ones((1, n_runs)))[0]
    return point


def _bootstrap(
    statistic: Callable[[FloatArray], FloatArray], sizes: Sequence[int], reps: int, level: float, seed: int
) -> Interval[FloatArray]:
    """
    Make the interval of a statistic.

    :param statistic: From counts ``[r, sum(sizes)]`` to its values, ``[r, ...]``
    :param sizes: Number of runs in each stratum
    :return: Arrays ``[...]``
    """
    if reps < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"reps={reps} must be 1 or more, level={level} between 0 and 1, such as 0.95")
    rng = np.random.default_rng(seed)
    chunk = max(1, MAX_CELLS // sum(sizes))
    values = []
    for first in range(0, reps, chunk):
        draws = [rng.multinomial(n, np.full(n, 1.0 / n), size=min(chunk, reps - first)) for n in sizes]
        values.append(statistic(np.concatenate(draws, axis=1).astype(np.float64)))
    low, high = np.quantile(np.concatenate(values), [0.5 - 0.5 * level, 0.5 + 0.5 * level], axis=0)
    return Interval(_point(statistic, sum(sizes)), low, high)


def _scalars(interval: Interval[FloatArray]) -> Interval[float]:
    return Interval(float(interval.point), float(interval.low), float(interval.high))


def _sizes(arrays: Scores) -> list[int]:
    return [len(array) for array in arrays]


def _iqm_statistic(arrays: Scores) -> Callable[[FloatArray], FloatArray]:
    """
    Make the function from counts ``[r, n]`` to interquartile means, ``[r]`` or ``[r, k]``.

    :param arrays: ``[runs]`` or ``[runs, k]`` per task
    """
    pooled = np.concatenate(arrays)
    cut = len(pooled) // 4
    order = np.argsort(pooled, axis=0)
    ordered = np.take_along_axis(pooled, order, axis=0)

    def column(counts: FloatArray, order: npt.NDArray[np.intp], ordered: FloatArray) -> FloatArray:
        # A run drawn c times fills c places of the sorted resample: count those of them that are not cut off
        places = np.cumsum(np.take(counts, order, axis=1), axis=1)
        kept = np.diff(np.clip(places, cut, len(pooled) - cut, out=places), axis=1, prepend=cut)
        return (kept @ ordered) / (len(pooled) - 2 * cut)

    def statistic(counts: FloatArray) -> FloatArray:
        if pooled.ndim == 1:
            return column(counts, order, ordered)
        return np.stack([column(counts, order[:, k], ordered[:, k]) for k in range(pooled.shape[1])], axis=1)

    return statistic


def interquartile_mean(scores: Scores) -> float:
    """
    Average the middle half of all runs of all tasks together; scores of different tasks must be on one scale.

    :param scores: One array of runs per task; a task with more runs than another weighs more
    :return: Mean after a quarter of the runs, rounded down, is cut off at either end
    :raises ValueError: without tasks or runs, or for scores that are not finite
    """
    arrays = _checked(scores, "scores", finite=True)
    return float(_point(_iqm_statistic(arrays), sum(_sizes(arrays))))


def iqm_interval(scores: Scores, reps: int = RESAMPLES, level: float = 0.95, seed: int = 0) -> Interval[float]:
    """
    Make the bootstrap interval of ``interquartile_mean``.

    :param scores: One array of runs per task
    :param reps: Resamples, 1 or more
    :param level: Probability that the interval is to hold, between 0 and 1
    :param seed: Of the resamples: the same seed gives the same interval
    :return: Estimate and interval
    :raises ValueError: without tasks or runs, for scores that are not finite, or for ``reps`` or ``level`` out of range
    """
    arrays = _checked(scores, "scores", finite=True)
    return _scalars(_bootstrap(_iqm_statistic(arrays), _sizes(arrays), reps, level, seed))


def iqm_curve(curves: Scores, reps: int = RESAMPLES, level: float = 0.95, seed: int = 0) -> Interval[FloatArray]:
    """
    Make the interquartile mean and its bootstrap interval along curves; a resample draws whole curves.

    :param curves: One array per task, ``[runs, k]``, all at the same ``k`` points
    :param reps: Resamples, 1 or more
    :param level: Probability that the interval is to hold at each single point, between 0 and 1
    :param seed: Of the resamples: the same seed gives the same interval
    :return: Arrays ``[k]``
    :raises ValueError: as ``iqm_interval``, and for different numbers of points
    """
    arrays = _checked(curves, "curves", ndim=2, finite=True)
    return _bootstrap(_iqm_statistic(arrays), _sizes(arrays), reps, level, seed)


def _improvement_statistic(x: Scores, y: Scores) -> tuple[Callable[[FloatArray], FloatArray], list[int]]:
    """Make the function from counts of all runs, those of ``x`` first, to probabilities ``[r]``, and the strata's sizes."""
    x, y = _checked(x, "x"), _checked(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} tasks, y has {len(y)}: pass those that both have, in the same order")
    sizes = _sizes([*x, *y])
    wins = [(a[:, None] > b) + 0.5 * (a[:, None] == b) for a, b in zip(x, y, strict=True)]

    def statistic(counts: FloatArray) -> FloatArray:
        strata = np.split(counts, np.cumsum(sizes)[:-1], axis=1)
        pairs = zip(strata[: len(x)], wins, strata[len(x) :], strict=True)
        shares = [((drawn_x @ won) * drawn_y).sum(axis=1) / won.size for drawn_x, won, drawn_y in pairs]
        mean: FloatArray = np.mean(shares, axis=0)
        return mean

    return statistic, sizes


def improvement_interval(x: Scores, y: Scores, reps: int = RESAMPLES, level: float = 0.95, seed: int = 0) -> Interval[float]:
    """
    Estimate how likely a run of one algorithm beats a run of another on a task chosen at random: the mean over tasks of the
    share of pairs with x > y, ties counted as half. Both algorithms are resampled, each on its own.

    :param x: One array of runs per task; infinite values are compared as they are
    :param y: The same of the other algorithm, the same tasks in the same order, with any number of runs
    :param reps: Resamples, 1 or more
    :param level: Probability that the interval is to hold, between 0 and 1
    :param seed: Of the resamples: the same seed gives the same interval
    :return: Estimate and interval
    :raises ValueError: without tasks or runs, for NaN, for other numbers of tasks, or for ``reps`` or ``level`` out of range
    """
    statistic, sizes = _improvement_statistic(x, y)
    return _scalars(_bootstrap(statistic, sizes, reps, level, seed))


def _profile_statistic(arrays: Scores, taus: npt.ArrayLike) -> Callable[[FloatArray], FloatArray]:
    """Make the function from counts ``[r, n]`` to profiles ``[r, len(taus)]``."""
    levels = np.asarray(taus, dtype=np.float64)
    if levels.ndim != 1 or levels.size == 0 or np.isnan(levels).any():
        raise ValueError(f"taus: shape {levels.shape}, must be one or more numbers in one dimension, none of them NaN")
    shares = [(array[:, None] > levels) / (len(array) * len(arrays)) for array in arrays]
    weighted = np.concatenate(shares)
    return lambda counts: counts @ weighted


def profile_interval(
    scores: Scores, taus: npt.ArrayLike, reps: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval[FloatArray]:
    """
    Find the share of runs above each of a list of scores: the mean over tasks, every task weighs the same.

    :param scores: One array of runs per task
    :param taus: Scores to compare with, ``[k]``
    :param reps: Resamples, 1 or more
    :param level: Probability that the interval is to hold at each single ``tau``, between 0 and 1
    :param seed: Of the resamples: the same seed gives the same interval
    :return: Arrays ``[k]``
    :raises ValueError: without tasks, runs or taus, for NaN, or for ``reps`` or ``level`` out of range
    """
    arrays = _checked(scores, "scores")
    return _bootstrap(_profile_statistic(arrays, taus), _sizes(arrays), reps, level, seed)
