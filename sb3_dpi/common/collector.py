"""Sampling of time-aligned trajectories from initial conditions, as rollouts of Stable-Baselines3."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_dpi.common.actor import Actor, export_actor
from sb3_dpi.common.asking import ask
from sb3_dpi.common.choices import check_choice, check_number
from sb3_dpi.common.critic import generalized_advantages
from sb3_dpi.common.early_resets import install
from sb3_dpi.common.environments import environment_indices, make_environments
from sb3_dpi.common.finite import KeptStatistics, NotFiniteError, check_finite
from sb3_dpi.common.iteration_size import IterationSize, SizeRequest, describe
from sb3_dpi.common.original_observations import (
    ReadsOriginals,
    before_reset,
    original_obs,
    original_rewards,
    shown_spread,
    step_unclipped,
)
from sb3_dpi.common.planner_state import make_state_view, sees_the_state
from sb3_dpi.common.policies import BoundedGaussianCnnPolicy, BoundedGaussianPolicy
from sb3_dpi.common.trajectories import Observations, Trajectories, TrajectoryBuffer, map_observations
from sb3_dpi.trajopt.noise import correlate
from sb3_dpi.trajopt.types import FloatArray, IntArray

Sampler = Callable[[int, Any, FloatArray], np.ndarray]

LONGEST_HORIZON = 100
"""Planned time steps at most, where the user does not say: with the usual discount what comes later counts little."""
CONDITIONS = ("fresh", "fixed", "random", "continue", "mixed")
GOING_ON = ("continue", "mixed")
"""Those whose trajectories may begin where others were cut."""
MIXED_RESTARTS = 0.5
"""Probability that an episode is left after a window, so that a new one begins: early and late states are seen alike."""


class TrajectoryCollector(ReadsOriginals, OnPolicyAlgorithm):
    """An algorithm of Stable-Baselines3 whose rollouts are N trajectories from each of M initial conditions, aligned in time.

    Initial condition i is ``reset(seed=base + i)``. Observations and rewards are kept as the environments returned them.
    Environments may differ: each then has its own conditions.

    :param policy: the policy model to use
    :param env: the environment to learn from, or a list of ids, environments or functions that make one
    :param learning_rate: of the policy's optimizer
    :param horizon: time steps of a trajectory; None for the time limit, at most ``LONGEST_HORIZON``
    :param n_conditions: initial conditions M of each environment in an iteration; None chooses, ``iteration_`` says what
    :param samples_per_condition: trajectories N from each condition; None likewise
    :param conditions: ``"fresh"``, ``"fixed"``, ``"random"``, ``"continue"`` or ``"mixed"``
    :param gamma: discount factor
    :param noise_correlation: of the exploration noise of one time step with that of the next, from 0 to below 1
    :param kwargs: of ``OnPolicyAlgorithm``
    :raises ValueError: if an argument is out of range, or the horizon exceeds the time limit
    """

    policy: BoundedGaussianPolicy
    rollout_buffer: TrajectoryBuffer
    _actor: Actor
    _may_reset = True
    _is_left = False
    """whether the next trajectories begin anew, drawn with the present ones: callbacks are told at the last step"""

    def __init__(
        self,
        policy: str | type[BoundedGaussianPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule,
        horizon: int | None,
        n_conditions: int | None,
        samples_per_condition: int | None,
        conditions: str,
        gamma: float,
        noise_correlation: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            # SB3 refuses the name with dictionaries; here the planner's "state" may stand beside the image
            policy=BoundedGaussianCnnPolicy if policy == "CnnPolicy" else policy,
            env=env,
            learning_rate=learning_rate,
            n_steps=0,  # follows from horizon, trajectories and environments in _setup_model
            gamma=gamma,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=float("inf"),
            use_sde=False,
            sde_sample_freq=-1,
            supported_action_spaces=(spaces.Box,),
            _init_setup_model=False,
            **kwargs,
        )
        check_choice("conditions", conditions, CONDITIONS)
        for name, value in (("n_conditions", n_conditions), ("samples_per_condition", samples_per_condition)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.horizon = horizon
        self.n_conditions = n_conditions
        self.samples_per_condition = samples_per_condition
        self.conditions = conditions
        self.noise_correlation = noise_correlation
        # what follows is drawn or counted in training and survives save and load (attributes of __init__ do)
        self.n_iterations = 0
        self.condition_base: int | None = None
        self.iteration_: IterationSize | None = None
        """what an iteration samples, the numbers that were left open included"""
        self.environment_indices: IntArray = np.zeros(1, dtype=int)

    def _setup_model(self) -> None:
        check_number("gamma", self.gamma, 0.0, 1.0)
        if not 0.0 <= self.noise_correlation < 1.0:
            raise ValueError(f"noise_correlation must be at least 0 and below 1, got {self.noise_correlation}")
        self._rng = np.random.default_rng(self.seed)
        if self.condition_base is None:
            # far from the small seeds that evaluation environments usually get
            draw = self._rng.integers(2**30) if self.seed is None else 1_000_003 * (self.seed + 1)
            self.condition_base = int(draw % 2**31)
        self._state_view, self._state_dim = make_state_view(self.observation_space)
        assert isinstance(self.action_space, spaces.Box)
        low, high = self.action_space.low, self.action_space.high
        ones = np.ones((1, low.size), dtype=np.float32)
        self._unit_bounds = -ones, ones
        self._acts_in_unit_bounds = low.ndim == 1 and bool(np.all(low == -1.0) and np.all(high == 1.0))
        if self.env is not None:
            self.environment_indices = environment_indices(self.env)
        self._take_size(self._choose_size())
        self._cut_episodes = np.zeros((2, self.n_envs))  # returns and lengths of what goes on
        self._check_size()
        super()._setup_model()
        if not isinstance(self.policy, BoundedGaussianPolicy):
            raise ValueError(
                f"The policy must act in units of the action bounds: derive {self.policy_class.__name__} from "
                "sb3_dpi.common.policies.BoundedGaussianPolicy, or use one of " + ", ".join(self.policy_aliases)
            )

    def _check_size(self) -> None:
        """What is too large is known before anything is allocated."""

    @property
    def n_environments(self) -> int:
        """How many environments differ."""
        return int(self.environment_indices.max()) + 1

    @property
    def total_conditions(self) -> int:
        """Initial conditions of all environments in an iteration."""
        return self.n_environments * self.size.n_conditions

    @property
    def size(self) -> IterationSize:
        """What an iteration samples."""
        assert self.iteration_ is not None
        return self.iteration_

    def _choose_size(self, total_timesteps: int | None = None) -> IterationSize:
        """What was given, and what follows from the environment, and from few steps of ``learn``, for the rest."""
        assert isinstance(self.action_space, spaces.Box)
        given = SizeRequest(
            self.horizon,
            self.n_conditions,
            self.samples_per_condition,
            longest_horizon=self._resolve_horizon(),
            n_inputs=self._state_dim + self.action_space.low.size,
            least_samples=self.min_samples,
            copies=int(np.bincount(self.environment_indices).min()),
            pooled=self.conditions in ("random", "continue", "mixed"),
        )
        return given.choose(None if total_timesteps is None else total_timesteps // self.n_environments)

    def _take_size(self, size: IterationSize) -> None:
        self.iteration_, self.n_steps = size, size.n_steps
        self.rollout_buffer_class = TrajectoryBuffer
        self.rollout_buffer_kwargs = {
            "horizon": size.horizon,
            "state_dim": self._state_dim,
            "n_conditions": size.n_conditions,
            "environment_indices": self.environment_indices,
        }

    @property
    def min_samples(self) -> int:
        """Trajectories of a condition that are needed at least."""
        return 1

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        made = make_environments(env) if isinstance(env, (list, tuple)) else env
        return OnPolicyAlgorithm._wrap_env(made, verbose, monitor_wrapper)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        wrapped = self._wrap_env(env, self.verbose)
        indices = environment_indices(wrapped)
        if wrapped.num_envs == self.n_envs and not np.array_equal(indices, self.environment_indices):
            raise ValueError(
                f"Other sub-environments differ here ({indices.tolist()}) than in the model's environment "
                f"({self.environment_indices.tolist()}): use {type(self).__name__}.load(path, env)"
            )
        super().set_env(wrapped, force_reset)

    def _resolve_horizon(self) -> int:
        limit = None
        if self.env is not None:
            limits = [getattr(spec, "max_episode_steps", None) for spec in ask(self.env, "spec") or ()]
            if not any(limits):  # a TimeLimit around an environment without an id
                limits = ask(self.env, "_max_episode_steps") or []
            limit = min(filter(None, limits), default=None)
        if self.horizon is None:
            # a model that was loaded without environment keeps the horizon it was trained with
            kept = self.iteration_.horizon if self.env is None and self.iteration_ is not None else None
            return min(limit or kept or LONGEST_HORIZON, LONGEST_HORIZON)
        if self.horizon < 2:
            raise ValueError(f"horizon must be at least 2, or None for the time limit, got {self.horizon}")
        if limit is not None and self.horizon > limit:
            most = f"at most {limit}, or " if limit >= 2 else ""
            raise ValueError(
                f"horizon={self.horizon} is longer than the environment's episodes ({limit} steps): use {most}None for the "
                "time limit"
            )
        return self.horizon

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_state_view", "_rng", "_actor"]

    # ------------------------------------------------------------------ sampling

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self.env is not None:
            layer = install(self.env)  # hands out reset seeds
            self.env = layer.in_place_of(self.env)
            could_reset, self._may_reset = self._may_reset, layer.can_reset_all
            if could_reset and not self._may_reset and self.conditions not in GOING_ON:
                warnings.warn(
                    "A Monitor forbids to leave an episode before its end: trajectories go on where the last were cut, as "
                    'with conditions="continue". Use Monitor(allow_early_resets=True) to begin at initial conditions',
                    stacklevel=3,
                )
        result = super()._setup_learn(total_timesteps, *args, **kwargs)
        self._fit_into(int(total_timesteps))
        return result

    def _fit_into(self, total_timesteps: int) -> None:
        """Choose the size of iterations by the steps that there are, and say it."""
        size, usual = self._choose_size(total_timesteps), self._choose_size()
        if size != self.iteration_:
            self._take_size(size)
            self.rollout_buffer = TrajectoryBuffer(
                self.n_steps,
                self.observation_space,
                self.action_space,
                self.device,
                gamma=self.gamma,
                n_envs=self.n_envs,
                **self.rollout_buffer_kwargs,
            )
        of_what = f", {size.n_batches * self.n_envs} trajectories of {size.horizon}"
        steps, wanted = (each.n_steps * self.n_envs for each in (size, usual))
        self.logger.info(describe(type(self).__name__, steps, of_what, wanted, total_timesteps))

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Sample whole trajectories from the initial conditions.

        :param env: the training environment
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: steps per environment at most; early terminations make it fewer
        :return: False if the callback ended training
        :raises ValueError: if an observation or reward is not finite, naming environment and step
        """
        assert isinstance(rollout_buffer, TrajectoryBuffer)
        self.policy.set_training_mode(False)
        self._actor = export_actor(self.policy)
        rollout_buffer.reset()
        callback.on_rollout_start()
        statistics = KeptStatistics(self.get_vec_normalize_env())
        try:
            for batch in range(rollout_buffer.n_batches):
                if not self._collect_batch(env, callback, rollout_buffer, batch):
                    return False
        except NotFiniteError:
            statistics.restore()
            raise
        self._evaluate_rollout(rollout_buffer)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _evaluate_rollout(self, buffer: TrajectoryBuffer) -> None:
        """Fill in what the policy and its values say of the rollout: callbacks look for it there."""
        trajectories = buffer.trajectories()
        values, advantages = self._judge_rollout(trajectories)
        log_probs, alive = np.zeros(values.shape), trajectories.alive
        inputs = self._policy_inputs(map_observations(lambda array: array[:, :, :-1][alive], trajectories.observations))
        with th.no_grad():
            distribution = self.policy.get_distribution(obs_as_tensor(inputs, self.device))
            actions = th.as_tensor(trajectories.actions[alive], dtype=th.float32, device=self.device)
            log_probs[alive] = distribution.log_prob(actions).cpu().numpy()
        buffer.fill(values=values, advantages=advantages, returns=values + advantages, log_probs=log_probs)

    def _judge_rollout(self, trajectories: Trajectories) -> tuple[FloatArray, FloatArray]:
        """Values of states and advantages of actions, ``[M, N, T]``.

        Without a value function the value is the mean of the discounted rewards that followed, over the samples of the same
        condition and time step, and the advantage of an action is what followed beyond it."""
        alive, weights = trajectories.alive, trajectories.weights
        nothing = np.zeros((*alive.shape[:2], alive.shape[2] + 1))
        rewards = np.where(alive, trajectories.rewards, 0.0)
        returns = generalized_advantages(rewards, nothing, alive, trajectories.terminated, self.gamma, 1.0)
        mean = (weights * returns).sum(1, keepdims=True) / np.maximum(weights.sum(1, keepdims=True), 1.0)
        values = np.broadcast_to(mean, returns.shape)
        return values, returns - values

    def _collect_batch(self, env: VecEnv, callback: BaseCallback, rollout_buffer: TrajectoryBuffer, batch: int) -> bool:
        """One trajectory in each environment, from its own reset seed."""
        conditions = rollout_buffer.conditions(batch)
        begins_anew = self._begins_anew()
        self._is_left = self._may_reset and self._leaves_behind()
        if begins_anew:
            self._report_cut_episodes()
            install(env).reset_with_seeds(self._reset_seeds(batch, conditions))
            self._last_obs = env.reset()  # type: ignore[assignment]
        normalizer = self._vec_normalize_env
        obs = original_obs(env, normalizer, self._last_obs)
        states = self._state_view(obs)
        check_finite(obs, np.zeros(env.num_envs), self.num_timesteps, 0)
        act = self._make_sampler(conditions, states, rollout_buffer.horizon)
        alive = np.ones(env.num_envs, dtype=bool)
        for t in range(rollout_buffer.horizon):
            actions = act(t, self._last_obs, states)
            new_obs, rewards, dones, infos = step_unclipped(env, normalizer, self._to_env_units(actions))
            self.num_timesteps += env.num_envs
            self._tell(callback, locals(), alive, t == rollout_buffer.horizon - 1)
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            raw_rewards = original_rewards(normalizer, rewards)
            next_obs = obs_after = original_obs(env, normalizer, new_obs)
            next_states = states_after = self._state_view(obs_after)
            ended = any(dones.tolist())  # several times as fast as dones.any()
            if ended:
                next_obs = before_reset(normalizer, obs_after, dones, infos)
                next_states = self._state_view(next_obs)
            check_finite(next_obs, raw_rewards, self.num_timesteps, t)
            rollout_buffer.add_step(obs, states, actions, raw_rewards)
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
            obs, states = obs_after, states_after
            if ended or t == rollout_buffer.horizon - 1:
                ending = alive & dones if t < rollout_buffer.horizon - 1 else alive
                rollout_buffer.end_trajectories(ending, _died(dones, infos), next_obs, next_states)
                alive = alive & ~dones
                if not alive.any():
                    break
        rollout_buffer.end_batch()
        self._cut_episodes = np.where(alive, self._cut_episodes + np.stack(rollout_buffer.last_batch()), 0.0)
        if self._is_left:
            self._report_cut_episodes()
        return True

    def _begins_anew(self) -> bool:
        """Whether the next trajectories start from a reset, instead of where the last ones were cut."""
        return self._may_reset and (self.num_timesteps == self._num_timesteps_at_start or self._is_left)

    def _leaves_behind(self) -> bool:
        """Whether a reset follows the trajectories that are about to be sampled."""
        if self.conditions == "mixed":
            return bool(self._rng.random() < MIXED_RESTARTS)
        return self.conditions not in GOING_ON

    def _tell(self, callback: BaseCallback, seen: dict[str, Any], alive: np.ndarray, is_last: bool) -> None:
        """Tell callbacks of a step; the episodes that a reset leaves behind it have ended for them, as by a time limit."""
        dones = seen["dones"]
        if self._is_left and (is_last or not np.any(alive & ~dones)):
            dones, infos = install(seen["env"]).tell_ends(dones, seen["infos"], seen["new_obs"])
            seen = {**seen, "dones": dones, "infos": infos}
        callback.update_locals(seen)

    def _report_cut_episodes(self) -> None:
        """An episode that is left before its end leaves nothing for Monitor to report."""
        cut = zip(*self._cut_episodes, strict=True)
        self._update_info_buffer([{"episode": {"r": total, "l": int(length)}} for total, length in cut if length > 0])
        self._cut_episodes = np.zeros((2, self.n_envs))

    def _reset_seeds(self, batch: int, conditions: IntArray) -> list[int]:
        assert self.condition_base is not None
        if self.conditions in ("random", "continue", "mixed"):
            index = batch * self.n_envs + np.arange(self.n_envs)
            per_iteration = self.total_conditions * self.size.samples_per_condition + self.n_envs
            per_iteration = max(per_iteration, self.rollout_buffer.n_batches * self.n_envs)
        else:
            per_iteration, index = self.total_conditions, conditions
        iteration = 0 if self.conditions == "fixed" else self.n_iterations
        return [(self.condition_base + iteration * per_iteration + int(i)) % 2**31 for i in index]

    def _make_sampler(self, conditions: np.ndarray, first_states: FloatArray, horizon: int) -> Sampler:
        """A function of (t, observations, states) that samples actions ``[n_envs, du]`` in units of the bounds."""
        mean, std = self._actor, np.exp(self.policy.log_std.detach().cpu().numpy())
        noise = self._rng.standard_normal((horizon, len(conditions), len(std)), dtype=np.float32)
        if self.noise_correlation > 0.0:
            noise = correlate(noise, self.noise_correlation)
        noise *= std
        return lambda t, obs, states: mean(obs) + noise[t]

    def _input_scale(self) -> FloatArray | None:
        """Derivative of the policy's input with respect to the planner's state; None where the policy sees something else."""
        if not sees_the_state(self.observation_space):
            return None
        return self._of_inputs(lambda statistics, normalizer: 1.0 / shown_spread(statistics, normalizer), 1.0)

    def _input_limit(self) -> FloatArray:
        """Where the policy's inputs are clipped, ``[dx]``, in the order of the planner's state."""
        return self._of_inputs(lambda statistics, normalizer: np.full(np.shape(statistics.var), normalizer.clip_obs), np.inf)

    def _of_inputs(self, of: Callable[[RunningMeanStd, VecNormalize], FloatArray], otherwise: float) -> FloatArray:
        """What follows from the statistics of VecNormalize, for each number that the policy sees."""
        normalizer, space = self._vec_normalize_env, self.observation_space
        is_on = normalizer is not None and normalizer.norm_obs
        parts = []
        for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else (("", space),):
            found = normalizer.obs_rms if is_on else None  # type: ignore[union-attr]
            statistics = found.get(key) if isinstance(found, dict) else found
            if statistics is None:
                parts.append(np.full(int(np.prod(part.shape or ())), otherwise))
            else:
                parts.append(np.ravel(of(statistics, normalizer)))  # type: ignore[arg-type]
        return np.concatenate(parts)

    def _policy_inputs(self, observations: Observations) -> Observations:
        """Observations ``[n, ...]`` as the policy sees them, with the present statistics of VecNormalize."""
        return observations if self._vec_normalize_env is None else self._vec_normalize_env.normalize_obs(observations)

    def _to_env_units(self, actions: np.ndarray) -> np.ndarray:
        low, high = self._unit_bounds  # arrays of the actions' type: np.clip with numbers takes three times as long
        clipped: np.ndarray = np.minimum(np.maximum(actions, low), high)
        if self._acts_in_unit_bounds:
            return clipped
        return self.policy.unscale_action(clipped.reshape(-1, *self.action_space.shape))  # type: ignore[misc]


def _died(dones: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
    """Which episodes ended, and not by a time limit."""
    return np.array([done and not info.get("TimeLimit.truncated", False) for done, info in zip(dones, infos, strict=True)])
