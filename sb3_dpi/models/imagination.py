"""What the model foretells from real states: single steps for the critic, short windows for the expert.

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
    """Transitions that a critic learns from, in standardised states."""

    states: th.Tensor
    """``[n, dx]``"""
    actions: th.Tensor
    """``[n, du]``"""
    rewards: th.Tensor
    """``[n]``"""
    next_states: th.Tensor
    """``[n, dx]``"""
    survival: th.Tensor
    """probability that the episode goes on, ``[n]``"""

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
    ensemble: Ensemble, actor: SquashedGaussian, real: Pool, residuals: Residuals | None, rng: np.random.Generator, n: int
) -> Pool:
    """
    Imagine single steps: the policy's actions in real states, each under one member.

    :param ensemble: the model
    :param actor: the policy
    :param real: real transitions, from whose states the steps branch off
    :param residuals: of all members on all real transitions, None for no anchor
    :param rng: draws states, members and actions
    :param n: how many steps
    :return: imagined transitions
    """
    rows = rng.integers(len(real), size=n)
    members = rng.integers(ensemble.n_members, size=n)
    rows = rows[np.argsort(members, kind="stable")]
    counts = np.bincount(members, minlength=ensemble.n_members)
    states = real.states[rows]
    noise = rng.standard_normal((n, actor.action_dim)).astype(np.float32)
    actions, _ = actor.sample(states, th.as_tensor(noise, device=states.device))
    following, rewards, start = th.empty_like(states), th.empty(n, device=states.device), 0
    # one member for each row: the others need not be asked
    m = int(counts.max())
    padded_states = states.new_zeros(ensemble.n_members, m, states.shape[1])
    padded_actions = actions.new_zeros(ensemble.n_members, m, actions.shape[1])
    for e, count in enumerate(counts):
        padded_states[e, :count], padded_actions[e, :count] = states[start : start + count], actions[start : start + count]
        start += count
    predicted, foretold = ensemble.predict(padded_states, padded_actions)
    start = 0
    for e, count in enumerate(counts):
        part, chosen = slice(start, start + count), rows[start : start + count]
        following[part], rewards[part] = predicted[e, :count], foretold[e, :count]
        if residuals is not None:
            following[part] += residuals.states[e, chosen]
            rewards[part] += residuals.rewards[e, chosen]
        start += count
    following = ensemble.clip(following)
    rewards = ensemble.reward(states, actions, following, rewards)
    return Pool(states, actions, rewards, following, ensemble.survival(states, actions, following))


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
