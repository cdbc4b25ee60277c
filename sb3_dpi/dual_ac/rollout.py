"""How long rollouts are, and what a rollout buffer does not keep: how episodes ended, and what was truly seen at their end."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_dpi.common.finite import KeptStatistics, check_step
from sb3_dpi.common.iteration_size import FEWEST, describe, shrink
from sb3_dpi.dual_ac.constants import EPISODES, FEWEST_STEPS, MOST_STEPS


def flatten_time(array: Any) -> Any:
    """Join the axes of time and environments.

    :param array: ``[T, N, ...]``, or a dictionary of such
    :return: ``[T * N, ...]``
    """
    if isinstance(array, dict):
        return {key: flatten_time(value) for key, value in array.items()}
    return array.reshape(-1, *array.shape[2:])


def concatenate(first: Any, second: Any) -> Any:
    """Put observations behind others.

    :param first: array ``[n, ...]`` or dictionary of arrays
    :param second: array ``[m, ...]`` or dictionary of arrays, reshaped to fit; None where there are none
    :return: ``[n + m, ...]``
    """
    if second is None:
        return first
    if isinstance(first, dict):
        return {key: concatenate(value, second[key]) for key, value in first.items()}
    return np.concatenate([first, np.asarray(second).reshape(-1, *first.shape[1:]).astype(first.dtype)])


class Endings:
    """How the episodes of a rollout ended.

    :param n_steps: T
    :param n_envs: N
    """

    def __init__(self, n_steps: int, n_envs: int) -> None:
        self.terminated = np.zeros((n_steps, n_envs), dtype=bool)
        self.truncated = np.zeros((n_steps, n_envs), dtype=bool)
        self._cut: list[Any] = []

    @property
    def ends(self) -> np.ndarray:
        """Last step of an episode or of the rollout, ``[T, N]``."""
        ends = self.terminated | self.truncated
        ends[-1] = True
        return ends

    @property
    def n_episodes(self) -> int:
        """How many ended."""
        return int((self.terminated | self.truncated).sum())

    def add(self, t: int, new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Note how a step ended.

        :param t: which step
        :param new_obs: of all environments, after their automatic resets
        :param dones: ``[N]``
        :param infos: of the environments
        """
        is_last = t == len(self.terminated) - 1
        if not is_last and not any(dones.tolist()):
            return
        for i, done in enumerate(dones):
            truncated = bool(done) and bool(infos[i].get("TimeLimit.truncated", False))
            self.truncated[t, i], self.terminated[t, i] = truncated, bool(done) and not truncated
            if truncated:
                self._cut.append(infos[i]["terminal_observation"])
            elif is_last and not done:
                self._cut.append(
                    {key: value[i] for key, value in new_obs.items()} if isinstance(new_obs, dict) else new_obs[i]
                )

    def observations(self) -> Any:
        """Those behind the steps at which an episode was cut, by a time limit or the rollout's end, in the order of time.

        :return: array ``[n, ...]`` or dictionary of arrays; None where there are none
        """
        if not self._cut:
            return None
        if isinstance(self._cut[0], dict):
            return {key: np.stack([obs[key] for obs in self._cut]) for key in self._cut[0]}
        return np.stack(self._cut)


class RolloutsOfEpisodes(OnPolicyAlgorithm):
    """Rollouts that show several beginnings, where the user leaves ``n_steps`` open: from the starts of two or three episodes
    a policy learns what suits these alone."""

    chosen_steps: int | None = None
    """``n_steps``, as long as nobody has given another"""
    wanted_steps: int | None = None
    """Of all environments, by the latest rollout; None before the first"""

    @property
    def wanted_updates(self) -> int:
        """Of a ``learn``, where its steps allow it."""
        return FEWEST

    def _check_step(self, new_obs: Any, rewards: Any, dones: np.ndarray, infos: list[Any], statistics: KeptStatistics) -> None:
        """Refuse what would spoil everything learned."""
        try:
            check_step(new_obs, rewards, dones, infos, self.num_timesteps)
        except ValueError:
            statistics.restore()
            self._last_obs = None  # start from a reset
            raise

    def _choose_steps(self) -> None:
        """Set the steps until the next update, where they are not given."""
        if self.n_steps not in (None, self.chosen_steps):
            return
        of_learn = self._total_timesteps - self._num_timesteps_at_start
        wanted = self.wanted_steps or FEWEST_STEPS
        if of_learn > 0:
            wanted = shrink(min(wanted, max(of_learn // self.wanted_updates, FEWEST_STEPS)), of_learn)
        self.n_steps = self.chosen_steps = max(wanted // self.n_envs, -(-2 // self.n_envs))

    def _follow_episodes(self, n_episodes: int) -> None:
        """Choose by how many episodes ended in the rollout; where none did, as many steps as there may be."""
        steps = EPISODES * self.n_steps * self.n_envs // max(n_episodes, 1)
        self.wanted_steps = min(max(steps, FEWEST_STEPS), MOST_STEPS)
        self._choose_steps()

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(total_timesteps, *args, **kwargs)
        self._choose_steps()
        is_chosen, steps = self.n_steps == self.chosen_steps, self.n_steps * self.n_envs
        usual = self.wanted_steps or FEWEST_STEPS if is_chosen else steps
        most = min(MOST_STEPS, max(int(total_timesteps) // self.wanted_updates, FEWEST_STEPS))
        later = f" at first, up to {most:,} where episodes are long" if is_chosen and most > steps else ""
        self.logger.info(describe(type(self).__name__, steps, later, usual // self.n_envs * self.n_envs, int(total_timesteps)))
        return result
