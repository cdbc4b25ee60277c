"""One plan after the other: what is kept of a plan, and how the next begins.

Problem: in state x, find actions u_0 .. u_{T-1} in [-1, 1] that maximise sum_t gamma^t r_t + gamma^T V(x_T), carry out the
first ``replan_every`` of them, and plan again from there (notes of CS285, Alg. 1.5 and 1.0 of chapter 10).

What is kept between two steps of an environment is one row of a structured array, so that it travels through ``predict`` as
the state of a recurrent policy does. Its fields: ``age``, steps since the plan was made, -1 where there is none; ``n_plans``
made so far; ``foretold``, the plan's return; ``seconds`` that it took; ``actions`` ``[T, du]``; of planners that sample also
``mean`` ``[T, du]`` and ``elites`` ``[K, T, du]``; of iLQR ``states`` ``[T + 1, nx]`` and ``gains`` ``[T, du, dx]``.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_dpi.common.choices import as_settings
from sb3_dpi.systems import RewardSystem, returns_of
from sb3_dpi.trajopt.differences import FunctionCost
from sb3_dpi.trajopt.ilqr import ILQR, ILQRPlan
from sb3_dpi.trajopt.noise import coloured
from sb3_dpi.trajopt.shooting import CEM, ICEM, MPPI, RandomShooting, Shooter, ShootingPlan
from sb3_dpi.trajopt.types import FloatArray, IntArray

Planner = Shooter | ILQR
PLANNERS: dict[str, type[Any]] = {"icem": ICEM, "cem": CEM, "mppi": MPPI, "random": RandomShooting, "ilqr": ILQR}
NAMES = ("iCEM", "CEM", "MPPI", "random", "iLQR")
"""As they are written."""
EDGE = 0.995
"""Up to which iLQR plans, in units of the bounds: the differences that it takes must stay within them."""
DRAWN, DRAWN_SPREAD, DRAWN_EXPONENT = 30, 0.5, 2.0
"""Slow sequences of actions beside the last plan, from the best of which iLQR begins: from rest alone it ends in the nearest
optimum, as a pendulum that hangs."""
ITERATIONS = 20
"""Of iLQR in a plan, where nothing else is said: the next plan goes on from there."""


def make_planner(given: str | Mapping[str, Any] | Planner | type[Any]) -> Planner:
    """
    The planner that is meant.

    :param given: its name in any case, a dictionary of options with the name under ``"kind"``, or the planner itself
    :return: it
    :raises ValueError: if the name or an option is unknown
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
    counts = {key: getattr(planner, key, 1) for key in ("n_samples", "n_elites", "n_rounds")}
    if isinstance(planner, Shooter) and (min(counts.values()) < 1 or counts["n_elites"] > counts["n_samples"]):
        said = ", ".join(f"{key}={n}" for key, n in counts.items())
        advice = (
            "" if "n_elites" in options or counts["n_samples"] < 1 else f": give n_elites too, up to {counts['n_samples']}"
        )
        raise ValueError(
            f"planner {name!r} needs a sample and a round at least, and no more elites than samples, got {said}{advice}"
        )
    return planner


@dataclass(frozen=True)
class Planning:
    """All that a plan depends on but the state.

    :param planner: how it is searched for
    :param system: what it is made in
    :param observe: observations ``[n, do]`` of the system's states ``[n, nx]``
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
        fields: list[Any] = [("age", np.int64), ("n_plans", np.int64), ("foretold", float), ("seconds", float)]
        fields.append(("actions", float, (T, du)))
        if isinstance(self.planner, ILQR):
            fields += [("states", float, (T + 1, nx)), ("gains", float, (T, du, dx))]
        else:
            fields += [("mean", float, (T, du)), ("elites", float, (getattr(self.planner, "n_elites", 1), T, du))]
        return np.dtype(fields)

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
                returns=np.array([row["foretold"]]),
                mean=row["mean"][None],
                elites=row["elites"][None],
                n_rollouts=0,
            )
            start = kept.shifted(int(row["age"]))
        returns = returns_of(self.system, state[None], rng, self.gamma, self.terminal_value)
        low, high = np.full(self.system.action_dim, -1.0), np.ones(self.system.action_dim)
        plan = planner.plan(returns, low, high, self.horizon, rng, start=start, max_seconds=self.max_seconds)
        row["actions"], row["mean"], row["elites"] = plan.actions[0], plan.mean[0], plan.elites[0]
        row["foretold"] = plan.returns[0]

    def _improve(self, planner: ILQR, row: np.void, state: FloatArray, rng: np.random.Generator) -> None:
        T, du = self.horizon, self.system.action_dim
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
        best = int(returns_of(self.system, state[None], rng, self.gamma, self.terminal_value)(tried[None])[0].argmax())
        start = start if best == 0 else tried[best]
        plan = planner.plan(self.system, self._cost(rng), state, start, low=-EDGE, high=EDGE, max_seconds=self.max_seconds)
        row["actions"], row["states"], row["gains"], row["foretold"] = plan.actions, plan.states, plan.gains, -plan.cost

    def _cost(self, rng: np.random.Generator) -> FunctionCost:
        """Rewards of single steps as a cost, expanded by differences."""

        def running(states: FloatArray, actions: FloatArray, time_steps: IntArray) -> FloatArray:
            earned = self.system.rollout(states, actions[:, None], rng).rewards[:, 0]
            cost: FloatArray = -(self.gamma**time_steps) * earned
            return cost

        def final(states: FloatArray, time_step: int) -> FloatArray:
            assert self.terminal_value is not None
            return -(self.gamma**time_step) * self.terminal_value(self.observe(states))

        return FunctionCost(self.system, running, None if self.terminal_value is None else final)
