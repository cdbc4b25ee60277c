"""What the model predicts from real states: windows of the policy's for the critic, and for the expert.

Both may be corrected on-policy: to the prediction of a member is added what it missed on the real step from the same state
(``residuals`` of ``ensemble``). At the real action the imagined step is the real one; only the effect of acting differently
is the model's.

Shapes: ``E`` members with ``m`` windows each, ``H`` steps; states standardised ``[E, m, dx]``.
"""

from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_dpi.trajopt.types import IntArray
from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.types import Memory, Transitions, successors


@dataclass(frozen=True)
class Batch:
    """Transitions of one step or several that a critic learns from, in standardised states."""

    states: th.Tensor
    """``[n, dx]``"""
    actions: th.Tensor
    """``[n, du]``"""
    rewards: th.Tensor
    """``[n]``"""
    next_states: th.Tensor
    """``[n, dx]``"""
    continuation: th.Tensor
    """probability that the episode goes on, discounted but for one step, ``[n]``"""

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Windows:
    """Where imagined trajectories begin, and what corrects them."""

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

    def split(self, n: int) -> list["Windows"]:
        """
        Deal them out.

        :param n: parts
        :return: windows of all members in each
        """
        residuals = self.state_residuals.chunk(n, 2), self.reward_residuals.chunk(n, 2)
        return [Windows(*part) for part in zip(self.states.chunk(n, 1), *residuals, strict=True)]


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
    continuation: th.Tensor
    """probability that the episode has come so far, ``[H + 1, E, m]``"""


def roll_out(actor: SquashedGaussian, ensemble: Ensemble, windows: Windows, noise: th.Tensor) -> Imagined:
    """
    Follow the policy under the corrected model, differentiably.

    :param actor: the policy
    :param ensemble: the model
    :param windows: where to begin
    :param noise: of the policy, ``[H + 1, E, m, du]``
    :return: what happened
    """
    states = [windows.states]
    actions, log_probs, rewards = [], [], []
    continuation = [th.ones(windows.states.shape[:-1], device=windows.states.device)]
    for t in range(windows.horizon + 1):
        chosen, log_prob = actor.sample(states[t], noise[t])
        actions.append(chosen)
        log_probs.append(log_prob)
        if t == windows.horizon:
            break
        predicted, earned = ensemble.predict(states[t], chosen)
        following = ensemble.clip(predicted + windows.state_residuals[t])
        rewards.append(ensemble.reward(states[t], chosen, following, earned + windows.reward_residuals[t]))
        continuation.append(continuation[t] * ensemble.continuation(states[t], chosen, following))
        states.append(following)
    nothing = windows.reward_residuals[:0]
    return Imagined(
        th.stack(states),
        th.stack(actions),
        th.stack(log_probs),
        th.stack(rewards) if rewards else nothing,
        th.stack(continuation),
    )


def real_batch(ensemble: Ensemble, data: Transitions, unit: float) -> Batch:
    """
    Real transitions as a critic sees them.

    :param ensemble: its units are used
    :param data: real steps
    :param unit: of value, in rewards
    :return: one row each
    """
    device = ensemble.state_mean.device
    return Batch(
        ensemble.standardize(data.states),
        th.as_tensor(data.actions, dtype=th.float32, device=device),
        th.as_tensor(data.rewards, dtype=th.float32, device=device) / unit,
        ensemble.standardize(data.next_states),
        th.as_tensor(~data.terminated, dtype=th.float32, device=device),
    )


@dataclass(frozen=True)
class Imagination:
    """How much is imagined between two blocks of real steps.

    :param horizon: steps H of a window in which the expert plans; usual: 1 to 10
    :param n_windows: windows of a plan; usual: 100 to 500
    :param n_rollout_steps: imagined steps for the critic between updates, in model rollouts from states drawn from all that is
        kept
    :param rollout_length: steps of a model rollout, whose end the critic closes. Long ones tell it what actions do later and
        end leaps and standstills where a step is short; in unstable systems they mislead; usual: 1 to 32. None: the preset's
    :param on_policy_correction: whether imagination is corrected by the model's errors on real steps; without it models of
        unstable systems mislead. None: the preset's
    :raises ValueError: if a number is out of range
    """

    horizon: int = 4
    n_windows: int = 200
    n_rollout_steps: int = 20_000
    rollout_length: int | None = None
    on_policy_correction: bool | None = None

    def __post_init__(self) -> None:
        for name, smallest in (("horizon", 0), ("n_windows", 1), ("n_rollout_steps", 1), ("rollout_length", 1)):
            value = getattr(self, name)
            if value is not None and not value >= smallest:
                raise ValueError(f"imagination: {name} must be at least {smallest}, got {value}")


@th.no_grad()
def rollouts(
    ensemble: Ensemble,
    actor: SquashedGaussian,
    memory: Memory,
    corrected: bool,
    rng: np.random.Generator,
    n: int,
    length: int,
    temperature: float,
    gamma: float,
) -> Batch:
    """
    Imagine what the policy does from real states, each under one member.

    Every step x_t, u_t of a rollout of L steps is a transition to its end: over k = L - t steps

        y = r_t + sum_{0 < i < k} gamma^i c_{t+i} (r_{t+i} - alpha log pi(u_{t+i}|x_{t+i})) + gamma^k c_L V(x_L),

    c the probability that the episode comes so far. A critic that learns from single steps must tell actions apart by
    differences that are small against its own errors; over many steps the model does that.

    :param ensemble: the model
    :param actor: the policy
    :param memory: real transitions, from whose states the rollouts begin
    :param corrected: whether they are corrected on-policy
    :param rng: draws states and actions
    :param n: how many steps, rounded up to whole rollouts of all members
    :param length: L
    :param temperature: alpha, in the environment's rewards
    :param gamma: discount factor
    :return: imagined transitions: ``rewards`` the sum in y, ``next_states`` x_L, ``continuation`` gamma^{k-1} c_L; steps
        that an episode is unlikely to come to are few
    """
    m = -(-n // (length * ensemble.n_members))
    rows = rng.integers(len(memory), size=ensemble.n_members * m)
    windows = make_windows(ensemble, memory, rows, length, corrected)
    noise = rng.standard_normal((length + 1, ensemble.n_members, m, actor.action_dim)).astype(np.float32)
    imagined = roll_out(actor, ensemble, windows, th.as_tensor(noise, device=windows.states.device))
    going_on = imagined.continuation[1:] / imagined.continuation[:-1].clamp_min(1e-6)
    rewards, continuation = imagined.rewards.clone(), going_on.clone()
    for t in range(length - 2, -1, -1):
        rewards[t] += gamma * going_on[t] * (rewards[t + 1] - temperature * imagined.log_probs[t + 1])
        continuation[t] *= gamma * continuation[t + 1]
    reached = th.as_tensor(rng.random(tuple(rewards.shape)), device=rewards.device) <= imagined.continuation[:-1]
    states, actions = imagined.states[:-1][reached], imagined.actions[:-1][reached]
    ends = imagined.states[-1].expand(length, *imagined.states.shape[1:])
    return Batch(states, actions, rewards[reached], ends[reached], continuation[reached])


def make_windows(ensemble: Ensemble, memory: Memory, rows: IntArray, horizon: int, corrected: bool) -> Windows:
    """
    Begin windows at real steps; each is corrected by the real trajectory as long as that lasts.

    :param ensemble: the model
    :param memory: real steps
    :param rows: where windows begin, ``[E * m]``: the first m under the first member
    :param horizon: H
    :param corrected: whether residuals are added
    :return: windows
    """
    E, m = ensemble.n_members, len(rows) // ensemble.n_members
    if not corrected:
        starts = ensemble.standardize(memory.take(rows).states).view(E, m, -1)
        return Windows(starts, starts.new_zeros(horizon, *starts.shape), starts.new_zeros(horizon, E, m))
    starts = ensemble.standardize(memory.take(rows).states).view(E, m, -1)
    steps, alive = successors(memory, rows, max(horizon, 1))
    residuals = ensemble.residuals(memory.take(steps.reshape(-1, E, m).swapaxes(0, 1).reshape(-1)))
    keep = th.as_tensor(alive, dtype=th.float32, device=starts.device).view(-1, E, m)
    states = residuals.states.view(E, -1, m, starts.shape[-1]).transpose(0, 1) * keep[..., None]
    rewards = residuals.rewards.view(E, -1, m).transpose(0, 1) * keep
    return Windows(starts, states[:horizon].contiguous(), rewards[:horizon].contiguous())
