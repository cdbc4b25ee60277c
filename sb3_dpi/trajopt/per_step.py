"""A KL bound on every time step: the dual variables eta_t of a whitened problem.

Problem: as in ``kl_lqr`` with one bound for each time step, E_p[KL(p(w_t|x_t) || N(0, I))] <= epsilon_t. Given the state
marginals and the value V_{t+1}, the KL of step t is an explicit function of its own eta_t: with Qww = U diag(lambda) U' and
m_i = E[(u_i' (Qwx x + qw))^2],

    KL_t(eta) = 1/2 sum_i (s_i - 1 - log s_i + m_i / (lambda_i + eta)^2),   s_i = eta / (eta + lambda_i),

which falls monotonically on (max(0, -min lambda), inf). A sweep backward in time solves these scalar equations under the
marginals of the last controller; forward marginals and sweeps alternate, damped, until all hold at once.

Shapes: ``[M, T]`` for eta, bound, kl; K ``[M, T, du, dx]``, k ``[M, T, du]``, S ``[M, T, du, du]``.
"""

import numpy as np

from sb3_dpi.trajopt.kernels import PassResult
from sb3_dpi.trajopt.lqr import matvec, symmetrize
from sb3_dpi.trajopt.types import BoolArray, FloatArray, GaussianMarginals, IntArray
from sb3_dpi.trajopt.whitened import WhitenedProblem, WhitenedSolution

_PATIENCE = 30
"""passes without progress after which a condition is given up"""


def search_per_step(
    problem: WhitenedProblem, bound: FloatArray, eta: FloatArray, tolerance: float, max_passes: int
) -> WhitenedSolution:
    """Find the dual variables of all time steps.

    :param problem: in whitened coordinates
    :param bound: epsilon_t, ``[M, T]``
    :param eta: dual variables at which the problem is solvable, ``[M, T]``
    :param tolerance: ends with every KL_t in [1 - tolerance, 1] epsilon_t
    :param max_passes: most backward-forward passes
    :return: the solution; where it did not converge all bounds still hold
    """
    log_eta = np.log(eta)
    damping = np.ones((len(eta), 1))
    K, k, S, kl, _ = problem.run(np.exp(log_eta))
    active = problem.action_matters(K, k)
    error, best_log_eta = _error(kl, bound, active, tolerance), log_eta.copy()
    best_error = error.copy()
    n_passes, n_recoveries = 1, 0
    last_better = np.ones(len(eta), dtype=int)
    pending: IntArray = np.flatnonzero(best_error > 0.5 * tolerance)
    while n_passes < max_passes and len(pending):
        part, old = problem.select(pending), log_eta[pending]
        marginals = part.marginals(K[pending], k[pending], S[pending])
        target = _sweep(part, bound[pending] * (1.0 - 0.5 * tolerance), marginals, active[pending], old)
        proposal = old + damping[pending] * (target - old)
        new_K, new_k, new_S, new_kl, failed = part.run(np.exp(proposal))
        n_passes += 1
        n_recoveries += int(np.sum(failed >= 0))
        valid = (failed < 0) & np.isfinite(new_kl).all(-1)
        new_error = np.where(valid, _error(new_kl, bound[pending], active[pending], tolerance), np.inf)
        # a sweep that made things worse has overshot: the marginals moved too far for its equations to hold
        accepted = valid & (new_error < 4.0 * best_error[pending])
        faster, slower = np.minimum(1.0, 1.3 * damping[pending]), np.maximum(0.02, 0.5 * damping[pending])
        damping[pending] = np.where((new_error < error[pending])[:, None], faster, slower)
        moved = pending[accepted]
        log_eta[moved], error[moved] = proposal[accepted], new_error[accepted]
        K[moved], k[moved], S[moved] = new_K[accepted], new_k[accepted], new_S[accepted]
        better = new_error < best_error[pending]
        best_log_eta[pending[better]], best_error[pending[better]] = proposal[better], new_error[better]
        last_better[pending[better]] = n_passes
        pending = pending[(best_error[pending] > 0.5 * tolerance) & (n_passes - last_better[pending] < _PATIENCE)]
    best_log_eta, (K, k, S, kl, _), extra = _enforce(problem, bound, best_log_eta)
    converged = _error(kl, bound, active, tolerance) <= 0.5 * tolerance
    return WhitenedSolution(K, k, S, kl, np.exp(best_log_eta), active, converged, n_passes + extra, n_recoveries)


def _error(kl: FloatArray, bound: FloatArray, active: BoolArray, tolerance: float) -> FloatArray:
    """Largest distance of KL_t / epsilon_t from the middle of its interval, ``[M]``."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(kl / bound - (1.0 - 0.5 * tolerance))
    largest: FloatArray = np.max(np.where(active, np.where(np.isfinite(distance), distance, np.inf), 0.0), -1)
    return largest


def _sweep(
    problem: WhitenedProblem, target: FloatArray, marginals: GaussianMarginals, active: BoolArray, log_eta: FloatArray
) -> FloatArray:
    """Solve every step's scalar equation backward in time; returns log eta, ``[M, T]``."""
    M, T, dx, _ = problem.F.shape
    du = problem.lower.shape[-1]
    result = log_eta.copy()
    V, v = np.zeros((M, dx, dx)), np.zeros((M, dx))
    for t in reversed(range(T)):
        Q, q = problem.action_value(t, V, v)
        curvature, basis = np.linalg.eigh(Q[:, dx:, dx:])
        basis_t = np.swapaxes(basis, -1, -2)
        slope = basis_t @ Q[:, dx:, :dx]
        mean, cov = marginals.mean[:, t, :dx], marginals.cov[:, t, :dx, :dx]
        offset = matvec(basis_t, q[:, dx:])
        moment = (matvec(slope, mean) + offset) ** 2 + np.sum((slope @ cov) * slope, -1)
        result[:, t] = np.where(active[:, t], _solve_scalar(curvature, moment, target[:, t]), log_eta[:, t])
        shifted = curvature + np.exp(result[:, t])[:, None]
        K = -(basis / shifted[:, None, :]) @ slope
        k = -matvec(basis, offset / shifted).reshape(M, du)
        V = symmetrize(Q[:, :dx, :dx] + Q[:, :dx, dx:] @ K)
        v = q[:, :dx] + matvec(Q[:, :dx, dx:], k)
    return result


def _solve_scalar(curvature: FloatArray, moment: FloatArray, target: FloatArray) -> FloatArray:
    """log eta with KL_t(eta) = target by bisection of log(eta - floor), ``[M]``."""
    floor = np.maximum(0.0, -curvature[:, 0])
    scale = np.maximum(np.abs(curvature).max(-1) + np.sqrt(moment.sum(-1)), 1e-280)
    low, high = np.log(scale) - 60.0, np.log(scale) + 40.0
    # to 1e-4 in log eta: far below the tolerance of the KL
    for _ in range(20):
        middle = 0.5 * (low + high)
        eta = (floor + np.exp(middle))[:, None]
        with np.errstate(all="ignore"):
            shrink = eta / (eta + curvature)
            kl = 0.5 * np.sum(shrink - 1.0 - np.log(shrink) + moment / (curvature + eta) ** 2, -1)
        too_large = ~(kl <= target)
        low, high = np.where(too_large, middle, low), np.where(too_large, high, middle)
    log_eta: FloatArray = np.log(floor + np.exp(high))
    return log_eta


def _enforce(problem: WhitenedProblem, bound: FloatArray, log_eta: FloatArray) -> tuple[FloatArray, PassResult, int]:
    """Grow all dual variables of a condition until no bound is exceeded."""
    growth, n_passes = 1e-3, 0
    while True:
        result = problem.run(np.exp(log_eta))
        kl, failed = result[3:]
        n_passes += 1
        exceeded = (failed >= 0) | ~np.all(kl <= bound, -1)
        if not np.any(exceeded) or growth > 1e3:
            return log_eta, result, n_passes
        log_eta = log_eta + np.where(exceeded, growth, 0.0)[:, None]
        growth *= 2.0
