"""How far model, critic and plan can be trusted: numbers for the logger."""

import numpy as np
import torch as th

from sb3_dpi.models.actors import SquashedGaussian, gaussian_kl
from sb3_dpi.models.critics import Critic
from sb3_dpi.models.data import Transitions, successors
from sb3_dpi.models.ensemble import Ensemble
from sb3_dpi.trajopt.types import FloatArray, IntArray


def correlation(first: FloatArray, second: FloatArray) -> float:
    """
    Pearson's correlation, zero where one does not vary.

    :param first: ``[n]``
    :param second: ``[n]``
    :return: from -1 to 1
    """
    spread = float(first.std() * second.std())
    return float(((first - first.mean()) * (second - second.mean())).mean()) / spread if spread > 0.0 else 0.0


@th.no_grad()
def window_correlation(
    ensemble: Ensemble,
    critic: Critic,
    actor: SquashedGaussian,
    data: Transitions,
    rows: IntArray,
    horizon: int,
    gamma: float,
) -> float:
    """
    Whether the model knows which real action sequences were good: the advantages of real windows, as the members' mean
    foretells them without anchor, against what they turned out to be; both closed by the critic.

    :param ensemble: the model
    :param critic: closes the windows
    :param actor: the policy, whose value is the baseline
    :param data: real steps
    :param rows: where windows begin, best where the model has not been fitted yet, ``[n]``
    :param horizon: H
    :param gamma: discount factor
    :return: correlation, zero if no window fits
    """
    if horizon == 0:
        return 0.0
    steps, alive = successors(data, rows, horizon)
    steps = steps[:, alive.all(0) & ~data.terminated[steps[-1]]]
    if steps.shape[1] < 2:
        return 0.0
    unit = float(critic.unit)

    def value(states: th.Tensor) -> FloatArray:
        actions, _ = actor.sample(states, states.new_zeros(len(states), actor.action_dim))
        return critic(states, actions).cpu().numpy().astype(np.float64)

    imagined = ensemble.standardize(data.states[steps[0]])
    baseline = value(imagined)
    foretold, real = -baseline, -baseline
    for t in range(horizon):
        actions = th.as_tensor(data.actions[steps[t]], dtype=th.float32, device=imagined.device)
        following, rewards = ensemble.predict(imagined, actions)
        following = ensemble.clip(following.mean(0))
        earned = ensemble.reward(imagined, actions, following, rewards.mean(0))
        foretold = foretold + gamma**t * earned.cpu().numpy() / unit
        real = real + gamma**t * data.rewards[steps[t]] / unit
        imagined = following
    last = ensemble.standardize(data.next_states[steps[-1]])
    return correlation(foretold + gamma**horizon * value(imagined), real + gamma**horizon * value(last))


@th.no_grad()
def critic_r_squared(ensemble: Ensemble, critic: Critic, data: Transitions, returns: FloatArray, rows: IntArray) -> float:
    """
    Share of the variance of realised returns that the critic explains.

    :param ensemble: its units are used
    :param critic: the critic
    :param data: real steps
    :param returns: realised, ``[n]``
    :param rows: of which steps
    :return: at most 1
    """
    actions = th.as_tensor(data.actions[rows], dtype=th.float32, device=ensemble.state_mean.device)
    values = critic(ensemble.standardize(data.states[rows]), actions).cpu().numpy() * float(critic.unit)
    spread = float(returns[rows].var())
    return 1.0 - float((returns[rows] - values).var()) / spread if spread > 0.0 else 0.0


@th.no_grad()
def policy_change(actor: SquashedGaussian, before: th.Tensor, states: th.Tensor) -> tuple[float, float]:
    """
    How far a policy has moved.

    :param actor: the policy
    :param before: its former parameters, ``[1, P]``
    :param states: standardised, ``[n, dx]``
    :return: KL(before || now), nats, mean over the states, and the mean standard deviation before tanh
    """
    after = actor.network.flat.detach().clone()
    mean, log_std = actor(states)
    actor.network.flat.copy_(before)
    old_mean, old_log_std = actor(states)
    actor.network.flat.copy_(after)
    return float(gaussian_kl(old_mean, old_log_std, mean, log_std).mean()), float(log_std.exp().mean())
