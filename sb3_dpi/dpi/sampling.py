"""Real steps that go on from block to block."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import ndtr
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.common.finite import KeptStatistics, check_finite
from sb3_dpi.common.restarts import Restarts
from sb3_dpi.dpi.challenges import Challenges
from sb3_dpi.dpi.forms import Form, adapt, suited
from sb3_dpi.dpi.memory import TransitionBuffer
from sb3_dpi.dpi.policies import MlpPolicy
from sb3_dpi.models.ensemble import Ensemble
from sb3_dpi.trajopt.types import FloatArray, IntArray

LONGEST_START, ENOUGH_EPISODES, SHORTEST_START = 1000, 25, 100
"""Random steps at the beginning: so many, or in the anchored form fewer once so many episodes have ended, but not fewer than
the last."""

START_CORRELATIONS, START_SEGMENT = (0.0, 0.9), 100
"""Of one random step with the next, drawn anew after so many: white noise alone stays where it began, lasting noise alone
knows no fine movements, and a model must know both."""


class ContinuingSampler(OnPolicyAlgorithm):
    """Takes real steps as PPO does, and remembers all of them; its heirs set the attributes."""

    policy: MlpPolicy  # type: ignore[assignment]
    memory: TransitionBuffer | None
    ensemble: Ensemble
    learning_starts: int | None
    form: Form
    form_is_chosen: bool
    noise_scale: Schedule | str
    n_iterations: int
    n_episodes: int
    time_limit: int
    steps_since_training: int
    _rng: np.random.Generator
    _noise: FloatArray
    _restarts: Restarts
    _challenges: Challenges
    _start_correlation: FloatArray

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Take real steps with the policy and its noise, at first with random actions, and remember them.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param rollout_buffer: not used, all steps are kept in ``memory``
        :param n_rollout_steps: ``n_steps``, which may be None; the random steps at the beginning are more
        :return: False if callback terminated rollout prematurely
        :raises ValueError: if an observation or reward is not finite, naming environment and step
        """
        assert self._last_obs is not None and self.memory is not None
        self.policy.set_training_mode(False)
        actor = self.policy.export(self.ensemble.state_mean, self.ensemble.state_std)
        callback.on_rollout_start()
        normalizer = self._vec_normalize_env
        statistics = KeptStatistics(normalizer)
        states = self._raw_states(self._last_obs)
        assert self._last_episode_starts is not None
        self._restarts.begin(self._last_episode_starts)
        for i in np.flatnonzero(self._last_episode_starts):  # also where ``learn`` has begun anew
            self.memory.cut(int(i))
        n_steps, n_rollout_steps = 0, self._block()
        while n_steps < n_rollout_steps or (self._is_starting() and self.num_timesteps < self._total_timesteps):
            self._begin_episodes(np.flatnonzero(self._last_episode_starts))
            actions = self._challenges.act(states, self._act(actor, states))
            new_obs, rewards, dones, infos = env.step(self._scale(actions))
            self.num_timesteps += env.num_envs
            n_steps += 1
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            raw_rewards = rewards if normalizer is None else normalizer.get_original_reward()
            try:
                check_finite(new_obs, raw_rewards, self.num_timesteps)
            except ValueError:
                statistics.restore()
                raise
            # normalised observations are clipped
            following = self._raw_states(new_obs) if normalizer is None else self.policy.join(normalizer.get_original_obs())
            ends = following.copy()
            for i in np.flatnonzero(dones):
                ends[i] = self._raw_states(_batch(infos[i]["terminal_observation"]))[0]
                self._noise[i] = self._rng.standard_normal(self._noise.shape[1])
            self.memory.add(states, ends, actions, raw_rewards, dones, infos)
            self.n_episodes += int(np.sum(dones))
            limited = [i for i in np.flatnonzero(dones) if infos[i].get("TimeLimit.truncated", False)]
            self.time_limit = int(max([self.time_limit, *(self._restarts.steps[limited] + 1)]))
            self._restarts.count(dones)
            self._count_tests(raw_rewards, dones)
            self.steps_since_training += env.num_envs
            states, self._last_obs = following, new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            states = self._begin_anew(env, states)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _begin_episodes(self, which: IntArray) -> None:
        for i in which if self.n_iterations > 0 else ():
            if self._challenges.begin(int(i), self.ensemble.state_mean, self.ensemble.state_std):
                self._restarts.spare(int(i))

    def _count_tests(self, rewards: FloatArray, dones: np.ndarray) -> None:
        for earned in self._challenges.count(rewards, dones, self.ensemble.state_mean, self.ensemble.state_std):
            self.logger.record_mean("rollout/test_reward", earned)
            self.logger.record("rollout/deployed_reward", float(self.policy.tested_return))

    def _is_starting(self) -> bool:
        """Whether actions are still random."""
        assert self.memory is not None
        if self.n_iterations > 0:
            return False
        n = len(self.memory)
        if self.learning_starts is not None:
            return n < self.learning_starts
        if n >= LONGEST_START or self.n_episodes < ENOUGH_EPISODES or n < SHORTEST_START:
            return n < LONGEST_START
        self._choose_form()
        return not self.form.short_start

    def _choose_form(self) -> None:
        if not self.form_is_chosen:
            assert self.memory is not None
            self.form = adapt(suited(self.ensemble, self.memory.transitions()), vars(self))
            self.form_is_chosen = True

    def _block(self) -> int:
        """Real steps of each environment between updates."""
        return self.n_steps if self.n_steps is not None else max(self.form.n_steps // self.n_envs, 1)

    def _act(self, actor: Callable[[FloatArray], tuple[FloatArray, FloatArray]], states: FloatArray) -> FloatArray:
        assert self.memory is not None
        fresh = self._rng.standard_normal(self._noise.shape)
        if self.n_iterations == 0:
            if len(self.memory) // self.n_envs % START_SEGMENT == 0:
                self._start_correlation = self._rng.choice(START_CORRELATIONS, size=(self.n_envs, 1))
            self._noise = self._start_correlation * self._noise + np.sqrt(1.0 - self._start_correlation**2) * fresh
            return 2.0 * ndtr(self._noise) - 1.0  # uniform between the bounds
        rho = self.form.noise_correlation
        self._noise = rho * self._noise + math.sqrt(1.0 - rho**2) * fresh
        mean, std = actor(states)
        given = self.noise_scale
        scale = self.form.noise_scale if isinstance(given, str) else given(self._current_progress_remaining)
        return np.tanh(mean + scale * std * self._noise)

    def _scale(self, actions: FloatArray) -> np.ndarray:
        shaped = actions.astype(np.float32).reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        return self.policy.unscale_action(shaped)

    def _raw_states(self, obs: Any) -> FloatArray:
        if self._vec_normalize_env is not None:
            obs = self._vec_normalize_env.unnormalize_obs(obs)
        return self.policy.join(obs)

    def _begin_anew(self, env: VecEnv, states: FloatArray) -> FloatArray:
        """Leave some long episodes: the policy must be good where episodes begin."""
        assert self.memory is not None
        self._last_obs, left = self._restarts.leave(env, self._last_obs, self._vec_normalize_env)
        if not len(left):
            return states
        for i in left:
            self.memory.cut(int(i))
            self._noise[i] = self._rng.standard_normal(self._noise.shape[1])
        self._begin_episodes(left)
        states[left] = self._raw_states(self._last_obs)[left]
        return states


def _batch(obs: Any) -> Any:
    """One observation as a batch of one."""
    return {key: value[None] for key, value in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
