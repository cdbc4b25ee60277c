"""How MPC acts: observations to states of the system, plans to actions, and steps while it learns."""

import io
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import MaybeCallback, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.common.action_units import flat_bounds, from_units
from sb3_dpi.common.blocks import SMALLEST_MEMORY, LearnsFromBlocks
from sb3_dpi.common.conventions import as_starts, refuse_tuple
from sb3_dpi.common.early_resets import EarlyReset, as_early_reset
from sb3_dpi.common.finite import check_observation, planning_after, planning_for
from sb3_dpi.common.interruption import reset_when_interrupted
from sb3_dpi.common.iteration_size import describe, shrink
from sb3_dpi.common.long_runs import warn_of_long_run
from sb3_dpi.common.observed_states import StateFinder, evaluation_environments
from sb3_dpi.common.original_observations import original_rewards, readable_normalizer, shown_spread
from sb3_dpi.common.replay_memory import ReplayMemory
from sb3_dpi.common.saved_models import SavedModel
from sb3_dpi.common.simulator_states import follow_parameters
from sb3_dpi.mpc.constants import BLOCK, SHORTER, WARM_UP
from sb3_dpi.mpc.known_costs import CostedSystem
from sb3_dpi.mpc.planning import Planner, Planning
from sb3_dpi.mpc.predicted_returns import PredictedReturns
from sb3_dpi.mpc.terminal_values import TerminalValue, as_terminal_value
from sb3_dpi.systems import RewardSystem
from sb3_dpi.systems.protocols import Penalty
from sb3_dpi.trajopt.ilqr import ILQR
from sb3_dpi.trajopt.types import FloatArray
from sb3_dpi.world_model.ensemble import Ensemble, SystemFunction, WorldModel

SelfActing = TypeVar("SelfActing", bound="Acting")


class Acting(SavedModel, LearnsFromBlocks):
    """What MPC adds to the way in which SB3's off-policy algorithms act. MPC sets the attributes."""

    horizon: int
    replan_every: int
    system: Any
    terminal_value: Any
    cost_fn: SystemFunction | None
    penalty: Penalty | None
    max_plan_seconds: float | None
    early_reset: EarlyReset | int | Mapping[str, Any]
    world_model: WorldModel
    ensemble: Ensemble
    steps_since_training: int
    _planner: Planner
    _valued: BaseAlgorithm | TerminalValue | None
    """``terminal_value``, loaded where that names a file"""
    _planning: Planning | None
    _finder: StateFinder | None
    _plans: np.ndarray | None
    _begun: np.ndarray
    _rng: np.random.Generator
    _steps_to_learn: int | None
    _read_from: VecEnv | None = None
    _evaluated_in: tuple[VecEnv, ...] = ()
    """by callbacks of ``learn``"""
    shown_units: tuple[FloatArray, FloatArray] | None
    """mean and standard deviation by which observations were normalised when the model was saved; a model that was loaded
    without an environment is shown them so"""
    _predicted_returns: PredictedReturns

    @property
    def is_learned(self) -> bool:
        """Whether plans are made in what ``learn`` fits."""
        raise NotImplementedError

    @property
    def discount(self) -> float:
        """gamma, the given or the chosen one."""
        raise NotImplementedError

    @property
    def memory(self) -> ReplayMemory:
        """The replay buffer, as the world model reads it."""
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

        costed = system
        if not self.is_learned and (self.cost_fn is not None or self.penalty is not None):
            costed = CostedSystem(system, self.cost_fn, self.penalty, self._in_env_units)
        terminal: TerminalValue | None = as_terminal_value(self._valued)
        self._planning = Planning(
            planner=self._planner,
            system=costed,
            observe=system.observe if hasattr(system, "observe") else lambda states: states,
            horizon=self.horizon,
            replan_every=self.replan_every,
            gamma=self.discount,
            terminal_value=terminal,
            max_seconds=self.max_plan_seconds or None,
        )
        return self._planning

    @property
    def seconds_a_step(self) -> float | None:
        """Of a core, for each step that it plans for, about; None where nobody can tell."""
        return (self._planning or self._make_planning()).seconds_a_step

    @property
    def known_cost(self) -> SystemFunction | None:
        """That of steps, where plans are not made by the rewards of the environment."""
        return self.world_model.cost_fn if self.is_learned and self.cost_fn is None else self.cost_fn

    def _in_env_units(self, actions: FloatArray) -> FloatArray:
        assert isinstance(self.action_space, spaces.Box)
        return from_units(actions, *flat_bounds(self.action_space))

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
            starts = as_starts(episode_start, len(rows))
            plans[starts] = planning.begin(int(starts.sum()))
        scaled = self._plan(planning, rows, self._originals(rows), plans, deterministic)
        actions = self._to_env(scaled.reshape(-1, *(self.action_space.shape or ())))
        return actions[0] if is_single else actions, plans

    def _to_env(self, scaled: np.ndarray) -> np.ndarray:
        """In the environment's units and precision; whole numbers it rounds itself."""
        actions = self.policy.unscale_action(scaled)
        assert self.action_space.dtype is not None
        return actions.astype(self.action_space.dtype) if self.action_space.dtype.kind == "f" else actions

    def _rows(self, observation: Any) -> tuple[np.ndarray, bool]:
        """:return: observations as a batch, and whether there was one alone"""
        refuse_tuple(observation)
        _, is_batch = self.policy.obs_to_tensor(observation)  # which refuses other shapes
        rows = np.asarray(observation).reshape(-1, *(self.observation_space.shape or ()))
        check_observation(th.as_tensor(rows.astype(np.float64)))
        return rows, not is_batch

    def _plan(
        self,
        planning: Planning,
        observations: np.ndarray,
        originals: np.ndarray,
        plans: np.ndarray,
        is_fixed: bool,
        is_here: bool = False,
    ) -> FloatArray:
        """Actions in units of the bounds, ``[n, du]``; plans are written into."""
        env = self._acted_in
        size = int(np.prod(self.observation_space.shape or ()))
        flat = np.asarray(originals, dtype=np.float64).reshape(len(observations), size)
        states: list[Any] = list(flat)
        if self._finder is not None:
            if self.env is not None and isinstance(self.system, str):
                follow_parameters(self._finder.simulator, self.env)
            shown = np.asarray(originals) if env is None else observations
            others = () if is_here or self._read_from is not None else self._evaluated_in
            states = self._finder.find(shown, np.asarray(originals), env, others, is_here)
        system: Any = planning.system
        actions = []
        for i, state in enumerate(states):
            begun = system.begin(state) if hasattr(system, "begin") else state
            seed = [self.seed or 0, int(plans["n_plans"][i]), i]
            with planning_for(i):
                actions.append(planning.act(plans[i], begun, np.random.default_rng(seed) if is_fixed else self._rng))
        return np.array(actions, dtype=np.float64).reshape(len(actions), system.action_dim)

    @property
    def _acted_in(self) -> VecEnv | None:
        return self.env if self._read_from is None else self._read_from

    def _originals(self, observations: np.ndarray) -> np.ndarray:
        """Observations as environments return them, of those that they show."""
        env = self._acted_in
        if env is None:
            return observations if self.shown_units is None else observations * self.shown_units[1] + self.shown_units[0]
        normalizer = readable_normalizer(env)
        return observations if normalizer is None else normalizer.unnormalize_obs(observations)  # type: ignore[return-value]

    def save(
        self, path: str | pathlib.Path | io.BufferedIOBase, exclude: Iterable[str] | None = None, include: Any = None
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file, with the units in which ``VecNormalize``
        shows observations.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        if self.env is not None:
            normalizer, self.shown_units = readable_normalizer(self.env), None
            if normalizer is not None and normalizer.norm_obs:
                statistics: Any = normalizer.obs_rms
                self.shown_units = statistics.mean.copy(), shown_spread(statistics, normalizer)
        super().save(path, exclude, include)

    @contextmanager
    def reading(self, env: VecEnv) -> Iterator[None]:
        """
        Find the simulator's states in other environments than the model's, as those of an evaluation.

        :param env: in which is acted
        """
        before, self._read_from = self._read_from, env
        try:
            yield
        finally:
            self._read_from = before

    # ------------------------------------------------------------------ steps

    @reset_when_interrupted
    def learn(
        self: SelfActing,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MPC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfActing:
        # also where none are left: the layer tells of ends that batches keep for themselves
        with self.early_resets(lambda _: as_early_reset(self.early_reset), self._rng):
            self._take_blocks(
                total_timesteps,
                callback,
                log_interval,
                tb_log_name,
                reset_num_timesteps,
                progress_bar,
                lambda: self.train(-1, 0) if self.is_learned and self._missing() == 0 else None,
            )
        return self

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        before = self._last_obs
        self._steps_to_learn = None
        result = super()._setup_learn(total_timesteps, *args, **kwargs)
        if not self.is_learned:
            warnings.warn(
                "MPC has nothing to learn where it does not plan in an ensemble: learn() only acts, and logs what plans "
                "predict",
                stacklevel=5,
            )
        elif self._missing() > total_timesteps:
            warnings.warn(
                f"MPC does not learn in these {int(total_timesteps):,} steps: it acts at random for {self._missing():,} more. "
                "Let it take more, or lower learning_starts",
                stacklevel=5,
            )
        n_planned = total_timesteps - min(self._missing(), total_timesteps)
        warn_of_long_run("MPC", self.seconds_a_step, n_planned, SHORTER)
        self._evaluated_in = evaluation_environments(result[1])
        if self._last_obs is not before:
            self._begun = np.ones(self.n_envs, dtype=bool)
        self.logger.info(f"MPC: takes {self._missing():,} random steps" if self._missing() else "MPC: plans from the start")
        return result

    def _missing(self) -> int:
        """Random steps that are yet to be taken."""
        if not self.is_learned or self.ensemble.has_units:
            return 0
        assert self.replay_buffer is not None
        wanted = self.learning_starts
        if wanted is None:
            wanted = min(WARM_UP, (self._total_timesteps - self._num_timesteps_at_start) // 2)
        most = self.replay_buffer.buffer_size * self.n_envs
        return max(min(max(wanted, SMALLEST_MEMORY), most) - len(self.memory), 0)

    def _next_block(self) -> TrainFreq:
        if missing := self._missing():
            missing = min(missing, max(self._total_timesteps - self.num_timesteps, 1))
            return TrainFreq(-(-missing // self.n_envs), TrainFrequencyUnit.STEP)
        if self.train_freq is not None:
            assert isinstance(self.train_freq, TrainFreq)
            return self.train_freq
        left, n = self._steps_to_learn, self.n_envs
        if left is None:
            left = self._steps_to_learn = self._total_timesteps - self.num_timesteps
            if self.is_learned:
                self.logger.info(describe("MPC", max(shrink(BLOCK, left) // n, 1) * n, "", BLOCK // n * n, left))
        return TrainFreq(max(shrink(BLOCK, left) // n, 1), TrainFrequencyUnit.STEP)

    def _convert_train_freq(self) -> None:
        if self.train_freq is not None:
            super()._convert_train_freq()

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
            originals: Any = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
            with planning_after(self.num_timesteps):
                actions = self._plan(planning, self._last_obs, originals, self._plans, False, is_here=True)
            self._predicted_returns.planned(self._plans)
            self._begun = np.zeros(n_envs, dtype=bool)
        scaled = actions.astype(np.float32).reshape(-1, *(self.action_space.shape or ()))
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1.0, 1.0)
        return self._to_env(scaled), scaled

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        rewards, place = original_rewards(self._vec_normalize_env, reward), replay_buffer.pos
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        if self.known_cost is not None:  # what plans predict
            rows: Any = replay_buffer
            before, after = (array[place].reshape(self.n_envs, -1) for array in (rows.observations, rows.next_observations))
            actions = self._in_env_units(buffer_action.reshape(self.n_envs, -1))
            arguments = (th.as_tensor(np.asarray(array, np.float64)) for array in (before, actions, after))
            rewards = -self.known_cost(*arguments).detach().cpu().numpy().reshape(self.n_envs)
        self._begun = self._begun | np.asarray(dones, dtype=bool)
        self.steps_since_training += self.n_envs
        truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        following: Any = new_obs if self._vec_normalize_env is None else self._last_original_obs
        self._predicted_returns.stepped(rewards, dones, truncated, np.asarray(following).reshape(self.n_envs, -1))

    def dump_logs(self) -> None:
        """Write log data, with what plans took and predicted."""
        for name, value in self._predicted_returns.summary().items():
            self.logger.record(name, value)
        super().dump_logs()
