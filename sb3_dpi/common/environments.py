"""Environments that differ: training one policy on several, telling them apart, testing on others (Sun et al. 2018, 6.3)."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_dpi.common.asking import ask, names
from sb3_dpi.trajopt.types import FloatArray, IntArray

Environment = str | gym.Env | Callable[[], gym.Env]
"""An id, an environment or a function that makes one."""
LONGEST_EPISODE = 10_000
"""Steps after which an episode of an evaluation is cut where the task has no time limit: it might never end."""


class NumberedEnvironment(gym.Wrapper):
    """An environment that knows its place in the list it came from.

    :param env: the environment
    :param environment_index: its place
    """

    def __init__(self, env: gym.Env, environment_index: int):
        super().__init__(env)
        self.environment_index = environment_index


def _make(environment: Environment, index: int, is_bounded: bool = False) -> gym.Env:
    if isinstance(environment, str):
        made = gym.make(environment)
    elif isinstance(environment, gym.Env):
        made = environment
    else:
        made = environment()
    if not isinstance(made, gym.Env):
        raise ValueError(
            f"Entry {index} of the environments is a {type(made).__name__}: give ids, Gymnasium environments or functions "
            "that make one"
        )
    if is_bounded and (made.spec is None or made.spec.max_episode_steps is None):
        made = gym.wrappers.TimeLimit(made, LONGEST_EPISODE)
    return NumberedEnvironment(Monitor(made), index)


def make_environments(environments: Sequence[Environment], n_envs: int = 1, vec_env_cls: type[VecEnv] = DummyVecEnv) -> VecEnv:
    """Vectorise environments that differ; each entry is told apart from the others by its place in the list.

    :param environments: ids, environments or functions that make one; all with the same spaces
    :param n_envs: copies of each, for ids and functions
    :param vec_env_cls: ``DummyVecEnv`` or ``SubprocVecEnv``
    :return: ``len(environments) * n_envs`` sub-environments
    :raises ValueError: if there are none, an entry is something else, copies of an object are asked for, or spaces differ
    """
    if not environments:
        raise ValueError("An empty list of environments: give at least one id, environment or function that makes one")
    if n_envs > 1 and any(isinstance(environment, gym.Env) for environment in environments):
        raise ValueError(
            f"n_envs={n_envs}: an environment that is already made cannot be copied; give a function that makes it"
        )

    def factory(i: int) -> Callable[[], gym.Env]:
        return lambda: _make(environments[i], i)

    env = vec_env_cls([factory(i) for i in range(len(environments)) for _ in range(n_envs)])  # type: ignore
    for name in ("observation_space", "action_space"):
        spaces = env.get_attr(name)
        for i, space in enumerate(spaces):
            if space != spaces[0]:
                env.close()
                raise ValueError(
                    f"Entry {i // n_envs} of the environments has another {name} ({space}) than the first ({spaces[0]}): one "
                    "policy needs the same spaces everywhere"
                )
    return env


def environment_indices(env: VecEnv) -> IntArray:
    """Which environment each sub-environment is: by the place in the list that ``make_environments`` was given, or an
    attribute ``environment_index`` of their own, else by id and keyword arguments of ``gymnasium.make``.

    :param env: the vectorised environment
    :return: ``[n_envs]``, from 0 on, in the order of their first appearance
    """
    specs = ask(env, "spec")
    labels = ask(env, "environment_index") or (names(env) if specs is None else list(map(_identity, specs)))
    places = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([places[label] for label in labels])


def _identity(spec: Any) -> str:
    """How an environment was made."""
    if not isinstance(spec, EnvSpec):  # simulators have others
        return ""
    return f"{spec.id} {sorted((key, repr(value)) for key, value in spec.kwargs.items())}"


def evaluate_on_environments(
    model: BaseAlgorithm, environments: Sequence[Environment], n_eval_episodes: int = 10, deterministic: bool = True
) -> FloatArray:
    """Test a policy on environments, for instance on some that it has never seen.

    Where one has no time limit its episodes are cut after ``LONGEST_EPISODE`` steps, which a warning says.

    :param model: any model of Stable-Baselines3; if it normalises observations, with the statistics of its training
    :param environments: ids, environments or functions that make one
    :param n_eval_episodes: episodes on each
    :param deterministic: whether to use deterministic actions
    :return: returns, ``[len(environments), n_eval_episodes]``
    :raises ValueError: if there are none or an entry is something else
    """
    if not environments:
        raise ValueError("An empty list of environments: give at least one id, environment or function that makes one")
    returns = []
    for i, environment in enumerate(environments):
        env: VecEnv = DummyVecEnv([lambda i=i, e=environment: _make(e, i, True)])  # type: ignore[misc]
        if (normalizer := model.get_vec_normalize_env()) is not None and normalizer.norm_obs:
            env = _with_statistics(env, normalizer)
        episodes, lengths = evaluate_policy(model, env, n_eval_episodes, deterministic, return_episode_rewards=True)
        if max(lengths) >= LONGEST_EPISODE:  # type: ignore[arg-type]
            warnings.warn(
                f"Environment {i}: an episode was cut after {LONGEST_EPISODE:,} steps. Wrap the environment in "
                "gymnasium.wrappers.TimeLimit for a limit of its own",
                stacklevel=2,
            )
        returns.append(episodes)
        if not isinstance(environment, gym.Env):
            env.close()
    return np.array(returns)


def _with_statistics(env: VecEnv, normalizer: VecNormalize) -> VecEnv:
    normalized = VecNormalize(
        env,
        training=False,
        norm_obs=normalizer.norm_obs,
        norm_reward=False,
        clip_obs=normalizer.clip_obs,
        epsilon=normalizer.epsilon,
        norm_obs_keys=normalizer.norm_obs_keys,
    )
    normalized.obs_rms = normalizer.obs_rms
    return normalized
