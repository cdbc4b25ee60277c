"""Names of the numbers in an observation, where the environment has them."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dpi.common.planner_state import is_vector_space
from sb3_dpi.common.policies import STATE_KEY

ATTRIBUTES = ("observation_names", "state_names")
"""Of an environment that says how its numbers are called"""
KNOWN: dict[str, tuple[str, ...]] = {
    "Pendulum": ("cos angle", "sin angle", "velocity"),
    "MountainCarContinuous": ("position", "velocity"),
    "CartPole": ("position", "velocity", "angle", "angular velocity"),
    "Acrobot": ("cos 1", "sin 1", "cos 2", "sin 2", "velocity 1", "velocity 2"),
    "Reacher": (
        *("cos shoulder", "cos elbow", "sin shoulder", "sin elbow", "target x", "target y"),
        *("velocity shoulder", "velocity elbow", "to target x", "to target y"),
    ),
}
"""Tasks of Gymnasium that do not say it themselves, by the beginning of their ids"""
JOINT_NUMBERS = {0: (7, 6), 1: (4, 3), 2: (1, 1), 3: (1, 1)}
"""Positions and velocities of MuJoCo's joints: free, ball, slide, hinge"""


def state_names(env: gym.Env, observation_space: spaces.Space[Any], n: int) -> list[str]:
    """
    Name the numbers that a model is of.

    :param env: an environment; an attribute ``observation_names`` or ``state_names`` of its own goes before all else
    :param observation_space: its observations
    :param n: how many numbers
    :return: ``[n]``
    """
    inner: Any = env.unwrapped
    given = [getattr(inner, name, None) for name in ATTRIBUTES]
    spec = getattr(env, "spec", None)
    task = spec.id.split("/")[-1].split("-")[0] if spec is not None else ""
    for found in (*given, KNOWN.get(task), _of_joints(inner), _of_keys(observation_space)):
        if found is not None and len(found) == n:
            return [str(name) for name in found]
    return [f"x{i}" for i in range(n)]


def _of_keys(space: spaces.Space[Any]) -> list[str] | None:
    if not isinstance(space, spaces.Dict):
        return None
    known = space.spaces
    keys = [STATE_KEY] if STATE_KEY in known else [key for key, part in known.items() if is_vector_space(part)]
    names: list[str] = []
    for key in keys:
        size = int(np.prod(known[key].shape or ()))
        names += [key] if size == 1 else [f"{key} {i}" for i in range(size)]
    return names


def _of_joints(env: Any) -> Sequence[str] | None:
    """Positions, then velocities, of a MuJoCo task of Gymnasium, then whatever else it observes."""
    structure, model = getattr(env, "observation_structure", None), getattr(env, "model", None)
    if not isinstance(structure, dict) or model is None:
        return None
    positions: list[str] = []
    velocities: list[str] = []
    for i in range(model.njnt):
        joint = model.joint(i).name or f"joint {i}"
        n_q, n_v = JOINT_NUMBERS[int(model.jnt_type[i])]
        positions += [joint] if n_q == 1 else [f"{joint} {k}" for k in range(n_q)]
        velocities += [f"{joint} velocity"] if n_v == 1 else [f"{joint} velocity {k}" for k in range(n_v)]
    skipped = int(structure.get("skipped_qpos", 0))
    names = [*positions[skipped:], *velocities]
    if len(positions) - skipped != structure.get("qpos") or len(velocities) != structure.get("qvel"):
        return None
    for part, size in structure.items():
        if part not in ("skipped_qpos", "qpos", "qvel"):
            names += [f"{part} {k}" for k in range(int(size))]
    return names
