"""KL-constrained linear-quadratic regulation: the expert of guided policy search.

Problem, for each condition:

    p = argmin_p sum_t gamma^t E_p[l_t(x_t, u_t)]   subject to   sum_t gamma^t E_p[KL(p(u_t|x_t) || r(u_t|x_t))] <= epsilon

over linear-Gaussian controllers p, with reference r (MDGPS, Eq. 2 and appendix B.1; Dual Policy Iteration, Eq. 9). The
Lagrangian is minimised by LQR on the cost l / eta - log r, cost and penalty of a later step discounted alike, and the dual
variable eta > 0 is searched for: the KL falls from infinity, where Qww + eta I stops being positive definite, to zero. With
``per_time_step`` every step has its own bound and eta_t.

Everything is computed in coordinates that whiten the reference (``whitened``): there its negative log-likelihood does not
depend on the state, no large terms cancel, and what does not depend on eta is built once. Costs are divided by a power of two
of their size, so that their unit does not matter. States should be of order one: rounding is told from a slope by its size.

Shapes: conditions ``...``; dynamics, cost and reference ``[..., T]``; epsilon ``[...]`` (or ``[..., T]`` per time step),
in nats, discounted total over the horizon (or per time step).
"""

from dataclasses import dataclass

import numpy as np

from sb3_dpi.trajopt.per_step import search_per_step
from sb3_dpi.trajopt.types import (
    BoolArray,
    FloatArray,
    GaussianState,
    IntArray,
    LinearGaussianController,
    LinearGaussianDynamics,
    QuadraticCost,
)
from sb3_dpi.trajopt.units import power_of_two
from sb3_dpi.trajopt.whitened import WhitenedProblem, WhitenedSolution

KL_TOLERANCE = 0.1
"""The search ends with the KL in [1 - KL_TOLERANCE, 1] epsilon."""

_LOG_ETA_LIMIT = 600.0
_LOG_NEGLIGIBLE = -23.0
"""Of a KL, in its target: what is less than 1e-10 of it is as good as zero."""
_LARGEST_CANCELLATION = 1e-6


class KLConstraintError(ValueError):
    """The constrained problem could not be solved.

    :param message: what failed and what to do
    :param condition: index of the condition (flattened batch index)
    :param time_step: time step ``t`` of the failure
    """

    def __init__(self, message: str, condition: int, time_step: int) -> None:
        super().__init__(message)
        self.condition = condition
        self.time_step = time_step


@dataclass(frozen=True)
class KLConstrainedSolution:
    """The constrained minimiser and how the search for it went."""

    controller: LinearGaussianController
    """the minimiser; the reference itself where ``active`` is false"""
    eta: FloatArray
    """dual variable, ``[...]`` (``[..., T]`` per time step), in the cost's unit per nat"""
    kl: FloatArray
    """``[..., T]``, KL of each time step under the new marginals, nats"""
    active: BoolArray
    """``[...]`` (``[..., T]`` per time step), false where the cost does not depend on the action"""
    converged: BoolArray
    """``[...]``, true where the KL ended within the tolerance or the bound is inactive; the bound holds in any case"""
    n_passes: int
    """backward-forward passes of the search"""
    n_recoveries: int
    """how often a dual variable had to grow because Qww + eta I was not positive definite"""


def solve_kl_constrained(
    dynamics: LinearGaussianDynamics,
    cost: QuadraticCost,
    reference: LinearGaussianController,
    initial: GaussianState,
    epsilon: FloatArray | float,
    *,
    eta: FloatArray | None = None,
    discount: float = 1.0,
    per_time_step: bool = False,
    max_passes: int = 200,
) -> KLConstrainedSolution:
    """Minimise the expected cost within a KL ball around a reference controller.

    The cost may be indefinite: the dual variable is kept where the problem is convex.

    :param dynamics: ``[..., T]``
    :param cost: ``[..., T]``
    :param reference: ``[..., T]``, usually the policy's linearisation
    :param initial: first state, ``[...]``
    :param epsilon: bound on the discounted total KL, nats, ``[...]``; on each step's with ``per_time_step``, ``[..., T]``.
        Usual: .03 to 1 a step
    :param eta: start of the search, ``[...]`` or ``[..., T]``, the previous iteration's; None starts from the cost's scale
    :param discount: gamma, from 0 to 1
    :param per_time_step: bound the KL of every time step instead of their sum
    :param max_passes: most backward-forward passes of the search
    :return: the solution; its controller's covariances are positive definite
    :raises KLConstraintError: if the problem holds NaN, or no dual variable gives a finite solution, or none within the bound
        was met in ``max_passes``; names condition and time step
    :raises ValueError: if epsilon or eta is not positive and finite
    """
    batch, horizon = dynamics.F.shape[:-3], dynamics.F.shape[-3]
    dual_shape = (*batch, horizon) if per_time_step else batch
    bound = np.broadcast_to(_check_positive("epsilon", epsilon), dual_shape).reshape(-1, horizon if per_time_step else 1)
    _check_finite(dynamics, cost, reference, initial)
    _check_positive_definite(reference, "reference", "give it some variance in every action")
    problem = WhitenedProblem.build(dynamics, cost, reference, initial, discount)
    unit = power_of_two(problem.scale())
    problem = problem.in_units_of(unit)
    log_start = None if eta is None else np.log(_check_positive("eta", eta).reshape(len(bound), -1) / unit[:, None])
    if per_time_step:
        start, n_passes, n_recoveries = _start_per_step(problem, bound, log_start, max_passes)
        found = search_per_step(problem, bound, start, KL_TOLERANCE, max_passes)
    else:
        n_passes = n_recoveries = 0
        found = _DualSearch(problem, bound[:, 0], log_start, max_passes).run()
    controller = problem.unwhiten(found.K, found.k, found.S, reference)
    _check_positive_definite(controller, "controller", "raise the reference's smallest standard deviation or lower epsilon")
    return KLConstrainedSolution(
        controller=controller,
        eta=(found.eta.reshape(len(unit), -1) * unit[:, None]).reshape(dual_shape),
        kl=found.kl.reshape(*batch, horizon),
        active=found.active.reshape(dual_shape),
        converged=found.converged.reshape(batch),
        n_passes=n_passes + found.n_passes,
        n_recoveries=n_recoveries + found.n_recoveries,
    )


class _DualSearch:
    """Safeguarded search on log eta, all conditions in lockstep, each converging on its own.

    Works on g = log(KL / target) against log eta: false position with the Illinois rule between a bracket's ends,
    bisection where an end is not positive definite, expansion by the local power law KL ~ eta^-2 before there is one.
    """

    def __init__(self, problem: WhitenedProblem, bound: FloatArray, log_start: FloatArray | None, max_passes: int) -> None:
        M, T = problem.n_conditions, problem.horizon
        dx, du = problem.mean0.shape[-1], problem.lower.shape[-1]
        self.discounts = problem.discounts
        self.problem, self.bound, self.max_passes = problem, bound, max_passes
        # a start from above: there the power law holds and Qww + eta I is positive definite
        self.log_eta = np.log(10.0 * T * problem.scale()) if log_start is None else log_start.mean(-1)
        self.low, self.high = np.full(M, -np.inf), np.full(M, np.inf)
        self.g_low, self.g_high = np.full(M, np.inf), np.full(M, -np.inf)
        self.last_side, self.stride = np.zeros(M, dtype=int), np.full(M, 0.25)
        self.K, self.k, self.S = np.zeros((M, T, du, dx)), np.zeros((M, T, du)), np.zeros((M, T, du, du))
        self.kl = np.full((M, T), np.nan)
        self.active, self.converged = np.ones(M, dtype=bool), np.zeros(M, dtype=bool)
        self.failed_at = np.full(M, -1)
        self.n_passes = self.n_recoveries = 0

    def run(self) -> WhitenedSolution:
        """Search until every condition has converged, is inactive, or has no room left."""
        pending: IntArray = np.arange(self.problem.n_conditions)
        checked_activity = False
        while len(pending) and self.n_passes < self.max_passes:
            g = self._evaluate(pending)
            self.converged[pending] = (g >= self._g_of(1.0 - KL_TOLERANCE)) & (g <= self._g_of(1.0))
            pending, g = pending[~self.converged[pending]], g[~self.converged[pending]]
            self._narrow(pending, g)
            if not checked_activity and np.any(g < _LOG_NEGLIGIBLE):
                # before eta falls so far that it turns rounding errors into actions
                pending, checked_activity = self._retire_inactive(pending), True
            exhausted = self.high[pending] - self.low[pending] < 1e-14 * np.maximum(1.0, np.abs(self.high[pending]))
            pending = pending[~exhausted & (self.low[pending] < _LOG_ETA_LIMIT)]
            self.log_eta[pending] = self._propose(pending)
        self._settle(np.flatnonzero(~self.converged))
        return WhitenedSolution(
            self.K,
            self.k,
            self.S,
            self.kl,
            np.exp(self.log_eta),
            self.active,
            self.converged,
            self.n_passes,
            self.n_recoveries,
        )

    @staticmethod
    def _g_of(ratio: float) -> float:
        return float(np.log(ratio / (1.0 - 0.5 * KL_TOLERANCE)))

    def _evaluate(self, which: IntArray) -> FloatArray:
        K, k, S, kl, failed = self.problem.run(np.exp(self.log_eta[which]), which)
        self.n_passes += 1
        total = kl @ self.discounts
        # a KL below zero is what cancellation leaves of numbers that have exploded
        sound = np.isfinite(kl) & (kl >= -_LARGEST_CANCELLATION)
        valid = (failed < 0) & np.all(sound, -1) & np.isfinite(total)
        self.n_recoveries += int(np.sum(failed >= 0))
        overflow = np.where(valid, -1, np.argmin(sound, -1))
        self.failed_at[which] = np.where(failed >= 0, failed, overflow)
        self.K[which], self.k[which], self.S[which], self.kl[which] = K, k, S, kl
        with np.errstate(divide="ignore", invalid="ignore"):
            g = np.log(np.maximum(total, 1e-300) / ((1.0 - 0.5 * KL_TOLERANCE) * self.bound[which]))
        return np.where(valid, g, np.inf)

    def _narrow(self, which: IntArray, g: FloatArray) -> None:
        side = np.where(g > 0, 1, -1)
        for i, m in enumerate(which):
            same = side[i] == self.last_side[m]
            if side[i] > 0:
                self.low[m], self.g_low[m] = self.log_eta[m], g[i]
                self.g_high[m] *= 0.5 if same else 1.0
            else:
                self.high[m], self.g_high[m] = self.log_eta[m], g[i]
                self.g_low[m] *= 0.5 if same else 1.0
            self.stride[m] = min(2.0 * self.stride[m], 50.0)
            self.last_side[m] = side[i]

    def _propose(self, which: IntArray) -> FloatArray:
        low, high, g_low, g_high = self.low[which], self.high[which], self.g_low[which], self.g_high[which]
        stride = self.stride[which]
        with np.errstate(all="ignore"):
            upward = low + np.clip(np.where(np.isfinite(g_low), 0.5 * g_low, 0.0), stride, 50.0)
            downward = high + np.clip(0.5 * g_high, -50.0, np.maximum(-stride, -50.0))
            share = g_low / (g_low - g_high)
            share = np.where(np.isfinite(share), np.clip(share, 0.02, 0.98), 0.5)
            between = low + share * (high - low)
        proposal = np.where(np.isinf(high), upward, np.where(np.isinf(low), downward, between))
        return np.clip(proposal, -_LOG_ETA_LIMIT, _LOG_ETA_LIMIT)

    def _retire_inactive(self, which: IntArray) -> IntArray:
        matters: BoolArray = np.any(self.problem.action_matters(), -1)
        retired = which[~matters[which]]
        self.active[retired], self.converged[retired] = False, True
        self.K[retired], self.k[retired], self.kl[retired] = 0.0, 0.0, 0.0
        self.S[retired] = np.eye(self.S.shape[-1])
        return which[matters[which]]

    def _settle(self, which: IntArray) -> None:
        """Return the feasible end of the bracket where the tolerance could not be met."""
        if not len(which):
            return
        for m in which:
            if not np.isfinite(self.high[m]):
                step = max(int(self.failed_at[m]), 0)
                if self.failed_at[m] < 0 and self.n_passes >= self.max_passes:
                    raise KLConstraintError(
                        f"{self.n_passes} passes found no dual variable that keeps condition {m} within its bound: raise "
                        "max_passes, or begin with a larger eta",
                        int(m),
                        step,
                    )
                raise KLConstraintError(
                    f"no dual variable up to {np.exp(self.log_eta[m]):.1e} times the cost gives a finite solution in "
                    f"condition {m} (failed at time step {step}): shorten the horizon, lower the discount or scale the cost",
                    int(m),
                    step,
                )
        self.log_eta[which] = self.high[which]
        self._evaluate(which)


def _start_per_step(
    problem: WhitenedProblem, bound: FloatArray, log_start: FloatArray | None, max_passes: int
) -> tuple[FloatArray, int, int]:
    """Dual variables that the caller gave where the problem is solvable at them, else those of the total bound.

    :return: eta ``[M, T]``, passes and recoveries that it took to find them
    """
    solvable, n_passes = np.zeros(len(bound), dtype=bool), 0
    if log_start is not None and log_start.shape == bound.shape:
        kl, failed = problem.run(np.exp(log_start))[3:]
        solvable, n_passes = (failed < 0) & np.all(np.isfinite(kl), -1), 1
        if solvable.all():
            return np.exp(log_start), n_passes, 0
    total = _DualSearch(problem, bound @ problem.discounts, log_start, max_passes).run()
    level = np.broadcast_to(total.eta[:, None], bound.shape)
    eta = level if log_start is None else np.where(solvable[:, None], np.exp(log_start), level)
    return eta, n_passes + total.n_passes, total.n_recoveries


def _check_finite(
    dynamics: LinearGaussianDynamics, cost: QuadraticCost, reference: LinearGaussianController, initial: GaussianState
) -> None:
    horizon = dynamics.F.shape[-3]
    for owner in (dynamics, cost, reference, initial):
        for name, array in vars(owner).items():
            if np.all(np.isfinite(array)):
                continue
            timed = owner is not initial
            n_trailing = array.ndim - len(dynamics.F.shape[:-3]) - (1 if timed else 0)
            bad = ~np.isfinite(array).all(tuple(range(array.ndim - n_trailing, array.ndim)))
            condition, step = divmod(int(np.flatnonzero(bad.ravel())[0]), horizon if timed else 1)
            raise KLConstraintError(
                f"{type(owner).__name__}.{name} is not finite in condition {condition} at time step {step}: check the "
                "observations and rewards that it was fitted to",
                condition,
                step,
            )


def _check_positive(name: str, value: FloatArray | float) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    if not (np.all(array > 0) and np.all(np.isfinite(array))):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return array


def _check_positive_definite(controller: LinearGaussianController, name: str, advice: str) -> None:
    try:
        np.linalg.cholesky(controller.cov)
    except np.linalg.LinAlgError:
        smallest = np.linalg.eigvalsh(controller.cov)[..., 0]
        condition, step = divmod(int(np.argmin(smallest.ravel())), smallest.shape[-1])
        raise KLConstraintError(
            f"the {name}'s covariance is not positive definite in condition {condition} at time step {step}: {advice}",
            condition,
            step,
        ) from None
