"""Planners that sample: random shooting, the cross-entropy method, iCEM and MPPI.

Problem: for each of B initial states, maximise the return R(u_0 .. u_{T-1}) of a sequence of actions within bounds, given only
a function that rolls N sequences of every state out. R may come from a simulator, a learned model or a formula.

- Random shooting draws uniformly and takes the best (notes of CS285, Alg. 16).
- CEM fits a Gaussian to the best few and draws again (notes, Alg. 17), keeping ``momentum`` of the last Gaussian.
- iCEM (Pinneri et al. 2020) draws noise whose power falls with frequency, keeps some elites from round to round and from plan
  to plan, draws fewer sequences in later rounds, and tries the mean itself in the last.
- MPPI (Williams et al. 2017) averages what it drew with weights exp(R / beta).

A plan is the start of the next: ``shifted`` moves its mean and its elites on in time, the last action repeated.

Shapes: sequences ``[B, N, T, du]``, returns ``[B, N]``, plans ``[B, T, du]``, bounds ``[du]``.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.special import softmax

from sb3_dpi.trajopt.in_time import slices_in_time
from sb3_dpi.trajopt.noise import coloured, white
from sb3_dpi.trajopt.ranges import check_range, check_whole
from sb3_dpi.trajopt.types import FloatArray, NotFiniteReturnError

Returns = Callable[[FloatArray], FloatArray]
"""Returns ``[B, N]`` of sequences of actions ``[B, N, T, du]``."""

BETA_RANGE = 1e-6, 1e6
"""Of the returns' standard deviation: between these the temperature is sought."""
LOG_BETA_TOLERANCE = 1e-10
"""To which the logarithm of the temperature is sought."""


@dataclass(frozen=True)
class ShootingPlan:
    """What was found for each state, and what the next plan can begin with."""

    actions: FloatArray
    """to carry out, ``[B, T, du]``, within the bounds"""
    returns: FloatArray
    """``[B]``, of these actions; of MPPI the weighed mean of what it drew"""
    mean: FloatArray
    """of the last Gaussian, ``[B, T, du]``"""
    elites: FloatArray
    """the best sequences of the last round, best first, ``[B, K, T, du]``"""
    n_rollouts: int
    """sequences that were rolled out for each state"""

    def shifted(self, n: int = 1) -> "ShootingPlan":
        """
        The rest of the plan, as the start of the next one: its last action is repeated.

        :param n: time steps that have passed
        :return: a plan of the same length
        """
        steps = np.minimum(np.arange(self.actions.shape[1]) + n, self.actions.shape[1] - 1)
        moved = {name: getattr(self, name)[..., steps, :] for name in ("actions", "mean", "elites")}
        return replace(self, **moved)


@dataclass(frozen=True)
class _Box:
    """What is drawn in: sequences of a length, within bounds."""

    low: FloatArray
    high: FloatArray
    n_states: int
    horizon: int

    @staticmethod
    def build(
        low: FloatArray | float, high: FloatArray | float, horizon: int, n_states: int, start: ShootingPlan | None
    ) -> "_Box":
        low, high = np.broadcast_arrays(np.atleast_1d(np.asarray(low, dtype=np.float64)), np.asarray(high, dtype=np.float64))
        if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(low <= high)):
            raise ValueError(
                f"sampled actions need finite bounds with low <= high, got {low} and {high}: rescale or clip them"
            )
        if horizon < 1 or n_states < 1:
            raise ValueError(f"a plan needs a horizon and a number of states of at least 1, got {horizon} and {n_states}")
        wanted = (n_states, horizon, len(low))
        if start is not None and start.actions.shape != wanted:
            raise ValueError(
                f"the plan to start from has shape {start.actions.shape}, this one {wanted}: start cold with None"
            )
        return _Box(low, high, n_states, horizon)

    @property
    def middle(self) -> FloatArray:
        """``[B, T, du]``."""
        return np.broadcast_to(0.5 * (self.low + self.high), (self.n_states, self.horizon, len(self.low)))

    @property
    def half(self) -> FloatArray:
        """Half the range, ``[du]``."""
        return 0.5 * (self.high - self.low)

    def clip(self, actions: FloatArray) -> FloatArray:
        """Into the bounds."""
        clipped: FloatArray = np.clip(actions, self.low, self.high)
        return clipped

    def around(self, mean: FloatArray, variance: FloatArray, n: int, exponent: float, rng: np.random.Generator) -> FloatArray:
        """Draw n sequences around the mean, cut at the bounds."""
        shape = (self.n_states, n, self.horizon, len(self.low))
        fresh = np.swapaxes(coloured(rng, (*shape[:2], *shape[:1:-1]), exponent), -1, -2) if exponent else white(rng, shape)
        drawn = np.empty(shape)
        np.multiply(np.sqrt(variance)[:, None], fresh, out=drawn)
        drawn += mean[:, None]
        # bounds of whole sequences: of single actions, numpy would loop over no more than these
        low, high = (np.broadcast_to(bound, mean.shape[1:]).copy() for bound in (self.low, self.high))
        np.maximum(drawn, low, out=drawn)
        return np.minimum(drawn, high, out=drawn)


class _Trials:
    """Rolls out, and remembers the best of every state."""

    def __init__(self, returns: Returns, box: _Box, deadline: float) -> None:
        self.returns, self.deadline = returns, deadline
        self.best: FloatArray = np.zeros(box.middle.shape)
        self.best_returns: FloatArray = np.full(box.n_states, -np.inf)
        self.n_rollouts = self.n_tried = 0
        self.was_cut = False

    def __call__(self, actions: FloatArray, first: int = 0) -> FloatArray:
        """Returns, minus infinity of sequences that time did not suffice for; ``first`` is tried before the others."""
        if self.deadline == np.inf:
            found, n = self._returns(actions), actions.shape[1]
        else:
            found, n = np.full(actions.shape[:2], -np.inf), 0
            order = np.roll(np.arange(actions.shape[1]), -first)
            for part in slices_in_time(len(order), self.deadline):
                found[:, order[part]] = self._returns(actions[:, order[part]])
                n = part.stop
        self.n_rollouts, self.n_tried, self.was_cut = self.n_rollouts + n, n, n < actions.shape[1]
        rows, top = np.arange(len(found)), np.argmax(found, axis=1)
        better = found[rows, top] > self.best_returns
        self.best = np.where(better[:, None, None], actions[rows, top], self.best)
        self.best_returns = np.where(better, found[rows, top], self.best_returns)
        return found

    def _returns(self, actions: FloatArray) -> FloatArray:
        found = np.asarray(self.returns(actions), dtype=np.float64)
        if found.shape != actions.shape[:2]:
            raise ValueError(f"returns of actions {actions.shape} must be {actions.shape[:2]}, got {found.shape}")
        if not np.all(np.isfinite(found)):
            state, sample = np.argwhere(~np.isfinite(found))[0]
            raise NotFiniteReturnError(
                f"the return of sequence {sample} of state {state} is not finite: check the rewards of the system", int(state)
            )
        return found


def elites(samples: np.ndarray, returns: FloatArray, n: int, axis: int) -> tuple[np.ndarray, FloatArray]:
    """
    Take the best samples of every state.

    :param samples: states along ``axis - 1``, samples along ``axis``
    :param returns: ``[B, N]``
    :param n: how many
    :param axis: of the samples
    :return: best first, along ``axis``, and their returns ``[B, n]``
    """
    order = np.argsort(-returns, axis=1, kind="stable")[:, :n]
    index = np.expand_dims(order, [i for i in range(samples.ndim) if i not in (axis - 1, axis)])
    return np.take_along_axis(samples, index, axis=axis), np.take_along_axis(returns, order, axis=1)


@dataclass(frozen=True)
class Fit:
    """Where the cross-entropy method arrived."""

    mean: FloatArray
    """of the last Gaussian"""
    variance: FloatArray
    """of the last Gaussian"""
    kept: np.ndarray
    """elites of the last round, best first"""
    kept_returns: FloatArray
    """``[B, n_elites]``"""
    returns: FloatArray
    """of all samples of the last round, ``[B, N]``"""


def cross_entropy(
    draw: Callable[[int, FloatArray, FloatArray], np.ndarray],
    evaluate: Callable[[np.ndarray], FloatArray],
    mean: FloatArray,
    variance: FloatArray,
    kept: np.ndarray | None,
    *,
    axis: int,
    n_rounds: int,
    n_elites: int,
    n_kept: int,
    momentum: float,
    smallest: FloatArray | float,
    deadline: float = np.inf,
) -> Fit:
    """
    Fit a Gaussian to the best of what it draws, again and again, in any layout of the samples.

    :param draw: samples of a round, given its number, mean and variance
    :param evaluate: returns ``[B, N]`` of samples
    :param mean: to begin with, the samples' shape without ``axis``
    :param variance: same shape
    :param kept: samples that join the first round; None for none
    :param axis: of the samples; that before it counts states
    :param n_rounds: how often
    :param n_elites: how many of the best are fitted
    :param n_kept: how many of these join the next round
    :param momentum: share of the last Gaussian that is kept
    :param smallest: variance of the fit
    :param deadline: of ``time.monotonic``, after which no further round begins
    :return: the last Gaussian and its elites
    """
    for k in range(n_rounds):
        samples = draw(k, mean, variance)
        if kept is not None:
            samples = np.concatenate([samples, kept.take(np.arange(min(n_kept, kept.shape[axis])), axis)], axis=axis)
        returns = evaluate(samples)
        kept, kept_returns = elites(samples, returns, n_elites, axis)
        mean = momentum * mean + (1.0 - momentum) * kept.mean(axis)
        variance = momentum * variance + (1.0 - momentum) * np.maximum(kept.var(axis), smallest)
        if k == n_rounds - 1 or time.monotonic() > deadline:
            return Fit(mean, variance, kept, kept_returns, returns)
    raise ValueError(f"the cross-entropy method needs a round at least, got {n_rounds}")


def tempered_weights(returns: FloatArray, bound: float) -> tuple[FloatArray, float, float]:
    """
    Weights exp(R / beta) of samples, with the smallest beta that keeps the mean KL divergence from equal weights in bounds.

    :param returns: ``[n, N]``
    :param bound: nats, mean over the n; at most log N can be reached
    :return: weights ``[n, N]`` that sum to one, beta, and the KL divergence
    """
    from scipy.optimize import brentq  # a tenth of a second, that only this needs

    centred = returns - returns.max(1, keepdims=True)
    spread, log_n = max(float(returns.std(1).mean()), 1e-12), float(np.log(returns.shape[1]))

    def tempered(beta: float) -> tuple[FloatArray, FloatArray, float]:
        log_weights = centred / beta  # at most 0: nothing overflows
        weights = np.exp(log_weights)
        totals = weights.sum(1)
        weighed = np.einsum("ij,ij->i", weights, log_weights) / totals
        return weights, totals, float((weighed - np.log(totals)).mean()) + log_n

    @cache  # the ends are asked for twice
    def excess(log_beta: float) -> float:
        return tempered(float(np.exp(log_beta)))[2] - bound

    ends = [float(np.log(factor * spread)) for factor in BETA_RANGE]
    if excess(ends[0]) <= 0.0:
        beta = float(np.exp(ends[0]))
    elif excess(ends[1]) >= 0.0:
        beta = float(np.exp(ends[1]))
    else:
        beta = float(np.exp(brentq(excess, *ends, xtol=LOG_BETA_TOLERANCE)))
    weights, totals, divergence = tempered(beta)
    return weights / totals[:, None], beta, divergence


class Shooter(ABC):
    """A planner that samples."""

    def plan(
        self,
        returns: Returns,
        low: FloatArray | float,
        high: FloatArray | float,
        horizon: int,
        rng: np.random.Generator,
        *,
        n_states: int = 1,
        start: ShootingPlan | None = None,
        max_seconds: float | None = None,
    ) -> ShootingPlan:
        """
        Plan from states.

        :param returns: rolls out: ``[B, N]`` of ``[B, N, T, du]``
        :param low: least actions, ``[du]``, finite
        :param high: greatest actions, ``[du]``, finite
        :param horizon: T, at least 1
        :param rng: draws the sequences
        :param n_states: B
        :param start: the last plan, ``shifted``; None starts cold
        :param max_seconds: after which nothing more is rolled out, but one sequence at least; None for no limit
        :return: the plan
        :raises ValueError: for a horizon of 0, bounds that are not finite, or returns that are not
        """
        box = _Box.build(low, high, horizon, n_states, start)
        deadline = np.inf if max_seconds is None else time.monotonic() + max_seconds
        return self._search(box, _Trials(returns, box, deadline), rng, start, deadline)

    @abstractmethod
    def _search(
        self, box: _Box, trials: _Trials, rng: np.random.Generator, start: ShootingPlan | None, deadline: float
    ) -> ShootingPlan: ...


@dataclass(frozen=True)
class RandomShooting(Shooter):
    """The best of sequences drawn uniformly within the bounds, the rest of the last plan among them.

    :param n_samples: N for each state; usual: 200 to 5000
    """

    n_samples: int = 1000

    def __post_init__(self) -> None:
        check_whole(self, "n_samples")

    def _search(
        self, box: _Box, trials: _Trials, rng: np.random.Generator, start: ShootingPlan | None, deadline: float
    ) -> ShootingPlan:
        shape = (box.n_states, self.n_samples, box.horizon, len(box.low))
        drawn = box.low + (box.high - box.low) * rng.uniform(size=shape)
        if start is not None:
            drawn[:, -1] = box.clip(start.actions)
        best, values = elites(drawn, trials(drawn, first=0 if start is None else -1), 1, 1)
        return ShootingPlan(best[:, 0], values[:, 0], best[:, 0], best, trials.n_rollouts)


@dataclass(frozen=True)
class CEM(Shooter):
    """The cross-entropy method: the best sequence of all rounds is carried out.

    :param n_samples: N of each state in the first round; usual: 50 to 1000
    :param n_elites: how many of the best are fitted; usual: a tenth of the samples
    :param n_rounds: how often; usual: 3 to 10
    :param momentum: share of the last Gaussian that is kept; usual: .1
    :param spread: first standard deviation, in units of half the range of an action; usual: .5
    :param smallest_spread: of the fit, in the same units: below it nothing more is tried
    :param exponent: of the noise, whose power falls with frequency to this power; 0 is white
    :param kept: share of the elites that join the next round, and the next plan; 0 for none
    :param decay: each round draws this share of the sequences of the one before, but twice the elites at least
    """

    n_samples: int = 300
    n_elites: int = 30
    n_rounds: int = 4
    momentum: float = 0.1
    spread: float = 0.5
    smallest_spread: float = 0.01
    exponent: float = 0.0
    kept: float = 0.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_whole(self, "n_samples", "n_elites", "n_rounds")
        if self.n_elites > self.n_samples:
            raise ValueError(
                f"{type(self).__name__} fits n_elites={self.n_elites} of n_samples={self.n_samples}: give no more elites than "
                "samples"
            )
        check_range(self, "momentum", 0.0, 1.0, "high")
        check_range(self, "spread", 0.0, is_open="low")
        for name in ("smallest_spread", "exponent"):
            check_range(self, name, 0.0)
        check_range(self, "kept", 0.0, 1.0)
        check_range(self, "decay", 0.0, 1.0, "low")

    def _search(
        self, box: _Box, trials: _Trials, rng: np.random.Generator, start: ShootingPlan | None, deadline: float
    ) -> ShootingPlan:
        least, n_kept = min(2 * self.n_elites, self.n_samples), round(self.kept * self.n_elites)

        def draw(k: int, mean: FloatArray, variance: FloatArray) -> FloatArray:
            n = max(int(self.n_samples * self.decay**k), least)
            drawn = box.around(mean, variance, n, self.exponent, rng)
            if k == self.n_rounds - 1:
                drawn[:, 0] = mean
            return drawn

        fit = cross_entropy(
            draw,
            lambda samples: trials(samples, first=0 if start is None else -n_kept),
            box.middle if start is None else box.clip(start.mean),
            np.broadcast_to((self.spread * box.half) ** 2, box.middle.shape),
            None if start is None else box.clip(start.elites),
            axis=1,
            n_rounds=self.n_rounds,
            n_elites=self.n_elites,
            n_kept=n_kept,
            momentum=self.momentum,
            smallest=(self.smallest_spread * box.half) ** 2,
            deadline=deadline,
        )
        mean, kept = fit.mean, fit.kept
        if trials.was_cut:  # so few say little of a Gaussian
            mean, kept = trials.best, kept[:, np.arange(self.n_elites) % min(trials.n_tried, self.n_elites)]
        return ShootingPlan(trials.best, trials.best_returns, mean, kept, trials.n_rollouts)


@dataclass(frozen=True)
class ICEM(CEM):
    """The improved cross-entropy method: ``CEM`` with lasting noise, kept elites and smaller later rounds.

    :param n_samples: N of each state in the first round; usual: 30 to 300
    :param n_elites: how many of the best are fitted; usual: 10
    :param n_rounds: how often; usual: 3 to 4
    :param exponent: of the noise; usual: 2 to 3, .25 where actions must be quick
    :param kept: share of the elites that join the next round, and the next plan
    :param decay: each round draws this share of the sequences of the one before
    """

    n_samples: int = 100
    n_elites: int = 10
    n_rounds: int = 3
    exponent: float = 2.0
    kept: float = 0.3
    decay: float = 0.8


@dataclass(frozen=True)
class MPPI(Shooter):
    """Path integral control: the mean of what was drawn, weighed by exp(R / beta), is carried out.

    :param n_samples: N of each state; the mean itself is one of them; usual: 100 to 2000
    :param n_rounds: how often; usual: 1, with the last plan as start
    :param spread: standard deviation of the noise, in units of half the range of an action; usual: .2 to .5
    :param temperature: beta, in units of the return; None chooses it by ``trust_region``
    :param trust_region: KL divergence of the weights from equal ones, nats for a plan, at most log N; usual: 1 to 3
    :param exponent: of the noise, whose power falls with frequency to this power; 0 is white
    """

    n_samples: int = 300
    n_rounds: int = 1
    spread: float = 0.3
    temperature: float | None = None
    trust_region: float = 2.0
    exponent: float = 0.0

    def __post_init__(self) -> None:
        check_whole(self, "n_samples", "n_rounds")
        for name in ("spread", "trust_region", *(("temperature",) if self.temperature is not None else ())):
            check_range(self, name, 0.0, is_open="low")
        check_range(self, "exponent", 0.0)

    def _search(
        self, box: _Box, trials: _Trials, rng: np.random.Generator, start: ShootingPlan | None, deadline: float
    ) -> ShootingPlan:
        mean = box.middle if start is None else box.clip(start.mean)
        variance = np.broadcast_to((self.spread * box.half) ** 2, mean.shape)
        for _ in range(self.n_rounds):
            drawn = box.around(mean, variance, self.n_samples, self.exponent, rng)
            drawn[:, 0] = mean
            found = trials(drawn)
            if trials.was_cut:
                was_tried = found[0] > -np.inf
                drawn, found = drawn[:, was_tried], found[:, was_tried]
            weights = self._weights(found)
            # a mean of numbers that are all at a bound may round beyond it
            mean = box.clip((weights[:, None] @ drawn.reshape(*found.shape, -1)).reshape(mean.shape))
            if time.monotonic() > deadline:
                break
        best = drawn[np.arange(len(found)), found.argmax(1)][:, None]
        return ShootingPlan(mean, (weights * found).sum(1), mean, best, trials.n_rollouts)

    def _weights(self, returns: FloatArray) -> FloatArray:
        if self.temperature is None:
            return np.concatenate([tempered_weights(row[None], self.trust_region)[0] for row in returns])
        weights: FloatArray = softmax(returns / self.temperature, axis=1)
        return weights
