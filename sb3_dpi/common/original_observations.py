"""Observations as the environments returned them, where VecNormalize shows standardised and clipped ones.

Models and buffers keep original observations, for VecNormalize's statistics move. SB3 offers those after a step, and with them
those after the reset of an episode that ended; the terminal ones it only offers normalised, which undoes what was clipped.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_dpi.common.asking import beneath
from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.trajopt.types import FloatArray

SHOWING_THE_SAME = (VecTransposeImage, VecMonitor, VecCheckNan, VecVideoRecorder)
"""Wrappers through which the original of an observation is known."""


def shown_spread(statistics: RunningMeanStd, normalizer: VecNormalize) -> FloatArray:
    """By what VecNormalize divides.

    :param statistics: of observations, or of returns
    :param normalizer: whose they are
    :return: of the shape of the statistics
    """
    spread: FloatArray = np.sqrt(np.asarray(statistics.var, np.float64) + normalizer.epsilon)
    return spread


def step_unclipped(env: VecEnv, normalizer: VecNormalize | None, actions: np.ndarray) -> VecEnvStepReturn:
    """Step with terminal observations in the infos that VecNormalize has not clipped, so that they can be unnormalised.

    :param env: the outermost wrapper
    :param normalizer: in it; None where there is none
    :param actions: for ``env.step``
    :return: what ``env.step`` returns, observations clipped as ever
    """
    if normalizer is None or not normalizer.norm_obs:
        return as_arrays(env.step(actions))
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
    return as_arrays((clipped, rewards, dones, infos))


def as_arrays(stepped: VecEnvStepReturn) -> VecEnvStepReturn:
    """Read rewards and ends as arrays of numpy, which wrappers of others may return as lists or tensors.

    :param stepped: what ``env.step`` returned
    :return: the same observations and infos
    """
    obs, rewards, dones, infos = stepped
    return obs, np.asarray(rewards), np.asarray(dones, dtype=bool), infos


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


def as_shown(env: VecEnv | None, observations: Observations) -> Observations:
    """Observations of the environments as the outermost wrapper would show them.

    :param env: that wrapper; None shows them as they are
    :param observations: ``[n, ...]`` or a dictionary of such
    :return: with transposed images, and normalised by the statistics of now; what other wrappers do is left out
    """
    shown: Any = observations
    wrappers: list[Any] = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    for wrapper in reversed(wrappers):
        if isinstance(wrapper, VecTransposeImage):
            shown = wrapper.transpose_observations(shown)
        elif isinstance(wrapper, VecNormalize):
            shown = wrapper.normalize_obs(shown)
    found: Observations = shown
    return found


def seen_through(env: VecEnv, normalizer: VecNormalize | None) -> VecEnv:
    """Show observations to a model that has no environment of its own.

    :param env: whose environments they are of
    :param normalizer: the model's own; None where it saw them as they are
    :return: for ``as_shown``, never to be stepped
    """
    shown: VecEnv = beneath(env)
    if is_vecenv_wrapped(env, VecTransposeImage):
        shown = VecTransposeImage(shown)
    if normalizer is None:
        return shown
    normalizer.venv = shown
    return normalizer


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


def readable_normalizer(env: VecEnv) -> VecNormalize | None:
    """
    VecNormalize, if what it has normalised is all that the policy sees.

    :param env: the outermost wrapper
    :return: None where there is none, or where a wrapper around it may show something else, as a frame stack does: what the
        policy sees is then kept as it is
    """
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            return env
        if type(env) not in SHOWING_THE_SAME:
            return None
        env = env.venv
    return None


class ReadsOriginals(BaseAlgorithm):
    """What an algorithm that keeps original observations inherits beside its base of Stable-Baselines3."""

    def get_vec_normalize_env(self) -> VecNormalize | None:
        return self._vec_normalize_env if self.env is None else unwrap_vec_normalize(self.env)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self.env is not None:
            self._vec_normalize_env = readable_normalizer(self.env)
        return super()._setup_learn(*args, **kwargs)


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
