"""The first-order expert: how the return of an imagined window changes with the policy.

Maximise over the policy's parameters, for windows of H steps with c_t the probability that the episode goes on until t,

    J = mean [ sum_{t < H} gamma^t c_t (r_t / unit - alpha log pi(u_t|x_t))
               + gamma^H c_H (Q(x_H, u_H) - alpha log pi(u_H|x_H)) ],

x_{t+1} the anchored prediction of one member, u_t = tanh(mu + sigma eps_t) with eps drawn before. The gradient runs through
model, reward, survival and critic. It is what the expert that may move from the policy by alpha nats adds to it, to first
order as alpha goes to zero (Sun et al. 2018, Eq. 4): no planning is left to do, and imitation is one step along it.

Shapes: as in ``imagination``; noise ``[H + 1, E, m, du]``.
"""

from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_dpi.models import kernels
from sb3_dpi.models.actors import SquashedGaussian
from sb3_dpi.models.critics import SoftTwinQ
from sb3_dpi.models.ensemble import Ensemble
from sb3_dpi.models.imagination import Windows


@dataclass(frozen=True)
class PolicyGradient:
    """What a policy should ascend."""

    direction: th.Tensor
    """as ``network.flat`` of the policy, ``[1, P]``"""
    objective: float
    """J, in units of value"""
    entropy: float
    """of the policy in the windows, nats a step"""


def window_objective(
    actor: SquashedGaussian,
    ensemble: Ensemble,
    critic: SoftTwinQ,
    windows: Windows,
    noise: th.Tensor,
    temperature: float,
    gamma: float,
) -> tuple[th.Tensor, th.Tensor]:
    """
    Evaluate J, differentiable in the policy's parameters.

    :param actor: the policy
    :param ensemble: the model
    :param critic: closes the windows
    :param windows: where they begin
    :param noise: standard normal, ``[H + 1, E, m, du]``
    :param temperature: alpha, in units of value
    :param gamma: discount factor
    :return: J and the mean entropy of the policy, both scalars
    """
    states, unit, horizon = windows.states, critic.unit.float(), windows.horizon
    survival = th.ones(states.shape[:-1], device=states.device)
    objective, entropy = th.zeros((), device=states.device), th.zeros((), device=states.device)
    for t in range(horizon + 1):
        actions, log_probs = actor.sample(states, noise[t])
        entropy = entropy - log_probs.mean() / (horizon + 1)
        if t == horizon:
            rows = states.reshape(-1, states.shape[-1]), actions.reshape(-1, actions.shape[-1])
            gain = critic(*rows).view(survival.shape)
            objective = objective + (gamma**t * survival * (gain - temperature * log_probs)).mean()
            break
        predicted, foretold = ensemble.predict(states, actions)
        following = ensemble.clip(predicted + windows.state_residuals[t])
        rewards = ensemble.reward(states, actions, following, foretold + windows.reward_residuals[t])
        objective = objective + (gamma**t * survival * (rewards / unit - temperature * log_probs)).mean()
        survival = survival * ensemble.survival(states, actions, following)
        states = following
    return objective, entropy


def pathwise_gradient(
    actor: SquashedGaussian,
    ensemble: Ensemble,
    critic: SoftTwinQ,
    windows: Windows,
    noise: np.ndarray,
    temperature: float,
    gamma: float,
) -> PolicyGradient:
    """
    The gradient of J.

    :param actor: the policy
    :param ensemble: the model
    :param critic: closes the windows
    :param windows: where they begin
    :param noise: standard normal, ``[H + 1, E, m, du]``
    :param temperature: alpha, in units of value
    :param gamma: discount factor
    :return: the direction to ascend
    """
    networks = (actor.network, ensemble.networks, ensemble.termination, critic.networks)
    if kernels.serves(*networks) and ensemble.known_reward is None and ensemble.known_end is None:
        direction, value, spread = kernels.window_gradient(actor, ensemble, critic, windows, noise, temperature, gamma)
        return PolicyGradient(direction, value, spread)
    draws = th.as_tensor(noise, device=windows.states.device)
    objective, entropy = window_objective(actor, ensemble, critic, windows, draws, temperature, gamma)
    (direction,) = th.autograd.grad(objective, [actor.network.flat])
    return PolicyGradient(direction, float(objective.detach()), float(entropy.detach()))
