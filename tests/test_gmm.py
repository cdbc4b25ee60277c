"""Gaussian mixtures against closed forms, Monte Carlo and the inputs that break expectation-maximisation."""

from typing import Any

import numpy as np
import pytest

from sb3_dpi.trajopt import gmm
from sb3_dpi.trajopt.gmm import GaussianMixture, fit_mixture, mixture_prior, number_of_components, responsibilities


def random_mixture(rng: np.random.Generator, n_components: int, dim: int, spread: float = 1.0) -> GaussianMixture:
    roots = rng.normal(size=(n_components, dim, dim))
    covs = roots @ np.swapaxes(roots, -1, -2) + 0.1 * np.eye(dim)
    weights = rng.uniform(0.5, 1.5, n_components)
    return GaussianMixture(weights / weights.sum(), spread * rng.normal(size=(n_components, dim)), covs)


def sample(mixture: GaussianMixture, n_points: int, rng: np.random.Generator) -> np.ndarray:
    cluster = rng.choice(len(mixture.weights), size=n_points, p=mixture.weights)
    noise = rng.normal(size=(n_points, mixture.means.shape[1], 1))
    return mixture.means[cluster] + (np.linalg.cholesky(mixture.covs)[cluster] @ noise)[..., 0]


def log_joint(mixture: GaussianMixture, points: np.ndarray) -> np.ndarray:
    """Log weight plus log density by its definition, ``[..., K]``."""
    deviations = points[..., None, :] - mixture.means
    solved = np.linalg.solve(mixture.covs, deviations[..., None])[..., 0]
    log_det = np.linalg.slogdet(2.0 * np.pi * mixture.covs)[1]
    return np.log(mixture.weights) - 0.5 * (np.sum(deviations * solved, -1) + log_det)


def log_likelihood(mixture: GaussianMixture, points: np.ndarray) -> float:
    return float(np.mean(np.logaddexp.reduce(log_joint(mixture, points), axis=-1)))


def test_number_of_components() -> None:
    assert [number_of_components(n) for n in (0, 39, 40, 79, 80, 799, 800, 10_000)] == [1, 1, 1, 1, 2, 19, 20, 20]
    assert number_of_components(1000, samples_per_cluster=100, max_clusters=5) == 5
    with pytest.raises(ValueError, match="max_clusters"):
        number_of_components(100, max_clusters=0)


def test_responsibilities_are_bayes_rule() -> None:
    rng = np.random.default_rng(0)
    scale = np.array([1e-3, 1.0, 1e2, 1e4])
    mixture = random_mixture(rng, 5, 4)
    mixture = GaussianMixture(mixture.weights, mixture.means * scale + 50, mixture.covs * np.outer(scale, scale))
    points = (rng.normal(size=(2, 3, 4)) * 2) * scale + 50
    expected = np.exp(log_joint(mixture, points))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(responsibilities(mixture, points), expected, rtol=1e-7, atol=1e-12)


def test_one_component_is_the_sample_mean_and_covariance() -> None:
    rng = np.random.default_rng(1)
    scale = np.array([1e-3, 1.0, 1e3])
    points = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3)) * scale + np.array([5.0, -1e3, 2e4])
    weights = rng.uniform(0.0, 1.0, 300)
    mixture = fit_mixture(points, 1, rng, point_weights=weights, regularization=1e-3)
    mean = np.average(points, axis=0, weights=weights)
    cov = np.cov(points.T, aweights=weights, ddof=0)
    np.testing.assert_allclose(mixture.means[0], mean, rtol=1e-9)
    # the ridge touches the diagonal alone, each variable in proportion to its variance
    np.testing.assert_allclose(mixture.covs[0] - np.diag(1e-3 * np.diag(cov)), cov, rtol=1e-7)


def test_separate_clusters_are_found() -> None:
    rng = np.random.default_rng(2)
    truth = random_mixture(rng, 6, 5, spread=20.0)
    points = sample(truth, 3000, rng)
    mixture = fit_mixture(points, 6, rng)
    order = np.argmin(np.linalg.norm(mixture.means[None] - truth.means[:, None], axis=-1), axis=1)
    assert sorted(order.tolist()) == list(range(6))
    np.testing.assert_allclose(mixture.weights[order], truth.weights, atol=0.03)
    np.testing.assert_allclose(mixture.means[order], truth.means, atol=0.5)
    assert log_likelihood(mixture, points) >= log_likelihood(truth, points) - 1e-6


def test_iterations_climb_and_the_relative_stop_works_at_negative_likelihoods() -> None:
    rng = np.random.default_rng(3)
    points = sample(random_mixture(rng, 4, 3, spread=2.0), 500, rng)
    climb = [log_likelihood(fit_mixture(points, 4, np.random.default_rng(0), max_iterations=n), points) for n in range(1, 12)]
    assert climb[-1] < 0
    assert np.all(np.diff(climb) > -1e-6)
    assert climb[-1] > climb[0] + 0.01

    passes = []
    original = gmm._expectation

    def counting(*args: object) -> object:
        passes.append(1)
        return original(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gmm, "_expectation", counting)
        converged = fit_mixture(points, 4, np.random.default_rng(0), max_iterations=1000, tolerance=1e-4)
        n_cold = len(passes)
        passes.clear()
        fit_mixture(points, 4, np.random.default_rng(0), warm_start=converged, tolerance=1e-4)
    assert 3 < n_cold < 200
    assert len(passes) <= 3, "a warm start at the solution must stop at once"


def test_units_do_not_matter() -> None:
    rng = np.random.default_rng(4)
    points = sample(random_mixture(rng, 3, 3, spread=4.0), 400, rng)
    scale, shift = np.array([1e-4, 1.0, 1e5]), np.array([1.0, -3.0, 1e4])
    mixture = fit_mixture(points, 3, np.random.default_rng(0))
    scaled = fit_mixture(points * scale + shift, 3, np.random.default_rng(0))
    np.testing.assert_allclose(scaled.weights, mixture.weights, rtol=1e-5)
    np.testing.assert_allclose((scaled.means - shift) / scale, mixture.means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaled.covs / np.outer(scale, scale), mixture.covs, rtol=1e-4, atol=1e-6)


def test_blocks_of_points_give_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    points = sample(random_mixture(rng, 3, 4, spread=4.0), 257, rng)
    whole = fit_mixture(points, 3, np.random.default_rng(0))
    monkeypatch.setattr(gmm, "_BLOCK_BYTES", 8 * 15 * 50)
    monkeypatch.setattr(gmm, "_CACHE_BYTES", 0)
    in_blocks = fit_mixture(points, 3, np.random.default_rng(0))
    np.testing.assert_allclose(in_blocks.means, whole.means, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(in_blocks.covs, whole.covs, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(responsibilities(in_blocks, points), responsibilities(whole, points), atol=1e-6)


@pytest.mark.parametrize("case", ["constant variable", "linear dependence", "all points alike", "few points", "outlier"])
def test_degenerate_points_give_a_positive_definite_mixture(case: str) -> None:
    rng = np.random.default_rng(6)
    points = rng.normal(size=(60, 4))
    n_components = 5
    if case == "constant variable":
        points[:, 2] = 1e8 / 3.0
    elif case == "linear dependence":
        points[:, 3] = points[:, 0] - 2.0 * points[:, 1]
    elif case == "all points alike":
        points[:] = [1.0, -2.0, 0.0, 1e6]
    elif case == "few points":
        points, n_components = points[:5], 5
    else:
        points[0] = 1e6
    mixture = fit_mixture(points, n_components, rng)
    assert all(np.all(np.isfinite(array)) for array in (mixture.weights, mixture.means, mixture.covs))
    assert mixture.weights.sum() == pytest.approx(1.0)
    assert np.all(mixture.weights >= 0)
    np.linalg.cholesky(mixture.covs)
    prior = mixture_prior(mixture, points[None], np.ones((1, len(points))))
    assert np.all(np.isfinite(prior.cov))
    np.testing.assert_allclose(responsibilities(mixture, points).sum(-1), 1.0)


def test_lost_clusters_start_again_and_the_same_seed_gives_the_same_fit() -> None:
    rng = np.random.default_rng(7)
    truth = random_mixture(rng, 3, 2, spread=30.0)
    points = sample(truth, 600, rng)
    far = GaussianMixture(
        np.full(3, 1 / 3), np.array([points.mean(0), [1e6, 1e6], [-1e6, 1e6]]), np.repeat(np.eye(2)[None], 3, 0)
    )
    fits = [fit_mixture(points, 3, np.random.default_rng(1), warm_start=far) for _ in range(2)]
    assert np.all(fits[0].weights > 0.02), "clusters without points must come back"
    np.testing.assert_array_equal(fits[0].means, fits[1].means)
    np.testing.assert_array_equal(fits[0].covs, fits[1].covs)


def test_a_singular_warm_start_is_repaired() -> None:
    rng = np.random.default_rng(12)
    points = rng.normal(size=(100, 2))
    singular = GaussianMixture(np.ones(1), np.zeros((1, 2)), np.ones((1, 2, 2)))
    warm, cold = fit_mixture(points, 1, rng, warm_start=singular), fit_mixture(points, 1, rng)
    np.testing.assert_allclose(warm.covs, cold.covs, rtol=1e-9)


def test_warm_start_of_another_shape_is_ignored() -> None:
    rng = np.random.default_rng(8)
    points = rng.normal(size=(200, 3))
    cold = fit_mixture(points, 2, np.random.default_rng(0))
    other = fit_mixture(points, 2, np.random.default_rng(0), warm_start=random_mixture(rng, 3, 3))
    np.testing.assert_array_equal(cold.means, other.means)


def test_weights_count_points() -> None:
    rng = np.random.default_rng(9)
    points = sample(random_mixture(rng, 2, 2, spread=10.0), 100, rng)
    counts = rng.integers(0, 4, 100)
    start = fit_mixture(points, 2, rng)
    weighted = fit_mixture(np.where(counts[:, None] > 0, points, np.nan), 2, rng, start, point_weights=counts.astype(float))
    repeated = fit_mixture(np.repeat(points, counts, axis=0), 2, rng, start)
    np.testing.assert_allclose(weighted.means, repeated.means, rtol=1e-8)
    np.testing.assert_allclose(weighted.covs, repeated.covs, rtol=1e-6)


@pytest.mark.parametrize(
    "points, n_components, options, message",
    [
        (np.zeros((2, 3, 4)), 1, {}, "flatten"),
        (np.zeros((3, 2)), 4, {}, "4 components"),
        (np.zeros((3, 2)), 0, {}, "0 components"),
        (np.array([[0.0], [np.nan]]), 1, {}, "point 1"),
        (np.zeros((3, 2)), 1, {"point_weights": np.array([1.0, -1.0, 1.0])}, "point_weights"),
        (np.zeros((3, 2)), 1, {"regularization": 0.0}, "regularization"),
    ],
)
def test_bad_input_is_named(points: np.ndarray, n_components: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_mixture(points, n_components, np.random.default_rng(0), **options)


@pytest.mark.parametrize("unit", [1.0, 0.01])
def test_prior_is_the_mixture_seen_from_the_samples(unit: float) -> None:
    """Averages do not depend on the unit of the weights."""
    rng = np.random.default_rng(10)
    mixture = random_mixture(rng, 4, 3, spread=2.0)
    points = rng.normal(size=(2, 6, 5, 3)) * 2
    weights = (rng.uniform(size=(2, 6, 5)) < 0.7).astype(float)
    weights[..., 0] = 1.0
    weights[1, 2] = 0.0
    points[weights == 0] = np.nan
    prior = mixture_prior(mixture, points, unit * weights, mean_count=0.5, cov_count=3.0)
    assert (prior.mean_count, prior.cov_count) == (0.5, 3.0)
    assert prior.mean.shape == (2, 6, 3)
    for entry in np.ndindex(2, 6):
        alive = weights[entry] > 0
        share = responsibilities(mixture, points[entry][alive]).mean(0) if alive.any() else mixture.weights
        mean = share @ mixture.means
        second = np.einsum("k,kij->ij", share, mixture.covs + mixture.means[:, :, None] * mixture.means[:, None, :])
        np.testing.assert_allclose(prior.mean[entry], mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(prior.cov[entry], second - np.outer(mean, mean), rtol=1e-8, atol=1e-9)


def test_prior_moments_agree_with_monte_carlo() -> None:
    rng = np.random.default_rng(11)
    mixture = random_mixture(rng, 3, 2, spread=3.0)
    draws = sample(mixture, 200_000, rng)
    prior = mixture_prior(mixture, np.zeros((1, 2)), np.zeros(1))
    np.testing.assert_allclose(prior.mean, draws.mean(0), atol=0.03)
    np.testing.assert_allclose(prior.cov, np.cov(draws.T), rtol=0.03, atol=0.05)


def test_expectation_gives_densities_and_weighted_moments() -> None:
    rng = np.random.default_rng(13)
    mixture, points, weights = random_mixture(rng, 3, 2), rng.normal(size=(50, 2)), rng.uniform(0.5, 1.5, 50)
    weights /= weights.sum()
    log_densities, moments = gmm._expectation(list(gmm._feature_blocks(points)), mixture, weights)
    joint = log_joint(mixture, points)
    np.testing.assert_allclose(log_densities, np.logaddexp.reduce(joint, axis=-1), rtol=1e-9)
    share = weights[:, None] * np.exp(joint - log_densities[:, None])
    np.testing.assert_allclose(moments.mass, share.sum(0), rtol=1e-9)
    np.testing.assert_allclose(moments.first, share.T @ points / share.sum(0)[:, None], rtol=1e-9)
    second = np.einsum("nk,ni,nj->kij", share, points, points) / share.sum(0)[:, None, None]
    np.testing.assert_allclose(moments.second, second, rtol=1e-9)


def test_maximization_leaves_lost_clusters_where_they_were() -> None:
    rng = np.random.default_rng(14)
    before, moments = (
        random_mixture(rng, 3, 2),
        gmm._Moments(np.array([0.3, 0.0, 0.6]), rng.normal(size=(3, 2)), 9.0 * np.repeat(np.eye(2)[None], 3, 0)),
    )
    after = gmm._maximization(moments, before, np.array([False, True, False]), 0.5)
    np.testing.assert_allclose(after.weights, [1 / 3, 0.0, 2 / 3])
    np.testing.assert_allclose(after.means[[0, 2]], moments.first[[0, 2]])
    for k in (0, 2):
        np.testing.assert_allclose(after.covs[k], 9.5 * np.eye(2) - np.outer(moments.first[k], moments.first[k]))
    np.testing.assert_array_equal(after.means[1], before.means[1])
    np.testing.assert_array_equal(after.covs[1], before.covs[1])


class Draws:
    """Hands out what it was told to, and remembers the chances that it was given.

    :param results: of ``choice``, one after the other
    """

    def __init__(self, results: list[Any]) -> None:
        self.results, self.chances = list(results), []

    def choice(self, n: int, size: int | None = None, p: np.ndarray | None = None) -> Any:
        self.chances.append(p)
        result = self.results.pop(0)
        assert size in (None, np.size(result))
        return result


def test_first_centres_are_drawn_by_squared_distance() -> None:
    """k-means++: then the centroids of the points nearest to each centre, and how far points lie from them."""
    points, weights = np.array([[0.0], [1.0], [4.0], [6.0]]), np.array([0.1, 0.2, 0.3, 0.4])
    rng = Draws([0, 3])
    mixture = gmm._initial_mixture(points, weights, 2, rng, 0.01)  # type: ignore[arg-type]
    first, second = rng.chances
    np.testing.assert_allclose(first, weights)
    by_distance = weights * np.array([0.0, 1.0, 16.0, 36.0])
    np.testing.assert_allclose(second, by_distance / by_distance.sum())
    # 0 and 1 are nearest to 0, 4 and 6 to 6
    left, right = 0.2 / 0.3, (0.3 * 4 + 0.4 * 6) / 0.7
    np.testing.assert_allclose(mixture.means[:, 0], [left, right])
    spread = 0.1 * left**2 + 0.2 * (1 - left) ** 2 + 0.3 * (4 - right) ** 2 + 0.4 * (6 - right) ** 2
    np.testing.assert_allclose(mixture.covs[:, 0, 0], spread + 0.01)
    np.testing.assert_allclose(mixture.weights, np.array([0.3 + 0.25, 0.7 + 0.25]) / 1.5)


def test_centres_without_points_stay_where_they_were_drawn() -> None:
    points, weights = np.ones((3, 2)), np.full(3, 1 / 3)
    with np.errstate(all="raise"):
        mixture = gmm._initial_mixture(points, weights, 2, Draws([0, 1]), 0.1)  # type: ignore[arg-type]
    np.testing.assert_allclose(mixture.means, 1.0)
    np.testing.assert_allclose(mixture.covs, np.broadcast_to(0.1 * np.eye(2), (2, 2, 2)))
    np.testing.assert_allclose(mixture.weights, np.array([1 + 1 / 3, 1 / 3]) / (1 + 2 / 3))


def test_lost_clusters_move_to_points_that_are_explained_badly() -> None:
    rng = np.random.default_rng(15)
    mixture, points = random_mixture(rng, 3, 2), rng.normal(size=(4, 2))
    weights, log_densities = np.array([0.1, 0.2, 0.3, 0.4]), np.array([-5.0, -1.0, -2.0, -1.0])
    draws = Draws([[2]])
    lost = np.array([False, True, False])
    moved = gmm._reseed(mixture, lost, points, weights, log_densities, draws)  # type: ignore[arg-type]
    np.testing.assert_allclose(draws.chances[0], np.array([0.4, 0.0, 0.3, 0.0]) / 0.7)
    np.testing.assert_allclose(moved.means, [mixture.means[0], points[2], mixture.means[2]])
    a, _, c = mixture.weights
    np.testing.assert_allclose(moved.covs[1], (a * mixture.covs[0] + c * mixture.covs[2]) / (a + c))
    np.testing.assert_allclose(moved.covs[[0, 2]], mixture.covs[[0, 2]])
    np.testing.assert_allclose(moved.weights, np.array([a, 1 / 3, c]) / (a + 1 / 3 + c))


def test_where_all_points_are_explained_alike_any_of_them_may_be_drawn() -> None:
    mixture, weights = random_mixture(np.random.default_rng(16), 2, 1), np.array([0.25, 0.75])
    draws = Draws([[1]])
    gmm._reseed(mixture, np.array([True, False]), np.ones((2, 1)), weights, np.zeros(2), draws)  # type: ignore[arg-type]
    np.testing.assert_allclose(draws.chances[0], weights)


def test_clusters_that_win_no_point_at_all_divide_nothing_by_zero() -> None:
    rng = np.random.default_rng(17)
    points = rng.normal(size=(40, 2))
    far = GaussianMixture(np.full(2, 0.5), np.array([[0.0, 0.0], [1e6, 0.0]]), np.repeat(np.eye(2)[None], 2, 0))
    with np.errstate(divide="raise", invalid="raise"):
        assert np.isfinite(fit_mixture(points, 2, rng, warm_start=far).means).all()


@pytest.mark.parametrize(("level", "spread", "constant"), [(0.0, 1e-21, True), (0.0, 1e-19, False), (1e6, 1e-5, True)])
def test_what_varies_by_rounding_alone_is_constant(level: float, spread: float, constant: bool) -> None:
    mean, std = gmm._standardization(level + spread * np.array([[-1.0], [1.0]]), np.full(2, 0.5))
    assert mean[0] == pytest.approx(level) and std[0] == (1.0 if constant else pytest.approx(spread))


def test_limits_of_the_numbers() -> None:
    rng = np.random.default_rng(18)
    points = rng.normal(size=(60, 2))
    fit_mixture(points, 1, rng, regularization=1e-10)
    assert fit_mixture(points[:3], 3, rng).means.shape == (3, 2)
    assert number_of_components(100, samples_per_cluster=1, max_clusters=1) == 1
    with pytest.raises(ValueError, match="samples_per_cluster"):
        number_of_components(100, samples_per_cluster=0)
    for bad in (np.ones(59), np.full(60, np.nan), np.full(60, np.inf)):
        with pytest.raises(ValueError, match="60 finite, non-negative numbers"):
            fit_mixture(points, 1, rng, point_weights=bad)


@pytest.mark.parametrize("n_iterations", [1, 2, 3])
def test_iterations_are_no_more_than_asked_for(n_iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, original = [], gmm._expectation
    monkeypatch.setattr(gmm, "_expectation", lambda *args: passes.append(1) or original(*args))
    points = sample(random_mixture(np.random.default_rng(3), 4, 3, spread=2.0), 500, np.random.default_rng(3))
    fit_mixture(points, 4, np.random.default_rng(0), max_iterations=n_iterations, tolerance=0.0)
    assert len(passes) == n_iterations


def test_it_stops_where_the_likelihood_changes_by_less_than_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to itself, and to one where it is small."""
    likelihoods = iter([-100.0, -90.0, -89.2, -88.4, 0.0, 0.015, 0.02, 5.0])
    passes, original = [], gmm._expectation

    def scripted(blocks: Any, mixture: GaussianMixture, weights: np.ndarray) -> Any:
        _, moments = original(blocks, mixture, weights)
        passes.append(1)
        return np.full(len(weights), next(likelihoods)), moments

    monkeypatch.setattr(gmm, "_expectation", scripted)
    points = np.random.default_rng(19).normal(size=(50, 2))
    fit_mixture(points, 1, np.random.default_rng(0), tolerance=0.01)
    assert len(passes) == 3, "90 to 89.2 is less than one in a hundred"
    next(likelihoods)
    passes.clear()
    fit_mixture(points, 1, np.random.default_rng(0), tolerance=0.01)
    assert len(passes) == 3, "0.015 to 0.02 is less than 0.01, 0 to 0.015 is not"


def test_weights_of_points_are_those_of_their_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(20)
    mixture, points, weights = random_mixture(rng, 3, 2), rng.normal(size=(50, 2)), rng.uniform(size=50)
    whole = gmm._expectation(list(gmm._feature_blocks(points)), mixture, weights)
    monkeypatch.setattr(gmm, "_BLOCK_BYTES", 8 * 6 * 15)
    blocks = list(gmm._feature_blocks(points))
    assert [block.shape[1] for block in blocks] == [15, 15, 15, 5]
    parts = gmm._expectation(blocks, mixture, weights)
    np.testing.assert_allclose(parts[0], whole[0])
    for name, array in vars(whole[1]).items():
        np.testing.assert_allclose(getattr(parts[1], name), array, rtol=1e-10)


def test_clusters_start_again_no_more_often_than_there_are_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one that is always lost would keep the others from settling."""
    reseeded: list[int] = []

    def in_vain(mixture: GaussianMixture, lost: np.ndarray, *rest: object) -> GaussianMixture:
        reseeded.append(int(lost.sum()))
        return mixture

    monkeypatch.setattr(gmm, "_reseed", in_vain)
    far = GaussianMixture(np.full(2, 0.5), np.array([[0.0, 0.0], [1e6, 0.0]]), np.repeat(np.eye(2)[None], 2, 0))
    fit_mixture(np.random.default_rng(21).normal(size=(50, 2)), 2, np.random.default_rng(0), warm_start=far)
    assert reseeded == [1, 1]
