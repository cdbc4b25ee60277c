"""What a state was worth: the target of the value network."""

import math

import numpy as np

from sb3_dpi.trajopt.discounting import lambda_returns
from sb3_dpi.trajopt.types import BoolArray, FloatArray

NEGLIGIBLE = 1e-3
"""Weight below which later steps do not change a target any more."""


def value_targets(
    rewards: FloatArray,
    search_values: FloatArray,
    after: FloatArray,
    ends: BoolArray,
    gamma: float,
    gae_lambda: float,
) -> FloatArray:
    """
    Returns of steps in the order of time, closed by what searches said of later states.

        G_t = r_t + gamma ((1 - lambda) v_{t+1} + lambda G_{t+1}),

    v the value that the search found in a state: with lambda 1 the real return, with 0 the next search's value.

    :param rewards: ``[T, n]`` of n environments
    :param search_values: v of the states in which the steps were taken, ``[T, n]``
    :param after: of the states behind steps that ``ends`` tells of, zero where the episode is over, ``[T, n]``
    :param ends: behind which steps there is no next row of the same episode, ``[T, n]``; the last row counts as one
    :param gamma: discount factor
    :param gae_lambda: lambda, from 0 to 1
    :return: G, ``[T, n]``
    """
    closes = np.concatenate([ends[:-1], np.ones_like(ends[-1:])])
    following = np.concatenate([search_values[1:], after[-1:]])
    return lambda_returns(rewards, np.where(closes, after, following), closes, gamma, gae_lambda)


def reach(gamma: float, gae_lambda: float, limit: int) -> int:
    """
    Find how far back new steps change targets.

    :param gamma: discount factor
    :param gae_lambda: lambda
    :param limit: rows that there are
    :return: rows, at most ``limit``
    """
    factor = gamma * gae_lambda
    if factor >= 1.0:
        return limit
    return min(limit, math.ceil(math.log(NEGLIGIBLE) / math.log(factor)) if factor > 0.0 else 1)
