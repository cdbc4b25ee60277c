"""The pi-step: one natural-gradient step of the weighted actor (Eq. 16 and 17)."""

import copy
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_dpi.common.critic import actor_parameters
from sb3_dpi.common.natural_gradient import NaturalGradientStep, mean_divergence, natural_gradient_step
from sb3_dpi.dual_ac.action_critic import Imagined
from sb3_dpi.dual_ac.constants import CG_STEPS, LINE_SEARCH_SHRINKING, LINE_SEARCH_STEPS
from sb3_dpi.dual_ac.observations import n_rows


def improve(
    policy: ActorCriticPolicy,
    observations: Any,
    actions: th.Tensor,
    factors: th.Tensor,
    target_kl: float,
    cg_damping: float | None,
    imagined: Imagined | None = None,
) -> NaturalGradientStep:
    """Take one step, as far as the KL allows and the objective gains.

    :param policy: its actor is changed in place
    :param observations: tensor or dictionary of tensors, ``[n, ...]``
    :param actions: taken there by the policy as it is, ``[n, ...]``
    :param factors: of ``grad log pi``: weight times advantage, of order one, ``[n]``
    :param target_kl: bound on KL(old || new), nats, mean over the observations
    :param cg_damping: what is added to the Fisher matrix; None takes twenty of its mean eigenvalues
    :param imagined: states for which Q judges all actions; None where there is no Q
    :return: how it went
    """
    with th.no_grad():
        # the distribution that a policy returns is one object, whose inner one it replaces
        old = copy.copy(policy.get_distribution(observations))
        old_log_prob = old.log_prob(actions)
        old_imagined = copy.copy(policy.get_distribution(imagined.observations)) if imagined is not None else old
    share = n_rows(imagined.observations) / (len(actions) + n_rows(imagined.observations)) if imagined is not None else 0.0

    def objective() -> th.Tensor:
        ratio = (policy.get_distribution(observations).log_prob(actions) - old_log_prob).exp()
        sampled = (ratio * factors).mean()
        return sampled if imagined is None else sampled + imagined.gain(policy.get_distribution(imagined.observations))

    def kl() -> th.Tensor:
        sampled = mean_divergence(old, policy.get_distribution(observations))
        if imagined is None:
            return sampled
        return (1.0 - share) * sampled + share * mean_divergence(old_imagined, policy.get_distribution(imagined.observations))

    actor = actor_parameters(policy)
    return natural_gradient_step(
        actor, objective, kl, target_kl, CG_STEPS, cg_damping, LINE_SEARCH_STEPS, LINE_SEARCH_SHRINKING
    )
