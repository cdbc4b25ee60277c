"""Real steps for DPI: a warm-up of random ones, a preset that follows from them, then blocks by the policy that learns."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from scipy.special import ndtr
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFreq, TrainFrequencyUnit

from sb3_dpi.common.blocks import SMALLEST_MEMORY, LearnsFromBlocks
from sb3_dpi.common.choices import as_schedule
from sb3_dpi.common.early_resets import EarlyReset, ResetLayer, as_early_reset
from sb3_dpi.common.interruption import reset_when_interrupted
from sb3_dpi.common.iteration_size import describe, shrink
from sb3_dpi.common.replay_memory import ReplayMemory
from sb3_dpi.dpi.constants import (
    ENOUGH_EPISODES,
    LONGEST_WARM_UP,
    SHORTEST_WARM_UP,
    WARM_UP_BLOCK,
    WARM_UP_CORRELATIONS,
    WARM_UP_SEGMENT,
)
from sb3_dpi.dpi.policies import MlpPolicy
from sb3_dpi.dpi.presets import PRESETS, Preset, choose_preset, parse_preset
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.trajopt.units import outlier_limit
from sb3_dpi.world_model.ensemble import Ensemble

SelfCollector = TypeVar("SelfCollector", bound="BlockCollector")


class BlockCollector(LearnsFromBlocks):
    """What DPI adds to the way in which SB3's off-policy algorithms take steps. DPI sets the attributes."""

    policy: MlpPolicy
    ensemble: Ensemble
    replay_buffer: ReplayBuffer
    preset: str | dict[str, Any] | None
    preset_: Preset | None
    early_reset: EarlyReset | int | Mapping[str, Any] | None
    update_to_data: float
    n_iterations: int
    n_episodes: int
    time_limit: int
    steps_since_training: int
    logged_since_training: int
    reward_limit: float
    _rng: np.random.Generator
    _noise: FloatArray
    _warm_up_correlation: FloatArray
    _episode_steps: np.ndarray
    _steps_to_learn: int | None
    _act: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    @property
    def numbers(self) -> Preset:
        """What is learned with."""
        raise NotImplementedError

    @property
    def memory(self) -> ReplayMemory:
        """The replay buffer, as the world model reads it."""
        raise NotImplementedError

    def _resolve(self, kind: str) -> Preset:
        raise NotImplementedError

    @reset_when_interrupted
    def learn(
        self: SelfCollector,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DPI",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfCollector:
        with self.early_resets(lambda layer: EarlyReset(self.numbers.early_reset, self._spreads()), self._rng) as layer:
            self._take_blocks(
                total_timesteps,
                callback,
                log_interval,
                tb_log_name,
                reset_num_timesteps,
                progress_bar,
                lambda: self._learn_from_block(layer),
            )
        return self

    def _learn_from_block(self, layer: ResetLayer | None) -> None:
        assert layer is not None
        if self.preset_ is None and self._knows_enough():
            chosen = self._choose_preset()
            layer.limit_episodes(chosen.early_reset, self._rng if self._spreads() else None)
        gradient_steps = self._policy_steps()
        if self.preset_ is not None and gradient_steps > 0 and len(self.memory) >= self._warm_up_rows():
            self.train(gradient_steps, self.batch_size)

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        self._steps_to_learn = None
        result = super()._setup_learn(total_timesteps, *args, **kwargs)
        if self._learns_nothing_in(int(total_timesteps)):
            how = "as before" if self.n_iterations else "at random"
            warnings.warn(
                f"{type(self).__name__} does not learn in these {int(total_timesteps):,} steps: it acts {how} until "
                f"{self._warm_up_rows():,} are kept, {len(self.memory):,} are. Let it take more, or lower learning_starts",
                stacklevel=5,
            )
        if self._last_obs is not before:
            self._episode_steps[:] = 0
        self.logger.info(f"{type(self).__name__}: {self._outlook()}")
        return result

    def _learns_nothing_in(self, n_steps: int) -> bool:
        """Whether so many steps are too few; the last block is completed, and of episodes nobody knows how long they are."""
        if len(self.memory) + n_steps >= self._warm_up_rows():
            return False
        block = self._next_block()
        size = block.frequency * self.n_envs
        completed = -(-n_steps // size) * size
        return block.unit == TrainFrequencyUnit.STEP and len(self.memory) + completed < self._warm_up_rows()

    def _outlook(self) -> str:
        """What the steps of ``learn`` begin with, in words."""
        (kind, _), missing = parse_preset(self.preset), max(self._warm_up_rows() - len(self.memory), 0)
        if self.preset_ is not None:
            return f"goes on with the preset {self.preset_.kind!r}"
        shorter = f", or fewer once {ENOUGH_EPISODES} episodes have ended" if self.learning_starts is None else ""
        presets = f"one of the presets {' and '.join(map(repr, PRESETS))}" if kind is None else f"the preset {kind!r}"
        return f"takes {missing:,} random steps{shorter}, then {presets}"

    def _spreads(self) -> bool:
        return self.early_reset is None or as_early_reset(self.early_reset).spread

    def _next_block(self) -> TrainFreq:
        if self.preset_ is None:
            missing = -(-(self._warm_up_rows() - len(self.memory)) // self.n_envs)
            return TrainFreq(max(min(WARM_UP_BLOCK // self.n_envs, missing), 1), TrainFrequencyUnit.STEP)
        if self.train_freq is not None:
            assert isinstance(self.train_freq, TrainFreq)
            return self.train_freq
        left, usual, n = self._steps_to_learn, self.preset_.train_freq, self.n_envs
        if left is None:
            left = self._steps_to_learn = self._total_timesteps - self.num_timesteps
            self.logger.info(describe(type(self).__name__, max(shrink(usual, left) // n, 1) * n, "", usual // n * n, left))
        steps = max(shrink(usual, left) // n, 1)
        return TrainFreq(steps, TrainFrequencyUnit.STEP)

    def _warm_up_rows(self) -> int:
        """Rows of the replay buffer from which on it learns."""
        wanted = self.learning_starts
        if wanted is None:
            wanted = SHORTEST_WARM_UP if self.preset_ is not None and self.preset_.short_warm_up else LONGEST_WARM_UP
            wanted = min(wanted, (self._total_timesteps - self._num_timesteps_at_start) // 2)
        return min(max(wanted, SMALLEST_MEMORY), self.replay_buffer.buffer_size * self.n_envs)

    def _knows_enough(self) -> bool:
        """Whether a preset can be chosen."""
        n = len(self.memory)
        early = self.learning_starts is None and self.n_episodes >= ENOUGH_EPISODES and n >= SHORTEST_WARM_UP
        return early or n >= self._warm_up_rows()

    def _limit_rewards(self) -> None:
        """One outlier must not decide in what unit all rewards are seen."""
        buffer = self.replay_buffer
        self.reward_limit = outlier_limit(buffer.rewards[: buffer.size()])

    def _choose_preset(self) -> Preset:
        self._limit_rewards()
        kind, _ = parse_preset(self.preset)
        why = "as asked"
        if kind is None:
            kind, why = choose_preset(self.ensemble, self.memory)
        self.preset_ = self._resolve(kind)
        if self.verbose >= 1:
            of_what = "logged steps" if self.logged_since_training else "random steps"
            print(f"DPI takes the preset {kind!r} after {len(self.memory)} {of_what}: {why}")
        return self.preset_

    def _policy_steps(self) -> int:
        """For the next block, as ``gradient_steps`` and ``update_to_data`` say."""
        n = self.gradient_steps
        if n < 0:
            block = self._next_block()
            at_first = block.frequency * self.n_envs if block.unit == TrainFrequencyUnit.STEP else self.steps_since_training
            n = at_first if self.n_iterations == 0 else self.steps_since_training
        return max(int(self.update_to_data * n), 1) if n > 0 else 0

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """See ``OffPolicyAlgorithm``; the policy acts once it has learned, whatever ``learning_starts`` says."""
        self._act = self.policy.export(self.ensemble.state_mean, self.ensemble.state_std)
        return super().collect_rollouts(*args, **kwargs)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        fresh = self._rng.standard_normal(self._noise.shape)
        if self.n_iterations == 0:
            actions = self._random_actions(fresh)
        else:
            rho, left = self.numbers.noise_correlation, self._current_progress_remaining
            self._noise = rho * self._noise + math.sqrt(1.0 - rho**2) * fresh
            obs = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
            mean, std = self._act(self.policy.join(obs))
            actions = np.tanh(mean + as_schedule("noise_scale", self.numbers.noise_scale)(left) * std * self._noise)
        scaled = actions.astype(np.float32).reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1.0, 1.0)
        return self.policy.unscale_action(scaled), scaled

    def _random_actions(self, fresh: FloatArray) -> FloatArray:
        """Uniform between the bounds; some last from step to step."""
        if len(self.memory) // self.n_envs % WARM_UP_SEGMENT == 0:
            self._warm_up_correlation = self._rng.choice(WARM_UP_CORRELATIONS, size=(self.n_envs, 1))
        rho = self._warm_up_correlation
        self._noise = rho * self._noise + np.sqrt(1.0 - rho**2) * fresh
        actions: FloatArray = 2.0 * ndtr(self._noise) - 1.0
        return actions

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._episode_steps += 1
        for i in np.flatnonzero(dones):
            if infos[i].get("TimeLimit.truncated", False) and not infos[i].get("early_reset", False):
                self.time_limit = max(self.time_limit, int(self._episode_steps[i]))
            self._noise[i] = self._rng.standard_normal(self._noise.shape[1])
            self._episode_steps[i] = 0
        self.n_episodes += int(np.sum(np.asarray(dones)))
        self.steps_since_training += self.n_envs
