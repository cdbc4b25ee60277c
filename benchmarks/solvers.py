"""Whole searches beside peers': iLQR in limits on a pendulum and a quadrotor, MPPI and CEM in an ensemble.

::

    OMP_NUM_THREADS=1 PYTHONPATH=. ENV/bin/python benchmarks/solvers.py

ENV is a virtual environment with this package's dependencies and, as far as they are to be compared, crocoddyl, tau-ctrl and
pytorch-mppi; what is missing is left out. Milliseconds of processor time, least of some runs. All solvers call the same
models, in numpy; for iLQR time within them is taken off, but not that of calling Python. All begin with the same actions. The
cost is that of the actions found, from one and the same rollout. tau-ctrl steps its environment one state at a time, and gets
the cost of the last state as the last reward. It runs for the five iterations that it takes where nothing is said, and until
nothing improves. Planners that sample take turns.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_dpi.trajopt import CEM, ICEM, ILQR, MPPI, FunctionSystem, TrackingCost

RUNS, ITERATIONS, DEFAULT = 3, 300, 5
"""ITERATIONS are most; DEFAULT, those of tau-ctrl where nothing is said, which end by themselves where nothing improves"""
WIDTH = 1e-5
"""Of central differences"""


def pendulum(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """:return: the next angle, 0 is up, and its velocity"""
    angle, speed = states[:, 0], states[:, 1]
    speed = speed + 0.05 * (15.0 * np.sin(angle) + 3.0 * actions[:, 0])
    return np.stack([angle + 0.05 * speed, speed], -1)


def quadrotor(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """:return: position, Euler angles and the velocities of both; actions are thrusts of the rotors beyond hovering"""
    (phi, theta, psi), rates, h = states[:, 3:6].T, states[:, 9:12], 0.02
    thrust, arm, inertia, drag = 9.81 + actions.sum(1), 0.2, np.array([0.01, 0.01, 0.02]), 0.05
    up = np.stack(
        [
            np.cos(phi) * np.sin(theta) * np.cos(psi) + np.sin(phi) * np.sin(psi),
            np.cos(phi) * np.sin(theta) * np.sin(psi) - np.sin(phi) * np.cos(psi),
            np.cos(phi) * np.cos(theta),
        ],
        -1,
    )
    a, b, c, d = actions.T
    torque = np.stack([arm * (b - d), arm * (c - a), drag * (a - b + c - d)], -1)
    p, q, r = rates.T
    turn = np.stack(
        [
            p + np.sin(phi) * np.tan(theta) * q + np.cos(phi) * np.tan(theta) * r,
            np.cos(phi) * q - np.sin(phi) * r,
            (np.sin(phi) * q + np.cos(phi) * r) / np.cos(theta),
        ],
        -1,
    )
    force = thrust[:, None] * up - np.array([0.0, 0.0, 9.81])
    twist = (torque - np.cross(rates, rates * inertia)) / inertia
    return states + h * np.concatenate([states[:, 6:9], turn, force, twist], -1)


@dataclass(frozen=True)
class Task:
    """What is solved."""

    step: Callable[[np.ndarray, np.ndarray], np.ndarray]
    horizon: int
    start: np.ndarray
    limit: float
    weights: tuple[np.ndarray, np.ndarray, np.ndarray]
    """of states, of actions and of the last state, diagonals"""

    @property
    def first(self) -> np.ndarray:
        """First actions."""
        return 0.1 * self.limit * np.random.default_rng(0).normal(size=(self.horizon, len(self.weights[1])))

    def jacobians(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:return: of the step, by central differences"""
        (B, dx), du = states.shape, actions.shape[1]
        moves = WIDTH * np.concatenate([np.eye(dx + du), -np.eye(dx + du)])
        z = (np.concatenate([states, actions], -1)[:, None] + moves).reshape(-1, dx + du)
        ahead, behind = np.split(self.step(z[:, :dx], z[:, dx:]).reshape(B, 2 * (dx + du), dx), 2, axis=1)
        slopes = np.swapaxes(ahead - behind, 1, 2) / (2.0 * WIDTH)
        return slopes[..., :dx], slopes[..., dx:]

    def cost(self, actions: np.ndarray) -> float:
        """:return: J of these actions"""
        total, x, (Q, R, last) = 0.0, self.start, self.weights
        for u in np.clip(actions, -self.limit, self.limit):
            total += 0.5 * float(Q @ x**2 + R @ u**2)
            x = self.step(x[None], u[None])[0]
        return total + 0.5 * float(last @ x**2)


FAR = np.concatenate([[1.0, -1.0, 0.5], np.zeros(9)])
TASKS = {
    "pendulum": Task(
        pendulum, 200, np.array([np.pi, 0.0]), 2.0, (np.array([1.0, 0.1]), np.array([0.01]), np.array([100.0, 10.0]))
    ),
    "quadrotor": Task(
        quadrotor, 100, FAR, 1.0, (np.repeat([1.0, 0.1, 0.1, 0.01], 3), np.full(4, 0.1), np.repeat([100.0, 10.0], 6))
    ),
}


class Clock:
    """Processor time within the models."""

    def __init__(self) -> None:
        self.spent = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """:return: the same function, timed"""

        def timed(*args: Any) -> Any:
            begun = time.thread_time()
            try:
                return function(*args)
            finally:
                self.spent += time.thread_time() - begun

        return timed


Solved = tuple[np.ndarray, int, str]
"""Actions, iterations, and how the search ended"""


def ours(task: Task, clock: Clock) -> Solved:
    """:return: of box-iLQR"""
    Q, R, last = map(np.diag, task.weights)
    dx, du = len(Q), len(R)
    system = FunctionSystem(clock.around(task.step), dx, du, clock.around(task.jacobians))
    cost = TrackingCost(system, Q, R, last, np.zeros(dx))
    plan = ILQR(max_iterations=ITERATIONS).plan(system, cost, task.start, task.first, low=-task.limit, high=task.limit)
    return plan.actions, plan.n_iterations, plan.ended


def of_crocoddyl(task: Task, clock: Clock) -> Solved:
    """:return: of BoxFDDP, from the same feasible trajectory"""
    import crocoddyl

    (Q, R, last), (dx, du) = task.weights, (len(task.start), len(task.weights[1]))

    class Model(crocoddyl.ActionModelAbstract):  # type: ignore[misc]
        def __init__(self, weight: np.ndarray, is_last: bool) -> None:
            super().__init__(crocoddyl.StateVector(dx), du, 0)
            self.weight, self.is_last = weight, is_last
            self.u_lb, self.u_ub = np.full(du, -task.limit), np.full(du, task.limit)

        def calc(self, data: Any, x: np.ndarray, u: np.ndarray | None = None) -> None:
            begun = time.thread_time()
            data.cost = 0.5 * float(self.weight @ x**2 + (0.0 if u is None or self.is_last else R @ u**2))
            data.xnext = x.copy() if u is None or self.is_last else task.step(x[None], u[None])[0]
            clock.spent += time.thread_time() - begun

        def calcDiff(self, data: Any, x: np.ndarray, u: np.ndarray | None = None) -> None:
            begun = time.thread_time()
            data.Lx, data.Lxx = self.weight * x, np.diag(self.weight)
            if u is not None and not self.is_last:
                fx, fu = task.jacobians(x[None], u[None])
                data.Fx, data.Fu, data.Lu, data.Luu = fx[0], fu[0], R * u, np.diag(R)
            clock.spent += time.thread_time() - begun

    problem = crocoddyl.ShootingProblem(task.start, [Model(Q, False) for _ in range(task.horizon)], Model(last, True))
    solver, first = crocoddyl.SolverBoxFDDP(problem), [*np.clip(task.first, -task.limit, task.limit)]
    is_done = solver.solve(problem.rollout(first), first, ITERATIONS, True)
    return np.array(solver.us), solver.iter, "converged" if is_done else "not converged"


def of_tau_ctrl(task: Task, clock: Clock) -> Solved:
    """:return: of its iLQR, as long as it improves"""
    return _tau_ctrl(task, clock, ITERATIONS)


def of_tau_ctrl_by_default(task: Task, clock: Clock) -> Solved:
    """:return: of its iLQR, for as many iterations as it takes where nothing is said"""
    return _tau_ctrl(task, clock, DEFAULT)


def _tau_ctrl(task: Task, clock: Clock, most: int) -> Solved:
    import tau_ctrl
    from gymnasium import spaces

    begin = np.append(task.start, 0.0)

    class Env:
        """What it asks of an environment. The state counts the steps: it knows the cost of the last as a reward only."""

        def __init__(self) -> None:
            self.state, (_, R, _) = begin.copy(), task.weights
            self.observation_space = spaces.Box(-np.inf, np.inf, begin.shape)
            self.action_space = spaces.Box(-task.limit, task.limit, (len(R),), np.float64)
            self.unwrapped = self

        def get_state(self) -> np.ndarray:
            return self.state.copy()

        def set_state(self, state: np.ndarray) -> None:
            self.state = np.array(state)

        def reset(self, **_: Any) -> Any:
            self.state = begin.copy()
            return self.state, {}

        def step(self, action: np.ndarray) -> Any:
            begun, (Q, R, last) = time.thread_time(), task.weights
            x, t = self.state[:-1], self.state[-1]
            following = task.step(x[None], np.asarray(action)[None])[0]
            reward = -0.5 * float(Q @ x**2 + R @ np.asarray(action) ** 2)
            if t > task.horizon - 1.5:
                reward -= 0.5 * float(last @ following**2)
            self.state = np.append(following, t + 1.0)
            clock.spent += time.thread_time() - begun
            return self.state, reward, False, False, {}

    class Counting(tau_ctrl.ILQR):  # type: ignore[misc]
        """It tells neither how many iterations it took nor why it ended."""

        passes = 0

        def _backward_pass(self, *args: Any) -> Any:
            self.passes += 1
            return super()._backward_pass(*args)

    planner = Counting(Env(), horizon=task.horizon, iterations=most)
    planner._u_nom[:] = task.first
    action, _ = planner.predict(begin)
    ended = "iterations" if planner.passes == most else "nothing improves"
    return np.concatenate([action[None], planner._u_nom[:-1]]), planner.passes, ended


SOLVERS: dict[str, tuple[str | None, Callable[[Task, Clock], Solved], int]] = {
    "ours": (None, ours, RUNS),
    "crocoddyl": ("crocoddyl", of_crocoddyl, RUNS),
    "tau-ctrl, default": ("tau_ctrl", of_tau_ctrl_by_default, 1),
    "tau-ctrl": ("tau_ctrl", of_tau_ctrl, 1),
}
"""Package, search, and runs"""


def compare_solvers() -> None:
    """Print a table."""
    print(f"{'iLQR':12s}{'solver':20s}{'ms without models':>18s}{'with':>10s}{'iterations':>12s}{'cost':>16s}  ended")
    for name, task in TASKS.items():
        for solver, (package, solve, runs) in SOLVERS.items():
            if package is not None and importlib.util.find_spec(package) is None:
                continue
            if package is not None:
                importlib.import_module(package)  # takes seconds
            times = []
            for _ in range(runs + 1):  # the first compiles and imports
                clock, begun = Clock(), time.thread_time()
                actions, n, ended = solve(task, clock)
                total = time.thread_time() - begun
                times.append((1e3 * (total - clock.spent), 1e3 * total))
            own, whole = min(times)
            print(f"{name:12s}{solver:20s}{own:18.1f}{whole:10.1f}{n:12d}{task.cost(actions):16.8f}  {ended}", flush=True)


# ---------------------------------------------------------------------- planners that sample

SAMPLES, STEPS, STATE, ACTION = 1000, 30, 17, 6
SAMPLER_RUNS = 100


def compare_samplers() -> None:
    """Plans of 1,000 sequences of 30 steps in one network of 128 x 128, the size of HalfCheetah's."""
    import torch as th

    from sb3_dpi.systems import EnsembleSystem, returns_of
    from sb3_dpi.world_model.ensemble import Ensemble
    from sb3_dpi.world_model.frozen import FrozenEnsemble
    from sb3_dpi.world_model.types import Transitions

    th.set_num_threads(1)
    th.manual_seed(0)
    rng, ensemble = np.random.default_rng(0), Ensemble(STATE, ACTION, 1, 128)
    x, u = rng.normal(size=(1000, STATE)), rng.uniform(-1, 1, (1000, ACTION))
    ensemble.observe(Transitions(x, u, rng.normal(size=1000), x + 0.1 * rng.normal(size=x.shape), np.zeros(1000, bool)))
    returns, low, high = returns_of(EnsembleSystem(ensemble), x[:1], rng), np.full(ACTION, -1.0), np.ones(ACTION)
    jobs: dict[str, Callable[[], Any]] = {
        "MPPI, ours": lambda: MPPI(n_samples=SAMPLES).plan(returns, low, high, STEPS, rng),
        "CEM of one round, ours": lambda: CEM(n_samples=SAMPLES, n_elites=50, n_rounds=1).plan(returns, low, high, STEPS, rng),
        "iCEM of one round, ours": lambda: ICEM(n_samples=SAMPLES, n_rounds=1).plan(returns, low, high, STEPS, rng),
    }
    if importlib.util.find_spec("pytorch_mppi") is not None:
        jobs["MPPI, pytorch-mppi"] = _theirs(ensemble, x[0])
    clock = Clock()
    predict = FrozenEnsemble.predict
    FrozenEnsemble.predict = clock.around(predict)  # type: ignore[method-assign]
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    beside: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(SAMPLER_RUNS):
        for name, job in jobs.items():  # in turn: what else the machine does falls on all
            begun, clock.spent = time.thread_time(), 0.0
            job()
            spent[name].append(1e3 * (time.thread_time() - begun))
            beside[name].append(spent[name][-1] - 1e3 * clock.spent)
    FrozenEnsemble.predict = predict  # type: ignore[method-assign]
    for name in jobs:
        print(f"{name:24s}{min(spent[name]):10.1f} ms, {min(beside[name]):5.1f} ms without the model", flush=True)


def _theirs(ensemble: Any, state: np.ndarray) -> Callable[[], Any]:
    """:return: a plan of pytorch-mppi in the same network; the reward that it predicts is kept for the cost"""
    import pytorch_mppi
    import torch as th

    from sb3_dpi.world_model.frozen import FrozenEnsemble

    predicted, model = [th.zeros(SAMPLES)], FrozenEnsemble(ensemble)

    def dynamics(states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        following, rewards = model.predict(states, actions)
        predicted[0] = rewards[0]
        return model.clip(following)[0]

    def cost(states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return -predicted[0]

    bounds = {"u_min": -th.ones(ACTION), "u_max": th.ones(ACTION)}
    planner = pytorch_mppi.MPPI(dynamics, cost, STATE, 0.09 * th.eye(ACTION), num_samples=SAMPLES, horizon=STEPS, **bounds)
    begun = ensemble.standardize(state[None])[0]

    @th.no_grad()
    def plan() -> Any:
        planner.reset()
        return planner.command(begun)

    return plan


if __name__ == "__main__":
    compare_solvers()
    compare_samplers()
