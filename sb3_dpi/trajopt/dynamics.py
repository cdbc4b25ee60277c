"""Time-varying linear-Gaussian regression with a normal-inverse-Wishart prior.

Problem: from N sampled trajectories of a condition fit, for every time step, outputs ~ N(coef_t inputs + bias_t, cov_t).
With inputs z = [x; u] and outputs x' it is the dynamics of guided policy search, with inputs x and outputs u the
linearised global policy (MDGPS, section 3.1 and appendix B.1). A handful of trajectories cannot determine it alone: the
joint Gaussian of [inputs; outputs] gets a normal-inverse-Wishart prior (mean mu0 worth m samples, covariance Phi worth n0),

    mean  = (n xbar + m mu0) / (n + m),
    Sigma = (n0 Phi + n S + n m / (n + m) (xbar - mu0)(xbar - mu0)') / (n0 + n),

and is conditioned on its inputs. The prior comes from neighbouring time steps and earlier iterations (``window_prior``)
or from a Gaussian mixture (``gmm``).

Shapes: points ``[..., N, T, D]`` (D inputs and outputs stacked), weights ``[..., N, T]`` (0 for dead samples), moments
``[..., T, D]``. All regressions run in coordinates standardised over the whole batch.
"""

from dataclasses import dataclass

import numpy as np

from sb3_dpi.trajopt.lqr import matvec, symmetrize
from sb3_dpi.trajopt.types import FloatArray, NormalInverseWishart
from sb3_dpi.trajopt.units import spread_or_one

_CENTRES_AT_ONCE = 32


@dataclass(frozen=True)
class Standardizer:
    """Pooled location and scale of a batch of points."""

    mean: FloatArray
    """``[D]``"""
    std: FloatArray
    """``[D]``, 1 where a variable is constant"""

    @classmethod
    def fit(cls, points: FloatArray, weights: FloatArray) -> "Standardizer":
        """Pool over all axes but the last.

        :param points: ``[..., D]``
        :param weights: ``[...]``
        :return: mean and standard deviation
        """
        total = float(weights.sum()) or 1.0
        flat, flat_weights = points.reshape(-1, points.shape[-1]), weights.reshape(-1)
        mean = flat_weights @ flat / total
        variance = flat_weights @ (flat - mean) ** 2 / total
        std = np.sqrt(variance)
        return cls(mean, spread_or_one(std, mean))

    def apply(self, points: FloatArray) -> FloatArray:
        """Standardise points.

        :param points: ``[..., D]``
        :return: ``[..., D]``
        """
        return (points - self.mean) / self.std


@dataclass(frozen=True)
class Moments:
    """Sums over samples: number, sum and sum of outer products. They add."""

    count: FloatArray
    """``[..., T]``"""
    total: FloatArray
    """``[..., T, D]``"""
    outer: FloatArray
    """``[..., T, D, D]``"""

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def scaled(self, weight: float) -> "Moments":
        """Count every sample ``weight`` times.

        :param weight: at least 0
        :return: scaled sums
        """
        return Moments(weight * self.count, weight * self.total, weight * self.outer)

    def pooled(self) -> "Moments":
        """Sum over the first batch axis (conditions), which is kept with length 1."""
        return Moments(self.count.sum(0, keepdims=True), self.total.sum(0, keepdims=True), self.outer.sum(0, keepdims=True))

    def windowed(self, width: int) -> "Moments":
        """Sum over the time steps t - width .. t + width.

        :param width: half width of the window, in time steps
        :return: sums over the windows
        """
        return Moments(
            *(_window_sum(array, width, axis=self.count.ndim - 1) for array in (self.count, self.total, self.outer))
        )


def _window_sum(array: FloatArray, width: int, axis: int) -> FloatArray:
    horizon = array.shape[axis]
    cumulative = np.concatenate([np.zeros_like(np.take(array, [0], axis)), np.cumsum(array, axis)], axis)
    steps = np.arange(horizon)
    upper, lower = np.minimum(steps + width + 1, horizon), np.maximum(steps - width, 0)
    sums: FloatArray = np.take(cumulative, upper, axis) - np.take(cumulative, lower, axis)
    return sums


def moments(points: FloatArray, weights: FloatArray) -> Moments:
    """Sum over the samples of each condition and time step.

    :param points: ``[..., N, T, D]``
    :param weights: ``[..., N, T]``
    :return: sums, ``[..., T]``
    """
    by_time = np.swapaxes(points, -2, -3)
    weighted = by_time * np.swapaxes(weights, -1, -2)[..., None]
    return Moments(weights.sum(-2), weighted.sum(-2), np.swapaxes(weighted, -1, -2) @ by_time)


def window_prior(neighbours: Moments, mean_count: float, cov_count: float) -> NormalInverseWishart:
    """Turn pooled sums into a prior worth a few samples.

    :param neighbours: sums over neighbouring time steps, earlier iterations or other conditions
    :param mean_count: pseudo-samples for the mean, m
    :param cov_count: pseudo-samples for the covariance, n0; usual: 1 to 10
    :return: the prior, ``[..., T]``
    """
    count = np.maximum(neighbours.count, 1e-12)
    mean = neighbours.total / count[..., None]
    cov = neighbours.outer / count[..., None, None] - mean[..., :, None] * mean[..., None, :]
    return NormalInverseWishart(mean, symmetrize(cov), mean_count, cov_count)


def nearest_prior(
    points: FloatArray,
    weights: FloatArray,
    pool: FloatArray,
    n_inputs: int,
    n_neighbours: int,
    mean_count: float,
    cov_count: float,
    max_pool: int = 4000,
) -> NormalInverseWishart:
    """Build a prior for each time step from the points nearest to its mean input, whenever they were sampled.

    :param points: standardised inputs and outputs, ``[..., N, T, D]``
    :param weights: ``[..., N, T]``
    :param pool: standardised points to choose from, most recent first, ``[P, D]``, at least one
    :param n_inputs: how many variables are inputs; distances are measured in them
    :param n_neighbours: points for each time step; usual: 10 to 40 for each input
    :param mean_count: pseudo-samples for the mean, m
    :param cov_count: pseudo-samples for the covariance, n0; usual: 10 to 200
    :param max_pool: of a larger pool, its most recent points and an even selection of the older ones are used, half each;
        time grows in proportion
    :return: the prior, ``[..., T]``
    :raises ValueError: if the pool is empty
    """
    if not len(pool):
        raise ValueError("the prior has no points to choose from: no sample is alive")
    pool = thin_pool(pool, max_pool)
    sums = moments(points, weights)
    centres = (sums.total / np.maximum(sums.count, 1e-12)[..., None]).reshape(-1, points.shape[-1])[:, :n_inputs]
    n_points, dim = min(n_neighbours, len(pool)), points.shape[-1]
    means, covs = np.empty((len(centres), dim)), np.empty((len(centres), dim, dim))
    neighbours = np.empty((n_points, dim))
    for begin in range(0, len(centres), _CENTRES_AT_ONCE):
        block = centres[begin : begin + _CENTRES_AT_ONCE]
        distances = _half_squared_distances(block, pool[:, :n_inputs])
        for i, distance in enumerate(distances, start=begin):
            chosen = np.argpartition(distance, n_points - 1)[:n_points]
            near = distance[chosen]
            share = np.exp(-2.0 * near / max(near.max(), 1e-12))
            share /= share.sum()
            # into one buffer, which stays in the cache
            np.take(pool, chosen, axis=0, out=neighbours, mode="clip")
            means[i] = share @ neighbours
            neighbours -= means[i]
            neighbours *= np.sqrt(share)[:, None]
            covs[i] = neighbours.T @ neighbours
    shape = (*sums.count.shape, dim)
    return NormalInverseWishart(means.reshape(shape), covs.reshape(*shape, dim), mean_count, cov_count)


def _half_squared_distances(centres: FloatArray, points: FloatArray) -> FloatArray:
    """Half the squared distance of each centre to each point, ``[n_centres, n_points]``."""
    distances = centres @ points.T
    np.subtract(0.5 * np.sum(points**2, 1), distances, out=distances)
    distances += 0.5 * np.sum(centres**2, 1)[:, None]
    return np.maximum(distances, 0.0, out=distances)


def thin_pool(pool: FloatArray, max_pool: int) -> FloatArray:
    """Keep the most recent points and an even selection of the older ones, half each.

    :param pool: most recent first, ``[P, D]``
    :param max_pool: points to keep at most
    :return: ``[min(P, max_pool), D]``, in the same order
    """
    if len(pool) <= max_pool:
        return pool
    recent = max_pool // 2
    older = recent + (np.arange(max_pool - recent) * (len(pool) - recent)) // (max_pool - recent)
    return np.concatenate([pool[:recent], pool[older]])


def posterior(data: Moments, prior: NormalInverseWishart) -> tuple[FloatArray, FloatArray]:
    """Mean and covariance of the joint Gaussian given data and prior.

    :param data: sums of the samples themselves
    :param prior: normal-inverse-Wishart prior that broadcasts against ``data``
    :return: mean ``[..., T, D]``, covariance ``[..., T, D, D]``
    """
    n = data.count[..., None]
    safe = np.maximum(n, 1e-12)
    sample_mean = data.total / safe
    scatter = data.outer - safe[..., None] * sample_mean[..., :, None] * sample_mean[..., None, :]
    m, n0 = prior.mean_count, prior.cov_count
    mean = (data.total + m * prior.mean) / np.maximum(n + m, 1e-12)
    shift = np.where(n > 0, sample_mean - prior.mean, 0.0)
    between = (n * m / np.maximum(n + m, 1e-12))[..., None] * shift[..., :, None] * shift[..., None, :]
    cov = (n0 * prior.cov + scatter + between) / np.maximum(n + n0, 1e-12)[..., None]
    return mean, symmetrize(cov)


def condition_gaussian(
    mean: FloatArray, cov: FloatArray, n_inputs: int, ridge: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Condition the last variables of a Gaussian on the first.

    :param mean: ``[..., D]``
    :param cov: ``[..., D, D]``
    :param n_inputs: how many of the D variables are inputs
    :param ridge: added to the diagonal of the inputs' covariance
    :return: coef ``[..., D - n_inputs, n_inputs]``, bias ``[..., D - n_inputs]``, covariance of the residual
    """
    inputs = cov[..., :n_inputs, :n_inputs] + ridge * np.eye(n_inputs)
    cross = cov[..., :n_inputs, n_inputs:]
    coef = np.swapaxes(np.linalg.solve(inputs, cross), -1, -2)
    bias = mean[..., n_inputs:] - matvec(coef, mean[..., :n_inputs])
    residual = cov[..., n_inputs:, n_inputs:] - coef @ cross
    return coef, bias, symmetrize(residual)


@dataclass(frozen=True)
class LinearGaussianFit:
    """outputs ~ N(coef inputs + bias, cov) for every condition and time step, in the caller's units."""

    coef: FloatArray
    """``[..., T, n_outputs, n_inputs]``"""
    bias: FloatArray
    """``[..., T, n_outputs]``"""
    cov: FloatArray
    """``[..., T, n_outputs, n_outputs]``, positive definite"""

    def predict(self, inputs: FloatArray) -> FloatArray:
        """Mean prediction for sampled inputs.

        :param inputs: ``[..., N, T, n_inputs]``
        :return: ``[..., N, T, n_outputs]``
        """
        by_time = np.swapaxes(inputs, -2, -3)
        return np.swapaxes(by_time @ np.swapaxes(self.coef, -1, -2) + self.bias[..., None, :], -2, -3)


def fit_linear_gaussian(
    points: FloatArray,
    weights: FloatArray,
    n_inputs: int,
    prior: NormalInverseWishart,
    scale: Standardizer,
    ridge: float = 1e-4,
) -> LinearGaussianFit:
    """Fit every condition and time step.

    :param points: inputs and outputs stacked, in the caller's units, ``[..., N, T, D]``
    :param weights: ``[..., N, T]``, 0 for dead samples
    :param n_inputs: how many of the D variables are inputs
    :param prior: in the standardised coordinates of ``scale``, ``[..., T]``
    :param scale: coordinates of the fit
    :param ridge: regularisation of the inputs' covariance, in standardised variance; usual: 1e-6 to 1e-3
    :return: the fit in the caller's units
    """
    mean, cov = posterior(moments(scale.apply(points), weights), prior)
    coef, bias, residual = condition_gaussian(mean, cov, n_inputs, ridge)
    in_mean, in_std = scale.mean[:n_inputs], scale.std[:n_inputs]
    out_mean, out_std = scale.mean[n_inputs:], scale.std[n_inputs:]
    residual = residual + 1e-9 * np.eye(residual.shape[-1])
    coef = coef * out_std[:, None] / in_std
    return LinearGaussianFit(
        coef=coef,
        bias=out_mean + out_std * bias - matvec(coef, np.broadcast_to(in_mean, (*coef.shape[:-2], n_inputs))),
        cov=residual * np.outer(out_std, out_std),
    )
