"""Time-varying linear-Gaussian regression against known systems, the conjugate posterior by hand, and its symmetries."""

import numpy as np
import pytest
from problems import random_pd

from sb3_dpi.trajopt.dynamics import (
    LinearGaussianFit,
    Standardizer,
    _half_squared_distances,
    condition_gaussian,
    fit_linear_gaussian,
    moments,
    nearest_prior,
    posterior,
    thin_pool,
    window_prior,
)
from sb3_dpi.trajopt.types import NormalInverseWishart

DX, DU = 3, 2
N_INPUTS = DX + DU


def simulate(
    rng: np.random.Generator, M: int = 2, N: int = 400, T: int = 6, noise: float = 0.05
) -> tuple[np.ndarray, LinearGaussianFit]:
    """Points ``[M, N, T, D]`` of a known time-varying system with independent inputs."""
    coef, bias = rng.normal(size=(M, T, DX, N_INPUTS)), rng.normal(size=(M, T, DX))
    random_cov = random_pd(rng, (M, T), DX)
    inputs = rng.normal(size=(M, N, T, N_INPUTS)) * rng.uniform(0.5, 2.0, N_INPUTS) + rng.normal(size=N_INPUTS)
    truth = LinearGaussianFit(coef, bias, noise**2 * random_cov)
    root = noise * np.linalg.cholesky(random_cov)[:, None]
    outputs = truth.predict(inputs) + (root @ rng.normal(size=(M, N, T, DX, 1)))[..., 0]
    return np.concatenate([inputs, outputs], -1), truth


def weak_prior(points: np.ndarray, weights: np.ndarray, scale: Standardizer) -> NormalInverseWishart:
    return window_prior(moments(scale.apply(points), weights).windowed(1), 0.0, 1e-6)


def fit(points: np.ndarray, weights: np.ndarray, ridge: float = 1e-8, count: float = 1e-9) -> LinearGaussianFit:
    """With a prior worth ``count`` samples from the neighbouring time steps."""
    scale = Standardizer.fit(points, weights)
    prior = window_prior(moments(scale.apply(points), weights).windowed(2), count, count)
    return fit_linear_gaussian(points, weights, N_INPUTS, prior, scale, ridge)


def test_recovers_a_known_system() -> None:
    points, truth = simulate(np.random.default_rng(0), N=4000)
    found = fit(points, np.ones(points.shape[:3]))
    np.testing.assert_allclose(found.coef, truth.coef, atol=0.02)
    np.testing.assert_allclose(found.bias, truth.bias, atol=0.02)
    np.testing.assert_allclose(found.cov, truth.cov, atol=0.1 * truth.cov.max())


def test_recovers_a_noiseless_system_exactly() -> None:
    points, truth = simulate(np.random.default_rng(1), N=20, noise=1e-9)
    found = fit(points, np.ones(points.shape[:3]), ridge=1e-12)
    np.testing.assert_allclose(found.coef, truth.coef, atol=1e-6)
    np.testing.assert_allclose(found.bias, truth.bias, atol=1e-6)


def test_fit_without_prior_is_least_squares() -> None:
    points, _ = simulate(np.random.default_rng(2), M=1, N=30, T=3)
    weights = np.ones(points.shape[:3])
    scale = Standardizer.fit(points, weights)
    found = fit_linear_gaussian(points, weights, N_INPUTS, weak_prior(points, weights, scale), scale, 1e-12)
    for t in range(3):
        design = np.column_stack([points[0, :, t, :N_INPUTS], np.ones(30)])
        solution, residual, *_ = np.linalg.lstsq(design, points[0, :, t, N_INPUTS:], rcond=None)
        np.testing.assert_allclose(found.coef[0, t], solution[:-1].T, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.bias[0, t], solution[-1], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.diag(found.cov[0, t]), residual / 30, rtol=1e-3)


@pytest.mark.parametrize("n", [1, 5])
def test_posterior_equals_its_closed_form(n: int) -> None:
    rng = np.random.default_rng(3)
    points, dim = rng.normal(size=(2, n, 3, 4)), 4
    prior = NormalInverseWishart(rng.normal(size=(2, 3, dim)), random_pd(rng, (2, 3), dim), 2.0, 7.0)
    mean, cov = posterior(moments(points, np.ones((2, n, 3))), prior)
    for m, t in np.ndindex(2, 3):
        samples, mu0, phi = points[m, :, t], prior.mean[m, t], prior.cov[m, t]
        average = samples.mean(0)
        scatter = sum(np.outer(x - average, x - average) for x in samples)
        between = n * 2.0 / (n + 2.0) * np.outer(average - mu0, average - mu0)
        np.testing.assert_allclose(mean[m, t], (n * average + 2.0 * mu0) / (n + 2.0), rtol=1e-10)
        np.testing.assert_allclose(cov[m, t], (7.0 * phi + scatter + between) / (n + 7.0), rtol=1e-9, atol=1e-12)


def test_posterior_without_data_is_the_prior_and_with_much_data_forgets_it() -> None:
    rng = np.random.default_rng(4)
    prior = NormalInverseWishart(5.0 + rng.normal(size=(1, 2, 4)), random_pd(rng, (1, 2), 4), 1.0, 3.0)
    points = rng.normal(size=(1, 100_000, 2, 4))
    mean, cov = posterior(moments(points, np.zeros(points.shape[:3])), prior)
    np.testing.assert_allclose(mean, prior.mean)
    np.testing.assert_allclose(cov, prior.cov)
    mean, cov = posterior(moments(points, np.ones(points.shape[:3])), prior)
    np.testing.assert_allclose(mean, 0.0, atol=0.02)
    np.testing.assert_allclose(cov, np.broadcast_to(np.eye(4), cov.shape), atol=0.02)


@pytest.mark.parametrize("width", [0, 1, 2, 10])
def test_window_sums(width: int) -> None:
    rng = np.random.default_rng(5)
    points, weights = rng.normal(size=(2, 3, 7, 4)), rng.integers(0, 2, (2, 3, 7)).astype(float)
    sums = moments(points, weights).windowed(width)
    for t in range(7):
        window = slice(max(t - width, 0), t + width + 1)
        near, living = points[:, :, window].reshape(2, -1, 4), weights[:, :, window].reshape(2, -1)
        np.testing.assert_allclose(sums.count[:, t], living.sum(1))
        np.testing.assert_allclose(sums.total[:, t], np.einsum("mn,mnd->md", living, near), atol=1e-12)
        np.testing.assert_allclose(sums.outer[:, t], np.einsum("mn,mnd,mne->mde", living, near, near), atol=1e-12)


def test_moments_add_scale_and_pool() -> None:
    rng = np.random.default_rng(6)
    points, weights = rng.normal(size=(2, 6, 3, 4)), np.ones((2, 6, 3))
    both = moments(points[:, :2], weights[:, :2]) + moments(points[:, 2:], weights[:, 2:])
    whole = moments(points, weights)
    for name in ("count", "total", "outer"):
        np.testing.assert_allclose(getattr(both, name), getattr(whole, name), atol=1e-12)
        np.testing.assert_allclose(getattr(whole.scaled(0.5), name), 0.5 * getattr(whole, name))
        np.testing.assert_allclose(getattr(whole.pooled(), name), getattr(whole, name).sum(0)[None])
        assert getattr(whole.pooled(), name).shape[:2] == (1, 3)


def test_window_prior_is_the_gaussian_of_the_window() -> None:
    rng = np.random.default_rng(7)
    points = rng.normal(size=(1, 50, 3, 4))
    prior = window_prior(moments(points, np.ones((1, 50, 3))).windowed(5), 1.0, 4.0)
    flat = points.reshape(-1, 4)
    np.testing.assert_allclose(prior.mean[0, 1], flat.mean(0), atol=1e-12)
    np.testing.assert_allclose(prior.cov[0, 1], np.cov(flat.T, bias=True), atol=1e-12)
    assert (prior.mean_count, prior.cov_count) == (1.0, 4.0)


@pytest.mark.parametrize("garbage", [0.0, 1e3, -1e6])
def test_dead_samples_have_no_influence(garbage: float) -> None:
    rng = np.random.default_rng(8)
    points, _ = simulate(rng, N=12)
    weights = np.ones(points.shape[:3])
    weights[0, 4:7, 3:] = weights[1, 0, 1:] = 0.0
    replaced = np.where(weights[..., None] > 0, points, garbage)
    first, second = fit(points, weights), fit(replaced, weights)
    for name in ("coef", "bias", "cov"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-7, atol=1e-9)
    pool = rng.normal(size=(100, DX + N_INPUTS))
    one, two = (nearest_prior(p, weights, pool, N_INPUTS, 20, 1.0, 10.0) for p in (points, replaced))
    np.testing.assert_allclose(one.mean, two.mean)
    np.testing.assert_allclose(one.cov, two.cov)


def test_a_dead_sample_is_as_good_as_none() -> None:
    points, _ = simulate(np.random.default_rng(9), N=12)
    weights = np.ones(points.shape[:3])
    weights[:, 8:] = 0.0
    masked, without = fit(points, weights), fit(points[:, :8], weights[:, :8])
    np.testing.assert_allclose(masked.coef, without.coef, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(masked.cov, without.cov, rtol=1e-8, atol=1e-10)


def brute_force_prior(centre: np.ndarray, pool: np.ndarray, n_inputs: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    distance = np.sum((pool[:, :n_inputs] - centre) ** 2, 1)
    near = np.argsort(distance)[:k]
    share = np.exp(-2.0 * distance[near] / distance[near].max())
    mean = np.average(pool[near], axis=0, weights=share)
    return mean, np.cov(pool[near].T, aweights=share, bias=True)


def test_nearest_prior_is_the_weighted_gaussian_of_the_nearest_points() -> None:
    rng = np.random.default_rng(10)
    points, pool = rng.normal(size=(3, 4, 40, 6)), rng.normal(size=(300, 6))
    prior = nearest_prior(points, np.ones((3, 4, 40)), pool, 4, 25, 1.0, 50.0)
    for m, t in [(0, 0), (1, 17), (2, 39)]:
        mean, cov = brute_force_prior(points[m, :, t, :4].mean(0), pool, 4, 25)
        np.testing.assert_allclose(prior.mean[m, t], mean, atol=1e-10)
        np.testing.assert_allclose(prior.cov[m, t], cov, atol=1e-10)
    assert (prior.mean_count, prior.cov_count) == (1.0, 50.0)


def test_nearest_prior_sees_one_regime_of_a_nonlinear_system() -> None:
    rng = np.random.default_rng(11)
    x = rng.uniform(-1.0, 1.0, (2000, 1))
    pool = np.concatenate([x, np.abs(x)], 1)
    centres = np.array([[-0.8, 0.8], [0.8, 0.8]])[:, None, None, :]
    prior = nearest_prior(centres, np.ones((2, 1, 1)), pool, 1, 100, 1.0, 100.0)
    slopes = prior.cov[:, 0, 1, 0] / prior.cov[:, 0, 0, 0]
    np.testing.assert_allclose(slopes, [-1.0, 1.0], atol=1e-6)


def test_nearest_prior_takes_what_there_is() -> None:
    rng = np.random.default_rng(12)
    points, pool = rng.normal(size=(1, 2, 3, 4)), rng.normal(size=(5, 4))
    few = nearest_prior(points, np.ones((1, 2, 3)), pool, 2, 400, 1.0, 10.0)
    same = nearest_prior(points, np.ones((1, 2, 3)), pool, 2, 5, 1.0, 10.0)
    np.testing.assert_allclose(few.cov, same.cov)
    one = nearest_prior(points, np.ones((1, 2, 3)), pool[:1], 2, 400, 1.0, 10.0)
    np.testing.assert_allclose(one.mean, np.broadcast_to(pool[0], one.mean.shape))
    with pytest.raises(ValueError, match="no sample is alive"):
        nearest_prior(points, np.ones((1, 2, 3)), pool[:0], 2, 400, 1.0, 10.0)


def test_large_pools_are_thinned() -> None:
    pool = np.arange(10_000.0)[:, None]
    thin = thin_pool(pool, 1000)[:, 0]
    assert len(thin) == len(np.unique(thin)) == 1000
    np.testing.assert_array_equal(thin[:500], np.arange(500))
    assert np.ptp(np.diff(thin[500:])) <= 1 and thin[-1] > 9900
    assert thin_pool(pool, 10_000) is pool
    assert thin_pool(pool[:1003], 1002).shape == (1002, 1)
    points = np.random.default_rng(13).normal(size=(1, 1, 2, 1))
    prior = nearest_prior(points, np.ones((1, 1, 2)), pool, 1, 3, 1.0, 1.0, max_pool=2)
    np.testing.assert_allclose(prior.mean, 0.0, atol=1e3)


@pytest.mark.parametrize("kind", ["window", "nearest"])
def test_fit_is_equivariant_under_rescaling(kind: str) -> None:
    rng = np.random.default_rng(14)
    points, _ = simulate(rng, N=8)
    factors, shift = 10.0 ** rng.uniform(-4, 4, points.shape[-1]), 10.0 * rng.normal(size=points.shape[-1])
    weights = np.ones(points.shape[:3])

    def fit_in(units: np.ndarray) -> LinearGaussianFit:
        scale = Standardizer.fit(units, weights)
        standard = scale.apply(units)
        if kind == "window":
            prior = window_prior(moments(standard, weights).windowed(2), 1.0, 4.0)
        else:
            prior = nearest_prior(standard, weights, standard.reshape(-1, standard.shape[-1]), N_INPUTS, 30, 1.0, 20.0)
        return fit_linear_gaussian(units, weights, N_INPUTS, prior, scale)

    plain, scaled = fit_in(points), fit_in((points + shift) * factors)
    f_in, f_out = factors[:N_INPUTS], factors[N_INPUTS:]
    np.testing.assert_allclose(scaled.coef, plain.coef * f_out[:, None] / f_in, rtol=1e-6)
    np.testing.assert_allclose(scaled.cov, plain.cov * f_out[:, None] * f_out, rtol=1e-6)
    moved = scaled.predict((points[..., :N_INPUTS] + shift[:N_INPUTS]) * f_in) / f_out - shift[N_INPUTS:]
    np.testing.assert_allclose(moved, plain.predict(points[..., :N_INPUTS]), rtol=1e-6, atol=1e-8)


def test_predict_equals_the_formula() -> None:
    rng = np.random.default_rng(15)
    fitted = LinearGaussianFit(rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(2, 4, 3)), random_pd(rng, (2, 4), 3))
    inputs = rng.normal(size=(2, 6, 4, 5))
    predicted = fitted.predict(inputs)
    assert predicted.shape == (2, 6, 4, 3)
    np.testing.assert_allclose(predicted[1, 5, 2], fitted.coef[1, 2] @ inputs[1, 5, 2] + fitted.bias[1, 2])


@pytest.mark.parametrize("n_samples", [1, 2, 5])
def test_residuals_are_positive_definite_with_few_and_constant_data(n_samples: int) -> None:
    rng = np.random.default_rng(16)
    points, _ = simulate(rng, N=n_samples, noise=0.0)
    points[..., 0] = 3.0
    points[..., N_INPUTS] = points[..., 1]
    found = fit(points, np.ones(points.shape[:3]), ridge=1e-4, count=4.0)
    np.linalg.cholesky(found.cov)
    assert all(np.isfinite(array).all() for array in vars(found).values())
    np.testing.assert_array_equal(found.cov, np.swapaxes(found.cov, -1, -2))


def test_conditioning_equals_its_closed_form() -> None:
    rng = np.random.default_rng(17)
    mean, cov = rng.normal(size=5), random_pd(rng, (), 5)
    coef, bias, residual = condition_gaussian(mean, cov, 3, 0.0)
    precision = np.linalg.inv(cov)
    np.testing.assert_allclose(residual, np.linalg.inv(precision[3:, 3:]), rtol=1e-9)
    np.testing.assert_allclose(coef, -residual @ precision[3:, :3], rtol=1e-8)
    np.testing.assert_allclose(coef @ mean[:3] + bias, mean[3:], rtol=1e-9)


def test_standardizer_keeps_constant_variables_and_ignores_dead_points() -> None:
    rng = np.random.default_rng(18)
    points = 5.0 + 3.0 * rng.normal(size=(2, 50, 4, 2))
    points[..., 1] = 7.0
    weights = np.ones((2, 50, 4))
    weights[0, :10] = 0.0
    scale = Standardizer.fit(np.where(weights[..., None] > 0, points, -1e5), weights)
    living = points[weights > 0]
    np.testing.assert_allclose(scale.mean, living.mean(0))
    np.testing.assert_allclose(scale.std, [living[:, 0].std(), 1.0])
    np.testing.assert_allclose(scale.apply(living).std(0), [1.0, 0.0], atol=1e-12)
    empty = Standardizer.fit(points, np.zeros((2, 50, 4)))
    np.testing.assert_array_equal(empty.std, 1.0)
    np.testing.assert_array_equal(empty.mean, 0.0)


def test_nearest_prior_of_points_at_the_centre_itself_is_their_plain_mean() -> None:
    pool = np.array([[0.5, 1.0], [0.5, 3.0], [9.0, 100.0]])
    prior = nearest_prior(np.array([[[[0.5, 0.0]]]]), np.ones((1, 1, 1)), pool, 1, 2, 1.0, 1.0)
    np.testing.assert_allclose(prior.mean[0, 0], [0.5, 2.0])
    np.testing.assert_allclose(prior.cov[0, 0], [[0.0, 0.0], [0.0, 1.0]], atol=1e-15)


def test_thinning_keeps_an_even_selection() -> None:
    """Of eleven points six: the three most recent, and of the eight older ones every eight thirds."""
    assert thin_pool(np.arange(11.0)[:, None], 6)[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 5.0, 8.0]
    assert thin_pool(np.arange(7.0)[:, None], 3)[:, 0].tolist() == [0.0, 1.0, 4.0]
    assert thin_pool(np.arange(4.0)[:, None], 5)[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_large_pools_keep_four_thousand_points() -> None:
    rng = np.random.default_rng(19)
    points, pool = rng.normal(size=(1, 2, 3, 2)), rng.normal(size=(9000, 2))
    given = nearest_prior(points, np.ones((1, 2, 3)), pool, 1, 50, 1.0, 1.0, max_pool=4000)
    default = nearest_prior(points, np.ones((1, 2, 3)), pool, 1, 50, 1.0, 1.0)
    np.testing.assert_array_equal(default.cov, given.cov)


@pytest.mark.parametrize(
    ("level", "spread", "constant"), [(0.0, 0.0, True), (0.0, 1e-20, False), (1e6, 1e-7, True), (1e6, 1e-2, False)]
)
def test_what_varies_by_rounding_alone_is_constant(level: float, spread: float, constant: bool) -> None:
    points = level + spread * np.array([[-1.0], [1.0]])
    std = float(Standardizer.fit(points, np.ones(2)).std[0])
    assert std == (1.0 if constant else pytest.approx(spread))


def test_conditioning_with_a_ridge() -> None:
    cov = np.array([[2.0, 1.0], [1.0, 3.0]])
    coef, bias, residual = condition_gaussian(np.array([1.0, 5.0]), cov, 1, 0.5)
    assert coef.item() == pytest.approx(0.4) and bias.item() == pytest.approx(4.6) and residual.item() == pytest.approx(2.6)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(20)
    points, weights = rng.normal(size=(*batch, 6, 4, 3)), rng.integers(0, 2, (*batch, 6, 4)).astype(float)
    sums = moments(points, weights)
    near = sums.windowed(1)
    assert sums.count.shape == near.count.shape == (*batch, 4)
    for index in np.ndindex(*batch):
        np.testing.assert_allclose(sums.total[index], np.einsum("nt,ntd->td", weights[index], points[index]), atol=1e-12)
        outer = np.einsum("nt,ntd,nte->tde", weights[index], points[index], points[index])
        np.testing.assert_allclose(sums.outer[index], outer, atol=1e-12)
        np.testing.assert_allclose(near.outer[index][0], outer[:2].sum(0), atol=1e-12)
        np.testing.assert_allclose(near.outer[index][2], outer[1:4].sum(0), atol=1e-12)
    scale, standard = Standardizer.fit(points, np.ones(weights.shape)), NormalInverseWishart(np.zeros(3), np.eye(3), 1.0, 5.0)
    found = fit_linear_gaussian(points, weights, 2, standard, scale)
    for index in np.ndindex(*batch):
        alone = fit_linear_gaussian(points[index][None], weights[index][None], 2, standard, scale)
        for name, array in vars(alone).items():
            np.testing.assert_allclose(getattr(found, name)[index], array[0], rtol=1e-9, atol=1e-12)
    fitted = LinearGaussianFit(rng.normal(size=(*batch, 4, 2, 3)), rng.normal(size=(*batch, 4, 2)), np.ones((*batch, 4, 2, 2)))
    predicted = fitted.predict(points)
    for index in np.ndindex(*batch):
        expected = np.einsum("tyx,ntx->nty", fitted.coef[index], points[index]) + fitted.bias[index]
        np.testing.assert_allclose(predicted[index], expected, atol=1e-12)


def test_a_sample_may_count_less_than_one() -> None:
    """A quarter of a sample beside a prior worth half of one for the mean and one for the covariance."""
    prior = NormalInverseWishart(np.array([[1.0]]), np.array([[[2.0]]]), 0.5, 1.0)
    mean, cov = posterior(moments(np.array([[[4.0]]]), np.array([[0.25]])), prior)
    assert mean.item() == pytest.approx((0.25 * 4.0 + 0.5 * 1.0) / 0.75)
    assert cov.item() == pytest.approx((2.0 + 0.25 * 0.5 / 0.75 * 9.0) / 1.25)


def test_nothing_seen_and_nothing_believed_is_finite() -> None:
    prior = NormalInverseWishart(np.ones((1, 2)), np.eye(2)[None], 0.0, 0.0)
    mean, cov = posterior(moments(np.ones((3, 1, 2)), np.zeros((3, 1))), prior)
    assert np.isfinite(mean).all() and np.isfinite(cov).all()


def test_no_distance_is_less_than_zero() -> None:
    """Though it is a difference of numbers that are larger by far, and rounded."""
    points = 1e3 + np.random.default_rng(22).normal(size=(40, 5))
    distances = _half_squared_distances(points, points)
    np.testing.assert_allclose(distances, 0.5 * np.sum((points[:, None] - points) ** 2, -1), atol=1e-8)
    assert np.all(distances >= 0.0)


def test_nearest_prior_needs_few_samples_or_none() -> None:
    """A step's mean input is the same whatever its samples count; without any it is the mean of all, which is zero."""
    rng = np.random.default_rng(23)
    points, pool = rng.normal(size=(1, 4, 3, 4)), rng.normal(size=(50, 4))
    weights = np.ones((1, 4, 3))
    weights[:, :, 1] = 0.0
    whole, little = (nearest_prior(points, weight * weights, pool, 2, 5, 1.0, 1.0) for weight in (1.0, 0.01))
    np.testing.assert_allclose(little.mean, whole.mean)
    np.testing.assert_allclose(little.cov, whole.cov)
    np.testing.assert_allclose(whole.mean[0, 1], brute_force_prior(np.zeros(2), pool, 2, 5)[0])


def test_the_default_ridge_shrinks_a_slope_by_less_than_a_thousandth() -> None:
    """It is added to the variance of standardised inputs, which is one: of the slope 1 / (1 + ridge) is left."""
    points = np.array([[-1.0, -2.0], [1.0, 2.0]])[:, None] + 3.0
    nothing = NormalInverseWishart(np.zeros((1, 2)), np.zeros((1, 2, 2)), 0.0, 0.0)
    fitted = fit_linear_gaussian(points, np.ones((2, 1)), 1, nothing, Standardizer.fit(points, np.ones((2, 1))))
    assert 0.999 < fitted.coef.item() / 2.0 < 1.0


@pytest.mark.parametrize("n, n_pool", [(1, 60), (2, 60), (5, 60), (1, 3000)])
def test_nearest_points_are_the_nearest(n: int, n_pool: int) -> None:
    rng = np.random.default_rng(21)
    centres, pool = rng.normal(size=(1, 1, 200, 3)), rng.normal(size=(n_pool, 3))
    prior = nearest_prior(centres, np.ones((1, 1, 200)), pool, 2, n, 1.0, 1.0)
    for t in range(200):
        np.testing.assert_allclose(prior.mean[0, t], brute_force_prior(centres[0, 0, t, :2], pool, 2, n)[0], atol=1e-9)


def test_without_beliefs_the_unit_of_the_weights_does_not_matter() -> None:
    """A Gaussian of samples that count a hundredth each, less than one all together, is that of samples that count one."""
    points = np.random.default_rng(5).normal(size=(2, 8, 3, 4))
    nothing = NormalInverseWishart(np.zeros((2, 3, 4)), np.zeros((2, 3, 4, 4)), 0.0, 0.0)
    whole, little = (moments(points, np.full((2, 8, 3), weight)) for weight in (1.0, 0.01))
    for found, wanted in zip(posterior(little, nothing), posterior(whole, nothing), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    found, wanted = (window_prior(sums, 1.0, 2.0) for sums in (little, whole))
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-9)
    np.testing.assert_allclose(found.cov, wanted.cov, rtol=1e-9, atol=1e-12)
