"""What was seen: real transitions in the order of time, in the environment's units."""

from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from sb3_dpi.trajopt.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Transitions:
    """``n`` steps, those of one environment after those of another, each stream in the order of time."""

    states: FloatArray
    """``[n, dx]``"""
    actions: FloatArray
    """in units of the bounds, ``[n, du]``"""
    rewards: FloatArray
    """``[n]``"""
    next_states: FloatArray
    """the true ones, also where an episode ended, ``[n, dx]``"""
    terminated: BoolArray
    """whether the episode ended for good, not by a time limit, ``[n]``"""
    ends: BoolArray
    """whether the next row is something else: an episode's or a stream's last step, ``[n]``"""
    age: IntArray
    """steps taken since by the same environment, ``[n]``"""

    def __len__(self) -> int:
        return len(self.rewards)

    def take(self, rows: IntArray) -> "Transitions":
        """
        Some of the steps, no longer in the order of time.

        :param rows: which
        :return: their copies; each counts as an end
        """
        every = np.ones(len(rows), dtype=bool)
        before = self.states[rows], self.actions[rows], self.rewards[rows]
        return Transitions(*before, self.next_states[rows], self.terminated[rows], every, self.age[rows])


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


def returns_to_go(data: Transitions, gamma: float, last_rewards: int = 300) -> FloatArray:
    """
    Discounted rewards from each step to the end of its episode.

    An episode that was cut goes on at the mean reward of the latest steps: only the order of magnitude is needed, as a bound
    for what a critic may promise.

    :param data: transitions
    :param gamma: discount factor, below 1
    :param last_rewards: how many of the latest steps give that mean
    :return: ``[n]``
    """
    recent = np.sort(np.argsort(data.age, kind="stable")[:last_rewards])
    beyond = float(data.rewards[recent].mean()) / (1.0 - gamma)
    returns = np.empty(len(data))
    start = 0
    for end in np.flatnonzero(data.ends):
        backwards = data.rewards[start : end + 1][::-1].copy()
        if not data.terminated[end]:
            backwards[0] += gamma * beyond
        returns[start : end + 1] = lfilter([1.0], [1.0, -gamma], backwards)[::-1]
        start = int(end) + 1
    return returns


def successors(data: Transitions, rows: IntArray, horizon: int) -> tuple[IntArray, BoolArray]:
    """
    Follow the real trajectory from given rows.

    :param data: transitions
    :param rows: where to begin, ``[M]``
    :param horizon: H
    :return: rows of the steps, ``[H, M]``, and whether each still belongs to the same episode (the last row is repeated
        where it does not), ``[H, M]``
    """
    steps = np.empty((horizon, len(rows)), dtype=np.int64)
    alive = np.empty((horizon, len(rows)), dtype=bool)
    row, still = np.asarray(rows, dtype=np.int64).copy(), np.ones(len(rows), dtype=bool)
    for t in range(horizon):
        steps[t], alive[t] = row, still
        still = still & ~data.ends[row]
        row = np.where(still, row + 1, row)
    return steps, alive
