"""What the imitation step of AggreVaTeD-OC maximises, and its distance from the policy that sampled (Eq. 11 and 12).

The expert's advantage of an action is a quadratic, whose expectation under a Gaussian policy is known in closed form. As far
as the expert is not to be believed, the sampled advantage takes its place, with the expert's as an action-dependent control
variate.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from sb3_dpi.common.natural_gradient import Scalar
from sb3_dpi.common.policies import BoundedGaussianPolicy


@dataclass(frozen=True)
class Samples:
    """What the imitation step sees of the planned samples, ``[n]`` leading; the ``k`` of the latest iteration come first."""

    inputs: Any
    """of the policy"""
    actions: th.Tensor
    """as sampled, ``[n, du]``"""
    quadratic: th.Tensor
    """``Quu``, ``[n, du, du]``"""
    linear: th.Tensor
    """``Qus s + qu``, ``[n, du]``"""
    advantages: th.Tensor
    """of GAE, in units of the rewards, ``[k]``"""
    trajectory: np.ndarray
    """which trajectory each belongs to, ``[k]``"""

    def expert_advantage(self, actions: th.Tensor, variance: th.Tensor | None = None) -> th.Tensor:
        """The expert's advantage of actions, up to a function of the state.

        :param actions: or their means, ``[n, du]``
        :param variance: of actions around them, ``[du]``; None for none
        :return: its expectation, ``[n]``
        """
        cost = 0.5 * th.einsum("nu,nuv,nv->n", actions, self.quadratic, actions) + (self.linear * actions).sum(1)
        if variance is not None:
            cost = cost + 0.5 * (th.diagonal(self.quadratic, dim1=1, dim2=2) * variance).sum(1)
        return -cost


class Surrogate:
    """The objective and the divergence of one step, from the policy as it is when this is made.

    :param policy: that sampled; the step changes its parameters
    :param samples: of the latest iteration, and those that are imitated again
    """

    def __init__(self, policy: BoundedGaussianPolicy, samples: Samples) -> None:
        self.policy, self.samples, self.n_latest = policy, samples, len(samples.advantages)
        with th.no_grad():
            self.old_mean, self.old_log_std = policy.action_mean(samples.inputs), policy.log_std.clone()
            self.baseline = samples.expert_advantage(self.old_mean, (2.0 * self.old_log_std).exp())
            self.predicted = (samples.expert_advantage(samples.actions) - self.baseline)[: self.n_latest]
            """the expert's advantages of the latest samples, ``[k]``"""
            self.real = samples.advantages - samples.advantages.mean()
            """the sampled ones, centred, ``[k]``"""
            self.old_log_prob = log_prob(samples.actions, self.old_mean, self.old_log_std)[: self.n_latest]

    def objective(self, weight: float, trust: float) -> Scalar:
        """The expert's advantage in closed form, and as far as it is not trusted the sampled one.

        :param weight: of the expert's advantage as control variate of the sampled one, from 0 to 1
        :param trust: share of the expert's advantage, from 0 to 1
        :return: L, a function of the policy's present parameters
        """
        samples, n = self.samples, self.n_latest
        remainder = self.real - weight * self.predicted if weight > 0.0 else self.real
        open_, share = 1.0 - trust, n / len(self.baseline)
        closed, kept = trust * share + open_ * weight, trust * (1.0 - share)

        def value() -> th.Tensor:
            mean, log_std = self.policy.action_mean(samples.inputs), self.policy.log_std
            total = mean.new_zeros(())
            if trust > 0.0 or weight > 0.0:
                predicted = samples.expert_advantage(mean, (2.0 * log_std).exp()) - self.baseline
                total = closed * predicted[:n].mean()
                if kept > 0.0:
                    total = total + kept * predicted[n:].mean()
            if open_ > 0.0:
                ratio = (log_prob(samples.actions, mean, log_std)[:n] - self.old_log_prob).exp()
                total = total + open_ * (ratio * remainder).mean()
            return total

        return value

    def divergence(self) -> Scalar:
        """KL(old policy || policy).

        :return: nats, mean over the samples, a function of the policy's present parameters
        """

        def kl() -> th.Tensor:
            mean, log_std = self.policy.action_mean(self.samples.inputs), self.policy.log_std
            variance, distance = (2.0 * log_std).exp(), (mean - self.old_mean) ** 2
            terms = log_std - self.old_log_std + 0.5 * ((2.0 * self.old_log_std).exp() + distance) / variance - 0.5
            return terms.sum(1).mean()

        return kl


def log_prob(actions: th.Tensor, mean: th.Tensor, log_std: th.Tensor) -> th.Tensor:
    """Logarithm of the density of a diagonal Gaussian, without its constant.

    :param actions: ``[n, du]``
    :param mean: ``[n, du]``
    :param log_std: ``[du]``
    :return: ``[n]``
    """
    return (-0.5 * ((actions - mean) / log_std.exp()) ** 2 - log_std).sum(1)
