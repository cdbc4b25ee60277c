"""Episodes from elsewhere that stand behind local models: what they say of dynamics and cost, not of any policy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb3_dpi.common.trajectories import Trajectories, concatenate
from sb3_dpi.trajopt.types import BoolArray, FloatArray, IntArray
from sb3_dpi.trajopt.units import spread_or_one

MOST_STEPS = 20_000
"""Logged steps that an iteration's fits use: an even selection of the windows where there are more."""
MOST_IN_A_GROUP = 16
"""Logged trajectories of a condition: padding must not fill the memory where all begin alike."""


@dataclass(frozen=True)
class LoggedEpisodes:
    """Episodes of one task, as a planner sees them; step i of episode e is row ``begins[e] + i``."""

    states: FloatArray
    """``[n, dx]``"""
    next_states: FloatArray
    """``[n, dx]``"""
    actions: FloatArray
    """in units of the bounds, ``[n, du]``"""
    rewards: FloatArray
    """``[n]``"""
    terminated: BoolArray
    """``[n]``"""
    begins: IntArray
    """rows at which episodes begin, ascending"""

    def joined(self, others: "LoggedEpisodes") -> "LoggedEpisodes":
        """
        Put further episodes behind these.

        :param others: of the same task
        :return: all
        """
        names = ("states", "next_states", "actions", "rewards", "terminated")
        arrays = {name: np.concatenate([getattr(self, name), getattr(others, name)]) for name in names}
        return LoggedEpisodes(**arrays, begins=np.concatenate([self.begins, others.begins + len(self.rewards)]))

    def windows(self, horizon: int, aligned: bool) -> Trajectories:
        """
        Cut into trajectories of a plan's length.

        :param horizon: T
        :param aligned: only the beginnings of episodes, whose time steps are those of a plan; else all of them, one window
            behind the other
        :return: ``[1, N, T]``
        """
        ends = np.append(self.begins[1:], len(self.rewards))
        starts, stops = list[int](), list[int]()
        for begin, end in zip(self.begins.tolist(), ends.tolist(), strict=True):
            own = [begin] if aligned else list(range(begin, end, horizon))
            starts += own
            stops += [min(start + horizon, end) for start in own]
        chosen = np.arange(len(starts))
        most = max(MOST_STEPS // horizon, 1)
        if len(chosen) > most:
            chosen = chosen[np.arange(most) * len(chosen) // most]
        first, stop = np.array(starts)[chosen], np.array(stops)[chosen]
        rows = first[:, None] + np.arange(horizon)
        alive = rows < stop[:, None]
        rows = np.minimum(rows, stop[:, None] - 1)
        states = np.concatenate([self.states[rows], self.next_states[rows[:, -1:]]], 1)
        states[:, 1:][alive] = self.next_states[rows][alive]
        died = self.terminated[rows] & alive
        together = states[None], states[None], self.actions[rows][None], self.rewards[rows][None]
        return Trajectories(*together, alive[None], died[None])


def beside(own: Trajectories, logged: LoggedEpisodes, time_aligned: bool) -> tuple[Trajectories, bool]:
    """
    Put logged trajectories behind the sampled ones.

    :param own: sampled, of M conditions
    :param logged: episodes from elsewhere
    :param time_aligned: whether the fit compares time steps: then logged episodes are grouped by their initial states, each
        with the sampled condition whose mean initial state is nearest, and only their beginnings count
    :return: sampled trajectories, then logged ones, and whether condition M + i holds the logged ones of condition i
    """
    windows = logged.windows(own.alive.shape[2], time_aligned)
    if time_aligned:
        windows = grouped_by_initial_state(windows, own)
    plain = Trajectories(own.states, own.states, own.actions, own.rewards, own.alive, own.terminated)
    return concatenate([plain, windows]), time_aligned


def grouped_by_initial_state(windows: Trajectories, own: Trajectories) -> Trajectories:
    """
    Deal logged trajectories out to the sampled conditions.

    :param windows: logged, ``[1, N, T]``
    :param own: sampled, of M conditions
    :return: logged, ``[M, n, T]``, of each condition those that begin nearest to it
    """
    weights, first = own.weights[:, :, 0], own.states[:, :, 0]
    means = np.sum(weights[..., None] * first, 1) / np.maximum(weights.sum(1), 1.0)[:, None]
    begun = windows.states[0, :, 0]
    spread = spread_or_one(begun.std(0), begun.mean(0))
    distances = np.sum(((begun[:, None] - means) / spread) ** 2, -1)
    nearest = np.argmin(distances, 1)
    groups: Sequence[IntArray] = [
        members[np.argsort(distances[members, i], kind="stable")[:MOST_IN_A_GROUP]]
        for i, members in ((i, np.flatnonzero(nearest == i)) for i in range(len(means)))
    ]
    n = max(map(len, groups))

    def dealt(array: np.ndarray) -> np.ndarray:
        target = np.zeros((len(groups), n, *array.shape[2:]), array.dtype)
        for i, members in enumerate(groups):
            target[i, : len(members)] = array[0, members]
        return target

    states = dealt(windows.states)
    return Trajectories(
        states, states, dealt(windows.actions), dealt(windows.rewards), dealt(windows.alive), dealt(windows.terminated)
    )
