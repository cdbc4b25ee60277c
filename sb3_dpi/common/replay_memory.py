"""A replay buffer of Stable-Baselines3, read in the order of time.

Row ``t n_envs + i`` is place t of the ring, environment i. What came next is the row of place t + 1, unless the episode was
done, t is the newest, or that row begins with another observation than this one ended with: after a reset, or in data that
came from elsewhere.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from sb3_dpi.trajopt.types import BoolArray, FloatArray, IntArray
from sb3_dpi.world_model.types import Transitions


class ReplayMemory:
    """Rows of a replay buffer as a world model reads them.

    :param buffer: of observations in the environment's units and actions in units of the bounds
    :param join: from observations ``[n, ...]``, or a dictionary of such, to states ``[n, dx]``
    :param limit: size to which rewards are cut
    """

    def __init__(self, buffer: ReplayBuffer, join: Callable[[Any], FloatArray], limit: float = np.inf) -> None:
        self.buffer, self._join, self._limit = buffer, join, limit

    def __len__(self) -> int:
        return self.buffer.size() * self.buffer.n_envs

    def _at(self, observations: Any, time: IntArray, env: IntArray) -> Any:
        if isinstance(observations, dict):
            return {key: array[time, env] for key, array in observations.items()}
        return observations[time, env]

    def take(self, rows: IntArray) -> Transitions:
        """
        Read rows.

        :param rows: which, in any order, ``[n]``
        :return: their copies
        """
        buffer, (time, env) = self.buffer, np.divmod(rows, self.buffer.n_envs)
        done, cut = buffer.dones[time, env] > 0, buffer.timeouts[time, env] > 0
        return Transitions(
            self._join(self._at(buffer.observations, time, env)),
            buffer.actions[time, env].reshape(-1, buffer.action_dim).astype(np.float64),
            self._cut(buffer.rewards[time, env]),
            self._join(self._at(buffer.next_observations, time, env)),
            done & ~cut,
        )

    def newest(self, n: int) -> IntArray:
        """
        Find the latest steps.

        :param n: how many, of all environments; fewer where there are fewer
        :return: their rows, those of one environment after those of another, each in the order of time
        """
        buffer = self.buffer
        k = min(-(-n // buffer.n_envs), buffer.size())
        time = (buffer.pos - k + np.arange(k)) % buffer.buffer_size
        return (time * buffer.n_envs + np.arange(buffer.n_envs)[:, None]).reshape(-1)

    def follows(self, rows: IntArray) -> tuple[IntArray, BoolArray]:
        """
        Find what came next.

        :param rows: ``[n]``
        :return: rows of the next steps of the same environments, and whether they belong to the same episode, ``[n]`` each
        """
        buffer, (time, env) = self.buffer, np.divmod(rows, self.buffer.n_envs)
        after = (time + 1) % buffer.buffer_size
        same = (buffer.dones[time, env] == 0) & (time != (buffer.pos - 1) % buffer.buffer_size)
        end = self._join(self._at(buffer.next_observations, time, env))
        begin = self._join(self._at(buffer.observations, after, env))
        return after * buffer.n_envs + env, same & (end == begin).all(1)

    def terminated_rows(self) -> IntArray:
        """
        Find the steps that ended an episode for good.

        :return: their rows
        """
        n = self.buffer.size()
        return np.flatnonzero((self.buffer.dones[:n] > 0) & (self.buffer.timeouts[:n] == 0))

    def rewards(self) -> FloatArray:
        """
        Read all rewards.

        :return: those of every row, ``[n]``
        """
        return self._cut(self.buffer.rewards[: self.buffer.size()]).reshape(-1)

    def _cut(self, rewards: np.ndarray) -> FloatArray:
        limited: FloatArray = np.clip(rewards.astype(np.float64), -self._limit, self._limit)
        return limited


def check_buffer(buffer_class: type[ReplayBuffer] | None, options: dict[str, Any]) -> None:
    """
    Refuse buffers whose rows are not single real steps.

    :param buffer_class: what was asked for; None for the usual one
    :param options: for its constructor
    :raises ValueError: if ``sample()`` does more than read rows, or rows are kept in another way
    """
    plain = (ReplayBuffer, DictReplayBuffer)
    if buffer_class is not None and not any(
        buffer_class.sample is base.sample and buffer_class._get_samples is base._get_samples for base in plain
    ):
        raise ValueError(
            f"The rows of the replay buffer are read in the order of time: {buffer_class.__name__}, whose sample() does "
            "more, has no effect here. Use ReplayBuffer or DictReplayBuffer"
        )
    if options.get("optimize_memory_usage") or options.get("handle_timeout_termination") is False:
        raise ValueError(
            "True next observations and time limits are learned from: leave optimize_memory_usage off, timeouts on"
        )


def deal_out(buffer: ReplayBuffer, n_envs: int) -> ReplayBuffer:
    """
    Move to another number of environments.

    :param buffer: what was kept
    :param n_envs: how many
    :return: a buffer of the same size with the latest steps
    """
    moved = type(buffer)(
        buffer.buffer_size * buffer.n_envs, buffer.observation_space, buffer.action_space, device=buffer.device, n_envs=n_envs
    )
    memory = ReplayMemory(buffer, lambda obs: obs)
    n = min(len(memory) // n_envs, moved.buffer_size)
    rows = memory.newest(len(memory))[len(memory) - n * n_envs :].reshape(n_envs, n).T
    time, env = np.divmod(rows, buffer.n_envs)
    for name in (
        "observations",
        "next_observations",
        "actions",
        "rewards",
        "dones",
        "timeouts",
        *getattr(buffer, "more_arrays", ()),
    ):
        kept, place = getattr(buffer, name), getattr(moved, name)
        if isinstance(kept, dict):
            for key, array in kept.items():
                place[key][:n] = array[time, env]
        else:
            place[:n] = kept[time, env]
    moved.pos, moved.full = n % moved.buffer_size, n == moved.buffer_size
    return moved
