"""Discounted sums along time, and the discount factor that a time limit calls for.

Problem: y_i = x_i + factor y_{i+1} within an episode, y_i = x_i at its end.

Shapes: ``n`` steps in the order of time, several episodes behind each other.
"""

import numpy as np
from scipy.signal import lfilter

from sb3_dpi.trajopt.types import BoolArray, FloatArray


def discounted_sums(values: FloatArray, ends: BoolArray, factor: float) -> FloatArray:
    """
    Add up what follows each step, discounted.

    :param values: x, ``[n]``
    :param ends: whether a step is the last of its episode, ``[n]``; the last row counts as one
    :param factor: of what comes a step later
    :return: y, ``[n]``
    """
    sums = np.empty(len(values))
    start = 0
    for last in np.unique(np.append(np.flatnonzero(ends), len(values) - 1)):
        sums[start : last + 1] = lfilter([1.0], [1.0, -factor], values[start : last + 1][::-1])[::-1]
        start = int(last) + 1
    return sums


def discount_for_time_limit(steps: int, longest: float = 0.99, share: float = 0.4) -> float:
    """
    A discount factor that looks no further than episodes go.

    Behind a time limit values are foretold and not realised: a critic that looks far beyond short episodes learns little else.

    :param steps: of the longest episode that a time limit ended, 0 where none was met
    :param longest: the largest discount factor
    :param share: of those steps, the horizon 1 / (1 - gamma)
    :return: gamma
    """
    return min(longest, 1.0 - 1.0 / max(share * steps, 2.0)) if steps > 0 else longest
