"""AggreVaTeD-OC: its gradient, the expert's advantage, the safeguard, plans with learned values, windows of long episodes."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import Make, Model, logged, planned, small_aggrevated_oc
from dummy_envs import CONDITIONS, HORIZON, ITERATION, SAMPLES, PointMass, limited, parameter_sum, small_mdgps, vec_env
from problems import random_pd, well_conditioned
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dpi import AggreVaTeDOC
from sb3_dpi.aggrevated_oc.aggrevated_oc import CALIBRATION_MEMORY, SMALLEST_ERROR, Expert, PolicyModel, Samples
from sb3_dpi.common.critic import actor_parameters, trajectory_values
from sb3_dpi.common.local_models import LocalModel
from sb3_dpi.common.local_planning import solve_shortening
from sb3_dpi.common.natural_gradient import NaturalGradientStep
from sb3_dpi.common.trajectories import Trajectories, concatenate
from sb3_dpi.trajopt.kl_lqr import KLConstraintError
from sb3_dpi.trajopt.lqr import add_next_value, evaluate_controller, expected_cost, forward_marginals
from sb3_dpi.trajopt.types import (
    GaussianState,
    LinearGaussianController,
    LinearGaussianDynamics,
    QuadraticCost,
    QuadraticValue,
)


def flat_parameters(model: AggreVaTeDOC) -> th.Tensor:
    return th.cat([parameter.detach().reshape(-1).clone() for parameter in actor_parameters(model.policy)])


def last_samples(model: AggreVaTeDOC) -> list[Samples]:
    """Collect what the imitation steps of a model see from now on."""
    seen: list[Samples] = []
    original = model._samples
    model._samples = lambda *args: seen.append(original(*args)) or seen[-1]  # type: ignore[method-assign, func-returns-value]
    return seen


def experts_of(model: AggreVaTeDOC) -> list[tuple[PolicyModel, Expert]]:
    """Collect models and experts of a model from now on."""
    seen: list[tuple[PolicyModel, Expert]] = []
    original = model.improve_expert

    def improve_expert(fitted: PolicyModel, trajectories: Trajectories) -> Expert:
        seen.append((fitted, original(fitted, trajectories)))
        return seen[-1][1]

    model.improve_expert = improve_expert  # type: ignore[method-assign]
    return seen


def random_samples(n: int = 60, du: int = 2, seed: int = 0) -> tuple[AggreVaTeDOC, Samples]:
    """Any problem of two actions, and a policy whose actions these are."""

    class TwoActions(PointMass):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = type(self.action_space)(-1.0, 1.0, (du,), np.float32)

    rng = np.random.default_rng(seed)
    model = small_aggrevated_oc(TwoActions(), policy_kwargs={"net_arch": [5]})
    model._setup_learn(1)
    inputs = th.as_tensor(rng.normal(size=(n, 2)), dtype=th.float32)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * th.as_tensor(rng.normal(size=parameter.shape), dtype=th.float32))
        actions = model.policy.action_mean(inputs) + model.policy.log_std.exp() * th.as_tensor(rng.normal(size=(n, du)))
    quadratic = th.as_tensor(random_pd(rng, (n,), du) - 0.5 * np.eye(du), dtype=th.float32)
    linear = th.as_tensor(rng.normal(size=(n, du)), dtype=th.float32)
    advantages = th.as_tensor(rng.normal(size=n), dtype=th.float32)
    return model, Samples(inputs, actions.float(), quadratic, linear, advantages, np.repeat(np.arange(n // 5), 5))


def gradient(model: AggreVaTeDOC, samples: Samples) -> th.Tensor:
    parts = th.autograd.grad(model._objective(samples)(), actor_parameters(model.policy))
    return th.cat([part.reshape(-1) for part in parts])


def pin(model: AggreVaTeDOC, weight: float, trust: float) -> None:
    """Choose the control variate's weight and the trust instead of the calibration."""
    model._calibrate = lambda *args: (weight, trust)  # type: ignore[method-assign]


# ---------------------------------------------------------------------- the objective


def test_gradient_at_full_trust_against_finite_differences() -> None:
    """In double precision, of E_s E_{a ~ pi} A^eta(s, a) with the expectation taken over a grid of quadrature points."""
    model, samples = random_samples()
    model.safeguard = "off"
    ours = gradient(model, samples).double()
    policy = copy.deepcopy(model.policy).double()
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    grid = th.as_tensor(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    share = th.as_tensor(np.outer(weights, weights).ravel() / weights.sum() ** 2)
    inputs, Q, q = samples.inputs.double(), samples.quadratic.double(), samples.linear.double()

    def objective() -> float:
        with th.no_grad():
            actions = policy.action_mean(inputs)[:, None] + policy.log_std.exp() * grid
            cost = 0.5 * th.einsum("nku,nuv,nkv->nk", actions, Q, actions) + th.einsum("nu,nku->nk", q, actions)
            return -float((cost @ share).mean())

    expected = []
    for parameter in actor_parameters(policy):
        entries = parameter.data.reshape(-1)
        for i in range(len(entries)):
            value = float(entries[i])
            entries[i] = value + 1e-5
            above = objective()
            entries[i] = value - 1e-5
            expected.append((above - objective()) / 2e-5)
            entries[i] = value
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_objective_starts_at_zero_at_full_trust() -> None:
    model, samples = random_samples()
    model.safeguard = 1.0
    assert float(model._objective(samples)().detach()) == 0.0


def test_expectation_over_actions_against_monte_carlo() -> None:
    """The objective away from the old policy: the mean of A^eta over sampled actions, A^eta = V - Q with V = E_old Q."""
    model, samples = random_samples(n=5)
    model.safeguard = "off"
    objective = model._objective(samples)
    noise = th.as_tensor(np.random.default_rng(1).normal(size=(200_000, 1, 2)), dtype=th.float32)

    def cost_under_policy() -> th.Tensor:
        with th.no_grad():
            actions = model.policy.action_mean(samples.inputs) + model.policy.log_std.exp() * noise
            quadratic = 0.5 * th.einsum("knu,nuv,knv->kn", actions, samples.quadratic, actions)
            return (quadratic + (samples.linear * actions).sum(-1)).mean(0)

    before = cost_under_policy()
    with th.no_grad():
        for parameter in actor_parameters(model.policy):
            parameter.add_(0.2)
        value = float(objective())
    assert abs(value) > 0.05
    assert value == pytest.approx(float((before - cost_under_policy()).mean()), abs=0.01)


def test_without_trust_and_control_variate_it_is_the_plain_policy_gradient() -> None:
    model, samples = random_samples()
    pin(model, 0.0, 0.0)
    ours = gradient(model, samples)
    distribution = th.distributions.Normal(model.policy.action_mean(samples.inputs), model.policy.log_std.exp())
    centred = samples.advantages - samples.advantages.mean()
    plain = (distribution.log_prob(samples.actions).sum(1) * centred).mean()
    parts = th.autograd.grad(plain, actor_parameters(model.policy))
    np.testing.assert_allclose(ours, th.cat([part.reshape(-1) for part in parts]), rtol=1e-4, atol=1e-6)


def test_safeguard_of_zero_follows_gae_in_training() -> None:
    """The same of a whole iteration, with GAE from the trajectories themselves."""
    model = small_aggrevated_oc(safeguard=0.0, gae_lambda=1.0, gamma=0.9)
    seen, fitted = last_samples(model), experts_of(model)
    original = model._calibrate
    trusts = []
    model._calibrate = lambda *args: (0.0, trusts.append(original(*args)[1]) or trusts[-1])  # type: ignore
    model.learn(ITERATION)
    assert trusts == [0.0]
    trajectories = model.rollout_buffer.trajectories()
    # with lambda = 1: the discounted return to the cut, less the value of its first state
    discounts = 0.9 ** np.arange(HORIZON)
    returns = np.array([[(r * discounts).sum() for r in row] for row in trajectories.rewards])
    advantages = fitted[0][0].advantages[:, :, 0]
    rest = advantages - returns  # what the values say: small at the beginning, as the network is
    assert np.abs(rest).max() < 1.0 < np.abs(returns).max()
    np.testing.assert_allclose(seen[0].advantages, fitted[0][0].advantages[planned(model)], rtol=1e-5)
    np.testing.assert_allclose(seen[0].actions, trajectories.actions[planned(model)], rtol=1e-5)


def test_critic_replay_fits_what_is_kept_before_the_advantages() -> None:
    """The advantages are those of the fitted values, and change nothing but the units when there is nothing to fit."""
    model = small_aggrevated_oc(safeguard=0.0, critic_replay=True, replay=2, gae_lambda=0.0, learning_rate=0.0)
    model.learn(3 * ITERATION)

    def values() -> np.ndarray:
        parts = model.rollout_buffer.trajectories()
        return trajectory_values(model.policy, parts, model._policy_inputs, model.return_scale)

    before = values()
    kept, scale = concatenate(model.past), model.return_scale
    model._evaluate_policy(kept)
    assert scale != model.return_scale
    np.testing.assert_allclose(values(), before, rtol=1e-3, atol=1e-3)  # other units, the same values
    model.policy.optimizer.param_groups[0]["lr"] = 1e-2
    advantages = model._evaluate_policy(kept)
    latest, now = kept.first(model.n_conditions), values()
    assert np.abs(now - before).max() > 0.01
    error = latest.rewards + model.gamma * now[..., 1:] * ~latest.terminated - now[..., :-1]
    np.testing.assert_allclose(advantages[latest.alive], error[latest.alive], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- imitation of the kept iterations


def test_aggregate_imitates_the_kept_iterations_too() -> None:
    """They are planned for again, with the policy of now; their advantages by GAE are not used."""
    model = small_aggrevated_oc(aggregate=True, replay=2)
    model.learn(2 * ITERATION)
    experts, seen = experts_of(model), last_samples(model)
    model.learn(ITERATION, reset_num_timesteps=False)
    (fitted, expert), samples = experts[0], seen[0]
    assert len(fitted.local.lengths) == len(expert.lengths) == 3 * CONDITIONS
    assert fitted.advantages.shape == (CONDITIONS, SAMPLES, HORIZON)
    assert len(samples.actions) > 2 * ITERATION >= 2 * len(samples.advantages) == 2 * len(samples.trajectory)
    latest = model.rollout_buffer.trajectories()
    np.testing.assert_allclose(samples.actions[: len(samples.advantages)], latest.actions[planned(model)], rtol=1e-5)


def test_aggregate_without_kept_iterations_changes_nothing() -> None:
    assert parameter_sum(small_aggrevated_oc(aggregate=True).learn(3 * ITERATION)) == parameter_sum(
        small_aggrevated_oc().learn(3 * ITERATION)
    )


def test_gradient_of_kept_samples_is_the_experts_as_far_as_it_is_trusted() -> None:
    """The objective is linear in the trust, and without trust the kept samples add nothing."""
    model, samples = random_samples()
    n = len(samples.advantages) // 2
    few = replace(samples, advantages=samples.advantages[:n], trajectory=samples.trajectory[:n])
    alone = Samples(
        few.inputs[:n], few.actions[:n], few.quadratic[:n], few.linear[:n], few.advantages, few.trajectory
    )  # what a model without ``aggregate`` sees
    found = {}
    for trust in (0.0, 0.5, 1.0):
        pin(model, 0.7, trust)
        found[trust] = gradient(model, few)
    np.testing.assert_allclose(found[0.5], 0.5 * (found[0.0] + found[1.0]), rtol=1e-4, atol=1e-6)
    pin(model, 0.7, 0.0)
    np.testing.assert_allclose(found[0.0], gradient(model, alone), rtol=1e-4, atol=1e-6)
    pin(model, 0.7, 1.0)
    np.testing.assert_allclose(found[1.0], gradient(model, samples), rtol=1e-4, atol=1e-6)


def test_aggregate_goes_on_after_loading(tmp_path: Path) -> None:
    """The dual variables of all planned conditions, and the iterations they belong to, are in the file."""
    model = small_aggrevated_oc(aggregate=True, replay=2).learn(3 * ITERATION)
    assert model.eta is not None and len(model.eta) == 3 * CONDITIONS
    model.save(tmp_path / "model")
    loaded = AggreVaTeDOC.load(tmp_path / "model", PointMass())
    np.testing.assert_array_equal(loaded.eta, model.eta)
    assert loaded.aggregate and len(loaded.past) == len(model.past)
    for one in (model, loaded):
        one.set_random_seed(3)
        one.learn(ITERATION, reset_num_timesteps=False)
    assert np.isfinite(parameter_sum(loaded)) and loaded.n_iterations == 4
    for n_conditions in (CONDITIONS + 1, CONDITIONS + 2):
        others = AggreVaTeDOC.load(tmp_path / "model", PointMass(), n_conditions=n_conditions)
        others.learn(1, reset_num_timesteps=False)
        assert others.eta is not None and len(others.eta) == n_conditions, "what is kept of other conditions is let go"


# ---------------------------------------------------------------------- the control variate


def test_control_variate_leaves_the_gradient_unbiased() -> None:
    """On many actions of the same states, whatever its weight; and it takes variance away where it tells the truth."""
    model, few = random_samples(n=4)
    n, rng = 40_000, np.random.default_rng(2)
    repeat: Any = lambda tensor: tensor.repeat(n // 4, *[1] * (tensor.ndim - 1))  # noqa: E731
    inputs, quadratic, linear = repeat(few.inputs), repeat(few.quadratic), repeat(few.linear)
    with th.no_grad():
        noise = th.as_tensor(rng.normal(size=(n, 2)), dtype=th.float32)
        actions = model.policy.action_mean(inputs) + model.policy.log_std.exp() * noise
        truth = -(0.5 * th.einsum("nu,nuv,nv->n", actions, quadratic, actions) + (linear * actions).sum(1))
        truth = truth - repeat(truth.view(-1, 4).mean(0))
    advantages = truth + 0.5 * th.as_tensor(rng.normal(size=n), dtype=th.float32)
    samples = Samples(inputs, actions, quadratic, linear, advantages, np.arange(n) // 4)
    gradients = {}
    for weight, trust in [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.7, 0.3), (0.0, 1.0)]:
        pin(model, weight, trust)
        gradients[weight, trust] = gradient(model, samples).numpy()
    exact = gradients.pop((0.0, 1.0))
    errors = {key: float(np.abs(value - exact).max()) for key, value in gradients.items()}
    assert np.abs(exact).max() > 0.2
    assert max(errors.values()) < 0.1 * np.abs(exact).max()
    assert errors[1.0, 0.0] < errors[0.0, 0.0]


# ---------------------------------------------------------------------- the expert


def local_problem(seed: int = 0, horizon: int = 6) -> LocalModel:
    problem = well_conditioned(np.random.default_rng(seed), (2,), horizon=horizon, dx=2, du=1)
    return LocalModel(problem.dynamics, problem.cost, problem.reference, problem.initial, np.full(2, horizon))


def no_value(model: LocalModel) -> QuadraticValue:
    shape = model.dynamics.f.shape
    return QuadraticValue(np.zeros((*shape, shape[-1])), np.zeros(shape), np.zeros(shape[:-1]))


def random_value(model: LocalModel, seed: int = 7) -> QuadraticValue:
    rng, shape = np.random.default_rng(seed), model.dynamics.f.shape
    return QuadraticValue(random_pd(rng, shape[:-1], shape[-1]), rng.normal(size=shape), rng.normal(size=shape[:-1]))


def solved(local: LocalModel, value: QuadraticValue, **options: Any) -> tuple[AggreVaTeDOC, Expert]:
    horizon = local.cost.const.shape[1]
    model = small_aggrevated_oc(horizon=horizon, **options)
    model._setup_learn(1)
    nothing: Any = None
    return model, model.improve_expert(PolicyModel(local, value, np.zeros((2, 2, horizon))), nothing)


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
    samples = model._samples(expert, trajectories)
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
    assert 0.9 * 0.2 <= logged(model, "trajopt/kl") <= 0.2001
    assert logged(model, "trajopt/cost_local") == pytest.approx(costs[0].mean())
    assert logged(model, "trajopt/cost_linearized") == pytest.approx(costs[1].mean())
    assert model.eta is not None and logged(model, "trajopt/eta") == pytest.approx(model.eta.mean())


def test_no_trust_region_leaves_the_policy_as_the_expert() -> None:
    model = small_aggrevated_oc(trust_region=0.0)
    seen = experts_of(model)
    model.learn(2 * ITERATION)
    for fitted, expert in seen:
        assert expert.controller is fitted.local.policy
    assert model.eta is None and "trajopt/kl" not in model.logger.name_to_value
    assert logged(model, "trajopt/cost_local") == logged(model, "trajopt/cost_linearized")


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
    )


@pytest.mark.parametrize("rate", [5.0, 10.0, 50.0, 1e6])
def test_plans_that_explode_are_shortened(rate: float) -> None:
    with np.errstate(all="ignore"):
        model, solution = solve_shortening(explosive(rate), 0.3, None, 0.99)
    assert np.all(model.lengths >= 6) and np.all(model.lengths < 200)
    kl = solution.kl.sum(-1) / model.lengths
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
    both = LocalModel(dynamics, wild.cost, wild.policy, wild.initial, wild.lengths)
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
        model, expert = solved(local, values, plan_lambda=1.0, gamma=0.9, trust_region=0.3)
    end = int(expert.lengths[0]) - 1
    assert 6 <= end + 1 < 200 and logged(model, "trajopt/planned_steps") == expert.lengths.mean()
    F = local.dynamics.F[0, 0]
    np.testing.assert_allclose(expert.action_value.C[0, end], np.eye(3) + 0.9 * 3.0 * F.T @ F, rtol=1e-8, atol=1e-8)
    assert np.all(np.isfinite(expert.action_value.C[:, :end]))
    assert np.isfinite(logged(model, "trajopt/cost_local")) and np.isfinite(logged(model, "trajopt/cost_linearized"))
    assert expert.advantages.shape == (2, 2, 200)


# ---------------------------------------------------------------------- the step


def test_kl_of_the_step_is_within_its_bound() -> None:
    """Measured on the policies themselves; and the step uses it."""
    model = small_aggrevated_oc(target_kl=0.03, samples_per_condition=4)
    imitate, divergences = model.imitate, []

    def measured(expert: Expert, trajectories: Trajectories) -> None:
        inputs = th.as_tensor(model._inputs_at(trajectories, planned(model)))

        def policy() -> th.distributions.Normal:
            with th.no_grad():
                return th.distributions.Normal(model.policy.action_mean(inputs), model.policy.log_std.exp().clone())

        old = policy()
        imitate(expert, trajectories)
        divergences.append(float(th.distributions.kl_divergence(old, policy()).sum(1).mean()))
        assert logged(model, "train/kl_divergence_loss") == pytest.approx(divergences[-1], rel=1e-2)

    model.imitate = measured  # type: ignore[method-assign]
    model.learn(8 * 80)
    assert len(divergences) == 8
    assert max(divergences) <= 0.03 * 1.001
    assert max(divergences) > 0.5 * 0.03


def test_a_failed_line_search_changes_no_bit() -> None:
    model = small_aggrevated_oc(line_search_max_iter=1)
    model.learn(2 * ITERATION)
    divergence = model._divergence
    model._divergence = lambda samples: lambda: 1e3 * divergence(samples)() + 1.0  # type: ignore[method-assign]
    before = flat_parameters(model)
    imitated: list[th.Tensor] = []
    imitate = model.imitate

    def watched(expert: Expert, trajectories: Trajectories) -> None:
        imitated.append(flat_parameters(model))  # the standardisation of the inputs has moved them by now
        imitate(expert, trajectories)

    model.imitate = watched  # type: ignore[method-assign]
    model.learn(ITERATION, reset_num_timesteps=False)
    assert logged(model, "train/is_line_search_success") == 0.0
    assert logged(model, "train/kl_divergence_loss") == logged(model, "train/policy_objective") == 0.0
    assert before.shape == imitated[0].shape and th.equal(flat_parameters(model), imitated[0])


def test_smallest_standard_deviation_ends_the_step() -> None:
    options: dict[str, Any] = {"min_std": 0.49, "target_kl": 1.0}
    model = small_aggrevated_oc(**options).learn(6 * ITERATION)
    assert float(model.policy.log_std.detach().exp()) >= 0.49 * (1.0 - 1e-6)
    free = small_aggrevated_oc(min_std=0.0, target_kl=1.0).learn(6 * ITERATION)
    assert float(free.policy.log_std.detach().exp()) < 0.49


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_schedules_may_end_at_zero() -> None:
    options: dict[str, Any] = {
        "learning_rate": LinearSchedule(1e-2, 0.0, 1.0),
        "trust_region": LinearSchedule(0.3, 0.0, 1.0),
        "target_kl": LinearSchedule(0.1, 0.0, 1.0),
        "min_std": LinearSchedule(0.3, 0.0, 1.0),
    }
    model = small_aggrevated_oc(**options).learn(2 * ITERATION)
    assert logged(model, "train/learning_rate") == 0.0 and logged(model, "train/kl_divergence_loss") == 0.0
    assert "trajopt/kl" not in model.logger.name_to_value, "a trust region of nothing leaves nothing to plan"
    assert np.isfinite(parameter_sum(model))


def test_schedules() -> None:
    steps: list[float] = []

    class Reader(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.n_calls:
                assert isinstance(self.model, AggreVaTeDOC)
                steps.append(logged(self.model, "trajopt/kl"))

    model = small_aggrevated_oc(trust_region=lambda progress: 0.1 + 0.4 * progress, target_kl=lambda p: 0.01 + 0.1 * p)
    model.learn(2 * ITERATION, callback=Reader())
    assert 0.27 <= steps[0] <= 0.3001 and 0.09 <= logged(model, "trajopt/kl") <= 0.1001
    assert logged(model, "train/kl_divergence_loss") <= 0.01001


# ---------------------------------------------------------------------- calibration


def calibrated(**options: Any) -> AggreVaTeDOC:
    model = small_aggrevated_oc(**options)
    model._setup_learn(1)
    return model


TRAJECTORY = np.repeat(np.arange(20), 30)


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=len(TRAJECTORY))


def test_what_is_foretold_exactly_is_trusted() -> None:
    model = calibrated()
    weight, trust = model._calibrate(numbers(0), numbers(0), TRAJECTORY)
    assert weight == trust == pytest.approx(1.0)
    assert logged(model, "trajopt/calibration") == pytest.approx(1.0)
    assert logged(model, "trajopt/calibration_error") == pytest.approx(0.0, abs=1e-9)
    assert logged(model, "trajopt/trust") == trust


def test_noise_on_what_is_foretold_does_not_take_the_trust() -> None:
    """Single samples are noisy; the slope is not their correlation."""
    model = calibrated()
    real = numbers(0) + 3.0 * numbers(1)
    weight, trust = model._calibrate(real, numbers(0), TRAJECTORY)
    assert np.corrcoef(real, numbers(0))[0, 1] < 0.4 and trust > 0.7 and weight == trust


def test_what_has_nothing_to_do_with_the_samples_is_not_trusted() -> None:
    model = calibrated()
    trusts = [model._calibrate(numbers(i), numbers(100 + i), TRAJECTORY)[1] for i in range(5)]
    assert trusts[0] < 0.15 and trusts[-1] < 0.05
    assert model._calibrate(-numbers(9), numbers(9), TRAJECTORY) == (0.0, 0.0), "the opposite least of all"


def test_too_large_advantages_are_scaled_down() -> None:
    model = calibrated()
    for i in range(3):
        trust = model._calibrate(numbers(i) + 0.1 * numbers(50 + i), 4.0 * numbers(i), TRAJECTORY)[1]
    assert trust == pytest.approx(0.25, abs=0.01)


def test_error_is_that_of_independent_trajectories() -> None:
    """Noise that all steps of a trajectory share counts once for each: the error tells how slopes really spread."""
    model, slopes, errors = calibrated(), [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        foretold = np.repeat(rng.normal(size=20), 30) + 0.1 * rng.normal(size=600)
        real = foretold + np.repeat(rng.normal(size=20), 30)
        model.calibration = (1.0, 0.0)
        model._calibrate(real, foretold, TRAJECTORY)
        slopes.append(logged(model, "trajopt/calibration"))
        errors.append(logged(model, "trajopt/calibration_error"))
    assert np.mean(slopes) == pytest.approx(1.0, abs=0.05)
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.25)


@pytest.mark.parametrize("huge", [1e30, np.inf, np.nan])
def test_what_explodes_is_not_trusted(huge: float) -> None:
    model = calibrated()
    foretold = np.float32(huge) * numbers(1).astype(np.float32)
    weight, trust = model._calibrate(numbers(0), foretold, TRAJECTORY)
    assert trust == pytest.approx(0.0, abs=1e-20) and weight == pytest.approx(0.0, abs=1e-20)
    assert logged(model, "trajopt/trust") == trust, "the gate is logged"
    assert np.all(np.isfinite(model.calibration))
    # and is forgotten: its evidence is bounded, however small the error of its slope
    for i in range(10):
        trust = model._calibrate(numbers(i) + 0.1 * numbers(50 + i), numbers(i), TRAJECTORY)[1]
    assert trust > 0.95


def test_nothing_foretold_is_no_evidence() -> None:
    model = calibrated()
    model.calibration = (0.8, 100.0)
    model._calibrate(numbers(0), 0.0 * numbers(0), TRAJECTORY)
    mean, precision = model.calibration
    assert mean == pytest.approx(0.8) and precision <= 100.0


def test_a_single_trajectory_is_no_evidence() -> None:
    model = calibrated()
    weight, _ = model._calibrate(numbers(0), numbers(1), np.zeros(len(TRAJECTORY), int))
    assert weight == pytest.approx(1.0)
    model._calibrate(numbers(0) + 0.1 * numbers(2), numbers(0), TRAJECTORY)
    assert model.calibration[0] == pytest.approx(1.0, abs=0.1)


def test_memory_of_the_calibration() -> None:
    """Earlier evidence counts less with every iteration, and never more than its bound."""
    model = calibrated()
    model._calibrate(numbers(0) + numbers(1), numbers(0), TRAJECTORY)
    slope, error = (logged(model, f"trajopt/{name}") for name in ("calibration", "calibration_error"))
    assert model.calibration == pytest.approx((slope, error**-2))
    model.calibration = (0.5, 200.0)
    model._calibrate(numbers(2) + numbers(3), numbers(2), TRAJECTORY)
    slope, error = (logged(model, f"trajopt/{name}") for name in ("calibration", "calibration_error"))
    kept = CALIBRATION_MEMORY * 200.0
    assert model.calibration == pytest.approx(((kept * 0.5 + slope / error**2) / (kept + error**-2), kept + error**-2))
    model.calibration = (0.0, 1e12)
    model._calibrate(numbers(4) + numbers(5), numbers(4), TRAJECTORY)
    kept = CALIBRATION_MEMORY * SMALLEST_ERROR**-2
    assert model.calibration[1] == pytest.approx(kept + logged(model, "trajopt/calibration_error") ** -2)


@pytest.mark.parametrize("safeguard, trust", [("off", 1.0), (0, 0.0), (0.3, 0.3), (1.0, 1.0)])
def test_safeguards_of_a_fixed_trust(safeguard: Any, trust: float) -> None:
    model = small_aggrevated_oc(safeguard=safeguard).learn(2 * ITERATION)
    assert logged(model, "trajopt/trust") == trust
    assert logged(model, "trajopt/calibration_error") > 0.0, "the calibration goes on beside it"


@pytest.mark.parametrize("huge", [1e30, 1e60, np.inf, np.nan])
@pytest.mark.parametrize("safeguard", ["calibration", 0.0])
def test_advantages_that_explode_leave_the_plain_gradient(huge: float, safeguard: Any) -> None:
    """What the model says must neither stop the step nor spoil it."""
    model = small_aggrevated_oc(samples_per_condition=4, safeguard=safeguard)
    evaluate = model.improve_expert

    def exploded(fitted: PolicyModel, trajectories: Trajectories) -> Expert:
        expert = evaluate(fitted, trajectories)
        rng = np.random.default_rng(0)
        expert.action_value.c[:] = huge * rng.normal(size=expert.action_value.c.shape)
        return expert

    model.improve_expert = exploded  # type: ignore[method-assign]
    for _ in range(3):
        before = flat_parameters(model)
        model.learn(1, reset_num_timesteps=False)
        assert logged(model, "trajopt/trust") < 1e-10
        assert logged(model, "train/is_line_search_success") == 1.0
        assert th.isfinite(flat_parameters(model)).all() and not th.equal(flat_parameters(model), before)


# ---------------------------------------------------------------------- windows of episodes that go on


def recorded(**options: Any) -> tuple[AggreVaTeDOC, list[Trajectories]]:
    """A model and the trajectories of its iterations."""
    model = small_aggrevated_oc(**{"conditions": "continue", **options})
    seen: list[Trajectories] = []
    train = model.train

    def watched() -> None:
        seen.append(model.rollout_buffer.trajectories())
        train()

    model.train = watched  # type: ignore[method-assign]
    return model, seen


def by_environment(trajectories: Trajectories, array: np.ndarray, n_envs: int) -> np.ndarray:
    """Trajectories in the order in which their environments took them, ``[n_batches, n_envs, ...]``."""
    flat = np.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])
    return flat.reshape(-1, n_envs, *flat.shape[1:])


@pytest.mark.parametrize("n_envs", [1, 2])
def test_trajectories_follow_each_other(n_envs: int) -> None:
    env = vec_env(n_envs)
    model, seen = recorded(env=env)
    model.learn(3 * ITERATION)
    windows = np.concatenate([by_environment(part, np.asarray(part.observations), n_envs) for part in seen])
    assert len(windows) == 3 * CONDITIONS * SAMPLES // n_envs
    np.testing.assert_array_equal(windows[1:, :, 0], windows[:-1, :, -1])
    for inner in env.get_attr("unwrapped"):
        assert len([seed for seed in inner.seeds if seed is not None and seed >= 2**16]) == 1, "one reset, at the beginning"
        assert inner.t == inner.n_steps == 3 * ITERATION // n_envs
    assert len({tuple(window[0]) for window in windows[0]}) == n_envs


def test_trajectories_follow_each_other_under_vec_normalize() -> None:
    model, seen = recorded(env=VecNormalize(vec_env(2)))
    model.learn(3 * ITERATION)
    windows = np.concatenate([by_environment(part, part.states, 2) for part in seen])
    np.testing.assert_allclose(windows[1:, :, 0], windows[:-1, :, -1], atol=1e-6)


def test_episodes_that_end_start_anew() -> None:
    """A death ends the window, and the next one begins where the environment was reset to."""
    env = PointMass(death=(13, 27))
    model, seen = recorded(env=env, samples_per_condition=8)
    model.learn(480)
    states = np.concatenate([by_environment(part, part.states, 1)[:, 0] for part in seen])
    alive = np.concatenate([by_environment(part, part.alive, 1)[:, 0] for part in seen])
    died = np.concatenate([by_environment(part, part.terminated, 1)[:, 0] for part in seen])
    assert died.sum() >= 10 and not alive.all()
    lengths = alive.sum(-1)
    for i in range(len(states) - 1):
        end, beginning = states[i, lengths[i]], states[i + 1, 0]
        if died[i].any():
            assert np.all(np.abs(beginning) <= 1.0) and not np.allclose(beginning, end)
        else:
            assert lengths[i] == HORIZON
            np.testing.assert_array_equal(beginning, end)
    assert np.all(died.sum(-1) <= 1) and model.num_timesteps == env.n_steps


def test_one_environment_may_end_while_others_go_on() -> None:
    makers = iter([PointMass(death=(4, 5)), PointMass()])
    model, seen = recorded(env=vec_env(2, lambda: next(makers)), samples_per_condition=4)
    model.learn(2 * model.n_steps * 2)
    windows = np.concatenate([by_environment(part, part.states, 2) for part in seen])
    alive = np.concatenate([by_environment(part, part.alive, 2) for part in seen])
    np.testing.assert_array_equal(windows[1:, 1, 0], windows[:-1, 1, -1])
    assert alive[:, 1].all()
    # episodes of 4 steps within windows of 10: the third begins in the first window and goes on in the second
    np.testing.assert_array_equal(alive[:, 0].sum(-1)[:4], [4, 2, 4, 2])
    assert np.isfinite(parameter_sum(model))


@pytest.mark.parametrize("n_envs", [1, 2])
def test_episodes_that_go_on_are_reported_once(n_envs: int) -> None:
    """Windows are no episodes: what Monitor reports is all that is reported."""
    model, _ = recorded(env=vec_env(n_envs, lambda: Monitor(limited(25))), samples_per_condition=6)
    model.learn(4 * model.n_steps * n_envs)
    reported = [(info["r"], info["l"]) for info in model.ep_info_buffer or []]
    assert len(reported) == model.num_timesteps // n_envs // 25 * n_envs
    assert {length for _, length in reported} == {25}
    assert model.env is not None
    expected = [total for returns in model.env.env_method("get_episode_rewards") for total in returns]
    assert sorted(total for total, _ in reported) == pytest.approx(sorted(expected), abs=1e-5)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_mixed_windows_go_on_or_begin_anew(n_envs: int) -> None:
    """Half of them, all environments at once; whatever begins anew has a seed of its own."""
    env = vec_env(n_envs, lambda: PointMass(death=(13, 40)))
    model, seen = recorded(env=env, conditions="mixed", samples_per_condition=40)
    model.learn(3 * model.n_steps * n_envs)
    states = np.concatenate([by_environment(part, part.states, n_envs) for part in seen])
    alive = np.concatenate([by_environment(part, part.alive, n_envs) for part in seen])
    goes_on = []
    for i in range(len(states) - 1):
        cut = alive[i].all(-1) & ~np.concatenate([by_environment(part, part.terminated, n_envs) for part in seen])[i].any(-1)
        if cut.all():
            follows = [np.array_equal(states[i + 1, e, 0], states[i, e, -1]) for e in range(n_envs)]
            assert all(follows) or not any(follows)
            goes_on.append(follows[0])
    assert len(goes_on) > 50 and 0.3 < np.mean(goes_on) < 0.7
    seeds = [seed for inner in env.get_attr("unwrapped") for seed in inner.seeds if seed is not None and seed >= 2**16]
    assert len(seeds) == len(set(seeds)) > 50


def test_mixed_windows_report_every_episode_once() -> None:
    """Those that end by Monitor, those that are left when a window is cut by what was sampled of them."""
    model, _ = recorded(env=vec_env(1, lambda: Monitor(limited(25))), conditions="mixed", samples_per_condition=20)
    model.learn(2 * model.n_steps)
    lengths = [info["l"] for info in model.ep_info_buffer or []]
    assert set(lengths) == {10, 20, 25}
    returns, running = model._cut_episodes[:, 0]
    assert sum(lengths) + running == model.num_timesteps
    assert model.env is not None
    assert running == 0.0 or returns == pytest.approx(sum(model.env.get_attr("rewards")[0]), abs=1e-5)


def test_learning_goes_on_after_loading_windows(tmp_path: Path) -> None:
    model, _ = recorded(replay=1)
    model.learn(2 * ITERATION)
    del model.train
    model.save(tmp_path / "model")
    env = PointMass()
    loaded = AggreVaTeDOC.load(tmp_path / "model", env=env)
    assert loaded.conditions == "continue"
    loaded.learn(2 * ITERATION, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded.n_iterations) == (4 * ITERATION, 4)
    assert env.t == env.n_steps == 2 * ITERATION, "one episode"
    loaded.learn(ITERATION, reset_num_timesteps=False)
    assert env.t == ITERATION, "learning anew begins anew"


def test_windows_after_a_stop_begin_anew() -> None:
    """A callback may stop inside of a window; the next call to learn does not go on in its middle."""
    env = PointMass()
    model, seen = recorded(env=env)
    model.learn(ITERATION, callback=lambda variables, _: variables["self"].num_timesteps < 17)
    assert model.n_iterations == 0
    model.learn(ITERATION, reset_num_timesteps=False)
    assert model.n_iterations == 1 and env.t == ITERATION
    assert seen[0].alive.all()


# ---------------------------------------------------------------------- what was learned survives


@pytest.mark.parametrize("conditions", ["fresh", "continue"])
def test_everything_learned_survives(tmp_path: Path, conditions: str) -> None:
    model = small_aggrevated_oc(replay=2, conditions=conditions).learn(3 * ITERATION)
    model.save(tmp_path / "model")
    loaded = AggreVaTeDOC.load(tmp_path / "model", env=PointMass())
    assert parameter_sum(loaded) == parameter_sum(model)
    assert model.eta is not None and np.all(model.eta > 0.0)
    np.testing.assert_array_equal(loaded.eta, model.eta)
    assert tuple(loaded.calibration) == tuple(model.calibration) != (1.0, 0.0)
    assert loaded.return_scale == model.return_scale and model.return_scale.mean < 0.0
    assert (loaded.n_iterations, len(loaded.past)) == (3, 2)
    for ours, theirs in zip(loaded.past, model.past, strict=True):
        np.testing.assert_array_equal(ours.states, theirs.states)
    ours, theirs = (one.policy.optimizer.state_dict()["state"] for one in (loaded, model))
    assert len(theirs) > 0 and all(th.equal(ours[i]["exp_avg"], theirs[i]["exp_avg"]) for i in theirs)
    observations = th.as_tensor(np.random.default_rng(0).normal(size=(20, 2)), dtype=th.float32)
    assert th.equal(loaded.policy.predict_values(observations), model.policy.predict_values(observations))


def test_memory_does_not_grow() -> None:
    model = small_aggrevated_oc(replay=2).learn(3 * ITERATION)

    def size() -> int:
        return sum(part.states.nbytes + part.actions.nbytes for part in model.past)

    after_three = size()
    model.learn(6 * ITERATION, reset_num_timesteps=False)
    assert size() == after_three > 0


# ---------------------------------------------------------------------- tasks


def improvement(seed: int, iterations: int, limit: int = 20, make: Make = small_aggrevated_oc, **options: Any) -> float:
    """Of the mean return on the point mass, about -22 before learning and -5 with the best regulator."""

    def evaluated(model: Model) -> float:
        env = vec_env(1, lambda: Monitor(limited(20)))
        env.seed(5)
        mean, _ = evaluate_policy(model, env, 20)
        assert isinstance(mean, float)
        return mean

    task: dict[str, Any] = {"horizon": 20, "n_conditions": 1, "samples_per_condition": 20, "conditions": "random"}
    critic = {"n_critic_updates": 10} if make is small_aggrevated_oc else {}
    model = make(limited(limit), seed=seed, **{**task, **critic, **options})
    before = evaluated(model)
    return evaluated(model.learn(iterations * model.n_steps)) - before


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_a_double_integrator(seed: int) -> None:
    assert improvement(seed, 6, target_kl=0.1) > 10.0


@pytest.mark.parametrize("seed", [0, 1])
def test_without_a_trust_region_it_learns_as_well(seed: int) -> None:
    """alpha = 0: the natural gradient of the policy's own advantage under the model."""
    assert improvement(seed, 6, trust_region=0.0, target_kl=0.1) > 10.0


def test_without_a_trust_region_mirror_descent_stands_still() -> None:
    """It clones an expert that is the policy; the natural gradient of the advantage is what AggreVaTeD-OC has left."""
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "imitation_steps": 100}
    assert improvement(0, 6, make=small_mdgps, kl_step=1.0, **options) > 10.0
    assert abs(improvement(0, 6, make=small_mdgps, kl_step=0.0, **options)) < 2.0


def test_without_the_model_it_is_a_natural_policy_gradient() -> None:
    """One seed of six is late, which of them depends on the processor's rounding."""
    options: dict[str, Any] = {"gamma": 0.95, "gae_lambda": 0.95, "learning_rate": 3e-3}
    gains = [improvement(seed, 10, safeguard=0.0, target_kl=0.05, **options) for seed in range(3)]
    assert np.mean(gains) > 10.0


def test_it_learns_in_windows() -> None:
    """One seed of six explores the wrong way."""
    assert np.mean([improvement(seed, 15, horizon=10, conditions="continue", target_kl=0.1) for seed in (1, 2, 3)]) > 8.0


def test_known_cost_is_used() -> None:
    """The planner must read ``cost_fn`` and not the rewards: it says the opposite of them here."""

    def push_right(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return -10.0 * next_obs[:, 1] + 0.5 * (action**2).sum(-1)

    model = small_aggrevated_oc(cost_fn=push_right, plan_lambda=1.0, safeguard="off", target_kl=0.3)
    model.learn(8 * ITERATION)
    actions, _ = model.predict(np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2)).astype(np.float32), deterministic=True)
    assert actions.mean() > 0.3


def test_deaths_in_the_first_step() -> None:
    """No state behind a step is left to learn a value of."""
    model = small_aggrevated_oc(PointMass(death=(1, 2))).learn(3 * 4)
    assert model.n_iterations == 3 and np.isfinite(parameter_sum(model))


def test_outcome_of_a_step_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = NaturalGradientStep(True, 0.012, 0.34, 0.4, 1)
    monkeypatch.setattr("sb3_dpi.aggrevated_oc.aggrevated_oc.natural_gradient_step", lambda *args: outcome)
    model = small_aggrevated_oc().learn(1)
    keys = ("train/kl_divergence_loss", "train/policy_objective", "train/is_line_search_success")
    assert [logged(model, key) for key in keys] == [0.012, 0.34, 1.0]
