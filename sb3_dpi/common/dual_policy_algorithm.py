"""What the algorithms of dual policy iteration with local models share: their loop, and fitting models to what it samples."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_dpi.common.action_units import bounds
from sb3_dpi.common.choices import arguments_of_base, as_schedule, check_number
from sb3_dpi.common.collector import GOING_ON, TrajectoryCollector
from sb3_dpi.common.interruption import reset_when_interrupted
from sb3_dpi.common.linearization import as_controller, linearize_policy
from sb3_dpi.common.local_models import (
    CostSettings,
    LocalModel,
    Part,
    RegressionSettings,
    StateUnits,
    as_dynamics,
    fit_local_cost,
    fit_regression,
    held_out_error,
    initial_state,
    join_conditions,
    planned_lengths,
    take_conditions,
    transition_points,
)
from sb3_dpi.common.logged import LoggedEpisodes, beside
from sb3_dpi.common.plan_size import PlanSize, reduce_states
from sb3_dpi.common.planner_state import without_outliers
from sb3_dpi.common.policies import (
    BoundedGaussianCnnPolicy,
    BoundedGaussianMultiInputPolicy,
    BoundedGaussianPolicy,
)
from sb3_dpi.common.saved_models import FORMAT_VERSION, SavedModel
from sb3_dpi.common.standardized import Standardizing
from sb3_dpi.common.trajectories import Trajectories, concatenate, map_observations
from sb3_dpi.trajopt.types import FloatArray, IntArray, LinearGaussianController
from sb3_dpi.trajopt.units import cut_outliers, replace_outliers, spread_or_one
from sb3_dpi.world_model.known_cost import CostFunction

SelfDualPolicyAlgorithm = TypeVar("SelfDualPolicyAlgorithm", bound="DualPolicyAlgorithm")


class DualPolicyAlgorithm(SavedModel, TrajectoryCollector):
    """Dual policy iteration: an expert plans with local models, time-varying linear-Gaussian dynamics and a quadratic cost; a
    reactive policy imitates it.

    Each iteration samples time-aligned trajectories from M initial conditions with the policy (or with what a subclass
    samples with); ``train`` then fits a model, improves the expert under it and trains the policy towards it: Sun et al.
    2018, Eq. 2, 4 and 5.

    Environments may differ: each then has its own initial conditions, model and expert, and one policy is trained on the sum
    of their objectives (section 6.3).

    :param policy: the policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: the environment to learn from (if registered in Gymnasium, can be str); its action space must be a Box. A list
        of ids, environments or functions that make one, or a VecEnv of these, trains one policy on all of them
    :param learning_rate: of the policy's optimizer, float or schedule; usual: 3e-4 to 3e-3
    :param horizon: time steps of a trajectory, planned and sampled; at most the environment's time limit. None takes the time
        limit, at most 100. Shorter horizons learn from fewer steps and often carry over to whole episodes
    :param n_conditions: initial conditions M of each environment in an iteration; usual: 1 to 20
    :param samples_per_condition: trajectories N from each condition; usual: 4 to 20. The number of trajectories is rounded
        up to a multiple of the number of environments
    :param conditions: ``"fresh"``: new reset seeds in every iteration; ``"fixed"``: always the same M seeds; ``"random"``:
        each trajectory starts from a seed of its own, so that a condition covers the distribution of initial states;
        ``"continue"``: each starts where the last one of its environment was cut, a window of an episode that goes on;
        ``"mixed"``: goes on or begins anew by the toss of a coin, so that neither early nor late states are forgotten
    :param replay: earlier iterations whose trajectories are kept: their conditions are planned for and imitated again beside
        the new ones; usual: 0 to 10
    :param gamma: discount factor; usual: .95 to 1
    :param noise_correlation: of the exploration noise of one time step with that of the next, from 0 (white) to below 1; the
        standard deviation stays that of the policy. Actions that last reach states which white noise does not; usual: 0 to .9
    :param dynamics: prior of the dynamics fit: ``"nearest"``, ``"niw"`` or ``"gmm"``, or a dictionary of settings
        (fields of ``common.local_models.RegressionSettings``)
    :param cost: settings of the cost that is fitted to the rewards (fields of ``common.local_models.CostSettings``), or a
        known cost, expanded by automatic differentiation instead
    :param min_std: smallest standard deviation of the policy, in units of the action bounds
    :param linearization: of the policy: ``"jacobian"``, settings of a regression, or None
    :param stats_window_size: window size for the rollout logging, in episodes
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: seed for the pseudo random generators and for the initial conditions
    :param device: device (cpu, cuda, ...) on which the policy is trained
    :raises ValueError: if the observation holds nothing that a planner could use, or the horizon exceeds the time limit
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": BoundedGaussianPolicy,
        "CnnPolicy": BoundedGaussianCnnPolicy,
        "MultiInputPolicy": BoundedGaussianMultiInputPolicy,
    }
    renamed_arguments: ClassVar[dict[str, str]] = {
        "environments": "a list of environments as env, or an attribute environment_index of each",
        "cost_fn": "cost",
        "min_samples": 'dynamics={"min_samples": ...}',
    }
    """what to write instead of the arguments of earlier versions"""
    state_rank: int | None = None
    """numbers that states are reduced to, so that a plan fits into memory; None where they stay as they are"""

    def __init__(
        self,
        policy: str | type[BoundedGaussianPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule,
        horizon: int | None,
        n_conditions: int | None,
        samples_per_condition: int | None,
        conditions: str,
        replay: int,
        gamma: float,
        *,
        dynamics: str | dict[str, Any] | RegressionSettings,
        cost: CostFunction | dict[str, Any] | CostSettings | None,
        min_std: float | str | Schedule,
        linearization: str | dict[str, Any] | RegressionSettings | None = None,
        noise_correlation: float = 0.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: Any = "auto",
    ):
        super().__init__(**arguments_of_base(locals(), TrajectoryCollector))
        self.replay = replay
        self.dynamics = dynamics
        self.linearization = linearization
        self.cost = cost
        self.min_std = as_schedule("min_std", min_std)
        self.format_version = FORMAT_VERSION
        self.algorithm_name = type(self).__name__
        self.past: tuple[Trajectories, ...] = ()
        """trajectories of the iterations that are kept, the latest first; they survive save and load"""
        self.logged: LoggedEpisodes | None = None
        """episodes from elsewhere, behind the dynamics and the cost of every iteration; they survive save and load"""

    def _setup_model(self) -> None:
        self._check_saved_format()
        super()._setup_model()
        # arguments may be changed on loading
        self._check_arguments()
        self.min_std = as_schedule("min_std", self.min_std)

    def _check_arguments(self) -> None:
        check_number("min_std", as_schedule("min_std", self.min_std)(1.0), 0.0)
        CostSettings.parse(self.cost)
        if self.linearization not in (None, "jacobian"):
            RegressionSettings.parse("linearization", self.linearization)
        if self.samples_per_condition is not None and self.samples_per_condition < self.min_samples:
            raise ValueError(
                f"A fit needs at least min_samples={self.min_samples} trajectories of each condition, "
                f"samples_per_condition={self.samples_per_condition} gives fewer: raise samples_per_condition"
            )

    @property
    def min_samples(self) -> int:
        """Living trajectories that a time step needs to be planned."""
        return RegressionSettings.parse("dynamics", self.dynamics).min_samples

    def _check_size(self) -> None:
        """Whether a plan of whole states fits into memory, and what to do where it does not."""
        prior = RegressionSettings.parse("dynamics", self.dynamics).prior
        du = int(np.prod(self.action_space.shape or ()))
        n_pooled = self.total_conditions * (self.replay + 1) * self.size.samples_per_condition
        size = PlanSize(
            self._fitted_conditions(), self.size.samples_per_condition, self.size.horizon, self._state_dim, du, prior, n_pooled
        )
        self.state_rank = size.rank()
        if self.state_rank is None:
            return
        needed = self._whole_state_needed_by()
        whole = f"A plan with all {self._state_dim} numbers of the state takes {size.n_bytes(self._state_dim) / 2**30:.1f} GiB"
        advice = "a shorter horizon, fewer n_conditions or less replay keep all"
        if needed:
            raise ValueError(f"{whole}, and {', '.join(needed)} cannot do with fewer numbers: {advice}")
        warnings.warn(f"{whole}: it is made in the {self.state_rank} directions of most variance; {advice}", stacklevel=4)

    def _fitted_conditions(self) -> int:
        """How many conditions have a model."""
        return self.total_conditions * (self.replay + 1)

    def _whole_state_needed_by(self) -> list[str]:
        """Arguments that have no meaning for a reduced state."""
        known = CostSettings.parse(self.cost).cost_fn is not None
        return ["a known cost"] * known + ['linearization="jacobian"'] * (self.linearization == "jacobian")

    def train(self) -> None:
        """One iteration of dual policy iteration on the trajectories in the buffer."""
        raise NotImplementedError

    def learn_from(self, logged: LoggedEpisodes) -> None:
        """Let episodes from elsewhere stand behind the fits of dynamics and cost, from the next iteration on.

        Whatever depends on the policy, its linearisation, values and imitation, goes on by the model's own samples.

        :param logged: of the same task; ``sb3_dpi.data.fill`` makes them of logged data
        :raises ValueError: if states are reduced, or environments differ
        """
        if self.state_rank is not None:
            raise ValueError("Logged episodes cannot help where states are reduced: take a shorter horizon or less replay")
        if self.n_environments > 1:
            raise ValueError("Logged episodes are of one task, here environments differ: train on one")
        seen = [replace_outliers(states, logged.states) for states in (logged.states, logged.next_states)]
        sound = replace(logged, states=seen[0], next_states=seen[1], rewards=cut_outliers(logged.rewards))
        self.logged = sound if self.logged is None else self.logged.joined(sound)

    def recall(self) -> Trajectories:
        """Read this iteration's trajectories from the buffer, and remember them.

        :return: those of the iterations that are kept stand behind the latest ones; outliers are left out, and states too
            large for a plan are reduced to ``state_rank`` numbers
        """
        latest = self.rollout_buffer.trajectories()
        M, _, T = latest.alive.shape
        kept = [past for past in self.past if (past.alive.shape[0], past.alive.shape[2]) == (M, T)]
        together = (latest, *kept)
        self.past = together[: self.replay]
        trajectories = concatenate(together)
        sound = without_outliers(trajectories, self.observation_space)
        return sound if self.state_rank is None else reduce_states(sound, self.state_rank)

    def standardize(self, trajectories: Trajectories) -> None:
        """Let the policy standardise its inputs by what was sampled; its function stays what it was.

        :param trajectories: of this iteration and those that are kept
        """
        extractor = self.policy.pi_features_extractor
        if not isinstance(extractor, Standardizing) or not len(extractor.columns):
            return
        seen = map_observations(lambda array: array[:, :, :-1][trajectories.alive], trajectories.observations)
        flat = extractor.vectors(self._policy_inputs(seen)).astype(np.float64)
        mean = flat.mean(0)
        self.policy.set_standardization(*extractor.in_features(mean, spread_or_one(flat.std(0), mean)))

    # ------------------------------------------------------------------ the model

    def _input_scale(self) -> FloatArray | None:
        return None if self.state_rank is not None else super()._input_scale()

    def fit_model(self, trajectories: Trajectories) -> LocalModel:
        """Fit dynamics, cost and the policy's linearisation around the trajectories, those of each environment apart.

        :param trajectories: of this iteration and those that are kept
        :return: the local models of all conditions that are planned for
        """
        n = self._planned_conditions(trajectories)
        return self._in_each_environment(lambda own, n_own: self._fit_one(trajectories.take(own), n_own), trajectories, n)

    def _planned_conditions(self, trajectories: Trajectories) -> int:
        """How many conditions, the latest first, are planned for; the others stand behind the priors."""
        return len(trajectories.alive)

    def _in_each_environment(
        self, fit: Callable[[slice | IntArray, int], Part], trajectories: Trajectories, n_planned: int
    ) -> Part:
        """Call a fit with the conditions of each environment, what it pools stays within one, and how many of them to plan."""
        if self.n_environments == 1:
            return fit(slice(None), n_planned)
        chosen = self._conditions_of_environments(trajectories)
        planned = [own[own < n_planned] for own in chosen]
        parts = [fit(own, len(first)) for own, first in zip(chosen, planned, strict=True)]
        return take_conditions(join_conditions(parts), np.argsort(np.concatenate(planned)))

    def _conditions_of_environments(self, trajectories: Trajectories) -> list[IntArray]:
        environment = np.arange(len(trajectories.alive)) % self.total_conditions // self.size.n_conditions
        return [np.flatnonzero(environment == i) for i in range(self.n_environments)]

    def _fit_one(self, trajectories: Trajectories, n: int) -> LocalModel:
        planned = trajectories.first(n)
        settings = RegressionSettings.parse("dynamics", self.dynamics)
        lengths = planned_lengths(planned, settings.min_samples)
        n_inputs = trajectories.states.shape[-1] + trajectories.actions.shape[-1]
        n_same = self.size.n_conditions if self.conditions == "fixed" else None
        known = trajectories
        if self.logged is not None:
            known, is_grouped = beside(known, self.logged, settings.prior == "niw" and self.conditions not in GOING_ON)
            n_same = len(trajectories.alive) if is_grouped and n_same is None else n_same
        points = transition_points(known)
        dynamics = as_dynamics(fit_regression(points, known.weights, n_inputs, settings, self._rng, n_same, n))
        assert isinstance(self.action_space, spaces.Box)
        low, high = bounds(self.action_space)
        settings_of_cost = CostSettings.parse(self.cost)
        cost = fit_local_cost(
            known, lengths, self._planning_discount(), settings_of_cost, dynamics, (low.ravel(), high.ravel())
        )
        units = StateUnits.of(trajectories, n)
        return LocalModel(dynamics, cost, self._linearize(trajectories, n), initial_state(planned), lengths, units)

    def _planning_discount(self) -> float:
        """The discount of the plan, by which a death is charged for the rewards that it prevents."""
        return self.gamma

    def _linearize(self, trajectories: Trajectories, n: int | None = None) -> LinearGaussianController:
        """The global policy as a time-varying linear-Gaussian controller (MDGPS, section 3.1)."""
        fit = linearize_policy(
            self.policy,
            trajectories,
            self._policy_inputs,
            self._input_scale(),
            self.linearization,
            self._rng,
            self._input_limit(),
            n,
        )
        return as_controller(fit, np.exp(self.policy.log_std.detach().double().cpu().numpy()))

    def _held_out_error(self, trajectories: Trajectories, lengths: IntArray) -> float:
        """What the dynamics miss on one trajectory of each latest condition, left out of the fit; mean over environments."""
        settings, n = RegressionSettings.parse("dynamics", self.dynamics), self.size.n_conditions
        n_inputs = trajectories.states.shape[-1] + trajectories.actions.shape[-1]
        held_out = self.n_iterations % trajectories.alive.shape[1]
        errors = []
        for first in range(0, self.total_conditions, n):
            own = slice(first, first + n)
            latest = trajectories.take(own)
            points = transition_points(latest)
            errors.append(held_out_error(points, latest.weights, n_inputs, settings, held_out, lengths[own]))
        return float(np.mean(errors))

    # ------------------------------------------------------------------ what is planned for

    def _planned(self, trajectories: Trajectories) -> np.ndarray:
        """Which samples are alive and planned for, ``[M, N, T]``."""
        lengths = planned_lengths(trajectories, self.min_samples)
        return trajectories.alive & (np.arange(trajectories.alive.shape[2]) < lengths[:, None, None])

    def _inputs_at(self, trajectories: Trajectories, chosen: np.ndarray) -> Any:
        return self._policy_inputs(map_observations(lambda array: array[:, :, :-1][chosen], trajectories.observations))

    # ------------------------------------------------------------------ the loop

    def _end_iteration(self) -> None:
        """Count the iteration, and log what every algorithm logs of one."""
        self.n_iterations += 1
        self._n_updates += 1
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/std", float(self.policy.log_std.detach().exp().mean()))

    @reset_when_interrupted
    def learn(
        self: SelfDualPolicyAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DualPolicyAlgorithm",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDualPolicyAlgorithm:
        """Learn until ``total_timesteps`` real environment steps have been taken; the last iteration is completed.

        :param total_timesteps: real steps, every one counted
        :param callback: called at every step
        :param log_interval: iterations between logs, None for none
        :param tb_log_name: the name of the run for tensorboard
        :param reset_num_timesteps: whether to reset the current timestep number
        :param progress_bar: display a progress bar
        :return: the trained model
        """
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
