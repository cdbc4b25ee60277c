"""Replay buffers that keep what searches found, beside the steps that were taken."""

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi.expert_iteration.targets import value_targets
from sb3_dpi.trajopt.types import FloatArray, IntArray
from sb3_dpi.trajopt.units import outlier_limit


class SearchSamples(NamedTuple):
    """What a network imitates."""

    observations: Any
    """``[n, ...]`` or a dictionary of such"""
    policies: th.Tensor
    """shares of the visits, ``[n, A]``"""
    values: th.Tensor
    """targets, ``[n]``"""


class SearchReplayBuffer(ReplayBuffer):
    """
    Steps, and of each the visits of the search, its value, and the target of the value network.

    :param buffer_size: Max number of elements in the buffer
    :param observation_space: Observation space
    :param action_space: ``Discrete``
    :param kwargs: as for ``ReplayBuffer``
    """

    more_arrays: ClassVar[tuple[str, ...]] = ("visits", "search_values", "values")

    def __init__(self, buffer_size: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], **kwargs: Any):
        super().__init__(buffer_size, observation_space, action_space, **kwargs)
        assert isinstance(action_space, spaces.Discrete)
        shape = (self.buffer_size, self.n_envs)
        self.visits = np.zeros((*shape, int(action_space.n)), dtype=np.int32)
        self.search_values, self.values = np.zeros(shape), np.zeros(shape)
        self.n_new = 0
        """latest rows, of each environment, whose targets are not known yet"""

    def note(self, visits: IntArray, search_values: FloatArray) -> None:
        """
        Keep what searches found in the states of the row that is added next.

        :param visits: ``[n_envs, A]``
        :param search_values: ``[n_envs]``
        """
        self.visits[self.pos], self.search_values[self.pos] = visits, search_values
        self.n_new = min(self.n_new + 1, self.buffer_size)

    def extend(self, *args: Any, **kwargs: Any) -> None:
        """
        Refused: rows without searches have nothing to imitate.

        :raises ValueError: always
        """
        raise ValueError("Rows that are added hold no searches to imitate: let ExIt take its own steps")

    def cut(self, everywhere: bool = False) -> None:
        """
        Let the episodes that go on end as those behind a time limit do.

        :param everywhere: whether no row is followed by the next one of its episode; otherwise the latest ones alone are not
        """
        rows = np.arange(self.size()) if everywhere else self.latest(1)
        going_on = self.dones[rows] == 0
        self.timeouts[rows] = np.where(going_on, 1.0, self.timeouts[rows])
        self.dones[rows] = 1.0

    def latest(self, n: int) -> IntArray:
        """:return: places of the latest ``n`` rows of each environment, in the order of time; fewer where there are fewer"""
        k = min(n, self.size())
        places: IntArray = (self.pos - k + np.arange(k)) % self.buffer_size
        return places

    def settle(self, places: IntArray, after: FloatArray, gamma: float, gae_lambda: float) -> None:
        """
        Write the targets of rows. One wrong number of a thousand is no part of them.

        :param places: the latest ones, in the order of time, ``[T]``
        :param after: values of the states behind steps that are the last of their episode, or of all, ``[T, n_envs]``
        :param gamma: discount factor
        :param gae_lambda: see ``value_targets``
        """
        ends = self.dones[places] > 0
        after = np.where(ends & (self.timeouts[places] == 0), 0.0, after)
        rewards, searched = (
            np.clip(kept[places].astype(np.float64), -limit, limit)
            for kept in (self.rewards, self.search_values)
            for limit in [outlier_limit(kept[: self.size()])]
        )
        self.values[places] = value_targets(rewards, searched, after, ends, gamma, gae_lambda)
        self.n_new = 0

    def sample_searches(self, batch_size: int, rng: np.random.Generator, env: VecNormalize | None = None) -> SearchSamples:
        """
        Draw rows.

        :param batch_size: how many, with replacement
        :param rng: what draws them
        :param env: associated VecNormalize to normalize observations
        :return: what is to be imitated
        """
        rows = rng.integers(self.size() * self.n_envs, size=batch_size)
        time, number = np.divmod(rows, self.n_envs)
        kept: Any = self.observations
        seen = {key: array[time, number] for key, array in kept.items()} if isinstance(kept, dict) else kept[time, number]
        seen = self._normalize_obs(seen, env)
        visits = self.visits[time, number].astype(np.float32)
        shares = th.as_tensor(visits / visits.sum(1, keepdims=True), device=self.device)
        observed = (
            {key: self.to_torch(array) for key, array in seen.items()} if isinstance(seen, dict) else self.to_torch(seen)
        )
        return SearchSamples(observed, shares, th.as_tensor(self.values[time, number], device=self.device).float())


class SearchDictReplayBuffer(SearchReplayBuffer, DictReplayBuffer):
    """
    The same for dictionaries of observations.

    :param buffer_size: Max number of elements in the buffer
    :param observation_space: ``Dict``
    :param action_space: ``Discrete``
    :param kwargs: as for ``DictReplayBuffer``
    """
