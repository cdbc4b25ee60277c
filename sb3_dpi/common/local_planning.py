"""The part that algorithms with local linear-Gaussian models share: fitting them around the sampled trajectories."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

from sb3_dpi.common.action_units import bounds
from sb3_dpi.common.choices import as_schedule
from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm
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
from sb3_dpi.common.plan_size import PlanSize, reduce_states
from sb3_dpi.common.trajectories import Trajectories, map_observations
from sb3_dpi.trajopt.kl_lqr import KLConstrainedSolution, KLConstraintError, solve_kl_constrained
from sb3_dpi.trajopt.types import FloatArray, IntArray, LinearGaussianController
from sb3_dpi.world_model.known_cost import CostFunction


def discounted_steps(lengths: IntArray, discount: float) -> FloatArray:
    """What the time steps of a plan weigh together, 1 + gamma + gamma^2 + ...

    :param lengths: steps, ``[M]``; none counts as one
    :param discount: gamma
    :return: ``[M]``
    """
    longest = int(np.max(lengths, initial=1))
    weights: FloatArray = np.cumsum(discount ** np.arange(longest))[np.maximum(lengths, 1) - 1]
    return weights


def kl_per_step(solution: KLConstrainedSolution, lengths: IntArray, discount: float) -> float:
    """KL of plans to the policy, as ``solve_shortening`` bounds it.

    :param solution: of the conditions
    :param lengths: planned time steps of the first M conditions, ``[M]``
    :param discount: gamma
    :return: nats per time step, mean over conditions and time steps with the discount as weight
    """
    kl = solution.kl[: len(lengths)]
    return float(np.sum(kl @ discount ** np.arange(kl.shape[1])) / np.sum(discounted_steps(lengths, discount)))


def solve_shortening(
    model: LocalModel,
    epsilon: FloatArray | float,
    eta: FloatArray | None,
    discount: float,
    per_time_step: bool = False,
    shorten: Callable[[np.ndarray], LocalModel] | None = None,
) -> tuple[LocalModel, KLConstrainedSolution]:
    """Plan within the trust region, for fewer time steps where the whole plan has no finite solution.

    Fitted dynamics of an unstable system multiply over a long plan until no dual variable keeps it finite; its beginning can
    still be planned.

    :param model: of the conditions
    :param epsilon: bound on the KL, nats per time step, mean over the plan with its discount as weight, number or ``[M]``
    :param eta: start of the search, ``[M]``, or None
    :param discount: gamma
    :param per_time_step: bound every time step instead of their mean
    :param shorten: makes the model of other lengths ``[M]``; by default the present one is cut
    :return: the model with the lengths that were planned, and the solution
    :raises KLConstraintError: if not even a single step of a condition can be planned
    """
    while True:
        each = np.broadcast_to(epsilon, model.lengths.shape)
        bound = each * discounted_steps(model.lengths, discount)
        if per_time_step:
            bound = np.repeat(each[:, None], model.cost.const.shape[1], axis=1)
        standard = model.standardized()
        problem = standard.dynamics, standard.cost, standard.policy, standard.initial
        try:
            solution = solve_kl_constrained(*problem, bound, eta=eta, discount=discount, per_time_step=per_time_step)
            return model, replace(solution, controller=model.units.undo(solution.controller))
        except KLConstraintError as error:
            lengths = model.lengths.copy()
            lengths[error.condition] //= 2
            if lengths[error.condition] < 1:
                raise
            model = model.shortened(lengths) if shorten is None else shorten(lengths)


class LocalPlanningAlgorithm(DualPolicyAlgorithm):
    """Dual policy iteration whose model is local: time-varying linear-Gaussian dynamics and a quadratic cost.

    :param dynamics: prior of the dynamics fit: ``"nearest"``, ``"niw"`` or ``"gmm"``, or a dictionary of settings
        (fields of ``common.local_models.RegressionSettings``)
    :param linearization: of the policy: ``"jacobian"``, settings of a regression, or None
    :param cost: settings of the cost that is fitted to the rewards (fields of ``common.local_models.CostSettings``), or a
        known cost, expanded by automatic differentiation instead
    :param min_std: smallest standard deviation of the policy, in units of the action bounds
    :param kwargs: arguments of ``DualPolicyAlgorithm``
    """

    renamed_arguments: ClassVar[dict[str, str]] = {
        **DualPolicyAlgorithm.renamed_arguments,
        "cost_fn": "cost",
        "min_samples": 'dynamics={"min_samples": ...}',
    }

    state_rank: int | None = None
    """numbers that states are reduced to, so that a plan fits into memory; None where they stay as they are"""

    def __init__(
        self,
        *,
        dynamics: str | dict[str, Any],
        cost: CostFunction | dict[str, Any] | None,
        min_std: float | str | Schedule,
        linearization: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dynamics = dynamics
        self.linearization = linearization
        self.cost = cost
        self.min_std = as_schedule("min_std", min_std)

    def _setup_model(self) -> None:
        super()._setup_model()
        # arguments may be changed on loading
        self._check_arguments()
        self.min_std = as_schedule("min_std", self.min_std)

    def _check_arguments(self) -> None:
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
        size = PlanSize(
            self._fitted_conditions(), self.size.samples_per_condition, self.size.horizon, self._state_dim, du, prior
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

    # ------------------------------------------------------------------ the model

    def recall(self) -> Trajectories:
        """Read this iteration's trajectories from the buffer, and remember them.

        :return: those of the iterations that are kept stand behind the latest ones; with states of ``state_rank`` numbers
        """
        together = super().recall()
        return together if self.state_rank is None else reduce_states(together, self.state_rank)

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
        points = transition_points(trajectories)
        dynamics = as_dynamics(fit_regression(points, trajectories.weights, n_inputs, settings, self._rng, n_same, n))
        assert isinstance(self.action_space, spaces.Box)
        low, high = bounds(self.action_space)
        settings_of_cost = CostSettings.parse(self.cost)
        cost = fit_local_cost(
            trajectories, lengths, self._planning_discount(), settings_of_cost, dynamics, (low.ravel(), high.ravel())
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
