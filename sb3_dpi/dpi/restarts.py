"""Leaving long episodes: a policy that balances for a thousand steps otherwise hardly ever sees a beginning."""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

LONG_EPISODE = 250
"""Steps after which an episode may be left: shorter ones show beginnings enough."""


def draw_restarts(rng: np.random.Generator, probability: float, episode_steps: np.ndarray) -> np.ndarray:
    """
    Toss a coin for each long episode.

    :param rng: tosses
    :param probability: of leaving a long episode
    :param episode_steps: taken so far in each environment, ``[N]``
    :return: numbers of the environments to leave, ``[k]``
    """
    if probability == 0.0:
        return np.zeros(0, dtype=int)
    return np.flatnonzero((rng.random(len(episode_steps)) < probability) & (episode_steps >= LONG_EPISODE))


def begin_anew(env: VecEnv, which: np.ndarray, observations: Any, normalizer: VecNormalize | None) -> Any:
    """
    Reset some environments of several.

    :param env: all of them
    :param which: numbers of those to reset, ``[k]``
    :param observations: the latest of all, ``[N, ...]`` or a dictionary of such
    :param normalizer: through which observations are read
    :return: the same with the new beginnings; None where a wrapper makes observations for all environments at once (transposed
        images, stacked frames), which cannot be done for one alone: nothing was reset
    """
    if env.get_attr("observation_space", [0])[0] != env.observation_space:
        return None
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
