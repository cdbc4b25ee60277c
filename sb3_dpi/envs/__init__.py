"""Gymnasium tasks of this package; importing it registers them."""

import gymnasium as gym

CARTPOLE_ID = "sb3_dpi/CartPoleBalance-v0"


def register_envs() -> None:
    """Register the tasks with Gymnasium; calling it again changes nothing."""
    if CARTPOLE_ID not in gym.registry:
        gym.register(id=CARTPOLE_ID, entry_point="sb3_dpi.envs.cartpole:CartPoleBalanceEnv", max_episode_steps=150)


register_envs()
