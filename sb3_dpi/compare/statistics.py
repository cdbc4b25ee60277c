"""What a set of learning curves says: when a threshold is reached, and the spread over seeds (numpy only).

A curve is a list of evaluations: ``timesteps [k]``, increasing, and ``results [k, episodes]``, the raw episode returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
CONSECUTIVE = 3
"""Evaluations in a row that must be at or above a threshold"""


def steps_to_threshold(timesteps: npt.ArrayLike, results: npt.ArrayLike, threshold: float) -> float:
    """
    Find the environment steps at the first of three consecutive evaluations whose mean return is at or above a threshold.

    :param timesteps: Environment steps of each evaluation, ``[k]``
    :param results: Episode returns of each evaluation, ``[k, episodes]``
    :param threshold: The return to reach
    :return: Environment steps, infinite when the threshold is not reached
    """
    above = np.asarray(results, dtype=np.float64).mean(axis=1) >= threshold
    for first in range(len(above) - CONSECUTIVE + 1):
        if above[first : first + CONSECUTIVE].all():
            return float(np.asarray(timesteps)[first])
    return float("inf")


@dataclass(frozen=True)
class Spread:
    """Mean and spread of one number over seeds; seeds without a finite value count in the median only."""

    mean: float
    """Over the finite values, NaN when there is none"""
    std: float
    """Sample standard deviation of the finite values, 0 when there is one, NaN when there is none"""
    median: float
    """Over all values: infinite when half of the seeds or more did not reach the threshold"""
    n_finite: int
    n_seeds: int


def spread(values: Sequence[float]) -> Spread:
    """
    Summarize one number over seeds.

    :param values: One value per seed, infinite where a threshold was not reached
    :return: Mean, standard deviation, median, and the number of finite values
    """
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    ordered = np.sort(array)
    # Not np.median: the mean of two infinite values warns
    middle = {ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]}
    return Spread(
        mean=float(finite.mean()) if len(finite) else float("nan"),
        std=float(finite.std(ddof=1)) if len(finite) > 1 else (0.0 if len(finite) else float("nan")),
        median=float(sum(middle) / len(middle)),
        n_finite=len(finite),
        n_seeds=len(array),
    )


@dataclass(frozen=True)
class Band:
    """Return against environment steps over several seeds, all arrays ``[k]``."""

    timesteps: FloatArray
    mean: FloatArray
    low: FloatArray
    """The worst seed"""
    high: FloatArray
    """The best seed"""


def curve_band(curves: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> Band:
    """
    Average the curves of several seeds on a common grid, where all of them have evaluations on both sides.

    :param curves: ``(timesteps [k], results [k, episodes])`` of each seed
    :return: Mean and range over the seeds of the mean return
    """
    steps = [np.asarray(timesteps, dtype=np.float64) for timesteps, _ in curves]
    means = [np.asarray(results, dtype=np.float64).mean(axis=1) for _, results in curves]
    grid = np.unique(np.concatenate(steps))
    grid = grid[(grid >= max(s[0] for s in steps)) & (grid <= min(s[-1] for s in steps))]
    values = np.stack([np.interp(grid, s, m) for s, m in zip(steps, means, strict=True)])
    return Band(grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
