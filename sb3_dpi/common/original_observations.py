"""Observations as the environments returned them, where VecNormalize shows standardised and clipped ones.

Models and buffers keep original observations, for VecNormalize's statistics move. SB3 offers those after a step, and with them
those after the reset of an episode that ended; the terminal ones it only offers normalised, which undoes what was clipped.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, VecTransposeImage
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_dpi.common.trajectories import Observations, map_observations


def step_unclipped(env: VecEnv, normalizer: VecNormalize | None, actions: np.ndarray) -> VecEnvStepReturn:
    """Step with terminal observations in the infos that VecNormalize has not clipped, so that they can be unnormalised.

    :param env: the outermost wrapper
    :param normalizer: in it; None where there is none
    :param actions: for ``env.step``
    :return: what ``env.step`` returns, observations clipped as ever
    """
    if normalizer is None or not normalizer.norm_obs:
        return env.step(actions)
    clip, normalizer.clip_obs = normalizer.clip_obs, np.inf
    try:
        new_obs, rewards, dones, infos = env.step(actions)
    finally:
        normalizer.clip_obs = clip
    if isinstance(new_obs, dict):
        keys = normalizer.norm_obs_keys or ()
        clipped: Any = {key: np.clip(a, -clip, clip) if key in keys else a for key, a in new_obs.items()}
    else:
        clipped = np.clip(new_obs, -clip, clip)
    return clipped, rewards, dones, infos


def original_obs(env: VecEnv, normalizer: VecNormalize | None, obs: Any) -> Observations:
    """Observations of the last step or reset as the environments returned them, images transposed as the policy sees them.

    :param env: the outermost wrapper
    :param normalizer: in it; None where there is none
    :param obs: what ``env`` returned, ``[n_envs, ...]`` or a dictionary of such
    :return: not normalised, of the same structure
    """
    original: Observations = obs
    if normalizer is None:
        return original
    original = normalizer.get_original_obs()
    wrapper: Any = env
    while wrapper is not normalizer:  # SB3 puts the transposition of images around VecNormalize
        if isinstance(wrapper, VecTransposeImage):
            original = wrapper.transpose_observations(original)
        wrapper = wrapper.venv
    return original


def original_rewards(normalizer: VecNormalize | None, rewards: np.ndarray) -> np.ndarray:
    """Rewards of the last step as the environments returned them.

    :param normalizer: VecNormalize; None where there is none
    :param rewards: what the outermost wrapper returned, ``[n_envs]``
    :return: not normalised, ``[n_envs]``
    """
    return rewards if normalizer is None else normalizer.get_original_reward()


def before_reset(
    normalizer: VecNormalize | None, obs_after: Observations, dones: np.ndarray, infos: list[dict[str, Any]]
) -> Observations:
    """The observations that followed a step, those before the automatic reset where an episode has ended.

    :param normalizer: VecNormalize; None where there is none
    :param obs_after: of ``original_obs``, of new episodes where others have ended
    :param dones: which have, ``[n_envs]``
    :param infos: of ``step_unclipped``, with the terminal observations
    :return: not normalised, a copy
    """
    obs = map_observations(np.copy, obs_after)
    for i in np.flatnonzero(dones):
        final = infos[i]["terminal_observation"]
        if normalizer is not None:
            final = normalizer.unnormalize_obs(final)
        if isinstance(obs, dict):
            for key, array in obs.items():
                array[i] = final[key]
        else:
            obs[i] = final
    return obs


class UnclippedTerminals(VecEnvWrapper):
    """What SB3's own loops step in place of an environment, so that they store terminal observations that were not clipped.

    :param venv: the outermost wrapper
    :param normalizer: in it
    """

    def __init__(self, venv: VecEnv, normalizer: VecNormalize) -> None:
        super().__init__(venv)
        self._normalizer = normalizer

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        return step_unclipped(self.venv, self._normalizer, self._actions)
