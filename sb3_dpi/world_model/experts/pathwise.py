"""The first-order expert: how the return of an imagined window changes with the policy.

Maximise over the policy's parameters, for windows of H steps with c_t the probability that the episode goes on until t,

    J = mean [ sum_{t < H} gamma^t c_t (r_t / unit - alpha log pi(u_t|x_t))
               + gamma^H c_H (Q(x_H, u_H) - alpha log pi(u_H|x_H)) ],

x_{t+1} the corrected prediction of one member, u_t = tanh(mu + sigma eps_t) with eps drawn before. The gradient runs through
model, reward, continuation and critic. It is what the expert that may move from the policy by alpha nats adds to it, to first
order as alpha goes to zero (Sun et al. 2018, Eq. 4): no planning is left to do, and imitation is one step along it.

Shapes: as in ``imagination``; noise ``[H + 1, E, m, du]``.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch as th

from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.backends import ModelArrays, WindowArrays, array_of, window_gradient
from sb3_dpi.world_model.experts.plan_targets import PolicyGradient
from sb3_dpi.world_model.experts.problem import PlanningProblem
from sb3_dpi.world_model.imagination import roll_out


@dataclass(frozen=True)
class WindowPlan:
    """Windows and noise along which the return can be differentiated."""

    problem: PlanningProblem
    noise: np.ndarray
    """``[H + 1, E, m, du]``"""

    def gradient(self, actor: SquashedGaussian, temperature: float, rng: np.random.Generator) -> PolicyGradient:
        """
        The gradient of J.

        :param actor: the policy as it is now
        :param temperature: alpha, in units of value
        :param rng: not used, the noise is drawn
        :return: the direction to ascend
        """
        return pathwise_gradient(replace(self.problem, actor=actor, temperature=temperature), self.noise)


@dataclass(frozen=True)
class Pathwise:
    """The first-order expert.

    :param imitation_steps: of the policy for each plan, which costs no more than a step here; usual: 1
    """

    imitation_steps: int = 1

    def plan(self, problem: PlanningProblem, rng: np.random.Generator) -> WindowPlan:
        """
        Draw the noise.

        :param problem: policy, model, critic and windows
        :param rng: draws the noise
        :return: what can be differentiated
        """
        return WindowPlan(problem, rng.standard_normal(problem.noise_shape).astype(np.float32))


def window_objective(problem: PlanningProblem, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Evaluate J, differentiable in the policy's parameters.

    :param problem: policy, model, critic and windows
    :param noise: standard normal, ``[H + 1, E, m, du]``
    :return: J and the mean entropy of the policy, both scalars
    """
    imagined = roll_out(problem.actor, problem.ensemble, problem.windows, noise)
    gains, weights = problem.gains(imagined)
    objective = (weights * (gains - problem.temperature * imagined.log_probs)).sum(0).mean()
    return objective, -imagined.log_probs.mean()


def pathwise_gradient(problem: PlanningProblem, noise: np.ndarray) -> PolicyGradient:
    """
    The gradient of J.

    :param problem: policy, model, critic and windows
    :param noise: standard normal, ``[H + 1, E, m, du]``
    :return: the direction to ascend
    """
    actor, ensemble = problem.actor, problem.ensemble
    networks = (actor, ensemble.networks, ensemble.termination, problem.critic)
    plain = ensemble.known_reward is None and ensemble.known_end is None and not ensemble.pessimism
    plain = plain and problem.windows.horizon > 0
    if plain and all(network.is_compiled for network in networks):
        return _compiled_gradient(problem, noise)
    draws = th.as_tensor(noise, device=problem.windows.states.device)
    objective, entropy = window_objective(problem, draws)
    return PolicyGradient(actor.gradient(objective), float(objective.detach()), float(entropy.detach()))


def _compiled_gradient(problem: PlanningProblem, noise: np.ndarray) -> PolicyGradient:
    actor, ensemble, critic, windows = problem.actor, problem.ensemble, problem.critic, problem.windows
    unit = critic.unit.float()
    mean, std = (float(array[-1] / critic.unit) for array in (ensemble.change_mean, ensemble.change_std))
    H, E, m, dx = windows.state_residuals.shape
    gain, offset = array_of(ensemble.change_gain), array_of(ensemble.change_offset)
    limits = array_of(ensemble.state_low.float()), array_of(ensemble.state_high.float())
    gradient, objective, entropy = window_gradient(
        actor.arrays(),
        ModelArrays(ensemble.networks.arrays(), gain, offset, mean, std, *limits),
        ensemble.termination.arrays() if ensemble.sees_deaths else None,
        critic.networks.arrays(),
        WindowArrays(
            array_of(windows.states.reshape(E * m, dx)),
            array_of(windows.state_residuals.reshape(H, E * m, dx)),
            array_of((windows.reward_residuals / unit).reshape(H, E * m)),
            noise.reshape(H + 1, E * m, -1),
        ),
        problem.temperature,
        problem.gamma,
    )
    return PolicyGradient(th.as_tensor(gradient)[None], float(objective), float(entropy))
