"""How MPC acts: observations to states of the system, plans to actions, and steps while it learns."""

import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_dpi.common.action_units import bounds
from sb3_dpi.common.finite import KeptStatistics, check_finite, check_observation
from sb3_dpi.common.observed_states import StateFinder
from sb3_dpi.common.original_observations import ReadsOriginals, UnclippedTerminals, original_rewards
from sb3_dpi.common.saved_models import SavedModel
from sb3_dpi.mpc.foretelling import Foretelling
from sb3_dpi.mpc.known_costs import CostedSystem
from sb3_dpi.mpc.planning import Planner, Planning
from sb3_dpi.mpc.terminal_values import TerminalValue, as_terminal_value
from sb3_dpi.systems import ContinuousSimulator, RewardSystem
from sb3_dpi.systems.protocols import Penalty
from sb3_dpi.trajopt.ilqr import ILQR
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.ensemble import Ensemble, SystemFunction


class Acting(SavedModel, ReadsOriginals, OffPolicyAlgorithm):
    """What MPC adds to the way in which SB3's off-policy algorithms act. MPC sets the attributes."""

    horizon: int
    replan_every: int
    terminal_value: Any
    cost_fn: SystemFunction | None
    penalty: Penalty | None
    max_plan_seconds: float | None
    ensemble: Ensemble
    steps_since_training: int
    _planner: Planner
    _planning: Planning | None
    _finder: StateFinder | None
    _plans: np.ndarray | None
    _begun: np.ndarray
    _rng: np.random.Generator
    _foretelling: Foretelling
    _statistics: KeptStatistics

    @property
    def is_learned(self) -> bool:
        """Whether plans are made in what ``learn`` fits."""
        raise NotImplementedError

    @property
    def discount(self) -> float:
        """gamma, the given or the chosen one."""
        raise NotImplementedError

    def _make_system(self) -> RewardSystem:
        raise NotImplementedError

    # ------------------------------------------------------------------ planning

    @property
    def _is_smooth(self) -> bool:
        """Whether the planner takes differences."""
        return isinstance(self._planner, ILQR)

    def _make_planning(self) -> Planning:
        system: Any = self._make_system()

        def observe(states: FloatArray) -> FloatArray:
            if not isinstance(system, ContinuousSimulator):
                return states
            shown = [system.simulator.observe(system.state(state)) for state in states]
            if any(one is None for one in shown):
                raise ValueError(
                    f"What {type(system.simulator.env.unwrapped).__name__} observes in a state is not known: give its class a "
                    "method _get_obs, or plan by sampling and with the rewards of the environment"
                )
            return np.array([np.ravel(one) for one in shown], dtype=np.float64)

        costed = system
        if not self.is_learned and (self.cost_fn is not None or self.penalty is not None):
            costed = CostedSystem(system, self.cost_fn, self.penalty, observe, self._in_env_units)
        terminal: TerminalValue | None = as_terminal_value(self.terminal_value)
        self._planning = Planning(
            planner=self._planner,
            system=costed,
            observe=observe,
            horizon=self.horizon,
            replan_every=self.replan_every,
            gamma=self.discount,
            terminal_value=terminal,
            max_seconds=self.max_plan_seconds,
        )
        return self._planning

    def _in_env_units(self, actions: FloatArray) -> FloatArray:
        assert isinstance(self.action_space, spaces.Box)
        low, high = (bound.reshape(-1).astype(np.float64) for bound in bounds(self.action_space))
        scaled: FloatArray = low + 0.5 * (actions + 1.0) * (high - low)
        return scaled

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """
        Plan, and take the first actions.

        :param observation: one, or one of each environment
        :param state: what the last call returned: plans go on from there. None starts cold
        :param episode_start: where episodes begin, and plans start cold, ``[n]``
        :param deterministic: whether the same observation and state give the same plan. Otherwise what is sampled in the
            search differs from call to call
        :return: actions in the environment's units, and the plans, a structured array ``[n]``
        :raises ValueError: if an observation is not finite, or its state in the simulator is not known
        """
        rows, is_single = self._rows(observation)
        planning = self._planning or self._make_planning()
        plans = planning.begin(len(rows))
        if state is not None:
            if getattr(state, "dtype", None) != plans.dtype or state.shape != plans.shape:
                raise ValueError(
                    f"state must be what the last predict of this model returned for {len(rows)} environments, or None"
                )
            plans = state.copy()
        if episode_start is not None:
            starts = np.asarray(episode_start, dtype=bool)
            plans[starts] = planning.begin(int(starts.sum()))
        scaled = self._plan(planning, rows, None, plans, deterministic)
        actions = self.policy.unscale_action(scaled.reshape(-1, *(self.action_space.shape or ())))
        actions = actions.astype(self.action_space.dtype)
        return actions[0] if is_single else actions, plans

    def _rows(self, observation: Any) -> tuple[np.ndarray, bool]:
        """:return: observations as a batch, and whether there was one alone"""
        shape = self.observation_space.shape
        seen = np.asarray(observation) if not isinstance(observation, dict) else np.zeros(0)
        if seen.shape != shape and seen.shape[1:] != shape:
            raise ValueError(f"An observation of shape {shape} is needed, or a batch of such, got {seen.shape or observation}")
        rows = seen[None] if seen.shape == shape else seen
        check_observation(th.as_tensor(rows.astype(np.float64)))
        return rows, seen.shape == shape

    def _plan(
        self, planning: Planning, observations: np.ndarray, originals: np.ndarray | None, plans: np.ndarray, is_fixed: bool
    ) -> FloatArray:
        """Actions in units of the bounds, ``[n, du]``; plans are written into."""
        normalizer = None if self.env is None else unwrap_vec_normalize(self.env)
        if originals is None:
            originals = observations if normalizer is None else normalizer.unnormalize_obs(observations)  # type: ignore
        flat = np.asarray(originals, dtype=np.float64).reshape(len(observations), -1)
        states: list[Any] = list(flat)
        if self._finder is not None:
            states = self._finder.find(observations, np.asarray(originals), self.env)
        system: Any = planning.system
        actions = []
        for i, state in enumerate(states):
            begun = state if self._finder is None else system.begin(state)
            seed = [self.seed or 0, int(plans["n_plans"][i]), i]
            actions.append(planning.act(plans[i], begun, np.random.default_rng(seed) if is_fixed else self._rng))
        return np.stack(actions)

    # ------------------------------------------------------------------ steps

    def _warn_where_nothing_is_learned(self) -> None:
        if not self.is_learned:
            warnings.warn(
                "MPC has nothing to learn where it does not plan in an ensemble: learn() only acts, and logs what plans "
                "foretell",
                stacklevel=4,
            )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        if self._last_obs is not before:
            self._begun = np.ones(self.n_envs, dtype=bool)
        return result

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """See ``OffPolicyAlgorithm``."""
        self._statistics = KeptStatistics(self.get_vec_normalize_env())
        if self._vec_normalize_env is not None:
            env = UnclippedTerminals(env, self._vec_normalize_env)
        return super().collect_rollouts(env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        planning = self._planning or self._make_planning()
        if self.is_learned and not self.ensemble.has_units:
            actions = self._rng.uniform(-1.0, 1.0, (n_envs, planning.system.action_dim))
        else:
            assert isinstance(self._last_obs, np.ndarray)
            if self._plans is None:
                self._plans = planning.begin(n_envs)
            self._plans["age"][self._begun] = -1
            originals: Any = None if self._vec_normalize_env is None else self._last_original_obs
            actions = self._plan(planning, self._last_obs, originals, self._plans, False)
            self._foretelling.planned(self._plans)
            self._begun = np.zeros(n_envs, dtype=bool)
        scaled = actions.astype(np.float32).reshape(-1, *(self.action_space.shape or ()))
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
        rewards = original_rewards(self._vec_normalize_env, reward)
        try:
            check_finite(new_obs, rewards, self.num_timesteps)
        except ValueError:
            self._statistics.restore()
            self._last_obs = None  # start from a reset
            raise
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._begun = self._begun | np.asarray(dones, dtype=bool)
        self.steps_since_training += self.n_envs
        truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        following: Any = new_obs if self._vec_normalize_env is None else self._last_original_obs
        self._foretelling.stepped(rewards, dones, truncated, np.asarray(following).reshape(self.n_envs, -1))

    def dump_logs(self) -> None:
        """Write log data, with what plans took and foretold."""
        for name, value in self._foretelling.summary().items():
            self.logger.record(name, value)
        super().dump_logs()
