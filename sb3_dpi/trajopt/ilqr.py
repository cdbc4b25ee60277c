"""Iterative LQR and differential dynamic programming, with limits on the actions.

Problem (shapes and protocols in ``systems``): from a given x_0, minimise over u_0 .. u_{T-1}

    J = sum_{t < T} l_t(x_t, u_t) + l_T(x_T),   x_{t+1} = f(x_t, u_t),   low <= u_t <= high.

Around the present trajectory dynamics and cost are expanded, the backward pass of ``box_pass`` finds steps k_t and gains K_t,
and the forward pass tries (notes of CS285, Alg. 22; d is the change of state from the old trajectory to the new one)

    u_t <- clip(u_t + alpha k_t + K_t d_t).

iLQR expands the dynamics to first order. DDP (Mayne 1966) expands them to second, weighed by the gradient of the cost-to-go,
and so converges quadratically (notes, chapter 9.4). A step is taken only if it lowers J by a share of what the model
predicted; else ``shift I`` is added to the Hessian of the actions, more at each failure (Tassa, Erez and Todorov 2012). Costs
may have any unit: the shift counts in units of that Hessian.

``newton_step`` is Newton's method on J itself. It differs from DDP in two things: the second-order terms are weighed by the
costates, the gradient of J along the old trajectory, and the states answer linearly (Pantoja 1988).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sb3_dpi.trajopt.box_pass import BoxResult, box_pass
from sb3_dpi.trajopt.in_time import OutOfTimeError, slices_in_time
from sb3_dpi.trajopt.lqr import NotPositiveDefiniteError
from sb3_dpi.trajopt.ranges import check_range, check_whole
from sb3_dpi.trajopt.systems import Cost, System, TwiceDifferentiable
from sb3_dpi.trajopt.types import FloatArray, NotFiniteReturnError

Ending = Literal["converged", "stuck", "iterations", "time"]
"""Why a search ended: the model predicted no more gain; no step lowered the cost; a limit was reached."""

SHARES: FloatArray = np.power(0.5, np.arange(11), dtype=np.float64)
"""alpha, the shares of a step that are tried."""
SUFFICIENT = 1e-4
"""Share of the predicted decrease that a step must bring."""
SMALLEST_SHIFT, LARGEST_SHIFT = 1e-8, 1e8
"""In units of the Hessian of the actions; below the smallest the shift is zero."""
NEGLIGIBLE_SHIFT = 1e-6
"""With no more than this a search may be called converged: a larger one makes any step short."""
SMALLEST_SIZE = 1e-200
"""Of a Hessian, where actions do nothing at all."""
GROWTH = 2.0
"""Of the growth of the shift from one failure to the next."""
ROUNDING = 1e-14
"""Of a number, relative to those that it is the sum of."""


@dataclass(frozen=True)
class ILQRPlan:
    """A trajectory, the feedback that holds it, and how the search for it went."""

    states: FloatArray
    """``[T + 1, nx]``"""
    actions: FloatArray
    """``[T, du]``, within the limits"""
    gains: FloatArray
    """K of the last backward pass, ``[T, du, dx]``; rows of actions that a limit holds are zero"""
    offsets: FloatArray
    """k of the last backward pass, ``[T, du]``: the step that it would take next; near zero where the search converged"""
    cost: float
    """J"""
    costs: FloatArray
    """J at the start and after each accepted step, falling"""
    low: FloatArray
    """limits of the actions, ``[T, du]``, minus infinity where there is none"""
    high: FloatArray
    """``[T, du]``"""
    n_iterations: int
    """backward passes that were followed by a search along the step"""
    shift: float
    """regularisation at the end"""
    ended: Ending
    """why"""

    def act(self, system: System, t: int, state: FloatArray) -> FloatArray:
        """
        The action of the plan's feedback.

        :param system: in which the plan was made
        :param t: time step of the plan, from 0 to T - 1
        :param state: where one is, ``[nx]``
        :return: ``[du]``, within the limits
        """
        push = self.actions[t] + self.gains[t] @ system.difference(self.states[t], state)
        action: FloatArray = np.clip(push, self.low[t], self.high[t])
        return action

    def shifted(self, n: int = 1) -> "ILQRPlan":
        """
        The rest of the plan, as the start of the next one: its last step is repeated.

        :param n: time steps that have passed
        :return: a plan of the same length
        """
        steps = np.minimum(np.arange(len(self.actions)) + n, len(self.actions) - 1)
        rows = {name: getattr(self, name)[steps] for name in ("actions", "gains", "offsets", "low", "high")}
        states = self.states[np.minimum(np.arange(len(self.states)) + n, len(self.actions))]
        return replace(self, states=states, **rows)


@dataclass(frozen=True)
class _Trajectory:
    states: FloatArray
    actions: FloatArray
    cost: float
    size: float
    """sum of the absolute costs of the time steps"""


@dataclass(frozen=True)
class _Expansion:
    """What ``box_pass`` takes, by the names that it gives them."""

    F: FloatArray
    C: FloatArray
    c: FloatArray
    V: FloatArray
    v: FloatArray
    second: FloatArray


@dataclass(frozen=True)
class ILQR:
    """A planner by local expansion.

    :param second_order: expand the dynamics to second order (DDP); the system must have ``hessians``
    :param max_iterations: most backward passes
    :param tolerance: the search has converged where the model predicts a decrease below this share of the cost, or of the
        largest decrease yet predicted
    """

    second_order: bool = False
    max_iterations: int = 200
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        check_whole(self, "max_iterations")
        check_range(self, "tolerance", 0.0)

    def plan(
        self,
        system: System,
        cost: Cost,
        state: FloatArray,
        start: "FloatArray | ILQRPlan",
        *,
        low: FloatArray | float | None = None,
        high: FloatArray | float | None = None,
        first_step: int = 0,
        max_seconds: float | None = None,
    ) -> ILQRPlan:
        """
        Plan from a state.

        :param system: what happens
        :param cost: what is minimised; goals and weights that change with time are its own
        :param state: x_0, ``[nx]``
        :param start: first actions, ``[T, du]``, clipped into the limits; or an earlier plan, whose feedback holds the first
            trajectory near its own (``shifted`` in receding horizons)
        :param low: least actions, a number, ``[du]`` or ``[T, du]``; None for no limit
        :param high: greatest actions
        :param first_step: t of x_0, for costs that change with time
        :param max_seconds: when to stop and return the best so far; None for no limit
        :return: the plan; never worse than the first trajectory
        :raises ValueError: for a horizon of 0, limits that cross, a first trajectory or derivatives that are not finite
        """
        if self.second_order and not isinstance(system, TwiceDifferentiable):
            raise ValueError("DDP needs second derivatives: give the system `hessians`, or set second_order=False")
        search = _Search(self, system, cost, start, low, high, first_step)
        deadline = np.inf if max_seconds is None else time.monotonic() + max_seconds
        return search.run(np.asarray(state, dtype=np.float64), start, deadline)


class _Search:
    """One search, from the first trajectory to the last."""

    def __init__(
        self,
        settings: ILQR,
        system: System,
        cost: Cost,
        start: FloatArray | ILQRPlan,
        low: FloatArray | float | None,
        high: FloatArray | float | None,
        first_step: int,
    ) -> None:
        self.settings, self.system, self.cost = settings, system, cost
        actions = start.actions if isinstance(start, ILQRPlan) else np.asarray(start, dtype=np.float64)
        if actions.ndim != 2 or len(actions) < 1 or actions.shape[1] != system.action_dim:
            raise ValueError(
                f"a plan starts from actions [T, {system.action_dim}] with a horizon T of at least 1, got {actions.shape}"
            )
        self.low = np.broadcast_to(np.asarray(-np.inf if low is None else low, dtype=np.float64), actions.shape)
        self.high = np.broadcast_to(np.asarray(np.inf if high is None else high, dtype=np.float64), actions.shape)
        if not np.all(self.low <= self.high):
            raise ValueError("limits of the actions cross or are not numbers: give low <= high")
        self.time_steps = first_step + np.arange(len(actions))
        self.shift, self.growth, self.largest_gain = 0.0, 1.0, 0.0
        self.deadline = np.inf

    def run(self, state: FloatArray, start: FloatArray | ILQRPlan, deadline: float) -> ILQRPlan:
        """Improve the first trajectory until nothing does."""
        now = self._first(state, start)
        self.deadline = deadline
        costs, n = [now.cost], 0
        ended: Ending | None = None
        expansion: _Expansion | None = None
        passed: BoxResult | None = None
        while ended is None:
            if n >= self.settings.max_iterations or time.monotonic() > deadline:
                ended = "iterations" if n >= self.settings.max_iterations else "time"
                break
            try:
                expansion = self._expand(now) if expansion is None else expansion
                if (found := self._backward(now, expansion)) is None:
                    ended = "stuck"
                    break
                passed, n = found, n + 1
                better, last = self._forward(now, passed), self._without_shift(now, expansion, passed)
            except OutOfTimeError:
                ended = "time"
                break
            if better is not None:
                now, expansion = better, None
                costs.append(now.cost)
                self._lower_shift(passed[3])
            elif last is None and not self._raise_shift(passed[3]):
                ended = "stuck"
            if last is not None:
                ended, passed = "converged", last
        return self._result(now, passed, costs, n, ended)

    def _first(self, state: FloatArray, start: FloatArray | ILQRPlan) -> _Trajectory:
        """The trajectory to begin with."""
        T, du, dx = *self.low.shape, self.system.tangent_dim
        if isinstance(start, ILQRPlan):
            pushes, gains = start.actions.copy(), start.gains
            pushes[0] += gains[0] @ self.system.difference(start.states[0], state)  # it begins there, and would see no change
            reference = _Trajectory(start.states, pushes, 0.0, 0.0)
        else:
            held = np.broadcast_to(state, (T, len(state)))
            reference, gains = _Trajectory(held, np.asarray(start, dtype=np.float64), 0.0, 0.0), np.zeros((T, du, dx))
        (first,) = self._follow(replace(reference, states=np.concatenate([state[None], reference.states[1:]])), gains)
        if not np.isfinite(first.cost):
            values = self.cost.value(first.states[:-1], first.actions, self.time_steps)
            bad = np.flatnonzero(~np.isfinite(values))
            where = f"at time step {bad[0]}" if len(bad) else "at the end"
            raise NotFiniteReturnError(f"the cost of the first trajectory is not finite ({where}): start from other actions")
        return first

    def _follow(
        self, reference: _Trajectory, gains: FloatArray, offsets: FloatArray | float = 0.0, shares: FloatArray | None = None
    ) -> list[_Trajectory]:
        """Run the feedback with each share of the offsets."""
        shares = np.zeros(1) if shares is None else shares
        pushes = reference.actions + shares[:, None, None] * offsets
        S, T = len(shares), len(self.low)
        states, actions = np.empty((S, T + 1, reference.states.shape[-1])), np.empty((S, *self.low.shape))
        states[:, 0] = reference.states[0]
        with np.errstate(all="ignore"):
            for t in range(T):
                if time.monotonic() > self.deadline:
                    raise OutOfTimeError
                change = self.system.difference(reference.states[t], states[:, t])
                wished = pushes[:, t] + change @ gains[t].T
                actions[:, t] = np.minimum(np.maximum(wished, self.low[t]), self.high[t])
                states[:, t + 1] = self.system.step(states[:, t], actions[:, t])
            parts = [self.cost.value(states[i, :-1], actions[i], self.time_steps) for i in self._in_time(S)]
            values = np.concatenate(parts)
            ends = self.cost.final_value(states[:, -1], self.time_steps[-1] + 1)
            total, size = values.sum(-1) + ends, np.abs(values).sum(-1) + np.abs(ends)
        return [_Trajectory(states[i], actions[i], float(total[i]), float(size[i])) for i in range(S)]

    def _in_time(self, n: int) -> Iterator[slice]:
        """Slices of all, unless time is up."""
        done = 0
        for part in slices_in_time(n, self.deadline):
            yield part
            done = part.stop
        if done < n:
            raise OutOfTimeError

    def _expand(self, now: _Trajectory) -> "_Expansion":
        """Dynamics and cost along the present trajectory."""
        T, steps = len(now.actions), []
        for i in self._in_time(T):
            states, actions = now.states[:-1][i], now.actions[i]
            linear = np.concatenate(self.system.linearize(states, actions), axis=-1)
            running = self.cost.expand(states, actions, self.time_steps[i])
            bent = np.zeros((0, linear.shape[1], linear.shape[2], linear.shape[2]))
            if self.settings.second_order and isinstance(self.system, TwiceDifferentiable):
                bent = self.system.hessians(states, actions)
            steps.append((linear, running.C, running.c, bent))
        F, C, c, second = map(np.concatenate, zip(*steps, strict=True))
        final = self.cost.expand_final(now.states[-1], int(self.time_steps[-1]) + 1)
        parts = (F, C, c, final.V, final.v, second)
        # one layout, so that the pass is compiled once
        expansion = _Expansion(*(np.ascontiguousarray(part, dtype=np.float64) for part in parts))
        for name, array in vars(expansion).items():
            if not np.all(np.isfinite(array)):
                per_step = np.isfinite(array.reshape(T, -1)).all(1) if len(array) == T else np.ones(1, dtype=bool)
                where = f"at time step {np.argmin(per_step)}" if not per_step.all() else "at the end"
                raise NotFiniteReturnError(
                    f"derivatives ({name}) are not finite {where}: check those of the system and of the cost"
                )
        return expansion

    def _backward(self, now: _Trajectory, expansion: "_Expansion") -> BoxResult | None:
        """Steps and gains, with the least shift that gives any; None where none does."""
        while True:
            passed, is_sound = self._pass(now, expansion, self.shift)
            if is_sound:
                return passed
            if not self._raise_shift(passed[3]):
                return None

    def _pass(self, now: _Trajectory, expansion: "_Expansion", shift: float) -> tuple[BoxResult, bool]:
        """With a shift that is given; and whether it was enough."""
        e, low, high = expansion, self._room(now.actions, self.low), self._room(now.actions, self.high)
        passed = box_pass(e.F, e.C, e.c, e.V, e.v, e.second, low, high, shift)
        return passed, bool(passed[4] < 0 and np.isfinite(passed[2]).all())

    @staticmethod
    def _room(actions: FloatArray, limit: FloatArray) -> FloatArray:
        """What is left to a limit; nothing at one that rounding alone keeps from being met."""
        room = limit - actions
        met = np.isfinite(limit) & (np.abs(room) <= ROUNDING * np.abs(limit))
        return np.where(met, 0.0, room)

    def _forward(self, now: _Trajectory, passed: BoxResult) -> _Trajectory | None:
        """The trajectory of the greatest share of the step that lowers the cost enough; None where none does."""
        K, k, (slope, curvature) = passed[:3]
        # the whole step is mostly right: the others are tried together, and only where it is not
        for shares in (SHARES[:1], SHARES[1:]):
            for share, tried in zip(shares, self._follow(now, K, k, shares), strict=True):
                gain, predicted = now.cost - tried.cost, -(share * slope + share**2 * curvature)
                rounded = predicted <= ROUNDING * now.size and gain >= 0.0
                if gain >= SUFFICIENT * predicted > 0.0 or (rounded and predicted > 0.0):
                    return tried
        return None

    def _without_shift(self, now: _Trajectory, expansion: "_Expansion", passed: BoxResult) -> BoxResult | None:
        """The pass in which the model predicts no more gain, and not only because of the shift; None where there is none."""
        if not self._predicts_nothing(now, passed):
            return None
        if self.shift <= NEGLIGIBLE_SHIFT * passed[3]:
            return passed
        # it may have been needed on the way alone, as where limits hold now what is not convex
        passed, is_sound = self._pass(now, expansion, 0.0)
        if not (is_sound and self._predicts_nothing(now, passed)):
            return None
        self.shift = 0.0
        return passed

    def _predicts_nothing(self, now: _Trajectory, passed: BoxResult) -> bool:
        predicted = -float(passed[2].sum())
        self.largest_gain = max(self.largest_gain, predicted)
        return predicted <= self.settings.tolerance * max(abs(now.cost), self.largest_gain)

    def _raise_shift(self, size: float) -> bool:
        """:return: whether the shift is still sensible"""
        unit = max(size, SMALLEST_SIZE)
        self.growth = max(GROWTH, self.growth * GROWTH)
        self.shift = max(SMALLEST_SHIFT * unit, self.shift * self.growth)
        return self.shift <= LARGEST_SHIFT * unit

    def _lower_shift(self, size: float) -> None:
        self.growth = min(1.0 / GROWTH, self.growth / GROWTH)
        shift = self.shift * self.growth
        self.shift = shift if shift >= SMALLEST_SHIFT * size else 0.0

    def _result(
        self, now: _Trajectory, passed: BoxResult | None, costs: list[float], n_iterations: int, ended: Ending
    ) -> ILQRPlan:
        T, du = now.actions.shape
        K, k = (np.zeros((T, du, self.system.tangent_dim)), np.zeros((T, du))) if passed is None else passed[:2]
        return ILQRPlan(
            states=now.states,
            actions=now.actions,
            gains=K,
            offsets=k,
            cost=now.cost,
            costs=np.array(costs),
            low=self.low,
            high=self.high,
            n_iterations=n_iterations,
            shift=self.shift,
            ended=ended,
        )


def action_gradient(
    system: System, cost: Cost, states: FloatArray, actions: FloatArray, first_step: int = 0
) -> tuple[FloatArray, FloatArray]:
    """
    Differentiate J by the actions, backward along a trajectory.

    :param system: what happens
    :param cost: what is minimised
    :param states: of the trajectory, ``[T + 1, nx]``
    :param actions: ``[T, du]``
    :param first_step: t of the first state
    :return: dJ/du ``[T, du]``, and the costates, dJ/dx of every state ``[T + 1, dx]``
    """
    fx, fu = system.linearize(states[:-1], actions)
    T, dx = len(actions), system.tangent_dim
    c = cost.expand(states[:-1], actions, first_step + np.arange(T)).c
    costates, gradient = np.empty((T + 1, dx)), np.empty(actions.shape)
    costates[T] = cost.expand_final(states[T], first_step + T).v
    for t in reversed(range(T)):
        gradient[t] = c[t, dx:] + fu[t].T @ costates[t + 1]
        costates[t] = c[t, :dx] + fx[t].T @ costates[t + 1]
    return gradient, costates


def newton_step(
    system: System, cost: Cost, states: FloatArray, actions: FloatArray, first_step: int = 0, shift: float = 0.0
) -> FloatArray:
    """
    The Newton step of J in the actions, stage by stage: -(d2J/du2 + shift I)^-1 dJ/du without the matrix of the whole horizon.

    :param system: what happens; must have ``hessians``
    :param cost: what is minimised
    :param states: of the trajectory, ``[T + 1, nx]``
    :param actions: ``[T, du]``
    :param first_step: t of the first state
    :param shift: added to the Hessian's diagonal
    :return: change of the actions, ``[T, du]``
    :raises NotPositiveDefiniteError: where the shifted Hessian is not
    """
    if not isinstance(system, TwiceDifferentiable):
        raise ValueError("Newton's method needs second derivatives: give the system `hessians`")
    T, dx, du = len(actions), system.tangent_dim, system.action_dim
    _, costates = action_gradient(system, cost, states, actions, first_step)
    F = np.concatenate(system.linearize(states[:-1], actions), axis=-1)
    running = cost.expand(states[:-1], actions, first_step + np.arange(T))
    final = cost.expand_final(states[T], first_step + T)
    C = running.C + np.einsum("ti,tijk->tjk", costates[1:], system.hessians(states[:-1], actions))
    C[:, dx:, dx:] += shift * np.eye(du)
    free = np.full((T, du), np.inf)
    none = np.zeros((0, dx, dx + du, dx + du))
    K, k, _, _, failed = box_pass(F, C, running.c, final.V, final.v, none, -free, free, 0.0)
    if failed >= 0:
        raise NotPositiveDefiniteError(
            f"the Hessian of the actions is not positive definite at time step {failed}: raise `shift`", 0, failed
        )
    step, change = np.empty((T, du)), np.zeros(dx)
    for t in range(T):
        step[t] = k[t] + K[t] @ change
        change = F[t] @ np.concatenate([change, step[t]])
    return step
