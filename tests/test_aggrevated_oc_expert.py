"""AggreVaTeD-OC's expert: its advantage, its trust region, plans closed by learned values, plans that explode."""

from typing import Any

import numpy as np
import pytest
from algorithms import small_aggrevated_oc
from problems import random_pd, well_conditioned

from sb3_dpi import AggreVaTeDOC
from sb3_dpi.aggrevated_oc.aggrevated_oc import Expert
from sb3_dpi.common.local_models import LocalModel, StateUnits, total_cost
from sb3_dpi.common.local_planning import discounted_steps, solve_shortening
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.trajopt.kl_lqr import KLConstraintError
from sb3_dpi.trajopt.lqr import add_next_value, evaluate_controller, expected_cost, forward_marginals
from sb3_dpi.trajopt.types import (
    GaussianState,
    LinearGaussianController,
    LinearGaussianDynamics,
    QuadraticCost,
    QuadraticValue,
)

PLAIN = StateUnits(np.zeros((2, 2)), np.ones((2, 2)))


def local_problem(seed: int = 0, horizon: int = 6) -> LocalModel:
    problem = well_conditioned(np.random.default_rng(seed), (2,), horizon=horizon, dx=2, du=1)
    return LocalModel(problem.dynamics, problem.cost, problem.reference, problem.initial, np.full(2, horizon), PLAIN)


def no_value(model: LocalModel) -> QuadraticValue:
    shape = model.dynamics.f.shape
    return QuadraticValue(np.zeros((*shape, shape[-1])), np.zeros(shape), np.zeros(shape[:-1]))


def random_value(model: LocalModel, seed: int = 7) -> QuadraticValue:
    rng, shape = np.random.default_rng(seed), model.dynamics.f.shape
    return QuadraticValue(random_pd(rng, shape[:-1], shape[-1]), rng.normal(size=shape), rng.normal(size=shape[:-1]))


def solved(local: LocalModel, value: QuadraticValue, **options: Any) -> tuple[AggreVaTeDOC, Expert]:
    model = small_aggrevated_oc(horizon=local.cost.const.shape[1], **options)
    model._setup_learn(1)
    return model, model.improve_expert(local, value)


def rollout_costs(
    local: LocalModel,
    value: QuadraticValue,
    controller: LinearGaussianController,
    start: tuple[np.ndarray, np.ndarray],
    condition: int,
    first: int,
    gamma: float,
    n: int,
    seed: int,
) -> float:
    """Mean discounted cost of an action followed by a controller, closed by the value of the last state."""
    rng, x, u = np.random.default_rng(seed), np.tile(start[0], (n, 1)), np.tile(start[1], (n, 1))
    total, horizon = np.zeros(n), local.cost.const.shape[1]
    for t in range(first, horizon):
        i = (condition, t)
        if t > first:
            u = x @ controller.K[i].T + controller.k[i] + rng.normal(size=(n, 1)) * np.sqrt(controller.cov[i][0, 0])
        z = np.concatenate([x, u], 1)
        cost = 0.5 * np.sum(z @ local.cost.C[i] * z, 1) + z @ local.cost.c[i] + local.cost.const[i]
        total += gamma ** (t - first) * cost
        noise = rng.normal(size=x.shape) @ np.linalg.cholesky(local.dynamics.cov[i]).T
        x = z @ local.dynamics.F[i].T + local.dynamics.f[i] + noise
    last = (condition, horizon - 1)
    final = 0.5 * np.sum(x @ value.V[last] * x, 1) + x @ value.v[last] + value.const[last]
    return float(np.mean(total + gamma ** (horizon - first) * final))


@pytest.mark.parametrize("condition, first", [(0, 0), (1, 2), (1, 5)])
def test_advantage_against_monte_carlo_rollouts_of_the_expert(condition: int, first: int) -> None:
    """A^eta(s, a) - A^eta(s, b) is what rolling out eta from a rather than from b saves, by the model and its true cost."""
    local = local_problem()
    value = random_value(local)
    model, expert = solved(local, value, plan_lambda=1.0, gamma=0.9, trust_region=0.5)
    # a plan as far from the policy as allowed, so that it is the expert who is followed
    assert not np.allclose(expert.controller.K, local.policy.K, atol=1e-2)
    x, a, b = np.array([0.4, -0.8]), np.array([0.9]), np.array([-0.3])
    states = np.zeros((2, 2, 7, 2))
    states[:, :, first] = x
    actions = np.zeros((2, 2, 6, 1))
    actions[:, 0], actions[:, 1] = a, b
    everywhere, nowhere = np.ones((2, 2, 6), bool), np.zeros((2, 2, 6), bool)
    trajectories = Trajectories(states.astype(np.float32), states, actions, np.zeros((2, 2, 6)), everywhere, nowhere)
    samples = model.gather(expert, np.zeros((2, 2, 6)), trajectories)
    quadratic, linear, u = (array.numpy().astype(float) for array in (samples.quadratic, samples.linear, samples.actions))
    costs = (0.5 * quadratic[:, 0, 0] * u[:, 0] ** 2 + linear[:, 0] * u[:, 0]).reshape(2, 2, 6)[condition, :, first]
    options = (local, value, expert.controller)
    simulated = [rollout_costs(*options, (x, action), condition, first, 0.9, 100_000, 3) for action in (a, b)]
    assert abs(costs[0] - costs[1]) > 0.1
    assert costs[0] - costs[1] == pytest.approx(simulated[0] - simulated[1], abs=0.03)


def test_expert_is_better_within_its_trust_region() -> None:
    local = local_problem()
    model, expert = solved(local, no_value(local), plan_lambda=1.0, gamma=1.0, trust_region=0.2)
    costs = [
        expected_cost(local.cost, forward_marginals(controller, local.dynamics, local.initial)).sum(-1)
        for controller in (expert.controller, local.policy)
    ]
    assert np.all(costs[0] < costs[1])
    assert expert.solution is not None
    kl = expert.solution.kl.sum() / expert.model.lengths.sum()
    assert 0.9 * 0.2 <= kl <= 0.2001
    np.testing.assert_array_equal(model.eta, expert.solution.eta)


def test_no_trust_region_leaves_the_policy_as_the_expert() -> None:
    local = local_problem()
    model, expert = solved(local, no_value(local), trust_region=0.0)
    assert expert.controller is local.policy and expert.solution is None and model.eta is None


def test_a_small_trust_region_leads_to_none() -> None:
    """alpha -> 0: the objective's gradient goes over into that of the policy's own advantage."""
    local = local_problem()
    values = random_value(local)
    own = solved(local, values, trust_region=0.0)[1].action_value
    distances = [np.abs(solved(local, values, trust_region=a)[1].action_value.C - own.C).max() for a in (1e-2, 1e-5, 1e-8)]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 0.05


# ---------------------------------------------------------------------- plans closed by learned values


def test_add_next_value_against_monte_carlo() -> None:
    local, rng = local_problem(horizon=3), np.random.default_rng(0)
    value, z = random_value(local), rng.normal(size=(2, 3, 3))
    weight = rng.uniform(0.2, 1.0, (2, 3))
    closed = add_next_value(local.cost, local.dynamics, value, weight)
    roots = np.linalg.cholesky(local.dynamics.cov)
    noise = np.einsum("mtij,nmtj->nmti", roots, rng.normal(size=(200_000, 2, 3, 2)))
    following = np.einsum("mtij,mtj->mti", local.dynamics.F, z) + local.dynamics.f + noise
    quadratic = 0.5 * np.einsum("nmti,mtij,nmtj->nmt", following, value.V, following)
    sampled = (quadratic + np.einsum("mti,nmti->nmt", value.v, following) + value.const).mean(0)

    def at(cost: QuadraticCost) -> np.ndarray:
        return 0.5 * np.einsum("mti,mtij,mtj->mt", z, cost.C, z) + np.sum(cost.c * z, -1) + cost.const

    np.testing.assert_allclose(at(closed) - at(local.cost), weight * sampled, atol=0.02)
    np.testing.assert_array_equal(closed.C, np.swapaxes(closed.C, -1, -2))


def test_plan_lambda_of_one_is_the_model_alone_but_for_the_terminal_value() -> None:
    local = local_problem()
    values = random_value(local)
    _, expert = solved(local, values, plan_lambda=1.0, gamma=0.9, trust_region=0.0)
    last = np.arange(6) == 5
    cost = add_next_value(local.cost, local.dynamics, values, 0.9 * last)
    np.testing.assert_array_equal(cost.C[:, :5], local.cost.C[:, :5])
    expected, _ = evaluate_controller(local.policy, local.dynamics, cost, 0.9)
    for name in ("C", "c", "const"):
        np.testing.assert_allclose(getattr(expert.action_value, name), getattr(expected, name), rtol=1e-10)
    _, alone = solved(local, no_value(local), plan_lambda=1.0, gamma=0.9, trust_region=0.0)
    expected, _ = evaluate_controller(local.policy, local.dynamics, local.cost, 0.9)
    np.testing.assert_allclose(alone.action_value.C, expected.C, rtol=1e-10)


def test_plan_lambda_of_zero_is_one_step() -> None:
    """Q_t is the cost of the step and the learned value behind it, whatever comes later."""
    local = local_problem()
    values = random_value(local)
    _, expert = solved(local, values, plan_lambda=0.0, gamma=0.9, trust_region=0.3)
    expected = add_next_value(local.cost, local.dynamics, values, 0.9)
    for name in ("C", "c", "const"):
        np.testing.assert_allclose(getattr(expert.action_value, name), getattr(expected, name), rtol=1e-10)


@pytest.mark.parametrize("plan_lambda", [0.3, 0.8])
def test_plan_lambda_mixes_windows_of_all_lengths(plan_lambda: float) -> None:
    """That of k steps has weight (1 - lambda) lambda^(k-1), the longest one what is left."""
    gamma, horizon, first = 0.9, 6, 1
    local = local_problem(horizon=horizon)
    values = random_value(local)
    _, expert = solved(local, values, plan_lambda=plan_lambda, gamma=gamma, trust_region=0.0)
    expected = np.zeros((2, 3, 3))
    for k in range(1, horizon - first + 1):
        steps = np.arange(horizon)
        end = first + k - 1
        kept = (steps <= end).astype(float)
        cost = QuadraticCost(local.cost.C * kept[:, None, None], local.cost.c * kept[:, None], local.cost.const * kept)
        cost = add_next_value(cost, local.dynamics, values, gamma * (steps == end))
        window = evaluate_controller(local.policy, local.dynamics, cost, gamma)[0].C[:, first]
        weight = plan_lambda ** (k - 1) * (1.0 if end == horizon - 1 else 1.0 - plan_lambda)
        expected += weight * window
    np.testing.assert_allclose(expert.action_value.C[:, first], expected, rtol=1e-9)


def explosive(rate: float, horizon: int = 200, cost: float = 1.0) -> LocalModel:
    """A rotation that grows by ``rate`` in every step."""
    angle, shape = 0.7, (2, horizon)
    A = rate * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    F = np.concatenate([A, [[0.1], [1.0]]], 1)
    tile: Any = lambda array: np.tile(array, (*shape, *[1] * array.ndim))  # noqa: E731
    return LocalModel(
        LinearGaussianDynamics(tile(F), np.zeros((*shape, 2)), tile(0.01 * np.eye(2))),
        QuadraticCost(tile(cost * np.eye(3)), np.zeros((*shape, 3)), np.zeros(shape)),
        LinearGaussianController(np.zeros((*shape, 1, 2)), np.zeros((*shape, 1)), tile(0.25 * np.eye(1))),
        GaussianState(np.ones((2, 2)), np.tile(0.1 * np.eye(2), (2, 1, 1))),
        np.full(2, horizon),
        PLAIN,
    )


@pytest.mark.parametrize("rate", [5.0, 10.0, 50.0, 1e6])
def test_plans_that_explode_are_shortened(rate: float) -> None:
    with np.errstate(all="ignore"):
        model, solution = solve_shortening(explosive(rate), 0.3, None, 0.99)
    assert np.all(model.lengths >= 6) and np.all(model.lengths < 200)
    kl = solution.kl @ 0.99 ** np.arange(200) / discounted_steps(model.lengths, 0.99)
    assert np.all(kl <= 0.3001) and np.all(kl > 0.2), "the bound is that of the steps that are planned"
    for array in (solution.controller.K, solution.controller.k, solution.controller.cov, solution.kl):
        assert np.all(np.isfinite(array))
    for t in range(200):
        assert np.all(solution.kl[model.lengths <= t, t] < 1e-9), "what is not planned stays the policy"


def test_stable_plans_are_not_shortened() -> None:
    model, _ = solve_shortening(explosive(0.99), 0.3, None, 0.99)
    np.testing.assert_array_equal(model.lengths, 200)


def test_only_the_condition_that_explodes_is_shortened() -> None:
    wild, tame = explosive(50.0), explosive(0.9)
    names = ("F", "f", "cov")
    parts = [np.stack([getattr(problem.dynamics, name)[0] for problem in (tame, wild)]) for name in names]
    dynamics = LinearGaussianDynamics(*parts)
    both = LocalModel(dynamics, wild.cost, wild.policy, wild.initial, wild.lengths, PLAIN)
    with np.errstate(all="ignore"):
        model, _ = solve_shortening(both, 0.3, None, 0.99)
    assert model.lengths[0] == 200 and 6 <= model.lengths[1] < 200


def test_where_nothing_can_be_planned() -> None:
    broken = explosive(1.0, horizon=8)
    broken.dynamics.F[1, 0, 0, 0] = np.nan
    with pytest.raises(KLConstraintError, match="not finite in condition 1 at time step 0"):
        solve_shortening(broken, 0.3, None, 0.99)


def test_a_shortened_plan_ends_with_the_learned_value() -> None:
    """As the whole one does: its last step carries the value of the state behind it in full."""
    local = explosive(50.0)
    values = QuadraticValue(np.tile(3.0 * np.eye(2), (2, 200, 1, 1)), np.zeros((2, 200, 2)), np.zeros((2, 200)))
    with np.errstate(all="ignore"):
        _, expert = solved(local, values, plan_lambda=1.0, gamma=0.9, trust_region=0.3)
    end = int(expert.model.lengths[0]) - 1
    assert 6 <= end + 1 < 200
    F = local.dynamics.F[0, 0]
    np.testing.assert_allclose(expert.action_value.C[0, end], np.eye(3) + 0.9 * 3.0 * F.T @ F, rtol=1e-8, atol=1e-8)
    assert np.all(np.isfinite(expert.action_value.C[:, :end]))
    for controller in (expert.controller, expert.model.policy):
        assert np.all(np.isfinite(total_cost(expert.model, controller, 0.9)))
