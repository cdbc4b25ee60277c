"""How DAgger takes steps: expert and policy share the wheel, and the expert says at each step what it would do."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecTransposeImage, is_vecenv_wrapped

from sb3_dpi.common.early_resets import LeavesEpisodes
from sb3_dpi.common.finite import planning_after
from sb3_dpi.common.iteration_size import describe, shrink
from sb3_dpi.common.kept_originals import KeepsOriginals
from sb3_dpi.common.long_runs import warn_of_long_run
from sb3_dpi.common.original_observations import original_obs
from sb3_dpi.common.policies import BoundedGaussianPolicy
from sb3_dpi.dagger.buffers import Labels
from sb3_dpi.dagger.constants import USUAL, USUAL_EXPERT
from sb3_dpi.dagger.experts import Advice, Adviser, Expert, check_guided, make_expert
from sb3_dpi.dagger.imitation import draw_to


class Collecting(LeavesEpisodes, KeepsOriginals):
    """What DAgger adds to the way in which SB3's off-policy algorithms take steps. DAgger sets the attributes."""

    policy: BoundedGaussianPolicy
    expert: Expert | str | Mapping[str, Any] | None
    beta: FloatSchedule | None
    imitate: str
    guidance: float
    n_iterations: int
    steps_since_training: int
    expert_: Expert | None
    """who is asked: what was given, or what was made of its name"""
    expert_is_object: bool
    is_open: bool
    _steps_by_expert: int
    _rng: np.random.Generator
    _adviser: Adviser | None
    _advice: Advice
    _begun: np.ndarray

    def _make_adviser(self) -> Adviser:
        assert self.env is not None
        if self.expert_ is None:
            if self.expert is None and self.expert_is_object:
                raise ValueError(
                    f"The model was saved without its expert, an object: {type(self).__name__}.load(path, env=env, expert=...)"
                )
            if self.expert is None and not isinstance(self.action_space, spaces.Box):
                raise ValueError(f"No planner is known for {self.action_space}: give a model or a function as expert")
            self.expert_ = make_expert(USUAL_EXPERT if self.expert is None else self.expert, self.env, self.seed)
        penalty = None
        if self.guidance > 0.0:
            check_guided(self.expert_)
            if self.n_iterations > 0:  # before, the policy has nothing to say
                penalty = draw_to(self.policy, self._vec_normalize_env, self.guidance)
        adviser = Adviser(self.expert_, self.env, self.imitate == "distribution", penalty)
        if self._adviser is not None:
            adviser.state = self._adviser.state
        self._adviser = adviser
        return adviser

    def share_of_expert(self) -> float:
        """
        Tell how often the expert acts.

        :return: beta of this step
        :raises ValueError: if the given function says no share
        """
        if self.beta is None:
            return 1.0 if self.n_iterations == 0 else 0.0
        share = self.beta(self._current_progress_remaining)
        if not 0.0 <= share <= 1.0:
            raise ValueError(
                f"beta is a share from 0 to 1, and the given function says {share} where "
                f"{self._current_progress_remaining:.3g} of the steps remain"
            )
        return share

    # ------------------------------------------------------------------ steps

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        if self._vec_normalize_env is not None and is_vecenv_wrapped(self._vec_normalize_env, VecTransposeImage) != (
            is_vecenv_wrapped(self.env, VecTransposeImage)  # type: ignore[arg-type]
        ):
            raise ValueError(
                "Images are transposed above VecNormalize, beneath which observations are kept: write "
                "VecNormalize(VecTransposeImage(env))"
            )
        if self._last_obs is not before:
            self._begun = np.ones(self.n_envs, dtype=bool)
        self._choose_size()
        self._warn_of_time()
        return result

    def _warn_of_time(self) -> None:
        """Say before anything is sampled that an expert which plans takes long."""
        adviser = self._adviser or self._make_adviser()
        if not adviser.plans:  # a network of ExIt's could search, and is not asked to
            return
        expert, left = adviser.expert, self._total_timesteps - self.num_timesteps
        advice = "let it plan with fewer samples or simulations or a shorter horizon, or take an expert that is learned"
        warn_of_long_run(f"the expert, {type(expert).__name__},", getattr(expert, "seconds_a_step", None), left, advice, 8)

    def _choose_size(self) -> None:
        """Choose how long an iteration is, if that was left open, and say it."""
        left, n = self._total_timesteps - self.num_timesteps, self.n_envs
        if self.is_open:
            chosen: Any = TrainFreq(max(shrink(USUAL, left) // n, 1), TrainFrequencyUnit.STEP)
            self.train_freq = chosen
        assert isinstance(self.train_freq, TrainFreq)
        if self.train_freq.unit == TrainFrequencyUnit.STEP:
            steps = self.train_freq.frequency * n
            wanted = max(USUAL // n, 1) * n if self.is_open else steps
            self.logger.info(describe(type(self).__name__, steps, "", wanted, left))

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """See ``OffPolicyAlgorithm``."""
        if self._adviser is None or self.guidance > 0.0:
            self._make_adviser()
        return super().collect_rollouts(*args, **kwargs)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self._adviser is not None and self.env is not None
        shown: Any = self._last_obs
        # now, while the environments are in the states that are asked about
        originals = original_obs(self.env, self.get_vec_normalize_env(), shown)
        with planning_after(self.num_timesteps):
            self._advice = self._adviser.advise(shown, originals, self._begun)
        self._begun = np.zeros(n_envs, dtype=bool)
        share = self.share_of_expert()
        is_expert = self._rng.random(n_envs) < share
        actions = self._advice.actions
        if share < 1.0:
            with th.no_grad():
                chosen = self.policy._predict(self.policy.obs_to_tensor(shown)[0], deterministic=True)
            own = chosen.cpu().numpy().reshape(actions.shape)
            actions = np.where(is_expert.reshape(-1, *(1,) * (actions.ndim - 1)), actions, own)
        self._steps_by_expert += int(is_expert.sum())
        if isinstance(self.action_space, spaces.Discrete):
            return actions, actions
        scaled = actions.astype(np.float32)
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1.0, 1.0)
        return self.policy.unscale_action(scaled).astype(self.action_space.dtype), scaled

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        assert isinstance(replay_buffer, Labels)
        place = replay_buffer.pos
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        replay_buffer.label(place, self._advice.labels, self._advice.spreads)
        self._begun = self._begun | np.asarray(dones, dtype=bool)
        self.steps_since_training += self.n_envs
