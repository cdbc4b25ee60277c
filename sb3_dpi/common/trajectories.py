"""Time-aligned trajectories and the rollout buffer that keeps their time axis."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_dpi.trajopt.types import BoolArray, FloatArray, IntArray

Observations = np.ndarray | dict[str, np.ndarray]


def map_observations(function: Callable[[np.ndarray], np.ndarray], observations: Observations) -> Observations:
    """Apply a function to an array, or to each array of a dictionary.

    :param function: from array to array
    :param observations: array or dictionary of arrays
    :return: of the same structure
    """
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


@dataclass(frozen=True)
class Trajectories:
    """N sampled trajectories from each of M initial conditions over T time steps.

    Actions are in units of the bounds ([-1, 1]). Slots that hold no trajectory, and time steps after an early
    termination, are marked dead; what they hold is undefined.
    """

    observations: Observations
    """as the environment returned them, not normalised, ``[M, N, T+1, ...]`` or a dictionary of such"""
    states: FloatArray
    """what the planner sees, unnormalised, ``[M, N, T+1, dx]``"""
    actions: FloatArray
    """as sampled, not clipped, ``[M, N, T, du]``"""
    rewards: FloatArray
    """unnormalised, ``[M, N, T]``"""
    alive: BoolArray
    """the step was taken in a living episode, ``[M, N, T]``"""
    terminated: BoolArray
    """the step ended its episode, by death and not by a time limit, ``[M, N, T]``"""

    @property
    def weights(self) -> FloatArray:
        """``alive`` as numbers, ``[M, N, T]``."""
        return self.alive.astype(np.float64)

    @property
    def returns(self) -> FloatArray:
        """Undiscounted return of each trajectory, ``[M, N]``, NaN in empty slots."""
        total = np.sum(np.where(self.alive, self.rewards, 0.0), -1)
        return np.where(self.alive[..., 0], total, np.nan)

    def first(self, n_conditions: int) -> "Trajectories":
        """Restrict to the first conditions, those of the latest iteration.

        :param n_conditions: how many
        :return: their trajectories
        """
        return self.take(slice(n_conditions))

    def take(self, conditions: slice | IntArray) -> "Trajectories":
        """Restrict to some conditions.

        :param conditions: which
        :return: their trajectories
        """
        return Trajectories(
            map_observations(lambda array: array[conditions], self.observations),
            self.states[conditions],
            self.actions[conditions],
            self.rewards[conditions],
            self.alive[conditions],
            self.terminated[conditions],
        )


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """Join trajectories along the conditions; those with fewer samples get empty slots.

    :param parts: of equal horizon
    :return: trajectories of all conditions, in the order given
    """
    n_samples = max(part.alive.shape[1] for part in parts)

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        padded = [np.pad(a, [(0, 0), (0, n_samples - a.shape[1])] + [(0, 0)] * (a.ndim - 2)) for a in arrays]
        return np.concatenate(padded)

    first = parts[0].observations
    observations: Observations
    if isinstance(first, dict):
        observations = {key: join([part.observations[key] for part in parts]) for key in first}
    else:
        observations = join([np.asarray(part.observations) for part in parts])
    names = ("states", "actions", "rewards", "alive", "terminated")
    return Trajectories(observations, *(join([getattr(part, name) for part in parts]) for name in names))


class TrajectoryBuffer(RolloutBuffer):
    """Rollout buffer of whole trajectories, which are collected in batches of one per environment.

    The arrays are those of ``RolloutBuffer``, ``[n_batches * horizon, n_envs, ...]``, for array and dictionary observations,
    with what time-aligned fits need beside them: the planner's states, the last observation of each trajectory
    and a mask. ``trajectories()`` reads them by condition, sample and time; ``get()`` leaves that reading intact.

    :param buffer_size: steps per environment, a multiple of ``horizon``
    :param observation_space: observation space
    :param action_space: action space
    :param device: of the samples that ``get`` yields
    :param gae_lambda: as in ``RolloutBuffer``
    :param gamma: as in ``RolloutBuffer``
    :param n_envs: number of parallel environments
    :param horizon: time steps of a trajectory
    :param state_dim: size of the planner's state
    :param n_conditions: conditions m of each environment; trajectory i of an environment, counted over batches and then its
        sub-environments, has condition i mod m. With K environments that differ there are M = K m conditions
    :param environment_indices: which environment each sub-environment is, ``[n_envs]``; None if all are copies of one
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        horizon: int = 1,
        state_dim: int = 1,
        n_conditions: int = 1,
        environment_indices: IntArray | None = None,
    ):
        if buffer_size % horizon:
            raise ValueError(f"buffer_size ({buffer_size}) must be a multiple of the horizon ({horizon})")
        self.horizon, self.state_dim, self.n_conditions = horizon, state_dim, n_conditions
        indices = np.zeros(n_envs, dtype=int) if environment_indices is None else environment_indices
        self._members = [np.flatnonzero(indices == i) for i in range(int(indices.max()) + 1)]
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    @property
    def n_batches(self) -> int:
        """Batches of ``n_envs`` trajectories that the buffer holds."""
        return self.buffer_size // self.horizon

    def conditions(self, batch: int) -> IntArray:
        """Conditions of the trajectories of a batch.

        :param batch: which
        :return: ``[n_envs]``
        """
        conditions = np.zeros(self.n_envs, dtype=int)
        for i, members in enumerate(self._members):
            number = batch * len(members) + np.arange(len(members))
            conditions[members] = i * self.n_conditions + number % self.n_conditions
        return conditions

    def reset(self) -> None:
        """Forget everything collected."""
        n_steps, n_envs = self.buffer_size, self.n_envs
        self.observations = self._allocate(n_steps)
        self.final_observations = self._allocate(self.n_batches)
        self.states = np.zeros((n_steps, n_envs, self.state_dim))
        self.final_states = np.zeros((self.n_batches, n_envs, self.state_dim))
        self.actions = np.zeros((n_steps, n_envs, self.action_dim), dtype=np.float32)
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, np.zeros((n_steps, n_envs), dtype=np.float32))
        self.alive = np.zeros((n_steps, n_envs), dtype=bool)
        self.terminated = np.zeros((n_steps, n_envs), dtype=bool)
        self.episode_starts[:: self.horizon] = 1.0
        self.pos, self.full, self.generator_ready = 0, False, False

    def _allocate(self, length: int) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            items = self.observation_space.spaces.items()
            return {key: np.zeros((length, self.n_envs, *space.shape), space.dtype) for key, space in items}  # type: ignore
        return np.zeros((length, self.n_envs, *self.obs_shape), self.observation_space.dtype)

    def add_step(self, obs: Observations, states: FloatArray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Store one step of all environments; it belongs to a trajectory once ``end_trajectories`` says so.

        :param obs: observations, not normalised, ``[n_envs, ...]``
        :param states: what the planner sees, ``[n_envs, dx]``
        :param actions: in units of the bounds, not clipped, ``[n_envs, du]``
        :param rewards: not normalised, ``[n_envs]``
        """
        pos = self.pos
        _write(self.observations, pos, obs)
        self.states[pos] = states
        self.actions[pos] = actions
        self.rewards[pos] = rewards
        self.pos = pos + 1

    def end_trajectories(
        self, which: BoolArray, terminated: BoolArray, final_obs: Observations, final_states: FloatArray
    ) -> None:
        """End some trajectories of this batch with the step just stored.

        :param which: environments whose trajectory ends, ``[n_envs]``
        :param terminated: whether this step ended the episode by death, ``[n_envs]``
        :param final_obs: observations that followed, not normalised, terminal ones included, ``[n_envs, ...]``
        :param final_states: what the planner sees of them, ``[n_envs, dx]``
        """
        batch, ending = (self.pos - 1) // self.horizon, np.flatnonzero(which)
        self.alive[batch * self.horizon : self.pos, ending] = True
        self.terminated[self.pos - 1, ending] = terminated[ending]
        self.final_states[batch, ending] = final_states[ending]
        _write(self.final_observations, (batch, ending), map_observations(lambda array: array[ending], final_obs))

    def end_batch(self) -> None:
        """Go on to the next batch of trajectories; what is left of the horizon stays dead."""
        self.pos = -(-self.pos // self.horizon) * self.horizon
        self.full = self.pos == self.buffer_size

    def last_batch(self) -> tuple[FloatArray, IntArray]:
        """What a Monitor would say of the trajectories of the batch that has just ended.

        :return: undiscounted returns and lengths, ``[n_envs]``
        """
        rows = slice(self.pos - self.horizon, self.pos)
        return np.where(self.alive[rows], self.rewards[rows], 0.0).sum(0), self.alive[rows].sum(0)

    def trajectories(self) -> Trajectories:
        """Read the buffer by condition, sample and time.

        :return: trajectories ``[M, N, T]``, N rounded up so that every collected trajectory has a slot
        """
        alive = self._fold(self.alive, fill=False)
        ends = np.nonzero(alive & ~np.concatenate([alive[..., 1:], np.zeros_like(alive[..., :1])], -1))
        following = (ends[0], ends[1], ends[2] + 1)

        def with_final(array: np.ndarray, final: np.ndarray) -> np.ndarray:
            folded = self._fold(array)
            folded = np.concatenate([folded, np.zeros_like(folded[:, :, :1])], 2)
            folded[following] = self._fold(final, 1)[ends[0], ends[1], 0]
            return folded

        observations: Any
        if isinstance(self.observations, dict):
            items = self.observations.items()
            observations = {key: with_final(array, self.final_observations[key]) for key, array in items}
        else:
            observations = with_final(self.observations, self.final_observations)
        return Trajectories(
            observations=observations,
            states=with_final(self.states, self.final_states),
            actions=self._fold(self.actions).astype(np.float64),
            rewards=self._fold(self.rewards).astype(np.float64),
            alive=alive,
            terminated=self._fold(self.terminated, fill=False),
        )

    def fill(self, **arrays: FloatArray) -> None:
        """Write what was found out about every living step, in the order of ``trajectories``.

        :param arrays: by the name of the buffer's array, ``[M, N, T]``, samples beyond N are left out
        """
        alive = self._fold(self.alive, fill=False)
        rows = self._fold(np.arange(self.alive.size).reshape(self.alive.shape))[alive]
        for name, array in arrays.items():
            getattr(self, name).reshape(-1)[rows] = array[:, : alive.shape[1]][alive]

    def _fold(self, array: np.ndarray, length: int | None = None, fill: float | bool = 0) -> np.ndarray:
        length = length or self.horizon
        batches = array.reshape(-1, length, *array.shape[1:]).swapaxes(1, 2)
        n_samples = -(-max(map(len, self._members)) * len(batches) // self.n_conditions)
        parts = []
        for members in self._members:
            own = batches if len(self._members) == 1 else batches[:, members]
            own = own.reshape(-1, length, *array.shape[2:])
            missing = n_samples * self.n_conditions - len(own)
            if missing:
                padding = np.full((missing, *own.shape[1:]), fill, dtype=array.dtype)
                own = np.concatenate([own, padding])
            parts.append(own.reshape(n_samples, self.n_conditions, *own.shape[1:]).swapaxes(0, 1))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def get(  # type: ignore[override]
        self, batch_size: int | None = None
    ) -> Generator[RolloutBufferSamples | DictRolloutBufferSamples, None, None]:
        """Yield the living steps in random minibatches, as ``RolloutBuffer.get`` does.

        :param batch_size: None yields everything at once
        """
        assert self.full, "The buffer is not full yet"
        living = np.flatnonzero(self.alive.reshape(-1))
        indices = living[np.random.permutation(len(living))]
        size = batch_size or max(len(indices), 1)

        def pick(array: np.ndarray, chosen: np.ndarray) -> th.Tensor:
            return self.to_torch(array.reshape(-1, *array.shape[2:])[chosen])

        for start in range(0, len(indices), size):
            chosen = indices[start : start + size]
            rest = [pick(getattr(self, name), chosen) for name in ("actions", "values", "log_probs", "advantages", "returns")]
            if isinstance(self.observations, dict):
                observations = {key: pick(array, chosen) for key, array in self.observations.items()}
                yield DictRolloutBufferSamples(observations, *rest)
            else:
                yield RolloutBufferSamples(pick(self.observations, chosen), *rest)


def _write(target: Any, index: Any, value: Observations) -> None:
    if isinstance(target, dict):
        for key, array in target.items():
            array[index] = value[key]
    else:
        target[index] = value
