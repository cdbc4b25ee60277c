"""Exact values of a finite system, by dynamic programming.

Problem: V(s) = max_a sum_s' P(s' | s, a) (r(s, a, s') + gamma (1 - end(s, a, s')) V(s')), either for all time or, with
``horizon``, for the time steps that are left: V_0 = 0 and V_n from V_{n-1}. A sweep of the former contracts by gamma; it ends
where no value can be further than ``tolerance`` from its limit, or where gamma is 1, where no sweep moves one by more.

Shapes: S states, A actions.
"""

from dataclasses import dataclass

import numpy as np

from sb3_dpi.trajopt.types import FloatArray, IntArray


@dataclass(frozen=True)
class Values:
    """What a finite system is worth."""

    v: FloatArray
    """``[S]``"""
    q: FloatArray
    """``[S, A]``"""
    n_sweeps: int

    @property
    def policy(self) -> IntArray:
        """A best action of each state, ``[S]``."""
        best: IntArray = self.q.argmax(1)
        return best


def value_iteration(
    transitions: FloatArray,
    rewards: FloatArray,
    ends: FloatArray | None = None,
    gamma: float = 1.0,
    horizon: int | None = None,
    tolerance: float = 1e-10,
    max_sweeps: int = 100_000,
) -> Values:
    """
    Evaluate the best policy of a table.

    :param transitions: P, probabilities of the next states, ``[S, A, S]``
    :param rewards: of the transitions, ``[S, A, S]``, or of the actions, ``[S, A]``
    :param ends: probability that a transition ends the episode, ``[S, A, S]``; None where none does
    :param gamma: discount factor
    :param horizon: time steps that are left; None for all time
    :param tolerance: error of the values for all time
    :param max_sweeps: after which the values for all time must have come to rest
    :return: values of states and of actions
    :raises ValueError: if the values do not come to rest, as where rewards go on without discount
    """
    expected = np.einsum("sat,sat->sa", transitions, rewards) if rewards.ndim == 3 else rewards
    onward = gamma * (transitions if ends is None else transitions * (1.0 - ends))
    v = np.zeros(len(expected))
    least = tolerance * (1.0 - gamma) / gamma if 0.0 < gamma < 1.0 else tolerance
    for sweep in range(1, (max_sweeps if horizon is None else horizon) + 1):
        q = expected + onward @ v
        v, before = q.max(1), v
        if horizon is None and np.abs(v - before).max() <= least:
            return Values(v, q, sweep)
    if horizon is None:
        raise ValueError(f"The values have not come to rest after {max_sweeps} sweeps: lower gamma, or give a horizon")
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")
    return Values(v, q, horizon)
