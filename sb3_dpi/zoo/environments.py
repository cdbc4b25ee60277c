"""Environments by their ids: modules that register them, and what their episodes are bounded by."""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import gymnasium as gym

from sb3_dpi.common.environments import LONGEST_EPISODE

__all__ = ["LONGEST_EPISODE", "import_custom_envs", "import_environment", "time_limit"]


def import_custom_envs() -> None:
    """Import the user's ``custom_envs``, which RL Zoo would import too, but without a word where that fails."""
    if find_spec("custom_envs") is None:
        return
    try:
        importlib.import_module("custom_envs")
    except ImportError as error:
        raise ImportError(f"custom_envs is there but cannot be imported: {error}") from error


def import_environment(env_id: str) -> str:
    """Import the module that an id ``module:Id-v0`` names; returns the id without it."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ImportError(f"the module of environment {env_id!r} cannot be imported ({error})") from error
    return name


def time_limit(env_id: str, env_kwargs: Mapping[str, Any]) -> int | None:
    """Find the time limit of an environment, also among its arguments; None where there is none."""
    limit = env_kwargs.get("max_episode_steps") or gym.spec(env_id.rpartition(":")[2]).max_episode_steps
    return limit if limit is not None and limit > 0 else None  # -1 takes the limit away
