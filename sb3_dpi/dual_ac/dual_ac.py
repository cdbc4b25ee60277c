"""Dual actor-critic: the actor and the dual critic of the Bellman equation's Lagrangian (Dai et al., 2018)."""

from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.common.action_units import hold_fractions
from sb3_dpi.common.choices import arguments_of_base, as_schedule
from sb3_dpi.common.early_resets import EARLY, EarlyReset, LeavesEpisodes, ResetLayer, as_early_reset
from sb3_dpi.common.features import RandomFourierExtractor
from sb3_dpi.common.finite import KeptStatistics, check_finite
from sb3_dpi.common.interruption import reset_when_interrupted, whole_or_undone
from sb3_dpi.common.natural_gradient import NaturalGradientStep
from sb3_dpi.common.original_observations import as_arrays
from sb3_dpi.common.planner_state import replace_vectors
from sb3_dpi.common.policies import StandardizedPolicy, being_updated
from sb3_dpi.common.saved_models import FORMAT_VERSION, SavedModel
from sb3_dpi.common.standardized import Standardizing
from sb3_dpi.dual_ac import windows
from sb3_dpi.dual_ac.action_critic import suits
from sb3_dpi.dual_ac.actor import improve
from sb3_dpi.dual_ac.arguments import RENAMED, check_arguments
from sb3_dpi.dual_ac.batch import Batch
from sb3_dpi.dual_ac.conditional_mean import conditional_mean
from sb3_dpi.dual_ac.constants import (
    DEFAULT_KL,
    DEFAULT_RESET,
    INITIAL_STATES,
    LONGEST_DISCOUNT,
    SMALLEST_STEP,
    STILL_LARGE,
    TOLERANCE,
)
from sb3_dpi.dual_ac.critic import (
    InnerSolve,
    ValueProblem,
    descend,
    solve_in_closed_form,
    value_features,
    value_is_linear,
)
from sb3_dpi.dual_ac.game import dual_weights
from sb3_dpi.dual_ac.judgement import Judgement, judge, trust_in_samples
from sb3_dpi.dual_ac.memory import Memory
from sb3_dpi.dual_ac.observations import take
from sb3_dpi.dual_ac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, RBFPolicy, limit_noise
from sb3_dpi.dual_ac.rollout import Endings, concatenate, flatten_time
from sb3_dpi.dual_ac.short_trainings import ShortTrainings
from sb3_dpi.trajopt.discounting import discount_for_time_limit
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.trajopt.units import cut_outliers, spread_or_one

SelfDualAC = TypeVar("SelfDualAC", bound="DualAC")


class DualAC(SavedModel, LeavesEpisodes, ShortTrainings):
    """
    Dual Actor-Critic (Dual-AC)

    The Lagrangian of the Bellman equation's linear programme is a game of a weighted actor, states alpha(s) and policy
    pi(a|s), against a dual critic V. Each iteration solves V to convergence on windows of k steps, near the returns of the
    policy that sampled them, takes alpha in closed form and one natural-gradient step of the policy.

    Paper: https://arxiv.org/abs/1712.10282

    :param policy: The policy model to use (MlpPolicy, RBFPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: of V, it can be a function of the current progress remaining (from 1 to 0); usual: 3e-4 to 3e-3
    :param n_steps: The number of steps to run for each environment per update. None takes those of
        ten episodes, 256 to 1024 over all environments, and fewer where ``learn`` has too few steps for five updates
    :param batch_size: Minibatch size for V; usual: 32 to 256
    :param gamma: Discount factor; usual: .98 to .999. None takes .995, or less once a time limit has ended an episode before
        500 steps: 1 - 2.5 / steps (.9875 for 200)
    :param window_length: The most steps of a window, k + 1 in the paper's count: 1 is the one-step game. Windows end where
        their episode does; usual: 10 to 50
    :param path_regularization: eta_V, how much V keeps to the returns of the policy, in units of one over the standard
        deviation of the returns. 0 switches path regularisation off; ``inf``, its limit, leaves a regression
        to the returns without the game; usual: 1 to 1000
    :param n_critic_updates: Passes of V over the samples of an iteration at most; V counts as solved when one gains less than
        a ten-thousandth of the returns' variance. 0 takes one gradient step on all samples instead; usual: 5 to 30
    :param n_action_critic_updates: Gradient steps of Q(s, a) in an iteration, one for each of its steps and these at most. Q
        learns from the last 20,000 steps and takes noise from the policy gradient, where actions are Gaussian and
        observations are vectors; 0: none. None takes 640 in a training of no more steps than are kept, else none: where
        samples are many it hindered one task of two
    :param held_out_values: Whether states are weighed and actions judged by the V that was solved before their rollout. A V
        that has just fitted a failure has explained it away, and what fails seldom is never mended. False judges by the new V,
        as in the paper
    :param gae_lambda: Factor for trade-off of bias vs variance of the returns that V is regularised to (1: Monte Carlo)
    :param alpha_regularization: eta_alpha, in units of the standard deviation of the windows' advantage: a state weighs
        1 + alpha. ``inf``, its limit: all weigh the same; usual: 1 to 10
    :param gradient: ``"causal"``: the policy gradient of the Lagrangian without terms of expectation zero; ``"averaged"``:
        the same with every state of the rollout counted once, windows only averaged; ``"literal"``: as in the paper, every
        action of a window with the whole window's advantage
    :param target_kl: Bound on KL(old policy || new policy), nats, mean over the samples; it can be a function of the progress
        remaining, or ``"lin_0.05"``, which falls to zero; usual: .01 to .1. None takes .05, up to .1 where Q is learned and
        ``learn`` has fewer than 64 updates, and lets it fall to zero once an episode has ended before its time: what balances
        has something to lose by a step
    :param step_rule: ``"adaptive"``: ``target_kl`` shrinks with the advantages' variance where their standard deviation is
        below a quarter of the largest one seen, to a thousandth at most; ``"decaying"``: with the progress; ``"constant"``
    :param cg_damping: damping in the Hessian vector product computation; usual: .1 to 1. None takes twenty times the mean
        eigenvalue of the Fisher matrix
    :param early_reset: Median of the steps after which an episode is left, so that a new one begins: long ones otherwise show
        their beginnings seldom, and what fails there is forgotten. Or ``{"after": steps, "spread": False}`` for one limit of
        all. None takes 256, or none where the time limit is no longer; 0 leaves none; usual: 100 to 500.
        ``rollout/ep_rew_mean`` knows the episodes whose limit lies beyond their time limit
    :param min_std: What the standard deviation of a Gaussian policy does not fall below, in units of the bounds: noise goes on
        showing what fails near by. Without effect on gSDE; usual: 0 to .3
    :param max_std: What it does not rise above at first; this limit falls to ``min_std`` with the progress of training: the
        policy is deployed without its noise, and must not come to need it. 0 sets none. Likewise; usual: .5 to 1
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE) instead of action noise exploration
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE; -1: only at the beginning of the rollout
    :param rollout_buffer_class: Rollout buffer class to use. If ``None``, it will be automatically selected.
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: if an argument is out of range or unknown
    """

    algorithm_version: ClassVar[int] = 6
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "RBFPolicy": RBFPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    renamed_arguments: ClassVar[dict[str, str]] = RENAMED
    early_reset_: EarlyReset | None = None
    """the settings that the last ``learn`` took"""

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int | None = None,
        batch_size: int = 32,
        gamma: float | None = None,
        window_length: int = 20,
        path_regularization: float = 100.0,
        n_critic_updates: int = 20,
        n_action_critic_updates: int | None = None,
        held_out_values: bool = True,
        gae_lambda: float = 0.95,
        alpha_regularization: float = 5.0,
        gradient: str = "causal",
        target_kl: float | str | Schedule | None = None,
        step_rule: str = "adaptive",
        cg_damping: float | None = None,
        early_reset: int | dict[str, Any] | EarlyReset | None = None,
        min_std: float = 0.2,
        max_std: float = 0.75,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            **arguments_of_base(locals(), OnPolicyAlgorithm),
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=np.inf,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            _init_setup_model=False,
        )
        self.window_length, self.batch_size = window_length, batch_size
        self.path_regularization, self.alpha_regularization = path_regularization, alpha_regularization
        self.n_critic_updates, self.n_action_critic_updates = n_critic_updates, n_action_critic_updates
        self.held_out_values = held_out_values
        self.gradient, self.step_rule = gradient, step_rule
        self.target_kl = None if target_kl is None else as_schedule("target_kl", target_kl)
        self.cg_damping, self.early_reset = cg_damping, early_reset
        self.min_std, self.max_std = min_std, max_std
        self.format_version = FORMAT_VERSION
        self.algorithm_name = type(self).__name__
        # what is learned beside the networks, it survives saving
        self.obs_rms: RunningMeanStd | None = None
        self.return_rms = RunningMeanStd(epsilon=0.0)  # of nothing: any number would be one of some unit
        self.largest_advantage = 0.0
        self.initial_observations: Any = None
        self.time_limit, self.saw_failure, self.memory, self.action_critic_suits = 0, False, Memory(), False
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_saved_format()
        check_arguments(vars(self))
        self._choose_steps()
        if self.n_steps * self.n_envs < 2:
            raise ValueError(f"n_steps times environments must be at least 2, got {self.n_steps} x {self.n_envs}")
        # arguments may be changed on loading
        self.target_kl = None if self.target_kl is None else as_schedule("target_kl", self.target_kl)
        super()._setup_model()
        hold_fractions(self.rollout_buffer)
        self.memory, self.action_critic_suits = self.memory.to(self.device), suits(self.policy)
        self._rng = np.random.default_rng(self.seed)
        self._reset_rng = self._rng.spawn(1)[0]

    def _excluded_save_params(self) -> list[str]:
        own = ["_rng", "_reset_rng", "_endings", "_batch", "_judgement", "_features", "_guess"]
        return [*super()._excluded_save_params(), *own]

    # ------------------------------------------------------------------ sampling

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect experiences using the current policy and fill a ``RolloutBuffer``, with the rewards as they are: at a time
        limit the true next observation is kept, for V is solved anew.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param rollout_buffer: Buffer to fill with rollouts
        :param n_rollout_steps: Number of experiences to collect per environment
        :return: False if callback terminated rollout prematurely
        :raises ValueError: if an observation or reward is not finite, naming environment and step
        """
        assert self._last_obs is not None and self._last_episode_starts is not None
        check_finite(self._last_obs, np.zeros(env.num_envs), self.num_timesteps)
        self.policy.set_training_mode(False)
        rollout_buffer.buffer_size = n_rollout_steps  # it grows with experience
        rollout_buffer.reset()
        self._endings = Endings(n_rollout_steps, env.num_envs)
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()
        statistics = KeptStatistics(self._vec_normalize_env)
        unknown = th.zeros(env.num_envs)  # all values and log-probabilities are computed at once, at the end
        for n_steps in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            with th.no_grad():
                obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                actions = self.policy.get_distribution(obs_tensor).get_actions().cpu().numpy()
            new_obs, rewards, dones, infos = as_arrays(env.step(self._to_env_units(actions)))
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            self._check_step(new_obs, rewards, dones, infos, statistics)
            self._endings.add(n_steps, new_obs, dones, infos)
            self.saw_failure |= bool(self._endings.terminated[n_steps].any())
            self._learn_time_limit(dones, infos)
            flat, starts = actions.reshape(env.num_envs, -1), self._last_episode_starts
            rollout_buffer.add(self._last_obs, flat, rewards, starts, unknown, unknown)  # type: ignore[arg-type]
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        self._evaluate_rollout(rollout_buffer)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _evaluate_rollout(self, buffer: RolloutBuffer) -> None:
        """Fill in what V, of before the rollout, and the policy say of it."""
        buffer.gamma = self.discount
        batch = self._batch = self._recall()
        values, n = self._values(batch), buffer.rewards.size
        self._features = self._linear_features(batch)  # they owe nothing to the actions of this rollout
        if not self.action_critic_updates:
            self.memory = Memory()
        self._guess = self.memory.guess(self.policy, batch)
        self._judgement = self._judge(batch, values)
        buffer.values = values[:n].reshape(batch.shape).astype(np.float32)
        buffer.returns = batch.path_returns(values, self.discount, self.gae_lambda).astype(np.float32)
        buffer.advantages = self._judgement.advantages.astype(np.float32)
        with th.no_grad():
            distribution = self.policy.get_distribution(take(batch.observations, slice(0, n)))
            buffer.log_probs = distribution.log_prob(batch.actions).reshape(batch.shape).cpu().numpy()

    @property
    def discount(self) -> float:
        """gamma, or what follows from the time limits that were met."""
        return discount_for_time_limit(self.time_limit, LONGEST_DISCOUNT) if self.gamma is None else self.gamma

    def _learn_time_limit(self, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Of episodes that were left early nothing is learned."""
        layer = self.reset_layer
        for i in np.flatnonzero(dones) if layer is not None else ():
            if infos[i].get("TimeLimit.truncated", False) and not infos[i].get(EARLY, False):
                self.time_limit = max(self.time_limit, int(layer.lengths[i]))  # type: ignore[union-attr]

    def _choose_early_reset(self, layer: ResetLayer) -> EarlyReset:
        """What was given, or what suits episodes of this length."""
        if self.early_reset is not None:
            chosen = as_early_reset(self.early_reset)
        else:
            chosen = EarlyReset(DEFAULT_RESET if layer.time_limit is None or layer.time_limit > DEFAULT_RESET else 0)
            if self.verbose >= 1:
                print(f"Episodes are left after {chosen.after} steps (median)" if chosen.after else "No episode is left early")
        self.early_reset_ = chosen
        return chosen

    def _to_env_units(self, actions: np.ndarray) -> np.ndarray:
        if not isinstance(self.action_space, spaces.Box):
            return actions
        actions = actions.reshape(-1, *self.action_space.shape)
        if self.policy.squash_output:
            return self.policy.unscale_action(np.clip(actions, -1.0, 1.0))
        clipped: np.ndarray = np.clip(actions, self.action_space.low, self.action_space.high)
        return clipped

    # ------------------------------------------------------------------ learning

    @whole_or_undone
    def train(self) -> None:
        """One iteration of Algorithm 1: V-step, alpha-step and pi-step on the rollout in the buffer."""
        self.policy.set_training_mode(False)  # but for its own updates
        self._update_learning_rate(self.policy.optimizer)
        self._update_standardization(self._seen())
        batch, judgement = self._batch, self._judgement  # of pi_{t-1}, the behaviour policy pi_b; alpha_{t-1}, by V_{t-1}
        targets = self.rollout_buffer.returns.astype(np.float64)  # E^{pi_b}[sum_i gamma^i R(s_i, a_i)], Eq. 9
        solve = self._solve_values(batch, targets, judgement.weights)  # V = argmin L_r(V, alpha_{t-1}, pi_{t-1}), Eq. 13
        if not self.held_out_values:
            judgement = self._judge(batch, self._values(batch))  # alpha_t, Eq. 14 and 15, and Eq. 10 and 11 by the new V
            self.rollout_buffer.advantages = judgement.advantages.astype(np.float32)
        if self.action_critic_updates:
            self.memory = self.memory.remember(batch, judgement.shares)
        step = self._improve_policy(batch, self.rollout_buffer.advantages, judgement)  # pi_t, Eq. 16 and 17
        self._solve_action_critic(batch)  # Q of pi_t, for the next rollout
        self._n_updates += 1
        self._follow_episodes(self._endings.n_episodes)
        self._report(explained_variance(self.rollout_buffer.values.reshape(-1), targets.reshape(-1)), solve, step)

    def _seen(self, more: Any = None) -> Any:
        """Observations of the rollout without outliers, and more of them behind."""
        known = flatten_time(self.rollout_buffer.observations)
        return replace_vectors(concatenate(known, more), known, self.observation_space)

    def _recall(self) -> Batch:
        """The rollout as it happened: the true next observations behind those of the buffer."""
        buffer, endings = self.rollout_buffer, self._endings
        seen = self._seen(endings.observations())
        self._remember_resets(take(seen, np.flatnonzero(buffer.episode_starts)))
        every = obs_as_tensor(seen, self.device)
        # Stable-Baselines3 keeps MultiBinary actions as integers, which torch has no log-probability for
        actions = th.as_tensor(flatten_time(buffer.actions).astype(np.float32), device=self.device)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        ends = endings.ends
        return Batch(
            every,
            actions,
            cut_outliers(buffer.rewards.astype(np.float64)),
            windows.following_rows(endings.terminated, endings.truncated),
            ends,
            windows.window_lengths(ends, self.window_length),
        )

    def _remember_resets(self, observations: Any) -> None:
        """Samples of mu."""
        if self.initial_observations is None:
            kept = observations
        else:
            kept = concatenate(self.initial_observations, observations)
        self.initial_observations = take(kept, slice(-INITIAL_STATES, None))

    def _update_standardization(self, observations: Any) -> None:
        extractor = self.policy.pi_features_extractor
        if isinstance(extractor, RandomFourierExtractor):
            space, tensor = self.observation_space, th.as_tensor(observations, device=self.device)
            tensor = tensor if isinstance(space, spaces.Box) else preprocess_obs(tensor, space)  # type: ignore[assignment]
            for module in {extractor, self.policy.vf_features_extractor}:
                module.fit(tensor)  # type: ignore[operator]
        elif isinstance(extractor, Standardizing) and isinstance(self.policy, StandardizedPolicy) and len(extractor.columns):
            flat = extractor.vectors(observations).astype(np.float64)
            if self.obs_rms is None:
                self.obs_rms = RunningMeanStd(epsilon=0.0, shape=flat.shape[1:])
            self.obs_rms.update(flat)
            std = spread_or_one(np.sqrt(self.obs_rms.var), self.obs_rms.mean)
            self.policy.set_standardization(*extractor.in_features(self.obs_rms.mean, std))

    def _linear_features(self, batch: Batch) -> FloatArray:
        """What V is linear in, of the states that windows start from."""
        with th.no_grad():
            return value_features(self.policy, take(batch.observations, slice(0, batch.rewards.size))).cpu().numpy()

    def _judge(self, batch: Batch, values: FloatArray) -> Judgement:
        """Weigh states by alpha, which takes ``E[delta | s]`` (Eq. 8), and judge their actions."""
        delta, weights = batch.deltas(values, self.discount), np.ones(batch.shape)
        if not np.isinf(self.alpha_regularization):
            expected = conditional_mean(delta, self._features, batch.lengths)
            weights = dual_weights(expected, float(delta.std()), self.alpha_regularization)
        return judge(batch, values, weights, self.discount, self.gradient, self._guess)

    def _solve_values(self, batch: Batch, targets: FloatArray, weights: FloatArray) -> InnerSolve:
        self._rescale_values(targets)
        scale = self._scale()
        returns, discounts, end_rows = batch.windows(self.discount)
        standard = scale.standardize(targets), returns / (scale.std or 1.0)
        samples = np.stack([*standard, discounts, weights]).reshape(4, -1).astype(np.float32)
        initial = obs_as_tensor(self.initial_observations, self.device)
        ends = th.as_tensor(end_rows.reshape(-1), device=self.device)
        target, earned, kept, alpha = th.as_tensor(samples, device=self.device)
        problem = ValueProblem(batch.observations, initial, target, ends, earned, kept, alpha, self.path_regularization)
        if self.n_critic_updates > 0 and value_is_linear(self.policy):
            return solve_in_closed_form(self.policy, problem)
        with being_updated(self.policy):
            return descend(self.policy, problem, TOLERANCE, self.n_critic_updates, self.batch_size, self._rng)

    def _kl_bound(self, spread: float) -> float:
        """zeta: a normalised step would spend its whole KL on noise where next to nothing is left to gain."""
        left = self._current_progress_remaining
        usual = DEFAULT_KL * self._haste() * (left if self.saw_failure else 1.0)
        bound = usual if self.target_kl is None else self.target_kl(left)
        if self.step_rule == "decaying":
            return bound * max(left, SMALLEST_STEP)
        self.largest_advantage = max(self.largest_advantage, spread)
        if self.step_rule == "constant" or self.largest_advantage == 0.0:
            return bound
        share = spread / (STILL_LARGE * self.largest_advantage)
        return bound * min(max(share**2, SMALLEST_STEP), 1.0)

    def _improve_policy(self, batch: Batch, advantages: np.ndarray, judgement: Judgement) -> tuple[NaturalGradientStep, float]:
        """The step, and the advantages' standard deviation."""
        advantages, weights = advantages.reshape(-1).astype(np.float64), judgement.shares.reshape(-1)
        advantages = advantages - np.average(advantages, weights=weights)
        spread = float(np.sqrt(np.average(advantages**2, weights=weights)))
        guessed, n_directions = judgement.guessed.reshape(-1), sum(p.numel() for p in self.policy.action_net.parameters())
        rest = advantages - guessed  # what Q says is integrated over the actions
        rest = trust_in_samples(rest, guessed, weights, n_directions) * (rest - np.average(rest, weights=weights))
        factors = th.as_tensor(weights * rest / (spread or 1.0), dtype=th.float32, device=self.device)
        observations = take(batch.observations, slice(0, len(factors)))
        imagined = self.memory.imagine(self.policy, spread, self._rng)
        step = improve(self.policy, observations, batch.actions, factors, self._kl_bound(spread), self.cg_damping, imagined)
        has_units = not isinstance(self.policy, StandardizedPolicy) or self.policy.squash_output
        if not self.use_sde and has_units:
            limit_noise(self.policy, self.min_std, self.max_std, self._current_progress_remaining)
        return step, spread

    def _report(self, variance: Any, solve: InnerSolve, step_and_spread: tuple[NaturalGradientStep, float]) -> None:
        step, spread = step_and_spread
        self.logger.record("train/value_loss", solve.objective)
        self.logger.record("train/inner_steps", solve.n_steps)
        self.logger.record("train/inner_gap", solve.gap)
        self.logger.record("train/explained_variance", float(variance))
        self.logger.record("train/policy_objective", step.improvement)
        self.logger.record("train/kl_divergence_loss", step.kl)
        self.logger.record("train/is_line_search_success", float(step.accepted))
        self.logger.record("train/advantage_std", spread)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))

    @reset_when_interrupted
    def learn(
        self: SelfDualAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DualAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDualAC:
        with self.early_resets(self._choose_early_reset, self._reset_rng):
            return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
