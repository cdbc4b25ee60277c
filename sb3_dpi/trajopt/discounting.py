"""Discounted sums along time, and the discount factor that a time limit calls for.

Problem: y_t = x_t + factor y_{t+1} within an episode, y_t = x_t at its end.

Shapes: ``T`` steps in the order of time, several episodes behind each other; further axes are summed side by side.
"""

import numpy as np

from sb3_dpi.trajopt.types import BoolArray, FloatArray


def discounted_sums(values: FloatArray, ends: BoolArray, factor: float) -> FloatArray:
    """
    Add up what follows each step, discounted.

    :param values: x, ``[T, ...]``
    :param ends: whether a step is the last of its episode, broadcast to the same shape; the last row counts as one
    :param factor: of what comes a step later
    :return: y, of the same shape
    """
    sums, following = np.empty(values.shape), np.zeros(values.shape[1:])
    onwards = np.where(ends, 0.0, factor)
    for t in range(len(values) - 1, -1, -1):
        following = sums[t] = values[t] + onwards[t] * following
    return sums


def lambda_returns(rewards: FloatArray, values: FloatArray, ends: BoolArray, gamma: float, trace: float) -> FloatArray:
    """
    TD(lambda) returns, y_t = r_t + gamma ((1 - lambda) V_t + lambda y_{t+1}), closed by V where nothing follows.

    :param rewards: r, ``[T, ...]``
    :param values: V of what each step led to, zero where an episode ended for good, of the same shape
    :param ends: whether a step is the last of its stretch, of the same shape; the last row counts as one
    :param gamma: discount factor
    :param trace: lambda, from 0 to 1
    :return: y, of the same shape
    """
    closing = np.where(ends, values, (1.0 - trace) * values)
    return discounted_sums(rewards + gamma * closing, ends, gamma * trace)


def discount_for_time_limit(steps: int, longest: float = 0.99, share: float = 0.4) -> float:
    """
    A discount factor that looks no further than episodes go.

    Behind a time limit values are predicted, not realised: a critic that looks far beyond short episodes learns little else.

    :param steps: of the longest episode that a time limit ended, 0 where none was met
    :param longest: the largest discount factor
    :param share: of those steps, the horizon 1 / (1 - gamma)
    :return: gamma
    """
    return min(longest, 1.0 - 1.0 / max(share * steps, 2.0)) if steps > 0 else longest
