"""Tasks that pay 1 where they are solved and nothing elsewhere: most rewards are zero."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

WITHIN_REACH = 0.02
"""Metres between fingertip and target."""
UPRIGHT = np.cos(np.deg2rad(10.0))
"""Smallest cosine of the pendulum's angle."""


class PaysWhereSolved(gym.Wrapper[Any, Any, Any, Any]):
    """
    A task with a reward of 1 in some of its states.

    :param env: the task; what it pays stands in ``info["dense_reward"]``
    :param solved: whether an observation shows such a state
    """

    def __init__(self, env: gym.Env[Any, Any], solved: Callable[[Any], bool]) -> None:
        super().__init__(env)
        self._solved = solved

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Take a step.

        :param action: of the task
        :return: as the task's, the reward 1 or 0
        """
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(self._solved(obs)), terminated, truncated, {**info, "dense_reward": float(reward)}


def _without_limit(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """The task, whose time limit belongs outside of what changes its rewards."""
    return gym.make(name, max_episode_steps=-1, **kwargs)


def make_pendulum(**kwargs: Any) -> PaysWhereSolved:
    """
    Pendulum-v1, which pays within 10 degrees of upright.

    :param kwargs: of the task
    :return: the task, without a time limit
    """
    return PaysWhereSolved(_without_limit("Pendulum-v1", **kwargs), lambda obs: bool(obs[0] > UPRIGHT))


def make_reacher(**kwargs: Any) -> PaysWhereSolved:
    """
    Reacher-v5, which pays within 2 cm of the target.

    :param kwargs: of the task
    :return: the task, without a time limit
    """
    env = _without_limit("Reacher-v5", **kwargs)
    assert isinstance(env.observation_space, spaces.Box)
    # the last two of ten numbers are the way from target to fingertip
    return PaysWhereSolved(env, lambda obs: bool(np.hypot(*obs[8:10]) < WITHIN_REACH))
