"""A copy of an environment whose state can be set: what is planned in."""

import copy
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dpi.systems.copies import (
    MOVING,
    TIME_LIMIT,
    NotCopyableError,
    SimulatorState,
    class_name,
    clone,
    has_physics,
    layers_of,
    load,
    moving,
    save,
)

CHECKED_STEPS = 10
OBSERVERS = ("_get_obs", "_get_ob", "_observation")
"""Methods by which tasks say what they observe."""
OBSERVED: dict[str, Callable[[Any], Any]] = {
    "CartPoleEnv": lambda env: np.array(env.state, dtype=np.float32),
    "MountainCarEnv": lambda env: np.array(env.state, dtype=np.float32),
    "Continuous_MountainCarEnv": lambda env: np.array(env.state, dtype=np.float32),
    "FrozenLakeEnv": lambda env: int(env.s),
    "CliffWalkingEnv": lambda env: int(env.s),
    "TaxiEnv": lambda env: int(env.s),
}
"""Observations of Gymnasium's tasks that have no such method."""


class Simulator:
    """
    An exact copy of a Gymnasium environment that steps from any state it is given, the environment itself left alone.

    It is a system of finitely many actions for tree search (``trajopt.mcts``) where the environment has ``Discrete`` ones;
    ``ContinuousSimulator`` makes one of arrays of it where it has a bounded ``Box``. Everything random in a step is drawn from
    the caller's generator, never from the environment's own, so that plans do not see the future.

    Copies are checked when it is made: a second copy has to repeat some random steps of the first to the last bit.

    :param env: any environment, with its wrappers; changes of its parameters from now on are not followed
    :param time_limits: whether a time limit ends episodes in plans; without, only ``terminated`` does
    :param n_checked_steps: random steps that are repeated; usual: 10
    :raises NotCopyableError: if the environment cannot be copied, or copies differ
    :raises ValueError: if ``reset`` ignores its seed
    """

    def __init__(self, env: gym.Env, time_limits: bool = True, n_checked_steps: int = CHECKED_STEPS) -> None:
        if not isinstance(env, gym.Env):
            raise ValueError(
                f"A simulator copies a Gymnasium environment, got {type(env).__name__}: give env.envs[i] of a VecEnv"
            )
        self.time_limits = time_limits
        self.env = clone(env, time_limits)
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._layers = layers_of(self.env, time_limits)
        self._first_action = int(env.action_space.start) if isinstance(env.action_space, spaces.Discrete) else None
        self.layer_names = tuple(map(class_name, self._layers))
        self.has_physics = has_physics(self._layers[-1])
        self._at: tuple[SimulatorState, np.random.Generator] | None = None
        draws = self._check(env, n_checked_steps)
        self.is_random = draws and not _is_certain(self._layers)

    # ------------------------------------------------------------------ states

    def read(self, env: gym.Env) -> SimulatorState:
        """
        Read the state of an environment of the same kind.

        :param env: with its wrappers
        :return: all that moves in it
        :raises ValueError: if it is of another kind
        """
        return self.adopt(save(layers_of(env)))

    def adopt(self, state: SimulatorState) -> SimulatorState:
        """
        Make a state that was read elsewhere this simulator's.

        :param state: of ``copies.save``
        :return: without time limits where this simulator has none
        :raises ValueError: if it is of another kind of environment
        """
        kept = tuple(part for part in state.attributes if self.time_limits or part[0] != TIME_LIMIT)
        names = tuple(name for name, _ in kept)
        if names != self.layer_names:
            raise ValueError(
                f"A state of {' > '.join(names)} cannot be set in a simulator of {' > '.join(self.layer_names)}: make the "
                "simulator of the environment whose state it reads"
            )
        return replace(state, attributes=kept)

    def write(self, env: gym.Env, state: SimulatorState, rng: np.random.Generator) -> None:
        """
        Set the state of an environment of the same kind.

        :param env: with its wrappers; those that limit the time stay where they are if this simulator has none
        :param state: of ``read``
        :param rng: what it draws from now on
        """
        load(layers_of(env, self.time_limits), state, rng)

    def reset(self, seed: int) -> SimulatorState:
        """
        Begin an episode.

        :param seed: of the environment
        :return: its first state
        """
        self._at = None
        observation, _ = self.env.reset(seed=seed)
        return self._reached(observation)

    def _reached(self, observation: Any) -> SimulatorState:
        """:return: the present state, with what was observed; an environment may write into the same array again"""
        if isinstance(observation, np.ndarray):
            observation = observation.copy()
        elif not isinstance(observation, int | float | np.generic):
            observation = copy.deepcopy(observation)
        return save(self._layers, observation)

    def observe(self, state: SimulatorState) -> Any:
        """
        Say what is observed in a state.

        :param state: which
        :return: the observation; None where it is not known, as of a state that was read through wrappers with a memory
        """
        if state.observation is not None:
            return state.observation
        base: Any = self._layers[-1]
        self._at = None
        load(self._layers, state, np.random.default_rng(0))
        observe = next((getattr(base, name) for name in OBSERVERS if hasattr(base, name)), None)
        known = OBSERVED.get(type(base).__name__)
        if known is not None and type(base).__module__.startswith("gymnasium.envs."):
            observation = known(base)
        elif observe is not None:
            observation = observe()
        else:
            return None
        for layer in reversed(self._layers[:-1]):
            if isinstance(layer, gym.ObservationWrapper):
                before = _frozen(moving(layer))
                observation = layer.observation(observation)
                if _frozen(moving(layer)) != before:  # a memory, as of NormalizeObservation: asked again it says another thing
                    return None
            elif not isinstance(layer, gym.ActionWrapper | gym.RewardWrapper) and class_name(layer) != TIME_LIMIT:
                return None
        return observation

    def key(self, state: SimulatorState) -> Hashable:
        """
        Name a state.

        :param state: which
        :return: the same for states that are the same
        """
        physics = None if state.physics is None else state.physics.tobytes()
        return physics, tuple(_frozen(attributes) for _, attributes in state.attributes)

    # ------------------------------------------------------------------ steps

    @property
    def n_actions(self) -> int:
        """A, of ``Discrete`` actions."""
        if not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(
                f"A search among finitely many actions needs a Discrete action space, got {self.action_space}: for a Box use "
                "ContinuousSimulator and a planner of continuous actions"
            )
        return int(self.action_space.n)

    def step(self, state: SimulatorState, action: Any, rng: np.random.Generator) -> tuple[SimulatorState, float, bool]:
        """
        Take a step from a state.

        :param state: which; it stays what it is
        :param action: from 0 on where actions are ``Discrete``, else in the environment's units
        :param rng: what the environment draws from
        :return: next state, reward, and whether the episode is over
        """
        observation, reward, is_over = self.act(None if self._is_at(state, rng) else state, action, rng)
        following = self._reached(observation)
        self._at = following, rng
        return following, reward, is_over

    def _is_at(self, state: SimulatorState, rng: np.random.Generator) -> bool:
        """:return: whether the copy was left there, as in a rollout of one step after the other"""
        return self._at is not None and self._at[0] is state and self._at[1] is rng

    def act(self, state: SimulatorState | None, action: Any, rng: np.random.Generator) -> tuple[Any, float, bool]:
        """
        Take a step, and leave the copy where it leads.

        :param state: from which; None from where the last one led
        :param action: as in ``step``
        :param rng: what the environment draws from
        :return: observation, reward, and whether the episode is over
        """
        self._at = None
        if state is not None:
            load(self._layers, state, rng)
        if self._first_action is not None:
            action = self._first_action + int(action)
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, float(reward), bool(terminated or truncated)

    # ------------------------------------------------------------------ the check

    def _check(self, env: gym.Env, n_steps: int) -> bool:
        """Repeat random steps in a second copy; whether they drew from a generator."""
        name = type(self._layers[-1]).__name__
        before = self.key(save(layers_of(env)))
        other = clone(env, self.time_limits)
        first, _ = self.env.reset(seed=0)
        again, _ = other.reset(seed=0)
        if not _same(first, again):
            raise ValueError(
                f"reset(seed=0) of {name} began two different episodes: draw the first state from self.np_random, after "
                "super().reset(seed=seed)"
            )
        state, used = save(self._layers), False
        runs = []
        for copied in (self.env, other, self.env):
            rng = np.random.default_rng(1)
            layers = layers_of(copied, self.time_limits)
            try:
                load(layers, state, rng)
            except Exception as error:
                raise NotCopyableError(f"The state of {name} cannot be set ({type(error).__name__}: {error})") from error
            runs.append(_random_steps(copied, n_steps))
            used = rng.bit_generator.state != np.random.default_rng(1).bit_generator.state
        if not all(_same(runs[0], run) for run in runs[1:]):
            raise NotCopyableError(
                f"Two copies of {name} set to the same state went different ways: a part of its state is out of reach, or it "
                "draws from another generator than self.np_random. Keep its state in its own attributes, or give its class a "
                "__deepcopy__"
            )
        if self.key(save(layers_of(env))) != before:
            raise NotCopyableError(
                f"A step of a copy of {name} changed the environment itself: they share a part of their state, which a "
                "__deepcopy__ of its class has to copy"
            )
        return used


def _is_certain(layers: list[gym.Env]) -> bool:
    """:return: whether it is a stock task with a table in which each action has one outcome, which it draws all the same"""
    base: Any = layers[-1]
    if len(layers) > 1 or class_name(base) not in MOVING or not hasattr(base, "P") or getattr(base, "fickle_passenger", False):
        return False
    return all(len(outcomes) == 1 for actions in base.P.values() for outcomes in actions.values())


def _random_steps(env: gym.Env, n_steps: int) -> list[tuple[Any, ...]]:
    """:return: what random actions led to, the same ones each time"""
    space = _fresh(env.action_space)
    steps: list[tuple[Any, ...]] = []
    for _ in range(n_steps):
        observation, reward, terminated, truncated, _ = env.step(space.sample())
        steps.append((observation, reward, terminated, truncated))
        if terminated or truncated:
            break
    return steps


def _fresh(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """:return: a copy that draws the same from the beginning: drawing from an environment's own would change it"""
    copied = copy.deepcopy(space)
    copied.seed(0)
    return copied


def _same(a: Any, b: Any) -> bool:
    """:return: whether two observations, or lists and dictionaries of such, are equal to the last bit"""
    return _frozen(a) == _frozen(b)


def _frozen(value: Any, above: tuple[int, ...] = ()) -> Hashable:
    """
    Make something of the same content that can be compared and be a key.

    :param value: arrays, numbers, and objects that hold such
    :param above: objects that hold it, by their ids: some hold one another
    :return: it
    """
    if type(value) in (int, str, bool, type(None)):
        return value  # type: ignore[no-any-return]
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes()) if value.dtype != object else tuple(_frozen(item, above) for item in value.flat)
    if isinstance(value, float | np.floating):
        return np.float64(value).tobytes()  # NaN is itself
    if isinstance(value, dict):
        return tuple((repr(key), _frozen(item, above)) for key, item in sorted(value.items(), key=lambda pair: repr(pair[0])))
    if isinstance(value, list | tuple):
        return tuple(_frozen(item, above) for item in value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(repr, value)))
    if isinstance(value, Hashable) and type(value).__hash__ is not object.__hash__:
        return value
    if callable(value) or not hasattr(value, "__dict__") or id(value) in above:
        return repr(type(value))
    return type(value).__qualname__, _frozen(vars(value), (*above, id(value)))
