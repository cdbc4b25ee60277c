"""What was seen: real transitions in the environment's units, and the memory that holds them."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from sb3_dpi.trajopt.discounting import discounted_sums
from sb3_dpi.trajopt.types import BoolArray, FloatArray, IntArray
from sb3_dpi.trajopt.units import replace_outliers

JUDGED_BY = 5000
"""Steps, spread evenly over a memory, by which a number is an outlier or not."""


@dataclass(frozen=True)
class Transitions:
    """``n`` real steps."""

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

    def __len__(self) -> int:
        return len(self.rewards)

    def take(self, rows: IntArray | BoolArray) -> "Transitions":
        """
        Some of the steps.

        :param rows: which
        :return: their copies
        """
        before = self.states[rows], self.actions[rows], self.rewards[rows]
        return Transitions(*before, self.next_states[rows], self.terminated[rows])


class Memory(Protocol):
    """Real steps, each known by its row; work does not grow with their number but where it is asked for."""

    def __len__(self) -> int: ...

    def take(self, rows: IntArray) -> Transitions:
        """
        Read rows.

        :param rows: which, in any order, ``[n]``
        :return: their copies
        """
        ...

    def newest(self, n: int) -> IntArray:
        """
        Find the latest steps.

        :param n: how many, of all environments; fewer where there are fewer
        :return: their rows, those of one environment after those of another, each in the order of time
        """
        ...

    def follows(self, rows: IntArray) -> tuple[IntArray, BoolArray]:
        """
        Find what came next.

        :param rows: ``[n]``
        :return: rows of the next steps of the same environments, and whether they belong to the same episode, ``[n]`` each
        """
        ...

    def terminated_rows(self) -> IntArray:
        """
        Find the steps that ended an episode for good.

        :return: their rows
        """
        ...

    def rewards(self) -> FloatArray:
        """
        Read all rewards.

        :return: those of every row, ``[n]``
        """
        ...


def take_without_outliers(memory: Memory, rows: IntArray) -> Transitions:
    """
    Read rows as units may follow them: one observation that is wrong must not decide the unit of all.

    :param memory: real steps, by which it is judged
    :param rows: which
    :return: the steps; a wrong number is a median, in the state that it shows and in the changes that lead there and back
    """
    n = min(len(memory), JUDGED_BY)
    known = memory.take(memory.newest(len(memory))[np.arange(n) * len(memory) // n])
    seen = replace_outliers(known.states, known.states)
    known_changes = replace_outliers(known.next_states, known.states) - seen
    new = memory.take(rows)
    states, after = (replace_outliers(array, known.states) for array in (new.states, new.next_states))
    changes = replace_outliers(after - states, known_changes, n_each=2)
    return replace(new, states=states, next_states=np.where(changes == after - states, after, states + changes))


def successors(memory: Memory, rows: IntArray, horizon: int) -> tuple[IntArray, BoolArray]:
    """
    Follow the real trajectory from given rows.

    :param memory: real steps
    :param rows: where to begin, ``[M]``
    :param horizon: H
    :return: rows of the steps, ``[H, M]``, and whether each still belongs to the same episode (the last row is repeated
        where it does not), ``[H, M]``
    """
    steps = np.empty((horizon, len(rows)), dtype=np.int64)
    alive = np.empty((horizon, len(rows)), dtype=bool)
    row, still = np.asarray(rows, dtype=np.int64), np.ones(len(rows), dtype=bool)
    for t in range(horizon):
        steps[t], alive[t] = row, still
        if t + 1 < horizon:
            following, same = memory.follows(row)
            still = still & same
            row = np.where(still, following, row)
    return steps, alive


def stretch_ends(memory: Memory, rows: IntArray) -> BoolArray:
    """
    Where stretches of consecutive steps end.

    :param memory: real steps
    :param rows: of ``newest``, ``[n]``
    :return: whether the next entry of ``rows`` is not what came next, ``[n]``
    """
    following, same = memory.follows(rows)
    ends: BoolArray = ~(same & (np.append(rows[1:], -1) == following))
    return ends


def returns_to_go(data: Transitions, ends: BoolArray, gamma: float, mean_reward: float) -> FloatArray:
    """
    Discounted rewards from each step to the end of its episode.

    An episode that was cut goes on at the mean reward of the latest steps: only the order of magnitude is needed, as a bound
    for what a critic may promise.

    :param data: consecutive steps
    :param ends: where stretches end, ``[n]``
    :param gamma: discount factor, below 1
    :param mean_reward: of the latest steps
    :return: ``[n]``
    """
    beyond = gamma * mean_reward / (1.0 - gamma)
    return discounted_sums(data.rewards + beyond * (ends & ~data.terminated), ends, gamma)
