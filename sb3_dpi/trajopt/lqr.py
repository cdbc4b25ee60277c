"""Linear-quadratic regulation with maximum entropy, and what a controller does under it.

Problem: dynamics x_{t+1} ~ N(F_t z_t + f_t, cov_t), cost l_t(z) = 1/2 z'C_t z + c_t'z + const_t with z = [x; u], discount
gamma and temperature tau. The controller that minimises sum_t gamma^t (E[l_t] - tau H(p(u_t|x_t))) is linear-Gaussian,

    Q_t = C_t + gamma F_t' V_{t+1} F_t,   q_t = c_t + gamma F_t' (V_{t+1} f_t + v_{t+1}),
    K_t = -Quu^-1 Qux,   k_t = -Quu^-1 qu,   cov_t = tau Quu^-1,
    V_t = Qxx + Qxu K_t,   v_t = qx + Qxu k_t,

with covariance Quu^-1 at tau = 1 (MDGPS, appendix B.1).

Shapes (``...`` are conditions): F ``[..., T, dx, dx+du]``, f ``[..., T, dx]``, C ``[..., T, dx+du, dx+du]``,
c ``[..., T, dx+du]``, K ``[..., T, du, dx]``, k ``[..., T, du]``, marginals ``[..., T, dx+du]``.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sb3_dpi.trajopt.types import (
    BoolArray,
    FloatArray,
    GaussianMarginals,
    GaussianState,
    LinearGaussianController,
    LinearGaussianDynamics,
    QuadraticCost,
    QuadraticValue,
)


class NotPositiveDefiniteError(ValueError):
    """The cost-to-go is not convex in the action, so that no minimiser exists.

    :param message: what failed and what to do
    :param condition: index of the condition (flattened batch index)
    :param time_step: time step ``t`` of the failure
    """

    def __init__(self, message: str, condition: int, time_step: int) -> None:
        super().__init__(message)
        self.condition = condition
        self.time_step = time_step


@dataclass(frozen=True)
class LQRSolution:
    """Optimal controller, its action value Q_t(z) and its state value V_t(x)."""

    controller: LinearGaussianController
    """the minimiser"""
    action_value: QuadraticCost
    """``Q_t(z)``, the cost-to-go of an action at t followed by the controller"""
    value: QuadraticValue
    """``V_t(x)``, the cost-to-go of the controller"""


def symmetrize(matrix: FloatArray) -> FloatArray:
    """Return the symmetric part of each matrix.

    :param matrix: ``[..., n, n]``
    :return: ``[..., n, n]``
    """
    return 0.5 * (matrix + np.swapaxes(matrix, -1, -2))


def matvec(matrix: FloatArray, vector: FloatArray) -> FloatArray:
    """Multiply a batch of matrices by a batch of vectors.

    :param matrix: ``[..., n, m]``
    :param vector: ``[..., m]``
    :return: ``[..., n]``
    """
    return np.squeeze(matrix @ vector[..., None], -1)


def lqr_backward(
    dynamics: LinearGaussianDynamics, cost: QuadraticCost, discount: float = 1.0, temperature: float = 1.0
) -> LQRSolution:
    """Solve the maximum-entropy LQR problem by the Riccati recursion.

    The values carry the noise of the dynamics and of the controller in their constants, but not the entropy bonus:
    they are expected costs, as the step rules of guided policy search need them.

    :param dynamics: ``[..., T]`` time steps
    :param cost: of the same batch and time axes
    :param discount: gamma, from 0 to 1
    :param temperature: tau, the weight of the entropy; scales the controller's covariance
    :return: controller, action value and state value
    :raises NotPositiveDefiniteError: if Quu is not positive definite, naming condition and time step
    """
    dx = dynamics.F.shape[-2]
    batch, horizon = dynamics.F.shape[:-3], dynamics.F.shape[-3]
    du = dynamics.F.shape[-1] - dx
    K, k = np.empty((*batch, horizon, du, dx)), np.empty((*batch, horizon, du))
    cov = np.empty((*batch, horizon, du, du))
    Q, q, q0 = np.empty_like(cost.C), np.empty_like(cost.c), np.empty_like(cost.const)
    V, v, v0 = np.empty((*batch, horizon, dx, dx)), np.empty((*batch, horizon, dx)), np.empty((*batch, horizon))
    next_V, next_v, next_v0 = np.zeros((*batch, dx, dx)), np.zeros((*batch, dx)), np.zeros(batch)
    for t in reversed(range(horizon)):
        now = add_next_value(_at(cost, t), _at(dynamics, t), QuadraticValue(next_V, next_v, next_v0), discount)
        Q[..., t, :, :], q[..., t, :], q0[..., t] = now.C, now.c, now.const
        Qxx, Qxu, Quu = Q[..., t, :dx, :dx], Q[..., t, :dx, dx:], Q[..., t, dx:, dx:]
        precision = _inverse_pd(Quu, t)
        cov[..., t, :, :] = temperature * precision
        K[..., t, :, :] = -precision @ np.swapaxes(Qxu, -1, -2)
        k[..., t, :] = -matvec(precision, q[..., t, dx:])
        next_V = V[..., t, :, :] = symmetrize(Qxx + Qxu @ K[..., t, :, :])
        next_v = v[..., t, :] = q[..., t, :dx] + matvec(Qxu, k[..., t, :])
        next_v0 = v0[..., t] = q0[..., t] + 0.5 * np.sum(q[..., t, dx:] * k[..., t, :], -1) + 0.5 * temperature * du
    return LQRSolution(LinearGaussianController(K, k, cov), QuadraticCost(Q, q, q0), QuadraticValue(V, v, v0))


def add_next_value(
    cost: QuadraticCost, dynamics: LinearGaussianDynamics, value: QuadraticValue, weight: FloatArray | float
) -> QuadraticCost:
    """Add what a state value says of the next state: l(z) + weight E[V(x')], x' ~ N(F z + f, cov).

    With V a learned value, weight gamma (1 - lambda) and discount gamma lambda, LQR plans over windows of all lengths at
    once, that of k steps with weight (1 - lambda) lambda^(k-1), each of them closed by the learned value.

    :param cost: ``[...]``, of any leading axes
    :param dynamics: of the same axes
    :param value: of the next state, same axes
    :param weight: number or ``[...]``
    :return: cost of the same axes
    """
    f = dynamics.f
    constant = value.const + 0.5 * np.sum(f * matvec(value.V, f), -1) + np.sum(value.v * f, -1)
    constant = constant + 0.5 * np.sum(value.V * dynamics.cov, (-1, -2))
    Q, q = action_value(cost.C, cost.c, dynamics.F, f, value.V, value.v, weight)
    return QuadraticCost(Q, q, cost.const + weight * constant)


def action_value(
    C: FloatArray,
    c: FloatArray,
    F: FloatArray,
    f: FloatArray,
    V: FloatArray,
    v: FloatArray,
    weight: FloatArray | float,
) -> tuple[FloatArray, FloatArray]:
    """One backward step of the Riccati recursion: l(z) + weight V(F z + f), up to what does not depend on z.

    :param C: cost matrix, ``[..., dz, dz]``
    :param c: cost vector, ``[..., dz]``
    :param F: dynamics matrix, ``[..., dx, dz]``
    :param f: dynamics offset, ``[..., dx]``
    :param V: value of the next state, ``[..., dx, dx]``
    :param v: likewise, ``[..., dx]``
    :param weight: number or ``[...]``
    :return: Q ``[..., dz, dz]`` and q ``[..., dz]``
    """
    Ft, weight = np.swapaxes(F, -1, -2), np.asarray(weight, dtype=np.float64)
    Q = symmetrize(C + weight[..., None, None] * (Ft @ V @ F))
    return Q, c + weight[..., None] * matvec(Ft, matvec(V, f) + v)


def _at(part: LinearGaussianDynamics | QuadraticCost, t: int) -> Any:
    """The time step t of dynamics or a cost, whose time axis is the first of their own axes."""
    axis = part.f.ndim - 2 if isinstance(part, LinearGaussianDynamics) else part.c.ndim - 2
    return type(part)(*(np.take(getattr(part, field.name), t, axis) for field in fields(part)))


def evaluate_controller(
    controller: LinearGaussianController, dynamics: LinearGaussianDynamics, cost: QuadraticCost, discount: float = 1.0
) -> tuple[QuadraticCost, QuadraticValue]:
    """Evaluate any linear-Gaussian controller: the cost-to-go of its states, and of an action followed by it.

    :param controller: ``[..., T]`` time steps
    :param dynamics: of the same batch and time axes
    :param cost: of the same batch and time axes, definite or not
    :param discount: gamma, from 0 to 1
    :return: Q_t(z) and V_t(x) = E[Q_t(x, u)] over the controller's actions; the disadvantage of an action is Q_t - V_t
    """
    dx = dynamics.F.shape[-2]
    batch, horizon = dynamics.F.shape[:-3], dynamics.F.shape[-3]
    Q, q, q0 = np.empty_like(cost.C), np.empty_like(cost.c), np.empty_like(cost.const)
    V, v, v0 = np.empty((*batch, horizon, dx, dx)), np.empty((*batch, horizon, dx)), np.empty((*batch, horizon))
    next_V, next_v, next_v0 = np.zeros((*batch, dx, dx)), np.zeros((*batch, dx)), np.zeros(batch)
    for t in reversed(range(horizon)):
        now = add_next_value(_at(cost, t), _at(dynamics, t), QuadraticValue(next_V, next_v, next_v0), discount)
        Q_t, q_t, q0_t = now.C, now.c, now.const
        Q[..., t, :, :], q[..., t, :], q0[..., t] = Q_t, q_t, q0_t
        K, k = controller.K[..., t, :, :], controller.k[..., t, :]
        Kt = np.swapaxes(K, -1, -2)
        Qxu, Quu, qu = Q_t[..., :dx, dx:], Q_t[..., dx:, dx:], q_t[..., dx:]
        mixed = (Qxu + Kt @ Quu) @ K
        next_V = V[..., t, :, :] = symmetrize(Q_t[..., :dx, :dx] + mixed + Kt @ np.swapaxes(Qxu, -1, -2))
        next_v = v[..., t, :] = q_t[..., :dx] + matvec(Kt, qu) + matvec(Qxu + Kt @ Quu, k)
        noise = np.sum(Quu * controller.cov[..., t, :, :], (-1, -2))
        next_v0 = v0[..., t] = q0_t + np.sum(qu * k, -1) + 0.5 * (np.sum(k * matvec(Quu, k), -1) + noise)
    return QuadraticCost(Q, q, q0), QuadraticValue(V, v, v0)


def _inverse_pd(matrix: FloatArray, time_step: int) -> FloatArray:
    finite: BoolArray = np.all(np.isfinite(matrix), (-1, -2))
    eigenvalues = np.linalg.eigvalsh(np.where(np.expand_dims(finite, (-1, -2)), matrix, 0.0))[..., 0]
    if not np.all(eigenvalues > 0):
        condition = int(np.flatnonzero(~(np.atleast_1d(eigenvalues) > 0).ravel())[0])
        raise NotPositiveDefiniteError(
            f"Quu is not positive definite in condition {condition} at time step {time_step}: project the cost to "
            "positive semi-definite, add a cost of actions, or constrain the step (solve_kl_constrained)",
            condition,
            time_step,
        )
    return symmetrize(np.asarray(np.linalg.inv(matrix), dtype=np.float64))


def forward_marginals(
    controller: LinearGaussianController, dynamics: LinearGaussianDynamics, initial: GaussianState
) -> GaussianMarginals:
    """Propagate the state-action marginals forward in time (MDGPS, appendix B.3).

    :param controller: ``[..., T]`` time steps
    :param dynamics: of the same batch and time axes
    :param initial: distribution of the first state
    :return: mean and covariance of z_t = [x_t; u_t]
    """
    dx, du = dynamics.F.shape[-2], controller.k.shape[-1]
    batch, horizon = dynamics.F.shape[:-3], dynamics.F.shape[-3]
    mean, cov = np.empty((*batch, horizon, dx + du)), np.empty((*batch, horizon, dx + du, dx + du))
    mu, sigma = initial.mean, initial.cov
    for t in range(horizon):
        K = controller.K[..., t, :, :]
        sigma_K = sigma @ np.swapaxes(K, -1, -2)
        mean[..., t, :dx], mean[..., t, dx:] = mu, matvec(K, mu) + controller.k[..., t, :]
        cov[..., t, :dx, :dx], cov[..., t, :dx, dx:] = sigma, sigma_K
        cov[..., t, dx:, :dx] = np.swapaxes(sigma_K, -1, -2)
        cov[..., t, dx:, dx:] = symmetrize(K @ sigma_K + controller.cov[..., t, :, :])
        F = dynamics.F[..., t, :, :]
        mu = matvec(F, mean[..., t, :]) + dynamics.f[..., t, :]
        # without symmetrisation rounding errors grow geometrically over long horizons
        sigma = symmetrize(F @ cov[..., t, :, :] @ np.swapaxes(F, -1, -2) + dynamics.cov[..., t, :, :])
    return GaussianMarginals(mean, cov)


def expected_cost(cost: QuadraticCost, marginals: GaussianMarginals) -> FloatArray:
    """Expected cost of each time step under Gaussian marginals.

    :param cost: ``[..., T]`` time steps
    :param marginals: of the same batch and time axes
    :return: ``[..., T]``, undiscounted
    """
    mean = marginals.mean
    quadratic = np.sum(mean * matvec(cost.C, mean), -1) + np.sum(cost.C * marginals.cov, (-1, -2))
    expected: FloatArray = 0.5 * quadratic + np.sum(cost.c * mean, -1) + cost.const
    return expected


def controller_kl(
    controller: LinearGaussianController, reference: LinearGaussianController, marginals: GaussianMarginals
) -> FloatArray:
    """KL(controller || reference) of each time step, in expectation over the states of ``marginals``.

    Summed over time it is the KL divergence of the trajectory distributions if the marginals are those of
    ``controller`` (MDGPS, appendix A).

    :param controller: ``[..., T]`` time steps
    :param reference: of the same batch and time axes
    :param marginals: of the same batch and time axes
    :return: ``[..., T]``, nats
    """
    dx, du = controller.K.shape[-1], controller.k.shape[-1]
    mu, sigma = marginals.mean[..., :dx], marginals.cov[..., :dx, :dx]
    lower = np.linalg.cholesky(reference.cov)
    # in coordinates that whiten the reference, no large terms cancel
    dK = np.linalg.solve(lower, controller.K - reference.K)
    dk = np.linalg.solve(lower, (matvec(controller.K - reference.K, mu) + controller.k - reference.k)[..., None])[..., 0]
    root = np.linalg.solve(lower, np.linalg.cholesky(controller.cov))
    log_det = 2.0 * np.sum(np.log(np.abs(np.diagonal(root, axis1=-2, axis2=-1))), -1)
    spread = np.sum((dK @ sigma) * dK, (-1, -2))
    kl: FloatArray = 0.5 * (np.sum(root**2, (-1, -2)) - du - log_det + spread + np.sum(dk**2, -1))
    return kl
