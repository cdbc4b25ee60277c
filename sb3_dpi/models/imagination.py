"""What the model foretells from real states: windows of the policy's for the critic, and for the expert.

Both are anchored: to the prediction of a member is added what it missed on the real step from the same state (``residuals``
of ``ensemble``). At the real action the imagined step is the real one; only the effect of acting differently is the model's.

Shapes: ``E`` members with ``m`` windows each, ``H`` steps; states standardised ``[E, m, dx]``.
"""

from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_dpi.models.actors import SquashedGaussian
from sb3_dpi.models.data import Transitions, successors
from sb3_dpi.models.ensemble import Ensemble, Residuals
from sb3_dpi.trajopt.types import IntArray


@dataclass(frozen=True)
class Pool:
    """Transitions of one step or several that a critic learns from, in standardised states."""

    states: th.Tensor
    """``[n, dx]``"""
    actions: th.Tensor
    """``[n, du]``"""
    rewards: th.Tensor
    """``[n]``"""
    next_states: th.Tensor
    """``[n, dx]``"""
    survival: th.Tensor
    """probability that the episode goes on, discounted but for one step, ``[n]``"""

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Windows:
    """Where imagined trajectories begin, and what anchors them."""

    states: th.Tensor
    """``[E, m, dx]``"""
    state_residuals: th.Tensor
    """zero where the real trajectory had ended, ``[H, E, m, dx]``"""
    reward_residuals: th.Tensor
    """``[H, E, m]``"""

    @property
    def horizon(self) -> int:
        """H."""
        return len(self.state_residuals)


@dataclass(frozen=True)
class Imagined:
    """What happened in imagined windows."""

    states: th.Tensor
    """``[H + 1, E, m, dx]``"""
    actions: th.Tensor
    """the last one only closes the window, ``[H + 1, E, m, du]``"""
    log_probs: th.Tensor
    """of the actions, ``[H + 1, E, m]``"""
    rewards: th.Tensor
    """in units of the environment, ``[H, E, m]``"""
    survival: th.Tensor
    """probability that the episode has come so far, ``[H + 1, E, m]``"""


def roll_out(actor: SquashedGaussian, ensemble: Ensemble, windows: Windows, noise: th.Tensor) -> Imagined:
    """
    Follow the policy under the anchored model, differentiably.

    :param actor: the policy
    :param ensemble: the model
    :param windows: where to begin
    :param noise: of the policy, ``[H + 1, E, m, du]``
    :return: what happened
    """
    states = [windows.states]
    actions, log_probs, rewards = [], [], []
    survival = [th.ones(windows.states.shape[:-1], device=windows.states.device)]
    for t in range(windows.horizon + 1):
        chosen, log_prob = actor.sample(states[t], noise[t])
        actions.append(chosen)
        log_probs.append(log_prob)
        if t == windows.horizon:
            break
        predicted, foretold = ensemble.predict(states[t], chosen)
        following = ensemble.clip(predicted + windows.state_residuals[t])
        rewards.append(ensemble.reward(states[t], chosen, following, foretold + windows.reward_residuals[t]))
        survival.append(survival[t] * ensemble.survival(states[t], chosen, following))
        states.append(following)
    nothing = windows.reward_residuals[:0]
    return Imagined(
        th.stack(states),
        th.stack(actions),
        th.stack(log_probs),
        th.stack(rewards) if rewards else nothing,
        th.stack(survival),
    )


def real_pool(ensemble: Ensemble, data: Transitions) -> Pool:
    """
    Real transitions as a critic sees them.

    :param ensemble: its units are used
    :param data: real steps
    :return: one row each
    """
    device = ensemble.state_mean.device
    return Pool(
        ensemble.standardize(data.states),
        th.as_tensor(data.actions, dtype=th.float32, device=device),
        th.as_tensor(data.rewards, dtype=th.float32, device=device),
        ensemble.standardize(data.next_states),
        th.as_tensor(~data.terminated, dtype=th.float32, device=device),
    )


def join(first: Pool, second: Pool, unit: float) -> Pool:
    """
    Put one pool behind another, with rewards in a critic's unit.

    :param first: comes first, rewards in the environment's units
    :param second: comes then, likewise
    :param unit: of value, in rewards
    :return: both
    """
    return Pool(
        th.cat([first.states, second.states]),
        th.cat([first.actions, second.actions]),
        th.cat([first.rewards, second.rewards]) / unit,
        th.cat([first.next_states, second.next_states]),
        th.cat([first.survival, second.survival]),
    )


@th.no_grad()
def branch(
    ensemble: Ensemble,
    actor: SquashedGaussian,
    data: Transitions,
    residuals: Residuals | None,
    rng: np.random.Generator,
    n: int,
    length: int,
    temperature: float,
    gamma: float,
) -> Pool:
    """
    Imagine the policy's windows from real states, each under one member.

    Every step x_t, u_t of a window of L steps is a transition to its end: over k = L - t steps

        y = r_t + sum_{0 < i < k} gamma^i c_{t+i} (r_{t+i} - alpha log pi(u_{t+i}|x_{t+i})) + gamma^k c_L V(x_L),

    c the probability that the episode comes so far. A critic that learns from single steps must tell actions apart by
    differences that are small against its own errors; over many steps the model does that.

    :param ensemble: the model
    :param actor: the policy
    :param data: real transitions, from whose states the windows branch off
    :param residuals: of all members on all real transitions, None for no anchor
    :param rng: draws states and actions
    :param n: how many steps, rounded up to whole windows of all members
    :param length: L
    :param temperature: alpha, in the environment's rewards
    :param gamma: discount factor
    :return: imagined transitions: ``rewards`` the sum in y, ``next_states`` x_L, ``survival`` gamma^{k-1} c_L; steps that an
        episode is unlikely to come to are few
    """
    m = -(-n // (length * ensemble.n_members))
    rows = rng.integers(len(data), size=ensemble.n_members * m)
    windows = make_windows(ensemble, data, ensemble.standardize(data.states), residuals, rows, length)
    noise = rng.standard_normal((length + 1, ensemble.n_members, m, actor.action_dim)).astype(np.float32)
    imagined = roll_out(actor, ensemble, windows, th.as_tensor(noise, device=windows.states.device))
    going_on = imagined.survival[1:] / imagined.survival[:-1].clamp_min(1e-6)
    rewards, survival = imagined.rewards.clone(), going_on.clone()
    for t in range(length - 2, -1, -1):
        rewards[t] += gamma * going_on[t] * (rewards[t + 1] - temperature * imagined.log_probs[t + 1])
        survival[t] *= gamma * survival[t + 1]
    reached = th.as_tensor(rng.random(tuple(rewards.shape)), device=rewards.device) <= imagined.survival[:-1]
    states, actions = imagined.states[:-1][reached], imagined.actions[:-1][reached]
    ends = imagined.states[-1].expand(length, *imagined.states.shape[1:])
    return Pool(states, actions, rewards[reached], ends[reached], survival[reached])


def make_windows(
    ensemble: Ensemble, data: Transitions, states: th.Tensor, residuals: Residuals | None, rows: IntArray, horizon: int
) -> Windows:
    """
    Begin windows at real steps; each is anchored by the real trajectory as long as that lasts.

    :param ensemble: the model
    :param data: real steps
    :param states: their standardised states, ``[n, dx]``
    :param residuals: of all members on all real steps, None for no anchor
    :param rows: where windows begin, ``[E * m]``: the first m under the first member
    :param horizon: H
    :return: windows
    """
    E, m = ensemble.n_members, len(rows) // ensemble.n_members
    starts = states[rows].view(E, m, -1)
    if residuals is None:
        return Windows(starts, starts.new_zeros(horizon, *starts.shape), starts.new_zeros(horizon, E, m))
    steps, alive = successors(data, rows, horizon)
    members = th.arange(E, device=starts.device).repeat_interleave(m)
    keep = th.as_tensor(alive, dtype=th.float32, device=starts.device)
    index = th.as_tensor(steps, device=starts.device)
    return Windows(
        starts,
        (residuals.states[members, index] * keep[..., None]).view(horizon, *starts.shape),
        (residuals.rewards[members, index] * keep).view(horizon, E, m),
    )
