"""Quadratic models of the observed cost.

Problem: from sampled z = [x; u] and costs l (minus the rewards) fit l(z) ~ 1/2 z'Cz + c'z + const by ridge regression,
pooled over conditions and time steps, in standardised coordinates. The fit is usually indefinite, and LQR under a trust region
behaves better on a convex one: C is projected to positive semi-definite, and re-anchored so that at each time step's
mean the gradient is still the fitted one,

    C+ = sum_i max(lambda_i, 0) v_i v_i',   c+_t = C zbar_t + c - C+ zbar_t.

A local fit adds, for every time step, the quadratic-free part that the pooled fit missed near the trajectory: gradient and
offset of the residual, shrunk to zero by a ridge.

Shapes: z ``[M, N, T, dz]``, costs and alive ``[M, N, T]``, result ``[M, T]``.
"""

import numpy as np

from sb3_dpi.trajopt.dynamics import Standardizer, moments
from sb3_dpi.trajopt.lqr import matvec, symmetrize
from sb3_dpi.trajopt.types import FloatArray, QuadraticCost
from sb3_dpi.trajopt.units import spread_or_one


def project_psd(matrix: FloatArray, floor: float = 0.0) -> FloatArray:
    """Nearest positive semi-definite matrix in the Frobenius norm.

    :param matrix: symmetric, ``[..., n, n]``
    :param floor: smallest eigenvalue of the result
    :return: ``[..., n, n]``
    """
    eigenvalues, basis = np.linalg.eigh(symmetrize(matrix))
    return symmetrize((basis * np.maximum(eigenvalues, floor)[..., None, :]) @ np.swapaxes(basis, -1, -2))


def anchor(C: FloatArray, c: FloatArray, const: FloatArray, C_new: FloatArray, mean: FloatArray) -> QuadraticCost:
    """Exchange the Hessian, keeping value and gradient at ``mean``.

    :param C: Hessian, ``[..., dz, dz]``
    :param c: linear term, ``[..., dz]``
    :param const: ``[...]``
    :param C_new: the Hessian to use instead, ``[..., dz, dz]``
    :param mean: where value and gradient are kept, ``[..., dz]``
    :return: the cost with Hessian ``C_new``
    """
    change = matvec(C - C_new, mean)
    shape = mean.shape
    return QuadraticCost(
        C=np.broadcast_to(C_new, (*shape, shape[-1])).copy(),
        c=np.broadcast_to(c + change, shape).copy(),
        const=np.broadcast_to(const - 0.5 * np.sum(mean * change, -1), shape[:-1]).copy(),
    )


def quadratic_features(z: FloatArray, full: bool) -> FloatArray:
    """Monomials up to second order.

    :param z: ``[n, dz]``
    :param full: with cross terms, or squares only
    :return: ``[n, 1 + dz + ...]``
    """
    by_variable = np.ascontiguousarray(z.T)
    if full:
        rows, columns = np.triu_indices(len(by_variable))
        second = by_variable[rows] * by_variable[columns]
    else:
        second = by_variable * by_variable
    # rows of samples next to each other in memory are faster to build and to multiply
    return np.concatenate([np.ones((1, len(z))), by_variable, second]).T


def fit_quadratic(z: FloatArray, costs: FloatArray, weights: FloatArray, ridge: float) -> tuple[FloatArray, FloatArray, float]:
    """Ridge regression of costs on a quadratic; cross terms are left out where there are too few samples for them.

    :param z: ``[n, dz]``, about unit variance
    :param costs: ``[n]``
    :param weights: ``[n]``
    :param ridge: penalty per sample on all coefficients but the constant; usual: 1e-6 to 1e-2
    :return: C ``[dz, dz]``, c ``[dz]``, const
    """
    dz = z.shape[1]
    full = (dz + 1) * (dz + 2) // 2 <= 0.5 * float(np.sum(weights > 0))
    root = np.sqrt(weights)
    features = quadratic_features(z, full) * root[:, None]
    gram = features.T @ features
    penalty = ridge * max(float(weights.sum()), 1.0) * np.eye(len(gram))
    penalty[0, 0] = 1e-12
    solution = np.asarray(np.linalg.solve(gram + penalty, features.T @ (root * costs)), dtype=np.float64)
    C = np.zeros((dz, dz))
    if full:
        C[np.triu_indices(dz)] = solution[1 + dz :]
        C = C + C.T
    else:
        C[np.diag_indices(dz)] = 2.0 * solution[1 + dz :]
    return C, solution[1 : 1 + dz], float(solution[0])


def fit_cost(
    z: FloatArray,
    costs: FloatArray,
    alive: FloatArray,
    ridge: float = 1e-4,
    local_window: int | None = None,
    local_ridge: float = 0.1,
) -> QuadraticCost:
    """Fit a convex quadratic cost for each condition and time step.

    :param z: states and actions, ``[M, N, T, dz]``
    :param costs: ``[M, N, T]``
    :param alive: weights, 0 for dead samples, ``[M, N, T]``
    :param ridge: of the pooled fit, relative to the spread of the costs
    :param local_window: half width in time steps of the local correction of gradient and offset; None fits the pooled
        model alone
    :param local_ridge: shrinks the local correction; pseudo-share of samples without one
    :return: positive semi-definite cost, ``[M, T]``
    """
    scale = Standardizer.fit(z, alive)
    points = scale.apply(z)
    level = float(np.average(costs, weights=alive))
    std = float(np.sqrt(np.average((costs - level) ** 2, weights=alive)))
    spread = float(spread_or_one(np.array([std]), np.array([level]))[0])
    standard_costs = (costs - level) / spread
    C, c, const = fit_quadratic(points.reshape(-1, z.shape[-1]), standard_costs.ravel(), alive.ravel(), ridge)
    mean = _means(points, alive)
    cost = anchor(C, c, np.asarray(const), project_psd(C), mean)
    if local_window is not None:
        residual = standard_costs - _evaluate(C, c, const, points)
        gradient, offset = _local_gradient(points, residual, alive, mean, local_window, local_ridge)
        cost = QuadraticCost(cost.C, cost.c + gradient, cost.const + offset - np.sum(gradient * mean, -1))
    return unstandardize(cost, scale, spread, level)


def _means(points: FloatArray, alive: FloatArray) -> FloatArray:
    """Mean of each condition and time step; where no sample is alive, that of all conditions."""
    sums = moments(points, alive)
    pooled = sums.total.sum(0) / np.maximum(sums.count.sum(0), 1e-12)[..., None]
    return np.where(sums.count[..., None] > 0, sums.total / np.maximum(sums.count, 1e-12)[..., None], pooled)


def _evaluate(C: FloatArray, c: FloatArray, const: float, z: FloatArray) -> FloatArray:
    cost: FloatArray = 0.5 * np.sum((z @ C) * z, -1) + z @ c + const
    return cost


def _local_gradient(
    points: FloatArray, residual: FloatArray, alive: FloatArray, mean: FloatArray, window: int, ridge: float
) -> tuple[FloatArray, FloatArray]:
    dz = points.shape[-1]
    stacked = np.concatenate([points - mean[:, None], residual[..., None]], -1)
    sums = moments(stacked, alive).windowed(window)
    count = np.maximum(sums.count, 1e-12)
    average = sums.total / count[..., None]
    cov = sums.outer / count[..., None, None] - average[..., :, None] * average[..., None, :]
    gradient = np.linalg.solve(cov[..., :dz, :dz] + ridge * np.eye(dz), cov[..., :dz, dz:])[..., 0]
    shrink = sums.count / (sums.count + dz)
    gradient = shrink[..., None] * gradient
    return gradient, average[..., dz] - np.sum(gradient * average[..., :dz], -1)


def unstandardize(cost: QuadraticCost, scale: Standardizer, spread: float, level: float) -> QuadraticCost:
    """Lead a cost of standardised points, in units of ``spread`` above ``level``, back to the caller's units.

    :param cost: of standardised points
    :param scale: the points' coordinates
    :param spread: unit of the cost
    :param level: zero of the cost
    :return: cost of the points themselves
    """
    C = spread * cost.C / (scale.std[:, None] * scale.std)
    slope = spread * cost.c / scale.std
    centre = np.broadcast_to(scale.mean, slope.shape)
    return QuadraticCost(
        C=C,
        c=slope - matvec(C, centre),
        const=level + spread * cost.const + 0.5 * np.sum(centre * matvec(C, centre), -1) - np.sum(slope * centre, -1),
    )
