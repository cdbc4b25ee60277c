"""One plan after the other: what is kept of a plan, and how the next begins.

Problem: in state x, find actions u_0 .. u_{T-1} in [-1, 1] that maximise sum_t gamma^t r_t + gamma^T V(x_T), carry out the
first ``replan_every`` of them, and plan again from there (notes of CS285, Alg. 1.5 and 1.0 of chapter 10).

What is kept between two steps of an environment is one row of a structured array, so that it travels through ``predict`` as
the state of a recurrent policy does. Its fields: ``age``, steps since the plan was made, -1 where there is none; ``n_plans``
made so far; ``predicted_return``, the plan's; ``seconds`` that it took; ``actions`` ``[T, du]``; of planners that sample also
``mean`` ``[T, du]`` and ``elites`` ``[K, T, du]``; of iLQR ``states`` ``[T + 1, nx]`` and ``gains`` ``[T, du, dx]``.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize  # noqa: F401  # MPPI's first plan would wait for it

from sb3_dpi.common.choices import as_settings
from sb3_dpi.mpc.constants import DRAWN, DRAWN_EXPONENT, DRAWN_SPREAD, EDGE, ITERATIONS
from sb3_dpi.systems import RewardSystem, returns_of
from sb3_dpi.trajopt.differences import FunctionCost
from sb3_dpi.trajopt.ilqr import ILQR, SHARES, ILQRPlan
from sb3_dpi.trajopt.in_time import OutOfTimeError, slices_in_time
from sb3_dpi.trajopt.noise import coloured
from sb3_dpi.trajopt.shooting import CEM, ICEM, MPPI, RandomShooting, Shooter, ShootingPlan
from sb3_dpi.trajopt.types import FloatArray, IntArray

Planner = Shooter | ILQR
PLANNERS: dict[str, type[Any]] = {"icem": ICEM, "cem": CEM, "mppi": MPPI, "random": RandomShooting, "ilqr": ILQR}
NAMES = ("iCEM", "CEM", "MPPI", "random", "iLQR")
"""As they are written."""
ROUNDING = 1e-9
"""Of a return, below which iLQR's plan counts as no worse than its start."""


def make_planner(given: str | Mapping[str, Any] | Planner | type[Any]) -> Planner:
    """
    The planner that is meant.

    :param given: its name in any case, a dictionary of options with the name under ``"kind"``, or the planner itself
    :return: it
    :raises ValueError: if the name or an option is unknown, or a number out of range
    """
    if isinstance(given, Shooter | ILQR):
        return given
    name = given.get("kind") if isinstance(given, Mapping) else given
    if not isinstance(name, str) or name.lower() not in PLANNERS:
        names = ", ".join(map(repr, NAMES))
        raise ValueError(f"Policy {name} unknown: MPC has {names}: its policy is the planner, or a dictionary with its kind")
    options = {key: value for key, value in given.items() if key != "kind"} if isinstance(given, Mapping) else {}
    if name.lower() == "ilqr":
        options = {"max_iterations": ITERATIONS, **options}
    planner: Planner = as_settings(f"planner {name!r}", PLANNERS[name.lower()], options)
    return planner


@dataclass(frozen=True)
class Planning:
    """All that a plan depends on but the state.

    :param planner: how it is searched for
    :param system: what it is made in
    :param observe: observations ``[n, do]``, or of several variants ``[n, K, do]``, of the system's states ``[n, nx]``
    :param horizon: T
    :param replan_every: steps of a plan that are carried out, from 1 to T
    :param gamma: discount factor
    :param terminal_value: of observations ``[n, do]``, ``[n]``; None for none
    :param max_seconds: of a plan; None for no limit
    """

    planner: Planner
    system: RewardSystem
    observe: Callable[[FloatArray], FloatArray]
    horizon: int
    replan_every: int
    gamma: float
    terminal_value: Callable[[FloatArray], FloatArray] | None
    max_seconds: float | None

    @property
    def layout(self) -> np.dtype[Any]:
        """Of a row that is kept."""
        T, du, nx, dx = self.horizon, self.system.action_dim, self.system.state_dim, self.system.tangent_dim
        fields: list[Any] = [("age", np.int64), ("n_plans", np.int64), ("predicted_return", float), ("seconds", float)]
        fields.append(("actions", float, (T, du)))
        if isinstance(self.planner, ILQR):
            fields += [("states", float, (T + 1, nx)), ("gains", float, (T, du, dx))]
        else:
            fields += [("mean", float, (T, du)), ("elites", float, (getattr(self.planner, "n_elites", 1), T, du))]
        return np.dtype(fields)

    @property
    def seconds_a_step(self) -> float | None:
        """Of a core, for each step that is taken, about; None where the system does not tell how long its own take."""
        each, n_samples = getattr(self.system, "step_seconds", None), getattr(self.planner, "n_samples", None)
        if each is None:
            return None
        if isinstance(self.planner, ILQR):  # slopes of the steps, the reward's second derivatives, and trials
            n = self.system.tangent_dim + self.system.action_dim
            tried = DRAWN + self.planner.max_iterations * (2 * n * n + 6 * n + len(SHARES))
        elif n_samples is None:
            return None
        else:
            tried = n_samples * getattr(self.planner, "n_rounds", 1)
        seconds = tried * self.horizon * float(each)
        return min(seconds, self.max_seconds or np.inf) / self.replan_every

    def begin(self, n: int) -> np.ndarray:
        """
        Rows without a plan.

        :param n: how many
        :return: ``[n]``
        """
        rows = np.zeros(n, dtype=self.layout)
        rows["age"] = -1
        return rows

    def act(self, row: np.void, state: FloatArray, rng: np.random.Generator) -> FloatArray:
        """
        The next action: of the plan that is kept, or of a new one.

        :param row: what is kept; it is written into
        :param state: of the system, ``[nx]``
        :param rng: what plans draw from
        :return: in units of the bounds, ``[du]``
        """
        if row["age"] >= 0:
            row["age"] += 1
        if not 0 <= row["age"] < self.replan_every:
            begun = time.perf_counter()
            if isinstance(self.planner, ILQR):
                self._improve(self.planner, row, state, rng)
            else:
                self._sample(self.planner, row, state, rng)
            row["age"], row["n_plans"], row["seconds"] = 0, row["n_plans"] + 1, time.perf_counter() - begun
        t = int(row["age"])
        action: FloatArray = row["actions"][t].copy()
        if isinstance(self.planner, ILQR):
            action += row["gains"][t] @ self.system.difference(row["states"][t], state)
        clipped: FloatArray = np.clip(action, -1.0, 1.0)
        return clipped

    def _sample(self, planner: Shooter, row: np.void, state: FloatArray, rng: np.random.Generator) -> None:
        start = None
        if row["age"] > 0:
            kept = ShootingPlan(
                actions=row["actions"][None],
                returns=np.array([row["predicted_return"]]),
                mean=row["mean"][None],
                elites=row["elites"][None],
                n_rollouts=0,
            )
            start = kept.shifted(int(row["age"]))
        returns = returns_of(self.system, state[None], rng, self.gamma, self.terminal_value)
        low, high = np.full(self.system.action_dim, -1.0), np.ones(self.system.action_dim)
        plan = planner.plan(returns, low, high, self.horizon, rng, start=start, max_seconds=self.max_seconds)
        row["actions"], row["mean"], row["elites"] = plan.actions[0], plan.mean[0], plan.elites[0]
        row["predicted_return"] = plan.returns[0]

    def _improve(self, planner: ILQR, row: np.void, state: FloatArray, rng: np.random.Generator) -> None:
        T, du = self.horizon, self.system.action_dim
        deadline = np.inf if self.max_seconds is None else time.monotonic() + self.max_seconds
        start: FloatArray | ILQRPlan = np.zeros((T, du))
        if row["age"] > 0:
            low = np.full((T, du), -EDGE)
            kept = ILQRPlan(
                states=row["states"].copy(),
                actions=row["actions"].copy(),
                gains=row["gains"].copy(),
                offsets=np.zeros((T, du)),
                cost=0.0,
                costs=np.zeros(1),
                low=low,
                high=-low,
                n_iterations=0,
                shift=0.0,
                ended="time",
            )
            start = kept.shifted(int(row["age"]))
        known = start.actions if isinstance(start, ILQRPlan) else start
        drawn = DRAWN_SPREAD * np.swapaxes(coloured(rng, (DRAWN, du, T), DRAWN_EXPONENT), 1, 2)
        tried = np.concatenate([known[None], np.clip(drawn, -EDGE, EDGE)])
        returns = returns_of(self.system, state[None], rng, self.gamma, self.terminal_value)
        earned = np.concatenate([returns(tried[None, part])[0] for part in slices_in_time(len(tried), deadline)])
        best = int(earned.argmax())
        start = start if best == 0 else tried[best]
        left = None if self.max_seconds is None else deadline - time.monotonic()
        if left is not None and left <= 0.0:
            row["actions"], row["states"], row["gains"], row["predicted_return"] = tried[best], state, 0.0, earned[best]
            return
        plan = planner.plan(self.system, self._cost(rng, deadline), state, start, low=-EDGE, high=EDGE, max_seconds=left)
        row["actions"], row["states"], row["gains"] = plan.actions, plan.states, plan.gains
        row["predicted_return"] = returns(plan.actions[None, None])[0, 0]
        # it knows no end of an episode, and may have run into one
        if row["predicted_return"] < earned[best] - ROUNDING * abs(earned[best]):
            row["actions"], row["gains"], row["predicted_return"] = tried[best], 0.0, earned[best]

    def _cost(self, rng: np.random.Generator, deadline: float) -> FunctionCost:
        """Rewards of single steps as a cost, expanded by differences."""

        def running(states: FloatArray, actions: FloatArray, time_steps: IntArray) -> FloatArray:
            # a trajectory's own cost is always told, that of all points about it in time
            parts = slices_in_time(len(states), np.inf if len(states) <= self.horizon else deadline)
            rewards = [self.system.rollout(states[i], actions[i][:, None], rng).rewards[:, 0] for i in parts]
            earned: FloatArray = np.concatenate(rewards)
            if len(earned) < len(states):
                raise OutOfTimeError
            cost: FloatArray = -(self.gamma**time_steps) * earned
            return cost

        def final(states: FloatArray, time_step: int) -> FloatArray:
            assert self.terminal_value is not None
            seen = self.observe(states)
            values: FloatArray = self.terminal_value(seen.reshape(-1, seen.shape[-1])).reshape(len(seen), -1).mean(1)
            return -(self.gamma**time_step) * values

        return FunctionCost(self.system, running, None if self.terminal_value is None else final)
