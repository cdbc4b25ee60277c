"""The pi-step: one natural-gradient step of the weighted actor (Eq. 16 and 17)."""

import copy
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_dpi.common.critic import actor_parameters
from sb3_dpi.common.natural_gradient import NaturalGradientStep, mean_divergence, natural_gradient_step

CG_STEPS, LINE_SEARCH_STEPS, LINE_SEARCH_SHRINKING = 20, 10, 0.8


def improve(
    policy: ActorCriticPolicy,
    observations: Any,
    actions: th.Tensor,
    factors: th.Tensor,
    target_kl: float,
    cg_damping: float | None,
) -> NaturalGradientStep:
    """Take one step, as far as the KL allows and the objective gains.

    :param policy: its actor is changed in place
    :param observations: tensor or dictionary of tensors, ``[n, ...]``
    :param actions: taken there by the policy as it is, ``[n, ...]``
    :param factors: of ``grad log pi``: weight times advantage, of order one, ``[n]``
    :param target_kl: bound on KL(old || new), nats, mean over the observations
    :param cg_damping: what is added to the Fisher matrix; None takes twenty of its mean eigenvalues
    :return: how it went
    """
    with th.no_grad():
        # the distribution that a policy returns is one object, whose inner one it replaces
        old = copy.copy(policy.get_distribution(observations))
        old_log_prob = old.log_prob(actions)

    def objective() -> th.Tensor:
        ratio = (policy.get_distribution(observations).log_prob(actions) - old_log_prob).exp()
        return (ratio * factors).mean()

    def kl() -> th.Tensor:
        return mean_divergence(old, policy.get_distribution(observations))

    actor = actor_parameters(policy)
    return natural_gradient_step(
        actor, objective, kl, target_kl, CG_STEPS, cg_damping, LINE_SEARCH_STEPS, LINE_SEARCH_SHRINKING
    )
