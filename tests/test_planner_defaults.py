"""What callers of planners and solvers leave out is part of every number that they publish: it changes only on purpose.

Who changes a default here changes what users get from the same seed: say so in the changelog, and raise the
``algorithm_version`` of the algorithms that leave it out.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

from sb3_dpi.trajopt.controllers import lqr_hold_controller, pd_controller
from sb3_dpi.trajopt.cost import fit_cost, project_psd
from sb3_dpi.trajopt.discounting import discount_for_time_limit
from sb3_dpi.trajopt.dynamics import fit_linear_gaussian, nearest_prior
from sb3_dpi.trajopt.gmm import fit_mixture, mixture_prior, number_of_components
from sb3_dpi.trajopt.ilqr import ILQR, ILQRPlan
from sb3_dpi.trajopt.kl_lqr import solve_kl_constrained
from sb3_dpi.trajopt.lqr import evaluate_controller, lqr_backward
from sb3_dpi.trajopt.mcts import Edge, SearchResult, puct, puct_each, uct
from sb3_dpi.trajopt.shooting import CEM, ICEM, MPPI, RandomShooting, Shooter, ShootingPlan, cross_entropy
from sb3_dpi.trajopt.value_iteration import value_iteration

GIVEN_BY_NAME = {"n_states": 1, "start": None, "max_seconds": None}
SHAPED = {"momentum": 0.1, "spread": 0.5, "smallest_spread": 0.01}
SEARCHED = {"noise": None, "return_range": None, "max_seconds": None}
DEFAULTS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (lqr_hold_controller, {"gains": 1.0, "stiffness": 1.0, "stiffness_vel": 0.5, "init_var": 0.1, "final_weight": 1.0}),
    (lqr_hold_controller, {"dt": 0.05, "positions": None, "velocities": None}),
    (pd_controller, {"position_gains": 1.0, "velocity_gains_mult": 0.1, "init_var": 0.1}),
    (fit_cost, {"ridge": 1e-4, "local_window": None, "local_ridge": 0.1}),
    (project_psd, {"floor": 0.0}),
    (discount_for_time_limit, {"longest": 0.99, "share": 0.4}),
    (fit_linear_gaussian, {"ridge": 1e-4}),
    (nearest_prior, {"max_pool": 4000}),
    (fit_mixture, {"max_iterations": 100, "tolerance": 1e-5, "regularization": 1e-6}),
    (mixture_prior, {"mean_count": 1.0, "cov_count": 1.0}),
    (number_of_components, {"samples_per_cluster": 40, "max_clusters": 20}),
    (ILQR, {"second_order": False, "max_iterations": 200, "tolerance": 1e-10}),
    (ILQR.plan, {"low": None, "high": None, "first_step": 0, "max_seconds": None}),
    (ILQRPlan.shifted, {"n": 1}),
    (solve_kl_constrained, {"eta": None, "discount": 1.0, "per_time_step": False, "max_passes": 200}),
    (evaluate_controller, {"discount": 1.0}),
    (lqr_backward, {"discount": 1.0, "temperature": 1.0}),
    (Edge, {"visits": 0, "total": 0.0, "reward": 0.0, "is_random": False}),
    (SearchResult.policy, {"temperature": 1.0}),
    (uct, {"n_simulations": 200, "horizon": 50, "gamma": 1.0, "exploration": 1.0 / math.sqrt(2.0), "evaluate": None}),
    (puct, {"n_simulations": 50, "horizon": 1000, "gamma": 1.0, "exploration": 1.25, **SEARCHED, "root": None}),
    (puct_each, {"n_simulations": 50, "horizon": 1000, "gamma": 1.0, "exploration": 1.25, **SEARCHED}),
    (Shooter.plan, GIVEN_BY_NAME),
    (ShootingPlan.shifted, {"n": 1}),
    (RandomShooting, {"n_samples": 1000}),
    (CEM, {"n_samples": 300, "n_elites": 30, "n_rounds": 4, **SHAPED, "exponent": 0.0, "kept": 0.0, "decay": 1.0}),
    (ICEM, {"n_samples": 100, "n_elites": 10, "n_rounds": 3, **SHAPED, "exponent": 2.0, "kept": 0.3, "decay": 0.8}),
    (MPPI, {"n_samples": 300, "n_rounds": 1, "spread": 0.3, "temperature": None, "trust_region": 2.0, "exponent": 0.0}),
    (value_iteration, {"gamma": 1.0, "horizon": None, "tolerance": 1e-10, "max_sweeps": 100_000}),
]


@pytest.mark.parametrize(("function", "defaults"), DEFAULTS, ids=lambda value: getattr(value, "__qualname__", ""))
def test_what_is_left_out(function: Callable[..., Any], defaults: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


@pytest.mark.parametrize("function", [ILQR.plan, Shooter.plan, cross_entropy, solve_kl_constrained])
def test_what_is_given_by_name_alone(function: Callable[..., Any]) -> None:
    """Their options may be reordered, and grow."""
    optional = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    ]
    assert {parameter.kind for parameter in optional} == {inspect.Parameter.KEYWORD_ONLY}
