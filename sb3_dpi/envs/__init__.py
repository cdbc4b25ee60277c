"""Gymnasium tasks of this package; importing it registers them."""

import gymnasium as gym

CARTPOLE_ID = "sb3_dpi/CartPoleBalance-v0"


SPARSE_PENDULUM_ID = "sb3_dpi/SparsePendulum-v0"
SPARSE_REACHER_ID = "sb3_dpi/SparseReacher-v0"
_TASKS = {
    CARTPOLE_ID: ("cartpole:CartPoleBalanceEnv", 150),
    SPARSE_PENDULUM_ID: ("sparse:make_pendulum", 200),
    SPARSE_REACHER_ID: ("sparse:make_reacher", 50),
}


def register_envs() -> None:
    """Register the tasks with Gymnasium; calling it again changes nothing."""
    for name, (made_by, max_episode_steps) in _TASKS.items():
        if name not in gym.registry:
            gym.register(id=name, entry_point=f"sb3_dpi.envs.{made_by}", max_episode_steps=max_episode_steps)


register_envs()
