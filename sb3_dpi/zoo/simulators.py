"""RL Zoo's agents that plan in a simulator: they need the environment in which they act, which RL Zoo keeps for itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from stable_baselines3.common.vec_env import VecEnv


@contextmanager
def planning_where_they_act() -> Iterator[None]:
    """Let MPC be loaded with the environment that RL Zoo has just made for the agent."""
    import rl_zoo3.utils

    from sb3_dpi.mpc import MPC

    made: list[VecEnv] = []
    create, load = rl_zoo3.utils.create_test_env, MPC.load

    def remembered(*args: Any, **kwargs: Any) -> VecEnv:
        made.append(create(*args, **kwargs))
        return made[-1]

    def with_env(*args: Any, **kwargs: Any) -> MPC:
        return load(*args, **{"env": made[-1] if made else None, **kwargs})

    with (
        patch.object(rl_zoo3.utils, "create_test_env", remembered),
        patch.object(rl_zoo3, "create_test_env", remembered),
        patch.object(MPC, "load", with_env),
    ):
        yield
