"""What MPC can plan in: what is given as ``system``, checked, and made one."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_dpi.mpc.arguments import check_same_spaces
from sb3_dpi.systems import ContinuousSimulator, RewardSystem, Simulator, VariedSystem

OF_ALL = ("rollout", "state_dim", "tangent_dim", "action_dim")
OF_SMOOTH = ("step", "linearize", "difference", "integrate")
"""What planners ask for, and what only those do that take derivatives."""


def as_system(given: Any, model: Any, n_threads: int, is_smooth: bool, with_rewards: bool) -> RewardSystem:
    """
    Make a system of what is given.

    :param given: environments, simulators, or an object with the methods of ``RewardSystem``; a list of such is varied
    :param model: what has the spaces of the environment in which is acted
    :param n_threads: of MuJoCo
    :param is_smooth: whether the planner takes derivatives
    :param with_rewards: whether it plans by the system's own rewards
    :return: the system
    :raises ValueError: if plans cannot be made in it
    """
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = VariedSystem([_one(each, model, n_threads, is_smooth) for each in given])
    system = _one(given, model, n_threads, is_smooth)
    for name in (*OF_ALL, *(OF_SMOOTH if is_smooth else ())):
        if not hasattr(system, name):
            raise ValueError(
                f"system has no {name}: give 'ensemble', 'simulator', an environment, a list of such, or an object with the "
                "methods of sb3_dpi.systems.RewardSystem"
            )
    n_actions, n_seen = (int(np.prod(getattr(model, f"{name}_space").shape or ())) for name in ("action", "observation"))
    if system.action_dim != n_actions:
        raise ValueError(f"Actions of the given system have {system.action_dim} numbers, those of the environment {n_actions}")
    if not hasattr(system, "begin") and system.state_dim != n_seen:
        raise ValueError(
            f"States of the given system have {system.state_dim} numbers, observations have {n_seen}: give it a method "
            "begin(observation) that returns the state [nx] in which plans begin"
        )
    if is_smooth and hasattr(system, "check_vectors"):
        system.check_vectors(with_rewards)
    made: RewardSystem = system
    return made


def _one(given: Any, model: Any, n_threads: int, is_smooth: bool) -> Any:
    if isinstance(given, gym.Env | Simulator):
        check_same_spaces(given, model)
        theirs: Any = given.action_space
        ours: Any = model.action_space
        if not (np.array_equal(theirs.low, ours.low) and np.array_equal(theirs.high, ours.high)):
            raise ValueError(f"The environment given as system has the action_space {theirs}, not {ours}: give one alike")
    if isinstance(given, gym.Env):
        given = Simulator(given, time_limits=False)
    return ContinuousSimulator(given, n_threads, round_actions=not is_smooth) if isinstance(given, Simulator) else given


def simulator_of(system: Any) -> Simulator | None:
    """
    Find out in whose states plans begin.

    :param system: of ``as_system``
    :return: the simulator, the first of several; None where plans begin in observations
    """
    first = system.variants[0] if isinstance(system, VariedSystem) else system
    return first.simulator if isinstance(first, ContinuousSimulator) else None
