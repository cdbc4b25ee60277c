"""iLQR and DDP against Riccati, the dense Newton step of the whole horizon, and optimality conditions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from problems import pick, well_conditioned
from smooth_systems import QuarticCost, pendulum, quartic_cost, upright_cost, wavy_system

from sb3_dpi.trajopt.differences import FunctionCost, FunctionSystem, TrackingCost
from sb3_dpi.trajopt.ilqr import (
    ILQR,
    LARGEST_SHIFT,
    SMALLEST_SHIFT,
    SUFFICIENT,
    ILQRPlan,
    _Search,
    action_gradient,
    newton_step,
)
from sb3_dpi.trajopt.lqr import NotPositiveDefiniteError, lqr_backward
from sb3_dpi.trajopt.types import LinearGaussianController, LinearGaussianDynamics, QuadraticCost, QuadraticValue

Given = tuple[FunctionSystem, QuarticCost, np.ndarray]


class LinearQuadratic:
    """A linear-quadratic problem of ``lqr`` as system and cost; the state carries the time step."""

    state_dim, tangent_dim, action_dim = 5, 5, 2

    def __init__(self, dynamics: LinearGaussianDynamics, cost: QuadraticCost) -> None:
        self.dynamics, self.cost, self.T = dynamics, cost, len(cost.c) - 1

    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        t = states[:, 4].astype(int)
        z = np.concatenate([states[:, :4], actions], 1)
        after = np.einsum("bij,bj->bi", self.dynamics.F[t], z) + self.dynamics.f[t]
        return np.concatenate([after, states[:, 4:] + 1], 1)

    def linearize(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fx, fu = np.zeros((len(states), 5, 5)), np.zeros((len(states), 5, 2))
        F = self.dynamics.F[states[:, 4].astype(int)]
        fx[:, :4, :4], fx[:, 4, 4], fu[:, :4] = F[..., :4], 1.0, F[..., 4:]
        return fx, fu

    def difference(self, origin: np.ndarray, states: np.ndarray) -> np.ndarray:
        return states - origin

    def integrate(self, origin: np.ndarray, changes: np.ndarray) -> np.ndarray:
        return origin + changes

    def value(self, states: np.ndarray, actions: np.ndarray, time_steps: np.ndarray) -> np.ndarray:
        z, cost = np.concatenate([states[..., :4], actions], -1), pick(self.cost, time_steps)
        return 0.5 * np.einsum("...i,...ij,...j->...", z, cost.C, z) + np.sum(z * cost.c, -1) + cost.const

    def expand(self, states: np.ndarray, actions: np.ndarray, time_steps: np.ndarray) -> QuadraticCost:
        z, cost = np.concatenate([states[..., :4], actions], -1), pick(self.cost, time_steps)
        C, c, spread = np.zeros((len(z), 7, 7)), np.zeros((len(z), 7)), [0, 1, 2, 3, 5, 6]
        C[:, np.ix_(spread, spread)[0], spread] = cost.C
        c[:, spread] = np.einsum("tij,tj->ti", cost.C, z) + cost.c
        return QuadraticCost(C, c, self.value(states, actions, time_steps))

    def final_value(self, states: np.ndarray, time_step: int) -> np.ndarray:
        return self.value(states[..., None, :], np.zeros((*states.shape[:-1], 1, 2)), np.array([time_step]))[..., 0]

    def expand_final(self, state: np.ndarray, time_step: int) -> QuadraticValue:
        cost = self.expand(state[None], np.zeros((1, 2)), np.array([time_step]))
        return QuadraticValue(cost.C[0, :5, :5], cost.c[0, :5], cost.const[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_first_step_is_riccati(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = well_conditioned(rng, horizon=9)
    cost = problem.cost
    # the last state has no action: its own controller then asks for none
    cost.C[-1, 4:, :4], cost.C[-1, :4, 4:], cost.c[-1, 4:] = 0.0, 0.0, 0.0
    wanted = lqr_backward(problem.dynamics, cost).controller
    given = LinearQuadratic(problem.dynamics, cost)
    x = rng.normal(size=4)
    plan = ILQR(max_iterations=1).plan(given, given, np.append(x, 0.0), rng.normal(size=(8, 2)))
    assert plan.n_iterations == 1 and plan.ended == "iterations"
    for t in range(8):
        np.testing.assert_allclose(plan.gains[t, :, :4], wanted.K[t], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(plan.states[t, :4], x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(plan.actions[t], wanted.K[t] @ x + wanted.k[t], rtol=1e-9, atol=1e-9)
        x = problem.dynamics.F[t] @ np.concatenate([x, plan.actions[t]]) + problem.dynamics.f[t]
        elsewhere = np.append(x, t) + 0.1
        feedback = LinearGaussianController(wanted.K, wanted.k, wanted.cov)
        push = feedback.K[t] @ elsewhere[:4] + feedback.k[t]
        np.testing.assert_allclose(plan.act(given, t, elsewhere), push, rtol=1e-9, atol=1e-9)


def given(seed: int, **options: Any) -> Given:
    rng = np.random.default_rng(seed)
    return wavy_system(rng, **options), quartic_cost(rng), rng.normal(size=3)


def follow(system: FunctionSystem, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
    states = [state]
    for action in actions:
        states.append(system.step(states[-1][None], action[None])[0])
    return np.array(states)


def dense_derivatives(
    system: FunctionSystem, cost: QuarticCost, states: np.ndarray, actions: np.ndarray, first_step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian of J in all the actions, by differentiating the trajectory forward."""
    T, du = actions.shape
    n = T * du
    once, twice = np.zeros((states.shape[1], n)), np.zeros((states.shape[1], n, n))
    gradient, hessian = np.zeros(n), np.zeros((n, n))
    for t in range(T):
        x, u = states[t : t + 1], actions[t : t + 1]
        fx, fu = system.linearize(x, u)
        running = cost.expand(x, u, np.array([first_step + t]))
        z = np.concatenate([once, np.eye(n)[t * du : (t + 1) * du]])
        bend = np.concatenate([twice, np.zeros((du, n, n))])
        gradient += running.c[0] @ z
        hessian += z.T @ running.C[0] @ z + np.tensordot(running.c[0], bend, 1)
        F = np.concatenate([fx, fu], -1)[0]
        curved = np.einsum("ijk,ja,kb->iab", system.hessians(x, u)[0], z, z)
        once, twice = F @ z, np.tensordot(F, bend, 1) + curved
    final = cost.expand_final(states[T], first_step + T)
    return gradient + final.v @ once, hessian + once.T @ final.V @ once + np.tensordot(final.v, twice, 1)


@pytest.mark.parametrize("seed", range(3))
def test_stagewise_newton_is_dense_newton(seed: int) -> None:
    system, cost, state = given(seed)
    actions = 0.3 * np.random.default_rng(seed + 10).normal(size=(7, 2))
    states = follow(system, state, actions)
    gradient, hessian = dense_derivatives(system, cost, states, actions, 3)
    np.testing.assert_allclose(action_gradient(system, cost, states, actions, 3)[0].ravel(), gradient, rtol=1e-10, atol=1e-10)
    shift = max(0.0, 0.5 - np.linalg.eigvalsh(hessian)[0])
    dense = -np.linalg.solve(hessian + shift * np.eye(len(hessian)), gradient)
    step = newton_step(system, cost, states, actions, 3, shift)
    np.testing.assert_allclose(step.ravel(), dense, rtol=1e-8, atol=1e-8)


def optimum(system: FunctionSystem, cost: QuarticCost, state: np.ndarray) -> ILQRPlan:
    plan = ILQR(second_order=True, tolerance=1e-20).plan(system, cost, state, np.zeros((7, 2)))
    assert plan.ended == "converged"
    return plan


def test_ddp_differs_from_newton_at_second_order() -> None:
    system, cost, state = given(0)
    best = optimum(system, cost, state)
    direction = np.random.default_rng(1).normal(size=best.actions.shape)
    sizes, apart = np.array([0.1, 0.03, 0.01, 0.003]), []
    for size in sizes:
        actions = best.actions + size * direction
        ddp = ILQR(second_order=True, max_iterations=1).plan(system, cost, state, actions).actions
        newton = actions + newton_step(system, cost, follow(system, state, actions), actions)
        apart.append(np.abs(ddp - newton).max())
    slope = np.polyfit(np.log(sizes), np.log(apart), 1)[0]
    assert 1.8 < slope < 2.2


def test_ddp_converges_quadratically_where_ilqr_is_linear() -> None:
    system, cost, state = given(0)
    best = optimum(system, cost, state).actions

    def errors(second_order: bool) -> np.ndarray:
        actions, found = best + 0.05, []
        for _ in range(4):
            found.append(np.abs(actions - best).max())
            actions = ILQR(second_order=second_order, max_iterations=1).plan(system, cost, state, actions).actions
        return np.array(found)

    ddp, ilqr = errors(True), errors(False)
    quadratic = ddp[1:3] / ddp[:2] ** 2
    assert np.all(quadratic < 10.0) and ddp[3] < 1e-7
    ratios = ilqr[1:] / ilqr[:-1]
    assert np.all((ratios > 0.01) & (ratios < 0.9)) and ilqr[3] > 1e-5


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_limits_hold_and_the_conditions_of_optimality(second_order: bool, seed: int) -> None:
    system, cost, state = given(seed)
    rng = np.random.default_rng(seed + 20)
    low, high = -rng.uniform(0.02, 0.3, (7, 2)), rng.uniform(0.02, 0.3, 2)
    plan = ILQR(second_order, tolerance=1e-16).plan(system, cost, state, np.full((7, 2), 9.0), low=low, high=high)
    assert plan.ended == "converged" and np.all((low <= plan.actions) & (plan.actions <= high))
    gradient, _ = action_gradient(system, cost, plan.states, plan.actions)
    at_low, at_high = plan.actions < low + 1e-9, plan.actions > high - 1e-9
    np.testing.assert_allclose(gradient[~at_low & ~at_high], 0.0, atol=1e-6)
    assert np.all(gradient[at_low] > -1e-6) and np.all(gradient[at_high] < 1e-6)
    assert (at_low | at_high).any() and not (at_low | at_high).all()
    assert not np.any(plan.gains[(at_low & (gradient > 1e-3)) | (at_high & (gradient < -1e-3))])


@pytest.mark.parametrize("second_order", [False, True])
def test_never_worse(second_order: bool) -> None:
    """Where the model is far off, and costs are concave, the cost falls from step to step all the same."""
    n_shifted = 0
    for seed in range(8):
        system, cost, state = given(seed, size=2.0, waves_of_actions=3.0)
        cost = QuarticCost(cost.C - 2.0 * np.eye(5), cost.c, 1.0)
        start = np.random.default_rng(seed).normal(size=(6, 2))
        plan = ILQR(second_order, max_iterations=25).plan(system, cost, state, start, first_step=2)
        states = follow(system, state, plan.actions)
        total = cost.value(states[:-1], plan.actions, 2 + np.arange(6)).sum() + cost.final_value(states[-1], 8)
        assert total == pytest.approx(plan.cost, rel=1e-12) and plan.cost == plan.costs[-1]
        assert np.all(np.diff(plan.costs) <= 0.0) and plan.cost < plan.costs[0]
        n_shifted += plan.shift > 0.0
    assert n_shifted > 0


@pytest.mark.parametrize("constant", [0.0, 1e15])
def test_the_greatest_share_of_a_step_that_helps(constant: float) -> None:
    """Newton's step on log cosh u from 1.3 leads to where the cost is higher, half of it does not. Nor is a loss taken where
    a constant makes costs so large that they are rounded to eighths."""
    system = FunctionSystem(lambda x, u: x + u, 1, 1)
    cost = FunctionCost(system, lambda x, u, t: np.log(np.cosh(u[:, 0])), lambda x, t: np.full(len(x), constant))
    plan = ILQR(max_iterations=1).plan(system, cost, np.zeros(1), np.array([[1.3]]))
    assert plan.actions[0, 0] == pytest.approx(1.3 - 0.5 * np.tanh(1.3) * np.cosh(1.3) ** 2, rel=1e-5)
    assert plan.costs == pytest.approx([constant + np.log(np.cosh(1.3)), plan.cost]) and plan.cost < plan.costs[0]


class Claim(FunctionCost):
    """Of one action u, with any value, but expanded as u^2 / 2 - u: the step from zero is 1, and of a share alpha of it
    alpha - alpha^2 / 2 is predicted."""

    def expand(self, states: np.ndarray, actions: np.ndarray, time_steps: np.ndarray) -> QuadraticCost:
        """See ``Cost``."""
        C, c = np.zeros((len(actions), 2, 2)), np.zeros((len(actions), 2))
        C[:, 1, 1], c[:, 1] = 1.0, actions[:, 0] - 1.0
        return QuadraticCost(C, c, self.value(states, actions, time_steps))


STILL = FunctionSystem(lambda x, u: x, 1, 1)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.125, 2.0**-10])
@pytest.mark.parametrize("gain", [0.9, 1.1])
def test_what_a_step_must_bring(share: float, gain: float) -> None:
    """A share of what is predicted for it, ``SUFFICIENT``; longer steps bring a loss here, and shorter ones enough. Shorter
    than 2^-10 none is tried."""

    def value(x: np.ndarray, u: np.ndarray, t: np.ndarray) -> np.ndarray:
        brought = gain * SUFFICIENT * (share - 0.5 * share**2)
        return np.where(u[:, 0] > share, 1.0, np.where(u[:, 0] == share, -brought, -u[:, 0]))

    plan = ILQR(max_iterations=1).plan(STILL, Claim(STILL, value), np.zeros(1), np.zeros((1, 1)))
    assert plan.actions[0, 0] == (share if gain > 1.0 else 0.5 * share if share > 2.0**-10 else 0.0)


@pytest.mark.parametrize("running, final", [(1e17, 0.0), (0.0, 1e17), (0.0, -1e17)])
def test_a_gain_that_is_lost_to_rounding_is_believed(running: float, final: float) -> None:
    """Beside a constant of the cost, wherever it is paid and of whichever sign, what an action brings is not seen."""
    cost = Claim(STILL, lambda x, u, t: running + 0.5 * (u[:, 0] - 1.0) ** 2, lambda x, t: np.full(len(x), final))
    plan = ILQR().plan(STILL, cost, np.zeros(1), np.zeros((1, 1)))
    assert plan.actions[0, 0] == 1.0 and plan.ended == "converged" and plan.costs.tolist() == [running + final] * 2


def test_of_a_shift_that_was_needed_once_nothing_is_left() -> None:
    """u^4 / 4 - u^2 / 2 is concave where the search begins, and not around its minima at 1 and -1."""
    for side in (-1.0, 1.0):
        plan = ILQR().plan(
            STILL, QuarticCost(np.diag([0.0, -1.0]), np.zeros(2), 1.0), np.zeros(1), np.full((1, 1), 0.1 * side)
        )
        assert plan.ended == "converged" and plan.shift == 0.0
        np.testing.assert_allclose(plan.actions, side)


def test_gains_are_those_without_a_shift() -> None:
    """Of x u / 2 + u^4 / 4 - u^2 / 2: a search that needed one ends with the feedback of one that begins at its end."""
    cost, state = QuarticCost(np.array([[0.0, 0.5], [0.5, -1.0]]), np.zeros(2), 1.0), np.full(1, -0.3)
    found = ILQR().plan(STILL, cost, state, np.full((1, 1), 0.1))
    again = ILQR().plan(STILL, cost, state, found.actions)
    assert found.ended == again.ended == "converged" and again.n_iterations == 1
    np.testing.assert_allclose(found.gains, again.gains, rtol=1e-4)
    curvature = 3.0 * found.actions[0, 0] ** 2 - 1.0
    assert found.gains.item() == pytest.approx(-0.5 / curvature, rel=1e-4)


def test_where_nothing_is_to_be_gained_no_step_is_taken() -> None:
    """At the least of u^2 / 2, and at the end of u, whose Hessian is zero, where the limit is: it has converged at once."""
    for weight, slope, low in ((1.0, 0.0, -1.0), (0.0, 1.0, 0.0)):
        cost = QuarticCost(np.diag([0.0, weight]), np.array([0.0, slope]), 0.0)
        plan = ILQR().plan(STILL, cost, np.zeros(1), np.zeros((3, 1)), low=low, high=1.0)
        assert plan.ended == "converged" and plan.n_iterations == 1 and plan.costs.tolist() == [0.0]


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_cost_that_is_not_convex_has_its_least_at_a_limit(weight: float) -> None:
    """u + weight u^2 / 2 within [-1, 1]: the shift that was needed on the way does not hide that -1 is the end."""
    cost = QuarticCost(np.diag([0.0, weight]), np.array([0.0, 1.0]), 0.0)
    plan = ILQR().plan(STILL, cost, np.zeros(1), np.full((3, 1), 0.5), low=-1.0, high=1.0)
    assert plan.ended == "converged" and plan.n_iterations <= 3
    np.testing.assert_array_equal(plan.actions, -1.0)
    top = ILQR().plan(
        STILL, QuarticCost(np.diag([0.0, -1.0]), np.zeros(2), 0.0), np.zeros(1), np.zeros((3, 1)), low=-1.0, high=1.0
    )
    assert top.ended == "stuck", "the greatest value is no end, though nothing slopes there"


@dataclass
class LogCosh:
    """log cosh u, so flat far out that Newton's step from there is much too long in any share."""

    unit: float

    def value(self, states: np.ndarray, actions: np.ndarray, time_steps: np.ndarray) -> np.ndarray:
        return np.asarray(self.unit * (np.logaddexp(actions, -actions)[..., 0] - np.log(2.0)))

    def expand(self, states: np.ndarray, actions: np.ndarray, time_steps: np.ndarray) -> QuadraticCost:
        C, c = np.zeros((len(actions), 2, 2)), np.zeros((len(actions), 2))
        C[:, 1, 1], c[:, 1] = np.cosh(actions[:, 0]) ** -2, np.tanh(actions[:, 0])
        return QuadraticCost(self.unit * C, self.unit * c, self.value(states, actions, time_steps))

    def final_value(self, states: np.ndarray, time_step: int) -> np.ndarray:
        return np.zeros(states.shape[:-1])

    def expand_final(self, state: np.ndarray, time_step: int) -> QuadraticValue:
        return QuadraticValue(np.zeros((1, 1)), np.zeros(1), np.zeros(()))


@pytest.mark.parametrize("unit", [1.0, 2.0**-40])
def test_a_step_that_is_too_long_is_shortened_until_it_helps(unit: float) -> None:
    system = FunctionSystem(lambda x, u: x + u, 1, 1)
    plan = ILQR().plan(system, LogCosh(unit), np.zeros(1), np.array([[6.0]]))
    assert plan.ended == "converged" and abs(plan.actions[0, 0]) < 1e-4
    assert plan.n_iterations > len(plan.costs) and plan.shift < 1e-6 * unit


def test_a_plan_to_start_from_is_followed_by_its_feedback() -> None:
    """From the first time step on; the torque is not at its limits all the time."""
    system = pendulum()
    cost, low = upright_cost(system), -0.9
    known = ILQR(max_iterations=3).plan(system, cost, np.array([0.1, 0.0]), np.zeros((20, 1)), low=low, high=0.9)
    begun = state = np.array([0.12, 0.05])
    total, taken = 0.0, []
    for t in range(20):
        action = known.act(system, t, state)
        taken.append(action[0])
        total += cost.value(state[None], action[None], np.array([t]))[0]
        state = system.step(state[None], action[None])[0]
    total += cost.final_value(state, 20)
    assert np.abs(taken[0]) < 0.9 and np.count_nonzero(np.abs(taken) < 0.9) >= 8
    assert ILQR(max_iterations=1).plan(system, cost, begun, known, low=low, high=0.9).costs[0] == pytest.approx(
        total, rel=1e-12
    )


def test_limits_at_zero_and_limits_that_pin() -> None:
    """Of 1/2 (u + 1)^2 the least within [0, 1] is at 0, and an action whose limits are one number is that."""
    system = FunctionSystem(lambda x, u: x + u, 1, 1)
    cost = TrackingCost(system, np.zeros((1, 1)), np.eye(1), np.zeros((1, 1)), np.zeros(1), np.array([-1.0]))
    low, high = np.array([[0.0], [0.2], [-9.0]]), np.array([[1.0], [0.2], [0.0]])
    plan = ILQR().plan(system, cost, np.zeros(1), np.array([[0.7], [0.0], [-5.0]]), low=low, high=high)
    np.testing.assert_allclose(plan.actions[:, 0], [0.0, 0.2, -1.0], atol=1e-9)
    assert plan.ended == "converged"


def test_the_shift_grows_faster_at_each_failure() -> None:
    """By 2, 4, 8, ... and falls so from success to success (Tassa, Erez and Todorov 2012), in units of the Hessian."""
    search = _Search(ILQR(), pendulum(), upright_cost(pendulum()), np.zeros((1, 1)), None, None, 0)
    raised = []
    for _ in range(5):
        assert search._raise_shift(3.0)
        raised.append(search.shift / (3.0 * SMALLEST_SHIFT))
    assert raised == pytest.approx([1.0, 4.0, 32.0, 512.0, 16384.0])
    lowered = []
    for _ in range(6):
        search._lower_shift(3.0)
        lowered.append(search.shift / (3.0 * SMALLEST_SHIFT))
    assert lowered == pytest.approx([8192.0, 2048.0, 256.0, 16.0, 0.0, 0.0])
    search.shift, search.growth = LARGEST_SHIFT, 1.0
    assert not search._raise_shift(1.9) and search._raise_shift(9.0)


@pytest.mark.parametrize("concave", range(3))
def test_a_cost_that_is_concave_at_one_time_step(concave: int) -> None:
    """-1/2 u^2 there, 1/2 u^2 elsewhere: one action goes to the limit on whose side it begins, the others to zero."""
    system = FunctionSystem(lambda x, u: x + u, 1, 1)
    weights = np.ones((3, 1, 1))
    weights[concave] = -1.0
    cost = TrackingCost(system, np.zeros((1, 1)), weights, np.zeros((1, 1)), np.zeros(1))
    for side in (-1.0, 1.0):
        plan = ILQR().plan(system, cost, np.zeros(1), np.full((3, 1), 0.1 * side), low=-1.0, high=1.0)
        np.testing.assert_allclose(plan.actions[:, 0], side * np.eye(3)[concave], atol=1e-4)
        assert plan.ended == "converged" and plan.cost == pytest.approx(-0.5, abs=1e-8)
    with pytest.raises(NotPositiveDefiniteError, match=f"time step {concave}") as found:
        newton_step(system, cost, np.zeros((4, 1)), np.zeros((3, 1)))
    assert (found.value.condition, found.value.time_step) == (0, concave)


def test_swing_up_of_the_pendulum() -> None:
    """From each of 10 starts, the hanging pendulum among them, within the torque's limits."""
    system = pendulum()
    cost = upright_cost(system)
    planner = ILQR(max_iterations=60, tolerance=1e-3)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        state = rng.uniform([-np.pi, -1.0], [np.pi, 1.0]) if seed else np.array([np.pi, 0.0])
        plan = planner.plan(system, cost, state, 0.3 * rng.normal(size=(100, 1)), low=-1.0, high=1.0)
        assert np.abs(plan.actions).max() <= 1.0
        assert np.all(np.abs(plan.states[-1]) < [0.1, 0.2]), f"start {state} ended at {plan.states[-1]}"


def test_warm_start_goals_and_time() -> None:
    """A shifted plan begins the next one nearer to its end, with its feedback, and goals move with time."""
    system = pendulum()
    goal = np.stack([0.3 * np.sin(0.2 * np.arange(60)), np.zeros(60)], -1)
    cost = TrackingCost(system, np.diag([10.0, 0.1]), 0.1 * np.eye(1), np.diag([10.0, 0.1]), goal)
    planner = ILQR()
    first = planner.plan(system, cost, np.zeros(2), np.zeros((20, 1)), low=-1, high=1)
    second_state = first.states[1] + 0.05
    cold = planner.plan(system, cost, second_state, np.zeros((20, 1)), low=-1, high=1, first_step=1)
    bare = planner.plan(system, cost, second_state, first.shifted().actions, low=-1, high=1, first_step=1)
    warm = planner.plan(system, cost, second_state, first.shifted(), low=-1, high=1, first_step=1)
    assert warm.cost == pytest.approx(cold.cost, rel=1e-6) and warm.costs[0] < bare.costs[0] < cold.costs[0]
    np.testing.assert_array_equal(first.shifted(3).actions, np.append(first.actions[3:], first.actions[-1:].repeat(3, 0), 0))
    np.testing.assert_array_equal(first.shifted(3).states[:-3], first.states[3:])
    late = planner.plan(system, cost, np.zeros(2), np.zeros((20, 1)), first_step=1)
    moved = TrackingCost(system, np.diag([10.0, 0.1]), 0.1 * np.eye(1), np.diag([10.0, 0.1]), goal[1:])
    np.testing.assert_allclose(late.actions, planner.plan(system, moved, np.zeros(2), np.zeros((20, 1))).actions)


def test_why_it_ended() -> None:
    system = pendulum()
    cost, start = upright_cost(system), np.full((30, 1), 0.1)
    assert ILQR().plan(system, cost, np.ones(2), start, max_seconds=0.0).ended == "time"
    assert ILQR().plan(system, cost, np.ones(2), start, max_seconds=1e6).ended == "converged"
    assert ILQR(max_iterations=2).plan(system, cost, np.ones(2), start).ended == "iterations"
    # a constant cost that claims to have a slope
    lie = FunctionCost(system, lambda x, u, t: np.zeros(len(x)), lambda x, t: np.zeros(len(x)))
    slope = cost.expand(np.ones((30, 2)), start, np.arange(30))
    object.__setattr__(lie, "expand", lambda *_: slope)
    plan = ILQR().plan(system, lie, np.ones(2), start)
    assert plan.ended == "stuck" and len(plan.costs) == 1
    np.testing.assert_array_equal(plan.actions, start)


def test_the_unit_of_cost_does_not_matter() -> None:
    system, cost, state = given(1)
    plans = []
    for unit in (1.0, 2.0**60, 2.0**-60):
        scaled = QuarticCost(unit * cost.C, unit * cost.c, unit * cost.bend)
        plans.append(ILQR().plan(system, scaled, state, np.zeros((7, 2)), low=-0.3).actions)
    np.testing.assert_array_equal(plans[0], plans[1])
    np.testing.assert_array_equal(plans[0], plans[2])


def test_bad_input() -> None:
    system = pendulum()
    cost, state, start = upright_cost(system), np.zeros(2), np.zeros((5, 1))
    with pytest.raises(ValueError, match="horizon"):
        ILQR().plan(system, cost, state, np.zeros((0, 1)))
    with pytest.raises(ValueError, match=r"\[T, 1\]"):
        ILQR().plan(system, cost, state, np.zeros((5, 2)))
    with pytest.raises(ValueError, match="limits"):
        ILQR().plan(system, cost, state, start, low=1.0, high=-1.0)
    with pytest.raises(ValueError, match=r"first trajectory is not finite \(at time step 0\)"):
        ILQR().plan(system, cost, state + np.nan, start)
    endless = FunctionCost(system, lambda x, u, t: np.zeros(len(x)), lambda x, t: np.full(len(x), np.inf))
    with pytest.raises(ValueError, match=r"first trajectory is not finite \(at the end\)"):
        ILQR().plan(system, endless, state, start)
    for t in (0, 3):
        fx = np.where(np.arange(5)[:, None, None] < t, np.eye(2), np.nan)
        broken = FunctionSystem(system.function, 2, 1, lambda x, u, fx=fx: (fx, np.zeros((5, 2, 1))))
        with pytest.raises(ValueError, match=rf"derivatives \(F\) are not finite at time step {t}"):
            ILQR().plan(broken, cost, state, start)
    with pytest.raises(NotPositiveDefiniteError, match="raise `shift`"):
        newton_step(system, cost, np.ones((6, 2)), start, shift=-1e4)

    class Once:
        """No second derivatives."""

        state_dim, tangent_dim, action_dim = 2, 2, 1
        step, linearize = system.step, system.linearize

    with pytest.raises(ValueError, match="second_order=False"):
        ILQR(second_order=True).plan(Once(), cost, state, start)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="second derivatives"):
        newton_step(Once(), cost, np.ones((6, 2)), start)  # type: ignore[arg-type]
