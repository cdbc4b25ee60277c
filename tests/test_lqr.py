"""The Riccati recursion, marginals, costs and KLs against dense problems of the whole horizon and Monte Carlo."""

from typing import Any

import numpy as np
import pytest
from problems import Problem, dense_expected_cost, hard, joint_gaussian, pick, random_pd, stacked_cost, well_conditioned

from sb3_dpi.trajopt.lqr import (
    NotPositiveDefiniteError,
    controller_kl,
    evaluate_controller,
    expected_cost,
    forward_marginals,
    lqr_backward,
)
from sb3_dpi.trajopt.types import (
    GaussianState,
    LinearGaussianController,
    LinearGaussianDynamics,
    QuadraticCost,
    QuadraticValue,
)

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


# ---------------------------------------------------------------------- any controller

DISCOUNTS = pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])


def indefinite(seed: int, batch: tuple[int, ...] = ()) -> Problem:
    """A cost with curvature of both signs, and a controller that is far from optimal."""
    rng = np.random.default_rng(seed)
    problem = well_conditioned(rng, batch)
    root = rng.normal(size=problem.cost.C.shape)
    C = root + np.swapaxes(root, -1, -2)
    eigenvalues = np.linalg.eigvalsh(C[..., 4:, 4:])
    assert eigenvalues.min() < 0.0 < eigenvalues.max()
    return Problem(problem.dynamics, QuadraticCost(C, *list(vars(problem.cost).values())[1:]), *problem.parts[2:])


def tails(problem: Problem, t: int) -> tuple[LinearGaussianController, LinearGaussianDynamics, QuadraticCost]:
    dynamics, cost, controller = (pick(part, slice(t, None)) for part in problem.parts[:3])
    return controller, dynamics, cost


def certain(x: np.ndarray) -> GaussianState:
    return GaussianState(x, np.zeros((len(x), len(x))))


def first_action(controller: LinearGaussianController, u: np.ndarray) -> LinearGaussianController:
    """The same, but its first action is u."""
    K, k, cov = (array.copy() for array in vars(controller).values())
    K[0], k[0], cov[0] = 0.0, u, 0.0
    return LinearGaussianController(K, k, cov)


def at(quadratic: QuadraticCost | QuadraticValue, t: int, points: np.ndarray) -> np.ndarray:
    """Values at points ``[..., n]``."""
    matrix, vector, constant = (array[t] for array in vars(quadratic).values())
    return 0.5 * np.einsum("...i,ij,...j->...", points, matrix, points) + points @ vector + constant


def assert_equal_parts(left: Any, right: Any, **tolerances: float) -> None:
    for name, array in vars(left).items():
        np.testing.assert_allclose(getattr(right, name), array, **tolerances)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@DISCOUNTS
def test_evaluating_the_best_controller_gives_the_values_of_lqr(seed: int, temperature: float, discount: float) -> None:
    """Without temperature its actions are certain, and its values are the least possible ones."""
    problem = well_conditioned(np.random.default_rng(seed), batch=(2,))
    solution = lqr_backward(problem.dynamics, problem.cost, discount, temperature)
    action_value, value = evaluate_controller(solution.controller, problem.dynamics, problem.cost, discount)
    assert_equal_parts(solution.action_value, action_value, rtol=1e-8, atol=1e-9)
    assert_equal_parts(solution.value, value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@DISCOUNTS
def test_evaluation_sums_the_discounted_costs_of_the_marginals(seed: int, discount: float) -> None:
    problem = indefinite(seed)
    dynamics, cost, controller, initial = problem.parts
    _, value = evaluate_controller(controller, dynamics, cost, discount)
    costs = expected_cost(cost, forward_marginals(controller, dynamics, initial))
    over_states = at(value, 0, initial.mean) + 0.5 * np.sum(value.V[0] * initial.cov)
    np.testing.assert_allclose(over_states, costs @ discount ** np.arange(len(costs)), rtol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@DISCOUNTS
def test_evaluation_of_states_and_actions_at_every_time_step(seed: int, discount: float) -> None:
    rng = np.random.default_rng(seed)
    problem = indefinite(seed)
    action_value, value = evaluate_controller(problem.reference, problem.dynamics, problem.cost, discount)
    np.testing.assert_array_equal(value.V, np.swapaxes(value.V, -1, -2))
    np.testing.assert_array_equal(action_value.C, np.swapaxes(action_value.C, -1, -2))
    for t in range(len(problem.dynamics.f)):
        x, u = 3.0 * rng.normal(size=4), 3.0 * rng.normal(size=2)
        controller, dynamics, cost = tails(problem, t)
        of_state = dense_expected_cost(controller, dynamics, cost, certain(x), discount)
        of_action = dense_expected_cost(first_action(controller, u), dynamics, cost, certain(x), discount)
        np.testing.assert_allclose(at(value, t, x), of_state, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(at(action_value, t, np.append(x, u)), of_action, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_evaluation_of_long_ill_conditioned_problems(seed: int) -> None:
    """No inverse, no square root: unstable dynamics and an indefinite cost only cost digits."""
    dynamics, cost, controller, initial = hard(np.random.default_rng(seed), 10, 60)[0].parts
    _, value = evaluate_controller(controller, dynamics, cost, 0.97)
    costs = expected_cost(cost, forward_marginals(controller, dynamics, initial))
    expected = costs @ 0.97 ** np.arange(costs.shape[-1])
    over_states = at(pick(value, 0), 0, initial.mean[0]) + 0.5 * np.sum(value.V[:, 0] * initial.cov, (-1, -2))
    np.testing.assert_allclose(over_states, expected, rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_disadvantages_add_up_to_the_difference_of_two_controllers(seed: int) -> None:
    """J(other) - J(controller) = sum_t gamma^t E_other[Q_t - V_t]; of the controller itself they are zero on average."""
    problem = indefinite(seed)
    dynamics, cost, controller, initial = problem.parts
    rng = np.random.default_rng(100 + seed)
    other = LinearGaussianController(
        controller.K + 0.3 * rng.normal(size=controller.K.shape),
        controller.k + rng.normal(size=controller.k.shape),
        random_pd(rng, (7,), 2),
    )
    Q, value = evaluate_controller(controller, dynamics, cost, 0.9)
    C, c = Q.C.copy(), Q.c.copy()
    C[:, :4, :4] -= value.V
    c[:, :4] -= value.v
    disadvantage = QuadraticCost(C, c, Q.const - value.const)
    own = expected_cost(disadvantage, forward_marginals(controller, dynamics, initial))
    np.testing.assert_allclose(own, 0.0, atol=1e-8)
    others = expected_cost(disadvantage, forward_marginals(other, dynamics, initial)) @ 0.9 ** np.arange(7)
    difference = dense_expected_cost(other, dynamics, cost, initial, 0.9) - dense_expected_cost(
        controller, dynamics, cost, initial, 0.9
    )
    np.testing.assert_allclose(others, difference, rtol=1e-8)


def test_disadvantages_agree_with_monte_carlo() -> None:
    rng = np.random.default_rng(8)
    problem = indefinite(8)
    dynamics, cost, controller, _ = problem.parts
    Q, value = evaluate_controller(controller, dynamics, cost, 0.9)
    noise, spread = np.linalg.cholesky(dynamics.cov), np.linalg.cholesky(controller.cov)
    start, n = 2, 20_000

    def cost_to_go(x: np.ndarray, u: np.ndarray | None) -> np.ndarray:
        total, states = np.zeros(n), np.tile(x, (n, 1))
        for t in range(start, len(noise)):
            actions = states @ controller.K[t].T + controller.k[t] + rng.normal(size=(n, 2)) @ spread[t].T
            if u is not None and t == start:
                actions = np.tile(u, (n, 1))
            z = np.concatenate([states, actions], 1)
            total += 0.9 ** (t - start) * at(cost, t, z)
            states = z @ dynamics.F[t].T + dynamics.f[t] + rng.normal(size=(n, 4)) @ noise[t].T
        return total

    for _ in range(3):
        x, u = rng.normal(size=4), 6.0 * rng.normal(size=2)
        of_action, of_state = cost_to_go(x, u), cost_to_go(x, None)
        error = (of_action.mean() - of_state.mean()) - (at(Q, start, np.append(x, u)) - at(value, start, x))
        sampling = np.sqrt((of_action.var() + of_state.var()) / n)
        assert abs(error) < 4.5 * sampling
        assert abs(of_action.mean() - of_state.mean()) > 9.0 * sampling, "or the test would see no difference"


def test_evaluation_gives_the_gradient_of_the_cost() -> None:
    """dJ/dk_t = gamma^t E[dQ_t/du], against finite differences."""
    problem = indefinite(9)
    dynamics, cost, controller, initial = problem.parts
    Q, _ = evaluate_controller(controller, dynamics, cost, 0.9)
    mean = forward_marginals(controller, dynamics, initial).mean
    slopes = np.einsum("tuz,tz->tu", Q.C[:, 4:], mean) + Q.c[:, 4:]
    for t, i in np.ndindex(7, 2):
        step = np.zeros_like(controller.k)
        step[t, i] = 0.5  # the cost is quadratic in k: central differences are exact
        shifted = (LinearGaussianController(controller.K, controller.k + sign * step, controller.cov) for sign in (1.0, -1.0))
        up, down = (dense_expected_cost(each, dynamics, cost, initial, 0.9) for each in shifted)
        np.testing.assert_allclose(0.9**t * slopes[t, i], up - down, rtol=1e-7, atol=1e-9)


def test_evaluation_of_batches_of_problems() -> None:
    batched = indefinite(10, batch=(2, 3))
    together = evaluate_controller(batched.reference, batched.dynamics, batched.cost, 0.95)
    for index in np.ndindex(2, 3):
        dynamics, cost, controller, _ = (pick(part, *index) for part in batched.parts)
        for whole, alone in zip(together, evaluate_controller(controller, dynamics, cost, 0.95), strict=True):
            assert_equal_parts(alone, pick(whole, *index), rtol=1e-10, atol=1e-12)


def test_error_names_the_first_of_several_conditions() -> None:
    problem = well_conditioned(np.random.default_rng(11), batch=(5,))
    C = problem.cost.C.copy()
    C[[1, 3], 4, -1, -1] = -1e6
    with pytest.raises(NotPositiveDefiniteError) as caught:
        lqr_backward(problem.dynamics, QuadraticCost(C, problem.cost.c, problem.cost.const))
    assert (caught.value.condition, caught.value.time_step) == (1, 4)


def test_a_cost_without_curvature_in_the_action_has_no_minimiser() -> None:
    problem = well_conditioned(np.random.default_rng(12))
    C = problem.cost.C.copy()
    C[-1, 4:] = C[-1, :, 4:] = 0.0
    with pytest.raises(NotPositiveDefiniteError, match="condition 0 at time step 6"):
        lqr_backward(problem.dynamics, QuadraticCost(C, problem.cost.c, problem.cost.const))


def test_a_single_action_of_unknown_cost_has_no_minimiser() -> None:
    problem = well_conditioned(np.random.default_rng(13), batch=(2,), du=1)
    C = problem.cost.C.copy()
    C[1, 3, -1, -1] = np.nan
    with pytest.raises(NotPositiveDefiniteError, match="condition 1 at time step 3"):
        lqr_backward(problem.dynamics, QuadraticCost(C, problem.cost.c, problem.cost.const))
