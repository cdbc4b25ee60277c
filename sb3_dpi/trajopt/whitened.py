"""A KL-constrained LQR problem in the coordinates that whiten its reference controller.

With u = K^r x + k^r + L w and L L' = cov^r, that is z = [x; u] = G [x; w] + g, the problem keeps its form,

    C <- G' C G,   c <- G' (C g + c),   F <- F G,   f <- F g + f,

and the reference becomes w ~ N(0, I) in every state. Shapes: conditions flattened to ``[M, T, ...]``.
"""

from dataclasses import dataclass, replace

import numpy as np

from sb3_dpi.trajopt.kernels import PassResult, lqr_pass
from sb3_dpi.trajopt.lqr import action_value, forward_marginals, matvec, symmetrize
from sb3_dpi.trajopt.types import (
    BoolArray,
    FloatArray,
    GaussianMarginals,
    GaussianState,
    IntArray,
    LinearGaussianController,
    LinearGaussianDynamics,
    QuadraticCost,
)
from sb3_dpi.trajopt.whitening import whiten


@dataclass(frozen=True)
class WhitenedSolution:
    """Controller in whitened coordinates with its dual variables."""

    K: FloatArray
    """``[M, T, du, dx]``"""
    k: FloatArray
    """``[M, T, du]``"""
    S: FloatArray
    """``[M, T, du, du]``"""
    kl: FloatArray
    """``[M, T]``"""
    eta: FloatArray
    """``[M]``, or ``[M, T]`` where every time step has its own"""
    active: BoolArray
    """of the same shape"""
    converged: BoolArray
    """``[M]``"""
    n_passes: int
    """backward-forward passes"""
    n_recoveries: int
    """passes that were not positive definite"""


@dataclass(frozen=True)
class WhitenedProblem:
    """Dynamics and cost in terms of [x; w], with the Cholesky factor that leads back to actions."""

    F: FloatArray
    """``[M, T, dx, dx + du]``"""
    f: FloatArray
    """``[M, T, dx]``"""
    noise: FloatArray
    """``[M, T, dx, dx]``"""
    C: FloatArray
    """``[M, T, dx + du, dx + du]``"""
    c: FloatArray
    """``[M, T, dx + du]``"""
    mean0: FloatArray
    """``[M, dx]``"""
    cov0: FloatArray
    """``[M, dx, dx]``"""
    lower: FloatArray
    """``[M, T, du, du]``, L"""
    discount: float
    """gamma"""

    @classmethod
    def build(
        cls,
        dynamics: LinearGaussianDynamics,
        cost: QuadraticCost,
        reference: LinearGaussianController,
        initial: GaussianState,
        discount: float,
    ) -> "WhitenedProblem":
        """Change coordinates; batch axes are flattened.

        :param dynamics: ``[..., T]``
        :param cost: ``[..., T]``
        :param reference: ``[..., T]``
        :param initial: ``[...]``
        :param discount: gamma
        :return: the problem in whitened coordinates
        """

        def flat(array: FloatArray, ndim: int) -> FloatArray:
            return np.ascontiguousarray(array.reshape(-1, *array.shape[array.ndim - ndim :]), dtype=np.float64)

        lower = flat(np.asarray(np.linalg.cholesky(reference.cov), dtype=np.float64), 3)
        old = flat(dynamics.F, 3), flat(cost.C, 3), flat(cost.c, 2)
        F, offset, C, c = whiten(*old, flat(reference.K, 3), flat(reference.k, 2), lower)
        return cls(
            F=F,
            f=flat(dynamics.f, 2) + offset,
            noise=flat(dynamics.cov, 3),
            C=C,
            c=c,
            mean0=flat(initial.mean, 1),
            cov0=flat(initial.cov, 2),
            lower=lower,
            discount=discount,
        )

    def select(self, conditions: IntArray) -> "WhitenedProblem":
        """The problem of some conditions only.

        :param conditions: indices, each once and in order
        :return: their problem
        """
        if len(conditions) == self.n_conditions:
            return self
        arrays = {name: value[conditions] for name, value in vars(self).items() if name != "discount"}
        return WhitenedProblem(**arrays, discount=self.discount)

    def in_units_of(self, unit: FloatArray) -> "WhitenedProblem":
        """The problem with its cost in other units.

        :param unit: of each condition, ``[M]``
        :return: the same problem; its dual variables are in these units too
        """
        return replace(self, C=self.C / unit[:, None, None, None], c=self.c / unit[:, None, None])

    @property
    def discounts(self) -> FloatArray:
        """gamma^t, ``[T]``."""
        return np.asarray(self.discount ** np.arange(self.horizon), dtype=np.float64)

    @property
    def n_conditions(self) -> int:
        """Number of conditions M."""
        return len(self.F)

    @property
    def horizon(self) -> int:
        """Number of time steps T."""
        return int(self.F.shape[1])

    def run(self, eta: FloatArray, conditions: IntArray | None = None) -> PassResult:
        """One backward and forward pass.

        :param eta: dual variable of the selected conditions, ``[M']`` or ``[M', T]``
        :param conditions: indices of the conditions to run, each once and in order; None runs all
        :return: K, k, S, kl, failed as in ``kernels``
        """
        full_eta = np.ascontiguousarray(np.broadcast_to(eta if eta.ndim == 2 else eta[:, None], (len(eta), self.horizon)))
        part = self if conditions is None else self.select(conditions)
        return lqr_pass(part.F, part.f, part.noise, part.C, part.c, part.mean0, part.cov0, full_eta, self.discount)

    def scale(self) -> FloatArray:
        """Size of the cost of each condition, ``[M]``; one where there is none."""
        size = np.maximum(self.C.max((1, 2, 3)), -self.C.min((1, 2, 3))) + np.abs(self.c).max((1, 2))
        scale: FloatArray = np.where(size > np.finfo(np.float64).tiny * 1e20, size, 1.0)
        return scale

    def action_matters(self, K: FloatArray | None = None, k: FloatArray | None = None) -> BoolArray:
        """Whether the cost depends on the action at each time step, ``[M, T]``.

        Where the reference's own action value has neither slope nor curvature in the action at any time step, the
        reference is optimal at every dual variable. Later improvements may give an earlier action something to do, so
        that single time steps are to be judged by the value of a minimiser of the Lagrangian.

        :param K: gains of a minimiser of the Lagrangian, ``[M, T, du, dx]``; None for the reference
        :param k: its offsets, ``[M, T, du]``
        :return: true where it matters beyond rounding
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return self._action_matters(K, k)

    def _action_matters(self, K: FloatArray | None, k: FloatArray | None) -> BoolArray:
        V, v = np.zeros_like(self.cov0), np.zeros_like(self.mean0)
        dx = self.mean0.shape[-1]
        matters = np.zeros(self.F.shape[:2], dtype=bool)
        scale = self.scale()
        for t in reversed(range(self.horizon)):
            Q, q = self.action_value(t, V, v)
            size = np.abs(Q).max((1, 2)) + np.abs(q).max(1)
            sensitivity = np.abs(Q[:, dx:]).max((1, 2)) + np.abs(q[:, dx:]).max(1)
            matters[:, t] = ~(sensitivity <= 1e-13 * np.maximum(size, scale))
            V, v = Q[:, :dx, :dx], q[:, :dx]
            if K is not None and k is not None:
                V, v = symmetrize(V + Q[:, :dx, dx:] @ K[:, t]), v + matvec(Q[:, :dx, dx:], k[:, t])
        return matters

    def action_value(self, t: int, V: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """One backward step of the Riccati recursion.

        :param t: time step
        :param V: value at t + 1, ``[M, dx, dx]``
        :param v: ``[M, dx]``
        :return: Q ``[M, dz, dz]`` and q ``[M, dz]`` at t
        """
        return action_value(self.C[:, t], self.c[:, t], self.F[:, t], self.f[:, t], V, v, self.discount)

    def marginals(self, K: FloatArray, k: FloatArray, S: FloatArray) -> GaussianMarginals:
        """State-action marginals of a controller in whitened coordinates.

        :param K: ``[M, T, du, dx]``
        :param k: ``[M, T, du]``
        :param S: ``[M, T, du, du]``
        :return: marginals of [x; w]
        """
        dynamics = LinearGaussianDynamics(self.F, self.f, self.noise)
        return forward_marginals(LinearGaussianController(K, k, S), dynamics, GaussianState(self.mean0, self.cov0))

    def unwhiten(
        self, K: FloatArray, k: FloatArray, S: FloatArray, reference: LinearGaussianController
    ) -> LinearGaussianController:
        """Lead a controller back to the caller's coordinates and batch axes.

        :param K: ``[M, T, du, dx]``
        :param k: ``[M, T, du]``
        :param S: ``[M, T, du, du]``
        :param reference: the reference that the problem was built with
        :return: controller of actions u
        """
        return LinearGaussianController(
            K=reference.K + (self.lower @ K).reshape(reference.K.shape),
            k=reference.k + matvec(self.lower, k).reshape(reference.k.shape),
            cov=symmetrize(self.lower @ S @ np.swapaxes(self.lower, -1, -2)).reshape(reference.cov.shape),
        )
