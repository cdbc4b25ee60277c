"""DAgger: imitate an expert on the states that the policy itself comes to."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TrainFreq

from sb3_dpi.common.action_units import hold_fractions
from sb3_dpi.common.choices import arguments_of_base, as_schedule, check_choice
from sb3_dpi.common.early_resets import EarlyReset, as_early_reset
from sb3_dpi.common.interruption import reset_when_interrupted, whole_or_undone
from sb3_dpi.common.planner_state import replace_vectors
from sb3_dpi.common.regression import regress_mean
from sb3_dpi.common.replay_memory import check_buffer
from sb3_dpi.common.saved_models import FORMAT_VERSION, SavedModel
from sb3_dpi.common.standardized import Standardizing
from sb3_dpi.common.trajectories import Observations, map_observations
from sb3_dpi.dagger.buffers import Labels, labelled
from sb3_dpi.dagger.collecting import Collecting
from sb3_dpi.dagger.constants import MEASURED
from sb3_dpi.dagger.experts import Expert
from sb3_dpi.dagger.imitation import classify, fit_std, outputs
from sb3_dpi.dagger.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_dpi.trajopt.types import FloatArray, IntArray
from sb3_dpi.trajopt.units import spread_or_one

SelfDAgger = TypeVar("SelfDAgger", bound="DAgger")

IMITATE = ("action", "distribution")
BLOCK = 100
"""Updates whose samples are read from the buffer at once."""


class DAgger(SavedModel, Collecting):
    """
    Dataset Aggregation (DAgger)

    An expert says at each step what it would do, and the policy learns that by supervised learning on all states so far. In
    the first iteration the expert acts, in the others the policy, so that it learns what to do where its own mistakes lead
    (Ross et al., 2011). The expert may plan: it then plans at the states of the environments that are learned in.

    Paper: https://arxiv.org/abs/1011.0686

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gymnasium, can be str); its actions must be a bounded Box, or
        Discrete
    :param expert: who is imitated: a model of Stable-Baselines3 or of this package, as ``MPC``, or any object with their
        method ``predict``; a function from observations ``[n, ...]``, as the environments return them, to actions
        ``[n, ...]``; the name of a planner, as ``"iCEM"``, which plans in the simulator; or a dictionary with the class under
        ``"algo"`` and its arguments, or the ``"path"`` of a saved model. None: ``"iCEM"``; ``expert_`` tells who is asked
    :param learning_rate: of the policy, it can be a function of the current progress remaining (from 1 to 0); usual: 3e-4 to
        3e-3
    :param beta: share of the steps in which the expert acts: a number, ``"lin_1.0"`` (falls to zero) or a function of the
        progress remaining. 1 is behaviour cloning. None: 1 in the first iteration, then 0
    :param imitate: ``"action"``: what the expert does; ``"distribution"``: its Gaussian, or its probabilities of Discrete
        actions, where it is a model that has them, as PPO
    :param guidance: draws plans to the policy, so that it can follow: weight, in units of the reward, of the KL between
        Gaussians around the planned action and the policy's, a step. 0: none
    :param buffer_size: size of the replay buffer, which holds the aggregated data
    :param learning_starts: steps before the policy learns; until then it is the first iteration
    :param batch_size: Minibatch size
    :param train_freq: Learn every ``train_freq`` steps of the vectorised environment, or a tuple like ``(5, "step")`` or
        ``(2, "episode")``. None: every 500 over all environments, or fewer where ``learn`` has too few for five iterations
    :param gradient_steps: updates of an iteration; -1: as many as steps in the environment
    :param early_reset: Median of the steps after which an episode is left, so that a new one begins: long ones show their
        beginnings seldom; or ``EarlyReset``, or a dictionary of its fields. 0 leaves none; usual: 100 to 500
    :param action_noise: added to executed actions in units of the bounds
    :param replay_buffer_class: one that keeps labels (``sb3_dpi.dagger.buffers``); None: what fits
    :param replay_buffer_kwargs: keyword arguments to pass to the replay buffer on creation
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range or unknown, or the expert is of another task
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    algorithm_version: ClassVar[int] = 1
    stored_as: ClassVar[dict[str, str]] = {"expert": "expert"}

    def __init__(
        self,
        policy: str | type[MlpPolicy],
        env: GymEnv | str,
        expert: Expert | str | Mapping[str, Any] | None = None,
        learning_rate: float | Schedule = 1e-3,
        beta: float | str | Schedule | None = None,
        imitate: str = "action",
        guidance: float = 0.0,
        buffer_size: int = 100_000,
        learning_starts: int = 0,
        batch_size: int = 64,
        train_freq: int | tuple[int, str] | None = None,
        gradient_steps: int = 1000,
        early_reset: EarlyReset | int | Mapping[str, Any] = 0,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            **arguments_of_base(locals(), OffPolicyAlgorithm),
            support_multi_env=True,
            sde_support=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete),
        )
        self.expert = expert
        self.expert_is_object = False
        self.beta = beta  # type: ignore[assignment]  # read when the model is set up
        self.imitate = imitate
        self.guidance = guidance
        self.early_reset = early_reset
        self.format_version = FORMAT_VERSION
        self.algorithm_name = type(self).__name__
        self.n_iterations = self.steps_since_training = self._steps_by_expert = 0
        self.is_open = train_freq is None
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ building

    def _setup_model(self) -> None:
        self._check_saved_format()
        self._check_arguments()
        if self.expert is not None:
            self.expert_is_object = not isinstance(self.expert, str | Mapping)
        check_buffer(self.replay_buffer_class, self.replay_buffer_kwargs)
        self.replay_buffer_class = labelled(self.replay_buffer_class, self.observation_space)
        super()._setup_model()
        assert self.replay_buffer is not None
        hold_fractions(self.replay_buffer)
        self._rng = np.random.default_rng(self.seed)
        self._forget_environment()
        if self.env is not None and not (self.expert is None and self.expert_is_object):
            self._make_adviser()

    def _check_arguments(self) -> None:
        if self.beta is not None:
            self.beta = as_schedule("beta", self.beta)
            if not 0.0 <= self.beta(1.0) <= 1.0:
                raise ValueError(f"beta is a share from 0 to 1, or None for 1 and then 0, got {self.beta(1.0)}")
        check_choice("imitate", self.imitate, IMITATE)
        as_early_reset(self.early_reset)
        if not 0.0 <= self.guidance < np.inf:
            raise ValueError(f"guidance must be at least 0, got {self.guidance}")
        if self.guidance > 0.0 and not isinstance(self.action_space, spaces.Box):
            raise ValueError("guidance measures distances between actions, which Discrete ones have not: set guidance=0")
        for name in ("batch_size", "buffer_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def _convert_train_freq(self) -> None:
        if self.train_freq is None:
            self.is_open = True
        elif not isinstance(self.train_freq, TrainFreq):
            self.is_open = False
            super()._convert_train_freq()

    def _forget_environment(self) -> None:
        self.expert_, self._adviser = None, None
        self._begun = np.ones(self.n_envs, dtype=bool)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Learn in another environment, in which an expert that plans plans from now on.

        :param env: The environment to learn in
        :param force_reset: Force call to ``reset()`` before learning
        """
        super().set_env(env, force_reset)
        self._forget_environment()

    def _excluded_save_params(self) -> list[str]:
        own = [
            "_rng",
            "expert_",
            "_adviser",
            "_advice",
            "_begun",
            "_statistics",
            *(["expert"] if self.expert_is_object else []),
        ]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

    def _as_own(self, loaded: ReplayBuffer) -> ReplayBuffer:
        if not isinstance(loaded, Labels):
            raise ValueError("This replay buffer holds no labels of an expert: load one that DAgger has saved")
        return super()._as_own(loaded)

    # ------------------------------------------------------------------ Algorithm 1

    @reset_when_interrupted
    def learn(
        self: SelfDAgger,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "DAgger",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDAgger:
        with self.early_resets(lambda layer: as_early_reset(self.early_reset), self._rng):
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    @whole_or_undone
    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        One iteration of Algorithm 1 on the states that were visited (line 2), labelled (line 3) and aggregated (line 4) since
        the last one.

        :param gradient_steps: updates of the policy
        :param batch_size: of each
        """
        self.policy.set_training_mode(False)  # but for its own updates
        self._update_learning_rate(self.policy.optimizer)
        error = self.disagreement()
        self.standardize()
        loss = self.fit_policy(gradient_steps, batch_size)  # line 1
        if isinstance(self.action_space, spaces.Box):
            fit_std(self.policy, *self._take(self._any_rows(MEASURED)))
        self._log(error, loss)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.n_iterations += 1
        self.steps_since_training = self._steps_by_expert = 0

    def disagreement(self) -> float:
        """
        Compare the policy, as it acted, with the expert where both were.

        :return: root mean square of the difference in units of the bounds, or share of Discrete actions that differ
        """
        assert self.replay_buffer is not None
        n = min(max(self.steps_since_training // self.n_envs, 1), self.replay_buffer.size())
        time = (self.replay_buffer.pos - n + np.arange(n)) % self.replay_buffer.buffer_size
        rows = (time[:, None] * self.n_envs + np.arange(self.n_envs)).reshape(-1)[-MEASURED:]
        inputs, labels, _ = self._take(rows)
        said = outputs(self.policy, inputs)
        if isinstance(self.action_space, spaces.Discrete):
            return float(np.mean(said.argmax(1) != labels.argmax(1)))
        return float(np.sqrt(np.mean((np.clip(said, -1.0, 1.0) - labels) ** 2)))

    def standardize(self) -> None:
        """Let the policy standardise its inputs by what was seen; its function stays what it was."""
        extractor = self.policy.pi_features_extractor
        if not isinstance(extractor, Standardizing) or not len(extractor.columns):
            return
        inputs, _, _ = self._take(self._any_rows(MEASURED))
        flat = extractor.vectors(inputs).astype(np.float64)
        mean = flat.mean(0)
        self.policy.set_standardization(*extractor.in_features(mean, spread_or_one(flat.std(0), mean)))

    def fit_policy(self, gradient_steps: int, batch_size: int) -> float:
        """
        Supervised learning on all aggregated data.

        :param gradient_steps: updates
        :param batch_size: of each
        :return: loss of the last updates
        """
        losses: list[FloatArray] = []
        for begin in range(0, gradient_steps, BLOCK):
            n_updates = min(BLOCK, gradient_steps - begin)
            inputs, labels, _ = self._take(self._any_rows(n_updates * batch_size))
            minibatches = np.arange(n_updates * batch_size).reshape(n_updates, batch_size)
            if isinstance(self.action_space, spaces.Discrete):
                losses.append(classify(self.policy, inputs, labels, minibatches))
            else:
                alike = np.broadcast_to(np.eye(labels.shape[1]), (*labels.shape, labels.shape[1]))
                losses.append(regress_mean(self.policy, inputs, labels, alike, minibatches))
        return float(np.concatenate(losses)[-20:].mean())

    def _any_rows(self, n: int) -> IntArray:
        assert self.replay_buffer is not None
        return self._rng.integers(self.replay_buffer.size() * self.n_envs, size=n)

    def _take(self, rows: IntArray) -> tuple[Observations, FloatArray, FloatArray]:
        """:return: observations as the policy sees them, labels and spreads of rows ``[n]`` of the buffer"""
        buffer: Any = self.replay_buffer
        time, env = np.divmod(rows, self.n_envs)
        inputs: Any = map_observations(lambda array: array[time, env], buffer.observations)
        if len(getattr(self.policy.pi_features_extractor, "columns", ())):
            judges = np.linspace(0, buffer.size() - 1, min(buffer.size(), MEASURED)).astype(int)
            known: Any = map_observations(lambda array: array[judges].reshape(-1, *array.shape[2:]), buffer.observations)
            inputs = replace_vectors(inputs, known, self.observation_space)
        if self._vec_normalize_env is not None:
            inputs = self._vec_normalize_env.normalize_obs(inputs)
        return inputs, buffer.labels[time, env].astype(np.float64), buffer.spreads[time, env].astype(np.float64)

    def _log(self, error: float, loss: float) -> None:
        self.logger.record("imitation/beta", self._steps_by_expert / max(self.steps_since_training, 1))
        self.logger.record("imitation/disagreement", error)
        self.logger.record("train/loss", loss)
        if isinstance(self.action_space, spaces.Box):
            self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))
