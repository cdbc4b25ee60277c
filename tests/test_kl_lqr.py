"""The KL-constrained LQR: bounds kept on hard problems, optimality, activity, warm starts, and what it refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from problems import Problem, dense_expected_cost, hard, pick, random_pd, well_conditioned
from scipy.optimize import minimize

from sb3_dpi.trajopt.kernels import PassResult
from sb3_dpi.trajopt.kl_lqr import KLConstrainedSolution, KLConstraintError, solve_kl_constrained
from sb3_dpi.trajopt.lqr import controller_kl, expected_cost, forward_marginals, lqr_backward
from sb3_dpi.trajopt.types import GaussianState, LinearGaussianController, LinearGaussianDynamics, QuadraticCost
from sb3_dpi.trajopt.whitened import WhitenedProblem

TOLERANCE = 1e-6
"""relative, for rounding in the recomputed KL"""


def recomputed_kl(problem: Problem, controller: LinearGaussianController) -> np.ndarray:
    marginals = forward_marginals(controller, problem.dynamics, problem.initial)
    return controller_kl(controller, problem.reference, marginals)


def total_cost(problem: Problem, controller: LinearGaussianController, discount: float = 1.0) -> np.ndarray:
    marginals = forward_marginals(controller, problem.dynamics, problem.initial)
    return discounted(expected_cost(problem.cost, marginals), discount)


def discounted(by_time: np.ndarray, discount: float) -> np.ndarray:
    return by_time @ discount ** np.arange(by_time.shape[-1])


def indefinite(seed: int, **sizes: int) -> Problem:
    """Well-conditioned dynamics with a cost of eigenvalues from -1 to 1."""
    rng = np.random.default_rng(seed)
    problem = well_conditioned(rng, batch=(1,), **sizes)
    shape = problem.cost.C.shape
    basis = np.linalg.qr(rng.normal(size=shape))[0]
    C = (basis * rng.uniform(-1, 1, (*shape[:-2], 1, shape[-1]))) @ np.swapaxes(basis, -1, -2)
    return replace(problem, cost=replace(problem.cost, C=C))


def perturbed(rng: np.random.Generator, controller: LinearGaussianController, size: float) -> LinearGaussianController:
    root = np.eye(controller.k.shape[-1]) + size * rng.normal(size=controller.cov.shape)
    return LinearGaussianController(
        controller.K + size * rng.normal(size=controller.K.shape),
        controller.k + size * rng.normal(size=controller.k.shape),
        root @ controller.cov @ np.swapaxes(root, -1, -2),
    )


def check_random_problems(n_problems: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for i in range(n_problems):
        problem, epsilon = hard(rng)
        solution = solve_kl_constrained(*problem.parts, epsilon)
        np.linalg.cholesky(solution.controller.cov)
        ratio = recomputed_kl(problem, solution.controller).sum() / epsilon
        assert 0.9 - TOLERANCE <= ratio <= 1.0 + TOLERANCE, f"problem {i}: KL is {ratio} epsilon"
        assert solution.converged.all() and solution.active.all(), f"problem {i}"
        assert total_cost(problem, solution.controller) < total_cost(problem, problem.reference), f"problem {i}"


def test_bound_is_kept_on_random_problems() -> None:
    check_random_problems(100, seed=0)


@pytest.mark.slow
def test_bound_is_kept_on_a_thousand_random_problems() -> None:
    check_random_problems(1000, seed=1)


def check_random_problems_per_time_step(n_problems: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for i in range(n_problems):
        problem, epsilon = hard(rng)
        horizon = problem.dynamics.f.shape[1]
        bounds = epsilon / horizon * rng.uniform(0.5, 2.0, (1, horizon))
        solution = solve_kl_constrained(*problem.parts, bounds, per_time_step=True)
        ratio = (recomputed_kl(problem, solution.controller) / bounds)[solution.active]
        assert ratio.max() <= 1.0 + TOLERANCE, f"problem {i}: KL is {ratio.max()} epsilon"
        assert not solution.converged.all() or ratio.min() >= 0.9 - TOLERANCE, f"problem {i}: KL is {ratio.min()} epsilon"
        assert solution.converged.all(), f"problem {i}"


def test_bounds_of_every_time_step_are_kept_on_random_problems() -> None:
    check_random_problems_per_time_step(15, seed=2)


@pytest.mark.slow
def test_bounds_of_every_time_step_are_kept_on_many_random_problems() -> None:
    check_random_problems_per_time_step(300, seed=3)


@pytest.mark.parametrize("seed", range(3))
def test_no_feasible_controller_nearby_is_better(seed: int) -> None:
    rng, problem = np.random.default_rng(seed), indefinite(seed)
    solution = solve_kl_constrained(*problem.parts, 2.0)
    best, bound, reference = total_cost(problem, solution.controller), solution.kl.sum(), problem.reference
    n_feasible = 0
    for size in np.repeat([1e-3, 1e-2, 0.1, 0.5], 50):
        other = perturbed(rng, solution.controller, size)
        for share in (1.0, 0.99, 0.95, 0.8, 0.5):
            mixed = LinearGaussianController(
                reference.K + share * (other.K - reference.K),
                reference.k + share * (other.k - reference.k),
                reference.cov + share * (other.cov - reference.cov),
            )
            if recomputed_kl(problem, mixed).sum() <= bound:
                n_feasible += 1
                assert total_cost(problem, mixed) > best - 1e-9
                break
    assert n_feasible >= 50


@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_equals_the_solution_of_a_general_solver(discount: float) -> None:
    """Dual Policy Iteration, Eq. 9: cost and KL are discounted alike."""
    problem = indefinite(3, horizon=3, dx=2, du=1)
    solution = solve_kl_constrained(*problem.parts, 0.5, discount=discount)
    bound = float(discounted(recomputed_kl(problem, solution.controller), discount)[0])
    assert 0.45 <= bound <= 0.5 + TOLERANCE
    shapes = problem.reference

    def unpack(x: np.ndarray) -> LinearGaussianController:
        K, k, log_std = np.split(x, [6, 9])
        return LinearGaussianController(
            K.reshape(shapes.K.shape), k.reshape(shapes.k.shape), np.exp(2.0 * log_std).reshape(shapes.cov.shape)
        )

    def slack(x: np.ndarray) -> float:
        return bound - float(discounted(recomputed_kl(problem, unpack(x)), discount)[0])

    start = np.concatenate([shapes.K.ravel(), shapes.k.ravel(), 0.5 * np.log(shapes.cov.ravel())])
    result = minimize(
        lambda x: float(total_cost(problem, unpack(x), discount)[0]),
        start,
        method="SLSQP",
        bounds=[(-5.0, 5.0)] * 9 + [(-6.0, 3.0)] * 3,  # far from the solution; farther out the solver can get lost
        constraints={"type": "ineq", "fun": slack},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert result.success
    np.testing.assert_allclose(total_cost(problem, solution.controller, discount)[0], result.fun, rtol=1e-6)
    np.testing.assert_allclose(solution.controller.K, unpack(result.x).K, atol=1e-3)


@pytest.mark.parametrize("per_time_step", [False, True])
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_lagrangian_is_stationary_and_minimal(discount: float, per_time_step: bool) -> None:
    rng, problem = np.random.default_rng(4), indefinite(4)
    horizon = problem.dynamics.f.shape[1]
    epsilon = rng.uniform(0.05, 0.5, (1, horizon)) if per_time_step else 2.0
    solution = solve_kl_constrained(*problem.parts, epsilon, discount=discount, per_time_step=per_time_step)
    factors = discount ** np.arange(horizon)
    eta = np.broadcast_to(solution.eta if per_time_step else solution.eta[:, None], (1, horizon))

    def lagrangian(controller: LinearGaussianController) -> float:
        dense = dense_expected_cost(*(pick(part, 0) for part in (controller, *problem.parts[:2], problem.initial)), discount)
        return dense + float(np.sum(factors * eta * recomputed_kl(problem, controller)))

    best = lagrangian(solution.controller)
    fields = vars(solution.controller)
    for _ in range(20):
        direction = {name: rng.normal(size=array.shape) for name, array in fields.items()}
        direction["cov"] = 0.2 * fields["cov"] @ (direction["cov"] + np.swapaxes(direction["cov"], -1, -2)) @ fields["cov"]

        def moved(step: float, by: dict[str, np.ndarray] = direction) -> float:
            return lagrangian(LinearGaussianController(**{name: array + step * by[name] for name, array in fields.items()}))

        slope, curvature = (moved(1e-4) - moved(-1e-4)) / 2e-4, (moved(1e-4) + moved(-1e-4) - 2 * best) / 1e-8
        assert curvature > 0
        assert abs(slope) < 1e-5 * curvature
        assert lagrangian(perturbed(rng, solution.controller, 0.1)) > best


@pytest.mark.parametrize("seed", range(3))
def test_every_time_step_keeps_its_own_bound(seed: int) -> None:
    rng, problem = np.random.default_rng(seed), indefinite(seed, horizon=12)
    bounds = np.exp(rng.uniform(np.log(0.01), np.log(1.0), (1, 12)))
    solution = solve_kl_constrained(*problem.parts, bounds, per_time_step=True)
    ratio = recomputed_kl(problem, solution.controller) / bounds
    assert solution.eta.shape == solution.active.shape == (1, 12)
    assert solution.converged.all() and solution.active.all()
    assert ratio.min() >= 0.9 - TOLERANCE and ratio.max() <= 1 + TOLERANCE


def test_cost_falls_as_the_bound_grows() -> None:
    problem = indefinite(5)
    costs = [
        float(total_cost(problem, solve_kl_constrained(*problem.parts, epsilon).controller)[0])
        for epsilon in (1e-3, 1e-2, 0.1, 1.0, 10.0)
    ]
    assert float(total_cost(problem, problem.reference)[0]) > costs[0]
    assert np.all(np.diff(costs) < 0)


@pytest.mark.parametrize("per_time_step", [False, True])
def test_warm_start_takes_fewer_passes(per_time_step: bool) -> None:
    problem = indefinite(6, horizon=30)
    cold = solve_kl_constrained(*problem.parts, 0.1, per_time_step=per_time_step)
    warm = solve_kl_constrained(*problem.parts, 0.1, eta=cold.eta, per_time_step=per_time_step)
    assert warm.n_passes < cold.n_passes
    if not per_time_step:
        assert warm.n_passes == 1
    rescaled = replace(problem.cost, C=1.02 * problem.cost.C, c=1.02 * problem.cost.c)
    nearby = replace(problem, cost=rescaled)
    assert solve_kl_constrained(*nearby.parts, 0.1, eta=cold.eta, per_time_step=per_time_step).n_passes < cold.n_passes


def test_start_far_from_the_solution_is_no_obstacle() -> None:
    problem = indefinite(7)
    solution = solve_kl_constrained(*problem.parts, 1.0)
    for factor in (1e-12, 1e-6, 1e6, 1e12):
        other = solve_kl_constrained(*problem.parts, 1.0, eta=factor * solution.eta)
        assert other.converged.all()
        assert 0.9 <= other.kl.sum() <= 1.0
    # from below, where the Lagrangian is not convex, the dual variable has to grow
    assert solve_kl_constrained(*problem.parts, 1.0, eta=1e-6 * solution.eta).n_recoveries > 0


def without_action(problem: Problem, cost_factor: float = 1.0) -> Problem:
    """The action moves nothing and costs nothing."""
    dx = problem.dynamics.f.shape[-1]
    F, C, c = problem.dynamics.F.copy(), cost_factor * problem.cost.C, cost_factor * problem.cost.c
    F[..., dx:] = 0.0
    C[..., dx:, :] = C[..., :, dx:] = c[..., dx:] = 0.0
    return replace(problem, dynamics=replace(problem.dynamics, F=F), cost=replace(problem.cost, C=C, c=c))


@pytest.mark.parametrize("per_time_step", [False, True])
@pytest.mark.parametrize("cost_factor", [1.0, 0.0, 1e-30])
def test_reference_comes_back_where_the_action_does_not_matter(cost_factor: float, per_time_step: bool) -> None:
    problem = without_action(indefinite(8), cost_factor)
    solution = solve_kl_constrained(*problem.parts, 1.0, per_time_step=per_time_step)
    assert not solution.active.any()
    assert solution.converged.all()
    np.testing.assert_allclose(solution.controller.K, problem.reference.K, rtol=1e-12)
    np.testing.assert_allclose(solution.controller.k, problem.reference.k, rtol=1e-12)
    np.testing.assert_allclose(solution.controller.cov, problem.reference.cov, rtol=1e-12)
    np.testing.assert_allclose(solution.kl, 0.0, atol=1e-12)


def test_an_inactive_condition_leaves_the_others_alone() -> None:
    active, inactive = indefinite(9), without_action(indefinite(10))
    both = Problem(
        *(
            type(one)(**{name: np.concatenate([array, getattr(two, name)]) for name, array in vars(one).items()})
            for one, two in zip(active.parts, inactive.parts, strict=True)
        )
    )
    solution = solve_kl_constrained(*both.parts, 1.0)
    alone = solve_kl_constrained(*active.parts, 1.0)
    assert solution.active.tolist() == [True, False]
    np.testing.assert_allclose(solution.controller.K[0], alone.controller.K[0], rtol=1e-9)
    assert 0.9 <= solution.kl[0].sum() <= 1.0


def test_steps_behind_the_plan_are_inactive() -> None:
    problem = indefinite(11, horizon=8)
    C, c = problem.cost.C.copy(), problem.cost.c.copy()
    C[:, 5:] = c[:, 5:] = 0.0
    cut = replace(problem, cost=replace(problem.cost, C=C, c=c))
    solution = solve_kl_constrained(*cut.parts, 0.1, per_time_step=True)
    assert solution.active[0].tolist() == [True] * 5 + [False] * 3
    np.testing.assert_allclose(solution.kl[0, 5:], 0.0, atol=1e-12)
    assert np.all((solution.kl[0, :5] >= 0.09) & (solution.kl[0, :5] <= 0.1))


def test_an_action_that_only_serves_a_better_successor_is_active() -> None:
    # the cost x_1 u_1 is zero under the reference; only where u_1 answers x_1 does u_0, which moves x_1, matter
    F = np.array([[[0.0, 1.0], [0.0, 0.0]]])[:, :1].repeat(2, 0)[None]
    dynamics = LinearGaussianDynamics(F, np.zeros((1, 2, 1)), np.zeros((1, 2, 1, 1)))
    C = np.zeros((1, 2, 2, 2))
    C[0, 1, 0, 1] = C[0, 1, 1, 0] = 1.0
    cost = QuadraticCost(C, np.zeros((1, 2, 2)), np.zeros((1, 2)))
    reference = LinearGaussianController(np.zeros((1, 2, 1, 1)), np.zeros((1, 2, 1)), np.ones((1, 2, 1, 1)))
    initial = GaussianState(np.ones((1, 1)), np.ones((1, 1, 1)))
    solution = solve_kl_constrained(dynamics, cost, reference, initial, 0.3, per_time_step=True)
    assert solution.active.all()
    assert np.all((solution.kl >= 0.27) & (solution.kl <= 0.3))


@pytest.mark.parametrize("per_time_step", [False, True])
def test_conditions_equal_each_alone(per_time_step: bool) -> None:
    rng = np.random.default_rng(12)
    batched = well_conditioned(rng, batch=(2, 3))
    epsilon = rng.uniform(0.1, 1.0, (2, 3, 7) if per_time_step else (2, 3))
    together = solve_kl_constrained(*batched.parts, epsilon, discount=0.97, per_time_step=per_time_step)
    for index in np.ndindex(2, 3):
        parts = [pick(part, *index) for part in batched.parts]
        alone: KLConstrainedSolution = solve_kl_constrained(*parts, epsilon[index], discount=0.97, per_time_step=per_time_step)
        np.testing.assert_allclose(together.eta[index], alone.eta, rtol=1e-6)
        np.testing.assert_allclose(together.kl[index], alone.kl, rtol=1e-6)
        for name, array in vars(alone.controller).items():
            np.testing.assert_allclose(getattr(together.controller, name)[index], array, rtol=1e-6, atol=1e-9)


def test_too_few_passes_still_keep_the_bound() -> None:
    problem = indefinite(13, horizon=20)
    for max_passes in range(1, 5):
        try:
            solution = solve_kl_constrained(*problem.parts, 1e-6, max_passes=max_passes)
        except KLConstraintError:
            continue
        assert solution.kl.sum() <= 1e-6
    steps = solve_kl_constrained(*problem.parts, 0.3, max_passes=6, per_time_step=True)
    assert np.all(steps.kl <= 0.3)
    convex = well_conditioned(np.random.default_rng(13), batch=(2,))
    far = solve_kl_constrained(*convex.parts, 0.3, eta=np.full((2, 7), 1e-3), max_passes=1, per_time_step=True)
    assert not far.converged.any()
    assert np.all(far.kl <= 0.3)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_bounds_and_starts_must_be_positive(bad: float) -> None:
    problem = indefinite(14)
    with pytest.raises(ValueError, match="epsilon must be positive and finite"):
        solve_kl_constrained(*problem.parts, bad)
    with pytest.raises(ValueError, match="eta must be positive and finite"):
        solve_kl_constrained(*problem.parts, 1.0, eta=np.array([bad]))


@pytest.mark.parametrize(
    ("part", "name", "index", "step"),
    [(0, "F", (2, 3, 0, 0), 3), (1, "const", (2, 4), 4), (2, "k", (2, 5, 1), 5), (3, "mean", (2, 0), 0)],
)
def test_nan_is_refused_by_name(part: int, name: str, index: tuple[int, ...], step: int) -> None:
    parts = list(well_conditioned(np.random.default_rng(15), batch=(4,)).parts)
    array = getattr(parts[part], name).copy()
    array[index] = np.nan
    parts[part] = replace(parts[part], **{name: array})
    with pytest.raises(KLConstraintError, match=rf"\.{name} is not finite in condition 2 at time step {step}") as caught:
        solve_kl_constrained(*parts, 1.0)
    assert (caught.value.condition, caught.value.time_step) == (2, step)
    array[3] = np.nan
    with pytest.raises(KLConstraintError, match="condition 2"):
        solve_kl_constrained(*parts, 1.0)


@pytest.mark.parametrize("without", [0.0, [[1.0, 2.0], [2.0, 1.0]]], ids=["none", "in one direction"])
def test_a_reference_without_variance_is_refused(without: Any) -> None:
    problem = well_conditioned(np.random.default_rng(16), batch=(3,))
    cov = problem.reference.cov.copy()
    cov[1, 4] = without
    with pytest.raises(
        KLConstraintError, match="reference's covariance is not positive definite in condition 1 at time step 4"
    ):
        solve_kl_constrained(problem.dynamics, problem.cost, replace(problem.reference, cov=cov), problem.initial, 1.0)


def test_overflow_is_an_error_that_names_condition_and_time_step() -> None:
    horizon = 400
    F = np.full((3, horizon, 1, 2), 0.5)
    F[1, :, 0] = 10.0, 0.0
    dynamics = LinearGaussianDynamics(F, np.zeros((3, horizon, 1)), np.full((3, horizon, 1, 1), 0.1))
    cost = QuadraticCost(np.broadcast_to(np.eye(2), (3, horizon, 2, 2)), np.zeros((3, horizon, 2)), np.zeros((3, horizon)))
    zeros = np.zeros((3, horizon, 1))
    reference = LinearGaussianController(zeros[..., None], zeros, np.ones((3, horizon, 1, 1)))
    initial = GaussianState(np.ones((3, 1)), np.ones((3, 1, 1)))
    with pytest.raises(KLConstraintError, match=r"no dual variable .* condition 1 .*shorten the horizon") as caught:
        solve_kl_constrained(dynamics, cost, reference, initial, 1.0)
    assert caught.value.condition == 1
    assert 0 < caught.value.time_step < horizon - 100


def mirror_descent_problem() -> Problem:
    """A noisy double integrator with a quadratic cost, and a vague policy to start from."""
    rng = np.random.default_rng(17)
    horizon, dx, du = 20, 4, 2
    dt = 0.1
    F = np.zeros((dx, dx + du))
    F[:, :dx] = np.eye(dx) + dt * np.eye(dx, k=2)
    F[2:, dx:] = dt * np.eye(du)
    weights = np.diag([10.0, 10.0, 1.0, 1.0, 0.1, 0.1])
    target = np.array([1.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    shape = (1, horizon)
    dynamics = LinearGaussianDynamics(
        np.broadcast_to(F, (*shape, dx, dx + du)),
        0.01 * rng.normal(size=(*shape, dx)),
        np.broadcast_to(1e-3 * random_pd(rng, (), dx), (*shape, dx, dx)),
    )
    cost = QuadraticCost(
        np.broadcast_to(weights, (*shape, dx + du, dx + du)),
        np.broadcast_to(-weights @ target, (*shape, dx + du)),
        np.full(shape, 0.5 * target @ weights @ target),
    )
    policy = LinearGaussianController(
        np.zeros((*shape, du, dx)), np.zeros((*shape, du)), np.broadcast_to(np.eye(du), (*shape, du, du))
    )
    return Problem(dynamics, cost, policy, GaussianState(np.zeros((1, dx)), 0.01 * np.eye(dx)[None]))


@pytest.mark.parametrize("per_time_step", [False, True])
def test_algorithm_2_is_mirror_descent(per_time_step: bool) -> None:
    problem = mirror_descent_problem()
    # the least expected cost: gains of the Riccati recursion without exploration, the noise of the dynamics included
    riccati = lqr_backward(problem.dynamics, problem.cost, temperature=0.0).controller
    optimum = float(total_cost(problem, riccati)[0])
    costs, eta = [float(total_cost(problem, problem.reference)[0])], None
    for _ in range(20):
        # C-step around the policy; the S-step is exact: the policy becomes the controller
        epsilon = 0.5 if per_time_step else 0.5 * problem.dynamics.f.shape[1]
        solution = solve_kl_constrained(*problem.parts, epsilon, eta=eta, per_time_step=per_time_step)
        problem, eta = replace(problem, reference=solution.controller), solution.eta
        costs.append(float(total_cost(problem, problem.reference)[0]))
    assert np.all(np.diff(costs) < 0)
    assert costs[0] > 2.0 * optimum
    assert optimum < costs[-1] < 1.01 * optimum


@pytest.mark.parametrize("per_time_step", [False, True])
def test_a_power_of_two_of_the_cost_changes_no_bit(per_time_step: bool) -> None:
    problem = indefinite(5)
    cost = QuadraticCost(*(2.0**-30 * array for array in vars(problem.cost).values()))
    horizon = problem.dynamics.f.shape[1]
    for eta in (None, np.full((1, horizon) if per_time_step else 1, 0.37)):
        plain, small = (
            solve_kl_constrained(*replace(problem, cost=given).parts, 0.5, eta=start, per_time_step=per_time_step)
            for given, start in ((problem.cost, eta), (cost, None if eta is None else 2.0**-30 * eta))
        )
        for name, array in vars(plain.controller).items():
            np.testing.assert_array_equal(getattr(small.controller, name), array)
        np.testing.assert_array_equal(small.eta, 2.0**-30 * plain.eta)


@pytest.mark.parametrize("per_time_step", [False, True])
@pytest.mark.parametrize("factor", [None, 1e-6, 3.0])
def test_passes_and_recoveries_are_counted(factor: float | None, per_time_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[int] = []
    original = WhitenedProblem.run

    def counting(self: WhitenedProblem, *args: np.ndarray) -> PassResult:
        result = original(self, *args)
        failures.append(int(np.sum(result[4] >= 0)))
        return result

    problem = indefinite(7)
    solved = solve_kl_constrained(*problem.parts, 1.0)
    eta = None if factor is None else factor * solved.eta
    monkeypatch.setattr(WhitenedProblem, "run", counting)
    epsilon = 1.0 / problem.dynamics.f.shape[1] if per_time_step else 1.0
    if per_time_step and eta is not None:
        eta = np.broadcast_to(eta[:, None], (1, 7))
    solution = solve_kl_constrained(*problem.parts, epsilon, eta=eta, per_time_step=per_time_step)
    assert solution.n_passes == len(failures)
    if not per_time_step or factor != 1e-6:
        assert solution.n_recoveries == sum(failures)
    assert factor != 1e-6 or sum(failures) > 0
