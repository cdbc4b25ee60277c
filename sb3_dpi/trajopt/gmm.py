"""Gaussian mixtures as priors of time-varying linear-Gaussian models.

Problem: a regression at one time step sees only a handful of samples. A mixture of Gaussians fitted to the transitions
of all time steps describes where in the state-action space the system behaves alike, and serves as the
normal-inverse-Wishart prior of each time step's regression (Levine and Abbeel 2014, section 4.1; MDGPS, appendix B.1).
The mixture maximises

    sum_n w_n log sum_k weights_k N(y_n; means_k, covs_k)

by expectation-maximisation, with y = [x; u; x'] for dynamics or [x; u] for policies.

Shapes: points ``[n, D]``, mixtures of ``K`` clusters, queries ``[..., n, D]`` where ``...`` are conditions and time steps.
Inside, every variable has mean 0 and variance 1. A log-density is then linear in the features ``[y y'; y; 1]``, so that
both steps of an iteration are one matrix product each with features that are computed once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sb3_dpi.trajopt.types import BoolArray, FloatArray, NormalInverseWishart

_BLOCK_BYTES = 32e6
_CACHE_BYTES = 256e6
_MIN_REGULARIZATION = 1e-10


@dataclass(frozen=True)
class GaussianMixture:
    """Mixture of ``K`` Gaussians of ``D`` variables."""

    weights: FloatArray
    """``[K]``, non-negative, sum 1"""
    means: FloatArray
    """``[K, D]``"""
    covs: FloatArray
    """``[K, D, D]``, positive definite"""


@dataclass(frozen=True)
class _Moments:
    """What the E-step hands to the M-step: weighted sums over points per cluster."""

    mass: FloatArray
    """``[K]``, sum 1 over clusters"""
    first: FloatArray
    """``[K, D]``, divided by the mass"""
    second: FloatArray
    """``[K, D, D]``, divided by the mass"""


def number_of_components(n_points: int, samples_per_cluster: int = 40, max_clusters: int = 20) -> int:
    """
    Choose the number of clusters from the amount of data.

    :param n_points: number of points that the mixture will be fitted to
    :param samples_per_cluster: points wanted per cluster, usually 20 to 50
    :param max_clusters: upper limit, usually 10 to 50
    :return: number of clusters, at least 1
    :raises ValueError: if ``samples_per_cluster`` or ``max_clusters`` is below 1
    """
    if samples_per_cluster < 1 or max_clusters < 1:
        raise ValueError(
            f"`samples_per_cluster` and `max_clusters` must be at least 1, got {samples_per_cluster}, {max_clusters}"
        )
    return max(1, min(max_clusters, n_points // samples_per_cluster))


def fit_mixture(
    points: FloatArray,
    n_components: int,
    rng: np.random.Generator,
    warm_start: GaussianMixture | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-5,
    regularization: float = 1e-6,
    point_weights: FloatArray | None = None,
) -> GaussianMixture:
    """
    Fit a mixture of Gaussians with full covariances by expectation-maximisation.

    :param points: ``[n, D]``, at least ``n_components`` of them with a positive weight
    :param n_components: number of clusters ``K``, see :func:`number_of_components`
    :param rng: source of the first centres and of the places where clusters that lost their points start again
    :param warm_start: mixture to start from, e.g. that of the last iteration; ignored if its shape does not fit
    :param max_iterations: limit of iterations, usually 20 to 100
    :param tolerance: stop when the mean log-likelihood changes by less than this fraction of itself, usually 1e-6 to 1e-3
    :param regularization: added to the diagonal of every covariance, as a fraction of the variable's variance over all
        points; from 1e-10, usually 1e-6 to 1e-3. A variable that never changes counts as one of variance 1.
    :param point_weights: ``[n]``, non-negative; all alike by default
    :return: the mixture in the coordinates of ``points``
    :raises ValueError: if points or weights are not finite, too few, or of the wrong shape
    """
    points, weights = _check_points(points, n_components, point_weights)
    if regularization < _MIN_REGULARIZATION:
        raise ValueError(f"`regularization` must be at least {_MIN_REGULARIZATION}, got {regularization}")
    shift, scale = _standardization(points, weights)
    points = (points - shift) / scale
    if warm_start is not None and warm_start.means.shape == (n_components, points.shape[1]):
        mixture = _standardize(warm_start, shift, scale, regularization)
    else:
        mixture = _initial_mixture(points, weights, n_components, rng, regularization)

    blocks = _feature_source(points)
    reseeds_left = n_components
    previous = -np.inf
    for _ in range(max_iterations):
        log_densities, moments = _expectation(blocks, mixture, weights)
        lost = moments.mass < 0.5 * weights.min()
        mixture = _maximization(moments, mixture, lost, regularization)
        if lost.any() and reseeds_left > 0:
            reseeds_left -= int(lost.sum())
            mixture = _reseed(mixture, lost, points, weights, log_densities, rng)
            previous = -np.inf
            continue
        log_likelihood = float(weights @ log_densities)
        if abs(log_likelihood - previous) <= tolerance * max(1.0, abs(log_likelihood)):
            break
        previous = log_likelihood
    return GaussianMixture(mixture.weights, mixture.means * scale + shift, mixture.covs * np.outer(scale, scale))


def responsibilities(mixture: GaussianMixture, points: FloatArray) -> FloatArray:
    """
    Probability of each cluster given a point.

    :param mixture: of ``K`` clusters
    :param points: ``[..., D]``, finite
    :return: ``[..., K]``, sum 1 over clusters
    """
    shift = mixture.weights @ mixture.means
    deviations = mixture.means - shift
    scale = np.sqrt(mixture.weights @ (np.diagonal(mixture.covs, axis1=-2, axis2=-1) + deviations**2))
    parameters = _natural_parameters(_standardize(mixture, shift, scale, 0.0))
    flat = (points.reshape(-1, points.shape[-1]) - shift) / scale
    posterior = np.concatenate([_softmax(parameters @ features)[0] for features in _feature_blocks(flat)], axis=1)
    return np.ascontiguousarray(posterior.T).reshape(*points.shape[:-1], -1)


def mixture_prior(
    mixture: GaussianMixture, points: FloatArray, weights: FloatArray, mean_count: float = 1.0, cov_count: float = 1.0
) -> NormalInverseWishart:
    """
    Prior of one Gaussian per batch entry: the mixture, as seen from that entry's samples.

    The clusters' probabilities are averaged over the samples; mean and covariance (within and between clusters) are
    those of the mixture with these averages as weights (Levine and Abbeel 2014, section 4.1; MDGPS, appendix B.1).

    :param mixture: of ``K`` clusters of ``D`` variables
    :param points: ``[..., n, D]``, the samples of each entry, e.g. of one condition and time step
    :param weights: ``[..., n]``, non-negative; 0 for a trajectory that has ended, whose point is not read. An entry
        without living samples gets the mixture's own mean and covariance.
    :param mean_count: pseudo-samples behind the mean, usually 0 to 1
    :param cov_count: pseudo-samples behind the covariance; 1 lets a few samples outweigh the prior, as in the papers
    :return: prior with mean ``[..., D]`` and covariance ``[..., D, D]``
    """
    points = np.where(weights[..., None] > 0, points, mixture.weights @ mixture.means)
    total = np.sum(weights, -1)
    averaged = (weights[..., None, :] @ responsibilities(mixture, points))[..., 0, :]
    alive = total[..., None] > 0
    cluster_weights = np.where(alive, averaged / np.where(alive, total[..., None], 1.0), mixture.weights)

    mean = cluster_weights @ mixture.means
    dim = mean.shape[-1]
    within = (cluster_weights @ mixture.covs.reshape(-1, dim * dim)).reshape(*mean.shape, dim)
    # deviations from each entry's own mean: the difference of second moments would lose digits far from the origin
    deviations = np.sqrt(cluster_weights)[..., None] * (mixture.means - mean[..., None, :])
    between = np.swapaxes(deviations, -1, -2) @ deviations
    cov = within + between
    return NormalInverseWishart(mean, 0.5 * (cov + np.swapaxes(cov, -1, -2)), mean_count, cov_count)


def _check_points(points: FloatArray, n_components: int, point_weights: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    """:return: points ``[n, D]`` of positive weight and their weights ``[n]``, sum 1"""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2:
        raise ValueError(f"points must have shape [n, D], got {points.shape}: flatten conditions, samples and time steps")
    weights = np.ones(len(points)) if point_weights is None else np.asarray(point_weights, dtype=np.float64)
    if weights.shape != points.shape[:1] or not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise ValueError(f"`point_weights` must be {len(points)} finite, non-negative numbers, one a point")
    points, weights = points[weights > 0], weights[weights > 0]
    if not np.all(np.isfinite(points)):
        index = int(np.flatnonzero(~np.isfinite(points).all(-1))[0])
        raise ValueError(f"point {index} of those with a positive weight is not finite: {points[index]}")
    if not 1 <= n_components <= len(points):
        raise ValueError(f"{n_components} components (at least 1) need at least as many points, got {len(points)}")
    return points, weights / weights.sum()


def _standardization(points: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """:return: mean and standard deviation of each variable, ``[D]`` each; 1 for the latter where it is rounding only"""
    mean = weights @ points
    std = np.sqrt(weights @ (points - mean) ** 2)
    return mean, np.where(std > 1e-10 * (1e-10 + np.abs(mean)), std, 1.0)


def _standardize(mixture: GaussianMixture, shift: FloatArray, scale: FloatArray, regularization: float) -> GaussianMixture:
    """:return: the mixture of ``(points - shift) / scale``"""
    covs = mixture.covs / np.outer(scale, scale) + regularization * np.eye(len(scale))
    return GaussianMixture(mixture.weights, (mixture.means - shift) / scale, covs)


def _initial_mixture(
    points: FloatArray, weights: FloatArray, n_components: int, rng: np.random.Generator, regularization: float
) -> GaussianMixture:
    """:return: centres spread out as in k-means++, all with the covariance of the points around their nearest centre"""
    centres = np.empty((n_components, points.shape[1]))
    distance = np.full(len(points), np.inf)
    nearest = np.zeros(len(points), dtype=np.intp)
    for k in range(n_components):
        chances = weights if k == 0 or not np.any(distance > 0) else weights * distance
        centres[k] = points[rng.choice(len(points), p=chances / chances.sum())]
        to_centre = np.sum((points - centres[k]) ** 2, -1)
        nearest = np.where(to_centre < distance, k, nearest)
        distance = np.minimum(distance, to_centre)
    mass = np.bincount(nearest, weights, n_components)
    sums = np.zeros_like(centres)
    np.add.at(sums, nearest, weights[:, None] * points)
    means = np.where(mass[:, None] > 0, sums / np.where(mass > 0, mass, 1.0)[:, None], centres)
    residuals = np.sqrt(weights)[:, None] * (points - means[nearest])
    cov = residuals.T @ residuals + regularization * np.eye(points.shape[1])
    # no cluster starts without weight: it could never win a point
    start = mass + 1.0 / len(points)
    return GaussianMixture(start / start.sum(), means, np.repeat(cov[None], n_components, axis=0))


def _feature_blocks(points: FloatArray) -> Iterator[FloatArray]:
    """:return: features ``[F, n]`` of successive blocks of points: upper triangle of ``y y'`` row by row, ``y``, 1"""
    dim = points.shape[1]
    n_features = dim * (dim + 1) // 2 + dim + 1
    size = max(1, int(_BLOCK_BYTES / (8 * n_features)))
    for begin in range(0, len(points), size):
        block = np.ascontiguousarray(points[begin : begin + size].T)
        features = np.empty((n_features, block.shape[1]))
        row = 0
        for i in range(dim):
            np.multiply(block[i], block[i:], out=features[row : row + dim - i])
            row += dim - i
        features[row:-1] = block
        features[-1] = 1.0
        yield features


class _Blocks:
    """Features of all points, computed anew at every pass (where they would not fit into memory)."""

    def __init__(self, points: FloatArray) -> None:
        self.points = points

    def __iter__(self) -> Iterator[FloatArray]:
        return _feature_blocks(self.points)


def _feature_source(points: FloatArray) -> Iterable[FloatArray]:
    """:return: something to run through the feature blocks any number of times"""
    blocks = _Blocks(points)
    n_bytes = 4 * len(points) * (points.shape[1] + 1) * (points.shape[1] + 2)
    return list(blocks) if n_bytes <= _CACHE_BYTES else blocks


def _natural_parameters(mixture: GaussianMixture) -> FloatArray:
    """:return: ``[K, F]``, whose product with the features is log weight plus log density"""
    dim = mixture.means.shape[1]
    lower = np.linalg.cholesky(mixture.covs)
    whitening = np.linalg.inv(lower)
    precision = np.swapaxes(whitening, -1, -2) @ whitening
    linear = (precision @ mixture.means[..., None])[..., 0]
    log_det = 2.0 * np.sum(np.log(np.diagonal(lower, axis1=-2, axis2=-1)), -1)
    with np.errstate(divide="ignore"):
        log_weights = np.log(mixture.weights)
    constant = log_weights - 0.5 * (np.sum(linear * mixture.means, -1) + log_det + dim * np.log(2.0 * np.pi))
    # off-diagonal entries stand for two equal ones
    quadratic = -precision * (1.0 - 0.5 * np.eye(dim))
    rows, columns = np.triu_indices(dim)
    return np.concatenate([quadratic[:, rows, columns], linear, constant[:, None]], axis=1)


def _softmax(log_joint: FloatArray) -> tuple[FloatArray, FloatArray]:
    """:return: normalised exponentials over the first axis ``[K, n]`` and the logarithm of their sum ``[n]``"""
    largest = log_joint.max(0)
    joint = np.exp(log_joint - largest)
    total = joint.sum(0)
    return joint / total, np.log(total) + largest


def _expectation(blocks: Iterable[FloatArray], mixture: GaussianMixture, weights: FloatArray) -> tuple[FloatArray, _Moments]:
    """:return: log density of each point ``[n]`` and the weighted moments of each cluster"""
    n_clusters, dim = mixture.means.shape
    parameters = _natural_parameters(mixture)
    sums = np.zeros_like(parameters)
    log_densities = []
    begin = 0
    for features in blocks:
        posterior, log_density = _softmax(parameters @ features)
        sums += (posterior * weights[begin : begin + features.shape[1]]) @ features.T
        log_densities.append(log_density)
        begin += features.shape[1]
    mass = sums[:, -1]
    sums = sums / np.where(mass > 0, mass, 1.0)[:, None]
    second = np.empty((n_clusters, dim, dim))
    rows, columns = np.triu_indices(dim)
    second[:, rows, columns] = second[:, columns, rows] = sums[:, : len(rows)]
    return np.concatenate(log_densities), _Moments(mass, sums[:, len(rows) : -1], second)


def _maximization(moments: _Moments, mixture: GaussianMixture, lost: BoolArray, regularization: float) -> GaussianMixture:
    """:return: the mixture of these moments; clusters that lost their points stay where they were"""
    means = np.where(lost[:, None], mixture.means, moments.first)
    covs = moments.second - means[:, :, None] * means[:, None, :] + regularization * np.eye(means.shape[1])
    covs = np.where(lost[:, None, None], mixture.covs, covs)
    return GaussianMixture(moments.mass / moments.mass.sum(), means, covs)


def _reseed(
    mixture: GaussianMixture,
    lost: BoolArray,
    points: FloatArray,
    weights: FloatArray,
    log_densities: FloatArray,
    rng: np.random.Generator,
) -> GaussianMixture:
    """:return: the mixture with its lost clusters moved to points that it explains badly, as wide as its average cluster"""
    chances = weights * (log_densities.max() - log_densities)
    chances = chances / chances.sum() if chances.sum() > 0 else weights
    means, covs = mixture.means.copy(), mixture.covs.copy()
    means[lost] = points[rng.choice(len(points), size=int(lost.sum()), p=chances)]
    covs[lost] = np.average(mixture.covs[~lost], axis=0, weights=mixture.weights[~lost])
    new_weights = np.where(lost, 1.0 / len(lost), mixture.weights)
    return GaussianMixture(new_weights / new_weights.sum(), means, covs)
