"""What the model predicts from real states: windows of the policy's for the critic, and for the expert.

Both may be corrected on-policy: to the prediction of a member is added what it missed on the real step from the same state
(``residuals`` of ``ensemble``). At the real action the imagined step is the real one; only the effect of acting differently
is the model's.

Shapes: ``E`` members with ``m`` windows each, ``H`` steps; states standardised ``[E, m, dx]``.
"""

from dataclasses import dataclass, replace

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
class Misses:
    """What members missed of the next state on real steps, as noise on what they predict of it."""

    states: th.Tensor
    """``[E, n, dx]``"""
    scale: float

    @classmethod
    def of(cls, ensemble: Ensemble, memory: Memory, n: int, scale: float) -> "Misses":
        """
        Measure them on the latest real steps.

        :param ensemble: the model
        :param memory: real steps
        :param n: how many of them, at most
        :param scale: by which they are multiplied when they are added
        :return: of each member
        """
        rows = np.tile(memory.newest(n), ensemble.n_members)
        return cls(ensemble.residuals(memory.take(rows)).states, scale)

    def added_to(self, windows: Windows, rng: np.random.Generator, members_change: bool = False) -> Windows:
        """
        Disturb each step of each window by one of them, of the member that predicts the step.

        :param windows: without a correction
        :param rng: draws
        :param members_change: whether each step has another member, in turn
        :return: windows whose residuals are drawn
        """
        H, E, m, _ = windows.state_residuals.shape
        drawn = th.as_tensor(rng.integers(self.states.shape[1], size=(H, E, m)), device=self.states.device)
        turns = th.arange(H, device=drawn.device)[:, None, None] if members_change else 0
        members = (th.arange(E, device=drawn.device)[None, :, None] + turns) % E
        return replace(windows, state_residuals=(self.scale * self.states[members, drawn]).contiguous())


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


def roll_out(
    actor: SquashedGaussian, ensemble: Ensemble, windows: Windows, noise: th.Tensor, members_change: bool = False
) -> Imagined:
    """
    Follow the policy under the corrected model, differentiably.

    :param actor: the policy
    :param ensemble: the model
    :param windows: where to begin
    :param noise: of the policy, ``[H + 1, E, m, du]``
    :param members_change: whether each step has another member, in turn
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
        predicted, earned = _predict(ensemble, states[t], chosen, t if members_change else 0)
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


def _predict(ensemble: Ensemble, states: th.Tensor, actions: th.Tensor, turn: int) -> tuple[th.Tensor, th.Tensor]:
    """By the member that is so many places on."""
    if turn % ensemble.n_members == 0:
        return ensemble.predict(states, actions)
    following, rewards = ensemble.predict(states.roll(turn, 0), actions.roll(turn, 0))
    return following.roll(-turn, 0), rewards.roll(-turn, 0)


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
    :param model_noise: where it is not corrected: how much of what a member missed of the state on another of the latest real
        steps, drawn at random, is added to each imagined one; 1: all. Policies otherwise learn what only the model's means
        bear. None: the preset's, 0: nothing
    :param imagined_starts: share of windows that begin at states of the model rollouts. These are then renewed while the
        policy learns, and members take turns in them. Real states are where former policies came to, of walkers mostly falls;
        usual: 0 or 1. None: the preset's
    :param value_expansion: so many targets of ``rollout_length`` imagined steps, two with opposite noise for each action in a
        real state; the critic learns from these in place of all steps of rollouts (value expansion, Feinberg et al. 2018).
        Long targets then mislead less in unstable systems; usual: 0, or 8,000 to 32,000. None: the preset's, 0: all steps of
        rollouts
    :raises ValueError: if a number is out of range, or ``imagined_starts`` are wanted of a value expansion
    """

    horizon: int = 4
    n_windows: int = 200
    n_rollout_steps: int = 20_000
    rollout_length: int | None = None
    on_policy_correction: bool | None = None
    model_noise: float | None = None
    imagined_starts: float | None = None
    value_expansion: int | None = None

    def __post_init__(self) -> None:
        for name, smallest in (("horizon", 0), ("n_windows", 1), ("n_rollout_steps", 1), ("rollout_length", 1)):
            value = getattr(self, name)
            if value is not None and not value >= smallest:
                raise ValueError(f"imagination: {name} must be at least {smallest}, got {value}")
        check_starts("imagination: ", self.model_noise, self.imagined_starts, self.value_expansion)


def check_starts(where: str, model_noise: float | None, imagined_starts: float | None, value_expansion: int | None) -> None:
    """
    Check numbers that may be left to the preset.

    :param where: what they belong to, in front of an error
    :param model_noise: at least 0 and finite
    :param imagined_starts: from 0 to 1
    :param value_expansion: at least 0
    :raises ValueError: if one is out of range, or the last two are wanted together
    """
    if model_noise is not None and not 0.0 <= model_noise < np.inf:
        raise ValueError(f"{where}model_noise must be at least 0 and finite, got {model_noise}")
    if imagined_starts is not None and not 0.0 <= imagined_starts <= 1.0:
        raise ValueError(f"{where}imagined_starts must be from 0 to 1, got {imagined_starts}")
    if value_expansion is not None and not value_expansion >= 0:
        raise ValueError(f"{where}value_expansion must be at least 0, got {value_expansion}")
    if value_expansion and imagined_starts:
        raise ValueError(
            f"{where}imagined_starts takes states of model rollouts, which value_expansion does not keep: set one of them to 0"
        )


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
