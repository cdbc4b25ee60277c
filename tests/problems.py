"""Random problems of trajectory optimization, and what one big Gaussian over the whole horizon says about them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_dpi.trajopt.types import GaussianState, LinearGaussianController, LinearGaussianDynamics, QuadraticCost


@dataclass(frozen=True)
class Problem:
    dynamics: LinearGaussianDynamics
    cost: QuadraticCost
    reference: LinearGaussianController
    initial: GaussianState

    @property
    def parts(self) -> tuple[LinearGaussianDynamics, QuadraticCost, LinearGaussianController, GaussianState]:
        return self.dynamics, self.cost, self.reference, self.initial


def random_pd(rng: np.random.Generator, shape: tuple[int, ...], dim: int) -> np.ndarray:
    root = rng.normal(size=(*shape, dim, dim)) / np.sqrt(dim)
    return root @ np.swapaxes(root, -1, -2) + 0.2 * np.eye(dim)


def well_conditioned(
    rng: np.random.Generator, batch: tuple[int, ...] = (), horizon: int = 7, dx: int = 4, du: int = 2
) -> Problem:
    """Convex cost, noise in every direction, stable dynamics."""
    shape = (*batch, horizon)
    F = np.concatenate([0.5 * rng.normal(size=(*shape, dx, dx)), rng.normal(size=(*shape, dx, du))], -1)
    dynamics = LinearGaussianDynamics(F, 0.3 * rng.normal(size=(*shape, dx)), 0.1 * random_pd(rng, shape, dx))
    cost = QuadraticCost(random_pd(rng, shape, dx + du), rng.normal(size=(*shape, dx + du)), rng.normal(size=shape))
    gains = 0.3 * rng.normal(size=(*shape, du, dx))
    reference = LinearGaussianController(gains, 0.3 * rng.normal(size=(*shape, du)), random_pd(rng, shape, du))
    return Problem(dynamics, cost, reference, GaussianState(rng.normal(size=(*batch, dx)), random_pd(rng, batch, dx)))


def hard(rng: np.random.Generator, max_dx: int = 30, max_horizon: int = 200) -> tuple[Problem, float]:
    """Indefinite cost, ill-conditioned inputs, dynamics up to unstable; and a bound on the KL, one condition."""
    dx, horizon = int(rng.integers(1, max_dx + 1)), int(rng.integers(2, max_horizon + 1))
    du = int(rng.integers(1, min(dx, 8) + 1))
    A = rng.normal(size=(dx, dx)) + rng.choice([0.0, 0.1]) * rng.normal(size=(horizon, dx, dx))
    A *= rng.uniform(0.5, 1.05) / np.abs(np.linalg.eigvals(A)).max(-1)[:, None, None]
    left, right = np.linalg.qr(rng.normal(size=(dx, dx)))[0], np.linalg.qr(rng.normal(size=(du, du)))[0]
    B = left[:, :du] * np.logspace(0, -rng.uniform(0, 8), du) @ right.T
    root = 0.1 * rng.normal(size=(dx, dx))
    dynamics = LinearGaussianDynamics(
        np.concatenate([A, np.broadcast_to(B, (horizon, dx, du))], -1)[None],
        0.1 * rng.normal(size=(1, horizon, dx)),
        np.broadcast_to(root @ root.T, (1, horizon, dx, dx)),
    )
    basis = np.linalg.qr(rng.normal(size=(horizon, dx + du, dx + du)))[0]
    C = (basis * rng.uniform(-1, 1, (horizon, 1, dx + du))) @ np.swapaxes(basis, -1, -2)
    cost = QuadraticCost(C[None], rng.normal(size=(1, horizon, dx + du)), np.zeros((1, horizon)))
    gains = 0.05 * rng.normal(size=(1, horizon, du, dx))
    reference = LinearGaussianController(gains, rng.normal(size=(1, horizon, du)), random_pd(rng, (1, horizon), du))
    initial = GaussianState(rng.normal(size=(1, dx)), rng.uniform(0, 1) * np.eye(dx)[None])
    return Problem(dynamics, cost, reference, initial), float(np.exp(rng.uniform(np.log(0.01), np.log(10))))


def pick(data: Any, *index: Any) -> Any:
    """Index every array of a dataclass."""
    return type(data)(**{name: array[index] for name, array in vars(data).items()})


def joint_gaussian(
    controller: LinearGaussianController, dynamics: LinearGaussianDynamics, initial: GaussianState
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of ``[x_0, u_0, x_1, u_1, ...]`` of one condition, from one linear system of equations."""
    horizon, dx, dz = dynamics.F.shape
    size = horizon * dz
    system, offset, noise = np.eye(size), np.zeros(size), np.zeros((size, size))
    offset[:dx], noise[:dx, :dx] = initial.mean, initial.cov
    for t in range(horizon):
        x, u, after = slice(t * dz, t * dz + dx), slice(t * dz + dx, (t + 1) * dz), slice((t + 1) * dz, (t + 1) * dz + dx)
        system[u, x], offset[u], noise[u, u] = -controller.K[t], controller.k[t], controller.cov[t]
        if t + 1 < horizon:
            system[after, x.start : u.stop], offset[after], noise[after, after] = (
                -dynamics.F[t],
                dynamics.f[t],
                dynamics.cov[t],
            )
    inverse = np.linalg.inv(system)
    return inverse @ offset, inverse @ noise @ inverse.T


def stacked_cost(cost: QuadraticCost, discount: float = 1.0) -> tuple[np.ndarray, np.ndarray, float]:
    """The discounted cost of one condition as one quadratic of ``[x_0, u_0, x_1, u_1, ...]``."""
    horizon, dz = cost.c.shape
    factors = discount ** np.arange(horizon)
    C = np.zeros((horizon * dz, horizon * dz))
    for t in range(horizon):
        C[t * dz : (t + 1) * dz, t * dz : (t + 1) * dz] = factors[t] * cost.C[t]
    return C, (factors[:, None] * cost.c).ravel(), float(factors @ cost.const)


def dense_expected_cost(
    controller: LinearGaussianController,
    dynamics: LinearGaussianDynamics,
    cost: QuadraticCost,
    initial: GaussianState,
    discount: float = 1.0,
) -> float:
    mean, cov = joint_gaussian(controller, dynamics, initial)
    C, c, const = stacked_cost(cost, discount)
    return float(0.5 * mean @ C @ mean + 0.5 * np.sum(C * cov) + c @ mean + const)
