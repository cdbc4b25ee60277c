"""From hyperparameters in RL Zoo's format to environments and an untrained model."""

from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_dpi.compare.types import RunConfig
from sb3_dpi.zoo import algorithm_class
from sb3_dpi.zoo.environments import import_environment
from sb3_dpi.zoo.hyperparams import ENV_KEYS, NOISE_KEYS, OTHER_KEYS

SCHEDULED_KEYS = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
STRING_KEYS = ("policy_kwargs", "rollout_buffer_kwargs", "replay_buffer_kwargs", "replay_buffer_class", "rollout_buffer_class")


def _evaluate_string(value: Any) -> Any:
    """Read ``"dict(activation_fn=nn.ReLU)"`` as RL Zoo does; what is not a string stays as it is."""
    if not isinstance(value, str):
        return value
    import stable_baselines3 as sb3
    import torch as th
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    names = {"nn": th.nn, "th": th, "torch": th, "np": np, "RMSpropTFLike": RMSpropTFLike}
    return eval(value, {**names, "HerReplayBuffer": sb3.HerReplayBuffer})


def _schedule(key: str, text: str) -> float | LinearSchedule:
    try:
        value = float(text.removeprefix("lin_"))
    except ValueError:
        raise ValueError(f"{key}: {text!r} is not supported, write a number or lin_NUMBER (falls to zero)") from None
    # YAML takes 3e-4, without a dot, for a string
    return LinearSchedule(value, 0.0, 1.0) if text.startswith("lin_") else value


def environment_arguments(config: RunConfig) -> dict[str, Any]:
    """Collect the arguments of a run's environment: those of its hyperparameters, then its own."""
    return {**(_evaluate_string(config.hyperparams.get("env_kwargs")) or {}), **config.env_kwargs}


def _action_noise(hyperparams: dict[str, Any], env: VecEnv) -> NormalActionNoise | OrnsteinUhlenbeckActionNoise:
    kind = str(hyperparams["noise_type"]).strip()
    shape = env.action_space.shape
    assert shape is not None
    mean, std = np.zeros(shape), np.full(shape, float(hyperparams["noise_std"]))
    if kind == "normal":
        return NormalActionNoise(mean, std)
    if kind == "ornstein-uhlenbeck":
        return OrnsteinUhlenbeckActionNoise(mean, std)
    raise ValueError(f"noise_type: {kind!r} is not supported, write normal or ornstein-uhlenbeck")


def constructor_arguments(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    Turn hyperparameters in RL Zoo's format into arguments of the constructor.

    :param hyperparams: As in RL Zoo's YAML files
    :return: Without the keys for the environment and the noise, schedules (``lin_0.001``) and ``policy_kwargs`` as objects
    :raises ValueError: If a key asks for something that a comparison does not support
    """
    unsupported = sorted(set(OTHER_KEYS) & set(hyperparams))
    if unsupported:
        raise ValueError(f"A comparison does not support the hyperparameters {', '.join(unsupported)}")
    skip = {*ENV_KEYS, *NOISE_KEYS}
    # A copy: algorithms write into the dictionaries that they are given, and the configuration must stay what it is
    arguments = deepcopy({key: value for key, value in hyperparams.items() if key not in skip})
    for key in SCHEDULED_KEYS:
        if isinstance(arguments.get(key), str):
            arguments[key] = _schedule(key, arguments[key])
    for key in STRING_KEYS:
        if key in arguments:
            arguments[key] = _evaluate_string(arguments[key])
    return arguments


def _wrapper(hyperparams: dict[str, Any], key: str) -> Any:
    if not hyperparams.get(key):
        return None
    # Only here: importing RL Zoo takes a second, and few entries have wrappers
    from rl_zoo3.utils import get_wrapper_class

    return get_wrapper_class(hyperparams, key)


def make_env(config: RunConfig, monitor_dir: str | None = None, evaluation: bool = False) -> VecEnv:
    """
    Make the training or the evaluation environment of a run, wrapped and normalized as the hyperparameters say.

    :param config: The run
    :param monitor_dir: Folder for the monitor's csv files, None for none
    :param evaluation: Whether to make the one for evaluation: one environment per episode, statistics held, raw rewards
    :return: The environment
    """
    hyperparams, env_kwargs = config.hyperparams, environment_arguments(config)
    if (n_envs := int(hyperparams.get("n_envs", 1))) < 1:
        raise ValueError(f"n_envs: at least 1 is needed, not {n_envs}")
    import_environment(config.env_id)
    env: VecEnv = make_vec_env(
        config.env_id,
        n_envs=config.n_eval_episodes if evaluation else n_envs,
        seed=config.seed,
        monitor_dir=monitor_dir,
        wrapper_class=_wrapper(hyperparams, "env_wrapper"),
        env_kwargs=env_kwargs,
    )
    vec_env_wrapper = _wrapper(hyperparams, "vec_env_wrapper")
    if vec_env_wrapper is not None:
        env = vec_env_wrapper(env)
    normalize = _evaluate_string(hyperparams.get("normalize", False))
    if normalize:
        kwargs = dict(normalize) if isinstance(normalize, dict) else {}
        if "gamma" in hyperparams:
            kwargs["gamma"] = hyperparams["gamma"]
        if evaluation:
            kwargs.update(training=False, norm_reward=False)
        env = VecNormalize(env, **kwargs)
    if hyperparams.get("frame_stack"):
        env = VecFrameStack(env, int(hyperparams["frame_stack"]))
    return env


def build_model(config: RunConfig, monitor_dir: str | None = None) -> BaseAlgorithm:
    """
    Make the environment and the untrained model of a run.

    :param config: The run
    :param monitor_dir: Folder for the monitor's csv files, None for none
    :return: The model, with its environment
    """
    arguments = constructor_arguments(config.hyperparams)
    env = make_env(config, monitor_dir)
    if config.hyperparams.get("noise_type"):
        arguments["action_noise"] = _action_noise(config.hyperparams, env)
    model: BaseAlgorithm = algorithm_class(config.algo)(
        env=env, seed=config.seed, verbose=0, device=config.device, **arguments
    )
    return model
