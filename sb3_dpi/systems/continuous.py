"""A simulator as arrays: states are vectors, actions in units of the bounds."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces

from sb3_dpi.systems.copies import TIME_LIMIT, SimulatorState, class_name, layers_of
from sb3_dpi.systems.physics import FIRST_WIDTH, Tangent, pack, tangent_size, transition_derivatives
from sb3_dpi.systems.protocols import Rollouts, Trace
from sb3_dpi.systems.simulator import Simulator
from sb3_dpi.systems.tasks import Readings, Task, known_task
from sb3_dpi.systems.threads import Threads
from sb3_dpi.trajopt.types import BoolArray, FloatArray

SINGLE_WIDTH = float(np.finfo(np.float32).eps ** (1 / 3))
"""Width of central differences of what is computed in single precision."""
N_CHECKED, EDGE = 5, 0.9
"""Steps by which vectors are compared with whole states, and how far actions go in them, in units of the bounds."""


@dataclass(frozen=True)
class _Tried:
    """What action sequences led to: as ``Trace``, of one particle."""

    rewards: FloatArray
    observations: FloatArray
    """after each step, ``[B, T, do]``, or of the last one alone, ``[B, 1, do]``"""
    alive: FloatArray


class ContinuousSimulator:
    """
    The simulator of an environment with bounded actions, behind the protocols ``trajopt.systems.System`` and ``RewardSystem``.

    A state is a vector of what moves: with MuJoCo that of ``physics``, else all attributes that are floating-point numbers and
    moved while the copy was checked. What else a state has (a step count, a goal, a wrapper's memory) begins in rollouts as in
    the state last given to ``begin``, and moves on. A ``step`` from a vector cannot know it: ``check_vectors`` tells whether
    the vector is enough.

    Gymnasium's own MuJoCo tasks are rolled out in threads, without their Python code and equal to it; others step a copy of
    the environment, one sequence after the other.

    :param env: an environment with bounded ``Box`` actions and a vector as observation, or a ``Simulator`` of it
    :param n_threads: of MuJoCo; usual: the number of cores
    :param time_limits: whether a time limit ends episodes in plans
    :param round_actions: whether actions are rounded to the precision in which the environment is given them, mostly single,
        as an exact copy must; without, planners that take differences of steps or rewards meet no noise
    :raises ValueError: if the spaces are others, or the environment cannot be copied
    """

    def __init__(
        self, env: gym.Env | Simulator, n_threads: int = 1, time_limits: bool = True, round_actions: bool = True
    ) -> None:
        self.simulator = env if isinstance(env, Simulator) else Simulator(env, time_limits)
        self.low, self.high = _bounds(self.simulator.action_space)
        self.round_actions = round_actions
        if not isinstance(self.simulator.observation_space, spaces.Box):
            raise ValueError(
                f"Plans of continuous actions need a Box as observation, got {self.simulator.observation_space}: flatten it "
                "with gymnasium.wrappers.FlattenObservation"
            )
        self._layers = layers_of(self.simulator.env, self.simulator.time_limits)
        base: Any = self._layers[-1]
        self._template = self.simulator.reset(seed=0)
        self.task: Task | None = None
        self._threads: Threads | None = None
        self._parts: list[tuple[int, str, int]] = []
        if self.simulator.has_physics:
            self._tangent: Tangent | None = Tangent(base.model)
            self.state_dim, self.tangent_dim = len(pack(base.model, base.data)), tangent_size(base.model)
            if all(class_name(layer) == TIME_LIMIT for layer in self._layers[:-1]):
                self.task = known_task(base)
            if self.task is not None:
                self._threads = Threads(base.model, base.frame_skip, n_threads)
        else:
            self._tangent = None
            self._parts, self._width = self._moving_numbers()
            self.state_dim = self.tangent_dim = sum(size for _, _, size in self._parts)
        self._begun = self._vector(self._template)

    @property
    def action_dim(self) -> int:
        """du"""
        return len(self.low)

    @property
    def step_seconds(self) -> float:
        """Of a core, for a step of one sequence, about."""
        return self.simulator.step_seconds

    # ------------------------------------------------------------------ states

    def begin(self, state: SimulatorState) -> FloatArray:
        """
        Say where plans begin.

        :param state: of ``Simulator.read``
        :return: ``[nx]``; what is no part of it is kept until the next call
        """
        self._template = self.simulator.adopt(state)
        self._begun = self._vector(self._template)
        return self._begun.copy()

    def _vector(self, state: SimulatorState) -> FloatArray:
        if state.physics is not None:
            return state.physics
        parts = [np.ravel(state.attributes[i][1][name]).astype(np.float64) for i, name, _ in self._parts]
        return np.concatenate([np.zeros(0), *parts])

    def state(self, vector: FloatArray) -> SimulatorState:
        """
        Undo ``begin``.

        :param vector: ``[nx]``
        :return: the simulator's state
        """
        if self.simulator.has_physics:
            return SimulatorState(self._template.attributes, vector, maker=self._template.maker)
        attributes = [(name, dict(moving)) for name, moving in self._template.attributes]
        position = 0
        for i, name, size in self._parts:
            old, new = attributes[i][1][name], vector[position : position + size]
            attributes[i][1][name] = (
                new.astype(old.dtype).reshape(old.shape) if isinstance(old, np.ndarray) else type(old)(new[0])
            )
            position += size
        return SimulatorState(tuple(attributes), None, maker=self._template.maker)

    def difference(self, origin: FloatArray, states: FloatArray) -> FloatArray:
        """See ``trajopt.systems.System``: with MuJoCo, of joints, velocities and activations alone."""
        return states - origin if self._tangent is None else self._tangent.difference(origin, states)

    def integrate(self, origin: FloatArray, changes: FloatArray) -> FloatArray:
        """See ``trajopt.systems.System``: with MuJoCo, the rest of a state stays that of the origin."""
        return origin + changes if self._tangent is None else self._tangent.integrate(origin, changes)

    def units_to_actions(self, actions: FloatArray) -> FloatArray:
        """
        Express actions as the environment wants them.

        :param actions: in units of the bounds, ``[..., du]``
        :return: in its units and precision, ``[..., du]``
        """
        scaled: FloatArray = 0.5 * (self.high + self.low) + 0.5 * (self.high - self.low) * actions
        return scaled.astype(self.simulator.action_space.dtype) if self.round_actions else scaled

    # ------------------------------------------------------------------ steps

    def step(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """
        Let one time step pass; chance, where there is any, is the same each time.

        :param states: ``[B, nx]``
        :param actions: in units of the bounds, ``[B, du]``
        :return: ``[B, nx]``
        """
        return self._step(states, self.units_to_actions(actions))

    def _step(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        if self._threads is not None:
            return self._threads.step(states, actions)
        return np.stack([self._step_copy(state, action) for state, action in zip(states, actions, strict=True)])

    def _step_copy(self, vector: FloatArray, action: FloatArray) -> FloatArray:
        shape = self.simulator.action_space.shape
        state, _, _ = self.simulator.step(self.state(vector), action.reshape(shape or ()), np.random.default_rng(0))
        return self._vector(state)

    def rollout(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Rollouts:
        """
        Try action sequences.

        :param states: where they begin, ``[B, nx]`` or ``[1, nx]``
        :param actions: in units of the bounds, ``[B, T, du]``
        :param rng: what random environments draw from, each sequence anew
        :return: what they led to
        """
        tried = self._try(states, actions, rng, watches=False)
        goes_on = (tried.alive[:, -1:] > 0.0).astype(np.float64)
        return Rollouts(tried.rewards, tried.observations[:, -1:], goes_on)

    def trace(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator) -> Trace:
        """
        Try action sequences, and see what is observed on the way.

        :param states: as for ``rollout``
        :param actions: likewise
        :param rng: likewise
        :return: what they led to
        :raises ValueError: if it is not known what is observed where they begin
        """
        states = np.broadcast_to(states, (len(actions), self.state_dim))
        tried = self._try(states, actions, rng, watches=True)
        if not np.array_equal(states, np.broadcast_to(states[:1], states.shape), equal_nan=True):
            first = self.observe(states)
        elif self._template.observation is not None and np.array_equal(states[0], self._begun, equal_nan=True):
            first = np.broadcast_to(np.ravel(self._template.observation), (len(states), tried.observations.shape[-1]))
        else:
            first = np.repeat(self.observe(states[:1]), len(states), axis=0)
        observations = np.concatenate([first[:, None], tried.observations], axis=1)
        return Trace(tried.rewards[:, None], observations[:, None], tried.alive[:, None])

    def observe(self, states: FloatArray) -> FloatArray:
        """
        Say what is observed in states.

        :param states: ``[n, nx]``
        :return: ``[n, do]``
        :raises ValueError: if it is not known
        """
        if self.task is not None and self._threads is not None:
            return self.task.observe(self._threads.read(states, self.task.reads))
        shown = [self.simulator.observe(self.state(state)) for state in states]
        if any(one is None for one in shown):
            raise ValueError(
                f"What {type(self._layers[-1]).__name__} observes in a state is not known: give its class a method _get_obs, "
                "or plan by sampling and with the rewards of the environment"
            )
        return np.array([np.ravel(one) for one in shown], dtype=np.float64)

    def _try(self, states: FloatArray, actions: FloatArray, rng: np.random.Generator, watches: bool) -> _Tried:
        B, T, _ = actions.shape
        if T < 1:
            raise ValueError(f"The horizon must be at least 1, got {T}")
        states, given = np.broadcast_to(states, (B, self.state_dim)), self.units_to_actions(actions)
        if self.task is not None and self._threads is not None:
            return self._try_in_threads(self.task, self._threads, states, given, watches)
        rewards, alive = np.zeros((B, T)), np.zeros((B, T + 1))
        size = int(np.prod(self.simulator.observation_space.shape or ()))
        seen = np.zeros((B, T if watches else 1, size))
        shape = self.simulator.action_space.shape or ()
        for b in range(B):
            state: SimulatorState | None = self.state(states[b])
            for t in range(T):
                observation, rewards[b, t], is_over = self.simulator.act(state, given[b, t].reshape(shape), rng)
                alive[b, t], state = 1.0, None
                seen[b, t if watches else 0 :] = np.ravel(observation)
                if is_over:
                    break
            else:
                alive[b, T] = 1.0
        return _Tried(rewards, seen, alive)

    def _try_in_threads(self, task: Task, threads: Threads, states: FloatArray, actions: FloatArray, watches: bool) -> _Tried:
        B = len(actions)
        after = threads.roll_out(states, actions.astype(np.float64), task.reads)
        before = _shifted(threads.read(states, task.reads), after)
        over = task.terminated(after)
        over[:, self.steps_left - 1 :] = True
        n_ends = np.cumsum(over, axis=1)
        alive: BoolArray = n_ends - over == 0
        rewards = np.where(alive, task.reward(before, after, actions), 0.0).astype(np.float64)
        seen = after if watches else after.at((np.arange(B), alive.sum(1) - 1))
        observations = task.observe(seen)
        return _Tried(
            rewards,
            observations if watches else observations[:, None],
            np.concatenate([alive, n_ends[:, -1:] == 0], axis=1).astype(np.float64),
        )

    @property
    def steps_left(self) -> int:
        """Until the time limit, from where plans begin."""
        left = [
            layer._max_episode_steps - moving["_elapsed_steps"]  # type: ignore[attr-defined]
            for layer, (name, moving) in zip(self._layers, self._template.attributes, strict=True)
            if name == TIME_LIMIT
        ]
        return max(min(left), 1) if left else int(np.iinfo(np.int32).max)

    # ------------------------------------------------------------------ derivatives

    def linearize(self, states: FloatArray, actions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """
        Differentiate the step.

        MuJoCo does so itself (``mjd_transitionFD``) for tasks of Gymnasium whose integrator is not Runge-Kutta's; all else is
        by central differences of ``step``.

        :param states: ``[T, nx]``
        :param actions: in units of the bounds, ``[T, du]``
        :return: fx ``[T, dx, dx]`` and fu ``[T, dx, du]``
        """
        base: Any = self._layers[-1]
        if self._threads is None or base.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            return self._differences(states, actions)
        half = 0.5 * (self.high - self.low)
        controls = 0.5 * (self.high + self.low) + half * actions
        pairs = [
            transition_derivatives(base.model, self._threads.datas[0], state, control, base.frame_skip)
            for state, control in zip(states, controls, strict=True)
        ]
        return np.stack([fx for fx, _ in pairs]), np.stack([fu * half for _, fu in pairs])

    def _differences(self, states: FloatArray, actions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Central differences; actions keep the precision in which the environment takes them, and are divided by as much."""
        T, dx, du = len(states), self.tangent_dim, self.action_dim
        width = FIRST_WIDTH if self._tangent is not None else self._width
        steps = width * np.eye(dx)
        plain = self.units_to_actions(actions)
        rows, moves, widths = [], [], []
        for t in range(T):
            for sign in (1.0, -1.0):
                rows.append(self.integrate(states[t], sign * steps))
                moves.append(np.tile(plain[t], (dx, 1)))
                shifted = self.units_to_actions(actions[t] + sign * SINGLE_WIDTH * np.eye(du))
                rows.append(np.tile(states[t], (du, 1)))
                moves.append(shifted)
                widths.append(np.diagonal(shifted).astype(np.float64))
        after = self._step(np.concatenate(rows), np.concatenate(moves)).reshape(T, 2, dx + du, self.state_dim)
        change = self.difference(after[:, 1], after[:, 0])
        taken = np.array(widths).reshape(T, 2, du)
        spans = (taken[:, 0] - taken[:, 1]) / (0.5 * (self.high - self.low))
        slopes = np.swapaxes(change, -1, -2)
        return slopes[..., :dx] / (2.0 * width), slopes[..., dx:] / spans[:, None]

    def check_vectors(self, with_rewards: bool = True) -> None:
        """
        Ask whether vectors are states: whether a step from one leads where the step from the whole state does.

        :param with_rewards: whether it must earn the same, too
        :raises ValueError: if it does not, so that planners by gradients would plan in another world
        """
        if self.task is not None:  # its state is the simulation's
            return
        name = class_name(self._layers[-1])
        begun, rng = self._template, np.random.default_rng(0)
        state = self._template = self.simulator.reset(seed=0)
        try:
            for _ in range(N_CHECKED):
                action = self.units_to_actions(rng.uniform(-EDGE, EDGE, self.action_dim))
                action = action.reshape(self.simulator.action_space.shape or ())
                ways = [(state, 0), (state, 1), (self.state(self._vector(state)), 0)]
                after = [self.simulator.step(begin, action, np.random.default_rng(seed)) for begin, seed in ways]
                ends = [np.append(self._vector(following), reward * with_rewards) for following, reward, _ in after]
                if not np.allclose(ends[0], ends[1], rtol=1e-9, atol=1e-9, equal_nan=True):
                    raise ValueError(
                        f"iLQR plans without chance, and steps of {name} draw from one: take a planner that samples, as 'iCEM'"
                    )
                if not self.state_dim or not np.allclose(ends[0], ends[2], rtol=1e-9, atol=1e-9, equal_nan=True):
                    raise ValueError(
                        f"iLQR cannot plan in {name} with its wrappers: a part of its state is no array or number of "
                        "floating-point type that moves. Keep it in such attributes, or take a planner that samples, as 'iCEM'"
                    )
                state, _, is_over = after[0]
                if is_over:
                    return
        finally:
            self._template = begun

    def _moving_numbers(self) -> tuple[list[tuple[int, str, int]], float]:
        """Which attributes are coordinates: layer, name and size of each; and the width for their differences."""
        begun = self._template
        rng, seen = np.random.default_rng(0), [begun]
        for _ in range(3):
            action = self.units_to_actions(rng.uniform(-1.0, 1.0, self.action_dim))
            state, _, is_over = self.simulator.step(seen[-1], action.reshape(self.simulator.action_space.shape or ()), rng)
            seen.append(state)
            if is_over:
                break
        parts, widest = [], float(np.finfo(np.float64).eps ** (1 / 3))
        for i, (_, attributes) in enumerate(begun.attributes):
            for name, value in attributes.items():
                values: list[Any] = [state.attributes[i][1].get(name) for state in seen]
                if not all(_is_float(v) and np.shape(v) == np.shape(value) for v in values):
                    continue
                if all(np.array_equal(v, value, equal_nan=True) for v in values):
                    continue
                parts.append((i, name, np.size(value)))
                dtype = value.dtype if isinstance(value, np.ndarray | np.floating) else np.dtype(np.float64)
                widest = max(widest, float(np.finfo(dtype).eps ** (1 / 3)))
        return parts, widest


def _is_float(value: Any) -> bool:
    """:return: whether it is made of floating-point numbers"""
    return isinstance(value, float | np.floating) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")


def _shifted(first: Readings, after: Readings) -> Readings:
    """:return: readings before each step: the first ones, and then those after the step before"""

    def shift(begun: FloatArray, array: FloatArray) -> FloatArray:
        return np.concatenate([begun[:, None], array[:, :-1]], axis=1)

    more = {name: shift(first.more[name], array) for name, array in after.more.items()}
    return Readings(shift(first.qpos, after.qpos), shift(first.qvel, after.qvel), more)


def _bounds(space: spaces.Space[Any]) -> tuple[FloatArray, FloatArray]:
    """:return: lower and upper bounds of actions, ``[du]``"""
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"Plans of continuous actions need a Box of them, got {space}: for Discrete ones use Simulator and a tree search"
        )
    low, high = space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
    if not np.all(np.isfinite(low) & np.isfinite(high) & (low < high)):
        raise ValueError(
            f"Plans need bounds of the actions, got low {low} and high {high}: give the environment some, for instance with "
            "gymnasium.wrappers.RescaleAction or an action space of its own"
        )
    return low, high
