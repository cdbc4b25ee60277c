"""The natural-gradient step on policies: close to its bound, only what may move, and the direction of TRPO."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from dummy_envs import vec_env
from gymnasium import spaces
from sb3_contrib import TRPO
from test_natural_gradient import Function, bits, gaussian_kl

from sb3_dpi.common.critic import actor_parameters
from sb3_dpi.common.natural_gradient import natural_gradient_step
from sb3_dpi.common.policies import BoundedGaussianCnnPolicy, BoundedGaussianPolicy

pytestmark = pytest.mark.usefixtures("seeded")
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)


def policy_problem(policy: BoundedGaussianPolicy, observations: th.Tensor) -> tuple[Function, Function]:
    """A linear objective of the mean actions, and the KL to the present policy."""
    slopes = th.randn(len(observations), 2, generator=th.Generator().manual_seed(0))
    with th.no_grad():
        old_mean, old_log_std = policy.action_mean(observations), policy.log_std.clone()

    def objective() -> th.Tensor:
        return (slopes * policy.action_mean(observations)).sum(1).mean()

    return objective, lambda: gaussian_kl(old_mean, old_log_std, policy.action_mean(observations), policy.log_std)


def image_policy() -> tuple[BoundedGaussianPolicy, th.Tensor]:
    th.manual_seed(0)
    images = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    policy = BoundedGaussianCnnPolicy(
        images, ACTIONS, lambda _: 1e-3, net_arch=[8], features_extractor_kwargs={"features_dim": 8}
    )
    return policy, th.randint(0, 256, (8, 1, 36, 36), generator=th.Generator().manual_seed(0)).to(th.uint8)


def vector_policy() -> tuple[BoundedGaussianPolicy, th.Tensor]:
    th.manual_seed(0)
    policy = BoundedGaussianPolicy(spaces.Box(-np.inf, np.inf, (3,)), ACTIONS, lambda _: 1e-3, net_arch=[16, 16])
    policy.set_standardization(np.zeros(3), np.ones(3))
    return policy, th.randn(100, 3, generator=th.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [vector_policy, image_policy], ids=["vectors", "images"])
def test_policies_come_close_to_the_bound(make: Any) -> None:
    policy, observations = make()
    objective, kl = policy_problem(policy, observations)
    values = {name: bits([p])[0] for name, p in policy.named_parameters() if "value" in name}
    # The objective does not depend on the standard deviation
    others = {n: bits([p])[0] for n, p in policy.named_parameters() if "value" not in n and n != "log_std"}
    step = natural_gradient_step(actor_parameters(policy), objective, kl, 0.01)
    assert step.accepted and 0.4 * 0.01 < step.kl <= 0.01
    now = {name: bits([p])[0] for name, p in policy.named_parameters()}
    assert {name: now[name] for name in values} == values
    assert all(now[name] != before for name, before in others.items())


def test_policies_with_frozen_features() -> None:
    policy, images = image_policy()
    extractor: Any = policy.pi_features_extractor
    extractor.requires_grad_(False)
    policy.log_std.requires_grad_(False)
    fixed = [*extractor.parameters(), policy.log_std]
    first = bits(fixed)
    objective, kl = policy_problem(policy, images)
    step = natural_gradient_step(actor_parameters(policy), objective, kl, 0.01)
    assert step.accepted and 0.4 * 0.01 < step.kl <= 0.01
    assert bits(fixed) == first


def test_direction_is_that_of_trpo() -> None:
    """The same samples, objective and bound; TRPO measures the KL the other way round, which has the same Hessian."""
    model = TRPO("MlpPolicy", vec_env(2), n_steps=64, batch_size=128, target_kl=1e-4, cg_damping=1e-2, seed=0, device="cpu")
    _, callback = model._setup_learn(128)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    policy: Any = copy.deepcopy(model.policy)
    samples = next(model.rollout_buffer.get(None))
    advantages = (samples.advantages - samples.advantages.mean()) / (samples.advantages.std() + 1e-8)
    with th.no_grad():
        old = copy.copy(policy.get_distribution(samples.observations).distribution)

    def objective() -> th.Tensor:
        log_prob = policy.get_distribution(samples.observations).log_prob(samples.actions)
        return (advantages * (log_prob - samples.old_log_prob).exp()).mean()

    def kl() -> th.Tensor:
        new = policy.get_distribution(samples.observations).distribution
        return th.distributions.kl_divergence(old, new).sum(1).mean()

    # TRPO averages over samples and actions alike: of one action it is the same
    assert samples.actions.shape == (128, 1)
    before = [parameter.detach().clone() for parameter in actor_parameters(policy)]
    step = natural_gradient_step(actor_parameters(policy), objective, kl, 1e-4, cg_damping=1e-2)
    model.train()

    def moved(of: Any) -> th.Tensor:
        pairs = zip(actor_parameters(of), before, strict=True)
        return th.cat([(parameter.detach() - values).reshape(-1) for parameter, values in pairs])

    ours, theirs = moved(policy), moved(model.policy)
    assert step.accepted and float(theirs.norm()) > 0.0
    assert float(th.cosine_similarity(ours, theirs, dim=0)) > 0.99
    assert 0.75 < float(ours.norm() / theirs.norm()) < 1.35
