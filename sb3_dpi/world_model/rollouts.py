"""Model rollouts: imagined steps that the critic learns from, and states from which windows may begin.

Shapes: ``E`` members with ``m`` rollouts of ``L`` steps each; states standardised ``[E, m, dx]``.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch as th

from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.imagination import Batch, Misses, Windows, make_windows, roll_out
from sb3_dpi.world_model.types import Memory


@dataclass(frozen=True)
class RolloutOptions:
    """What model rollouts are."""

    length: int
    """L"""
    temperature: float
    """alpha, in the environment's rewards"""
    gamma: float
    """discount factor"""
    corrected: bool = False
    """whether they are corrected on-policy"""
    misses: Misses | None = None
    """noise on what is predicted, where they are not"""
    members_change: bool = False
    """whether each step has another member"""
    expanding: bool = False
    """whether only their first steps, at real states, are learned from"""


@th.no_grad()
def rollouts(
    ensemble: Ensemble,
    actor: SquashedGaussian,
    memory: Memory,
    rng: np.random.Generator,
    n: int,
    options: RolloutOptions,
) -> Batch:
    """
    Imagine what the policy does from real states.

    Every step x_t, u_t of a rollout of L steps is a transition to its end: over k = L - t steps

        y = r_t + sum_{0 < i < k} gamma^i c_{t+i} (r_{t+i} - alpha log pi(u_{t+i}|x_{t+i})) + gamma^k c_L V(x_L),

    c the probability that the episode comes so far. A critic that learns from single steps must tell actions apart by
    differences that are small against its own errors; over many steps the model does that. Value expansion (Feinberg et al.
    2018) keeps t = 0 alone: all targets belong to real states, and each is of L steps. Then rollouts come in pairs that begin
    with the same step and go on with opposite noise of the policy: what is linear in it cancels in the pair's mean.

    :param ensemble: the model
    :param actor: the policy
    :param memory: real transitions, from whose states the rollouts begin
    :param rng: draws states and actions
    :param n: how many to learn from, rounded up to whole rollouts of all members, or pairs of them
    :param options: L, alpha, gamma and the model's ways
    :return: imagined transitions: ``rewards`` the sum in y, ``next_states`` x_L, ``continuation`` gamma^{k-1} c_L; steps
        that an episode is unlikely to come to are few
    """
    length, gamma, temperature = options.length, options.gamma, options.temperature
    kept = 1 if options.expanding else length
    m = -(-n // (ensemble.n_members * (2 if options.expanding else kept)))
    rows = rng.integers(len(memory), size=ensemble.n_members * m)
    windows = make_windows(ensemble, memory, rows, length, options.corrected)
    if options.misses is not None:
        windows = options.misses.added_to(windows, rng, options.members_change)
    noise = rng.standard_normal((length + 1, ensemble.n_members, m, actor.action_dim)).astype(np.float32)
    steps = th.as_tensor(noise, device=windows.states.device)
    if options.expanding:
        windows, steps = _in_opposite_pairs(windows, steps)
    imagined = roll_out(actor, ensemble, windows, steps, options.members_change)
    going_on = imagined.continuation[1:] / imagined.continuation[:-1].clamp_min(1e-6)
    rewards, continuation = imagined.rewards.clone(), going_on.clone()
    for t in range(length - 2, -1, -1):
        rewards[t] += gamma * going_on[t] * (rewards[t + 1] - temperature * imagined.log_probs[t + 1])
        continuation[t] *= gamma * continuation[t + 1]
    drawn = th.as_tensor(rng.random((kept, *rewards.shape[1:])), device=rewards.device)
    reached = drawn <= imagined.continuation[:kept]
    states, actions = imagined.states[:kept][reached], imagined.actions[:kept][reached]
    ends = imagined.states[-1].expand(kept, *imagined.states.shape[1:])
    return Batch(states, actions, rewards[:kept][reached], ends[reached], continuation[:kept][reached])


def _in_opposite_pairs(windows: Windows, noise: th.Tensor) -> tuple[Windows, th.Tensor]:
    """Each window once more, with the same first action and opposite noise later on."""
    states, residuals, rewards = windows.states, windows.state_residuals, windows.reward_residuals
    twice = Windows(th.cat([states, states], 1), th.cat([residuals, residuals], 2), th.cat([rewards, rewards], 2))
    return twice, th.cat([noise, th.cat([noise[:1], -noise[1:]])], 2)


class RolloutPool:
    """
    The latest model rollouts, part by part.

    :param draw: makes so many imagined steps with model and policy as they are
    :param n_steps: of all parts together
    :param n_parts: 1 where they stay as they are
    """

    def __init__(self, draw: Callable[[int], Batch], n_steps: int, n_parts: int = 1) -> None:
        self._draw, self._size = draw, -(-n_steps // n_parts)
        self._parts = [draw(self._size) for _ in range(n_parts)]
        self.steps = self._joined()

    def renew(self) -> None:
        """Draw the oldest part anew."""
        self._parts = [*self._parts[1:], self._draw(self._size)]
        self.steps = self._joined()

    def _joined(self) -> Batch:
        return Batch(*(th.cat([getattr(part, field.name) for part in self._parts]) for field in fields(Batch)))

    def begin(self, windows: Windows, share: float, rng: np.random.Generator) -> Windows:
        """
        Let windows begin at states of the rollouts.

        :param windows: that begin at real states, without a correction
        :param share: of them that begin at imagined ones
        :param rng: draws
        :return: windows with the same residuals
        """
        E, m, _ = windows.states.shape
        n = round(share * m)
        if n == 0 or len(self.steps) == 0:
            return windows
        rows = th.as_tensor(rng.integers(len(self.steps), size=(E, n)), device=windows.states.device)
        return replace(windows, states=th.cat([self.steps.states[rows], windows.states[:, n:]], dim=1))
