"""The Riccati recursion, marginals, costs and KLs against dense problems of the whole horizon and Monte Carlo."""

import numpy as np
import pytest
from problems import Problem, dense_expected_cost, joint_gaussian, pick, random_pd, stacked_cost, well_conditioned

from sb3_dpi.trajopt.lqr import (
    NotPositiveDefiniteError,
    controller_kl,
    expected_cost,
    forward_marginals,
    lqr_backward,
)
from sb3_dpi.trajopt.types import GaussianState, LinearGaussianController, QuadraticCost

SEEDS = range(3)


def dense_first_action(problem: Problem, start: int, discount: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gain, offset and curvature of the first action of the quadratic programme that begins at ``start``."""
    F, f = problem.dynamics.F[start:], problem.dynamics.f[start:]
    horizon, dx, dz = F.shape
    du = dz - dx
    # [x_0, u_0, x_1, u_1, ...] = states x_0 + actions u + offset
    states, actions, offset = np.zeros((horizon, dz, dx)), np.zeros((horizon, dz, horizon * du)), np.zeros((horizon, dz))
    states[0, :dx] = np.eye(dx)
    for t in range(horizon):
        actions[t, dx:, t * du : (t + 1) * du] = np.eye(du)
        if t + 1 < horizon:
            states[t + 1, :dx], actions[t + 1, :dx] = F[t] @ states[t], F[t] @ actions[t]
            offset[t + 1, :dx] = F[t] @ offset[t] + f[t]
    by_state, by_action = states.reshape(-1, dx), actions.reshape(-1, horizon * du)
    C, c, _ = stacked_cost(pick(problem.cost, slice(start, None)), discount)
    hessian = by_action.T @ C @ by_action
    gain = -np.linalg.solve(hessian, by_action.T @ C @ by_state)
    bias = -np.linalg.solve(hessian, by_action.T @ (C @ offset.ravel() + c))
    return gain[:du], bias[:du], np.linalg.inv(np.linalg.inv(hessian)[:du, :du])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_controller_solves_the_quadratic_programme(seed: int, discount: float) -> None:
    problem = well_conditioned(np.random.default_rng(seed))
    controller = lqr_backward(problem.dynamics, problem.cost, discount, temperature=0.7).controller
    for t in range(len(controller.k)):
        gain, bias, curvature = dense_first_action(problem, t, discount)
        np.testing.assert_allclose(controller.K[t], gain, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(controller.k[t], bias, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(controller.cov[t], 0.7 * np.linalg.inv(curvature), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_values_are_expected_costs_to_go(seed: int, discount: float) -> None:
    rng = np.random.default_rng(seed)
    problem = well_conditioned(rng)
    solution = lqr_backward(problem.dynamics, problem.cost, discount, temperature=0.7)
    dx, du = 4, 2
    for t in range(len(problem.dynamics.f)):
        x, u = rng.normal(size=dx), rng.normal(size=du)
        z, Q, V = np.concatenate([x, u]), pick(solution.action_value, t), pick(solution.value, t)
        tail = [pick(part, slice(t, None)) for part in (solution.controller, problem.dynamics, problem.cost)]
        here = GaussianState(x, np.zeros((dx, dx)))
        value = 0.5 * x @ V.V @ x + V.v @ x + V.const
        np.testing.assert_allclose(value, dense_expected_cost(*tail, here, discount), rtol=1e-8)
        K, k, cov = (array.copy() for array in vars(tail[0]).values())
        K[0], k[0], cov[0] = 0.0, u, 0.0
        tail[0] = LinearGaussianController(K, k, cov)
        action_value = 0.5 * z @ Q.C @ z + Q.c @ z + Q.const
        np.testing.assert_allclose(action_value, dense_expected_cost(*tail, here, discount), rtol=1e-8)


def test_controller_maximises_entropy_minus_cost() -> None:
    rng = np.random.default_rng(3)
    problem = well_conditioned(rng)
    best = lqr_backward(problem.dynamics, problem.cost, 0.9, temperature=0.7).controller

    def objective(controller: LinearGaussianController) -> float:
        entropy = 0.5 * np.linalg.slogdet(controller.cov)[1] @ 0.9 ** np.arange(len(controller.k))
        return dense_expected_cost(controller, problem.dynamics, problem.cost, problem.initial, 0.9) - 0.7 * entropy

    for _ in range(50):
        root = np.eye(2) + 0.05 * rng.normal(size=best.cov.shape)
        other = LinearGaussianController(
            best.K + 0.05 * rng.normal(size=best.K.shape),
            best.k + 0.05 * rng.normal(size=best.k.shape),
            root @ best.cov @ np.swapaxes(root, -1, -2),
        )
        assert objective(other) > objective(best)


@pytest.mark.parametrize("seed", SEEDS)
def test_marginals_and_cost_are_those_of_the_joint_gaussian(seed: int) -> None:
    problem = well_conditioned(np.random.default_rng(seed))
    marginals = forward_marginals(problem.reference, problem.dynamics, problem.initial)
    mean, cov = joint_gaussian(problem.reference, problem.dynamics, problem.initial)
    horizon, dz = marginals.mean.shape
    blocks = cov.reshape(horizon, dz, horizon, dz)
    np.testing.assert_allclose(marginals.mean, mean.reshape(horizon, dz), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(marginals.cov, blocks[np.arange(horizon), :, np.arange(horizon)], rtol=1e-8, atol=1e-12)
    total = expected_cost(problem.cost, marginals).sum()
    dense = dense_expected_cost(problem.reference, problem.dynamics, problem.cost, problem.initial)
    np.testing.assert_allclose(total, dense, rtol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_is_that_of_the_trajectory_distributions(seed: int) -> None:
    problem = well_conditioned(np.random.default_rng(seed))
    controller = lqr_backward(problem.dynamics, problem.cost).controller
    marginals = forward_marginals(controller, problem.dynamics, problem.initial)
    mean_p, cov_p = joint_gaussian(controller, problem.dynamics, problem.initial)
    mean_r, cov_r = joint_gaussian(problem.reference, problem.dynamics, problem.initial)
    precision, shift = np.linalg.inv(cov_r), mean_r - mean_p
    log_ratio = np.linalg.slogdet(cov_r)[1] - np.linalg.slogdet(cov_p)[1]
    dense = 0.5 * (np.trace(precision @ cov_p) - len(shift) + log_ratio + shift @ precision @ shift)
    np.testing.assert_allclose(controller_kl(controller, problem.reference, marginals).sum(), dense, rtol=1e-8)
    np.testing.assert_allclose(controller_kl(controller, controller, marginals), 0.0, atol=1e-12)


def test_kl_agrees_with_monte_carlo() -> None:
    rng = np.random.default_rng(4)
    problem = well_conditioned(rng, horizon=5, dx=3)
    controller = lqr_backward(problem.dynamics, problem.cost).controller
    marginals = forward_marginals(controller, problem.dynamics, problem.initial)
    mean, cov = joint_gaussian(controller, problem.dynamics, problem.initial)
    samples = rng.multivariate_normal(mean, cov, size=40_000).reshape(-1, 5, 5)
    x, u = samples[..., :3], samples[..., 3:]

    def log_density(policy: LinearGaussianController) -> np.ndarray:
        deviation = u - (policy.K @ x[..., None])[..., 0] - policy.k
        solved = np.linalg.solve(policy.cov, deviation[..., None])[..., 0]
        return -0.5 * (np.sum(deviation * solved, -1) + np.linalg.slogdet(policy.cov)[1])

    ratios = log_density(controller) - log_density(problem.reference)
    error = ratios.mean(0) - controller_kl(controller, problem.reference, marginals)
    assert np.all(np.abs(error) < 4.5 * ratios.std(0) / np.sqrt(len(ratios)))


def test_batch_axes_are_independent_problems() -> None:
    batched = well_conditioned(np.random.default_rng(5), batch=(2, 3))
    together = lqr_backward(batched.dynamics, batched.cost, 0.95)
    marginals = forward_marginals(together.controller, batched.dynamics, batched.initial)
    kl = controller_kl(together.controller, batched.reference, marginals)
    costs = expected_cost(batched.cost, marginals)
    for index in np.ndindex(2, 3):
        dynamics, cost, reference, initial = (pick(part, *index) for part in batched.parts)
        alone = lqr_backward(dynamics, cost, 0.95)
        for group in ("controller", "action_value", "value"):
            for name, array in vars(getattr(alone, group)).items():
                np.testing.assert_allclose(getattr(getattr(together, group), name)[index], array, rtol=1e-9, atol=1e-12)
        own = forward_marginals(alone.controller, dynamics, initial)
        np.testing.assert_allclose(kl[index], controller_kl(alone.controller, reference, own), rtol=1e-9)
        np.testing.assert_allclose(costs[index], expected_cost(cost, own), rtol=1e-9)


@pytest.mark.parametrize("bad_value", [-5.0, np.nan])
def test_error_names_condition_and_time_step(bad_value: float) -> None:
    problem = well_conditioned(np.random.default_rng(6), batch=(3,), horizon=5)
    C = problem.cost.C.copy()
    C[1, 2, -1, -1] = bad_value * np.abs(C).max() * 100
    with pytest.raises(NotPositiveDefiniteError, match="condition 1 at time step 2") as caught:
        lqr_backward(problem.dynamics, QuadraticCost(C, problem.cost.c, problem.cost.const))
    assert (caught.value.condition, caught.value.time_step) == (1, 2)


def test_marginals_stay_symmetric_and_positive_over_long_horizons() -> None:
    rng = np.random.default_rng(7)
    problem = well_conditioned(rng, horizon=1000, dx=10)
    F = problem.dynamics.F.copy()
    F[..., :10] *= 1.0 / np.abs(np.linalg.eigvals(F[..., :10])).max(-1)[:, None, None]
    dynamics = type(problem.dynamics)(F, problem.dynamics.f, 1e-3 * random_pd(rng, (1000,), 10))
    controller = lqr_backward(dynamics, problem.cost).controller
    marginals = forward_marginals(controller, dynamics, problem.initial)
    np.testing.assert_array_equal(marginals.cov, np.swapaxes(marginals.cov, -1, -2))
    assert np.linalg.eigvalsh(marginals.cov).min() > 0
    assert np.all(controller_kl(controller, problem.reference, marginals) >= 0)
