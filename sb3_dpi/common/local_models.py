"""Local linear-Gaussian models of sampled trajectories: dynamics and cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from sb3_dpi.common.choices import check_choice, numbers_of
from sb3_dpi.common.trajectories import Trajectories
from sb3_dpi.trajopt.cost import anchor, fit_cost, project_psd
from sb3_dpi.trajopt.dynamics import (
    LinearGaussianFit,
    Moments,
    Standardizer,
    fit_linear_gaussian,
    moments,
    nearest_prior,
    window_prior,
)
from sb3_dpi.trajopt.gmm import fit_mixture, mixture_prior, number_of_components
from sb3_dpi.trajopt.lqr import expected_cost, forward_marginals, matvec
from sb3_dpi.trajopt.types import (
    FloatArray,
    GaussianState,
    IntArray,
    LinearGaussianController,
    LinearGaussianDynamics,
    NormalInverseWishart,
    QuadraticCost,
    QuadraticValue,
)
from sb3_dpi.trajopt.units import varies
from sb3_dpi.world_model.known_cost import CostFunction, expand_cost

PRIORS = ("niw", "nearest", "gmm")
FITTED_AT_ONCE = 256e6
"""Bytes of joint covariances that are fitted at a time: their copies would fill the memory of many conditions."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class StateUnits:
    """Coordinates of the states in which they are of order one: planning must not depend on what they are measured in."""

    mean: FloatArray
    """``[M, dx]``"""
    std: FloatArray
    """``[M, dx]``"""

    @classmethod
    def of(cls, trajectories: Trajectories, n_conditions: int) -> "StateUnits":
        """Pool over all living states.

        :param trajectories: sampled
        :param n_conditions: M
        :return: the same for all conditions
        """
        scale = Standardizer.fit(trajectories.states[:, :, :-1], trajectories.weights)
        return cls(np.tile(scale.mean, (n_conditions, 1)), np.tile(scale.std, (n_conditions, 1)))

    def apply(self, controller: LinearGaussianController) -> LinearGaussianController:
        """Let a controller read states in these coordinates.

        :param controller: of states, ``[M, T]``
        :return: of ``(x - mean) / std``
        """
        offset = controller.k + matvec(controller.K, self.mean[:, None])
        return LinearGaussianController(controller.K * self.std[:, None, None], offset, controller.cov)

    def undo(self, controller: LinearGaussianController) -> LinearGaussianController:
        """Let a controller read states as they are.

        :param controller: of ``(x - mean) / std``, ``[M, T]``
        :return: of states
        """
        K = controller.K / self.std[:, None, None]
        return LinearGaussianController(K, controller.k - matvec(K, self.mean[:, None]), controller.cov)


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
    units: StateUnits
    """in which the states are of order one"""

    def standardized(self) -> "LocalModel":
        """The same model of states in its units.

        :return: dynamics, cost, policy and first states of ``(x - mean) / std``
        """
        std, mean, du = self.units.std, self.units.mean, self.policy.k.shape[-1]
        scale = np.concatenate([std, np.ones((len(std), du))], -1)[:, None]
        shift = np.concatenate([mean, np.zeros((len(mean), du))], -1)[:, None]
        F, f, out = self.dynamics.F, self.dynamics.f, std[:, None]
        dynamics = LinearGaussianDynamics(
            F * scale[:, :, None] / out[..., None],
            (matvec(F, shift) + f - mean[:, None]) / out,
            self.dynamics.cov / (out[..., None] * out[:, :, None]),
        )
        C, c = self.cost.C, self.cost.c
        slope = matvec(C, shift) + c
        const = self.cost.const + 0.5 * np.sum(shift * (slope + c), -1)
        cost = QuadraticCost(C * scale[..., None] * scale[:, :, None], slope * scale, const)
        initial = GaussianState((self.initial.mean - mean) / std, self.initial.cov / (std[..., None] * std[:, None]))
        units = StateUnits(np.zeros_like(mean), np.ones_like(std))
        return LocalModel(dynamics, cost, self.units.apply(self.policy), initial, self.lengths, units)

    def first(self, n_conditions: int) -> "LocalModel":
        """Restrict to the first conditions, those of the latest iteration.

        :param n_conditions: how many
        :return: their model
        """
        return take_conditions(self, slice(n_conditions))

    def shortened(self, lengths: np.ndarray) -> "LocalModel":
        """Plan fewer time steps.

        :param lengths: ``[M]``, at most the present ones
        :return: the model without cost behind them, and with states that stay finite there
        """
        keep = (np.arange(self.cost.const.shape[1]) < lengths[:, None]).astype(np.float64)
        cost = QuadraticCost(self.cost.C * keep[..., None, None], self.cost.c * keep[..., None], self.cost.const * keep)
        dynamics = replace(self.dynamics, F=self.dynamics.F * keep[..., None, None], f=self.dynamics.f * keep[..., None])
        return replace(self, cost=cost, dynamics=dynamics, lengths=lengths)

    def take(self, controller: LinearGaussianController) -> LinearGaussianController:
        """Restrict a controller to the conditions of this model.

        :param controller: of at least as many conditions
        :return: of this model's conditions
        """
        return take_conditions(controller, slice(len(self.lengths)))


def take_conditions(part: Part, conditions: slice | IntArray) -> Part:
    """Restrict arrays, or dataclasses of arrays, to some conditions.

    :param part: arrays ``[M, ...]``
    :param conditions: which
    :return: of these conditions
    """
    if isinstance(part, np.ndarray):
        return part[conditions]  # type: ignore
    return type(part)(*(take_conditions(getattr(part, field.name), conditions) for field in fields(part)))  # type: ignore


def join_conditions(parts: Sequence[Part]) -> Part:
    """Put arrays, or dataclasses of arrays, of several sets of conditions behind each other.

    :param parts: arrays ``[M_i, ...]``
    :return: ``[sum of M_i, ...]``
    """
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)  # type: ignore
    kind, names = type(parts[0]), [field.name for field in fields(parts[0])]  # type: ignore
    return kind(*(join_conditions([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class CostSettings:
    """How the quadratic cost is fitted to the rewards, or which known cost is expanded instead."""

    ridge: float = 1e-4
    """regularisation of the pooled fit; usual: 1e-6 to 1e-2"""
    local_window: int = 0
    """half width in time steps of a local correction of the gradient; 0 fits the pooled cost alone; usual: 1 to 10"""
    local_ridge: float = 0.1
    """shrinks the local correction; usual: .01 to 1"""
    death_spread: float = 0.9
    """how far a death's cost reaches back: ratio of the shares of a step and the next; 0 leaves it on the last step"""
    cost_fn: CostFunction | None = None
    """known cost, ``cost_fn(obs, action, next_obs) -> cost [n]`` (torch, batched, the environment's own units, minus the
    reward), expanded by automatic differentiation; the other settings are then those of the fitted values alone"""

    @classmethod
    def parse(cls, value: "CostFunction | dict[str, Any] | CostSettings | None") -> "CostSettings":
        """Read what a user or a YAML file gave.

        :param value: a dictionary of settings, settings, a known cost alone, or None for the defaults
        :return: settings
        :raises ValueError: if a setting is unknown
        """
        if isinstance(value, CostSettings):
            return value
        if callable(value):
            return cls(cost_fn=value)
        for key in value or {}:
            check_choice("setting of cost", key, tuple(field.name for field in fields(cls)))
        return cls(**numbers_of("cost", cls, value or {}))


@dataclass(frozen=True)
class RegressionSettings:
    """How a time-varying linear-Gaussian regression gets its normal-inverse-Wishart prior."""

    prior: str = "nearest"
    """``"niw"``: neighbouring time steps and earlier iterations; ``"nearest"``: the nearest points in state and action, of
    whatever time, condition and kept iteration; ``"gmm"``: a Gaussian mixture of all of them"""
    cov_count: float | None = None
    """pseudo-samples for the covariance; by default 4 ("niw"), 100 ("nearest") or as many as the inputs ("gmm")"""
    mean_count: float = 1.0
    """pseudo-samples for the mean"""
    ridge: float = 1e-4
    """regularisation of the inputs, in standardised variance; usual: 1e-6 to 1e-3"""
    window: int = 3
    """half width of the neighbourhood in time steps ("niw"); usual: 1 to 10"""
    neighbours: int = 400
    """points behind each time step's prior ("nearest"); usual: 10 to 40 for each input"""
    max_clusters: int = 20
    """clusters of the mixture at most ("gmm")"""
    samples_per_cluster: int = 40
    """points for each cluster at least ("gmm")"""
    min_samples: int = 2
    """living trajectories that a time step needs to be planned; later ones are cut (of the dynamics)"""

    @classmethod
    def parse(cls, name: str, value: "str | dict[str, Any] | RegressionSettings") -> "RegressionSettings":
        """Read what a user or a YAML file gave.

        :param name: of the argument, for the error
        :param value: a prior's name, a dictionary of settings, or settings
        :return: settings
        :raises ValueError: if the prior or a setting is unknown
        """
        if isinstance(value, RegressionSettings):
            return value
        known = tuple(field.name for field in fields(cls))
        options = {"prior": value} if isinstance(value, str) else dict(value)
        for key in options:
            check_choice(f"setting of {name}", key, known)
        check_choice(name, options.get("prior", cls.prior), PRIORS)
        return cls(**numbers_of(name, cls, options))


def transition_points(trajectories: Trajectories) -> FloatArray:
    """Stack [x; u; x'] with actions as they were sampled: clipping is part of the system, and nothing acts beyond the bounds.

    :param trajectories: sampled
    :return: ``[M, N, T, 2 dx + du]``, zero where dead
    """
    states = trajectories.states
    points = np.concatenate([states[:, :, :-1], trajectories.actions, states[:, :, 1:]], -1)
    return np.where(trajectories.alive[..., None], points, 0.0)


def planned_lengths(trajectories: Trajectories, min_samples: int) -> np.ndarray:
    """Leading time steps with enough living samples, for each condition.

    :param trajectories: sampled
    :param min_samples: living samples that a time step needs
    :return: ``[M]``
    :raises ValueError: if no condition has a step left
    """
    enough = trajectories.alive.sum(1) >= min_samples
    lengths: np.ndarray = np.where(enough.all(-1), enough.shape[-1], np.argmin(enough, -1))
    if not np.any(lengths > 0):
        raise ValueError(
            f"No time step has the {min_samples} living samples that a fit needs: raise samples_per_condition or lower "
            "dynamics={'min_samples': ...}"
        )
    return lengths


def fit_regression(
    points: FloatArray,
    weights: FloatArray,
    n_inputs: int,
    settings: RegressionSettings,
    rng: np.random.Generator,
    n_same: int | None = None,
    n_fitted: int | None = None,
) -> LinearGaussianFit:
    """Fit outputs on inputs for every condition and time step with the prior of ``settings``.

    :param points: inputs and outputs stacked, ``[M, N, T, D]``, latest conditions first
    :param weights: ``[M, N, T]``
    :param n_inputs: how many of the D variables are inputs
    :param settings: kind and strength of the prior
    :param rng: of the mixture's start
    :param n_same: conditions i and i + n_same are the same one at different iterations; None if all differ
    :param n_fitted: fit the first so many conditions, the others only stand behind the prior; None fits all
    :return: the fit
    """
    scale = Standardizer.fit(points, weights)
    standard = scale.apply(points)
    prior_of = _make_prior(standard, weights, n_inputs, settings, rng, n_same)
    M, _, T, D = points[slice(n_fitted)].shape
    at_once = max(int(FITTED_AT_ONCE / (8 * T * D**2)), 1)
    parts = []
    for begin in range(0, M, at_once):
        own = slice(begin, min(begin + at_once, M))
        parts.append(fit_linear_gaussian(points[own], weights[own], n_inputs, prior_of(own), scale, settings.ridge))
    return parts[0] if len(parts) == 1 else join_conditions(parts)


def _make_prior(
    standard: FloatArray,
    weights: FloatArray,
    n_inputs: int,
    settings: RegressionSettings,
    rng: np.random.Generator,
    n_same: int | None,
) -> Callable[[slice], NormalInverseWishart]:
    """From conditions to their prior; ``standard`` are standardised points, the rest is that of ``fit_regression``."""
    mean_count, cov_count = settings.mean_count, settings.cov_count
    if settings.prior == "gmm":
        living = standard[weights > 0]
        n_clusters = number_of_components(len(living), settings.samples_per_cluster, settings.max_clusters)
        mixture = fit_mixture(living, n_clusters, rng)
        count = n_inputs if cov_count is None else cov_count
        return lambda own: mixture_prior(
            mixture, np.swapaxes(standard[own], 1, 2), np.swapaxes(weights[own], 1, 2), mean_count, count
        )
    if settings.prior == "nearest":
        count, pool = 100.0 if cov_count is None else cov_count, standard[weights > 0]
        return lambda own: nearest_prior(standard[own], weights[own], pool, n_inputs, settings.neighbours, mean_count, count)
    count = 4.0 if cov_count is None else cov_count
    neighbours = _neighbours_in_time(standard, weights, settings.window, n_same)
    return lambda own: window_prior(take_conditions(neighbours, own), mean_count, count)


def _neighbours_in_time(standard: FloatArray, weights: FloatArray, window: int, n_same: int | None) -> Moments:
    sums = moments(standard, weights).windowed(window)
    everyone = sums.pooled()
    if n_same is not None:  # earlier iterations of the same condition count as neighbours
        same = np.arange(len(standard)) % n_same
        sums = Moments(*(np.stack([a[same == i].sum(0) for i in same]) for a in (sums.count, sums.total, sums.outer)))
    # a share of all conditions keeps the prior proper where a condition alone does not span the inputs
    return sums + everyone.scaled(1.0 / max(float(everyone.count.mean()), 1.0))


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
    spread = Standardizer.fit(trajectories.states[:, :, :-1], trajectories.weights).std
    return GaussianState(mean, cov + 1e-6 * np.diag(spread**2))


def step_costs(trajectories: Trajectories, gamma: float, death_spread: float) -> FloatArray:
    """Costs (minus rewards) of the living steps; a death also forgoes the rewards that life would have brought.

    Dead states have value zero by definition, so that a death costs the average reward of all the steps that would have
    followed: r (gamma + gamma^2 + ...), up to the horizon where gamma is 1. As one spike at the last step it would tell a
    fitted cost nothing about the states that lead there; it is spread over the steps before it with geometric weights that
    sum to one, so that the return of every trajectory stays what it was.

    :param trajectories: sampled
    :param gamma: discount factor
    :param death_spread: ratio of the weights of a step and the next, from 0 (one spike) to below 1
    :return: ``[M, N, T]``
    """
    mean_reward = float(np.average(trajectories.rewards, weights=trajectories.weights))
    horizon = trajectories.rewards.shape[-1]
    remaining = horizon if gamma == 1.0 else min(gamma / (1.0 - gamma), 1e6)
    costs = -trajectories.rewards
    m, n, end = np.nonzero(trajectories.terminated & trajectories.alive)
    if len(end):
        lead = end[:, None] - np.arange(horizon)
        share = np.where(lead >= 0, np.power(death_spread, np.maximum(lead, 0), dtype=np.float64), 0.0)
        costs[m, n] += mean_reward * remaining * share / share.sum(1, keepdims=True)
    return costs


def fit_local_cost(
    trajectories: Trajectories,
    lengths: np.ndarray,
    gamma: float,
    settings: CostSettings,
    dynamics: LinearGaussianDynamics,
    bounds: tuple[np.ndarray, np.ndarray],
) -> QuadraticCost:
    """Quadratic cost of each condition and time step, positive semi-definite.

    :param trajectories: sampled; conditions behind the first M only stand behind the pooled fit
    :param lengths: planned time steps, ``[M]``
    :param gamma: discount factor
    :param settings: of the fit to rewards, or with a known cost
    :param dynamics: by which a known cost is expanded
    :param bounds: lower and upper bounds of the actions
    :return: ``[M, T]``, zero behind ``lengths``
    """
    own = trajectories.first(len(lengths))
    if settings.cost_fn is None:
        options = (settings.ridge, settings.local_window or None, settings.local_ridge)
        # as in the dynamics, the actions that were sampled, from which clipping leads to the rewards
        z = np.concatenate([trajectories.states[:, :, :-1], trajectories.actions], -1)
        costs = step_costs(trajectories, gamma, settings.death_spread)
        cost = take_conditions(fit_cost(z, costs, trajectories.weights, *options), slice(len(lengths)))
    else:
        raw = expand_cost(
            settings.cost_fn, own.states[:, :, :-1], own.actions, own.states[:, :, 1:], own.alive, dynamics, *bounds
        )
        z = np.concatenate([own.states[:, :, :-1], own.actions], -1)
        mean = np.sum(np.where(own.alive[..., None], z, 0.0), 1) / np.maximum(own.weights.sum(1), 1.0)[..., None]
        spread = Standardizer.fit(z, own.weights).std  # what the nearest convex cost is must not depend on units
        unit = np.outer(spread, spread)
        cost = anchor(raw.C, raw.c, raw.const, project_psd(raw.C * unit) / unit, mean)
    keep = (np.arange(cost.const.shape[1]) < lengths[:, None]).astype(np.float64)
    return QuadraticCost(cost.C * keep[..., None, None], cost.c * keep[..., None], cost.const * keep)


def fit_local_value(
    trajectories: Trajectories, values: FloatArray, settings: CostSettings, lengths: np.ndarray
) -> QuadraticValue:
    """Quadratic cost-to-go of the state after each time step, fitted to predicted values.

    :param trajectories: sampled
    :param values: predicted returns of all observations, ``[M, N, T + 1]``
    :param settings: of the fit
    :param lengths: planned time steps, ``[M]``
    :return: ``[M, T]``, of the state at t + 1, positive semi-definite; zero behind ``lengths``
    """
    # a dead state is worth nothing, but says nothing about its neighbours that live
    weights = np.where(trajectories.alive & ~trajectories.terminated, 1.0, 0.0)
    following = trajectories.states[:, :, 1:]
    if not weights.any():
        m, t, dx = following.shape[0], following.shape[2], following.shape[3]
        return QuadraticValue(np.zeros((m, t, dx, dx)), np.zeros((m, t, dx)), np.zeros((m, t)))
    options = (settings.ridge, settings.local_window or None, settings.local_ridge)
    fit = fit_cost(
        np.where(weights[..., None] > 0, following, 0.0), -np.where(weights > 0, values[..., 1:], 0.0), weights, *options
    )
    keep = (np.arange(fit.const.shape[1]) < lengths[:, None]).astype(np.float64)
    return QuadraticValue(fit.C * keep[..., None, None], fit.c * keep[..., None], fit.const * keep)


def total_cost(model: LocalModel, controller: LinearGaussianController, gamma: float) -> FloatArray:
    """Discounted expected cost of a controller under the fitted dynamics and cost (MDGPS, appendix B.3).

    :param model: of the conditions
    :param controller: of the same conditions
    :param gamma: discount factor
    :return: ``[M]``
    """
    standard = model.standardized()  # nothing large cancels in the sums
    marginals = forward_marginals(model.units.apply(controller), standard.dynamics, standard.initial)
    costs = expected_cost(standard.cost, marginals)
    return costs @ gamma ** np.arange(costs.shape[-1])


def held_out_error(
    points: FloatArray, weights: FloatArray, n_inputs: int, settings: RegressionSettings, held_out: int, lengths: np.ndarray
) -> float:
    """One-step error on trajectories left out of the fit, relative to the spread of what is predicted.

    :param points: inputs and outputs stacked, ``[M, N, T, D]``
    :param weights: ``[M, N, T]``
    :param n_inputs: how many variables are inputs
    :param settings: of the regression
    :param held_out: index of the sample left out
    :param lengths: planned time steps, ``[M]``
    :return: median over samples of the squared error over the variance of the change from state to state, averaged over the
        outputs; 1 is as bad as predicting no change
    """
    kept = weights.copy()
    kept[:, held_out] = 0.0
    if not kept.any():
        return float("nan")
    fit = fit_regression(points, kept, n_inputs, settings, np.random.default_rng(0))
    truth, inputs = points[:, held_out : held_out + 1, :, n_inputs:], points[:, held_out : held_out + 1, :, :n_inputs]
    planned = np.arange(points.shape[2]) < lengths[:, None, None]
    mask = (weights[:, held_out : held_out + 1] > 0) & planned
    if not mask.any():
        return float("nan")
    error = (truth - fit.predict(inputs))[mask]
    variance = (truth - inputs[..., : truth.shape[-1]])[mask].var(0)
    changes = varies(np.sqrt(variance), truth[mask].std(0))
    return float(np.mean(np.median(error**2, 0)[changes] / variance[changes])) if changes.any() else 0.0
