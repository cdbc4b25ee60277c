"""A copy of an environment whose state can be set: what is planned in."""

import copy
import itertools
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import mujoco
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
from sb3_dpi.systems.keys import drawn, frozen
from sb3_dpi.systems.physics import numbers_of, pack

CHECKED_STEPS = 10
CHECKED_SEEDS = 1, 2
"""Of further episodes that are begun, to see which attributes ever change."""
_ASIDE = (gym.Env, spaces.Space, mujoco.MjData, mujoco.MjModel)
_NUMBERS = itertools.count(1)
"""Of simulators."""
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

    It may be a model of other environments than the one whose states it reads, as of a robot of another mass: attributes that
    neither a reset nor a step changed in that check, and that always differed from those that were read, are parameters, and
    stay its own. A parameter inside an object that itself changes is read with that object.

    :param env: any environment, with its wrappers; changes of its parameters from now on are not followed
    :param time_limits: whether time limits, and whatever else truncates an episode, end it in plans; without, only
        ``terminated`` does, and plans go on behind a truncation
    :param n_checked_steps: random steps that are repeated; usual: 10
    :param keeps_parameters: whether it may be such a model; without, parameters are read with the rest
    :raises NotCopyableError: if the environment cannot be copied, or copies differ
    :raises ValueError: if ``reset`` ignores its seed
    """

    def __init__(
        self,
        env: gym.Env,
        time_limits: bool = True,
        n_checked_steps: int = CHECKED_STEPS,
        keeps_parameters: bool = True,
    ) -> None:
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
        self._number = next(_NUMBERS)
        self._parameters: list[dict[str, tuple[Any, Hashable]]] = [{} for _ in self._layers]
        self.step_seconds = 0.0
        """of a step of its copy, as measured in the check"""
        draws, is_certain = self._check(env, n_checked_steps, keeps_parameters), _is_certain(self._layers)
        self.is_random = draws and not is_certain
        """whether a step was seen to draw: chance may wait until later"""
        self._may_draw = not is_certain and not all(name in MOVING for name in self.layer_names)

    # ------------------------------------------------------------------ states

    def read(self, env: gym.Env) -> SimulatorState:
        """
        Read the state of an environment of the same kind.

        :param env: with its wrappers
        :return: all that moves in it
        :raises ValueError: if it is of another kind
        """
        return self.adopt(save(layers_of(env), maker=self._number if env is self.env else 0))

    def adopt(self, state: SimulatorState) -> SimulatorState:
        """
        Make a state that was read elsewhere this simulator's.

        :param state: of ``copies.save``
        :return: without time limits where this simulator has none, and with its own parameters
        :raises ValueError: if it is of another kind of environment
        """
        if state.maker == self._number:
            return state
        attributes = state.attributes if state.read is None else state.read
        kept = tuple(part for part in attributes if self.time_limits or part[0] != TIME_LIMIT)
        names = tuple(name for name, _ in kept)
        if names != self.layer_names:
            raise ValueError(
                f"A state of {' > '.join(names)} cannot be set in a simulator of {' > '.join(self.layer_names)}: make the "
                "simulator of the environment whose state it reads"
            )
        own: Any = self._layers[-1]
        if state.physics is not None and len(state.physics) != len(pack(own.model, own.data)):
            raise ValueError(
                f"A state of {names[-1]} with {len(state.physics)} numbers cannot be set in a simulator of another model, of "
                f"{len(pack(own.model, own.data))}: vary parameters of the model, not its parts"
            )
        is_read = state.maker == 0 or state.read is not None
        parts = [self._with_own(i, each, is_read) for i, (_, each) in enumerate(kept)]
        given = tuple(zip(names, parts, strict=True))
        return replace(state, attributes=given, maker=self._number, read=attributes if is_read else None)

    def _with_own(self, layer: int, attributes: dict[str, Any], is_read: bool) -> dict[str, Any]:
        """:return: the same, with parameters of this simulator in place of others"""
        parameters, own = self._parameters[layer], {}
        for name, (value, key) in list(parameters.items()):
            if is_read and name in attributes and frozen(attributes[name]) == key:
                del parameters[name]  # the environments are alike in it; should it ever differ, it has moved
            else:
                own[name] = value
        return {**attributes, **own}

    def write(self, env: gym.Env, state: SimulatorState, rng: np.random.Generator) -> None:
        """
        Set the state of an environment of the same kind, which keeps its parameters.

        :param env: with its wrappers; those that limit the time stay where they are if this simulator has none
        :param state: of ``read``
        :param rng: what it draws from now on
        """
        layers = layers_of(env, self.time_limits)
        kept = [{name: vars(layer)[name] for name in own} for layer, own in zip(layers, self._parameters, strict=True)]
        parts = [(name, {**given, **own}) for (name, given), own in zip(state.attributes, kept, strict=True)]
        load(layers, replace(state, attributes=tuple(parts)), rng)

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
        return save(self._layers, observation, self._number)

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
                before = frozen(moving(layer))
                observation = layer.observation(observation)
                if frozen(moving(layer)) != before:  # a memory, as of NormalizeObservation: asked again it says another thing
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
        return physics, tuple(frozen(attributes) for _, attributes in state.attributes)

    def world(self, state: SimulatorState) -> Hashable:
        """
        Name all that decides what comes next, parameters too.

        :param state: where
        :return: the same for simulators in which the same would happen
        """
        self._at = None
        load(self._layers, state, np.random.default_rng(0))
        base: Any = self._layers[-1]
        kept = [{name: item for name, item in vars(one).items() if not isinstance(item, _ASIDE)} for one in self._layers]
        return tuple(map(frozen, kept)), numbers_of(base.model) if self.has_physics else None, self.key(state)

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
        watches = self._may_draw and not self.is_random
        before = drawn(rng) if watches else None
        if state is not None:
            load(self._layers, state, rng)
        if self._first_action is not None:
            action = self._first_action + int(action)
        observation, reward, terminated, truncated, _ = self.env.step(action)
        if watches and drawn(rng) != before:
            self.is_random = True
        return observation, float(reward), bool(terminated or (truncated and self.time_limits))

    # ------------------------------------------------------------------ the check

    def _check(self, env: gym.Env, n_steps: int, keeps_parameters: bool) -> bool:
        """Repeat random steps in a second copy, and see what moves; whether they drew from a generator."""
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
        runs, seen, took = [], [state], list[float]()
        for copied in (self.env, other, self.env):
            rng = np.random.default_rng(1)
            layers = layers_of(copied, self.time_limits)
            try:
                load(layers, state, rng)
            except Exception as error:
                raise NotCopyableError(f"The state of {name} cannot be set ({type(error).__name__}: {error})") from error
            runs.append(_random_steps(copied, n_steps, took))
            seen.append(save(layers))
            used = rng.bit_generator.state != np.random.default_rng(1).bit_generator.state
        self.step_seconds = min(took, default=0.0)  # others wait for what else the machine does
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
        if not keeps_parameters:
            return used
        for seed in CHECKED_SEEDS:
            other.reset(seed=seed)
            seen.append(save(layers_of(other, self.time_limits)))
        self._parameters = [_constants([each.attributes[i] for each in seen]) for i in range(len(self._layers))]
        return used


def _constants(seen: list[tuple[str, dict[str, Any]]]) -> dict[str, tuple[Any, Hashable]]:
    """:return: attributes of a layer that were always the same, with their keys; none of a class whose state is known"""
    (name_of_class, first), *others = seen
    if name_of_class in MOVING:
        return {}
    keys = {name: frozen(value) for name, value in first.items()}
    return {
        name: (value, keys[name])
        for name, value in first.items()
        if all(name in later and frozen(later[name]) == keys[name] for _, later in others)
    }


def _is_certain(layers: list[gym.Env]) -> bool:
    """:return: whether it is a stock task with a table in which each action has one outcome, which it draws all the same"""
    base: Any = layers[-1]
    if len(layers) > 1 or class_name(base) not in MOVING or not hasattr(base, "P") or getattr(base, "fickle_passenger", False):
        return False
    return all(len(outcomes) == 1 for actions in base.P.values() for outcomes in actions.values())


def _random_steps(env: gym.Env, n_steps: int, took: list[float]) -> list[tuple[Any, ...]]:
    """:return: what random actions led to, the same ones each time; the seconds of each step join ``took``"""
    space = _fresh(env.action_space)
    steps: list[tuple[Any, ...]] = []
    for _ in range(n_steps):
        action, begun = space.sample(), time.perf_counter()
        observation, reward, terminated, truncated, _ = env.step(action)
        took.append(time.perf_counter() - begun)
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
    return frozen(a) == frozen(b)
