"""Episodes in the real environment, as the planner, the policy and the critic see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import check_for_correct_spaces, obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_dpi.common.environments import Environment
from sb3_dpi.common.original_observations import before_reset, original_obs, original_rewards, step_unclipped
from sb3_dpi.common.planner_state import make_state_view
from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.diagnose.names import state_names
from sb3_dpi.diagnose.subject import DiagnoseError, Subject
from sb3_dpi.trajopt.types import BoolArray, FloatArray, IntArray
from sb3_dpi.world_model.actor import SquashedGaussian
from sb3_dpi.world_model.types import Transitions

LONGEST = 1000
"""Steps after which an episode is left, also where it would go on."""


class Act(Protocol):
    """Chooses actions."""

    def __call__(self, t: int, seen: Any, states: FloatArray) -> tuple[FloatArray, float]:
        """
        Act.

        :param t: time step
        :param seen: the observation as the policy sees it, a batch of one
        :param states: what the planner sees, ``[1, dx]``
        :return: in units of the bounds, not clipped, ``[1, du]``, and the log-probability, zero where it is not known
        """
        ...


@dataclass(frozen=True)
class Episode:
    """T steps; the last observation and what would have been done there stand behind them."""

    states: FloatArray
    """in the environment's units, ``[T + 1, dx]``"""
    observations: Observations
    """as the environment returned them, ``[T + 1, ...]``"""
    seen: Observations
    """as the policy sees them, ``[T + 1, ...]``"""
    actions: FloatArray
    """in units of the bounds, not clipped, ``[T + 1, du]``"""
    log_probs: FloatArray
    """``[T + 1]``"""
    rewards: FloatArray
    """of the environment, ``[T]``"""
    shown_rewards: FloatArray
    """through VecNormalize, which some critics learn from, ``[T]``"""
    terminated: bool
    """whether it ended for good, not by a time limit"""

    def __len__(self) -> int:
        return len(self.rewards)


class Stage:
    """
    One real environment, through the wrappers that the policy needs.

    :param subject: the policy
    :param environment: an id, an environment or a function that makes one
    :raises DiagnoseError: if the environment cannot be made, or the policy does not fit it
    """

    def __init__(self, subject: Subject, environment: Environment) -> None:
        self.subject, self.made = subject, make(environment)
        base: VecEnv = DummyVecEnv([lambda: self.made])
        try:
            self.normalizer = None if subject.normalizer is None else _with_statistics(base, subject.normalizer)
            self.env = BaseAlgorithm._wrap_env(self.normalizer or base, 0, True)
            check_for_correct_spaces(self.env, subject.policy.observation_space, subject.policy.action_space)
        except (KeyError, ValueError) as error:  # the first from VecNormalize, whose keys it has not
            raise DiagnoseError(f"The policy does not fit this environment. {error}") from error
        try:
            self.view, dx = make_state_view(subject.policy.observation_space)
        except ValueError:  # images alone: no planner, but a policy
            self.view, dx = lambda obs: np.zeros((1, 0)), 0
        self.names = state_names(self.made, subject.policy.observation_space, dx)

    def play(self, act: Act, seed: int, longest: int = LONGEST) -> Episode:
        """
        Play one episode.

        :param act: what acts
        :param seed: of the reset
        :param longest: steps after which it is left
        :return: what happened
        """
        self.env.seed(seed)
        seen: Any = self.env.reset()
        obs = original_obs(self.env, self.normalizer, seen)
        before: list[tuple[Any, ...]] = []
        rewards: list[tuple[float, float]] = []
        done = terminated = False
        while True:
            states = self.view(obs)
            actions, log_prob = act(len(rewards), seen, states)
            before.append((states[0], *(map_observations(_copy_first, o) for o in (obs, seen)), actions[0], log_prob))
            if done or len(rewards) == longest:
                break
            stepped = step_unclipped(self.env, self.normalizer, self.subject.to_env(actions))
            seen, reward, dones, infos = stepped
            done = bool(dones[0])
            terminated = done and not infos[0].get("TimeLimit.truncated", False)
            rewards.append((float(original_rewards(self.normalizer, reward)[0]), float(reward[0])))
            obs = before_reset(self.normalizer, original_obs(self.env, self.normalizer, seen), dones, infos)
            if done:
                seen = obs if self.normalizer is None else self.normalizer.normalize_obs(obs)
        return _episode(before, rewards, terminated)

    def play_several(self, act: Act, seeds: Sequence[int], longest: int = LONGEST) -> list[Episode]:
        """
        Play one episode from each reset seed.

        :param act: what acts
        :param seeds: of the resets
        :param longest: steps after which each is left
        :return: in this order
        """
        return [self.play(act, seed, longest) for seed in seeds]

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def make(environment: Environment, render_mode: str | None = None) -> gym.Env:
    """
    Make an environment.

    :param environment: an id, an environment or a function that makes one
    :param render_mode: for an id
    :return: the environment
    :raises DiagnoseError: if there is none of that name, or something else was given
    """
    if isinstance(environment, str):
        try:
            return gym.make(environment) if render_mode is None else gym.make(environment, render_mode=render_mode)
        except gym.error.Error as error:
            raise DiagnoseError(f"The environment {environment!r} cannot be made: {error}") from error
    is_function = callable(environment) and not isinstance(environment, gym.Env)
    made: Any = environment() if is_function else environment  # type: ignore[operator]  # a VecEnv is refused below
    if not isinstance(made, gym.Env):
        raise DiagnoseError(
            f"{type(made).__name__} is no environment: give an id, a Gymnasium environment or a function that makes one"
        )
    return made


def policy_act(subject: Subject, deterministic: bool) -> Act:
    """
    Let any policy act.

    :param subject: the policy
    :param deterministic: whether without exploration
    :return: what acts; random numbers are torch's own
    """

    def act(t: int, seen: Any, states: FloatArray) -> tuple[FloatArray, float]:
        actions, _ = subject.policy.predict(seen, deterministic=deterministic)
        return subject.to_units(actions), 0.0

    return act


def actor_act(subject: Subject, actor: SquashedGaussian, rng: np.random.Generator | None) -> Act:
    """
    Let DPI's actor act.

    :param subject: whose policy reads the observations
    :param actor: the policy that learns, or another
    :param rng: draws its noise; None: without noise
    :return: what acts
    """
    policy: Any = subject.policy

    @th.no_grad()
    def act(t: int, seen: Any, states: FloatArray) -> tuple[FloatArray, float]:
        standard = policy.standardize(obs_as_tensor(seen, policy.device))
        drawn = np.zeros(actor.action_dim) if rng is None else rng.standard_normal(actor.action_dim)
        actions, log_probs = actor.sample(standard, th.as_tensor(drawn[None], dtype=th.float32, device=policy.device))
        return actions.double().cpu().numpy(), float(log_probs[0])

    return act


class EpisodeMemory:
    """
    Episodes as a world model reads real steps.

    :param episodes: at least one
    """

    def __init__(self, episodes: Sequence[Episode]) -> None:
        def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
            return np.concatenate(list(arrays))

        last = [np.arange(len(episode)) == len(episode) - 1 for episode in episodes]
        self._ends: BoolArray = joined(last)
        self._steps = Transitions(
            joined([episode.states[:-1] for episode in episodes]),
            np.clip(joined([episode.actions[:-1] for episode in episodes]), -1.0, 1.0),
            joined([episode.rewards for episode in episodes]),
            joined([episode.states[1:] for episode in episodes]),
            joined([end & episode.terminated for end, episode in zip(last, episodes, strict=True)]),
        )

    def __len__(self) -> int:
        return len(self._ends)

    def take(self, rows: IntArray) -> Transitions:
        """
        Read rows.

        :param rows: which, ``[n]``
        :return: their copies
        """
        return self._steps.take(rows)

    def newest(self, n: int) -> IntArray:
        """
        Find the latest steps.

        :param n: how many
        :return: their rows
        """
        return np.arange(max(len(self) - n, 0), len(self))

    def follows(self, rows: IntArray) -> tuple[IntArray, BoolArray]:
        """
        Find what came next.

        :param rows: ``[n]``
        :return: rows of the next steps, and whether they belong to the same episode
        """
        return (rows + 1) % len(self), ~self._ends[rows]

    def terminated_rows(self) -> IntArray:
        """
        Find the steps that ended an episode for good.

        :return: their rows
        """
        return np.flatnonzero(self._steps.terminated)

    def rewards(self) -> FloatArray:
        """
        Read all rewards.

        :return: those of every row
        """
        return self._steps.rewards


def _copy_first(array: np.ndarray) -> np.ndarray:
    return np.array(array[0])


def _stack(rows: Sequence[Any]) -> Observations:
    if isinstance(rows[0], dict):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


def _episode(before: Sequence[tuple[Any, ...]], rewards: Sequence[tuple[float, float]], terminated: bool) -> Episode:
    states, obs, seen, actions, log_probs = zip(*before, strict=True)
    both = np.array(rewards, dtype=np.float64).reshape(-1, 2).T
    behind = _stack(obs), _stack(seen), np.stack(actions), np.array(log_probs)
    return Episode(np.stack(states), *behind, both[0], both[1], terminated)


def _with_statistics(env: VecEnv, normalizer: VecNormalize) -> VecNormalize:
    """The statistics as they are now, which playing does not change."""
    chosen = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
    same = VecNormalize(env, training=False, **{name: getattr(normalizer, name) for name in chosen})
    if normalizer.norm_obs:
        same.obs_rms = normalizer.obs_rms
    same.ret_rms = normalizer.ret_rms
    return same
