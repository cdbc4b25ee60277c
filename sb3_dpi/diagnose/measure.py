"""All that can be said of a model and an environment: tables, and the key figures among them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th

from sb3_dpi.common.environments import Environment
from sb3_dpi.diagnose.episodes import Episode, EpisodeMemory, Stage, actor_act, policy_act
from sb3_dpi.diagnose.expert import divergence_table, follow_expert, race
from sb3_dpi.diagnose.keys import KeyFigure, key_figures
from sb3_dpi.diagnose.local import NoLocalModelError, look
from sb3_dpi.diagnose.prediction import Predictions, calibration_table, error_table, rank_correlation
from sb3_dpi.diagnose.subject import Subject
from sb3_dpi.diagnose.values import value_table, why_no_values
from sb3_dpi.diagnose.world import imagined_returns, one_step_table, predict_states

SATURATED = 0.99
"""Size of an action, in units of the bounds, from which it counts as at them."""
ACTION_BINS = 21
OTHER_SEEDS = 10_000
"""Apart from those of the first episodes."""


@dataclass(frozen=True)
class Findings:
    """What was found out."""

    subject: Subject
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """by name, those that make sense for this model"""
    notes: dict[str, str] = field(default_factory=dict)
    """by the name of a table, ``"model"`` or ``"film"``, why it is not there"""
    names: Sequence[str] = ()
    """of the state's numbers"""

    @property
    def keys(self) -> list[KeyFigure]:
        """The few numbers to look at first."""
        return key_figures(self.tables)


def measure(subject: Subject, environment: Environment, n_episodes: int = 10, seed: int = 0) -> Findings:
    """
    Play real episodes, and compare them with what model, critic and expert say.

    :param subject: model or policy, which stays as it is
    :param environment: an id, an environment or a function that makes one
    :param n_episodes: real episodes, of each kind
    :param seed: of resets and noise
    :return: tables
    :raises DiagnoseError: if the policy does not fit the environment
    """
    with untouched_randomness(seed):
        stage = Stage(subject, environment)
        seeds = [seed + i for i in range(n_episodes)]
        tables: dict[str, pd.DataFrame] = {}
        notes: dict[str, str] = {}
        deployed = stage.play_several(policy_act(subject, True), seeds)
        tables["episodes"] = _episode_table(deployed, seeds)
        _look_at_actions(subject, deployed, tables, notes)
        apart_seeds = [OTHER_SEEDS + one for one in seeds]
        if subject.has_ensemble:
            sampled = _look_at_ensemble(subject, stage, apart_seeds, seed, tables)
        else:
            sampled = stage.play_several(policy_act(subject, False), apart_seeds)
            _look_at_local_models(subject, stage, seed, tables, notes)
        found = value_table(subject, sampled)
        if found is None:
            notes["critic"] = why_no_values(subject)
        else:
            tables["critic"] = found
        if not isinstance(environment, gym.Env):
            stage.close()
    return Findings(subject, tables, notes, stage.names)


def _look_at_ensemble(
    subject: Subject, stage: Stage, seeds: Sequence[int], seed: int, tables: dict[str, pd.DataFrame]
) -> list[Episode]:
    model, rng = subject.model, np.random.default_rng(seed)
    ensemble, actor = model.ensemble, model.policy.actor
    sampled = stage.play_several(actor_act(subject, actor, rng), seeds)
    predictions = predict_states(ensemble, sampled)
    _tell_predictions(predictions, stage.names, tables)
    tables["one_step"] = one_step_table(ensemble, sampled)
    tables["returns"] = imagined_returns(ensemble, actor, sampled, rng)
    followed = follow_expert(model, EpisodeMemory(sampled), seed)
    raced = race(subject, stage, followed, seeds)
    tables["ahead"] = raced.table
    columns = {"steps": [model.imagination.horizon], "imitation_steps": [followed.n_steps], "gain": [followed.window_gain]}
    tables["windows"] = pd.DataFrame(columns)
    tables["kl"] = divergence_table(model, followed, raced.policy)
    return sampled


def _look_at_local_models(
    subject: Subject, stage: Stage, seed: int, tables: dict[str, pd.DataFrame], notes: dict[str, str]
) -> None:
    if not subject.has_local_models:
        reason = "This policy has no model of the system." if subject.model is None else f"{subject.name} has no model"
        if subject.name == "DPI":
            reason = "The model has not learned yet: train beyond the warm-up."
        notes["model"] = reason.rstrip(".") + "."
        return
    try:
        found = look(subject, stage, OTHER_SEEDS + seed)
    except NoLocalModelError as error:
        notes["model"] = str(error)
        return
    _tell_predictions(found.predictions, stage.names, tables)
    tables["one_step"], tables["returns"], tables["ahead"] = found.rewards, found.returns, found.ahead
    tables["kl"], tables["conditions"] = found.kl, found.conditions


def _tell_predictions(predictions: Sequence[Predictions], names: Sequence[str], tables: dict[str, pd.DataFrame]) -> None:
    tables["prediction"] = error_table(predictions, names)
    calibration = calibration_table(predictions)
    ranks = {found.horizon: rank_correlation(found) for found in predictions}
    tables["calibration"] = calibration.assign(rank_correlation=calibration["steps"].map(ranks))


def _episode_table(episodes: Sequence[Episode], seeds: Sequence[int]) -> pd.DataFrame:
    rows = [(s, float(e.rewards.sum()), len(e), e.terminated) for s, e in zip(seeds, episodes, strict=True)]
    return pd.DataFrame(rows, columns=["seed", "return", "steps", "terminated"])


def _look_at_actions(
    subject: Subject, episodes: Sequence[Episode], tables: dict[str, pd.DataFrame], notes: dict[str, str]
) -> None:
    """How the deployed policy's actions lie between their bounds."""
    if subject.action_box is None:
        notes["actions"] = "These actions have no bounds at which they could be."
        return
    actions = np.clip(np.concatenate([episode.actions[:-1] for episode in episodes]), -1.0, 1.0)
    edges = np.linspace(-1.0, 1.0, ACTION_BINS + 1)
    rows = []
    for k in range(actions.shape[1]):
        shares = np.histogram(actions[:, k], edges)[0] / len(actions)
        saturated = float((np.abs(actions[:, k]) >= SATURATED).mean())
        rows += [(f"action {k}", low, share, saturated) for low, share in zip(edges, shares, strict=False)]
    tables["actions"] = pd.DataFrame(rows, columns=["action", "from", "share", "saturated"])


@contextlib.contextmanager
def untouched_randomness(seed: int) -> Iterator[None]:
    """
    Draw from other random numbers for a while; who trains goes on as if nothing had been drawn.

    :param seed: of those that are drawn meanwhile
    """
    before = np.random.get_state()
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)
