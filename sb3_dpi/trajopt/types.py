"""The data of trajectory optimization: frozen dataclasses of numpy arrays.

Notation and shapes, the same in every module of ``trajopt``:

========  ====================================================================
``x``     state, ``[dx]``
``u``     action, ``[du]``
``z``     state and action stacked, ``[dx + du]``
``T``     number of time steps of the plan, ``t = 0 .. T-1``
``...``   leading batch axes: one problem per condition
========  ====================================================================

A cost is what is minimised; rewards only exist above this floor.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int_]


class NotFiniteReturnError(ValueError):
    """
    What is planned in earned something that is not finite.

    :param message: what and where in the plan
    :param index: which of the states that are planned for it began in; None where there is one
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class GaussianState:
    """Distribution of the first state, x_0 ~ N(mean, cov)."""

    mean: FloatArray
    """``[..., dx]``"""
    cov: FloatArray
    """``[..., dx, dx]``, positive semi-definite"""


@dataclass(frozen=True)
class LinearGaussianDynamics:
    """Time-varying dynamics, x_{t+1} ~ N(F_t [x_t; u_t] + f_t, cov_t)."""

    F: FloatArray
    """``[..., T, dx, dx + du]``"""
    f: FloatArray
    """``[..., T, dx]``"""
    cov: FloatArray
    """``[..., T, dx, dx]``, positive semi-definite"""


@dataclass(frozen=True)
class QuadraticCost:
    """Time-varying cost, l_t(z) = 1/2 z' C_t z + c_t' z + const_t."""

    C: FloatArray
    """``[..., T, dx + du, dx + du]``, symmetric"""
    c: FloatArray
    """``[..., T, dx + du]``"""
    const: FloatArray
    """``[..., T]``"""


@dataclass(frozen=True)
class LinearGaussianController:
    """Time-varying controller, u_t ~ N(K_t x_t + k_t, cov_t)."""

    K: FloatArray
    """``[..., T, du, dx]``"""
    k: FloatArray
    """``[..., T, du]``"""
    cov: FloatArray
    """``[..., T, du, du]``, positive definite"""


@dataclass(frozen=True)
class QuadraticValue:
    """Cost-to-go, V_t(x) = 1/2 x' V_t x + v_t' x + const_t."""

    V: FloatArray
    """``[..., T, dx, dx]``, symmetric"""
    v: FloatArray
    """``[..., T, dx]``"""
    const: FloatArray
    """``[..., T]``"""


@dataclass(frozen=True)
class GaussianMarginals:
    """State-action marginals of a controller under dynamics, z_t ~ N(mean_t, cov_t)."""

    mean: FloatArray
    """``[..., T, dx + du]``"""
    cov: FloatArray
    """``[..., T, dx + du, dx + du]``, positive semi-definite"""


@dataclass(frozen=True)
class NormalInverseWishart:
    """Conjugate prior of the mean and covariance of a Gaussian of ``D`` variables.

    It counts as ``mean_count`` pseudo-samples for the mean and ``cov_count`` for the covariance.
    """

    mean: FloatArray
    """``[..., D]``"""
    cov: FloatArray
    """``[..., D, D]``, the covariance that the prior expects"""
    mean_count: float
    """pseudo-samples behind ``mean``, at least 0"""
    cov_count: float
    """pseudo-samples behind ``cov``, at least 0"""
