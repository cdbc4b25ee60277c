"""DPI's ensemble against real episodes: states, rewards, ends, and the returns of whole imagined stretches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch as th

from sb3_dpi.diagnose.episodes import Episode, EpisodeMemory
from sb3_dpi.diagnose.prediction import HORIZONS, Predictions, real_stretches
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.ensemble import Ensemble
from sb3_dpi.world_model.imagination import Windows, roll_out

RETURN_STEPS = (5, 20, 100)
"""Steps of imagined and real returns."""
RETURN_STARTS, RETURN_DRAWS = 60, 4
"""Starts of each length, and imagined stretches from each under every member."""


@th.no_grad()
def predict_states(ensemble: Ensemble, episodes: Sequence[Episode], horizons: Sequence[int] = HORIZONS) -> list[Predictions]:
    """
    Follow the real actions in the model, each member by itself, as imagination does.

    :param ensemble: the model
    :param episodes: real ones
    :param horizons: steps ahead
    :return: of each horizon that fits into an episode; the spread is that of the members
    """
    found = []
    for horizon in horizons:
        starts = real_stretches(episodes, horizon)
        if not len(starts.states):
            continue
        states = ensemble.standardize(starts.states).expand(ensemble.n_members, -1, -1)
        for actions in _tensor(ensemble, starts.actions):
            following, _ = ensemble.predict(states, actions.expand(ensemble.n_members, -1, -1))
            states = ensemble.clip(following)
        members = ensemble.restore(states)
        spread = members.std(0, ddof=1) if len(members) > 1 else np.zeros(members.shape[1:])
        found.append(Predictions(horizon, starts.states, starts.truth, members.mean(0), spread))
    return found


@th.no_grad()
def one_step_table(ensemble: Ensemble, episodes: Sequence[Episode]) -> pd.DataFrame:
    """
    Rewards and ends, a step ahead.

    :param ensemble: the model
    :param episodes: real ones
    :return: a row a real step: the reward, what the members' mean predicted of it, whether the episode ended for good, and how
        probable the model held that
    """
    memory = EpisodeMemory(episodes)
    data = memory.take(np.arange(len(memory)))
    states, actions = ensemble.standardize(data.states), _tensor(ensemble, data.actions)
    following, rewards = ensemble.predict(states, actions)
    mean = ensemble.clip(following.mean(0))
    predicted = ensemble.reward(states, actions, mean, rewards.mean(0)).double().cpu().numpy()
    end = 1.0 - ensemble.continuation(states, actions, mean).double().cpu().numpy()
    columns = {"reward": data.rewards, "predicted": predicted, "ended": data.terminated, "end_probability": end}
    return pd.DataFrame(columns)


@th.no_grad()
def imagined_returns(
    ensemble: Ensemble,
    actor: SquashedGaussian,
    episodes: Sequence[Episode],
    rng: np.random.Generator,
    lengths: Sequence[int] = RETURN_STEPS,
) -> pd.DataFrame:
    """
    What the policy earns from the same states in the model and in reality.

    :param ensemble: the model, uncorrected
    :param actor: the policy that acted
    :param episodes: real ones
    :param rng: draws the policy's noise
    :param lengths: steps
    :return: a row a start and length: episode, step, and the sums of rewards, real, imagined and the standard deviation of
        the members' means
    """
    rows: list[tuple[Any, ...]] = []
    for length in lengths:
        places = [
            (i, t)
            for i, episode in enumerate(episodes)
            for t in range(len(episode))
            if t + length <= len(episode) or episode.terminated
        ]
        if not places:
            continue
        chosen = np.unique(np.linspace(0, len(places) - 1, min(RETURN_STARTS, len(places))).astype(int))
        picked = [places[k] for k in chosen]
        members = imagine(ensemble, actor, np.stack([episodes[i].states[t] for i, t in picked]), length, rng)
        spread = members.std(0, ddof=1) if len(members) > 1 else np.zeros(members.shape[1])
        for (i, t), mean, std in zip(picked, members.mean(0), spread, strict=True):
            rows.append((length, i, t, float(episodes[i].rewards[t : t + length].sum()), mean, std))
    return pd.DataFrame(rows, columns=["steps", "episode", "step", "real", "imagined", "spread"])


@th.no_grad()
def imagine(
    ensemble: Ensemble, actor: SquashedGaussian, starts: FloatArray, length: int, rng: np.random.Generator | None
) -> FloatArray:
    """
    Sums of rewards in the model.

    :param ensemble: the model
    :param actor: the policy
    :param starts: in the environment's units, ``[n, dx]``
    :param length: steps
    :param rng: draws noise of the policy, several times from each start; None: it acts without
    :return: of each member, ``[E, n]``
    """
    E, n, draws = ensemble.n_members, len(starts), 1 if rng is None else RETURN_DRAWS
    states = ensemble.standardize(starts).repeat_interleave(draws, 0).expand(E, -1, -1)
    nothing = states.new_zeros(length, *states.shape)
    windows = Windows(states, nothing, nothing[..., 0])
    shape = (length + 1, E, n * draws, actor.action_dim)
    noise = np.zeros(shape) if rng is None else rng.standard_normal(shape)
    imagined = roll_out(actor, ensemble, windows, _tensor(ensemble, noise))
    sums = (imagined.continuation[:-1] * imagined.rewards).sum(0)
    means: FloatArray = sums.double().cpu().numpy().reshape(E, n, draws).mean(-1)
    return means


def r_squared(predicted: FloatArray, real: FloatArray) -> float:
    """
    Share of what happened that was predicted.

    :param predicted: ``[n]``
    :param real: ``[n]``
    :return: at most 1, zero for the mean alone; NaN where nothing varies
    """
    variance = float(np.var(real))
    return 1.0 - float(np.mean(np.square(predicted - real))) / variance if variance > 0.0 else float("nan")


def _tensor(ensemble: Ensemble, array: np.ndarray) -> th.Tensor:
    return th.as_tensor(np.asarray(array, np.float32), device=ensemble.state_mean.device)
