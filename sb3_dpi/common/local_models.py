"""Local linear-Gaussian models of sampled trajectories: dynamics, cost and the policy's linearisation."""

from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_dpi.common.policies import BoundedGaussianPolicy
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.trajopt.dynamics import (
    LinearGaussianFit,
    Standardizer,
    fit_linear_gaussian,
    moments,
    window_prior,
)
from sb3_dpi.trajopt.gmm import GaussianMixture, fit_mixture, mixture_prior, number_of_components
from sb3_dpi.trajopt.types import (
    FloatArray,
    GaussianState,
    LinearGaussianController,
    LinearGaussianDynamics,
    NormalInverseWishart,
    QuadraticCost,
)


@dataclass(frozen=True)
class LocalModel:
    """What a planner needs to know around the sampled trajectories of each condition."""

    dynamics: LinearGaussianDynamics
    """``[M, T]``, of unnormalised states and actions in units of the bounds"""
    cost: QuadraticCost
    """``[M, T]``, zero behind ``lengths``"""
    policy: LinearGaussianController
    """``[M, T]``, the global policy linearised"""
    initial: GaussianState
    """``[M]``"""
    lengths: np.ndarray
    """``[M]``, planned time steps of each condition"""


@dataclass(frozen=True)
class PriorSettings:
    """How the normal-inverse-Wishart prior of a regression is built."""

    kind: str = "niw"
    """``"niw"``: neighbouring time steps and earlier iterations; ``"gmm"``: a Gaussian mixture of them"""
    window: int = 3
    """half width in time steps of the neighbourhood ("niw")"""
    mean_count: float = 1.0
    """pseudo-samples for the mean"""
    cov_count: float = 4.0
    """pseudo-samples for the covariance"""
    ridge: float = 1e-4
    """regularisation of the inputs, in standardised variance"""
    memory: int = 3
    """earlier iterations that the prior remembers"""
    max_clusters: int = 20
    """clusters of the mixture at most ("gmm")"""
    samples_per_cluster: int = 40
    """points for each cluster at least ("gmm")"""


@dataclass(frozen=True)
class History:
    """Points of earlier iterations, for the prior."""

    points: tuple[FloatArray, ...] = ()
    """each ``[M, N, T, D]``, latest last"""
    weights: tuple[FloatArray, ...] = ()
    """each ``[M, N, T]``"""
    mixture: GaussianMixture | None = None
    """of the last iteration, for a warm start"""

    def appended(self, points: FloatArray, weights: FloatArray, memory: int) -> "History":
        """Remember one more iteration and forget the oldest.

        :param points: ``[M, N, T, D]``
        :param weights: ``[M, N, T]``
        :param memory: iterations to keep
        :return: the new history
        """
        first = max(0, len(self.points) + 1 - memory)
        return History((*self.points, points)[first:], (*self.weights, weights)[first:], self.mixture)


def transition_points(trajectories: Trajectories) -> FloatArray:
    """Stack [x; u; x'] with the actions that were executed.

    :param trajectories: sampled
    :return: ``[M, N, T, 2 dx + du]``
    """
    states = trajectories.states
    points = np.concatenate([states[:, :, :-1], trajectories.executed_actions, states[:, :, 1:]], -1)
    return np.where(trajectories.alive[..., None], points, 0.0)


def planned_lengths(trajectories: Trajectories, min_samples: int) -> np.ndarray:
    """Leading time steps with enough living samples, for each condition.

    :param trajectories: sampled
    :param min_samples: living samples that a time step needs
    :return: ``[M]``
    :raises ValueError: if no condition has a step left
    """
    enough = trajectories.alive.sum(1) >= min_samples
    lengths = np.where(enough.all(-1), enough.shape[-1], np.argmin(enough, -1))
    if not np.any(lengths > 0):
        raise ValueError(
            f"No time step has the {min_samples} living samples that a fit needs: raise samples_per_condition "
            "(or lower min_samples)"
        )
    return lengths


def fit_regression(
    points: FloatArray,
    weights: FloatArray,
    n_inputs: int,
    settings: PriorSettings,
    history: History,
    share_conditions: bool,
    rng: np.random.Generator,
) -> tuple[LinearGaussianFit, History]:
    """Fit outputs on inputs with the prior of ``settings``.

    :param points: inputs and outputs stacked, ``[M, N, T, D]``
    :param weights: ``[M, N, T]``
    :param n_inputs: how many of the D variables are inputs
    :param settings: kind and strength of the prior
    :param history: earlier iterations
    :param share_conditions: whether earlier conditions are other ones than today's, so that their points are pooled
    :param rng: of the mixture's start
    :return: the fit, and the history with this iteration
    """
    scale = Standardizer.fit(points, weights)
    prior, mixture = _make_prior(points, weights, scale, settings, history, share_conditions, rng)
    fit = fit_linear_gaussian(points, weights, n_inputs, prior, scale, settings.ridge)
    updated = History(history.points, history.weights, mixture)
    return fit, updated.appended(points, weights, settings.memory)


def _make_prior(
    points: FloatArray,
    weights: FloatArray,
    scale: Standardizer,
    settings: PriorSettings,
    history: History,
    share_conditions: bool,
    rng: np.random.Generator,
) -> tuple[NormalInverseWishart, GaussianMixture | None]:
    standard = scale.apply(points)
    if settings.kind == "gmm":
        all_points = [points, *history.points]
        flat = np.concatenate([array.reshape(-1, array.shape[-1]) for array in all_points])
        living = np.concatenate([array.reshape(-1) for array in (weights, *history.weights)]) > 0
        n_clusters = number_of_components(int(living.sum()), settings.samples_per_cluster, settings.max_clusters)
        mixture = fit_mixture(scale.apply(flat[living]), n_clusters, rng)
        by_time, weights_by_time = np.swapaxes(standard, 1, 2), np.swapaxes(weights, 1, 2)
        return mixture_prior(mixture, by_time, weights_by_time, settings.mean_count, settings.cov_count), mixture
    neighbours = moments(standard, weights).windowed(settings.window)
    for old_points, old_weights in zip(history.points, history.weights, strict=True):
        old = moments(scale.apply(old_points), old_weights).windowed(settings.window)
        neighbours = neighbours + (old.pooled().scaled(1.0 / len(old.count)) if share_conditions else old)
    everything = neighbours.pooled()
    everything = everything.scaled(1.0 / max(float(everything.count.mean()), 1.0))
    return window_prior(neighbours + everything, settings.mean_count, settings.cov_count), None


def as_dynamics(fit: LinearGaussianFit) -> LinearGaussianDynamics:
    """Read a regression of x' on [x; u] as dynamics.

    :param fit: of ``transition_points``
    :return: dynamics
    """
    return LinearGaussianDynamics(fit.coef, fit.bias, fit.cov)


def initial_state(trajectories: Trajectories) -> GaussianState:
    """Mean and covariance of the first states of each condition.

    :param trajectories: sampled
    :return: ``[M]``
    """
    weights = trajectories.weights[:, :, 0]
    first = trajectories.states[:, :, 0]
    total = np.maximum(weights.sum(1), 1.0)[:, None]
    mean = np.sum(weights[..., None] * first, 1) / total
    centred = (first - mean[:, None]) * weights[..., None]
    cov = np.swapaxes(centred, 1, 2) @ centred / total[..., None]
    scale = np.maximum(trajectories.states.reshape(-1, first.shape[-1]).var(0), 1e-12)
    return GaussianState(mean, cov + 1e-6 * np.diag(scale))


def policy_mean_and_jacobian(
    policy: BoundedGaussianPolicy, inputs: np.ndarray, input_scale: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean action and its derivative with respect to the planner's state.

    :param policy: whose observation is the planner's state, up to a scale
    :param inputs: what the policy saw, ``[n, dx]``
    :param input_scale: derivative of the policy's input with respect to the state, ``[dx]``
    :return: mean ``[n, du]``, Jacobian ``[n, du, dx]``
    """
    tensor = th.as_tensor(inputs, dtype=th.float32, device=policy.device).requires_grad_()
    mean = policy.action_mean(tensor)
    rows = [th.autograd.grad(mean[:, i].sum(), tensor, retain_graph=True)[0] for i in range(mean.shape[1])]
    jacobian = th.stack(rows, 1).reshape(len(inputs), mean.shape[1], -1).double().cpu().numpy()
    return mean.detach().double().cpu().numpy(), jacobian * input_scale


def average_jacobians(
    states: FloatArray, means: FloatArray, jacobians: FloatArray, weights: FloatArray
) -> LinearGaussianFit:
    """Linearise a policy by averaging its Jacobians over the samples of each time step.

    :param states: ``[M, N, T, dx]``
    :param means: the policy's mean actions there, ``[M, N, T, du]``
    :param jacobians: ``[M, N, T, du, dx]``
    :param weights: ``[M, N, T]``
    :return: means on states; the covariance is what linearity leaves unexplained
    """
    total = weights.sum(1)
    # steps without a living sample are cut from the plan; what stands there only has to be finite
    safe = np.where(total[:, None] > 0, weights, 1.0)
    share = safe / safe.sum(1, keepdims=True)
    K = np.einsum("mnt,mntux->mtux", share, jacobians)
    centre = np.einsum("mnt,mntx->mtx", share, states)
    k = np.einsum("mnt,mntu->mtu", share, means) - np.einsum("mtux,mtx->mtu", K, centre)
    residual = means - np.einsum("mtux,mntx->mntu", K, states) - k[:, None]
    cov = np.einsum("mnt,mntu,mntv->mtuv", share, residual, residual)
    return LinearGaussianFit(K, k, cov)


def as_controller(fit: LinearGaussianFit, std: FloatArray) -> LinearGaussianController:
    """Read a regression of mean actions on states as a controller with the policy's exploration.

    :param fit: means on states
    :param std: of the policy, ``[du]``
    :return: controller whose covariance is the policy's plus what the fit left unexplained
    """
    return LinearGaussianController(fit.coef, fit.bias, fit.cov + np.diag(std**2))


def step_costs(trajectories: Trajectories, gamma: float) -> FloatArray:
    """Costs (minus rewards) of the living steps; a death also forgoes the rewards that life would have brought.

    Dead states have value zero by definition, so that a step into death costs the average reward of all the steps that
    would have followed: r (gamma + gamma^2 + ...), up to the horizon where gamma is 1.

    :param trajectories: sampled
    :param gamma: discount factor
    :return: ``[M, N, T]``
    """
    mean_reward = float(np.average(trajectories.rewards, weights=trajectories.weights))
    horizon = trajectories.rewards.shape[-1]
    remaining = horizon if gamma == 1.0 else min(gamma / (1.0 - gamma), 1e6)
    return -trajectories.rewards + np.where(trajectories.terminated, mean_reward * remaining, 0.0)


def cut_cost(cost: QuadraticCost, lengths: np.ndarray) -> QuadraticCost:
    """Remove the cost of the time steps that are not planned.

    :param cost: ``[M, T]``
    :param lengths: planned time steps, ``[M]``
    :return: zero behind ``lengths``
    """
    keep = (np.arange(cost.const.shape[1]) < lengths[:, None]).astype(np.float64)
    return QuadraticCost(cost.C * keep[..., None, None], cost.c * keep[..., None], cost.const * keep)


def held_out_error(
    points: FloatArray, weights: FloatArray, n_inputs: int, settings: PriorSettings, held_out: int, lengths: np.ndarray
) -> float:
    """One-step error on trajectories left out of the fit, relative to the spread of what is predicted.

    :param points: inputs and outputs stacked, ``[M, N, T, D]``
    :param weights: ``[M, N, T]``
    :param n_inputs: how many variables are inputs
    :param settings: of the prior; earlier iterations are not used
    :param held_out: index of the sample left out
    :param lengths: planned time steps, ``[M]``
    :return: mean squared error over variance of the change from state to state, averaged over the outputs
    """
    kept = weights.copy()
    kept[:, held_out] = 0.0
    fit, _ = fit_regression(points, kept, n_inputs, settings, History(), True, np.random.default_rng(0))
    truth, inputs = points[:, held_out : held_out + 1, :, n_inputs:], points[:, held_out : held_out + 1, :, :n_inputs]
    planned = np.arange(points.shape[2]) < lengths[:, None, None]
    mask = (weights[:, held_out : held_out + 1] > 0) & planned
    if not mask.any():
        return float("nan")
    error = (truth - fit.predict(inputs))[mask]
    change = (truth - inputs[..., : truth.shape[-1]])[mask]
    varies = change.var(0) > 1e-12
    return float(np.mean((error**2).mean(0)[varies] / change.var(0)[varies])) if varies.any() else 0.0
