"""States of vectorised environments, read for plans in their simulator."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_dpi.common.asking import beneath
from sb3_dpi.systems import Simulator, SimulatorState
from sb3_dpi.systems.copies import FIXED_NAMES, MOVING, class_name, has_physics, layers_of
from sb3_dpi.systems.physics import numbers_of


def read_states(simulator: Simulator, env: VecEnv) -> list[SimulatorState]:
    """
    Read where every copy is.

    :param simulator: of an environment of their kind
    :param env: with its wrappers: a ``DummyVecEnv``, or a ``SubprocVecEnv`` whose environments are wrapped in
        ``sb3_dpi.systems.ReadableState``
    :return: the state of each
    :raises ValueError: if they cannot be read, or are of another kind
    """
    base = beneath(env)
    if isinstance(base, DummyVecEnv):
        return [simulator.read(environment) for environment in base.envs]
    if isinstance(base, SubprocVecEnv):
        if not base.has_attr("sent_state"):
            raise ValueError(
                "The states of environments in other processes cannot be read: wrap each in sb3_dpi.systems.ReadableState, as "
                "make_vec_env(..., wrapper_class=ReadableState, vec_env_cls=SubprocVecEnv) does, or use a DummyVecEnv"
            )
        sent = base.env_method("sent_state")
        for told in sent:
            if isinstance(told, str):
                raise ValueError(
                    f"The state of an environment in another process cannot be sent ({told}): use a DummyVecEnv, or name its "
                    "functions at the top of a module"
                )
        return [simulator.adopt(pickle.loads(state)) for state in sent]
    raise ValueError(
        f"The states of a {type(base).__name__} cannot be read: plan with a DummyVecEnv or a SubprocVecEnv, or with "
        "system='ensemble', which learns from observations"
    )


def follow_parameters(simulator: Simulator, env: VecEnv) -> None:
    """
    Take over what has changed in the environments since the simulator was made of one of them, and is no part of a state:
    parameters of Gymnasium's own tasks, and the models of MuJoCo, as tasks change them that draw them anew at each reset.

    :param simulator: of one of them
    :param env: with its wrappers; what is in other processes is not followed
    :raises ValueError: if the environments differ from one another
    """
    base = beneath(env)
    mine = layers_of(simulator.env, simulator.time_limits)
    for i, environment in enumerate(base.envs if isinstance(base, DummyVecEnv) else ()):
        theirs = layers_of(environment, simulator.time_limits)
        for own, other in zip(mine, theirs, strict=False):
            changed = _changed(own, other)
            if changed and i > 0:
                raise ValueError(
                    f"Environment {i} differs from the first in {', '.join(sorted(changed))}: plans for all are made in one "
                    "simulator. Act in one environment, or with MPC give that to plan in as system"
                )
            for name, value in changed.items():
                if name == "model":
                    _write_model(getattr(own, name), value)
                else:
                    setattr(own, name, value)


def _changed(own: gym.Env, other: gym.Env) -> dict[str, Any]:
    """:return: parameters of the other that differ"""
    moving, every, changed = MOVING.get(class_name(own)), vars(other), {}
    if moving is not None and class_name(own) == class_name(other):
        for name in every.keys() - set(moving) - FIXED_NAMES:
            value = every[name]
            is_number = isinstance(value, int | float | np.number) or (
                isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
            )
            if is_number and not np.array_equal(value, getattr(own, name, np.nan)):
                changed[name] = value.copy() if isinstance(value, np.ndarray) else value
    if has_physics(own) and has_physics(other) and numbers_of(own.model) != numbers_of(other.model):  # type: ignore[attr-defined]
        changed["model"] = other.model  # type: ignore[attr-defined]
    return changed


def _write_model(own: Any, other: Any) -> None:
    for ours, theirs in ((own, other), (own.opt, other.opt)):
        for name in dir(theirs):
            value = getattr(theirs, name)
            if isinstance(value, np.ndarray) and value.flags.writeable:
                getattr(ours, name)[...] = value
            elif ours is own.opt and isinstance(value, int | float):
                setattr(ours, name, value)
