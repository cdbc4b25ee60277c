"""Quadratic models of the observed cost: exact recovery, convexity, anchoring, symmetries, few samples, local parts."""

import numpy as np
import pytest
from problems import random_pd

from sb3_dpi.trajopt.cost import anchor, fit_cost, fit_quadratic, project_psd, quadratic_features
from sb3_dpi.trajopt.types import QuadraticCost

SHAPE = (2, 40, 10)
DZ = 5


def evaluate(cost: QuadraticCost, z: np.ndarray) -> np.ndarray:
    """Cost of sampled points ``[M, N, T, dz]``, ``[M, N, T]``."""
    by_time = np.swapaxes(z, 1, 2)
    quadratic = 0.5 * np.sum((by_time @ cost.C) * by_time, -1)
    linear = np.sum(by_time * cost.c[:, :, None], -1)
    return np.swapaxes(quadratic + linear + cost.const[..., None], 1, 2)


def random_points(rng: np.random.Generator, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Trajectories that drift, in units of very different size."""
    drift = np.linspace(0.0, 2.0, shape[-1])[:, None] * rng.normal(size=DZ)
    return (drift + rng.normal(size=(*shape, DZ))) * 10.0 ** rng.uniform(-1, 1, DZ) + rng.normal(size=DZ)


def test_recovers_an_exact_quadratic() -> None:
    rng = np.random.default_rng(0)
    z, C, c = random_points(rng), random_pd(rng, (), DZ), rng.normal(size=DZ)
    costs = 0.5 * np.sum((z @ C) * z, -1) + z @ c + 2.0
    cost = fit_cost(z, costs, np.ones(SHAPE), ridge=1e-13)
    assert cost.C.shape == (2, 10, DZ, DZ) and cost.c.shape == (2, 10, DZ) and cost.const.shape == (2, 10)
    np.testing.assert_allclose(cost.C, np.broadcast_to(C, cost.C.shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cost.c, np.broadcast_to(c, cost.c.shape), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cost.const, 2.0, rtol=1e-4)
    np.testing.assert_allclose(evaluate(cost, z), costs, rtol=1e-6, atol=1e-6)


def test_projection_is_the_nearest_positive_semi_definite_matrix() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(3, 4, 4))
    matrix = matrix + np.swapaxes(matrix, -1, -2)
    nearest = project_psd(matrix)
    assert np.linalg.eigvalsh(nearest).min() > -1e-12
    distance = np.linalg.norm(nearest - matrix, axis=(-1, -2))
    for _ in range(100):
        other = project_psd(nearest + 0.1 * rng.normal(size=(3, 4, 4)))
        assert np.all(np.linalg.norm(other - matrix, axis=(-1, -2)) >= distance - 1e-12)
    definite = random_pd(rng, (3,), 4)
    np.testing.assert_allclose(project_psd(definite), definite, rtol=1e-10)
    np.testing.assert_allclose(np.linalg.eigvalsh(project_psd(matrix, floor=0.5)).min(-1), 0.5)


def test_anchor_keeps_value_and_gradient_at_the_mean() -> None:
    rng = np.random.default_rng(2)
    C = rng.normal(size=(2, 3, DZ, DZ))
    C, c, const = C + np.swapaxes(C, -1, -2), rng.normal(size=(2, 3, DZ)), rng.normal(size=(2, 3))
    mean, C_new = rng.normal(size=(2, 3, DZ)), project_psd(C)
    cost = anchor(C, c, const, C_new, mean)

    def value(C: np.ndarray, c: np.ndarray, const: np.ndarray) -> np.ndarray:
        return 0.5 * np.einsum("mti,mtij,mtj->mt", mean, C, mean) + np.sum(c * mean, -1) + const

    def gradient(C: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.einsum("mtij,mtj->mti", C, mean) + c

    np.testing.assert_allclose(cost.C, C_new)
    np.testing.assert_allclose(value(cost.C, cost.c, cost.const), value(C, c, const), rtol=1e-10)
    np.testing.assert_allclose(gradient(cost.C, cost.c), gradient(C, c), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("local_window", [None, 2])
def test_indefinite_cost_becomes_convex_with_its_gradient_at_the_mean(local_window: int | None) -> None:
    rng = np.random.default_rng(3)
    z = random_points(rng)
    C = rng.normal(size=(DZ, DZ))
    C = C + C.T
    costs = 0.5 * np.sum((z @ C) * z, -1)
    cost = fit_cost(z, costs, np.ones(SHAPE), ridge=1e-13, local_window=local_window)
    assert np.linalg.eigvalsh(C).min() < -0.5
    assert np.linalg.eigvalsh(cost.C).min() > -1e-9 * np.abs(cost.C).max()
    mean = z.mean(1)
    gradient = np.einsum("mtij,mtj->mti", cost.C, mean) + cost.c
    np.testing.assert_allclose(gradient, mean @ C, rtol=1e-4, atol=1e-4 * np.abs(mean @ C).max())


@pytest.mark.parametrize("local_window", [None, 1])
def test_fit_is_equivariant_under_rescaling(local_window: int | None) -> None:
    rng = np.random.default_rng(4)
    z = random_points(rng)
    costs = np.abs(z[..., 0]) + np.sin(z[..., 1] * z[..., 2])
    factors, shift = 10.0 ** rng.uniform(-3, 3, DZ), rng.normal(size=DZ)
    plain = fit_cost(z, costs, np.ones(SHAPE), local_window=local_window)
    scaled = fit_cost((z + shift) * factors, 1e3 * costs - 50.0, np.ones(SHAPE), local_window=local_window)
    np.testing.assert_allclose(scaled.C * factors[:, None] * factors, 1e3 * plain.C, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(evaluate(scaled, (z + shift) * factors), 1e3 * evaluate(plain, z) - 50.0, rtol=1e-6, atol=1e-4)


def test_few_samples_leave_out_cross_terms() -> None:
    rng = np.random.default_rng(5)
    z = rng.normal(size=(1, 4, 8, DZ))
    weights = np.ones((1, 4, 8))
    curvature = np.array([1.0, 2.0, 3.0, 0.5, 0.1])
    costs = 0.5 * z**2 @ curvature + z @ curvature
    cost = fit_cost(z, costs, weights, ridge=1e-12)
    np.testing.assert_allclose(cost.C, np.broadcast_to(np.diag(curvature), cost.C.shape), atol=1e-6)
    np.testing.assert_allclose(cost.c, np.broadcast_to(curvature, cost.c.shape), atol=1e-6)
    C, _, _ = fit_quadratic(z.reshape(-1, DZ), (z[..., 0] * z[..., 1]).ravel(), weights.ravel(), 1e-6)
    assert np.count_nonzero(C - np.diag(np.diag(C))) == 0


def test_features_are_all_monomials() -> None:
    z = np.array([[2.0, 3.0], [5.0, 7.0]])
    np.testing.assert_array_equal(quadratic_features(z, True), [[1, 2, 3, 4, 6, 9], [1, 5, 7, 25, 35, 49]])
    np.testing.assert_array_equal(quadratic_features(z, False), [[1, 2, 3, 4, 9], [1, 5, 7, 25, 49]])


@pytest.mark.parametrize("local_window", [None, 2])
def test_dead_samples_have_no_influence(local_window: int | None) -> None:
    rng = np.random.default_rng(6)
    z = random_points(rng)
    costs = np.abs(z[..., 0])
    alive = np.ones(SHAPE)
    alive[0, 3:9, 4:] = alive[1, :, 8:] = 0.0
    first = fit_cost(z, costs, alive, local_window=local_window)
    replaced = np.where(alive[..., None] > 0, z, 1e4)
    second = fit_cost(replaced, np.where(alive > 0, costs, -1e5), alive, local_window=local_window)
    for name in ("C", "c", "const"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-6, atol=1e-8)
        assert np.isfinite(getattr(first, name)).all()


def test_local_correction_helps_near_the_trajectory() -> None:
    rng = np.random.default_rng(7)
    horizon = 30
    path = np.linspace(-3.0, 3.0, horizon)[:, None] * np.array([1.0, -0.5, 0.0, 0.3, 0.0])
    z = path + 0.1 * rng.normal(size=(2, 30, horizon, DZ))
    costs = np.tanh(4.0 * z[..., 0]) + np.cos(3.0 * z[..., 1])
    errors = []
    for window in (None, 1):
        cost = fit_cost(z, costs, np.ones(z.shape[:3]), local_window=window, local_ridge=1e-3)
        errors.append(np.mean((evaluate(cost, z) - costs) ** 2))
    assert errors[1] < 0.25 * errors[0]


def test_a_constant_cost_has_no_slope() -> None:
    z = random_points(np.random.default_rng(8))
    cost = fit_cost(z, np.full(SHAPE, -3.0), np.ones(SHAPE), local_window=1)
    np.testing.assert_allclose(cost.C, 0.0, atol=1e-9)
    np.testing.assert_allclose(evaluate(cost, z), -3.0, rtol=1e-6)
