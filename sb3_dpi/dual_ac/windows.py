"""Windows of k steps over a rollout: sums of rewards and of temporal differences that end where an episode ends.

A rollout holds T steps of N environments, every array ``[T, N]`` with time in front, as in Stable-Baselines3's RolloutBuffer.
``ends`` marks the last step of an episode, and that of the rollout. The observations are numbered: row ``t * N + n`` is that
before step t in environment n, the rows behind these are what followed the steps at which an episode was cut by a time limit
or by the rollout's end. ``following`` names the row that follows a step, ``NOTHING`` after a death: its value is zero.
"""

import numpy as np

from sb3_dpi.trajopt.discounting import discounted_sums
from sb3_dpi.trajopt.types import FloatArray, IntArray

NOTHING = -1
"""The row that follows a death."""


def following_rows(terminated: np.ndarray, truncated: np.ndarray) -> IntArray:
    """Number what follows each step.

    :param terminated: the episode ended with this step by death, ``[T, N]``
    :param truncated: it was cut with this step by a time limit, ``[T, N]``
    :return: ``[T, N]``, ``NOTHING`` after a death; rows from ``T * N`` on are those of the cut steps in the order of time,
        then of environments, where the rollout's end cuts every environment whose episode has not just ended
    """
    T, N = terminated.shape
    rows = np.arange(N, (T + 1) * N).reshape(T, N)
    cut = truncated.copy()
    cut[-1] |= ~terminated[-1]
    rows[cut] = T * N + np.arange(np.count_nonzero(cut))
    rows[terminated] = NOTHING
    return rows


def successor_values(values: FloatArray, following: IntArray) -> FloatArray:
    """Look up the values of what follows.

    :param values: of all rows, ``[n_rows]``
    :param following: ``[T, N]``
    :return: ``[T, N]``, zero after a death
    """
    return np.where(following == NOTHING, 0.0, values[following])


def window_lengths(ends: np.ndarray, window_length: int) -> IntArray:
    """Count the steps of the window that starts with each step.

    :param ends: ``[T, N]``, true at ``T - 1``
    :param window_length: the most steps of a window
    :return: ``[T, N]``, from 1 to ``window_length``
    """
    lengths: IntArray = np.minimum(discounted_sums(np.ones(ends.shape), ends, 1.0).astype(int), window_length)
    return lengths


def at_last_step(x: np.ndarray, lengths: IntArray) -> np.ndarray:
    """Look up what belongs to the last step of each window.

    :param x: ``[T, N]``
    :param lengths: of the windows, ``[T, N]``
    :return: ``[T, N]``
    """
    return np.take_along_axis(x, np.arange(len(x))[:, None] + lengths - 1, axis=0)


def _after_window(sums: FloatArray, ends: np.ndarray, lengths: IntArray) -> FloatArray:
    """What ``discounted_sums`` counts from the step behind each window on."""
    behind = np.vstack([sums[1:], np.zeros_like(sums[:1])])
    return at_last_step(np.where(ends, 0.0, behind), lengths)


def window_sums(x: FloatArray, ends: np.ndarray, lengths: IntArray, gamma: float) -> FloatArray:
    """Sum over windows: ``sum_{i < m} gamma^i x_{t+i}``.

    :param x: rewards for the return of a window; temporal differences for ``delta`` (Eq. 8), for values telescope; ``[T, N]``
    :param ends: ``[T, N]``
    :param lengths: m, ``[T, N]``
    :param gamma: discount factor
    :return: ``[T, N]``
    """
    sums = discounted_sums(x, ends, gamma)
    return sums - gamma**lengths * _after_window(sums, ends, lengths)


def over_covering_windows(x: FloatArray, lengths: IntArray, discount: float) -> FloatArray:
    """Sum over the windows that a step belongs to: ``sum_t discount^{tau - t} x_t`` for all t with ``t <= tau < t + m_t``.

    :param x: of the windows, ``[T, N]``
    :param lengths: m, ``[T, N]``
    :param discount: of a step since the window's first
    :return: ``[T, N]``
    """
    total = np.zeros(x.shape)
    for i in range(int(lengths.max())):
        first = slice(0, len(x) - i)
        total[i:] += np.where(lengths[first] > i, discount**i * x[first], 0.0)
    return total


def literal_gradient_weights(delta: FloatArray, weights: FloatArray, lengths: IntArray) -> FloatArray:
    """Find the factor of ``grad log pi(a_tau | s_tau)`` in ``sum_t w_t delta_t sum_{i < m_t} grad log pi`` (Eq. 11).

    :param delta: of the windows, ``[T, N]``
    :param weights: of the states that windows start from, ``[T, N]``
    :param lengths: ``[T, N]``
    :return: ``[T, N]``
    """
    return over_covering_windows(weights * delta, lengths, 1.0)


def causal_gradient_weights(
    temporal_differences: FloatArray, weights: FloatArray, ends: np.ndarray, lengths: IntArray, gamma: float
) -> tuple[FloatArray, FloatArray]:
    """Find the same factor without the terms whose expectation is zero: an action does not change what came before it.

    :param temporal_differences: ``r + gamma V(s') - V(s)``, ``[T, N]``
    :param weights: of the states that windows start from, ``[T, N]``
    :param ends: ``[T, N]``
    :param lengths: ``[T, N]``
    :param gamma: discount factor
    :return: ``Psi_tau``, the mean over the windows that cover a step of the temporal differences from it to the window's end,
        and ``c_tau``, the windows' discounted weight; the factor is their product, both ``[T, N]``
    """
    sums = discounted_sums(temporal_differences, ends, gamma)
    beyond = gamma**lengths * _after_window(sums, ends, lengths)
    covered = over_covering_windows(weights, lengths, gamma)
    factor = covered * sums - over_covering_windows(weights * beyond, lengths, 1.0)
    return factor / np.maximum(covered, np.finfo(float).tiny), covered
