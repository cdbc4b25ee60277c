"""A KL-constrained LQR problem in the coordinates that whiten its reference controller.

With u = K^r x + k^r + L w and L L' = cov^r, that is z = [x; u] = G [x; w] + g, the problem keeps its form,

    C <- G' C G,   c <- G' (C g + c),   F <- F G,   f <- F g + f,

and the reference becomes w ~ N(0, I) in every state. Shapes: conditions flattened to ``[M, T, ...]``.
"""

from dataclasses import dataclass

import numpy as np

from sb3_dpi.trajopt.kernels import PassResult, lqr_pass
from sb3_dpi.trajopt.lqr import forward_marginals, matvec, symmetrize
from sb3_dpi.trajopt.types import (
    BoolArray,
    FloatArray,
    GaussianMarginals,
    GaussianState,
    LinearGaussianController,
    LinearGaussianDynamics,
    QuadraticCost,
)


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
        horizon, dx, dz = dynamics.F.shape[-3:]
        lower = np.linalg.cholesky(reference.cov)
        G = np.zeros((*reference.K.shape[:-2], dz, dz))
        G[..., :dx, :dx] = np.eye(dx)
        G[..., dx:, :dx], G[..., dx:, dx:] = reference.K, lower
        g = np.zeros(G.shape[:-1])
        g[..., dx:] = reference.k
        Gt = np.swapaxes(G, -1, -2)

        def flat(array: FloatArray, ndim: int) -> FloatArray:
            return np.ascontiguousarray(array.reshape(-1, *array.shape[array.ndim - ndim :]), dtype=np.float64)

        return cls(
            F=flat(dynamics.F @ G, 3),
            f=flat(dynamics.f + matvec(dynamics.F, g), 2),
            noise=flat(dynamics.cov, 3),
            C=flat(symmetrize(Gt @ cost.C @ G), 3),
            c=flat(matvec(Gt, matvec(cost.C, g) + cost.c), 2),
            mean0=flat(initial.mean, 1),
            cov0=flat(initial.cov, 2),
            lower=flat(lower, 3),
            discount=discount,
        )

    @property
    def n_conditions(self) -> int:
        """Number of conditions M."""
        return len(self.F)

    @property
    def horizon(self) -> int:
        """Number of time steps T."""
        return self.F.shape[1]

    def run(self, eta: FloatArray, conditions: FloatArray | slice = slice(None)) -> PassResult:
        """One backward and forward pass.

        :param eta: dual variable of the selected conditions, ``[M']`` or ``[M', T]``
        :param conditions: indices of the conditions to run
        :return: K, k, S, kl, failed as in ``kernels``
        """
        sub = conditions
        shape = self.F[sub].shape[:2]
        full_eta = np.ascontiguousarray(np.broadcast_to(eta if eta.ndim == 2 else eta[:, None], shape))
        arrays = (self.F[sub], self.f[sub], self.noise[sub], self.C[sub], self.c[sub], self.mean0[sub], self.cov0[sub])
        return lqr_pass(*arrays, full_eta, self.discount)

    def scale(self) -> FloatArray:
        """Size of the cost of each condition, ``[M]``, at least the smallest normal number."""
        size = np.abs(self.C).max((1, 2, 3)) + np.abs(self.c).max((1, 2))
        return np.maximum(size, np.finfo(np.float64).tiny * 1e20)

    def action_matters(self) -> BoolArray:
        """Whether the cost depends on the action at each time step, ``[M, T]``.

        Where the reference's own action value has neither slope nor curvature in the action at any time step, the
        reference is optimal at every dual variable.

        :return: true where it matters beyond rounding
        """
        V, v = np.zeros_like(self.cov0), np.zeros_like(self.mean0)
        dx = self.mean0.shape[-1]
        matters = np.zeros(self.F.shape[:2], dtype=bool)
        for t in reversed(range(self.horizon)):
            F, Ft = self.F[:, t], np.swapaxes(self.F[:, t], -1, -2)
            Q = symmetrize(self.C[:, t] + self.discount * Ft @ V @ F)
            q = self.c[:, t] + self.discount * matvec(Ft, matvec(V, self.f[:, t]) + v)
            size = np.abs(Q).max((1, 2)) + np.abs(q).max(1)
            sensitivity = np.abs(Q[:, dx:]).max((1, 2)) + np.abs(q[:, dx:]).max(1)
            matters[:, t] = sensitivity > 1e-13 * np.maximum(size, self.scale())
            V, v = Q[:, :dx, :dx], q[:, :dx]
        return matters

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
