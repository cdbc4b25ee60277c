"""Trajectory optimization: arrays in, arrays out. See ``types`` for the notation."""

from sb3_dpi.trajopt.controllers import lqr_hold_controller, pd_controller
from sb3_dpi.trajopt.cost import anchor, fit_cost, project_psd
from sb3_dpi.trajopt.differences import FunctionCost, FunctionSystem, TrackingCost
from sb3_dpi.trajopt.dynamics import (
    LinearGaussianFit,
    Moments,
    Standardizer,
    fit_linear_gaussian,
    moments,
    nearest_prior,
    window_prior,
)
from sb3_dpi.trajopt.gmm import GaussianMixture, fit_mixture, mixture_prior, number_of_components
from sb3_dpi.trajopt.ilqr import ILQR, ILQRPlan
from sb3_dpi.trajopt.kl_lqr import KLConstrainedSolution, KLConstraintError, solve_kl_constrained
from sb3_dpi.trajopt.lqr import (
    LQRSolution,
    NotPositiveDefiniteError,
    controller_kl,
    expected_cost,
    forward_marginals,
    lqr_backward,
)
from sb3_dpi.trajopt.shooting import CEM, ICEM, MPPI, RandomShooting, ShootingPlan
from sb3_dpi.trajopt.systems import Cost, System, TwiceDifferentiable
from sb3_dpi.trajopt.types import (
    GaussianMarginals,
    GaussianState,
    LinearGaussianController,
    LinearGaussianDynamics,
    NormalInverseWishart,
    QuadraticCost,
    QuadraticValue,
)

__all__ = [
    "CEM",
    "ICEM",
    "ILQR",
    "MPPI",
    "Cost",
    "FunctionCost",
    "FunctionSystem",
    "GaussianMarginals",
    "GaussianMixture",
    "GaussianState",
    "ILQRPlan",
    "KLConstrainedSolution",
    "KLConstraintError",
    "LQRSolution",
    "LinearGaussianController",
    "LinearGaussianDynamics",
    "LinearGaussianFit",
    "Moments",
    "NormalInverseWishart",
    "NotPositiveDefiniteError",
    "QuadraticCost",
    "QuadraticValue",
    "RandomShooting",
    "ShootingPlan",
    "Standardizer",
    "System",
    "TrackingCost",
    "TwiceDifferentiable",
    "anchor",
    "controller_kl",
    "expected_cost",
    "fit_cost",
    "fit_linear_gaussian",
    "fit_mixture",
    "forward_marginals",
    "lqr_backward",
    "lqr_hold_controller",
    "mixture_prior",
    "moments",
    "nearest_prior",
    "number_of_components",
    "pd_controller",
    "project_psd",
    "solve_kl_constrained",
    "window_prior",
]
