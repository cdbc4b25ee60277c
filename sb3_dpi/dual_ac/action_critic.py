"""The critic of actions: Q(s, a), the mean of ``R + gamma V(s')`` after an action, learned from all rollouts that are kept.

Problem: the advantage of a window owes more to the actions behind its first one than to that one, and a V that has seen ten
episodes predicts an eleventh badly. But what a step earns and leads to does not depend on who chose it: Q is regressed on old
and new steps alike, with ``V(s') = E_{a ~ pi} Q(s', a)`` of the present policy. Its advantage ``A = Q - E_a Q`` has no mean,
whatever Q is, so that taking it from the temporal differences of actions that are still to come leaves the gradient what it is
(trajectory-wise control variates, Cheng et al. 2019); what it says of the action itself is integrated over all actions.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from torch import nn

from sb3_dpi.common.critic import ReturnScale, rescale_layer
from sb3_dpi.common.policies import StandardizedPolicy
from sb3_dpi.common.standardized import Standardizing
from sb3_dpi.dual_ac.batch import Batch
from sb3_dpi.dual_ac.constants import BATCH, FOLLOWING, LEARNING_RATE, PAIRS, WIDTH
from sb3_dpi.dual_ac.observations import take
from sb3_dpi.trajopt.types import FloatArray


@dataclass(frozen=True)
class Guess:
    """What Q says of a rollout that it has not seen."""

    values: FloatArray
    """``E_a Q``, of all rows"""
    advantages: FloatArray
    """``Q - E_a Q`` of the actions, ``[T, N]``"""


@dataclass(frozen=True)
class Imagined:
    """States for which a policy is judged by Q."""

    observations: Any
    """tensor or dictionary of tensors, ``[n, ...]``"""
    features: th.Tensor
    """``[n, F]``"""
    weights: th.Tensor
    """of the states, ``[n]``"""
    noise: th.Tensor
    """standard normal, ``[k, n, A]``"""
    critic: "ActionCritic"
    unit: float
    """that the mean is divided by"""

    def gain(self, distribution: Any) -> th.Tensor:
        """Evaluate ``E_s E_a Q``.

        :param distribution: of a policy at the observations
        :return: ``[]``, in the units wanted
        """
        normal = distribution.distribution
        q = self.critic.judge(self.features, normal.mean + normal.stddev * self.noise)
        return (self.critic.std / self.unit) * (self.weights * q).mean()


def suits(policy: ActorCriticPolicy) -> bool:
    """Tell whether Q can be had: for Gaussian actions that see vectors.

    :param policy: an actor
    :return: whether
    """
    extractor = policy.vf_features_extractor
    sees_vectors = isinstance(extractor, Standardizing) and extractor.sees_vectors_only
    return isinstance(policy, StandardizedPolicy) and sees_vectors and type(policy.action_dist) is DiagGaussianDistribution


@dataclass(frozen=True)
class ActionCritic:
    """Q, in units of its own; it learns by giving another one, so that an iteration can be undone."""

    network: nn.Sequential
    slow: nn.Sequential
    """what targets are taken from"""
    optimizer: th.optim.Adam
    is_bounded: bool
    """whether actions beyond -1 and 1 act as these do"""
    mean: float = 0.0
    std: float = 0.0
    """``Q = mean + std network``; zero before there are units: what is untrained must not depend on them"""

    @classmethod
    def untrained(cls, policy: ActorCriticPolicy) -> "ActionCritic":
        """Begin.

        :param policy: whose features it reads
        :return: one that knows nothing
        """
        n_inputs = policy.vf_features_extractor.features_dim + get_action_dim(policy.action_space)
        layers = [nn.Linear(n_inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)]
        network = nn.Sequential(*layers).to(policy.device)
        return cls(network, copy.deepcopy(network), th.optim.Adam(network.parameters(), LEARNING_RATE), policy.squash_output)

    def to(self, device: th.device | str) -> "ActionCritic":
        """Move.

        :param device: where to
        :return: the same there, a copy
        """
        network, slow = (copy.deepcopy(one).to(device) for one in (self.network, self.slow))
        optimizer = th.optim.Adam(network.parameters(), LEARNING_RATE)
        optimizer.load_state_dict(self.optimizer.state_dict())
        return replace(self, network=network, slow=slow, optimizer=optimizer)

    def judge(self, features: th.Tensor, actions: th.Tensor, slow: bool = False) -> th.Tensor:
        """Evaluate Q as the environment takes the actions, within their bounds.

        :param features: ``[n, F]``
        :param actions: ``[..., n, A]``
        :param slow: whether by the network of the targets
        :return: ``[..., n]``, in units of the network
        """
        actions = actions.clamp(-1.0, 1.0) if self.is_bounded else actions
        inputs = th.cat([features.expand(*actions.shape[:-1], -1), actions], -1)
        judged: th.Tensor = (self.slow if slow else self.network)(inputs).squeeze(-1)
        return judged

    def guess(self, policy: ActorCriticPolicy, batch: Batch) -> Guess:
        """Say what a rollout will earn.

        :param policy: that took the actions
        :param batch: the rollout
        :return: in units of the rewards
        """
        n = batch.rewards.size
        with th.no_grad():
            features, normal = _features(policy, batch.observations), _normal(policy, batch.observations)
            noise = _opposite(PAIRS, normal.mean)
            values = self.judge(features, normal.mean + normal.stddev * noise).mean(0).double().cpu().numpy()
            taken = self.judge(features[:n], batch.actions).double().cpu().numpy()
        return Guess(self.mean + self.std * values, self.std * (taken - values[:n]).reshape(batch.shape))

    def imagine(
        self, policy: ActorCriticPolicy, batch: Batch, weights: FloatArray, n: int, unit: float, rng: np.random.Generator
    ) -> Imagined:
        """Draw states.

        :param policy: whose actions are to be judged
        :param batch: rollouts that the states are drawn from
        :param weights: of their states, ``[T, N]``
        :param n: the most states
        :param unit: of the gain
        :param rng: draws
        :return: states and noise
        """
        rows = th.as_tensor(rng.permutation(batch.rewards.size)[:n], device=policy.device)
        observations = take(batch.observations, rows)
        shares = th.as_tensor(weights.reshape(-1), dtype=th.float32, device=policy.device)[rows]
        with th.no_grad():
            features, normal = _features(policy, observations), _normal(policy, observations)
        return Imagined(observations, features, shares, _opposite(1, normal.mean), self, unit)

    def solved(
        self,
        policy: ActorCriticPolicy,
        batch: Batch,
        units: ReturnScale,
        gamma: float,
        n_steps: int,
        rng: np.random.Generator,
    ) -> "ActionCritic":
        """Learn from rollouts: ``Q(s, a) = R + gamma E_{a' ~ pi} Q(s', a')``.

        :param policy: pi
        :param batch: rollouts of any policies
        :param units: of the returns, which vary
        :param gamma: discount factor
        :param n_steps: gradient steps
        :param rng: draws
        :return: the critic afterwards
        """
        network, slow, optimizer = copy.deepcopy((self.network, self.slow, self.optimizer))
        critic = replace(self, network=network, slow=slow, optimizer=optimizer, mean=units.mean, std=units.std)
        for last in (network[-1], slow[-1]):
            rescale_layer(last, ReturnScale(self.mean, self.std), units)
        with th.no_grad():
            features, normal = _features(policy, batch.observations), _normal(policy, batch.observations)
        following = batch.following.reshape(-1)
        rows, lives_on = (th.as_tensor(x, device=features.device) for x in (np.maximum(following, 0), following >= 0))
        rewards = th.as_tensor(batch.rewards.reshape(-1), dtype=th.float64, device=features.device)
        standard, goes_on = units.standardize(rewards).float(), gamma * lives_on.float()
        for index in _minibatches(batch.rewards.size, n_steps, rng):
            drawn = th.as_tensor(index, device=features.device)
            ahead, go_on = rows[drawn], goes_on[drawn]
            with th.no_grad():
                noise = _opposite(1, normal.mean[ahead])
                values = critic.judge(features[ahead], normal.mean[ahead] + normal.stddev[ahead] * noise, slow=True).mean(0)
                targets = standard[drawn] + go_on * (values + units.mean / units.std)
            loss = nn.functional.mse_loss(critic.judge(features[drawn], batch.actions[drawn]), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with th.no_grad():
                th._foreach_lerp_(list(slow.parameters()), list(network.parameters()), FOLLOWING)
        return critic


def _features(policy: ActorCriticPolicy, observations: Any) -> th.Tensor:
    features: th.Tensor = super(ActorCriticPolicy, policy).extract_features(observations, policy.vf_features_extractor)
    return features


def _normal(policy: ActorCriticPolicy, observations: Any) -> th.distributions.Normal:
    normal = policy.get_distribution(observations).distribution
    assert isinstance(normal, th.distributions.Normal)
    return normal


def _opposite(n_pairs: int, like: th.Tensor) -> th.Tensor:
    """Draws and their opposites: what is linear in them has the right mean."""
    noise = th.randn(n_pairs, *like.shape, device=like.device)
    return th.cat([noise, -noise])


def _minibatches(n: int, n_steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for _ in range(n_steps):
        yield rng.integers(n, size=min(n, BATCH))
