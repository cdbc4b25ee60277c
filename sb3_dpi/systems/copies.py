"""Copies of environments: their layers, and all in them that moves.

An environment of Gymnasium is a chain of wrappers around a task; what moves is in their attributes, and with MuJoCo in its
data. ``copy.deepcopy`` will not do for either: classes that are pickled by their arguments, as MuJoCo's tasks are, come back
as they were made, not as they are. So layers are copied attribute by attribute. Wrappers that only watch are left out.

A copy must not carry the environment's generator: a plan that draws from it sees the future. What is loaded draws from the
planner's.
"""

import copy
import pickle
import random
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec

from sb3_dpi.systems.physics import pack, unpack
from sb3_dpi.trajopt.types import FloatArray

WATCHING = {
    "gymnasium.wrappers.common.OrderEnforcing",
    "gymnasium.wrappers.common.PassiveEnvChecker",
    "gymnasium.wrappers.common.RecordEpisodeStatistics",
    "gymnasium.wrappers.rendering.HumanRendering",
    "gymnasium.wrappers.rendering.RecordVideo",
    "gymnasium.wrappers.rendering.RenderCollection",
    "stable_baselines3.common.monitor.Monitor",
    "sb3_dpi.common.environments.NumberedEnvironment",
    "sb3_dpi.systems.copies.ReadableState",
}
"""Wrappers that change nothing of what happens."""
TIME_LIMIT = "gymnasium.wrappers.common.TimeLimit"
ZOO_TIME_LIMIT = "rl_zoo3.gym_patches.PatchedTimeLimit"
"""What RL Zoo puts in its place; it steps alike."""
_CLASSIC, _TOY, _MUJOCO = "gymnasium.envs.classic_control", "gymnasium.envs.toy_text", "gymnasium.envs.mujoco"
_TRANSFORMING = {
    "action": ("ClipAction", "RescaleAction"),
    "observation": (
        "DtypeObservation",
        "FilterObservation",
        "FlattenObservation",
        "GrayscaleObservation",
        "RescaleObservation",
        "ReshapeObservation",
        "ResizeObservation",
    ),
    "reward": ("ClipReward",),
}
MOVING: dict[str, tuple[str, ...]] = {
    TIME_LIMIT: ("_elapsed_steps",),
    # they hold functions of Gymnasium, which cannot be sent from one process to another
    **{f"gymnasium.wrappers.transform_{kind}.{name}": () for kind, names in _TRANSFORMING.items() for name in names},
    f"{_CLASSIC}.cartpole.CartPoleEnv": ("state", "steps_beyond_terminated"),
    f"{_CLASSIC}.pendulum.PendulumEnv": ("state", "last_u"),
    f"{_CLASSIC}.acrobot.AcrobotEnv": ("state",),
    f"{_CLASSIC}.mountain_car.MountainCarEnv": ("state",),
    f"{_CLASSIC}.continuous_mountain_car.Continuous_MountainCarEnv": ("state",),
    f"{_TOY}.frozen_lake.FrozenLakeEnv": ("s", "lastaction"),
    f"{_TOY}.cliffwalking.CliffWalkingEnv": ("s", "lastaction"),
    f"{_TOY}.taxi.TaxiEnv": ("s", "lastaction", "fickle_step", "taxi_orientation"),
    f"{_MUJOCO}.half_cheetah_v5.HalfCheetahEnv": (),
    f"{_MUJOCO}.hopper_v5.HopperEnv": (),
    f"{_MUJOCO}.walker2d_v5.Walker2dEnv": (),
    f"{_MUJOCO}.ant_v5.AntEnv": (),
    f"{_MUJOCO}.swimmer_v5.SwimmerEnv": (),
    f"{_MUJOCO}.reacher_v5.ReacherEnv": ("goal",),
    f"{_MUJOCO}.pusher_v5.PusherEnv": ("goal_pos", "cylinder_pos"),
    f"{_MUJOCO}.inverted_pendulum_v5.InvertedPendulumEnv": (),
    f"{_MUJOCO}.inverted_double_pendulum_v5.InvertedDoublePendulumEnv": (),
}
"""Attributes that move, of classes where these are known: the tables of others would be copied at each step."""
FIXED_NAMES = {
    "env",
    "spec",
    "metadata",
    "_saved_kwargs",
    "_ezpickle_args",
    "_ezpickle_kwargs",
    "_np_random_seed",
    "render_mode",
}
FIXED_TYPES = (gym.Space, EnvSpec, mujoco.MjModel, mujoco.MjData)
DISPLAYS = {"pygame", "glfw"}
"""Packages whose objects only show something."""
QUICK = {int, float, bool, str, type(None), np.float32, np.float64, np.int64}
"""Most of what follows, told apart at once."""
CONSTANT = (int, float, bool, complex, str, bytes, type(None), np.generic)


class NotCopyableError(ValueError):
    """An environment whose copies do not behave as it does."""


@dataclass(frozen=True)
class SimulatorState:
    """All that moves in an environment."""

    attributes: tuple[tuple[str, dict[str, Any]], ...]
    """class of each layer, outermost first, and its own; not to be changed"""
    physics: FloatArray | None
    """of MuJoCo, see ``physics``; None where there is none"""
    observation: Any = None
    """what was observed when it was reached; None where it was read without a step"""
    maker: int = 0
    """number of the simulator whose parameters it has; 0 for an environment"""
    read: tuple[tuple[str, dict[str, Any]], ...] | None = None
    """``attributes`` of the environment, where it was read from one and a simulator's parameters took their place"""


class ReadableState(gym.Wrapper):
    """What makes the state of an environment readable from another process, as in a ``SubprocVecEnv``.

    :param env: the environment
    """

    def simulator_state(self) -> SimulatorState:
        """:return: all that moves in the environment"""
        return save(layers_of(self))

    def sent_state(self) -> bytes | str:
        """:return: the same, pickled; where that fails what is said of it, for an error would end the process"""
        try:
            return pickle.dumps(self.simulator_state())
        except Exception as error:  # whatever the environment holds
            return f"{type(error).__name__}: {error}"


@cache
def _name(cls: Hashable) -> str:
    assert isinstance(cls, type)
    return f"{cls.__module__}.{cls.__qualname__}"


def class_name(layer: gym.Env) -> str:
    """:return: with its module"""
    cls: Any = type(layer)
    name = _name(cls)
    return TIME_LIMIT if name == ZOO_TIME_LIMIT else name


def layers_of(env: gym.Env, time_limits: bool = True) -> list[gym.Env]:
    """
    List what takes part in what happens.

    :param env: with its wrappers
    :param time_limits: whether those of ``gymnasium.wrappers.TimeLimit`` do
    :return: outermost first
    """
    layers: list[gym.Env] = []
    while True:
        name = class_name(env)
        if name not in WATCHING and (time_limits or name != TIME_LIMIT):
            layers.append(env)
        if not isinstance(env, gym.Wrapper):
            return layers
        env = env.env


def _shows(value: Any) -> bool:
    """:return: whether it only shows something"""
    module = type(value).__module__
    return module.split(".")[0] in DISPLAYS or module == "gymnasium.envs.mujoco.mujoco_rendering"


def clone(env: gym.Env, time_limits: bool = True) -> gym.Env:
    """
    Copy an environment as it is.

    :param env: with its wrappers
    :param time_limits: whether to copy wrappers that limit the time
    :return: without wrappers that only watch, and without displays
    :raises NotCopyableError: if a part of it cannot be copied
    """
    layers = layers_of(env, time_limits)
    memo: dict[int, Any] = {}
    base = layers[-1]
    inner: gym.Env = base
    for layer in reversed(layers):
        if isinstance(layer, gym.Wrapper):
            watching = layer.env
            while id(watching) not in memo:  # wrappers that are left out stand for what they watch
                memo[id(watching)] = inner
                if not isinstance(watching, gym.Wrapper):
                    break
                watching = watching.env
        try:
            inner = _copy_layer(layer, memo)
        except Exception as error:
            raise NotCopyableError(
                f"{type(layer).__name__} cannot be copied ({type(error).__name__}: {error}), and plans need copies. Give the "
                "class a __deepcopy__ that copies its state, or learn a model instead: MPC with system='ensemble'"
            ) from error
        memo[id(layer)] = inner
    return inner


def _copy_layer(layer: gym.Env, memo: dict[int, Any]) -> gym.Env:
    cls = type(layer)
    if hasattr(cls, "__deepcopy__"):
        copied: gym.Env = copy.deepcopy(layer, memo)
        if copied is layer:
            raise TypeError("its __deepcopy__ returns the object itself")
        return copied
    for value in vars(layer).values():
        if _shows(value):
            memo[id(value)] = None
        elif isinstance(value, EnvSpec):
            memo[id(value)] = value
    copied = object.__new__(cls)
    memo[id(layer)] = copied
    vars(copied).update({name: copy.deepcopy(value, memo) for name, value in vars(layer).items()})
    if "render_mode" in vars(copied):
        vars(copied)["render_mode"] = None  # "human" would show what is planned
    return copied


def has_physics(base: gym.Env) -> bool:
    """
    Tell whether an environment is MuJoCo's.

    :param base: without wrappers
    :return: whether it has a model and data of it
    """
    return isinstance(getattr(base, "model", None), mujoco.MjModel) and isinstance(getattr(base, "data", None), mujoco.MjData)


def moving(layer: gym.Env) -> dict[str, Any]:
    """
    Find what may move.

    :param layer: an environment or wrapper, for itself
    :return: its attributes that may, generators left out
    """
    names = MOVING.get(class_name(layer))
    every = vars(layer)
    if names is not None:
        return {name: every[name] for name in names if name in every}
    return {
        name: value
        for name, value in every.items()
        if name not in FIXED_NAMES and not isinstance(value, (*FIXED_TYPES, np.random.Generator)) and not _shows(value)
    }


def _copied(attributes: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """:return: copies of what can change; one dictionary at a time, aliases within all layers kept by the memo"""
    copied: dict[str, Any] = {}
    for name, value in attributes.items():
        if type(value) in QUICK:
            copied[name] = value
            continue
        if isinstance(value, CONSTANT) or (type(value) is tuple and all(isinstance(item, CONSTANT) for item in value)):
            copied[name] = value
        elif type(value) is np.ndarray and value.dtype != object and id(value) not in memo:
            copied[name] = memo[id(value)] = value.copy()
        else:
            copied[name] = copy.deepcopy(value, memo)
    return copied


def _own(layers: list[gym.Env]) -> dict[int, Any]:
    """:return: a memo by which layers and what is fixed in them stand for themselves"""
    memo: dict[int, Any] = {id(layer): layer for layer in layers}
    for layer in layers:
        if class_name(layer) not in MOVING:
            memo.update(
                {id(v): v for v in vars(layer).values() if isinstance(v, (gym.Env, *FIXED_TYPES, np.random.Generator))}
            )
    return memo


def save(layers: list[gym.Env], observation: Any = None, maker: int = 0) -> SimulatorState:
    """
    Read all that moves.

    :param layers: of ``layers_of``
    :param observation: what was observed there; None where that is not known
    :param maker: number of the simulator that they belong to
    :return: a copy of it
    """
    memo = _own(layers)
    attributes = tuple([(class_name(layer), _copied(moving(layer), memo)) for layer in layers])
    base: Any = layers[-1]
    return SimulatorState(attributes, pack(base.model, base.data) if has_physics(base) else None, observation, maker)


def load(layers: list[gym.Env], state: SimulatorState, rng: np.random.Generator) -> None:
    """
    Set all that moves.

    :param layers: of ``layers_of``, of a copy
    :param state: of ``save``, of the same layers
    :param rng: what the environment draws from now on
    """
    memo = _own(layers)
    known = set(memo)
    for layer, (name_of_class, attributes) in zip(layers, state.attributes, strict=True):
        every, names = vars(layer), MOVING.get(name_of_class)
        if names is None or len(names) != len(attributes):
            for name in moving(layer).keys() - attributes.keys():  # what came later
                del every[name]
        every.update(_copied(attributes, memo))
        if names is not None:  # it has no generator but the one below, and many attributes
            continue
        for name, value in every.items():
            if isinstance(value, np.random.Generator):
                every[name] = rng
    every = vars(layers[-1])
    every["_np_random"] = rng
    for key, value in memo.items():
        if key not in known:
            _reseed(value, rng)
    if state.physics is not None:
        base: Any = layers[-1]
        unpack(base.model, base.data, state.physics)


def _reseed(value: Any, rng: np.random.Generator) -> None:
    """Let a generator that was copied with an attribute go another way."""
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = type(value.bit_generator)(int(rng.integers(2**63))).state
    elif isinstance(value, np.random.RandomState | random.Random):
        value.seed(int(rng.integers(2**32)))
