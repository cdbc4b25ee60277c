"""Model-predictive control: an agent that plans when it acts."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_dpi.common.action_units import check_bounded, hold_fractions
from sb3_dpi.common.choices import arguments_of_base, as_settings
from sb3_dpi.common.early_resets import EarlyReset
from sb3_dpi.common.interruption import whole_or_undone
from sb3_dpi.common.known_functions import known_functions
from sb3_dpi.common.long_runs import warn_of_long_fits
from sb3_dpi.common.named_models import load_model
from sb3_dpi.common.observed_states import StateFinder, StateFromObs, environment_of
from sb3_dpi.common.replay_memory import ReplayMemory, check_buffer
from sb3_dpi.common.saved_models import FORMAT_VERSION
from sb3_dpi.mpc.acting import Acting
from sb3_dpi.mpc.arguments import check_arguments, check_observations, check_same_spaces
from sb3_dpi.mpc.constants import FIRST_FIT
from sb3_dpi.mpc.given_systems import as_system, simulator_of
from sb3_dpi.mpc.planning import NAMES, Planner, make_planner
from sb3_dpi.mpc.policies import PlanPolicy
from sb3_dpi.mpc.predicted_returns import PredictedReturns
from sb3_dpi.mpc.terminal_values import TerminalValue, as_terminal_value, discount_of
from sb3_dpi.systems import EnsembleSystem, RewardSystem, Simulator
from sb3_dpi.systems.protocols import Penalty
from sb3_dpi.trajopt.units import outlier_limit
from sb3_dpi.world_model.ensemble import MODEL_BATCH, Ensemble, SystemFunction, WorldModel
from sb3_dpi.world_model.types import take_without_outliers


class MPC(Acting):
    """
    Model-predictive control (MPC): it plans when it acts

    At each step, or each few, a planner searches for the actions of the next ``horizon`` steps that earn most in a system, and
    the first is taken. The system is an ensemble of networks that ``learn`` fits to all real steps (as in PETS, Chua et al.,
    2018), or the environment's own simulator, which needs no learning. The last plan is the start of the next one: hand the
    state that ``predict`` returns to its next call, as with recurrent policies. Without it each plan starts cold.

    :param policy: The planner: ``"iCEM"``, ``"CEM"``, ``"MPPI"``, ``"random"``, ``"iLQR"``, or a dictionary of its options
        with the name under ``"kind"``, or an object of ``sb3_dpi.trajopt``
    :param env: The environment to act in (if registered in Gymnasium, can be str); its actions must be a bounded Box, its
        observations a vector
    :param horizon: steps of a plan; usual: 15 to 50
    :param replan_every: steps of a plan that are carried out before the next one, at most ``horizon``. Where it has feedback
        gains (iLQR), these act in between
    :param gamma: the discount factor of plans; None takes that of the model in ``terminal_value``, else 1
    :param system: what plans are made in: ``"ensemble"`` is learned; ``"simulator"`` copies the environment; or an environment
        to copy, which keeps its own parameters; or an object with the methods of ``sb3_dpi.systems.RewardSystem`` whose states
        are observations, or which says by ``begin(observation)`` in which state plans begin; or a list of such, over which
        rewards are averaged
    :param terminal_value: what the last state of a plan is worth: a trained model (DPI, AggreVaTeDOC, DualAC, PPO, SAC, TD3),
        which sees observations through its own ``VecNormalize`` where it has one; a dictionary with its class under ``"algo"``
        and its file under ``"path"``; or a function of observations ``[n, do]`` in the environment's units; None for nothing
    :param cost_fn: A known cost, ``cost_fn(obs, action, next_obs) -> cost [n]`` (cost = -reward), in torch, batched and in the
        environment's units: replaces the rewards of the system
    :param state_from_obs: ``state_from_obs(env, obs)`` puts a copy of the environment, without wrappers, into the state that
        an observation shows. It is asked where the environments of the model show something else; None: known for some tasks
    :param max_plan_seconds: of a plan, which then is the best so far; None or 0 for no limit
    :param particles: of plans in the ensemble: ``"tsinf"`` (each stays with its member) or ``"ts1"`` (members are dealt anew
        at each step)
    :param n_particles: a multiple of the members; None gives each one
    :param n_threads: of MuJoCo, for plans in its simulator
    :param world_model: ``WorldModel`` or a dictionary of its fields: size and learning of the ensemble
    :param buffer_size: size of the replay buffer
    :param learning_starts: rows of the replay buffer, those that were loaded included, before the ensemble learns; actions are
        random until then. None takes 250, at most half the steps of ``learn``
    :param train_freq: Fit the ensemble every ``train_freq`` steps of the vectorised environment, or a tuple like
        ``(2, "episode")``. None: 250 over all environments, or fewer where ``learn`` has too few steps for five fits
    :param early_reset: Median of the steps after which an episode of ``learn`` is left, so that a new one begins: whoever
        falls and cannot rise otherwise learns what lying is like; or ``EarlyReset``, or a dictionary of its fields. 0 leaves
        none; usual: 100 to 500
    :param action_noise: added to actions in units of the bounds while it learns
    :param replay_buffer_class: ``ReplayBuffer``; None: the same
    :param replay_buffer_kwargs: keyword arguments to pass to the replay buffer on creation
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: not used: leave it out
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for
        debug messages
    :param seed: Seed for the pseudo random generators; with ``deterministic`` the same observation and state give the same
        plan
    :param device: Device (cpu, cuda, ...) of the ensemble; ``"auto"`` takes the CPU
    :param _init_setup_model: Whether or not to build the networks at the creation of the instance
    :raises ValueError: if an argument is out of range or unknown, or plans cannot be made in the environment
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(NAMES, PlanPolicy)
    algorithm_version: ClassVar[int] = 3
    stored_as: ClassVar[dict[str, str]] = {"policy": "planner", "system": "system", "terminal_value": "terminal_value"}

    def __init__(
        self,
        policy: str | dict[str, Any] | Planner | type[BasePolicy],
        env: GymEnv | str | None,
        horizon: int = 30,
        replan_every: int = 1,
        gamma: float | None = None,
        system: str | gym.Env | Simulator | RewardSystem | Sequence[gym.Env | Simulator | RewardSystem] = "ensemble",
        terminal_value: BaseAlgorithm | TerminalValue | Mapping[str, Any] | None = None,
        cost_fn: SystemFunction | None = None,
        state_from_obs: StateFromObs | None = None,
        max_plan_seconds: float | None = None,
        particles: str = "tsinf",
        n_particles: int | None = None,
        n_threads: int = 1,
        world_model: WorldModel | Mapping[str, Any] | None = None,
        buffer_size: int = 100_000,
        learning_starts: int | None = None,
        train_freq: int | tuple[int, str] | None = None,
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
        if env is None and _init_setup_model:
            raise ValueError("MPC needs an environment to act in, or its id: MPC('iCEM', 'Pendulum-v1')")
        device = "cpu" if device == "auto" else device
        given = {**arguments_of_base(locals(), OffPolicyAlgorithm), "policy": PlanPolicy, "learning_rate": 0.0}
        try:
            super().__init__(
                **given, gradient_steps=-1, support_multi_env=True, sde_support=False, supported_action_spaces=(spaces.Box,)
            )
        except AssertionError as error:
            if "as action spaces" not in str(error):
                raise
            raise AssertionError(f"{error}: for Discrete actions take ExIt, which searches a tree") from None
        # the class of the policy is what ``load`` knows before it knows the planner
        self.planner = "icem" if isinstance(policy, type) and issubclass(policy, PlanPolicy) else policy
        self.horizon, self.replan_every = horizon, replan_every
        self.system, self.terminal_value = system, terminal_value
        self.cost_fn, self.state_from_obs, self.max_plan_seconds = cost_fn, state_from_obs, max_plan_seconds
        self.particles, self.n_particles, self.n_threads = particles, n_particles, n_threads
        self.early_reset = early_reset
        self.penalty: Penalty | None = None
        self.world_model: WorldModel = world_model or {}  # type: ignore[assignment]  # read when the model is set up
        self.format_version = FORMAT_VERSION
        self.algorithm_name = type(self).__name__
        self.objects = self._objects()
        self.n_iterations = self.steps_since_training = 0
        self.reward_limit = np.inf
        self.shown_units = None
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ building

    def _setup_model(self) -> None:
        self._check_saved_format()
        self._check_arguments()
        self.world_model = as_settings("world_model", WorldModel, self.world_model)
        check_buffer(self.replay_buffer_class, self.replay_buffer_kwargs)
        self._planner = make_planner(self.planner)
        assert isinstance(self.action_space, spaces.Box)
        check_bounded(self.action_space)
        check_observations(self.observation_space, self.is_learned)  # before there is a buffer of them
        self._valued = self._read_terminal_value()
        super()._setup_model()
        self._seed_own(self.seed)
        assert self.replay_buffer is not None
        hold_fractions(self.replay_buffer)
        if self.is_learned:
            self._make_ensemble()
        self._begin_anew()

    def _check_arguments(self) -> None:
        missing = [name for name in self.objects if name not in self._objects() and self._is_default(name)]
        if missing:
            raise ValueError(
                f"The model was saved without its {missing[0]}, an object that is no part of the file: make or load it, and "
                f"hand it over with MPC.load(path, {missing[0]}=...)"
            )
        check_arguments(vars(self))

    def _read_terminal_value(self) -> BaseAlgorithm | TerminalValue | None:
        given = self.terminal_value
        found = load_model(given) if isinstance(given, Mapping) else given
        if isinstance(found, BaseAlgorithm):
            check_same_spaces(found, self, f"{type(found).__name__} given as terminal_value")
        return found

    def _objects(self) -> list[str]:
        """Arguments that are not saved."""
        kept = {"system": isinstance(self.system, str), "terminal_value": not isinstance(self.terminal_value, BaseAlgorithm)}
        return [name for name, is_kept in kept.items() if not is_kept]

    def _is_default(self, name: str) -> bool:
        return self.system == "ensemble" if name == "system" else self.terminal_value is None

    @property
    def is_learned(self) -> bool:
        """Whether plans are made in what ``learn`` fits."""
        return isinstance(self.system, str) and self.system == "ensemble"

    @property
    def has_learned(self) -> bool:
        """Whether all is known that plans are made in."""
        return not self.is_learned or self.ensemble.has_units

    @property
    def discount(self) -> float:
        """gamma, the given or the chosen one."""
        if self.gamma is not None:
            return self.gamma
        chosen = discount_of(self._valued)
        return 1.0 if chosen is None else chosen

    @property
    def memory(self) -> ReplayMemory:
        """The replay buffer, as the world model reads it."""
        assert self.replay_buffer is not None
        size = int(np.prod(self.observation_space.shape or ()))
        return ReplayMemory(self.replay_buffer, lambda obs: np.asarray(obs, np.float64).reshape(-1, size), self.reward_limit)

    def _make_ensemble(self) -> None:
        options = self.world_model
        if options.cost_fn is not None and self.cost_fn is not None:
            raise ValueError("cost_fn is given twice: leave it out of world_model")
        if self._is_smooth:
            raise ValueError(
                "iLQR needs rewards that can be differentiated twice, which those of an ensemble are too rough for: take "
                "'iCEM', or plan in the simulator"
            )
        dx, du = (int(np.prod(space.shape or ())) for space in (self.observation_space, self.action_space))
        self.ensemble = Ensemble(dx, du, options.n_members, options.width, options.learning_rate).to(self.device)
        if self.device.type == "cpu":
            each = options.gradient_steps
            warn_of_long_fits("MPC", options, (dx, du), MODEL_BATCH, FIRST_FIT * each, each, stacklevel=6)
        known = WorldModel(cost_fn=self.known_cost, termination_fn=options.termination_fn)
        self.ensemble.known_reward, self.ensemble.known_end = known_functions(known, self.action_space)
        self.ensemble.pessimism = options.pessimism

    def _begin_anew(self) -> None:
        """Make what plans are made in, and forget plans."""
        self._planning, self._finder, self._plans = None, None, None
        self._begun = np.ones(self.n_envs, dtype=bool)
        if self.is_learned or self.env is not None or not isinstance(self.system, str):
            self._make_planning()
        self._predicted_returns = PredictedReturns(self.n_envs, self.horizon, self.discount, as_terminal_value(self._valued))

    def _make_system(self) -> RewardSystem:
        if self.is_learned:
            return EnsembleSystem(self.ensemble, self.n_particles, self.particles, self.penalty)
        given: Any = self.system
        if isinstance(given, str):
            if self.env is None:
                raise ValueError(
                    "MPC plans in the simulator of its environment and has none: MPC.load(path, env=env), or "
                    "model.set_env(env)"
                )
            given = Simulator(environment_of(self.env), time_limits=False, keeps_parameters=False)
        system = as_system(given, self, self.n_threads, self._is_smooth, self.cost_fn is None)
        simulator = simulator_of(system)
        if simulator is not None:
            self._finder = StateFinder(simulator, self.state_from_obs)
        return system

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Act in another environment, whose simulator plans are made in from now on where the system is ``"simulator"``.

        :param env: The environment to act in
        :param force_reset: Force call to ``reset()`` before learning
        """
        super().set_env(env, force_reset)
        self._begin_anew()

    def as_expert(self, env: VecEnv, penalty: Penalty | None = None) -> "MPC":
        """
        Plan for whoever acts in other environments.

        :param env: what they are; any number of environments
        :param penalty: of observations in the environment's units ``[n, do]`` and actions in units of the bounds ``[n, du]``:
            ``[n]``, subtracted from what each planned step earns; None for none
        :return: a model beside this one, which stays as it is; what is learned belongs to both
        """
        expert = copy.copy(self)
        expert.n_envs, expert.penalty = env.num_envs, penalty
        expert.set_env(env)
        return expert

    def _excluded_save_params(self) -> list[str]:
        own = [
            *(
                "_rng",
                "_planner",
                "_planning",
                "_finder",
                "_plans",
                "_begun",
                "_predicted_returns",
                "_statistics",
                "_read_from",
                "_evaluated_in",
                "_valued",
                "ensemble",
                "penalty",
            ),
            *self._objects(),
        ]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        learned = ["ensemble", "ensemble.optimizer", "ensemble.termination_optimizer"]
        return ["policy", *(learned if self.is_learned else [])], []

    # ------------------------------------------------------------------ learning

    @whole_or_undone
    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Fit the ensemble to all that is in the replay buffer.

        :param gradient_steps: not used: ``world_model`` says how many for each real step
        :param batch_size: not used
        :raises DivergedError: if there is no finite model
        """
        if not self.is_learned or self.steps_since_training == 0:
            return
        assert self.replay_buffer is not None
        # one outlier must not decide in what unit all rewards are seen
        self.reward_limit = outlier_limit(self.replay_buffer.rewards[: self.replay_buffer.size()])
        memory = self.memory
        new = memory.take(memory.newest(self.steps_since_training))
        if self.ensemble.has_units:
            states, reward = self.ensemble.r_squared(new)
            self.logger.record("model/r_squared", states)
            self.logger.record("model/r_squared_reward", reward)
        self.ensemble.observe(take_without_outliers(memory, memory.newest(self.steps_since_training)))
        n_real = FIRST_FIT if self.n_iterations == 0 else self.steps_since_training
        n_steps = max(int(self.world_model.gradient_steps * n_real), 1)
        self.logger.record("model/loss", self.ensemble.fit(memory, n_steps, MODEL_BATCH, self._rng))
        self._n_updates += n_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.n_iterations += 1
        self.steps_since_training = 0
