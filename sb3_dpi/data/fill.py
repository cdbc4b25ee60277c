"""Logged episodes into models: replay buffers, and the priors of local models."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import configure_logger

from sb3_dpi.common.action_units import flat_bounds, hold_fractions, to_units
from sb3_dpi.common.blocks import SMALLEST_MEMORY
from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm
from sb3_dpi.common.logged import LoggedEpisodes
from sb3_dpi.common.planner_state import make_state_view
from sb3_dpi.common.trajectories import map_observations
from sb3_dpi.data.check import check, refuse
from sb3_dpi.data.episodes import DataError, Episodes
from sb3_dpi.data.read import Source, read, time_limit_of
from sb3_dpi.dpi.offline import OfflineLearner
from sb3_dpi.mpc import MPC

KNOWN = "DPI, MPC, MDGPS, AggreVaTeDOC, or an off-policy algorithm of Stable-Baselines3 with continuous actions, as SAC"


def fill(model: BaseAlgorithm, data: Source | Episodes) -> Episodes:
    """
    Let a model start from logged data; then ``learn`` it, or with DPI ``learn_offline``.

    DPI, and SB3's off-policy algorithms, find them in their replay buffer. MPC fits its ensemble to them at once. MDGPS and
    AggreVaTeD-OC put them behind the fits of dynamics and cost; what depends on their policy waits for their own samples.

    :param model: to fill, of the task that the data are of
    :param data: ``Episodes``, or what ``read`` reads
    :return: the episodes
    :raises DataError: if ``check`` finds an error, they do not fit, or the model cannot learn from data
    """
    space = _actions_of(model)
    episodes = data if isinstance(data, Episodes) else read(data, model.get_env())
    limit = time_limit_of(model.get_env())
    refuse(check(episodes, model.observation_space, space, limit), episodes.source)
    if isinstance(model, DualPolicyAlgorithm):
        try:
            model.learn_from(_logged(model, episodes))
        except ValueError as error:
            raise DataError(str(error)) from error
        return episodes
    assert isinstance(model, OffPolicyAlgorithm)
    _fill_buffer(model.replay_buffer, episodes, space)
    if isinstance(model, MPC):
        _fit(model, episodes.n_steps // model.n_envs * model.n_envs)
    if isinstance(model, OfflineLearner):
        limited = [len(each) for each in episodes.episodes if each.truncated[-1] and not each.terminated[-1]]
        ended = sum(bool(each.truncated[-1] or each.terminated[-1]) for each in episodes.episodes)
        model.count_logged(episodes.n_steps // model.n_envs * model.n_envs, ended, max(limited, default=0))
    return episodes


def _actions_of(model: BaseAlgorithm) -> spaces.Box:
    """Space of the actions of a model that can start from data; others would leave them, or learn what they do not say."""
    name = type(model).__name__
    if not isinstance(model, (OffPolicyAlgorithm, DualPolicyAlgorithm)):
        raise DataError(f"{name} learns from its own samples alone: start from data with {KNOWN}")
    buffer = model.replay_buffer if isinstance(model, OffPolicyAlgorithm) else None
    if getattr(buffer, "more_arrays", ()):
        raise DataError(
            f"{name} imitates what its expert or search says of each state, which logged data do not hold: call learn, or "
            f"start from data with {KNOWN}"
        )
    if not isinstance(model.action_space, spaces.Box):
        raise DataError(f"{name} acts by {model.action_space}: only Box actions start from data, with {KNOWN}")
    if isinstance(model, MPC) and not model.is_learned:
        raise DataError('This MPC plans in a given system and learns nothing: start from data with system="ensemble"')
    if buffer is not None and buffer.optimize_memory_usage:
        raise DataError(
            "The replay buffer was made with optimize_memory_usage, which loses the last observations of episodes: make the "
            "model without it"
        )
    return model.action_space


def _fit(model: MPC, n_steps: int) -> None:
    """MPC acts at random as long as it has no model."""
    model.steps_since_training += n_steps
    if len(model.memory) >= SMALLEST_MEMORY:
        if not model._custom_logger:
            model._logger = configure_logger(0)  # learn makes its own
        model.train(-1, 0)


def _units(actions: np.ndarray, space: spaces.Box) -> np.ndarray:
    """``[..., du]``, within the bounds and in units of them."""
    units: np.ndarray = np.clip(to_units(actions, *flat_bounds(space)), -1.0, 1.0)
    return units


def _fill_buffer(buffer: ReplayBuffer | None, episodes: Episodes, space: spaces.Box) -> None:
    assert buffer is not None
    hold_fractions(buffer)
    n_envs = buffer.n_envs
    n_rows = episodes.n_steps // n_envs
    if not n_rows:
        raise DataError(f"{episodes.source} has {episodes.n_steps} steps, fewer than the {n_envs} environments of the model")
    if n_rows > buffer.buffer_size:
        raise DataError(
            f"{episodes.source} has {episodes.n_steps} steps, the replay buffer room for {buffer.buffer_size * n_envs}: set "
            f"buffer_size={episodes.n_steps} or more, or take episodes.first({buffer.buffer_size * n_envs})"
        )

    def dealt(arrays: list[Any]) -> Any:
        """The latest steps, a stretch of time for each environment, ``[n_rows, n_envs, ...]``."""
        if isinstance(arrays[0], dict):
            return {key: dealt([array[key] for array in arrays]) for key in arrays[0]}
        flat = np.concatenate(arrays)
        return flat[len(flat) - n_rows * n_envs :].reshape(n_envs, n_rows, *flat.shape[1:]).swapaxes(0, 1)

    each = episodes.episodes
    seen = dealt([map_observations(lambda array: array[:-1], episode.observations) for episode in each])
    after = dealt([map_observations(lambda array: array[1:], episode.observations) for episode in each])
    actions = _units(dealt([episode.actions for episode in each]), space)
    rewards, terminated = dealt([episode.rewards for episode in each]), dealt([episode.terminated for episode in each])
    cut = dealt([episode.truncated for episode in each]) & ~terminated
    if type(buffer) not in (ReplayBuffer, DictReplayBuffer):  # those of hindsight or several steps read on to a mark
        cut |= dealt([np.arange(len(episode)) == len(episode) - 1 for episode in each]) & ~terminated
        cut[-1] |= ~terminated[-1]

    def at(observations: Any, t: int) -> Any:
        return map_observations(lambda array: array[t], observations)

    for t in range(n_rows):
        infos = [{"TimeLimit.truncated": bool(is_cut)} for is_cut in cut[t]]
        buffer.add(at(seen, t), at(after, t), actions[t], rewards[t], terminated[t] | cut[t], infos)


def _logged(model: DualPolicyAlgorithm, episodes: Episodes) -> LoggedEpisodes:
    view, _ = make_state_view(model.observation_space)
    assert isinstance(model.action_space, spaces.Box)
    states = [view(episode.observations) for episode in episodes.episodes]
    lengths = [len(episode) for episode in episodes.episodes]
    actions, rewards, terminated = (
        np.concatenate([getattr(episode, name) for episode in episodes.episodes])
        for name in ("actions", "rewards", "terminated")
    )
    return LoggedEpisodes(
        np.concatenate([each[:-1] for each in states]),
        np.concatenate([each[1:] for each in states]),
        _units(actions, model.action_space),
        rewards,
        terminated,
        np.cumsum([0, *lengths[:-1]]),
    )
