"""Dual policy iteration on a learned neural ensemble."""

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_dpi.common.action_units import hold_fractions
from sb3_dpi.common.choices import arguments_of_base, as_settings
from sb3_dpi.common.early_resets import EarlyReset, as_early_reset
from sb3_dpi.common.interruption import whole_or_undone
from sb3_dpi.common.known_functions import known_functions
from sb3_dpi.common.long_runs import warn_of_long_fits
from sb3_dpi.common.replay_memory import ReplayMemory, check_buffer
from sb3_dpi.common.saved_models import FORMAT_VERSION, SavedModel
from sb3_dpi.dpi.arguments import (
    FORMER_ARGUMENTS,
    check_arguments,
    check_size,
    first_temperature,
    make_critic,
    make_expert,
)
from sb3_dpi.dpi.constants import (
    AVERAGED_SHARE,
    DEFAULT_TEMPERATURE,
    FIRST_CRITIC_UPDATES,
    FIRST_MODEL_STEPS,
    LATEST_REWARDS,
    LOG_TEMPERATURE_BOUNDS,
    MISSED,
    N_PARTS,
    RATE_BOUNDS,
    RATE_CHANGE,
    RECENT,
    RENEWED_AFTER,
    REPORTED,
    SETTLED_SHARE,
)
from sb3_dpi.dpi.diagnostics import critic_r_squared, policy_change, prediction_quality, progress
from sb3_dpi.dpi.offline import OfflineLearner
from sb3_dpi.dpi.policies import MlpPolicy, MultiInputPolicy
from sb3_dpi.dpi.presets import FIRST, Preset, parse_preset, resolve
from sb3_dpi.trajopt.discounting import discount_for_time_limit
from sb3_dpi.trajopt.types import FloatArray, IntArray
from sb3_dpi.world_model.critic import Critic, CriticData, CriticOptions, CriticUpdate, Learner, RealSteps
from sb3_dpi.world_model.ensemble import MODEL_BATCH, DivergedError, Ensemble, WorldModel
from sb3_dpi.world_model.experts import Expert
from sb3_dpi.world_model.experts.plan_targets import Plan, PolicyGradient
from sb3_dpi.world_model.experts.problem import PlanningProblem
from sb3_dpi.world_model.imagination import Batch, Imagination, Misses, Windows, make_windows
from sb3_dpi.world_model.rollouts import RolloutOptions, RolloutPool, rollouts
from sb3_dpi.world_model.types import returns_to_go, stretch_ends, take_without_outliers


class DPI(SavedModel, OfflineLearner):
    """
    Dual policy iteration (DPI) on a learned neural ensemble

    An ensemble of networks learns the system from all real steps. An expert plans in short windows that the model imagines
    from real states, closed by soft Q-functions that learn from real and imagined steps; the policy imitates it, many times
    for each block of real steps (Sun et al., 2018, with nonlinear dynamics). What the model predicts may be corrected
    on-policy: a member's error on the real step from the same state is added, so that only the effect of acting differently is
    imagined. It explores with the policy that learns and lasting noise; ``predict`` uses the Polyak average.

    Paper: https://arxiv.org/abs/1805.10755

    :param policy: The policy model to use (MlpPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gymnasium, can be str); its actions must be a bounded Box, its
        observations vectors
    :param learning_rate: of the policy, it can be a function of the current progress remaining (from 1 to 0); usual: 1e-4 to
        1e-3
    :param buffer_size: size of the replay buffer
    :param learning_starts: rows of the replay buffer, those that were loaded included, before learning starts; actions are
        random until then. None takes 1000, at most half the steps of ``learn``, or fewer where 25 episodes end earlier
        and the preset says so
    :param batch_size: Minibatch size for the critic
    :param tau: the soft update coefficient of the critic's slow copies; usual: .005 to .02. None: the preset's
    :param gamma: the discount factor; usual: .95 to .999. None: the preset's, or less where a time limit ends episodes early:
        1 - 2.5 / steps (.95 for 50)
    :param train_freq: Update the model every ``train_freq`` steps of the vectorised environment, or a tuple like
        ``(5, "step")`` or ``(2, "episode")``. None: the preset's, 125 or 250 over all environments, or fewer where ``learn``
        has too few steps for five updates
    :param gradient_steps: steps of the policy for each block; -1: as many as steps in the environment
    :param policy_delay: updates of the critic with each step of the policy; usual: 5 to 20
    :param action_noise: added to actions in units of the bounds, beside the policy's own lasting noise
    :param replay_buffer_class: ``ReplayBuffer`` or ``DictReplayBuffer``; None: what fits
    :param replay_buffer_kwargs: keyword arguments to pass to the replay buffer on creation
    :param ent_coef: Temperature alpha of the soft values, in units of value (ten root mean squares of the reward): a number,
        or ``"auto"`` to let it follow ``target_entropy`` from .02 on (SAC's begins at 1), ``"auto_0.1"`` from .1
    :param target_entropy: of the policy, nats; ``"auto"`` takes -.5 for each action; usual: -1 to 0 for each action
    :param preset: ``"corrected"``, ``"free"``, or a dictionary of the numbers of ``sb3_dpi.dpi.presets.Preset`` that may name
        one under ``"kind"``. None chooses one when the warm-up ends; ``preset_`` tells what is learned with
    :param expert: ``"pathwise"``: the gradient of the window's return, the limit of small trust regions; ``"lqr"``:
        KL-constrained LQR along the windows; ``"mppi"``, ``"icem"``: sampled plans; or a dictionary of options whose key
        ``"kind"`` is one of these, or an object with their method ``plan``
    :param world_model: ``WorldModel`` or a dictionary of its fields: size and learning of the ensemble, known cost and end
    :param critic: ``CriticOptions`` or a dictionary of its fields: what closes a plan
    :param imagination: ``Imagination`` or a dictionary of its fields: windows and model rollouts
    :param early_reset: Median of the steps after which an episode is left, so that a new one begins: long ones otherwise show
        their beginnings seldom, and what goes wrong once lasts; or ``EarlyReset``, or a dictionary of its fields. 0 leaves
        none; usual: 100 to 500. None: the preset's
    :param update_to_data: Trades time for samples: multiplies the steps of model, critic and policy; usual: .25 to 2
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, those of ``MlpPolicy``
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run. ``"auto"`` takes the CPU, on which networks of this
        size learn fastest
    :param _init_setup_model: Whether or not to build the networks at the creation of the instance
    :raises ValueError: if an argument is out of range or unknown, or observations are no vectors
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    algorithm_version: ClassVar[int] = 4
    renamed_arguments: ClassVar[dict[str, str]] = FORMER_ARGUMENTS
    stored_as: ClassVar[dict[str, str]] = {"critic": "critic_options"}
    policy: MlpPolicy
    critic: Critic
    replay_buffer: ReplayBuffer

    def __init__(
        self,
        policy: str | type[MlpPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 100_000,
        learning_starts: int | None = None,
        batch_size: int = 128,
        tau: float | None = None,
        gamma: float | None = None,
        train_freq: int | tuple[int, str] | None = None,
        gradient_steps: int = -1,
        policy_delay: int = 10,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        ent_coef: str | float = f"auto_{DEFAULT_TEMPERATURE}",
        target_entropy: str | float = "auto",
        preset: str | dict[str, Any] | None = None,
        expert: str | dict[str, Any] | Expert = "pathwise",
        world_model: WorldModel | Mapping[str, Any] | None = None,
        critic: CriticOptions | Mapping[str, Any] | None = None,
        imagination: Imagination | Mapping[str, Any] | None = None,
        early_reset: EarlyReset | int | Mapping[str, Any] | None = None,
        update_to_data: float = 1.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        device = "cpu" if device == "auto" else device
        super().__init__(
            **arguments_of_base(locals(), OffPolicyAlgorithm),
            support_multi_env=True,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.policy_delay = policy_delay
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.preset = preset
        self.expert = expert
        self.world_model: WorldModel = world_model or {}  # type: ignore[assignment]  # read when the model is set up
        self.critic_options: CriticOptions = critic or {}  # type: ignore[assignment]
        self.imagination: Imagination = imagination or {}  # type: ignore[assignment]
        self.early_reset = early_reset
        self.update_to_data = update_to_data
        self.format_version = FORMAT_VERSION
        self.algorithm_name = type(self).__name__
        # what is learned beside the networks survives saving
        self.preset_: Preset | None = None
        self.log_temperature: float | None = None
        self.rate_factor, self.reward_limit = 1.0, np.inf
        self.n_iterations = self.n_episodes = self.time_limit = self.steps_since_training = 0
        self.logged_since_training = self.offline_steps = 0
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ building

    def _setup_model(self) -> None:
        self._check_saved_format()
        check_arguments(vars(self))
        self.world_model = as_settings("world_model", WorldModel, self.world_model)
        self.critic_options = as_settings("critic", CriticOptions, self.critic_options)
        self.imagination = as_settings("imagination", Imagination, self.imagination)
        self._resolve(FIRST)
        if self.preset_ is not None:  # arguments may be changed on loading
            gamma = self.preset_.gamma if self.gamma is None else self.gamma
            self.preset_ = replace(self._resolve(self.preset_.kind), gamma=gamma)
        check_buffer(self.replay_buffer_class, self.replay_buffer_kwargs)
        self._expert = make_expert(self.expert)
        super()._setup_model()
        check_size(self._expert, self.imagination, self.policy)
        if self.device.type == "cpu":
            first, each = (self.update_to_data * n for n in (FIRST_MODEL_STEPS, self.world_model.gradient_steps))
            sizes = self.policy.state_dim, self.policy.actor.action_dim
            warn_of_long_fits("DPI", self.world_model, sizes, MODEL_BATCH, first, each, "update_to_data or ")
        hold_fractions(self.replay_buffer)
        self._rng = np.random.default_rng(self.seed)
        dx, du, options = self.policy.state_dim, self.policy.actor.action_dim, self.world_model
        self.ensemble = Ensemble(dx, du, options.n_members, options.width, options.learning_rate).to(self.device)
        self.ensemble.known_reward, self.ensemble.known_end = known_functions(options, self.action_space)
        self.ensemble.pessimism = options.pessimism
        self.critic = make_critic(self.policy, self.critic_options).to(self.device)
        self.actor = self.policy.actor
        if self.log_temperature is None:
            self.log_temperature = math.log(first_temperature(self.ent_coef))
        self._noise = np.zeros((self.n_envs, du))
        self._warm_up_correlation = np.zeros((self.n_envs, 1))
        self._episode_steps = np.zeros(self.n_envs, dtype=int)

    def _convert_train_freq(self) -> None:
        if self.train_freq is not None:
            super()._convert_train_freq()

    def _resolve(self, kind: str) -> Preset:
        """A preset with all that was given in place of its own numbers."""
        _, numbers = parse_preset(self.preset)
        early_reset = None if self.early_reset is None else as_early_reset(self.early_reset).after
        return resolve(
            kind,
            numbers,
            {
                "tau": self.tau,
                "gamma": self.gamma,
                "on_policy_correction": self.imagination.on_policy_correction,
                "rollout_length": self.imagination.rollout_length,
                "model_noise": self.imagination.model_noise,
                "imagined_starts": self.imagination.imagined_starts,
                "value_expansion": self.imagination.value_expansion,
                "early_reset": early_reset,
                "lr_decay_after": self.critic_options.lr_decay_after,
            },
        )

    @property
    def numbers(self) -> Preset:
        """``preset_``, or before it is chosen what holds in the warm-up."""
        return self._resolve(FIRST) if self.preset_ is None else self.preset_

    @property
    def discount(self) -> float:
        """gamma, the given or the chosen one."""
        return self.numbers.gamma

    @property
    def temperature(self) -> float:
        """alpha, in units of value."""
        assert self.log_temperature is not None
        return math.exp(self.log_temperature)

    @property
    def memory(self) -> ReplayMemory:
        """The replay buffer, as the world model reads it."""
        return ReplayMemory(self.replay_buffer, self.policy.join, self.reward_limit)

    def _excluded_save_params(self) -> list[str]:
        own = ["_rng", "_noise", "_warm_up_correlation", "_episode_steps", "_act", "_expert", "_statistics"]
        return [*super()._excluded_save_params(), *own, "actor", "ensemble", "critic"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules = ["policy", "policy.optimizer", "ensemble", "ensemble.optimizer", "ensemble.termination_optimizer"]
        return [*modules, "critic", "critic.optimizer"], []

    # ------------------------------------------------------------------ learning

    @whole_or_undone
    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        One iteration of dual policy iteration on all that is in the replay buffer.

        :param gradient_steps: of the policy
        :param batch_size: of the critic
        """
        self.policy.set_training_mode(False)  # but for its own update, see imitate
        self._update_learning_rates()
        self._limit_rewards()
        told = (self.ensemble, self.critic, self.policy.actor, self.memory, self.steps_since_training)
        has_new = self.n_iterations > 0 and self.steps_since_training > 0
        measured = prediction_quality(*told, self.imagination.horizon, self.discount) if has_new else {}
        self._follow_units()
        loss = self.fit_model()  # P-hat, Eq. 2
        windows, data, share = *self.imagine(gradient_steps), self.numbers.imagined_starts
        before, gradients, updates = copy.deepcopy(self.policy.actor), list[PolicyGradient](), list[CriticUpdate]()
        if self.n_iterations == 0:  # a critic that knows nothing yet has nothing to say
            self.evaluate(data, max(int(self.update_to_data * FIRST_CRITIC_UPDATES), 1), batch_size)
        for i in range(gradient_steps):
            if share and i % RENEWED_AFTER == RENEWED_AFTER - 1:
                data.rollouts.renew()  # imagined states are those of the policy as it is
            updates.append(self.evaluate(data, self.policy_delay, batch_size))
            if i % self._expert.imitation_steps == 0:
                starts = data.rollouts.begin(windows[i // self._expert.imitation_steps], share, self._rng)
                expert = self.improve_expert(starts)  # eta_n, Eq. 4
            gradients.append(self.imitate(expert))  # pi_n+1, Eq. 5
        kl, std = policy_change(before, self.policy.actor, self._reported_states())
        self._follow_divergence(kl)
        self._log({"model/loss": loss, "train/kl": kl, "train/std": std, **measured, **progress(updates, gradients)})
        self.n_iterations += 1
        self.steps_since_training = self.logged_since_training = 0

    def _update_learning_rates(self) -> None:
        rate = self.lr_schedule(self._current_progress_remaining) * self.rate_factor
        update_learning_rate(self.policy.optimizer, rate)
        after = self.numbers.lr_decay_after
        if after:
            taken = max(self._n_updates * self.policy_delay, 1)
            share = float(np.clip(math.sqrt(after / taken), SETTLED_SHARE, 1.0))
            update_learning_rate(self.critic.optimizer, share * self.critic_options.learning_rate)

    def _follow_units(self) -> None:
        """Standardise by all that was seen; no network's function changes."""
        memory, fresh = self.memory, not self.ensemble.has_units
        if self.n_iterations == 0 and self.gamma is None:
            assert self.preset_ is not None
            self.preset_ = replace(self.preset_, gamma=discount_for_time_limit(self.time_limit, self.preset_.gamma))
        n_unseen = len(memory) if fresh else self.steps_since_training + self.logged_since_training
        if n_unseen > 0:
            change = self.ensemble.observe(take_without_outliers(memory, memory.newest(n_unseen)))
            for part in () if fresh else (self.policy.actor, self.policy.averaged, self.critic):
                part.rescale_states(change.scale, change.shift)
        rewards = memory.take(memory.newest(2 * RECENT)).rewards
        ratio = self.critic.follow_rewards(rewards, self._realised_returns(memory.newest(RECENT)))
        assert self.log_temperature is not None
        self.log_temperature += math.log(ratio)
        seen = self.policy.units_through(self._vec_normalize_env, self.ensemble.state_mean, self.ensemble.state_std)
        self.policy.set_standardization(*seen, self.critic)

    def _realised_returns(self, rows: IntArray) -> FloatArray:
        memory = self.memory
        mean = float(memory.take(memory.newest(LATEST_REWARDS)).rewards.mean())
        return returns_to_go(memory.take(rows), stretch_ends(memory, rows), self.discount, mean)

    def fit_model(self) -> float:
        """
        Fit the ensemble to all that is kept.

        :return: the mean loss
        :raises DivergedError: if there is no finite model
        """
        per_block = self.world_model.gradient_steps * (self.steps_since_training + self.offline_steps)
        n_steps = max(int(self.update_to_data * (FIRST_MODEL_STEPS if self.n_iterations == 0 else per_block)), 1)
        try:
            return self.ensemble.fit(self.memory, n_steps, MODEL_BATCH, self._rng)
        except DivergedError as error:
            raise DivergedError(f"{error}. {self._keep_last_good_model()}") from error

    def _keep_last_good_model(self) -> str:
        """Save what acts as well as before; says where."""
        folder = self.logger.get_dir()
        if folder is None:
            return "The policy is as before and can be saved"
        path = os.path.join(folder, "last_good_model.zip")
        self.save(path)
        return f"The policy is as before and was saved to {path}"

    def imagine(self, gradient_steps: int) -> tuple[list[Windows], CriticData]:
        """
        Begin all windows of a block, and imagine what the critic learns from beside real steps.

        :param gradient_steps: of the policy
        :return: windows of each plan; what the critic learns from
        """
        memory, E, given, numbers = self.memory, self.ensemble.n_members, self.imagination, self.numbers
        n_plans = -(-gradient_steps // self._expert.imitation_steps)
        rows = self._starts(E * n_plans * max(given.n_windows // E, 1))
        misses = Misses.of(self.ensemble, memory, MISSED, numbers.model_noise) if numbers.model_noise else None
        windows = make_windows(self.ensemble, memory, rows, given.horizon, numbers.on_policy_correction)
        if misses is not None:
            windows = misses.added_to(windows, self._rng)
        n_steps = numbers.value_expansion or given.n_rollout_steps
        pool = RolloutPool(partial(self._roll_out, misses), n_steps, N_PARTS if numbers.imagined_starts else 1)
        real = RealSteps(memory, self.ensemble, float(self.critic.unit))
        data = CriticData(memory, self.ensemble, real, pool)
        self.critic.begin(data, self._learner(), self._rng)
        return windows.split(n_plans), data

    def _roll_out(self, misses: Misses | None, n_steps: int) -> Batch:
        """With model and policy as they are."""
        numbers, unit = self.numbers, float(self.critic.unit)
        soft, ways = (self.temperature * unit, self.discount), (numbers.imagined_starts > 0.0, numbers.value_expansion > 0)
        options = RolloutOptions(numbers.rollout_length, *soft, numbers.on_policy_correction, misses, *ways)
        imagined = rollouts(self.ensemble, self.policy.actor, self.memory, self._rng, n_steps, options)
        return replace(imagined, rewards=imagined.rewards / unit)

    def _starts(self, n: int) -> IntArray:
        """Half from what is recent, half from all."""
        recent = self.memory.newest(RECENT)
        some = recent[self._rng.integers(len(recent), size=n // 2)]
        rows = np.concatenate([some, self._rng.integers(len(self.memory), size=n - n // 2)])
        self._rng.shuffle(rows)
        return rows

    def _learner(self) -> Learner:
        return Learner(self.policy.actor, self.temperature, self.discount, self.numbers.tau)

    def evaluate(self, data: CriticData, n_updates: int, batch_size: int) -> CriticUpdate:
        """
        Update the critic.

        :param data: real and imagined steps
        :param n_updates: how often
        :param batch_size: of each
        :return: what the updates did
        """
        self.critic.train()
        update = self.critic.learn(data, n_updates, batch_size, self._learner(), self._rng)
        self.critic.eval()
        return update

    def improve_expert(self, windows: Windows) -> Plan:
        """
        Plan in imagined windows.

        :param windows: where to begin
        :return: what the policy should do
        """
        problem = PlanningProblem(self.policy.actor, self.ensemble, self.critic, windows, self.temperature, self.discount)
        return self._expert.plan(problem, self._rng)

    def imitate(self, expert: Plan) -> PolicyGradient:
        """
        Take one step towards the expert, and let the temperature follow the entropy.

        :param expert: its plan
        :return: the gradient that was followed
        """
        actor = self.policy.actor
        self.policy.set_training_mode(True)
        gradient = expert.gradient(actor, self.temperature, self._rng)
        self.policy.set_training_mode(False)
        actor.set_gradients(gradient.direction)
        th.nn.utils.clip_grad_norm_(actor.learned, self.numbers.max_grad_norm)
        self.policy.optimizer.step()
        self._n_updates += 1
        self.policy.follow(min(max(self.numbers.polyak, AVERAGED_SHARE / self._n_updates), 1.0))
        if isinstance(self.ent_coef, str):
            assert self.log_temperature is not None
            target = -0.5 * actor.action_dim if self.target_entropy == "auto" else float(self.target_entropy)
            rate = self.lr_schedule(self._current_progress_remaining)
            # more entropy than wanted: exploring pays less from now on
            moved = self.log_temperature - rate * (gradient.entropy - target)
            self.log_temperature = float(np.clip(moved, *LOG_TEMPERATURE_BOUNDS))
        return gradient

    def _reported_states(self) -> th.Tensor:
        return self.ensemble.standardize(self.memory.take(self.memory.newest(REPORTED)).states)

    def _follow_divergence(self, divergence: float) -> None:
        """The same step moves some policies hardly at all and others off a cliff."""
        aim = self.numbers.target_kl
        if not aim:
            return
        if divergence > 2.0 * aim:
            self.rate_factor = max(self.rate_factor / RATE_CHANGE, RATE_BOUNDS[0])
        elif divergence < 0.5 * aim:
            self.rate_factor = min(self.rate_factor * RATE_CHANGE, RATE_BOUNDS[1])

    # ------------------------------------------------------------------ logging

    def _log(self, measured: dict[str, float]) -> None:
        rows, unit = self.memory.newest(REPORTED), float(self.critic.unit)
        data = self.memory.take(rows)
        measured["train/learning_rate"] = float(self.policy.optimizer.param_groups[0]["lr"])
        measured["train/ent_coef"] = self.temperature * unit
        returns = self._realised_returns(rows)
        measured["train/critic_r_squared"] = critic_r_squared(self.ensemble, self.critic, data, returns)
        measured["train/predicted_improvement"] *= 1.0 - self.discount  # of a reward a step, as the real one is
        for name in ("objective", "predicted_improvement", "critic_target"):
            measured[f"train/{name}"] *= unit
        for name, value in measured.items():
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
