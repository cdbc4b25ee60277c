"""Central differences against closed derivatives, and costs of tracking in a vector space and on a circle."""

import numpy as np
import pytest
from smooth_systems import quartic_cost, wavy_system

from sb3_dpi.trajopt.differences import FunctionCost, FunctionSystem, TrackingCost, finite_jacobians
from sb3_dpi.trajopt.ilqr import ILQR


def test_systems_without_derivatives() -> None:
    rng = np.random.default_rng(0)
    known = wavy_system(rng)
    states, actions = 3.0 * rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    states[0], actions[0] = 0.0, 0.0
    half, bare = FunctionSystem(known.function, 3, 2, known.jacobians), FunctionSystem(known.function, 3, 2)
    for found, wanted in zip(bare.linearize(states, actions), known.linearize(states, actions), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-8)
    wanted = known.hessians(states, actions)
    np.testing.assert_allclose(half.hessians(states, actions), wanted, atol=1e-6)
    np.testing.assert_allclose(bare.hessians(states, actions), wanted, atol=1e-5)


def test_differences_of_large_numbers_are_wide() -> None:
    """Of x^2 + u^2 at a million rounding would hide all but five digits of a difference as narrow as those about one."""
    system = FunctionSystem(lambda x, u: x**2 + u**2, 1, 1)
    large = np.array([[1e6], [1.0], [-1e6]])
    fx, fu = system.linearize(large, large[::-1])
    np.testing.assert_allclose(fx[:, 0, 0], 2.0 * large[:, 0], rtol=1e-9)
    np.testing.assert_allclose(fu[:, 0, 0], 2.0 * large[::-1, 0], rtol=1e-9)
    np.testing.assert_allclose(system.hessians(large, large)[:, 0], 2.0 * np.broadcast_to(np.eye(2), (3, 2, 2)), atol=1e-3)


@pytest.mark.parametrize("convex", [False, True])
def test_costs_without_derivatives(convex: bool) -> None:
    rng = np.random.default_rng(1)
    known, system = quartic_cost(rng, bend=-0.5 if not convex else 0.3), wavy_system(rng)
    steps = np.arange(3, 9)
    cost = FunctionCost(
        system,
        # one row of time each
        lambda x, u, t: known.value(x, u, t),
        known.final_value,
        convex,
    )
    states, actions = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    found, wanted = cost.expand(states, actions, steps), known.expand(states, actions, steps)
    np.testing.assert_allclose(found.C, wanted.C, atol=2e-6)
    np.testing.assert_allclose(found.c, wanted.c, atol=1e-8)
    np.testing.assert_allclose(found.const, wanted.const)
    end, wanted_end = cost.expand_final(states[0], 9), known.expand_final(states[0], 9)
    np.testing.assert_allclose(end.V, wanted_end.V, atol=2e-6)
    np.testing.assert_allclose(end.v, wanted_end.v, atol=1e-8)
    assert end.const == wanted_end.const
    many = cost.value(np.stack([states, states]), np.stack([actions, actions]), steps)
    np.testing.assert_array_equal(many, [wanted.const, wanted.const])
    ends = cost.final_value(np.stack([states, states]), 9)
    np.testing.assert_array_equal(ends, np.stack([known.final_value(states, 9)] * 2))
    nothing = FunctionCost(system, cost.running).final_value(np.stack([states, states]), 9)
    assert nothing.shape == (2, 6) and not nothing.any()


def test_a_concave_cost_is_made_convex() -> None:
    system = wavy_system(np.random.default_rng(0))
    cost = FunctionCost(system, lambda x, u, t: -np.sum(x**2, 1) + u[:, 0] ** 2)
    C = cost.expand(np.ones((1, 3)), np.ones((1, 2)), np.zeros(1, dtype=int)).C[0]
    np.testing.assert_allclose(C, np.diag([0, 0, 0, 2.0, 0]), atol=1e-6)


class Circle:
    """A heading as a point on the circle, state (cos a, sin a, speed), whose changes are (angle, speed)."""

    state_dim, tangent_dim, action_dim = 3, 2, 1

    def integrate(self, origin: np.ndarray, changes: np.ndarray) -> np.ndarray:
        angle = np.arctan2(origin[..., 1], origin[..., 0]) + changes[..., 0]
        return np.stack([np.cos(angle), np.sin(angle), origin[..., 2] + changes[..., 1]], -1)

    def difference(self, origin: np.ndarray, states: np.ndarray) -> np.ndarray:
        cross = origin[..., 0] * states[..., 1] - origin[..., 1] * states[..., 0]
        dot = origin[..., 0] * states[..., 0] + origin[..., 1] * states[..., 1]
        return np.stack([np.arctan2(cross, dot), states[..., 2] - origin[..., 2]], -1)

    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return self.integrate(states, np.stack([0.1 * states[..., 2], 0.1 * actions[..., 0]], -1))

    def linearize(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return finite_jacobians(self, states, actions)


def test_on_a_manifold() -> None:
    """Derivatives are by changes of state, a goal across the cut of the angle is near, and the first step solves it."""
    circle = Circle()
    heading = circle.integrate(np.array([1.0, 0.0, 0.0]), np.array([3.0, 0.5]))
    fx, fu = circle.linearize(heading[None], np.array([[0.3]]))
    np.testing.assert_allclose(fx[0], [[1.0, 0.1], [0.0, 1.0]], atol=1e-9)
    np.testing.assert_allclose(fu[0], [[0.0], [0.1]], atol=1e-9)
    goal = circle.integrate(np.array([1.0, 0.0, 0.0]), np.array([-3.0, 0.0]))
    cost = TrackingCost(circle, np.eye(2), 0.1 * np.eye(1), 10.0 * np.eye(2), goal, np.array([0.2]))
    away = np.array([2 * np.pi - 6.0, -0.5])
    np.testing.assert_allclose(cost.final_value(heading, 0), 5.0 * away @ away)
    running = cost.expand(heading[None], np.array([[0.3]]), np.zeros(1, dtype=int))
    np.testing.assert_allclose(running.c[0], [-away[0], -away[1], 0.01], atol=1e-8)
    np.testing.assert_allclose(running.C[0], np.diag([1.0, 1.0, 0.1]), atol=1e-8)
    plan = ILQR().plan(circle, cost, heading, np.zeros((40, 1)))
    # flat in the changes: what one step does not solve is the error of the differences
    assert plan.costs[1] == pytest.approx(plan.cost, rel=1e-9) and plan.ended == "converged"
    assert np.abs(circle.difference(goal, plan.states[-1])).max() < 0.05
    np.testing.assert_allclose(np.hypot(plan.states[:, 0], plan.states[:, 1]), 1.0)


class Skewed:
    """A plane in space whose frames turn with the state: a change (a, b) at (x, y, 0) leads to (x + a + x b, y + b, 0)."""

    state_dim, tangent_dim, action_dim = 3, 2, 1

    def integrate(self, origin: np.ndarray, changes: np.ndarray) -> np.ndarray:
        x = origin[..., 0] + changes[..., 0] + origin[..., 0] * changes[..., 1]
        return np.stack([x, origin[..., 1] + changes[..., 1], np.zeros_like(x)], -1)

    def difference(self, origin: np.ndarray, states: np.ndarray) -> np.ndarray:
        b = states[..., 1] - origin[..., 1]
        return np.stack([states[..., 0] - origin[..., 0] - origin[..., 0] * b, b], -1)

    def step(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return states

    def linearize(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return finite_jacobians(self, states, actions)


def test_frames_that_turn_with_the_state() -> None:
    """From the goal a change (a, b) of the state looks like (a + (x - goal_x) b, b)."""
    skewed, W = Skewed(), np.array([[2.0, 0.5], [0.5, 1.0]])
    state, goal = np.array([0.7, -0.4, 0.0]), np.array([-0.5, 0.3, 0.0])
    cost = TrackingCost(skewed, W, np.eye(1), 3.0 * W, goal)
    D, away = np.array([[1.0, 1.2], [0.0, 1.0]]), np.array([1.2 - 0.35, -0.7])
    running = cost.expand(state[None], np.array([[0.6]]), np.zeros(1, dtype=int))
    np.testing.assert_allclose(running.c[0], [*(D.T @ W @ away), 0.6], atol=1e-9)
    np.testing.assert_allclose(running.C[0, :2, :2], D.T @ W @ D, atol=1e-9)
    np.testing.assert_allclose(running.const, 0.5 * away @ W @ away + 0.18)
    end = cost.expand_final(state, 0)
    np.testing.assert_allclose(end.v, 3.0 * D.T @ W @ away, atol=1e-9)
    np.testing.assert_allclose(end.V, 3.0 * D.T @ W @ D, atol=1e-9)


def test_weights_and_goals_that_change_with_time() -> None:
    rng = np.random.default_rng(0)
    system = wavy_system(rng)
    W, R, goals, pushes = (
        np.stack([np.eye(3), 2 * np.eye(3)]),
        3.0 * np.eye(2),
        rng.normal(size=(3, 3)),
        rng.normal(size=(2, 2)),
    )
    cost = TrackingCost(system, W, R, 5.0 * np.eye(3), goals, pushes)
    states, actions = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    goal_of, weight_of, push_of = [1, 2, 2, 2], [2.0, 2.0, 2.0, 2.0], [1, 1, 1, 1]
    wanted = [
        0.5 * weight_of[i] * np.sum((states[i] - goals[goal_of[i]]) ** 2)
        + 1.5 * np.sum((actions[i] - pushes[push_of[i]]) ** 2)
        for i in range(4)
    ]
    np.testing.assert_allclose(cost.value(states, actions, np.arange(1, 5)), wanted)
    many = cost.value(np.stack([states] * 3), np.stack([actions] * 3), np.arange(1, 5))
    np.testing.assert_allclose(many, [wanted] * 3)
    np.testing.assert_allclose(cost.final_value(states, 0), 2.5 * np.sum((states - goals[0]) ** 2, -1))
    end = cost.expand_final(states[1], 1)
    np.testing.assert_allclose(end.v, 5.0 * (states[1] - goals[1]))
    np.testing.assert_allclose(end.V, 5.0 * np.eye(3))
