"""Dual policy iteration on a learned neural ensemble, whose imagination is anchored in what was real."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.common.finite import check_finite
from sb3_dpi.common.saved_models import FORMAT_VERSION, SavedModel
from sb3_dpi.dpi.memory import TransitionBuffer
from sb3_dpi.dpi.policies import MlpPolicy, MultiInputPolicy
from sb3_dpi.models.actors import gaussian_kl
from sb3_dpi.models.critics import SoftTwinQ
from sb3_dpi.models.data import Transitions, returns_to_go
from sb3_dpi.models.ensemble import Ensemble, Residuals, SystemFunction
from sb3_dpi.models.imagination import Pool, branch, join, make_windows, real_pool
from sb3_dpi.models.pathwise import PolicyGradient, pathwise_gradient
from sb3_dpi.trajopt.types import FloatArray, IntArray

SelfDPI = TypeVar("SelfDPI", bound="DPI")

DEFAULT_BLOCK = 250
"""Real steps of all environments between updates."""
LONGEST_START, ENOUGH_EPISODES, SHORTEST_START = 1000, 25, 100
"""Random steps at the beginning: so many, or fewer once so many episodes have ended, but not fewer than the last."""
RECENT = 5000
"""Steps that count as recent: from half of them windows begin, and their rewards give the unit of value."""
MODEL_STEPS, FIRST_MODEL_STEPS = 0.6, 1500
"""Steps of the model's optimizer: for each real step, and at first."""
FIRST_CRITIC_UPDATES = 2000
"""More updates of the critic at first."""
MODEL_BATCH = 256
SMALLEST_MEMORY = 32
"""Steps below which there is nothing to learn from."""
LOG_TEMPERATURE_BOUNDS = -12.0, 2.0


class DPI(SavedModel, OnPolicyAlgorithm):
    """
    Dual policy iteration (DPI) on a learned neural ensemble
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: MlpPolicy  # type: ignore[assignment]
    memory: TransitionBuffer | None
    ensemble: Ensemble
    critic: SoftTwinQ

    def __init__(
        self,
        policy: str | type[MlpPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int | None = None,
        learning_starts: int | None = None,
        buffer_size: int = 100_000,
        batch_size: int = 128,
        gamma: float = 0.99,
        tau: float = 0.005,
        horizon: int = 4,
        n_windows: int = 200,
        effort: float = 1.0,
        critic_updates: int = 10,
        policy_delay: int = 10,
        real_fraction: float = 0.2,
        n_branches: int = 20_000,
        anchor: bool = True,
        ent_coef: str | float = "auto_0.02",
        target_entropy: str | float = "auto",
        restarts: float = 0.5,
        noise_correlation: float = 0.0,
        n_members: int = 5,
        model_width: int = 128,
        model_learning_rate: float = 1e-3,
        critic_width: int = 64,
        critic_learning_rate: float = 1e-3,
        max_grad_norm: float = 1.0,
        cost_fn: SystemFunction | None = None,
        termination_fn: SystemFunction | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,  # type: ignore[arg-type]  # has no value function
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,  # type: ignore[arg-type]  # None until the number of environments is known
            gamma=gamma,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.learning_starts = learning_starts
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.tau = tau
        self.horizon = horizon
        self.n_windows = n_windows
        self.effort = effort
        self.critic_updates = critic_updates
        self.policy_delay = policy_delay
        self.real_fraction = real_fraction
        self.n_branches = n_branches
        self.anchor = anchor
        self.ent_coef = ent_coef  # type: ignore[assignment]
        self.target_entropy = target_entropy
        self.restarts = restarts
        self.noise_correlation = noise_correlation
        self.n_members = n_members
        self.model_width = model_width
        self.model_learning_rate = model_learning_rate
        self.critic_width = critic_width
        self.critic_learning_rate = critic_learning_rate
        self.cost_fn = cost_fn
        self.termination_fn = termination_fn
        self.format_version = FORMAT_VERSION
        self.algorithm_name = type(self).__name__
        # what is learned beside the networks survives saving
        self.memory = None
        self.log_temperature: float | None = None
        self.n_iterations = 0
        self.n_episodes = 0
        self.steps_since_training = 0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_saved_format()
        if self.n_steps is None:
            self.n_steps = max(DEFAULT_BLOCK // self.n_envs, 1)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._rng = np.random.default_rng(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)
        dx, du = self.policy.state_dim, self.policy.actor.action_dim
        self.ensemble = Ensemble(dx, du, self.n_members, self.model_width, self.model_learning_rate).to(self.device)
        self.ensemble.known_reward, self.ensemble.known_end = self._known_reward(), self._known_end()
        self.critic = SoftTwinQ(dx, du, (self.critic_width,) * 2, self.critic_learning_rate, self.tau).to(self.device)
        if self.memory is None:
            self.memory = TransitionBuffer(max(self.buffer_size // self.n_envs, 1), dx, du, self.n_envs)
        self.rollout_buffer = self.memory  # type: ignore[assignment]  # what the loop hands to ``collect_rollouts``
        if self.log_temperature is None:
            start = str(self.ent_coef).removeprefix("auto").removeprefix("_")
            self.log_temperature = math.log(max(float(start or 0.02), 1e-12))
        self._noise = np.zeros((self.n_envs, du))

    def _known_reward(self) -> SystemFunction | None:
        known = self.cost_fn
        if known is None:
            return None
        return lambda state, action, following: -known(state, self._env_units(action), following)

    def _known_end(self) -> SystemFunction | None:
        known = self.termination_fn
        if known is None:
            return None
        return lambda state, action, following: known(state, self._env_units(action), following)

    def _env_units(self, actions: th.Tensor) -> th.Tensor:
        space = self.action_space
        assert isinstance(space, spaces.Box)
        low, high = (th.as_tensor(bound.reshape(-1), device=actions.device) for bound in (space.low, space.high))
        return low + 0.5 * (actions + 1.0) * (high - low)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_rng", "_noise", "_actor", "_states", "ensemble", "critic"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules = ["policy", "policy.optimizer", "ensemble", "ensemble.optimizer", "ensemble.termination_optimizer"]
        return [*modules, "critic", "critic.optimizer"], []

    # ------------------------------------------------------------------ sampling

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Take real steps with the policy and its noise, at first with random actions, and remember them.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param rollout_buffer: not used, all steps are kept in ``memory``
        :param n_rollout_steps: Number of steps of each environment; the random ones at the beginning are more
        :return: False if callback terminated rollout prematurely
        :raises ValueError: if an observation or reward is not finite, naming environment and step
        """
        assert self._last_obs is not None and self.memory is not None
        self.policy.set_training_mode(False)
        actor = self.policy.export(self.ensemble.state_mean, self.ensemble.state_std)
        callback.on_rollout_start()
        states = self._raw_states(self._last_obs)
        n_steps = 0
        while n_steps < n_rollout_steps or (self._is_starting() and self.num_timesteps < self._total_timesteps):
            actions = self._act(actor, states)
            new_obs, rewards, dones, infos = env.step(self._scale(actions))
            self.num_timesteps += env.num_envs
            n_steps += 1
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            raw_rewards = rewards if self._vec_normalize_env is None else self._vec_normalize_env.get_original_reward()
            check_finite(new_obs, raw_rewards, self.num_timesteps)
            following = self._raw_states(new_obs)
            ends = following.copy()
            for i in np.flatnonzero(dones):
                ends[i] = self._raw_states(_batch(infos[i]["terminal_observation"]))[0]
                self._noise[i] = self._rng.standard_normal(self._noise.shape[1])
            self.memory.add(states, ends, actions, raw_rewards, dones, infos)
            self.n_episodes += int(np.sum(dones))
            self.steps_since_training += env.num_envs
            states, self._last_obs = following, new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
        self._begin_anew(env)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _is_starting(self) -> bool:
        """Whether actions are still random."""
        assert self.memory is not None
        if self.n_iterations > 0:
            return False
        n = len(self.memory)
        if self.learning_starts is not None:
            return n < self.learning_starts
        return n < LONGEST_START and not (self.n_episodes >= ENOUGH_EPISODES and n >= SHORTEST_START)

    def _act(self, actor: Callable[[FloatArray], tuple[FloatArray, FloatArray]], states: FloatArray) -> FloatArray:
        fresh = self._rng.standard_normal(self._noise.shape)
        if self.n_iterations == 0:
            return self._rng.uniform(-1.0, 1.0, self._noise.shape)
        self._noise = self.noise_correlation * self._noise + math.sqrt(1.0 - self.noise_correlation**2) * fresh
        mean, std = actor(states)
        return np.tanh(mean + std * self._noise)

    def _scale(self, actions: FloatArray) -> np.ndarray:
        shaped = actions.astype(np.float32).reshape(-1, *self.action_space.shape)  # type: ignore[misc]
        return self.policy.unscale_action(shaped)

    def _raw_states(self, obs: Any) -> FloatArray:
        if self._vec_normalize_env is not None:
            obs = self._vec_normalize_env.unnormalize_obs(obs)
        return self.policy.join(obs)

    def _begin_anew(self, env: VecEnv) -> None:
        """Leave episodes by the toss of a coin: the policy must be good where episodes begin, and long ones begin seldom."""
        assert self.memory is not None and self._last_obs is not None and self._last_episode_starts is not None
        if self.restarts == 0.0:
            return
        leave = (self._rng.random(env.num_envs) < self.restarts) & ~self._last_episode_starts.astype(bool)
        for i in np.flatnonzero(leave):
            obs, _ = env.env_method("reset", indices=int(i))[0]
            if self._vec_normalize_env is not None:
                obs = self._vec_normalize_env.normalize_obs(obs)
            if isinstance(self._last_obs, dict):
                for key, array in self._last_obs.items():
                    array[i] = obs[key]
            else:
                self._last_obs[i] = obs
            self.memory.cut(int(i))
            self._noise[i] = self._rng.standard_normal(self._noise.shape[1])

    # ------------------------------------------------------------------ learning

    def train(self) -> None:
        """Dual policy iteration on all that is remembered."""
        assert self.memory is not None
        if len(self.memory) < SMALLEST_MEMORY:
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        data = self.memory.transitions()
        self._report_model(data)
        self._follow_units(data)
        residuals = self.fit_model(data)  # P-hat, Eq. 2
        real = real_pool(self.ensemble, data)
        imagined = branch(self.ensemble, self.policy.actor, real, residuals, self._rng, self.n_branches)
        pool = join(real, imagined, float(self.critic.unit))
        before = self.policy.actor.network.flat.detach().clone()
        for i in range(self._n_rounds()):
            self.evaluate(pool, len(data))
            if self.n_iterations > 0 or i * self.policy_delay >= self._first_updates():
                expert = self.improve_expert(data, real, residuals)  # eta_n, Eq. 4
                self.imitate(expert)  # pi_n+1, Eq. 5
        self.n_iterations += 1
        self.steps_since_training = 0
        self._report(real, before)
        self.policy.set_standardization(*self._policy_units())

    def _first_updates(self) -> int:
        return int(self.effort * FIRST_CRITIC_UPDATES)

    def _n_rounds(self) -> int:
        """Each is ``policy_delay`` updates of the critic and one of the policy."""
        first = self._first_updates() if self.n_iterations == 0 else 0
        new = self.steps_since_training if self.n_iterations > 0 else self.n_steps * self.n_envs
        return max(int(self.effort * self.critic_updates * new + first) // self.policy_delay, 1)

    def _follow_units(self, data: Transitions) -> None:
        """Standardise by all that was seen; no network's function changes."""
        fresh = not bool(self.ensemble.has_units)
        change = self.ensemble.update_units(data)
        if not fresh:
            self.policy.actor.network.rescale_inputs(change.scale, change.shift)
            self.critic.rescale_states(change.scale, change.shift)
        recent = data.rewards[data.age * self.n_envs < 2 * RECENT]
        ratio = self.critic.follow_rewards(recent, returns_to_go(data, self.gamma))
        if not fresh:
            assert self.log_temperature is not None
            self.log_temperature += math.log(ratio)

    def _policy_units(self) -> tuple[th.Tensor, th.Tensor]:
        """By which the policy reads observations, normalised or not by a wrapper."""
        mean, std = self.ensemble.state_mean, self.ensemble.state_std
        if self._vec_normalize_env is None:
            return mean, std
        wrapper, center, spread = self._vec_normalize_env, mean.cpu().numpy(), std.cpu().numpy()
        seen = [self.policy.join(wrapper.normalize_obs(self.policy.split(center + step)))[0] for step in (0.0, spread)]
        return th.as_tensor(seen[0], device=mean.device), th.as_tensor(seen[1] - seen[0], device=mean.device)

    def fit_model(self, data: Transitions) -> Residuals | None:
        """
        Fit the ensemble to all that was seen.

        :param data: real steps
        :return: what happened beyond the members' predictions, None without anchor
        :raises DivergedError: if there is no finite model
        """
        n_steps = FIRST_MODEL_STEPS if self.n_iterations == 0 else MODEL_STEPS * self.steps_since_training
        loss = self.ensemble.fit(data, max(int(self.effort * n_steps), 1), MODEL_BATCH, self._rng)
        self.logger.record("model/loss", loss)
        return self.ensemble.residuals(data) if self.anchor else None

    def evaluate(self, pool: Pool, n_real: int) -> None:
        """
        Update the critic on real and imagined steps.

        :param pool: the real ones first
        :param n_real: how many are real
        """
        K, B = self.policy_delay, self.batch_size
        real = round(self.real_fraction * B)
        rows = np.concatenate(
            [self._rng.integers(n_real, size=(K, real)), self._rng.integers(n_real, len(pool), size=(K, B - real))], axis=1
        )
        noise = self._rng.standard_normal((K, B, self.policy.actor.action_dim)).astype(np.float32)
        update = self.critic.update(pool, rows, noise, self.policy.actor, self.temperature, self.gamma)
        self.logger.record_mean("train/critic_loss", update.loss)
        self.logger.record("train/critic_target", update.target * float(self.critic.unit))

    @property
    def temperature(self) -> float:
        """alpha, in units of value."""
        assert self.log_temperature is not None
        return math.exp(self.log_temperature)

    def improve_expert(self, data: Transitions, real: Pool, residuals: Residuals | None) -> PolicyGradient:
        """
        Plan in imagined windows.

        :param data: real steps
        :param real: the same, standardised
        :param residuals: of the model
        :return: what the policy should ascend
        """
        m = max(self.n_windows // self.n_members, 1)
        rows = self._starts(data, m * self.n_members)
        windows = make_windows(self.ensemble, data, real.states, residuals, rows, self.horizon)
        shape = (self.horizon + 1, self.n_members, m, self.policy.actor.action_dim)
        noise = self._rng.standard_normal(shape).astype(np.float32)
        return pathwise_gradient(self.policy.actor, self.ensemble, self.critic, windows, noise, self.temperature, self.gamma)

    def _starts(self, data: Transitions, n: int) -> IntArray:
        """Half from what is recent, half from all."""
        recent = np.flatnonzero(data.age * self.n_envs < RECENT)
        some = recent[self._rng.integers(len(recent), size=n // 2)]
        rows = np.concatenate([some, self._rng.integers(len(data), size=n - n // 2)])
        self._rng.shuffle(rows)
        return rows

    def imitate(self, expert: PolicyGradient) -> None:
        """
        Take one step towards the expert, and let the temperature follow the entropy.

        :param expert: what to ascend
        """
        flat = self.policy.actor.network.flat
        flat.grad = -expert.direction
        norm = th.nn.utils.clip_grad_norm_([flat], self.max_grad_norm)
        self.policy.optimizer.step()
        self._n_updates += 1
        if isinstance(self.ent_coef, str):
            assert self.log_temperature is not None
            du = self.policy.actor.action_dim
            target = -0.5 * du if self.target_entropy == "auto" else float(self.target_entropy)
            rate = self.lr_schedule(self._current_progress_remaining)
            moved = self.log_temperature - rate * (expert.entropy - target)
            self.log_temperature = float(np.clip(moved, *LOG_TEMPERATURE_BOUNDS))
        self.logger.record_mean("train/grad_norm", float(norm))
        self.logger.record_mean("train/objective", expert.objective * float(self.critic.unit))
        self.logger.record_mean("train/entropy", expert.entropy)

    # ------------------------------------------------------------------ logging

    def _report_model(self, data: Transitions) -> None:
        """How well the model foretells the steps that it has not been fitted to yet."""
        if self.n_iterations == 0:
            return
        fresh = data.age * self.n_envs < self.steps_since_training
        state, reward = self.ensemble.r_squared(data.take(np.flatnonzero(fresh)))
        self.logger.record("model/r_squared", state)
        self.logger.record("model/r_squared_reward", reward)

    def _report(self, real: Pool, before: th.Tensor) -> None:
        actor = self.policy.actor
        after = actor.network.flat.detach().clone()
        states = real.states[-1000:]
        with th.no_grad():
            std = actor(states)[1].exp().mean()
            new_mean, new_log_std = actor(states)
            actor.network.flat.copy_(before)
            old_mean, old_log_std = actor(states)
            actor.network.flat.copy_(after)
        self.logger.record("train/kl", float(gaussian_kl(old_mean, old_log_std, new_mean, new_log_std).mean()))
        self.logger.record("train/std", float(std))
        self.logger.record("train/ent_coef", self.temperature * float(self.critic.unit))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def learn(
        self: SelfDPI,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DPI",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDPI:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


def _batch(obs: Any) -> Any:
    """One observation as a batch of one."""
    return {key: value[None] for key, value in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
