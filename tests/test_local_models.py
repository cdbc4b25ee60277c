"""Local models: regressions find linear systems, costs are what was rewarded, and settings are read from what users write."""

from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import small_mdgps
from dummy_envs import HORIZON, DictPointMass, PointMass

from sb3_dpi.common.linearization import as_controller, average_jacobians
from sb3_dpi.common.local_models import (
    PRIORS,
    CostSettings,
    LocalModel,
    RegressionSettings,
    StateUnits,
    as_dynamics,
    fit_local_cost,
    fit_local_value,
    fit_regression,
    held_out_error,
    initial_state,
    planned_lengths,
    step_costs,
    take_conditions,
    total_cost,
    transition_points,
)
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.trajopt.dynamics import LinearGaussianFit
from sb3_dpi.trajopt.types import GaussianState, LinearGaussianController, LinearGaussianDynamics, QuadraticCost

M, N, T, DX, DU = 2, 6, 5, 2, 1
A, B = np.array([[1.0, 0.1], [-0.2, 0.9]]), np.array([[0.05], [0.5]])
NO_BOUNDS = (np.full(DU, -1.0), np.full(DU, 1.0))


def reward(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return 1.0 - (states[..., 0] - 0.5) ** 2 - 0.3 * states[..., 1] ** 2 - 0.1 * actions[..., 0] ** 2


def sample(noise: float = 0.0, seed: int = 0, n_conditions: int = M, n_samples: int = N) -> Trajectories:
    """Trajectories of a linear system under random actions."""
    rng = np.random.default_rng(seed)
    states = np.zeros((n_conditions, n_samples, T + 1, DX))
    actions = rng.uniform(-1.0, 1.0, (n_conditions, n_samples, T, DU))
    states[:, :, 0] = rng.normal(size=(n_conditions, 1, DX)) + 0.3 * rng.normal(size=(n_conditions, n_samples, DX))
    for t in range(T):
        states[:, :, t + 1] = states[:, :, t] @ A.T + actions[:, :, t] @ B.T + noise * rng.normal(size=states[:, :, t].shape)
    alive = np.ones(actions.shape[:3], dtype=bool)
    return Trajectories(states, states, actions, reward(states[:, :, :-1], actions), alive, np.zeros_like(alive))


def change(trajectories: Trajectories, **changes: Any) -> Trajectories:
    return Trajectories(**{**vars(trajectories), **changes})


def kill(trajectories: Trajectories, lengths: list[list[int]]) -> Trajectories:
    """End trajectories after some steps; what follows is nonsense."""
    alive = np.arange(T) < np.array(lengths)[..., None]
    after = np.concatenate([np.ones_like(alive[..., :1]), alive], -1)
    terminated = alive & (np.arange(T) == np.array(lengths)[..., None] - 1) & (np.array(lengths)[..., None] < T)
    states = np.where(after[..., None], trajectories.states, 1e5)
    rewards = np.where(alive, trajectories.rewards, 1e6)
    return change(trajectories, alive=alive, terminated=terminated, states=states, observations=states, rewards=rewards)


# ---------------------------------------------------------------------- settings


def test_settings_are_read() -> None:
    assert RegressionSettings.parse("dynamics", "gmm") == RegressionSettings(prior="gmm")
    assert RegressionSettings.parse("dynamics", {"window": 7}) == RegressionSettings(window=7)
    both = RegressionSettings.parse("dynamics", {"prior": "niw", "cov_count": 2.0, "ridge": 1e-3})
    assert both == RegressionSettings(prior="niw", cov_count=2.0, ridge=1e-3)
    assert RegressionSettings.parse("dynamics", both) is both
    assert CostSettings.parse(None) == CostSettings()
    assert CostSettings.parse({"local_window": 3}) == CostSettings(local_window=3)
    assert CostSettings.parse(CostSettings(ridge=1.0)) == CostSettings(ridge=1.0)
    known = lambda obs, action, next_obs: obs.sum(-1)  # noqa: E731
    assert CostSettings.parse(known) == CostSettings.parse({"cost_fn": known}) == CostSettings(cost_fn=known)


@pytest.mark.parametrize("value", ["ols", {"prior": "ols"}, {"prior": None}])
def test_unknown_priors(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Unknown dynamics .*: choose one of 'niw', 'nearest', 'gmm'"):
        RegressionSettings.parse("dynamics", value)


def test_unknown_settings() -> None:
    with pytest.raises(ValueError, match="Unknown setting of linearization 'strength': choose one of 'prior', 'cov_count'"):
        RegressionSettings.parse("linearization", {"strength": 1.0})
    with pytest.raises(ValueError, match="Unknown setting of cost 'strength': choose one of 'ridge'"):
        CostSettings.parse({"strength": 1.0})


def test_settings_objects_are_accepted_as_arguments() -> None:
    options: dict[str, Any] = {
        "dynamics": RegressionSettings(prior="niw"),
        "linearization": RegressionSettings(prior="nearest", neighbours=20),
        "cost": CostSettings(local_window=1),
    }
    assert small_mdgps(**options).learn(1).n_iterations == 1


# ---------------------------------------------------------------------- dynamics


def test_transition_points() -> None:
    trajectories = change(sample(), actions=sample().actions * 3.0)
    points = transition_points(kill(trajectories, [[T] * N, [2] * N]))
    assert points.shape == (M, N, T, 2 * DX + DU)
    np.testing.assert_array_equal(points[0, :, :, :DX], trajectories.states[0, :, :-1])
    np.testing.assert_array_equal(points[0, :, :, DX], trajectories.actions[0, :, :, 0])
    np.testing.assert_array_equal(points[0, :, :, DX + 1 :], trajectories.states[0, :, 1:])
    assert np.all(points[1, :, 2:] == 0.0) and np.any(points[1, :, :2] != 0.0)


LENGTHS = [
    ([[5] * N, [5] * N], 2, [5, 5]),
    ([[5, 5, 3, 3, 1, 1], [1] * N], 2, [5, 1]),
    ([[5, 5, 3, 3, 1, 1], [1] * N], 3, [3, 1]),
    ([[5, 5, 3, 3, 1, 1], [1] * N], 6, [1, 1]),
    ([[0, 0, 0, 0, 0, 4], [2] * N], 2, [0, 2]),
]


@pytest.mark.parametrize("lengths, min_samples, expected", LENGTHS)
def test_planned_lengths(lengths: list[list[int]], min_samples: int, expected: list[int]) -> None:
    np.testing.assert_array_equal(planned_lengths(kill(sample(), lengths), min_samples), expected)


def test_nothing_to_plan() -> None:
    with pytest.raises(ValueError, match="No time step has the 7 living samples"):
        planned_lengths(sample(), 7)
    with pytest.raises(ValueError, match="No time step"):
        planned_lengths(kill(sample(), [[0] * N] * M), 1)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("lengths", [None, [[T] * N, [T, T, T, 3, 3, 2]]], ids=["alive", "dead"])
def test_regressions_find_a_linear_system(prior: str, lengths: list[list[int]] | None) -> None:
    trajectories = sample() if lengths is None else kill(sample(), lengths)
    settings = RegressionSettings(prior=prior, ridge=1e-9)
    points = transition_points(trajectories)
    fit = fit_regression(points, trajectories.weights, DX + DU, settings, np.random.default_rng(0))
    dynamics = as_dynamics(fit)
    assert isinstance(dynamics, LinearGaussianDynamics) and dynamics.F.shape == (M, T, DX, DX + DU)
    np.testing.assert_allclose(dynamics.F, np.broadcast_to(np.hstack([A, B]), dynamics.F.shape), atol=2e-3)
    np.testing.assert_allclose(dynamics.f, 0.0, atol=2e-3)
    assert np.all(np.linalg.eigvalsh(dynamics.cov) > 0)


@pytest.mark.parametrize("prior", PRIORS)
def test_regressions_estimate_the_noise(prior: str) -> None:
    trajectories = sample(noise=0.1, n_samples=60)
    fit = fit_regression(
        transition_points(trajectories),
        trajectories.weights,
        DX + DU,
        RegressionSettings(prior=prior),
        np.random.default_rng(0),
    )
    np.testing.assert_allclose(np.sqrt(np.diagonal(fit.cov, axis1=-2, axis2=-1)).mean((0, 1)), 0.1, rtol=0.25)


@pytest.mark.parametrize("prior", PRIORS)
def test_priors_make_up_for_missing_samples(prior: str) -> None:
    """Two samples cannot determine three coefficients; neighbours can."""
    trajectories = sample(noise=0.01, n_conditions=4, n_samples=2)
    settings = RegressionSettings(prior=prior)
    fit = fit_regression(transition_points(trajectories), trajectories.weights, DX + DU, settings, np.random.default_rng(0))
    np.testing.assert_allclose(fit.coef, np.broadcast_to(np.hstack([A, B]), fit.coef.shape), atol=0.3)


def test_earlier_iterations_of_a_condition_are_its_neighbours() -> None:
    """With ``n_same`` conditions i and i + n are one: two systems are kept apart, and half the samples are enough."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(8, 2, T, 4))
    gains = np.array([1.0, -1.0] * 4)
    points[..., 3] = gains[:, None, None] * points[..., 0]
    settings, weights = RegressionSettings(prior="niw", window=1, mean_count=5.0), np.ones(points.shape[:3])
    alone = fit_regression(points, weights, 3, settings, rng)
    together = fit_regression(points, weights, 3, settings, rng, n_same=2)

    def error(fit: LinearGaussianFit) -> float:
        return float(np.abs(fit.coef[..., 0, 0] - gains[:, None]).mean())

    assert error(together) < 0.5 * error(alone) and error(together) < 0.05


@pytest.mark.parametrize("prior", PRIORS)
def test_conditions_that_are_not_fitted_stand_behind_the_prior(prior: str) -> None:
    trajectories = sample(noise=0.05, n_conditions=4)
    arguments = (transition_points(trajectories), trajectories.weights, DX + DU, RegressionSettings(prior=prior))
    everything = fit_regression(*arguments, np.random.default_rng(0))
    some = fit_regression(*arguments, np.random.default_rng(0), n_fitted=2)
    for part, whole in zip(vars(some).values(), vars(everything).values(), strict=True):
        np.testing.assert_allclose(part, whole[:2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_cost_of_the_first_conditions(known: bool) -> None:
    trajectories, lengths = sample(n_conditions=4), np.array([T, T - 2])

    def cost_fn(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return (obs**2).sum(-1) + (action**2).sum(-1)

    dynamics = LinearGaussianDynamics(np.tile(np.hstack([A, B]), (4, T, 1, 1)), np.zeros((4, T, DX)), np.zeros((4, T, DX, DX)))
    settings = CostSettings(cost_fn=cost_fn if known else None)
    all_lengths = np.concatenate([lengths, [T, T]])
    everything = fit_local_cost(trajectories, all_lengths, 0.9, settings, dynamics, NO_BOUNDS)
    some = fit_local_cost(trajectories, lengths, 0.9, settings, take_conditions(dynamics, slice(2)), NO_BOUNDS)
    for part, whole in zip(vars(some).values(), vars(everything).values(), strict=True):
        np.testing.assert_allclose(part, whole[:2], rtol=1e-9, atol=1e-12)


def test_initial_state() -> None:
    trajectories = kill(sample(), [[T] * N, [T, T, T, T, 0, 0]])
    state, first = initial_state(trajectories), trajectories.states[:, :, 0]
    np.testing.assert_allclose(state.mean, [first[0].mean(0), first[1, :4].mean(0)], atol=1e-12)
    np.testing.assert_allclose(state.cov[0], np.cov(first[0].T, bias=True), atol=1e-4)
    np.testing.assert_allclose(state.cov[1], np.cov(first[1, :4].T, bias=True), atol=1e-4)
    assert np.all(np.linalg.eigvalsh(initial_state(sample(n_samples=1)).cov) > 0)


def test_initial_state_does_not_read_the_dead() -> None:
    dead = kill(sample(), [[T] * N, [T, T, 3, 3, 2, 2]])
    state, alive = initial_state(dead), initial_state(sample())
    np.testing.assert_allclose(state.mean, alive.mean)
    np.testing.assert_allclose(state.cov, alive.cov, atol=1e-4)


# ---------------------------------------------------------------------- error on held-out trajectories


@pytest.mark.parametrize("prior", PRIORS)
def test_held_out_error_of_a_linear_system(prior: str) -> None:
    trajectories = sample()
    points, lengths = transition_points(trajectories), np.full(M, T)
    error = held_out_error(points, trajectories.weights, DX + DU, RegressionSettings(prior=prior), 2, lengths)
    assert 0.0 <= error < 1e-2


def test_held_out_error_of_noise() -> None:
    """1 is as bad as predicting no change: pure noise is not predicted."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4, 30, 10, 2 * DX + DU))
    points[..., DX + DU :] = points[..., :DX] + rng.normal(size=(4, 30, 10, DX))
    error = held_out_error(points, np.ones(points.shape[:3]), DX + DU, RegressionSettings(), 0, np.full(4, 10))
    assert 0.3 < error < 1.5


def test_held_out_samples_are_not_seen() -> None:
    """The other samples give the true system, so that the error is what was added to the one held out."""
    trajectories = sample()
    wrong = np.zeros_like(trajectories.states)
    wrong[:, 3, 1::2] = np.random.default_rng(0).normal(size=wrong[:, 3, 1::2].shape)
    states = trajectories.states + wrong
    points = transition_points(change(trajectories, states=states))
    error = held_out_error(points, trajectories.weights, 3, RegressionSettings(ridge=1e-9), 3, np.full(M, T))
    inputs, after = points[:, 3, :, :3], points[:, 3, :, 3:]
    residual = after - inputs @ np.hstack([A, B]).T
    change_of_state = (after - inputs[..., :2]).reshape(-1, 2)
    expected = np.mean(np.median(residual.reshape(-1, 2) ** 2, 0) / change_of_state.var(0))
    assert error == pytest.approx(expected, rel=0.02) and expected > 0.05


def test_held_out_error_without_anything_left() -> None:
    """Where the only sample is held out, or the held-out one is empty, there is no error to speak of."""
    for prior in PRIORS:
        lonely = sample(n_conditions=1, n_samples=1)
        settings = RegressionSettings(prior=prior)
        assert np.isnan(held_out_error(transition_points(lonely), lonely.weights, 3, settings, 0, np.array([T])))
    empty = kill(sample(), [[T, T, 0, T, T, T]] * M)
    assert np.isnan(held_out_error(transition_points(empty), empty.weights, 3, RegressionSettings(), 2, np.full(M, T)))


@pytest.mark.parametrize("prior", PRIORS)
def test_one_sample_of_one_condition(prior: str) -> None:
    model = small_mdgps(n_conditions=1, samples_per_condition=1, dynamics={"prior": prior, "min_samples": 1})
    model.learn(2 * HORIZON)
    assert model.n_iterations == 2


# ---------------------------------------------------------------------- linearisation


def test_average_of_jacobians() -> None:
    trajectories = kill(sample(), [[T] * N, [T, T, T, 2, 2, 2]])
    states = trajectories.states[:, :, :-1]
    rng = np.random.default_rng(0)
    jacobians, means = rng.normal(size=(M, N, T, DU, DX)), rng.normal(size=(M, N, T, DU))
    fit = average_jacobians(states, means, jacobians, trajectories.weights)
    for m, t, n_alive in ((0, 0, N), (1, 4, 3)):
        K = jacobians[m, :n_alive, t].mean(0)
        np.testing.assert_allclose(fit.coef[m, t], K)
        at_mean = K @ states[m, :n_alive, t].mean(0) + fit.bias[m, t]
        np.testing.assert_allclose(at_mean, means[m, :n_alive, t].mean(0), atol=1e-12)
        residual = means[m, :n_alive, t] - states[m, :n_alive, t] @ K.T - fit.bias[m, t]
        np.testing.assert_allclose(fit.cov[m, t], residual.T @ residual / n_alive, atol=1e-12)


def test_linear_policies_leave_nothing_unexplained() -> None:
    trajectories = kill(sample(), [[T] * N, [0] * N])
    states, K = trajectories.states[:, :, :-1], np.array([[0.5, -2.0]])
    fit = average_jacobians(states, states @ K.T + 0.3, np.broadcast_to(K, (M, N, T, DU, DX)).copy(), trajectories.weights)
    np.testing.assert_allclose(fit.bias[0], 0.3, atol=1e-12)
    np.testing.assert_allclose(fit.cov[0], 0.0, atol=1e-12)
    assert np.all(np.isfinite(fit.bias[1])), "also where nobody lives"


def test_exploration_is_the_policys() -> None:
    fit = LinearGaussianFit(np.ones((M, T, DU, DX)), np.ones((M, T, DU)), np.full((M, T, DU, DU), 0.5))
    controller = as_controller(fit, np.array([0.2]))
    np.testing.assert_allclose(controller.cov, 0.5 + 0.04)
    np.testing.assert_array_equal(controller.K, fit.coef)


TOLERANCES = [(None, 1e-5), ("jacobian", 1e-5), ("nearest", 0.02), ("niw", 0.1), ("gmm", 0.1)]


@pytest.mark.parametrize("linearization, atol", TOLERANCES)
def test_linearizations_agree_with_a_linear_policy(linearization: str | None, atol: float) -> None:
    """Without hidden layers all of them must find the same controller, but for what a prior shrinks."""
    model = small_mdgps(linearization=linearization, policy_kwargs={"net_arch": []}, samples_per_condition=8)
    model.learn(HORIZON * 16)
    reader: Any = model.policy.action_net
    with th.no_grad():
        reader.weight.copy_(th.tensor([[0.7, -0.4]]))
    trajectories = model.rollout_buffer.trajectories()
    controller = model._linearize(trajectories)
    extractor: Any = model.policy.pi_features_extractor
    std = extractor.obs_std.numpy()
    np.testing.assert_allclose(controller.K, np.broadcast_to([[0.7, -0.4]] / std, controller.K.shape), atol=atol)
    variance = np.exp(2.0 * model.policy.log_std.detach().numpy())
    np.testing.assert_allclose(controller.cov[..., 0, 0], np.broadcast_to(variance, controller.cov.shape[:2]), rtol=0.05)


def test_automatic_linearization() -> None:
    """The Jacobian where the policy sees what the planner sees, else a regression."""
    seen, hidden = small_mdgps(PointMass()), small_mdgps(DictPointMass(), "MultiInputPolicy")
    for model in (seen, hidden):
        model.learn(1)
    trajectories = seen.rollout_buffer.trajectories()
    auto = seen._linearize(trajectories)
    seen.linearization = "jacobian"
    np.testing.assert_array_equal(seen._linearize(trajectories).K, auto.K)
    blind = hidden._linearize(hidden.rollout_buffer.trajectories())
    assert blind.K.shape[-1] == 2 and np.all(np.isfinite(blind.K))


# ---------------------------------------------------------------------- cost


@pytest.mark.parametrize("gamma, remaining", [(0.9, 9.0), (0.5, 1.0), (1.0, T)])
def test_death_forgoes_the_rewards_of_life(gamma: float, remaining: float) -> None:
    trajectories = kill(sample(), [[T] * N, [3] * N])
    costs = step_costs(trajectories, gamma, 0.0)
    loss = trajectories.rewards[trajectories.alive].mean() * remaining
    np.testing.assert_allclose(costs[0], -trajectories.rewards[0])
    np.testing.assert_allclose(costs[1, :, :2], -trajectories.rewards[1, :, :2])
    np.testing.assert_allclose(costs[1, :, 2], -trajectories.rewards[1, :, 2] + loss, rtol=1e-6)


def test_death_is_predicted() -> None:
    """Its cost is spread over the steps before it, and the return stays what it was."""
    trajectories = kill(sample(), [[T] * N, [3] * N])
    loss = trajectories.rewards[trajectories.alive].mean() * 9.0
    added = step_costs(trajectories, 0.9, 0.5) + trajectories.rewards
    np.testing.assert_allclose(added[1, :, :3], loss * np.tile(np.array([1.0, 2.0, 4.0]) / 7.0, (N, 1)), rtol=1e-6)
    np.testing.assert_allclose(added[0], 0.0, atol=1e-12)


def test_rewards_are_left_alone() -> None:
    trajectories = kill(sample(), [[T] * N, [3] * N])
    before = trajectories.rewards.copy()
    step_costs(trajectories, 0.9, 0.9)
    np.testing.assert_array_equal(trajectories.rewards, before)


def test_a_time_limit_costs_nothing() -> None:
    trajectories = kill(sample(), [[T] * N, [3] * N])
    truncated = change(trajectories, terminated=np.zeros_like(trajectories.terminated))
    np.testing.assert_array_equal(step_costs(truncated, 0.9, 0.9), -trajectories.rewards)


def settings_for_exact_fits(**kwargs: Any) -> CostSettings:
    return CostSettings(ridge=1e-12, **kwargs)


def test_cost_of_quadratic_rewards() -> None:
    trajectories = sample()
    dynamics = LinearGaussianDynamics(np.zeros((M, T, DX, DX + DU)), np.zeros((M, T, DX)), np.zeros((M, T, DX, DX)))
    cost = fit_local_cost(trajectories, np.array([T, 3]), 0.9, settings_for_exact_fits(), dynamics, NO_BOUNDS)
    np.testing.assert_allclose(cost.C[0], np.broadcast_to(np.diag([2.0, 0.6, 0.2]), (T, 3, 3)), atol=1e-4)
    np.testing.assert_allclose(cost.c[0], np.broadcast_to([-1.0, 0.0, 0.0], (T, 3)), atol=1e-4)
    z = np.concatenate([trajectories.states[0, 0, 0], trajectories.actions[0, 0, 0]])
    value = 0.5 * z @ cost.C[0, 0] @ z + cost.c[0, 0] @ z + cost.const[0, 0]
    assert value == pytest.approx(-trajectories.rewards[0, 0, 0], abs=1e-4)
    for array in (cost.C[1, 3:], cost.c[1, 3:], cost.const[1, 3:]):
        np.testing.assert_array_equal(array, 0.0)
    assert np.any(cost.C[1, 2] != 0.0)


def test_value_of_quadratic_values() -> None:
    """Cost-to-go of the state after each step; the dead say nothing, and nothing is planned behind the lengths."""
    trajectories = kill(sample(n_samples=30), [[T] * 29 + [2], [T] * 30])
    P, p, x = np.array([[2.0, 0.3], [0.3, 1.0]]), np.array([0.5, -1.0]), trajectories.states
    values = -(0.5 * np.einsum("mnti,ij,mntj->mnt", x, P, x) + x @ p + 4.0)
    values[0, 29, 3:] = np.nan
    fit = fit_local_value(trajectories, values, CostSettings(ridge=1e-9, local_window=0), np.array([T, 3]))
    for array, expected in ((fit.V, P), (fit.v, p), (fit.const, np.array(4.0))):
        for planned in (array[0], array[1, :3]):
            np.testing.assert_allclose(planned, np.broadcast_to(expected, planned.shape), atol=1e-4)
        assert not array[1, 3:].any()
    ended = change(trajectories, terminated=np.ones_like(trajectories.alive))  # no state is left
    nothing = fit_local_value(ended, values, CostSettings(), np.full(M, T))
    assert all(a.shape == b.shape and not a.any() for a, b in zip(vars(nothing).values(), vars(fit).values(), strict=True))


def test_cost_does_not_read_the_dead() -> None:
    """With rewards of zero mean a death costs nothing, and what stands behind it must not count."""
    trajectories = sample()
    dead = kill(trajectories, [[T] * N, [3] * N])
    shift = dead.rewards[dead.alive].mean()
    dead = change(dead, rewards=dead.rewards - shift)
    dynamics = LinearGaussianDynamics(np.zeros((M, T, DX, DX + DU)), np.zeros((M, T, DX)), np.zeros((M, T, DX, DX)))
    lengths = planned_lengths(dead, 2)
    cost = fit_local_cost(dead, lengths, 0.9, settings_for_exact_fits(), dynamics, NO_BOUNDS)
    np.testing.assert_allclose(cost.C[0], np.broadcast_to(np.diag([2.0, 0.6, 0.2]), (T, 3, 3)), atol=1e-4)


def test_known_cost() -> None:
    trajectories = sample()
    dynamics = LinearGaussianDynamics(
        np.broadcast_to(np.hstack([A, B]), (M, T, DX, DX + DU)).copy(), np.zeros((M, T, DX)), np.zeros((M, T, DX, DX))
    )

    def cost_fn(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return (next_obs**2).sum(-1) + 0.5 * (action**2).sum(-1)

    cost = fit_local_cost(trajectories, np.array([T, 3]), 0.9, CostSettings(cost_fn=cost_fn), dynamics, NO_BOUNDS)
    F = np.hstack([A, B])
    expected = 2.0 * F.T @ F + np.diag([0.0, 0.0, 1.0])
    np.testing.assert_allclose(cost.C[0], np.broadcast_to(expected, (T, 3, 3)), atol=1e-6)
    np.testing.assert_array_equal(cost.C[1, 3:], 0.0)


@pytest.mark.parametrize("n_samples", [1, N])
def test_known_cost_is_projected_and_keeps_its_slope_at_the_mean(n_samples: int) -> None:
    trajectories = sample(n_samples=n_samples)
    dynamics = LinearGaussianDynamics(np.zeros((M, T, DX, DX + DU)), np.zeros((M, T, DX)), np.zeros((M, T, DX, DX)))

    def cost_fn(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return (action**2).sum(-1) - (obs**2).sum(-1)

    cost = fit_local_cost(trajectories, np.full(M, T), 0.9, CostSettings(cost_fn=cost_fn), dynamics, NO_BOUNDS)
    assert np.linalg.eigvalsh(cost.C).min() >= -1e-9
    z = np.concatenate([trajectories.states[:, :, :-1], trajectories.actions], -1).mean(1)
    slope = (cost.C @ z[..., None])[..., 0] + cost.c
    np.testing.assert_allclose(slope, z * np.array([-2.0, -2.0, 2.0]), atol=1e-6)


def test_dynamics_and_costs_are_those_of_the_sampled_actions() -> None:
    """Of the same ones, those of which a plan is made: what lies beyond the bounds is clipped by the system."""
    trajectories = sample(n_samples=40)
    wild = 3.0 * trajectories.actions
    clipped = change(trajectories, actions=wild, rewards=reward(trajectories.states[:, :, :-1], wild))
    np.testing.assert_array_equal(transition_points(clipped)[..., DX : DX + DU], wild)
    dynamics = LinearGaussianDynamics(np.zeros((M, T, DX, DX + DU)), np.zeros((M, T, DX)), np.zeros((M, T, DX, DX)))
    cost = fit_local_cost(clipped, np.full(M, T), 1.0, CostSettings(ridge=1e-10), dynamics, NO_BOUNDS)
    np.testing.assert_allclose(cost.C, np.broadcast_to(np.diag([2.0, 0.6, 0.2]), cost.C.shape), atol=1e-4)


def test_total_cost_is_discounted() -> None:
    def controller(u: float) -> LinearGaussianController:
        return LinearGaussianController(np.zeros((1, 3, 1, 1)), np.full((1, 3, 1), u), np.full((1, 3, 1, 1), 0.01))

    dynamics = LinearGaussianDynamics(np.tile([[1.0, 0.0]], (1, 3, 1, 1)), np.zeros((1, 3, 1)), np.zeros((1, 3, 1, 1)))
    cost = QuadraticCost(np.zeros((1, 3, 2, 2)), np.tile([1.0, 1.0], (1, 3, 1)), np.zeros((1, 3)))
    initial = GaussianState(np.full((1, 1), 2.0), np.full((1, 1, 1), 1e-6))
    model = LocalModel(
        dynamics, cost, controller(0.0), initial, np.array([3]), StateUnits(np.full((1, 1), 5.0), np.full((1, 1), 0.1))
    )
    np.testing.assert_allclose(total_cost(model, controller(3.0), 0.5), [5.0 * 1.75])
    np.testing.assert_allclose(total_cost(model, controller(3.0), 1.0), [15.0])


def test_first_conditions() -> None:
    model = small_mdgps(replay=1)
    model.learn(2 * HORIZON * 4)
    trajectories = model.recall()
    local = model.fit_model(trajectories)
    assert len(local.lengths) == 4
    first = local.first(2)
    assert first.dynamics.F.shape[0] == first.cost.C.shape[0] == first.initial.mean.shape[0] == len(first.lengths) == 2
    np.testing.assert_array_equal(first.policy.K, local.policy.K[:2])
    np.testing.assert_array_equal(first.take(local.policy).k, local.policy.k[:2])
