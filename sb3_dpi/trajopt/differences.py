"""Systems and costs from plain functions, with central differences for the derivatives that nobody wrote.

Problem: f(x, u) and l(x, u, t) are given as functions of many states at once. With e_i the i-th direction of z = [x; u] and h
a small width, all that is asked for comes from one call of the function at many points (shapes as in ``systems``):

    df/dz_i = (f(z + h e_i) - f(z - h e_i)) / 2h,
    d2l/dz_i dz_j = (l(z + h e_i + h e_j) - l(z + h e_i - h e_j) - l(z - h e_i + h e_j) + l(z - h e_i - h e_j)) / 4h^2.

On manifolds sums are ``integrate`` and differences of next states are taken by ``difference`` from f(z). States and actions
should be of order one: the width grows with numbers above that, and does not shrink with those below.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sb3_dpi.trajopt.cost import project_psd
from sb3_dpi.trajopt.lqr import matvec, symmetrize
from sb3_dpi.trajopt.systems import System
from sb3_dpi.trajopt.types import FloatArray, IntArray, QuadraticCost, QuadraticValue

FIRST_WIDTH = float(np.finfo(np.float64).eps ** (1 / 3))
"""Of central differences: rounding and the function's third derivative weigh alike."""
SECOND_WIDTH = float(np.finfo(np.float64).eps ** (1 / 4))
"""Where a difference of differences is taken."""


def _widths(system: System, states: FloatArray, actions: FloatArray, width: float) -> FloatArray:
    """Width of each direction at each point, ``[T, dz]``."""
    size = np.ones((len(states), system.tangent_dim + system.action_dim))
    if system.tangent_dim == system.state_dim:
        size[:, : system.tangent_dim] = np.maximum(1.0, np.abs(states))
    size[:, system.tangent_dim :] = np.maximum(1.0, np.abs(actions))
    return width * size


def _moved(system: System, states: FloatArray, actions: FloatArray, changes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The points z + change: ``[T, nx]`` and ``[T, du]`` with changes ``[T, P, dz]`` make ``[T P, nx]`` and ``[T P, du]``."""
    dx = system.tangent_dim
    moved = system.integrate(states[:, None], changes[..., :dx])
    pushed = actions[:, None] + changes[..., dx:]
    return moved.reshape(-1, moved.shape[-1]), pushed.reshape(-1, pushed.shape[-1])


def _both_ways(widths: FloatArray) -> FloatArray:
    """Changes by one width in each direction and back, ``[T, 2 dz, dz]``."""
    ahead = widths[:, :, None] * np.eye(widths.shape[1])
    return np.concatenate([ahead, -ahead], axis=1)


def finite_jacobians(
    system: System, states: FloatArray, actions: FloatArray, width: float = FIRST_WIDTH
) -> tuple[FloatArray, FloatArray]:
    """
    Linearise a system by central differences of its step.

    :param system: only ``step``, ``difference`` and ``integrate`` are called, ``step`` on 2 T dz states at once
    :param states: ``[T, nx]``
    :param actions: ``[T, du]``
    :param width: of a difference, relative to numbers above one
    :return: fx ``[T, dx, dx]`` and fu ``[T, dx, du]``
    """
    widths = _widths(system, states, actions, width)
    T, dz = widths.shape
    after = system.step(*_moved(system, states, actions, _both_ways(widths)))
    # from one origin: on a manifold the two ends would each count in a frame of their own
    here = system.step(states, actions)
    changes = system.difference(here[:, None], after.reshape(T, 2 * dz, -1))
    slopes = np.swapaxes((changes[:, :dz] - changes[:, dz:]) / (2.0 * widths[:, :, None]), -1, -2)
    return slopes[..., : system.tangent_dim], slopes[..., system.tangent_dim :]


def finite_hessians(system: System, states: FloatArray, actions: FloatArray, width: float = SECOND_WIDTH) -> FloatArray:
    """
    Differentiate a system's step twice, by central differences of ``linearize``.

    :param system: only ``linearize`` and ``integrate`` are called, ``linearize`` on 2 T dz states at once
    :param states: ``[T, nx]``
    :param actions: ``[T, du]``
    :param width: of a difference, relative to numbers above one
    :return: ``[T, dx, dz, dz]``, symmetric in the last two axes
    """
    widths = _widths(system, states, actions, width)
    T, dz = widths.shape
    fx, fu = system.linearize(*_moved(system, states, actions, _both_ways(widths)))
    slopes = np.concatenate([fx, fu], axis=-1).reshape(T, 2 * dz, -1, dz)
    curvature = (slopes[:, :dz] - slopes[:, dz:]) / (2.0 * widths[:, :, None, None])
    return symmetrize(np.moveaxis(curvature, 1, -1))


@dataclass(frozen=True)
class FunctionSystem:
    """A system in a vector space, from functions of many states at once.

    :param function: next states ``[B, nx]`` of states ``[B, nx]`` and actions ``[B, du]``
    :param state_dim: nx
    :param action_dim: du
    :param jacobians: fx ``[T, nx, nx]`` and fu ``[T, nx, du]`` of the same two arguments; None takes differences
    :param second: ``[T, nx, dz, dz]`` of the same two arguments; None takes differences of the first derivatives
    """

    function: Callable[[FloatArray, FloatArray], FloatArray]
    state_dim: int
    action_dim: int
    jacobians: Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]] | None = None
    second: Callable[[FloatArray, FloatArray], FloatArray] | None = None

    @property
    def tangent_dim(self) -> int:
        """The same as ``state_dim``."""
        return self.state_dim

    def step(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """See ``System``."""
        return self.function(states, actions)

    def linearize(self, states: FloatArray, actions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See ``System``."""
        return finite_jacobians(self, states, actions) if self.jacobians is None else self.jacobians(states, actions)

    def hessians(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """See ``TwiceDifferentiable``."""
        return finite_hessians(self, states, actions) if self.second is None else self.second(states, actions)

    def difference(self, origin: FloatArray, states: FloatArray) -> FloatArray:
        """See ``System``."""
        return states - origin

    def integrate(self, origin: FloatArray, changes: FloatArray) -> FloatArray:
        """See ``System``."""
        return origin + changes


@dataclass(frozen=True)
class FunctionCost:
    """A cost from functions of many states at once, expanded by central differences.

    :param system: says how states change
    :param running: cost ``[B]`` of states ``[B, nx]``, actions ``[B, du]`` and their time steps ``[B]``
    :param final: cost ``[B]`` of last states ``[B, nx]``, at one time step; None for none
    :param convex: project the Hessians to positive semi-definite, which iLQR needs far from the optimum
    """

    system: System
    running: Callable[[FloatArray, FloatArray, IntArray], FloatArray]
    final: Callable[[FloatArray, int], FloatArray] | None = None
    convex: bool = True

    def value(self, states: FloatArray, actions: FloatArray, time_steps: IntArray) -> FloatArray:
        """See ``Cost``."""
        shape = actions.shape[:-1]
        steps = np.broadcast_to(time_steps, shape).ravel()
        flat = states.reshape(-1, states.shape[-1]), actions.reshape(-1, actions.shape[-1])
        return self.running(*flat, steps).reshape(shape)

    def expand(self, states: FloatArray, actions: FloatArray, time_steps: IntArray) -> QuadraticCost:
        """See ``Cost``."""

        def running(moved: FloatArray, pushed: FloatArray) -> FloatArray:
            return self.running(moved, pushed, np.repeat(time_steps, len(moved) // len(time_steps)))

        return QuadraticCost(*self._expand(running, states, actions))

    def final_value(self, states: FloatArray, time_step: int) -> FloatArray:
        """See ``Cost``."""
        if self.final is None:
            return np.zeros(states.shape[:-1])
        return self.final(states.reshape(-1, states.shape[-1]), time_step).reshape(states.shape[:-1])

    def expand_final(self, state: FloatArray, time_step: int) -> QuadraticValue:
        """See ``Cost``."""
        dx = self.system.tangent_dim
        still = np.zeros((1, self.system.action_dim))

        def final(moved: FloatArray, _: FloatArray) -> FloatArray:
            return self.final_value(moved, time_step)

        C, c, const = self._expand(final, state[None], still)
        return QuadraticValue(C[0, :dx, :dx], c[0, :dx], const[0])

    def _expand(
        self, function: Callable[[FloatArray, FloatArray], FloatArray], states: FloatArray, actions: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Hessian, gradient and value of a function of moved points."""

        def at(changes: FloatArray) -> FloatArray:
            return function(*_moved(self.system, states, actions, changes)).reshape(changes.shape[:2])

        widths = _widths(self.system, states, actions, FIRST_WIDTH)
        T, dz = widths.shape
        values = at(_both_ways(widths))
        slope = (values[:, :dz] - values[:, dz:]) / (2.0 * widths)
        widths = _widths(self.system, states, actions, SECOND_WIDTH)
        ahead = widths[:, :, None] * np.eye(dz)
        rows, columns = np.triu_indices(dz)
        corners = [at(i * ahead[:, rows] + j * ahead[:, columns]) * i * j for i in (1, -1) for j in (1, -1)]
        C = np.zeros((T, dz, dz))
        C[:, rows, columns] = sum(corners) / (4.0 * widths[:, rows] * widths[:, columns])
        C[:, columns, rows] = C[:, rows, columns]
        return project_psd(C) if self.convex else C, slope, at(np.zeros((T, 1, dz)))[:, 0]


@dataclass(frozen=True)
class TrackingCost:
    """Be where the goal is: l_t = 1/2 d' W d + 1/2 v' R v, d = difference(goal_t, x), v = u - action_goal_t; W_T at the end.

    Goals and weights may each change with time: their row t is used at time step t, and the last one ever after. On a manifold
    the Hessian is that of Gauss and Newton.

    :param system: says how states differ
    :param state_weight: W, ``[dx, dx]`` or ``[n, dx, dx]``, positive semi-definite
    :param action_weight: R, ``[du, du]`` or ``[n, du, du]``, positive definite
    :param final_weight: W_T, ``[dx, dx]``
    :param goal: ``[nx]`` or ``[n, nx]``
    :param action_goal: ``[du]`` or ``[n, du]``; None for zero
    """

    system: System
    state_weight: FloatArray
    action_weight: FloatArray
    final_weight: FloatArray
    goal: FloatArray
    action_goal: FloatArray | None = None

    def value(self, states: FloatArray, actions: FloatArray, time_steps: IntArray) -> FloatArray:
        """See ``Cost``."""
        away, push = self._errors(states, actions, time_steps)
        W, R = _rows(self.state_weight, 2, time_steps), _rows(self.action_weight, 2, time_steps)
        value: FloatArray = 0.5 * (np.sum(away * matvec(W, away), -1) + np.sum(push * matvec(R, push), -1))
        return value

    def expand(self, states: FloatArray, actions: FloatArray, time_steps: IntArray) -> QuadraticCost:
        """See ``Cost``."""
        dx, du = self.system.tangent_dim, self.system.action_dim
        away, push = self._errors(states, actions, time_steps)
        W, R = _rows(self.state_weight, 2, time_steps), _rows(self.action_weight, 2, time_steps)
        D = self._slopes(_rows(self.goal, 1, time_steps), states)
        C, c = np.zeros((len(states), dx + du, dx + du)), np.empty((len(states), dx + du))
        C[:, :dx, :dx], C[:, dx:, dx:] = symmetrize(np.swapaxes(D, -1, -2) @ W @ D), R
        c[:, :dx], c[:, dx:] = matvec(np.swapaxes(D, -1, -2), matvec(W, away)), matvec(R, push)
        return QuadraticCost(C, c, self.value(states, actions, time_steps))

    def final_value(self, states: FloatArray, time_step: int) -> FloatArray:
        """See ``Cost``."""
        away = self.system.difference(_rows(self.goal, 1, np.array(time_step)), states)
        value: FloatArray = 0.5 * np.sum(away * matvec(self.final_weight, away), -1)
        return value

    def expand_final(self, state: FloatArray, time_step: int) -> QuadraticValue:
        """See ``Cost``."""
        goal = _rows(self.goal, 1, np.array(time_step))
        D = self._slopes(np.broadcast_to(goal, state.shape)[None], state[None])[0]
        weighted = self.final_weight @ self.system.difference(goal, state)
        return QuadraticValue(symmetrize(D.T @ self.final_weight @ D), D.T @ weighted, self.final_value(state, time_step))

    def _errors(self, states: FloatArray, actions: FloatArray, time_steps: IntArray) -> tuple[FloatArray, FloatArray]:
        away = self.system.difference(_rows(self.goal, 1, time_steps), states)
        return away, actions if self.action_goal is None else actions - _rows(self.action_goal, 1, time_steps)

    def _slopes(self, goals: FloatArray, states: FloatArray) -> FloatArray:
        """How the difference from the goal answers to changes of state, ``[T, dx, dx]``."""
        dx = self.system.tangent_dim
        if dx == self.system.state_dim:
            return np.broadcast_to(np.eye(dx), (len(states), dx, dx))
        steps = FIRST_WIDTH * np.eye(dx)
        ahead, back = (self.system.integrate(states[:, None], sign * steps) for sign in (1.0, -1.0))
        goals = np.broadcast_to(goals, states.shape)[:, None]
        change = self.system.difference(goals, ahead) - self.system.difference(goals, back)
        return np.swapaxes(change / (2.0 * FIRST_WIDTH), -1, -2)


def _rows(array: FloatArray, n_axes: int, time_steps: IntArray) -> FloatArray:
    """What holds at each time step, of an array that may have a first axis of time."""
    array = np.asarray(array, dtype=np.float64)
    rows: FloatArray = array if array.ndim == n_axes else array[np.minimum(time_steps, len(array) - 1)]
    return rows
