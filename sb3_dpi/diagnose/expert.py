"""DPI's expert against its policy: how much better is who follows the expert for a block, in the model and in reality.

The expert plans in windows of a few steps, and the first-order one has no plan of its own: what all of them have is the
direction in which the policy follows. The expert here is thus the policy that has followed for as many steps as a block takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch as th

from sb3_dpi.diagnose.episodes import Episode, EpisodeMemory, Stage, actor_act
from sb3_dpi.diagnose.subject import Subject, apart
from sb3_dpi.diagnose.world import imagine
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.actor import SquashedGaussian, gaussian_kl
from sb3_dpi.world_model.experts.pathwise import window_objective
from sb3_dpi.world_model.experts.problem import PlanningProblem
from sb3_dpi.world_model.imagination import Windows, make_windows

AHEAD_STEPS = (5, 20, 100)
"""Steps over which expert and policy are compared."""


@dataclass(frozen=True)
class Followed:
    """The policy before and after it followed the expert."""

    before: SquashedGaussian
    after: SquashedGaussian
    n_steps: int
    """of imitation"""
    window_gain: float
    """of the return of a window of the expert's, closed by the critic, entropy included: what it follows; in rewards"""


def follow_expert(model: Any, memory: EpisodeMemory, seed: int, n_steps: int | None = None) -> Followed:
    """
    Let a copy of the policy follow the expert as the next block would; the model and its critic stay as they are.

    :param model: DPI
    :param memory: real steps, from which the windows begin
    :param seed: draws windows and noise
    :param n_steps: of imitation; None: as many as a block takes
    :return: the copy, before and after
    """
    trial = apart(model, None, seed)
    before = apart(model, None, seed).policy.actor
    numbers = trial.numbers
    steps = max(int(trial.update_to_data * numbers.train_freq), 1) if n_steps is None else n_steps
    per_plan = trial._expert.imitation_steps
    n_plans = -(-steps // per_plan)
    members = trial.ensemble.n_members
    rows = trial._rng.integers(len(memory), size=members * n_plans * max(trial.imagination.n_windows // members, 1))
    windows = make_windows(trial.ensemble, memory, rows, trial.imagination.horizon, numbers.on_policy_correction)
    parts = windows.split(n_plans)
    for i in range(steps):
        if i % per_plan == 0:
            plan = trial.improve_expert(parts[i // per_plan])
        trial.imitate(plan)
    gain = _window_gain(trial, before, parts[0], trial._rng)
    return Followed(before, trial.policy.actor, steps, gain)


@th.no_grad()
def _window_gain(trial: Any, before: SquashedGaussian, windows: Windows, rng: np.random.Generator) -> float:
    """With the same noise of both."""
    told = trial.ensemble, trial.critic, windows, trial.temperature, trial.discount
    both = [PlanningProblem(actor, *told) for actor in (before, trial.policy.actor)]
    noise = th.as_tensor(rng.standard_normal(both[0].noise_shape).astype(np.float32), device=windows.states.device)
    old, new = (float(window_objective(problem, noise)[0]) for problem in both)
    return (new - old) * float(trial.critic.unit)


@dataclass(frozen=True)
class Race:
    """Expert and policy from the same starts, both without noise."""

    policy: list[Episode]
    expert: list[Episode]
    table: pd.DataFrame
    """a row a length and start: what the expert earns beyond the policy in the ``model`` and in ``real``"""


def race(
    subject: Subject, stage: Stage, followed: Followed, seeds: Sequence[int], lengths: Sequence[int] = AHEAD_STEPS
) -> Race:
    """
    Compare expert and policy.

    :param subject: whose model imagines
    :param stage: the real environment
    :param followed: both
    :param seeds: of the resets
    :param lengths: steps
    :return: episodes of both, and what the expert earns beyond the policy
    """
    longest = max(lengths)
    both = [stage.play_several(actor_act(subject, actor, None), seeds, longest) for actor in (followed.before, followed.after)]
    starts = np.stack([episode.states[0] for episode in both[0]])
    rows = []
    for length in lengths:
        if length > max(len(episode) for episodes in both for episode in episodes):
            continue
        model = [
            imagine(subject.model.ensemble, actor, starts, length, None).mean(0) for actor in (followed.before, followed.after)
        ]
        for i in range(len(seeds)):
            real = [float(episodes[i].rewards[:length].sum()) for episodes in both]
            rows.append((length, i, float(model[1][i] - model[0][i]), real[1] - real[0]))
    return Race(both[0], both[1], pd.DataFrame(rows, columns=["steps", "start", "model", "real"]))


@th.no_grad()
def divergence_table(model: Any, followed: Followed, episodes: Sequence[Episode]) -> pd.DataFrame:
    """
    How far expert and policy differ along real episodes.

    :param model: DPI, whose units states are in
    :param followed: both
    :param episodes: of the policy
    :return: a row a time step: KL(expert || policy) in nats, its mean, 10 and 90 % over the episodes
    """
    longest = max(map(len, episodes))
    kl = np.full((len(episodes), longest), np.nan)
    for i, episode in enumerate(episodes):
        states = model.ensemble.standardize(episode.states[:-1])
        kl[i, : len(episode)] = gaussian_kl(*followed.after(states), *followed.before(states)).double().cpu().numpy()
    return over_time(kl)


def over_time(kl: FloatArray) -> pd.DataFrame:
    """
    Summarise divergences along time.

    :param kl: nats, NaN where there was no step, ``[n, T]``
    :return: a row a time step
    """
    low, high = np.nanquantile(kl, (0.1, 0.9), axis=0)
    return pd.DataFrame({"step": np.arange(kl.shape[1]), "kl": np.nanmean(kl, axis=0), "low": low, "high": high})
