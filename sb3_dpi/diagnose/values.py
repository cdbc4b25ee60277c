"""A critic against what was earned."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_dpi.aggrevated_oc import AggreVaTeDOC
from sb3_dpi.common.critic import predict_values, value_units
from sb3_dpi.diagnose.episodes import Episode
from sb3_dpi.diagnose.subject import Subject
from sb3_dpi.dpi import DPI
from sb3_dpi.expert_iteration import ExIt
from sb3_dpi.trajopt.discounting import discounted_sums
from sb3_dpi.trajopt.types import FloatArray

Values = Callable[[Episode], FloatArray]
"""Of every observation of an episode, the last one included, in units of the rewards that the critic learns from."""
LEFT_OPEN = 0.2
"""Of the discount, at which a return that the end of an episode cut off still counts as realised."""
FEWEST = 20
"""Steps below which all are taken, however much of their returns is the critic's own word."""


def value_table(subject: Subject, episodes: Sequence[Episode]) -> pd.DataFrame | None:
    """
    Compare a critic with discounted returns.

    :param subject: model or policy
    :param episodes: of the policy with its exploration, whose critic it is
    :return: a row a step: episode, step, ``critic``, ``realised``, and ``open``, the share of the return's discount that the
        critic itself closed; None where there is no critic, or its discount is not known
    """
    values, gamma = value_function(subject), subject.gamma
    if values is None or gamma is None:
        return None
    parts = []
    for i, episode in enumerate(episodes):
        found, T = values(episode), len(episode)
        rewards = _rewards(subject, episode)
        soft = _entropy_bonus(subject, episode)
        closing = 0.0 if episode.terminated else found[-1] + soft[-1]
        # the bonus of an action belongs to the step before: Q is of the action that is taken anyway
        gains = rewards + gamma * np.append(soft[1:-1], 0.0)
        gains[-1] += gamma * closing
        ends = np.arange(T) == T - 1
        left = np.zeros(T) if episode.terminated else gamma ** (T - np.arange(T))
        realised = discounted_sums(gains, ends, gamma)
        columns = {"episode": i, "step": np.arange(T), "critic": found[:-1], "realised": realised, "open": left}
        parts.append(pd.DataFrame(columns))
    table = pd.concat(parts, ignore_index=True)
    closed = table[table["open"] <= LEFT_OPEN]
    return closed.reset_index(drop=True) if len(closed) >= FEWEST else table


def value_function(subject: Subject) -> Values | None:
    """
    Find the critic.

    :param subject: model or policy
    :return: None where there is none that judges returns
    """
    model, policy = subject.model, subject.policy
    if isinstance(model, DPI):
        return (lambda episode: _dpi_values(model, episode)) if model.ensemble.has_units else None
    units = None if model is None else value_units(model)
    if not isinstance(policy, ActorCriticPolicy) or units is None:
        return None

    return lambda episode: predict_values(policy, episode.seen, units)


def why_no_values(subject: Subject) -> str:
    """
    Say why there is no comparison.

    :param subject: one without ``value_table``
    :return: a sentence
    """
    model, policy = subject.model, subject.policy
    if isinstance(model, DPI):
        return "It learns together with the model, which has not learned yet."
    if model is None and isinstance(policy, ActorCriticPolicy):
        return (
            "A policy does not say what its critic learned from, nor does the file of an algorithm of Stable-Baselines3: in "
            "Python load the model, as by PPO.load, and give it to diagnose()."
        )
    if hasattr(policy, "critic") or hasattr(policy, "q_net"):
        return "Q-functions are compared with returns for DPI alone."
    return "There is no critic here that judges returns."


@th.no_grad()
def _dpi_values(model: Any, episode: Episode) -> FloatArray:
    actions = th.as_tensor(episode.actions, dtype=th.float32, device=model.device)
    values: FloatArray = model.critic(model.ensemble.standardize(episode.states), actions).double().cpu().numpy()
    return values * float(model.critic.unit)


def _entropy_bonus(subject: Subject, episode: Episode) -> FloatArray:
    """What a soft critic adds for the chance of each action, ``[T + 1]``, in rewards."""
    model = subject.model
    if not isinstance(model, DPI) or not model.critic.uses_actions:
        return np.zeros(len(episode) + 1)
    bonus: FloatArray = -model.temperature * float(model.critic.unit) * episode.log_probs
    return bonus


def _rewards(subject: Subject, episode: Episode) -> FloatArray:
    """Those that the critic learns from."""
    originals = isinstance(subject.model, DPI | AggreVaTeDOC | ExIt)
    return (episode.rewards if originals else episode.shown_rewards).copy()
