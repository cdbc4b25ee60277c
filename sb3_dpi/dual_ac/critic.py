"""The V-step: the dual critic that minimises the path-regularised Lagrangian (Eq. 9 and 13).

Problem: ``min_V L(V) + eta_V E[(G - V(s))^2]`` with the Lagrangian L of ``game.lagrangian`` and the return G of the behaviour
policy. Values and returns are standardised here, ``V = mean + std v``: L is linear in V and blind to constants, so that both
terms keep their meaning and eta_V is in units of one over the standard deviation of the returns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_dpi.common.critic import actor_parameters
from sb3_dpi.dual_ac.constants import INITIAL_BATCH, LARGEST_GRADIENT
from sb3_dpi.dual_ac.game import lagrangian
from sb3_dpi.dual_ac.observations import n_rows, take

RIDGE = 1e-4
"""Of the closed form: features are of order one."""


@dataclass(frozen=True)
class ValueProblem:
    """What V is solved for, n samples."""

    observations: Any
    """tensor or dictionary of tensors ``[n_rows, ...]``; the first n are the states that windows start from"""
    initial_observations: Any
    """of observed resets, ``[m, ...]``"""
    targets: th.Tensor
    """G, standardised, ``[n]``"""
    end_rows: th.Tensor
    """which observation each window ends with, any row where the discount is zero, ``[n]``"""
    returns: th.Tensor
    """of the windows, in standard deviations, ``[n]``"""
    discounts: th.Tensor
    """``[n]``"""
    weights: th.Tensor
    """of the windows, mean one, ``[n]``"""
    path_regularization: float
    """eta_V; infinite: V is a regression to G"""


@dataclass(frozen=True)
class InnerSolve:
    """How the V-step went."""

    n_steps: int
    """gradient steps; one for the closed form"""
    objective: float
    """that of the last pass over max(eta_V, 1)"""
    gap: float
    """what the last pass still gained; zero for the closed form"""


def value_is_linear(policy: ActorCriticPolicy) -> bool:
    """Tell whether the value function is linear in features that do not learn.

    :param policy: with a value function
    :return: true if nothing before its last layer can be trained
    """
    before = (policy.vf_features_extractor, policy.mlp_extractor.value_net)
    return not any(parameter.requires_grad for module in before for parameter in module.parameters())


def objective(policy: ActorCriticPolicy, problem: ValueProblem, rows: th.Tensor, initial_rows: th.Tensor) -> th.Tensor:
    """Evaluate ``L + eta_V E[(G - V)^2]``, over max(eta_V, 1), on some samples.

    :param policy: its value function is v
    :param problem: all samples
    :param rows: some of them, ``[b]``
    :param initial_rows: some of the initial states
    :return: ``[]``
    """
    eta, b = problem.path_regularization, len(rows)
    if np.isinf(eta):
        values = policy.predict_values(take(problem.observations, rows)).reshape(-1)
        return ((problem.targets[rows] - values) ** 2).mean()
    ends = take(problem.observations, problem.end_rows[rows])
    initial = take(problem.initial_observations, initial_rows)
    parts = (take(problem.observations, rows), ends, initial)
    together = {key: th.cat([part[key] for part in parts]) for key in ends} if isinstance(ends, dict) else th.cat(parts)
    start, end, first = policy.predict_values(together).reshape(-1).split([b, b, len(initial_rows)])
    mu = th.full_like(first, 1.0 / len(first))
    weights = problem.weights[rows] / problem.weights[rows].sum().clamp(min=1e-9)
    game = lagrangian(first, mu, start, end, problem.returns[rows], problem.discounts[rows], weights)
    loss: th.Tensor = (game + eta * ((problem.targets[rows] - start) ** 2).mean()) / max(eta, 1.0)
    return loss


def descend(
    policy: ActorCriticPolicy,
    problem: ValueProblem,
    tolerance: float,
    n_epochs: int,
    batch_size: int,
    rng: np.random.Generator,
) -> InnerSolve:
    """Solve by stochastic gradient steps, until a pass gains less than the tolerance.

    :param policy: its value function is trained, its actor stays what it is
    :param problem: samples
    :param tolerance: of the objective, in variances of the returns
    :param n_epochs: passes at most; 0 takes one step on all samples
    :param batch_size: samples of a step
    :param rng: order of the samples
    :return: how it went
    """
    n, m, device = len(problem.targets), n_rows(problem.initial_observations), problem.targets.device
    n_batches = -(-n // batch_size) if n_epochs > 0 else 1
    actor = {id(parameter) for parameter in actor_parameters(policy)}
    critic = [parameter for parameter in policy.parameters() if id(parameter) not in actor]
    previous, gap, n_steps = np.inf, np.inf, 0
    for _ in range(max(n_epochs, 1)):
        total = 0.0
        for rows in np.array_split(rng.permutation(n), n_batches):
            initial_rows = rng.integers(m, size=min(m, INITIAL_BATCH))
            loss = objective(policy, problem, *(th.as_tensor(index, device=device) for index in (rows, initial_rows)))
            policy.optimizer.zero_grad(set_to_none=True)
            # only the critic's: features that it shares with the actor are the actor's
            for parameter, gradient in zip(critic, th.autograd.grad(loss, critic, allow_unused=True), strict=True):
                parameter.grad = gradient
            th.nn.utils.clip_grad_norm_(critic, LARGEST_GRADIENT)
            policy.optimizer.step()
            total += float(loss.detach()) * len(rows) / n
            n_steps += 1
        previous, gap = total, previous - total
        if gap < tolerance:
            break
    return InnerSolve(n_steps, previous, gap)


def solve_in_closed_form(policy: ActorCriticPolicy, problem: ValueProblem) -> InnerSolve:
    """Solve exactly where v is linear in its features phi, the bias among them.

    ``(eta_V E[phi phi'] + ridge) theta = eta_V E[phi G] - b / 2``, where b is the gradient of L.

    :param policy: its last value layer is set
    :param problem: samples
    :return: how it went
    """
    n, eta = len(problem.targets), problem.path_regularization
    share = np.array([1.0, 0.0]) if np.isinf(eta) else np.array([eta, 1.0]) / max(eta, 1.0)
    with th.no_grad():
        seen = (problem.observations, problem.initial_observations)
        every, initial = (_with_one(value_features(policy, observations)) for observations in seen)
        start, end = every[:n], every[problem.end_rows]
        weights, discounts, targets = (x.double() for x in (problem.weights / n, problem.discounts, problem.targets))
        slope = (1.0 - (weights * discounts).sum()) * initial.mean(0) + (weights * discounts) @ end - weights @ start
        ridge = th.full_like(slope, RIDGE)
        ridge[-1] = 1e-12  # what the constant is must not depend on where zero is
        left = share[0] * start.T @ start / n + th.diag(ridge)
        theta = th.linalg.solve(left, share[0] * targets @ start / n - 0.5 * share[1] * slope)
        policy.value_net.weight.copy_(theta[None, :-1])
        policy.value_net.bias.copy_(theta[-1:])
        loss = objective(policy, problem, *(th.arange(k, device=targets.device) for k in (n, len(initial))))
    return InnerSolve(1, float(loss), 0.0)


def value_features(policy: ActorCriticPolicy, observations: Any) -> th.Tensor:
    """Evaluate what V is linear in.

    :param policy: with a value function
    :param observations: tensor or dictionary of tensors, ``[n, ...]``
    :return: what its last layer reads, ``[n, F]``, float64
    """
    extracted = super(ActorCriticPolicy, policy).extract_features(observations, policy.vf_features_extractor)
    return policy.mlp_extractor.forward_critic(extracted).double()


def _with_one(features: th.Tensor) -> th.Tensor:
    return th.cat([features, th.ones_like(features[:, :1])], 1)
