"""Real steps in a replay buffer of Stable-Baselines3, handed out in the order of time."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_dpi.models.data import Transitions

GROWING = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class TransitionBuffer(ReplayBuffer):
    """``ReplayBuffer`` of vectors in the environment's units and of actions in units of the bounds.

    Only the filled part is pickled.

    :param buffer_size: steps of all environments that are kept
    :param state_dim: dx
    :param action_dim: du
    :param n_envs: environments
    """

    def __init__(self, buffer_size: int, state_dim: int, action_dim: int, n_envs: int):
        anything = spaces.Box(-np.inf, np.inf, (state_dim,), np.float64)
        super().__init__(buffer_size, anything, spaces.Box(-1.0, 1.0, (action_dim,), np.float32), "cpu", n_envs)

    def __len__(self) -> int:
        return self.size() * self.n_envs

    def cut(self, env_index: int) -> None:
        """
        Note that an environment has been reset after its last step, whether or not that ended its episode.

        :param env_index: which
        """
        last = (self.pos - 1) % self.buffer_size
        if self.size() and not self.dones[last, env_index]:
            self.dones[last, env_index] = self.timeouts[last, env_index] = 1.0

    def transitions(self) -> Transitions:
        """
        All that is kept, of one environment after the other.

        :return: transitions
        """
        n = self.size()
        order = (np.arange(n) + (self.pos if self.full else 0)) % self.buffer_size

        def stream(array: np.ndarray) -> np.ndarray:
            return np.swapaxes(array[order], 0, 1).reshape(n * self.n_envs, *array.shape[2:])

        done, cut = stream(self.dones) > 0, stream(self.timeouts) > 0
        ends = done.reshape(self.n_envs, n).copy()
        ends[:, -1:] = True
        return Transitions(
            stream(self.observations),
            stream(self.actions).astype(np.float64),
            stream(self.rewards).astype(np.float64),
            stream(self.next_observations),
            done & ~cut,
            ends.reshape(-1),
            np.tile(np.arange(n)[::-1], self.n_envs),
        )

    def for_environments(self, n_envs: int) -> "TransitionBuffer":
        """
        Move to another number of environments.

        :param n_envs: how many
        :return: a buffer of the same size with the latest steps, in streams that are cut where they have to be
        """
        data, capacity = self.transitions(), self.buffer_size * self.n_envs
        (dx,), (du,) = self.obs_shape, self.action_space.shape  # type: ignore[misc]
        moved = TransitionBuffer(capacity, dx, du, n_envs)
        n = min(len(data) // n_envs, moved.buffer_size)
        rows = np.arange(len(data) - n * n_envs, len(data)).reshape(n_envs, n).T
        for name, values in (
            ("observations", data.states),
            ("next_observations", data.next_states),
            ("actions", data.actions),
            ("rewards", data.rewards),
            ("dones", data.ends),
            ("timeouts", data.ends & ~data.terminated),
        ):
            getattr(moved, name)[:n] = values[rows]
        moved.dones[n - 1 : n] = 1.0
        moved.timeouts[n - 1 : n] = ~data.terminated[rows[n - 1 : n]]
        moved.pos, moved.full = n % moved.buffer_size, n == moved.buffer_size
        return moved

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in GROWING:
            state[name] = state[name][: self.size()].copy()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in GROWING:
            kept = state[name]
            whole = np.zeros((self.buffer_size, *kept.shape[1:]), dtype=kept.dtype)
            whole[: len(kept)] = kept
            setattr(self, name, whole)
