"""Quadratic models of the observed cost: exact recovery, convexity, anchoring, symmetries, few samples, local parts."""

import numpy as np
import pytest
from problems import random_pd

from sb3_dpi.trajopt.cost import (
    _local_gradient,
    _means,
    anchor,
    fit_cost,
    fit_quadratic,
    project_psd,
    quadratic_features,
)
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


@pytest.mark.parametrize("n", [40, 8])
def test_fit_is_the_minimum_of_the_penalised_squares(n: int) -> None:
    """sum_i w_i (l_i - model)^2 + ridge sum_i w_i |coefficients but the constant|^2, as one least-squares problem."""
    rng = np.random.default_rng(9)
    z, costs, weights, ridge = rng.normal(size=(n, 3)), 5.0 + rng.normal(size=n), rng.uniform(0.5, 2.0, n), 0.3
    features = quadratic_features(z, n == 40)
    penalty = np.sqrt(ridge * weights.sum()) * np.eye(features.shape[1])[1:]
    rows = np.concatenate([np.sqrt(weights)[:, None] * features, penalty])
    values = np.concatenate([np.sqrt(weights) * costs, np.zeros(len(penalty))])
    solution = np.linalg.lstsq(rows, values, rcond=None)[0]
    C, c, const = fit_quadratic(z, costs, weights, ridge)
    np.testing.assert_allclose(0.5 * np.sum((z @ C) * z, -1) + z @ c + const, features @ solution, rtol=1e-8)
    np.testing.assert_allclose([const, *c], solution[:4], rtol=1e-8)


def test_the_penalty_of_hardly_any_weight_is_that_of_one_sample() -> None:
    rng = np.random.default_rng(10)
    z, costs, weights = rng.normal(size=(40, 3)), rng.normal(size=40), np.full(40, 1e-3)
    light, whole = fit_quadratic(z, costs, weights, 0.1), fit_quadratic(z, costs, np.ones(40), 0.1 / 0.04 / 1.0)
    # 0.04 of weight in all: the same penalty is 25 times as large against the squares
    for one, two in zip(light, whole, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize(("n", "dz", "crossed"), [(20, 3, True), (19, 3, False), (12, 2, True), (11, 2, False), (2, 1, True)])
def test_cross_terms_need_two_samples_a_coefficient(n: int, dz: int, crossed: bool) -> None:
    """Or no more coefficients than squares alone have; dead samples do not count."""
    rng = np.random.default_rng(11)
    z, weights = rng.normal(size=(n + 30, dz)), np.repeat([1.0, 0.0], [n, 30])
    C, _, _ = fit_quadratic(z, z[:, 0] * z[:, -1], weights, 1e-6)
    if dz > 1:
        assert (np.count_nonzero(C - np.diag(np.diag(C))) > 0) == crossed


@pytest.mark.parametrize("weight", [1.0, 0.01])
@pytest.mark.parametrize("window", [0, 2])
def test_local_gradient_is_a_regression_in_the_window(window: int, weight: float) -> None:
    """Shrunk by the ridge, in units of the points' variance, and by how little the samples weigh together."""
    rng = np.random.default_rng(12)
    points, residual = rng.normal(size=(2, 6, 5, 3)), rng.normal(size=(2, 6, 5))
    alive = (rng.uniform(size=(2, 6, 5)) < 0.7).astype(float)
    alive[:, 0] = 1.0
    mean, ridge = rng.normal(size=(2, 5, 3)), 0.2
    gradient, offset = _local_gradient(points, residual, weight * alive, mean, window, ridge)
    for m, t in np.ndindex(2, 5):
        steps = range(max(t - window, 0), min(t + window + 1, 5))
        rows = [(points[m, n, s] - mean[m, s], residual[m, n, s]) for s in steps for n in range(6) if alive[m, n, s]]
        deviations, left = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        centred = deviations - deviations.mean(0)
        slope = np.linalg.solve(centred.T @ centred / len(rows) + ridge * np.eye(3), centred.T @ left / len(rows))
        slope *= weight * len(rows) / (weight * len(rows) + 3)
        np.testing.assert_allclose(gradient[m, t], slope, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(offset[m, t], left.mean() - slope @ deviations.mean(0), rtol=1e-8, atol=1e-12)
    nothing = _local_gradient(points, residual, 0.0 * alive, mean, window, ridge)
    assert not np.any(nothing[0]) and not np.any(nothing[1]), "without samples nothing is known of the residual"


def test_a_step_without_samples_is_anchored_where_the_others_are() -> None:
    rng = np.random.default_rng(13)
    points, alive = rng.normal(size=(3, 4, 5, 2)), np.ones((3, 4, 5))
    alive[1, :, 2:], alive[0, 1] = 0.0, 0.0
    with np.errstate(all="raise"):
        means = _means(points, 0.05 * alive)
    np.testing.assert_allclose(means[0, 3], points[0, [0, 2, 3], 3].mean(0))
    np.testing.assert_allclose(means[1, 1], points[1, :, 1].mean(0))
    alive[:, :, 4] = 0.0
    assert np.isfinite(_means(points, alive)).all(), "where there is none at all"
    np.testing.assert_allclose(means[1, 3], np.concatenate([points[0, [0, 2, 3], 3], points[2, :, 3]]).mean(0))
