"""The objective of AggreVaTeD-OC's imitation step: its gradient, the trust in the expert, the control variate."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import small_aggrevated_oc
from dummy_envs import PointMass
from problems import random_pd

from sb3_dpi import AggreVaTeDOC
from sb3_dpi.aggrevated_oc.surrogate import Samples, Surrogate
from sb3_dpi.common.critic import actor_parameters


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


def gradient(model: AggreVaTeDOC, samples: Samples, weight: float, trust: float) -> th.Tensor:
    objective = Surrogate(model.policy, samples).objective(weight, trust)
    return th.cat([part.reshape(-1) for part in th.autograd.grad(objective(), actor_parameters(model.policy))])


def test_gradient_at_full_trust_against_finite_differences() -> None:
    """In double precision, of E_s E_{a ~ pi} A^eta(s, a) with the expectation taken over a grid of quadrature points."""
    model, samples = random_samples()
    ours = gradient(model, samples, 1.0, 1.0).double()
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
    assert float(Surrogate(model.policy, samples).objective(1.0, 1.0)().detach()) == 0.0


def test_expectation_over_actions_against_monte_carlo() -> None:
    """The objective away from the old policy: the mean of A^eta over sampled actions, A^eta = V - Q with V = E_old Q."""
    model, samples = random_samples(n=5)
    objective = Surrogate(model.policy, samples).objective(1.0, 1.0)
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
    ours = gradient(model, samples, 0.0, 0.0)
    distribution = th.distributions.Normal(model.policy.action_mean(samples.inputs), model.policy.log_std.exp())
    centred = samples.advantages - samples.advantages.mean()
    plain = (distribution.log_prob(samples.actions).sum(1) * centred).mean()
    parts = th.autograd.grad(plain, actor_parameters(model.policy))
    np.testing.assert_allclose(ours, th.cat([part.reshape(-1) for part in parts]), rtol=1e-4, atol=1e-6)


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
        found[trust] = gradient(model, few, 0.7, trust)
    np.testing.assert_allclose(found[0.5], 0.5 * (found[0.0] + found[1.0]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[0.0], gradient(model, alone, 0.7, 0.0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1.0], gradient(model, samples, 0.7, 1.0), rtol=1e-4, atol=1e-6)


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
        gradients[weight, trust] = gradient(model, samples, weight, trust).numpy()
    exact = gradients.pop((0.0, 1.0))
    errors = {key: float(np.abs(value - exact).max()) for key, value in gradients.items()}
    assert np.abs(exact).max() > 0.2
    assert max(errors.values()) < 0.1 * np.abs(exact).max()
    assert errors[1.0, 0.0] < errors[0.0, 0.0]


# ---------------------------------------------------------------------- the limit of a fixed expert


def score_gradient(model: AggreVaTeDOC, inputs: th.Tensor, actions: np.ndarray, advantages: np.ndarray) -> np.ndarray:
    """
    The gradient of AggreVaTeD (Sun et al., 2017): E_s E_{a ~ pi} [grad log pi(a|s) A*(s, a)], with the derivatives of a
    Gaussian and of the last layer written out.

    :param actions: some for each state, ``[n, k, du]``
    :param advantages: of each, times its probability, ``[n, k]``
    :return: of the last layer's weights and biases and of the logarithm of the standard deviation
    """
    policy = model.policy
    with th.no_grad():
        features = policy.extract_features(inputs, policy.pi_features_extractor)
        hidden = policy.mlp_extractor.forward_actor(features).double().numpy()
        mean, std = policy.action_mean(inputs).double().numpy(), policy.log_std.exp().double().numpy()
    standard = (actions - mean[:, None]) / std
    of_mean = np.einsum("nk,nku->nu", advantages, standard / std) / len(mean)
    of_std = np.einsum("nk,nku->u", advantages, standard**2 - 1.0) / len(mean)
    return np.concatenate([(of_mean.T @ hidden).ravel(), of_mean.sum(0), of_std])


def last_layer(model: AggreVaTeDOC, samples: Samples, trust: float) -> np.ndarray:
    """:return: our gradient, in the same order"""
    policy = model.policy
    parts = policy.action_net.weight, policy.action_net.bias, policy.log_std
    objective = Surrogate(policy, samples).objective(0.0, trust)
    return np.concatenate([part.numpy().ravel() for part in th.autograd.grad(objective(), parts)])


def test_with_a_fixed_expert_the_imitation_step_is_that_of_aggrevated() -> None:
    """Its advantages alone are followed: of the sampled actions without trust, in expectation over them with full trust."""
    model, samples = random_samples()
    Q, q = samples.quadratic.double().numpy(), samples.linear.double().numpy()

    def advantage(actions: np.ndarray) -> np.ndarray:
        return -0.5 * np.einsum("nku,nuv,nkv->nk", actions, Q, actions) - np.einsum("nu,nku->nk", q, actions)

    sampled = samples.actions.double().numpy()[:, None]
    found = advantage(sampled)
    fixed = replace(samples, advantages=th.as_tensor(found[:, 0], dtype=th.float32))
    expected = score_gradient(model, samples.inputs, sampled, found - found.mean())
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(last_layer(model, fixed, 0.0), expected, rtol=1e-3, atol=1e-5)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    share = np.outer(weights, weights).ravel() / weights.sum() ** 2
    with th.no_grad():
        mean, std = model.policy.action_mean(samples.inputs).double().numpy(), model.policy.log_std.exp().double().numpy()
    actions = mean[:, None] + std * grid
    expected = score_gradient(model, samples.inputs, actions, advantage(actions) * share)
    np.testing.assert_allclose(last_layer(model, fixed, 1.0), expected, rtol=1e-3, atol=1e-5)
