"""The part that algorithms with local linear-Gaussian models share: fitting them around the sampled trajectories."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.type_aliases import Schedule

from sb3_dpi.common.choices import as_schedule
from sb3_dpi.common.dual_policy_algorithm import DualPolicyAlgorithm
from sb3_dpi.common.linearization import as_controller, linearize_policy
from sb3_dpi.common.local_models import (
    CostSettings,
    LocalModel,
    Part,
    RegressionSettings,
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
from sb3_dpi.common.trajectories import Trajectories, map_observations
from sb3_dpi.trajopt.kl_lqr import KLConstrainedSolution, KLConstraintError, solve_kl_constrained
from sb3_dpi.trajopt.types import FloatArray, IntArray, LinearGaussianController
from sb3_dpi.world_model.known_cost import CostFunction


def solve_shortening(
    model: LocalModel,
    kl_per_step: FloatArray | float,
    eta: FloatArray | None,
    discount: float,
    per_time_step: bool = False,
    shorten: Callable[[np.ndarray], LocalModel] | None = None,
) -> tuple[LocalModel, KLConstrainedSolution]:
    """Plan within the trust region, for fewer time steps where the whole plan has no finite solution.

    Fitted dynamics of an unstable system multiply over a long plan until no dual variable keeps it finite; its beginning can
    still be planned.

    :param model: of the conditions
    :param kl_per_step: bound on the KL, nats per time step, number or ``[M]``
    :param eta: start of the search, ``[M]``, or None
    :param discount: gamma
    :param per_time_step: bound every time step instead of their mean
    :param shorten: makes the model of other lengths ``[M]``; by default the present one is cut
    :return: the model with the lengths that were planned, and the solution
    :raises KLConstraintError: if not even a single step of a condition can be planned
    """
    while True:
        epsilon = np.broadcast_to(kl_per_step, model.lengths.shape)
        bound = epsilon * np.maximum(model.lengths, 1)
        if per_time_step:
            bound = np.repeat(epsilon[:, None], model.cost.const.shape[1], axis=1)
        try:
            return model, solve_kl_constrained(
                model.dynamics,
                model.cost,
                model.policy,
                model.initial,
                bound,
                eta=eta,
                discount=discount,
                per_time_step=per_time_step,
            )
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

    # ------------------------------------------------------------------ the model

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
        bounds = self.action_space.low.ravel(), self.action_space.high.ravel()  # type: ignore[attr-defined]
        cost = fit_local_cost(
            trajectories, lengths, self._planning_discount(), CostSettings.parse(self.cost), dynamics, bounds
        )
        return LocalModel(dynamics, cost, self._linearize(trajectories, n), initial_state(planned), lengths)

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
