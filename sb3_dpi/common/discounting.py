"""Discounted sums, and a discount factor that fits a time limit."""

import numpy as np

from sb3_dpi.trajopt.types import FloatArray


def discount_for_time_limit(steps: int, longest: float, share: float = 0.4) -> float:
    """
    A discount factor that looks no further than episodes go: values behind a time limit are foretold, not seen.

    :param steps: of an episode that a time limit ended, 0 where none was met
    :param longest: the largest discount factor
    :param share: of those steps, the horizon ``1 / (1 - gamma)``
    :return: gamma
    """
    return min(longest, 1.0 - 1.0 / max(share * steps, 2.0)) if steps > 0 else longest


def discounted_sums(values: FloatArray, ends: np.ndarray, factor: float) -> FloatArray:
    """
    Sum what is still to come of an episode: ``x_t + factor x_{t+1} + ...``.

    :param values: x, time in front, ``[T, ...]``
    :param ends: true at the last step of an episode, broadcast to the same shape
    :param factor: discount of a step
    :return: of the same shape
    """
    sums, following = np.empty(values.shape), np.zeros(values.shape[1:])
    for t in reversed(range(len(values))):
        following = values[t] + factor * np.where(ends[t], 0.0, following)
        sums[t] = following
    return sums
