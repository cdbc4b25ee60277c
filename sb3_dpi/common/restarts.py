"""Leaving long episodes: a policy that balances for a thousand steps otherwise hardly ever sees a beginning."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize


class Restarts:
    """
    Counts the steps of episodes and leaves long ones.

    :param after: steps from which on an episode counts as long; None leaves none
    :param n_envs: N
    :param rng: draws how long each episode may be: half of ``after`` at least, and twice as long half as often, so that early
        and late steps are seen alike. None makes ``after`` the limit of all
    """

    def __init__(self, after: int | None, n_envs: int, rng: np.random.Generator | None = None) -> None:
        self.after = after
        """steps from which on an episode counts as long; may change while episodes go on"""
        self._rng = rng
        self.steps = np.zeros(n_envs, dtype=int)
        """of the episodes that go on, ``[N]``"""
        self.is_spread = rng is not None
        """whether the drawn limits count"""
        self._shares = np.ones(n_envs)
        self._spared = np.zeros(n_envs, dtype=bool)
        self._restart(np.arange(n_envs))

    def _restart(self, which: np.ndarray) -> None:
        self.steps[which] = 0
        self._spared[which] = False
        if self._rng is not None and self.after is not None:
            self._shares[which] = 1.0 - self._rng.random(len(which))

    def count(self, dones: np.ndarray) -> None:
        """
        Note a step of all environments.

        :param dones: which episodes ended with it, ``[N]``
        """
        self.steps += 1
        self._restart(np.flatnonzero(dones))

    def begin(self, starts: np.ndarray) -> None:
        """
        Note where an episode begins.

        :param starts: ``[N]``
        """
        self._restart(np.flatnonzero(starts.astype(bool) & (self.steps > 0)))

    def spare(self, i: int) -> None:
        """
        Let the episode that begins go on to its end.

        :param i: number of its environment
        """
        self._spared[i] = True

    def leave(self, env: VecEnv, observations: Any, normalizer: VecNormalize | None) -> tuple[Any, np.ndarray]:
        """
        Begin anew where an episode is long.

        :param env: all environments
        :param observations: the latest of all, ``[N, ...]`` or a dictionary of such
        :param normalizer: through which observations are read
        :return: the same with the new beginnings, and the numbers of the environments that begin. None where a wrapper makes
            observations for all environments at once (transposed images, stacked frames), which cannot be done for one alone
        """
        nowhere = np.zeros(0, dtype=int)
        if self.after is None:
            return observations, nowhere
        limits = 0.5 * self.after / self._shares if self.is_spread else self.after
        which = np.flatnonzero((self.steps >= limits) & ~self._spared)
        if not len(which) or env.get_attr("observation_space", [0])[0] != env.observation_space:
            return observations, nowhere
        self._restart(which)
        return _begin_anew(env, which, observations, normalizer), which


def _begin_anew(env: VecEnv, which: np.ndarray, observations: Any, normalizer: VecNormalize | None) -> Any:
    fresh = (
        {key: array.copy() for key, array in observations.items()} if isinstance(observations, dict) else observations.copy()
    )
    for i in which:
        obs, _ = env.env_method("reset", indices=int(i))[0]
        if normalizer is not None:
            obs = normalizer.normalize_obs(obs)
        if isinstance(fresh, dict):
            for key, array in fresh.items():
                array[i] = obs[key]
        else:
            fresh[i] = obs
    return fresh
