"""One trust-region step along the natural gradient (AggreVaTeD-OC, Eq. 11 and 12; TRPO, appendix C).

Problem: maximise L(theta) subject to KL(pi_old || pi_theta) <= target_kl, the KL averaged over the samples. With the
gradient g of L and the Fisher matrix F, the Hessian of the KL at theta_old, the step of the linear-quadratic problem is

    theta = theta_old + sqrt(2 target_kl / g'F^-1 g) F^-1 g.

A line search shortens it until the KL holds and L has increased; if none of the steps does, the parameters stay as they were.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution, kl_divergence

if TYPE_CHECKING:  # half a second, which who only predicts need not wait for
    from scipy.sparse.linalg import LinearOperator

CG_TOLERANCE = 1e-5
"""Of the residual, relative to the gradient: what single precision can tell."""
DEFAULT_DAMPING = 20.0
"""In mean eigenvalues of the Fisher matrix. They differ tenfold from task to task, so that no number serves all."""
TRACE_PROBES = 4
"""Vectors by which the trace is estimated."""
Scalar = Callable[[], th.Tensor]
"""A scalar of the present parameters"""


@dataclass(frozen=True)
class NaturalGradientStep:
    """How a step went."""

    accepted: bool
    """false: the parameters are exactly what they were"""
    kl: float
    """KL(pi_old || pi_new), nats, mean over the samples"""
    improvement: float
    """L(new) - L(old)"""
    predicted: float
    """what the gradient alone predicts of the accepted step"""
    n_trials: int
    """steps that the line search tried"""


def natural_gradient_step(
    parameters: Iterable[th.nn.Parameter],
    objective: Scalar,
    kl: Scalar,
    target_kl: float,
    cg_max_steps: int = 15,
    cg_damping: float | None = 1e-3,
    line_search_max_iter: int = 10,
    line_search_shrinking_factor: float = 0.8,
) -> NaturalGradientStep:
    """Take one step.

    :param parameters: changed in place
    :param objective: L, to maximise, ``[]``
    :param kl: KL(pi_old || pi), ``[]``, zero with zero gradient at the present parameters and twice differentiable
    :param target_kl: bound on the KL, nats; zero, as where a schedule ends, takes no step; usual: .003 to .1
    :param cg_max_steps: conjugate gradient steps; usual: 10 to 20
    :param cg_damping: added to the Fisher matrix; None takes ``DEFAULT_DAMPING`` of its mean eigenvalues; usual: 1e-4 to 1
    :param line_search_max_iter: steps that are tried
    :param line_search_shrinking_factor: of a step where L did not increase; where the KL was too large it says itself how much
    :return: how it went
    """
    from scipy.sparse.linalg import cg

    actor = [parameter for parameter in parameters if parameter.requires_grad]
    before = objective()
    gradient = _flat_gradient(before, actor).detach()
    refused = NaturalGradientStep(False, 0.0, 0.0, 0.0, 0)
    if not target_kl > 0.0 or not bool(th.isfinite(gradient).all()) or not bool(gradient.any()):
        return refused
    # Not sb3-contrib's solver: it starts from a random vector and stops at a residual that depends on the units of L
    fisher = _damped_fisher_matrix(_flat_gradient(kl(), actor, create_graph=True), actor, cg_damping)
    solution, _ = cg(fisher, gradient.double().cpu().numpy(), rtol=CG_TOLERANCE, maxiter=cg_max_steps)
    # in double precision: the slope has the unit of L squared
    slope = float(gradient.double().cpu().numpy() @ solution)
    # Rounding, or a damping that is too small, can leave the cone of ascent directions
    if not np.all(np.isfinite(solution)) or not slope > 0.0:
        return refused
    full_step = th.as_tensor(solution * math.sqrt(2.0 * target_kl / slope), dtype=gradient.dtype, device=gradient.device)
    old = [parameter.detach().clone() for parameter in actor]
    share = 1.0
    with th.no_grad():
        for trial in range(1, line_search_max_iter + 1):
            _add(actor, old, share * full_step)
            new_kl, improvement = float(kl()), float(objective() - before)
            if new_kl <= target_kl and improvement > 0.0:
                return NaturalGradientStep(True, new_kl, improvement, share * float(gradient.dot(full_step)), trial)
            if not math.isfinite(new_kl):
                share *= 0.5
            elif new_kl > target_kl:  # the KL is nearly quadratic in the step
                share *= 0.98 * math.sqrt(target_kl / new_kl)
            else:
                share *= line_search_shrinking_factor
        for parameter, values in zip(actor, old, strict=True):
            parameter.copy_(values)
    return NaturalGradientStep(False, 0.0, 0.0, 0.0, line_search_max_iter)


def _damped_fisher_matrix(
    kl_gradient: th.Tensor, parameters: list[th.nn.Parameter], cg_damping: float | None
) -> "LinearOperator":
    from scipy.sparse.linalg import LinearOperator

    size = kl_gradient.numel()

    def product(vector: np.ndarray) -> np.ndarray:
        along = kl_gradient.dot(th.as_tensor(vector, dtype=kl_gradient.dtype, device=kl_gradient.device))
        return _flat_gradient(along, parameters, retain_graph=True).double().cpu().numpy()

    damping = DEFAULT_DAMPING * mean_eigenvalue(product, size) if cg_damping is None else cg_damping
    return LinearOperator((size, size), matvec=lambda x: product(x) + damping * x, dtype=np.float64)


def mean_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """
    KL(old || new), summed over the action's dimensions.

    :param old: of n observations
    :param new: of the same
    :return: nats, mean over the observations, ``[]``
    """
    divergence = kl_divergence(old, new)
    return divergence.reshape(len(divergence), -1).sum(1).mean()


def mean_eigenvalue(product: Callable[[np.ndarray], np.ndarray], size: int) -> float:
    """Of a matrix that is known by its products with vectors (Hutchinson's estimate of the trace).

    :param product: ``[size]`` to ``[size]``
    :param size: P
    :return: trace / P
    """
    probes = np.random.default_rng(0).choice([-1.0, 1.0], size=(TRACE_PROBES, size))
    return float(np.mean([probe @ product(probe) for probe in probes])) / size


def _flat_gradient(
    scalar: th.Tensor, parameters: list[th.nn.Parameter], retain_graph: bool | None = None, create_graph: bool = False
) -> th.Tensor:
    """The gradient as one vector, zero for what the scalar does not depend on (``flat_grad`` of sb3-contrib leaves it out)."""
    gradients = th.autograd.grad(
        scalar, parameters, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return th.cat([gradient.reshape(-1) for gradient in gradients])


def _add(parameters: list[th.nn.Parameter], old: list[th.Tensor], step: th.Tensor) -> None:
    start = 0
    for parameter, values in zip(parameters, old, strict=True):
        size = parameter.numel()
        parameter.copy_(values + step[start : start + size].view_as(values))
        start += size
