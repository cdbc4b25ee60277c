"""What experts say, and how a policy follows them.

An expert plans the policy's noise: eta_t = N(e_t, S_t) stands against the N(0, I) of the policy pi in the states x_t of an
imagined window, so that

    KL(eta_t || pi) = 1/2 (|e_t|^2 + tr S_t - du - log det S_t)

in nats, before and after tanh alike. Imitation ascends the likelihood of what the expert does,

    beta E_eta[log pi_theta] + alpha H(pi_theta),

before tanh a Gaussian around mu + sigma e_t; beta is the expert's dual variable, which makes the gradient at the policy that
the plan began with, as beta grows, that of the return itself.

Shapes: ``H`` steps of ``E`` members with ``m`` windows each.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch as th

from sb3_dpi.world_model.actor import SquashedGaussian

LARGEST_BATCH = 4096
"""Imagined states of a step of imitation: larger plans, those of many particles, are followed in parts. Where the
trust region is tiny that is noisy, for beta is large there."""


@dataclass(frozen=True)
class PolicyGradient:
    """What a policy should ascend."""

    direction: th.Tensor
    """all that the policy learns behind each other, of a plain one its ``network.flat``, ``[1, P]``"""
    objective: float
    """return of a window, in units of value"""
    entropy: float
    """of the policy in the windows, nats a step"""
    divergence: float = 0.0
    """KL(expert || policy), nats a step, mean over the windows"""


class Plan(Protocol):
    """What an expert has found, from which a policy can learn in several steps."""

    def gradient(self, actor: SquashedGaussian, temperature: float, rng: np.random.Generator) -> PolicyGradient:
        """
        How the policy comes closer to the expert.

        :param actor: the policy as it is now
        :param temperature: alpha, in units of value
        :param rng: draws what must be sampled
        :return: the direction to ascend
        """
        ...


@dataclass(frozen=True)
class PlanTargets:
    """What to do in imagined states."""

    states: th.Tensor
    """``[H, E, m, dx]``"""
    importance: th.Tensor
    """what the plan for a state counts, ``[H, E, m]``"""
    discounts: th.Tensor
    """discount times continuation, what the policy's entropy there counts, ``[H, E, m]``"""
    target: th.Tensor
    """mean action before tanh, ``[H, E, m, du]``"""
    variance: th.Tensor
    """before tanh, ``[H, E, m, du]``"""
    beta: float
    """dual variable of the trust region, in units of value"""
    objective: float
    """return of a window, in units of value"""
    divergence: float
    """KL(expert || policy), nats a step"""

    def gradient(self, actor: SquashedGaussian, temperature: float, rng: np.random.Generator) -> PolicyGradient:
        """
        How the policy comes closer to the expert.

        :param actor: the policy as it is now
        :param temperature: alpha, in units of value
        :param rng: draws windows where there are many, and the actions by which the entropy is estimated
        :return: the direction to ascend
        """
        part = self._part(rng)
        mean, log_std = actor(part.states)
        drawn = rng.standard_normal(mean.shape).astype(np.float32)
        _, log_probs = actor.sample(part.states, th.as_tensor(drawn, device=mean.device))
        misfit = ((part.target - mean).square() + part.variance) / (2.0 * log_std).exp()
        likelihood = -(0.5 * misfit + log_std).sum(-1)
        gain = part.importance * self.beta * likelihood - part.discounts * temperature * log_probs
        objective = gain.sum(0).mean()
        return PolicyGradient(actor.gradient(objective), self.objective, -float(log_probs.detach().mean()), self.divergence)

    def _part(self, rng: np.random.Generator) -> "PlanTargets":
        """All of it, or windows (particles of them) drawn at random, the same of every member."""
        H, E, m = self.importance.shape
        n = max(LARGEST_BATCH // (H * E), 1)
        if n >= m:
            return self
        drawn = th.as_tensor(rng.choice(m, n, replace=False), device=self.importance.device)
        return replace(
            self,
            states=self.states[:, :, drawn],
            importance=self.importance[:, :, drawn],
            discounts=self.discounts[:, :, drawn],
            target=self.target[:, :, drawn],
            variance=self.variance[:, :, drawn],
        )


@th.no_grad()
def advise(
    actor: SquashedGaussian,
    states: th.Tensor,
    importance: th.Tensor,
    discounts: th.Tensor,
    noise_mean: th.Tensor,
    noise_variance: th.Tensor,
    beta: float,
    objective: float,
    divergence: float,
) -> PlanTargets:
    """
    Turn planned noise into targets that stay the same while the policy learns.

    :param actor: the policy that the plan began with
    :param states: ``[H, E, m, dx]``
    :param importance: what the plan for a state counts, ``[H, E, m]``
    :param discounts: discount times continuation, ``[H, E, m]``
    :param noise_mean: e, ``[H, E, m, du]``
    :param noise_variance: diag S, ``[H, E, m, du]``
    :param beta: dual variable of the trust region, in units of value
    :param objective: return of a window, in units of value
    :param divergence: KL(expert || policy), nats a step
    :return: targets
    """
    mean, log_std = actor(states)
    std = log_std.exp()
    return PlanTargets(
        states, importance, discounts, mean + std * noise_mean, std.square() * noise_variance, beta, objective, divergence
    )
