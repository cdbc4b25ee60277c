"""Environments by their ids: modules that register them, and what their episodes are bounded by."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common import evaluation
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, is_vecenv_wrapped

from sb3_dpi.common.environments import LONGEST_EPISODE
from sb3_dpi.zoo.cause import in_one_line
from sb3_dpi.zoo.register import closest


def import_custom_envs() -> None:
    """Import the user's ``custom_envs``, which RL Zoo would import too, but without a word where that fails."""
    if find_spec("custom_envs") is None:
        return
    try:
        importlib.import_module("custom_envs")
    except (Exception, SystemExit) as error:
        raise ImportError(f"custom_envs is there but cannot be imported: {in_one_line(error)}") from error


def import_environment(env_id: str) -> str:
    """Import the module that an id ``module:Id-v0`` names; returns the id without it."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise ImportError(f"the module of environment {env_id!r} cannot be imported: {in_one_line(error)}") from error
    return name


def find_environment(env_id: str) -> EnvSpec:
    """
    Find how an environment is registered; of ``module:Id-v0`` the module is imported.

    :raises ImportError: If that cannot be imported
    :raises ValueError: If there is no such environment; the message offers the closest ids
    """
    try:
        return gym.spec(import_environment(env_id))
    except (gym.error.Error, ValueError) as error:
        prefix, colon, name = env_id.rpartition(":")
        hint = "module:Id-v0 imports a module of yours that registers it"
        suggestion = closest(name, gym.registry, 3, prefix + colon)
        hint = f"{suggestion} ({hint})" if suggestion and not colon else suggestion or hint
        raise ValueError(f"unknown environment {env_id!r}, {hint}") from error


def time_limit(env_id: str, env_kwargs: Mapping[str, Any]) -> int | None:
    """Find the time limit of an environment, also among its arguments; None where there is none that bounds anything."""
    limit = env_kwargs.get("max_episode_steps") or gym.spec(env_id.rpartition(":")[2]).max_episode_steps
    longest = None if "max_episode_steps" in env_kwargs else 10 * LONGEST_EPISODE
    return limit if limit and 0 < limit <= (longest or limit) else None  # -1 takes the limit away


def longest_episode(env_id: str, env_kwargs: Mapping[str, Any]) -> int:
    """Find after how many steps an evaluation ends an episode that has not ended by itself."""
    return max(LONGEST_EPISODE, time_limit(env_id, env_kwargs) or 0)


class Bounded(VecEnvWrapper):
    """
    Ends episodes after a number of steps, whatever wrappers make of their ends: for ``evaluate_policy``, which waits for what
    a monitor tells. The next episode goes on where one was cut.
    """

    def __init__(self, venv: VecEnv, longest: int) -> None:
        super().__init__(venv)
        self.longest, self.n_cut = longest, 0
        self.lengths, self.returns = np.zeros(venv.num_envs, int), np.zeros(venv.num_envs)
        self.is_monitored = is_vecenv_wrapped(venv, VecMonitor) or venv.env_is_wrapped(Monitor)[0]

    def reset(self) -> Any:
        """Begin to count."""
        self.lengths[:], self.returns[:] = 0, 0.0
        return self.venv.reset()

    def step_wait(self) -> Any:
        """End the episodes that are too long."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self.lengths += 1
        self.returns += rewards
        ended = dones & np.array([not self.is_monitored or "episode" in info for info in infos])
        for i in np.flatnonzero(~ended & (self.lengths >= self.longest)):
            infos[i] |= {"episode": {"r": float(self.returns[i]), "l": int(self.lengths[i])}, "cut": True}
            ended[i] = True
            self.n_cut += 1
        self.lengths[ended], self.returns[ended] = 0, 0.0
        return observations, rewards, dones | ended, infos


def with_time_limit(env_id: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the arguments of an environment for evaluation: without a time limit its episodes would not have to end."""
    limit = {} if time_limit(env_id, env_kwargs) else {"max_episode_steps": LONGEST_EPISODE}
    return {**env_kwargs, **limit}


def tell_cut(name: str, option: str) -> str:
    """Say that the episodes of an evaluation are cut, and what of the command line sets a time limit."""
    return (
        f"{name} has no time limit, or a very long one: the episodes of an evaluation are cut after {LONGEST_EPISODE:,} "
        f"steps; {option} sets one for training and evaluation"
    )


@contextmanager
def evaluations_that_end() -> Iterator[None]:
    """
    Let every environment that RL Zoo makes for an evaluation, in training or of a trained agent, have a time limit, and bound
    the evaluation itself: a wrapper may take the limit away.
    """
    import rl_zoo3.utils
    from rl_zoo3.exp_manager import ExperimentManager

    longest, evaluate, told = LONGEST_EPISODE, evaluation.evaluate_policy, False
    make_test, make_envs = rl_zoo3.utils.create_test_env, ExperimentManager.create_envs

    def bounded(env_id: str, env_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        if time_limit(env_id, env_kwargs or {}) is None:
            print(tell_cut(env_id, "--env-kwargs max_episode_steps:STEPS"))
        nonlocal longest
        longest = longest_episode(env_id, env_kwargs or {})
        return with_time_limit(env_id, env_kwargs or {})

    def create_test_env(env_id: str, **kwargs: Any) -> Any:
        return make_test(env_id, **{**kwargs, "env_kwargs": bounded(env_id, kwargs.get("env_kwargs"))})

    def create_envs(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        if eval_env:
            self.eval_env_kwargs = bounded(self.env_name.gym_id, self.eval_env_kwargs)
        return make_envs(self, n_envs, eval_env=eval_env, no_log=no_log)

    def evaluate_policy(model: Any, env: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal told
        env = Bounded(env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env]), longest)
        found = evaluate(model, env, *args, **kwargs)
        if env.n_cut and not told:
            told = True
            print(f"The episodes of an evaluation did not end: they are cut after {longest:,} steps")
        return found

    with ExitStack() as patches:
        for module in [
            module for module in sys.modules.values() if getattr(module, "__dict__", {}).get("evaluate_policy") is evaluate
        ]:
            patches.enter_context(patch.object(module, "evaluate_policy", evaluate_policy))
        patches.enter_context(patch.object(rl_zoo3.utils, "create_test_env", create_test_env))
        patches.enter_context(patch.object(rl_zoo3, "create_test_env", create_test_env))
        patches.enter_context(patch.object(ExperimentManager, "create_envs", create_envs))
        yield
